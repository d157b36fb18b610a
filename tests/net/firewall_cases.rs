//! Hosts with firewalls of their own.

use std::process::Command;

use crate::Case;
use crate::world::{HOST, LOOPBACK, OUTSIDE, World, cannot_reach, reach, sh, within};

pub const CASES: &[Case] = &[
    ("a_forward_policy_of_drop_lets_containers_through", policy_drop),
    ("iptables_with_dockers_chains_lets_containers_through", docker),
    ("old_iptables_lets_containers_through", legacy),
    ("a_last_rule_that_rejects_lets_containers_through", last_rule),
    ("firewalls_that_close_nothing_are_let_alone", open),
    ("a_flushed_ruleset_is_mended_by_the_next_start", flushed),
    ("a_firewall_that_nobody_can_change_is_named", owned),
];

/// A container behind this firewall works both ways, and what was private before still is; a second start changes nothing more.
#[track_caller]
fn works_behind(world: &World, firewall: &str, show: &str) {
    sh(firewall);
    let web = world.container("web", &["8080:80"]);
    let (server, private) = (web.tcp(80), web.tcp(81));
    reach(None, (LOOPBACK, 8080), &server);
    reach(Some(&world.outside), (HOST, 8080), &server);
    let outside = within(&world.outside, || std::net::TcpListener::bind((OUTSIDE, 99)).unwrap());
    reach(Some(web.ns()), (OUTSIDE, 99), &outside);
    within(&world.outside, || sh("ip route add 10.89.0.0/16 via 192.0.2.1"));
    cannot_reach(Some(&world.outside), (web.ip, 81));
    drop(private);
    let before = rules(show);
    assert!(before.contains("gpurun*") || before.contains("gpurun+"), "{before}");
    let two = world.container("two", &["8081:80"]);
    assert_eq!(rules(show), before, "once is enough");
    reach(Some(two.ns()), (web.ip, 80), &server);
}

/// Without counters.
fn rules(show: &str) -> String {
    sh(show).lines().map(|line| line.split(" counter ").next().unwrap().to_owned() + "\n").collect()
}

fn policy_drop() {
    works_behind(
        &World::new(),
        "nft add table inet fw; nft 'add chain inet fw pass { type filter hook forward priority 0; policy drop; }'
         nft add rule inet fw pass ct state established,related accept",
        "nft list table inet fw",
    );
}

fn docker() {
    // Also bridged packets, as docker has them.
    works_behind(
        &World::new(),
        "test ! -e /proc/sys/net/bridge/bridge-nf-call-iptables || echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
         iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN
         iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -j DOCKER-USER
         iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "nft list table ip filter",
    );
}

fn legacy() {
    let world = World::new();
    if !Command::new("sh").args(["-c", "iptables-legacy -S >/dev/null 2>&1"]).status().unwrap().success() {
        println!("this host's kernel has no old iptables");
        return;
    }
    works_behind(&world, "iptables-legacy -P FORWARD DROP", "iptables-legacy -S FORWARD");
}

fn last_rule() {
    works_behind(
        &World::new(),
        "nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }'
         nft add rule inet firewalld filter_FORWARD ct state established,related accept
         nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
        "nft list table inet firewalld",
    );
}

fn open() {
    let world = World::new();
    sh("nft add table inet fw; nft 'add chain inet fw pass { type filter hook forward priority 0; policy accept; }'
        nft add rule inet fw pass ip daddr 203.0.113.1 drop
        nft add table ip6 six; nft 'add chain ip6 six pass { type filter hook forward priority 0; policy drop; }'
        nft 'add chain inet fw inward { type filter hook input priority 0; policy accept; }'");
    let show = "nft list table inet fw; nft list table ip6 six";
    let before = sh(show);
    world.container("web", &["8080:80"]);
    assert_eq!(sh(show), before);
}

fn flushed() {
    let world = World::new();
    let (web, own) = (world.container("web", &["8080:80"]), world.container("own", &["127.0.0.1:8081:80"]));
    for ruin in ["nft flush ruleset", "nft flush table inet gpurun; nft delete chain inet gpurun v3"] {
        sh(ruin);
        cannot_reach(Some(&world.outside), (HOST, 8080));
        let third = world.container("third", &["8082:80"]);
        for (container, port) in [(&web, 8080), (&own, 8081), (&third, 8082)] {
            reach(None, (LOOPBACK, port), &container.tcp(80));
        }
        reach(Some(&world.outside), (HOST, 8080), &web.tcp(80));
        cannot_reach(Some(&world.outside), (HOST, 8081));
        world.teardown("third");
    }
}

fn owned() {
    let world = World::new();
    // A table with an owner (firewalld 2 has one) takes no rules from anybody else, and lives as long as its socket.
    let mut owner = Command::new("nft").arg("-i").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let lines = "add table inet fw { flags owner; }\nadd chain inet fw pass { type filter hook forward priority 0; policy drop; }\n";
    std::io::Write::write_all(owner.stdin.as_mut().unwrap(), lines.as_bytes()).unwrap();
    crate::world::eventually("the firewall stands", || sh("nft list ruleset").contains("policy drop").then_some(()));
    let web = world.container("web", &["8080:80"]);
    let notes = web.network.notes.join("\n");
    assert!(notes.contains("`inet fw pass`") && notes.contains("gpurun*"), "{notes}");
    drop(owner.stdin.take());
    owner.wait().unwrap();
}
