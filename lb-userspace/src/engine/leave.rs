//! This node leaves: by `sluice drain`, or as the agent stops. And comes back.

use std::{fs, io, path::PathBuf, time::Duration};

use tracing::{info, warn};

use super::Engine;
use crate::{
    announce::{
        driver::boot_time,
        leaving::{Departure, Seen, Step},
    },
    model::bgp::StopMode,
};

/// In the run directory while the node is drained: it stays so when the agent starts anew, until the machine does.
pub(super) const DRAINED_NAME: &str = "drained";
/// From one look at how far leaving has come to the next.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// From one count of packets to the next.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// A node that leaves, or has left.
pub(super) struct Leave {
    pub departure: Departure,
    /// The agent ends with it.
    pub ends: bool,
    /// Peers are told nothing: the agent comes back.
    pub is_silent: bool,
    /// Packets, when they were counted.
    counted: Option<(u64, Duration)>,
    rate: Option<u64>,
}

impl Leave {
    fn new(departure: Departure, ends: bool) -> Self {
        Self { departure, ends, is_silent: false, counted: None, rate: None }
    }
}

impl Engine {
    fn drained_path(&self) -> PathBuf {
        self.snapshot.run_directory.join(DRAINED_NAME)
    }

    /// A node that was drained stays it.
    pub(super) fn recall_drained(&mut self) {
        if self.drained_path().exists() {
            warn!("this node is drained, and announces nothing; `sluice undrain` brings it back");
            self.leave = Some(Leave::new(Departure::done(boot_time()), false));
            self.peers.watch.stop();
        }
    }

    /// Begins to drain, or goes on with it.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        fs::write(self.drained_path(), b"")?;
        if self.leave.is_some() {
            return Ok(());
        }
        info!("draining: VIPs are handed over and withdrawn");
        self.begin_leaving(false);
        Ok(())
    }

    /// Comes back.
    pub(super) fn undrain(&mut self) -> io::Result<()> {
        if self.leave.as_ref().is_some_and(|leave| leave.ends) {
            return Err(io::Error::other("the agent is stopping"));
        }
        match fs::remove_file(self.drained_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if self.leave.take().is_some() {
            info!("no longer drained: VIPs are announced again");
            self.peers.watch.resume();
            self.announce_anew();
        }
        Ok(())
    }

    /// The agent was told to end. True where there is nobody to be told of it, or it is not the first time.
    pub(super) fn is_to_end(&mut self) -> bool {
        let Some(bgp) = &self.snapshot.announce.bgp else { return true };
        match &mut self.leave {
            Some(leave) if leave.ends => {
                // Peers hear the last of it, and why.
                leave.departure = Departure::done(boot_time());
                self.nudge_peers();
                return true;
            }
            Some(leave) => leave.ends = true,
            None => match bgp.stop {
                StopMode::Ordered => {
                    info!("stopping: VIPs are handed over and withdrawn; a second signal ends it at once");
                    self.begin_leaving(true);
                }
                StopMode::Graceful => {
                    let mut leave = Leave::new(Departure::done(boot_time()), true);
                    leave.is_silent = true;
                    self.leave = Some(leave);
                    self.nudge_peers();
                    return true;
                }
            },
        }
        false
    }

    fn begin_leaving(&mut self, ends: bool) {
        let wait = self.snapshot.announce.bgp.as_ref().map_or(Duration::ZERO, |bgp| bgp.shutdown_wait);
        let has_held = self.announcing.holds();
        self.leave = Some(Leave::new(Departure::begin(wait, has_held, boot_time()), ends));
        self.announce_anew();
    }

    /// How soon leaving is to be looked at again.
    pub(super) fn leave_interval(&self) -> Option<Duration> {
        let leave = self.leave.as_ref()?;
        (leave.departure.step() != Step::Done || leave.ends).then_some(LOOK_INTERVAL)
    }

    /// Goes on with leaving. True where the agent is to end.
    pub(super) fn go_on_leaving(&mut self) -> bool {
        let stage = self.stage();
        let Some(leave) = &self.leave else { return false };
        let step = leave.departure.step();
        if step == Step::Done {
            return leave.ends;
        }
        self.peers.look(&mut self.helper);
        self.count_rate();
        let (sessions, is_told) = self.peers.told(&stage);
        let is_silent = self.peers.watch.is_silent();
        let holds = (step == Step::Withdraw || step == Step::Mark && sessions == 0) && self.announcing.holds();
        let Some(leave) = &mut self.leave else { return false };
        let seen = Seen { sessions, is_told, rate: leave.rate, is_silent, holds };
        if leave.departure.follow(&seen, boot_time()) {
            let step = leave.departure.step();
            self.note_step(step);
            self.announce_anew();
        }
        false
    }

    fn count_rate(&mut self) {
        let now = boot_time();
        let is_due = |leave: &Leave| leave.counted.is_none_or(|(_, at)| now.saturating_sub(at) >= RATE_INTERVAL);
        if !self.leave.as_ref().is_some_and(is_due) {
            return;
        }
        let packets = self.total_traffic().packets;
        if let Some(leave) = &mut self.leave {
            leave.rate = leave.counted.map(|(before, at)| {
                let seconds = now.saturating_sub(at).as_secs_f64().max(f64::EPSILON);
                (packets.saturating_sub(before) as f64 / seconds) as u64
            });
            leave.counted = Some((packets, now));
        }
    }

    /// How far this node has gone in leaving, in a word; nothing where it stays.
    pub(super) fn leaving_word(&self) -> Option<&'static str> {
        Some(match self.leave.as_ref()?.departure.step() {
            Step::Mark => "marked",
            Step::Withdraw => "withdrawing",
            Step::Quiet => "quieting",
            Step::Cease => "ceasing",
            Step::Silence => "silencing",
            Step::Done => "drained",
        })
    }
}
