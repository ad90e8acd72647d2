//! A bucketed index in a memory-mapped array, in front of a BPF hash: one writer (the agent), any readers.
//!
//! A hash lookup costs some 35 ns, a probe of this index a few. The index also says *no*: an absent key is found
//! absent by the same probe, which is what passes everything that is not for us. The hash stays the authority: it
//! is asked while a bucket is being written and where a bucket has overflowed.

use crate::{abi::ServiceKey, address::Address, word::Word};

/// Entries in a bucket.
pub const WAYS: usize = 4;

/// In [`Entry::port_protocol`]: the entry is used.
const USED: u64 = 1 << 32;
/// In [`Bucket::sequence`]: the bucket is being written.
const WRITING: u64 = 1;
/// In [`Bucket::sequence`]: a key of this bucket stands only in the hash.
const OVERFLOW: u64 = 2;
/// One completed write of a bucket.
#[cfg(not(target_arch = "bpf"))]
const STEP: u64 = 4;

/// A key and `V` words of value.
#[repr(C)]
pub struct Entry<const V: usize> {
    /// The key's address.
    pub address: [Word; 2],
    /// The key's port in bits 0–15, protocol in 16–23; bit 32 says that the entry is used; the key's interface above,
    /// which the kernel numbers in 31 bits.
    pub port_protocol: Word,
    /// The value as it lies in memory.
    pub value: [Word; V],
}

/// [`WAYS`] entries under one sequence word. Whole cache lines, a power of two of them, so that the first entry lies in
/// one and an element's place is a shift away.
#[repr(C, align(256))]
pub struct Bucket<const V: usize> {
    /// Bit 0: being written. Bit 1: overflowed. Above: completed writes.
    pub sequence: Word,
    /// In no order.
    pub entries: [Entry<V>; WAYS],
}

/// Index of services and VIPs.
pub type ServiceBucket = Bucket<3>;
/// Index of endpoints.
pub type EndpointBucket = Bucket<4>;

/// What one probe says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe<const V: usize> {
    /// The key's value.
    Found([u64; V]),
    /// The key is not there.
    Absent,
    /// Only the hash knows.
    AskHash,
}

#[inline(always)]
const fn tail(key: &ServiceKey) -> u64 {
    key.port as u64 | (key.protocol as u64) << 16 | USED | (key.interface as u64) << 33
}

/// Words of [`Filter`].
pub const FILTER_WORDS: usize = 512;

/// One bit for each hash of an address: set where no VIP has it. It spares most packets that are not for us the
/// probes; of 4096 VIPs, one other address in eight shares a bit with one and is probed as before. Zero, as the map
/// starts, asks for every packet.
#[repr(C)]
pub struct Filter {
    /// See [`filter_position`].
    pub words: [Word; FILTER_WORDS],
}
const _: () = assert!(size_of::<Filter>() == 4096);

