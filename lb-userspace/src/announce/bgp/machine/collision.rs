//! Which of two connections stays (RFC 4271, 6.8).

use std::time::Duration;

use super::{
    super::{
        packet::{Notification, cease},
        values::{AsNumber, Identifier},
    },
    Cause, ConnectionId, Negotiated, Peer,
    session::Phase,
};

/// A connection that waits for its OPEN is weighed too, for so long after it came to be: the peer has just opened it, and
/// both sides decide alike whichever OPEN comes first. One that has waited longer is most likely dead. For as long after a
/// session began, a new connection is the other half of a collision and no sign of a restart.
pub(super) const OPEN_SENT_WEIGHED: Duration = Duration::from_secs(5);

/// Who opened the connection that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Winner {
    Ours,
    Theirs,
}

/// By identifier, and where those are equal by AS number (RFC 6286, 2.3).
pub(super) fn winner(ours: (Identifier, AsNumber), theirs: (Identifier, AsNumber)) -> Winner {
    //= rfc4271#6.8:identifiers MUST: the connection stays that the greater identifier opened, compared as numbers
    //= rfc6286#2.3:equal MUST: with equal identifiers it is the greater AS number's
    if ours > theirs { Winner::Ours } else { Winner::Theirs }
}

impl Peer {
    /// An OPEN has come on `id`, and is accepted. False where that connection had to go.
    pub(super) fn resolve_collision(&mut self, id: ConnectionId, negotiated: &Negotiated, now: Duration) -> bool {
        let Some(is_dialled) = self.connection(id).map(|connection| connection.is_dialled) else { return false };
        let Some(other) = self.connections.iter().find(|connection| connection.id != id) else { return true };
        let ours = (self.settings.identifier, self.settings.local_as);
        let winner = winner(ours, (negotiated.peer_identifier, negotiated.peer_as));
        let stays = (winner == Winner::Ours) == is_dialled;
        let other_id = other.id;
        let other_stays = match &other.phase {
            //= rfc4271#6.8:established MUST: a new connection beside a session is closed
            Phase::Established(_) => true,
            //= rfc4271#6.8:open-confirm MUST: at an OPEN, connections in OpenConfirm are weighed against its own
            Phase::OpenConfirm { .. } => !stays,
            //= rfc4271#6.8:open-sent MAY: so are those in OpenSent, as the OPEN says who is on the other side
            Phase::OpenSent { .. } if now < other.since + OPEN_SENT_WEIGHED => !stays,
            // One that is stale may still come to life: then its own OPEN is weighed.
            Phase::OpenSent { .. } => return true,
            Phase::Connect => {
                self.end(other_id, Cause::Collision, None, now);
                return true;
            }
        };
        //= rfc4271#6.8:cease MUST: the connection that goes is told so by a Cease
        //= rfc4486#4:collision MUST: with subcode 7
        let loser = if other_stays { id } else { other_id };
        self.end(loser, Cause::Collision, Some(Notification::cease(cease::COLLISION)), now);
        !other_stays
    }
}
