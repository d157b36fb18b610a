#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::documents(input));
