//! The GPU selection: the units that a container gets.

use super::inventory::Unit;

/// The selected units.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    pub units: Vec<&'a Unit>,
    /// Names that only the vendor's own tool can resolve, because the host does not reveal them.
    pub opaque: Vec<String>,
    pub exclusive: bool,
    /// Whether the caller requested a number of units and not particular ones.
    pub by_count: bool,
    /// `GPU 0 is also held by …`
    pub shared: Vec<String>,
}

impl Selection<'_> {
    /// The names of all selected units, for the vendor's tools.
    pub(super) fn names(&self) -> Vec<String> {
        self.units.iter().map(|unit| unit.name.clone()).chain(self.opaque.iter().cloned()).collect()
    }

    /// `0 NVIDIA A100, 1 NVIDIA A100`
    pub(super) fn listing(&self) -> String {
        match self.units.is_empty() {
            true => self.opaque.join(", "),
            false => {
                let list: Vec<String> =
                    self.units.iter().map(|unit| format!("{} {}", unit.index, unit.model)).collect();
                list.join(", ")
            }
        }
    }
}
