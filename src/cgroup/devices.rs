//! The device filter, which restricts the device nodes that a container may open, regardless of the nodes that it can
//! create with mknod.
//!
//! Version 1 uses `devices.deny` and `devices.allow`. Version 2 has no such file: a BPF program of type CGROUP_DEVICE
//! (linux/bpf.h, `struct bpf_cgroup_dev_ctx`) decides each open and mknod. Without a program, everything is allowed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use super::{Cgroup, CgroupError};
use crate::spec::DeviceRule;
use crate::sys::bpf::Instruction;

impl Cgroup {
    /// Installs the filter before any process enters the cgroup. Under version 1, the rules are read back. Version 2
    /// cannot show rules, but attaching a program either succeeds completely or fails.
    pub(super) fn filter_devices(&self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        if self.is_v2 {
            let Some(path) = self.v2.clone() else { return Ok(()) };
            let attach = || {
                let program = crate::sys::bpf::load_device_program(&program(rules))?;
                crate::sys::bpf::attach_device_program(fs::File::open(&path)?, program)
            };
            return attach().map_err(|source| CgroupError::Devices { path, source });
        }
        let Some(dir) = self.dirs.get("devices") else {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(CgroupError::Devices { path: "devices".into(), source });
        };
        if self.place.step.is_some() && rules.iter().any(allows_everything) {
            // The new cgroup has its parent's filter, and can have no wider one.
            return Ok(());
        }
        // Each write is one rule.
        let (mut allow, mut deny) = (None, None);
        let mut held: Vec<DeviceRule> = Vec::new();
        for rule in rules {
            let (file, name) = if rule.allow { (&mut allow, "devices.allow") } else { (&mut deny, "devices.deny") };
            let path = dir.join(name);
            let mut write = || -> io::Result<()> {
                let file = match file {
                    Some(file) => file,
                    None => file.insert(fs::File::create(&path)?),
                };
                file.write_all(v1_line(rule).as_bytes())
            };
            match write() {
                Ok(()) => held.push(rule.clone()),
                Err(source) => self.refused(rule, path, source)?,
            }
        }
        if rules.is_empty() {
            return Ok(());
        }
        let path = dir.join("devices.list");
        let failed = |source| CgroupError::Devices { path: path.clone(), source };
        let (holds, wanted) = (v1_list(&crate::sys::file::read_control(&path).map_err(failed)?), v1_allowed(&held));
        match holds == wanted {
            true => Ok(()),
            false => {
                Err(failed(io::Error::other(format!("the kernel reports {holds:?} after {wanted:?} was written"))))
            }
        }
    }
}

impl Cgroup {
    /// Handles a rule of version 1 that the kernel has refused. Below a step's filter, which denies the GPUs of other
    /// jobs, no cgroup can allow mknod(2) for all devices, as docker does. The container then has no such right.
    fn refused(&self, rule: &DeviceRule, path: PathBuf, source: io::Error) -> Result<(), CgroupError> {
        match &self.place.step {
            Some(_) if is_any_mknod(rule) => Ok(()),
            Some(step) if rule.allow && source.raw_os_error() == Some(libc::EPERM) => {
                Err(CgroupError::NotInStep { device: v1_line(rule), step: step.clone(), path })
            }
            _ => Err(CgroupError::Devices { path, source }),
        }
    }

    /// Revokes the access that was needed only to create the nodes, before the container's program runs. Version 2
    /// attaches a second program, because every attached program must allow an access. Version 1 denies the bits that
    /// the final rules lack, and the list is read back for these nodes. Devices that a hook has allowed in the meantime
    /// remain allowed.
    pub fn narrow_devices(&self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        if self.is_v2 {
            return self.filter_devices(rules);
        }
        let Some(dir) = self.dirs.get("devices") else {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(CgroupError::Devices { path: "devices".into(), source });
        };
        let wanted: Vec<DeviceRule> =
            rules.iter().filter(|rule| self.place.step.is_none() || !is_any_mknod(rule)).cloned().collect();
        let wanted = v1_allowed(&wanted);
        let list = dir.join("devices.list");
        let read = || -> Result<BTreeMap<String, i32>, CgroupError> {
            let text = crate::sys::file::read_control(&list);
            Ok(v1_list(&text.map_err(|source| CgroupError::Devices { path: list.clone(), source })?))
        };
        for (node, bits) in read()? {
            let excess = wanted.get(&node).map_or(0, |wanted| bits & !wanted);
            if excess != 0 {
                let path = dir.join("devices.deny");
                fs::write(&path, format!("{node} {}", access_letters(excess)))
                    .map_err(|source| CgroupError::Devices { path, source })?;
            }
        }
        let holds = read()?;
        match wanted.iter().find(|(node, bits)| holds.get(*node) != Some(bits)) {
            None => Ok(()),
            Some((node, bits)) => {
                let held = holds.get(node).map_or_else(String::new, |bits| access_letters(*bits));
                let text = format!("the kernel allows `{node} {held}`, not `{node} {}`", access_letters(*bits));
                Err(CgroupError::Devices { path: list, source: io::Error::other(text) })
            }
        }
    }
}

