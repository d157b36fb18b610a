//! Every way for GPUs into a container, by every form of `--gpus`: one table. The same table runs on version 1 of cgroups (here) and on
//! version 2 (tests/vm/suite).
//!
//! What is asked of each container: its variables, and of every GPU and MIG capability of the host whether it can be opened. `open`: its node is
//! there and the filter lets it through (ENXIO, since no driver is). `no`: it has no node, and may not make one. `denied`: it may make one, and
//! may not open it (EPERM), as docker has it.

use crate::driver::{self, CAPS_MAJOR, GIB, VERSION, mig_uuid, uuid};
use crate::gpu::{Lab, leased};

pub const TESTS: &[(&str, fn())] = &[
    ("every_mode_understands_every_word", whole),
    ("every_mode_understands_every_word_of_a_divided_gpu", divided),
    ("every_mode_refuses_the_same", refused),
];

const MODES: [(&str, &str); 3] =
    [("hook", "by NVIDIA's prestart hook"), ("cdi", "by CDI"), ("native", "by native injection")];

/// What is asked for, the numbers that it gives, and the driver's capabilities where the word names some.
type Word<'a> = (&'a str, &'a [&'a str], Option<&'a str>);

/// A node of the host's: what it is called below, and its numbers.
type Node<'a> = (&'a str, String, u32, u32);

fn probe(nodes: &[Node<'_>]) -> String {
    let mut line = String::from(
        "probe() { p=$2; if [ ! -e $p ]; then p=/tmp/$1; mknod $p c $3 $4 2>/dev/null || { echo $1=no; return; }; fi
         if dd if=$p of=/dev/null count=0 2>&1 | grep -q 'Operation not permitted'; then echo $1=denied; else echo $1=open; fi; }
         echo visible=$NVIDIA_VISIBLE_DEVICES; echo capabilities=$NVIDIA_DRIVER_CAPABILITIES; echo order=$CUDA_DEVICE_ORDER; \
         ls /usr/lib/libcuda.so.1 >/dev/null 2>&1 && echo cuda=yes || echo cuda=no; ",
    );
    for (name, path, major, minor) in nodes {
        line += &format!("probe {name} {path} {major} {minor}; ");
    }
    line
}

/// One cell: this word in this mode gives these units, each with these nodes of `nodes`, and no other.
fn cell(
    lab: &Lab,
    (mode, by): (&str, &str),
    snippet: &Word<'_>,
    name_of: &dyn Fn(&str) -> String,
    nodes: &[Node<'_>],
    open: &[&str],
) {
    let (asked, units, capabilities) = snippet;
    let what = format!("--gpu-mode {mode} --gpus {asked}");
    let flags = ["run", "--name", "it", "--network", "none", "--gpu-mode", mode, "--gpus", asked];
    // A CUDA image's own wish, which never counts.
    let image = ["-e", "NVIDIA_VISIBLE_DEVICES=all", "box", "sh", "-c"];
    let out = lab.ok(&[&flags[..], &image, &[&probe(nodes)]].concat());
    let said = |key: &str| {
        let found = out.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("{what}: no {key} in {out}")).to_owned()
    };
    let names: Vec<String> = units.iter().map(|unit| name_of(unit)).collect();
    assert_eq!(said("visible"), if mode == "cdi" { "void".to_owned() } else { names.join(",") }, "{what}");
    assert_eq!(said("order"), "PCI_BUS_ID", "{what}");
    // NVIDIA's hook reads them; the other ways have no use for the variable.
    assert_eq!(said("capabilities"), capabilities.filter(|_| mode == "hook").unwrap_or_default(), "{what}");
    if mode == "native" {
        let with_cuda = capabilities.is_none_or(|list| list.contains("compute"));
        assert_eq!(said("cuda"), if with_cuda { "yes" } else { "no" }, "{what}");
    }
    for (name, ..) in nodes {
        let expected = match mode {
            _ if open.contains(name) => "open",
            // The hook's container may make any node, as docker's may, and opens none that it was not given.
            "hook" => "denied",
            _ => "no",
        };
        assert_eq!(said(name), expected, "{what}: {name}: {out}");
    }
    let inspected = lab.host.inspect("it");
    assert!(inspected["GpusBy"].as_str().unwrap().contains(by), "{what}: {inspected}");
    let list = inspected["Gpus"].as_array().unwrap();
    let field = |key: &str| -> Vec<String> { list.iter().map(|one| one[key].as_str().unwrap().to_owned()).collect() };
    assert_eq!((field("name"), field("index")), (names, units.iter().map(|&unit| unit.to_owned()).collect()), "{what}");
    lab.ok(&["rm", "it"]);
}

fn whole() {
    let lab = Lab::new(3);
    lab.driver.hook("exit 0");
    lab.driver.cdi("etc/cdi/nvidia.yaml", 3);
    let (second, short) = (format!("device={}", uuid(1)), format!("device={}", &uuid(1)[..12]));
    let snippets: [Word<'_>; 17] = [
        ("all", &["0", "1", "2"], None),
        ("-1", &["0", "1", "2"], None),
        ("2", &["0", "1"], None),
        ("count=1", &["0"], None),
        ("free", &["0"], None),
        ("free:2", &["0", "1"], None),
        ("device=0,2", &["0", "2"], None),
        ("\"device=0,2\"", &["0", "2"], None),
        ("device=2,0", &["2", "0"], None),
        ("device=1,1", &["1"], None),
        (&second, &["1"], None),
        (&short, &["1"], None),
        ("device=0000:3d:00.0", &["2"], None),
        ("device=2,\"capabilities=compute,utility\"", &["2"], Some("compute,utility")),
        ("\"device=0,1\",\"capabilities=gpu,utility\",driver=nvidia", &["0", "1"], Some("utility")),
        ("1,capabilities=utility", &["0"], Some("utility")),
        ("capabilities=gpu", &["0"], None),
    ];
    let name_of = |unit: &str| uuid(unit.parse().unwrap());
    let nodes: Vec<Node<'_>> =
        [("0", 0), ("1", 1), ("2", 2)].map(|(name, minor)| (name, format!("/dev/nvidia{minor}"), 195, minor)).into();
    for mode in MODES {
        for snippet in &snippets {
            cell(&lab, mode, snippet, &name_of, &nodes, snippet.1);
        }
    }
    assert_eq!(leased(&lab), 0);
    assert_eq!(lab.host.leftovers(), "");
}

