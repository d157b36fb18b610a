//! A tree that looks like a host with NVIDIA's driver: /proc, /dev (real nodes, for root), libraries, an ld.so.cache where `ldconfig -r` may run,
//! programs, and a stand-in for NVML (nvml.c). Shared by the unit tests and the end-to-end tests.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub const VERSION: &str = "550.54.15";
pub const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
pub const GIB: u64 = 1 << 30;
/// Dynamic majors, as /proc/devices of the tree says.
pub const UVM_MAJOR: u32 = 511;
pub const CAPS_MAJOR: u32 = 510;

/// Libraries of the driver: name without version, SONAME.
const LIBRARIES: [(&str, &str); 6] = [
    ("libcuda", "libcuda.so.1"),
    ("libnvidia-ptxjitcompiler", "libnvidia-ptxjitcompiler.so.1"),
    ("libnvidia-nvvm", "libnvidia-nvvm.so.4"),
    ("libnvidia-encode", "libnvidia-encode.so.1"),
    ("libnvidia-glcore", "libnvidia-glcore.so.550.54.15"),
    ("libGLX_nvidia", "libGLX_nvidia.so.0"),
];
const PROGRAMS: [&str; 2] = ["nvidia-smi", "nvidia-cuda-mps-control"];

/// A tree and how it is changed.
pub struct FakeDriver {
    pub root: PathBuf,
}

/// The UUID of the GPU with a number.
pub fn uuid(number: usize) -> String {
    let digit = char::from(b'a' + number as u8).to_string();
    format!("GPU-{}-0000-0000-0000-000000000000", digit.repeat(8))
}

pub fn bus(number: usize) -> String {
    format!("0000:{:02x}:00.0", 0x3b + number)
}

/// The UUID of a MIG device.
pub fn mig_uuid(gpu: usize, number: usize) -> String {
    format!("MIG-{gpu}{number}000000-0000-5000-8000-000000000000")
}

impl FakeDriver {
    /// A driver with so many GPUs, all of them idle.
    pub fn new(root: &Path, gpus: usize) -> Self {
        let driver = Self { root: root.to_path_buf() };
        let version =
            format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Tue Mar  5 22:23:56 UTC 2024\n");
        driver.write("proc/driver/nvidia/version", &version);
        driver.write("proc/driver/nvidia/params", "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\n");
        let devices = format!(
            "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n{CAPS_MAJOR} nvidia-caps\n{UVM_MAJOR} nvidia-uvm\n\nBlock devices:\n  7 loop\n"
        );
        driver.write("proc/devices", &devices);
        driver.write("etc/ld.so.conf", &format!("/{LIBRARY_DIR}\n"));
        for number in 0..gpus {
            let text = format!(
                "Model: \t\t Stand-in A100\nIRQ:   \t\t 1\nGPU UUID: \t {}\nDevice Minor: \t {number}\n",
                uuid(number)
            );
            driver.write(&format!("proc/driver/nvidia/gpus/{}/information", bus(number)), &text);
            driver.write(&format!("sys/bus/pci/devices/{}/numa_node", bus(number)), &format!("{}\n", number / 2));
            driver.node(&format!("dev/nvidia{number}"), 195, number as u32);
        }
        for (name, major, minor) in [
            ("nvidiactl", 195, 255),
            ("nvidia-modeset", 195, 254),
            ("nvidia-uvm", UVM_MAJOR, 0),
            ("nvidia-uvm-tools", UVM_MAJOR, 1),
        ] {
            driver.node(&format!("dev/{name}"), major, minor);
        }
        driver.libraries();
        driver.nvml(&plain(gpus));
        driver
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A device node, where this process may make one; a file otherwise.
    pub fn node(&self, path: &str, major: u32, minor: u32) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        let made = Command::new("mknod")
            .arg(&path)
            .args(["-m", "666", "c"])
            .args([major.to_string(), minor.to_string()])
            .output();
        if !made.is_ok_and(|made| made.status.success()) {
            fs::write(&path, "").unwrap();
        }
    }

