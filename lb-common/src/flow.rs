//! The flow cache: a 4-way set-associative table in plain shared memory, correct under concurrent writers on all
//! CPUs and a sweeper in user space.
//!
//! An entry is four words. `control` carries the identity (kind, endpoint, client port) in its low 48 bits and a
//! sequence above; identity 0 with an even sequence is free, with an odd one being written. A writer claims an entry
//! by compare-and-swap to identity 0 and an odd sequence, stores address and value, and publishes `control` with the
//! next even sequence. A reader wants `control` to carry the identity, reads address and value, and wants `control`
//! unchanged after. Nobody waits: a lost race or a torn read is a miss.

use crate::{address::Address, word::Word};

/// Entries in a bucket.
pub const WAYS: usize = 4;

const IDENTITY: u64 = (1 << 48) - 1;
const SEQUENCE: u64 = 1 << 48;
/// In [`Key::identity`]: recorded UDP. Identity 0 is never a key.
const KIND_UDP: u64 = 1 << 47;
/// In [`Key::identity`]: TCP in a moved slot.
const KIND_TCP: u64 = 1 << 46;
/// In [`Key::identity`]: client affinity.
const KIND_AFFINITY: u64 = 1 << 45;
/// In [`Key::identity`]: a [`State`].
const STATE: u64 = 3 * STATE_ONE;
const STATE_ONE: u64 = 1 << 42;
/// Endpoints and services are numbered below this in an identity.
const NUMBERS: u64 = 1 << 26;

/// What is known of a recorded TCP connection. No part of what a record is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum State {
    /// Its pod has it; so also all records that are shortcuts.
    Established = 0,
    /// A client asked for it, and its pod has said nothing yet.
    Opening,
    /// Its pod has closed, or its client has given it up.
    Closing,
}

/// One record; 32 bytes, so that two share a cache line and none crosses it.
#[repr(C, align(32))]
pub struct Entry {
    /// Identity and sequence.
    pub control: Word,
    /// The client's address.
    pub client: [Word; 2],
    /// Id of the backend in bits 0–31, coarse time of last use in 32–63.
    pub value: Word,
}
const _: () = assert!(size_of::<Entry>() == 32);

/// [`WAYS`] entries.
#[repr(C)]
pub struct Bucket {
    /// In no order.
    pub entries: [Entry; WAYS],
}

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// As which service's backend a client reached an endpoint.
    Udp,
    /// Who has a connection in a moved slot.
    Tcp,
    /// Where a client's connections go.
    Affinity,
}

/// Whom the record is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    client: [u64; 2],
    identity: u64,
}

impl Key {
    /// A UDP client of an endpoint.
    #[inline(always)]
    pub const fn udp(endpoint: u32, client: Address, client_port: u16) -> Self {
        let identity = KIND_UDP | (endpoint as u64 & (NUMBERS - 1)) << 16 | client_port as u64;
        Self { client: client.words(), identity }
    }

    /// A TCP client of a service.
    #[inline(always)]
    pub const fn tcp(service: u32, client: Address, client_port: u16) -> Self {
        let identity = KIND_TCP | (service as u64 & (NUMBERS - 1)) << 16 | client_port as u64;
        Self { client: client.words(), identity }
    }

    /// A client of a service, whatever its ports. In place of a port is a part of the service's number, so that the records
    /// of one client are not all in one bucket.
    #[inline(always)]
    pub const fn affinity(service: u32, client: Address) -> Self {
        let identity = KIND_AFFINITY | (service as u64 & (NUMBERS - 1)) << 16 | service as u16 as u64;
        Self { client: client.words(), identity }
    }

    /// What the record is about.
    pub const fn kind(&self) -> Kind {
        if self.identity & KIND_TCP != 0 {
            Kind::Tcp
        } else if self.identity & KIND_AFFINITY != 0 {
            Kind::Affinity
        } else {
            Kind::Udp
        }
    }

    /// The same with a state.
    #[inline(always)]
    pub const fn in_state(self, state: State) -> Self {
        Self { identity: (self.identity & !STATE) | (state as u64 * STATE_ONE), ..self }
    }

    /// The state.
    #[inline(always)]
    pub const fn state(&self) -> State {
        state_of(self.identity)
    }

