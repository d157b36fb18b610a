//! Helpers of this room's tests.

use crate::sys::mount;

pub fn root_or_skip(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("GPURUN_REQUIRE").is_none(), "{what}: needs root");
        eprintln!("skipped, needs root: {what}");
    }
    root
}

/// Runs `test` in a thread with a mount namespace of its own, which vanishes with the thread: nothing can be left behind.
pub fn in_own_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        mount::unshare_slave().expect("a mount namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A fresh tmpfs on `dir`.
pub fn tmpfs(dir: &std::path::Path) {
    use std::os::fd::AsFd;
    std::fs::create_dir_all(dir).unwrap();
    let mounted = mount::FsContext::open(c"tmpfs").unwrap().mount(mount::Attr::NONE).unwrap();
    mount::attach(mounted.as_fd(), std::fs::File::open(dir).unwrap().as_fd()).unwrap();
}

/// Waits until `done`. Another test's child holds copies of all descriptors for the moment between its fork and its exec: locks and
/// mounts are busy for that long.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(std::time::Instant::now() < deadline, "{what} does not happen");
        std::thread::yield_now();
    }
}

/// Unmounts `path` as soon as nobody is on it.
pub fn unmount(path: &std::path::Path) {
    eventually("unmounting", || match mount::unmount(path) {
        Ok(()) => Some(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
        Err(error) => panic!("{}: {error}", path.display()),
    });
}
