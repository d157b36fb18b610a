//! What becomes of a built image besides its place in the store: docker's `--output`, `--push` and `--load`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::image::{self, RegistryFlags};
use crate::build;
use crate::layer::directory;
use crate::names::{Digest, Reference};
use crate::record::Owner;
use crate::report::Report;
use crate::request::csv_fields;
use crate::store::{Image, Store, ToSave};
use crate::sys::process::CallerUmask;

/// A parsed `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The files of the image in a directory, owned by the caller.
    Directory(PathBuf),
    /// The files of the image as a tar; `None` is standard output.
    Tar(Option<PathBuf>),
    /// The image in an archive or layout, under more names; `None` is standard output.
    Image { format: image::FormatFlag, path: Option<PathBuf>, packing: image::Packing, names: Vec<Reference> },
    /// The image in the store, where each build puts it, under more names, and in a registry if wanted.
    Store { names: Vec<Reference>, is_pushed: bool, packing: image::Packing },
}

/// Fields of an output whose values say what gpurun does anyway.
const AS_IT_IS: [(&str, &str); 8] = [
    ("oci-mediatypes", "true"),
    ("store", "true"),
    ("unpack", "false"),
    ("force-compression", "false"),
    ("push-by-digest", "false"),
    ("name-canonical", "false"),
    ("platform-split", "false"),
    ("buildinfo", "false"),
];

impl Target {
    /// Parses `DIR`, `-`, or fields such as `type=oci,dest=FILE`.
    pub(super) fn parse(text: &str) -> Result<Self, Report> {
        if text == "-" {
            return Ok(Self::Tar(None));
        }
        if !text.contains(['=', ',']) {
            return Ok(Self::Directory(text.into()));
        }
        let usage = |what: &str| {
            Report::usage(format!("`--output {text}` {what}"))
                .with_hint("write a directory, `-`, or for example `--output type=oci,dest=image.tar`")
        };
        let fields = csv_fields(text).map_err(|why| usage(&format!("cannot be parsed: {why}")))?;
        let (mut kind, mut dest, mut names, mut is_pushed, mut is_tar) = (None, None, Vec::new(), false, true);
        let mut packing = None;
        for field in &fields {
            match field.split_once('=') {
                Some(("type", value)) => kind = Some(value),
                Some(("dest", value)) => dest = Some(value),
                Some(("name", value)) => {
                    for name in value.split(',') {
                        names.push(name.parse::<Reference>()?);
                    }
                }
                Some(("push", "true" | "false")) => is_pushed = field.ends_with("true"),
                Some(("tar", "true" | "false")) => is_tar = field.ends_with("true"),
                Some(("compression", "gzip")) => packing = Some(image::Packing::Gzip),
                Some(("compression", "zstd")) => packing = Some(image::Packing::Zstd),
                Some(("compression", "uncompressed")) => packing = Some(image::Packing::None),
                Some(known) if AS_IT_IS.contains(&known) => {}
                _ => return Err(usage(&format!("has the unknown field `{field}`"))),
            }
        }
        let path = dest.filter(|dest| *dest != "-").map(PathBuf::from);
        let stored = |is_pushed| {
            let packing = packing.unwrap_or(image::Packing::Gzip);
            Ok(Self::Store { names: names.clone(), is_pushed, packing })
        };
        let format = |format| {
            let packing = packing.unwrap_or(image::Packing::None);
            Ok(Self::Image { format, path: path.clone(), packing, names: names.clone() })
        };
        match kind {
            Some("local") => path.clone().map(Self::Directory).ok_or_else(|| usage("names no directory (`dest=DIR`)")),
            Some("tar") => Ok(Self::Tar(path)),
            Some("oci") if is_tar => format(image::FormatFlag::OciArchive),
            Some("oci") if path.is_some() => format(image::FormatFlag::OciDir),
            Some("oci") => Err(usage("names no directory (`dest=DIR`)")),
            Some("docker") if dest.is_some() => format(image::FormatFlag::DockerArchive),
            // The store is the cache.
            Some("docker" | "cacheonly") => stored(false),
            Some("image") => stored(is_pushed),
            Some("registry") => stored(true),
            Some(other) => Err(usage(&format!("has the unknown type `{other}`"))),
            None => Err(usage("names no type")),
        }
    }

