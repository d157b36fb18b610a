use std::path::Path;

use super::lease::Taker;
use super::nvidia::tests::fake::FakeDriver;
use super::*;
use crate::report::Report;

/// An AMD host: its driver is unknown to gpurun, and a CDI file describes its two GPUs. The nodes are stand-ins, whose
/// numbers have no driver.
struct World {
    host: FakeDriver,
    dir: tempfile::TempDir,
}

const AMD: &str = r#"{"cdiVersion":"0.6.0","kind":"amd.com/gpu","devices":[
    {"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/dri/card0","type":"c","major":226,"minor":900},{"path":"/dev/dri/renderD128","type":"c","major":226,"minor":901}]}},
    {"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/dri/card1","type":"c","major":226,"minor":902},{"path":"/dev/dri/renderD129","type":"c","major":226,"minor":903}]}},
    {"name":"all","containerEdits":{"deviceNodes":[{"path":"/dev/dri/renderD128","type":"c","major":226,"minor":901},{"path":"/dev/dri/renderD129","type":"c","major":226,"minor":903}]}}],
    "containerEdits":{"deviceNodes":[{"path":"/dev/kfd","type":"c","major":510,"minor":900}],"env":["ROCR=1"]}}"#;

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = FakeDriver::new(&dir.path().join("root"), 0);
        std::fs::remove_dir_all(host.root.join("proc/driver")).unwrap();
        host.write("etc/cdi/amd.json", AMD);
        Self { host, dir }
    }

    fn plan(&self, gpus: Option<&str>, devices: &[&str], id: &str) -> Result<Edits, GpuError> {
        let request: Option<GpuRequest> = gpus.map(|text| text.parse().unwrap());
        let taker = Taker { id: id.into(), name: id.into(), user: "ada".into(), now: 0 };
        let devices = devices.iter().map(|name| name.parse().unwrap()).collect();
        let requested = Requested { gpus: request.as_ref(), mode: GpuMode::Auto, share: false, devices };
        let leases = self.dir.path().join("gpus");
        let (root, image_env, env) = (&self.host.root, &[][..], &[][..]);
        let container =
            Container { root, leases: &leases, taker, cpus: None, image_env, env, step: None, early: None, dry: false };
        check(&requested, root)?;
        plan(&requested, &container, &mut |line| panic!("{line}"))
    }
}

fn paths(edits: &Edits) -> Vec<&str> {
    edits.devices.iter().map(|device| device.path.as_str()).collect()
}

fn nodes(list: &[opens::Node]) -> Vec<&str> {
    list.iter().map(|node| node.path.as_str()).collect()
}

#[test]
fn gpus_of_any_vendor_are_selected_by_cdi() {
    let world = World::new();
    for text in ["device=1,driver=cdi", "device=amd.com/gpu=1,driver=cdi"] {
        let edits = world.plan(Some(text), &[], "a").unwrap_or_else(|error| panic!("{text}: {}", Report::from(error)));
        assert_eq!(paths(&edits), ["/dev/kfd", "/dev/dri/card1", "/dev/dri/renderD129"], "{text}");
        assert!(edits.env.contains(&("ROCR".into(), "1".into())));
        assert!(edits.env.contains(&("NVIDIA_VISIBLE_DEVICES".into(), "void".into())), "no other vendor's GPUs");
        assert_eq!(edits.summary.as_deref(), Some("GPU 1 amd.com/gpu by CDI"));
        let opens = edits.opens.unwrap();
        assert_eq!(nodes(&opens.nodes), ["/dev/kfd", "/dev/dri/card1", "/dev/dri/renderD129"]);
        assert_eq!(nodes(&opens.others), ["/dev/dri/card0", "/dev/dri/renderD128"]);
    }
    let edits = world.plan(Some("all,driver=cdi"), &[], "a").unwrap();
    assert!(edits.default_env.is_empty(), "CUDA's variables are NVIDIA's");
    let listed = inventory(&world.host.root).unwrap();
    assert_eq!(listed.listing(), "0 (amd.com/gpu=0), 1 (amd.com/gpu=1)");
    assert_eq!(
        edits.given.iter().map(|given| given.name.as_str()).collect::<Vec<_>>(),
        ["amd.com/gpu=0", "amd.com/gpu=1"]
    );
    assert!(edits.opens.unwrap().others.is_empty());
}

