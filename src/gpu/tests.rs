use std::path::Path;

use super::*;
use crate::report::Report;

fn devices(list: &[&str]) -> Which {
    Which::Devices(list.iter().map(|&device| device.to_owned()).collect())
}

#[test]
fn dockers_grammar() {
    let cases: [(&str, Which, &[&str]); 15] = [
        ("all", Which::All, &[]),
        ("-1", Which::All, &[]),
        ("2", Which::Count(2), &[]),
        ("count=2", Which::Count(2), &[]),
        ("device=0", devices(&["0"]), &[]),
        ("device=0,2", devices(&["0", "2"]), &[]),
        ("\"device=0,2\"", devices(&["0", "2"]), &[]),
        ("device=0,2,0", devices(&["0", "2"]), &[]),
        (
            "device=GPU-3a23c669-1f69-c64e-cf85-44e9b07e7a2a",
            devices(&["GPU-3a23c669-1f69-c64e-cf85-44e9b07e7a2a"]),
            &[],
        ),
        ("device=MIG-1,0:1", devices(&["MIG-1", "0:1"]), &[]),
        ("all,capabilities=utility", Which::All, &["utility"]),
        ("all,\"capabilities=compute,utility\"", Which::All, &["compute", "utility"]),
        ("all,capabilities=compute,utility", Which::All, &["compute", "utility"]),
        ("\"device=0,1\",\"capabilities=gpu,video\",driver=nvidia", devices(&["0", "1"]), &["video"]),
        ("capabilities=gpu", Which::Count(1), &[]),
    ];
    for (text, which, capabilities) in cases {
        let selection: Selection = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(selection.which, which, "{text}");
        assert_eq!(selection.capabilities, capabilities, "{text}");
        assert_eq!(selection.to_string().parse(), Ok(selection), "{text}");
    }
}

#[test]
fn what_docker_refuses_is_refused() {
    let cases = [
        ("", "no value"),
        ("0", "`0` is not a number of GPUs"),
        ("-2", "`-2` is not a number"),
        ("two", "`two` is neither"),
        ("2,device=0", "both a count and device ids"),
        ("all,all", "`all` is neither"),
        ("device=0,device=1", "`device` is given twice"),
        ("device=", "`` is not a GPU's number"),
        ("device=all", "`all` is not a GPU's number"),
        ("device=0 1", "`0 1` is not"),
        ("\"device=0,2", "quotes do not match"),
        ("gpu=1", "`gpu` is neither"),
        ("all,capabilities=cuda", "`cuda` is not a driver capability"),
    ];
    for (text, words) in cases {
        let error = text.parse::<Selection>().unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
        assert_eq!(Report::from(error).exit_code, 2);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_and_what_it_takes_it_writes(text in "[a-z0-9=,\" :-]{0,30}") {
        if let Ok(selection) = text.parse::<Selection>() {
            proptest::prop_assert_eq!(selection.to_string().parse::<Selection>(), Ok(selection));
        }
    }
}

const UUIDS: [&str; 3] = [
    "GPU-11111111-1111-1111-1111-111111111111",
    "GPU-22222222-2222-2222-2222-222222222222",
    "GPU-23333333-3333-3333-3333-333333333333",
];

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A host with three GPUs; directory order is not bus order.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(
        root,
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
    );
    for (number, bus) in [(2, "0000:af:00.0"), (0, "0000:3b:00.0"), (1, "0000:5e:00.0")] {
        let text = format!(
            "Model: \t\t NVIDIA A100\nIRQ:   \t\t 1\nGPU UUID: \t {}\nBus Location: \t {bus}\nDevice Minor: \t {number}\n",
            UUIDS[number]
        );
        write(root, &format!("proc/driver/nvidia/gpus/{bus}/information"), &text);
    }
    write(root, "usr/bin/nvidia-container-runtime-hook", "");
    write(root, "usr/bin/nvidia-container-cli", "");
    dir
}

fn plan_for(text: &str, root: &Path) -> Result<Edits, GpuError> {
    plan(Some(&text.parse().unwrap()), root)
}

#[test]
fn the_selection_becomes_uuids() {
    let dir = host();
    let cases = [
        ("all", "all".to_owned()),
        ("2", format!("{},{}", UUIDS[0], UUIDS[1])),
        ("device=2,0", format!("{},{}", UUIDS[2], UUIDS[0])),
        ("device=gpu-2222", UUIDS[1].to_owned()),
        ("device=00000000:AF:00.0", UUIDS[2].to_owned()),
        ("device=0000:5e:00.0", UUIDS[1].to_owned()),
        ("device=0:1", "0:1".to_owned()),
    ];
    for (text, expected) in cases {
        let edits = plan_for(text, dir.path()).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(edits.env[0], ("NVIDIA_VISIBLE_DEVICES".into(), expected.clone()), "{text}");
        assert_eq!(edits.annotations, [(ANNOTATION.to_owned(), expected)]);
    }
    let edits = plan_for("all,capabilities=compute,utility", dir.path()).unwrap();
    assert_eq!(edits.env[1], ("NVIDIA_DRIVER_CAPABILITIES".into(), "compute,utility".into()));
    assert_eq!(
        edits.summary.unwrap(),
        "GPU 0 NVIDIA A100, 1 NVIDIA A100, 2 NVIDIA A100 by NVIDIA's prestart hook (driver 550.54.15)"
    );
}

