//! The user-space half of NVIDIA's driver on a host: which files belong to it, and to which capability.
//!
//! A library belongs to the driver when its real file ends in the version of the loaded kernel module: what was left by an upgrade does not,
//! nor does GLVND, whose copies break images with an older glibc. They are found through the host's ld.so.cache, and where that knows none
//! (drivers outside /usr, hosts without glibc's cache), in the directories where such drivers are known to live.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::host::inside;
use super::ldcache::{self, I386, NATIVE};
use crate::rootfs;

/// Where driver libraries lie that no cache knows, below the root; the last ones are GKE's, NixOS's and the GPU operator's.
const LIBRARY_DIRS: [&str; 8] = [
    if cfg!(target_arch = "aarch64") { "/usr/lib/aarch64-linux-gnu" } else { "/usr/lib/x86_64-linux-gnu" },
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/home/kubernetes/bin/nvidia/lib64",
    "/run/opengl-driver/lib",
    "/opt/nvidia/lib64",
];
/// Where programs lie that are not beside the libraries.
const PROGRAM_DIRS: [&str; 6] = [
    "/usr/bin",
    "/usr/local/bin",
    "/usr/local/nvidia/bin",
    "/home/kubernetes/bin/nvidia/bin",
    "/run/current-system/sw/bin",
    "/opt/nvidia/bin",
];

/// What a container may do with a GPU: NVIDIA_DRIVER_CAPABILITIES.
pub const CAPABILITIES: [&str; 7] = ["compute", "compat32", "graphics", "utility", "video", "display", "ngx"];

/// Libraries without `.so…`, by capability; a name stands for those that go on with `-` or a digit, too.
const LIBRARIES: [(&str, &[&str]); 5] = [
    ("utility", &["libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq"]),
    (
        "compute",
        &[
            "libcuda",
            "libcudadebugger",
            "libnvidia-opencl",
            "libnvidia-allocator",
            "libnvidia-gpucomp",
            "libnvidia-ptxjitcompiler",
            "libnvidia-nvvm",
            "libnvidia-pkcs11",
            "libnvidia-tileiras",
            "libnvidia-compiler",
            "libnvidia-fatbinaryloader",
        ],
    ),
    ("video", &["libvdpau_nvidia", "libnvidia-encode", "libnvidia-opticalflow", "libnvcuvid"]),
    (
        "graphics",
        &[
            "libnvidia-eglcore",
            "libnvidia-glcore",
            "libnvidia-tls",
            "libnvidia-glsi",
            "libnvidia-fbc",
            "libnvidia-rtcore",
            "libnvidia-glvkspirv",
            "libnvidia-gpucomp",
            "libnvidia-allocator",
            "libnvoptix",
            "libGLX_nvidia",
            "libEGL_nvidia",
            "libGLESv2_nvidia",
            "libGLESv1_CM_nvidia",
        ],
    ),
    ("ngx", &["libnvidia-ngx"]),
];
/// Names that programs ask for and that no SONAME gives.
const DEVELOPMENT_LINKS: [(&str, &str); 2] =
    [("libcuda.so.1", "libcuda.so"), ("libnvidia-opticalflow.so.1", "libnvidia-opticalflow.so")];

const PROGRAMS: [(&str, &[&str]); 2] = [
    ("utility", &["nvidia-smi", "nvidia-debugdump", "nvidia-persistenced"]),
    ("compute", &["nvidia-cuda-mps-control", "nvidia-cuda-mps-server"]),
];

/// Files that GLVND and Vulkan loaders find the driver by, below `share`.
const GRAPHICS_FILES: [&str; 6] = [
    "glvnd/egl_vendor.d/10_nvidia.json",
    "vulkan/icd.d/nvidia_icd.json",
    "vulkan/implicit_layer.d/nvidia_layers.json",
    "egl/egl_external_platform.d/10_nvidia_wayland.json",
    "egl/egl_external_platform.d/15_nvidia_gbm.json",
    "nvidia/nvoptix.bin",
];

/// One library of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// On this machine, below the root that was given.
    pub source: PathBuf,
    /// `libcuda.so.550.54.15`
    pub file: String,
    /// The names that lead to it: `libcuda.so.1`, `libcuda.so`.
    pub names: BTreeSet<String>,
    /// [`NATIVE`] or [`I386`].
    pub flags: u32,
}

/// A file and where it goes in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub source: PathBuf,
    pub destination: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    pub libraries: Vec<Library>,
    pub others: Vec<File>,
}

/// The driver's files for these capabilities.
#[must_use]
pub fn files(root: &Path, version: &str, capabilities: &BTreeSet<String>) -> Files {
    let wanted = |name: &str| capabilities.contains(name);
    let libraries = libraries(root, version)
        .into_iter()
        .filter(|library| {
            let stem = library.file.split(".so").next().unwrap_or_default();
            let ours = LIBRARIES
                .iter()
                .any(|(capability, names)| wanted(capability) && names.iter().any(|name| is_named(stem, name)));
            ours && (library.flags == NATIVE || wanted("compat32"))
        })
        .collect();
    let home = home(root, version);
    let mut others = Vec::new();
    for (_, names) in PROGRAMS.iter().filter(|(capability, _)| wanted(capability)) {
        for name in *names {
            let mut dirs = std::iter::once(home.join("bin")).chain(PROGRAM_DIRS.map(PathBuf::from));
            let found = dirs.find_map(|dir| real(root, &dir.join(name)));
            others.extend(found.map(|source| File { source, destination: Path::new("/usr/bin").join(name) }));
        }
    }
    if wanted("graphics") || wanted("display") {
        for path in GRAPHICS_FILES {
            let places = [home.join("share"), "/usr/share".into()];
            let found = places.iter().find_map(|share| real(root, &share.join(path)));
            others.extend(found.map(|source| File { source, destination: Path::new("/usr/share").join(path) }));
        }
    }
    // The GSP's firmware of exactly this driver: its user-space half looks for it on some GPUs.
    let firmware = Path::new("/lib/firmware/nvidia").join(version);
    let places = [home.join("firmware/nvidia").join(version), firmware.clone()];
    let found = places.iter().find_map(|dir| std::fs::read_dir(inside(root, dir)).ok());
    for entry in found.into_iter().flatten().flatten() {
        others.push(File { source: entry.path(), destination: firmware.join(entry.file_name()) });
    }
    others.sort_by(|one, other| one.destination.cmp(&other.destination));
    Files { libraries, others }
}

