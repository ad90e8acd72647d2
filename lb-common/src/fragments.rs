//! Where the first fragment of a datagram went, for those that follow: a set-associative table in plain shared memory,
//! correct under concurrent writers on all CPUs by the technique of [`flow`](crate::flow).
//!
//! A bucket is the sender's: chosen by its address and a random seed. A record is *young* until an eighth of its
//! lifetime has passed without a fragment, or the last fragment has come by. Nothing takes a young record's place, and
//! no sender has more than half of a bucket in young ones: who comes then is refused. So a sender harms itself alone;
//! and many senders refuse others, but never end what is under way.

use crate::{
    abi::{Backend, NO_BACKEND},
    address::Address,
    flow,
    word::Word,
};

/// Entries in a bucket.
pub const WAYS: usize = 8;
/// Young records of one sender in a bucket.
pub const SHARE: u32 = WAYS as u32 / 2;
/// The part of its lifetime, as a shift, for which a record is young.
pub const YOUNG_SHIFT: u32 = 3;

/// In [`Entry::control`]: being written.
const BUSY: u64 = 1;
/// In [`Key`]: sent by a pod.
const OUTBOUND: u64 = 1 << 40;

/// One record: one cache line.
#[repr(C, align(64))]
pub struct Entry {
    /// A sequence in steps of two, odd while it is written; 0: never used.
    pub control: Word,
    /// The sender's address.
    pub source: [Word; 2],
    /// Where it sent to.
    pub destination: [Word; 2],
    /// Identification in bits 0–31, protocol in 32–39, direction in 40.
    pub identity: Word,
    /// Place of the backend in `backends` in bits 0–31, its generation in 32–63.
    pub place: Word,
    /// Id of the backend in bits 0–31, jiffies of last use in 32–63.
    pub used: Word,
}
const _: () = assert!(size_of::<Entry>() == 64);

/// [`WAYS`] entries.
#[repr(C)]
pub struct Bucket {
    /// In no order.
    pub entries: [Entry; WAYS],
}

/// A datagram under way: RFC 791, 3.2, RFC 8200, 4.5.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Key {
    source: [u64; 2],
    destination: [u64; 2],
    identity: u64,
}

impl Key {
    /// From a client to a VIP.
    #[inline(always)]
    pub const fn inbound(source: Address, vip: Address, identification: u32, protocol: u8) -> Self {
        let identity = identification as u64 | (protocol as u64) << 32;
        Self { source: source.words(), destination: vip.words(), identity }
    }

    /// From a pod to a client.
    #[inline(always)]
    pub const fn outbound(pod: Address, client: Address, identification: u32, protocol: u8) -> Self {
        let key = Self::inbound(pod, client, identification, protocol);
        Self { identity: key.identity | OUTBOUND, ..key }
    }

    /// The sender's bucket, in the high bits.
    #[inline(always)]
    pub const fn hash(&self, seed: u64) -> u64 {
        flow::client_hash(Address::from_words(self.source), 0, seed)
    }

    #[inline(always)]
    fn is_in(&self, entry: &Entry) -> bool {
        entry.identity.load() == self.identity
            && self.has_sent(entry)
            && entry.destination[1].load() == self.destination[1]
            && entry.destination[0].load() == self.destination[0]
    }

    #[inline(always)]
    fn has_sent(&self, entry: &Entry) -> bool {
        entry.source[1].load() == self.source[1] && entry.source[0].load() == self.source[0]
    }
}

/// Whose the datagram is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C, align(8))]
pub struct Record {
    /// Position in `backends`; means nothing for what a pod sends.
    pub place: u32,
    /// The backend's generation. One that has changed is another way, or another pod.
    pub generation: u32,
    /// The backend's id, or [`NO_BACKEND`]: no record.
    pub backend: u32,
    /// Zero.
    pub pad: u32,
}

impl Record {
    /// No record.
    pub const NONE: Self = Self { place: 0, generation: 0, backend: NO_BACKEND, pad: 0 };

    /// Whether it is none.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.backend == NO_BACKEND
    }

    /// A backend at its place.
    #[inline(always)]
    pub const fn new(place: u32, backend: &Backend) -> Self {
        Self { place, generation: backend.generation, backend: backend.id, pad: 0 }
    }

    /// Whether that is still who stands there.
    #[inline(always)]
    pub const fn is(&self, backend: &Backend) -> bool {
        backend.generation == self.generation && backend.id == self.backend
    }
}

/// Now, and how long a record lives after its last fragment. In jiffies, wrapping: what is older than half of their
/// range may seem young, to no other harm than that it keeps its place a little longer.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Now.
    pub now: u32,
    /// Below 2^31.
    pub lifetime: u32,
}

impl Clock {
    #[inline(always)]
    const fn age(self, used: u64) -> u32 {
        self.now.wrapping_sub((used >> 32) as u32)
    }

    #[inline(always)]
    const fn young(self) -> u32 {
        self.lifetime >> YOUNG_SHIFT
    }
}

/// The record of a datagram, which it refreshes; the `last` fragment makes it old instead.
#[inline(always)]
pub fn find(bucket: &Bucket, key: &Key, clock: Clock, last: bool) -> Record {
    for entry in &bucket.entries {
        let control = entry.control.load();
        if control & BUSY == 0 && control != 0 && key.is_in(entry) {
            let (place, used) = (entry.place.load(), entry.used.load());
            if entry.control.load() != control {
                continue;
            }
            if clock.age(used) >= clock.lifetime {
                return Record::NONE;
            }
            let time = if last { clock.now.wrapping_sub(clock.young()) } else { clock.now };
            if (used >> 32) as u32 != time {
                // Only the time changes: a lost race makes another's record old too early, and leads nowhere else.
                entry.used.store_high(time);
            }
            return unpack(place, used);
        }
    }
    Record::NONE
}

