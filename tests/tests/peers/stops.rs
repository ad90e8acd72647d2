//! Nodes that leave in order.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::{
    agent::{Agent, available, check_nothing_left, detach},
    lab::{Family, wait_until},
    programs::{PATIENCE, conversation},
};

use crate::lab::*;

#[test]
fn a_drained_node_marks_its_routes_then_withdraws_them_then_ends_the_session() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("drain")?;
    let bird = router(&lab, "tor", "bfd on;", "protocol bfd { interface \"*\" { interval 100 ms; multiplier 5; }; }")?;
    let _listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let yaml = yaml(&lab, true, &bgp(", bfd: fast"));
    let agent = Agent::start_with(&lab, &yaml)?;
    wait_routes(&bird, 2)?;
    agent.wait_status("BFD to be up", |status| (status["announce"]["bfd"][0]["state"] == "up").then_some(()))?;
    let drained = agent.ask(&["drain"])?;
    ensure!(drained.trim() == "draining", "{drained}");
    wait_until("GRACEFUL_SHUTDOWN at the router", PATIENCE, || {
        Ok(bird.control(&["show", "route", "all"])?.contains("(65535,0)").then_some(()))
    })?;
    agent.ask(&["drain", "--wait"])?;
    let shown = bird.control(&["show", "protocols", "all", "node"])?;
    ensure!(shown.contains("this load balancer is drained"), "{shown}");
    wait_routes(&bird, 0)?;
    agent.wait_status("a reason", |status| (against(status, vip(Family::V4))? == ["draining"]).then_some(()))?;

    // An agent that starts anew is still drained.
    agent.end()?;
    let agent = Agent::start_with(&lab, &yaml)?;
    agent.wait_status("to be drained", |status| (status["announce"]["leaving"] == "drained").then_some(()))?;
    ensure!(wait_state(&agent, "idle")?["established"] == 0, "a drained node began a session");
    agent.ask(&["undrain"])?;
    wait_routes(&bird, 2)?;
    agent.wait_status("BFD to be up", |status| (status["announce"]["bfd"][0]["state"] == "up").then_some(()))?;
    agent.stop()?;
    check_nothing_left(&lab)
}

/// Without BFD nobody but the thread of BGP misses an engine that hangs.
#[test]
fn the_routes_of_an_engine_that_hangs_are_withdrawn() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("halted")?;
    let bird = router(&lab, "tor", "", "")?;
    let agent = Agent::start_with(&lab, &yaml(&lab, true, &bgp("")))?;
    wait_routes(&bird, 2)?;
    let halted = agent.halt_engine()?;
    wait_routes(&bird, 0)?;
    ensure!(bird.control(&["show", "protocols", "node"])?.contains("Established"), "the session has ended too");
    drop(halted);
    wait_routes(&bird, 2)?;
    agent.stop()?;
    check_nothing_left(&lab)
}

/// How soon an agent ends that is told so twice: no step of leaving is waited for.
const ENDS_MAX: Duration = Duration::from_secs(5);

#[test]
fn a_second_signal_ends_an_agent_that_leaves_at_once_and_its_routes_go() -> Result<()> {
    if !available("peers") {
        return Ok(());
    }
    let lab = lab("twice")?;
    let bird = router(&lab, "tor", "bfd on;", "protocol bfd { interface \"*\" { interval 100 ms; multiplier 5; }; }")?;
    // Routes would stay marked for a minute.
    let announce = bgp(", bfd: fast").replace("shutdownWait: 1s", "shutdownWait: 60s");
    let mut agent = Agent::start_with(&lab, &yaml(&lab, true, &announce))?;
    wait_routes(&bird, 2)?;
    agent.signal(libc::SIGTERM)?;
    wait_until("GRACEFUL_SHUTDOWN at the router", PATIENCE, || {
        Ok((bird.control(&["show", "route", "all"])?.matches("(65535,0)").count() == 2).then_some(()))
    })?;
    ensure!(agent.status()?["announce"]["leaving"] == "marked", "{}", agent.log_tail());
    let begin = Instant::now();
    agent.signal(libc::SIGTERM)?;
    let (status, said) = agent.wait_end()?;
    let took = begin.elapsed();
    ensure!(status.success() && took < ENDS_MAX, "ended with {status} after {took:?}\n{said}");
    wait_routes(&bird, 0)?;
    let shown = bird.control(&["show", "protocols", "all", "node"])?;
    ensure!(shown.contains("Administrative shutdown") && shown.contains("this load balancer stops"), "{shown}");
    detach(&lab)?;
    check_nothing_left(&lab)
}
