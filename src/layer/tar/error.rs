//! Errors of a tar stream.

/// The error of a tar stream that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("broken tar stream at byte {offset}{}: {problem}", member.as_ref().map(|name| format!(" (member `{name}`)")).unwrap_or_default())]
pub struct TarError {
    pub offset: u64,
    pub member: Option<String>,
    pub problem: TarProblem,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TarProblem {
    #[error("it ends in the middle of a member")]
    Truncated,
    #[error("header checksum does not match")]
    Checksum,
    #[error("there is a single zero block between members")]
    LoneZeroBlock,
    #[error("header field `{0}` is not a number")]
    Number(&'static str),
    #[error("`{0}` is out of range")]
    Range(&'static str),
    #[error("member type `{0}` is unknown")]
    Type(char),
    #[error("PAX header is malformed")]
    Pax,
    #[error("PAX record `{0}` is malformed")]
    PaxRecord(String),
    #[error("sparse map is malformed")]
    Sparse,
    #[error("a name or PAX header of {0} bytes is larger than 1 MiB")]
    SpecialTooLarge(u64),
    #[error("an extended header has no member after it")]
    DanglingExtension,
    #[error("its headers need more than {} MiB of memory", .0 >> 20)]
    TooManyHeaders(usize),
}
