use std::path::Path;

use super::registry::File;
use super::*;
use crate::gpu::edits::Edits;
use crate::request::CdiName;

/// A vendor whose driver is loaded in the version 550.54.15.
static FACTS: Facts = Facts {
    kind: "a.com/b",
    file_name: "vendor-a",
    service_file: "/var/run/cdi/a.json",
    generate: |file| format!("`generate {}`", file.display()),
    loaded_driver: |_| Some("550.54.15".into()),
    driver_of: |path| path.to_str()?.split_once("libcuda.so.").map(|(_, version)| version),
};

/// A CDI file in JSON, with one device that has these edits.
fn spec(version: &str, kind: &str, name: &str, edits: &str) -> String {
    format!(
        r#"{{"cdiVersion":"{version}","kind":"{kind}","devices":[{{"name":"{name}","containerEdits":{{{edits}}}}}]}}"#
    )
}

const ENV: &str = r#""env":["A=1"]"#;

fn wrong(text: &str) -> String {
    match Spec::parse(Path::new("x.json"), text) {
        Ok(_) => String::new(),
        Err(reason) => reason,
    }
}

#[test]
fn files_that_the_specification_forbids_are_invalid() {
    let one = |edits: &str| spec("1.1.0", "vendor.com/thing", "x", edits);
    let cases = [
        (spec("9.9.0", "vendor.com/thing", "x", ENV), "is not a known version"),
        (spec("1", "vendor.com/thing", "x", ENV), "is not a known version"),
        (spec("1.1.0", "thing", "x", ENV), "is not `vendor/class`"),
        (spec("1.1.0", "vendor.com/", "x", ENV), "is not `vendor/class`"),
        (spec("1.1.0", "-v/thing", "x", ENV), "is not `vendor/class`"),
        (spec("1.1.0", "vendor.com/thing", "x y", ENV), "`x y` is not a valid device name"),
        (spec("1.1.0", "vendor.com/thing", "x", ""), "has no edits"),
        (r#"{"cdiVersion":"1.0.0","kind":"a/b","devices":[]}"#.into(), "describes no device"),
        (r#"{"kind":"a/b"}"#.into(), "missing field `cdiVersion`"),
        (one(r#""env":["A=1"],"foo":1"#), "unknown field `foo`"),
        (one(r#""deviceNodes":[{"path":"/dev/x","mod":1}]"#), "unknown field `mod`"),
        (one(r#""env":["A"]"#), "is not `NAME=VALUE`"),
        (one(r#""deviceNodes":[{"path":"x"}]"#), "is not absolute"),
        (one(r#""deviceNodes":[{"path":"/dev/x","type":"z"}]"#), "has an unknown type"),
        (one(r#""deviceNodes":[{"path":"/dev/x","permissions":"rx"}]"#), "may contain only `r`, `w` and `m`"),
        (one(r#""mounts":[{"hostPath":"","containerPath":"/x"}]"#), "has no source, or its path is not absolute"),
        (one(r#""hooks":[{"hookName":"later","path":"/bin/true"}]"#), "is not a hook stage"),
        (one(r#""hooks":[{"hookName":"prestart","path":"true"}]"#), "is not absolute"),
        ("[1]".into(), "invalid"),
        (
            one(r#""netDevices":[{"hostInterfaceName":"a","name":"x"},{"hostInterfaceName":"b","name":"x"}]"#),
            "`b` is named twice",
        ),
        (one(r#""netDevices":[{"hostInterfaceName":"a","name":""}]"#), "no name"),
        (one(r#""intelRdt":{"enableCMT":true}"#), "were removed in 1.1.0"),
    ];
    for (text, words) in cases {
        let reason = wrong(&text);
        assert!(reason.contains(words), "{text}: {reason}");
    }
    let twins = r#"{"cdiVersion":"1.0.0","kind":"a/b","devices":[{"name":"x","containerEdits":{"env":["A=1"]}},{"name":"x","containerEdits":{"env":["A=1"]}}]}"#;
    assert!(wrong(twins).contains("describes the device `x` twice"));
}

#[test]
fn a_field_needs_its_version() {
    let cases = [
        ("0.3.0", "0.4.0", r#""mounts":[{"hostPath":"/x","containerPath":"/x","type":"tmpfs"}]"#),
        ("0.4.0", "0.5.0", r#""deviceNodes":[{"path":"/dev/x","hostPath":"/dev/y"}]"#),
        ("0.6.0", "0.7.0", r#""additionalGids":[1]"#),
        ("0.6.0", "0.7.0", r#""intelRdt":{"closID":"x"}"#),
        ("1.0.0", "1.1.0", r#""intelRdt":{"enableMonitoring":true}"#),
        ("1.0.0", "1.1.0", r#""netDevices":[{"hostInterfaceName":"eth0","name":"eth1"}]"#),
    ];
    for (low, enough, edits) in cases {
        let reason = wrong(&spec(low, "vendor.com/thing", "x", edits));
        assert!(reason.contains("too low") && reason.contains(enough), "{edits}: {reason}");
        assert_eq!(wrong(&spec(enough, "vendor.com/thing", "x", edits)), "");
    }
    assert!(wrong(&spec("0.4.0", "vendor.com/thing", "0", ENV)).contains("begins with a digit"));
    assert!(wrong(&spec("0.5.0", "vendor.com/thing.x", "a", ENV)).contains("kind with a dot"));
    let annotated = r#"{"cdiVersion":"0.5.0","kind":"a/b","annotations":{"k":"v"},"devices":[{"name":"x","containerEdits":{"env":["A=1"]}}]}"#;
    assert!(wrong(annotated).contains("too low for `annotations`"));
}

#[test]
fn yaml_and_json_are_read_alike() {
    let yaml = "---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  env:\n    - NVIDIA_VISIBLE_DEVICES=void\ndevices:\n  - name: \"0\"\n    containerEdits:\n      deviceNodes:\n        - path: /dev/nvidia0\n          major: 195\n          fileMode: 438\n          permissions: rwm\n";
    let json = r#"{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","containerEdits":{"env":["NVIDIA_VISIBLE_DEVICES=void"]},"devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia0","major":195,"fileMode":438,"permissions":"rwm"}]}}]}"#;
    let parsed = Spec::parse(Path::new("a.yaml"), yaml).unwrap();
    assert_eq!(parsed, Spec::parse(Path::new("a.json"), json).unwrap());
    for octal in ["0666", "0o666", "438", "0x1b6"] {
        let parsed = Spec::parse(Path::new("a.yaml"), &yaml.replace("438", octal)).unwrap();
        assert_eq!(parsed.devices[0].container_edits.device_nodes[0].file_mode, Some(0o666), "{octal}");
    }
    let broken = Spec::parse(Path::new("a.yaml"), "a: [b\nc: d").unwrap_err();
    assert!(!broken.is_empty() && !broken.contains('\n'), "{broken}");
    let unknown = Spec::parse(Path::new("a.yaml"), &yaml.replace("kind:", "sort: x\nkind:")).unwrap_err();
    assert!(unknown.contains("sort"), "{unknown}");
}

fn registry(files: &[(&str, String)]) -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let registry = Registry::read(dir.path(), &[&FACTS]);
    (dir, registry)
}

fn edits(registry: &Registry, names: &[&str]) -> Result<Edits, CdiError> {
    let names: Vec<CdiName> = names.iter().map(|name| name.parse().unwrap()).collect();
    registry.edits(&names, (1000, 100))
}

#[test]
fn the_dynamic_directory_wins_and_conflicts_are_errors() {
    let file = |name: &str, value: &str| spec("0.5.0", "vendor.com/thing", name, &format!(r#""env":["A={value}"]"#));
    let (_dir, registry) = registry(&[
        ("etc/cdi/a.json", file("x", "static")),
        ("var/run/cdi/a.json", file("x", "dynamic")),
        ("etc/cdi/b.json", file("y", "one")),
        ("etc/cdi/c.json", file("y", "other")),
        ("etc/cdi/d.json", file("z", "one")),
        ("etc/cdi/e.json", file("z", "other")),
        ("var/run/cdi/f.json", file("z", "above both")),
        ("etc/cdi/broken.json", "{".into()),
        ("etc/cdi/ignored.yml", "{".into()),
    ]);
    let value = |name: &str| edits(&registry, &[name]).map(|edits| edits.env[0].1.clone());
    assert_eq!(value("vendor.com/thing=x").unwrap(), "dynamic");
    assert_eq!(value("vendor.com/thing=z").unwrap(), "above both");
    let conflict = value("vendor.com/thing=y").unwrap_err().to_string();
    assert!(conflict.contains("b.json") && conflict.contains("c.json"), "{conflict}");
    let unknown = crate::report::Report::from(value("vendor.com/thing=q").unwrap_err()).to_string();
    assert!(unknown.contains("the devices of `vendor.com/thing` are x, y, z"), "{unknown}");
    assert!(
        unknown.contains("caused by: the CDI file") && unknown.contains("hint: use one of these names"),
        "{unknown}"
    );
    assert!(matches!(value("other.com/thing=q"), Err(CdiError::NoDevice { .. })));
    assert_eq!(registry.broken().len(), 1, "another ending is no CDI file");
}

#[test]
fn common_edits_come_once_and_first_and_later_ones_win() {
    let file = r#"{"cdiVersion":"0.7.0","kind":"a.com/b","containerEdits":{"env":["COMMON=1","WHO=all"],"additionalGids":[7]},
        "devices":[{"name":"x","containerEdits":{"env":["WHO=x"]}},{"name":"y","containerEdits":{"env":["WHO=y"],"hooks":[{"hookName":"createRuntime","path":"/etc/cdi/f.json","args":["f","go"],"timeout":3}]}}]}"#;
    let (dir, registry) = registry(&[("etc/cdi/f.json", file.into())]);
    let all = edits(&registry, &["a.com/b=x", "a.com/b=y"]).unwrap();
    let env: Vec<String> = all.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["COMMON=1", "WHO=y"]);
    assert_eq!(all.gids, [7]);
    let hook = &all.hooks[0];
    assert_eq!(
        (hook.stage, hook.command.timeout, hook.name.as_str()),
        (crate::spec::Stage::CreateRuntime, Some(3), "cdi-a.com-b-go")
    );
    assert_eq!(hook.command.path, dir.path().join("etc/cdi/f.json"));
}

#[test]
fn stale_files_are_reported() {
    let mount = |path: &str| format!(r#""mounts":[{{"hostPath":"{path}","containerPath":"/x"}}]"#);
    let cases = [
        (
            mount("/usr/lib/libcuda.so.535.183.01"),
            "libcuda.so.535.183.01`, but the version of the loaded driver is 550.54.15",
        ),
        (mount("/usr/lib/libcuda.so.550.54.15"), "`/usr/lib/libcuda.so.550.54.15` does not exist"),
        (mount("/usr/lib/libnvidia-egl-gbm.so.1.1.1"), "does not exist"),
        (
            r#""deviceNodes":[{"path":"/dev/gone","major":195}]"#.to_owned(),
            "the device node `/dev/gone` does not exist",
        ),
        (r#""hooks":[{"hookName":"createContainer","path":"/gone"}]"#.to_owned(), "`/gone` does not exist"),
    ];
    for (text, words) in cases {
        let (_dir, registry) = registry(&[("etc/cdi/a.json", spec("0.5.0", "a.com/b", "x", &text))]);
        let reason = edits(&registry, &["a.com/b=x"]).unwrap_err().to_string();
        assert!(reason.contains("stale") && reason.contains(words), "{text}: {reason}");
    }
    // The source of a mount that is not a bind mount need not exist, and the program of a startContainer hook is in the
    // container.
    let fine = r#""mounts":[{"hostPath":"tmpfs","containerPath":"/x","type":"tmpfs","options":["size=1m"]}],"hooks":[{"hookName":"startContainer","path":"/in/the/image"}]"#;
    let (_dir, registry) = registry(&[("etc/cdi/a.json", spec("0.5.0", "a.com/b", "x", fine))]);
    let found = edits(&registry, &["a.com/b=x"]).unwrap();
    assert_eq!((found.mounts[0].kind.as_str(), found.mounts[0].source.as_path()), ("tmpfs", Path::new("tmpfs")));
    for unsupported in [
        r#""intelRdt":{}"#,
        r#""netDevices":[{"hostInterfaceName":"a","name":"b"}]"#,
        r#""deviceNodes":[{"path":"/dev/pipe","type":"p"}]"#,
        r#""deviceNodes":[{"path":"/etc/x","type":"c","major":1,"minor":3}]"#,
        r#""deviceNodes":[{"path":"/dev/../etc/x","type":"c","major":1,"minor":3}]"#,
    ] {
        let text = spec("1.1.0", "a.com/b", "x", unsupported);
        let (_dir, registry) = self::registry(&[("etc/cdi/a.json", text)]);
        assert!(matches!(edits(&registry, &["a.com/b=x"]), Err(CdiError::Unsupported { .. })));
    }
}

#[test]
fn missing_values_of_a_node_come_from_the_host_and_the_container() {
    let node = |text: &str| {
        let (dir, registry) =
            registry(&[("etc/cdi/a.json", spec("0.5.0", "a.com/b", "x", &format!(r#""deviceNodes":[{text}]"#)))]);
        let found = edits(&registry, &["a.com/b=x"]).map(|edits| edits.devices[0].clone());
        drop(dir);
        found
    };
    // A fully described node need not exist on the host. It belongs to the container's user.
    let whole = node(r#"{"path":"/dev/x","type":"c","major":195}"#).unwrap();
    assert_eq!((whole.kind, whole.major, whole.minor, whole.mode), ('c', 195, 0, 0o666));
    assert_eq!((whole.uid, whole.gid, whole.access.as_str()), (1000, 100, "rwm"));
    let said =
        node(r#"{"path":"/dev/x","type":"u","major":195,"minor":7,"uid":0,"gid":44,"fileMode":432,"permissions":"r"}"#);
    let said = said.unwrap();
    assert_eq!(
        (said.kind, said.minor, said.uid, said.gid, said.mode, said.access.as_str()),
        ('c', 7, 0, 44, 0o660, "r")
    );
    for lacking in [r#"{"path":"/dev/x","type":"c"}"#, r#"{"path":"/dev/x","major":195}"#] {
        assert!(node(lacking).unwrap_err().to_string().contains("`/dev/x` does not exist"), "{lacking}");
    }
    // The null device, which every host has.
    let registry = Registry { root: "/".into(), vendors: Vec::new(), files: Vec::new(), broken: Vec::new() };
    let name: CdiName = "a.com/b=x".parse().unwrap();
    let text = spec("0.5.0", "a.com/b", "x", r#""deviceNodes":[{"path":"/dev/other","hostPath":"/dev/null"}]"#);
    let file = File { path: "a.json".into(), priority: 0, spec: Spec::parse(Path::new("a.json"), &text).unwrap() };
    let registry = Registry { files: vec![file], ..registry };
    let found = registry.edits(std::slice::from_ref(&name), (0, 0)).unwrap().devices[0].clone();
    assert_eq!((found.path.as_str(), found.kind, found.major, found.minor), ("/dev/other", 'c', 1, 3));
}

#[test]
fn an_outer_mount_does_not_hide_an_inner_one() {
    let mount = |path: &str| format!(r#"{{"hostPath":"tmpfs","containerPath":"{path}","type":"tmpfs"}}"#);
    let text = format!(r#""mounts":[{},{},{}]"#, mount("/a/b/c"), mount("/z"), mount("/a"));
    let (_dir, registry) = registry(&[("etc/cdi/a.json", spec("0.5.0", "a.com/b", "x", &text))]);
    let order: Vec<String> = edits(&registry, &["a.com/b=x"])
        .unwrap()
        .mounts
        .iter()
        .map(|mount| mount.destination.display().to_string())
        .collect();
    assert_eq!(order, ["/z", "/a", "/a/b/c"]);
}

proptest::proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(text in "\\PC{0,200}", cut in 0usize..400) {
        let _ = Spec::parse(Path::new("a.json"), &text);
        let _ = Spec::parse(Path::new("a.yaml"), &text);
        let whole = spec("1.1.0", "vendor.com/thing", "x", r#""deviceNodes":[{"path":"/dev/x","major":195}],"mounts":[{"hostPath":"/x","containerPath":"/y"}]"#);
        if let Some(part) = whole.get(..cut) {
            proptest::prop_assert!(Spec::parse(Path::new("a.json"), part).is_err() || part == whole);
            // A prefix of the JSON text may be valid YAML.
            let _ = Spec::parse(Path::new("a.yaml"), part);
        }
    }
}
