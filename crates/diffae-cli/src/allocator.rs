//! The program's allocator, and how much freed memory it keeps.

/// Allocator that keeps memory: large tensors come and go at every step, and the system's would fault it in again each
/// time.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps all memory that is freed from now on for what is allocated next, instead of returning it to the system after a
/// second.
///
/// For passes over many pictures, whose batches need the same memory again and again: their resident set is then the
/// same from the first batch to the last, which is what a scheduler is told, and nothing is faulted in twice. The most
/// memory that the process has at once stays as it is. `MIMALLOC_PURGE_DELAY` of the environment comes first; without
/// the feature `mimalloc`, the system's allocator does as it likes.
///
/// Must be called before any thread is started.
pub(crate) fn keep_freed_memory() {
    #[cfg(feature = "mimalloc")]
    mimalloc_options::set_default(mimalloc_options::PURGE_DELAY, mimalloc_options::NEVER);
}

#[cfg(feature = "mimalloc")]
mod mimalloc_options {
    use libmimalloc_sys::{mi_option_set_default, mi_option_t};

    /// `mi_option_purge_delay` of `mimalloc.h` (2.x and 3.x), which the bindings leave out: milliseconds until freed
    /// memory is returned.
    pub(super) const PURGE_DELAY: mi_option_t = 15;
    /// Delay without an end.
    pub(super) const NEVER: std::ffi::c_long = -1;

    /// Sets an option that neither the environment nor the program has set yet.
    #[expect(unsafe_code, reason = "options are set through the C interface")]
    pub(super) fn set_default(option: mi_option_t, value: std::ffi::c_long) {
        // SAFETY: writes a field of a static table; no other thread is there to read it.
        unsafe { mi_option_set_default(option, value) }
    }
}

#[cfg(all(test, feature = "mimalloc", target_os = "linux"))]
mod tests {
    use super::keep_freed_memory;

    const SIZE: usize = 64 << 20;
    /// Less than what is used, and more than what other tests use at the same time.
    const MUCH: usize = 32 << 20;

    /// Returns the resident set in bytes, after all that the allocator would return has been returned.
    #[expect(unsafe_code, reason = "to collect is asked of the C interface")]
    fn collected_rss() -> Option<usize> {
        // SAFETY: may be called at any time.
        unsafe { libmimalloc_sys::mi_collect(true) };
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? * 1024)
    }

    /// Returns how much larger the resident set is after memory has been used and freed.
    fn growth() -> Option<usize> {
        let before = collected_rss()?;
        drop(std::hint::black_box(vec![1_u8; SIZE]));
        Some(collected_rss()?.saturating_sub(before))
    }

    #[test]
    fn what_was_freed_is_kept_when_it_is_asked_for() {
        assert!(growth().unwrap() < MUCH, "memory is returned by default");
        keep_freed_memory();
        assert!(growth().unwrap() > MUCH, "memory is kept once it is asked for");
    }
}
