use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{render::*, *};
use crate::preflight::Check;

fn program(name: &str, interface: &str, attach_point: &str, mode: Option<AttachMode>) -> ProgramStatus {
    ProgramStatus {
        name: name.into(),
        interface: interface.into(),
        attach_point: attach_point.into(),
        mode,
        program_id: mode.map(|_| 41),
        error: None,
    }
}

fn backend(address: &str, port: u16, packets: u64) -> BackendStatus {
    BackendStatus {
        address: address.parse().unwrap(),
        port,
        weight: Some(1),
        drain: false,
        slots: 256,
        rung: Some(Rung::Redirect),
        state: BackendState::Ready,
        opaque: None,
        reason: None,
        interface: Some("veth0a1b2c3d".into()),
        health: None,
        vip_on_lo: None,
        packets,
        bytes: packets * 120,
        reply_packets: packets / 2,
        reply_bytes: packets * 60,
    }
}

fn service(name: &str, vip: &str, protocol: Protocol, port: u16) -> ServiceStatus {
    ServiceStatus {
        name: Some(name.into()),
        vip: vip.parse().unwrap(),
        protocol,
        port,
        replies: ReplyMode::Static,
        session_affinity_seconds: None,
        health_check: None,
        fails_open: false,
        packets: 0,
        bytes: 0,
        reply_packets: 0,
        reply_bytes: 0,
        slots: 0,
        moved_slots: 0,
        dropped_owners: 0,
        backends: Vec::new(),
    }
}

/// A node with a bit of everything.
pub(crate) fn sample() -> Status {
    let reason = |name: &str, packets, doc: &str| ReasonStatus {
        name: name.into(),
        packets,
        bytes: packets * 100,
        doc: doc.into(),
    };
    let map = |name: &str, entries, capacity, bytes| MapStatus { name: name.into(), entries, capacity, bytes };
    Status {
        version: "0.1.0".into(),
        since_unix_seconds: 1_790_000_000,
        uptime_seconds: 3 * 86_400 + 4 * 3600 + 59,
        node_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        programs: vec![
            program("sluice_xdp", "eth0", "xdp", Some(AttachMode::Native)),
            program("sluice_return", "veth0a1b2c3d", "tcx ingress", Some(AttachMode::Tcx)),
            ProgramStatus {
                error: Some("the kernel has no tcx; Linux 6.6 or later is needed".into()),
                ..program("sluice_bypass", "veth0a1b2c3d", "tcx egress", None)
            },
        ],
        services: vec![
            ServiceStatus {
                replies: ReplyMode::Recorded,
                packets: 1_234_567,
                bytes: 148_148_040,
                slots: 512,
                backends: vec![
                    backend("10.244.1.11", 1162, 1_000_000),
                    BackendStatus {
                        rung: None,
                        state: BackendState::SelfTestFailed,
                        slots: 0,
                        reason: Some(
                            "redirect: the frame arrived and the pod's kernel did not answer within 1 s, which is \
                             what a pod whose interface is down looks like; peer: not tried"
                                .into(),
                        ),
                        ..backend("10.244.1.12", 1162, 0)
                    },
                ],
                ..service("snmp-traps", "198.51.100.10", Protocol::Udp, 162)
            },
            ServiceStatus {
                packets: 9_999,
                bytes: 1_199_880,
                slots: 512,
                moved_slots: 40,
                backends: vec![
                    BackendStatus {
                        drain: true,
                        opaque: Some("5 segments in a row left without a socket".into()),
                        rung: Some(Rung::Stack),
                        ..backend("2001:db8:244:1::41", 57400, 9_999)
                    },
                    BackendStatus {
                        rung: None,
                        state: BackendState::NoInterface,
                        interface: None,
                        weight: Some(1000),
                        ..backend("2001:db8:244:1::42", 57400, 0)
                    },
                ],
                ..service("telemetry", "2001:db8:100::12", Protocol::Tcp, 57400)
            },
            service("bgp", "198.51.100.11", Protocol::Tcp, 179),
        ],
        reasons: vec![
            reason("port-closed", 7, "A closed port of a VIP: TCP RST or ICMP port unreachable."),
            reason("malformed", 0, "Cut short."),
            reason("redirected", 1_234_567, "Rewritten and sent into the pod by XDP_REDIRECT."),
            reason(
                "too-many-headers",
                7,
                "To a VIP, with more IPv6 extension headers, or longer ones, than are looked through: dropped.",
            ),
        ],
        maps: vec![map("services", Some(3), 4096, 589_824), map("maglev", None, 1 << 20, 4 << 20)],
        last_error: Some("sluice.yaml:3:7: unknown key `bakends`; did you mean `backends`?\nsluice.yaml:9:1: x".into()),
        waiting: Some("uplink eth1 does not exist on this node; there are: lo, eth0".into()),
        preflight: vec![
            Finding::new(Check::KernelTypes, "kernel", "the kernel does not show its types", "live with it"),
            Finding::note(Check::UplinkIs, "eth0", "eth0: driver ixgbe"),
        ],
        ..Status::default()
    }
}

