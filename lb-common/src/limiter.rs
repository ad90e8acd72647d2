//! Token buckets for the packets that the data plane makes itself: the only thing that a flood of them moves.

use crate::abi::{Bucket, Limit};

/// What is limited on its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Class {
    /// TCP RST and ICMP unreachable.
    Refusal = 0,
    /// ICMP echo replies.
    Echo,
    /// ICMP Time Exceeded and Packet Too Big.
    IcmpError,
}

/// One packet, in the unit of [`Limit`] and [`Bucket`].
pub const TOKEN: u64 = 1 << 16;

/// Takes one token, after adding what came in since. Returns whether there was one.
#[inline(always)]
pub fn admit(bucket: &mut Bucket, limit: &Limit, now: u64) -> bool {
    // A bucket is bounded, so that a long pause cannot overflow the product: no pause counts for more than an hour
    // at 1000 Hz, and rates are below 2^32 packets a second.
    let elapsed = now.wrapping_sub(bucket.since);
    let elapsed = if elapsed > 3_600_000 { 3_600_000 } else { elapsed };
    let fresh = bucket.since == 0;
    let grown = bucket.tokens.wrapping_add(elapsed.wrapping_mul(limit.per_jiffy));
    let tokens = if fresh || grown > limit.burst { limit.burst } else { grown };
    bucket.since = now;
    let admitted = tokens >= TOKEN;
    bucket.tokens = if admitted { tokens - TOKEN } else { tokens };
    admitted
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { burst: 3 * TOKEN, per_jiffy: TOKEN / 2 };

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = Bucket::default();
        let admitted = |bucket: &mut Bucket, now| (0..10).filter(|_| admit(bucket, &LIMIT, now)).count();
        assert_eq!(admitted(&mut bucket, 1000), 3);
        assert_eq!(admitted(&mut bucket, 1000), 0);
        assert_eq!(admitted(&mut bucket, 1002), 1);
        assert_eq!(admitted(&mut bucket, 1_000_000_000), 3, "never more than the burst");
    }

    #[test]
    fn a_limit_of_zero_admits_nothing() {
        assert!(!admit(&mut Bucket::default(), &Limit::default(), 7));
    }
}
