//! The injection of NVIDIA's GPUs: the edits of the mode that works on this host, the nodes to check besides the GPUs'
//! own, and the hints for a container in which they do not open.

use super::error::NvidiaError;
use super::host::Gpu;
use super::mode::{self, Found, Mode};
use super::snapshot::Snapshot;
use super::variables::{CAPABILITIES, VISIBLE, device_order};
use super::{cdi, native, require, toolkit};
use crate::gpu::cdi::Registry;
use crate::gpu::edits::{Edits, THE_USER};
use crate::gpu::error::Reason;
use crate::gpu::opens::{Hints, Node};
use crate::gpu::selection::Selection;
use crate::gpu::vendor::{Container, Injection, Notice};
use crate::request::{GpuMode, GpuRequest};
use crate::spec::Device;

pub(super) fn inject(
    snapshot: &Snapshot,
    request: &GpuRequest,
    mode: GpuMode,
    selection: &Selection<'_>,
    container: &Container<'_>,
    notice: Notice<'_>,
) -> Result<Injection, Reason> {
    let Found { mode, why, notices } = mode::find(mode, container.root)?;
    let config = toolkit::installed(container.root).and_then(|(_, config)| config);
    if !config.is_some_and(|config| config.disables_requirements()) {
        requirements(snapshot, selection, container, notice)?;
    }
    let env = container.environment().rev().find(|(name, _)| name == CAPABILITIES);
    let capabilities = native::capabilities(&request.capabilities, env.map(|(_, value)| value.as_str()));
    let mut edits = match &mode {
        Mode::Hook(hook) => by_hook(hook, request, snapshot, selection),
        Mode::Cdi(registry) => {
            let names = cdi::names(registry, &snapshot.inventory, selection)?;
            // A CDI file does not mask the entries of other containers' GPUs in /proc.
            let masked = native::masked(&snapshot.host, &selection.units);
            Edits { masked, ..registry.edits(&names, THE_USER)? }
        }
        Mode::Native => {
            if let Some(device) = selection.opaque.first() {
                let source = snapshot.unread().cloned();
                return Err(NvidiaError::NeedsNvml { device: device.clone(), source }.into());
            }
            let mut edits = native::edits(container.root, &snapshot.host, &selection.units, &capabilities)?;
            edits.env.push((VISIBLE.into(), selection.names().join(",")));
            edits
        }
    };
    edits.default_env.push(device_order());
    edits.replaced_hooks = toolkit::HOOK_NAMES.into();
    edits.notices.extend(notices);
    if !request.options.is_empty() {
        edits.notices.push("`options=` in `--gpus` has no effect on NVIDIA's GPUs".into());
    }
    let control = match &mode {
        Mode::Hook(_) => {
            let mut nodes = control(&edits.allowed);
            nodes.retain(|node| node.path != UVM || capabilities.contains("compute"));
            nodes
        }
        Mode::Cdi(_) | Mode::Native => control(&edits.devices),
    };
    let any_of = if selection.opaque.is_empty() { Vec::new() } else { every_gpu(&snapshot.host.gpus) };
    let hints = hints(&mode);
    Ok(Injection { edits, by: mode.by(), why, control, any_of, hints })
}

fn by_hook(hook: &toolkit::Hook, request: &GpuRequest, snapshot: &Snapshot, selection: &Selection<'_>) -> Edits {
    let mut env = vec![(VISIBLE.into(), selection.names().join(","))];
    if !request.capabilities.is_empty() {
        env.push((CAPABILITIES.into(), request.capabilities.join(",")));
    }
    Edits {
        env,
        hooks: vec![hook.chosen()],
        hook_config: hook.run_config(),
        allowed: native::known_nodes(&snapshot.host, &selection.units),
        ..Edits::default()
    }
}

/// Checks what the image requires of the driver. The driver's version is enough for most images. NVML is asked only if
/// it is not.
fn requirements(
    snapshot: &Snapshot,
    selection: &Selection<'_>,
    container: &Container<'_>,
    notice: Notice<'_>,
) -> Result<(), NvidiaError> {
    let env: Vec<(String, String)> = container.environment().cloned().collect();
    if snapshot.readings.is_none() && require::is_met_by_driver(&env, &snapshot.host.driver) {
        return Ok(());
    }
    let readings = snapshot.readings(notice).as_ref().ok();
    let cuda = readings.and_then(|readings| readings.cuda);
    let driver = || require::Facts { driver: snapshot.host.driver.clone(), cuda, ..require::Facts::default() };
    let facts = selection.units.iter().map(|unit| {
        let gpu = &snapshot.host.gpus[unit.gpu];
        let reading = readings.and_then(|readings| readings.gpus.iter().find(|reading| gpu.is_at(&reading.bus)));
        require::Facts {
            arch: reading.and_then(|reading| reading.compute_capability),
            brand: reading.and_then(|reading| reading.brand.clone()),
            ..driver()
        }
    });
    let mut facts: Vec<require::Facts> = facts.collect();
    if facts.is_empty() {
        // No selected GPU is known by name. Check the driver alone, as NVIDIA's tool does.
        facts.push(driver());
    }
    require::check(&env, &facts).map_err(NvidiaError::Unmet)
}

const CONTROL: &str = "/dev/nvidiactl";
const UVM: &str = "/dev/nvidia-uvm";

/// The driver's control nodes among these devices. Neither belongs to a GPU that would have to wake up.
pub(super) fn control(devices: &[Device]) -> Vec<Node> {
    let names = [(CONTROL, "the driver's control device"), (UVM, "the driver's unified memory")];
    let node = |device: &Device| {
        let (_, what) = names.iter().find(|(path, _)| *path == device.path)?;
        Some(Node::of(device, *what, true))
    };
    devices.iter().filter_map(node).collect()
}

fn every_gpu(gpus: &[Gpu]) -> Vec<Node> {
    let minors = gpus.iter().filter_map(|gpu| gpu.minor);
    minors
        .map(|minor| Node {
            what: "a GPU".into(),
            path: format!("/dev/nvidia{minor}"),
            number: None,
            awake: false,
            read_only: false,
        })
        .collect()
}

fn hints(mode: &Mode) -> Hints {
    let injection = match mode {
        Mode::Hook(_) => {
            "run `gpurun doctor` to check the configuration of NVIDIA's toolkit, or use `--gpu-mode native`"
        }
        Mode::Cdi(registry) => return cdi_hints(registry),
        Mode::Native => "report this fault in gpurun, with the output of `gpurun --verbose run …`",
    };
    Hints { injection: injection.into(), ..common_hints() }
}

/// The hints for GPUs that a CDI file injected.
pub(super) fn cdi_hints(registry: &Registry) -> Hints {
    let generate = registry.generate(cdi::KIND).unwrap_or_default();
    Hints { injection: format!("run {generate} to write the CDI file again"), ..common_hints() }
}

fn common_hints() -> Hints {
    Hints {
        injection: String::new(),
        driver: "check whether `nvidia-smi` works on the host, and run `dmesg | grep -i -e nvrm -e xid`; often only a reboot helps"
            .into(),
        node_mode: "change the mode of the host's node (driver option `NVreg_DeviceFileMode=0666`)".into(),
    }
}
