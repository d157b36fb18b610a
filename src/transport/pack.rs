//! Compresses layers for registries and archives, because the store only keeps their tars.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};

use sha2::{Digest as _, Sha256};

use crate::image::Compression;
use crate::names::Digest;

/// Compresses a layer's tar into the empty file `out`, and reports the progress. Returns the digest and number of the
/// compressed bytes. Also hashes the tar, because a damaged one must not be passed on.
pub(crate) fn pack(
    tar: &File,
    diff_id: &Digest,
    out: &File,
    packing: Compression,
    progress: &dyn Fn(u64),
) -> io::Result<(Digest, u64)> {
    let mut input = Input { file: tar, progress, hash: Sha256::new() };
    let mut output = Output { out: BufWriter::with_capacity(256 << 10, out), hash: Sha256::new() };
    match packing {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut output, flate2::Compression::default());
            io::copy(&mut input, &mut encoder)?;
            encoder.finish()?;
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(&mut output, 3)?;
            encoder.include_checksum(true)?;
            io::copy(&mut input, &mut encoder)?;
            encoder.finish()?;
        }
        Compression::None => {
            io::copy(&mut input, &mut output)?;
        }
    }
    output.flush()?;
    input.check(diff_id)?;
    let size = (&mut &*out).stream_position()?;
    Ok((Digest(output.hash.finalize().into()), size))
}

/// Copies a layer's tar to `sink` in pieces, and verifies its digest at the end.
pub(crate) fn copy_checked(
    tar: &File,
    diff_id: &Digest,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut input = Input { file: tar, progress: &|_| (), hash: Sha256::new() };
    let mut buffer = vec![0; 1 << 20];
    loop {
        match input.read(&mut buffer)? {
            0 => return input.check(diff_id),
            got => sink(&buffer[..got])?,
        }
    }
}

struct Input<'a> {
    file: &'a File,
    progress: &'a dyn Fn(u64),
    hash: Sha256,
}

impl Input<'_> {
    fn check(self, diff_id: &Digest) -> io::Result<()> {
        if Digest(self.hash.finalize().into()) == *diff_id {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the stored layer does not match its digest"))
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.hash.update(&buffer[..got]);
        (self.progress)(got as u64);
        Ok(got)
    }
}

struct Output<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
