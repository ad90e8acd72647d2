//! `healthCheck`: what each type takes, and what it does not.

use std::time::Duration;

use super::*;
use crate::model::health::{HealthCheck, Probe, Timing};

fn service(protocol: &str, check: &str) -> String {
    format!("  - {{ name: a, vip: 198.51.100.1, protocol: {protocol}, ports: [53], healthCheck: {check} }}\n")
}

#[track_caller]
fn check_taken(protocol: &str, check: &str) -> Option<HealthCheck> {
    let snapshot = taken(&with_services(&service(protocol, check)));
    snapshot.services[0].health_check.clone()
}

#[track_caller]
fn check_check_refused(protocol: &str, check: &str, messages: &[&str]) {
    check_service_refused(&service(protocol, check), messages);
}

const SECOND: Duration = Duration::from_secs(1);
const DEFAULT: Timing = Timing { interval: Duration::from_secs(5), timeout: Duration::from_secs(2), rise: 2, fall: 3 };

#[test]
fn a_check_that_says_nothing_more_has_its_defaults() {
    let http = |path: &str, host: Option<&str>| Probe::Http { path: path.into(), host: host.map(Into::into) };
    let grpc = |service: &str| Probe::Grpc { service: service.into() };
    for (check, probe) in [
        ("{ type: tcp }", Probe::Tcp),
        ("{ type: http }", http("/", None)),
        ("{ type: http, path: '/healthz?full=1', host: a.example }", http("/healthz?full=1", Some("a.example"))),
        ("{ type: grpc }", grpc("")),
        ("{ type: grpc, service: gnmi.gNMI }", grpc("gnmi.gNMI")),
    ] {
        assert_eq!(check_taken("TCP", check), Some(HealthCheck { probe, port: None, timing: DEFAULT }), "{check}");
    }
    for (check, payload) in [("{ type: udp }", vec![]), ("{ type: udp, payload: '00fF' }", vec![0, 255])] {
        let check = check_taken("UDP", check);
        assert_eq!(check, Some(HealthCheck { probe: Probe::Udp { payload }, port: None, timing: DEFAULT }));
    }
    for none in ["{ type: none }", "null"] {
        assert_eq!(check_taken("TCP", none), None, "{none}");
    }
}

#[test]
fn times_and_counts_are_taken_to_their_bounds() {
    let timing = |check| check_taken("TCP", check).map(|check| (check.port, check.timing));
    let least = Timing { interval: SECOND / 10, timeout: SECOND / 100, rise: 1, fall: 1 };
    let most = Timing { interval: SECOND * 3600, timeout: SECOND * 3600, rise: 100, fall: 100 };
    assert_eq!(
        timing("{ type: tcp, port: 1, interval: 100ms, timeout: 10ms, rise: 1, fall: 1 }"),
        Some((Some(1), least))
    );
    assert_eq!(
        timing("{ type: tcp, port: 65535, interval: 3600s, timeout: 3600s, rise: 100, fall: 100 }"),
        Some((Some(65_535), most))
    );
    let short = check_taken("TCP", "{ type: tcp, interval: 500ms }").map(|check| check.timing.timeout);
    assert_eq!(short, Some(SECOND / 2), "the default is no longer than the interval");
    let udp = check_taken("UDP", "{ type: udp, interval: 1s }").map(|check| check.timing.interval);
    assert_eq!(udp, Some(SECOND));
}

