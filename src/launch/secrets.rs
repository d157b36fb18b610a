//! `--secret`: copies of the caller's files, in memory, as mounts or variables of the container.
//!
//! A copy is in the container's directory in /run, and is removed with it. The image's layer has an empty mount point
//! only, which `commit` leaves out.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::places::Places;
use crate::record::Entry;
use crate::report::Report;
use crate::request::{Mounted, Request, SecretRequest, SecretTarget};
use crate::rootfs::MountpointKind;
use crate::spec::Mount;

/// docker's limit for the size of a secret.
const MAX: u64 = 500 << 10;

/// Checks that every file can be read.
pub(super) fn check(request: &Request) -> Result<(), Report> {
    request.secrets.iter().try_for_each(|secret| read(secret).map(drop))
}

fn read(secret: &SecretRequest) -> Result<Vec<u8>, Report> {
    let path = secret.source.display();
    let what = || format!("cannot use `{path}` as the secret `{}`", secret.id);
    let mut bytes = Vec::new();
    let file = fs::File::open(&secret.source).map_err(|error| Report::new(what()).with_cause(error))?;
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(|error| Report::new(what()).with_cause(error))?;
    if bytes.len() as u64 > MAX {
        return Err(Report::new(what())
            .with_cause(format!("it is larger than {} KiB", MAX >> 10))
            .with_hint(format!("mount it: `-v {path}:/run/secrets/{}:ro`", secret.id)));
    }
    Ok(bytes)
}

/// Writes the copies. Returns their mounts, and adds the variables.
pub(super) fn mounts(
    entry: &Entry,
    places: &Places<'_>,
    request: &Request,
    env: &mut Vec<String>,
) -> Result<Vec<Mount>, Report> {
    let mut mounts = Vec::new();
    for (number, secret) in request.secrets.iter().enumerate() {
        let bytes = read(secret)?;
        match &secret.target {
            SecretTarget::Env(name) => {
                let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(|| {
                    Report::new(format!(
                        "cannot use the secret `{}` as the variable `{name}`: it is not text",
                        secret.id
                    ))
                    .with_hint("mount it: omit `type=env`")
                })?;
                env.retain(|entry| entry.split_once('=').is_none_or(|(other, _)| other != name));
                env.push(format!("{name}={text}"));
            }
            SecretTarget::Mount { path, mode, uid, gid } => {
                let source = entry.run_dir.join("secrets").join(number.to_string());
                write(&source, &bytes, *mode, (*uid, *gid))
                    .map_err(|error| Report::new(format!("cannot write `{}`", source.display())).with_cause(error))?;
                let destination = places.added(path, MountpointKind::File, Mounted::Other)?;
                let options = ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"].map(str::to_owned).into();
                mounts.push(Mount { destination, kind: "bind".into(), source, options });
            }
        }
    }
    Ok(mounts)
}

fn write(path: &Path, bytes: &[u8], mode: u32, owner: (u32, u32)) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}