/// Parses the kernel's list of allowed devices: `c 1:3` → access bits.
fn v1_list(text: &str) -> BTreeMap<String, i32> {
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines.map(|(node, access)| (node.to_owned(), access_bits(access))).collect()
}

/// Computes the same list from rules that start by denying everything. The kernel merges the access bits of a node.
fn v1_allowed(rules: &[DeviceRule]) -> BTreeMap<String, i32> {
    let mut all = BTreeMap::new();
    for rule in rules.iter().filter(|rule| rule.allow) {
        if rule.kind == 'a' {
            return [("a *:*".to_owned(), READ | WRITE | MKNOD)].into();
        }
        for (node, bits) in v1_list(&v1_line(rule)) {
            *all.entry(node).or_default() |= bits;
        }
    }
    all
}

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// Returns the line to write to `devices.allow` or `devices.deny`: `c 195:* rw`.
#[must_use]
pub(super) fn v1_line(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    if rule.kind == 'a' {
        return "a".into();
    }
    format!("{} {}:{} {}", rule.kind, number(rule.major), number(rule.minor), rule.access)
}

fn access_bits(access: &str) -> i32 {
    access.chars().fold(0, |bits, letter| {
        bits | match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        }
    })
}

fn access_letters(bits: i32) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, letter)| letter)
        .collect()
}

/// Compiles a list of rules. The last matching rule decides, and the default is to deny.
#[must_use]
pub(super) fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // r1: context; r2: type; r3: access; r4: major; r5: minor; r6: scratch.
    let mut program = vec![
        load(2, 1, 0),
        mov(3, 2),
        immediate(AND, 2, 0xffff),
        immediate(SHIFT_RIGHT, 3, 16),
        load(4, 1, 4),
        load(5, 1, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(rule_program(rule));
        if matches_everything(rule) {
            // The verifier refuses unreachable instructions.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn allows_everything(rule: &DeviceRule) -> bool {
    rule.allow && matches_everything(rule)
}

/// Whether a rule allows the creation of every device node of a kind, which docker allows all containers.
fn is_any_mknod(rule: &DeviceRule) -> bool {
    rule.allow && rule.access == "m" && rule.major.is_none() && rule.minor.is_none()
}

fn matches_everything(rule: &DeviceRule) -> bool {
    rule.kind == 'a'
        && access_bits(&rule.access) == READ | WRITE | MKNOD
        && rule.major.is_none()
        && rule.minor.is_none()
}

fn rule_program(rule: &DeviceRule) -> Vec<Instruction> {
    let bits = access_bits(&rule.access);
    let mut checks = Vec::new();
    match rule.kind {
        'b' => checks.push(vec![unless_equal(2, BLOCK)]),
        'c' => checks.push(vec![unless_equal(2, CHAR)]),
        _ => {}
    }
    if bits != READ | WRITE | MKNOD {
        // An allow rule must cover all of the requested access. A deny rule applies if it covers any of it.
        checks.push(if rule.allow {
            vec![mov(6, 3), immediate(AND, 6, bits), unless_same(6, 3)]
        } else {
            vec![mov(6, 3), immediate(AND, 6, bits), if_equal(6, 0)]
        });
    }
    if let Some(major) = rule.major {
        checks.push(vec![unless_equal(4, major as i32)]);
    }
    if let Some(minor) = rule.minor {
        checks.push(vec![unless_equal(5, minor as i32)]);
    }
    let mut program: Vec<Instruction> = checks.into_iter().flatten().collect();
    program.extend(answer(rule.allow));
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        // Every jump leads to the next rule.
        if [NOT_EQUAL, NOT_SAME, EQUAL].contains(&instruction.code) {
            instruction.offset = (end - at - 1) as i16;
        }
    }
    program
}

// Opcodes from linux/bpf.h and bpf_common.h, for 32-bit arithmetic.
const LOAD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOV: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOV_IMMEDIATE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const NOT_SAME: u8 = 0x5d; // BPF_JMP | BPF_JNE | BPF_X
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

fn load(to: u8, from: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD, registers: to | from << 4, offset, immediate: 0 }
}

fn mov(to: u8, from: u8) -> Instruction {
    Instruction { code: MOV, registers: to | from << 4, offset: 0, immediate: 0 }
}

fn immediate(code: u8, register: u8, value: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate: value }
}

