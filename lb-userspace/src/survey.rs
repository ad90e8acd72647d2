//! Gathers the facts that `preflight` judges: asks the kernel, and changes nothing. What it may not ask for is said.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    capabilities,
    config::{PIN_DIRECTORY_DEFAULT, RUN_DIRECTORY_DEFAULT},
    dataplane::{
        bpffs,
        capacity::Sizes,
        look, object,
        pinned::{self, Left},
    },
    model::{Announce, Capacities, Limits, Observation, Snapshot, Uplink, XdpModeChoice},
    net::{
        Netlink,
        ethtool::{Ethtool, Offload},
        filters,
        links::{self, Link, XdpMode},
        netns::Namespaces,
        routes,
        xdp_features::NetDevices,
    },
    preflight::{
        Facts,
        facts::{Device, End, Memory, Pins, PinsState, Program, RunDirectory, Unseen},
        resolve,
    },
};

/// What an agent would work with if nobody has written a configuration: the interfaces of the default routes, and the
/// defaults of everything else. Without services; and without uplinks where there is no default route.
///
/// # Errors
/// Where the kernel does not tell of links and routes.
pub fn supposed() -> crate::net::Result<Snapshot> {
    let mut netlink = Netlink::open()?;
    let (links, ways) = (links::of_node(&mut netlink)?, default_ways(&mut netlink)?);
    let names = links.iter().filter(|link| ways.contains(&link.index)).map(|link| link.name.clone());
    Ok(Snapshot {
        node_addresses: Vec::new(),
        uplinks: names.map(|interface| Uplink { interface, mode: XdpModeChoice::Auto }).collect(),
        pin_directory: PIN_DIRECTORY_DEFAULT.into(),
        run_directory: RUN_DIRECTORY_DEFAULT.into(),
        capacities: Capacities::default(),
        limits: Limits::default(),
        observation: Observation::default(),
        announce: Announce::default(),
        services: Vec::new(),
    })
}

/// Looks at everything that matters to an agent with this configuration. `own` are programs that are the asker's,
/// beside those that are pinned in its directory.
pub fn gather(snapshot: &Snapshot, own: impl IntoIterator<Item = u32>) -> Facts {
    let mut unseen = Vec::new();
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let sizes = Sizes::new(&snapshot.capacities);
    let mut facts = Facts {
        kernel: look::kernel(&mut unseen),
        missing_capabilities: capabilities::missing().unwrap_or_default(),
        memory: Memory {
            maps_bytes: needed(&snapshot.pin_directory, &sizes, cpus as u64),
            available_bytes: available(),
            group_left_bytes: group_left(Path::new("/sys/fs/cgroup")),
        },
        pins: pins(&snapshot.pin_directory, &mut unseen),
        run: RunDirectory {
            path: snapshot.run_directory.clone(),
            obstacle: look::obstacle(&snapshot.run_directory),
            holder: look::lock_holder(&snapshot.run_directory.join("lock")),
        },
        cpus: cpus as u32,
        forwarding: ["ipv4", "ipv6"].map(|family| setting(family, "all", "forwarding").map(|value| value != 0)),
        ..Facts::default()
    };
    match Netlink::open() {
        Ok(mut netlink) => {
            let own = own.into_iter().chain(look::own_programs(&snapshot.pin_directory)).collect();
            network(snapshot, own, &mut netlink, &mut facts, &mut unseen);
        }
        Err(error) => unseen.push(Unseen { what: "interfaces".to_owned(), why: error.to_string() }),
    }
    facts.unseen = unseen;
    facts
}

/// Bytes of the maps that an agent would make, less those of maps that its start frees before: what a start that was cut short
/// has left. None where an earlier agent has left maps of these sizes, which are gone on with. What cannot be read is not there.
fn needed(pins: &Path, sizes: &Sizes, cpus: u64) -> u64 {
    let all: u64 = sizes.maps(cpus).iter().map(|(_, _, bytes)| bytes).sum();
    let held = |part: &str| pinned::held(&pins.join(part), sizes, cpus);
    let left = object::shapes(sizes).and_then(|wanted| pinned::look(&pins.join(bpffs::MAPS), &wanted));
    match left {
        Ok(Left::Same) => 0,
        Ok(Left::Nothing) => all.saturating_sub(held(bpffs::MAPS) + held(bpffs::MAPS_NEW)),
        Ok(Left::Other { .. }) | Err(_) => all.saturating_sub(held(bpffs::MAPS_NEW)),
    }
}

fn pins(path: &Path, unseen: &mut Vec<Unseen>) -> Pins {
    let state = look::pins(path).unwrap_or_else(|error| {
        unseen.push(Unseen { what: path.display().to_string(), why: error.to_string() });
        PinsState::Unseen
    });
    Pins { path: path.to_path_buf(), state, holder: look::lock_holder(path) }
}

