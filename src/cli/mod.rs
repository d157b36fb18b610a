//! (to come)

pub mod image;
pub mod token;

pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