#[test]
fn what_the_host_lacks_is_named() {
    let mut out = String::new();
    let dir = host();
    for text in ["4", "device=3", "device=GPU-2", "device=GPU-99999999", "all,driver=amd"] {
        out += &format!("{}\n\n", Report::from(plan_for(text, dir.path()).unwrap_err()));
    }
    std::fs::remove_file(dir.path().join("usr/bin/nvidia-container-cli")).unwrap();
    out += &format!("{}\n\n", Report::from(plan_for("all", dir.path()).unwrap_err()));
    std::fs::remove_file(dir.path().join("usr/bin/nvidia-container-runtime-hook")).unwrap();
    out += &format!("{}\n\n", Report::from(plan_for("all", dir.path()).unwrap_err()));
    std::fs::remove_dir_all(dir.path().join("proc/driver/nvidia/gpus")).unwrap();
    out += &format!("{}\n\n", Report::from(plan_for("all", dir.path()).unwrap_err()));
    std::fs::remove_dir_all(dir.path().join("proc")).unwrap();
    out += &Report::from(plan_for("device=0", dir.path()).unwrap_err()).to_string();
    insta::assert_snapshot!(out);
}

#[test]
fn without_gpus_the_image_cannot_ask_for_them() {
    let edits = plan(None, Path::new("/nonexistent")).unwrap();
    assert_eq!(edits, Edits { env: vec![("NVIDIA_VISIBLE_DEVICES".into(), "void".into())], ..Edits::default() });
}

#[test]
fn nvidias_hook_runs_once_and_where_it_is() {
    let dir = host();
    let edits = plan_for("all", dir.path()).unwrap();
    assert_eq!(edits.hooks[0].command.path, Path::new("/usr/bin/nvidia-container-runtime-hook"));
    assert_eq!(edits.hooks[0].command.args, ["nvidia-container-runtime-hook", "prestart"]);
    std::fs::rename(dir.path().join("usr/bin"), dir.path().join("usr/local")).unwrap();
    std::fs::create_dir_all(dir.path().join("usr/local/nvidia/toolkit")).unwrap();
    for name in ["nvidia-container-runtime-hook", "nvidia-container-cli"] {
        std::fs::rename(
            dir.path().join("usr/local").join(name),
            dir.path().join("usr/local/nvidia/toolkit").join(name),
        )
        .unwrap();
    }
    let elsewhere = plan_for("all", dir.path()).unwrap();
    assert_eq!(elsewhere.hooks[0].command.path, Path::new("/usr/local/nvidia/toolkit/nvidia-container-runtime-hook"));
    assert!(
        elsewhere.hooks[0].command.env[0].ends_with(":/usr/local/nvidia/toolkit"),
        "{:?}",
        elsewhere.hooks[0].command.env
    );

    // The built-in definition matches by the annotation and names a program that is not there: no second run, and no error.
    let other = r#"{"version":"1.0.0","hook":{"path":"/bin/true"},"when":{"always":true},"stages":["prestart"]}"#;
    let mut definitions = hook::builtin();
    definitions.push(hook::Definition::parse("other.json", other).unwrap());
    let about = hook::Circumstances { annotations: &elsewhere.annotations, command: "sh", has_bind_mounts: false };
    let all = elsewhere.combine(hook::matching(&definitions, &about).unwrap());
    assert_eq!(all.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["50-nvidia-prestart", "other"]);
    assert_eq!(all[0], elsewhere.hooks[0]);
    let none = plan(None, dir.path()).unwrap().combine(hook::matching(&definitions, &about).unwrap());
    assert_eq!(none.len(), 1);
}

#[test]
fn a_driver_that_hides_its_uuids_is_asked_by_number() {
    let dir = host();
    let text = "Model: \t\t Tesla T4\nGPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 0\n";
    std::fs::remove_dir_all(dir.path().join("proc/driver/nvidia/gpus")).unwrap();
    write(dir.path(), "proc/driver/nvidia/gpus/0000:00:04.0/information", text);
    write(
        dir.path(),
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (x@y)  Mon\n",
    );
    let edits = plan_for("1", dir.path()).unwrap();
    assert_eq!(edits.env[0].1, "0");
    assert_eq!(edits.summary.unwrap(), "GPU 0 Tesla T4 by NVIDIA's prestart hook (driver 570.86.10)");
    assert_eq!(plan_for("device=GPU-1234", dir.path()).unwrap().env[0].1, "GPU-1234");
}
