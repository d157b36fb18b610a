//! /etc/ld.so.cache, the list of libraries that glibc's dynamic linker uses. gpurun reads the host's cache to find the
//! driver's libraries, and writes the container's so that the linker finds them there too.
//!
//! The format is glibc's `glibc-ld.so.cache1.1` (sysdeps/generic/dl-cache.h). All numbers are in native byte order. It
//! consists of a header of 48 bytes, entries of 24 bytes that are sorted for a binary search, strings, and optional
//! extensions. Older glibc versions append it to the table of the `ld.so-1.7.0` format.
//!
//! gpurun does not run ldconfig to update the container's cache. The image's own ldconfig is untrusted code. The host's
//! is a C parser that would read every ELF file of the image as root, and NVIDIA's toolkit has had CVEs in exactly this
//! step. This module only adds entries to one table, and parses nothing else of the image.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
/// Section of the extensions that holds string offsets (dl-cache.h, cache_extension_tag_glibc_hwcaps).
const TAG_HWCAPS: u32 = 1;

/// Value of `flags` for native libraries: FLAG_ELF_LIBC6 and the architecture.
#[cfg(target_arch = "x86_64")]
pub const NATIVE: u32 = 0x0303;
#[cfg(target_arch = "aarch64")]
pub const NATIVE: u32 = 0x0a03;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const NATIVE: u32 = 0x0003;
/// Value of `flags` for 32-bit libraries on x86-64.
pub(crate) const I386: u32 = 0x0003;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub flags: u32,
    /// The name that programs load: `libcuda.so.1`.
    pub soname: String,
    pub path: PathBuf,
}

/// Returns all valid entries. The result is empty if the bytes are not a cache.
#[must_use]
pub fn parse(bytes: &[u8]) -> Vec<Entry> {
    let Some(cache) = Cache::find(bytes) else { return Vec::new() };
    let entry = |number| {
        let at = HEADER + number * ENTRY;
        Some(Entry {
            flags: cache.u32(at)?,
            soname: cache.text(cache.u32(at + 4)?)?.to_owned(),
            path: PathBuf::from(cache.text(cache.u32(at + 8)?)?),
        })
    };
    (0..cache.count).filter_map(entry).collect()
}

