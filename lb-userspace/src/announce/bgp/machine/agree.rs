//! What we say in an OPEN, whether the peer's is accepted, and what the two make together.

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;
use thiserror::Error;

use super::{
    super::{
        packet::{Capabilities, Encoding, GracefulRestart, Notification, Open, code, open_error},
        values::{AsNumber, Family, HoldTime, Identifier, RestartTime},
    },
    settings::{BfdUse, PeerAs, RestartFacts, Settings},
};

/// Send hold time where the hold time is short (RFC 9687, 3.4).
const SEND_HOLD_TIME: Duration = Duration::from_secs(480);
/// End-of-RIB is sent at the latest after half of what a peer waits for us; where it does not, after half of the default.
const END_OF_RIB_SHARE: u32 = 2;

/// What a session goes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Negotiated {
    /// The peer's.
    pub peer_as: AsNumber,
    /// The peer's.
    pub peer_identifier: Identifier,
    /// All that the peer says it can do.
    pub peer: Capabilities,
    /// Within our AS.
    pub is_internal: bool,
    /// The shorter one.
    pub hold_time: HoldTime,
    /// AS paths have numbers of four octets.
    pub four_octet_as: bool,
    /// Prefixes of these may be sent.
    pub families: BTreeSet<Family>,
    /// IPv4 prefixes may have IPv6 next hops.
    pub extended_next_hop: bool,
    /// The peer waits for us this long.
    pub restart_time: Option<RestartTime>,
    /// NOTIFICATIONs keep routes: what must end them is a Hard Reset (RFC 8538).
    pub notification_keeps: bool,
}

/// Why an OPEN that is legal is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    #[error("the peer's AS is {found} and not {wanted}: correct it on either side")]
    As { found: AsNumber, wanted: AsNumber },
    #[error("the peer's AS {0} is ours, and an external one is asked for")]
    Internal(AsNumber),
    #[error("the peer's identifier {0} is ours, within one AS: give one of them another")]
    Identifier(Identifier),
    #[error("the peer speaks none of the address families that are configured for it")]
    Families,
}

impl Refusal {
    pub(super) fn notification(self, ours: &Open) -> Notification {
        match self {
            //= rfc4271#6.2:peer-as MUST: an AS other than the expected one is answered by 2/2
            Self::As { .. } | Self::Internal(_) => Notification::new(code::OPEN, open_error::BAD_PEER_AS, Vec::new()),
            //= rfc6286#2.2:same MUST: our own identifier within the AS is answered by 2/3
            Self::Identifier(_) => Notification::new(code::OPEN, open_error::BAD_IDENTIFIER, Vec::new()),
            //= rfc5492#5:needed MUST: the answer 2/7 names the capabilities that the peer lacks
            Self::Families => {
                let missing = ours.capabilities.families_to_wire();
                Notification::new(code::OPEN, open_error::UNSUPPORTED_CAPABILITY, missing)
            }
        }
    }
}

/// What a new OPEN depends on beside the settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<'a> {
    pub(super) restart: &'a RestartFacts,
    /// No session has been since the agent's start.
    pub(super) is_first: bool,
    /// The peer refused to read optional parameters.
    pub(super) is_bare: bool,
    /// What the peer proposed when it last sent an OPEN.
    pub(super) peer_hold_time: Option<HoldTime>,
}

/// Our OPEN.
pub(super) fn offer(settings: &Settings, offer: Offer<'_>) -> Open {
    let has_bfd = settings.bfd != BfdUse::Off;
    let graceful_restart = settings.graceful_restart.map(|time| GracefulRestart {
        //= rfc4724#4.1:restarted MUST: R is set in the OPEN that re-establishes a session after a restart
        restarted: offer.restart.restarted && offer.is_first,
        //= rfc8538#2:notification MUST: N is set where NOTIFICATIONs are to keep routes: with BFD alone
        notification: has_bfd,
        time: restart_time(settings, time, offer.peer_hold_time),
        //= rfc4724#4.1:forwarding MUST: F is not set for a family whose forwarding did not go on
        families: settings.families.iter().map(|family| (*family, offer.restart.forwarding.contains(family))).collect(),
        has_other_families: false,
    });
    let capabilities = Capabilities {
        //= rfc4760#8:capability MUST: each family is announced by a capability
        families: settings.families.clone(),
        route_refresh: true,
        //= rfc6793#4.1:advertise MUST: a speaker of four octets says so, with its number
        four_octet_as: Some(settings.local_as.get()),
        extended_next_hop: settings.extended_next_hop && settings.families.contains(&Family::Ipv4),
        graceful_restart,
        ..Capabilities::default()
    };
    Open {
        as_number: settings.local_as,
        hold_time: settings.hold_time,
        identifier: settings.identifier,
        capabilities: if offer.is_bare { Capabilities::default() } else { capabilities },
    }
}

