//! Included by the stress test as well, so that there is one definition: few keys in few buckets, whose answers are a
//! function of the key.

use lb_common::address::Address;

/// Buckets of the table: half as many entries as there are keys.
pub const BUCKETS: usize = 8;
/// Keys; a power of two.
pub const KEYS: u64 = 64;

/// A key, and the backend that every record of it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// One of two.
    pub endpoint: u32,
    /// Half of each address is that of seven or three others: what is put together of two addresses is a third one.
    pub client: Address,
    /// The same for all, so that keys differ in their address alone, or in nothing but the endpoint.
    pub port: u16,
    /// The right answer.
    pub backend: u32,
}

/// The question of a number.
#[inline(always)]
pub const fn question(number: u64) -> Question {
    let n = number & (KEYS - 1);
    let words = [0x0101_0101_0101_0101 * (1 + (n & 3)), 0x1000_0001_0000_0001 * (1 + (n >> 2 & 7))];
    Question { endpoint: 1 + (n >> 5) as u32, client: Address::from_words(words), port: 7, backend: answer(n) }
}

/// Answers share no byte pattern with their neighbours.
#[inline(always)]
const fn answer(n: u64) -> u32 {
    ((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// What one CPU or thread has done and seen.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Tally {
    /// State of the generator of keys; not 0.
    pub random: u64,
    /// Records that were found.
    pub hits: u64,
    /// Records that were not.
    pub misses: u64,
    /// Misses that found their bucket full: what is recorded then takes another's place.
    pub evictions: u64,
    /// Answers of another key.
    pub wrong: u64,
    /// Zero.
    pub pad: [u64; 3],
}

impl Tally {
    /// The next number (Marsaglia's xorshift).
    #[inline(always)]
    pub const fn next(&mut self) -> u64 {
        let mut x = self.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        x
    }
}
