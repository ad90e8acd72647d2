//! A memory-mapped array map as a slice.

use std::{
    ops::Deref,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    ptr::NonNull,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};

/// Elements of an array that kernel and test see at once; `T` has words that are accessed atomically.
pub struct Shared<T> {
    start: NonNull<T>,
    elements: usize,
}

// SAFETY: the mapping belongs to the process, and elements are words for concurrent access.
unsafe impl<T: Sync> Send for Shared<T> {}

impl<T> Shared<T> {
    /// Maps the array of this name, whose elements lie eight bytes apart at least.
    pub fn of(ebpf: &Ebpf, name: &str, elements: usize) -> Self {
        assert_eq!(size_of::<T>() % 8, 0, "elements of an array lie at multiples of eight bytes");
        let Some(Map::Array(data)) = ebpf.map(name) else { panic!("{name} is no array of the object") };
        Self::of_map(data, name, elements)
    }

    /// Maps an array that is pinned here, whole.
    pub fn pinned(path: &Path) -> Result<Self> {
        let data = MapData::from_pin(path).with_context(|| format!("no map at {}", path.display()))?;
        let info = data.info()?;
        let bytes = info.value_size().next_multiple_of(8) as usize * info.max_entries() as usize;
        Ok(Self::of_map(&data, &path.display().to_string(), bytes / size_of::<T>()))
    }

    fn of_map(data: &MapData, name: &str, elements: usize) -> Self {
        let fd = data.fd().as_fd().as_raw_fd();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), elements * size_of::<T>(), access, libc::MAP_SHARED, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED, "mapping {name}: {}", std::io::Error::last_os_error());
        Self { start: NonNull::new(start.cast()).expect("the kernel maps nothing at 0"), elements }
    }
}

impl<T> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has this many elements, of which any bytes are a value, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.elements) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: exactly what `of` mapped, and no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.elements * size_of::<T>()) };
    }
}
