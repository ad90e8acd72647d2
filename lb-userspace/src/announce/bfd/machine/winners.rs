//! The earliest of many times, in a tree of fixed size: nothing is allocated after it is made.

use std::time::Duration;

const NEVER: Duration = Duration::MAX;

/// A time for each of a fixed number of places. Each inner node holds the lesser of its children. 32 octets a place.
#[derive(Debug)]
pub struct Winners {
    /// The root is at 1, place `i` at `places + i`.
    nodes: Box<[Duration]>,
}

impl Winners {
    /// Room for at least that many places, none set.
    pub fn new(places: usize) -> Self {
        Self { nodes: vec![NEVER; places.next_power_of_two() * 2].into_boxed_slice() }
    }

    /// Sets or clears the time of a place.
    pub fn set(&mut self, place: usize, at: Option<Duration>) {
        let mut node = self.nodes.len() / 2 + place;
        self.nodes[node] = at.unwrap_or(NEVER);
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[node * 2].min(self.nodes[node * 2 + 1]);
        }
    }

    /// The earliest time and its place.
    pub fn first(&self) -> Option<(Duration, usize)> {
        let earliest = self.nodes[1];
        if earliest == NEVER {
            return None;
        }
        let mut node = 1;
        while node < self.nodes.len() / 2 {
            node = if self.nodes[node * 2] == earliest { node * 2 } else { node * 2 + 1 };
        }
        Some((earliest, node - self.nodes.len() / 2))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_is_the_least(sets in prop::collection::vec((0..13usize, prop::option::of(0..20u64)), 0..100)) {
            let (mut winners, mut plain) = (Winners::new(13), [None; 13]);
            for (place, at) in sets {
                let at = at.map(Duration::from_secs);
                winners.set(place, at);
                plain[place] = at;
                let first = winners.first();
                prop_assert_eq!(first.map(|(at, _)| at), plain.iter().flatten().min().copied());
                if let Some((at, place)) = first {
                    prop_assert_eq!(plain[place], Some(at));
                }
            }
        }
    }
}
