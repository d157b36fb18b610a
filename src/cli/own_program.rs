//! The path of gpurun's own program, for files that make root run it later.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::report::Report;

/// Returns the path of this program. It is an error if a user other than root can replace it.
///
/// The error says what cannot be done (`install the shim`), how root would run the program (`at boot`), and which command
/// to repeat (`shim install`).
pub(super) fn own_program(doing: &str, how: &str, command: &str) -> Result<PathBuf, Report> {
    let program = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .map_err(|error| Report::new("cannot find the executable of gpurun").with_cause(error))?;
    for path in program.ancestors() {
        let metadata = fs::metadata(path)
            .map_err(|error| Report::new(format!("cannot read `{}`", path.display())).with_cause(error))?;
        // In a sticky directory, such as /var/tmp, only the owner of a file replaces it.
        let is_shared = metadata.mode() & 0o022 != 0 && !(metadata.is_dir() && metadata.mode() & 0o1000 != 0);
        if metadata.uid() != 0 || is_shared {
            return Err(Report::new(format!(
                "cannot {doing}: other users can replace `{}`, which root would run {how}",
                path.display()
            ))
            .with_hint(format!(
                "install gpurun first, with its package or `sudo ./install`, and run `sudo gpurun {command}`"
            )));
        }
    }
    Ok(program)
}
