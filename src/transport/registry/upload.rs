//! The body of an upload.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::FileExt;

/// A range of a file that is being uploaded.
#[derive(Debug)]
pub(crate) struct Upload<'a> {
    pub(super) file: &'a File,
    pub(super) len: u64,
}

impl Upload<'_> {
    pub(crate) fn reader(&self) -> io::Result<impl Read + use<'_>> {
        struct At<'a>(&'a File, u64);
        impl Read for At<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let got = self.0.read_at(buffer, self.1)?;
                self.1 += got as u64;
                Ok(got)
            }
        }
        Ok(At(self.file, 0).take(self.len))
    }
}
