//! The driver's files as a layer of the container's root: what the container sees, and what is on the host.

use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::{Archive, Layer, busybox};
use crate::driver::{FakeDriver, LIBRARY_DIR, VERSION};
use crate::gpu::Lab;
use crate::host::{Host, answer};

pub const TESTS: &[(&str, fn())] = &[
    ("a_driver_comes_as_a_layer", layer),
    ("a_layer_respects_the_images_links", links),
    ("mounts_and_the_containers_own_files_win", hidden),
    ("unusual_mounts_of_a_cdi_file_stay_mounts", unusual),
    ("a_layer_is_made_once_and_swept", swept),
    ("a_driver_on_another_file_system_is_copied", copied),
];

const NATIVE: [&str; 4] = ["--gpus", "all", "--gpu-mode", "native"];
/// The mounts of the driver's files that a container has.
const MOUNTS: &str = "grep -c -e libcuda -e nvidia-smi -e libnvidia /proc/self/mountinfo || true";

/// The directories of the layers.
fn layers(host: &Host) -> Vec<PathBuf> {
    let entries = fs::read_dir(host.dir.join("root/drivers")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("tree").exists()).collect()
}

fn layer() {
    let lab = Lab::new(1);
    let line = format!(
        "{MOUNTS}; cat /usr/lib/libcuda.so.1 | md5sum; readlink /usr/lib/libcuda.so; grep -c libnvidia-ml.so.1 /etc/ld.so.cache; stat -c '%a %u' /usr/lib"
    );
    let file = lab.driver.root.join(LIBRARY_DIR).join(format!("libcuda.so.{VERSION}"));
    let before = fs::read(&file).unwrap();
    let said = lab.shell(&NATIVE, &line);
    let sum =
        lab.host.with_input(&["run", "--rm", "-i", "--network", "none", "box", "sh", "-c", "md5sum"], &before).out;
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said, ["0", sum.trim(), "libcuda.so.1", "1", "755 0"]);
    // The container's own directory has none of it, and a change of the container is the container's.
    let flags = ["run", "-d", "--name", "it", "--network", "none"];
    lab.ok(&[&flags[..], &NATIVE, &["box", "sleep", "1000"]].concat());
    assert_eq!(lab.ok(&["diff", "it"]), "");
    lab.ok(&["exec", "it", "sh", "-c", "echo mine >> /usr/bin/nvidia-smi; echo more > /usr/lib/own"]);
    let changed = lab.ok(&["diff", "it"]);
    assert!(changed.contains("/usr/bin/nvidia-smi") && changed.contains("/usr/lib/own"), "{changed}");
    assert!(!changed.contains("libcuda") && !changed.contains("ld.so.cache"), "{changed}");
    let program = fs::read_to_string(lab.driver.root.join("usr/bin/nvidia-smi")).unwrap();
    assert!(!program.contains("mine"), "the host's file is as before");
    assert_eq!(fs::read(&file).unwrap(), before);
    let by = lab.host.inspect("it")["GpusBy"].to_string();
    assert!(by.contains("in a layer of the container's root"), "{by}");
    lab.ok(&["rm", "-f", "it"]);
    let answer = lab.run(&["explain", "--gpus", "all", "--gpu-mode", "native"]);
    assert!(answer.out.contains("a layer of the root file system, the driver's files"), "{}", answer.out);
    assert_eq!(lab.host.leftovers(), "");
}

fn links() {
    let lab = Lab::new(1);
    let of_image = Layer::default()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o711)
        .dir("usr/lib/deep", 0o755)
        .file("usr/lib/deep/file", 0o644, b"of the image")
        .file("usr/lib/kept", 0o644, b"kept")
        .link("usr/lib64", "lib/deep")
        .link("lib64", "usr/lib64")
        .link("usr/bin", "../tools")
        .dir("tools", 0o750)
        .file("tools/nvidia-smi", 0o755, b"of the image");
    let mut archive = Archive::new("links");
    archive.layers.extend(busybox().layers);
    let path = lab.host.dir.join("links.tar");
    archive.layer(of_image).write(&path);
    lab.ok(&["image", "load", path.to_str().unwrap()]);
    let line = format!(
        "{MOUNTS}; readlink /usr/lib64; readlink /usr/bin; cat /usr/lib/kept; echo; cat /lib64/file; echo; ls /usr/lib/deep/libcuda.so.1; sh /tools/nvidia-smi; stat -c %a /usr/lib /tools"
    );
    let said = lab.ok(&[&["run", "--rm", "--network", "none"], &NATIVE[..], &["links", "sh", "-c", &line]].concat());
    let smi = format!("nvidia-smi of {VERSION}");
    let expected =
        ["0", "lib/deep", "../tools", "kept", "of the image", "/usr/lib/deep/libcuda.so.1", &smi, "711", "750"];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

