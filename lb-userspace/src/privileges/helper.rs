//! The agent's side of the helper.

use std::{
    io,
    net::IpAddr,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use super::{
    HELPER_COMMAND,
    protocol::{Answer, CONNECTIONS_MAX, Request, Work, receive, send},
};
use crate::net::{
    self, InterfaceIndex, NetnsId,
    loopback::Raised,
    processes::Holder,
    sockets::{Connection, Listeners},
};

/// How long one message may take. Listing a million sockets takes a second or two; beyond, the helper is taken to be dead.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Why something was not done in a pod's namespace.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The kernel said so; the helper is well.
    #[error(transparent)]
    Kernel(#[from] net::Error),
    /// The helper could not be started.
    #[error("cannot start the helper for pods' namespaces: {0}")]
    Start(String),
    /// There is no helper any more, and none will come.
    #[error("the helper for pods' namespaces (process {id}) {how}; restart the agent")]
    Lost {
        /// Its process id.
        id: u32,
        /// What became of it.
        how: String,
    },
}

/// The process that works in pods' namespaces. Ends with this.
#[derive(Debug)]
pub struct Helper {
    socket: UnixStream,
    child: Child,
    buffer: Vec<u8>,
    /// What became of it.
    lost: Option<String>,
}

impl Helper {
    /// Starts it from this process's own binary, in its network namespace, with its privileges.
    ///
    /// The calling thread must live as long as the helper, which the kernel ends with it.
    pub fn start() -> Result<Self, HelperError> {
        let failed = |error: io::Error| HelperError::Start(error.to_string());
        let (socket, its) = UnixStream::pair().map_err(failed)?;
        // Not by path: an upgrade may have put another version there.
        let child = Command::new("/proc/self/exe")
            .arg0("sluice")
            .arg(HELPER_COMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut helper = Self { socket, child, buffer: Vec::new(), lost: None };
        helper.socket.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(failed)?;
        helper.socket.set_write_timeout(Some(ANSWER_TIME_MAX)).map_err(failed)?;
        match helper.receive()? {
            Answer::Ready => Ok(helper),
            Answer::NotReady(why) => Err(HelperError::Start(why)),
            answer => Err(helper.lose(format!("spoke out of turn ({answer:?})"))),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails once the helper is gone, also where nobody has asked it for anything since.
    pub fn check(&mut self) -> Result<(), HelperError> {
        if let Some(how) = &self.lost {
            return Err(HelperError::Lost { id: self.id(), how: how.clone() });
        }
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.lose(ended(status))),
            Err(error) => Err(self.lose(format!("cannot be waited for: {error}"))),
        }
    }

    /// The number by which a namespace is told from every other one, those that are gone included.
    pub fn cookie(&mut self, netns: NetnsId) -> Result<u64, HelperError> {
        match self.ask(netns, Work::Cookie)? {
            Answer::Cookie(cookie) => Ok(cookie),
            answer => Err(self.misunderstood(&answer)),
        }
    }

    /// See [`net::sockets::connections`].
    pub fn connections(
        &mut self,
        netns: NetnsId,
        ports: &[u16],
        listeners: Listeners,
    ) -> Result<Vec<Connection>, HelperError> {
        let mut list = Vec::new();
        let mut answer = self.ask(netns, Work::Connections { ports: ports.to_vec(), listeners })?;
        loop {
            match answer {
                Answer::Connections { part, more } if list.len() + part.len() <= CONNECTIONS_MAX => {
                    list.extend(part);
                    if !more {
                        return Ok(list);
                    }
                }
                answer => return Err(self.misunderstood(&answer)),
            }
            answer = self.receive()?;
        }
    }

    /// Whether GRO of an interface is on.
    pub fn gro(&mut self, netns: NetnsId, interface: InterfaceIndex) -> Result<bool, HelperError> {
        match self.ask(netns, Work::Gro { interface })? {
            Answer::GroWas(was) => Ok(was),
            answer => Err(self.misunderstood(&answer)),
        }
    }

    /// Turns GRO of a pod's interface on or off, and returns how it was.
    pub fn set_gro(&mut self, netns: NetnsId, interface: InterfaceIndex, on: bool) -> Result<bool, HelperError> {
        match self.ask(netns, Work::SetGro { interface, on })? {
            Answer::GroWas(was) => Ok(was),
            answer => Err(self.misunderstood(&answer)),
        }
    }

    /// See [`net::loopback::assign_here`].
    pub fn assign_vip(&mut self, netns: NetnsId, vip: IpAddr, raised: Raised) -> Result<(), HelperError> {
        self.order(netns, Work::AssignVip(vip, raised))
    }

    /// See [`net::loopback::withdraw_here`].
    pub fn withdraw_vip(&mut self, netns: NetnsId, vip: IpAddr) -> Result<(), HelperError> {
        self.order(netns, Work::WithdrawVip(vip))
    }

    /// See [`net::loopback::to_raise_here`].
    pub fn to_raise(&mut self, netns: NetnsId) -> Result<Raised, HelperError> {
        match self.ask(netns, Work::ToRaise)? {
            Answer::Low(low) => Ok(low),
            answer => Err(self.misunderstood(&answer)),
        }
    }

    /// See [`net::loopback::lower_unused_here`].
    pub fn lower_unused(&mut self, netns: NetnsId, raised: Raised) -> Result<bool, HelperError> {
        match self.ask(netns, Work::LowerUnused(raised))? {
            Answer::Lowered(lowered) => Ok(lowered),
            answer => Err(self.misunderstood(&answer)),
        }
    }

    /// See [`Holder::of_sockets`].
    pub fn holder(&mut self, sockets: &[u64]) -> Result<Option<Holder>, HelperError> {
        /// Says nothing.
        const NOWHERE: NetnsId = NetnsId(0);
        match self.ask(NOWHERE, Work::Holder(sockets.to_vec()))? {
            Answer::Holder(holder) => Ok(holder),
            answer => Err(self.misunderstood(&answer)),
        }
    }

    fn order(&mut self, netns: NetnsId, work: Work) -> Result<(), HelperError> {
        match self.ask(netns, work)? {
            Answer::Done => Ok(()),
            answer => Err(self.misunderstood(&answer)),
        }
    }

    fn ask(&mut self, netns: NetnsId, work: Work) -> Result<Answer, HelperError> {
        if self.lost.is_some() {
            self.check()?;
        }
        if let Err(error) = send(&self.socket, &Request { netns, work }) {
            return Err(self.broken(&error));
        }
        match self.receive()? {
            Answer::Failed(error) => Err(error.into()),
            answer => Ok(answer),
        }
    }

    fn receive(&mut self) -> Result<Answer, HelperError> {
        match receive(&self.socket, &mut self.buffer) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                let status = self.child.wait();
                Err(self.lose(status.map_or_else(|error| error.to_string(), ended)))
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn broken(&mut self, error: &io::Error) -> HelperError {
        // Its own end is the better explanation of a socket that broke.
        match self.child.try_wait() {
            Ok(Some(status)) => self.lose(ended(status)),
            _ if error.kind() == io::ErrorKind::WouldBlock => {
                self.lose(format!("has not answered for {} s", ANSWER_TIME_MAX.as_secs()))
            }
            _ => self.lose(format!("cannot be talked to: {error}")),
        }
    }

    /// A whole answer, to another question: both sides are one binary, so this is a bug.
    fn misunderstood(&mut self, answer: &Answer) -> HelperError {
        self.lose(format!("gave an answer to another question ({answer:?})"))
    }

    /// From here on nobody knows which answer is whose: the helper is ended.
    fn lose(&mut self, how: String) -> HelperError {
        self.end();
        self.lost.get_or_insert(how.clone());
        HelperError::Lost { id: self.id(), how }
    }

    /// It remembers nothing and is in the middle of nothing. Errors mean that it has ended already.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.end();
    }
}

/// In words like "ended early (exit status: 1)".
fn ended(status: ExitStatus) -> String {
    format!("ended early ({status})")
}

#[cfg(test)]
mod tests;
