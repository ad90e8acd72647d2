use super::*;
use crate::{
    model::Protocol,
    plan::diff::{Move, UplinkChange},
};

fn pod(last: u8) -> SocketAddr {
    SocketAddr::new([10, 0, 0, last].into(), 80)
}

fn setting(key: &str, before: &str, after: &str) -> Setting {
    Setting { key: key.into(), before: before.into(), after: after.into() }
}

fn sample() -> Diff {
    let changed = ServiceChange {
        name: "bgp".into(),
        vip: [198, 51, 100, 11].into(),
        protocol: Protocol::Tcp,
        port: 179,
        change: Change::Changed,
        settings: vec![setting("sessionAffinity", "None", "ClientIP for 60 s")],
        backends: vec![
            BackendChange { address: pod(3), change: Change::Added, settings: vec![setting("weight", "1", "2")] },
            BackendChange {
                address: pod(1),
                change: Change::Changed,
                settings: vec![setting("drain", "false", "true")],
            },
            BackendChange { address: pod(2), change: Change::Removed, settings: Vec::new() },
        ],
        slots: Some(SlotChange {
            before: 512,
            after: 2048,
            moved: 1024,
            moves: vec![
                Move { from: Some(pod(2)), to: Some(pod(3)), slots: 1000 },
                Move { from: None, to: Some(pod(3)), slots: 24 },
            ],
        }),
    };
    let added = ServiceChange {
        name: "traps".into(),
        vip: "2001:db8::1".parse().unwrap(),
        protocol: Protocol::Udp,
        port: 162,
        change: Change::Added,
        settings: Vec::new(),
        backends: vec![BackendChange { address: pod(9), change: Change::Added, settings: Vec::new() }],
        slots: Some(SlotChange { before: 0, after: 128, moved: 0, moves: Vec::new() }),
    };
    Diff {
        refused: None,
        settings: vec![setting("limits.refusals", "1000", "50")],
        uplinks: vec![UplinkChange { interface: "eth1".into(), change: Change::Added, settings: Vec::new() }],
        services: vec![changed, added],
        writes: [("maglev".to_owned(), 2176), ("services".to_owned(), 2)].into(),
        notes: vec!["10.0.0.9: its interface is looked for".into()],
    }
}

const EXPECTED: &str = "\
SETTINGS
  ~ limits.refusals: 1000 -> 50

UPLINKS
  + eth1

SERVICES
  ~ TCP 198.51.100.11:179  bgp
    ~ sessionAffinity: None -> ClientIP for 60 s
    + 10.0.0.3:80  weight 2
    ~ 10.0.0.1:80  drain false -> true
    - 10.0.0.2:80
    slots: 512 -> 2048, 1024 move (50.0%)
        1000  10.0.0.2:80 -> 10.0.0.3:80
          24  nobody -> 10.0.0.3:80
  + UDP [2001:db8::1]:162  traps, 1 backend
    + 10.0.0.9:80
    slots: 0 -> 128

TO BE KNOWN
  10.0.0.9: its interface is looked for

WRITES
  maglev 2176, services 2
";

#[test]
fn the_table_is_as_an_operator_reads_it() {
    let table = render(&sample(), false);
    assert_eq!(table, EXPECTED, "\n{table}");
    assert!(render(&sample(), true).contains("  \x1b[32m+ eth1\x1b[0m\n"));
}

#[test]
fn the_exit_status_tells_same_different_and_refused_apart() {
    let refused = Diff { refused: Some("no room".into()), ..sample() };
    assert_eq!(exit_code(&Diff::default()), ExitCode::SUCCESS);
    assert_eq!(exit_code(&sample()), ExitCode::from(3));
    assert_eq!(exit_code(&refused), ExitCode::FAILURE);
    assert_eq!(render(&Diff::default(), false), "no differences\n");
    assert!(render(&refused, false).starts_with("the reload would be refused as a whole: no room\n"));
}

#[test]
fn json_survives_the_way_there_and_back() {
    let json = serde_json::to_string(&sample()).unwrap();
    assert!(json.contains(r#""change":"added""#) && json.contains(r#""from":null"#), "{json}");
    assert_eq!(serde_json::from_str::<Diff>(&json).unwrap(), sample());
}

/// The third pod that the reference shows being added.
#[test]
fn the_example_of_the_reference_is_what_the_planner_gives() {
    use crate::plan::planner::{Places, Planner};
    use std::time::Duration;

    let pods = |last: &[u8]| {
        let pods: Vec<String> = last.iter().map(|last| format!("{{ address: 10.244.1.{last} }}")).collect();
        let text = format!(
            "node: {{ addresses: [192.0.2.1] }}\nuplinks: [{{ interface: eth0 }}]\nservices:\n  - {{ name: telemetry, vip: \
             198.51.100.12, protocol: TCP, ports: [57400], backends: [{}] }}\n",
            pods.join(", ")
        );
        config::parse("f", &text).unwrap()
    };
    let (before, after) = (pods(&[41, 42]), pods(&[41, 42, 43]));
    let mut planner = Planner::new(before.capacities);
    planner.plan(&before, &Places::new(), Duration::ZERO).unwrap();
    let mut diff = crate::plan::diff::diff(&planner, &before, &after, &Places::new(), Duration::from_secs(9));
    diff.notes.push("10.244.1.43: its interface is looked for, and its rung tested, when it is applied".into());
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let reference = std::fs::read_to_string(file).unwrap();
    let shown = render(&diff, false);
    assert!(
        reference.contains(&format!("$ sluice diff new.yaml\n{shown}```")),
        "docs/configuration.md must have\n{shown}"
    );
}
