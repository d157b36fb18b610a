//! Helpers for the tests of this module.

use crate::sys::mount;

pub fn root_or_skip(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("GPURUN_REQUIRE").is_none(), "{what}: needs root");
        eprintln!("skipped, needs root: {what}");
    }
    root
}

/// Runs `test` in a thread with a mount namespace of its own. The namespace disappears with the thread, so the test
/// leaves no mounts behind.
pub fn in_own_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        mount::unshare_slave().expect("a mount namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Mounts a new tmpfs on `dir`.
pub fn tmpfs(dir: &std::path::Path) {
    use std::os::fd::AsFd;
    std::fs::create_dir_all(dir).unwrap();
    let mounted = mount::FsContext::open(c"tmpfs").unwrap().mount(mount::Attr::NONE).unwrap();
    mount::attach(mounted.as_fd(), std::fs::File::open(dir).unwrap().as_fd()).unwrap();
}

/// Waits until `done` returns a value. Between its fork and its exec, a child of another test holds copies of all
/// descriptors, so locks and mounts stay busy for that time.
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

/// Unmounts `path` as soon as it is not in use.
pub fn unmount(path: &std::path::Path) {
    eventually("unmounting", || match mount::unmount(path) {
        Ok(()) => Some(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
        Err(error) => panic!("{}: {error}", path.display()),
    });
}
