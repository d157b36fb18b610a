//! GPUs of compose services, on a stand-in of a driver: every way to write them, leases, and GPUs that are not available.

use std::fs;

use crate::gpu::Lab;
use crate::host::{Answer, answer};

pub const TESTS: &[(&str, fn())] = &[
    ("every_way_to_ask_for_gpus", forms),
    ("a_count_takes_idle_gpus_and_holds_them", leases),
    ("a_gpu_that_is_not_available_is_an_error_with_its_service", missing),
];

fn compose(lab: &Lab, text: &str, args: &[&str]) -> Answer {
    let dir = lab.host.dir.join("lab");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("compose.yaml"), text).unwrap();
    let mut command = lab.command(&[&["compose"], args].concat());
    answer(command.current_dir(dir).output().unwrap())
}

#[track_caller]
fn ok(lab: &Lab, text: &str, args: &[&str]) -> String {
    let answer = compose(lab, text, args);
    assert_eq!(answer.code, 0, "{text}\ncompose {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
    answer.out.trim().to_owned()
}

/// A service that prints the GPUs that it has.
fn service(name: &str, keys: &str) -> String {
    format!(
        "  {name}:\n    image: box\n    command: sh -c 'for n in 0 1 2; do [ -e /dev/nvidia$$n ] && echo $$n; done; exec sleep 1000'\n    init: true\n{keys}"
    )
}

fn reservation(fields: &str) -> String {
    format!("    deploy: {{resources: {{reservations: {{devices: [{{capabilities: [gpu]{fields}}}]}}}}}}\n")
}

fn forms() {
    let lab = Lab::new(3);
    lab.driver.cdi("etc/cdi/nvidia.yaml", 3);
    for (keys, expected) in [
        (reservation(""), "0 1 2"),
        (reservation(", driver: nvidia, count: all"), "0 1 2"),
        (reservation(", driver: nvidia, count: -1"), "0 1 2"),
        (reservation(", driver: nvidia, count: 2"), "0 1"),
        (reservation(", driver: nvidia, device_ids: ['0', '2']"), "0 2"),
        (reservation(", device_ids: ['1']"), "1"),
        (reservation(&format!(", device_ids: ['{}']", crate::driver::uuid(2))), "2"),
        (reservation(", driver: cdi, device_ids: ['nvidia.com/gpu=1']"), "1"),
        ("    devices: ['nvidia.com/gpu=0']\n".to_owned(), "0"),
        ("    gpus: all\n".to_owned(), "0 1 2"),
        ("    gpus: [{count: 1}]\n".to_owned(), "0"),
        ("    gpus: [{driver: nvidia, device_ids: ['2']}]\n".to_owned(), "2"),
        ("    runtime: nvidia\n".to_owned(), "0 1 2"),
        ("    runtime: nvidia\n    environment: {NVIDIA_VISIBLE_DEVICES: '1'}\n".to_owned(), "1"),
        ("    runtime: nvidia\n    environment: {NVIDIA_VISIBLE_DEVICES: none}\n".to_owned(), ""),
        ("    runtime: runc\n".to_owned(), ""),
    ] {
        let text = format!("services:\n{}", service("a", &keys));
        ok(&lab, &text, &["up", "-d", "--wait"]);
        // A command sees what the service's program sees.
        let seen = ok(&lab, &text, &["exec", "-T", "a", "sh", "-c", "ls /dev"]);
        let numbers: Vec<&str> = seen.lines().filter_map(|name| name.strip_prefix("nvidia")).collect();
        let numbers: Vec<&str> = numbers.into_iter().filter(|text| text.parse::<u32>().is_ok()).collect();
        assert_eq!(numbers.join(" "), expected, "{keys}");
        ok(&lab, &text, &["down", "-t", "1"]);
    }
    assert_eq!(lab.host.leftovers(), "");
}

fn leases() {
    let lab = Lab::new(3);
    let text = format!(
        "services:\n{}{}",
        service("pair", &reservation(", driver: nvidia, count: 2")),
        service("single", &reservation(", count: 1")),
    );
    ok(&lab, &text, &["up", "-d"]);
    let has = |name: &str| -> Vec<String> {
        let gpus = lab.host.inspect(name)["Gpus"].as_array().unwrap().clone();
        gpus.iter().map(|gpu| gpu["index"].as_str().unwrap().to_owned()).collect()
    };
    let mut all = [has("lab-pair-1"), has("lab-single-1")].concat();
    all.sort();
    assert_eq!(all, ["0", "1", "2"], "no GPU is given twice");
    // The same services again: nothing changes. Another container finds no idle GPU.
    let before = has("lab-pair-1");
    ok(&lab, &text, &["up", "-d"]);
    assert_eq!(has("lab-pair-1"), before);
    let more = compose(&lab, &text, &["up", "-d", "--scale", "single=2"]);
    assert_ne!(more.code, 0);
    for part in ["lab-single-2", "service `single`", "1 idle GPU is requested, but 0 are idle", "GPU 0", "lab-pair-1"] {
        assert!(more.err.contains(part), "{part}: {}", more.err);
    }
    // A GPU is free again when its container is gone.
    ok(&lab, &text, &["rm", "-f", "-s", "pair"]);
    ok(&lab, &text, &["up", "-d", "--scale", "single=3", "single"]);
    ok(&lab, &text, &["down", "-t", "1"]);
    assert_eq!(lab.host.leftovers(), "");
}

fn missing() {
    let lab = Lab::new(2);
    for (keys, parts) in [
        (reservation(", count: 3"), &["train", "3", "GPU"][..]),
        (reservation(", device_ids: ['0', '7']"), &["train", "`7`"]),
        (reservation(", driver: cdi, device_ids: ['nvidia.com/gpu=9']"), &["train", "nvidia.com/gpu=9"]),
        ("    runtime: nvidia\n    environment: {NVIDIA_VISIBLE_DEVICES: '5'}\n".to_owned(), &["train", "`5`"]),
        (reservation(", driver: amd"), &["services.train.deploy", "line 6", "driver `amd`"]),
        (reservation(", count: 1, device_ids: ['0']"), &["services.train.deploy", "line 6", "exclude each other"]),
    ] {
        let text = format!("services:\n{}", service("train", &keys));
        let up = compose(&lab, &text, &["up", "-d"]);
        assert_ne!(up.code, 0, "{keys}");
        for part in parts {
            assert!(up.err.contains(part), "{keys}: `{part}` is not in {}", up.err);
        }
        assert_eq!(lab.host.ok(&["ps", "-q"]), "", "{keys}: no container without its GPUs");
        ok(&lab, &text, &["down"]);
    }
    // Without a driver, the service is named too.
    let host = crate::host::Host::with_box();
    let lab = Lab { driver: crate::driver::FakeDriver { root: host.dir.join("none") }, host };
    let text = format!("services:\n{}", service("train", &reservation("")));
    let up = compose(&lab, &text, &["up", "-d"]);
    assert!(up.code != 0 && up.err.contains("train"), "{}", up.err);
}
