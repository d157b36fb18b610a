//! What is wrong with a host's way to its GPUs: looked at by [`Facts::read`], judged by [`findings`], which is pure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cdi::{self, CdiError};
use super::host::inside;
use super::nvml::{Readings, Unread};
use super::{Inventory, driver, require, toolkit};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Fine,
    /// It works, and would better with a little work.
    Advice,
    /// Containers with GPUs do not work, or not all of them.
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// One sentence, without a final period.
    pub what: String,
    /// A way out that works when pasted, where there is one.
    pub hint: Option<String>,
}

/// What was seen.
#[derive(Debug)]
pub struct Facts {
    /// NVIDIA's display and compute devices on the PCI bus.
    pub on_bus: usize,
    /// Whether the kernel's own driver for them is loaded.
    pub nouveau: bool,
    pub inventory: Option<Inventory>,
    /// Of the libraries on the disk.
    pub libraries: Option<String>,
    /// Device nodes of the host that are missing.
    pub missing_nodes: Vec<PathBuf>,
    pub hook: Result<PathBuf, toolkit::Missing>,
    /// Version of NVIDIA's container toolkit, where it is installed and tells.
    pub toolkit: Option<String>,
    /// How many devices NVIDIA's CDI files describe.
    pub cdi_devices: usize,
    pub cdi: Result<(), CdiError>,
    pub cdi_broken: Vec<CdiError>,
}

/// The oldest toolkit that nothing is known against.
const TOOLKIT: &str = "1.19.1";
/// Holes through which an image gets at its host, and the toolkit that closed them.
const HOLES: [(&str, &str); 3] = [
    ("1.16.2", "CVE-2024-0132 and CVE-2024-0133"),
    ("1.17.4", "CVE-2025-23359"),
    ("1.17.8", "CVE-2025-23266 and CVE-2025-23267"),
];
/// A tool that does not tell its version within this is not asked again.
const PATIENCE: Duration = Duration::from_secs(10);

impl Facts {
    /// Looks at the host whose driver is below `root`.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let inventory = Inventory::read(root).ok();
        let registry = cdi::Registry::read(root);
        let driver = inventory.as_ref().map(|inventory| inventory.host.driver.clone());
        let text = |path: &str| std::fs::read_to_string(inside(root, Path::new(path))).unwrap_or_default();
        Self {
            on_bus: on_bus(root),
            nouveau: text("/proc/modules").lines().any(|line| line.starts_with("nouveau ")),
            libraries: driver::library_version(root),
            missing_nodes: inventory.as_ref().map(|inventory| missing_nodes(root, inventory)).unwrap_or_default(),
            hook: toolkit::command(root).map(|command| command.path),
            toolkit: toolkit_version(root),
            cdi_devices: registry.devices(cdi::NVIDIA).len(),
            cdi: registry.check(cdi::NVIDIA, driver.as_deref()),
            cdi_broken: registry.broken().to_vec(),
            inventory,
        }
    }
}

/// NVIDIA is vendor 0x10de; class 0x03 is a display, VGA or not.
fn on_bus(root: &Path) -> usize {
    let devices = std::fs::read_dir(inside(root, Path::new("/sys/bus/pci/devices"))).into_iter().flatten().flatten();
    let is = |dir: &Path, file: &str, start: &str| {
        std::fs::read_to_string(dir.join(file)).is_ok_and(|text| text.starts_with(start))
    };
    devices.filter(|entry| is(&entry.path(), "vendor", "0x10de") && is(&entry.path(), "class", "0x03")).count()
}

fn missing_nodes(root: &Path, inventory: &Inventory) -> Vec<PathBuf> {
    let gpus = inventory.host.gpus.iter().filter_map(|gpu| Some(format!("/dev/nvidia{}", gpu.minor?)));
    let uvm = inventory.host.majors.contains_key("nvidia-uvm").then(|| "/dev/nvidia-uvm".to_owned());
    let all = gpus.chain(["/dev/nvidiactl".to_owned()]).chain(uvm).map(PathBuf::from);
    all.filter(|path| !inside(root, path).exists()).collect()
}

