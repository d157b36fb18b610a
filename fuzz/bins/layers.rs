#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::layers(input));

// Else nothing behind a header's checksum would ever be reached.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    targets::seal(&mut data[..size]);
    size
});
