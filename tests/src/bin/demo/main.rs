//! `cargo xtask demo [--keep]`: real traps, BGP and gRPC through the agent's VIPs into pods; then nodes that fail.

mod failing;

use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, stdout},
    process::ExitCode,
    sync::atomic::{AtomicI32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    agent::{Agent, Configuration},
    lab::{ELEMENT, Family, Lab, Options, shut_down, wait_until},
    programs::{
        PATIENCE,
        bird::{self, Bird},
        snmp::{self, Kind},
        telemetry,
    },
    scenario::{self, MainJob, check_source, session_vip, trap_vip},
};

/// Messages of each kind and family. There are 24 in all: that one of two pods gets none by chance has odds of 2^-23.
const SNMP_MESSAGES: usize = 6;
const NOTIFICATIONS: u64 = 30;
/// Every how many notifications one is shown.
const SHOWN_EVERY: u64 = 10;
const WIDTH: usize = 9;

/// What Ctrl-C exits with: by convention 128 + SIGINT, and the verdict's status once `--keep` only waits.
static INTERRUPTED_STATUS: AtomicI32 = AtomicI32::new(130);

fn main() -> ExitCode {
    let screen = Screen { colours: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
    let keep = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--keep") => true,
        Some(other) => {
            eprintln!("unknown argument {other:?}; the only one is --keep");
            return ExitCode::from(2);
        }
    };
    handle_signals();
    match run(screen, keep) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            screen.failed("demo", &error);
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C and SIGTERM end the demo from a thread of their own, wherever the main thread is.
fn handle_signals() {
    // SAFETY: the set is initialised by sigemptyset before anything reads it; all calls take valid pointers, and
    // blocking happens before any other thread exists, so every thread inherits it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        thread::spawn(move || {
            let mut signal = 0;
            libc::sigwait(&set, &mut signal);
            println!("\ncleaning up");
            shut_down(INTERRUPTED_STATUS.load(Ordering::Relaxed));
        });
    }
}

/// The demo; gives the number of failed checks.
fn run(screen: Screen, keep: bool) -> Result<usize> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    ensure!(unsafe { libc::geteuid() } == 0, "the demo makes network namespaces and loads eBPF: run it as root");
    screen.title("Making a network: element, router, node and three pods");
    let mut lab = Lab::new("demo", Options { pods: scenario::PODS, ..Options::default() })?;
    screen.line("element", &format!("{}  {}", ELEMENT.v4, ELEMENT.v6));
    for pod in &lab.pods {
        screen.line(&pod.name(), &format!("{}  {}", pod.addresses.v4, pod.addresses.v6));
    }
    let job = MainJob::start(&lab)?;

    screen.title("Starting the agent");
    let configuration = Configuration { mode: "native", services: scenario::services(&lab, "auto") };
    let agent = Agent::start(&mut lab, &configuration)?;
    for service in &configuration.services {
        let target = format!("{} {}/{}", service.vip, service.protocol, service.port);
        screen.line("VIP", &format!("{target:<26} {}", service.name));
    }

    let mut demo = Demo { screen, lab: &lab, job: &job, failed: Vec::new() };
    demo.all();
    let mut failed = demo.failed;
    screen.title("sluice status");
    match agent.status_table() {
        Ok(table) => print!("{table}"),
        Err(error) => {
            screen.failed("status", &error);
            failed.push("status".to_owned());
        }
    }
    if !failed.is_empty() {
        println!("\n{}", agent.log_tail());
    }
    if !keep {
        agent.stop()?;
        drop(job);
        drop(lab);
        failed.extend(failing::all(screen));
        screen.verdict(&failed, "All arrived, each with its sender's own address, and the VIP outlived its nodes.");
        return Ok(failed.len());
    }
    screen.verdict(&failed, "All arrived, each with its sender's own address.");
    explain(screen, &lab, &agent);
    INTERRUPTED_STATUS.store(i32::from(!failed.is_empty()), Ordering::Relaxed);
    loop {
        thread::park();
    }
}

struct Demo<'lab> {
    screen: Screen,
    lab: &'lab Lab,
    job: &'lab MainJob,
    failed: Vec<String>,
}