/// Without BFD, never above the hold time: a router finds a dead node no later than one that does not restart.
fn restart_time(settings: &Settings, time: RestartTime, peer: Option<HoldTime>) -> RestartTime {
    if settings.bfd != BfdUse::Off {
        return time;
    }
    //= rfc4724#4.1:restart-time SHOULD: the restart time is not above the hold time
    let proposed = [Some(settings.hold_time), peer].into_iter().flatten().filter(|hold| hold.seconds() != 0);
    let seconds = proposed.map(HoldTime::seconds).chain([time.seconds()]).min().unwrap_or_default();
    RestartTime::from_seconds(seconds).unwrap_or(time)
}

/// Both OPENs together.
pub(super) fn agree(settings: &Settings, ours: &Open, theirs: Open) -> Result<Negotiated, Refusal> {
    let Open { as_number, hold_time, identifier, capabilities } = theirs;
    match settings.peer_as {
        PeerAs::Number(wanted) if wanted != as_number => return Err(Refusal::As { found: as_number, wanted }),
        PeerAs::External if as_number == settings.local_as => return Err(Refusal::Internal(as_number)),
        PeerAs::Number(_) | PeerAs::External => {}
    }
    let is_internal = as_number == settings.local_as;
    if is_internal && identifier == settings.identifier {
        return Err(Refusal::Identifier(identifier));
    }
    let speaks = |family: &Family| ours.capabilities.speaks(*family) && capabilities.speaks(*family);
    //= rfc4760#8:both MUST: a family is used when both sides announce it
    let families: BTreeSet<_> = Family::ALL.into_iter().filter(speaks).collect();
    if families.is_empty() {
        return Err(Refusal::Families);
    }
    let restarts = (ours.capabilities.graceful_restart.as_ref(), capabilities.graceful_restart.as_ref());
    Ok(Negotiated {
        peer_as: as_number,
        peer_identifier: identifier,
        is_internal,
        //= rfc4271#4.2:smaller MUST: the hold time is the smaller of both
        hold_time: hold_time.min(ours.hold_time),
        four_octet_as: ours.capabilities.four_octet_as.is_some() && capabilities.four_octet_as.is_some(),
        families,
        //= rfc8950#4:both MUST: IPv6 next hops go to who announces that it takes them
        extended_next_hop: ours.capabilities.extended_next_hop && capabilities.extended_next_hop,
        restart_time: restarts.0.zip(restarts.1).map(|(ours, _)| ours.time),
        //= rfc8538#2:both MUST: NOTIFICATIONs keep routes when both sides have set N
        notification_keeps: restarts.0.zip(restarts.1).is_some_and(|(a, b)| a.notification && b.notification),
        peer: capabilities,
    })
}

impl Negotiated {
    pub(super) const fn encoding(&self, settings: &Settings) -> Encoding {
        Encoding {
            local_as: settings.local_as,
            is_internal: self.is_internal,
            four_octet_as: self.four_octet_as,
            bandwidth: settings.bandwidth,
        }
    }

    /// A third of the hold time, at least a second; None where none are sent.
    pub(super) fn keepalive_interval(&self) -> Option<Duration> {
        //= rfc4271#4.4:none MUST: with a hold time of zero no KEEPALIVEs are sent at intervals
        self.hold_time.duration().map(|hold| hold / 3)
    }

    /// How long the peer may take nothing.
    pub(super) fn send_hold_time(&self) -> Option<Duration> {
        //= rfc9687#3.3:none MUST: with a hold time of zero there is no send hold timer
        //= rfc9687#3.4:default SHOULD: it is the greater of eight minutes and twice the hold time
        self.hold_time.duration().map(|hold| SEND_HOLD_TIME.max(hold * 2))
    }

    pub(super) fn end_of_rib_time(&self) -> Duration {
        self.restart_time.unwrap_or(RestartTime::DEFAULT).duration() / END_OF_RIB_SHARE
    }

    /// What is sent in place of a Cease, where that must end the peer's routes.
    pub(super) fn ending(&self, notification: Notification, is_final: bool) -> Notification {
        //= rfc8538#5.1:hard-reset SHOULD: what must end routes is sent as a Hard Reset once both sides keep them
        if self.notification_keeps && is_final { notification.hardened() } else { notification }
    }

    /// The peer comes back with its state, so a new connection of it is a restart (RFC 4724, 5).
    pub(super) fn peer_restarts(&self) -> bool {
        let restart = self.peer.graceful_restart.as_ref();
        restart.is_some_and(|restart| !restart.families.is_empty() || restart.has_other_families)
    }
}
