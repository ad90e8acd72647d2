use std::collections::{BTreeMap, BTreeSet};

use openmetrics_parser::{MetricNumber, MetricsExposition, OpenMetricsType, OpenMetricsValue, openmetrics};

use super::*;
use crate::{
    observe::meter::Meter,
    status::{
        AgainstStatus, AlarmStatus, AnnounceStatus, BfdStatus, BgpStatus, Cause, ConflictStatus, HealthState,
        HealthStatus, MeansStatus, PeerErrorStatus, RouterStatus, VipStatus, tests::sample,
    },
};

fn text(status: Status, backend_series: u32) -> String {
    render(Arc::new(status), backend_series)
}

/// A node on which everything has happened.
fn busy() -> Status {
    let mut meter = Meter::default();
    meter.configured(1_790_000_000, true);
    meter.change_seen(Cause::Configuration, std::time::Duration::ZERO);
    meter.map_write(true);
    meter.settled(std::time::Duration::from_micros(4_200));
    let mut status = Status { activity: meter.activity().clone(), ..sample() };
    let telemetry = &mut status.services[1];
    telemetry.fails_open = true;
    telemetry.backends[0].health =
        Some(HealthStatus { state: HealthState::Unhealthy, seconds: 5, last_error: Some("refused".into()) });
    status.announce = announced();
    status
}

/// One of each thing that announces, with a bit of everything.
fn announced() -> AnnounceStatus {
    let ones = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1)).collect::<BTreeMap<_, u64>>();
    let sizes = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1)).collect::<BTreeMap<_, usize>>();
    let against = AgainstStatus { reason: "no_backends".into(), text: "its services have no backends".into() };
    let means = |holds, against| MeansStatus { means: "BGP tor".into(), holds, is_going: false, holder: None, against };
    let vip = "198.51.100.1".parse().unwrap();
    AnnounceStatus {
        vips: vec![VipStatus {
            vip,
            means: vec![means(true, vec![]), means(false, vec![]), means(false, vec![against])],
            warnings: Vec::new(),
        }],
        routers: vec![RouterStatus {
            group: "core".into(),
            interface: "eth0".into(),
            family: "ipv4".into(),
            vrid: 51,
            version: 3,
            state: "active".into(),
            since_seconds: 7,
            priority: Some(254),
            address: None,
            virtual_mac: None,
            missing: Vec::new(),
            heard: None,
            vips: 1,
            listed: 1,
            sent: 11,
            received: 12,
            unsent: 13,
            transitions: ones(&["silence"]),
            discarded: ones(&["ttl"]),
            alarms: [("interval".to_owned(), AlarmStatus { from: vip, count: 3 })].into(),
            last_error: None,
        }],
        conflicts: vec![ConflictStatus { vip, ifindex: 2, mac: "02:00:00:00:00:01".into(), count: 5 }],
        malformed: ones(&["checksum"]),
        leaving: Some("marked".into()),
        bgp: vec![BgpStatus {
            name: "tor".into(),
            state: Some("established".into()),
            announced: sizes(&["ipv4-unicast"]),
            not_announced: sizes(&["no_next_hop"]),
            established: 2,
            received: ones(&["open"]),
            sent: ones(&["update"]),
            errors: ones(&["header"]),
            transitions: ones(&["holdTimerExpired"]),
            last_error: Some(PeerErrorStatus {
                seconds_ago: 3,
                cause: "notificationReceived".into(),
                detail: "Cease".into(),
                words: Some("maintenance, back at six".into()),
            }),
            ..BgpStatus::default()
        }],
        bgp_refused: ones(&["stranger"]),
        bfd_dropped: ones(&["ttl"]),
        bfd: vec![BfdStatus {
            peer: "tor".into(),
            state: Some("up".into()),
            sent: 21,
            received: 22,
            downs: ones(&["silence"]),
            ..BfdStatus::default()
        }],
        bfd_scheduling: None,
        error: None,
    }
}

