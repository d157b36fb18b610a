//! The parsers that strangers feed (images, a host's CDI and hook files, `--gpus`): seeds of this repository, changed at random, in runs
//! that can be repeated.
//!
//! The short run of every commit over the same entry points as the coverage-guided targets in `fuzz/`. GPURUN_FUZZ is the number of changed
//! inputs per target (a commit's run takes 4000), GPURUN_FUZZ_SEED begins another series. An input that fails is kept, and the message says
//! where.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use gpurun::testing::gpu::{cdi, ldcache};
use gpurun::testing::hook;
use gpurun::testing::request::GpuRequest;

use crate::Test;

#[path = "../../fuzz/targets.rs"]
mod targets;

pub const TESTS: &[Test] = &[
    ("layers", &[], layers),
    ("layers_on_layers", &[], stacks),
    ("documents", &[], documents),
    ("archives", &[], archives),
    ("references", &[], references),
    ("gpu_words", &[], gpu_words),
    ("cdi_files", &[], cdi_files),
    ("hook_definitions", &[], hook_definitions),
    ("library_caches", &[], library_caches),
];

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seeds(prefix: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/seeds");
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    paths.sort();
    assert!(!paths.is_empty(), "no seeds for {prefix}");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Feeds a target its seeds, then changed ones.
fn fuzz(name: &str, seeds: &[Vec<u8>], repair: fn(&mut [u8]), target: fn(&[u8])) {
    let mut random = Random(number("GPURUN_FUZZ_SEED", 0x9E37_79B9_7F4A_7C15) | 1);
    let count = number("GPURUN_FUZZ", 4000) as usize;
    for case in 0..seeds.len() + count {
        let input = match seeds.get(case) {
            Some(seed) => seed.clone(),
            None => {
                let mut input = change(seeds, &mut random);
                repair(&mut input);
                input
            }
        };
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let kept = std::env::temp_dir().join(format!("gpurun-fuzz-{name}-{case}"));
            fs::write(&kept, &input).unwrap();
            panic!("case {case} of {name} fails; its input is {}", kept.display());
        }
    }
}

/// One to eight changes to a seed.
fn change(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const ODD: [&[u8]; 10] =
        [b"\0", b"/", b"../", b"-1", b"99999999999999999999", b"\xff\xff\xff\xff", b".wh.", b"\"", b"null", b"sha256:"];
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(input.len() + 1);
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 => input.truncate(at),
            3 => {
                let odd = ODD[random.below(ODD.len())];
                let end = (at + odd.len()).min(input.len());
                input.splice(at..end, odd.iter().copied());
            }
            4 => {
                // A whole block elsewhere, as tars are made of them.
                let block = at / 512 * 512;
                let end = (block + 512).min(input.len());
                let copy = input[block.min(end)..end].to_vec();
                let to = random.below(input.len() / 512 + 1) * 512;
                let to = to.min(input.len());
                input.splice(to..to, copy);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + random.below(32)).min(input.len());
                input.drain(at..end);
            }
        }
    }
    input
}

fn as_they_are(_: &mut [u8]) {}

fn layers() {
    fuzz("layers", &seeds("layer-"), targets::seal, targets::layers);
}

fn stacks() {
    let layers = seeds("layer-");
    // Two layers with a length in front: the second one removes and replaces what the first one has.
    let stacked: Vec<Vec<u8>> =
        layers.iter().flat_map(|lower| layers.iter().map(|upper| [lower.clone(), upper.clone()].concat())).collect();
    fuzz("stacks", &stacked, targets::seal, targets::stacks);
}

fn documents() {
    let all = [seeds("manifest-"), seeds("config-")].concat();
    fuzz("documents", &all, as_they_are, targets::documents);
}

fn archives() {
    fuzz("archives", &seeds("archive-"), targets::seal, targets::archives);
}

fn references() {
    let lines = seeds("references").concat();
    let lines: Vec<Vec<u8>> =
        lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    fuzz("references", &lines, as_they_are, targets::references);
}

/// `--gpus`: what is taken is written as it is read.
fn gpu_words() {
    let lines = String::from_utf8(seeds("gpus").remove(0)).unwrap();
    let seeds: Vec<Vec<u8>> = lines.lines().map(|line| line.as_bytes().to_vec()).collect();
    for seed in &seeds {
        assert!(std::str::from_utf8(seed).unwrap().parse::<GpuRequest>().is_ok(), "{}", String::from_utf8_lossy(seed));
    }
    fuzz("gpu_words", &seeds, as_they_are, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(request) = text.parse::<GpuRequest>() {
            assert_eq!(request.to_string().parse(), Ok(request), "{text}");
        }
    });
}

/// CDI files, as YAML and as JSON. JSON is YAML: what the one reader takes, the other takes and understands alike.
fn cdi_files() {
    let seeds = seeds("cdi-");
    for (seed, name) in seeds.iter().zip(["full.json", "nvidia.yaml"]) {
        cdi::Spec::parse(Path::new(name), std::str::from_utf8(seed).unwrap()).unwrap();
    }
    fuzz("cdi_files", &seeds, as_they_are, |input| {
        let text = String::from_utf8_lossy(input);
        let json = cdi::Spec::parse(Path::new("a.json"), &text);
        let yaml = cdi::Spec::parse(Path::new("a.yaml"), &text);
        if let (Ok(json), Ok(yaml)) = (&json, &yaml) {
            assert_eq!(json, yaml, "{text}");
        }
        for error in [json.err(), yaml.err()].into_iter().flatten() {
            let said = error.to_string();
            assert!(!said.contains('\n') && said.len() < 4000, "one line for a person: {said}");
        }
    });
}

fn hook_definitions() {
    let seeds = seeds("hook-");
    hook::Definition::parse("seed.json", std::str::from_utf8(&seeds[0]).unwrap()).unwrap();
    fuzz("hook_definitions", &seeds, as_they_are, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(definition) = hook::Definition::parse("a.json", &text) {
            let annotations = [("org.gpurun.gpus".to_owned(), "0".to_owned())];
            let about = hook::Circumstances { annotations: &annotations, command: "/bin/sh", has_bind_mounts: true };
            let _ = definition.matches(&about);
            assert!(definition.command.path.is_absolute() && !definition.stages.is_empty(), "{text}");
        }
    });
}

/// An image's `ld.so.cache`, which is hostile: what is added to it is found in what comes out, whatever it was.
fn library_caches() {
    let entry = |name: &str| ldcache::Entry {
        flags: ldcache::NATIVE,
        soname: name.to_owned(),
        path: Path::new("/usr/lib").join(name),
    };
    let plain = ldcache::with(&[], &[entry("libc.so.6"), entry("libz.so.1"), entry("libx-2.10.so")]);
    let host = fs::read("/etc/ld.so.cache").unwrap_or_else(|_| plain.clone());
    fuzz("library_caches", &[plain, host], as_they_are, |input| {
        let more = ldcache::Entry {
            flags: ldcache::NATIVE,
            soname: "libcuda.so.1".into(),
            path: "/usr/lib/libcuda.so.1".into(),
        };
        let written = ldcache::with(input, std::slice::from_ref(&more));
        assert!(ldcache::parse(&written).contains(&more));
        assert_eq!(ldcache::with(&written, &[more]), written, "once is enough");
    });
}
