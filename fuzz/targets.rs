//! What is fed to the parsers that strangers feed, and what must hold whatever it is: shared by the fuzz targets beside this file, and by
//! the stand-in that runs with every commit (`tests/images/fuzz_cases.rs`).

use std::fs::File;
use std::io::Write;
use std::path::Path;

use gpurun::testing::image::{Document, ImageConfig, ImageDocument, Platform};
use gpurun::testing::layer::{Entry, Kind, Merger, Scanner, Tree, erofs};
use gpurun::testing::names::{Digest, Reference};
use gpurun::testing::transport;

/// One layer: however its stream is cut, it means the same, and what it means can be drawn.
pub fn layers(input: &[u8]) {
    let whole = scan(input, usize::MAX);
    // Where the pieces of a stream end says nothing about what is in it.
    for piece in [1, 511, 513] {
        assert_eq!(scan(input, piece), whole, "in pieces of {piece}");
    }
    let Some(entries) = whole else { return };
    let mut merger = Merger::new();
    if merger.apply(Digest([1; 32]), entries).is_err() {
        return;
    }
    let tree = merger.finish();
    check_tree(&tree);
    let source = file_of(input);
    let side = tempfile::tempfile().unwrap();
    let mut index = Vec::new();
    if let Ok(written) = erofs::write(&tree, &[source], &mut index, &side) {
        assert_eq!(written.bytes, index.len() as u64);
    }
}

/// Two layers in one input: the second one removes and replaces what the first one has.
pub fn stacks(input: &[u8]) {
    // Cut at the block nearest to the middle: mostly between the two.
    let (lower, upper) = input.split_at(input.len() / 1024 * 512);
    let mut merger = Merger::new();
    for (number, layer) in [lower, upper].into_iter().enumerate() {
        let Some(entries) = scan(layer, usize::MAX) else { return };
        if merger.apply(Digest([number as u8; 32]), entries).is_err() {
            return;
        }
    }
    check_tree(&merger.finish());
}

/// Manifests, indexes, configs.
pub fn documents(input: &[u8]) {
    let _ = Document::parse(input);
    let Ok(config) = ImageConfig::parse(input) else { return };
    // Nothing that reaches exec(2) or a path has a NUL in it.
    let words = config.config.env.iter().chain(&config.config.cmd).chain(&config.config.entrypoint);
    assert!(words.chain([&config.config.working_dir, &config.config.user]).all(|word| !word.contains('\0')));
    let document = ImageDocument::parse(input).unwrap();
    assert_eq!(ImageDocument::parse(&document.bytes()).unwrap(), document, "written and read again");
}

/// docker-archives and OCI archives.
pub fn archives(input: &[u8]) {
    let found = transport::open_archive(file_of(input), Path::new("input"), &Platform::host());
    for image in found.into_iter().flatten() {
        assert_eq!(image.layers.len(), image.config.diff_ids.len());
        assert_eq!(image.id, gpurun::testing::image::digest_of(&image.config_bytes));
        assert!(image.layers.iter().all(|layer| layer.blob.len <= input.len() as u64), "a layer lies in its archive");
    }
}

/// Names of images, and of sources.
pub fn references(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = transport::Source::unless_name(&text);
    let Ok(reference) = text.parse::<Reference>() else { return };
    assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
    assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    assert!(reference.to_string().chars().all(safe) && !reference.path.contains(".."), "{reference}");
}

/// The checksum of every tar header made right again: else nothing behind it would ever be reached.
pub fn seal(input: &mut [u8]) {
    for block in input.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn file_of(input: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file
}

fn scan(input: &[u8], piece: usize) -> Option<Vec<Entry>> {
    let mut scanner = Scanner::new();
    for part in input.chunks(piece) {
        scanner.feed(part).ok()?;
    }
    scanner.finish().ok()
}

/// What every renderer relies on.
fn check_tree(tree: &Tree) {
    for inode in &tree.inodes {
        match &inode.kind {
            Kind::Directory(children) => {
                for (name, id) in children {
                    let plain = !name.is_empty() && !name.contains(&b'/') && !name.contains(&0);
                    assert!(plain && **name != *b"." && **name != *b"..", "{name:?}");
                    assert!((id.0 as usize) < tree.inodes.len() && id.0 != 0, "{id:?}");
                }
            }
            Kind::File(data) => {
                let mut end = 0;
                for segment in &data.segments {
                    assert!(segment.at >= end && segment.len > 0, "segments ascend");
                    assert!((segment.source as usize) < tree.sources.len());
                    end = segment.at.checked_add(segment.len).unwrap();
                }
                assert!(end <= data.size);
            }
            _ => {}
        }
        assert!(inode.mtime.1 < 1_000_000_000 && inode.mode <= 0o7777);
    }
}