    /// The names that the output gives to the image.
    pub(super) fn names(&self) -> &[Reference] {
        match self {
            Self::Image { names, .. } | Self::Store { names, .. } => names,
            Self::Directory(_) | Self::Tar(_) => &[],
        }
    }

    /// How layers are packed for a registry, if the output is one.
    pub(super) fn pushed(&self) -> Option<image::Packing> {
        match self {
            Self::Store { is_pushed: true, packing, .. } => Some(*packing),
            _ => None,
        }
    }

    /// Whether the output is standard output.
    pub(super) fn takes_stdout(&self) -> bool {
        matches!(self, Self::Tar(None) | Self::Image { path: None, .. })
    }

    /// Fails where the output cannot be written at all, before the build.
    pub(super) fn check(&self) -> Result<(), Report> {
        match self {
            target if target.takes_stdout() && io::stdout().is_terminal() => {
                Err(Report::usage("cannot write the output of a build to a terminal")
                    .with_hint("name a file: `--output type=tar,dest=FILE`"))
            }
            Self::Directory(dir) if dir.exists() && !dir.is_dir() => {
                Err(Report::usage(format!("cannot write to `{}`: it is not a directory", dir.display())))
            }
            _ => Ok(()),
        }
    }

    /// Writes the image, with the names of this build.
    pub(super) fn write(&self, store: &Store, image: &Image, names: &[Reference]) -> Result<(), Report> {
        match self {
            Self::Directory(dir) => files(store, image, dir),
            Self::Tar(None) => {
                let out = build::write_files(store, image, BufWriter::with_capacity(1 << 20, io::stdout().lock()))?;
                finish(out, Path::new("standard output"))
            }
            Self::Tar(Some(path)) => image::write_atomically(path, &mut |file| {
                finish(build::write_files(store, image, BufWriter::with_capacity(1 << 20, file))?, path)
            }),
            Self::Image { format, path, packing, .. } => {
                let image = ToSave { image: image.clone(), names: names.to_vec() };
                image::save_image(store, image, path.as_deref(), *format, *packing)
            }
            Self::Store { .. } => Ok(()),
        }
    }
}

fn finish(mut out: impl Write, path: &Path) -> Result<(), Report> {
    out.flush().map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))
}