#[test]
fn idle_gpus_of_any_vendor_are_leased() {
    let world = World::new();
    let index = |id: &str| world.plan(Some("1,driver=cdi"), &[], id).map(|edits| edits.given[0].index.clone());
    assert_eq!((index("a").unwrap(), index("b").unwrap()), ("0".into(), "1".into()));
    assert!(matches!(index("c").unwrap_err().reason, Reason::NoneIdle { free: 0, .. }));
    lease::release(&world.dir.path().join("gpus"), "a").unwrap();
    // A device that is requested by its CDI name is not idle either.
    let named = world.plan(None, &["amd.com/gpu=0"], "d").unwrap();
    assert_eq!(nodes(&named.opens.unwrap().others), ["/dev/dri/card1", "/dev/dri/renderD129"]);
    assert!(index("c").is_err());
}

#[test]
fn requests_that_cdi_cannot_fulfill_are_refused() {
    let world = World::new();
    let mut all = String::new();
    let mut add = |world: &World, gpus: &str| {
        let error = world.plan(Some(gpus), &[], "a").map(drop).unwrap_err();
        all += &format!("{}\n\n", Report::from(error)).replace(&world.host.root.display().to_string(), "");
    };
    for text in ["all", "device=2,driver=cdi", "3,driver=cdi", "device=other.com/gpu=0,driver=cdi", "all,driver=amd"] {
        add(&world, text);
    }
    world.host.write("etc/cdi/other.json", &AMD.replace("amd.com", "other.com"));
    add(&world, "all,driver=cdi");
    for file in ["amd", "other"] {
        std::fs::remove_file(world.host.root.join(format!("etc/cdi/{file}.json"))).unwrap();
    }
    add(&world, "all,driver=cdi");
    world.host.write("etc/cdi/amd.json", "{");
    add(&world, "all,driver=cdi");
    insta::assert_snapshot!(all);
    let findings = examine(&world.host.root);
    let broken = findings.iter().find(|finding| finding.level == Level::Advice).expect("a finding");
    assert!(broken.what.contains("etc/cdi/amd.json` is invalid") && broken.hint.is_some(), "{broken:?}");
}

#[test]
fn without_gpus_an_image_gets_none() {
    let taker = Taker { id: "a".into(), name: "a".into(), user: "a".into(), now: 0 };
    let nowhere = Path::new("/nonexistent");
    let requested = Requested { gpus: None, devices: Vec::new(), mode: GpuMode::Auto, share: false };
    let image = [("NVIDIA_VISIBLE_DEVICES".to_owned(), "all".to_owned())];
    let plan = |env| {
        let (taker, image_env) = (taker.clone(), &image[..]);
        let container = Container {
            root: nowhere,
            leases: nowhere,
            taker,
            cpus: None,
            image_env,
            env,
            step: None,
            early: None,
            dry: false,
        };
        super::plan(&requested, &container, &mut |line| panic!("{line}")).unwrap()
    };
    let void = vec![("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())];
    assert_eq!(plan(&[]), Edits { env: void.clone(), ..Edits::default() });
    let notices = vec!["`NVIDIA_VISIBLE_DEVICES=all` selects no GPU: use `--gpus all`".to_owned()];
    assert_eq!(plan(&image), Edits { env: void, notices, ..Edits::default() });
}

#[test]
fn a_cdi_device_of_any_vendor() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root for a device node");
        return;
    }
    let world = World::new();
    world.host.node("dev/thing0", 10, 229);
    world.host.write(
        "etc/cdi/vendor.json",
        r#"{"cdiVersion":"0.7.0","kind":"vendor.com/thing","devices":[{"name":"x","containerEdits":{"deviceNodes":[{"path":"/dev/thing","hostPath":"/dev/thing0"}],"env":["THING=1"],"additionalGids":[0,44]}}]}"#,
    );
    let edits = world.plan(None, &["vendor.com/thing=x"], "a").unwrap();
    assert_eq!(
        (edits.devices[0].path.as_str(), edits.devices[0].major, edits.devices[0].minor),
        ("/dev/thing", 10, 229)
    );
    assert_eq!(
        edits.env,
        [("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned()), ("THING".to_owned(), "1".to_owned())]
    );
    assert_eq!(edits.gids, [44]);
    assert!(!world.dir.path().join("gpus").exists(), "no GPU, no lease");
}