/// Returns the cache with additional entries, which take precedence over existing ones of the same name. If `bytes` is
/// empty or invalid, the result holds the new entries alone; the linker still searches its default directories. If all
/// entries already exist, as in a restarted container, the cache is returned unchanged.
#[must_use]
pub fn with(bytes: &[u8], more: &[Entry]) -> Vec<u8> {
    let there = parse(bytes);
    if more.iter().all(|entry| there.contains(entry)) {
        return bytes.to_vec();
    }
    let old = Cache::find(bytes).filter(|cache| cache.moved(0).is_some());
    let added = more.len() * ENTRY;
    let old_entries = old.as_ref().map_or(0, |cache| cache.count);
    // All data after the table moves by the growth of the table, and all offsets with it. New strings go to the end.
    let mut tail = old.as_ref().and_then(|cache| cache.moved(added)).unwrap_or_default();
    let tail_at = HEADER + old_entries * ENTRY + added;
    let mut table: Vec<(String, u32, bool, [u8; ENTRY])> = Vec::new();
    if let Some(cache) = &old {
        table.extend((0..cache.count).filter_map(|number| cache.moved_entry(number, added)));
    }
    for entry in more {
        let mut append = |text: &[u8]| {
            let at = tail_at + tail.len();
            tail.extend_from_slice(text);
            tail.push(0);
            at as u32
        };
        let (key, value) = (append(entry.soname.as_bytes()), append(entry.path.as_os_str().as_encoded_bytes()));
        let mut raw = [0; ENTRY];
        for (at, number) in [(0, entry.flags), (4, key), (8, value)] {
            raw[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        table.push((entry.soname.clone(), entry.flags, true, raw));
    }
    // Sort in descending order, as ldconfig does, so that the linker's binary search finds the first entry of a name.
    table.sort_by(|a, b| compare(&b.0, &a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    let mut out = Vec::from(MAGIC);
    out.extend((table.len() as u32).to_ne_bytes());
    out.extend((tail.len() as u32).to_ne_bytes());
    out.push(if cfg!(target_endian = "little") { 2 } else { 3 });
    out.extend([0; 3]);
    let extension = old.as_ref().map_or(0, |cache| cache.extension_at(added));
    out.extend(extension.to_ne_bytes());
    out.extend([0; 12]);
    // If an entry could not be read, the table is shorter. Pad it, so that the tail stays at the offset that the
    // entries use.
    let missing = old_entries + more.len() - table.len();
    out.extend(table.iter().flat_map(|(_, _, _, raw)| raw));
    out.extend(std::iter::repeat_n(0, missing * ENTRY));
    out.extend(tail);
    out
}

/// The part of a file in the new format. Its offsets are relative to its own start.
struct Cache<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Cache<'a> {
    fn find(bytes: &'a [u8]) -> Option<Self> {
        let mut bytes = bytes;
        if bytes.starts_with(OLD_MAGIC) {
            // struct cache_file: 11 bytes of magic, aligned to 4, the number of entries, and 12 bytes for each entry.
            // The new format follows at an alignment of 8.
            let count = u32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?) as usize;
            let end = count.checked_mul(12)?.checked_add(16)?.checked_next_multiple_of(8)?;
            bytes = bytes.get(end..)?;
        }
        let count = bytes.starts_with(MAGIC).then(|| Cache { bytes, count: 0 }.u32(20))?? as usize;
        let fits = count.checked_mul(ENTRY)?.checked_add(HEADER)? <= bytes.len();
        fits.then_some(Self { bytes, count })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn text(&self, at: u32) -> Option<&'a str> {
        let rest = self.bytes.get(at as usize..)?;
        std::str::from_utf8(&rest[..rest.iter().position(|byte| *byte == 0)?]).ok()
    }

    fn tail_at(&self) -> usize {
        HEADER + self.count * ENTRY
    }

    fn moved_entry(&self, number: usize, by: usize) -> Option<(String, u32, bool, [u8; ENTRY])> {
        let at = HEADER + number * ENTRY;
        let mut raw: [u8; ENTRY] = self.bytes.get(at..at + ENTRY)?.try_into().ok()?;
        let soname = self.text(self.u32(at + 4)?)?.to_owned();
        for field in [4, 8] {
            let moved = self.u32(at + field)?.checked_add(by as u32)?;
            raw[field..field + 4].copy_from_slice(&moved.to_ne_bytes());
        }
        Some((soname, self.u32(at)?, false, raw))
    }

    fn extension_at(&self, by: usize) -> u32 {
        self.u32(32).filter(|at| *at != 0).map_or(0, |at| at + by as u32)
    }

    /// Returns the data after the table, with its offsets adjusted for a move by `by` bytes. Returns `None` if the
    /// extensions cannot be parsed.
    fn moved(&self, by: usize) -> Option<Vec<u8>> {
        let start = self.tail_at();
        let mut tail = self.bytes.get(start..)?.to_vec();
        let mut shift = |at: usize| {
            let place = at.checked_sub(start)?;
            let field = tail.get_mut(place..place.checked_add(4)?)?;
            let value = u32::from_ne_bytes((&*field).try_into().ok()?).checked_add(u32::try_from(by).ok()?)?;
            field.copy_from_slice(&value.to_ne_bytes());
            Some(())
        };
        let extension = self.u32(32)? as usize;
        if extension == 0 {
            return Some(tail);
        }
        if self.u32(extension)? != EXTENSION_MAGIC {
            return None;
        }
        for section in 0..(self.u32(extension + 4)? as usize).min(16) {
            // tag, flags, offset, size
            let at = extension + 8 + section * 16;
            let (tag, offset, size) = (self.u32(at)?, self.u32(at + 8)? as usize, self.u32(at + 12)? as usize);
            shift(at + 8)?;
            if tag == TAG_HWCAPS {
                (0..size / 4).try_for_each(|number| shift(offset + number * 4))?;
            }
        }
        Some(tail)
    }
}

/// glibc's order of library names (_dl_cache_libcmp): runs of digits compare as numbers, and sort after all other
/// characters.
fn compare(one: &str, other: &str) -> Ordering {
    let (mut a, mut b) = (one.as_bytes(), other.as_bytes());
    let number = |text: &mut &[u8]| {
        let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        // Wraps like glibc's int, for numbers larger than any real library has.
        let value =
            text[..digits].iter().fold(0_i32, |all, byte| all.wrapping_mul(10).wrapping_add(i32::from(byte - b'0')));
        *text = &text[digits..];
        value
    };
    loop {
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) => match (x.is_ascii_digit(), y.is_ascii_digit()) {
                (true, true) => match number(&mut a).cmp(&number(&mut b)) {
                    Ordering::Equal => {}
                    unequal => return unequal,
                },
                (true, false) => return Ordering::Greater,
                (false, true) => return Ordering::Less,
                (false, false) if x != y => return x.cmp(y),
                (false, false) => (a, b) = (&a[1..], &b[1..]),
            },
        }
    }
}