const EXPECTED: &str = "\
Sluice 0.1.0, up 3 d 4 h, node 192.0.2.1, 2001:db8::1

The new configuration was refused; the one before it is in force:
    └ sluice.yaml:3:7: unknown key `bakends`; did you mean `backends`?
      sluice.yaml:9:1: x

Not everything is in force yet; it is tried again each second:
    └ uplink eth1 does not exist on this node; there are: lo, eth0

Pre-flight warns:
    └ the kernel does not show its types; live with it

PROGRAM        INTERFACE     AT           MODE          ID
sluice_xdp     eth0          xdp          native        41
sluice_return  veth0a1b2c3d  tcx ingress  tcx           41
sluice_bypass  veth0a1b2c3d  tcx egress   not attached   -
    └ the kernel has no tcx; Linux 6.6 or later is needed

SERVICE, BACKENDS             WEIGHT  SHARE  RUNG      STATE         INTERFACE     PACKETS     BYTES
UDP 198.51.100.10:162  snmp-traps  (replies recorded, 512 slots)                    1.23 M   141 MiB
  10.244.1.11:1162                 1  50.0%  redirect  ready         veth0a1b2c3d   1.00 M   114 MiB
  10.244.1.12:1162                 1   0.0%  -         test failed   veth0a1b2c3d        0       0 B
    └ redirect: the frame arrived and the pod's kernel did not answer within 1 s, which is what a
      pod whose interface is down looks like; peer: not tried
TCP [2001:db8:100::12]:57400  telemetry  (replies static, 512 slots, 40 moved)        9999  1.14 MiB
  [2001:db8:244:1::41]:57400       1  50.0%  stack     draining      veth0a1b2c3d     9999  1.14 MiB
    └ opaque: 5 segments in a row left without a socket
  [2001:db8:244:1::42]:57400    1000  50.0%  -         no interface  -                   0       0 B
TCP 198.51.100.11:179  bgp  (replies static, 0 slots)                                    0       0 B
    └ no backends: new connections are refused

REASON            PACKETS    BYTES  MEANING
redirected         1.23 M  118 MiB  Rewritten and sent into the pod by XDP_REDIRECT.
port-closed             7    700 B  A closed port of a VIP: TCP RST or ICMP port unreachable.
too-many-headers        7    700 B  To a VIP, with more IPv6 extension headers, or longer ones, t…

MAP       ENTRIES  CAPACITY  USED    MEMORY
services        3      4096  0.1%   576 KiB
maglev          -   1048576     -  4.00 MiB
";

#[test]
fn the_table_is_as_an_operator_reads_it() {
    let table = render_table(&sample(), false);
    assert_eq!(table, EXPECTED, "\n{table}");
    for line in table.lines() {
        assert!(line.chars().count() <= 100, "{line}");
        assert_eq!(line.trim_end(), line);
    }
}

#[test]
fn colours_change_nothing_but_the_colours() {
    let coloured = render_table(&sample(), true);
    assert!(coloured.contains("\x1b[32mready\x1b[0m"));
    assert!(coloured.contains("\x1b[31mtest failed\x1b[0m"));
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').expect("a sequence has an end").1;
    }
    assert_eq!(plain + rest, render_table(&sample(), false));
}

#[test]
fn a_fresh_agent_has_a_table_too() {
    let table = render_table(&Status { version: "0.1.0".into(), ..Status::default() }, false);
    for text in ["up 0 s", "nothing is attached", "no services are configured", "no packets yet"] {
        assert!(table.contains(text), "{table}");
    }
}