/// Word and bit of an address.
#[inline(always)]
pub const fn filter_position(address: Address, seed: u64) -> (usize, u32) {
    let words = address.words();
    let x = (words[0].rotate_left(32) ^ words[1] ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((x >> 55) as usize & (FILTER_WORDS - 1), (x >> 49) as u32 & 63)
}

/// The key's bucket, in the high bits: `hash >> (64 - log2 of the buckets)`. Every packet waits for it; the keys are the
/// operator's, and a bucket that overflows only costs time: one multiplication is enough.
#[inline(always)]
pub const fn hash(key: &ServiceKey, seed: u64) -> u64 {
    let words = key.address.words();
    (words[0].rotate_left(32) ^ words[1] ^ seed ^ tail(key)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Looks a key up in its bucket.
#[inline(always)]
pub fn probe<const V: usize>(bucket: &Bucket<V>, key: &ServiceKey) -> Probe<V> {
    let before = bucket.sequence.load();
    let (words, tail) = (key.address.words(), tail(key));
    for entry in &bucket.entries {
        if entry.port_protocol.load() == tail
            && entry.address[1].load() == words[1]
            && entry.address[0].load() == words[0]
        {
            let mut value = [0; V];
            for (to, from) in value.iter_mut().zip(&entry.value) {
                *to = from.load();
            }
            let stable = before & WRITING == 0 && bucket.sequence.load() == before;
            return if stable { Probe::Found(value) } else { Probe::AskHash };
        }
    }
    let certain = before & (WRITING | OVERFLOW) == 0 && bucket.sequence.load() == before;
    if certain { Probe::Absent } else { Probe::AskHash }
}

/// The writer's side. One writer at a time.
#[cfg(not(target_arch = "bpf"))]
impl<const V: usize> Bucket<V> {
    /// What stands in the bucket; not what is left to the hash.
    pub fn entries(&self) -> impl Iterator<Item = (ServiceKey, [u64; V])> {
        let used = self.entries.iter().filter(|entry| entry.port_protocol.load() & USED != 0);
        used.map(|entry| {
            let [first, second] = &entry.address;
            let tail = entry.port_protocol.load();
            let key =
                ServiceKey::new(Address::from_words([first.load(), second.load()]), tail as u16, (tail >> 16) as u8);
            (key.at((tail >> 33) as u32), core::array::from_fn(|at| entry.value[at].load()))
        })
    }

    /// Replaces the whole bucket by these entries; those beyond [`WAYS`] are left to the hash.
    pub fn write<'a>(&self, entries: impl Iterator<Item = (&'a ServiceKey, [u64; V])>) {
        let sequence = self.sequence.load();
        self.sequence.publish(sequence | WRITING);
        let mut used = 0;
        let mut overflow = 0;
        for (key, value) in entries {
            let Some(entry) = self.entries.get(used) else {
                overflow = OVERFLOW;
                break;
            };
            used += 1;
            let words = key.address.words();
            entry.address[0].store(words[0]);
            entry.address[1].store(words[1]);
            for (to, from) in entry.value.iter().zip(value) {
                to.store(from);
            }
            entry.port_protocol.store(tail(key));
        }
        for entry in &self.entries[used..] {
            entry.port_protocol.store(0);
        }
        self.sequence.publish((sequence & !(STEP - 1)).wrapping_add(STEP) | overflow);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn bucket() -> Bucket<3> {
        let word = || Word::new(0);
        let entry =
            || Entry { address: [word(), word()], port_protocol: word(), value: core::array::from_fn(|_| word()) };
        Bucket { sequence: word(), entries: core::array::from_fn(|_| entry()) }
    }

    fn key(n: u64) -> ServiceKey {
        ServiceKey::new(Address::from_words([0, n]), 162, 17)
    }

    #[test]
    fn what_was_written_is_found_and_the_rest_is_absent() {
        let bucket = bucket();
        bucket.write([(&key(1), [1, 2, 3]), (&key(2), [4, 5, 6])].into_iter());
        assert_eq!(probe(&bucket, &key(1)), Probe::Found([1, 2, 3]));
        assert_eq!(probe(&bucket, &key(2)), Probe::Found([4, 5, 6]));
        assert_eq!(probe(&bucket, &key(3)), Probe::Absent);
        bucket.write([(&key(2), [7, 8, 9])].into_iter());
        assert_eq!(probe(&bucket, &key(1)), Probe::Absent);
        assert_eq!(probe(&bucket, &key(2)), Probe::Found([7, 8, 9]));
    }

    #[test]
    fn what_was_written_is_read_back() {
        let bucket = bucket();
        let written = [(key(1).at(i32::MAX as u32), [1, 2, 3]), (ServiceKey::of_vip(key(2).address), [4, 5, 6])];
        bucket.write(written.iter().map(|(key, value)| (key, *value)));
        assert!(bucket.entries().eq(written));
        bucket.write([].into_iter());
        assert_eq!(bucket.entries().count(), 0);
    }

    #[test]
    fn a_full_bucket_sends_what_it_does_not_hold_to_the_hash() {
        let bucket = bucket();
        let keys: [ServiceKey; 5] = core::array::from_fn(|n| key(n as u64));
        bucket.write(keys.iter().map(|k| (k, [0; 3])));
        assert_eq!(probe(&bucket, &key(3)), Probe::Found([0; 3]));
        assert_eq!(probe(&bucket, &key(4)), Probe::AskHash);
        bucket.write(keys[..4].iter().map(|k| (k, [0; 3])));
        assert_eq!(probe(&bucket, &key(4)), Probe::Absent);
    }

    #[test]
    fn a_bucket_that_is_being_written_answers_nothing() {
        let bucket = bucket();
        bucket.write([(&key(1), [1, 2, 3])].into_iter());
        bucket.sequence.store(bucket.sequence.load() | WRITING);
        assert_eq!(probe(&bucket, &key(1)), Probe::AskHash);
        assert_eq!(probe(&bucket, &key(2)), Probe::AskHash);
    }

    #[test]
    fn a_key_at_an_interface_is_another_one() {
        let bucket = bucket();
        bucket.write([(&key(1).at(7), [1, 2, 3]), (&key(1).at(i32::MAX as u32), [4, 5, 6])].into_iter());
        assert_eq!(probe(&bucket, &key(1)), Probe::Absent);
        assert_eq!(probe(&bucket, &key(1).at(8)), Probe::Absent);
        assert_eq!(probe(&bucket, &key(1).at(7)), Probe::Found([1, 2, 3]));
        assert_eq!(probe(&bucket, &key(1).at(i32::MAX as u32)), Probe::Found([4, 5, 6]));
        assert_ne!(hash(&key(1), 0), hash(&key(1).at(7), 0));
    }

    #[test]
    fn the_unused_key_is_not_found_in_an_empty_bucket() {
        assert_eq!(probe(&bucket(), &ServiceKey::default()), Probe::Absent);
    }

    #[test]
    fn neighbouring_addresses_have_bits_of_their_own() {
        let positions: std::collections::BTreeSet<_> = (0..=255u8)
            .map(|last| filter_position(Address::from_v4_word(u32::from_ne_bytes([10, 96, 0, last])), 0x5eed))
            .collect();
        assert!(positions.len() > 250, "{} of 256", positions.len());
    }
}
