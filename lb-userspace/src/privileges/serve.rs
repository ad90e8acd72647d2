//! The helper's side: one thread that does what it is asked, in the order in which it is asked, until the agent is gone.
//!
//! It has no log: what goes wrong is an answer.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
};

use anyhow::{Context, Result};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};

use super::{
    capabilities::{KEPT_BY_HELPER, keep_only},
    filter,
    protocol::{Answer, CONNECTIONS_MAX, CONNECTIONS_PER_PART, Request, Work, receive, send},
};
use crate::net::{
    self, Netlink,
    ethtool::{self, Offload},
    loopback,
    netns::{self, Namespaces, Netns},
    processes::Holder,
    sockets::{self, Connection},
};

/// Is the helper, with the agent's socket as its standard input; returns when the agent has ended.
///
/// # Errors
/// Where standard input is none, or what comes from it is no request.
pub fn serve() -> Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned().context("standard input is closed")?;
    let mut socket = UnixStream::from(socket);
    socket.peer_addr().context("standard input is not an agent's socket; the agent starts its helper itself")?;
    let mut helper = match prepare() {
        Ok(helper) => helper,
        Err(error) => {
            send(&mut socket, &Answer::NotReady(format!("{error:#}")))?;
            return Err(error);
        }
    };
    send(&mut socket, &Answer::Ready)?;
    let mut buffer = Vec::new();
    while let Some(request) = receive(&mut socket, &mut buffer)? {
        helper.answer(&socket, request)?;
    }
    Ok(())
}

/// Opens what is needed for life, and drops all other privileges.
fn prepare() -> Result<Served> {
    ignore_signals();
    let home = Netns::current()?;
    let netlink = Netlink::open()?;
    keep_only(KEPT_BY_HELPER)?;
    // The end of the agent is the end of its socket; this is for a helper that the kernel lets wait meanwhile.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind the helper's life to the agent's")?;
    // Nobody of the same user reads its memory or takes its descriptors.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot close the helper to others")?;
    filter::install_for_helper()?;
    Ok(Served { home, netlink, namespaces: Namespaces::default() })
}

/// Signals that are for the agent come to its terminal's or its control group's other processes too. The agent still needs
/// its helper to end in order.
fn ignore_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: ignoring a signal installs no handler, so nothing is called.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

struct Served {
    home: Netns,
    netlink: Netlink,
    namespaces: Namespaces,
}

impl Served {
    fn answer(&mut self, socket: &UnixStream, request: Request) -> io::Result<()> {
        match self.work(request) {
            Ok(Outcome::Answer(answer)) => send(socket, &answer),
            Ok(Outcome::List(list)) => send_list(socket, &list),
            Err(error) => send(socket, &Answer::Failed(error)),
        }
    }

    fn work(&mut self, request: Request) -> net::Result<Outcome> {
        if let Work::Holder(sockets) = &request.work {
            return Ok(Outcome::Answer(Answer::Holder(Holder::of_sockets(sockets))));
        }
        let netns = self.namespaces.find(&mut self.netlink, request.netns)?;
        netns.visit(&self.home, || {
            Ok(Outcome::Answer(match request.work {
                Work::Cookie => Answer::Cookie(netns::cookie()?),
                Work::Connections { ports, listeners } => {
                    let list = sockets::connections(&ports, listeners)?;
                    if list.len() > CONNECTIONS_MAX {
                        let detail = format!("{} connections, more than {CONNECTIONS_MAX}", list.len());
                        return Err(net::Error::Answer { action: "list TCP sockets".to_owned(), detail });
                    }
                    return Ok(Outcome::List(list));
                }
                Work::Gro { interface } => Answer::GroWas(ethtool::get_here(interface, Offload::Gro)?),
                Work::SetGro { interface, on } => Answer::GroWas(ethtool::set_here(interface, Offload::Gro, on)?),
                Work::ToRaise => Answer::Low(loopback::to_raise_here()?),
                Work::LowerUnused(raised) => Answer::Lowered(loopback::lower_unused_here(raised)?),
                Work::AssignVip(vip, raised) => loopback::assign_here(vip, raised).map(|()| Answer::Done)?,
                Work::WithdrawVip(vip) => loopback::withdraw_here(vip).map(|()| Answer::Done)?,
                Work::Holder(sockets) => Answer::Holder(Holder::of_sockets(&sockets)),
            }))
        })?
    }
}

enum Outcome {
    Answer(Answer),
    List(Vec<Connection>),
}

/// At least one part, be it empty.
fn send_list(socket: &UnixStream, list: &[Connection]) -> io::Result<()> {
    let mut left = list;
    loop {
        let (part, rest) = left.split_at(left.len().min(CONNECTIONS_PER_PART));
        left = rest;
        send(socket, &Answer::Connections { part: part.to_vec(), more: !left.is_empty() })?;
        if left.is_empty() {
            return Ok(());
        }
    }
}
