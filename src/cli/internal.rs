//! The commands that gpurun runs itself as: no person types them.

use clap::Args;

use super::Context;
use crate::report::Report;
use crate::supervise;

#[derive(Debug, Args)]
pub struct SuperviseArgs {
    id: String,
}

pub fn supervise(args: &SuperviseArgs, context: &Context) -> Result<u8, Report> {
    let client = supervise::inherited_client();
    supervise::detach_from_terminal()?;
    supervise::main(&context.root, &context.run_dir, &args.id, client)?;
    Ok(0)
}

#[derive(Debug, Args)]
pub struct HookShimArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<std::ffi::OsString>,
}

pub fn hook_shim(args: HookShimArgs) -> u8 {
    crate::hook::shim::main(args.args)
}

#[derive(Debug, Args)]
pub struct GpuProbeArgs {
    library: std::path::PathBuf,
}

pub fn gpu_probe(args: &GpuProbeArgs) -> u8 {
    crate::gpu::nvml::main(&args.library)
}
