//! Snapshots of this module's error texts, with their hints and causes. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::error::NvidiaError;
use super::nvml::Unread;
use super::toolkit::Missing;
use crate::report::texts::Texts;

#[test]
fn errors_of_nvidia() {
    let mut texts = Texts::default();
    let (library, config) = (|| "/usr/lib/libnvidia-ml.so.1".into(), || "/etc/nvidia/config.toml".into());
    let (device, generate) = (|| "GPU 1".to_owned(), || "`nvidia-ctk cdi generate`".to_owned());
    for missing in [
        Missing::Hook { searched: "/usr/bin".into() },
        Missing::Tool { hook: "/usr/bin/nvidia-container-runtime-hook".into() },
        Missing::ToolAt { tool: "/opt/nvidia-container-cli".into(), config: config() },
        Missing::Mode { mode: "cdi".into(), config: config() },
    ] {
        texts.add(NvidiaError::NoHook(missing));
    }
    for unread in [
        Unread::NoLibrary,
        Unread::Mismatch { library: library() },
        Unread::Refused { library: library(), error: "the driver is not loaded".into() },
        Unread::Silent { library: library() },
        Unread::Crashed { library: library(), how: "signal 11".into() },
    ] {
        texts.add(NvidiaError::Silent(unread));
    }
    texts.add(NvidiaError::NoCdi { generate: generate(), source: None });
    texts.add(NvidiaError::NotInCdi { device: device(), generate: generate() });
    texts.add(NvidiaError::NeedsNvml { device: device(), source: None });
    texts.add(NvidiaError::NoLibraries { library: "libcuda.so.1".into(), driver: "550.54.15".into() });
    texts.add(NvidiaError::Mismatch { module: "550.54.15".into(), libraries: "550.90.07".into() });
    texts.add(NvidiaError::NoUvm);
    texts.add(NvidiaError::NoNode { device: device() });
    insta::assert_snapshot!(texts.0);
}