impl Demo<'_> {
    fn all(&mut self) {
        for family in Family::BOTH {
            self.screen.title(&format!("SNMP to {} UDP/{}", trap_vip(family), snmp::PORT));
            self.check(&format!("v2c traps over {family:?}"), |demo| demo.messages(family, Kind::TrapV2c));
            self.check(&format!("v3 informs over {family:?}"), |demo| demo.messages(family, Kind::InformV3));
        }
        self.check("spread over both trap receivers", |demo| demo.spread());
        for family in Family::BOTH {
            self.screen.title(&format!("BGP to {} TCP/{}", session_vip(family), bird::PORT));
            self.check(&format!("BGP session over {family:?}"), |demo| demo.session(family));
        }
        for family in Family::BOTH {
            self.screen.title(&format!("gRPC telemetry to {} TCP/{}", session_vip(family), telemetry::PORT));
            self.check(&format!("telemetry stream over {family:?}"), |demo| demo.telemetry(family));
        }
    }

    /// Runs one check; a failure is shown and remembered, and the demo goes on.
    fn check(&mut self, name: &str, check: impl FnOnce(&Self) -> Result<String>) {
        match check(self) {
            Ok(summary) => self.screen.passed(name, &summary),
            Err(error) => {
                self.screen.failed(name, &error);
                self.failed.push(name.to_owned());
            }
        }
    }

    fn messages(&self, family: Family, kind: Kind) -> Result<String> {
        let label = match kind {
            Kind::TrapV2c => "trap",
            Kind::InformV3 => "inform",
            Kind::LargeInformV2c => "inform of 8 KiB",
        };
        let (target, mut sources) = (trap_vip(family), BTreeSet::new());
        let owners = snmp::exchange(
            &self.lab.element,
            target,
            kind,
            SNMP_MESSAGES,
            &self.job.receivers,
            self.lab.directory(),
            |owner, received| {
                self.screen.line(label, &format!("{} → pod{}", received.source, owner + 1));
                sources.insert(received.source.ip());
            },
        )?;
        for source in sources {
            check_source(label, source, family)?;
        }
        Ok(format!("{} of {SNMP_MESSAGES} arrived", owners.len()))
    }

    fn spread(&self) -> Result<String> {
        let counts: Vec<_> = self.job.receivers.iter().map(|receiver| receiver.received().len()).collect();
        ensure!(counts.iter().all(|count| *count > 0), "messages by pod: {counts:?}");
        Ok(format!("messages by pod: {counts:?}"))
    }

    fn session(&self, family: Family) -> Result<String> {
        let element = Bird::element(&self.lab.element, session_vip(family), self.lab.directory())?;
        let session = self.job.speaker(family).wait_session().with_context(|| element.log_tail())?;
        self.screen.line("session", &format!("{} → pod3", session.neighbor));
        for route in &session.routes {
            self.screen.line("route", route);
        }
        check_source("BGP", session.neighbor, family)?;
        Ok(format!("established, {} routes", session.routes.len()))
    }

    fn telemetry(&self, family: Family) -> Result<String> {
        let name = format!("element-{family:?}").to_lowercase();
        thread::scope(|scope| {
            let publisher =
                scope.spawn(|| telemetry::publish(&self.lab.element, session_vip(family), &name, NOTIFICATIONS));
            let mut shown = 0;
            let stream = || -> Vec<_> {
                let all = self.job.collector.received();
                all.into_iter().filter(|received| received.notification.element == name).collect()
            };
            wait_until("the telemetry stream to end", PATIENCE + Duration::from_secs(5), || {
                for received in stream().iter().skip(shown) {
                    shown += 1;
                    let notification = &received.notification;
                    if notification.sequence % SHOWN_EVERY == 0 {
                        let update = notification.update.first().context("a notification without update")?;
                        let leaf = update.path.rsplit('/').next().unwrap_or_default();
                        self.screen.line(
                            "update",
                            &format!("{} → pod3  #{} {leaf}={}", received.source, notification.sequence, update.value),
                        );
                    }
                }
                Ok(publisher.is_finished().then_some(()))
            })?;
            if let Err(error) = publisher.join().expect("the publisher does not panic") {
                bail!(error);
            }
            let received = stream();
            for message in &received {
                check_source("telemetry", message.source.ip(), family)?;
            }
            ensure!(received.len() as u64 == NOTIFICATIONS, "{} of {NOTIFICATIONS} arrived", received.len());
            Ok(format!("{NOTIFICATIONS} of {NOTIFICATIONS} arrived and were acknowledged"))
        })
    }
}

fn explain(screen: Screen, lab: &Lab, agent: &Agent) {
    screen.title("Kept up to play with; Ctrl-C removes everything");
    let enter = |path: std::path::PathBuf| format!("nsenter --net={}", path.display());
    screen.line("element", &enter(lab.element.path()));
    screen.line("node", &enter(lab.node.path()));
    for pod in &lab.pods {
        screen.line(&pod.name(), &enter(pod.namespace.path()));
    }
    let vip = trap_vip(Family::V4);
    screen.line(
        "a trap",
        &format!("{} snmptrap -v 2c -c public {vip} '' 1.3.6.1.6.3.1.1.5.3", enter(lab.element.path())),
    );
    screen.line("status", &agent.status_line());
    screen.line("services", &format!("bpftool map dump pinned {}", agent.pins().join("maps/services").display()));
    screen.line("programs", &format!("{} bpftool net", enter(lab.node.path())));
    screen.line("config", &format!("{} (taken within a second when it changes)", agent.configuration().display()));
}

/// Colours in a terminal, plain lines elsewhere.
#[derive(Clone, Copy)]
struct Screen {
    colours: bool,
}

impl Screen {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn title(self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    fn line(self, label: &str, text: &str) {
        println!("  {} {text}", self.paint("36", &format!("{label:<WIDTH$}")));
    }

    fn passed(self, name: &str, summary: &str) {
        println!("  {} {name}: {summary}", self.paint("32", "✓"));
    }

    fn failed(self, name: &str, error: &anyhow::Error) {
        // What failed in one line, then the logs that came with it, each line once.
        let (mut causes, mut logs) = (Vec::new(), Vec::new());
        for part in error.chain().map(ToString::to_string) {
            for (number, line) in part.lines().enumerate() {
                if number == 0 && !line.starts_with("last ") {
                    causes.push(line.to_owned());
                } else if !logs.iter().any(|known| known == line) {
                    logs.push(line.to_owned());
                }
            }
        }
        println!("  {} {name}: {}", self.paint("31", "✗"), causes.join(": "));
        for line in logs {
            println!("    {}", self.paint("2", &line));
        }
    }

    fn verdict(self, failed: &[String], all_well: &str) {
        if failed.is_empty() {
            println!("\n{}", self.paint("1;32", all_well));
        } else {
            println!("\n{}", self.paint("1;31", &format!("FAILED: {}", failed.join(", "))));
        }
    }
}
