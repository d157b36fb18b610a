//! Profile → classic BPF: per architecture a binary search over ranges of numbers that share an action.

use std::collections::BTreeMap;

use super::numbers::Convention;
use super::profile::{Action, Compare, Condition, Profile, Rule};
use crate::report::Explain;

/// One instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// A program that the kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(pub Vec<Instruction>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
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

// linux/bpf_common.h
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
// offsets in struct seccomp_data
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// Set in the number of every x32 call.
const X32_BIT: u32 = 0x4000_0000;
const MOST_INSTRUCTIONS: usize = 4096;

impl Filter {
    /// The program as bytes, for a file that `exec` reads.
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

    /// The reverse of [`Filter::to_bytes`]; `None` for anything that is no whole program.
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

/// Compiles a profile for every calling convention of this host's kernel; any other architecture kills the process.
pub fn compile(profile: &Profile) -> Result<Filter, CompileError> {
    let mut program = vec![load(ARCH)];
    for &convention in Convention::of_this_host() {
        let part = convention_program(profile, convention)?;
        // Not this one: over its part. The part is too long for a conditional jump's eight bits.
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
        leaves.push((start, verdict_program(&verdict, profile.default).ok_or(CompileError::TooManyConditions(start))?));
    }
    search(&leaves, &mut program);
    Ok(program)
}

/// What is to be done with a number: the first rule whose conditions hold, else the default.
type Verdict<'a> = Vec<(&'a [Condition], Action)>;

/// Ascending starts of ranges of numbers with one verdict each; the first starts at 0.
fn ranges(profile: &Profile, convention: Convention) -> Vec<(u32, Verdict<'_>)> {
    let mut calls: BTreeMap<u32, Verdict<'_>> = BTreeMap::new();
    for Rule { names, action, conditions } in &profile.rules {
        for number in names.iter().filter_map(|name| convention.number(name)) {
            calls.entry(number).or_default().push((conditions, *action));
        }
    }
    for verdict in calls.values_mut() {
        // A rule without conditions decides by itself, wherever it stands (libseccomp's rule).
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

/// Begins a new range unless the one before says the same.
fn extend<'a>(ranges: &mut Vec<(u32, Verdict<'a>)>, start: u32, verdict: Verdict<'a>) {
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((start, verdict));
    }
}

/// Binary search for the number in the accumulator; every path ends in a leaf, and every leaf in a return.
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

/// The leaf for one verdict; `None` where its jumps would be too long.
fn verdict_program(verdict: &Verdict<'_>, default: Action) -> Option<Vec<Instruction>> {
    let mut program = Vec::new();
    for (conditions, action) in verdict {
        program.extend(rule_program(conditions, *action)?);
        if conditions.is_empty() {
            return Some(program);
        }
    }
    program.push(answer(default));
    Some(program)
}

/// Conditions, all of which must hold, then the action; falls through to what follows where one does not hold.
fn rule_program(conditions: &[Condition], action: Action) -> Option<Vec<Instruction>> {
    // Built backwards, so that every condition knows how far the end is.
    let mut program = vec![answer(action)];
    for condition in conditions.iter().rev() {
        let mut check = condition_program(*condition, u8::try_from(program.len()).ok()?)?;
        check.extend(program);
        program = check;
    }
    Some(program)
}

/// Compares 64 bits in two halves. Falls through where the condition holds; where it does not, jumps behind the `rest` instructions that
/// follow the check.
fn condition_program(condition: Condition, rest: u8) -> Option<Vec<Instruction>> {
    let low = ARGUMENTS + 8 * u32::from(condition.argument);
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    // Distances to the failing end are counted from behind the last instruction of the check.
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

/// `argument > value` or `>=` (`test`), or with `holds` false the opposite.
fn ordered(value: u64, test: u16, low: u32, high: u32, rest: u8, holds: bool) -> Option<Vec<Instruction>> {
    let (h, l) = ((value >> 32) as u32, value as u32);
    let (fail_after_high, fail_after_equal, fail) = (rest.checked_add(3)?, rest.checked_add(2)?, rest);
    // A larger high half decides; an equal one leaves it to the low half; a smaller one decides the other way.
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

/// linux/seccomp.h: SECCOMP_RET_*
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
    use super::*;
    use crate::spec::Capabilities;

    /// Runs a program as the kernel would.
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

    fn default_for(add: &[&str]) -> Filter {
        let add: Vec<String> = add.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capabilities::resolve(&add, &[]).unwrap();
        compile(&Profile::docker_default(&capabilities)).unwrap()
    }

    #[test]
    fn every_call_gets_what_the_profile_says() {
        for add in [&[][..], &["SYS_ADMIN"], &["ALL"]] {
            let add: Vec<String> = add.iter().map(|name: &&str| (*name).to_owned()).collect();
            let capabilities = Capabilities::resolve(&add, &[]).unwrap();
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
        let convention = Convention::of_this_host()[0];
        for (compare, holds) in compares {
            let condition = |argument| Condition { argument, compare };
            let rule = Rule {
                names: vec!["read".into()],
                action: Action::Allow,
                conditions: vec![condition(0), condition(5)],
            };
            let filter = compile(&Profile { default: Action::Errno(1), rules: vec![rule] }).unwrap();
            let read = convention.number("read").unwrap();
            for first in values {
                for last in values {
                    let expected = if holds(first) && holds(last) { ALLOW } else { EPERM };
                    let arguments = [first, 0, 0, 0, 0, last];
                    assert_eq!(
                        run(&filter, convention.audit(), read, arguments),
                        expected,
                        "{compare:?} {first} {last}"
                    );
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
        for denied in ["mount", "keyctl", "userfaultfd", "io_uring_setup", "bpf", "mbind", "kexec_load", "unshare"] {
            assert_eq!(call(&plain, denied, 0), EPERM, "{denied}");
        }
        let admin = default_for(&["SYS_ADMIN"]);
        assert_eq!(call(&admin, "clone3", 0), ALLOW);
        assert_eq!(call(&admin, "mount", 0), ALLOW);
        assert_eq!(call(&default_for(&["SYS_NICE"]), "mbind", 0), ALLOW);
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
        let capabilities = Capabilities::resolve(&[], &[]).unwrap();
        let filter = compile(&Profile::parse(text, &capabilities).unwrap()).unwrap();
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
            assert!(Profile::parse(wrong, &capabilities).is_err(), "{wrong}");
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
