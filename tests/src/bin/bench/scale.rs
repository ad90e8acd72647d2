//! One node with very many services: how long the agent takes to begin and to change, and what memory it takes.
//!
//! The real agent runs in a lab, with 100,000 endpoints on two addresses of one pod: all of planning, maps and forwarding
//! is that of 100,000 backends; what 100,000 pods would add is their interfaces, their links and their self-tests.

mod agent;
mod memory;

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_userspace::{
    model::Protocol,
    plan::{
        history::{Limits, OWNERS_MAX, Position, SlotTable, by_position},
        maglev::{self, Member, TableSize},
    },
};

/// What a figure is of, its value, and the most that it may be.
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    limit: Option<f64>,
}

impl Figure {
    /// A value in a unit.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, limit: Option<f64>) -> Self {
        Self { name: name.into(), value, unit, limit }
    }

    /// In milliseconds.
    pub fn time(name: impl Into<String>, time: Duration, limit: Option<f64>) -> Self {
        Self::new(name, time.as_secs_f64() * 1e3, "ms", limit)
    }

    /// Prints it; whether its target is missed.
    pub fn print(&self) -> bool {
        let verdict = match self.limit {
            None => String::new(),
            Some(limit) if self.value <= limit => format!("   ok: at most {limit} {}", self.unit),
            Some(limit) => format!("   MISSED: at most {limit} {}", self.unit),
        };
        println!("{:<64} {:>9.1} {:<3}{verdict}", self.name, self.value, self.unit);
        self.limit.is_some_and(|limit| self.value.is_nan() || self.value > limit)
    }
}

/// Measures and prints all figures; how many targets are missed.
pub fn measure() -> Result<usize> {
    let figures = maglev_figures().into_iter().chain(agent::figures()?);
    Ok(figures.filter(Figure::print).count())
}

/// Backends of the service whose table is rebuilt.
const MEMBERS: u16 = 1000;
const SLOTS: usize = 131_072;
const REBUILDS: usize = 9;

fn maglev_figures() -> Vec<Figure> {
    let member = |number: u16| Member { identity: ([10, 1, (number >> 8) as u8, number as u8].into(), 80), weight: 1 };
    let mut members: Vec<Member> = (0..MEMBERS).map(member).collect();
    let positions: Vec<Position> = (0..MEMBERS).map(Position).collect();
    let size = TableSize::from_slots(SLOTS).expect("a size of tables");
    let mut table = SlotTable::new(size, Limits { lists: u16::MAX, owners: OWNERS_MAX });
    table.change(&by_position(&maglev::owners(&members, size), &positions), |_| true, Duration::ZERO);
    let mut times = Vec::new();
    let (mut written, mut differ) = (0, 0);
    for round in 0..REBUILDS {
        members[round].weight = 0;
        let before: Vec<_> = table.slots().collect();
        let began = Instant::now();
        let column = by_position(&maglev::owners(&members, size), &positions);
        let change = table.change(&column, |_| true, Duration::from_secs(round as u64));
        times.push(began.elapsed());
        written += change.slots.len();
        differ += table.slots().zip(before).filter(|(now, before)| now != before).count();
    }
    vec![
        Figure::time("Maglev rebuild, 1,000 backends, 131,072 slots, one drained", median(times), Some(10.0)),
        Figure::new("  slots written in one rebuild", written as f64 / REBUILDS as f64, "", None),
        Figure::new("  of them unchanged", (written - differ) as f64, "", Some(0.0)),
    ]
}

/// Of times.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}
