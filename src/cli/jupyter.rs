//! (to come)
use super::Context;
use crate::report::Report;
use clap::Args;
#[derive(Debug, Args)]
pub struct JupyterArgs {
    /// Start Jupyter in a new container of this image, and print the URL where it answers
    #[arg(long, value_name = "IMAGE", required = true)]
    image: Option<String>,
}
pub fn run(_: &JupyterArgs, _: &Context) -> Result<u8, Report> {
    Err(Report::new("to come"))
}
