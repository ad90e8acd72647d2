//! CPU time of what this thread makes the kernel do.

use std::{fs, io, time::Duration};

use anyhow::{Context as _, Result};

/// The CPU that everything runs on.
#[derive(Clone, Copy, Debug)]
pub struct Cpu(usize);

impl Cpu {
    /// Binds the calling thread, and with it every softirq that its packets raise, to the last CPU it may use: the
    /// first one is where most machines take their interrupts.
    pub fn bind() -> Result<Self> {
        // SAFETY: a plain bit set, for which zero is a value.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        let size = size_of_val(&set);
        // SAFETY: the set and its size belong together.
        if unsafe { libc::sched_getaffinity(0, size, &raw mut set) } != 0 {
            return Err(io::Error::last_os_error()).context("cannot read this thread's CPUs");
        }
        // SAFETY: the set is initialised and the index within it.
        let last = (0..libc::CPU_SETSIZE as usize).rev().find(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
        let last = last.context("this thread has no CPU")?;
        // SAFETY: as above.
        let bound = unsafe {
            libc::CPU_ZERO(&mut set);
            libc::CPU_SET(last, &mut set);
            libc::sched_setaffinity(0, size, &raw const set)
        };
        if bound != 0 {
            return Err(io::Error::last_os_error()).context("cannot bind this thread to a CPU");
        }
        Ok(Self(last))
    }

    /// CPU time that `task` takes: the calling thread's, in which its softirqs run, and that of the kernel thread
    /// that takes over where they are many. Time that others had the CPU is not in it.
    pub fn time<T>(self, task: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        let (own, softirq) = (own_time(), self.softirq_thread()?);
        let outcome = task()?;
        Ok((outcome, own_time() - own + (self.softirq_thread()? - softirq)))
    }

    /// Run time of `ksoftirqd` of this CPU (Documentation/scheduler/sched-stats.rst).
    fn softirq_thread(self) -> Result<Duration> {
        let path = softirq_path(self.0)?;
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
        Ok(Duration::from_nanos(nanoseconds.with_context(|| format!("{path} holds no run time"))?))
    }
}

fn softirq_path(cpu: usize) -> Result<String> {
    static PATH: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    if let Some(path) = PATH.get() {
        return Ok(path.clone());
    }
    let name = format!("ksoftirqd/{cpu}");
    let found = fs::read_dir("/proc")?
        .flatten()
        .find(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    let path = found.with_context(|| format!("no thread {name}"))?.path().join("schedstat");
    Ok(PATH.get_or_init(|| path.display().to_string()).clone())
}

/// CPU time of the calling thread so far.
pub fn own_time() -> Duration {
    // SAFETY: plain integers, for which zero is a value.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: a valid clock, and a structure that lives across the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Repeated measurements of one thing, in nanoseconds a packet.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, nanoseconds: f64) {
        self.0.push(nanoseconds);
    }

    /// Round by round, what is left of these after `floor`.
    pub fn above(&self, floor: &Self) -> Self {
        self.pair(floor, |own, floor| own - floor)
    }

    /// Round by round, these as multiples of `other`: what others did to the machine in a round, they did to both.
    pub fn ratio(&self, other: &Self) -> Self {
        self.pair(other, |own, other| own / other)
    }

    fn pair(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(own, other)| of(*own, *other)).collect())
    }

    /// The least: what others do to the machine only ever adds.
    pub fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The median, to show the noise by.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}
