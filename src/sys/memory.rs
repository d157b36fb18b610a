//! The memory of this process.

/// Makes malloc return freed blocks of at least this size to the kernel from now on. By default, malloc keeps such
/// blocks for reuse once it has seen one freed, in an arena for every few threads. Every thread would then hold a set
/// of the buffers and windows that a load uses.
pub(crate) fn give_back_blocks_of(size: usize) {
    let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
    // SAFETY: mallopt sets an internal number of malloc, under malloc's lock.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, size) };
}

/// Returns memory to the kernel that a long-running process no longer needs: free heap, and the resident pages of
/// program code and constants. The kernel maps those again from its page cache when they are used.
pub(crate) fn release_unused() {
    // SAFETY: malloc_trim only returns free memory to the kernel.
    unsafe { libc::malloc_trim(0) };
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    let mut range = None;
    let mut private_copy = false;
    for line in maps.lines() {
        if let Some(new) = mapping(line) {
            range = new;
            private_copy = false;
        } else if let Some(dirty) = line.strip_prefix("Anonymous:") {
            // Pages that were written (relocations) no longer match the file. Dropping them would lose their contents.
            private_copy = dirty.trim() != "0 kB";
        } else if line.starts_with("VmFlags:")
            && let Some((start, end)) = range.take()
            && !private_copy
        {
            // SAFETY: the range is a read-only private mapping of a file without any anonymous page. MADV_DONTNEED only
            // drops page table entries, and every later access finds the same bytes in the file.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// Parses the first line of a mapping. Returns its range if it is a read-only or executable mapping of a file, and
/// `Some(None)` if it is another mapping.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let readable_only = matches!(fields.next()?, "r--p" | "r-xp");
    let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((readable_only && is_file).then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_goes_on_with_less() {
        let resident = || -> u64 {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split_whitespace().nth(2).unwrap().parse().unwrap()
        };
        let before = resident();
        release_unused();
        assert!(resident() < before, "file pages are given back");
        assert_eq!(format!("{:?}", [1.5, 2.5]), "[1.5, 2.5]", "and come back when they are needed");
    }

    #[test]
    fn only_read_only_file_mappings_count() {
        assert_eq!(mapping("55d0-55e0 r-xp 00001000 fe:00 1 /usr/bin/x"), Some(Some((0x55d0, 0x55e0))));
        assert_eq!(mapping("55d0-55e0 rw-p 00001000 fe:00 1 /usr/bin/x"), Some(None));
        assert_eq!(mapping("55d0-55e0 r-xp 00000000 00:00 0 [vdso]"), Some(None));
        assert_eq!(mapping("Size: 4 kB"), None);
    }
}
