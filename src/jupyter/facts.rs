//! Detects the Jupyter of an image from its files. Runs nothing of the image.
//!
//! The program is searched for in the container's PATH. The first line of the script that pip or conda created names
//! the Python interpreter. The directory of that Python's libraries lists the installed versions
//! (`notebook-6.5.6.dist-info`).

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::report::Explain;
use crate::rootfs;

/// The type of a file in the image, with symbolic links resolved inside the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Executable,
    Other,
    Directory,
}

/// Read access to the image. Paths are absolute, with the image's root as `/`.
pub(crate) trait Files {
    fn kind(&self, path: &str) -> Option<FileKind>;
    /// Names in a directory. Empty if it is not a directory.
    fn list(&self, path: &str) -> Vec<String>;
    /// The first `max` bytes of a regular file.
    fn head(&self, path: &str, max: usize) -> Option<Vec<u8>>;
}

/// [`Files`] of a root directory on disk.
#[derive(Debug)]
pub(crate) struct Rootfs(OwnedFd);

impl Rootfs {
    pub(crate) fn open(path: &Path) -> Result<Self, rootfs::RootError> {
        Ok(Self(rootfs::open_root(path)?))
    }
}

impl Files for Rootfs {
    fn kind(&self, path: &str) -> Option<FileKind> {
        let stat = rootfs::stat_in_root(&self.0, Path::new(path)).ok()??;
        Some(match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFREG if stat.st_mode & 0o111 != 0 => FileKind::Executable,
            _ => FileKind::Other,
        })
    }

    fn list(&self, path: &str) -> Vec<String> {
        let Ok(Some(resolved)) = rootfs::resolve_in_root(&self.0, Path::new(path)) else { return Vec::new() };
        // Use the descriptor, so that the path is not resolved again.
        let Ok(entries) = std::fs::read_dir(crate::sys::mount::fd_path(&resolved)) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).take(MAX_ENTRIES).collect()
    }

    fn head(&self, path: &str, max: usize) -> Option<Vec<u8>> {
        rootfs::read_file_in_root(&self.0, Path::new(path), max.max(MAX_SCRIPT)).ok()?.map(|mut bytes| {
            bytes.truncate(max);
            bytes
        })
    }
}

/// Maximum number of names that are read from a directory of an image.
const MAX_ENTRIES: usize = 100_000;
/// Maximum size of a start script.
pub(super) const MAX_SCRIPT: usize = 256 << 10;

/// The program to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Lab,
    Notebook,
    /// jupyter_server without a user interface of its own.
    Server,
}

/// The Jupyter of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub program: Program,
    /// Absolute path in the image.
    pub path: String,
    /// Versions from the image's package metadata.
    pub lab: Option<String>,
    pub notebook: Option<String>,
    pub jupyter_server: Option<String>,
    /// Whether the Python module that checks argon2 hashes is installed.
    pub argon2_module: bool,
}

impl Server {
    /// Whether it is Notebook 6 or older, or runs on it. These have their own server and settings (`NotebookApp.…`).
    #[must_use]
    pub(crate) fn classic(&self) -> bool {
        match self.program {
            Program::Notebook => self.notebook.as_deref().and_then(major).is_some_and(|major| major < 7),
            // JupyterLab 3 moved to jupyter_server.
            Program::Lab => self.lab.as_deref().and_then(major).is_some_and(|major| major < 3),
            Program::Server => false,
        }
    }

    /// Whether it can check an argon2 hash. Notebook supports it since version 6.1. An unknown version counts as no,
    /// because a hash that cannot be checked locks all users out.
    #[must_use]
    pub(crate) fn argon2(&self) -> bool {
        let new_enough = if self.classic() {
            self.notebook.as_deref().is_some_and(|version| at_least(version, 6, 1))
        } else {
            self.jupyter_server.is_some()
        };
        self.argon2_module && new_enough
    }

    /// Name for display: `JupyterLab 4.4.1`
    #[must_use]
    pub(crate) fn label(&self) -> String {
        let (name, version) = match self.program {
            Program::Lab => ("JupyterLab", &self.lab),
            Program::Notebook => ("Jupyter Notebook", &self.notebook),
            Program::Server => ("Jupyter Server", &self.jupyter_server),
        };
        version.as_ref().map_or_else(|| name.to_owned(), |version| format!("{name} {version}"))
    }
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

pub(super) fn at_least(version: &str, major: u32, minor: u32) -> bool {
    let mut numbers =
        version.split('.').map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>());
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (major, minor)
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the image `{image}` has no Jupyter: no `jupyter-lab`, `jupyter-notebook` or `jupyter-server` in its PATH ({path})"
)]
pub(crate) struct NoJupyter {
    pub image: String,
    pub path: String,
}

impl Explain for NoJupyter {
    fn hint(&self) -> Option<String> {
        Some(format!(
            "add it with a Containerfile (`FROM {}` and `RUN pip install jupyterlab`), or run a command of the image with `gpurun run {} COMMAND`",
            self.image, self.image
        ))
    }
}

