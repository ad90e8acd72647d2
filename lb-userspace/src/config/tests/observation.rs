//! Who may look, and from where.

use super::*;
use crate::model::{Observation, TlsFiles};

fn observed(keys: &str) -> Observation {
    taken(&format!("{HEAD}services: []\nobservation: {keys}\n")).observation
}

fn check_observation_refused(keys: &str, messages: &[&str]) {
    check_refused(&format!("{HEAD}services: []\nobservation: {keys}\n"), messages);
}

#[test]
fn observation_is_local_unless_something_else_is_written() {
    let default = taken(&format!("{HEAD}services: []\n")).observation;
    assert_eq!(default.listen.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:16080"));
    assert_eq!((default.tls, default.token_file, default.backend_series), (None, None, 10_000));
    assert_eq!(observed("{ listen: none }").listen, None);
    assert_eq!(observed("{ listen: '[::1]:9000' }").listen, Some("[::1]:9000".parse().unwrap()));
    assert_eq!(observed("{ backendSeries: 0 }").backend_series, 0);
    let tls = TlsFiles { certificate: "/etc/sluice/tls.crt".into(), key: "/etc/sluice/tls.key".into() };
    let keys = "{ listen: '0.0.0.0:16080', tokenFile: /etc/sluice/token, \
                tls: { certificate: /etc/sluice/tls.crt, key: /etc/sluice/tls.key } }";
    let open = observed(keys);
    assert_eq!((open.tls, open.token_file), (Some(tls), Some("/etc/sluice/token".into())));
}

#[test]
fn an_address_that_others_can_reach_needs_tls_and_a_token() {
    let message = |address: &str, lacking: &str| {
        format!(
            "listen `{address}` can be reached from other machines, and {lacking} missing; write tls and tokenFile, or \
             listen at 127.0.0.1 or [::1] behind a proxy that has both"
        )
    };
    for (keys, address, lacking) in [
        ("{ listen: ▶0.0.0.0:16080 }", "0.0.0.0:16080", "tls and tokenFile are"),
        ("{ listen: ▶'[2001:db8::1]:80', tokenFile: /t }", "[2001:db8::1]:80", "tls is"),
        ("{ listen: ▶192.0.2.1:80, tls: { certificate: /c, key: /k } }", "192.0.2.1:80", "tokenFile is"),
    ] {
        check_observation_refused(keys, &[&message(address, lacking)]);
    }
}

#[test]
fn bad_values_of_observation_are_refused() {
    let address = |text: &str| {
        format!(
            "listen `{text}` is not an address with a port; write for example 127.0.0.1:16080 or \"[::1]:16080\", or none"
        )
    };
    for text in ["127.0.0.1", "localhost:80", "127.0.0.1:0", "127.0.0.1:65536", "224.0.0.1:80", "None"] {
        check_observation_refused(&format!("{{ listen: ▶'{text}' }}"), &[&address(text)]);
    }
    check_observation_refused(
        "{ tokenFile: ▶token, tls: { certificate: ▶../tls.crt, key: /k } }",
        &[
            "tokenFile `token` is not an absolute path; write a path that starts with / and has no ..",
            "certificate `../tls.crt` is not an absolute path; write a path that starts with / and has no ..",
        ],
    );
    check_observation_refused(
        "{ tls: ▶{ certificate: /c } }",
        &["the key `key` is missing; write the path of a PEM file"],
    );
    check_observation_refused(
        "{ backendSeries: ▶-1 }",
        &["backendSeries `-1` is out of range; write a whole number from 0 to 1048576"],
    );
    check_observation_refused("{ ▶tokenfil: x }", &["unknown key `tokenfil`; did you mean `tokenFile`?"]);
}
