//! The device filter: which nodes a container may open, whatever it can make with mknod.
//!
//! v1: `devices.deny` and `devices.allow`. v2 has no file for it: a BPF program of type CGROUP_DEVICE (linux/bpf.h, `struct
//! bpf_cgroup_dev_ctx`) decides each open and mknod; without one, everything is allowed.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::{Cgroup, CgroupError};
use crate::spec::DeviceRule;
use crate::sys::bpf::Instruction;

impl Cgroup {
    /// Puts the filter in place, before any process enters. Version 1 is asked what it holds then; version 2 shows no rules, but attaching
    /// a program either holds or fails.
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
        for rule in rules {
            let path = dir.join(if rule.allow { "devices.allow" } else { "devices.deny" });
            fs::write(&path, v1_line(rule)).map_err(|source| CgroupError::Devices { path, source })?;
        }
        if rules.is_empty() {
            return Ok(());
        }
        let path = dir.join("devices.list");
        let failed = |source| CgroupError::Devices { path: path.clone(), source };
        let (holds, wanted) = (v1_list(&fs::read_to_string(&path).map_err(failed)?), v1_allowed(rules));
        match holds == wanted {
            true => Ok(()),
            false => Err(failed(io::Error::other(format!("the kernel holds {holds:?} where {wanted:?} was written")))),
        }
    }
}

/// The kernel's list of what is allowed: `c 1:3` → access bits.
fn v1_list(text: &str) -> BTreeMap<String, i32> {
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines.map(|(node, access)| (node.to_owned(), access_bits(access))).collect()
}

/// The same of rules that begin with "nothing": the kernel joins what is allowed of one node.
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

/// The line that `devices.allow` and `devices.deny` take: `c 195:* rw`.
#[must_use]
pub fn v1_line(rule: &DeviceRule) -> String {
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

/// The program for a list of rules: the last rule that matches decides, and nothing matching means no.
#[must_use]
pub fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // r1: context; r2: type, r3: access, r4: major, r5: minor; r6: scratch
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
            // The verifier refuses instructions that cannot be reached.
            return program;
        }
    }
    program.extend(answer(false));
    program
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
        // An allowing rule must cover all that is asked for; a denying one is enough with any of it.
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

// linux/bpf.h and bpf_common.h; 32-bit arithmetic
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

    /// Runs a program as the kernel would: kind, access bits, major, minor.
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
        // The kernel joins the three lines about 1:3; the order is its own.
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
