//! What goes wrong with every packet is said once in a while.

use std::{collections::BTreeMap, time::Duration};

/// Between two lines about the same thing.
const INTERVAL: Duration = Duration::from_secs(30);

/// When each thing was said last. As many as there are places that complain.
#[derive(Debug, Default)]
pub struct Complaints(BTreeMap<&'static str, Duration>);

impl Complaints {
    /// Says it, unless it was said a moment ago.
    pub fn say(&mut self, what: &'static str, now: Duration, say: impl FnOnce()) {
        let is_due = self.0.get(what).is_none_or(|last| now.saturating_sub(*last) >= INTERVAL);
        if is_due {
            self.0.insert(what, now);
            say();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_thing_is_said_once_in_a_while_and_another_at_once() {
        let (mut complaints, mut said) = (Complaints::default(), Vec::new());
        for (what, second) in [("a", 0), ("a", 29), ("b", 29), ("a", 30), ("a", 31)] {
            complaints.say(what, Duration::from_secs(second), || said.push((what, second)));
        }
        assert_eq!(said, [("a", 0), ("b", 29), ("a", 30)]);
    }
}
