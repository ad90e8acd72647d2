//! The transition table, as data.

use crate::announce::bfd::packet::{Diagnostic, State};

/// What may move a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A packet in which the other end says its state.
    Heard(State),
    /// Nothing was heard for a detection time.
    Silence,
    /// Ordered stop.
    Stop,
    /// The end of an ordered stop.
    Resume,
    /// The own forwarding plane was reset.
    ForwardingPlaneReset,
}

/// The state after `input` and the diagnostic, where that changes too; `None` where nothing does. RFC 5880 6.2, 6.8.4,
/// 6.8.6, 6.8.15, 6.8.16.
///
/// The diagnostic tells why the session went down until it is up again, so that the other end's operator can read it.
#[must_use]
pub const fn transition(state: State, input: Input) -> Option<(State, Option<Diagnostic>)> {
    use State::{AdminDown, Down, Init, Up};
    const ORDERED: Option<Diagnostic> = Some(Diagnostic::AdministrativelyDown);
    const SIGNALED: Option<Diagnostic> = Some(Diagnostic::NeighborSignaledDown);
    const EXPIRED: Option<Diagnostic> = Some(Diagnostic::DetectionTimeExpired);
    const RESET: Option<Diagnostic> = Some(Diagnostic::ForwardingPlaneReset);
    const CLEARED: Option<Diagnostic> = Some(Diagnostic::None);
    match (state, input) {
        (AdminDown, Input::Heard(_) | Input::Silence | Input::Stop | Input::ForwardingPlaneReset) => None,
        //= rfc5880#6.8.16:enable MUST: a session that is enabled begins in Down
        (AdminDown, Input::Resume) => Some((Down, CLEARED)),
        (Down | Init | Up, Input::Resume) => None,
        //= rfc5880#6.8.16:disable MUST: a session that is disabled is in AdminDown, with a diagnostic
        (Down | Init | Up, Input::Stop) => Some((AdminDown, ORDERED)),
        //= rfc5880#6.8.6:admin-down-heard MUST: AdminDown takes any session but one in Down to Down, diagnostic 3
        (Init | Up, Input::Heard(AdminDown)) => Some((Down, SIGNALED)),
        (Down, Input::Heard(AdminDown)) => None,
        //= rfc5880#6.8.6:down MUST: in Down, Down leads to Init and Init to Up; Up changes nothing
        (Down, Input::Heard(Down)) => Some((Init, None)),
        (Down, Input::Heard(Init)) => Some((Up, CLEARED)),
        (Down, Input::Heard(Up)) => None,
        //= rfc5880#6.8.6:init MUST: in Init, Init and Up lead to Up
        (Init, Input::Heard(Init | Up)) => Some((Up, CLEARED)),
        (Init, Input::Heard(Down)) => None,
        //= rfc5880#6.8.6:up MUST: in Up, Down leads to Down, diagnostic 3
        (Up, Input::Heard(Down)) => Some((Down, SIGNALED)),
        (Up, Input::Heard(Init | Up)) => None,
        //= rfc5880#6.8.4:expiry MUST: a detection time of silence in Init or Up leads to Down, diagnostic 1
        (Init | Up, Input::Silence) => Some((Down, EXPIRED)),
        (Down, Input::Silence) => None,
        (Down | Init | Up, Input::ForwardingPlaneReset) => Some((Down, RESET)),
    }
}
