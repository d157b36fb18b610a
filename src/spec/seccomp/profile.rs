//! What a seccomp profile says: docker's default as a table of ours, or a profile file in docker's JSON format.

use serde::Deserialize;

use crate::report::{EXIT_USAGE, Explain};
use crate::spec::Capabilities;

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Errno(u16),
    KillThread,
    KillProcess,
    Trap,
    Log,
}

/// A comparison of one argument, all 64 bits of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// `(argument & mask) == value`
    Masked {
        mask: u64,
        value: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub argument: u8,
    pub compare: Compare,
}

/// An action for some system calls, if all the conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    pub conditions: Vec<Condition>,
}

/// A profile for one set of capabilities and one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub default: Action,
    pub rules: Vec<Rule>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the seccomp profile is not docker's JSON format")]
    Json(#[source] serde_json::Error),
    #[error("the seccomp profile has the action `{0}`, which gpurun does not know")]
    Action(String),
    #[error("the seccomp profile has the comparison `{0}`, which gpurun does not know")]
    Compare(String),
    #[error("the seccomp profile compares argument {0}: system calls have arguments 0 to 5")]
    Argument(u64),
}

impl Explain for ProfileError {
    fn hint(&self) -> Option<String> {
        Some(
            "docker's default profile is an example of the format; `--security-opt seccomp=unconfined` does without"
                .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// System calls that every container may make (moby/profiles, default.json of 2026, its unconditional list).
const ALLOWED: &str = include_str!("allowed.txt");

/// System calls that come with a capability.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr \
         mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 \
         unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Namespace flags of clone(2): without CAP_SYS_ADMIN none of them may be set.
const CLONE_NEW_FLAGS: u64 = 0x7E02_0000;

/// personality(2) values that change nothing a container could be harmed by: PER_LINUX, PER_LINUX32, UNAME26, both, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Socket families as inclusive ranges. Left out: DECnet (12), econet and ATM SVCs (19, 20), IrDA and others long unmaintained (23, 25, 34,
/// 37), the kernel's crypto API (38), and vsock (40), which leaves the virtual machine.
const SOCKET_FAMILIES: [(u64, u64); 9] =
    [(0, 11), (13, 18), (21, 22), (24, 24), (26, 33), (35, 36), (39, 39), (41, 41), (42, 45)];

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl Profile {
    /// docker's default profile for a container with these capabilities (kernel 4.8 or later, which gpurun needs anyway).
    #[must_use]
    pub fn docker_default(capabilities: &Capabilities) -> Self {
        let allow = |names: Vec<String>| Rule { names, action: Action::Allow, conditions: Vec::new() };
        let when = |name: &str, conditions: Vec<Condition>| Rule {
            names: vec![name.to_owned()],
            action: Action::Allow,
            conditions,
        };
        let first = |compare| Condition { argument: 0, compare };
        let mut rules = vec![
            allow(words(ALLOWED)),
            allow(words("process_vm_readv process_vm_writev ptrace arch_prctl modify_ldt")),
        ];
        for (from, to) in SOCKET_FAMILIES {
            let conditions = match (from, to) {
                (0, to) => vec![first(Compare::LessOrEqual(to))],
                (from, to) if from == to => vec![first(Compare::Equal(from))],
                (from, to) => vec![first(Compare::GreaterOrEqual(from)), first(Compare::LessOrEqual(to))],
            };
            rules.push(when("socket", conditions));
        }
        for value in PERSONALITIES {
            rules.push(when("personality", vec![first(Compare::Equal(value))]));
        }
        if cfg!(target_arch = "aarch64") {
            rules.push(allow(words(
                "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
            )));
        }
        for (capability, names) in BY_CAPABILITY {
            if capabilities.has(capability) {
                rules.push(allow(words(names)));
            }
        }
        if !capabilities.has("CAP_SYS_ADMIN") {
            rules.push(when("clone", vec![first(Compare::Masked { mask: CLONE_NEW_FLAGS, value: 0 })]));
            // ENOSYS, so that the C library falls back to clone(2), whose flags the filter can see.
            rules.push(Rule {
                names: words("clone3"),
                action: Action::Errno(libc::ENOSYS as u16),
                conditions: Vec::new(),
            });
        }
        Self { default: Action::Errno(libc::EPERM as u16), rules }
    }

    /// Reads a profile in docker's JSON format, keeping the rules that hold for these capabilities and this architecture.
    pub fn parse(text: &str, capabilities: &Capabilities) -> Result<Self, ProfileError> {
        let json: Json = serde_json::from_str(text).map_err(ProfileError::Json)?;
        let default_errno = json.default_errno_ret;
        let mut rules = Vec::new();
        for entry in json.syscalls {
            let any_architecture = |list: &[String]| list.iter().any(|arch| ARCHITECTURES.contains(&arch.as_str()));
            let all = |list: &[String]| list.iter().all(|capability| capabilities.has(capability));
            let any = |list: &[String]| list.iter().any(|capability| capabilities.has(capability));
            let included = all(&entry.includes.caps)
                && (entry.includes.arches.is_empty() || any_architecture(&entry.includes.arches));
            let excluded = any(&entry.excludes.caps) || any_architecture(&entry.excludes.arches);
            if !included || excluded {
                continue;
            }
            let conditions = entry.args.unwrap_or_default().into_iter().map(condition).collect::<Result<_, _>>()?;
            let action = action(&entry.action, entry.errno_ret.or(default_errno))?;
            let names = entry.names.into_iter().chain(entry.name).collect();
            rules.push(Rule { names, action, conditions });
        }
        Ok(Self { default: action(&json.default_action, default_errno)?, rules })
    }
}

/// The names that docker's profiles have for the architectures that this program's kernel runs.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [&str; 3] = ["amd64", "x86", "x32"];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURES: [&str; 2] = ["arm64", "arm"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<JsonRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    args: Option<Vec<JsonArgument>>,
    #[serde(default)]
    includes: JsonFilter,
    #[serde(default)]
    excludes: JsonFilter,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonFilter {
    caps: Vec<String>,
    arches: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArgument {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

fn condition(argument: JsonArgument) -> Result<Condition, ProfileError> {
    let value = argument.value;
    let compare = match argument.op.as_str() {
        "SCMP_CMP_EQ" => Compare::Equal(value),
        "SCMP_CMP_NE" => Compare::NotEqual(value),
        "SCMP_CMP_LT" => Compare::Less(value),
        "SCMP_CMP_LE" => Compare::LessOrEqual(value),
        "SCMP_CMP_GT" => Compare::Greater(value),
        "SCMP_CMP_GE" => Compare::GreaterOrEqual(value),
        "SCMP_CMP_MASKED_EQ" => Compare::Masked { mask: value, value: argument.value_two },
        other => return Err(ProfileError::Compare(other.to_owned())),
    };
    let argument =
        u8::try_from(argument.index).ok().filter(|index| *index < 6).ok_or(ProfileError::Argument(argument.index))?;
    Ok(Condition { argument, compare })
}