#[test]
fn times_and_counts_out_of_bounds_are_refused() {
    check_check_refused(
        "TCP",
        "{ type: tcp, port: ▶0, interval: ▶99ms, rise: ▶0, fall: ▶101 }",
        &[
            "port `0` is out of range; write a whole number from 1 to 65535",
            "interval `99ms` is out of range; write 100ms to 3600s, in whole milliseconds (ms) or seconds (s)",
            "rise `0` is out of range; write a whole number from 1 to 100",
            "fall `101` is out of range; write a whole number from 1 to 100",
        ],
    );
    for (interval, timeout, message) in [
        ("▶5", "1s", "interval `5` is no duration with its unit; write 100ms to 3600s"),
        ("▶s", "1s", "interval `s` is out of range; write 100ms to 3600s"),
        ("▶-5s", "1s", "interval `-5s` is no duration with its unit; write 100ms to 3600s"),
        ("▶1.5s", "1s", "interval `1.5s` is no duration with its unit; write 100ms to 3600s"),
        ("▶3601s", "1s", "interval `3601s` is out of range; write 100ms to 3600s"),
        ("▶18446744073709551615s", "1s", "interval `18446744073709551615s` is out of range; write 100ms to 3600s"),
        ("1s", "▶1001ms", "timeout `1001ms` is out of range; write 10ms to 1s"),
        ("1s", "▶9ms", "timeout `9ms` is out of range; write 10ms to 1s"),
    ] {
        let message = format!("{message}, in whole milliseconds (ms) or seconds (s)");
        check_check_refused("TCP", &format!("{{ type: tcp, interval: {interval}, timeout: {timeout} }}"), &[&message]);
    }
    let message = "interval `999ms` is out of range; write 1s to 3600s, in whole milliseconds (ms) or seconds (s)";
    check_check_refused("UDP", "{ type: udp, interval: ▶999ms }", &[message]);
}

#[test]
fn a_type_takes_its_own_keys_and_no_others() {
    check_check_refused(
        "TCP",
        "{ type: tcp, path: ▶/a, host: ▶b, service: ▶c, payload: ▶'00' }",
        &[
            "`path` is for checks of type http; remove the key",
            "`host` is for checks of type http; remove the key",
            "`service` is for checks of type grpc; remove the key",
            "`payload` is for checks of type udp; remove the key",
        ],
    );
    check_check_refused(
        "UDP",
        "{ type: udp, port: ▶162 }",
        &["a check by datagram goes to the backend's own port; remove the key"],
    );
    check_check_refused(
        "TCP",
        "{ type: none, interval: ▶1s }",
        &["`interval` is for checks of type tcp, http, grpc, udp; remove the key"],
    );
    check_check_refused(
        "TCP",
        "{ type: ▶udp }",
        &["a check by datagram is for UDP, and the service is TCP; write type: tcp, http or grpc"],
    );
}

#[test]
fn a_udp_service_says_on_which_tcp_port_its_pods_are_asked() {
    check_check_refused(
        "UDP",
        "▶{ type: tcp }",
        &["the key `port` is missing; write port: with the TCP port on which the pod tells whether it is well"],
    );
    assert_eq!(check_taken("UDP", "{ type: http, port: 8080 }").and_then(|check| check.port), Some(8080));
}

#[test]
fn what_cannot_be_asked_is_refused() {
    check_check_refused(
        "TCP",
        "▶{ interval: 1s }",
        &["the key `type` is missing; write type: tcp, http, grpc, udp or none"],
    );
    check_check_refused(
        "TCP",
        "{ type: ▶htp }",
        &["type `htp` is unknown; did you mean `http`? it can be none, tcp, http, grpc, udp"],
    );
    for path in ["healthz", "", "'/a b'", "'/a#b'", "/ä", "'*'"] {
        let shown = path.trim_matches('\'');
        let message = format!(
            "path `{shown}` cannot be asked for; write a path that starts with / and has at most 1024 visible ASCII characters"
        );
        check_check_refused(
            "TCP",
            &format!("{{ type: http, path: ▶{} }}", if path.is_empty() { "''" } else { path }),
            &[&message],
        );
    }
    let long = "x".repeat(254);
    for name in ["'a b'", "''", &long] {
        let found = problems(&with_services(&service("TCP", &format!("{{ type: http, host: {name} }}"))));
        assert!(found.len() == 1 && found[0].what.ends_with("cannot be used"), "{found:?}");
    }
    let long = "00".repeat(513);
    for payload in ["'0'", "'0g'", "'é'", &long] {
        let found = problems(&with_services(&service("UDP", &format!("{{ type: udp, payload: {payload} }}"))));
        assert!(found.len() == 1 && found[0].what.ends_with("cannot be sent"), "{found:?}");
    }
}
