//! A BPF array in this process' memory.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
};

use aya::maps::MapData;
use lb_common::{abi, index::Filter};

/// A `BPF_F_MMAPABLE` array as a slice that programs read and write at the same time: elements are accessed one
/// word at a time, never through plain references.
pub struct Mapped<T> {
    start: NonNull<T>,
    elements: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; access is by words.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above; writers agree among themselves (one agent).
unsafe impl<T> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    /// Maps `elements` values of `T`. The map's values are eight bytes at least; `T` may be a part of one.
    pub fn new(map: &MapData, elements: usize) -> io::Result<Self> {
        let bytes = (elements * size_of::<T>()).next_multiple_of(4096);
        // SAFETY: a fresh shared mapping of the map's own memory; the kernel checks its length.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { start, elements, bytes })
    }

    /// Elements.
    pub const fn len(&self) -> usize {
        self.elements
    }

    /// Never the case: maps have at least one element.
    pub const fn is_empty(&self) -> bool {
        self.elements == 0
    }

    /// Writes one element: as one store where it has eight bytes at most, which programs may read at the same time; a
    /// larger one only where none does.
    ///
    /// # Panics
    /// Where `index` is beyond the array, which is a defect of the planner.
    pub fn write(&self, index: usize, value: T) {
        assert!(index < self.elements, "element {index} of {}", self.elements);
        // SAFETY: in bounds and aligned.
        unsafe { self.start.add(index).write_volatile(value) }
    }
}

impl<T: Copy> Mapped<T> {
    /// Reads one element. Where programs or another thread write at the same time, one of more than eight bytes may be
    /// torn.
    pub fn read(&self, index: usize) -> Option<T> {
        // SAFETY: in bounds and aligned, and any bytes are a value of what stands in maps.
        (index < self.elements).then(|| unsafe { self.start.add(index).read_volatile() })
    }
}

/// Elements that consist of words may be shared as they are.
pub trait Shared {}
impl Shared for lb_common::flow::Bucket {}
impl Shared for abi::BypassCount {}
impl<const V: usize> Shared for lb_common::index::Bucket<V> {}

impl<T: Shared> Mapped<T> {
    /// The elements.
    pub const fn elements(&self) -> &[T] {
        // SAFETY: the mapping lives as long as `self`, and these types allow concurrent access.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.elements) }
    }
}

impl Mapped<abi::Node> {
    /// The bits that say which addresses are no VIP.
    pub const fn vip_filter(&self) -> &Filter {
        // SAFETY: the map has one element, which lives as long as `self`; the filter consists of words.
        unsafe { &(*self.start.as_ptr()).vip_filter }
    }

    /// The settings as they stand.
    pub fn settings(&self) -> abi::Settings {
        // SAFETY: as above; programs only read them, and the agent writes them in one place.
        unsafe { (&raw const (*self.start.as_ptr()).settings).read_volatile() }
    }

    /// Writes the settings. Programs that run meanwhile may see some of the new ones before the others.
    pub fn write_settings(&self, settings: abi::Settings) {
        // SAFETY: as above; nobody holds a reference to the settings, which programs only read.
        unsafe { (&raw mut (*self.start.as_ptr()).settings).write_volatile(settings) }
    }
}

/// Words of a member. The last one has its flags, and all that changes while a backend has the id.
const MEMBER_WORDS: usize = size_of::<abi::Member>() / size_of::<u64>();

impl Mapped<abi::Member> {
    /// Writes a member. An agent that is killed meanwhile leaves the one before, or none, or this one.
    ///
    /// # Panics
    /// Where `index` is beyond the array, which is a defect of the planner.
    pub fn write_member(&self, index: usize, value: &abi::Member) {
        assert!(index < self.elements, "element {index} of {}", self.elements);
        // SAFETY: as many bytes of plain integers without padding.
        let words: [u64; MEMBER_WORDS] = unsafe { std::mem::transmute(*value) };
        let last = MEMBER_WORDS - 1;
        // SAFETY: in bounds and aligned.
        let write = |at: usize| unsafe { self.start.add(index).cast::<u64>().add(at).write_volatile(words[at]) };
        if value.flags == 0 {
            write(last);
        }
        (0..MEMBER_WORDS).for_each(write);
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
