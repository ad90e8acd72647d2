//! Deliberate faults of BFD, each of which the simulation must notice.

use super::Mutation;

/// All of them.
pub const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "the own multiplier makes the detection time",
        file: "machine.rs",
        within: "* u32::from(packet.detect_mult.get()))",
        old: "packet.detect_mult",
        new: "self.settings.detect_mult()",
    },
    Mutation {
        name: "the own interval alone makes the detection time",
        file: "machine.rs",
        within: "Some(self.in_use.receive.max(packet.desired_min_tx) *",
        old: "self.in_use.receive.max(packet.desired_min_tx)",
        new: "self.in_use.receive",
    },
    Mutation {
        name: "packets come more often than the other end receives",
        file: "machine.rs",
        within: "        self.in_use.transmit.max(wished)\n",
        old: "self.in_use.transmit.max(wished)",
        new: "self.in_use.transmit",
    },
    Mutation {
        name: "Poll is not answered",
        file: "machine.rs",
        within: "|= packet.sequence == Sequence::Poll;",
        old: "packet.sequence == Sequence::Poll",
        new: "false",
    },
    Mutation {
        name: "a session that is not up sends at full pace",
        file: "machine.rs",
        within: "let least = if is_up {",
        old: "is_up",
        new: "true",
    },
    Mutation {
        name: "a slower pace is kept before the other end knows",
        file: "machine.rs",
        within: "if !is_up || wanted.transmit < self.in_use.transmit {",
        old: "!is_up || wanted.transmit < self.in_use.transmit",
        new: "true",
    },
    Mutation {
        name: "a shorter detection time is kept before the other end knows",
        file: "machine.rs",
        within: "if !is_up || wanted.receive > self.in_use.receive {",
        old: "!is_up || wanted.receive > self.in_use.receive",
        new: "true",
    },
    Mutation {
        name: "an order of the other end is a failure",
        file: "machine.rs",
        within: "let is_by_order = self.remote.is_some_and(|remote| remote.packet.state == State::AdminDown);",
        old: "self.remote.is_some_and(|remote| remote.packet.state == State::AdminDown)",
        new: "false",
    },
    Mutation {
        name: "a hung agent looks alive",
        file: "machine.rs",
        within: "pulse.is_within(limit, now)",
        old: "pulse.is_within(limit, now)",
        new: "true",
    },
    Mutation {
        name: "the other end's Down takes nothing down",
        file: "machine/transition.rs",
        within: "(Up, Input::Heard(Down)) => Some((Down, SIGNALED)),",
        old: "Some((Down, SIGNALED))",
        new: "None",
    },
    Mutation {
        name: "silence takes nothing down",
        file: "machine/transition.rs",
        within: "(Init | Up, Input::Silence) => Some((Down, EXPIRED)),",
        old: "Some((Down, EXPIRED))",
        new: "None",
    },
    Mutation {
        name: "who is told to go on stays down",
        file: "machine/transition.rs",
        within: "(AdminDown, Input::Resume) => Some((Down, CLEARED)),",
        old: "Some((Down, CLEARED))",
        new: "None",
    },
];
