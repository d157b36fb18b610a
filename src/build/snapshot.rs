//! Makes a private copy of a part of the context for `RUN --mount=type=bind`.
//!
//! A step must not see the context itself, because its owner may change it while the step runs. A directory replaced by
//! a link would expose files of the host. A file that is changed and then changed back would leave a result in the
//! cache that does not match its key. A copy of the hashed files cannot change, so the key stays correct. As in
//! BuildKit, all files in the copy belong to root.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::context::{Context, ContextError, Found, FoundKind, Source};

/// A run of zeros of this length becomes a hole.
const HOLE: usize = 64 << 10;

/// Writes the files that [`Context::select`] found to `to`. The path must not exist, and its parent must belong to this
/// process alone. It is an error if a file has changed since it was found.
pub(super) fn write(context: &Context, source: &Source, to: &Path) -> Result<(), ContextError> {
    let mut linked: HashMap<(u64, u64, [u8; 32]), PathBuf> = HashMap::new();
    for found in &source.found {
        let path = place(to, found);
        let failed = |source| ContextError::Copy { path: found.path.display().to_string(), source };
        match &found.kind {
            FoundKind::Directory => fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?,
            FoundKind::Symlink(target) => symlink(OsStr::from_bytes(target), &path).map_err(failed)?,
            FoundKind::File { inode, digest, .. } => {
                let key = inode.map(|(device, inode)| (device, inode, *digest));
                if let Some(first) = key.and_then(|key| linked.get(&key)) {
                    fs::hard_link(first, &path).map_err(failed)?;
                    continue;
                }
                linked.extend(key.map(|key| (key, path.clone())));
                file(context, found, &path)?;
            }
        }
    }
    // Set the attributes of directories last and from the inside out, because a directory may not be writable for its
    // owner.
    for found in source.found.iter().rev().filter(|found| found.kind == FoundKind::Directory) {
        let failed = |source| ContextError::Copy { path: found.path.display().to_string(), source };
        let path = place(to, found);
        fs::set_permissions(&path, Permissions::from_mode(found.mode.into())).map_err(failed)?;
        File::open(&path).and_then(|dir| dir.set_modified(time(found))).map_err(failed)?;
    }
    Ok(())
}

/// The path of a found file in the copy. Joining an empty name would add a trailing slash.
fn place(to: &Path, found: &Found) -> PathBuf {
    match found.name.as_slice() {
        b"" => to.to_owned(),
        name => to.join(OsStr::from_bytes(name)),
    }
}

fn file(context: &Context, found: &Found, path: &Path) -> Result<(), ContextError> {
    let failed = |source| ContextError::Copy { path: found.path.display().to_string(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut length = 0;
    context
        .read(found, |bytes| {
            length += bytes.len() as u64;
            for chunk in bytes.chunks(HOLE) {
                if chunk.len() == HOLE && chunk.iter().all(|byte| *byte == 0) {
                    file.seek(SeekFrom::Current(HOLE as i64))?;
                } else {
                    file.write_all(chunk)?;
                }
            }
            Ok(())
        })?
        .and_then(|()| file.set_len(length))
        .map_err(failed)?;
    file.set_permissions(Permissions::from_mode(found.mode.into())).map_err(failed)?;
    file.set_modified(time(found)).map_err(failed)
}

fn time(found: &Found) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(found.mtime).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::context::Place;
    use super::*;

    fn context() -> (tempfile::TempDir, Context, Source) {
        let base = tempfile::tempdir().expect("a directory");
        let root = base.path().join("context");
        fs::create_dir_all(root.join("d/sub")).expect("made");
        fs::write(root.join("d/x"), "x").expect("written");
        fs::hard_link(root.join("d/x"), root.join("d/sub/y")).expect("linked");
        fs::write(root.join("d/sparse"), vec![0; 3 * HOLE + 5]).expect("written");
        symlink("x", root.join("d/link")).expect("linked");
        fs::set_permissions(root.join("d/sub"), Permissions::from_mode(0o511)).expect("set");
        let context = Context::open(&root, &Place::StandardInput).expect("opened");
        let source = context.select("d", &crate::build::ignore::Filter::default()).expect("found").remove(0);
        (base, context, source)
    }

    #[test]
    fn a_snapshot_is_what_was_found() {
        let (base, context, source) = context();
        let to = base.path().join("copy");
        write(&context, &source, &to).expect("copied");
        let meta = |name: &str| to.join(name).symlink_metadata().expect(name);
        assert_eq!((meta("x").ino(), meta("x").nlink()), (meta("sub/y").ino(), 2));
        assert_eq!(meta("sub").mode() & 0o7777, 0o511);
        assert_eq!(fs::read(to.join("sparse")).expect("read"), vec![0; 3 * HOLE + 5]);
        assert!(meta("sparse").blocks() * 512 < 2 * HOLE as u64);
        assert_eq!(fs::read_link(to.join("link")).expect("a link"), Path::new("x"));
    }

    #[test]
    fn what_has_changed_since_is_an_error() {
        let changes: [fn(&Path); 3] = [
            |d| fs::write(d.join("x"), "y").expect("written"),
            |d| {
                fs::rename(d, d.with_extension("old")).expect("renamed");
                symlink("/etc", d).expect("linked");
            },
            |d| {
                fs::remove_file(d.join("sparse")).expect("removed");
                symlink("/etc/passwd", d.join("sparse")).expect("linked");
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let (base, context, source) = context();
            change(&base.path().join("context/d"));
            let error = write(&context, &source, &base.path().join("copy")).expect_err("changed");
            assert!(matches!(error, ContextError::Changed(_)), "{number}: {error}");
        }
    }
}
