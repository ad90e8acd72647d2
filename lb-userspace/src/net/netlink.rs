//! Request and answer over one netlink socket.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_ROUTE, NETLINK_SOCK_DIAG},
};

use super::{Capability, Error, Result};

/// The kernel builds dump answers of at most 32 KiB (`netlink_dump`), and single ones stay below a page or two.
const ANSWER_BYTES: usize = 64 << 10;

/// How often a dump is repeated that the kernel marks as torn by a change (`NLM_F_DUMP_INTR`).
const DUMP_ATTEMPTS: u32 = 8;

/// A socket for questions to the kernel about the namespace it was opened in. One question at a time.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket for links, addresses, routes and namespace ids. Needs no privilege itself.
    pub fn open() -> Result<Self> {
        let netlink = Self::open_protocol(NETLINK_ROUTE)?;
        // Without it the kernel ignores the namespace that a dump asks for, and answers with our own.
        netlink
            .socket
            .set_netlink_get_strict_chk(true)
            .map_err(Error::from_io("ask netlink for strict checking (Linux 4.20)", Capability::NetAdmin))?;
        Ok(netlink)
    }

    /// Opens a socket for questions about sockets.
    pub(super) fn open_sock_diag() -> Result<Self> {
        Self::open_protocol(NETLINK_SOCK_DIAG)
    }

    /// Opens a socket for questions to the kernel's generic families.
    pub(super) fn open_generic() -> Result<Self> {
        Self::open_protocol(NETLINK_GENERIC)
    }

    fn open_protocol(protocol: isize) -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(Error::from_io("open a netlink socket", Capability::NetAdmin))?;
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(ANSWER_BYTES) })
    }

    /// Every entry of a kernel table, taken at one point in time: a reading that a change tore is repeated.
    /// `action` completes "cannot …".
    pub(super) fn dump<Q, A>(&mut self, action: &str, question: Q) -> Result<Vec<A>>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        for _ in 0..DUMP_ATTEMPTS {
            let answers = self.ask(action, question.clone(), NLM_F_DUMP)?;
            if !answers.torn {
                return Ok(answers.messages);
            }
        }
        Err(Error::Unsteady { action: action.to_owned(), attempts: DUMP_ATTEMPTS })
    }

    /// The one answer to a question that is no dump.
    pub(super) fn get<Q, A>(&mut self, action: &str, question: Q) -> Result<A>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        let answers = self.ask(action, question, NLM_F_ACK)?;
        answers
            .messages
            .into_iter()
            .next()
            .ok_or_else(|| Error::Answer { action: action.to_owned(), detail: "an empty one".to_owned() })
    }

    /// Has the kernel do something; `flags` beside those of every request.
    pub(super) fn change<Q>(&mut self, action: &str, request: Q, flags: u16) -> Result<()>
    where
        Q: NetlinkSerializable + NetlinkDeserializable,
    {
        self.ask::<Q, Q>(action, request, NLM_F_ACK | flags).map(drop)
    }

    fn ask<Q, A>(&mut self, action: &str, question: Q, flags: u16) -> Result<Answers<A>>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        let kernel_error = Error::from_io(action, Capability::NetAdmin);
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::new(Default::default(), NetlinkPayload::InnerMessage(question));
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(&kernel_error)?;

        let mut answers = Answers { messages: Vec::new(), torn: false };
        loop {
            self.answer.clear();
            let length = match self.socket.recv(&mut self.answer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(&kernel_error)?,
            };
            if length > self.answer.len() {
                let detail = format!("{length} bytes, more than the {ANSWER_BYTES} that the kernel should send");
                return Err(Error::Answer { action: action.to_owned(), detail });
            }
            match answers.take(&self.answer, self.sequence) {
                Ok(true) => return Ok(answers),
                Ok(false) => {}
                Err(Failure::Kernel(source)) => return Err(kernel_error(source)),
                Err(Failure::Malformed(detail)) => return Err(Error::Answer { action: action.to_owned(), detail }),
            }
        }
    }
}

struct Answers<A> {
    messages: Vec<A>,
    /// The table changed while it was read.
    torn: bool,
}

enum Failure {
    Kernel(io::Error),
    Malformed(String),
}

impl<A: NetlinkDeserializable> Answers<A> {
    /// Takes the messages of one datagram; true after the last one. Messages of an earlier question that was given up
    /// are skipped.
    fn take(&mut self, datagram: &[u8], sequence: u32) -> Result<bool, Failure> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest).map_err(|error| Failure::Malformed(error.to_string()))?;
            let (length, flags, kind) = (header.length() as usize, header.flags(), header.message_type());
            let message = &rest[..length];
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            if header.sequence_number() != sequence {
                continue;
            }
            self.torn |= flags & NLM_F_DUMP_INTR != 0;
            match NetlinkMessage::<A>::deserialize(message).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(message)) => self.messages.push(message),
                Ok(NetlinkPayload::Error(error)) => {
                    return match error.code {
                        None => Ok(true),
                        Some(_) => Err(Failure::Kernel(error.to_io())),
                    };
                }
                Ok(NetlinkPayload::Done(done)) if done.code < 0 => {
                    return Err(Failure::Kernel(io::Error::from_raw_os_error(-done.code)));
                }
                Ok(NetlinkPayload::Done(_)) => return Ok(true),
                Ok(_) => {}
                Err(error) if kind == NLMSG_DONE || kind == NLMSG_ERROR => {
                    return Err(Failure::Malformed(error.to_string()));
                }
                // One entry that the decoder does not understand, say of an exotic device, must not hide all others.
                Err(error) => tracing::warn!(%error, kind, "skipped an undecodable netlink message"),
            }
        }
        Ok(false)
    }
}
