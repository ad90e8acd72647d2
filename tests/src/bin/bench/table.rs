//! The figures as people read them, and whether they reach their targets.

use crate::measure::Samples;

/// What a figure must not exceed.
#[derive(Clone, Debug)]
pub enum Bound {
    /// Shown only.
    None,
    /// Each a line's name, what it is called beside the ratio, and the multiple of it.
    Ratios(Vec<(String, &'static str, f64)>),
    /// A line's name, and how many nanoseconds more than that.
    Above(String, f64),
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// What was measured.
    pub name: String,
    /// Every round, net of the floor.
    pub samples: Samples,
    /// Its target.
    pub bound: Bound,
}

/// All lines.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<Line>);

impl Table {
    /// Adds a line.
    pub fn add(&mut self, line: Line) {
        self.0.push(line);
    }

    /// Prints all lines; returns how many targets are missed.
    pub fn print(&self) -> usize {
        println!("{:<42} {:>9} {:>9}   target: median ratio of limit", "ns per packet", "least", "median");
        self.0.iter().map(|line| self.print_line(line)).sum()
    }

    fn print_above(&self, line: &Line, of: &str, limit: f64) -> usize {
        let base = self.0.iter().find(|line| line.name == of).map(|line| &line.samples);
        let more = base.map_or(f64::NAN, |base| line.samples.above(base).median());
        let reached = more <= limit;
        println!("   {}: {more:.0} of {limit:.0} ns more than the stable slot", if reached { "ok" } else { "MISSED" });
        usize::from(!reached)
    }

    fn print_line(&self, line: &Line) -> usize {
        print!("{:<42} {:>9.1} {:>9.1}", line.name, line.samples.least(), line.samples.median());
        let ratios = match &line.bound {
            Bound::Ratios(ratios) => ratios,
            Bound::Above(of, limit) => return self.print_above(line, of, *limit),
            Bound::None => {
                println!();
                return 0;
            }
        };
        let mut missed = 0;
        for (of, short, limit) in ratios {
            let base = self.0.iter().find(|line| line.name == *of).map(|line| &line.samples);
            let ratio = base.map_or(f64::NAN, |base| line.samples.ratio(base).median());
            // What cannot be computed is no success.
            let reached = ratio <= *limit;
            missed += usize::from(!reached);
            let verdict = if reached { "ok" } else { "MISSED" };
            print!("   {verdict}: {ratio:.2} of {limit} × {short}");
        }
        println!();
        missed
    }
}
