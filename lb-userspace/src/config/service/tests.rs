use std::time::Duration;

use crate::config::{ConfigError, parse};

fn with(keys: &str) -> String {
    format!(
        "node: {{ addresses: [192.0.2.1] }}\nuplinks: [{{ interface: eth0 }}]\nservices:\n  \
         - {{ name: a, vip: 198.51.100.1, protocol: TCP, ports: [53], {keys} backends: [] }}\n"
    )
}

fn timeout(keys: &str) -> Option<Duration> {
    let snapshot = parse("test.yaml", &with(keys)).unwrap_or_else(|error| panic!("{error}"));
    snapshot.services[0].affinity.map(|affinity| affinity.timeout)
}

#[track_caller]
fn check_refused(keys: &str, message: &str) {
    match parse("test.yaml", &with(keys)) {
        Err(ConfigError::Refused { problems, .. }) => {
            let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
            assert!(found.len() == 1 && found[0].contains(message), "{found:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn affinity_is_what_kubernetes_calls_it_with_its_bounds() {
    assert_eq!(timeout(""), None);
    assert_eq!(timeout("sessionAffinity: None,"), None);
    assert_eq!(timeout("sessionAffinity: ClientIP,"), Some(Duration::from_secs(10_800)));
    for seconds in [1, 86_400] {
        let keys = format!("sessionAffinity: ClientIP, sessionAffinityTimeoutSeconds: {seconds},");
        assert_eq!(timeout(&keys), Some(Duration::from_secs(seconds)));
    }
    for seconds in ["0", "86401"] {
        let keys = format!("sessionAffinity: ClientIP, sessionAffinityTimeoutSeconds: {seconds},");
        check_refused(&keys, "is out of range; write a whole number from 1 to 86400");
    }
    check_refused("sessionAffinity: clientIP,", "did you mean `ClientIP`?");
    check_refused("sessionAffinityTimeoutSeconds: 60,", "write sessionAffinity: ClientIP too, or remove the timeout");
}
