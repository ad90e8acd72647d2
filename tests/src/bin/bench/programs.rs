//! Nanoseconds a packet in the loaded programs, by `BPF_PROG_TEST_RUN`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{Ebpf, maps::Map};
use lb_common::{
    abi::{ABI_VERSION, HISTORY, HOST_NETNS, Settings, protocol},
    flow,
};
use lb_tests::lab::{ELEMENT, Family, Lab, NODE, UPLINK, vip, wait_until};
use lb_userspace::{
    dataplane::{capacity::Sizes, mapped::Mapped, object, tables::Tables},
    model::{
        Affinity, Announce, Backend, Capacities, Limits, Observation, Protocol, ReplyMode, Rung, RungChoice, Service,
        Snapshot,
    },
    plan::{
        maglev,
        planner::{Place, Places, Planner, VipKey},
    },
};

use crate::{
    frames::Packet,
    lab_programs::{EMPTY, HASH, HASH_FILL, Kind, LRU, LRU_FILL, LabPrograms, Load, PRODUCT},
    measure::{Cpu, Samples},
    table::{Bound, Line, Table},
    wire::interface,
};

/// Backends of the service that is measured; each with a next hop of its own, as pods have.
const BACKENDS: u16 = 100;
/// Services beside it, so that the maps are no emptier than on a real node.
const OTHER_SERVICES: u16 = 256;
/// Runs of one row in one round.
const REPEAT: u32 = 200_000;
/// First client of the spread: 2^14 addresses with 64 ports each are 1M flows.
const CLIENT: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 0, 0)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0))];
const FLOWS: [(u32, &str); 3] = [(1, "1"), (1 << 16, "64K"), (1 << 20, "1M")];

/// Of the flow cache and the indexes.
const SEED: u64 = 0x5eed;

const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const TC_REDIRECT: u32 = 7;
const TC_UNSPEC: u32 = u32::MAX;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// One thing that is measured.
struct Row {
    name: String,
    kind: Kind,
    packet: Packet,
    frame: Vec<u8>,
    load: Load,
    expected: u32,
    bound: Bound,
    samples: Samples,
}

impl Row {
    fn new(name: impl Into<String>, kind: Kind, target: u32, packet: Packet, flows: u32) -> Self {
        let frame = packet.frame();
        let load = packet.load(target, flows);
        let expected = if kind == Kind::Xdp { XDP_PASS } else { TC_UNSPEC };
        Self { name: name.into(), kind, packet, frame, load, expected, bound: Bound::None, samples: Samples::default() }
    }

    /// Runs it [`REPEAT`] times, with a context where it is of tc.
    fn run(&mut self, cpu: &Cpu, programs: &mut LabPrograms, context: &[u8]) -> Result<Duration> {
        let context = (self.kind == Kind::Tc).then_some(context);
        let place = (self.kind, self.packet.is_v4());
        let (returned, time) = cpu.time(|| programs.run(place, &self.load, &self.frame, context, REPEAT))?;
        ensure!(returned == self.expected, "{}: returned {returned}, not {}", self.name, self.expected);
        self.load.next += u64::from(REPEAT);
        Ok(time)
    }

    const fn returns(mut self, expected: u32) -> Self {
        self.expected = expected;
        self
    }

    fn bound(mut self, bound: Bound) -> Self {
        self.bound = bound;
        self
    }
}

/// How often everything is loaded anew. Where the kernel puts a program, and the hash in front of its maps, a load decides: a
/// lookup costs up to a fifth more in one than in another.
const LOADS: u32 = 8;

/// Measures all rows, `rounds` times in turn.
pub fn measure(lab: &Lab, rounds: u32, filter: Option<&str>) -> Result<Table> {
    for family in Family::BOTH {
        // Also fills the neighbour entries that the return program asks for.
        wait_until("the pod to answer", Duration::from_secs(10), || {
            Ok(lab.pods[0].answers(&lab.element, family).then_some(()))
        })?;
    }
    let uplink = interface(&lab.node, UPLINK)?;
    let pod = interface(&lab.node, &lab.pods[0].host_interface)?;
    lab.node.run(|| {
        let cpu = Cpu::bind()?;
        let mut rows = rows();
        if let Some(filter) = filter {
            rows.retain(|row| row.name.contains(filter) || row.load.target != PRODUCT);
        }
        // struct __sk_buff: `ifindex` is its eleventh word.
        let mut context = [0u8; 44];
        context[40..].copy_from_slice(&pod.0.to_ne_bytes());
        let loads = LOADS.min(rounds);
        for load in 0..loads {
            let mut product = Product::load(uplink, pod.0)?;
            let mut programs = LabPrograms::load()?;
            programs.set_product(Kind::Xdp, object::xdp(&mut product.object)?.fd()?)?;
            programs.set_product(Kind::Tc, object::tc(&mut product.object, "sluice_return")?.fd()?)?;
            // The first round only warms up.
            for round in 0..=rounds / loads + u32::from(load < rounds % loads) {
                for row in &mut rows {
                    product.cache_owner();
                    let time = row.run(&cpu, &mut programs, &context)?;
                    if round > 0 {
                        row.samples.add(time.as_nanos() as f64 / f64::from(REPEAT));
                    }
                }
            }
            product.check_reasons()?;
        }
        table(&rows)
    })
}

