//! TCP between speakers: reliable and in order. What a link loses is sent again, later each time; a kernel that knows
//! nothing of a connection resets it; a process that dies closes, and a node without power says nothing.

use std::{collections::VecDeque, mem, time::Duration};

use lb_userspace::announce::bgp::{
    machine::{ConnectionId, Endpoints},
    packet::Framer,
};

use super::{
    agent::{Phase, address},
    world::{Coming, World},
};

/// From a segment to the same once more: the first time, and at most.
const RETRANSMIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(3200));
/// From a SYN to the next: the first time, and at most.
const SYN_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// What arrives at an end.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Connected,
    /// One message: as it was handed to the kernel.
    Octets(Vec<u8>),
    Fin,
    Reset,
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) agent: usize,
    /// The process has it under this number.
    pub(super) connection: Option<ConnectionId>,
    /// The kernel knows of it.
    is_known: bool,
    outbox: Vec<Item>,
    is_under_way: bool,
    wait: Duration,
    inbox: VecDeque<Item>,
}

impl End {
    const fn new(agent: usize, connection: Option<ConnectionId>) -> Self {
        let wait = RETRANSMIT.0;
        Self {
            agent,
            connection,
            is_known: false,
            outbox: Vec::new(),
            is_under_way: false,
            wait,
            inbox: VecDeque::new(),
        }
    }
}

/// The first end dials.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) ends: [End; 2],
    /// The other side has not answered yet.
    is_dialling: bool,
    /// The kernel has it, and the process has not yet.
    is_waiting: bool,
}

impl Stream {
    /// Something was lost on the way, and has not been sent again yet.
    pub(super) fn is_stalled(&self) -> bool {
        self.ends.iter().any(|end| end.is_under_way && end.wait > RETRANSMIT.0)
    }
}

impl World {
    /// Places of a speaker's streams, with the end that is its own.
    fn ends_of(&self, at: usize) -> Vec<(u64, usize)> {
        let own = |(id, stream): (&u64, &Stream)| {
            let end = stream.ends.iter().position(|end| end.agent == at)?;
            Some((*id, end))
        };
        self.streams.iter().filter_map(own).collect()
    }

    /// Numbers are those of one machine: there is one for each side of each pair.
    fn end_of(&self, at: usize, other: usize, connection: ConnectionId) -> Option<(u64, usize)> {
        self.streams.iter().find_map(|(id, stream)| {
            let end = stream.ends.iter().position(|end| end.agent == at && end.connection == Some(connection))?;
            (stream.ends[1 - end].agent == other).then_some((*id, end))
        })
    }

    pub(super) fn dial(&mut self, at: usize, other: usize, connection: ConnectionId) {
        self.streams_made += 1;
        let id = self.streams_made;
        let mut ends = [End::new(at, Some(connection)), End::new(other, None)];
        ends[0].wait = SYN_AGAIN.0;
        self.streams.insert(id, Stream { ends, is_dialling: true, is_waiting: false });
        let arrival = self.now + self.delay();
        self.push(arrival, Coming::Syn(id));
    }

