//! Compiles a profile to classic BPF. For each architecture, the program is a binary search over ranges of system call
//! numbers that share an action.

use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use super::numbers::Convention;
use super::profile::{Action, Compare, Condition, Profile, Rule};
use crate::report::Explain;
use crate::sys::seccomp::Instruction;

/// A program that the kernel accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub struct Filter(pub Vec<Instruction>);

impl From<Filter> for Vec<u8> {
    fn from(filter: Filter) -> Self {
        filter.to_bytes()
    }
}

impl TryFrom<Vec<u8>> for Filter {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, &'static str> {
        Self::from_bytes(&bytes).ok_or("the seccomp filter is damaged")
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CompileError {
    #[error("the seccomp profile becomes {0} instructions; the kernel takes 4096")]
    TooLong(usize),
    #[error("the conditions on the system call `{0}` are more than a filter can jump over")]
    TooManyConditions(u32),
}

impl Explain for CompileError {
    fn hint(&self) -> Option<String> {
        Some("write a shorter profile".into())
    }
}

// Opcodes from linux/bpf_common.h.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
// Offsets in struct seccomp_data.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// This bit is set in the number of every x32 call.
const X32_BIT: u32 = 0x4000_0000;
const MOST_INSTRUCTIONS: usize = 4096;

impl Filter {
    /// Serializes the program for a file that `exec` reads.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 8);
        for instruction in &self.0 {
            bytes.extend_from_slice(&instruction.code.to_ne_bytes());
            bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
            bytes.extend_from_slice(&instruction.k.to_ne_bytes());
        }
        bytes
    }

    /// The inverse of [`Filter::to_bytes`]. Returns `None` if the bytes are not a complete program.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (instructions, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || instructions.is_empty() || instructions.len() > MOST_INSTRUCTIONS {
            return None;
        }
        let one = |b: &[u8; 8]| Instruction {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        Some(Self(instructions.iter().map(one).collect()))
    }
}

/// Compiles a profile for every calling convention of this host's kernel. A call by any other convention kills the
/// process.
pub(crate) fn compile(profile: &Profile) -> Result<Filter, CompileError> {
    let mut program = vec![load(ARCH)];
    for &convention in Convention::of_this_host() {
        let part = convention_program(profile, convention)?;
        // For another convention, skip this part. The part is too long for the 8-bit offset of a conditional jump.
        program.push(branch(EQUAL, convention.audit(), 1, 0));
        program.push(jump(part.len() as u32));
        program.extend(part);
    }
    program.push(answer(Action::KillProcess));
    if program.len() > MOST_INSTRUCTIONS {
        return Err(CompileError::TooLong(program.len()));
    }
    Ok(Filter(program))
}

fn convention_program(profile: &Profile, convention: Convention) -> Result<Vec<Instruction>, CompileError> {
    let mut program = vec![load(NR)];
    if convention == Convention::X86_64 {
        program.push(branch(GREATER_OR_EQUAL, X32_BIT, 0, 1));
        program.push(answer(Action::Errno(libc::ENOSYS as u16)));
    }
    let mut leaves = Vec::new();
    for (start, verdict) in ranges(profile, convention) {
        let leaf = verdict_program(&verdict, profile.default, convention.is_32_bit());
        leaves.push((start, leaf.ok_or(CompileError::TooManyConditions(start))?));
    }
    search(&leaves, &mut program);
    Ok(program)
}

/// The decision for a system call number: the first rule whose conditions hold, or else the default action.
type Verdict<'a> = Vec<(&'a [Condition], Action)>;

