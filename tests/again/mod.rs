//! A second try for a test that fails: alone, and reported.
//!
//! Many tests wait for processes and kernels, and a machine that is busy with something else can break any time limit. With
//! `GPURUN_TEST_AGAIN=1`, as `./run-tests` sets it, a test that fails is run once more while no other test of this program runs. If it
//! passes then, it passes, and `./run-tests` lists it at the end: such a test, or what it tests, has a fault to be found.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{PoisonError, RwLock};

use libtest_mimic::Failed;

/// Shared by tests that run, held alone by a second try.
static RUNNING: RwLock<()> = RwLock::new(());

/// Runs a test, and once more if it fails and the environment asks for it.
pub fn attempt(name: &str, test: impl Fn() -> Result<(), Failed>) -> Result<(), Failed> {
    let first = {
        let _shared = RUNNING.read().unwrap_or_else(PoisonError::into_inner);
        catch_unwind(AssertUnwindSafe(&test))
    };
    if matches!(first, Ok(Ok(()))) || std::env::var_os("GPURUN_TEST_AGAIN").is_none() {
        return first.unwrap_or_else(|panic| resume_unwind(panic));
    }
    let _alone = RUNNING.write().unwrap_or_else(PoisonError::into_inner);
    if let Ok(Err(failed)) = &first {
        eprintln!("{name}: {}", failed.message().unwrap_or("failed"));
    }
    eprintln!("run again, alone: {name}");
    test()?;
    println!("passed only when run again: {name}");
    Ok(())
}