/// Returns entries for libraries in a directory of the container.
#[must_use]
pub(crate) fn entries<'a>(libraries: impl Iterator<Item = (&'a str, u32)>, directory: &Path) -> Vec<Entry> {
    libraries.map(|(soname, flags)| Entry { flags, soname: soname.to_owned(), path: directory.join(soname) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(soname: &str, path: &str) -> Entry {
        Entry { flags: NATIVE, soname: soname.into(), path: path.into() }
    }

    #[test]
    fn what_is_written_is_read_and_new_entries_win() {
        let first =
            with(b"", &[entry("libc.so.6", "/lib/libc.so.6"), entry("libcuda.so.1", "/opt/compat/libcuda.so.1")]);
        let second =
            with(&first, &[entry("libcuda.so.1", "/usr/lib/libcuda.so.1"), entry("libz.so.1", "/lib/libz.so.1")]);
        let names: Vec<(String, PathBuf)> =
            parse(&second).into_iter().map(|entry| (entry.soname, entry.path)).collect();
        let expected = [
            ("libz.so.1", "/lib/libz.so.1"),
            ("libcuda.so.1", "/usr/lib/libcuda.so.1"),
            ("libcuda.so.1", "/opt/compat/libcuda.so.1"),
            ("libc.so.6", "/lib/libc.so.6"),
        ];
        assert_eq!(names, expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path))));
        assert_eq!(
            with(&second, &[entry("libcuda.so.1", "/usr/lib/libcuda.so.1")]),
            second,
            "a second start adds nothing"
        );
    }

    #[test]
    fn names_stand_in_glibcs_order() {
        let ascending = ["liba.so.1", "libc.so.2", "libc.so.10", "libc10.so", "libcuda.so.1", "libcuda.so.1.1"];
        for pair in ascending.windows(2) {
            let expected = match (pair[0], pair[1]) {
                // A digit sorts after a letter and a dot.
                ("libc10.so", "libcuda.so.1") => Ordering::Greater,
                _ => Ordering::Less,
            };
            assert_eq!(compare(pair[0], pair[1]), expected, "{pair:?}");
        }
        assert_eq!(compare("libc.so.6", "libc.so.6"), Ordering::Equal);
    }

    /// Adds an entry to this host's real cache, and checks that the host's own ldconfig reads the result.
    #[test]
    fn glibc_reads_what_is_written() {
        let ours = entry("libgpurun-test.so.1", "/nowhere/libgpurun-test.so.1");
        let host = std::fs::read("/etc/ld.so.cache").unwrap_or_default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        std::fs::write(&path, with(&host, std::slice::from_ref(&ours))).unwrap();
        let Ok(output) = std::process::Command::new("/sbin/ldconfig").args(["-p", "-C"]).arg(&path).output() else {
            eprintln!("skipped: needs /sbin/ldconfig");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("=> /nowhere/libgpurun-test.so.1"), "{text}");
        let (before, after) = (parse(&host), parse(&std::fs::read(&path).unwrap()));
        assert_eq!(after.len(), before.len() + 1);
        assert!(before.iter().all(|entry| after.contains(entry)));
        assert_eq!(text.lines().count(), after.len() + text.lines().filter(|line| !line.starts_with('\t')).count());
    }

    #[test]
    fn extensions_and_the_older_format_are_kept_and_understood() {
        // One entry, its strings, and extensions: the name of a generator, and one hardware capability whose name is a
        // string.
        let mut cache = with(b"", &[entry("liba.so.1", "/x/liba.so.1")]);
        let capability = cache.len() as u32;
        cache.extend(b"x86-64-v3\0\0\0");
        let extension = cache.len() as u32;
        let names = extension + 8 + 16;
        for number in [EXTENSION_MAGIC, 1, TAG_HWCAPS, 0, names, 4, capability] {
            cache.extend(number.to_ne_bytes());
        }
        cache[32..36].copy_from_slice(&extension.to_ne_bytes());
        let grown = with(&cache, &[entry("libb.so.1", "/x/libb.so.1"), entry("libc.so.1", "/x/libc.so.1")]);
        let found = Cache::find(&grown).unwrap();
        let extension = found.u32(32).unwrap() as usize;
        assert_eq!(found.u32(extension), Some(EXTENSION_MAGIC));
        let names = found.u32(extension + 16).unwrap() as usize;
        assert_eq!(found.text(found.u32(names).unwrap()), Some("x86-64-v3"));
        assert_eq!(parse(&grown).len(), 3);

        let mut combined = Vec::from(OLD_MAGIC);
        combined.push(0);
        combined.extend(1_u32.to_ne_bytes());
        combined.extend([0; 12 + 4]);
        combined.extend(&cache);
        assert_eq!(parse(&combined), parse(&cache));
        assert_eq!(parse(&with(&combined, &[entry("libb.so.1", "/x/libb.so.1")])).len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn no_cache_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0usize..200) {
            let good = with(b"", &[entry("liba.so.1", "/x/liba.so.1"), entry("libb.so.2", "/x/libb.so.2")]);
            let mut spoiled = good.clone();
            let length = bytes.len().min(spoiled.len().saturating_sub(at));
            if let Some(place) = spoiled.get_mut(at..at + length) {
                place.copy_from_slice(&bytes[..length]);
            }
            for input in [&bytes, &spoiled] {
                let out = with(input, &[entry("libcuda.so.1", "/x/libcuda.so.1")]);
                proptest::prop_assert!(parse(&out).iter().any(|entry| entry.soname == "libcuda.so.1"));
            }
        }
    }
}
