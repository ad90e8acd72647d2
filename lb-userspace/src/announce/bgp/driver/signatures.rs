//! What the kernel counts of segments whose signature (RFC 2385) is not what it should be. Only the receiver of a SYN
//! counts; it says of no segment where that came from.

use std::fs;

use serde::Serialize;

/// Of this network namespace, whichever thread asks.
const TABLE: &str = "/proc/thread-self/net/netstat";

/// Segments that were dropped since the machine's start (TcpExt of net/ipv4/proc.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Signatures {
    /// Signed with another password than ours.
    pub failed: u64,
    /// Not signed where we have a password: by a peer that has none, or by a router on which nothing listens.
    pub missing: u64,
    /// Signed where we have none.
    pub unexpected: u64,
}

impl Signatures {
    /// As of now; nothing where the kernel does not say.
    pub fn read() -> Self {
        fs::read_to_string(TABLE).ok().and_then(|table| Self::parse(&table)).unwrap_or_default()
    }

    /// Pairs of lines: names, then numbers, both behind the name of their group.
    fn parse(table: &str) -> Option<Self> {
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, numbers) = (lines.next()?, lines.next()?);
        let number = |wanted: &str| {
            let mut pairs = names.split_ascii_whitespace().zip(numbers.split_ascii_whitespace());
            pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
        };
        Some(Self {
            failed: number("TCPMD5Failure")?,
            missing: number("TCPMD5NotFound")?,
            unexpected: number("TCPMD5Unexpected")?,
        })
    }

    /// What has been added since an earlier look.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            failed: self.failed.saturating_sub(earlier.failed),
            missing: self.missing.saturating_sub(earlier.missing),
            unexpected: self.unexpected.saturating_sub(earlier.unexpected),
        }
    }

    /// Both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            failed: self.failed + other.failed,
            missing: self.missing + other.missing,
            unexpected: self.unexpected + other.unexpected,
        }
    }

    /// What of it may be a peer's that has a password here, or has none.
    pub fn of_peer(self, has_password: bool) -> Option<Self> {
        let its = if has_password { Self { unexpected: 0, ..self } } else { Self { failed: 0, missing: 0, ..self } };
        (its != Self::default()).then_some(its)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure TCPSackShifted\n\
                         TcpExt: 9 3 2 7 11\nIpExt: InNoRoutes InTruncatedPkts\nIpExt: 0 0\n";

    #[test]
    fn counters_are_found_by_their_names() {
        assert_eq!(Signatures::parse(TABLE), Some(Signatures { failed: 7, missing: 3, unexpected: 2 }));
        assert_eq!(Signatures::parse("TcpExt: SyncookiesSent\nTcpExt: 9\n"), None);
        assert_eq!(Signatures::parse(""), None);
    }

    #[test]
    fn who_has_a_password_is_not_blamed_for_signatures_that_nobody_expects() {
        let now = Signatures { failed: 7, missing: 3, unexpected: 2 };
        let unexpected = now.since(Signatures { unexpected: 1, ..now });
        assert_eq!(unexpected.of_peer(true), None);
        assert_eq!(unexpected.of_peer(false), Some(Signatures { unexpected: 1, ..Signatures::default() }));
        let failed = now.since(Signatures { failed: 5, ..now });
        assert_eq!(failed.of_peer(true), Some(Signatures { failed: 2, ..Signatures::default() }));
        assert_eq!(failed.of_peer(false), None);
    }

    #[test]
    fn this_kernel_counts() {
        assert!(fs::read_to_string(super::TABLE).is_ok_and(|table| Signatures::parse(&table).is_some()));
    }
}