#[inline(always)]
const fn unpack(place: u64, used: u64) -> Record {
    Record { place: place as u32, generation: (place >> 32) as u32, backend: used as u32, pad: 0 }
}

/// Records whose a datagram is. False where there is no room for it.
#[inline(always)]
pub fn record(bucket: &Bucket, key: &Key, record: Record, clock: Clock) -> bool {
    // One question after another and not all in one loop, whose ways would multiply for the verifier.
    for entry in &bucket.entries {
        let control = entry.control.load();
        if control & BUSY == 0 && control != 0 && key.is_in(entry) {
            return write(entry, control, key, record, clock.now);
        }
    }
    let mut theirs = 0;
    for entry in &bucket.entries {
        if entry.control.load() != 0 && clock.age(entry.used.load()) < clock.young() && key.has_sent(entry) {
            theirs += 1;
        }
    }
    if theirs >= SHARE {
        return false;
    }
    take(bucket, key, record, clock, clock.lifetime) || take(bucket, key, record, clock, clock.young())
}

/// Takes the first place without a record, or with one of this age. False where there is none.
#[inline(always)]
fn take(bucket: &Bucket, key: &Key, record: Record, clock: Clock, age: u32) -> bool {
    for entry in &bucket.entries {
        let control = entry.control.load();
        if control & BUSY == 0 && (control == 0 || clock.age(entry.used.load()) >= age) {
            return write(entry, control, key, record, clock.now);
        }
    }
    false
}

/// Claims the entry seen as `seen`, fills and publishes it. False where another writer was faster.
#[inline(always)]
fn write(entry: &Entry, seen: u64, key: &Key, record: Record, now: u32) -> bool {
    if !entry.control.swap_if(seen, seen | BUSY) {
        return false;
    }
    entry.source[0].store(key.source[0]);
    entry.source[1].store(key.source[1]);
    entry.destination[0].store(key.destination[0]);
    entry.destination[1].store(key.destination[1]);
    entry.identity.store(key.identity);
    entry.place.store(record.place as u64 | (record.generation as u64) << 32);
    entry.used.store(record.backend as u64 | (now as u64) << 32);
    entry.control.publish(seen.wrapping_add(2));
    true
}

/// What an entry holds, for tests and status.
#[cfg(not(target_arch = "bpf"))]
pub fn snapshot(entry: &Entry) -> Option<(Key, Record)> {
    let control = entry.control.load();
    let load = |words: &[Word; 2]| [words[0].load(), words[1].load()];
    let (source, destination, identity) = (load(&entry.source), load(&entry.destination), entry.identity.load());
    let (place, used) = (entry.place.load(), entry.used.load());
    let whole = control & BUSY == 0 && control != 0 && entry.control.load() == control;
    whole.then_some((Key { source, destination, identity }, unpack(place, used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock { now: u32::MAX - 3, lifetime: 800 };

    fn bucket() -> Bucket {
        let word = || Word::new(0);
        let pair = || [word(), word()];
        let entry = || Entry {
            control: word(),
            source: pair(),
            destination: pair(),
            identity: word(),
            place: word(),
            used: word(),
        };
        Bucket { entries: core::array::from_fn(|_| entry()) }
    }

    fn key(sender: u64, id: u32) -> Key {
        Key::inbound(Address::from_words([0, sender]), Address::from_words([7, 7]), id, 17)
    }

    fn to(backend: u32) -> Record {
        Record { place: 3, generation: 4, backend, pad: 0 }
    }

    fn after(jiffies: u32) -> Clock {
        Clock { now: CLOCK.now.wrapping_add(jiffies), ..CLOCK }
    }

    #[test]
    fn a_record_is_found_under_its_whole_key_and_for_its_lifetime() {
        let bucket = bucket();
        assert!(record(&bucket, &key(1, 1), to(9), CLOCK));
        let outbound = Key::outbound(Address::from_words([0, 1]), Address::from_words([7, 7]), 1, 17);
        for other in [key(1, 2), key(2, 1), outbound, Key { identity: 1 | 6 << 32, ..key(1, 1) }] {
            assert!(find(&bucket, &other, CLOCK, false).is_none());
        }
        assert_eq!(find(&bucket, &key(1, 1), after(799), false), to(9), "also when the clock wraps");
        assert_eq!(find(&bucket, &key(1, 1), after(799 + 799), false), to(9), "use refreshes");
        assert!(find(&bucket, &key(1, 1), after(3 * 799 + 1), false).is_none());
    }

    #[test]
    fn a_sender_has_half_of_a_bucket_and_others_the_rest() {
        let bucket = bucket();
        let admitted = |sender| (0..20).filter(|id| record(&bucket, &key(sender, *id), to(1), CLOCK)).count();
        assert_eq!([admitted(1), admitted(2), admitted(3)], [4, 4, 0]);
        assert!(record(&bucket, &key(1, 0), to(2), CLOCK), "the same datagram again");
        assert_eq!(find(&bucket, &key(1, 0), CLOCK, true), to(2));
        assert!(record(&bucket, &key(3, 0), to(3), CLOCK), "in the place of one that has ended");
        assert!(!record(&bucket, &key(3, 1), to(3), CLOCK));
        assert!(record(&bucket, &key(3, 1), to(3), after(100)), "in the place of one that is old");
    }

    #[test]
    fn an_entry_that_is_being_written_is_neither_found_nor_taken() {
        let bucket = bucket();
        for entry in &bucket.entries {
            entry.control.store(BUSY);
        }
        assert!(!record(&bucket, &key(1, 1), to(1), CLOCK));
        assert!(find(&bucket, &key(1, 1), CLOCK, false).is_none());
    }
}
