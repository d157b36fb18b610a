//! `gpurun token`: hashes a password for Jupyter's configuration.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use crate::jupyter::{Algorithm, PasswordSource, hash, read_password};
use crate::report::Report;

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// Hash algorithm: argon2 (current Jupyter), sha512, sha256 or sha1 (Notebook 6.0 and older)
    #[arg(short, long, value_name = "NAME", default_value_t = Algorithm::default())]
    pub algorithm: Algorithm,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password_file")]
    pub password_stdin: bool,
    /// Read the password from a file
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// Prompts for a password (twice, without echo) and prints its hash. The password is read from a file or standard input
/// if a flag says so or if standard input is not a terminal.
pub(super) fn run(args: &TokenArgs) -> Result<u8, Report> {
    let source = match &args.password_file {
        Some(path) => PasswordSource::File(path.clone()),
        None if args.password_stdin || !io::stdin().is_terminal() => PasswordSource::Stdin,
        None => PasswordSource::Prompt,
    };
    let password = read_password(&source)?;
    let hash = hash(password.reveal(), args.algorithm)?;
    writeln!(io::stdout(), "{hash}").map_err(|error| Report::new("cannot write the hash").with_cause(error))?;
    Ok(0)
}