fn hidden() {
    let lab = Lab::new(1);
    let own = lab.host.dir.join("own");
    fs::write(&own, "echo of the user\n").unwrap();
    let volume = format!("{}:/usr/bin/nvidia-smi", own.display());
    let words = ["run", "--rm", "--network", "none", "-v", &volume];
    let said = lab.run(&[&words[..], &NATIVE, &["box", "sh", "/usr/bin/nvidia-smi"]].concat());
    assert_eq!(said.out, "of the user\n", "{}", said.err);
    assert!(said.err.contains("the mount on `/usr/bin/nvidia-smi` replaces the GPU"), "{}", said.err);
    // Below a mount of the user's, the files are mounted.
    let smi = format!("nvidia-smi of {VERSION}");
    let line = format!("{MOUNTS}; sh /usr/bin/nvidia-smi");
    let said = lab.shell(&[&NATIVE[..], &["--tmpfs", "/usr/bin"]].concat(), &line);
    assert_eq!(said.lines().last(), Some(&*smi), "{said}");
    assert_ne!(said.lines().next(), Some("0"), "{said}");
    // Files that the container has removed or replaced are there again at the next start.
    let change = "if [ -e /changed ]; then sh /usr/bin/nvidia-smi; ls /usr/lib/libcuda.so.1; cat /changed; fi; rm -f /usr/bin/nvidia-smi /usr/lib/libcuda.so.1; mkdir -p /x; echo mine > /changed; true";
    let flags = ["run", "--name", "it", "--network", "none"];
    lab.ok(&[&flags[..], &NATIVE, &["box", "sh", "-c", change]].concat());
    let said = lab.ok(&["start", "-a", "it"]);
    assert_eq!(said, format!("{smi}\n/usr/lib/libcuda.so.1\nmine"));
    lab.ok(&["rm", "it"]);
    assert_eq!(lab.host.leftovers(), "");
}

fn unusual() {
    let lab = Lab::new(1);
    lab.driver.cdi("etc/cdi/nvidia.yaml", 1);
    let file = lab.driver.root.join("etc/cdi/nvidia.yaml");
    let flags = ["--gpus", "all", "--gpu-mode", "cdi"];
    let line = format!("grep -c -e libcuda -e nvidia-smi /proc/self/mountinfo; ls /{LIBRARY_DIR} /usr/bin/nvidia-smi");
    let all = format!("libcuda.so.{VERSION}");
    let said = lab.shell(&flags, &line);
    assert!(said.starts_with('0') && said.contains(&all) && said.contains("nvidia-smi"), "{said}");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("options: [ro, nosuid,", "options: [ro, noexec, nosuid,", 1)).unwrap();
    let said = lab.shell(&flags, &format!("{line}; grep libcuda /proc/self/mountinfo"));
    assert!(said.starts_with('1') && said.contains(&all) && said.contains("noexec"), "{said}");
}

fn swept() {
    let lab = Lab::new(1);
    let start = || lab.command(&[&["run", "--rm", "--network", "none"], &NATIVE[..], &["box", "true"]].concat());
    let pair = [start().spawn().unwrap(), start().spawn().unwrap()];
    for mut one in pair {
        assert!(one.wait().unwrap().success());
    }
    let first = layers(&lab.host);
    assert_eq!(first.len(), 1, "{first:?}");
    // An upgrade of the driver while a container runs.
    lab.ok(&[&["run", "-d", "--name", "it", "--network", "none"], &NATIVE[..], &["box", "sleep", "1000"]].concat());
    let program = lab.driver.root.join("usr/bin/nvidia-smi");
    let replace = |text: &str| {
        fs::remove_file(&program).unwrap();
        lab.driver.program("nvidia-smi", text);
    };
    replace("echo newer");
    assert_eq!(lab.shell(&NATIVE, "sh /usr/bin/nvidia-smi"), "newer");
    assert_eq!(layers(&lab.host).len(), 2, "the first is in use");
    assert_eq!(lab.ok(&["exec", "it", "sh", "/usr/bin/nvidia-smi"]), format!("nvidia-smi of {VERSION}"));
    lab.ok(&["rm", "-f", "it"]);
    replace("echo newest");
    assert_eq!(lab.shell(&NATIVE, "sh /usr/bin/nvidia-smi"), "newest");
    let last = layers(&lab.host);
    assert!(last.len() == 1 && last != first, "{last:?}");
    // One that was being made when its process was killed.
    fs::create_dir_all(lab.host.dir.join("root/drivers/new/tree/usr")).unwrap();
    replace("echo again");
    assert_eq!(lab.shell(&NATIVE, "sh /usr/bin/nvidia-smi"), "again");
    lab.ok(&["system", "prune", "--force"]);
    assert!(layers(&lab.host).is_empty());
}

fn copied() {
    let lab = Lab::new(0);
    let elsewhere = tempfile::Builder::new().prefix("gpurun-driver").tempdir_in("/dev/shm").unwrap();
    let driver = FakeDriver::new(&elsewhere.path().join("driver"), 1);
    let run = |flags: &[&str]| {
        let mut command = lab.host.command(&[&["run", "--rm", "--network", "none"], &NATIVE[..], flags].concat());
        answer(command.env("GPURUN_DRIVER_ROOT", &driver.root).output().unwrap())
    };
    let line = format!("{MOUNTS}; sh /usr/bin/nvidia-smi");
    let said = run(&["box", "sh", "-c", &line]);
    assert_eq!(said.out, format!("0\nnvidia-smi of {VERSION}\n"), "{}", said.err);
    let count = |dir: &Path| fs::read_dir(dir).map_or(0, Iterator::count);
    let files = lab.host.dir.join("root/drivers/files");
    let copies = count(&files);
    assert!(copies > 0);
    // Another image has a layer of its own, and the same copies.
    lab.ok(&["run", "--name", "base", "--network", "none", "box", "touch", "/new"]);
    lab.ok(&["commit", "base", "other"]);
    lab.ok(&["rm", "base"]);
    assert_eq!(run(&["other", "true"]).code, 0);
    assert_eq!((layers(&lab.host).len(), count(&files)), (2, copies));
    lab.ok(&["system", "prune", "--force"]);
    assert_eq!((layers(&lab.host).len(), count(&files)), (0, 0));
}
