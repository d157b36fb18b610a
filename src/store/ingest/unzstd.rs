//! zstd decompression, frame by frame. Before each frame, the memory of its window is reserved from the amount that all
//! layers of a load share.
//!
//! The packer chooses the window size, up to 128 MiB (`zstd -19` takes 8 MiB, `-3` takes 2, `--ultra -22` takes 128).
//! It is only known from a frame's header, with the first bytes of the layer. The number of layers to decompress in
//! parallel can therefore not be decided in advance. Each layer waits after it has read its header, and a connection
//! that breaks in the meantime is opened again.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use zstd::zstd_safe::{self, DCtx, InBuffer, OutBuffer};

use super::packed::{Pieces, Stream};
use crate::inflate::Input as _;

/// Memory for the windows of all layers of a load: enough for two of `zstd -19`, or four of the size that most packers
/// use.
const WINDOWS: u64 = 17 << 20;
/// The library refuses larger windows, whatever the header says (up to 2^64 - 1).
const LARGEST: u64 = 128 << 20;
/// Maximum length of a frame's header.
const LONGEST_HEADER: usize = 18;

/// The memory that the windows of a load's layers share.
#[derive(Debug)]
pub(crate) struct Windows {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: u64,
    /// Waiting has ended, because a layer failed.
    over: bool,
}

/// A part of that memory.
#[derive(Debug)]
struct Share<'a> {
    windows: &'a Windows,
    bytes: u64,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.windows.lock().taken -= self.bytes;
        self.windows.changed.notify_all();
    }
}

