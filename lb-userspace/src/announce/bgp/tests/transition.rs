//! The whole table of RFC 4271, 8.2.2: each state, each event that it knows.

use super::{super::machine::*, super::packet::*, *};

/// What comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Start,
    Stop,
    RetryTimer,
    DialTimer,
    OpenTimer,
    HoldTimer,
    KeepaliveTimer,
    Accepted,
    DialSucceeds,
    Lost,
    BadMarker,
    GoodOpen,
    BadOpen,
    Notified,
    Keepalive,
    Update,
    Refresh,
    BfdLost,
}

const INPUTS: [Input; 18] = [
    Input::Start,
    Input::Stop,
    Input::RetryTimer,
    Input::DialTimer,
    Input::OpenTimer,
    Input::HoldTimer,
    Input::KeepaliveTimer,
    Input::Accepted,
    Input::DialSucceeds,
    Input::Lost,
    Input::BadMarker,
    Input::GoodOpen,
    Input::BadOpen,
    Input::Notified,
    Input::Keepalive,
    Input::Update,
    Input::Refresh,
    Input::BfdLost,
];

const UPDATE: [u8; 4] = [0, 0, 0, 0];

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut octets = vec![0xff; 16];
    octets.extend_from_slice(&u16::try_from(19 + body.len()).expect("short").to_be_bytes());
    octets.push(kind);
    octets.extend_from_slice(body);
    octets
}

/// A machine in this state, and the connection that made it so.
fn at(state: State) -> (Bench, ConnectionId) {
    let mut bench = Bench::new(Settings { bfd: BfdUse::On, ..settings() });
    bench.peer.set_bfd(Bfd::Up, bench.now);
    bench.peer.set_routes(BTreeMap::new(), true);
    let id = bench.dialled();
    match state {
        State::Idle => bench.peer.set_stage(Stage::Ceased(CeaseReason::Shutdown, None), bench.now),
        State::Connect => {}
        State::Active => bench.peer.handle_closed(id, Some("connection refused"), bench.now),
        State::OpenSent | State::OpenConfirm | State::Established => {
            bench.peer.handle_connected(id, V4, bench.now);
            if state != State::OpenSent {
                bench.receive(id, &their_open().emit());
            }
            if state == State::Established {
                bench.receive(id, &keepalive());
            }
        }
    }
    bench.acts();
    assert_eq!(bench.peer.state(), state);
    (bench, id)
}

/// None where the state does not know the input: no such timer runs, or there is no connection for it.
fn apply(bench: &mut Bench, id: ConnectionId, state: State, input: Input) -> Option<()> {
    let has_dial = state == State::Connect;
    let has_connection = matches!(state, State::OpenSent | State::OpenConfirm | State::Established);
    match input {
        Input::Start if state == State::Idle => bench.peer.set_stage(Stage::Running, bench.now),
        Input::Stop if state != State::Idle => {
            bench.peer.set_stage(Stage::Ceased(CeaseReason::Shutdown, None), bench.now);
        }
        Input::RetryTimer if state == State::Active => bench.advance(SECOND),
        Input::DialTimer if has_dial => bench.advance(SECOND * 10),
        Input::OpenTimer if state == State::OpenSent => bench.advance(SECOND * 240),
        Input::HoldTimer if matches!(state, State::OpenConfirm | State::Established) => bench.advance(SECOND * 90),
        Input::KeepaliveTimer if matches!(state, State::OpenConfirm | State::Established) => bench.advance(SECOND * 30),
        Input::Accepted => {
            bench.peer.handle_accepted(V4, bench.now);
        }
        Input::DialSucceeds if has_dial => bench.peer.handle_connected(id, V4, bench.now),
        Input::Lost if has_dial || has_connection => bench.peer.handle_closed(id, Some("reset"), bench.now),
        Input::BadMarker if has_connection => bench.receive(id, &[0; 19]),
        Input::GoodOpen if has_connection => bench.receive(id, &their_open().emit()),
        Input::BadOpen if state == State::OpenSent => {
            let mut open = their_open();
            open.capabilities.four_octet_as = Some(1);
            bench.receive(id, &open.emit());
        }
        Input::Notified if has_connection => bench.receive(id, &Notification::cease(cease::COLLISION).emit()),
        Input::Keepalive if has_connection => bench.receive(id, &keepalive()),
        Input::Update if has_connection => bench.receive(id, &message(2, &UPDATE)),
        Input::Refresh if has_connection => bench.receive(id, &message(5, &[0, 1, 0, 1])),
        Input::BfdLost => bench.peer.set_bfd(Bfd::Down, bench.now),
        Input::Start
        | Input::Stop
        | Input::RetryTimer
        | Input::DialTimer
        | Input::OpenTimer
        | Input::HoldTimer
        | Input::KeepaliveTimer
        | Input::DialSucceeds
        | Input::Lost
        | Input::BadMarker
        | Input::GoodOpen
        | Input::BadOpen
        | Input::Notified
        | Input::Keepalive
        | Input::Update
        | Input::Refresh => return None,
    }
    Some(())
}