fn table(rows: &[Row]) -> Result<Table> {
    let floor_of = |row: &Row| {
        let is_floor =
            |r: &&Row| r.load.target == EMPTY && r.kind == row.kind && r.packet.is_v4() == row.packet.is_v4();
        rows.iter().find(is_floor).map(|floor| &floor.samples).context("no floor")
    };
    let mut table = Table::default();
    for row in rows {
        if [HASH_FILL, LRU_FILL].contains(&row.load.target) {
            continue;
        }
        let is_floor = row.load.target == EMPTY;
        let samples = if is_floor { row.samples.clone() } else { row.samples.above(floor_of(row)?) };
        table.add(Line { name: row.name.clone(), samples, bound: row.bound.clone() });
    }
    Ok(table)
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let flow = |family: usize, to: IpAddr, port: u16, protocol: u8| Packet {
        source: SocketAddr::new(CLIENT[family], 1024),
        destination: SocketAddr::new(to, port),
        protocol,
        flags: ACK,
        payload: 64,
    };
    let tcp = |family: usize| flow(family, service_vip(family), TCP_PORT, protocol::TCP);
    let udp = |port: u16| flow(0, service_vip(0), port, protocol::UDP);
    let reply = |family: usize, port: u16| Packet {
        source: SocketAddr::new(backend(family, 0), port),
        destination: SocketAddr::new(ELEMENT.of(Family::BOTH[family]), 1024),
        protocol: protocol::TCP,
        flags: ACK,
        payload: 64,
    };
    rows.push(Row::new("(empty XDP program, IPv4)", Kind::Xdp, EMPTY, tcp(0), 1));
    rows.push(Row::new("(empty XDP program, IPv6)", Kind::Xdp, EMPTY, tcp(1), 1));
    rows.push(Row::new("(empty tc program, IPv4)", Kind::Tc, EMPTY, reply(0, 80), 1));
    rows.push(Row::new("(empty tc program, IPv6)", Kind::Tc, EMPTY, reply(1, 80), 1));
    rows.push(Row::new("(fill)", Kind::Xdp, HASH_FILL, tcp(0), 1));
    rows.push(Row::new(HASH_ROW, Kind::Xdp, HASH, tcp(0), 1));
    rows.push(Row::new("(fill)", Kind::Xdp, LRU_FILL, udp(RECORDED_PORT), 1 << 16));
    rows.push(Row::new(LRU_ROW, Kind::Xdp, LRU, udp(RECORDED_PORT), 1 << 16));
    let mut steered = |name: String, packet: Packet, flows: u32, bounds: Bound| {
        rows.push(Row::new(name, Kind::Xdp, PRODUCT, packet, flows).returns(XDP_REDIRECT).bound(bounds));
    };
    for (family, family_name) in [(0, "IPv4"), (1, "IPv6")] {
        for (what, flags, payload) in [("SYN", SYN, 0), ("data", ACK, 900)] {
            let one = format!("TCP {what}, {family_name}, 1 flow");
            for (flows, count) in FLOWS {
                let packet = Packet { flags, payload, ..tcp(family) };
                let name = if flows == 1 { one.clone() } else { format!("TCP {what}, {family_name}, {count} flows") };
                steered(name, packet, flows, stateless(flows, &one));
            }
        }
    }
    let moved = |port: u16, flags: u8| Packet { flags, payload: 0, ..flow(0, service_vip(0), port, protocol::TCP) };
    let cached = Bound::Ratios(vec![("TCP data, IPv4, 1 flow".into(), "stable", 1.8)]);
    steered("TCP data, moved slot, owner cached".into(), moved(MOVED_PORT, ACK), 1, cached);
    let asked = Bound::Above("TCP SYN, IPv4, 1 flow".into(), 200.0);
    steered("TCP SYN, moved slot, 1 owner asked".into(), moved(MOVED_PORT, SYN), 1, asked);
    steered("TCP SYN, moved slot, 7 owners asked".into(), moved(MOVED_OFTEN_PORT, SYN), 1, Bound::None);
    // 64 ports each.
    for (clients, count) in [(1, "1 client"), (1 << 16, "64K clients")] {
        steered(format!("UDP none, affinity, {count}"), udp(KEPT_PORT), clients << 6, Bound::None);
    }
    for (mode, port) in [("none", NONE_PORT), ("static", STATIC_PORT)] {
        let one = format!("UDP {mode}, IPv4, 1 flow");
        for (flows, count) in FLOWS {
            let name = if flows == 1 { one.clone() } else { format!("UDP {mode}, IPv4, {count} flows") };
            steered(name, udp(port), flows, stateless(flows, &one));
        }
    }
    steered("UDP recorded, IPv4, 1 flow".into(), udp(RECORDED_PORT), 1, Bound::None);
    let recorded = Bound::Ratios(vec![(LRU_ROW.into(), "LRU_HASH", 1.2)]);
    steered("UDP recorded, IPv4, 64K flows".into(), udp(RECORDED_PORT), 1 << 16, recorded);
    let passed = |limit| Bound::Ratios(vec![(HASH_ROW.into(), "HASH", limit)]);
    for (family, family_name) in [(0, "IPv4"), (1, "IPv6")] {
        let packet = flow(family, OTHERS[family], TCP_PORT, protocol::TCP);
        rows.push(Row::new(format!("not for us, {family_name}"), Kind::Xdp, PRODUCT, packet, 1).bound(passed(1.0)));
    }
    for (family, family_name) in [(0, "IPv4"), (1, "IPv6")] {
        let name = format!("reply, static TCP, {family_name}");
        let row = Row::new(name, Kind::Tc, PRODUCT, reply(family, TCP_PORT), 1).returns(TC_REDIRECT);
        rows.push(row.bound(passed(1.6)));
        let name = format!("reply, no endpoint's, {family_name}");
        rows.push(Row::new(name, Kind::Tc, PRODUCT, reply(family, 81), 1).bound(passed(1.0)));
    }
    rows
}

