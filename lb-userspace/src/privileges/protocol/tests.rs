use std::net::{Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::net::{Capability, sockets::TcpState};

fn through<T: Serialize, R: DeserializeOwned>(message: &T) -> R {
    let mut bytes = Vec::new();
    send(&mut bytes, message).unwrap();
    let mut rest = bytes.as_slice();
    let received = receive(&mut rest, &mut Vec::new()).unwrap().unwrap();
    assert!(rest.is_empty());
    received
}

#[track_caller]
fn refused(bytes: &[u8], why: &str) {
    let error = receive::<Answer>(bytes, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn every_request_arrives_as_it_was_sent() {
    let works = [
        Work::Cookie,
        Work::Connections { ports: (0..=u16::MAX).collect(), listeners: Listeners::With },
        Work::Gro { interface: 2 },
        Work::SetGro { interface: u32::MAX, on: true },
        Work::ToRaise,
        Work::LowerUnused(3),
        Work::AssignVip([192, 0, 2, 1].into(), 3),
        Work::WithdrawVip(Ipv6Addr::LOCALHOST.into()),
    ];
    for work in works {
        let request = Request { netns: NetnsId(i32::MAX), work };
        assert_eq!(through::<_, Request>(&request), request);
    }
}

#[test]
fn the_longest_part_of_a_list_fits_into_a_message() {
    let socket = SocketAddr::new(Ipv6Addr::from([255; 16]).into(), u16::MAX);
    let longest = Connection { local: socket, remote: socket, state: TcpState::Closing };
    let part = vec![longest; CONNECTIONS_PER_PART];
    let Answer::Connections { part: received, more: true } =
        through(&Answer::Connections { part: part.clone(), more: true })
    else {
        panic!("another answer");
    };
    assert_eq!(received, part);
}

#[test]
fn errors_keep_their_words_and_the_systems_number() {
    let action = || "turn on GRO of eth0".to_owned();
    let errors = [
        net::Error::Privilege { action: action(), capability: Capability::SysAdmin },
        net::Error::NoInterface { action: action() },
        net::Error::NoNamespace { action: action(), id: NetnsId(7) },
        net::Error::Unsupported { action: action() },
        net::Error::Unsteady { action: action(), attempts: 8 },
        net::Error::Answer { action: action(), detail: "an empty one".into() },
        net::Error::Kernel { action: action(), source: io::Error::from_raw_os_error(libc::ENOBUFS) },
        net::Error::Kernel { action: action(), source: io::Error::other("not the system's") },
    ];
    for error in errors {
        let said = (error.to_string(), format!("{error:?}"));
        let Answer::Failed(received) = through(&Answer::Failed(error)) else { panic!("another answer") };
        if let net::Error::Kernel { source, .. } = &received
            && source.raw_os_error().is_none()
        {
            assert_eq!(received.to_string(), said.0);
        } else {
            assert_eq!((received.to_string(), format!("{received:?}")), said);
        }
    }
}

#[test]
fn what_is_too_long_cut_off_or_has_a_tail_is_refused() {
    let mut whole = Vec::new();
    send(&mut whole, &Answer::Cookie(1 << 40)).unwrap();
    assert!(receive::<Answer>(&whole[..0], &mut Vec::new()).unwrap().is_none(), "an end between two messages");
    for cut in 1..whole.len() {
        let error = receive::<Answer>(&whole[..cut], &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "after {cut} bytes");
    }
    refused(&u32::MAX.to_le_bytes(), "at most 262144");
    let mut tailed = whole.clone();
    tailed.push(0);
    tailed[0] += 1;
    refused(&tailed, "1 bytes after the message");
    refused(&[1, 0, 0, 0, 99], "");
    let endless = Request {
        netns: NetnsId(0),
        work: Work::Connections { ports: vec![u16::MAX; 1 << 17], listeners: Listeners::With },
    };
    assert!(send(io::sink(), &endless).unwrap_err().to_string().contains("at most 262144"));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
        framed.extend(bytes);
        let _ = receive::<Request>(framed.as_slice(), &mut Vec::new());
        let _ = receive::<Answer>(framed.as_slice(), &mut Vec::new());
    }
}