/// Refuses what is not OpenMetrics. The parser knows no units of histograms, which the format has.
#[track_caller]
fn parse(text: &str) -> MetricsExposition<OpenMetricsType, OpenMetricsValue> {
    let known = text.replace("# UNIT sluice_programming_duration_seconds seconds\n", "");
    openmetrics::parse_openmetrics(&known).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Lines that are samples.
fn samples(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

#[track_caller]
fn check_has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
}

#[test]
fn the_exposition_is_openmetrics_with_every_family_of_the_table_and_no_other() {
    let text = text(busy(), 100);
    let parsed = parse(&text);
    let full = |family: &Family| match family.unit {
        Some(BaseUnit::Bytes) => format!("{}_bytes", family.name),
        Some(BaseUnit::Seconds) => format!("{}_seconds", family.name),
        None => family.name.to_owned(),
    };
    let table: BTreeSet<String> = all().map(full).collect();
    assert_eq!(table.len(), all().count(), "a name has two rows");
    assert_eq!(parsed.families.keys().cloned().collect::<BTreeSet<_>>(), table);
    for family in all() {
        let found = &parsed.families[&full(family)];
        assert_eq!(found.help, family.help);
        assert!(found.iter_samples().next().is_some(), "{} has no sample", family.name);
        let labels: BTreeSet<&str> = found.get_label_names().iter().map(String::as_str).collect();
        assert_eq!(labels, family.source.labels().iter().copied().collect(), "{}", family.name);
    }
}

/// What the parser lets through: <https://prometheus.io/docs/practices/naming/> and OpenMetrics 1.0.
#[test]
fn names_follow_the_conventions_and_no_series_is_there_twice() {
    let text = text(busy(), 100);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let series: Vec<&str> = samples(&text).iter().map(|line| line.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(series.iter().collect::<BTreeSet<_>>().len(), series.len(), "{text}");
    for family in all() {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(family.name.starts_with("sluice_") && family.name.chars().all(is_plain), "{}", family.name);
        for ending in ["_total", "_bytes", "_seconds", "_milliseconds", "_count", "_sum", "_bucket", "_info"] {
            assert!(!family.name.ends_with(ending), "{} has its suffix by its unit and kind", family.name);
        }
        assert!(!family.help.is_empty() && !family.help.ends_with('.'), "{}: {}", family.name, family.help);
        assert!(family.source.labels().iter().all(|label| label.chars().all(is_plain)), "{}", family.name);
    }
}

#[test]
fn values_are_those_of_the_status() {
    let text = text(busy(), 100);
    for line in [
        "sluice_build_info{version=\"0.1.0\",abi=\"2\"} 1",
        "sluice_start_time_seconds 1790000000",
        "sluice_uptime_seconds 273659",
        "sluice_waiting 1",
        "sluice_configuration_refused 1",
        "sluice_configuration_applied_timestamp_seconds 1790000000",
        "sluice_uplink_xdp_mode{interface=\"eth0\",mode=\"native\"} 1",
        "sluice_uplink_xdp_mode{interface=\"eth0\",mode=\"none\"} 0",
        "sluice_programs_attached{program=\"sluice_bypass\"} 0",
        "sluice_map_entries{map=\"services\"} 3",
        "sluice_map_capacity{map=\"maglev\"} 1048576",
        "sluice_map_memory_bytes{map=\"maglev\"} 4194304",
        "sluice_reason_packets_total{reason=\"port-closed\"} 7",
        "sluice_backends{state=\"ready\"} 2",
        "sluice_backends{state=\"no_interface\"} 1",
        "sluice_service_bytes_total{service=\"snmp-traps\",vip=\"198.51.100.10\",protocol=\"UDP\",port=\"162\"} 148148040",
        "sluice_service_backends_ready{service=\"bgp\",vip=\"198.51.100.11\",protocol=\"TCP\",port=\"179\"} 0",
        "sluice_service_backends_unhealthy{service=\"bgp\",vip=\"198.51.100.11\",protocol=\"TCP\",port=\"179\"} 0",
        "sluice_service_backends_unhealthy{service=\"telemetry\",vip=\"2001:db8:100::12\",protocol=\"TCP\",port=\"57400\"} 1",
        "sluice_service_fails_open{service=\"telemetry\",vip=\"2001:db8:100::12\",protocol=\"TCP\",port=\"57400\"} 1",
        "sluice_backend_reply_packets_total{service=\"telemetry\",vip=\"2001:db8:100::12\",protocol=\"TCP\",port=\"57400\",\
         backend=\"[2001:db8:244:1::41]:57400\"} 4999",
        "sluice_leaving 1",
        "sluice_announcements{state=\"withheld\"} 1",
        "sluice_announcements_withheld{reason=\"no_backends\"} 1",
        "sluice_vip_conflicts_total 5",
        "sluice_vrrp_state{group=\"core\",interface=\"eth0\",family=\"ipv4\",vrid=\"51\",state=\"active\"} 1",
        "sluice_vrrp_state{group=\"core\",interface=\"eth0\",family=\"ipv4\",vrid=\"51\",state=\"backup\"} 0",
        "sluice_vrrp_transitions_total{group=\"core\",interface=\"eth0\",family=\"ipv4\",vrid=\"51\",cause=\"silence\"} 1",
        "sluice_vrrp_differences_total{group=\"core\",interface=\"eth0\",family=\"ipv4\",vrid=\"51\",kind=\"interval\"} 3",
        "sluice_bgp_state{peer=\"tor\",state=\"established\"} 1",
        "sluice_bgp_state{peer=\"tor\",state=\"idle\"} 0",
        "sluice_bgp_messages_sent_total{peer=\"tor\",type=\"update\"} 1",
        "sluice_bgp_prefixes_announced{peer=\"tor\",family=\"ipv4-unicast\"} 1",
        "sluice_bfd_state{peer=\"tor\",state=\"up\"} 1",
        "sluice_bfd_losses_total{peer=\"tor\",cause=\"silence\"} 1",
    ] {
        check_has(&text, line);
    }
    assert!(!text.contains("maintenance"), "a peer's words are in no metric");
    assert!(!text.contains("sluice_map_entries{map=\"maglev\"}"), "entries that nobody counts are no 0");
}

#[test]
fn the_histogram_counts_upwards_to_all() {
    let text = text(busy(), 100);
    for line in [
        "sluice_programming_duration_seconds_bucket{le=\"0.0025\",cause=\"configuration\"} 0",
        "sluice_programming_duration_seconds_bucket{le=\"0.005\",cause=\"configuration\"} 1",
        "sluice_programming_duration_seconds_bucket{le=\"+Inf\",cause=\"configuration\"} 1",
        "sluice_programming_duration_seconds_count{cause=\"configuration\"} 1",
        "sluice_programming_duration_seconds_sum{cause=\"configuration\"} 0.0042",
        "sluice_programming_duration_seconds_bucket{le=\"+Inf\",cause=\"network\"} 0",
    ] {
        check_has(&text, line);
    }
}

#[test]
fn a_name_with_quotes_stays_one_label() {
    let mut status = busy();
    status.services.truncate(1);
    status.services[0].name = Some(r#"a"b\c"#.into());
    let text = text(status, 100);
    let parsed = parse(&text);
    let sample = parsed.families["sluice_service_packets"].iter_samples().next().unwrap();
    let OpenMetricsValue::Counter(counter) = &sample.value else { panic!("{sample:?}") };
    assert_eq!(counter.value, MetricNumber::Int(1_234_567));
    check_has(
        &text,
        r#"sluice_service_packets_total{service="a\"b\\c",vip="198.51.100.10",protocol="UDP",port="162"} 1234567"#,
    );
}

#[test]
fn series_of_backends_are_bounded_by_whole_services_and_what_is_left_out_is_said() {
    let mut status = busy();
    let backend = status.services[0].backends[0].clone();
    let service = ServiceStatus {
        backends: (0..100).map(|port| BackendStatus { port: port + 1, ..backend.clone() }).collect(),
        ..status.services[0].clone()
    };
    let small = ServiceStatus { port: 9999, backends: vec![backend], ..service.clone() };
    status.services = (1..=1000).map(|port| ServiceStatus { port, ..service.clone() }).chain([small]).collect();
    let text = text(status, 9_950);
    let of = |name: &str| samples(&text).iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(of("sluice_backend_packets_total{"), 9_900 + 1, "99 services, and the small one, which still fits");
    assert_eq!(of("sluice_service_packets_total{"), 1001);
    check_has(&text, "sluice_backend_series_omitted 90100");
    check_has(&text, "sluice_backends{state=\"ready\"} 100001");
    // docs/observation.md: 11 series for each service, 5 for each backend that has any, and some hundred.
    let bound = 11 * 1001 + 5 * 9_950 + 300;
    assert!(samples(&text).len() <= bound, "{} series", samples(&text).len());
}

#[test]
fn no_backend_has_series_where_none_is_wanted() {
    let text = text(busy(), 0);
    assert!(!text.contains("sluice_backend_packets_total{"), "{text}");
    check_has(&text, "sluice_backend_series_omitted 4");
}
