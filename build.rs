//! Builds the container's own pid 1 (src/init): a static program without any library, which src/runtime embeds.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/init/main.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("init");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-name", "init", "--crate-type", "bin", "--target", &target]);
    command.args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols", "-C", "relocation-model=static"]);
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"] {
        command.arg("-C").arg(format!("link-arg={argument}"));
    }
    command.arg("-o").arg(&out).arg("src/init/main.rs");
    let status = command.status().expect("rustc runs");
    assert!(status.success(), "the container's init (src/init/main.rs) does not build");
}