const HASH_ROW: &str = "HASH lookup, 16-byte key, hot";
const LRU_ROW: &str = "LRU_HASH lookup, 40-byte key, 64K keys";

/// TCP, and UDP without records: near one lookup, and the same for any number of flows.
fn stateless(flows: u32, one: &str) -> Bound {
    let mut ratios = vec![(HASH_ROW.to_owned(), "HASH", 1.6)];
    if flows == 1 << 20 {
        ratios.push((one.to_owned(), "1 flow", 1.3));
    }
    Bound::Ratios(ratios)
}

const TCP_PORT: u16 = 80;
/// Its slots have one earlier owner.
const MOVED_PORT: u16 = 82;
/// Its slots have seven.
const MOVED_OFTEN_PORT: u16 = 83;
/// Its clients are kept together.
const KEPT_PORT: u16 = 84;
const NONE_PORT: u16 = 162;
const STATIC_PORT: u16 = 163;
const RECORDED_PORT: u16 = 164;
/// Nobody's VIP.
const OTHERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 97, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x97, 0, 0, 0, 0, 0, 1))];

const fn service_vip(family: usize) -> IpAddr {
    vip(1).of(Family::BOTH[family])
}

const fn backend(family: usize, number: u16) -> IpAddr {
    match family {
        0 => IpAddr::V4(Ipv4Addr::new(10, 250, (number >> 8) as u8, number as u8)),
        _ => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x250, 0, 0, 0, 0, 0, number)),
    }
}

/// The product's object with its maps filled by the product's own code.
struct Product {
    object: Ebpf,
    tables: Tables,
    flows: Mapped<flow::Bucket>,
    /// The owner of a moved slot's connection: bucket, key, backend.
    owner: (usize, flow::Key, u32),
}

impl Product {
    fn load(uplink: (u32, [u8; 6]), pod: u32) -> Result<Self> {
        let capacities = Capacities::default();
        let sizes = Sizes::new(&capacities);
        let mut object = object::load(&sizes, None)?;
        let hertz = object::Clock::measure(&mut object)?.hertz;
        let settings = Settings {
            abi_version: ABI_VERSION,
            uplink: uplink.0,
            maglev_seed: maglev::CLUSTER_SEED,
            table_seed: SEED,
            node_v4: NODE.of(Family::V4).into(),
            node_v6: NODE.of(Family::V6).into(),
            route_lifetime: hertz,
            // As long as ids and ranges rest before they are given out again.
            fragment_lifetime: hertz,
            route_epoch: 1,
            ..Settings::default()
        };
        let mut tables = Tables::new(&mut object, &sizes, settings)?;
        tables.set_uplink(uplink.0, uplink.1)?;
        let (mut planner, places) = (Planner::new(capacities), places(pod));
        for stage in 0..=HISTORY {
            let wanted = snapshot(capacities, stage as u16);
            for op in planner.plan(&wanted, &places, Duration::from_secs(stage as u64))? {
                tables.apply(&op)?;
            }
        }
        let Some(Map::Array(map)) = object.map("flows") else { bail!("the object has no array `flows`") };
        let flows = Mapped::<flow::Bucket>::new(map, 1 << sizes.flows_log2)?;
        let owner = owner(&sizes, &planner)?;
        Ok(Self { object, tables, flows, owner })
    }