#[test]
fn counts_have_three_digits() {
    let counts: Vec<String> =
        [0, 9_999, 10_000, 12_345, 123_456, 999_499, 999_500, 1_234_567, u64::MAX].map(count).into();
    assert_eq!(counts, ["0", "9999", "10.0 k", "12.3 k", "123 k", "999 k", "1.00 M", "1.23 M", "18.4 E"]);
    let sizes: Vec<String> = [0, 1023, 1024, 1536, 1 << 20, (1 << 20) - 1, 5 << 30, u64::MAX].map(bytes).into();
    assert_eq!(sizes, ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "1.00 MiB", "1.00 MiB", "5.00 GiB", "16.0 EiB"]);
    let times: Vec<String> = [0, 59, 60, 3_605, 86_400, 90_061].map(duration).into();
    assert_eq!(times, ["0 s", "59 s", "1 min", "1 h", "1 d", "1 d 1 h"]);
}

#[test]
fn json_survives_the_way_there_and_back() {
    let status = sample();
    let json = serde_json::to_string(&status).unwrap();
    assert!(json.contains(r#""nodeAddresses":["192.0.2.1","2001:db8::1"]"#), "{json}");
    assert!(json.contains(r#""state":"self-test-failed""#), "{json}");
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
}

fn bind(socket: &Path) -> tokio::net::UnixListener {
    Socket::make(socket).unwrap().publish().unwrap()
}

/// A directory of its own for one test, removed with it.
struct TestDirectory(PathBuf);

impl TestDirectory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-status-{}-{name}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join(SOCKET_NAME)
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_gets_the_status_from_a_socket_of_its_owner_alone() {
    let directory = TestDirectory::new("serve");
    let socket = directory.socket();
    // Left behind by an agent that was killed.
    drop(bind(&socket));
    let listener = bind(&socket);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1, "nothing is left beside the socket");

    let server = tokio::spawn(serve(listener, |_| async { Answer::Status(Box::new(sample())) }));
    for _ in 0..2 {
        let socket = socket.clone();
        let fetched = tokio::task::spawn_blocking(move || fetch(&socket)).await.unwrap();
        assert_eq!(fetched.unwrap(), sample());
    }
    // A client that leaves at once is no reason to stop.
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    let fetched = tokio::task::spawn_blocking(move || fetch(&socket)).await.unwrap();
    assert_eq!(fetched.unwrap(), sample());
    server.abort();
}

#[test]
fn without_an_agent_the_client_says_so() {
    let directory = TestDirectory::new("none");
    let socket = directory.socket();
    let error = fetch(&socket).unwrap_err();
    assert!(error.to_string().starts_with("no agent is running: "), "{error}");
    assert!(error.to_string().contains("does not exist"), "{error}");

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = fetch(&socket).unwrap_err();
    assert!(error.to_string().contains("nobody listens on"), "{error}");
}

#[test]
fn an_answer_that_is_no_status_is_refused() {
    let directory = TestDirectory::new("malformed");
    let socket = directory.socket();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"{\"version\": 1}").unwrap());
    let error = fetch(&socket).unwrap_err();
    assert!(error.to_string().contains("is not a status"), "{error}");
    server.join().unwrap();
}

/// Tests run as root, whom no permission stops; so the mapping itself.
#[test]
fn a_socket_of_somebody_else_is_refused_with_what_to_do() {
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let error = socket::why("/run/sluice/status.sock".into(), denied).to_string();
    assert!(error.contains("no permission to connect") && error.contains("sudo"), "{error}");
}

fn client<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(ask)
}