/// Returns the start of each range of numbers that share a verdict, in ascending order. The first range starts at 0.
fn ranges(profile: &Profile, convention: Convention) -> Vec<(u32, Verdict<'_>)> {
    let mut calls: BTreeMap<u32, Verdict<'_>> = BTreeMap::new();
    for Rule { names, action, conditions } in &profile.rules {
        for number in names.iter().filter_map(|name| convention.number(name)) {
            calls.entry(number).or_default().push((conditions, *action));
        }
    }
    for verdict in calls.values_mut() {
        // A rule without conditions takes precedence, whatever its position (libseccomp's rule).
        if let Some(&always) = verdict.iter().find(|(conditions, _)| conditions.is_empty()) {
            *verdict = vec![always];
        }
    }
    let mut ranges: Vec<(u32, Verdict<'_>)> = Vec::new();
    let mut next = 0;
    for (number, verdict) in calls {
        if number > next {
            extend(&mut ranges, next, Vec::new());
        }
        extend(&mut ranges, number, verdict);
        next = number + 1;
    }
    extend(&mut ranges, next, Vec::new());
    ranges
}

/// Starts a new range unless the previous range has the same verdict.
fn extend<'a>(ranges: &mut Vec<(u32, Verdict<'a>)>, start: u32, verdict: Verdict<'a>) {
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((start, verdict));
    }
}

/// Emits a binary search for the number in the accumulator. Every path ends in a leaf, and every leaf ends in a return.
fn search(leaves: &[(u32, Vec<Instruction>)], program: &mut Vec<Instruction>) {
    match leaves {
        [] => {}
        [(_, leaf)] => program.extend_from_slice(leaf),
        _ => {
            let (left, right) = leaves.split_at(leaves.len() / 2);
            let mut below = Vec::new();
            search(left, &mut below);
            if let Ok(distance) = u8::try_from(below.len()) {
                program.push(branch(GREATER_OR_EQUAL, right[0].0, distance, 0));
            } else {
                program.push(branch(GREATER_OR_EQUAL, right[0].0, 0, 1));
                program.push(jump(below.len() as u32));
            }
            program.extend(below);
            search(right, program);
        }
    }
}

/// Compiles the leaf of one verdict. Returns `None` if a jump would be too long.
fn verdict_program(verdict: &Verdict<'_>, default: Action, is_32_bit: bool) -> Option<Vec<Instruction>> {
    let mut program = Vec::new();
    for (conditions, action) in verdict {
        program.extend(rule_program(conditions, *action, is_32_bit)?);
        if conditions.is_empty() {
            return Some(program);
        }
    }
    program.push(answer(default));
    Some(program)
}

/// Compiles a rule: if all conditions hold, return the action. Otherwise execution falls through to the following code.
fn rule_program(conditions: &[Condition], action: Action, is_32_bit: bool) -> Option<Vec<Instruction>> {
    // Built backwards so that the distance to the end is known for each condition.
    let mut program = vec![answer(action)];
    for condition in conditions.iter().rev() {
        let rest = u8::try_from(program.len()).ok()?;
        let mut check =
            if is_32_bit { narrow_condition(*condition, rest) } else { condition_program(*condition, rest)? };
        check.extend(program);
        program = check;
    }
    Some(program)
}

/// Compares 64 bits in two halves. Execution falls through if the condition holds. Otherwise it jumps past the `rest`
/// instructions that follow the check.
fn condition_program(condition: Condition, rest: u8) -> Option<Vec<Instruction>> {
    let low = ARGUMENTS + 8 * u32::from(condition.argument);
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    // Failure offsets are relative to the instruction after the check.
    let far = |behind: u8| rest.checked_add(behind);
    Some(match condition.compare {
        Compare::Equal(value) => {
            let (h, l) = halves(value);
            vec![load(high), branch(EQUAL, h, 0, far(2)?), load(low), branch(EQUAL, l, 0, far(0)?)]
        }
        Compare::NotEqual(value) => {
            let (h, l) = halves(value);
            vec![load(high), branch(EQUAL, h, 0, 2), load(low), branch(EQUAL, l, far(0)?, 0)]
        }
        Compare::Greater(value) => ordered(value, GREATER, low, high, rest, true)?,
        Compare::GreaterOrEqual(value) => ordered(value, GREATER_OR_EQUAL, low, high, rest, true)?,
        Compare::LessOrEqual(value) => ordered(value, GREATER, low, high, rest, false)?,
        Compare::Less(value) => ordered(value, GREATER_OR_EQUAL, low, high, rest, false)?,
        Compare::Masked { mask, value } => {
            let ((mh, ml), (h, l)) = (halves(mask), halves(value));
            vec![
                load(high),
                Instruction { code: AND, jt: 0, jf: 0, k: mh },
                branch(EQUAL, h, 0, far(3)?),
                load(low),
                Instruction { code: AND, jt: 0, jf: 0, k: ml },
                branch(EQUAL, l, 0, far(0)?),
            ]
        }
    })
}

