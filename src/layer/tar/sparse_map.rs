//! The map of a sparse member in PAX format 1.0.

use super::pax::decimal;

/// The text of a PAX 1.0 map: a count, then that many offset and length lines, padded to a block.
#[derive(Debug, Default)]
pub(crate) struct Map1 {
    pub(super) line: Vec<u8>,
    pub(super) count: Option<u64>,
    pub(super) numbers: Vec<u64>,
}

impl Map1 {
    /// Takes one block. Returns true when the map is complete.
    pub(super) fn take(&mut self, block: &[u8]) -> Option<bool> {
        for byte in block {
            if *byte != b'\n' {
                // The longest number has 20 digits.
                if self.line.len() > 20 {
                    return None;
                }
                self.line.push(*byte);
                continue;
            }
            let value = decimal(&self.line)?;
            self.line.clear();
            match self.count {
                None => self.count = Some(value),
                Some(_) => self.numbers.push(value),
            }
            if self.complete() {
                return Some(true);
            }
        }
        Some(false)
    }

    pub(super) fn complete(&self) -> bool {
        self.count.is_some_and(|count| self.numbers.len() as u64 / 2 >= count)
    }
}
