//! A 64-bit word that kernel and user space share: map memory in BPF, the same pages through `mmap` on the host.

use core::cell::UnsafeCell;

/// Every access is a single 64-bit operation. Loads acquire and stores release on the host; BPF runs on
/// architectures whose plain 64-bit accesses don't tear, and orders what matters by [`Word::publish`].
#[repr(C)]
pub struct Word {
    value: UnsafeCell<u64>,
}

// SAFETY: all access is by whole-word volatile or atomic operations.
unsafe impl Sync for Word {}
// SAFETY: a word owns nothing that is bound to a thread.
unsafe impl Send for Word {}

#[cfg(target_arch = "bpf")]
impl Word {
    /// Reads the word.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: the reference proves the memory valid.
        unsafe { self.value.get().read_volatile() }
    }

    /// Writes the word.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        // SAFETY: as above; concurrent readers see the old or the new word.
        unsafe { self.value.get().write_volatile(value) }
    }

    /// Writes bits 32–63 and leaves the others alone, whatever they are by then.
    #[inline(always)]
    pub fn store_high(&self, value: u32) {
        let half = if cfg!(target_endian = "little") { 1 } else { 0 };
        // SAFETY: as above; half a word is aligned for its size.
        unsafe { self.value.get().cast::<u32>().add(half).write_volatile(value) }
    }

    /// Compare and swap, fully ordered. True if the word held `old` and now holds `new`.
    #[inline(always)]
    pub fn swap_if(&self, old: u64, new: u64) -> bool {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};
        // SAFETY: valid, aligned memory.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.value.get(), old, new).1 }
    }

    /// Swap, fully ordered: whoever sees `value` sees everything that was stored before.
    #[inline(always)]
    pub fn publish(&self, value: u64) {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xchg};
        // SAFETY: valid, aligned memory.
        unsafe { atomic_xchg::<u64, { SeqCst }>(self.value.get(), value) };
    }

    /// Adds, wrapping.
    #[inline(always)]
    pub fn add(&self, value: u64) {
        use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
        // SAFETY: valid, aligned memory.
        unsafe { atomic_xadd::<u64, u64, { Relaxed }>(self.value.get(), value) };
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Word {
    /// A word with this value.
    pub const fn new(value: u64) -> Self {
        Self { value: UnsafeCell::new(value) }
    }

    fn atomic(&self) -> &core::sync::atomic::AtomicU64 {
        // SAFETY: same size and alignment, and the memory is only ever accessed atomically.
        unsafe { core::sync::atomic::AtomicU64::from_ptr(self.value.get()) }
    }

    /// Reads the word.
    pub fn load(&self) -> u64 {
        self.atomic().load(core::sync::atomic::Ordering::Acquire)
    }

    /// Writes the word.
    pub fn store(&self, value: u64) {
        self.atomic().store(value, core::sync::atomic::Ordering::Release);
    }

    /// Writes bits 32–63 and leaves the others alone, whatever they are by then.
    pub fn store_high(&self, value: u32) {
        use core::sync::atomic::Ordering::{AcqRel, Acquire};
        let new = |word: u64| Some(word & 0xffff_ffff | u64::from(value) << 32);
        // Rust's memory model has no accesses of half an atomic.
        let _ = self.atomic().fetch_update(AcqRel, Acquire, new);
    }

    /// Compare and swap, fully ordered. True if the word held `old` and now holds `new`.
    pub fn swap_if(&self, old: u64, new: u64) -> bool {
        use core::sync::atomic::Ordering::SeqCst;
        self.atomic().compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }

    /// Swap, fully ordered: whoever sees `value` sees everything that was stored before.
    pub fn publish(&self, value: u64) {
        self.atomic().swap(value, core::sync::atomic::Ordering::SeqCst);
    }

    /// Adds, wrapping.
    pub fn add(&self, value: u64) {
        self.atomic().fetch_add(value, core::sync::atomic::Ordering::Relaxed);
    }
}
