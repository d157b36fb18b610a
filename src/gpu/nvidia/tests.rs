use std::path::PathBuf;

use super::nvml::{self, Unread};
use super::*;
use crate::gpu::edits::Edits;
use crate::gpu::error::GpuError;
use crate::gpu::lease::{self, Taker};
use crate::gpu::{ANNOTATION, Container, Requested, plan};
use crate::hook;
use crate::report::Report;
use crate::request::GpuMode;
use crate::units::CpuSet;
use fake::{FakeDriver, GIB, LIBRARY_DIR, gpu, mig_uuid, plain, uuid};

#[path = "../../../tests/fake-driver/driver.rs"]
pub(in crate::gpu) mod fake;

fn no_notice(line: String) {
    panic!("{line}");
}

/// Further parts of a request.
#[derive(Default)]
struct With {
    mode: GpuMode,
    share: bool,
    cpus: Option<CpuSet>,
    env: Vec<(String, String)>,
}

impl With {
    fn mode(mode: GpuMode) -> Self {
        Self { mode, ..Self::default() }
    }

    fn env(pairs: &[(&str, &str)]) -> Self {
        let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { env, ..Self::default() }
    }
}

/// A host, its leases, and the plans for containers on it.
struct World {
    driver: FakeDriver,
    dir: tempfile::TempDir,
}

impl World {
    fn new(gpus: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { driver: FakeDriver::new(&dir.path().join("root"), gpus), dir }
    }

    fn leases(&self) -> PathBuf {
        self.dir.path().join("gpus")
    }

    fn plan_with(&self, text: &str, id: &str, with: &With) -> Result<Edits, GpuError> {
        let request: GpuRequest = text.parse().unwrap();
        let taker = Taker { id: id.into(), name: format!("lab-{id}"), user: "ada".into(), now: 7_200_000_000_000 };
        let requested = Requested { gpus: Some(&request), devices: Vec::new(), mode: with.mode, share: with.share };
        let leases = self.leases();
        let (root, cpus) = (&self.driver.root, with.cpus.as_ref());
        let (image_env, env) = (&[][..], &with.env[..]);
        let container =
            Container { root, leases: &leases, taker, cpus, image_env, env, step: None, early: None, dry: false };
        plan(&requested, &container, &mut no_notice)
    }

    fn plan(&self, text: &str, id: &str) -> Result<Edits, GpuError> {
        self.plan_with(text, id, &With::default())
    }

    /// Indices of the assigned units.
    fn given(&self, text: &str, id: &str) -> String {
        let edits = self.plan(text, id).unwrap_or_else(|error| panic!("{text}: {}", Report::from(error)));
        edits.given.iter().map(|given| given.index.clone()).collect::<Vec<_>>().join(",")
    }

    fn release(&self, id: &str) {
        lease::release(&self.leases(), id).unwrap();
    }
}