/// Merges the files of the image into a directory. They belong to the caller, as in docker, and have no rights of
/// others: the image may be hostile.
fn files(store: &Store, image: &Image, dir: &Path) -> Result<(), Report> {
    let failed = |error: io::Error| {
        Report::new(format!("cannot write the files of the build to `{}`", dir.display())).with_cause(error)
    };
    let owner = Owner::caller();
    if !dir.exists() {
        let _umask = CallerUmask::enter();
        std::fs::create_dir_all(dir).map_err(failed)?;
        std::os::unix::fs::chown(dir, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    }
    let fd = directory::open_root(&dir.canonicalize().map_err(failed)?).map_err(failed)?;
    let (tree, sources) = store.tree_and_sources(image)?;
    let tree = tree.portable(Some((owner.uid, owner.gid)));
    directory::render_over(&tree, &sources, fd.as_fd()).map_err(|error| {
        Report::from(error).under(format!("cannot write the files of the build to `{}`", dir.display()))
    })
}

/// Pushes the image under each of its names. Returns the digest of the manifest.
pub(super) fn push(
    store: &Store,
    image: &Image,
    names: &[Reference],
    packing: image::Packing,
    registry: &RegistryFlags,
    quiet: bool,
) -> Result<Option<Digest>, Report> {
    let mut digest = None;
    for name in names {
        digest = Some(image::push_image(store, image, name, packing, registry, quiet)?);
    }
    Ok(digest)
}

/// Parses `--ssh`: `ID` is the caller's own agent, and `ID=SOCKET` another one.
pub(super) fn agent(text: &str) -> Result<(String, PathBuf), Report> {
    let (id, path) = match text.split_once('=') {
        Some((id, path)) => (id, PathBuf::from(path)),
        None => {
            let path = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| {
                Report::usage(format!("cannot use `--ssh {text}`: there is no SSH agent (SSH_AUTH_SOCK is not set)"))
                    .with_hint("start one: `eval $(ssh-agent) && ssh-add`; sudo keeps it with `sudo --preserve-env=SSH_AUTH_SOCK`")
            })?;
            (text, path.into())
        }
    };
    if id.is_empty() {
        return Err(Report::usage(format!("`--ssh {text}` has no ID")).with_hint("write `--ssh default`"));
    }
    let is_socket = |path: &Path| {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(path).map(|metadata| metadata.file_type().is_socket())
    };
    match is_socket(&path) {
        Ok(true) => Ok((id.to_owned(), path)),
        Ok(false) => Err(Report::usage(format!("cannot use `--ssh {text}`: `{}` is not a socket", path.display()))
            .with_hint(format!("add a key to an agent: `ssh-add {}`, and use `--ssh {id}`", path.display()))),
        Err(error) => Err(Report::new(format!("cannot use `--ssh {text}`")).with_cause(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_dockers() {
        use image::FormatFlag::{self, DockerArchive, OciArchive, OciDir};
        use image::Packing::{Gzip, None as Plain, Zstd};
        let file = |name: &str| Some(PathBuf::from(name));
        let store = |names: &[&str], is_pushed| Target::Store {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            is_pushed,
            packing: Gzip,
        };
        let image = |format: FormatFlag, path| Target::Image { format, path, packing: Plain, names: Vec::new() };
        for (text, want) in [
            ("-", Target::Tar(None)),
            ("out/dir", Target::Directory("out/dir".into())),
            ("type=local,dest=out", Target::Directory("out".into())),
            ("type=tar,dest=x.tar", Target::Tar(file("x.tar"))),
            ("type=tar", Target::Tar(None)),
            ("type=oci,dest=x.tar", image(OciArchive, file("x.tar"))),
            ("type=oci", image(OciArchive, None)),
            ("type=oci,tar=false,dest=x", image(OciDir, file("x"))),
            ("type=docker,dest=-", image(DockerArchive, None)),
            ("type=docker", store(&[], false)),
            ("type=image,name=a:1,push=true", store(&["a:1"], true)),
            ("type=image,\"name=a:1,b:2\"", store(&["a:1", "b:2"], false)),
            ("type=registry", store(&[], true)),
            ("type=cacheonly", store(&[], false)),
            ("type=image,name=a:1,oci-mediatypes=true,unpack=false", store(&["a:1"], false)),
            ("type=registry,compression=zstd", Target::Store { names: Vec::new(), is_pushed: true, packing: Zstd }),
            (
                "type=docker,name=a:1,dest=x.tar,compression=gzip",
                Target::Image {
                    format: DockerArchive,
                    path: file("x.tar"),
                    packing: Gzip,
                    names: vec!["a:1".parse().unwrap()],
                },
            ),
        ] {
            assert_eq!(Target::parse(text).unwrap(), want, "{text}");
        }
        for (text, want) in [
            ("type=inline", "the unknown type `inline`"),
            ("type=image,compression=lz4", "the unknown field `compression=lz4`"),
            ("type=local", "names no directory"),
            ("type=oci,tar=false", "names no directory"),
            ("dest=x", "names no type"),
            ("type=tar,color=red", "the unknown field `color=red`"),
            ("type=tar,tar=maybe", "the unknown field `tar=maybe`"),
        ] {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("hint: "), "{text}: {error}");
        }
    }

    #[test]
    fn an_agent_is_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(agent(&format!("git={}", path.display())).unwrap(), ("git".to_owned(), path));
        for (text, want) in [
            ("git=/etc/passwd", "is not a socket"),
            ("git=/nosuch", "cannot use `--ssh git=/nosuch`"),
            ("=/x", "has no ID"),
        ] {
            let error = agent(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
