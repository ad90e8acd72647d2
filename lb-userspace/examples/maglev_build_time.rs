//! How long a Maglev table takes to build: `cargo run --release -p lb-userspace --example maglev_build_time`.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use lb_userspace::plan::maglev::{Member, owners, table_size};

/// Tables of each size; the least time counts, because others only ever add to it.
const ROUNDS: usize = 20;

fn main() {
    for count in [10u32, 100, 1000] {
        let address = |n| IpAddr::V4(Ipv4Addr::from_bits(u32::from_be_bytes([10, 0, 0, 0]) + n));
        let members: Vec<Member> = (0..count).map(|n| Member { identity: (address(n), 162), weight: 1 }).collect();
        let size = table_size(members.iter().map(|member| member.weight));
        let best = (0..ROUNDS).map(|_| {
            let start = Instant::now();
            black_box(owners(&members, size));
            start.elapsed()
        });
        println!("{count} backends, {} slots: {:?}", size.slots(), best.min().unwrap_or_default());
    }
}
