//! 100 sessions between two drivers, each in a namespace of its own.

use std::{
    ffi::CString,
    net::Ipv4Addr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_tests::lab::{Lab, Namespace, Options, ROUTER_END, UPLINK, wait_until};
use lb_userspace::announce::bfd::{
    driver::{Driver, Report, Scheduling, boot_time},
    machine::{Endpoint, Event, Heartbeat, Hops, Interface, Path, Settings},
    packet::State,
};

use crate::scale::Figure;

const SESSIONS: u8 = 100;
const INTERVAL: Duration = Duration::from_millis(50);
const MULTIPLIER: u8 = 3;
/// Of the measurement: some 40,000 packets of each end.
const SPAN: Duration = Duration::from_secs(20);
/// A session that is down is tried once a second.
const LIMIT: Duration = Duration::from_secs(30);
/// A tenth of the interval, which is less than the jitter that packets have anyway.
const LATENESS_MAX_MS: f64 = 5.0;

/// Addresses 10.77.END.1 to .100.
const fn address(end: u8, session: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, end, session)
}

struct End {
    driver: Driver,
    heartbeat: Arc<Heartbeat>,
}

impl End {
    fn start(namespace: &Namespace, device: &str, own: u8, other: u8) -> Result<Self> {
        let lines = (1..=SESSIONS).map(|session| format!("address add {}/16 dev {device}\n", address(own, session)));
        namespace.ip(&lines.collect::<String>())?;
        let heartbeat = Arc::new(Heartbeat::default());
        heartbeat.beat(boot_time(), true);
        let name = CString::new(device)?;
        let settings = Settings::new(INTERVAL, INTERVAL, MULTIPLIER)?;
        let driver = namespace.run(|| -> Result<Driver> {
            // SAFETY: the name ends in a NUL and lives across the call.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            let interface = Interface::new(index).context("the lab has that interface")?;
            let sink = |_: Path, _: Event| {};
            let mut driver = Driver::start(u64::from(own), Arc::clone(&heartbeat), Box::new(sink), || {})?;
            for session in 1..=SESSIONS {
                let (local, remote) = (address(own, session).into(), address(other, session).into());
                let endpoint = Endpoint::new(local, remote, Hops::Single { interface })?;
                driver.open(endpoint, settings)?;
            }
            Ok(driver)
        })?;
        Ok(Self { driver, heartbeat })
    }

    /// As an engine that is well says it.
    fn beat(&self) {
        self.heartbeat.beat(boot_time(), true);
    }

    fn is_up(&self) -> Result<bool> {
        let sessions = self.driver.report()?.sessions;
        let is_up = |state, is_polling: bool| state == State::Up && !is_polling;
        Ok(sessions.iter().all(|it| is_up(it.status.state, it.status.is_polling)))
    }
}

/// Sessions that were lost.
fn downs(report: &Report) -> u64 {
    let downs = report.sessions.iter().map(|session| session.status.counts.downs);
    downs.map(|downs| downs.silence + downs.remote).sum()
}

/// How late packets leave, and what share of a CPU the thread takes, by one of the two ends.
pub fn figures() -> Result<Vec<Figure>> {
    let lab = Lab::new("bench-bfd", Options { pods: 0, ..Options::default() })?;
    let ends = [End::start(&lab.node, UPLINK, 1, 2)?, End::start(&lab.router, ROUTER_END, 2, 1)?];
    wait_until("all sessions to be up", LIMIT, || {
        ends.iter().for_each(End::beat);
        Ok((ends[0].is_up()? && ends[1].is_up()?).then_some(()))
    })?;
    let before = ends[0].driver.report()?;
    let began = Instant::now();
    while began.elapsed() < SPAN {
        ends.iter().for_each(End::beat);
        thread::sleep(INTERVAL / 5);
    }
    let (after, span) = (ends[0].driver.report()?, began.elapsed());
    let share = (after.thread_time - before.thread_time).as_secs_f64() / span.as_secs_f64();
    let name = format!("BFD, {SESSIONS} sessions at {} ms: p99 of lateness", INTERVAL.as_millis());
    let scheduling = match after.scheduling {
        Scheduling::Realtime { .. } => "with real-time priority",
        Scheduling::Normal { .. } => "without real-time priority",
    };
    Ok(vec![
        Figure::time(name, after.lateness.p99, Some(LATENESS_MAX_MS)),
        Figure::time("  its median", after.lateness.p50, None),
        Figure::time("  the latest packet", after.lateness.max, None),
        Figure::new(format!("  the thread's share of a CPU, {scheduling}"), 100.0 * share, "%", None),
        Figure::new("  sessions lost meanwhile", (downs(&after) - downs(&before)) as f64, "", Some(0.0)),
    ])
}