    pub fn program(&self, name: &str, script: &str) {
        let path = self.root.join("usr/bin").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// NVIDIA's prestart hook and the tool that it needs (hook.sh, cli.sh), as the real ones behave. `body` is a script that runs before.
    pub fn hook(&self, body: &str) {
        self.write("hook-body", &format!("{body}\n"));
        self.toolkit("usr/bin");
    }

    /// The hook and its tool in a directory of the tree.
    pub fn toolkit(&self, dir: &str) {
        let scripts = [
            ("nvidia-container-runtime-hook", include_str!("hook.sh")),
            ("nvidia-container-cli", include_str!("cli.sh")),
        ];
        for (name, script) in scripts {
            let script = script
                .replace("@ROOT@", &self.root.display().to_string())
                .replace("@LIBRARIES@", LIBRARY_DIR)
                .replace("@VERSION@", VERSION);
            let path = format!("{dir}/{name}");
            self.write(&path, &script);
            fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// The toolkit's configuration.
    #[allow(dead_code, reason = "not every test that shares this file has a use for it")]
    pub fn config(&self, text: &str) {
        self.write("etc/nvidia-container-runtime/config.toml", text);
    }

    /// From now on the tool reports success for something else (see cli.sh).
    #[allow(dead_code, reason = "not every test that shares this file has a use for it")]
    pub fn lie(&self, about: &str) {
        self.write("lie", about);
    }

    /// What the stand-in of NVML says from now on (see nvml.c).
    pub fn nvml(&self, text: &str) {
        self.write(&format!("{LIBRARY_DIR}/fake-nvml"), text);
    }

    /// Two MIG devices on a GPU, besides what NVML says of it.
    pub fn mig_minors(&self, gpu: usize) {
        let mut text = String::from("config 1\nmonitor 2\n");
        for (number, gi) in [(0, 1), (1, 2)] {
            let minor = 10 * (number + 1);
            text += &format!("gpu{gpu}/gi{gi}/access {minor}\ngpu{gpu}/gi{gi}/ci0/access {}\n", minor + 1);
            self.node(&format!("dev/nvidia-caps/nvidia-cap{minor}"), CAPS_MAJOR, minor);
            self.node(&format!("dev/nvidia-caps/nvidia-cap{}", minor + 1), CAPS_MAJOR, minor + 1);
            for minor in [minor, minor + 1] {
                // As the driver makes them.
                let path = self.root.join(format!("dev/nvidia-caps/nvidia-cap{minor}"));
                fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
            }
        }
        self.write("proc/driver/nvidia-caps/mig-minors", &text);
        for gi in [1, 2] {
            let text = format!("DeviceFileMinor: {}\nDeviceFileMode: 292\nDeviceFileModify: 1\n", 10 * gi);
            self.write(&format!("proc/driver/nvidia/capabilities/gpu{gpu}/mig/gi{gi}/access"), &text);
        }
    }

    /// NVIDIA's CDI file, as `nvidia-ctk cdi generate` writes it: its shape, not its whole length.
    pub fn cdi(&self, path: &str, gpus: usize) {
        let hook = "/usr/bin/nvidia-cdi-hook";
        self.program("nvidia-cdi-hook", "cat >/dev/null");
        let mut text = String::from("---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n");
        let names = (0..gpus).flat_map(|number| [(number, number.to_string()), (number, uuid(number))]);
        for (number, name) in names {
            let minor = if number == 0 { String::new() } else { format!("\n            minor: {number}") };
            text += &format!(
                "    - name: \"{name}\"\n      containerEdits:\n        deviceNodes:\n          - path: /dev/nvidia{number}\n            major: 195{minor}\n            fileMode: 438\n            permissions: rwm\n"
            );
        }
        text += "containerEdits:\n    env:\n        - NVIDIA_VISIBLE_DEVICES=void\n    deviceNodes:\n";
        for (path, major, minor) in
            [("nvidiactl", 195, 255), ("nvidia-uvm", UVM_MAJOR, 0), ("nvidia-uvm-tools", UVM_MAJOR, 1)]
        {
            let minor = if minor == 0 { String::new() } else { format!("\n          minor: {minor}") };
            text += &format!(
                "        - path: /dev/{path}\n          major: {major}{minor}\n          fileMode: 438\n          permissions: rwm\n"
            );
        }
        text += &format!(
            "    mounts:\n        - hostPath: /{LIBRARY_DIR}/libcuda.so.{VERSION}\n          containerPath: /{LIBRARY_DIR}/libcuda.so.{VERSION}\n          options: [ro, nosuid, nodev, rbind, rprivate]\n        - hostPath: /usr/bin/nvidia-smi\n          containerPath: /usr/bin/nvidia-smi\n          options:\n            - ro\n            - nosuid\n            - nodev\n            - rbind\n            - rprivate\n"
        );
        text += &format!(
            "    hooks:\n        - hookName: createContainer\n          path: {hook}\n          args:\n            - nvidia-cdi-hook\n            - create-symlinks\n            - --link\n            - libcuda.so.1::/{LIBRARY_DIR}/libcuda.so\n          env:\n            - NVIDIA_CTK_DEBUG=false\n"
        );
        self.write(path, &text);
    }

    /// The same in JSON, for a host whose GPU 0 is divided in two (see [`Self::mig_minors`]) and whose GPU 1 is whole.
    #[allow(dead_code, reason = "the unit tests share this file")]
    pub fn cdi_of_divided(&self, path: &str) {
        let nodes = |list: &[(&str, u32)]| -> String {
            let one = |(path, major): &(&str, u32)| {
                format!(r#"{{"path":"/dev/{path}","major":{major},"minor":{}}}"#, minor_of(path))
            };
            list.iter().map(one).collect::<Vec<_>>().join(",")
        };
        let device = |name: &str, list: &[(&str, u32)]| {
            format!(r#"{{"name":"{name}","containerEdits":{{"deviceNodes":[{}]}}}}"#, nodes(list))
        };
        let mut devices = vec![device("1", &[("nvidia1", 195)]), device(&uuid(1), &[("nvidia1", 195)])];
        for (number, caps) in [
            (0, ["nvidia-caps/nvidia-cap10", "nvidia-caps/nvidia-cap11"]),
            (1, ["nvidia-caps/nvidia-cap20", "nvidia-caps/nvidia-cap21"]),
        ] {
            let list = [("nvidia0", 195), (caps[0], CAPS_MAJOR), (caps[1], CAPS_MAJOR)];
            devices.extend([device(&format!("0:{number}"), &list), device(&mig_uuid(0, number), &list)]);
        }
        let common = nodes(&[("nvidiactl", 195), ("nvidia-uvm", UVM_MAJOR)]);
        let text = format!(
            r#"{{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{}],"containerEdits":{{"env":["NVIDIA_VISIBLE_DEVICES=void"],"deviceNodes":[{common}]}}}}"#,
            devices.join(",")
        );
        self.write(path, &text);
    }

    fn libraries(&self) {
        let dir = self.root.join(LIBRARY_DIR);
        fs::create_dir_all(&dir).unwrap();
        let built = built();
        for (name, soname) in LIBRARIES {
            let file = format!("{name}.so.{VERSION}");
            fs::copy(built.join(name), dir.join(&file)).unwrap();
            if soname != file {
                symlink(&file, dir.join(soname)).unwrap();
            }
        }
        fs::copy(built.join("libnvidia-ml"), dir.join(format!("libnvidia-ml.so.{VERSION}"))).unwrap();
        symlink(format!("libnvidia-ml.so.{VERSION}"), dir.join("libnvidia-ml.so.1")).unwrap();
        // Left by the last upgrade, and one that is GLVND's: neither is the driver's.
        fs::write(dir.join("libcuda.so.535.183.01"), "old").unwrap();
        fs::write(dir.join("libGL.so.1.7.0"), "glvnd").unwrap();
        for name in PROGRAMS {
            self.program(name, &format!("echo {name} of {VERSION}"));
        }
        // Only root may; without it, the directories are searched.
        let _ = Command::new("/sbin/ldconfig").arg("-r").arg(&self.root).output();
    }
}

/// The number that ends a node's name; the control nodes have none.
fn minor_of(path: &str) -> u32 {
    match path {
        "nvidiactl" => 255,
        "nvidia-uvm" => 0,
        _ => path[path.trim_end_matches(|c: char| c.is_ascii_digit()).len()..].parse().unwrap(),
    }
}

/// What NVML says of idle GPUs of 80 GiB.
pub fn plain(gpus: usize) -> String {
    let mut text = format!("driver {VERSION}\ncuda 12040\n");
    for number in 0..gpus {
        text += &gpu(number, 0, 0, false);
    }
    text
}

/// A line about one GPU: bytes in use, percent of utilisation, whether it is divided.
pub fn gpu(number: usize, used: u64, utilization: u32, mig: bool) -> String {
    let (uuid, bus) = (uuid(number), bus(number).to_uppercase());
    format!("gpu {number} {uuid} 0000{bus} {number} {} {used} {utilization} 1 {}\n", 80 * GIB, u32::from(mig))
}

/// What the script `build` compiles; GPURUN_FAKE_DRIVER says where it lies on a host without a compiler. It stays beside the test programs, for the
/// next run too: its name tells what it was made of, and it is whole once it has that name.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(dir) = std::env::var_os("GPURUN_FAKE_DRIVER") {
            return PathBuf::from(dir);
        }
        let mut hash = DefaultHasher::new();
        [include_str!("build"), include_str!("nvml.c"), include_str!("load.c")].hash(&mut hash);
        let programs = std::env::current_exe().unwrap();
        let dir = programs.with_file_name(format!("fake-driver-{:016x}", hash.finish()));
        if dir.exists() {
            return dir;
        }
        let making = dir.with_extension(std::process::id().to_string());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-driver/build");
        let output = Command::new(script).arg(&making).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Another test program may have been quicker.
        if fs::rename(&making, &dir).is_err() {
            fs::remove_dir_all(&making).unwrap();
        }
        assert!(dir.join("load").exists());
        dir
    })
}
