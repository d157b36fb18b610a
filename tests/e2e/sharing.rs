//! A machine that several users share: whose container is whose, and where its notebook is.

use crate::host::{Answer, Host, answer};

pub const TESTS: &[(&str, fn())] =
    &[("the_owner_is_shown_everywhere", owners), ("the_url_of_what_has_none_is_refused", no_url)];

/// `gpurun …` by a user behind sudo: uid 1, which every Debian calls `daemon`.
fn by_daemon(host: &Host, args: &[&str]) -> Answer {
    answer(host.command(args).env("SUDO_UID", "1").env("SUDO_GID", "1").output().unwrap())
}

fn owners() {
    let host = Host::with_box();
    let started = by_daemon(&host, &["run", "-d", "--name", "web", "-p", "18080:80", "box", "sleep", "1000"]);
    assert_eq!(started.code, 0, "{}", started.err);
    host.ok(&["run", "-d", "--name", "mine", "--network", "none", "box", "sleep", "1000"]);

    let table = host.ok(&["ps"]);
    let column = table.lines().next().unwrap().find("USER").unwrap_or_else(|| panic!("{table}"));
    let users: Vec<&str> = table.lines().skip(1).map(|row| row[column..].split_whitespace().next().unwrap()).collect();
    assert_eq!(users, ["root", "daemon"], "{table}");
    assert_eq!(host.ok(&["ps", "--format", "{{.Names}} {{.User}}"]), "mine root\nweb daemon");
    for user in ["daemon", "1"] {
        assert_eq!(host.ok(&["ps", "--filter", &format!("user={user}"), "--format", "{{.Names}}"]), "web");
    }
    let stats: serde_json::Value = serde_json::from_str(&host.ok(&["stats", "--no-stream", "--json", "web"])).unwrap();
    assert_eq!(stats[0]["owner"], "daemon");
    assert!(host.ok(&["stats", "--no-stream"]).lines().next().unwrap().contains("USER"));

    let taken = host.fails(125, &["run", "--rm", "--name", "web", "--network", "none", "box", "true"]);
    assert!(taken.contains(" of daemon"), "{taken}");
    let port = host.fails(125, &["run", "--rm", "-p", "18080:80", "box", "true"]);
    assert!(port.contains("in use by container `web` of daemon"), "{port}");

    // Where everything belongs to root, the column says nothing.
    host.ok(&["rm", "-f", "web"]);
    let table = host.ok(&["ps"]);
    assert!(!table.contains("USER"), "{table}");
    host.ok(&["rm", "-f", "mine"]);
    assert_eq!(host.leftovers(), "");
}

fn no_url() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "plain", "--network", "none", "box", "sleep", "1000"]);
    let error = host.fails(1, &["url", "plain"]);
    assert!(error.contains("container `plain` has no Jupyter") && error.contains("gpurun --image box"), "{error}");
    let error = host.fails(1, &["url", "other"]);
    assert!(error.contains("there is no container `other`"), "{error}");
    host.ok(&["rm", "-f", "plain"]);
    assert_eq!(host.leftovers(), "");
}
