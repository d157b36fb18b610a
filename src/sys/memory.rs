//! This process's own memory.

/// From now on a block of this size or more is given back to the kernel when it is freed. By itself malloc keeps such blocks for the next one as
/// soon as it has seen one come and go, in an arena for each few threads: of a load's buffers and windows every thread then holds a set.
pub fn give_back_blocks_of(size: usize) {
    let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
    // SAFETY: mallopt sets a number of malloc's own, under malloc's lock.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, size) };
}

/// Gives back what a process needs no more once it has settled: free heap, and the resident pages of program code and constants, which the
/// kernel maps again from its page cache one by one as they are used.
pub fn release_unused() {
    // SAFETY: malloc_trim only gives free memory back to the kernel.
    unsafe { libc::malloc_trim(0) };
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    let mut range = None;
    let mut private_copy = false;
    for line in maps.lines() {
        if let Some(new) = mapping(line) {
            range = new;
            private_copy = false;
        } else if let Some(dirty) = line.strip_prefix("Anonymous:") {
            // Pages that were written (relocations) are not the file's any more: dropping them would lose them.
            private_copy = dirty.trim() != "0 kB";
        } else if line.starts_with("VmFlags:")
            && let Some((start, end)) = range.take()
            && !private_copy
        {
            // SAFETY: the range is a read-only private mapping of a file without a single page of its own: MADV_DONTNEED drops nothing but
            // page table entries, and every later access finds the same bytes in the file.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// For the head line of a mapping: its range if it is a read-only or executable mapping of a file, `Some(None)` if it is another one.
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
