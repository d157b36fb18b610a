//! Sparse members: old GNU maps in the header, and PAX maps in records (0.0, 0.1) or before the data (1.0).

use super::super::tree::{Data, Segment};
use super::entry::{MAX_FILE_SIZE, padding};
use super::header::number;
use super::pax::Sparse;
use super::scanner::State;
use super::sparse_map::Map1;
use super::{BLOCK, Entry, EntryKind, Scanner, TarProblem};

impl Scanner {
    /// Starts a member of type `S`: four pairs are in the header, more in extension blocks.
    pub(super) fn gnu_sparse_start(&mut self, entry: Entry, block: &[u8; BLOCK], data: u64) -> Result<(), TarProblem> {
        let real_size = size(number(&block[483..495], "sparse size")?)?;
        let mut map = Vec::new();
        pairs(&block[386..482], &mut map)?;
        if block[482] != 0 {
            self.state = State::GnuSparse { map, entry, real_size, data };
            return Ok(());
        }
        self.sparse_entry(entry, &map, real_size, self.position, data)
    }

    pub(super) fn gnu_sparse_block(
        &mut self,
        mut map: Vec<(u64, u64)>,
        entry: Entry,
        real_size: u64,
        data: u64,
    ) -> Result<(), TarProblem> {
        let block = self.block;
        pairs(&block[..504], &mut map)?;
        self.spend(21 * 16)?;
        if block[504] != 0 {
            self.state = State::GnuSparse { map, entry, real_size, data };
            return Ok(());
        }
        self.sparse_entry(entry, &map, real_size, self.position, data)
    }

    pub(super) fn pax_sparse_start(&mut self, mut entry: Entry, sparse: Sparse, data: u64) -> Result<(), TarProblem> {
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        let real_size = sparse.real_size.ok_or(TarProblem::Sparse)?;
        if real_size > MAX_FILE_SIZE {
            return Err(TarProblem::Range("sparse size"));
        }
        match sparse.version {
            (1, 0) => {
                self.state = State::PaxSparse { text: Map1::default(), entry, real_size, data };
                Ok(())
            }
            (0, 0 | 1) => {
                let map: Vec<_> = sparse.map.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                if !sparse.map.len().is_multiple_of(2) {
                    return Err(TarProblem::Sparse);
                }
                self.sparse_entry(entry, &map, real_size, self.position, data)
            }
            _ => Err(TarProblem::Sparse),
        }
    }

    pub(super) fn pax_sparse_block(
        &mut self,
        mut text: Map1,
        entry: Entry,
        real_size: u64,
        data: u64,
    ) -> Result<(), TarProblem> {
        let block = self.block;
        let data = data.checked_sub(BLOCK as u64).ok_or(TarProblem::Sparse)?;
        self.spend(BLOCK * 4)?;
        if !text.take(&block).ok_or(TarProblem::Sparse)? {
            self.state = State::PaxSparse { text, entry, real_size, data };
            return Ok(());
        }
        let map: Vec<_> = text.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        self.sparse_entry(entry, &map, real_size, self.position, data)
    }

    /// Checks a complete map and converts it into segments.
    fn sparse_entry(
        &mut self,
        mut entry: Entry,
        map: &[(u64, u64)],
        real_size: u64,
        mut offset: u64,
        data: u64,
    ) -> Result<(), TarProblem> {
        let mut segments = Vec::new();
        let (mut end, mut stored) = (0u64, 0u64);
        for (at, len) in map {
            let next =
                at.checked_add(*len).filter(|next| *at >= end && *next <= real_size).ok_or(TarProblem::Sparse)?;
            end = next;
            stored = stored.checked_add(*len).ok_or(TarProblem::Sparse)?;
            if *len > 0 {
                segments.push(Segment { at: *at, source: 0, offset, len: *len });
                offset += len;
            }
        }
        if stored != data {
            return Err(TarProblem::Sparse);
        }
        self.spend(segments.len() * size_of::<Segment>())?;
        entry.kind = EntryKind::File(Data { size: real_size, segments });
        self.entries.push(entry);
        self.skip_data(data, padding(data));
        Ok(())
    }

    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), TarProblem> {
        self.memory += bytes;
        if self.memory > self.max_memory { Err(TarProblem::TooManyHeaders(self.max_memory)) } else { Ok(()) }
    }
}

/// Reads pairs of 12-byte numbers up to the first empty one.
fn pairs(field: &[u8], map: &mut Vec<(u64, u64)>) -> Result<(), TarProblem> {
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        map.push((size(number(&pair[..12], "sparse offset")?)?, size(number(&pair[12..], "sparse length")?)?));
    }
    Ok(())
}

fn size(value: i64) -> Result<u64, TarProblem> {
    u64::try_from(value).ok().filter(|size| *size <= MAX_FILE_SIZE).ok_or(TarProblem::Range("sparse size"))
}
