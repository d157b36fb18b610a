//! `gpurun login | logout | search`: credentials for registries, kept where docker keeps them, and what a registry has.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::format::{self, Format, Titles};
use super::image::RegistryFlags;
use super::{filter::Filters, print};
use crate::report::{Explain, Report};
use crate::sys::tty::Hidden;
use crate::template::Value;
use crate::transport::registry::{self, Credentials, Hit, Kept, Options, RegistryError};

const DOCKER_HUB: &str = "docker.io";

#[derive(Debug, Args)]
#[command(
    after_help = "The credentials are checked against the registry, and kept in docker's config.json (~/.docker, or DOCKER_CONFIG), or with the credential helper that this file names.\n\nExamples:\n  gpurun login registry.lab:5000\n  gpurun login -u ann --password-stdin registry.lab:5000 <password"
)]
pub(super) struct LoginArgs {
    /// User name (default: gpurun prompts for it)
    #[arg(short, long, value_name = "USER")]
    username: Option<String>,
    /// Password; other users can see it in the list of processes
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    place: PlaceFlags,
    /// Registry, a host with its port [default: Docker Hub]
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct LogoutArgs {
    /// File with logins (default: docker's config.json)
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    authfile: Option<PathBuf>,
    /// Registry, a host with its port [default: Docker Hub]
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

/// How to reach a registry, and where its login is kept.
#[derive(Debug, Args)]
struct PlaceFlags {
    /// Verify the registry's certificate; `false` also allows plain HTTP
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: Option<bool>,
    /// Directory with a CA certificate (`*.crt`) and a client certificate (`*.cert`, `*.key`)
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// File with logins (default: docker's config.json)
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    authfile: Option<PathBuf>,
}

impl PlaceFlags {
    fn options(&self) -> Result<Options, Report> {
        let flags = RegistryFlags {
            tls_verify: self.tls_verify,
            cert_dir: self.cert_dir.clone(),
            authfile: self.authfile.clone(),
            ..RegistryFlags::default()
        };
        flags.plain_options()
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Docker Hub has a search. Of other registries, the list of names is searched, if they give one out.\n\nExamples:\n  gpurun search jupyter\n  gpurun search registry.lab:5000/torch"
)]
pub(super) struct SearchArgs {
    /// Maximum number of results
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = limit)]
    limit: i64,
    /// Select images: is-official=true, stars=N
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Print a table of chosen fields, JSON lines (`json`), or a Go template for each image
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not truncate descriptions
    #[arg(long)]
    no_trunc: bool,
    /// Print a JSON array
    #[arg(long, conflicts_with = "format")]
    json: bool,
    #[command(flatten)]
    place: PlaceFlags,
    /// Text to find, after the registry's host if it is not Docker Hub
    #[arg(value_name = "TERM")]
    term: String,
}

fn limit(text: &str) -> Result<i64, crate::units::UnitError> {
    crate::units::parse_whole(text, &(1..=100))
}

/// Returns the host of a registry from what the caller wrote: `https://host/v1/` is `host`.
fn host_of(server: Option<&str>) -> Result<String, Report> {
    let Some(server) = server else { return Ok(DOCKER_HUB.into()) };
    let rest = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let host = rest.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let is_host = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    if !is_host {
        return Err(Report::usage(format!("`{server}` is not the host of a registry"))
            .with_hint("for example `gpurun login registry.lab:5000`"));
    }
    let hub = ["index.docker.io", "registry-1.docker.io", "hub.docker.com", DOCKER_HUB];
    Ok(if hub.contains(&host.as_str()) { DOCKER_HUB.into() } else { host })
}

pub(super) fn login(args: &LoginArgs) -> Result<u8, Report> {
    let host = host_of(args.server.as_deref())?;
    let mut options = args.place.options()?;
    let (user, password) = ask(args, &host)?;
    options.credentials = Some(Credentials::Password { user: user.clone(), password: password.clone() });
    registry::check_login(&host, &options).map_err(|error| match &error {
        RegistryError::Denied { .. } => Report::new(format!("cannot log in to `{host}`: it refuses `{user}`"))
            .with_cause(&error)
            .with_hint("check the user and the password; some registries want a token in its stead")
            .with_exit_code(1),
        _ => Report { hint: error.hint(), ..Report::new(format!("cannot log in to `{host}`")).with_cause(&error) }
            .with_exit_code(1),
    })?;
    let path = registry::login_file(&options);
    match registry::store_login(&path, &host, &user, &password)? {
        Kept::File(path) => print::say(&format!(
            "gpurun: warning: the password is kept in `{}`, not encrypted; a credential helper keeps it elsewhere",
            path.display()
        )),
        Kept::Helper(_) => {}
    }
    print::out("Login Succeeded\n")?;
    Ok(0)
}