    pub(super) fn syn(&mut self, id: u64) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (from, to) = (stream.ends[0].agent, stream.ends[1].agent);
        let may_answer = self.agents[to].has_kernel() && self.agents[from].has_kernel();
        let passes = may_answer && self.carries(from, to) && self.carries(to, from);
        let accepts = self.agents[to].neighbor(from).is_some_and(|it| it.peer.is_some() && it.accepts());
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !passes {
            let wait = stream.ends[0].wait;
            stream.ends[0].wait = (wait * 2).min(SYN_AGAIN.1);
            self.push(self.now + wait, Coming::Syn(id));
            return;
        }
        stream.ends[0].wait = RETRANSMIT.0;
        stream.is_dialling = false;
        if !accepts {
            stream.ends[0].inbox.push_back(Item::Reset);
            return self.wake_up(from);
        }
        stream.ends.iter_mut().for_each(|end| end.is_known = true);
        stream.is_waiting = true;
        stream.ends[1].outbox.push(Item::Connected);
        self.pump(id, 1);
        self.wake_up(to);
    }

    /// Octets for the kernel.
    pub(super) fn write(&mut self, at: usize, other: usize, connection: ConnectionId, octets: Vec<u8>) {
        let Some((id, end)) = self.end_of(at, other, connection) else { return };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ends[end].outbox.push(Item::Octets(octets));
        }
        self.pump(id, end);
    }

    /// The process closes.
    pub(super) fn close(&mut self, at: usize, other: usize, connection: ConnectionId) {
        if let Some((id, end)) = self.end_of(at, other, connection) {
            self.let_go(id, end, true);
        }
    }

    /// The process has an end no more; `says` so, or does not.
    fn let_go(&mut self, id: u64, end: usize, says: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let it = &mut stream.ends[end];
        (it.connection, it.is_known) = (None, false);
        it.inbox.clear();
        match says {
            true => it.outbox.push(Item::Fin),
            false => it.outbox.clear(),
        }
        if end == 1 {
            stream.is_waiting = false;
        }
        let is_over = stream.ends.iter().all(|end| end.connection.is_none()) && !stream.is_waiting;
        if is_over || stream.is_dialling {
            self.streams.remove(&id);
        } else if says {
            self.pump(id, end);
        }
    }

    /// The process is gone, or the whole node.
    pub(super) fn drop_streams(&mut self, at: usize) {
        let has_kernel = self.agents[at].has_kernel();
        for (id, end) in self.ends_of(at) {
            self.let_go(id, end, has_kernel);
        }
    }

    fn pump(&mut self, id: u64, end: usize) {
        let arrival = self.now + self.delay();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let it = &mut stream.ends[end];
        if it.is_under_way || it.outbox.is_empty() {
            return;
        }
        (it.is_under_way, it.wait) = (true, RETRANSMIT.0);
        self.push(arrival, Coming::Segment(id, end));
    }

    pub(super) fn segment(&mut self, id: u64, end: usize) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (from, to) = (stream.ends[end].agent, stream.ends[1 - end].agent);
        let is_known = stream.ends[1 - end].is_known;
        let answers = self.carries(to, from);
        // Without acknowledgements a sender soon stops; how soon is left to chance.
        let hurried = self.random.is_within(50);
        let are_there = self.agents[from].has_kernel() && self.agents[to].has_kernel();
        let passes = are_there && self.carries(from, to) && (answers || is_known && hurried);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !passes {
            let it = &mut stream.ends[end];
            it.wait = (it.wait * 2).min(RETRANSMIT.1);
            let again = self.now + it.wait;
            self.push(again, Coming::Segment(id, end));
            return;
        }
        stream.ends[end].is_under_way = false;
        let items = mem::take(&mut stream.ends[end].outbox);
        if is_known {
            stream.ends[1 - end].inbox.extend(items);
            self.wake_up(to);
        } else {
            stream.ends[end].inbox.push_back(Item::Reset);
            self.wake_up(from);
        }
    }

    /// Something has come for a speaker: it sees it at once, or when it goes on.
    fn wake_up(&mut self, at: usize) {
        if self.agents[at].phase == Phase::Runs {
            self.call(at);
        }
    }

    /// Takes what has come by streams.
    pub(super) fn hear(&mut self, at: usize) {
        for (id, end) in self.ends_of(at) {
            let is_waiting = |stream: &mut Stream| mem::take(&mut stream.is_waiting);
            if end == 1 && self.streams.get_mut(&id).is_some_and(is_waiting) {
                self.accept(at, id);
            }
            let next = |world: &mut Self| {
                let end = &mut world.streams.get_mut(&id)?.ends[end];
                Some((end.connection?, end.inbox.pop_front()?))
            };
            while let Some((connection, item)) = next(self) {
                self.take(at, id, end, connection, item);
            }
        }
    }

    fn accept(&mut self, at: usize, id: u64) {
        let local = self.agents[at].local(self.now);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let other = stream.ends[0].agent;
        let Some(peer) = self.agents[at].neighbor_mut(other).and_then(|it| it.peer.as_mut()) else { return };
        stream.ends[1].connection = Some(peer.handle_accepted(endpoints(at, other), local));
        self.take_events(at, other, None);
    }

    fn take(&mut self, at: usize, id: u64, end: usize, connection: ConnectionId, item: Item) {
        let Some(other) = self.streams.get(&id).map(|stream| stream.ends[1 - end].agent) else { return };
        let error = match item {
            Item::Octets(octets) => return self.read(at, other, id, connection, &octets),
            Item::Connected => None,
            Item::Fin => Some(None),
            Item::Reset => Some(Some("connection reset")),
        };
        let local = self.agents[at].local(self.now);
        if error.is_some() {
            self.let_go(id, end, false);
        }
        let Some(peer) = self.agents[at].neighbor_mut(other).and_then(|it| it.peer.as_mut()) else { return };
        match error {
            Some(error) => peer.handle_closed(connection, error, local),
            None => peer.handle_connected(connection, endpoints(at, other), local),
        }
        self.take_events(at, other, None);
    }

    /// One message, which reaches the machine in two pieces.
    fn read(&mut self, at: usize, other: usize, id: u64, connection: ConnectionId, octets: &[u8]) {
        let local = self.agents[at].local(self.now);
        let (one, two) = octets.split_at(self.random.below(octets.len()));
        let Ok(Some(frame)) = Framer::default().next(&mut &*octets) else {
            return self.break_rule(format!("{other} sent {at} what is no message: {octets:02x?}"));
        };
        if self.agents[at].is_router {
            self.foresee(at, other, id, &frame);
        }
        let Some(peer) = self.agents[at].neighbor_mut(other).and_then(|it| it.peer.as_mut()) else { return };
        peer.handle_packet(connection, one, local);
        peer.handle_packet(connection, two, local);
        self.take_events(at, other, Some(id));
        if self.agents[at].is_router {
            self.learn(at, other, id, &frame);
        }
    }
}

fn endpoints(at: usize, other: usize) -> Endpoints {
    Endpoints { local: address(at), remote: address(other) }
}
