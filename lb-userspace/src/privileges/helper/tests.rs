use std::{net::SocketAddr, thread};

use super::*;
use crate::net::sockets::TcpState;

/// A helper of which the test says what it answers, and in whose place a harmless process runs.
fn scripted(answers: Vec<Answer>) -> (Helper, thread::JoinHandle<Vec<Request>>) {
    let (socket, its) = UnixStream::pair().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    let script = thread::spawn(move || {
        let mut requests = Vec::new();
        let mut answers = answers.into_iter();
        while let Ok(Some(request)) = receive(&its, &mut Vec::new()) {
            requests.push(request);
            // A list is one answer in parts.
            for answer in answers.by_ref() {
                let more = matches!(answer, Answer::Connections { more: true, .. });
                send(&its, &answer).unwrap();
                if !more {
                    break;
                }
            }
        }
        requests
    });
    (Helper { socket, child, buffer: Vec::new(), lost: None }, script)
}

#[track_caller]
fn check_lost<T: std::fmt::Debug>(helper: &mut Helper, result: Result<T, HelperError>, how: &str) {
    let said = result.unwrap_err().to_string();
    assert!(said.contains(how), "{said}");
    for again in [helper.check().unwrap_err(), helper.cookie(NetnsId(1)).unwrap_err()] {
        assert_eq!(again.to_string(), said, "once lost, always lost, and always in the same words");
    }
}

#[test]
fn a_list_is_put_together_from_its_parts() {
    let connection = |port| Connection {
        local: SocketAddr::from(([10, 0, 0, 1], 80)),
        remote: SocketAddr::from(([10, 0, 0, 2], port)),
        state: TcpState::Established,
    };
    let part = |ports: std::ops::Range<u16>, more| Answer::Connections { part: ports.map(connection).collect(), more };
    let (mut helper, script) = scripted(vec![part(0..3, true), part(3..5, true), part(5..5, false)]);
    let list = helper.connections(NetnsId(7), &[80], Listeners::Without).unwrap();
    assert!(list.into_iter().eq((0..5).map(connection)));
    drop(helper);
    let work = Work::Connections { ports: vec![80], listeners: Listeners::Without };
    assert_eq!(script.join().unwrap(), [Request { netns: NetnsId(7), work }]);
}

#[test]
fn an_error_of_the_kernel_loses_nothing() {
    let failure = || net::Error::NoNamespace { action: "find a namespace".into(), id: NetnsId(7) };
    let (mut helper, _) =
        scripted(vec![Answer::Failed(failure()), Answer::Cookie(9), Answer::GroWas(true), Answer::Done]);
    assert_eq!(helper.cookie(NetnsId(7)).unwrap_err().to_string(), failure().to_string());
    assert_eq!(helper.cookie(NetnsId(7)).unwrap(), 9);
    assert!(helper.set_gro(NetnsId(7), 2, true).unwrap());
    helper.assign_vip(NetnsId(7), [192, 0, 2, 1].into(), 3).unwrap();
    helper.check().unwrap();
}

#[test]
fn an_answer_to_another_question_ends_the_helper() {
    let (mut helper, _) = scripted(vec![Answer::Done]);
    let result = helper.cookie(NetnsId(1));
    check_lost(&mut helper, result, "gave an answer to another question (Done)");
}

#[test]
fn a_helper_that_does_not_answer_is_ended() {
    let (mut helper, _) = scripted(vec![]);
    let result = helper.withdraw_vip(NetnsId(1), [192, 0, 2, 1].into());
    check_lost(&mut helper, result, "has not answered for");
}

#[test]
fn a_list_without_an_end_is_cut() {
    let (mut helper, _) = scripted(vec![Answer::Connections { part: Vec::new(), more: true }, Answer::Done]);
    let result = helper.connections(NetnsId(1), &[80], Listeners::Without);
    check_lost(&mut helper, result, "gave an answer to another question");
}

#[test]
fn a_helper_that_has_ended_is_noticed_without_a_question() {
    let (mut helper, _) = scripted(vec![]);
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();
    let result = helper.check();
    check_lost(&mut helper, result, "ended early (signal: 9");
}

/// This test's own binary is none.
#[test]
fn a_binary_that_is_no_helper_is_no_start() {
    let said = Helper::start().unwrap_err().to_string();
    assert!(said.contains("ended early"), "{said}");
}