impl Windows {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new() }
    }

    /// Makes all current and future calls of `take` fail.
    pub(crate) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits until enough memory is free. A window larger than the total is used alone.
    fn take(&self, bytes: u64) -> io::Result<Share<'_>> {
        let bytes = bytes.min(LARGEST);
        let is_full = |state: &mut State| !state.over && state.taken > 0 && state.taken + bytes > WINDOWS;
        let mut state = self.changed.wait_while(self.lock(), is_full).unwrap_or_else(PoisonError::into_inner);
        if state.over {
            return Err(io::Error::other("another layer failed"));
        }
        state.taken += bytes;
        Ok(Share { windows: self, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Unzstd<'a> {
    windows: &'a Windows,
    /// The context, with the memory of its window.
    context: Option<(DCtx<'static>, Share<'a>)>,
    in_frame: bool,
}

impl<'a> Unzstd<'a> {
    pub(crate) fn new(windows: &'a Windows) -> Self {
        Self { windows, context: None, in_frame: false }
    }

    /// Fills `room`. It is only partially filled at the end of the stream.
    pub(crate) fn fill<P: Pieces>(&mut self, stream: &mut Stream<P>, room: &mut [u8]) -> io::Result<usize> {
        let whole = room.len();
        let mut out = OutBuffer::around(room);
        while out.pos() < whole {
            if !self.in_frame {
                if stream.next()?.is_empty() {
                    break;
                }
                self.begin(stream)?;
            }
            let Some((context, _)) = &mut self.context else { break };
            let before = out.pos();
            let mut input = InBuffer::around(stream.next()?);
            let at_end = input.src.is_empty();
            let left =
                context.decompress_stream(&mut out, &mut input).map_err(|code| bad(zstd_safe::get_error_name(code)))?;
            let used = input.pos();
            stream.used(used);
            self.in_frame = left > 0;
            if self.in_frame && at_end && out.pos() == before {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the zstd stream is truncated"));
            }
        }
        Ok(out.pos())
    }

    /// Starts a frame, and takes the memory for its window if it is larger than the previous ones. Releases the memory
    /// that it holds first, so that layers do not deadlock by waiting while they hold memory.
    fn begin<P: Pieces>(&mut self, stream: &mut Stream<P>) -> io::Result<()> {
        while stream.available().0.len() < LONGEST_HEADER && !stream.available().1 {
            stream.more()?;
        }
        let window = window(stream.available().0).unwrap_or(0);
        if self.context.as_ref().is_none_or(|(_, share)| window > share.bytes) {
            self.context = None;
            let share = self.windows.take(window)?;
            let context = DCtx::try_create().ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
            self.context = Some((context, share));
        }
        self.in_frame = true;
        Ok(())
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the zstd stream is damaged: {why}"))
}

/// Returns the window size from the header of a frame (RFC 8878, 3.1.1). Returns `None` for anything else, which zstd
/// itself refuses or skips.
fn window(header: &[u8]) -> Option<u64> {
    let rest = header.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (descriptor, rest) = rest.split_first()?;
    let is_single = descriptor & 0x20 != 0;
    if !is_single {
        let byte = u64::from(*rest.first()?);
        let base = 1 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    // The window is the whole content.
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut size = [0; 8];
    size[..length].copy_from_slice(rest.get(dictionary_id..dictionary_id + length)?);
    let size = u64::from_le_bytes(size);
    Some(if length == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use zstd::zstd_safe::CParameter;

    fn packed(bytes: &[u8], window_log: Option<u32>, size: bool) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
        if size {
            encoder.set_pledged_src_size(Some(bytes.len() as u64)).expect("a size");
            encoder.include_contentsize(true).expect("a size");
        }
        if let Some(log) = window_log {
            encoder.set_parameter(CParameter::WindowLog(log)).expect("a window");
        }
        encoder.write_all(bytes).expect("packed");
        encoder.finish().expect("packed")
    }

    #[test]
    fn a_header_gives_its_window() {
        for log in [10, 17, 21, 23, 27] {
            assert_eq!(window(&packed(b"x", Some(log), false)), Some(1 << log), "{log}");
        }
        for size in [0, 255, 256, 65_791, 65_792, 1 << 20] {
            let found = window(&packed(&vec![7; size], Some(23), true));
            assert_eq!(found, Some(size as u64), "one segment of {size} bytes");
        }
        // The largest window of the RFC, and a size that is not a power of two.
        assert_eq!(window(b"\x28\xb5\x2f\xfd\x00\xff"), Some((1 << 41) + 7 * (1 << 38)));
        assert_eq!(window(b"\x28\xb5\x2f\xfd\x00\x0b"), Some(2048 + 3 * 256));
        for none in
            [&b""[..], b"\x28\xb5\x2f", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x00", b"\x50\x2a\x4d\x18\0\0\0\0"]
        {
            assert_eq!(window(none), None, "{none:?}");
        }
    }

    #[test]
    fn large_windows_wait_for_each_other_and_a_larger_one_than_all_is_alone() {
        let windows = Windows::new();
        let (sender, receiver) = channel();
        let is_quiet = || receiver.recv_timeout(Duration::from_millis(50)).is_err();
        std::thread::scope(|scope| {
            let (first, second) = (windows.take(8 << 20).expect("a share"), windows.take(8 << 20).expect("a share"));
            let wait = |bytes| {
                let (windows, sender) = (&windows, sender.clone());
                scope.spawn(move || {
                    let share = windows.take(bytes);
                    sender.send(bytes).expect("heard");
                    share
                })
            };
            let third = wait(8 << 20);
            assert!(is_quiet(), "no room for a third");
            drop(first);
            assert_eq!(receiver.recv(), Ok(8 << 20));
            let huge = wait(128 << 20);
            assert!(is_quiet());
            drop(second);
            assert!(is_quiet(), "the third is there");
            drop(third.join().expect("done").expect("a share"));
            assert_eq!(receiver.recv(), Ok(128 << 20));
            let late = wait(1);
            assert!(is_quiet(), "the huge one is alone");
            windows.end();
            assert!(late.join().expect("done").is_err(), "who waits is told that it is over");
            drop(huge.join().expect("done").expect("a share"));
        });
        assert!(windows.take(1).is_err() && windows.lock().taken == 0);
        // A header may contain any value.
        let windows = Windows::new();
        let lie = windows.take(u64::MAX).expect("a share");
        assert_eq!((lie.bytes, windows.lock().taken), (LARGEST, LARGEST));
    }
}
