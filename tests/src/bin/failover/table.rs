//! The figures as people read them, and whether they reach their bounds.

use std::{collections::BTreeMap, time::Duration};

use crate::rows::{Bound, Round, Row};

/// What a virtual machine that stands still may add to a round: 50 to 75 ms were seen.
const STALL: Duration = Duration::from_millis(75);
/// Characters of a plot for each doubling.
const STEP: f64 = 3.0;

/// One row's figures.
pub struct Line {
    /// What was measured.
    pub row: Row,
    /// By Sluice.
    pub ours: Vec<Round>,
    /// By the usual daemon; empty where there is none.
    pub usual: Vec<Round>,
}

/// All lines.
#[derive(Default)]
pub struct Table(Vec<Line>);

impl Table {
    /// Adds a line.
    pub fn add(&mut self, line: Line) {
        self.0.push(line);
    }

    /// Prints all lines; returns how many bounds are missed.
    pub fn print(&self) -> usize {
        println!(
            "\n{:<32} {:<34} {:<34} must reach (a median within; a round may stand still for {} ms more)",
            "median (least–most)",
            "Sluice",
            "usual daemon",
            STALL.as_millis()
        );
        self.0.iter().map(Line::print).sum()
    }
}

impl Line {
    /// Draws each round's longest gap, on a line of its own.
    pub fn plot(&self) {
        println!("\n{} (longest gap of each round; {STEP} marks are twice as long, from 1 ms)", self.row.name);
        for (who, rounds) in self.sides() {
            for (number, round) in (1..).zip(rounds) {
                println!("  {who:<10} {number:>2} {:<44} {}", bar(round.gap), describe(round));
            }
            println!("  {who:<10} gaps of at least so many ms: {}", histogram(rounds));
        }
    }

    fn sides(&self) -> impl Iterator<Item = (&'static str, &[Round])> {
        let usual = self.row.usual.map(|name| (name, self.usual.as_slice()));
        [("Sluice", self.ours.as_slice())].into_iter().chain(usual)
    }

    fn print(&self) -> usize {
        let usual = self.row.usual.map_or_else(|| "–".to_owned(), |name| format!("{name} {}", sum(&self.usual)));
        let missed = missed(self.row.bound, &self.ours);
        let verdict = if missed.is_empty() { "ok".to_owned() } else { format!("MISSED: {}", missed.join(", ")) };
        println!("{:<32} {:<34} {usual:<34} {}: {verdict}", self.row.name, sum(&self.ours), words(self.row.bound));
        usize::from(!missed.is_empty())
    }
}

fn words(bound: Bound) -> String {
    match bound {
        Bound::Gap(limit) => format!("≤ {} ms", limit.as_millis()),
        Bound::NoLoss => "0 lost".to_owned(),
        Bound::NoLossAndStayed => "0 lost, routes kept".to_owned(),
        Bound::NoLossAndMoved(limit) => format!("0 lost, moved in {} ms", limit.as_millis()),
    }
}

/// What is wrong with these rounds. A bound of time is one of the median, and of each round with the machine's stalls.
fn missed(bound: Bound, rounds: &[Round]) -> Vec<String> {
    let mut found = Vec::new();
    match bound {
        Bound::Gap(limit) => found.extend(late("gap", limit, rounds.iter().map(|round| round.gap).collect())),
        Bound::NoLoss => {}
        Bound::NoLossAndStayed => {
            let moved = rounds.iter().filter(|round| round.moved.is_some()).count();
            if moved > 0 {
                found.push(format!("moved in {moved} rounds"));
            }
        }
        Bound::NoLossAndMoved(limit) => {
            // What never moved took for ever.
            let moves = rounds.iter().map(|round| round.moved.unwrap_or(Duration::MAX / 2)).collect();
            found.extend(late("move", limit, moves));
        }
    }
    let lost: usize = rounds.iter().map(|round| round.lost).sum();
    if !matches!(bound, Bound::Gap(_)) && lost > 0 {
        found.push(format!("{lost} lost"));
    }
    found
}

fn late(what: &str, limit: Duration, values: Vec<Duration>) -> Vec<String> {
    let most = values.iter().max().copied().unwrap_or_default();
    let middle = median(values);
    let mut found = Vec::new();
    if middle > limit {
        found.push(format!("median {what} {} ms", middle.as_millis()));
    }
    if most > limit + STALL {
        found.push(format!("{what} {} ms", most.as_millis()));
    }
    found
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn sum(rounds: &[Round]) -> String {
    let gaps: Vec<Duration> = rounds.iter().map(|round| round.gap).collect();
    let (least, most) =
        (gaps.iter().min().copied().unwrap_or_default(), gaps.iter().max().copied().unwrap_or_default());
    let lost: Vec<usize> = rounds.iter().map(|round| round.lost).collect();
    let lost = lost.iter().max().copied().unwrap_or_default();
    format!("{} ({}–{}) ms, ≤ {lost} lost", median(gaps).as_millis(), least.as_millis(), most.as_millis())
}

fn bar(gap: Duration) -> String {
    let doublings = (gap.as_secs_f64() * 1000.0).max(1.0).log2();
    "█".repeat((doublings * STEP).round() as usize)
}

fn describe(round: &Round) -> String {
    let moved =
        round.moved.map_or_else(|| "stayed".to_owned(), |moved| format!("moved after {} ms", moved.as_millis()));
    format!(
        "{:.1} ms, {} lost, {moved}, event took {} ms, prober stood still {:.1} ms",
        round.gap.as_secs_f64() * 1000.0,
        round.lost,
        round.took.as_millis(),
        round.stall.as_secs_f64() * 1000.0
    )
}

fn histogram(rounds: &[Round]) -> String {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (milliseconds, count) in rounds.iter().flat_map(|round| &round.histogram) {
        *counts.entry(*milliseconds).or_default() += count;
    }
    let words: Vec<String> = counts.iter().map(|(milliseconds, count)| format!("{milliseconds}: {count}")).collect();
    if words.is_empty() { "none of 2".to_owned() } else { words.join(", ") }
}
