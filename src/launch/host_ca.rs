//! `--host-ca` for a container: writes the host's certificates and settings to /run and mounts them in the container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::places::Places;
use super::process;
use crate::record::Entry;
use crate::report::Report;
use crate::request::HostCa;
use crate::rootfs::MountpointKind;
use crate::spec::Mount;

/// Adds the variables that neither the image nor the caller set, and returns the mounts of the files.
pub(super) fn mounts(entry: &Entry, places: &Places<'_>, env: &mut Vec<String>) -> Result<Vec<Mount>, Report> {
    let Some(host) = &entry.record.request.host_ca else { return Ok(Vec::new()) };
    let dir = entry.run_dir.join("host-ca");
    let failed = |path: &Path| {
        let message = format!("cannot write `{}`", path.display());
        move |error: std::io::Error| Report::new(message).with_cause(error)
    };
    fs::create_dir_all(&dir).map_err(failed(&dir))?;
    let files = [
        (HostCa::BUNDLE, host.read_bundle()?),
        (HostCa::PIP_CONF, host.pip_conf.clone().into_bytes()),
        (HostCa::APT_CONF, host.apt_conf.clone().into_bytes()),
    ];
    let mut mounts = Vec::new();
    for (target, bytes) in files {
        let source = dir.join(Path::new(target).file_name().unwrap_or_default());
        fs::write(&source, bytes)
            .and_then(|()| fs::set_permissions(&source, fs::Permissions::from_mode(0o444)))
            .map_err(failed(&source))?;
        let destination = places.own(Path::new(target), MountpointKind::File)?;
        let options = ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"].map(str::to_owned).into();
        mounts.push(Mount { destination, kind: "bind".into(), source, options });
    }
    for (name, value) in host.env.iter().filter(|(name, _)| !process::has(env, name)).collect::<Vec<_>>() {
        env.push(format!("{name}={value}"));
    }
    Ok(mounts)
}

impl HostCa {
    /// Reads the host's current certificate bundle.
    pub(crate) fn read_bundle(&self) -> Result<Vec<u8>, Report> {
        fs::read(&self.bundle)
            .map_err(|error| Report::new(format!("cannot read `{}`", self.bundle.display())).with_cause(error))
    }
}