/// The first word like `1.17.8` of what one of the toolkit's programs says.
fn toolkit_version(root: &Path) -> Option<String> {
    let program = ["nvidia-ctk", "nvidia-container-cli"].iter().find_map(|name| toolkit::find(root, name))?;
    let mut child = Command::new(inside(root, &program))
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut pipe = child.stdout.take()?;
    let mut text = Vec::new();
    if !super::nvml::read_until(&mut pipe, &mut text, Instant::now() + PATIENCE) {
        let _ = child.kill();
    }
    let _ = child.wait();
    let text = String::from_utf8_lossy(&text).into_owned();
    let is_version = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// What a person should know, the worst first.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = Findings::default();
    match &facts.inventory {
        None => all.without_driver(facts),
        Some(inventory) => {
            all.driver(facts, inventory);
            all.gpus(inventory);
            all.ways(facts);
        }
    }
    all.0.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    all.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, what: impl Into<String>, hint: Option<&str>) {
        self.0.push(Finding { level, what: what.into(), hint: hint.map(str::to_owned) });
    }

    fn without_driver(&mut self, facts: &Facts) {
        match (facts.on_bus, facts.nouveau) {
            (0, _) => self.add(Level::Fine, "this host has no NVIDIA GPU", None),
            (count, true) => self.add(
                Level::Problem,
                format!("{count} NVIDIA GPUs are driven by the kernel's `nouveau`, which cannot compute"),
                Some("install NVIDIA's driver, which takes `nouveau` off, and reboot"),
            ),
            (count, false) => self.add(
                Level::Problem,
                format!("{count} NVIDIA GPUs are on the PCI bus, but their driver is not loaded"),
                Some("`sudo modprobe nvidia`, or install NVIDIA's driver; `dmesg | grep -i nvrm` tells why it does not load"),
            ),
        }
    }

    fn driver(&mut self, facts: &Facts, inventory: &Inventory) {
        let module = &inventory.host.driver;
        match &facts.libraries {
            None => self.add(
                Level::Problem,
                format!("the driver {module} is loaded, but its libraries are not found"),
                Some("install the driver's user-space half of the same version, then `sudo ldconfig`"),
            ),
            Some(libraries) if libraries != module => self.add(
                Level::Problem,
                format!("the loaded driver is {module}, the libraries on the disk are {libraries}: it was upgraded without a reboot"),
                Some("reboot"),
            ),
            Some(_) => {}
        }
        if !inventory.host.majors.contains_key("nvidia-uvm") {
            let hint = Some(
                "`sudo modprobe nvidia_uvm`, or `sudo nvidia-modprobe -u`; at boot: `echo nvidia_uvm | sudo tee /etc/modules-load.d/nvidia-uvm.conf`",
            );
            self.add(Level::Problem, "the kernel module `nvidia_uvm`, which CUDA needs, is not loaded", hint);
        }
        if !facts.missing_nodes.is_empty() {
            let list = facts.missing_nodes.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>();
            let hint = Some("`sudo nvidia-modprobe -c 0 -u` makes them, and so does `sudo nvidia-smi`");
            self.add(Level::Problem, format!("device nodes are missing: {}", list.join(", ")), hint);
        }
        match &inventory.readings {
            Ok(readings) => self.readings(inventory, readings),
            // Said already, with more.
            Err(Unread::NoLibrary | Unread::Mismatch { .. }) if facts.libraries.as_ref() != Some(module) => {}
            Err(unread) => {
                self.add(
                    Level::Problem,
                    unread.to_string(),
                    Some("see what `nvidia-smi` says; `dmesg | grep -i -e nvrm -e xid` has the driver's own words"),
                );
            }
        }
    }

    fn readings(&mut self, inventory: &Inventory, readings: &Readings) {
        let cuda = readings.cuda.map(|(major, minor)| format!(", CUDA up to {major}.{minor}")).unwrap_or_default();
        let count = readings.gpus.len();
        let gpus = if count == 1 { "1 GPU".to_owned() } else { format!("{count} GPUs") };
        self.add(Level::Fine, format!("driver {}{cuda}, {gpus}", readings.driver), None);
        for gpu in inventory.host.gpus.iter().filter(|gpu| !readings.gpus.iter().any(|reading| gpu.is_at(&reading.bus)))
        {
            let what = format!("the GPU at {} is known to the kernel's driver, but does not answer", gpu.bus);
            self.add(Level::Problem, what, Some("`dmesg | grep -i xid` tells why; often only a reboot brings it back"));
        }
        let off: Vec<String> =
            (0..count).filter(|at| readings.gpus[*at].persistence == Some(false)).map(|at| at.to_string()).collect();
        if !off.is_empty() {
            let what = format!(
                "persistence mode is off (GPU {}): whenever nobody uses a GPU it is shut down, and starting it again takes seconds",
                off.join(", ")
            );
            self.add(Level::Advice, what, Some("`sudo nvidia-smi -pm 1`, or enable the service `nvidia-persistenced`"));
        }
    }

    fn gpus(&mut self, inventory: &Inventory) {
        let Ok(readings) = &inventory.readings else { return };
        for (index, gpu) in readings.gpus.iter().enumerate().filter(|(_, gpu)| gpu.mig_enabled && gpu.migs.is_empty()) {
            let what = format!("GPU {index} ({}) is in MIG mode and has no MIG device: nobody can use it", gpu.uuid);
            self.add(Level::Problem, what, Some("make some (`sudo nvidia-smi mig -lgip`, then `-cgi … -C`), or turn it off: `sudo nvidia-smi -mig 0`"));
        }
    }

    fn ways(&mut self, facts: &Facts) {
        let mut ways = Vec::new();
        let version = facts.toolkit.as_deref();
        if facts.hook.is_ok() {
            ways.push(
                version.map_or("NVIDIA's hook".to_owned(), |version| format!("NVIDIA's hook (toolkit {version})")),
            );
        }
        match &facts.cdi {
            Ok(()) if facts.cdi_devices > 0 => ways.push("CDI".to_owned()),
            Ok(()) => {}
            Err(error) => {
                let hint = crate::report::Explain::hint(error);
                self.add(Level::Advice, format!("{error}; `--gpu-mode auto` does without it"), hint.as_deref());
            }
        }
        for error in &facts.cdi_broken {
            self.add(Level::Advice, error.to_string(), crate::report::Explain::hint(error).as_deref());
        }
        ways.push("native injection".to_owned());
        self.add(Level::Fine, format!("ways for GPUs into containers: {}", ways.join(", ")), None);
        if let Some(version) = version.filter(|version| require::compare(version, TOOLKIT).is_lt()) {
            let open = HOLES.iter().filter(|(closed, _)| require::compare(version, closed).is_lt());
            let open: Vec<&str> = open.map(|(_, names)| *names).collect();
            let hint = Some("upgrade it, or use `--gpu-mode native`, which needs nothing of it");
            match open.is_empty() {
                true => self.add(
                    Level::Advice,
                    format!("NVIDIA's container toolkit {version} is older than {TOOLKIT}"),
                    hint,
                ),
                false => self.add(
                    Level::Problem,
                    format!(
                        "NVIDIA's container toolkit {version} lets images break out of their containers ({})",
                        open.join(", ")
                    ),
                    hint,
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake::{FakeDriver, VERSION, gpu, plain};
    use super::*;

    fn told(driver: &FakeDriver) -> String {
        let one = |finding: &Finding| {
            let hint = finding.hint.as_ref().map(|hint| format!("\n    {hint}")).unwrap_or_default();
            format!("{:?}: {}{hint}\n", finding.level, finding.what).replace(&driver.root.display().to_string(), "")
        };
        findings(&Facts::read(&driver.root)).iter().map(one).collect()
    }

    fn driver(gpus: usize) -> (tempfile::TempDir, FakeDriver) {
        let dir = tempfile::tempdir().unwrap();
        let driver = FakeDriver::new(&dir.path().join("root"), gpus);
        (dir, driver)
    }

    #[test]
    fn a_host_in_order_has_nothing_to_complain_of() {
        let (_dir, driver) = driver(2);
        driver.hook("exit 0");
        driver.program("nvidia-ctk", "echo NVIDIA Container Toolkit CLI version 1.19.1; echo commit: 1.0.0");
        driver.cdi("etc/cdi/nvidia.yaml", 2);
        let expected = "Fine: driver 550.54.15, CUDA up to 12.4, 2 GPUs\n\
            Fine: ways for GPUs into containers: NVIDIA's hook (toolkit 1.19.1), CDI, native injection\n";
        assert_eq!(told(&driver), expected);
    }

    #[test]
    fn what_is_wrong_is_said_with_a_way_out() {
        let (_dir, driver) = driver(2);
        driver.hook("exit 0");
        driver.program("nvidia-ctk", "echo NVIDIA Container Toolkit CLI version 1.17.4");
        driver.write("etc/cdi/broken.yaml", "a: [");
        driver.cdi("etc/cdi/nvidia.yaml", 2);
        driver.write("proc/devices", "Character devices:\n195 nvidia\n");
        std::fs::remove_file(driver.root.join("dev/nvidia1")).unwrap();
        let text = gpu(0, 0, 0, true) + &gpu(1, 0, 0, false).replace(" 1 0\n", " 0 0\n");
        driver.nvml(&format!("driver {VERSION}\ncuda 12040\n{text}"));
        insta::assert_snapshot!(told(&driver));
    }

    #[test]
    fn a_driver_that_was_upgraded_wants_a_reboot() {
        let (_dir, driver) = driver(1);
        driver.nvml("fail 18");
        driver.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.1.2  Tue\n");
        let text = told(&driver);
        assert!(text.starts_with("Problem: the loaded driver is 535.1.2, the libraries on the disk are 550.54.15: it was upgraded without a reboot\n    reboot\n"), "{text}");
        assert_eq!(text.matches("Problem").count(), 1, "said once: {text}");
    }

    #[test]
    fn without_a_driver_the_bus_tells() {
        let (_dir, driver) = driver(1);
        std::fs::remove_dir_all(driver.root.join("proc")).unwrap();
        assert_eq!(told(&driver), "Fine: this host has no NVIDIA GPU\n");
        for (file, text) in [("vendor", "0x10de\n"), ("class", "0x030200\n")] {
            driver.write(&format!("sys/bus/pci/devices/0000:3b:00.0/{file}"), text);
        }
        assert!(told(&driver).starts_with("Problem: 1 NVIDIA GPUs are on the PCI bus, but their driver is not loaded"));
        driver.write("proc/modules", "nouveau 1 0 - Live 0x0\n");
        assert!(told(&driver).contains("`nouveau`, which cannot compute"));
    }

    #[test]
    fn a_gpu_that_fell_off_and_a_library_that_does_not_answer() {
        let (_dir, driver) = driver(2);
        driver.nvml(&plain(1));
        assert!(
            told(&driver)
                .contains("Problem: the GPU at 0000:3c:00.0 is known to the kernel's driver, but does not answer")
        );
        driver.nvml("fail 15");
        assert!(told(&driver).starts_with("Problem: NVML ("));
    }
}
