//! What must hold of each decoder of foreign bytes, whatever it is given: it does not panic, what it has read is read
//! again when it is written, and its work is bounded by the input's length.
//!
//! The same functions are called by fuzzers (`cargo xtask fuzz`), and by `tests/corpora.rs` with the committed corpora
//! and mutations of them.

pub mod corpus;

mod bgp;
mod frames;
mod messages;

use crate::packets::random::Random;

/// A decoder.
pub struct Target {
    /// As the fuzz target and its corpus are called.
    pub name: &'static str,
    /// Panics where something that must hold does not.
    pub check: fn(&[u8]),
}

/// All decoders.
pub const TARGETS: &[Target] = &[
    Target { name: "bfd", check: messages::bfd },
    Target { name: "bgp_frame", check: bgp::frame },
    Target { name: "bgp_notification", check: bgp::notification },
    Target { name: "bgp_open", check: bgp::open },
    Target { name: "bgp_session", check: bgp::session },
    Target { name: "bgp_update", check: bgp::update },
    Target { name: "helper", check: messages::helper },
    Target { name: "neighbor", check: frames::neighbor },
    Target { name: "reply", check: frames::reply },
    Target { name: "steer", check: frames::steer },
    Target { name: "vrrp", check: messages::vrrp },
];

/// Checks one input of a decoder.
///
/// # Panics
/// Where something that must hold does not, or there is no such decoder.
pub fn check(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a decoder of this name");
    (target.check)(input);
}

pub use frames::{is_kept, may_change, may_record};

/// Longest input that mutations grow to: enough for a few messages.
const LENGTH_MAX: usize = 8192;
/// Values at which lengths and counters turn.
const EDGES: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, 0x10];

/// One of the inputs, damaged in one to four places.
///
/// # Panics
/// Where there is no input.
#[must_use]
pub fn mutation(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        damage(&mut input, inputs, random);
    }
    input.truncate(LENGTH_MAX);
    input
}

fn damage(input: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.push(random.pick(&EDGES));
        return;
    }
    let at = random.below(input.len());
    let end = at + 1 + random.below((input.len() - at).min(16));
    match random.below(8) {
        0 | 1 => input[at] ^= 1 << random.below(8),
        2 => input[at] = random.pick(&EDGES),
        3 => input[at] = random.below(256) as u8,
        4 => input.truncate(at),
        5 => drop(input.drain(at..end)),
        6 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        _ => {
            // The head of one and the tail of another.
            let other = &inputs[random.below(inputs.len())];
            input.truncate(at);
            input.extend(&other[random.below(other.len() + 1)..]);
        }
    }
}