fn network(
    snapshot: &Snapshot,
    own: BTreeSet<u32>,
    netlink: &mut Netlink,
    facts: &mut Facts,
    unseen: &mut Vec<Unseen>,
) {
    match links::of_node(netlink) {
        Ok(links) => facts.links = links,
        Err(error) => return unseen.push(Unseen { what: "interfaces".to_owned(), why: error.to_string() }),
    }
    match default_ways(netlink) {
        Ok(ways) => facts.default_ways = ways,
        Err(error) => unseen.push(Unseen { what: "routes".to_owned(), why: error.to_string() }),
    }
    let all = setting("ipv4", "all", "rp_filter").unwrap_or(0);
    // The greater of the two is in force (Documentation/networking/ip-sysctl.rst).
    let is_strict = |link: &&Link| setting("ipv4", &link.name, "rp_filter").unwrap_or(0).max(all) == 1;
    facts.strict_reverse_path = facts.links.iter().filter(is_strict).map(|link| link.name.clone()).collect();
    let mut asked = Asked { netlink, ethtool: Ethtool::open().ok(), devices: NetDevices::open().ok(), own, unseen };
    let places = resolve::resolve(&snapshot.uplinks, &facts.links).places;
    let found = places.into_iter().filter_map(|place| facts.links.iter().find(|link| link.index == place.index));
    facts.devices = found.map(|link| (link.index, asked.device(link))).collect::<BTreeMap<_, _>>();
}

/// Whom interfaces are asked of.
struct Asked<'a> {
    netlink: &'a mut Netlink,
    ethtool: Option<Ethtool>,
    devices: Option<NetDevices>,
    /// Programs of an agent of this pin directory.
    own: BTreeSet<u32>,
    unseen: &'a mut Vec<Unseen>,
}

impl Asked<'_> {
    fn device(&mut self, link: &Link) -> Device {
        let name = &link.name;
        let ethtool = self.ethtool.as_ref();
        let offload = |offload| ethtool.and_then(|ethtool| ethtool.get(name, offload).ok());
        let merges = [Offload::Gro, Offload::Lro].into_iter().filter_map(offload).reduce(|gro, lro| gro || lro);
        let mut device = Device {
            driver: ethtool.and_then(|ethtool| ethtool.driver(name).ok()),
            queues: ethtool.and_then(|ethtool| ethtool.queues(name).ok()),
            xdp: self.devices.as_mut().and_then(|devices| devices.xdp_features(link.index).ok()),
            strips_vlan: offload(Offload::RxVlan),
            merges,
            other_xdp: self.other_xdp(link),
            ..Device::default()
        };
        match look::other_tcx(name, &self.own) {
            Ok(programs) => device.other_tcx = programs,
            Err(unseen) => self.unseen.push(unseen),
        }
        match filters::of_interface(self.netlink, link.index) {
            Ok(filters) => device.filters = filters,
            Err(error) => self.unseen.push(Unseen { what: format!("tc filters of {name}"), why: error.to_string() }),
        }
        match links::veth_end(self.netlink, link) {
            Ok(end) => device.end = end.map(|end| self.end(&end, link)),
            Err(error) => {
                self.unseen.push(Unseen { what: format!("the other end of {name}"), why: error.to_string() });
            }
        }
        device
    }

    fn end(&mut self, end: &Link, link: &Link) -> End {
        // Netlink tells how many it was made with, which the kernel does not compare. In another namespace it can only be
        // asked where that is found.
        let elsewhere = link.peer_netns.and_then(|id| {
            let netns = Namespaces::default().find(self.netlink, id).ok()?;
            Ethtool::open_in(&netns).ok()?.queues(&end.name).ok()
        });
        let here = self.ethtool.as_ref().filter(|_| link.peer_netns.is_none());
        let sends = elsewhere.or_else(|| here?.queues(&end.name).ok());
        End {
            sending_queues: sends.map(|queues| queues.sending),
            has_native_xdp: end.xdp.iter().any(|program| program.mode == XdpMode::Native),
        }
    }

    fn other_xdp(&self, link: &Link) -> Vec<Program> {
        let others: Vec<_> = link.xdp.iter().filter(|program| !self.own.contains(&program.program_id)).collect();
        if others.is_empty() {
            return Vec::new();
        }
        let names = look::program_names();
        let program = |id: u32| Program { place: "xdp", name: names.get(&id).cloned(), id };
        others.into_iter().map(|other| program(other.program_id)).collect()
    }
}

fn default_ways(netlink: &mut Netlink) -> crate::net::Result<Vec<u32>> {
    let routes = routes::snapshot(netlink)?;
    let mut ways: Vec<u32> =
        routes.0.iter().filter(|route| route.prefix_length == 0).map(|route| route.interface).collect();
    ways.sort_unstable();
    ways.dedup();
    Ok(ways)
}

/// A setting of an interface, or of `all`.
fn setting(family: &str, interface: &str, name: &str) -> Option<u32> {
    let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{interface}/{name}"));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// What the control groups above this process leave: the least of them counts.
fn group_left(root: &Path) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    // Version 2 has one line, with the number 0 and no controllers.
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |path: PathBuf| -> io::Result<Option<u64>> { Ok(fs::read_to_string(path)?.trim().parse().ok()) };
    let left = |group: &Path| -> Option<u64> {
        let limit = number(group.join("memory.max")).ok()??;
        Some(limit.saturating_sub(number(group.join("memory.current")).ok()??))
    };
    let group = root.join(path);
    group.ancestors().take_while(|ancestor| ancestor.starts_with(root)).filter_map(left).min()
}
