//! Ten thousand health checks against listeners on loopback addresses: how evenly they come, and what they cost.
//!
//! `cargo run --release --example health_checks [CHECKS]`

use std::{
    collections::{BTreeSet, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_userspace::{
    health::{Subject, Target, Verdict, driver::Checks},
    model::health::{Probe, Timing},
};
use tokio::{net::TcpListener, time::timeout};

const INTERVAL: Duration = Duration::from_secs(5);
const TIMING: Timing = Timing { interval: INTERVAL, timeout: Duration::from_secs(2), rise: 2, fall: 3 };
/// What a burst is measured by.
const TICK: Duration = Duration::from_millis(100);
/// Looked at after the first, in which everything is new.
const INTERVALS: u32 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let count: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10_000);
    // One socket listens on all of 127.0.0.0/8, so that each check has an address of its own, as pods have.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = listener.local_addr()?.port();
    let address = |number: u32| SocketAddr::from((Ipv4Addr::from(0x7f01_0000 + number), port));
    let target = |number| Target { subject: Subject { address: address(number), probe: Probe::Tcp }, timing: TIMING };
    let targets: BTreeSet<Arc<Target>> = (0..count).map(|number| Arc::new(target(number))).collect();

    let mut checks = Checks::start(Instant::now(), HashSet::new())?;
    checks.set_targets(targets);
    let mut healthy = 0;
    let mut ticks = Vec::new();
    let begin = Instant::now();
    let mut busy = processor_time();
    while begin.elapsed() < INTERVAL * (INTERVALS + 1) {
        let tick = Instant::now();
        let mut accepted = 0usize;
        while let Ok(connection) = timeout(TICK.saturating_sub(tick.elapsed()), listener.accept()).await {
            connection?;
            accepted += 1;
        }
        while let Ok(reports) = timeout(Duration::ZERO, checks.reports()).await {
            healthy += reports.iter().filter(|report| report.verdict == Verdict::Healthy).count();
        }
        if begin.elapsed() > INTERVAL {
            ticks.push(accepted);
        } else {
            busy = processor_time();
        }
    }
    let busy = processor_time() - busy;
    let all: usize = ticks.iter().sum();
    let (least, most) = (ticks.iter().min().unwrap_or(&0), ticks.iter().max().unwrap_or(&0));
    println!("{count} checks each {INTERVAL:?}: {healthy} healthy");
    println!("in {TICK:?}: {least} to {most} connections, {} on average", all / ticks.len().max(1));
    println!("{:.1} µs of processor time for each, both ends", busy.as_secs_f64() * 1e6 / all.max(1) as f64);
    Ok(())
}

/// User and system time of this process.
fn processor_time() -> Duration {
    // SAFETY: plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives across the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
