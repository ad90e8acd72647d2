//! How late packets leave.

use std::time::Duration;

use serde::Serialize;

/// The width of a step.
const STEP_MICROS: u128 = 20;
/// Steps up to 20 ms; what is later counts as the last one, and its time is in the maximum.
const STEPS: usize = 1000;

/// How late packets have left since the thread's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lateness {
    /// Packets measured.
    pub packets: u64,
    /// Half of them were no later.
    pub p50: Duration,
    /// All but one in a hundred were no later.
    pub p99: Duration,
    /// The latest.
    pub max: Duration,
}

/// Counts by steps of 20 µs. 8 kB; records without allocating.
#[derive(Debug)]
pub struct Histogram {
    steps: Box<[u64]>,
    max: Duration,
}

impl Histogram {
    /// Empty.
    pub fn new() -> Self {
        Self { steps: vec![0; STEPS].into_boxed_slice(), max: Duration::ZERO }
    }

    /// A packet left so late.
    pub fn record(&mut self, late: Duration) {
        let step = usize::try_from(late.as_micros() / STEP_MICROS).unwrap_or(STEPS).min(STEPS - 1);
        self.steps[step] += 1;
        self.max = self.max.max(late);
    }

    /// What it comes to.
    pub fn summary(&self) -> Lateness {
        let packets = self.steps.iter().sum();
        Lateness { packets, p50: self.quantile(packets, 50), p99: self.quantile(packets, 99), max: self.max }
    }

    /// The end of the step in which that many hundredths are reached.
    fn quantile(&self, packets: u64, hundredths: u64) -> Duration {
        let wanted = (packets * hundredths).div_ceil(100);
        let mut seen = 0;
        for (step, count) in self.steps.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_micros((step as u64 + 1) * STEP_MICROS as u64).min(self.max);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_read_from_the_steps() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.summary(), Lateness::default());
        for at in 0..1000 {
            histogram.record(Duration::from_micros(if at < 985 { 30 } else { 5000 }));
        }
        histogram.record(Duration::from_secs(1));
        let Lateness { packets, p50, p99, max } = histogram.summary();
        assert_eq!((packets, max), (1001, Duration::from_secs(1)));
        assert_eq!((p50, p99), (Duration::from_micros(40), Duration::from_micros(5020)));
    }
}
