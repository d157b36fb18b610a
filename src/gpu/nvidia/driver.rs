//! The user-space half of NVIDIA's driver on a host: its files, and the capability that each belongs to.
//!
//! A library belongs to the driver if the name of its real file ends in the version of the loaded kernel module. This
//! excludes leftovers of an upgrade, and GLVND, whose host copies break images with an older glibc. Libraries are found
//! through the host's ld.so.cache. If the cache lists none (drivers outside /usr, hosts without glibc's cache), the
//! directories that such drivers are known to use are searched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::gpu::edits::Library;
use crate::gpu::ldcache::{self, I386, NATIVE};
use crate::gpu::root::{inside, real};

/// Directories of driver libraries that are missing from the cache, below the root. The last ones are those of GKE,
/// NixOS and the GPU operator.
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
/// Directories of driver programs that are not next to the libraries.
const PROGRAM_DIRS: [&str; 6] = [
    "/usr/bin",
    "/usr/local/bin",
    "/usr/local/nvidia/bin",
    "/home/kubernetes/bin/nvidia/bin",
    "/run/current-system/sw/bin",
    "/opt/nvidia/bin",
];

/// The driver capabilities of NVIDIA_DRIVER_CAPABILITIES.
pub(crate) const CAPABILITIES: [&str; 7] = ["compute", "compat32", "graphics", "utility", "video", "display", "ngx"];

/// Library names without `.so…`, by capability. A name also matches longer names that continue with `-` or a digit.
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
/// Names that programs open and that are not the SONAME of a library.
const DEVELOPMENT_LINKS: [(&str, &str); 2] =
    [("libcuda.so.1", "libcuda.so"), ("libnvidia-opticalflow.so.1", "libnvidia-opticalflow.so")];

const PROGRAMS: [(&str, &[&str]); 2] = [
    ("utility", &["nvidia-smi", "nvidia-debugdump", "nvidia-persistenced"]),
    ("compute", &["nvidia-cuda-mps-control", "nvidia-cuda-mps-server"]),
];

/// Files below `share` through which the GLVND and Vulkan loaders find the driver.
const GRAPHICS_FILES: [&str; 6] = [
    "glvnd/egl_vendor.d/10_nvidia.json",
    "vulkan/icd.d/nvidia_icd.json",
    "vulkan/implicit_layer.d/nvidia_layers.json",
    "egl/egl_external_platform.d/10_nvidia_wayland.json",
    "egl/egl_external_platform.d/15_nvidia_gbm.json",
    "nvidia/nvoptix.bin",
];

/// A file and its destination in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub source: PathBuf,
    pub destination: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Files {
    pub libraries: Vec<Library>,
    pub others: Vec<File>,
}

/// Returns the driver's files for these capabilities.
#[must_use]
pub(crate) fn files(root: &Path, version: &str, capabilities: &BTreeSet<String>) -> Files {
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
    // The GSP firmware of this driver version. On some GPUs, the user-space half of the driver looks for it.
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

/// The prefix that the driver was installed into, derived from the location of its libraries: `/usr`,
/// `/usr/local/nvidia`. The driver's other files are below the same prefix. On a host with another prefix,
/// `/usr/bin/nvidia-smi` may be only a script that runs the real program.
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
    // ld.so.cache lists a merged /usr/lib as /lib.
    let home = path.ancestors().skip(1).find(|dir| !is_libraries(dir)).filter(|dir| *dir != Path::new("/"));
    home.unwrap_or(Path::new("/usr")).to_owned()
}

/// Returns all driver libraries of this version.
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

/// Returns every library that may belong to the driver: the name that programs load, and the path.
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

/// Returns the path of the driver's own management library, on this host below `root`.
#[must_use]
pub(crate) fn nvml_library(root: &Path) -> Option<PathBuf> {
    candidates(root)
        .into_iter()
        .filter(|(name, _, flags)| name == NVML && *flags == NATIVE)
        .find_map(|(_, path, _)| real(root, &path))
}

/// The version of the libraries on disk. After an upgrade, it differs from the version of the loaded module.
#[must_use]
pub(crate) fn library_version(root: &Path) -> Option<String> {
    let library = nvml_library(root)?;
    let version = library.file_name()?.to_str()?.split_once(".so.")?.1.to_owned();
    version.contains('.').then_some(version)
}
