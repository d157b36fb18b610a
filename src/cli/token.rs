//! `gpurun token`: a password in, the hash that Jupyter's configuration takes out.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use crate::jupyter::{Algorithm, PasswordSource, hash, read_password};
use crate::report::Report;

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// argon2 (what Jupyter uses today), sha512, sha256 or sha1 (for Notebook 6.0 and older)
    #[arg(short, long, value_name = "NAME", default_value_t = Algorithm::default())]
    pub algorithm: Algorithm,
    /// Read the password as one line from standard input, without asking
    #[arg(long, conflicts_with = "password_file")]
    pub password_stdin: bool,
    /// Read the password from a file of one line
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// Asks for a password (twice, without echo), or reads it where it was told to or where standard input is no terminal, and prints its hash.
pub fn run(args: &TokenArgs) -> Result<u8, Report> {
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
