//! Problems with the host's GPU setup. [`Facts::read`] collects the facts, and [`findings`], which is pure, evaluates
//! them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::config::Config;
use super::host::Host;
use super::nvml::{Readings, Unread};
use super::snapshot::Snapshot;
use super::{cdi, driver, require, toolkit};
use crate::gpu::cdi::CdiError;
use crate::gpu::doctor::{Finding, Level};
use crate::gpu::query::read_until;
use crate::gpu::root::inside;
use crate::gpu::vendor::Detail;

/// The facts about the host.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Number of NVIDIA's display and compute devices on the PCI bus.
    pub on_bus: usize,
    /// Whether nouveau, the kernel's own driver for them, is loaded.
    pub nouveau: bool,
    pub snapshot: Option<Snapshot>,
    /// Driver version of the libraries on disk.
    pub libraries: Option<String>,
    /// Device nodes that are missing on the host.
    pub missing_nodes: Vec<PathBuf>,
    pub hook: Result<PathBuf, toolkit::Missing>,
    /// Configuration of the hook.
    pub config: Option<Config>,
    /// Version of NVIDIA's container toolkit, if it is installed and reports one.
    pub toolkit: Option<String>,
    /// Number of devices that NVIDIA's CDI files describe.
    pub cdi_devices: usize,
    pub cdi: Result<(), CdiError>,
}

/// The oldest toolkit without known vulnerabilities.
const TOOLKIT: &str = "1.19.1";
/// Vulnerabilities through which an image can attack the host, and the first toolkit with the fix.
const HOLES: [(&str, &str); 3] = [
    ("1.16.2", "CVE-2024-0132 and CVE-2024-0133"),
    ("1.17.4", "CVE-2025-23359"),
    ("1.17.8", "CVE-2025-23266 and CVE-2025-23267"),
];
/// Time limit for a tool to report its version.
const PATIENCE: Duration = Duration::from_secs(10);

impl Facts {
    /// Collects the facts about the host whose driver is below `root`.
    #[must_use]
    pub(crate) fn read(root: &Path) -> Self {
        let host = Host::read(root).ok();
        let snapshot = host.map(|host| {
            let tell = &mut |line| crate::report::say(&format!("note: {line}"));
            Snapshot::read(root, host, Detail::Usage, None, tell)
        });
        let registry = cdi::registry(root);
        let text = |path: &str| std::fs::read_to_string(inside(root, Path::new(path))).unwrap_or_default();
        Self {
            on_bus: on_bus(root),
            nouveau: text("/proc/modules").lines().any(|line| line.starts_with("nouveau ")),
            libraries: driver::library_version(root),
            missing_nodes: snapshot.as_ref().map(|snapshot| missing_nodes(root, &snapshot.host)).unwrap_or_default(),
            hook: toolkit::hook(root).map(|hook| hook.command.path),
            config: toolkit::installed(root).and_then(|(_, config)| config),
            toolkit: toolkit_version(root),
            cdi_devices: registry.devices(cdi::KIND).len(),
            cdi: registry.check(cdi::KIND),
            snapshot,
        }
    }
}

/// NVIDIA is PCI vendor 0x10de. Class 0x03 is a display controller, with or without VGA.
fn on_bus(root: &Path) -> usize {
    let devices = std::fs::read_dir(inside(root, Path::new("/sys/bus/pci/devices"))).into_iter().flatten().flatten();
    let is = |dir: &Path, file: &str, start: &str| {
        std::fs::read_to_string(dir.join(file)).is_ok_and(|text| text.starts_with(start))
    };
    devices.filter(|entry| is(&entry.path(), "vendor", "0x10de") && is(&entry.path(), "class", "0x03")).count()
}

fn missing_nodes(root: &Path, host: &Host) -> Vec<PathBuf> {
    let gpus = host.gpus.iter().filter_map(|gpu| Some(format!("/dev/nvidia{}", gpu.minor?)));
    let uvm = host.majors.contains_key("nvidia-uvm").then(|| "/dev/nvidia-uvm".to_owned());
    let all = gpus.chain(["/dev/nvidiactl".to_owned()]).chain(uvm).map(PathBuf::from);
    all.filter(|path| !inside(root, path).exists()).collect()
}

/// Returns the first string like `1.17.8` in the version output of one of the toolkit's programs.
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
    if !read_until(&mut pipe, &mut text, Instant::now() + PATIENCE) {
        let _ = child.kill();
    }
    let _ = child.wait();
    let text = String::from_utf8_lossy(&text).into_owned();
    let is_version = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// Returns the findings, worst first.