/// GPU 0 is divided in two, GPU 1 is whole.
fn divided() {
    let lab = Lab::new(2);
    let migs = format!("mig 0 {} 1 0 {} 0\nmig 0 {} 2 0 {} 0\n", mig_uuid(0, 0), 10 * GIB, mig_uuid(0, 1), 10 * GIB);
    let gpus = driver::gpu(0, 0, 0, true) + &migs + &driver::gpu(1, 0, 0, false);
    lab.driver.nvml(&format!("driver {VERSION}\ncuda 12040\n{gpus}"));
    lab.driver.mig_minors(0);
    lab.driver.hook("exit 0");
    lab.driver.cdi_of_divided("var/run/cdi/nvidia.json");
    let second = format!("device={}", mig_uuid(0, 1));
    let snippets: [(Word<'_>, &[&str]); 6] = [
        (("all", &["0:0", "0:1", "1"], None), &["0", "1", "cap10", "cap11", "cap20", "cap21"]),
        (("2", &["0:0", "0:1"], None), &["0", "cap10", "cap11", "cap20", "cap21"]),
        (("device=0", &["0:0", "0:1"], None), &["0", "cap10", "cap11", "cap20", "cap21"]),
        (("device=0:1", &["0:1"], None), &["0", "cap20", "cap21"]),
        ((&second, &["0:1"], None), &["0", "cap20", "cap21"]),
        (("\"device=0:0,1\"", &["0:0", "1"], None), &["0", "1", "cap10", "cap11"]),
    ];
    let name_of = |unit: &str| match unit.split_once(':') {
        Some((gpu, number)) => mig_uuid(gpu.parse().unwrap(), number.parse().unwrap()),
        None => uuid(unit.parse().unwrap()),
    };
    let gpu = |name, minor| (name, format!("/dev/nvidia{minor}"), 195, minor);
    let cap = |name, minor| (name, format!("/dev/nvidia-caps/nvidia-cap{minor}"), CAPS_MAJOR, minor);
    let nodes: [Node<'_>; 6] =
        [gpu("0", 0), gpu("1", 1), cap("cap10", 10), cap("cap11", 11), cap("cap20", 20), cap("cap21", 21)];
    for mode in MODES {
        for (snippet, open) in &snippets {
            cell(&lab, mode, snippet, &name_of, &nodes, open);
        }
    }
    assert_eq!(leased(&lab), 0);
}

fn refused() {
    let lab = Lab::new(3);
    lab.driver.hook("exit 0");
    lab.driver.cdi("etc/cdi/nvidia.yaml", 3);
    let snippets = [
        ("4", "4 GPUs are requested, but the host has 3"),
        ("free:4", "4 GPUs are requested, but the host has 3"),
        ("device=3", "there is no GPU `3`; the host has 0 (GPU-aaaaaaaa-"),
        ("device=0:1", "there is no GPU `0:1`"),
        ("device=MIG-01000000", "there is no GPU `MIG-01000000`"),
        ("device=GPU-99999999", "there is no GPU `GPU-99999999`"),
        ("all,driver=amd", "the driver `amd` is unknown"),
        ("1,device=0", "a count and device ids exclude each other"),
        ("device=nvidia.com/gpu=0", "`--device nvidia.com/gpu=0`"),
        ("\"device=0,2", "the quotes do not match"),
        ("all,capabilities=cuda", "`cuda` is not a driver capability"),
        ("0", "`0` is not a number of GPUs"),
        ("", "the value is empty"),
    ];
    for (mode, _) in MODES {
        for (asked, reported) in snippets {
            let answer =
                lab.run(&["run", "--rm", "--network", "none", "--gpu-mode", mode, "--gpus", asked, "box", "true"]);
            assert!(
                answer.code == 125 && answer.err.contains(reported) && answer.err.contains("hint:"),
                "{mode} {asked}: {} {}",
                answer.code,
                answer.err
            );
        }
    }
    for mode in ["hook", "native"] {
        let flags = ["run", "--rm", "--network", "none", "--gpu-mode", mode, "--gpus", "all,driver=cdi", "box", "true"];
        let answer = lab.run(&flags);
        let expected = format!("`driver=cdi` and `--gpu-mode {mode}` exclude each other");
        assert!(answer.code == 125 && answer.err.contains(&expected), "{mode}: {}", answer.err);
    }
    let by_cdi = lab.run(&["--verbose", "run", "--rm", "--network", "none", "--gpus", "all,driver=cdi", "box", "true"]);
    assert!(by_cdi.code == 0 && by_cdi.err.contains("by CDI"), "{}", by_cdi.err);
    let answer = lab.run(&["run", "--rm", "--network", "none", "--gpus", "1,\"options=a=b\"", "box", "true"]);
    assert!(answer.code == 0 && answer.err.contains("`options=` in `--gpus` has no effect"), "{}", answer.err);
    assert_eq!(lab.host.ok(&["ps", "-aq"]), "");
    assert_eq!(leased(&lab), 0);
}