#[test]
fn names_become_uuids_for_the_hook() {
    let world = World::new(3);
    world.driver.hook("exit 0");
    let cases = [
        ("all", [0, 1, 2].map(uuid).join(",")),
        ("2", [0, 1].map(uuid).join(",")),
        ("device=2,0", [2, 0].map(uuid).join(",")),
        ("device=gpu-bbbb", uuid(1)),
        ("device=00000000:3D:00.0", uuid(2)),
        ("device=0000:3c:00.0", uuid(1)),
    ];
    for (text, expected) in cases {
        let edits = world.plan(text, "a").unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(edits.env[0], ("NVIDIA_VISIBLE_DEVICES".into(), expected.clone()), "{text}");
        assert_eq!(edits.annotations, [(ANNOTATION.to_owned(), expected)]);
        assert!(edits.devices.is_empty() && edits.libraries.is_empty(), "the hook injects them");
    }
    let edits = world.plan("all,capabilities=compute,utility", "a").unwrap();
    assert_eq!(edits.env[1], ("NVIDIA_DRIVER_CAPABILITIES".into(), "compute,utility".into()));
    assert_eq!(
        edits.summary.unwrap(),
        "GPU 0 Stand-in A100, 1 Stand-in A100, 2 Stand-in A100 by NVIDIA's prestart hook (driver 550.54.15)"
    );
    assert_eq!(edits.default_env, [("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned())]);
    assert_eq!(edits.rlimits.len(), 2);
}

#[test]
fn missing_parts_of_the_host_are_named() {
    let mut out = String::new();
    let world = World::new(3);
    world.driver.hook("exit 0");
    let mut add = |error: GpuError| out += &format!("{}\n\n", Report::from(error));
    for text in ["4", "device=3", "device=GPU-2", "device=GPU-99999999", "device=0:1", "all,driver=amd"] {
        add(world.plan(text, "a").unwrap_err());
    }
    let hook = |world: &World| world.plan_with("all", "a", &With::mode(GpuMode::Hook)).unwrap_err();
    std::fs::remove_file(world.driver.root.join("usr/bin/nvidia-container-cli")).unwrap();
    add(hook(&world));
    std::fs::remove_file(world.driver.root.join("usr/bin/nvidia-container-runtime-hook")).unwrap();
    add(hook(&world));
    add(world.plan_with("all", "a", &With::mode(GpuMode::Cdi)).unwrap_err());
    world.driver.write("proc/devices", "Character devices:\n195 nvidia\n");
    add(world.plan("all", "a").unwrap_err());
    world
        .driver
        .write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Tue\n");
    add(world.plan("all", "a").unwrap_err());
    for entry in std::fs::read_dir(world.driver.root.join(LIBRARY_DIR)).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    add(world.plan("all", "a").unwrap_err());
    std::fs::remove_dir_all(world.driver.root.join("proc/driver/nvidia/gpus")).unwrap();
    add(world.plan("all", "a").unwrap_err());
    std::fs::remove_dir_all(world.driver.root.join("proc")).unwrap();
    add(world.plan("device=0", "a").unwrap_err());
    insta::assert_snapshot!(out);
}

#[test]
fn nvidias_hook_runs_once_and_from_its_own_directory() {
    let world = World::new(1);
    world.driver.hook("exit 0");
    let root = &world.driver.root;
    let edits = world.plan("all", "a").unwrap();
    assert_eq!(edits.hooks[0].command.path, root.join("usr/bin/nvidia-container-runtime-hook"));
    assert_eq!(edits.hooks[0].command.args, ["nvidia-container-runtime-hook", "prestart"]);
    std::fs::create_dir_all(root.join("usr/local/nvidia/toolkit")).unwrap();
    for name in ["nvidia-container-runtime-hook", "nvidia-container-cli"] {
        std::fs::rename(root.join("usr/bin").join(name), root.join("usr/local/nvidia/toolkit").join(name)).unwrap();
    }
    let elsewhere = world.plan("all", "a").unwrap();
    assert_eq!(elsewhere.hooks[0].command.path, root.join("usr/local/nvidia/toolkit/nvidia-container-runtime-hook"));
    let env = &elsewhere.hooks[0].command.env;
    assert!(env[0].ends_with(":/usr/local/nvidia/toolkit"), "{env:?}");

    // The built-in definition matches by the annotation and names a program that does not exist. It must neither run a
    // second time nor cause an error.
    let other = r#"{"version":"1.0.0","hook":{"path":"/bin/true"},"when":{"always":true},"stages":["prestart"]}"#;
    let mut definitions = hook::builtin();
    definitions.push(hook::Definition::parse("other.json", other).unwrap());
    let about = hook::Circumstances { annotations: &elsewhere.annotations, command: "sh", has_bind_mounts: false };
    let all = elsewhere.combine(hook::matching(&definitions, &about).unwrap());
    assert_eq!(all.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["50-nvidia-prestart", "other"]);
    assert_eq!(all[0], elsewhere.hooks[0]);
    assert_eq!(Edits::default().combine(hook::matching(&definitions, &about).unwrap()).len(), 1);
}

#[test]
fn a_driver_that_hides_uuids_is_used_by_index() {
    let world = World::new(0);
    world.driver.hook("exit 0");
    let text = "Model: \t\t Tesla T4\nGPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 0\n";
    world.driver.write("proc/driver/nvidia/gpus/0000:00:04.0/information", text);
    world.driver.nvml("fail 999");
    let edits = world.plan("1", "a").unwrap();
    assert_eq!(edits.env[0].1, "0");
    assert_eq!(edits.summary.unwrap(), "GPU 0 Tesla T4 by NVIDIA's prestart hook (driver 550.54.15)");
    assert!(edits.notices[1].contains("only the leases of gpurun's containers"), "{:?}", edits.notices);
    for name in ["GPU-1234", "MIG-1234", "0:1"] {
        assert_eq!(world.plan(&format!("device={name}"), "a").unwrap().env[0].1, name, "NVIDIA's tool decides");
    }
    let error = world.plan_with("device=0:1", "a", &With::mode(GpuMode::Native)).unwrap_err();
    let error = Report::from(error).to_string();
    assert!(error.contains("only NVML can resolve `0:1`") && error.contains("caused by: NVML"), "{error}");
}

#[test]
fn idle_gpus_are_taken_and_only_once() {
    let world = World::new(4);
    // GPU 0 computes. GPU 1 has memory in use by an unknown process.
    let busy =
        gpu(0, 10 * GIB, 97, false) + &gpu(1, GIB, 0, false) + &gpu(2, 0, 0, false) + &gpu(3, 100 << 20, 0, false);
    world.driver.nvml(&format!("driver 550.54.15\ncuda 12040\n{busy}process 0 4294967295 10737418240\n"));
    assert_eq!(world.given("1", "a"), "2");
    assert_eq!(world.given("1", "a"), "2", "its own lease of an earlier run does not count");
    assert_eq!(world.given("free:1", "b"), "3");
    let error = Report::from(world.plan("free:2", "c").unwrap_err());
    insta::assert_snapshot!(error);
    world.release("a");
    assert_eq!(world.given("1", "c"), "2");

    // An explicit request gets the GPU, with a notice that names the other container.
    let edits = world.plan("device=0,3", "d").unwrap();
    assert_eq!(edits.notices, ["GPU 3 is also held by container `lab-b` of ada for less than a second"]);
    assert_eq!(world.plan("all", "e").unwrap().notices.len(), 3);
    // A shared GPU is not idle either.
    world.release("b");
    assert!(matches!(world.plan("1", "f").unwrap_err().reason, Reason::NoneIdle { free: 0, .. }));
    world.release("d");
    world.release("e");
    assert_eq!(world.given("1", "f"), "3");
}

#[test]
fn sharing_selects_the_least_used_gpus_that_are_not_exclusive() {
    let world = World::new(3);
    let used = gpu(0, 30 * GIB, 50, false) + &gpu(1, 20 * GIB, 90, false) + &gpu(2, 0, 0, false);
    world.driver.nvml(&format!("driver 550.54.15\n{used}process 0 1 1\nprocess 1 1 1\n"));
    let shared = |count: &str, id: &str| {
        let edits = world.plan_with(count, id, &With { share: true, ..With::default() })?;
        Ok::<_, GpuError>(edits.given.iter().map(|given| given.index.clone()).collect::<Vec<_>>().join(","))
    };
    assert_eq!(shared("2", "a").unwrap(), "2,1");
    world.release("a");
    assert_eq!(world.given("1", "alone"), "2");
    assert_eq!(shared("2", "a").unwrap(), "1,0");
    let error = shared("3", "b").unwrap_err();
    assert!(matches!(error.reason, Reason::NoneShareable { free: 2, .. }));
    insta::assert_snapshot!(Report::from(error));
}

#[test]
fn gpus_near_the_cpus_and_near_each_other() {
    // Two GPUs per node: 0 and 1 on node 0, 2 and 3 on node 1.
    let world = World::new(4);
    for (node, cpus) in [(0, "0-7"), (1, "8-15")] {
        world.driver.write(&format!("sys/devices/system/node/node{node}/cpulist"), &format!("{cpus}\n"));
    }
    let near = |count: &str, cpus: &str| {
        let with = With { cpus: Some(cpus.parse().unwrap()), ..With::default() };
        let edits = world.plan_with(count, "a", &with).unwrap();
        edits.given.iter().map(|given| given.index.clone()).collect::<Vec<_>>().join(",")
    };
    assert_eq!(near("1", "9-10"), "2");
    assert_eq!(near("1", "3"), "0");
    assert_eq!(near("3", "9"), "2,3,0", "the far ones when the near ones do not suffice");
    world.given("device=0", "other");
    assert_eq!(world.given("2", "a"), "2,3", "one node has both");
}

#[test]
fn a_gpu_that_fell_off_the_bus_is_not_selected() {
    let world = World::new(3);
    // nvidia-smi numbers the remaining GPUs.
    let left = [0, 2]
        .map(|number| gpu(number, 0, 0, false).replacen(&format!("gpu {number}"), &format!("gpu {}", number / 2), 1));
    world.driver.nvml(&format!("driver 550.54.15\n{}", left.concat()));
    // The configuration space of a device that does not answer reads as ones.
    std::fs::write(world.driver.root.join("sys/bus/pci/devices/0000:3c:00.0/config"), [0xff; 64]).unwrap();
    let edits = world.plan("all", "a").unwrap();
    let given: Vec<(&str, String)> =
        edits.given.iter().map(|given| (given.index.as_str(), given.name.clone())).collect();
    assert_eq!(given, [("0", uuid(0)), ("1", uuid(2))]);
    assert_eq!(edits.notices, ["the GPU at 0000:3c:00.0 does not answer and is omitted"]);
    assert!(matches!(world.plan("3", "a").unwrap_err().reason, Reason::TooMany { there: 2, .. }));
    let lost = format!("device={}", uuid(1));
    assert!(matches!(world.plan(&lost, "a").unwrap_err().reason, Reason::NoSuchGpu { .. }));
}

#[test]
fn a_partitioned_gpu_is_selected_by_its_mig_devices() {
    let world = World::new(2);
    let migs = format!("mig 0 {} 1 0 {} 0\nmig 0 {} 2 0 {} 0\n", mig_uuid(0, 0), 10 * GIB, mig_uuid(0, 1), 10 * GIB);
    let text = format!("driver 550.54.15\n{}{migs}{}", gpu(0, 0, 0, true), gpu(1, 0, 0, false));
    world.driver.nvml(&format!("{text}process 0:1:0 4242 1000\n"));
    world.driver.mig_minors(0);
    assert_eq!(world.given("all", "a"), "0:0,0:1,1");
    world.release("a");
    assert_eq!(world.given("1", "a"), "0:1", "the other one computes");
    for (text, expected) in [
        ("device=0", "0:0,0:1"),
        ("device=0:1", "0:1"),
        ("device=MIG-01000000", "0:1"),
        ("device=MIG-GPU-aaaaaaaa-0000-0000-0000-000000000000/1/0", "0:0"),
    ] {
        assert_eq!(world.given(text, "b"), expected, "{text}");
    }
    let edits = world.plan("device=0:1", "b").unwrap();
    let nodes: Vec<(&str, u32, u32)> =
        edits.devices.iter().map(|device| (device.path.as_str(), device.major, device.minor)).collect();
    assert!(nodes.contains(&("/dev/nvidia0", 195, 0)), "{nodes:?}");
    assert!(
        nodes.contains(&("/dev/nvidia-caps/nvidia-cap20", 510, 20))
            && nodes.contains(&("/dev/nvidia-caps/nvidia-cap21", 510, 21))
    );
    assert!(
        !nodes.iter().any(|(path, ..)| ["/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap10"].contains(path)),
        "{nodes:?}"
    );
    assert_eq!(edits.env[0].1, mig_uuid(0, 1));
    assert_eq!(edits.masked, ["/proc/driver/nvidia/gpus/0000:3c:00.0"]);
}

#[test]
fn native_injection_adds_the_drivers_own_files_only() {
    let world = World::new(2);
    let names = |edits: &Edits| -> Vec<String> {
        edits
            .libraries
            .iter()
            .map(|library| format!("{} {}", library.file, library.names.iter().cloned().collect::<Vec<_>>().join(" ")))
            .collect()
    };
    let edits = world.plan("device=1", "a").unwrap();
    assert_eq!(
        names(&edits),
        [
            "libcuda.so.550.54.15 libcuda.so libcuda.so.1",
            "libnvidia-ml.so.550.54.15 libnvidia-ml.so.1",
            "libnvidia-nvvm.so.550.54.15 libnvidia-nvvm.so.4",
            "libnvidia-ptxjitcompiler.so.550.54.15 libnvidia-ptxjitcompiler.so.1",
        ]
    );
    let nodes: Vec<String> =
        edits.devices.iter().map(|device| format!("{} {}:{}", device.path, device.major, device.minor)).collect();
    assert_eq!(
        nodes,
        ["/dev/nvidiactl 195:255", "/dev/nvidia-uvm 511:0", "/dev/nvidia-uvm-tools 511:1", "/dev/nvidia1 195:1"]
    );
    let mounts: Vec<String> = edits.mounts.iter().map(|mount| mount.destination.display().to_string()).collect();
    assert_eq!(mounts, ["/usr/bin/nvidia-cuda-mps-control", "/usr/bin/nvidia-smi"]);
    assert_eq!(edits.masked, ["/proc/driver/nvidia/gpus/0000:3b:00.0"]);
    assert_eq!(edits.hooks.len(), 1);

    let utility = world.plan("all,capabilities=utility", "a").unwrap();
    assert_eq!(names(&utility), ["libnvidia-ml.so.550.54.15 libnvidia-ml.so.1"]);
    assert!(!utility.devices.iter().any(|device| device.path.contains("uvm")));
    // The image's capabilities count if the caller sets none.
    let all = world.plan_with("all", "a", &With::env(&[("NVIDIA_DRIVER_CAPABILITIES", "all")])).unwrap();
    assert_eq!(all.libraries.len(), 7);
    assert!(all.devices.iter().any(|device| device.path == "/dev/nvidia-modeset"));
}

#[test]
fn a_driver_outside_usr_is_found_without_a_cache() {
    let world = World::new(1);
    let root = &world.driver.root;
    let _ = std::fs::remove_file(root.join("etc/ld.so.cache"));
    std::fs::create_dir_all(root.join("usr/local/nvidia")).unwrap();
    std::fs::rename(root.join(LIBRARY_DIR), root.join("usr/local/nvidia/lib64")).unwrap();
    std::fs::rename(root.join("usr/bin"), root.join("usr/local/nvidia/bin")).unwrap();
    // As seen on such a host: a script in PATH that runs the driver's program. In a container it would find nothing.
    world.driver.program("nvidia-smi", "exec /usr/local/nvidia/bin/nvidia-smi");
    world.driver.write("usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json", "{}");
    world.driver.write("usr/local/nvidia/firmware/nvidia/550.54.15/gsp.bin", "");
    let edits = world.plan("all,capabilities=all", "a").unwrap();
    assert_eq!(edits.libraries.len(), 7);
    assert!(edits.libraries.iter().all(|library| library.source.starts_with(root.join("usr/local/nvidia/lib64"))));
    let mounts: Vec<String> = edits
        .mounts
        .iter()
        .map(|mount| {
            let source = mount.source.strip_prefix(root).unwrap();
            format!("{} at {}", source.display(), mount.destination.display())
        })
        .collect();
    assert_eq!(
        mounts,
        [
            "usr/local/nvidia/firmware/nvidia/550.54.15/gsp.bin at /lib/firmware/nvidia/550.54.15/gsp.bin",
            "usr/local/nvidia/bin/nvidia-cuda-mps-control at /usr/bin/nvidia-cuda-mps-control",
            "usr/local/nvidia/bin/nvidia-smi at /usr/bin/nvidia-smi",
            "usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json at /usr/share/vulkan/icd.d/nvidia_icd.json",
        ]
    );
    assert!(edits.notices.is_empty(), "NVML was found there, too");
}

#[test]
fn driver_requirements_of_the_image_are_checked() {
    let world = World::new(1);
    let error = |env: &[(&str, &str)]| {
        world.plan_with("all", "a", &With::env(env)).err().map(|error| Report::from(error).to_string())
    };
    assert_eq!(error(&[("NVIDIA_REQUIRE_CUDA", "cuda>=12.4")]), None);
    assert_eq!(error(&[("CUDA_VERSION", "12.9.0"), ("NVIDIA_DISABLE_REQUIRE", "1")]), None);
    insta::assert_snapshot!(error(&[("CUDA_VERSION", "12.9.0")]).unwrap());
    assert!(lease::living(&world.leases()).unwrap().iter().all(|lease| !lease.exclusive));
}

#[test]
fn cdi_by_uuid_and_the_first_mode_that_works() {
    let world = World::new(2);
    let by = |edits: &Edits| edits.summary.clone().unwrap();
    assert!(by(&world.plan("all", "a").unwrap()).contains("by native injection"));
    world.driver.cdi("etc/cdi/nvidia.yaml", 2);
    let edits = world.plan("device=0", "a").unwrap();
    assert!(by(&edits).contains("by CDI"));
    assert_eq!(edits.env, [("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())]);
    let zero = edits.devices.iter().find(|device| device.path == "/dev/nvidia0").unwrap();
    assert_eq!((zero.major, zero.minor, zero.mode), (195, 0, 0o666), "a minor that is left out is 0");
    assert!(!edits.devices.iter().any(|device| device.path == "/dev/nvidia1"));
    world
        .driver
        .write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Tue\n");
    let stale = world.plan_with("all", "a", &With::mode(GpuMode::Cdi)).unwrap_err();
    let root = world.driver.root.display().to_string();
    insta::assert_snapshot!(Report::from(stale).to_string().replace(&root, ""));
    world.driver.write(
        "proc/driver/nvidia/version",
        &format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue\n", fake::VERSION),
    );
    std::fs::remove_file(world.driver.root.join("usr/bin/nvidia-cdi-hook")).unwrap();
    let fallback = by(&world.plan("all", "a").unwrap());
    assert!(
        fallback.contains("by native injection") && fallback.contains("stale") && fallback.contains("nvidia-cdi-hook"),
        "{fallback}"
    );
    world.driver.hook("exit 0");
    assert!(by(&world.plan("all", "a").unwrap()).contains("prestart hook"));
}

#[test]
fn failures_of_nvml_are_distinguished() {
    let world = World::new(1);
    let read = || nvml::read(driver::nvml_library(&world.driver.root).as_deref(), None, &mut no_notice);
    let readings = read().unwrap();
    assert_eq!((readings.cuda, readings.driver.as_str(), readings.gpus.len()), (Some((12, 4)), fake::VERSION, 1));
    let gpu = &readings.gpus[0];
    assert_eq!(
        (gpu.compute_capability, gpu.brand.as_deref(), gpu.persistence),
        (Some((8, 0)), Some("tesla"), Some(true))
    );
    world.driver.nvml("fail 18");
    assert!(matches!(read(), Err(Unread::Mismatch { .. })));
    world.driver.nvml("fail 9");
    assert!(matches!(read(), Err(Unread::Refused { error, .. }) if error.contains("driver")));
    assert_eq!(nvml::read(None, None, &mut no_notice), Err(Unread::NoLibrary));
    world.driver.nvml(&plain(1));
    read().unwrap();
}

/// NVML's stand-in fails, so that a query of it would be an error or a notice.
#[test]
fn named_gpus_need_no_nvml() {
    let world = World::new(2);
    world.driver.nvml("fail 999");
    for text in ["all", "device=1", &format!("device={}", uuid(0)), "device=0000:3c:00.0"] {
        let request: GpuRequest = text.parse().unwrap();
        let notice: Notice<'_> = &mut no_notice;
        let gpus = Nvidia.read(&world.driver.root, Detail::Names, None, notice).unwrap();
        assert_eq!(gpus.inventory().unread, None, "{text}");
        let with = With::env(&[("NVIDIA_REQUIRE_CUDA", "cuda>=12.4 brand=tesla,driver>=470,driver<471")]);
        let edits = world.plan_with(&request.to_string(), "a", &with).unwrap();
        assert!(edits.given.iter().all(|given| given.name.starts_with("GPU-")), "{text}");
    }
    // MIG devices are only known to NVML.
    world.driver.mig_minors(0);
    let gpus = Nvidia.read(&world.driver.root, Detail::Names, None, &mut no_notice).unwrap();
    assert!(gpus.inventory().unread.is_some());
}
