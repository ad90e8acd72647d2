//! Deliberate faults of a virtual router, each of which the simulation must notice.

/// What is wrong, the file, the text as it is, and the text instead.
pub const MUTATIONS: &[(&str, &str, &str, &str)] = &[
    (
        "an active believes its validity twice as long",
        "machine/election.rs",
        "if self.now >= valid_until => self.step_down(Cause::ValidityOver)",
        "if self.now >= valid_until * 2 => self.step_down(Cause::ValidityOver)",
    ),
    (
        "who has slept takes over at once",
        "machine/election.rs",
        "> interval.duration() * SLEPT_INTERVALS",
        "> interval.duration() * SLEPT_INTERVALS * 1000",
    ),
    (
        "a split brain heals without an answer",
        "machine/election.rs",
        "                self.claim();\n                self.announce();\n",
        "                self.announce();\n",
    ),
    (
        "validity is as long as others wait",
        "machine/election.rs",
        "valid_until.max(at + self.settings.interval.validity())",
        "valid_until.max(at + self.settings.interval.active_down_max())",
    ),
    (
        "a backup keeps its own interval",
        "machine/election.rs",
        "self.arm(interval, self.down_at(interval), false)",
        "self.arm(interval, self.down_at(self.settings.interval), false)",
    ),
    (
        "a leaving active is waited for as a dead one",
        "machine/election.rs",
        "self.arm(known, self.now + skew, true)",
        "self.arm(known, self.down_at(known), skew.is_zero())",
    ),
    (
        "who was not answered goes on holding",
        "machine/election.rs",
        "if answered && self.hold().is_none()",
        "if answered && self.hold().is_some()",
    ),
    ("the loser says no last word", "machine/election.rs", "self.pending = Some(Purpose::Yield);", ""),
    (
        "a preemption is put off by each advertisement",
        "machine/election.rs",
        "self.preempt_at().unwrap_or(self.now + delay)",
        "self.preempt_at().map_or(self.now + delay, |_| self.now + delay)",
    ),
    (
        "an ordered stop breaks before it makes",
        "machine.rs",
        "(State::Active { valid_until, holds: true }, Stop::MakeBeforeBreak) => self.begin_leaving(valid_until)",
        "(State::Active { holds: true, .. }, Stop::MakeBeforeBreak) => self.leave_at_once(Cause::Stopped)",
    ),
    ("who may hold nothing goes on", "machine.rs", "return self.leave_at_once(Cause::NotEligible);", "return;"),
];
