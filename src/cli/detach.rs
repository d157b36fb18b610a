//! The keys that detach from a running container (docker's `--detach-keys`).

use crate::report::Report;

/// A key sequence, and the number of its keys that have been pressed so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DetachKeys {
    keys: Vec<u8>,
    seen: usize,
}

impl DetachKeys {
    /// Parses docker's notation: `ctrl-p,ctrl-q`, `ctrl-@`, `a,b`. An empty text disables detaching.
    pub(super) fn parse(text: &str) -> Result<Self, Report> {
        let wrong = |key: &str| {
            Report::usage(format!("`--detach-keys {text}`: `{key}` is not a key")).with_hint(
                "write single characters or `ctrl-X` (X is one of a-z @ [ \\ ] ^ _), separated by \
                            commas: `ctrl-p,ctrl-q`",
            )
        };
        let mut keys = Vec::new();
        for key in text.split(',').filter(|_| !text.is_empty()) {
            let byte = match key.strip_prefix("ctrl-").map(str::as_bytes) {
                Some(&[letter @ (b'a'..=b'z' | b'A'..=b'Z')]) => letter.to_ascii_uppercase() - b'@',
                Some(&[sign @ (b'@' | b'['..=b'_')]) => sign - b'@',
                Some(_) => return Err(wrong(key)),
                None => match key.as_bytes() {
                    &[byte] => byte,
                    _ => return Err(wrong(key)),
                },
            };
            keys.push(byte);
        }
        Ok(Self { keys, seen: 0 })
    }

    /// Processes typed bytes. Returns the bytes to pass to the container, and whether the sequence is complete. The
    /// beginning of a sequence is held back until the next key shows whether it continues.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.get(self.seen) == Some(&byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    self.seen = 0;
                    return (pass, true);
                }
                continue;
            }
            pass.extend_from_slice(&self.keys[..self.seen]);
            self.seen = 0;
            if self.keys.first() == Some(&byte) {
                self.seen = 1;
            } else {
                pass.push(byte);
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_parse_as_dockers() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q").unwrap().keys, [16, 17]);
        assert_eq!(DetachKeys::parse("ctrl-@,a,ctrl-]").unwrap().keys, [0, b'a', 29]);
        assert_eq!(DetachKeys::parse("").unwrap().keys, b"");
        for wrong in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-pp"] {
            assert!(DetachKeys::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_half_sequence_goes_on_to_the_container() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.feed(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.feed(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.feed(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.feed(b"\x11rest"), (Vec::new(), true));
        let mut none = DetachKeys::parse("").unwrap();
        assert_eq!(none.feed(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
