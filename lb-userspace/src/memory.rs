//! Memory that was needed once.

/// Gives freed memory back to the kernel, which the allocator keeps for later: for whoever has used much more than will be
/// used again. Walks the whole heap, some milliseconds for each 100 MB.
pub fn release() {
    // SAFETY: takes no memory that is in use, and has no preconditions.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
