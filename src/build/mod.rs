//! From a Containerfile to an image.
#![expect(dead_code, reason = "the engine follows")]

mod parse;
mod state;
mod words;
