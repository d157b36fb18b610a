//! The network of `RUN`: the bridge, or what there is instead. This process has a network namespace of its own.

use std::process::Command;

use crate::fixture::{Answer, Fixture};

pub const TESTS: &[(&str, fn())] = &[
    ("network::the_default_is_the_bridge", default),
    ("network::the_hosts_network_comes_without_net_raw", host),
    ("network::without_a_bridge_the_hosts_network_is_used", no_bridge),
    ("network::a_containerfile_does_not_choose_the_hosts_network", entitlement),
    ("network::a_proxy_on_the_loopback_is_named", loopback),
];

/// Writes the devices of the step and its capabilities.
const LOOK: &str = "FROM box\nRUN cat /proc/net/dev | sed -n 's/ *\\([a-z0-9]*\\):.*/\\1/p' | sort >/devices; \
    grep CapEff /proc/self/status >/capabilities\n";
const NET_RAW: u64 = 1 << 13;

/// The devices that a step saw, and whether it had CAP_NET_RAW.
fn look(fixture: &Fixture, image: &str) -> (String, bool) {
    let news = fixture.news(image);
    let text = |name: &str| {
        let line = news.iter().find(|line| line.contains(name)).unwrap();
        line.split_once(&format!("{name} ")).unwrap().1.to_owned()
    };
    let capabilities = text("/capabilities").replace("CapEff:", "");
    let bits = u64::from_str_radix(capabilities.trim_matches(|c: char| !c.is_ascii_hexdigit()), 16).unwrap();
    (text("/devices"), bits & NET_RAW != 0)
}

fn default() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    for flags in [&["--no-cache"][..], &["--no-cache", "--network", "default"], &["--no-cache", "--network", "bridge"]]
    {
        let id = fixture.build_ok(&context, LOOK, flags);
        assert_eq!(look(fixture, &id), ("eth0|lo|".into(), true), "{flags:?}");
    }
    let id = fixture.build_ok(&context, LOOK, &["--no-cache", "--network", "none"]);
    assert_eq!(look(fixture, &id).0, "lo|");
}

fn host() {
    let fixture = Fixture::shared();
    let id = fixture.build_ok(&fixture.context(&[]), LOOK, &["--no-cache", "--network", "host"]);
    let (devices, raw) = look(fixture, &id);
    assert!(!devices.contains("eth0") && !raw, "{devices} {raw}");
}

/// Builds on a host that has a network and no `nft`.
fn without_nft(fixture: &Fixture, text: &str, flags: &[&str]) -> Answer {
    let context = fixture.context(&[]);
    let file = context.with_extension("file-nft");
    std::fs::write(&file, text).unwrap();
    let mut args = vec!["build", "--no-cache", "-f", file.to_str().unwrap()];
    args.extend(flags);
    args.push(context.to_str().unwrap());
    let build = fixture.command(&args);
    let script = "mount --bind /dev/null \"$(command -v nft)\"; ip link set lo up; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "-n", "sh", "-c", script, "sh"]).arg(build.get_program()).args(build.get_args());
    for (name, value) in build.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    Answer { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

fn no_bridge() {
    let fixture = Fixture::with_box();
    let answer = without_nft(&fixture, &format!("{LOOK}RUN echo second\n"), &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert_eq!(answer.err.matches("this host has no bridge for `RUN`").count(), 1, "{}", answer.err);
    let (devices, raw) = look(&fixture, &answer.out);
    assert!(!devices.contains("eth0") && !raw, "{devices} {raw}");
    // Who asks for the bridge gets it, or an error.
    let answer = without_nft(&fixture, LOOK, &["--network", "bridge"]);
    assert!(answer.code != 0 && answer.err.contains("nft"), "{}", answer.err);
}

fn entitlement() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let text = "FROM box\nRUN --network=host true\n";
    for flags in [&[][..], &["--network", "bridge"], &["--network", "none"]] {
        let answer = fixture.build(&context, text, flags);
        assert!(
            answer.code == 1 && answer.err.contains("is allowed only in a build on the host's network"),
            "{}",
            answer.err
        );
        assert!(answer.err.contains("gpurun build --network host"), "{}", answer.err);
    }
    fixture.build_ok(&context, text, &["--network", "host"]);
}

fn loopback() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let proxy = "http_proxy=http://me:secret@127.0.0.1:3128";
    let flags = ["--no-cache", "--build-arg", proxy, "--build-arg", "no_proxy=localhost"];
    let answer = fixture.build(&context, "FROM box\nRUN true\nRUN false\n", &flags);
    assert_eq!(answer.err.matches("which `RUN` does not reach from the bridge").count(), 1, "{}", answer.err);
    assert!(answer.err.contains("`http_proxy` (127.0.0.1:3128)") && !answer.err.contains("secret"), "{}", answer.err);
    let hint =
        "hint: `http_proxy` (127.0.0.1:3128) is on this host's loopback: `gpurun build --network host …` reaches it";
    assert!(answer.err.contains(hint), "{}", answer.err);
    let flags = [&flags[..], &["--network", "host"]].concat();
    let answer = fixture.build(&context, "FROM box\nRUN false\n", &flags);
    assert!(!answer.err.contains("loopback"), "{}", answer.err);
}