    /// The key's bucket: see [`client_hash`].
    #[inline(always)]
    pub const fn hash(&self, seed: u64) -> u64 {
        client_hash(self.client(), self.identity as u16, seed)
    }

    /// The client's address.
    pub const fn client(&self) -> Address {
        Address::from_words(self.client)
    }

    /// Endpoint, or service where it is not of UDP, and client port.
    pub const fn parts(&self) -> (u32, u16) {
        (((self.identity >> 16) & (NUMBERS - 1)) as u32, self.identity as u16)
    }

    #[inline(always)]
    fn is_in(&self, entry: &Entry, control: u64) -> bool {
        control & IDENTITY & !STATE == self.identity & !STATE
            && entry.client[1].load() == self.client[1]
            && entry.client[0].load() == self.client[0]
    }
}

/// The bucket of everything about a client's port, in the high bits. The endpoint is not in it, so that the bucket can be
/// fetched before the endpoint is known; a client that uses one port for more than [`WAYS`] endpoints within a short time
/// is rare.
#[inline(always)]
pub const fn client_hash(client: Address, client_port: u16, seed: u64) -> u64 {
    let words = client.words();
    let x = (words[0] ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let y = words[1].wrapping_mul(0xd6e8_feb8_6659_fd93);
    let z = (x ^ (x >> 32)).wrapping_add(y ^ (y >> 32)) ^ client_port as u64;
    z.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Begins to bring a bucket into the cache.
#[inline(always)]
pub fn fetch(bucket: &Bucket) {
    // What is read is thrown away: nothing waits for it.
    bucket.entries[0].control.load();
}

#[inline(always)]
const fn state_of(identity: u64) -> State {
    match identity & STATE {
        0 => State::Established,
        STATE_ONE => State::Opening,
        _ => State::Closing,
    }
}

/// The backend that a record names; refreshed where `now` has moved on.
#[inline(always)]
pub fn find(bucket: &Bucket, key: &Key, now: u32) -> Option<u32> {
    find_with_state(bucket, key, now).map(|(backend, _)| backend)
}

/// The same with what is known of the connection.
#[inline(always)]
pub fn find_with_state(bucket: &Bucket, key: &Key, now: u32) -> Option<(u32, State)> {
    for entry in &bucket.entries {
        if let Some((value, state)) = read(entry, key) {
            refresh(entry, value, now);
            return Some((value as u32, state));
        }
    }
    None
}

/// The same of a record that was used within `limit` ticks, refreshed where it names `backend`. An older one is no
/// record, and stays as it is.
#[inline(always)]
pub fn find_within(bucket: &Bucket, key: &Key, now: u32, limit: u32, backend: u32) -> Option<u32> {
    for entry in &bucket.entries {
        if let Some((value, _)) = read(entry, key) {
            // Another CPU may have refreshed it by a clock that is ahead of this reading.
            if now.wrapping_sub((value >> 32) as u32) as i32 > limit as i32 {
                return None;
            }
            if value as u32 == backend {
                refresh(entry, value, now);
            }
            return Some(value as u32);
        }
    }
    None
}

/// Whether there is a record, however old.
#[inline(always)]
pub fn holds(bucket: &Bucket, key: &Key) -> bool {
    bucket.entries.iter().any(|entry| read(entry, key).is_some())
}

/// The value of an entry that holds the key's record, and the connection's state.
#[inline(always)]
fn read(entry: &Entry, key: &Key) -> Option<(u64, State)> {
    let control = entry.control.load();
    if key.is_in(entry, control) {
        let value = entry.value.load();
        if entry.control.load() == control {
            return Some((value, state_of(control)));
        }
    }
    None
}

/// Only the time changes, so a lost race can never change the backend.
#[inline(always)]
fn refresh(entry: &Entry, value: u64, now: u32) {
    if (value >> 32) as u32 != now {
        entry.value.store_high(now);
    }
}

/// Records that `key` came to `backend`; the oldest record of the bucket goes where it is full, one of a connection that
/// is opening or closing before others, and one of an opening connection takes no others' place.
#[inline(always)]
pub fn record(bucket: &Bucket, key: &Key, backend: u32, now: u32) {
    let (mut best, mut way, mut seen) = (u64::MAX, 0usize, 0u64);
    for (i, entry) in bucket.entries.iter().enumerate() {
        let control = entry.control.load();
        if key.is_in(entry, control) {
            (best, way, seen) = (0, i, control);
            break;
        }
        let rank = rank(control, entry.value.load(), now);
        if rank < best {
            (best, way, seen) = (rank, i, control);
        }
    }
    if best < OTHERS || best != u64::MAX && key.identity & STATE == 0 {
        write(&bucket.entries[way & (WAYS - 1)], seen, key, pack(backend, now));
    }
}

#[inline(always)]
const fn pack(backend: u32, now: u32) -> u64 {
    backend as u64 | (now as u64) << 32
}

/// Ranks of records that are neither opening nor closing begin here.
const OTHERS: u64 = 1 << 33;

/// Replacement order, lowest first: free, then what opens or closes, then the longest unused; one that is being written
/// never.
#[inline(always)]
const fn rank(control: u64, value: u64, now: u32) -> u64 {
    if control & SEQUENCE != 0 {
        u64::MAX
    } else if control & IDENTITY == 0 {
        0
    } else {
        let class = if control & STATE == 0 { OTHERS } else { 1 };
        class + (u32::MAX - now.wrapping_sub((value >> 32) as u32)) as u64
    }
}

/// Claims the entry seen as `seen`, fills and publishes it. Nothing happens where another writer was faster.
#[inline(always)]
fn write(entry: &Entry, seen: u64, key: &Key, value: u64) {
    let busy = (seen & !IDENTITY).wrapping_add(SEQUENCE);
    if seen & SEQUENCE != 0 || !entry.control.swap_if(seen, busy) {
        return;
    }
    entry.client[0].store(key.client[0]);
    entry.client[1].store(key.client[1]);
    entry.value.store(value);
    entry.control.publish(key.identity | busy.wrapping_add(SEQUENCE));
}

/// Consistent copy of an entry: key, backend, coarse time of last use. For sweeper, status and tests.
#[cfg(not(target_arch = "bpf"))]
pub fn snapshot(entry: &Entry) -> Option<(Key, u32, u32)> {
    let control = entry.control.load();
    let key = Key { client: [entry.client[0].load(), entry.client[1].load()], identity: control & IDENTITY };
    let value = entry.value.load();
    (control & IDENTITY != 0 && entry.control.load() == control).then_some((key, value as u32, (value >> 32) as u32))
}

/// Removes the record of `key` if the entry still holds it, in the same state.
#[cfg(not(target_arch = "bpf"))]
pub fn remove(entry: &Entry, key: &Key) -> bool {
    let control = entry.control.load();
    control & STATE == key.identity & STATE
        && key.is_in(entry, control)
        && entry.control.swap_if(control, (control & !IDENTITY).wrapping_add(2 * SEQUENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> Bucket {
        let word = || Word::new(0);
        let entry = || Entry { control: word(), client: [word(), word()], value: word() };
        Bucket { entries: core::array::from_fn(|_| entry()) }
    }

    fn key(n: u16) -> Key {
        Key::udp(3, Address::from_words([0, 5]), n)
    }

    #[test]
    fn a_record_is_found_under_its_whole_key_only() {
        let bucket = bucket();
        record(&bucket, &key(1), 7, 10);
        assert_eq!(find(&bucket, &key(1), 10), Some(7));
        assert_eq!(find(&bucket, &key(2), 10), None);
        assert_eq!(find(&bucket, &Key::udp(4, Address::from_words([0, 5]), 1), 10), None);
        assert_eq!(find(&bucket, &Key::udp(3, Address::from_words([0, 6]), 1), 10), None);
    }

    #[test]
    fn the_longest_unused_goes_first_also_when_the_clock_wraps() {
        let bucket = bucket();
        for n in 0..4 {
            record(&bucket, &key(n), 1, (u32::MAX - 1).wrapping_add(n.into()));
        }
        assert_eq!(find(&bucket, &key(0), 3), Some(1), "use refreshes");
        record(&bucket, &key(4), 1, 4);
        assert_eq!(find(&bucket, &key(1), 4), None);
        assert!([0, 2, 3, 4].iter().all(|n| find(&bucket, &key(*n), 4).is_some()));
    }

    #[test]
    fn a_record_counts_as_long_as_its_limit_and_is_refreshed_by_its_own_backend_only() {
        let (bucket, key) = (bucket(), Key::affinity(3, Address::from_words([0, 5])));
        let within = |now: u32, backend| find_within(&bucket, &key, now, 10, backend);
        let start = u32::MAX - 4;
        record(&bucket, &key, 7, start);
        assert_eq!(within(start.wrapping_add(10), 8), Some(7), "another one asks, and refreshes nothing");
        assert_eq!(within(start.wrapping_add(11), 7), None, "too old");
        assert_eq!(within(start.wrapping_add(11), 7), None, "and not refreshed by that");
        assert_eq!(within(start.wrapping_add(10), 7), Some(7), "its own one refreshes");
        assert_eq!(within(start.wrapping_add(20), 8), Some(7));
        assert_eq!(within(start.wrapping_add(21), 8), None);
        assert_eq!(within(start.wrapping_add(9), 8), Some(7), "a clock that is behind");
    }

    #[test]
    fn records_of_different_kinds_are_different() {
        let client = Address::from_words([0, 5]);
        let keys = [Key::udp(3, client, 3), Key::tcp(3, client, 3), Key::affinity(3, client)];
        let bucket = bucket();
        for (key, backend) in keys.iter().zip(1..) {
            record(&bucket, key, backend, 1);
        }
        let found = keys.map(|key| (find(&bucket, &key, 1), key.kind(), key.parts().0));
        assert_eq!(found, [(Some(1), Kind::Udp, 3), (Some(2), Kind::Tcp, 3), (Some(3), Kind::Affinity, 3)]);
    }

    #[test]
    fn a_new_backend_of_the_same_client_takes_the_same_entry() {
        let bucket = bucket();
        record(&bucket, &key(1), 1, 1);
        record(&bucket, &key(1), 2, 2);
        assert_eq!(find(&bucket, &key(1), 2), Some(2));
        assert_eq!(bucket.entries.iter().filter_map(snapshot).count(), 1);
    }

    #[test]
    fn a_state_is_no_part_of_what_a_record_is_found_by() {
        let bucket = bucket();
        let key = Key::tcp(3, Address::from_words([0, 5]), 1);
        for state in [State::Opening, State::Established, State::Closing] {
            record(&bucket, &key.in_state(state), 7, 1);
            assert_eq!(find_with_state(&bucket, &key, 1), Some((7, state)));
            assert_eq!(bucket.entries.iter().filter_map(snapshot).count(), 1);
        }
        assert!(!remove(&bucket.entries[0], &key), "of another state");
        assert!(remove(&bucket.entries[0], &key.in_state(State::Closing)));
    }

    #[test]
    fn a_flood_of_opening_connections_takes_no_others_place() {
        let bucket = bucket();
        let tcp = |n| Key::tcp(3, Address::from_words([0, 5]), n);
        for n in 0..3 {
            record(&bucket, &tcp(n), 1, 0);
        }
        for n in 10..100 {
            record(&bucket, &tcp(n).in_state(State::Opening), 1, n.into());
            assert_eq!(find(&bucket, &tcp(n), n.into()), Some(1), "in the place of the one before");
        }
        record(&bucket, &key(5), 1, 100);
        assert_eq!(find(&bucket, &tcp(99), 100), None, "the first to go, however new");
        record(&bucket, &tcp(101).in_state(State::Opening), 1, 101);
        assert_eq!(find(&bucket, &tcp(101), 101), None);
        assert!((0..3).all(|n| find(&bucket, &tcp(n), 101) == Some(1)));
    }

    #[test]
    fn an_entry_that_is_being_written_is_neither_found_nor_taken() {
        let bucket = bucket();
        for n in 0..4 {
            record(&bucket, &key(n), 1, 1);
        }
        for entry in &bucket.entries {
            entry.control.store((entry.control.load() & !IDENTITY).wrapping_add(SEQUENCE));
        }
        assert_eq!(find(&bucket, &key(0), 1), None);
        record(&bucket, &key(9), 1, 2);
        assert_eq!(find(&bucket, &key(9), 2), None);
    }
}
