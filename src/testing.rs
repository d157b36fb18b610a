//! What the tests of several rooms share.

use std::fs;

use crate::record::Record;
use crate::request::{NetworkMode, Payload, Request, RestartPolicy, Seccomp};
use crate::spec::AskedLimits;

/// A directory with these files (path, text): a stand-in for the tree of a host that a reader takes.
pub fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// The record of a container for which nothing was asked.
pub fn record(id: &str, name: &str) -> Record {
    let request = Request {
        image: "box".into(),
        image_id: format!("sha256:{}", "0".repeat(64)),
        payload: Payload::Command(Vec::new()),
        entrypoint: None,
        env: Vec::new(),
        workdir: None,
        user: None,
        group_add: Vec::new(),
        hostname: None,
        labels: Vec::new(),
        tty: false,
        interactive: false,
        auto_remove: false,
        restart: RestartPolicy::No,
        stop_signal: None,
        stop_timeout: 10,
        init: false,
        mounts: Vec::new(),
        read_only: false,
        shm_size: None,
        limits: AskedLimits::default(),
        cgroup_parent: None,
        ulimits: Vec::new(),
        oom_score_adj: None,
        network: NetworkMode::None,
        publish: Vec::new(),
        dns: Vec::new(),
        add_hosts: Vec::new(),
        pid_host: false,
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        no_new_privileges: true,
        seccomp: Seccomp::Default,
        sysctls: Vec::new(),
        gpus: None,
        gpu_mode: None,
        share_gpu: false,
        devices: Vec::new(),
        hooks_dirs: Vec::new(),
        invoker: None,
    };
    Record::new(id.into(), name.into(), 1_000_000_000, request)
}