/// Compares the lower 32 bits, which are the only bits that a call of a 32-bit convention uses. A value that does not
/// fit in 32 bits is compared numerically.
fn narrow_condition(condition: Condition, rest: u8) -> Vec<Instruction> {
    let low = ARGUMENTS + 8 * u32::from(condition.argument);
    let (test, value, holds) = match condition.compare {
        Compare::Equal(value) => (EQUAL, value, true),
        Compare::NotEqual(value) => (EQUAL, value, false),
        Compare::Greater(value) => (GREATER, value, true),
        Compare::GreaterOrEqual(value) => (GREATER_OR_EQUAL, value, true),
        Compare::LessOrEqual(value) => (GREATER, value, false),
        Compare::Less(value) => (GREATER_OR_EQUAL, value, false),
        Compare::Masked { value, .. } => (EQUAL, value, true),
    };
    let mut program = vec![load(low)];
    if let Compare::Masked { mask, .. } = condition.compare {
        program.push(Instruction { code: AND, jt: 0, jf: 0, k: mask as u32 });
    }
    match u32::try_from(value) {
        Ok(value) if holds => program.push(branch(test, value, 0, rest)),
        Ok(value) => program.push(branch(test, value, rest, 0)),
        // No 32-bit argument equals the value or exceeds it.
        Err(_) if holds => program.push(jump(rest.into())),
        Err(_) => {}
    }
    program
}

