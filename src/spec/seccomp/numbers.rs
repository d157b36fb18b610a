//! System call numbers of the architectures that a kernel runs, its compatibility modes included.

use std::str::FromStr;

/// One calling convention of the kernel, as a filter sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    X86_64,
    I386,
    Aarch64,
    Arm,
}

impl Convention {
    /// Those of the running kernel. x32 is not among them: distributions' kernels are built without it, and its calls get ENOSYS.
    #[must_use]
    pub fn of_this_host() -> &'static [Self] {
        if cfg!(target_arch = "aarch64") { &[Self::Aarch64, Self::Arm] } else { &[Self::X86_64, Self::I386] }
    }

    /// The kernel's AUDIT_ARCH value.
    #[must_use]
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xC000_00B7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The number of a call, if there is one of that name here.
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok().map(|number| number.id() as u32),
            Self::I386 => syscalls::x86::Sysno::from_str(name).ok().map(|number| number.id() as u32),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok().map(|number| number.id() as u32),
            Self::Arm => syscalls::arm::Sysno::from_str(name).ok().map(|number| number.id() as u32),
        }
    }
}
