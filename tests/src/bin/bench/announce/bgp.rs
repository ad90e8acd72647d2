//! 10,000 VIPs announced to two routers, which are BIRD.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_tests::{
    lab::{Lab, NODE, Options, ROUTER_END, wait_until},
    process::Process,
};
use lb_userspace::announce::bgp::{
    driver::{Speaker, Wanted, WantedPeer},
    machine::{Mode, PeerAs, Settings},
    route::{Attributes, Route},
    values::{AsNumber, Family, Identifier, Prefix},
};

use super::VIPS;
use crate::scale::Figure;

const LIMIT: Duration = Duration::from_secs(60);
const ROUTERS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
const LOCAL_AS: u32 = 64512;
const ROUTER_AS: u32 = 64513;
/// From the sessions on, until both routers have everything: within the second that a start may take.
const ALL_MAX_MS: f64 = 1000.0;

/// A router's BIRD.
struct Bird {
    process: Process,
    socket: PathBuf,
}

impl Bird {
    fn start(lab: &Lab, number: usize) -> Result<Self> {
        let directory = lab.directory().join(format!("bird-{number}"));
        fs::create_dir(&directory)?;
        let (file, socket) = (directory.join("bird.conf"), directory.join("bird.ctl"));
        let address = ROUTERS[number];
        let text = format!(
            "log stderr {{ error, fatal, trace }};\n\
             router id {address};\n\
             protocol device {{ }}\n\
             protocol bgp node {{\n\
               local {address} as {ROUTER_AS};\n\
               neighbor {} as {LOCAL_AS};\n\
               passive on;\n\
               debug {{ packets }};\n\
               strict bind on;\n\
               ipv4 {{ import all; export none; }};\n\
               ipv6 {{ import all; export none; }};\n\
             }}\n",
            NODE.v4
        );
        fs::write(&file, text)?;
        let mut command = lab.router.command("bird");
        command.arg("-f").arg("-c").arg(&file).arg("-s").arg(&socket);
        let mut process = Process::start(&format!("bird {number}"), &mut command)?;
        wait_until("bird to be ready", LIMIT, || {
            process.check_running()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self { process, socket })
    }

    /// Whether the ends of both families have come.
    fn has_ends(&self) -> bool {
        self.process.lines().iter().filter(|line| line.contains("END-OF-RIB")).count() >= Family::ALL.len()
    }

    /// Routes of the session.
    fn routes(&self) -> Result<u32> {
        let words = ["show", "route", "count", "protocol", "node"];
        let output = Command::new("birdc").arg("-r").arg("-s").arg(&self.socket).args(words).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "birdc failed: {text}\n{}", self.process.log_tail());
        let count = |line: &str| line.split_once(" of ")?.0.parse::<u32>().ok();
        Ok(text.lines().filter_map(count).sum())
    }
}

/// Half of each family.
fn vip(number: u32) -> IpAddr {
    match number % 2 {
        0 => Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number).into(),
        _ => Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 0)) + u128::from(number)).into(),
    }
}

fn routes(count: u32) -> Arc<BTreeMap<Prefix, Route>> {
    let attributes = Arc::new(Attributes::default());
    let of = |number| {
        let prefix = Prefix::host(vip(number)).expect("unicast");
        (prefix, Route { prefix, next_hop: None, attributes: Arc::clone(&attributes) })
    };
    Arc::new((0..count).map(of).collect())
}

/// Both sessions with these routes.
fn want(speaker: &Speaker, count: u32) {
    let number = |number| AsNumber::new(number).expect("legal");
    let identifier = Identifier::new(NODE.v4).expect("not zero");
    let settings =
        Settings { mode: Mode::Dial, ..Settings::new(number(LOCAL_AS), PeerAs::Number(number(ROUTER_AS)), identifier) };
    let routes = routes(count);
    let peer = |router: Ipv4Addr| {
        let mut peer = WantedPeer::new(settings.clone(), Some(router.into()));
        peer.interface_addresses.ipv6 = Some(NODE.v6);
        (peer.routes, peer.routes_complete) = (Arc::clone(&routes), true);
        (router.to_string(), peer)
    };
    speaker.want(Wanted { peers: ROUTERS.map(peer).into(), ..Wanted::default() });
}

/// How long until both have their End-of-RIB and all routes, and then one more.
pub fn figures() -> Result<Vec<Figure>> {
    let lab = Lab::new("bench-bgp", Options { pods: 0, ..Options::default() })?;
    lab.router.ip(&format!("address add {}/24 dev {ROUTER_END}\n", ROUTERS[1]))?;
    let routers = [Bird::start(&lab, 0)?, Bird::start(&lab, 1)?];
    let speaker = lab.node.run(|| Speaker::start(4711, || {}))?;
    let began = Instant::now();
    want(&speaker, VIPS);
    wait_until("End-of-RIB at both routers", LIMIT, || Ok(routers.iter().all(Bird::has_ends).then_some(())))?;
    let told = began.elapsed();
    let until_all = |count| {
        wait_until("all routes at both routers", LIMIT, || {
            Ok((routers[0].routes()? == count && routers[1].routes()? == count).then_some(()))
        })
    };
    until_all(VIPS)?;
    let all = began.elapsed();
    let one = Instant::now();
    want(&speaker, VIPS + 1);
    until_all(VIPS + 1)?;
    let one = one.elapsed();
    Ok(vec![
        Figure::time("BGP, 10,000 VIPs, 2 peers: from the dial to each End-of-RIB", told, Some(ALL_MAX_MS)),
        Figure::time("  until both routers have all routes", all, Some(ALL_MAX_MS)),
        Figure::time("  one VIP more: until both routers have it", one, None),
    ])
}
