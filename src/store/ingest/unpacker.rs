//! Decompresses a layer into whole buffers of a tar stream. The first bytes determine the compression.

use std::io::{self, Read};

use super::Buffer;
use super::packed::{Piece, Pieces, Stream, until_read};
use super::unzstd::{Unzstd, Windows};
use crate::image::Compression;
use crate::inflate::Gunzip;

pub(crate) enum Unpacker<'a, R, P: Pieces> {
    /// The first piece, which was read to detect the compression, and the rest.
    Plain(Piece, R),
    Gzip(Box<Gunzip>, Stream<P>),
    Zstd(Unzstd<'a>, Stream<P>),
}

impl<'a, R: Read, P: Pieces> Unpacker<'a, R, P> {
    /// Reads the first piece. If the stream is compressed, `pieces` converts the reader to the source of the other
    /// pieces. The memory of a zstd window is taken from `windows`.
    pub(crate) fn new(
        mut reader: R,
        windows: &'a Windows,
        pieces: impl FnOnce(R, &Piece) -> io::Result<P>,
    ) -> io::Result<Self> {
        let mut first = Piece::new();
        first.fill(&mut reader)?;
        Ok(match Compression::sniff(first.bytes()) {
            Compression::None => Self::Plain(first, reader),
            Compression::Gzip => {
                let pieces = pieces(reader, &first)?;
                Self::Gzip(Box::default(), Stream::new(first, pieces))
            }
            Compression::Zstd => {
                let pieces = pieces(reader, &first)?;
                // The library limits a window to 128 MiB.
                Self::Zstd(Unzstd::new(windows), Stream::new(first, pieces))
            }
        })
    }

    /// Skips the checksums of the compression format, for a stream whose output is compared with a digest. They are
    /// weaker, and cost a twelfth of the decompression time.
    pub(crate) fn ignore_checksums(&mut self) {
        if let Self::Gzip(gunzip, _) = self {
            gunzip.ignore_checksums();
        }
    }

    /// Fills the buffer. It is only partially filled at the end of the stream.
    pub(crate) fn fill(&mut self, chunk: &mut Buffer) -> io::Result<usize> {
        let (first, reader) = match self {
            Self::Plain(first, reader) => (first, reader),
            Self::Gzip(gunzip, stream) => return gunzip.fill(stream, chunk.with_margins()),
            Self::Zstd(unzstd, stream) => return unzstd.fill(stream, chunk.bytes_mut()),
        };
        let space = chunk.bytes_mut();
        let mut filled = 0;
        while filled < space.len() {
            let rest = &mut space[filled..];
            let got = if first.bytes().is_empty() {
                until_read(|| reader.read(rest))?
            } else {
                let got = first.bytes().read(rest)?;
                first.used(got);
                got
            };
            if got == 0 {
                break;
            }
            filled += got;
        }
        Ok(filled)
    }

    /// Checks at the end of the stream that all compressed bytes were used.
    pub(crate) fn finish(self) -> io::Result<()> {
        let mut stream = match self {
            Self::Plain(..) => return Ok(()),
            Self::Gzip(_, stream) | Self::Zstd(_, stream) => stream,
        };
        if stream.next()?.is_empty() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected data after the end of the stream"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::CHUNK;
    use super::super::packed::{Inline, Packed, ReadAhead};
    use super::*;

    /// Bytes that barely compress, so that a stream is read in many pieces.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9E37_79B9_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8 & 0x3f
        };
        (0..length).map(|_| next()).collect()
    }

    fn all_of<R: Read, P: Pieces>(mut unpacker: Unpacker<R, P>) -> io::Result<Vec<u8>> {
        let (mut buffer, mut found) = (Buffer::new(CHUNK), Vec::new());
        loop {
            let filled = unpacker.fill(&mut buffer)?;
            found.extend_from_slice(&buffer.bytes()[..filled]);
            if filled < CHUNK {
                return unpacker.finish().map(|()| found);
            }
        }
    }

    #[test]
    fn every_packing_fills_whole_buffers_up_to_the_end() {
        let windows = Windows::new();
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 777] {
            let bytes = noise(length);
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).expect("packed");
            let packings = [
                ("plain", bytes.clone()),
                ("gzip", gzip.finish().expect("packed")),
                ("zstd", zstd::encode_all(&bytes[..], 1).expect("packed")),
            ];
            for (name, packed) in packings {
                let here = Unpacker::new(&packed[..], &windows, |rest, _| Ok(Inline(rest))).expect("a stream");
                assert!(all_of(here).expect("unpacked") == bytes, "{name}, {length}");
                std::thread::scope(|scope| {
                    let mut reading = None;
                    let ahead = Unpacker::new(Packed::new(&packed[..], &(), 0), &windows, |rest, first| {
                        let (ahead, thread) = ReadAhead::spawn(scope, rest.hash(first))?;
                        reading = Some(thread);
                        Ok(ahead)
                    });
                    assert!(all_of(ahead.expect("a stream")).expect("unpacked") == bytes, "{name}, {length}, ahead");
                    assert_eq!(reading.is_some(), name != "plain");
                    if let Some(thread) = reading {
                        assert_eq!(
                            thread.join().expect("read"),
                            Some(crate::image::digest_of(&packed)),
                            "{name}, {length}"
                        );
                    }
                });
            }
        }
    }

    /// A reader that fails after some bytes.
    struct Failing<'a>(&'a [u8]);

    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { self.0.read(buffer) }
        }
    }

    #[test]
    fn a_reader_error_crosses_threads() {
        let windows = Windows::new();
        let packed = zstd::encode_all(&noise(5 * CHUNK)[..], 1).expect("packed");
        let half = &packed[..packed.len() / 2];
        let error = std::thread::scope(|scope| {
            let unpacker = Unpacker::new(Packed::new(Failing(half), &(), 0), &windows, |rest, _| {
                Ok(ReadAhead::spawn(scope, rest)?.0)
            });
            all_of(unpacker.expect("a stream")).expect_err("a failure")
        });
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    }

    #[test]
    fn an_early_stop_ends_the_reader() {
        let windows = Windows::new();
        let packed = zstd::encode_all(&noise(8 * CHUNK)[..], 1).expect("packed");
        // The scope would not end if the reader waited for its pieces to be received.
        std::thread::scope(|scope| {
            let unpacker = Unpacker::new(Packed::new(&packed[..], &(), 0), &windows, |rest, _| {
                Ok(ReadAhead::spawn(scope, rest)?.0)
            });
            let filled = unpacker.expect("a stream").fill(&mut Buffer::new(CHUNK)).expect("a buffer");
            assert_eq!(filled, CHUNK);
        });
    }
}