/// Compiles `argument > value` or `argument >= value` (selected by `test`), or the negation if `holds` is false.
fn ordered(value: u64, test: u16, low: u32, high: u32, rest: u8, holds: bool) -> Option<Vec<Instruction>> {
    let (h, l) = ((value >> 32) as u32, value as u32);
    let (fail_after_high, fail_after_equal, fail) = (rest.checked_add(3)?, rest.checked_add(2)?, rest);
    // A larger or smaller high half decides the comparison. If the high halves are equal, the low half decides.
    Some(if holds {
        vec![
            load(high),
            branch(GREATER, h, 3, 0),
            branch(EQUAL, h, 0, fail_after_equal),
            load(low),
            branch(test, l, 0, fail),
        ]
    } else {
        vec![
            load(high),
            branch(GREATER, h, fail_after_high, 0),
            branch(EQUAL, h, 0, 2),
            load(low),
            branch(test, l, fail, 0),
        ]
    })
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn jump(distance: u32) -> Instruction {
    Instruction { code: JUMP, jt: 0, jf: 0, k: distance }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// SECCOMP_RET_* from linux/seccomp.h.
fn answer(action: Action) -> Instruction {
    let k = match action {
        Action::Allow => 0x7fff_0000,
        Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
        Action::KillThread => 0,
        Action::KillProcess => 0x8000_0000,
        Action::Trap => 0x0003_0000,
        Action::Log => 0x7ffc_0000,
    };
    Instruction { code: RETURN, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::super::document::ProfileDocument;
    use super::*;
    use crate::spec::Capabilities;

    /// Runs a program the way the kernel does.
    fn run(filter: &Filter, arch: u32, nr: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend_from_slice(&nr.to_le_bytes());
        data.extend_from_slice(&arch.to_le_bytes());
        data.extend_from_slice(&[0; 8]);
        arguments.iter().for_each(|argument| data.extend_from_slice(&argument.to_le_bytes()));
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let Instruction { code, jt, jf, k } = filter.0[at];
            at += 1;
            let mut take = |condition: bool| at += usize::from(if condition { jt } else { jf });
            match code {
                LOAD => accumulator = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
                AND => accumulator &= k,
                EQUAL => take(accumulator == k),
                GREATER => take(accumulator > k),
                GREATER_OR_EQUAL => take(accumulator >= k),
                JUMP => at += k as usize,
                RETURN => return k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    fn with(add: &[&str]) -> Capabilities {
        Capabilities::resolve(&add.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>(), &[])
    }

    fn document(text: &str) -> ProfileDocument {
        text.parse().unwrap()
    }

    fn default_for(add: &[&str]) -> Filter {
        compile(&Profile::docker_default(&with(add))).unwrap()
    }

    #[test]
    fn every_call_gets_what_the_profile_says() {
        for add in [&[][..], &["SYS_ADMIN"], &["ALL"]] {
            let capabilities = with(add);
            let profile = Profile::docker_default(&capabilities);
            let filter = compile(&profile).unwrap();
            for &convention in Convention::of_this_host() {
                for number in 0..600 {
                    let rules: Vec<&Rule> = profile
                        .rules
                        .iter()
                        .filter(|rule| rule.names.iter().any(|name| convention.number(name) == Some(number)))
                        .collect();
                    let expected = match rules.iter().find(|rule| rule.conditions.is_empty()) {
                        Some(rule) => answer(rule.action).k,
                        None if rules.is_empty() => EPERM,
                        None => continue,
                    };
                    assert_eq!(
                        run(&filter, convention.audit(), number, [0; 6]),
                        expected,
                        "{convention:?} {number} {add:?}"
                    );
                }
            }
            assert!(filter.0.len() < 1000, "{} instructions", filter.0.len());
        }
    }

    #[test]
    fn conditions_hold_for_all_64_bits() {
        let values = [0, 1, 7, 8, 9, u64::from(u32::MAX), 1 << 32, (1 << 32) + 8, u64::MAX];
        type Holds = fn(u64) -> bool;
        let compares: [(Compare, Holds); 8] = [
            (Compare::Equal(8), |v| v == 8),
            (Compare::NotEqual(8), |v| v != 8),
            (Compare::Less(8), |v| v < 8),
            (Compare::LessOrEqual(8), |v| v <= 8),
            (Compare::Greater(8), |v| v > 8),
            (Compare::GreaterOrEqual((1 << 32) + 8), |v| v >= (1 << 32) + 8),
            (Compare::LessOrEqual(1 << 32), |v| v <= 1 << 32),
            (Compare::Masked { mask: (1 << 32) | 8, value: 8 }, |v| v & ((1 << 32) | 8) == 8),
        ];
        for (compare, holds) in compares {
            let condition = |argument| Condition { argument, compare };
            let rule = Rule {
                names: vec!["read".into()],
                action: Action::Allow,
                conditions: vec![condition(0), condition(5)],
            };
            let filter = compile(&Profile { default: Action::Errno(1), rules: vec![rule] }).unwrap();
            for &convention in Convention::of_this_host() {
                let read = convention.number("read").unwrap();
                // A 32-bit call uses the lower half.
                let seen = |value: u64| if convention.is_32_bit() { value & 0xffff_ffff } else { value };
                for first in values {
                    for last in values {
                        let expected = if holds(seen(first)) && holds(seen(last)) { ALLOW } else { EPERM };
                        assert_eq!(
                            run(&filter, convention.audit(), read, [first, 0, 0, 0, 0, last]),
                            expected,
                            "{convention:?} {compare:?} {first} {last}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn dockers_special_cases() {
        let convention = Convention::of_this_host()[0];
        let call = |filter: &Filter, name: &str, first: u64| {
            run(filter, convention.audit(), convention.number(name).unwrap(), [first, 0, 0, 0, 0, 0])
        };
        let plain = default_for(&[]);
        assert_eq!(call(&plain, "clone3", 0), ENOSYS);
        assert_eq!(call(&plain, "clone", 0x11), ALLOW);
        assert_eq!(call(&plain, "clone", 0x1000_0000), EPERM, "CLONE_NEWUSER");
        assert_eq!(call(&plain, "socket", 2), ALLOW);
        assert_eq!(call(&plain, "socket", 40), EPERM, "vsock");
        assert_eq!(call(&plain, "personality", 0x2_0000), ALLOW);
        assert_eq!(call(&plain, "personality", 0x4_0000), EPERM);
        for denied in ["mount", "keyctl", "userfaultfd", "io_uring_setup", "bpf", "move_pages", "kexec_load", "unshare"]
        {
            assert_eq!(call(&plain, denied, 0), EPERM, "{denied}");
        }
        let admin = default_for(&["SYS_ADMIN"]);
        assert_eq!(call(&admin, "clone3", 0), ALLOW);
        assert_eq!(call(&admin, "mount", 0), ALLOW);
        for allowed in ["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"] {
            assert_eq!(call(&plain, allowed, 0), ALLOW, "{allowed}");
        }
    }

    /// Checks system calls that select an operation by a number, and which operations are allowed.
    #[test]
    fn no_multiplexed_call_goes_past_a_rule() {
        let filter = default_for(&[]);
        for &convention in &[Convention::X86_64, Convention::I386, Convention::Aarch64, Convention::Arm] {
            if !Convention::of_this_host().contains(&convention) {
                continue;
            }
            let call = |name: &str, first: u64| {
                convention.number(name).map(|number| run(&filter, convention.audit(), number, [first, 0, 0, 0, 0, 0]))
            };
            // linux/net.h: SYS_SOCKET 1 to SYS_SENDMMSG 20.
            for number in 1..=20 {
                let expected = if [1, 8].contains(&number) { EPERM } else { ALLOW };
                // A 32-bit call ignores the upper half of a register.
                for high in [0, 1 << 32, 0xffff_ffff << 32] {
                    let verdict = call("socketcall", high | number).unwrap_or(expected);
                    assert_eq!(verdict, expected, "{convention:?} socketcall({number})");
                }
            }
            for name in ["socket", "socketpair"] {
                for (family, expected) in [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (38, EPERM), (40, EPERM)] {
                    assert_eq!(call(name, family), Some(expected), "{convention:?} {name}({family})");
                }
            }
            // Every operation of ipc(2) is also allowed by its own name.
            for name in
                ["semop", "semget", "semctl", "semtimedop", "msgsnd", "msgrcv", "msgget", "shmat", "shmdt", "shmget"]
            {
                assert!(call(name, 0).is_none_or(|verdict| verdict == ALLOW), "{convention:?} {name}");
            }
            // Indirect calls, and calls that pass work to the kernel without going through the filter.
            for name in ["syscall", "io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "vm86", "vm86old"] {
                assert!(call(name, 0).is_none_or(|verdict| verdict == EPERM), "{convention:?} {name}");
            }
        }
    }

    #[test]
    fn no_call_sets_a_set_id_bit_without_the_right() {
        let allow_all = Profile { default: Action::Allow, rules: Vec::new() };
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":13,
            "args":[{"index":1,"value":511,"op":"SCMP_CMP_EQ"}]}]}"#;
        let own = document(text).profile(&Capabilities::default());
        for profile in [Profile::docker_default(&Capabilities::default()), allow_all, own.clone()] {
            let filter = compile(&profile.without_set_id()).unwrap();
            for &convention in Convention::of_this_host() {
                let call = |name: &str, arguments: [u64; 6]| match convention.number(name) {
                    Some(number) => run(&filter, convention.audit(), number, arguments),
                    None => u32::MAX,
                };
                let known = |answer: u32, expected: u32, what: &str| {
                    assert!(answer == u32::MAX || answer == expected, "{convention:?} {what}: {answer:#x}");
                };
                let (creat, tmpfile) = (0o100, 0o20_000_000);
                for bits in [0o4000, 0o2000, 0o6000, 0o1_100_000 | 0o4755] {
                    for (name, arguments) in [
                        ("chmod", [0, bits, 0, 0, 0, 0]),
                        ("fchmod", [3, bits, 0, 0, 0, 0]),
                        ("fchmodat", [3, 0, bits, 0, 0, 0]),
                        ("fchmodat2", [3, 0, bits, 0, 0, 0]),
                        ("creat", [0, bits, 0, 0, 0, 0]),
                        ("mknod", [0, bits, 0, 0, 0, 0]),
                        ("mknodat", [3, 0, bits, 0, 0, 0]),
                        ("open", [0, creat, bits, 0, 0, 0]),
                        ("open", [0, tmpfile, bits, 0, 0, 0]),
                        ("openat", [3, 0, creat | 1, bits, 0, 0]),
                        ("openat", [3, 0, tmpfile, bits, 0, 0]),
                    ] {
                        known(call(name, arguments), EPERM, name);
                    }
                    // Without a flag that creates a file, the mode argument has no meaning.
                    known(call("openat", [3, 0, 0o2, bits, 0, 0]), ALLOW, "openat of what exists");
                }
                for (name, arguments) in [
                    ("chmod", [0, 0o1755, 0, 0, 0, 0]),
                    ("fchmodat", [3, 0, 0o755, 0, 0, 0]),
                    ("mknodat", [3, 0, 0o10_644, 0, 0, 0]),
                    ("openat", [3, 0, creat, 0o644, 0, 0]),
                    ("open", [0, creat, 0o1777, 0, 0, 0]),
                ] {
                    known(call(name, arguments), ALLOW, name);
                }
                for hidden in ["openat2", "io_uring_setup", "io_uring_enter"] {
                    known(call(hidden, [0; 6]), ENOSYS, hidden);
                }
            }
        }
        // The profile's own rules for other modes remain in effect.
        let filter = compile(&own.without_set_id()).unwrap();
        let convention = Convention::of_this_host()[0];
        let chmod = |mode| run(&filter, convention.audit(), convention.number("chmod").unwrap(), [0, mode, 0, 0, 0, 0]);
        assert_eq!((chmod(0o777), chmod(0o755), chmod(0o4755)), (0x0005_000d, ALLOW, EPERM));
    }

    #[test]
    fn foreign_architectures_are_stopped() {
        let filter = default_for(&[]);
        assert_eq!(run(&filter, 0x1234, 0, [0; 6]), 0x8000_0000);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(run(&filter, 0xC000_003E, X32_BIT | 1, [0; 6]), ENOSYS);
        }
    }

    #[test]
    fn a_profile_file_is_read_as_docker_reads_it() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13,"args":null},
            {"names":["chroot"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_SYS_CHROOT"]}},
            {"name":"reboot","action":"SCMP_ACT_KILL","includes":{"arches":["s390x"]}}]}"#;
        let filter = compile(&document(text).profile(&Capabilities::default())).unwrap();
        let convention = Convention::of_this_host()[0];
        let call = |name: &str| run(&filter, convention.audit(), convention.number(name).unwrap(), [0; 6]);
        assert_eq!(call("mkdirat"), 0x0005_000d);
        assert_eq!((call("chroot"), call("reboot"), call("read")), (ALLOW, ALLOW, ALLOW));
        for wrong in [
            "",
            "[]",
            r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        ] {
            assert!(wrong.parse::<ProfileDocument>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn programs_survive_a_file() {
        let filter = default_for(&[]);
        assert_eq!(Filter::from_bytes(&filter.to_bytes()), Some(filter));
        assert_eq!(Filter::from_bytes(b""), None);
        assert_eq!(Filter::from_bytes(b"1234567"), None);
    }
}