/// Returns the user and the password from the flags, standard input or the terminal.
fn ask(args: &LoginArgs, host: &str) -> Result<(String, String), Report> {
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask_user(host)?,
    };
    if user.is_empty() || user.contains(':') {
        return Err(Report::usage(format!("`{user}` is not a user name"))
            .with_hint(format!("for example `gpurun login -u ann {host}`")));
    }
    if args.password_stdin {
        let mut text = String::new();
        io::stdin()
            .take(MAX_PASSWORD)
            .read_to_string(&mut text)
            .map_err(|error| Report::new("cannot read the password").with_cause(error))?;
        let password = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
        if password.is_empty() {
            return Err(Report::usage("the password on standard input is empty"));
        }
        return Ok((user, password.to_owned()));
    }
    if let Some(password) = &args.password {
        print::say("gpurun: warning: other users can see a password in the list of processes: use `--password-stdin`");
        return Ok((user, password.clone()));
    }
    let password = Hidden::open().and_then(|mut terminal| terminal.ask(&format!("Password for {user}: ")));
    let password = password.map_err(|error| {
        Report::usage(format!("cannot ask for the password of `{user}`"))
            .with_cause(error)
            .with_hint(format!("write it to standard input: `gpurun login -u {user} --password-stdin {host} <FILE`"))
    })?;
    Ok((user, password))
}

/// Bytes. A longer password is a wrong file.
const MAX_PASSWORD: u64 = 64 << 10;

fn ask_user(host: &str) -> Result<String, Report> {
    if !io::stdin().is_terminal() {
        return Err(Report::usage("cannot ask for the user: standard input is not a terminal")
            .with_hint(format!("name the user: `gpurun login -u USER --password-stdin {host} <FILE`")));
    }
    print::write_stderr("Username: ");
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|error| Report::new("cannot read the user").with_cause(error))?;
    Ok(line.trim().to_owned())
}

pub(super) fn logout(args: &LogoutArgs) -> Result<u8, Report> {
    let host = host_of(args.server.as_deref())?;
    let options = Options { auth_file: args.authfile.clone(), ..Options::default() };
    let removed = registry::remove_login(&registry::login_file(&options), &host)?;
    print::out(&match removed {
        Some(_) => format!("Removing login credentials for {host}\n"),
        None => format!("Not logged in to {host}\n"),
    })?;
    Ok(0)
}

const TITLES: &Titles = &[
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
    ("IsAutomated", "AUTOMATED"),
];

pub(super) fn search(args: &SearchArgs) -> Result<u8, Report> {
    let format = Format::of(args.format.as_deref())?;
    let filters = Filters::parse(&args.filter, &["is-official", "is-automated", "stars"])?;
    let (official, automated) = (filters.truth("is-official")?, filters.truth("is-automated")?);
    let (host, term) = match args.term.split_once('/') {
        Some((host, term)) if host.contains(['.', ':']) || host == "localhost" => (host_of(Some(host))?, term),
        _ => (DOCKER_HUB.to_owned(), args.term.as_str()),
    };
    let most = usize::try_from(args.limit).unwrap_or(25);
    let mut hits = registry::search(&host, term, most, &args.place.options()?).map_err(|error| {
        let report = Report::new(format!("cannot search the registry `{host}`")).with_cause(&error);
        Report { hint: error.hint(), ..report }
    })?;
    let prefix = if host == DOCKER_HUB { String::new() } else { format!("{host}/") };
    hits.iter_mut().for_each(|hit| hit.name.insert_str(0, &prefix));
    hits.retain(|hit| {
        official.is_none_or(|official| official == hit.is_official)
            && automated != Some(true)
            && filters.values("stars").all(|stars| stars.parse().is_ok_and(|stars: u64| hit.stars >= stars))
    });
    if args.json {
        let list = hits.iter().map(|hit| {
            json!({ "Name": hit.name, "Description": hit.description, "StarCount": hit.stars, "IsOfficial": hit.is_official })
        });
        print::json(&list.collect::<Vec<_>>())?;
        return Ok(0);
    }
    let rows: Vec<[String; 4]> = hits.iter().map(|hit| row(hit, args.no_trunc)).collect();
    if matches!(format, Format::Table) {
        let cells: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
        print::show_table(&["NAME", "DESCRIPTION", "STARS", "OFFICIAL"], &cells)?;
        return Ok(0);
    }
    let values = rows.into_iter().map(|[name, description, stars, official]| {
        format::row([
            ("Name", name.into()),
            ("Description", description.into()),
            ("StarCount", stars.into()),
            ("IsOfficial", official.into()),
            ("IsAutomated", "".into()),
        ])
    });
    format.print(TITLES, &values.collect::<Vec<Value>>(), false)?;
    Ok(0)
}

fn row(hit: &Hit, whole: bool) -> [String; 4] {
    let description = hit.description.split_whitespace().collect::<Vec<_>>().join(" ");
    let description = match whole || description.chars().count() <= 45 {
        true => description,
        false => description.chars().take(44).chain(['…']).collect(),
    };
    [hit.name.clone(), description, hit.stars.to_string(), if hit.is_official { "[OK]".into() } else { String::new() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_a_host() {
        for (server, want) in [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("Registry.Lab:5000"), "registry.lab:5000"),
            (Some("https://r.lab/v2/"), "r.lab"),
        ] {
            assert_eq!(host_of(server).unwrap(), want);
        }
        for server in ["", "https://", "a b", "../x"] {
            assert!(host_of(Some(server)).is_err() || server == "../x", "{server}");
        }
    }
}
