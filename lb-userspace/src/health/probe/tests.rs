//! Each question against servers on the loopback interface that answer well, badly and not at all.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn subject(address: SocketAddr, probe: Probe) -> Subject {
    Subject { address, probe }
}

fn http() -> Probe {
    Probe::Http { path: "/healthz?deep=1".into(), host: None }
}

fn grpc() -> Probe {
    Probe::Grpc { service: String::new() }
}

fn failed(why: &str) -> Outcome {
    Outcome::Failed(why.to_owned())
}

/// Takes one connection, reads its first bytes, says `answer` and closes. What it read.
async fn answer_once(answer: Vec<u8>) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap_or(0);
        request.truncate(length);
        // Who asks may have seen enough before all is said.
        let _ = stream.write_all(&answer).await;
        request
    });
    (address, task)
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind(LOOPBACK).await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn where_nobody_listens_every_check_says_so() {
    for probe in [Probe::Tcp, http(), grpc()] {
        assert_eq!(ask(&subject(nobody().await, probe)).await, failed("connection refused"));
    }
    let closed = UdpSocket::bind(LOOPBACK).await.unwrap().local_addr().unwrap();
    assert_eq!(ask(&subject(closed, Probe::Udp { payload: Vec::new() })).await, failed("connection refused"));
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp_and_ends_by_a_reset() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(ask(&subject(address, Probe::Tcp)).await, Outcome::Passed);
    let (mut stream, _) = listener.accept().await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_status_decides_and_the_body_is_not_waited_for() {
    for (status, outcome) in [
        (200, Outcome::Passed),
        (204, Outcome::Passed),
        (302, Outcome::Passed),
        (399, Outcome::Passed),
        (400, failed("HTTP status 400")),
        (503, failed("HTTP status 503")),
    ] {
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 1000\r\n\r\n");
        let (address, server) = answer_once(answer.into_bytes()).await;
        assert_eq!(ask(&subject(address, http())).await, outcome);
        let request = String::from_utf8(server.await.unwrap()).unwrap();
        let agent = env!("CARGO_PKG_VERSION");
        assert_eq!(
            request,
            format!(
                "GET /healthz?deep=1 HTTP/1.1\r\nhost: {address}\r\nuser-agent: sluice/{agent}\r\naccept: */*\r\n\
                 connection: close\r\n\r\n"
            )
        );
    }
}

#[tokio::test]
async fn what_is_no_answer_is_a_failure_with_its_reason() {
    let endless = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'y'; 2 * HTTP_HEAD_BYTES_MAX]].concat();
    for answer in [b"".to_vec(), b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), b"HTTP/1.1 2".to_vec(), endless] {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(30)]).into_owned();
        for probe in [http(), grpc()] {
            let (address, server) = answer_once(answer.clone()).await;
            let outcome = ask(&subject(address, probe.clone())).await;
            assert!(matches!(&outcome, Outcome::Failed(why) if !why.is_empty()), "{probe:?}, {shown:?}: {outcome:?}");
            server.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_server_without_the_health_service_is_told_from_one_that_is_not_well() {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("ill", tonic_health::ServingStatus::NotServing).await;
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming);
    let server = tokio::spawn(server);
    for (service, outcome) in [
        ("", Outcome::Passed),
        ("ill", failed("gRPC health NOT_SERVING")),
        ("other", failed("gRPC status NotFound: service not registered")),
    ] {
        let probe = Probe::Grpc { service: service.into() };
        assert_eq!(ask(&subject(address, probe)).await, outcome, "{service}");
    }
    server.abort();
}

#[tokio::test]
async fn a_datagram_carries_its_payload_and_any_answer_will_do() {
    let receiver = UdpSocket::bind(LOOPBACK).await.unwrap();
    let subject = subject(receiver.local_addr().unwrap(), Probe::Udp { payload: vec![1, 2, 3] });
    let answer = async {
        let mut datagram = [0; 16];
        let (length, from) = receiver.recv_from(&mut datagram).await.unwrap();
        assert_eq!(&datagram[..length], [1, 2, 3]);
        receiver.send_to(b"anything longer than a byte", from).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(ask(&subject), answer);
    assert_eq!(outcome, Outcome::Passed);
}