/// The state after, and what is done.
fn expected(state: State, input: Input) -> Option<(State, Vec<Out>)> {
    use Out::{Close, Dial, Keepalive as Alive, Notification as Note, Open};
    let ends = |code, subcode| (State::Active, vec![Note(code, subcode), Close]);
    Some(match (state, input) {
        //= test rfc4271#8.2.2:connect
        (State::Idle, Input::Start) => (State::Connect, vec![Dial]),
        //= test rfc4486#4:rejected
        (State::Idle, Input::Accepted) => (State::Idle, vec![Note(6, 5), Close]),
        (State::Idle, Input::BfdLost) => (State::Idle, vec![]),
        (State::Active, Input::Stop) => (State::Idle, vec![]),
        (State::Active, Input::RetryTimer) => (State::Connect, vec![Dial]),
        (State::Active, Input::Accepted) => (State::OpenSent, vec![Open]),
        (State::Active, Input::BfdLost) => (State::Idle, vec![]),
        (State::Connect, Input::Stop) => (State::Idle, vec![Close]),
        (State::Connect, Input::DialTimer) => (State::Active, vec![Close]),
        (State::Connect, Input::Accepted) => (State::OpenSent, vec![Open]),
        (State::Connect, Input::DialSucceeds) => (State::OpenSent, vec![Open]),
        (State::Connect, Input::Lost) => (State::Active, vec![]),
        (State::Connect, Input::BfdLost) => (State::Idle, vec![Close]),
        (State::OpenSent, Input::Stop) => (State::Idle, vec![Note(6, 2), Close]),
        (State::OpenSent, Input::OpenTimer) => ends(4, 0),
        (State::OpenSent, Input::Accepted) => (State::OpenSent, vec![Open]),
        (State::OpenSent, Input::Lost) => (State::Active, vec![]),
        //= test rfc4271#6.1:marker
        //= test rfc4271#6:close
        (State::OpenSent | State::OpenConfirm | State::Established, Input::BadMarker) => ends(1, 1),
        //= test rfc4271#8.2.2:open-sent
        (State::OpenSent, Input::GoodOpen) => (State::OpenConfirm, vec![Alive]),
        //= test rfc4271#6.2:peer-as
        (State::OpenSent, Input::BadOpen) => ends(2, 2),
        //= test rfc4271#6.4:close
        (State::OpenSent | State::OpenConfirm | State::Established, Input::Notified) => (State::Active, vec![Close]),
        //= test rfc4271#6.6:unexpected
        //= test rfc6608#3:subcode
        (State::OpenSent, Input::Keepalive | Input::Update | Input::Refresh) => ends(5, 1),
        (State::OpenConfirm, Input::GoodOpen | Input::Update | Input::Refresh) => ends(5, 2),
        (State::Established, Input::GoodOpen) => ends(5, 3),
        (State::OpenConfirm | State::Established, Input::Stop) => (State::Idle, vec![Note(6, 2), Close]),
        //= test rfc4271#6.5:hold-timer
        (State::OpenConfirm | State::Established, Input::HoldTimer) => ends(4, 0),
        (State::OpenConfirm, Input::KeepaliveTimer) => (State::OpenConfirm, vec![Alive]),
        (State::Established, Input::KeepaliveTimer) => (State::Established, vec![Alive]),
        (State::OpenConfirm, Input::Accepted) => (State::OpenConfirm, vec![Open]),
        (State::Established, Input::Accepted) => (State::Established, vec![Open]),
        (State::OpenConfirm | State::Established, Input::Lost) => (State::Active, vec![]),
        (State::OpenConfirm, Input::Keepalive) => (State::Established, Family::ALL.map(Out::EndOfRib).to_vec()),
        (State::Established, Input::Keepalive | Input::Update | Input::Refresh) => (State::Established, vec![]),
        //= test rfc9384#3:bfd-down
        (State::OpenSent | State::OpenConfirm | State::Established, Input::BfdLost) => {
            (State::Idle, vec![Note(6, 10), Close])
        }
        _ => return None,
    })
}

