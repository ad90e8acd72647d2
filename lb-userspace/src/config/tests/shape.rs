//! Several things of the wrong shape, wrong nesting, and the line that a message shows.

use super::*;

#[test]
fn all_unknown_keys_and_wrong_shapes_are_named_at_once() {
    check_refused(
        "node: { addreses: [192.0.2.1] }
uplinks: { interface: eth0 }
services:
  - name: a
    vip: 198.51.100.1
    prots: [1]
    backends:
      - { adress: 10.0.0.1, weight: [1] }
      - 10.0.0.2
"
        .replace("addreses", "▶addreses")
        .replace("{ interface", "▶{ interface")
        .replace("prots", "▶prots")
        .replace("adress", "▶adress")
        .replace("[1] }", "▶[1] }")
        .replace("- 10", "- ▶10")
        .as_str(),
        &[
            "unknown key `addreses`; did you mean `addresses`?",
            "wrong type: a list must stand here; write [a, b], or lines that start with `- `",
            "unknown key `prots`; did you mean `ports`?",
            "unknown key `adress`; did you mean `address`?",
            "wrong type: a single value must stand here; write the value behind the key, without a list or keys",
            "wrong type: keys with values must stand here; write `key: value` lines, indented below the key",
        ],
    );
}

#[test]
fn a_known_key_in_the_wrong_place_is_told_where_it_belongs() {
    check_service_refused(
        "  - name: a\n    ▶weight: 3\n    ▶maglevSlots: 128\n",
        &[
            "unknown key `weight`; the key belongs elsewhere, below `services[].backends[]`: look at the indentation",
            "unknown key `maglevSlots`; the key belongs elsewhere, below `capacities`: look at the indentation",
        ],
    );
    check_refused(
        &format!("{HEAD}▶vip: 198.51.100.1\nservices: []\n"),
        &["unknown key `vip`; the key belongs elsewhere, below `services[]`: look at the indentation"],
    );
}

#[test]
fn a_key_without_a_value_is_as_good_as_none() {
    let snapshot = taken(&format!("{HEAD}services: []\npinDirectory:\ncapacities:\nlimits: null\n"));
    assert_eq!(snapshot.pin_directory, Path::new(PIN_DIRECTORY_DEFAULT));
    check_refused(&format!("{HEAD}capacities:\n▶servces: []\n"), &["unknown key `servces`; did you mean `services`?"]);
}

#[test]
fn a_refusal_for_people_shows_the_line_and_marks_the_place() {
    let text = "node: { addresses: [x] }\nuplinks: []\nservices: []\n";
    let shown = parse("f.yaml", text).unwrap_err().with_excerpts();
    let expected = "\
f.yaml:1:21: node address `x` is not an IP address; write an IPv4 or IPv6 address, for example 192.0.2.10 or 2001:db8::10
  1 | node: { addresses: [x] }
    |                     ^
f.yaml:2:10: the list `uplinks` is empty; write 1 to 16 entries
  2 | uplinks: []
    |          ^";
    assert_eq!(shown, expected);
}

#[test]
fn a_long_line_is_cut_around_the_place_and_commands_no_terminal() {
    let ports: Vec<String> = (1..2000).map(|port| port.to_string()).collect();
    let line =
        format!("  - {{ name: a, vip: 198.51.100.1, protocol: TCP, ports: [{}, 70000, 3000] }}", ports.join(", "));
    let shown = parse("f", &with_services(&format!("{line}\n"))).unwrap_err().with_excerpts();
    let [_, excerpt, mark] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
    assert!(excerpt.chars().count() < 120, "{excerpt}");
    let at = mark.chars().position(|c| c == '^').unwrap();
    assert!(excerpt.chars().skip(at).collect::<String>().starts_with("70000"), "{shown}");

    let shown = parse("f", "node: \"\u{1b}[31m\t\"\n").unwrap_err().with_excerpts();
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}