fn is_named(stem: &str, name: &str) -> bool {
    stem.strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| c == '-' || c.is_ascii_digit()))
}

/// The directory that the driver was installed into, by where its libraries are: `/usr`, `/usr/local/nvidia`. What else belongs to it lies beside
/// them; on a host whose driver is elsewhere, `/usr/bin/nvidia-smi` may be no more than a script that looks for it there.
fn home(root: &Path, version: &str) -> PathBuf {
    let theirs = |path: &Path| real(root, path).is_some_and(|file| file.to_string_lossy().ends_with(version));
    let library = candidates(root)
        .into_iter()
        .find(|(name, path, flags)| (name == NVML || name == "libcuda.so.1") && *flags == NATIVE && theirs(path));
    let Some((_, path, _)) = library else { return "/usr".into() };
    let is_libraries = |dir: &Path| {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        name == "lib" || name == "lib64" || name.ends_with("-linux-gnu")
    };
    // ld.so.cache knows a merged /usr/lib as /lib.
    let home = path.ancestors().skip(1).find(|dir| !is_libraries(dir)).filter(|dir| *dir != Path::new("/"));
    home.unwrap_or(Path::new("/usr")).to_owned()
}

/// All libraries of this version.
fn libraries(root: &Path, version: &str) -> Vec<Library> {
    let mut found: BTreeMap<PathBuf, Library> = BTreeMap::new();
    for (name, path, flags) in candidates(root) {
        let Some(source) = real(root, &path) else { continue };
        let Some(file) = source.file_name().map(|file| file.to_string_lossy().into_owned()) else { continue };
        if !file.ends_with(&format!(".so.{version}")) {
            continue;
        }
        let library =
            found.entry(source.clone()).or_insert_with(|| Library { source, file, names: BTreeSet::new(), flags });
        let development = DEVELOPMENT_LINKS.iter().find(|(soname, _)| *soname == name);
        library.names.extend(development.map(|(_, link)| (*link).to_owned()));
        library.names.insert(name);
    }
    for library in found.values_mut() {
        let file = library.file.clone();
        library.names.retain(|name| *name != file);
    }
    found.into_values().collect()
}

/// Every library that might be the driver's: the name that programs ask for, and where it is.
fn candidates(root: &Path) -> Vec<(String, PathBuf, u32)> {
    let cache = std::fs::read(inside(root, Path::new("/etc/ld.so.cache"))).unwrap_or_default();
    let known: Vec<_> = ldcache::parse(&cache)
        .into_iter()
        .filter(|entry| entry.flags == NATIVE || (entry.flags == I386 && NATIVE != I386))
        .filter(|entry| is_driver_like(&entry.soname))
        .map(|entry| (entry.soname, entry.path, entry.flags))
        .collect();
    if known.iter().any(|(name, ..)| name == NVML) {
        return known;
    }
    let mut found = Vec::new();
    for dir in LIBRARY_DIRS.map(Path::new) {
        for entry in std::fs::read_dir(inside(root, dir)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_driver_like(&name) && name.contains(".so") {
                found.push((name.clone(), dir.join(name), NATIVE));
            }
        }
    }
    found
}

fn is_driver_like(name: &str) -> bool {
    ["libcuda", "libnvidia-", "libnvcuvid", "libnvoptix", "libvdpau_nvidia"].iter().any(|start| name.starts_with(start))
        || name.split(".so").next().is_some_and(|stem| stem.ends_with("_nvidia"))
}

const NVML: &str = "libnvidia-ml.so.1";

/// The driver's own management library, on this machine below `root`.
#[must_use]
pub fn nvml_library(root: &Path) -> Option<PathBuf> {
    candidates(root)
        .into_iter()
        .filter(|(name, _, flags)| name == NVML && *flags == NATIVE)
        .find_map(|(_, path, _)| real(root, &path))
}

/// The version of the libraries on the disk, which after an upgrade is not that of the loaded module.
#[must_use]
pub fn library_version(root: &Path) -> Option<String> {
    let library = nvml_library(root)?;
    let version = library.file_name()?.to_str()?.split_once(".so.")?.1.to_owned();
    version.contains('.').then_some(version)
}

/// Where a path leads below `root`, links followed inside it, if there is a file.
pub(super) fn real(root: &Path, path: &Path) -> Option<PathBuf> {
    let root = rootfs::open_root(root).ok()?;
    let found = rootfs::resolve_in_root(&root, path).ok()??;
    let real = std::fs::read_link(crate::sys::mount::fd_path(&found)).ok()?;
    real.is_file().then_some(real)
}
