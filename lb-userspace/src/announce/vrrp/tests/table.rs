//! Every state and every input: what follows, what is said, and whether the VIPs are given up.

use super::{Bench, OWN, SECOND, address, priority, settings, vips};
use crate::announce::vrrp::machine::{Event, Stop};

type Input = fn(&mut Bench);

/// Each input, and what follows in Init, Listening, Backup, Active and Leaving: the new state, then the priorities
/// sent, then `released`.
const TABLE: [(&str, Input, [&str; 5]); 19] = [
    ("priority 0", |bench| bench.hear(0, 20), ["init", "listening", "backup", "active 100", "leaving"]),
    ("lower", |bench| bench.hear(99, 20), ["init", "listening", "backup", "active 100", "init released"]),
    (
        "equal, lower address",
        |bench| bench.hear(100, 9),
        ["init", "listening", "backup", "active 100", "init released"],
    ),
    (
        "equal, higher address",
        |bench| bench.hear(100, 11),
        ["init", "listening", "backup", "backup 100 released", "init released"],
    ),
    ("higher", |bench| bench.hear(101, 9), ["init", "listening", "backup", "backup 100 released", "init released"]),
    ("owner", |bench| bench.hear(255, 9), ["init", "listening", "backup", "backup 100 released", "init released"]),
    ("own address", |bench| bench.hear(255, 10), ["init", "listening", "backup", "active", "leaving"]),
    ("half an interval", |bench| bench.run(SECOND / 2), ["init", "listening", "backup", "active", "leaving"]),
    ("an interval", |bench| bench.run(SECOND), ["init", "listening", "backup", "active 100", "leaving 0"]),
    (
        "silence",
        |bench| bench.run(SECOND * 39 / 10),
        ["init", "active 100", "active 100", "active 100 100 100", "leaving 0 0 0"],
    ),
    (
        "a long silence",
        |bench| bench.run(SECOND * 41 / 10),
        ["init", "active 100", "active 100", "active 100 100 100 100", "init 0 0 0 released"],
    ),
    ("sleep", sleep, ["init", "listening", "backup", "backup released", "init released"]),
    (
        "priority away",
        |bench| bench.router.set_priority(None, bench.now),
        ["init", "init", "init", "init 0 released", "init 0 released"],
    ),
    (
        "another priority",
        |bench| bench.router.set_priority(Some(priority(150)), bench.now),
        ["listening", "listening", "backup", "active 150", "leaving"],
    ),
    (
        "link down",
        |bench| bench.router.set_link(false, bench.now),
        ["init", "init", "init", "init released", "init released"],
    ),
    (
        "address away",
        |bench| bench.router.set_address(None, bench.now).expect("no address"),
        ["init", "init", "init", "init released", "init released"],
    ),
    (
        "another address",
        |bench| bench.router.set_address(Some(address(30)), bench.now).expect("an address"),
        ["init", "listening", "backup", "active 100", "leaving"],
    ),
    (
        "ordered stop",
        |bench| bench.router.stop(Stop::MakeBeforeBreak, bench.now),
        ["init", "init", "init", "leaving 0", "leaving"],
    ),
    (
        "immediate stop",
        |bench| bench.router.stop(Stop::Immediate, bench.now),
        ["init", "init", "init", "init 0 released", "init 0 released"],
    ),
];

/// Nothing runs for longer than the validity, or a leaver's limit.
fn sleep(bench: &mut Bench) {
    bench.now += SECOND * 5;
    bench.router.handle_timeout(bench.now);
}

fn init() -> Bench {
    let mut bench = Bench::new(settings());
    bench.router.set_priority(None, bench.now);
    bench.settle();
    bench.forget();
    bench
}

fn listening() -> Bench {
    let mut bench = Bench::new(settings());
    bench.forget();
    bench
}

const STATES: [fn() -> Bench; 5] =
    [init, listening, || Bench::backup(settings()), || Bench::active(settings()), || Bench::leaving(settings())];

fn outcome(bench: &mut Bench) -> String {
    bench.settle();
    let name = serde_json::to_value(bench.state()).expect("a name");
    let mut outcome = name.as_str().expect("a name").to_owned();
    for said in bench.said() {
        outcome.push_str(&format!(" {said}"));
    }
    let released: Vec<_> = bench.events.iter().filter(|event| matches!(event, Event::Release { .. })).collect();
    if let [Event::Release { vips: released }] = released[..] {
        assert_eq!(released, vips(&[100, 101]).all());
        outcome.push_str(" released");
    }
    assert_eq!(
        bench.router.hold().is_some(),
        ["active", "leaving"].iter().any(|state| outcome.starts_with(state)),
        "VIPs are held where it is active or leaves"
    );
    outcome
}

//= test rfc9568#6.4.2:answer
//= test rfc3768#6.4.2:answer
#[test]
fn every_state_and_every_input_has_its_outcome() {
    for (name, input, expected) in TABLE {
        for (make, expected) in STATES.iter().zip(expected) {
            let mut bench = make();
            let before = bench.state();
            input(&mut bench);
            assert_eq!(outcome(&mut bench), expected, "{before:?} and {name}");
            assert_eq!(bench.router.settings().vips, vips(&[100, 101]));
        }
    }
}

#[test]
fn a_start_goes_on_from_each_state() {
    let expected = ["listening", "listening", "backup", "active", "active 100"];
    for (make, expected) in STATES.iter().zip(expected) {
        let mut bench = make();
        bench.router.set_priority(Some(priority(OWN)), bench.now);
        bench.router.start(bench.now);
        assert_eq!(outcome(&mut bench), expected);
    }
}

#[test]
fn another_list_is_advertised_by_an_active_alone() {
    let expected = ["init", "listening", "backup", "active 100", "leaving"];
    for (make, expected) in STATES.iter().zip(expected) {
        let mut bench = make();
        bench.router.set_vips(vips(&[101, 102]), bench.now).expect("VIPs");
        bench.settle();
        let released: Vec<_> = bench.events.extract_if(.., |event| matches!(event, Event::Release { .. })).collect();
        assert_eq!(outcome(&mut bench), expected);
        let answers = ["active 100", "leaving"].contains(&expected);
        let gone = answers.then(|| Event::Release { vips: vec![address(100)] });
        assert_eq!(released, gone.into_iter().collect::<Vec<_>>(), "{expected}");
    }
}
