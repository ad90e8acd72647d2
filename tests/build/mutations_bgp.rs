//! Deliberate faults of BGP, each of which the simulation must notice.

use super::Mutation;

/// All of them.
pub const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "a route that is not wanted stays",
        file: "machine/export.rs",
        within: "self.pending.withdrawals.insert(prefix);",
        old: "self.pending.withdrawals.insert(prefix)",
        new: "false",
    },
    Mutation {
        name: "a new session is sent nothing",
        file: "machine/session.rs",
        within: "self.push_event(Event::Negotiated(Box::new(negotiated)));\n        self.want_all();",
        old: "self.want_all()",
        new: "",
    },
    Mutation {
        name: "the hold time is the greater of both",
        file: "machine/agree.rs",
        within: "hold_time: hold_time.min(ours.hold_time),",
        old: "hold_time.min(ours.hold_time)",
        new: "hold_time.max(ours.hold_time)",
    },
    Mutation {
        name: "KEEPALIVEs come too seldom",
        file: "machine/agree.rs",
        within: "map(|hold| hold / 3)",
        old: "hold / 3",
        new: "hold * 2",
    },
    Mutation {
        name: "KEEPALIVEs do not restart the hold timer",
        file: "machine/session.rs",
        within: "(Phase::Established(_), MessageType::Keepalive) => self.restart_hold_timer(id, now),",
        old: "self.restart_hold_timer(id, now)",
        new: "",
    },
    Mutation {
        name: "forwarding is said to have gone on always",
        file: "machine/agree.rs",
        within: "(*family, offer.restart.forwarding.contains(family))",
        old: "offer.restart.forwarding.contains(family)",
        new: "true",
    },
    Mutation {
        name: "without BFD the restart time is as configured",
        file: "machine/agree.rs",
        within: "if settings.bfd != BfdUse::Off {\n        return time;",
        old: "settings.bfd != BfdUse::Off",
        new: "true",
    },
    Mutation {
        name: "what ends routes is no Hard Reset",
        file: "machine/agree.rs",
        within: "if self.notification_keeps && is_final {",
        old: "self.notification_keeps && is_final",
        new: "false",
    },
    Mutation {
        name: "End-of-RIB never comes",
        file: "machine/export.rs",
        within: "*ends?.iter().find(|family| !self.ended.contains(*family))?;",
        old: "!self.ended.contains(*family)",
        new: "self.ended.contains(*family)",
    },
    Mutation {
        name: "BFD's Down closes nothing",
        file: "machine/peer.rs",
        within: "was_up && self.settings.bfd != BfdUse::Off,",
        old: "was_up && self.settings.bfd != BfdUse::Off",
        new: "false",
    },
    Mutation {
        name: "BFD's Up releases nobody",
        file: "machine/peer.rs",
        within: "Bfd::None | Bfd::Up => false,\n                Bfd::Down",
        old: "false",
        new: "self.bfd == Bfd::Up",
    },
    Mutation {
        name: "BFD that is switched off in order closes the session",
        file: "machine/peer.rs",
        within: "Bfd::None | Bfd::Up | Bfd::AdminDown => false,\n        };",
        old: "false",
        new: "was_up && bfd == Bfd::AdminDown",
    },
    Mutation {
        name: "a peer that restarts finds its old connection in the way",
        file: "machine/peer.rs",
        within: "if session.negotiated.peer_restarts() &&",
        old: "session.negotiated.peer_restarts()",
        new: "false",
    },
    Mutation {
        name: "who leaves does not mark its routes",
        file: "machine/peer.rs",
        within: "let is_leaving = *stage == Stage::GracefulShutdown;",
        old: "*stage == Stage::GracefulShutdown",
        new: "false",
    },
    Mutation {
        name: "who comes back is taken for one who goes",
        file: "machine/peer.rs",
        within: "self.end_all(Cause::Stopped, self.stage.notification(), self.stage.is_final(), now);",
        old: "self.stage.notification()",
        new: "Some(Notification::cease(cease::ADMINISTRATIVE_RESET))",
    },
    Mutation {
        name: "nobody dials again",
        file: "machine/connections.rs",
        within: "self.timers.set(Timer::ConnectRetry, now + wait);",
        old: "now + wait",
        new: "now + wait * 10_000",
    },
];
