//! Privileged: whatever becomes of the agent, sessions and datagrams go on. A table of scenarios over one lab, each under
//! the same traffic: 200 sessions through VIPs, half of them begun by the pod and half of them older than a change of the
//! backends, sessions of rung `direct`, sessions that reach a pod without a VIP, and 5,000 datagrams a second.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::available,
    clock::HOURS,
    life::{LARGER_CAPACITIES, Life, OTHER_UPLINK, Wish},
};

/// Environment variable that names the agent of another ABI.
const NEXT_BINARY: &str = "SLUICE_NEXT_BIN";
/// What happens to the agent.
struct Scenario {
    name: &'static str,
    run: fn(&mut Life) -> Result<()>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "SIGKILL and restart", run: killed },
    Scenario { name: "orderly restart", run: restarted },
    Scenario { name: "a capacity changes, and back", run: capacity },
    Scenario { name: "another ABI, and back", run: abi },
    Scenario { name: "another service changes", run: other_service },
    Scenario { name: "100 configurations a second", run: storm },
    Scenario { name: "another uplink goes down and comes up", run: other_uplink },
    Scenario { name: "netlink overrun", run: overrun },
    Scenario { name: "killed while it starts", run: killed_while_starting },
    Scenario { name: "the next agent's clock is hours ahead, and the next one's hours behind", run: clocks },
    Scenario { name: "a pod restarts", run: pod_restarts },
];

#[test]
fn nothing_is_lost_whatever_becomes_of_the_agent() -> Result<()> {
    if !available("life") {
        return Ok(());
    }
    let mut life = Life::begin()?;
    ensure!(life.moved()? > 0, "no session is in a slot that has moved");
    for scenario in SCENARIOS {
        (scenario.run)(&mut life).with_context(|| scenario.name)?;
        life.check(scenario.name)?;
    }
    life.finish()
}

fn killed(life: &mut Life) -> Result<()> {
    life.kill()?;
    life.check("SIGKILL")?;
    life.start(None, &Wish::default())
}

fn restarted(life: &mut Life) -> Result<()> {
    life.end()?;
    life.check("SIGTERM")?;
    life.start(None, &Wish::default())
}

/// All maps of whose size it is are others.
fn capacity(life: &mut Life) -> Result<()> {
    life.end()?;
    life.start(None, &Wish { capacities: LARGER_CAPACITIES, ..Wish::default() })?;
    life.check("larger")?;
    life.kill()?;
    life.start(None, &Wish::default())
}

/// As an upgrade to the next release, and a downgrade.
fn abi(life: &mut Life) -> Result<()> {
    let next = std::env::var(NEXT_BINARY).with_context(|| format!("{NEXT_BINARY} names the agent of another ABI"))?;
    life.end()?;
    life.start(Some(&next), &Wish::default())?;
    life.check("upgrade")?;
    life.kill()?;
    life.start(None, &Wish::default())
}

fn other_service(life: &mut Life) -> Result<()> {
    life.reconfigure(&Wish { other_port: 9001, ..Wish::default() })?;
    life.reconfigure(&Wish::default())
}

/// For ten seconds; each is another than the one before.
fn storm(life: &mut Life) -> Result<()> {
    let begun = Instant::now();
    let mut changes = 0u16;
    while begun.elapsed() < Duration::from_secs(10) {
        life.rewrite(&Wish { other_port: 9000 + changes % 500, ..Wish::default() })?;
        changes += 1;
        // The rate is what is asked for here, not the passing of time.
        std::thread::sleep(
            (begun + Duration::from_millis(10) * changes.into()).saturating_duration_since(Instant::now()),
        );
    }
    ensure!(changes >= 900, "only {changes} changes in ten seconds");
    life.reconfigure(&Wish::default())
}

fn other_uplink(life: &mut Life) -> Result<()> {
    life.lab.node.ip(&format!("link set {OTHER_UPLINK} down\n"))?;
    life.check("down")?;
    life.lab.node.ip(&format!("link set {OTHER_UPLINK} up\n"))?;
    life.renew_other_uplink()
}

/// The agent sleeps while more happens than its socket holds.
fn overrun(life: &mut Life) -> Result<()> {
    life.agent()?.signal(libc::SIGSTOP)?;
    let lines = |verb: &str| -> String {
        (0..4000).map(|n| format!("address {verb} 127.9.{}.{}/32 dev lo\n", n / 250, n % 250 + 1)).collect()
    };
    life.lab.node.ip(&lines("add"))?;
    life.lab.node.ip(&lines("del"))?;
    life.agent()?.signal(libc::SIGCONT)?;
    life.agent()?.wait_log("notifications were lost")
}

fn killed_while_starting(life: &mut Life) -> Result<()> {
    // Where it is after a time, a machine's load says; most of a start is in the kernel's verifier.
    for milliseconds in [50, 500, 1000] {
        life.end()?;
        life.start_and_kill(Duration::from_millis(milliseconds))?;
        life.start(None, &Wish::default())?;
    }
    // Before it touches anything, with all programs exchanged, and serving.
    for text in ["configuration read", "data plane adopted", "ready"] {
        life.end()?;
        life.start_and_kill_at(text).with_context(|| text)?;
        life.start(None, &Wish::default())?;
    }
    Ok(())
}

/// Each looks at all records and at the pods' sockets, which takes it five seconds; ages are told by the kernel's ticks.
fn clocks(life: &mut Life) -> Result<()> {
    for by in [HOURS, Duration::ZERO] {
        life.kill()?;
        life.start_ahead(by, &Wish::default())?;
        // By then it has looked at all that is recorded.
        life.agent()?.wait_age(6)?;
        life.check("another clock")?;
    }
    ensure!(life.moved()? > 0, "no session is in a slot that has moved any more");
    Ok(())
}

/// Only its own sessions go.
fn pod_restarts(life: &mut Life) -> Result<()> {
    life.restart_pod(1).map(drop)
}
