//! Which backend stands where in its service's range of backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use thiserror::Error;

use crate::plan::maglev::NO_OWNER;

/// Index of a backend in its service's range of backends: the same for as long as it is one of the service's. Slots
/// and lists name backends by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u16);

impl Position {
    /// Of a slot that nobody owns.
    pub const NONE: Self = Self(NO_OWNER);
}

/// A backend within its service: address and port.
pub type Identity = (IpAddr, u16);

/// More backends than positions, those at rest included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a service has at most {POSITIONS_MAX} backends, and as many positions, those of removed backends included")]
pub struct PositionsFull;

/// [`NO_OWNER`] is none.
const POSITIONS_MAX: usize = NO_OWNER as usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Used,
    /// The backend was removed then.
    Resting(Duration),
}

/// The positions of one service's backends, the lowest free one first, so that the range stays short.
///
/// Memory: at most 100 bytes a position.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    by_identity: BTreeMap<Identity, Position>,
    states: Vec<State>,
    free: BTreeSet<u16>,
}

impl Positions {
    /// Those of a service that was read back: each identity and each position once.
    pub(in crate::plan) fn in_use(used: impl IntoIterator<Item = (Identity, Position)>) -> Self {
        let by_identity: BTreeMap<Identity, Position> = used.into_iter().collect();
        let end = by_identity.values().map(|position| usize::from(position.0) + 1).max().unwrap_or(0);
        let mut states = vec![State::Free; end];
        for position in by_identity.values() {
            states[usize::from(position.0)] = State::Used;
        }
        let free = (0..).zip(&states).filter(|(_, state)| **state == State::Free).map(|(position, _)| position);
        Self { free: free.collect(), by_identity, states }
    }

    /// Makes `wanted` the backends: who stays keeps his position, who goes leaves his to rest, who comes gets one. A
    /// backend that went and comes again is another one. Positions in the order of `wanted`.
    ///
    /// # Errors
    /// When there are more backends than positions. Nothing has changed then.
    pub fn update(&mut self, wanted: &[Identity], now: Duration) -> Result<Vec<Position>, PositionsFull> {
        let distinct: BTreeSet<Identity> = wanted.iter().copied().collect();
        let coming = distinct.iter().filter(|identity| !self.by_identity.contains_key(identity)).count();
        if coming > self.free.len() + POSITIONS_MAX - self.states.len() {
            return Err(PositionsFull);
        }
        let states = &mut self.states;
        self.by_identity.retain(|identity, position| {
            let stays = distinct.contains(identity);
            if !stays {
                states[usize::from(position.0)] = State::Resting(now);
            }
            stays
        });
        let (states, free) = (&mut self.states, &mut self.free);
        let position = |&identity| {
            *self.by_identity.entry(identity).or_insert_with(|| {
                let position = free.pop_first().unwrap_or_else(|| {
                    states.push(State::Free);
                    (states.len() - 1) as u16
                });
                states[usize::from(position)] = State::Used;
                Position(position)
            })
        };
        Ok(wanted.iter().map(position).collect())
    }

    /// Whether a backend stands there, which may drain or be down.
    pub fn contains(&self, position: Position) -> bool {
        self.states.get(usize::from(position.0)) == Some(&State::Used)
    }

    /// The position of a backend.
    pub fn get(&self, identity: &Identity) -> Option<Position> {
        self.by_identity.get(identity).copied()
    }

    /// Length that the service's range of backends must have.
    pub fn end(&self) -> usize {
        self.states.len()
    }

    /// Makes positions free that were left at or before `time` and that nothing refers to.
    ///
    /// `is_referred_to` says what the data plane holds: writes that wait to be applied are to be waited for.
    pub fn release_before(&mut self, time: Duration, is_referred_to: impl Fn(Position) -> bool) {
        for (position, state) in (0..).zip(&mut self.states) {
            if matches!(state, State::Resting(since) if *since <= time) && !is_referred_to(Position(position)) {
                *state = State::Free;
                self.free.insert(position);
            }
        }
    }
}