/// An agent that knows every question.
async fn know(question: Question) -> Answer {
    match question {
        Question::Status => Answer::Status(Box::new(sample())),
        Question::Diff { name, text } => {
            let diff = crate::plan::diff::Diff { notes: vec![name, text], ..Default::default() };
            Answer::Diff { diff: Box::new(diff) }
        }
        Question::Drain => Answer::Done { done: "draining".into() },
        Question::Undrain => Answer::Declined { declined: "the agent is stopping".into() },
        Question::Unknown(words) => Answer::Declined { declined: words },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_told_apart_from_clients_that_say_nothing() {
    let directory = TestDirectory::new("questions");
    let socket = directory.socket();
    let server = tokio::spawn(serve(bind(&socket), know));
    let path = socket.clone();
    let long = "services: []\n".repeat(100_000);
    let text = long.clone();
    let diff = client(move || fetch_diff(&path, "a \"b\".yaml", &text)).await.unwrap().unwrap();
    assert_eq!(diff.notes, ["a \"b\".yaml".to_owned(), long]);
    // As version 0.1.0 asks: nothing is said, and nothing closed.
    let path = socket.clone();
    let old = client(move || {
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut std::os::unix::net::UnixStream::connect(path)?, &mut answer)?;
        std::io::Result::Ok(answer)
    });
    assert_eq!(serde_json::from_slice::<Status>(&old.await.unwrap().unwrap()).unwrap(), sample());
    let path = socket.clone();
    assert_eq!(client(move || tell_drain(&path, true)).await.unwrap().unwrap(), "draining");
    let path = socket.clone();
    let declined = client(move || tell_drain(&path, false)).await.unwrap().unwrap_err();
    assert_eq!(declined.to_string(), "the agent is stopping");
    let path = socket.clone();
    let foreign = client(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.write_all(b"{\"question\":\"weather\"}\nhere")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer)?;
        std::io::Result::Ok(answer)
    });
    let answer = foreign.await.unwrap().unwrap();
    assert_eq!(answer, r#"{"declined":"{\\\"question\\\":\\\"weather\\\"}"}"#);
    server.abort();
}

#[test]
fn an_agent_that_knows_no_questions_is_named_with_its_version() {
    let directory = TestDirectory::new("older");
    let socket = directory.socket();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // It answers without reading, so that what was asked resets the connection behind the answer.
    let server = std::thread::spawn(move || {
        let status = serde_json::to_vec(&sample()).unwrap();
        listener.accept().unwrap().0.write_all(&status).unwrap();
    });
    let error = fetch_diff(&socket, "a.yaml", "services: []").unwrap_err().to_string();
    assert!(error.contains("is of version 0.1.0, which does not know this question"), "{error}");
    server.join().unwrap();
}

#[tokio::test]
async fn a_socket_that_is_never_published_is_removed_again() {
    let directory = TestDirectory::new("unpublished");
    drop(Socket::make(&directory.socket()).unwrap());
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 0);
}

#[test]
fn a_failed_check_is_shown_with_its_reason_and_a_passed_one_is_not() {
    let health =
        |state, seconds, error: Option<&str>| Some(HealthStatus { state, seconds, last_error: error.map(Into::into) });
    let refused = Some("connection refused");
    let status = |fails_open| Status {
        services: vec![ServiceStatus {
            health_check: Some("tcp every 5s".into()),
            fails_open,
            slots: 256,
            backends: vec![
                BackendStatus { health: health(HealthState::Healthy, 9, refused), ..backend("10.244.1.1", 80, 0) },
                BackendStatus { health: health(HealthState::Unhealthy, 75, refused), ..backend("10.244.1.2", 80, 0) },
                BackendStatus { health: health(HealthState::Unknown, 1, refused), ..backend("10.244.1.3", 80, 0) },
                BackendStatus { health: health(HealthState::Unknown, 1, None), ..backend("10.244.1.4", 80, 0) },
            ],
            ..service("web", "198.51.100.10", Protocol::Tcp, 80)
        }],
        ..Status::default()
    };
    let text = render_table(&status(false), false);
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("TCP")).take(7).collect();
    assert!(lines[0].contains("web  (replies static, check tcp every 5s, 256 slots)"), "{text}");
    let told: Vec<&str> = lines[1..].iter().map(|line| line.split("redirect ").nth(1).unwrap_or(line).trim()).collect();
    assert!(told[0].starts_with("ready") && told[1].starts_with("unhealthy") && told[3].starts_with("ready"), "{text}");
    assert_eq!(told[2], "└ health check failed for 1 min 15 s: connection refused");
    assert_eq!(told[4], "└ no health check has passed yet: connection refused");
    assert!(told[5].starts_with("ready"), "{text}");
    assert!(!text.contains("as if none did"), "{text}");
    assert!(render_table(&status(true), false).contains("all health checks fail: new connections go to all backends"));
}
