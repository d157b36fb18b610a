//! System call numbers of the architectures that a kernel supports, including its compatibility modes.

use std::str::FromStr;

/// A calling convention of the kernel, as seen by a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convention {
    X86_64,
    I386,
    Aarch64,
    Arm,
}

impl Convention {
    /// Returns the conventions of the running kernel. x32 is not included: distribution kernels are built without it,
    /// and its calls fail with ENOSYS.
    #[must_use]
    pub(super) fn of_this_host() -> &'static [Self] {
        if cfg!(target_arch = "aarch64") { &[Self::Aarch64, Self::Arm] } else { &[Self::X86_64, Self::I386] }
    }

    /// Returns the kernel's AUDIT_ARCH value.
    #[must_use]
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xC000_00B7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Returns whether arguments have 32 bits. The kernel shows full registers to a filter even if the call uses only
    /// their lower halves (`int 0x80` from a 64-bit program).
    #[must_use]
    pub(super) fn is_32_bit(self) -> bool {
        matches!(self, Self::I386 | Self::Arm)
    }

    /// Returns the number of a system call, if this convention has a call of that name.
    #[must_use]
    pub(super) fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok().map(|number| number.id() as u32),
            Self::I386 => syscalls::x86::Sysno::from_str(name).ok().map(|number| number.id() as u32),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok().map(|number| number.id() as u32),
            Self::Arm => syscalls::arm::Sysno::from_str(name).ok().map(|number| number.id() as u32),
        }
    }
}