#[must_use]
pub(crate) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = Findings::default();
    match &facts.snapshot {
        None => all.without_driver(facts),
        Some(snapshot) => {
            all.driver(facts, &snapshot.host);
            match &snapshot.readings {
                Some(Ok(readings)) => {
                    all.readings(&snapshot.host, readings);
                    all.migs(readings);
                }
                Some(Err(unread)) => all.unread(facts, &snapshot.host, unread),
                None => {}
            }
            all.modes(facts);
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
                format!("the kernel's `nouveau` drives the NVIDIA GPUs ({count}), and does not support CUDA"),
                Some("install NVIDIA's driver, which disables `nouveau`, and reboot"),
            ),
            (count, false) => self.add(
                Level::Problem,
                format!("NVIDIA GPUs are on the PCI bus ({count}), but their driver is not loaded"),
                Some("run `sudo modprobe nvidia`, or install NVIDIA's driver; `dmesg | grep -i nvrm` shows why it does not load"),
            ),
        }
    }

    fn driver(&mut self, facts: &Facts, host: &Host) {
        let module = &host.driver;
        match &facts.libraries {
            None => self.add(
                Level::Problem,
                format!("the driver {module} is loaded, but its libraries are missing"),
                Some("install the driver's libraries of the same version, then run `sudo ldconfig`"),
            ),
            Some(libraries) if libraries != module => self.add(
                Level::Problem,
                format!("the loaded driver has the version {module}, but the libraries on the disk have {libraries}: the driver was upgraded without a reboot"),
                Some("reboot the host"),
            ),
            Some(_) => {}
        }
        if !host.majors.contains_key("nvidia-uvm") {
            let hint = Some(
                "run `sudo modprobe nvidia_uvm` or `sudo nvidia-modprobe -u`; to load it at each boot: `echo nvidia_uvm | sudo tee /etc/modules-load.d/nvidia-uvm.conf`",
            );
            self.add(Level::Problem, "the kernel module `nvidia_uvm`, which CUDA needs, is not loaded", hint);
        }
        if !facts.missing_nodes.is_empty() {
            let list = facts.missing_nodes.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>();
            let hint = Some("run `sudo nvidia-modprobe -c 0 -u` or `sudo nvidia-smi` to create them");
            self.add(Level::Problem, format!("device nodes are missing: {}", list.join(", ")), hint);
        }
    }

    fn unread(&mut self, facts: &Facts, host: &Host, unread: &Unread) {
        let is_reported = facts.libraries.as_ref() != Some(&host.driver);
        if is_reported && matches!(unread, Unread::NoLibrary | Unread::Mismatch { .. }) {
            // An earlier finding already reports this with more detail.
            return;
        }
        let hint = "run `nvidia-smi`, and `dmesg | grep -i -e nvrm -e xid` for the messages of the driver";
        self.add(Level::Problem, unread.to_string(), Some(hint));
    }

    fn readings(&mut self, host: &Host, readings: &Readings) {
        let cuda = readings.cuda.map(|(major, minor)| format!(", CUDA up to {major}.{minor}")).unwrap_or_default();
        let count = readings.gpus.len();
        let gpus = if count == 1 { "1 GPU".to_owned() } else { format!("{count} GPUs") };
        self.add(Level::Fine, format!("driver {}{cuda}, {gpus}", readings.driver), None);
        for gpu in host.gpus.iter().filter(|gpu| !readings.gpus.iter().any(|reading| gpu.is_at(&reading.bus))) {
            let what = format!("the kernel's driver lists the GPU at {}, but the GPU does not answer", gpu.bus);
            self.add(
                Level::Problem,
                what,
                Some("run `dmesg | grep -i xid` to see the reason; often only a reboot helps"),
            );
        }
        let off: Vec<String> =
            (0..count).filter(|at| readings.gpus[*at].persistence == Some(false)).map(|at| at.to_string()).collect();
        if !off.is_empty() {
            let what = format!(
                "persistence mode is off (GPU {}): the driver shuts an unused GPU down, and initializing it again takes seconds",
                off.join(", ")
            );
            self.add(
                Level::Advice,
                what,
                Some("run `sudo nvidia-smi -pm 1`, or enable the service `nvidia-persistenced`"),
            );
        }
    }

    fn migs(&mut self, readings: &Readings) {
        for (index, gpu) in readings.gpus.iter().enumerate().filter(|(_, gpu)| gpu.mig_enabled && gpu.migs.is_empty()) {
            let what = format!("GPU {index} ({}) is in MIG mode and has no MIG device, so it cannot be used", gpu.uuid);
            let hint = format!(
                "create MIG devices (`sudo nvidia-smi mig -lgip` lists the profiles, `sudo nvidia-smi mig -cgi PROFILE -C` creates them), or turn MIG mode off: `sudo nvidia-smi -i {index} -mig 0`"
            );
            self.add(Level::Problem, what, Some(&hint));
        }
    }

    fn modes(&mut self, facts: &Facts) {
        let mut modes = Vec::new();
        let version = facts.toolkit.as_deref();
        if facts.hook.is_ok() {
            modes.push(
                version.map_or("NVIDIA's hook".to_owned(), |version| format!("NVIDIA's hook (toolkit {version})")),
            );
        }
        match &facts.cdi {
            Ok(()) if facts.cdi_devices > 0 => modes.push("CDI".to_owned()),
            Ok(()) => {}
            Err(error) => {
                let hint = crate::report::Explain::hint(error);
                self.add(Level::Advice, format!("{error}; `--gpu-mode auto` uses another mode"), hint.as_deref());
            }
        }
        self.toolkit(facts);
        modes.push("native injection".to_owned());
        self.add(Level::Fine, format!("available injection modes: {}", modes.join(", ")), None);
        if let Some(version) = version.filter(|version| require::compare(version, TOOLKIT).is_lt()) {
            let open = HOLES.iter().filter(|(closed, _)| require::compare(version, closed).is_lt());
            let open: Vec<&str> = open.map(|(_, names)| *names).collect();
            let hint = Some("upgrade the toolkit, or use `--gpu-mode native`, which does not use it");
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

impl Findings {
    /// Reports unusual settings and errors in the toolkit's configuration.
    fn toolkit(&mut self, facts: &Facts) {
        if let Err(missing) = facts.hook.as_ref()
            && !missing.is_expected()
        {
            self.add(Level::Advice, format!("{missing}; `--gpu-mode auto` uses another mode"), Some(&missing.hint()));
        }
        let Some(config) = &facts.config else { return };
        let file = config.file.display();
        if config.leaves_the_filter() {
            let what = format!(
                "`{file}` sets `no-cgroups = true`: NVIDIA's hook does not change the device filter. gpurun does it instead, but in the containers of other runtimes that run as root the GPUs cannot be opened"
            );
            self.add(
                Level::Advice,
                what,
                Some("remove `no-cgroups = true` from that file, unless this host runs rootless containers"),
            );
        }
        for setting in config.diversions() {
            let what = format!(
                "`{file}` sets `{setting}`: gpurun passes a copy without this setting to NVIDIA's hook, because only `--gpus` selects GPUs"
            );
            self.add(Level::Fine, what, None);
        }
        if config.disables_requirements() {
            self.add(
                Level::Fine,
                format!("`{file}` sets `disable-require = true`: the driver requirements of images are not checked"),
                None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake::{FakeDriver, VERSION, gpu, plain};
    use super::*;

    fn report(driver: &FakeDriver) -> String {
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
    fn a_correct_host_has_no_problem() {
        let (_dir, driver) = driver(2);
        driver.hook("exit 0");
        driver.program("nvidia-ctk", "echo NVIDIA Container Toolkit CLI version 1.19.1; echo commit: 1.0.0");
        driver.cdi("etc/cdi/nvidia.yaml", 2);
        let expected = "Fine: driver 550.54.15, CUDA up to 12.4, 2 GPUs\n\
            Fine: available injection modes: NVIDIA's hook (toolkit 1.19.1), CDI, native injection\n";
        assert_eq!(report(&driver), expected);
    }

    #[test]
    fn problems_come_with_a_hint() {
        let (_dir, driver) = driver(2);
        driver.hook("exit 0");
        driver.program("nvidia-ctk", "echo NVIDIA Container Toolkit CLI version 1.17.4");
        driver.cdi("etc/cdi/nvidia.yaml", 2);
        driver.write("proc/devices", "Character devices:\n195 nvidia\n");
        std::fs::remove_file(driver.root.join("dev/nvidia1")).unwrap();
        let text = gpu(0, 0, 0, true) + &gpu(1, 0, 0, false).replace(" 1 0\n", " 0 0\n");
        driver.nvml(&format!("driver {VERSION}\ncuda 12040\n{text}"));
        insta::assert_snapshot!(report(&driver));
    }

    #[test]
    fn an_upgraded_driver_needs_a_reboot() {
        let (_dir, driver) = driver(1);
        driver.nvml("fail 18");
        driver.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.1.2  Tue\n");
        let text = report(&driver);
        assert!(text.starts_with("Problem: the loaded driver has the version 535.1.2, but the libraries on the disk have 550.54.15: the driver was upgraded without a reboot\n    reboot the host\n"), "{text}");
        assert_eq!(text.matches("Problem").count(), 1, "reported once: {text}");
    }

    #[test]
    fn without_a_driver_the_bus_shows_the_gpus() {
        let (_dir, driver) = driver(1);
        std::fs::remove_dir_all(driver.root.join("proc")).unwrap();
        assert_eq!(report(&driver), "Fine: this host has no NVIDIA GPU\n");
        for (file, text) in [("vendor", "0x10de\n"), ("class", "0x030200\n")] {
            driver.write(&format!("sys/bus/pci/devices/0000:3b:00.0/{file}"), text);
        }
        assert!(
            report(&driver).starts_with("Problem: NVIDIA GPUs are on the PCI bus (1), but their driver is not loaded")
        );
        driver.write("proc/modules", "nouveau 1 0 - Live 0x0\n");
        assert!(report(&driver).contains("`nouveau` drives the NVIDIA GPUs (1), and does not support CUDA"));
    }

    #[test]
    fn a_gpu_that_fell_off_and_a_library_that_does_not_answer() {
        let (_dir, driver) = driver(2);
        driver.nvml(&plain(1));
        assert!(
            report(&driver)
                .contains("Problem: the kernel's driver lists the GPU at 0000:3c:00.0, but the GPU does not answer")
        );
        driver.nvml("fail 15");
        assert!(report(&driver).starts_with("Problem: NVML ("));
    }
}