fn unless_equal(register: u8, value: i32) -> Instruction {
    immediate(NOT_EQUAL, register, value)
}

fn if_equal(register: u8, value: i32) -> Instruction {
    immediate(EQUAL, register, value)
}

fn unless_same(a: u8, b: u8) -> Instruction {
    Instruction { code: NOT_SAME, registers: a | b << 4, offset: 0, immediate: 0 }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [immediate(MOV_IMMEDIATE, 0, i32::from(allow)), Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Device, device_rules};

    /// Runs a program the way the kernel does: kind, access bits, major, minor.
    fn allowed(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0i32; 10], 0i64);
        loop {
            let Instruction { code, registers: both, offset, immediate } = program[at as usize];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            let mut jump = |condition: bool| at += if condition { i64::from(offset) } else { 0 };
            match code {
                LOAD => registers[to] = context[offset as usize / 4],
                MOV => registers[to] = registers[from],
                MOV_IMMEDIATE => registers[to] = immediate,
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] = ((registers[to] as u32) >> immediate) as i32,
                EQUAL => jump(registers[to] == immediate),
                NOT_EQUAL => jump(registers[to] != immediate),
                NOT_SAME => jump(registers[to] != registers[from]),
                EXIT => return registers[0] != 0,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn dockers_defaults_and_one_gpu() {
        let gpu = Device {
            path: "/dev/nvidia0".into(),
            kind: 'c',
            major: 195,
            minor: 0,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: "rwm".into(),
        };
        let plain = super::program(&device_rules(&[]));
        assert!(allowed(&plain, BLOCK, MKNOD, 254, 0), "docker lets a container make nodes");
        let program = program(&device_rules(&[gpu]));
        let open = READ | WRITE;
        let cases = [
            ("null", CHAR, open, 1, 3, true),
            ("mem", CHAR, READ, 1, 1, false),
            ("a pty", CHAR, open, 136, 7, true),
            ("the given GPU", CHAR, open, 195, 0, true),
            ("making its node", CHAR, MKNOD, 195, 0, true),
            ("making another GPU's", CHAR, MKNOD, 195, 1, false),
            ("making the null device", CHAR, MKNOD, 1, 3, true),
            ("another GPU", CHAR, READ, 195, 1, false),
            ("a disk", BLOCK, READ, 254, 0, false),
            ("making a disk's", BLOCK, MKNOD, 254, 0, false),
            ("the host's console", CHAR, open, 5, 1, false),
        ];
        for (what, kind, access, major, minor, expected) in cases {
            assert_eq!(allowed(&program, kind, access, major, minor), expected, "{what}");
        }
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let rule =
            |allow, access: &str| DeviceRule { allow, kind: 'c', major: Some(1), minor: None, access: access.into() };
        let program = program(&[rule(true, "rwm"), rule(false, "w")]);
        assert!(allowed(&program, CHAR, READ, 1, 9));
        assert!(!allowed(&program, CHAR, READ | WRITE, 1, 9));
        assert!(!allowed(&super::program(&[]), CHAR, READ, 1, 3), "no rule, no device");
    }

    #[test]
    fn what_the_kernel_lists_is_what_was_allowed() {
        let null = |access: &str| Device {
            path: "/dev/null".into(),
            kind: 'c',
            major: 1,
            minor: 3,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: access.into(),
        };
        let rules = device_rules(&[null("r"), null("w")]);
        let lists: Vec<String> = rules.iter().filter(|rule| rule.allow).map(v1_line).collect();
        assert_eq!(v1_allowed(&rules)["c 1:3"], READ | WRITE | MKNOD, "joined");
        // The kernel merges the three lines of 1:3, and its order may differ.
        let kernel: Vec<&String> = lists.iter().rev().filter(|line| *line != "c 1:3 r" && *line != "c 1:3 w").collect();
        let text = kernel.iter().map(|line| format!("{line}\n")).collect::<String>();
        assert_eq!(v1_list(&text), v1_allowed(&rules));
        assert_ne!(v1_list("a *:* rwm\n"), v1_allowed(&rules));
        let everything = DeviceRule { allow: true, kind: 'a', major: None, minor: None, access: "rwm".into() };
        assert_eq!(v1_list("a *:* rwm\n"), v1_allowed(&[everything]));
    }

    #[test]
    fn v1_lines() {
        let rule = |kind, major, minor| DeviceRule { allow: true, kind, major, minor, access: "rw".into() };
        assert_eq!(v1_line(&rule('c', Some(136), None)), "c 136:* rw");
        assert_eq!(v1_line(&rule('b', None, None)), "b *:* rw");
        assert_eq!(v1_line(&rule('a', None, None)), "a");
    }
}