/// docker's default for an image that sets no PATH.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks for Jupyter. `path` is the container's PATH (empty: docker's default), and `image` is the image's name for the
/// error.
pub(crate) fn detect(files: &dyn Files, path: &str, image: &str) -> Result<Server, NoJupyter> {
    let path = if path.is_empty() { DEFAULT_PATH } else { path };
    let programs =
        [(Program::Lab, "jupyter-lab"), (Program::Notebook, "jupyter-notebook"), (Program::Server, "jupyter-server")];
    let (program, path) = programs
        .into_iter()
        .find_map(|(program, name)| Some((program, find_program(files, path, name)?)))
        .ok_or_else(|| NoJupyter { image: image.to_owned(), path: path.to_owned() })?;
    let names = site_packages(files, &path);
    let version = |package: &str| names.iter().find_map(|name| metadata_version(name, package));
    Ok(Server {
        program,
        lab: version("jupyterlab"),
        notebook: version("notebook"),
        jupyter_server: version("jupyter_server"),
        // The module itself decides: the `argon2` directory of argon2-cffi, or its metadata.
        argon2_module: version("argon2_cffi").is_some() || names.iter().any(|name| name == "argon2"),
        path,
    })
}

/// Finds an executable as execvp(3) would, with the image's root as `/`.
pub(super) fn find_program(files: &dyn Files, path: &str, name: &str) -> Option<String> {
    path.split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| format!("{}/{name}", dir.trim_end_matches('/')))
        .find(|candidate| files.kind(candidate) == Some(FileKind::Executable))
}

/// Returns the names in the library directories of the Python that runs the script.
fn site_packages(files: &dyn Files, script: &str) -> Vec<String> {
    let bin = match interpreter(files, script) {
        Some(python) => parent(&python),
        None => parent(script),
    };
    let mut prefixes = vec![parent(&bin)];
    // Debian's Python in /usr has its pip packages below /usr/local, and Debian's own packages in /usr/lib/python3.
    if prefixes[0] == "/usr" {
        prefixes.push("/usr/local".into());
    }
    // A virtual environment that was created with --system-site-packages also sees these. Its own packages come first.
    let config = files.head(&format!("{}/pyvenv.cfg", prefixes[0]), MAX_SCRIPT).unwrap_or_default();
    if String::from_utf8_lossy(&config).lines().any(|line| line.replace(' ', "") == "include-system-site-packages=true")
    {
        prefixes.extend(["/usr/local".to_owned(), "/usr".to_owned()]);
    }
    let mut names = Vec::new();
    for prefix in prefixes {
        for lib in ["lib", "lib64"] {
            let base = format!("{}/{lib}", prefix.trim_end_matches('/'));
            for python in files.list(&base).iter().filter(|name| name.starts_with("python")) {
                for packages in ["site-packages", "dist-packages"] {
                    names.extend(files.list(&format!("{base}/{python}/{packages}")));
                }
            }
        }
    }
    names
}

fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".into(),
        Some((dir, _)) => dir.to_owned(),
    }
}

/// Returns the Python interpreter of a script: `#!/opt/conda/bin/python`, `#!/usr/bin/env python3` (then the one next
/// to the script), or the form that pip writes if the path is too long for the kernel: `#!/bin/sh` and `'''exec'
/// "/long/path/python" "$0" "$@"`.
fn interpreter(files: &dyn Files, script: &str) -> Option<String> {
    let head = files.head(script, 4096)?;
    let text = String::from_utf8_lossy(&head);
    let mut lines = text.lines();
    let fields: Vec<&str> = lines.next()?.strip_prefix("#!")?.split_whitespace().collect();
    let program = *fields.first()?;
    if program.ends_with("/sh") {
        let line = lines.next()?.strip_prefix("'''exec' ")?;
        return Some(line.trim_start_matches('"').split(['"', ' ']).next()?.to_owned());
    }
    (program.starts_with('/') && !program.ends_with("/env")).then(|| program.to_owned())
}