#[test]
fn every_state_answers_every_input_as_the_table_says() {
    let states = [State::Idle, State::Active, State::Connect, State::OpenSent, State::OpenConfirm, State::Established];
    for state in states {
        for input in INPUTS {
            let (mut bench, id) = at(state);
            let applied = apply(&mut bench, id, state, input);
            let outs: Vec<_> = bench.outs().into_iter().filter(|out| !is_due_keepalive(input, out)).collect();
            let found = applied.map(|()| (bench.peer.state(), outs));
            assert_eq!(found, expected(state, input), "{input:?} in {state:?}");
        }
    }
}

/// The hold timer's test runs past those of the keepalive timer.
fn is_due_keepalive(input: Input, out: &Out) -> bool {
    input == Input::HoldTimer && *out == Out::Keepalive
}

#[test]
fn a_peer_that_only_dials_waits_in_idle_and_a_passive_one_in_active() {
    let mut dialler = Bench::new(Settings { mode: Mode::Dial, ..settings() });
    let id = dialler.dialled();
    dialler.peer.handle_closed(id, Some("connection refused"), dialler.now);
    assert_eq!(dialler.peer.state(), State::Idle);
    dialler.accept();
    assert_eq!(dialler.outs(), [Out::Notification(6, 5), Out::Close]);
    let mut passive = Bench::new(Settings { mode: Mode::Accept, ..settings() });
    assert_eq!((passive.peer.state(), passive.outs()), (State::Active, vec![]));
    assert_eq!(passive.peer.poll_timeout(), None);
    passive.accept();
    assert_eq!((passive.peer.state(), passive.outs()), (State::OpenSent, vec![Out::Open]));
}

#[test]
fn each_transition_is_told_once_with_its_cause() {
    let mut bench = Bench::new(settings());
    bench.establish();
    bench.peer.set_stage(Stage::Ceased(CeaseReason::Shutdown, None), bench.now);
    let told: Vec<_> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Transition { from, to, cause, .. } => Some((from, to, cause)),
            _ => None,
        })
        .collect();
    let expected = [
        (State::Idle, State::Active, Cause::Started),
        (State::Active, State::Connect, Cause::Dialled),
        (State::Connect, State::OpenSent, Cause::Connected),
        (State::OpenSent, State::OpenConfirm, Cause::OpenReceived),
        (State::OpenConfirm, State::Established, Cause::KeepaliveReceived),
        (State::Established, State::Idle, Cause::Stopped),
    ];
    assert_eq!(told, expected);
    assert_eq!(bench.peer.status().causes.get(&Cause::KeepaliveReceived), Some(&1));
}