    /// As after a packet whose connection the current owner has; anew for each row, because others fill the cache.
    fn cache_owner(&self) {
        let (bucket, key, backend) = &self.owner;
        flow::record(&self.flows.elements()[*bucket], key, *backend, 0);
    }

    /// Every packet must have been counted under a reason that its row is about.
    fn check_reasons(&self) -> Result<()> {
        use lb_common::reason::Reason;
        for (reason, counter) in self.tables.reasons()? {
            let wanted = matches!(reason, Reason::Forwarded | Reason::NotForUs | Reason::Replied | Reason::NotAReply);
            ensure!(wanted || counter.packets == 0, "{} packets counted under {reason:?}", counter.packets);
        }
        Ok(())
    }
}

/// The current owner of the moved service, as the flow cache has it for the row's client.
fn owner(sizes: &Sizes, planner: &Planner) -> Result<(usize, flow::Key, u32)> {
    let vip = VipKey::new(service_vip(0), Protocol::Tcp, MOVED_PORT);
    let service = planner.services().get(&vip).context("the service is planned")?;
    let owner = service.backends.iter().find(|backend| backend.share != 0).context("it has an owner")?;
    let key = flow::Key::tcp(service.value.id, CLIENT[0].into(), 1024);
    let bucket = (key.hash(SEED) >> (64 - sizes.flows_log2)) as usize;
    Ok((bucket, key, owner.value.id))
}

fn places(ifindex: u32) -> Places {
    let place = |number: u16| {
        let [high, low] = number.to_be_bytes();
        Place {
            ifindex,
            mtu: 1500,
            destination_mac: [2, 1, 0, 0, high, low],
            source_mac: [2, 2, 0, 0, high, low],
            // Where nobody has a socket: each is asked.
            netns_id: Some(HOST_NETNS),
            rung: Rung::Redirect,
        }
    };
    let both = |number: u16| [0, 1].map(|family| ((backend(family, number), RungChoice::Auto), place(number)));
    (0..BACKENDS + OTHER_SERVICES).flat_map(both).collect()
}

/// `stage` backends of the moved services have been drained one after the other.
fn snapshot(capacities: Capacities, stage: u16) -> Snapshot {
    let service = |vip: IpAddr, protocol: Protocol, port: u16, replies: ReplyMode, numbers: std::ops::Range<u16>| {
        let family = usize::from(vip.is_ipv6());
        let backend_of = |number| Backend { address: backend(family, number), port, weight: 1, drain: false };
        Service {
            name: format!("{vip}-{port}"),
            vip,
            protocol,
            port,
            replies,
            rung: RungChoice::Auto,
            affinity: None,
            health_check: None,
            backends: numbers.map(backend_of).collect(),
        }
    };
    let mut services = Vec::new();
    for family in [0, 1] {
        services.push(service(service_vip(family), Protocol::Tcp, TCP_PORT, ReplyMode::Static, 0..BACKENDS));
    }
    let mut kept = service(service_vip(0), Protocol::Udp, KEPT_PORT, ReplyMode::None, 0..BACKENDS);
    kept.affinity = Some(Affinity { timeout: Duration::from_secs(10_800) });
    services.push(kept);
    for (port, mode) in
        [(NONE_PORT, ReplyMode::None), (STATIC_PORT, ReplyMode::Static), (RECORDED_PORT, ReplyMode::Recorded)]
    {
        services.push(service(service_vip(0), Protocol::Udp, port, mode, 0..BACKENDS));
    }
    for (port, changes) in [(MOVED_PORT, 1), (MOVED_OFTEN_PORT, HISTORY as u16)] {
        let mut moved = service(service_vip(0), Protocol::Tcp, port, ReplyMode::Static, 0..HISTORY as u16 + 1);
        for (number, backend) in (0..).zip(&mut moved.backends) {
            // One serves; those before it drain, those after it have not been there yet.
            backend.drain = number != stage.min(changes);
        }
        services.push(moved);
    }
    for number in 0..OTHER_SERVICES {
        let vip = IpAddr::V4(Ipv4Addr::new(10, 98, (number >> 8) as u8, number as u8));
        let numbers = BACKENDS + number..BACKENDS + number + 1;
        services.push(service(vip, Protocol::Tcp, 1000, ReplyMode::Static, numbers));
    }
    Snapshot {
        node_addresses: vec![NODE.of(Family::V4), NODE.of(Family::V6)],
        uplinks: Vec::new(),
        pin_directory: std::path::PathBuf::new(),
        run_directory: std::path::PathBuf::new(),
        capacities,
        limits: Limits::default(),
        observation: Observation::default(),
        announce: Announce::default(),
        services,
    }
}