/// `notebook-6.5.6.dist-info` → `6.5.6`, for any spelling of the package's name (PEP 503).
fn metadata_version(name: &str, package: &str) -> Option<String> {
    let stem = name.strip_suffix(".dist-info").or_else(|| name.strip_suffix(".egg-info"))?;
    let (found, version) = stem.split_once('-').map(|_| {
        // The version starts after the last `-`. An egg-info has a suffix such as `-py3.8` after the version.
        let end = stem.find("-py3").or_else(|| stem.find("-py2")).unwrap_or(stem.len());
        let stem = &stem[..end];
        stem.rsplit_once('-').unwrap_or((stem, ""))
    })?;
    let plain = found.to_ascii_lowercase().replace(['-', '.'], "_");
    (plain == package && version.starts_with(|c: char| c.is_ascii_digit())).then(|| version.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// An image of a few files: path → content. Files below a `bin` are executable.
    #[derive(Default)]
    pub struct Fake(pub BTreeMap<String, String>);

    impl Fake {
        pub fn new(files: &[(&str, &str)]) -> Self {
            Self(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
        }
    }

    impl Files for Fake {
        fn kind(&self, path: &str) -> Option<FileKind> {
            if self.0.contains_key(path) {
                return Some(if path.contains("bin/") || path.ends_with(".sh") {
                    FileKind::Executable
                } else {
                    FileKind::Other
                });
            }
            self.0.keys().any(|key| key.starts_with(&format!("{path}/"))).then_some(FileKind::Directory)
        }
        fn list(&self, path: &str) -> Vec<String> {
            let prefix = format!("{}/", path.trim_end_matches('/'));
            let mut names: Vec<String> = self
                .0
                .keys()
                .filter_map(|key| key.strip_prefix(&prefix)?.split('/').next().map(str::to_owned))
                .collect();
            names.dedup();
            names
        }
        fn head(&self, path: &str, max: usize) -> Option<Vec<u8>> {
            self.0.get(path).map(|text| text.bytes().take(max).collect())
        }
    }

    #[test]
    fn the_usual_images() {
        let conda = Fake::new(&[
            ("/opt/conda/bin/jupyter-lab", "#!/opt/conda/bin/python3.11\n"),
            ("/opt/conda/bin/jupyter-notebook", "#!/opt/conda/bin/python3.11\n"),
            ("/opt/conda/lib/python3.11/site-packages/jupyterlab-4.4.1.dist-info/METADATA", ""),
            ("/opt/conda/lib/python3.11/site-packages/jupyterlab_server-2.27.3.dist-info/METADATA", ""),
            ("/opt/conda/lib/python3.11/site-packages/jupyter_server-2.16.0.dist-info/METADATA", ""),
            ("/opt/conda/lib/python3.11/site-packages/notebook-7.4.1.dist-info/METADATA", ""),
            ("/opt/conda/lib/python3.11/site-packages/argon2_cffi-23.1.0.dist-info/METADATA", ""),
        ]);
        let server = detect(&conda, "/opt/conda/bin:/usr/bin", "x").unwrap();
        assert_eq!((server.program, server.path.as_str()), (Program::Lab, "/opt/conda/bin/jupyter-lab"));
        assert_eq!(server.label(), "JupyterLab 4.4.1");
        assert!(!server.classic() && server.argon2());

        // The CUDA 10 images: pip installs into Debian's or Ubuntu's Python, and the scripts are in /usr/local/bin.
        let old = Fake::new(&[
            ("/usr/local/bin/jupyter-notebook", "#!/usr/bin/python3\n"),
            ("/usr/local/lib/python3.6/dist-packages/notebook-6.0.3.dist-info/METADATA", ""),
            ("/usr/local/lib/python3.6/dist-packages/argon2/__init__.py", ""),
        ]);
        let server = detect(&old, "", "x").unwrap();
        assert_eq!(server.label(), "Jupyter Notebook 6.0.3");
        assert!(server.classic() && !server.argon2(), "6.0 does not know argon2, whatever modules there are");

        let debian = Fake::new(&[
            ("/usr/bin/jupyter-notebook", "#! /usr/bin/python3\n"),
            ("/usr/lib/python3/dist-packages/notebook-6.4.12.egg-info", ""),
            ("/usr/lib/python3/dist-packages/argon2_cffi-21.1.0.egg-info/PKG-INFO", ""),
        ]);
        let server = detect(&debian, "", "x").unwrap();
        assert_eq!(server.notebook.as_deref(), Some("6.4.12"));
        assert!(server.classic() && server.argon2());

        let long = Fake::new(&[
            ("/usr/bin/jupyter-lab", "#!/bin/sh\n'''exec' \"/very/long/venv/bin/python\" \"$0\" \"$@\"\n' '''\n"),
            ("/very/long/venv/lib/python3.8/site-packages/JupyterLab-2.3.2-py3.8.egg-info/PKG-INFO", ""),
            ("/very/long/venv/lib/python3.8/site-packages/notebook-6.4.10.dist-info/METADATA", ""),
        ]);
        let server = detect(&long, "", "x").unwrap();
        assert_eq!(server.lab.as_deref(), Some("2.3.2"));
        assert!(server.classic() && !server.argon2());
    }

    #[test]
    fn no_jupyter_is_an_error_with_a_hint() {
        let image = Fake::new(&[("/usr/bin/python3", ""), ("/home/bin/jupyter-lab", "")]);
        let report = crate::report::Report::from(detect(&image, "/usr/bin:relative", "debian:12").unwrap_err());
        insta::assert_snapshot!(report);
    }

    #[test]
    fn metadata_names() {
        let cases = [
            ("notebook-6.5.6.dist-info", "notebook", Some("6.5.6")),
            ("notebook-7.0.0rc1.dist-info", "notebook", Some("7.0.0rc1")),
            ("notebook_shim-0.2.4.dist-info", "notebook", None),
            ("jupyter_server-1.24.0-py3.8.egg-info", "jupyter_server", Some("1.24.0")),
            ("jupyter.server-2.0.0.dist-info", "jupyter_server", Some("2.0.0")),
            ("argon2_cffi_bindings-21.2.0.dist-info", "argon2_cffi", None),
            ("notebook.dist-info", "notebook", None),
            ("notebook", "notebook", None),
        ];
        for (name, package, expected) in cases {
            assert_eq!(metadata_version(name, package).as_deref(), expected, "{name}");
        }
    }
}
