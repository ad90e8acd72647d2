//! How long a configuration takes from the file to the writes: `cargo run --release --example configuration_time`.

use std::{
    fmt::Write,
    hint::black_box,
    time::{Duration, Instant},
};

use lb_userspace::{
    config,
    model::Snapshot,
    plan::{
        diff::diff,
        planner::{Places, Planner},
    },
};

/// Services and backends of each.
const SIZES: [(u32, u32); 3] = [(100, 10), (1_000, 10), (10_000, 10)];
const RUNS: usize = 9;

fn text(services: u32, backends: u32) -> String {
    let mut text = "node: { addresses: [192.0.2.1] }\nuplinks: [{ interface: eth0 }]\n\
                    capacities: { services: 65536, backends: 262144, maglevSlots: 67108864 }\nservices:\n"
        .to_owned();
    let address = |first: u32, at: u32| format!("{first}.{}.{}.{}", at >> 16 & 255, at >> 8 & 255, at & 255);
    for service in 0..services {
        let vip = address(100, service);
        writeln!(
            text,
            "  - name: service-{service}\n    vip: {vip}\n    protocol: UDP\n    ports: [162]\n    backends:"
        )
        .expect("writing to a string cannot fail");
        for backend in 0..backends {
            let pod = address(10, service * backends + backend);
            writeln!(text, "      - {{ address: {pod}, port: 1162 }}").expect("writing to a string cannot fail");
        }
    }
    text
}

/// The median of several runs.
fn median<T>(mut run: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let begin = Instant::now();
            black_box(run());
            begin.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

fn main() {
    println!(
        "services  backends   file KiB  parse+validate     plan all   plan same  plan one changed  diff one changed"
    );
    for (services, backends) in SIZES {
        let text = text(services, backends);
        let parsed = median(|| config::parse("f", &text));
        let snapshot = config::parse("f", &text).unwrap_or_else(|error| panic!("{error}"));
        let mut changed: Snapshot = snapshot.clone();
        changed.services[services as usize / 2].backends[0].drain = true;
        let (empty, places, now) = (Planner::new(snapshot.capacities), Places::new(), Duration::from_secs(9));
        let all = median(|| empty.clone().plan(&snapshot, &places, now));
        let mut full = empty.clone();
        full.plan(&snapshot, &places, Duration::ZERO).unwrap_or_else(|error| panic!("{error}"));
        let same = median(|| full.clone().plan(&snapshot, &places, now));
        let one = median(|| full.clone().plan(&changed, &places, now));
        let shown = median(|| diff(&full, &snapshot, &changed, &places, now));
        println!(
            "{services:8}  {:8}  {:9}  {parsed:>14.1?}  {all:>11.1?}  {same:>10.1?}  {one:>16.1?}  {shown:>16.1?}",
            services * backends,
            text.len() / 1024
        );
    }
}
