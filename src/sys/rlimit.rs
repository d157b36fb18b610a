//! Resource limits, by their names in the OCI spec.

use std::io;

/// Converts a name such as `RLIMIT_NOFILE` to the kernel's number.
fn resource(name: &str) -> Option<u32> {
    let name = name.strip_prefix("RLIMIT_")?;
    Some(match name {
        "CPU" => libc::RLIMIT_CPU,
        "FSIZE" => libc::RLIMIT_FSIZE,
        "DATA" => libc::RLIMIT_DATA,
        "STACK" => libc::RLIMIT_STACK,
        "CORE" => libc::RLIMIT_CORE,
        "RSS" => libc::RLIMIT_RSS,
        "NPROC" => libc::RLIMIT_NPROC,
        "NOFILE" => libc::RLIMIT_NOFILE,
        "MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "AS" => libc::RLIMIT_AS,
        "LOCKS" => libc::RLIMIT_LOCKS,
        "SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "NICE" => libc::RLIMIT_NICE,
        "RTPRIO" => libc::RLIMIT_RTPRIO,
        "RTTIME" => libc::RLIMIT_RTTIME,
        _ => return None,
    })
}

fn known(name: &str) -> io::Result<u32> {
    resource(name).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Sets a limit of this process.
pub(crate) fn set(name: &str, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: setrlimit(2) reads one struct rlimit.
    let result = unsafe { libc::setrlimit(known(name)?, &raw const limit) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Limits that could kill a gpurun process or make its writes fail, and that a container would inherit from it. The
/// caller has set them for its own programs. A container gets the limits that were requested with `--ulimit`.
const LIFTED: [&str; 7] =
    ["RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_LOCKS"];

/// Lifts the limits that were inherited from the caller. Without CAP_SYS_RESOURCE, the hard limit is the maximum.
pub(crate) fn lift() {
    let before = all();
    // Without the table, the limits are lifted in any case.
    let is_lifted = |name: &str| before.iter().any(|(other, soft, _)| other == name && *soft == u64::MAX);
    LIFTED.into_iter().filter(|name| !is_lifted(name)).for_each(lift_one);
}

/// Lifts only the limit on file sizes.
pub(crate) fn lift_file_size() {
    lift_one("RLIMIT_FSIZE");
}

fn lift_one(name: &str) {
    if set(name, u64::MAX, u64::MAX).is_err()
        && let Ok((_, hard)) = get(name)
    {
        let _ = set(name, hard, hard);
    }
}

/// The soft and hard limits of this process, with the names of the OCI spec. With one file, they take fewer calls than
/// one by one.
pub(crate) fn all() -> Vec<(String, u64, u64)> {
    let text = super::file::read_control("/proc/self/limits").unwrap_or_default();
    let named = |(name, _): &(&str, &str)| {
        let (soft, hard) = in_table(&text, name)?;
        Some((format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard))
    };
    TITLES.iter().filter_map(named).collect()
}

/// The limits in lower case, and their titles in /proc/PID/limits (proc_pid_limits(5)).
const TITLES: [(&str, &str); 16] = [
    ("as", "Max address space"),
    ("core", "Max core file size"),
    ("cpu", "Max cpu time"),
    ("data", "Max data size"),
    ("fsize", "Max file size"),
    ("locks", "Max file locks"),
    ("memlock", "Max locked memory"),
    ("msgqueue", "Max msgqueue size"),
    ("nice", "Max nice priority"),
    ("nofile", "Max open files"),
    ("nproc", "Max processes"),
    ("rss", "Max resident set"),
    ("rtprio", "Max realtime priority"),
    ("rttime", "Max realtime timeout"),
    ("sigpending", "Max pending signals"),
    ("stack", "Max stack size"),
];

/// The soft and hard limit in the text of /proc/PID/limits, by its name in lower case.
pub(crate) fn in_table(text: &str, name: &str) -> Option<(u64, u64)> {
    let (_, title) = TITLES.iter().find(|(other, _)| *other == name)?;
    let mut values = text.lines().find_map(|line| line.strip_prefix(title))?.split_whitespace();
    let mut value = || match values.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some((value()?, value()?))
}

/// The soft and hard limit of this process.
pub(crate) fn get(name: &str) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one struct rlimit.
    let result = unsafe { libc::getrlimit(known(name)?, &raw mut limit) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((limit.rlim_cur, limit.rlim_max)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_found_in_the_kernels_table() {
        let table = all();
        assert_eq!(table.len(), TITLES.len());
        for (name, soft, hard) in table {
            assert_eq!(get(&name).unwrap(), (soft, hard), "{name}");
        }
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max nice priority         0                    unlimited                      \n";
        assert_eq!((in_table(text, "nice"), in_table(text, "core")), (Some((0, u64::MAX)), None));
    }
}
