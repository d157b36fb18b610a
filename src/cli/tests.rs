//! Snapshots of the error texts of small modules, with their hints, causes and exit statuses. (Larger modules have an `error_tests.rs` of
//! their own; the texts that a command line causes are in tests/e2e/errors.rs.)
//!
//! After a wanted change of a text, run `INSTA_UPDATE=always cargo test --lib errors_of` and read the difference.

use std::io;
use std::net::Ipv4Addr;

use crate::cgroup::{CgroupError, Missing};
use crate::config::ConfigError;
use crate::image::DocumentError;
use crate::inflate::Corrupt;
use crate::layer::InodeId;
use crate::layer::directory::RenderError;
use crate::layer::erofs::WriteError;
use crate::layer::merge::Problem;
use crate::layer::tar::{ScanError, TarProblem};
use crate::names::NameError;
use crate::net::NetError;
use crate::network::NetworkError;
use crate::report::texts::{Texts, denied, json};
use crate::store::StoreError;
use crate::units::UnitError;
use crate::volume::VolumeError;

#[test]
fn errors_of_cgroup() {
    let mut texts = Texts::default();
    texts.add(CgroupError::None);
    texts.add(CgroupError::Io { action: "read", path: "/path/to/file".into(), source: denied() });
    texts.add(CgroupError::Unreadable { path: "/path/to/file".into(), text: "TEXT".into() });
    texts.add(CgroupError::NoController { flag: "--memory", controller: "memory".into(), why: Missing::Kernel });
    texts.add(CgroupError::NoFile { flag: "--memory", controller: "memory".into(), file: "memory.max".into() });
    texts.add(CgroupError::Refused {
        flag: "--memory",
        value: "33554432".into(),
        path: "/path/to/file".into(),
        above: None,
        source: denied(),
    });
    texts.add(CgroupError::Differs {
        flag: "--memory",
        asked: "40".into(),
        kernel: "50".into(),
        path: "/path/to/file".into(),
    });
    texts.add(CgroupError::OnlyOn { flag: "--memory", version: "v2", host: "v1" });
    texts.add(CgroupError::InUse { asked: 33_554_432, used: 12 });
    texts.add(CgroupError::Freezer { verb: "freeze", path: "/path/to/file".into() });
    texts.add(CgroupError::Devices { path: "/path/to/file".into(), source: denied() });
    texts.add(CgroupError::ProcessesRemain { path: "/path/to/file".into() });
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_volumes() {
    let mut texts = Texts::default();
    texts.add(VolumeError::Name("-x".into()));
    texts.add(VolumeError::Missing("data".into()));
    texts.add(VolumeError::Options { name: "data".into(), why: "WHY".into() });
    texts.add(VolumeError::Io { action: "mount", name: "data".into(), source: denied() });
    texts.add(VolumeError::Io { action: "create", name: "data".into(), source: denied() });
    texts.add(VolumeError::List { path: "/path/to/volumes".into(), source: denied() });
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_config() {
    let mut texts = Texts::default();
    texts.add(ConfigError::Read { path: "/path/to/file".into(), source: denied() });
    texts.add(ConfigError::Content { path: "/path/to/file".into(), why: "WHY".into() });
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_image() {
    let mut texts = Texts::default();
    texts.add(DocumentError::Json { document: "manifest", cause: json() });
    texts.add(DocumentError::Digest { document: "manifest", value: "33554432".into() });
    texts.add(DocumentError::Nul { document: "manifest", field: "`User`".into() });
    texts.add(DocumentError::MediaType { document: "manifest", media_type: "application/x".into() });
    texts.add(DocumentError::LayerCount { diff_ids: 12, layers: 12 });
    texts.add(DocumentError::TooManyLayers { found: 12, limit: 12 });
    texts.add(DocumentError::Size { document: "manifest" });
    texts.add(DocumentError::RootfsType("TEXT".into()));
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_inflate() {
    let mut texts = Texts::default();
    texts.plain(Corrupt::Truncated);
    texts.plain(Corrupt::Bad("TEXT"));
    texts.plain(Corrupt::Checksum);
    texts.plain(Corrupt::Garbage);
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_layer() {
    let mut texts = Texts::default();
    texts.add(WriteError::Malformed { what: "lab/notebook:1", inode: InodeId(7) });
    texts.add(WriteError::NameTooLong { name: "notebook:1".into(), length: 12 });
    texts.add(WriteError::TooLarge { size: 12 });
    texts.add(WriteError::TooManyLayers { count: 12 });
    texts.add(WriteError::Copy { source_index: 12, source: denied() });
    texts.add(WriteError::Write(denied()));
    texts.plain(Problem::Escapes);
    texts.plain(Problem::EmptyName);
    texts.plain(Problem::NameTooLong);
    texts.plain(Problem::PathTooLong);
    texts.plain(Problem::TooDeep);
    texts.plain(Problem::RootNotDirectory);
    texts.plain(Problem::ParentNotDirectory("TEXT".into()));
    texts.plain(Problem::Loop);
    texts.plain(Problem::Whiteout);
    texts.plain(Problem::LinkTarget);
    texts.plain(Problem::LinkMissing("TEXT".into()));
    texts.plain(Problem::LinkToDirectory("TEXT".into()));
    texts.plain(Problem::TooManyLayers);
    texts.plain(Problem::TooManyFiles);
    texts.plain(Problem::TooManySteps);
    texts.plain(Problem::TooMuchMemory);
    texts.plain(TarProblem::Truncated);
    texts.plain(TarProblem::Checksum);
    texts.plain(TarProblem::LoneZeroBlock);
    texts.plain(TarProblem::Number("TEXT"));
    texts.plain(TarProblem::Range("TEXT"));
    texts.plain(TarProblem::Type('Z'));
    texts.plain(TarProblem::Pax);
    texts.plain(TarProblem::PaxRecord("TEXT".into()));
    texts.plain(TarProblem::Sparse);
    texts.plain(TarProblem::SpecialTooLarge(12));
    texts.plain(TarProblem::DanglingExtension);
    texts.plain(TarProblem::TooManyHeaders(12));
    texts.plain(ScanError::Read(denied()));
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_names() {
    let mut texts = Texts::default();
    texts.add(NameError::Digest("TEXT".into()));
    texts.add(NameError::Reference { name: "notebook:1".into(), why: "WHY" });
    texts.add(NameError::Container("TEXT".into()));
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_net() {
    let mut texts = Texts::default();
    texts.add(NetError::Namespace(denied()));
    texts.add(NetError::Io { action: "read", path: "/path/to/file".into(), source: denied() });
    texts.add(NetError::Link { action: "read".into(), source: denied() });
    texts.add(NetError::Filter { action: "read", source: denied() });
    texts.add(NetError::Nft { reason: "REASON".into() });
    texts.add(NetError::NoNft(denied()));
    texts.add(NetError::PortInUse { port: "0.0.0.0:8080/tcp".into(), by: " by container `web`".into() });
    texts.add(NetError::Port { port: "0.0.0.0:8080/tcp".into(), source: denied() });
    texts.add(NetError::NoSubnet);
    texts.add(NetError::SubnetInUse(Ipv4Addr::new(10, 89, 0, 0)));
    texts.add(NetError::NoAddress("lab".into()));
    texts.add(NetError::Address {
        ip: [10, 0, 0, 9].into(),
        why: "container `web` has it".into(),
        network: "lab".into(),
    });
    texts.add(NetError::NameTaken("lab".into()));
    texts.add(NetError::InUse { network: "lab".into(), containers: vec!["web".into(), "db".into()] });
    texts.add(NetError::Connected { container: "web".into(), network: "lab".into() });
    texts.add(NetError::NotConnected { container: "web".into(), network: "lab".into() });
    texts.add(NetworkError::Missing("lab".into()));
    texts.add(NetworkError::Ambiguous("ab".into()));
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_units() {
    let mut texts = Texts::default();
    texts.add(UnitError::Size("TEXT".into()));
    texts.add(UnitError::SizeOverflow("TEXT".into()));
    texts.add(UnitError::Cpus("TEXT".into()));
    texts.add(UnitError::TooPrecise("TEXT".into()));
    texts.add(UnitError::CpuSet("TEXT".into()));
    texts.add(UnitError::Whole { text: "TEXT".into(), least: 1, most: 100 });
    texts.add(UnitError::Outside { text: "TEXT".into(), least: 1, most: 100 });
    texts.add(UnitError::Seconds("TEXT".into()));
    insta::assert_snapshot!(texts.0);
}

#[test]
fn errors_of_several_causes() {
    let mut texts = Texts::default();
    let io = |errno| io::Error::from_raw_os_error(errno);
    let path = || std::path::PathBuf::from("/path/to/file");
    for errno in [nix::libc::EACCES, nix::libc::ENOSPC, nix::libc::EROFS] {
        texts.add(StoreError::Io { action: "write", path: path(), cause: io(errno) });
    }
    for errno in [nix::libc::EPERM, nix::libc::ENOSPC, nix::libc::EEXIST] {
        texts.add(RenderError { action: "create", path: "etc/passwd".into(), cause: io(errno) });
    }
    texts.add(CgroupError::Io { action: "create the cgroup", path: path(), source: io(nix::libc::EROFS) });
    for (flag, errno) in [
        ("--memory", nix::libc::EBUSY),
        ("--memory-swap", nix::libc::EINVAL),
        ("--device-read-bps", nix::libc::ENODEV),
        ("--cpus", nix::libc::EINVAL),
    ] {
        let above = (flag == "--cpus").then(|| (path(), "50000".to_owned()));
        texts.add(CgroupError::Refused { flag, value: "1".into(), path: path(), above, source: io(errno) });
    }
    for why in [
        Missing::Kernel,
        Missing::Delegation { root: "/sys/fs/cgroup".into() },
        Missing::Busy { at: "/sys/fs/cgroup/lab".into() },
        Missing::Refused { at: "/sys/fs/cgroup/lab".into(), errno: nix::libc::EBUSY },
    ] {
        texts.add(CgroupError::NoController { flag: "--memory", controller: "memory".into(), why });
    }
    insta::assert_snapshot!(texts.0);
}

#[test]
fn frequent_commands_mean_the_same_as_in_the_complete_definition() {
    let config = crate::config::Config::default();
    let words = |line: &str| line.split(' ').map(std::ffi::OsString::from).collect::<Vec<_>>();
    for line in [
        "run box",
        "run --rm -it box sh -c ls",
        "run -d --name web -p 8080:80 -v /a:/b:ro --memory 64m --cpus 1.5 box",
        "run --rm=false -m 64m --memory-swap 128m box true --rm",
        "run --root /x --gpus all --env A=1 -e B box -- x",
        "run -h name --network none box",
        "exec web ls -l",
        "exec -it -u 1 --workdir /tmp web sh",
        "exec --run-dir /y -e A=1 web env",
    ] {
        let frequent = super::parse_frequent(&config, &words(line)).unwrap_or_else(|| panic!("{line}"));
        let complete = super::parse_complete(&config, words(line)).unwrap();
        assert_eq!(format!("{frequent:?}"), format!("{complete:?}"), "{line}");
    }
    // Mistakes and `--help` have the messages of the complete definition.
    for line in
        ["ps -a", "run", "run --help", "exec --nope web ls", "--root /x run box", "run --memry 1g box", "help run"]
    {
        assert!(super::parse_frequent(&config, &words(line)).is_none(), "{line}");
    }
}
