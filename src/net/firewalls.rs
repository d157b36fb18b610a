//! Other firewalls on this host that would drop the containers' packets.
//!
//! A packet must be accepted by every chain on the forward hook, so no rule of gpurun's can override a `policy drop` in
//! a table of docker or ufw. If such a chain drops packets, two accept rules for gpurun's bridges are inserted at its
//! start. They open nothing else, because gpurun's own table decides which packets may pass them. Chains that do
//! not drop are left unchanged. The rules are never removed, because they have no effect once the bridges are gone.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

use super::nfnetlink::{Attributes, Message, Netfilter, SUBSYSTEM_NFTABLES};
use super::nft;
use super::types::DEVICES;

/// The comment of the rules. That of earlier releases, whose rules are for one bridge only, is `gpurun`.
const COMMENT: &str = "gpurun bridges";
const DROP: u32 = 0;

/// A base chain on the forward hook.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    drops: bool,
}

/// Lets packets of gpurun's bridges pass. Returns a notice for each failure.
pub(super) fn pass(netfilter: &Netfilter) -> Vec<String> {
    let mut notes = Vec::new();
    let mut text = String::new();
    let mut closed = Vec::new();
    for chain in forward_chains(netfilter) {
        let (closes, passed) = rules(netfilter, &chain);
        if (chain.drops || closes) && !passed {
            let family = if chain.family == nft::INET { "inet" } else { "ip" };
            for direction in ["iifname", "oifname"] {
                let _ = writeln!(
                    text,
                    "insert rule {family} {} {} {direction} \"{DEVICES}\" counter accept comment \"{COMMENT}\"",
                    chain.table, chain.name
                );
            }
            closed.push(format!("`{family} {} {}`", chain.table, chain.name));
        }
    }
    if !closed.is_empty()
        && let Err(error) = nft::run(&text)
    {
        notes.push(format!(
            "cannot allow `{DEVICES}` in the firewall chain {}, which drops the containers' packets: {error}",
            closed.join(", ")
        ));
    }
    notes.extend(pass_legacy());
    notes
}

/// The base chains of other tables, of the families ip and inet.
fn forward_chains(netfilter: &Netfilter) -> Vec<Chain> {
    const GET_CHAIN: u8 = 4;
    const FORWARD: u32 = 2;
    const IPV4: u8 = 2;
    let mut chains = Vec::new();
    // An error means that there are no chains, because the table was read successfully just before.
    let _ = netfilter.dump(&Message::new(SUBSYSTEM_NFTABLES, GET_CHAIN, 0), |family, chain| {
        let hook = chain.nested(4).and_then(|hook| hook.number(1));
        if let (Some(FORWARD), Some(table), Some(name)) = (hook, chain.name(1), chain.name(3)) {
            let ours = family == nft::INET && table == "gpurun";
            if (family == nft::INET || family == IPV4) && !ours {
                let drops = chain.number(5) == Some(DROP);
                chains.push(Chain { family, table: table.to_owned(), name: name.to_owned(), drops });
            }
        }
    });
    chains
}

/// Returns whether the chain's last rule refuses everything (as in firewalld and RHEL), and whether gpurun's rule is
/// already in the chain.
fn rules(netfilter: &Netfilter, chain: &Chain) -> (bool, bool) {
    const GET_RULE: u8 = 7;
    let (mut closes, mut passed) = (false, false);
    let look = Message::new(SUBSYSTEM_NFTABLES, GET_RULE, chain.family).text(1, &chain.table).text(2, &chain.name);
    let _ = netfilter.dump(&look, |_, rule| {
        // Kernels that do not support the filter return the rules of all chains.
        if rule.name(1) != Some(&chain.table) || rule.name(2) != Some(&chain.name) {
            return;
        }
        closes = rule.nested(4).is_some_and(refuses);
        // User data: kind 0 (comment), the length, and the text with a zero byte.
        let comment = rule.bytes(7).and_then(|data| data.get(2..));
        passed |= comment.is_some_and(|text| text.strip_suffix(&[0]) == Some(COMMENT.as_bytes()));
    });
    (closes, passed)
}

/// Whether a rule's expressions drop or reject unconditionally.
fn refuses(expressions: Attributes<'_>) -> bool {
    let mut refuses = false;
    for expression in expressions.list() {
        match expression.name(1) {
            Some("counter" | "log") => {}
            Some("reject") => refuses = true,
            // iptables' REJECT in an nf_tables chain.
            Some("target") => refuses = expression.nested(2).and_then(|data| data.name(1)) == Some("REJECT"),
            Some("immediate") => {
                let verdict = expression
                    .nested(2)
                    .and_then(|data| data.nested(2))
                    .and_then(|data| data.nested(2))
                    .and_then(|data| data.number(1));
                refuses = verdict == Some(DROP);
            }
            _ => return false,
        }
    }
    refuses
}

/// Handles legacy iptables, whose tables nf_tables does not list. The kernel lists the ones in use.
fn pass_legacy() -> Option<String> {
    let tables = fs::read_to_string("/proc/self/net/ip_tables_names").unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return None;
    }
    let program = ["iptables-legacy", "iptables"].into_iter().find(|program| iptables(program, &["-V"]).is_some())?;
    let shown = iptables(program, &["-w", "-S", "FORWARD"])?;
    let closes = shown.lines().next() == Some("-P FORWARD DROP")
        || shown
            .lines()
            .last()
            .is_some_and(|rule| rule.starts_with("-A FORWARD -j REJECT") || rule == "-A FORWARD -j DROP");
    if !closes {
        return None;
    }
    for direction in ["-o", "-i"] {
        // iptables writes the wildcard as `+`.
        let rule = ["FORWARD", direction, "gpurun+", "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
        let with = |verb: &'static str| -> Vec<&str> { ["-w", verb].into_iter().chain(rule).collect() };
        if iptables(program, &with("-C")).is_none() && iptables(program, &with("-I")).is_none() {
            return Some(format!(
                "cannot allow `{DEVICES}` with `{program}` in the firewall, which drops forwarded packets"
            ));
        }
    }
    None
}

/// Runs the program. Returns its output if it succeeds.
fn iptables(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", super::nft::PROGRAMS)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}
