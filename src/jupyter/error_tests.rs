//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use std::net::SocketAddr;
use std::time::Duration;

use super::{auth::AuthError, launch::LaunchError, password::HashError, ready::ReadyError};
use crate::report::texts::{Texts, denied};

fn address() -> SocketAddr {
    ([127, 0, 0, 1], 8888).into()
}

#[test]
fn errors_of_jupyter() {
    let mut texts = Texts::default();
    texts.add(AuthError::Empty);
    texts.add(AuthError::Differ);
    texts.add(AuthError::Lines { origin: "standard input".into() });
    texts.add(AuthError::Text { origin: "standard input".into() });
    texts.add(AuthError::NoTerminal);
    texts.add(AuthError::Read { origin: "standard input".into(), source: denied() });
    texts.add(LaunchError::NoArgon2 { image: "notebook:1".into(), server: "Jupyter Notebook 6.4".into() });
    texts.add(LaunchError::SecretArgument { argument: "--ServerApp.token=x".into() });
    texts.add(LaunchError::OutOfReach { argument: "--ServerApp.token=x".into() });
    texts.add(LaunchError::Write { path: "/path/to/file".into(), source: denied() });
    texts.add(HashError::Algorithm("TEXT".into()));
    texts.add(HashError::Format { what: "lab/notebook:1" });
    texts.add(HashError::Random);
    texts.add(HashError::Argon2);
    texts.add(ReadyError::Died { status: 3 });
    texts.add(ReadyError::Late {
        address: address(),
        waited: Duration::from_secs(60),
        last: "connection refused".into(),
    });
    texts.add(ReadyError::Open { address: address() });
    texts.add(ReadyError::WrongAccepted { address: address(), what: "lab/notebook:1" });
    texts.add(ReadyError::RightRefused { address: address(), what: "lab/notebook:1" });
    texts.add(ReadyError::Random);
    insta::assert_snapshot!(texts.0);
}
