//! Real programs whose sessions go on: traps and informs to two pods, BGP sessions and telemetry streams with a third.

use std::{thread::JoinHandle, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    lab::{Family, Lab, wait_until},
    programs::{
        PATIENCE,
        bird::Bird,
        snmp::{self, Kind, Receiver},
        telemetry::{self, Collector},
    },
    scenario::{check_source, session_vip, trap_vip},
};

/// The pods that receive traps.
const RECEIVERS: usize = 2;
/// The pod that has sessions.
const SPEAKER: usize = 2;

/// By how much the times may differ that BIRD tells of one session. Another one comes later than that, because BIRD waits for
/// seconds before it connects again.
const SAME_SESSION: Duration = Duration::from_secs(1);

/// The programs, in pods and in the element.
pub struct Programs {
    receivers: [Option<Receiver>; RECEIVERS],
    sessions: Option<Sessions>,
    /// Messages of SNMP so far.
    snmp: u64,
    /// Notifications of telemetry so far.
    telemetry: u64,
}

/// What ends with the pod that has it. Fields are dropped in order: who opens sessions goes first.
struct Sessions {
    elements: [Bird; 2],
    speakers: [Bird; 2],
    since: [Option<Duration>; 2],
    collector: Collector,
    streams: [Stream; 2],
}

/// A telemetry stream, by family.
struct Stream {
    thread: Option<JoinHandle<Result<()>>>,
    sequence: u64,
}

impl Programs {
    /// Everything running, and every session established.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut programs = Self { receivers: [None, None], sessions: None, snmp: 0, telemetry: 0 };
        for pod in 0..=SPEAKER {
            programs.start_in(lab, pod)?;
        }
        Ok(programs)
    }

    /// Ends what there is in a pod.
    pub fn end_in(&mut self, pod: usize) -> Result<()> {
        match pod {
            SPEAKER => {
                let Some(Sessions { collector, mut streams, .. }) = self.sessions.take() else { return Ok(()) };
                drop(collector);
                for stream in &mut streams {
                    // Without the collector it ends, and says why.
                    let joined = stream.thread.take().map(JoinHandle::join).transpose();
                    ensure!(joined.is_ok(), "the telemetry's publisher panicked");
                }
            }
            receiver if receiver < RECEIVERS => self.receivers[receiver] = None,
            _ => {}
        }
        Ok(())
    }

    /// Starts what belongs into a pod. Sessions are opened where there is nothing between the two ends but the VIPs: they
    /// are established once an agent serves the pod.
    pub fn start_in(&mut self, lab: &Lab, pod: usize) -> Result<()> {
        match pod {
            SPEAKER => self.sessions = Some(Sessions::start(lab)?),
            receiver if receiver < RECEIVERS => {
                self.receivers[receiver] = Some(Receiver::start(&lab.pods[receiver], lab.directory())?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Fails unless the sessions live, and messages arrive from the element's own address.
    pub fn check(&mut self, lab: &Lab) -> Result<()> {
        let family = Family::BOTH[self.snmp as usize / 2 % 2];
        for kind in [Kind::TrapV2c, Kind::InformV3] {
            self.snmp += 1;
            let text = format!("soak-{}", self.snmp);
            snmp::send(&lab.element, trap_vip(family), kind, &text, lab.directory())?;
            let received = wait_until(&format!("{kind:?} {text:?} in any pod"), PATIENCE, || {
                let mut all = self.receivers.iter().flatten().flat_map(Receiver::received);
                Ok(all.find(|received| received.text == text))
            })?;
            check_source("SNMP", received.source.ip(), family)?;
        }
        let sessions = self.sessions.as_mut().context("the sessions' pod has ended")?;
        sessions.check_bgp()?;
        self.telemetry += sessions.check_telemetry(lab)?;
        Ok(())
    }

    /// Messages so far: of SNMP, and of telemetry.
    pub const fn messages(&self) -> (u64, u64) {
        (self.snmp, self.telemetry)
    }
}

impl Sessions {
    fn start(lab: &Lab) -> Result<Self> {
        let (pod, directory) = (&lab.pods[SPEAKER], lab.directory());
        let [v4, v6] = Family::BOTH;
        let speaker = |family| Bird::collector(pod, family, directory);
        let speakers = [speaker(v4)?, speaker(v6)?];
        let collector = Collector::start(&pod.namespace)?;
        let element = |family| Bird::element(&lab.element, session_vip(family), directory);
        let elements = [element(v4)?, element(v6)?];
        let stream = || Stream { thread: None, sequence: 0 };
        Ok(Self { elements, speakers, since: Default::default(), collector, streams: [stream(), stream()] })
    }

    /// Each session is the one that was established first.
    fn check_bgp(&mut self) -> Result<()> {
        for ((family, speaker), since) in Family::BOTH.into_iter().zip(&self.speakers).zip(&mut self.since) {
            if since.is_none() {
                let session = speaker.wait_session()?;
                check_source("BGP", session.neighbor, family)?;
                *since = Some(speaker.established_since()?.context("the session has gone again")?);
            }
            let now = speaker.established_since()?;
            let logs =
                || format!("{}\n{}", speaker.log_tail(), self.elements.each_ref().map(Bird::log_tail).join("\n"));
            let is_first = now.zip(*since).is_some_and(|(now, since)| now.abs_diff(since) < SAME_SESSION);
            ensure!(is_first, "BGP over {family:?}: established at {since:?}, now {now:?}\n{}", logs());
        }
        Ok(())
    }

    /// Every notification comes once, in order. How many came.
    fn check_telemetry(&mut self, lab: &Lab) -> Result<u64> {
        let name = |family: Family| format!("soak-{family:?}").to_lowercase();
        for (family, stream) in Family::BOTH.into_iter().zip(&mut self.streams) {
            let open = || telemetry::publish_on(&lab.element, session_vip(family), &name(family));
            stream.thread.get_or_insert_with(open);
        }
        let before = self.streams.each_ref().map(|stream| stream.sequence);
        let mut count = 0;
        let moved = wait_until("notifications of telemetry over both families", PATIENCE, || {
            for received in self.collector.take() {
                let notification = received.notification;
                let at = Family::BOTH.into_iter().position(|family| name(family) == notification.element);
                let at = at.with_context(|| format!("telemetry of {}", notification.element))?;
                check_source("telemetry", received.source.ip(), Family::BOTH[at])?;
                let stream = &mut self.streams[at];
                let (last, sequence) = (stream.sequence, notification.sequence);
                ensure!(sequence == last + 1, "notification {sequence} of telemetry comes after {last}");
                stream.sequence = sequence;
                count += 1;
            }
            Ok(self.streams.iter().zip(before).all(|(stream, before)| stream.sequence > before).then_some(()))
        });
        for stream in &mut self.streams {
            if let Some(thread) = stream.thread.take_if(|thread| thread.is_finished()) {
                match thread.join() {
                    Ok(result) => bail!("a telemetry stream has ended: {result:?}"),
                    Err(_) => bail!("the telemetry's publisher panicked"),
                }
            }
        }
        moved?;
        Ok(count)
    }
}
