//! seccomp(2).

use std::io;

use crate::spec::seccomp::Instruction;

/// Puts a filter on this process, for good. Needs no-new-privileges or CAP_SYS_ADMIN.
pub fn load(program: &[Instruction]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: `program` is laid out as struct sock_fprog, its instructions as struct sock_filter; the kernel copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
