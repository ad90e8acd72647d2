//! Takes down what agents have made: programs, maps, pins, VIPs on pods' `lo`, and what they have changed of interfaces.
//!
//! Works from what is there, not from what an agent remembers: after a crash, from a half-finished start, and while pods
//! come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use lb_common::agent::UndoKey;

use super::{
    guard::Lock,
    undo::{offload_of, raised_by},
    vips,
    virtual_macs::virtual_mac,
};
use crate::{
    dataplane::{
        bpffs::{self, LINKS, MAP_DIRECTORIES, MAPS},
        look, pinned,
        tables::read_undos,
    },
    net::{
        Error as NetError, Netlink, NetnsId,
        blackholes::Blackholes,
        ethtool::{Ethtool, set_in},
        links::{self, Links, XdpAttachment, mac_text},
        loopback,
        netns::Namespaces,
        unicast,
    },
    status,
};

/// Removes what agents have left under these directories, and tells each thing that is done.
///
/// # Errors
/// Where an agent runs; where something could not be put back, which a further run tries again.
pub fn run(pins: &Path, run_directory: &Path, tell: &mut dyn FnMut(&str)) -> Result<()> {
    super::guard::check_capabilities()?;
    // Not made where there is none: then no agent can run with it.
    let lock = run_directory.join("lock").exists().then(|| Lock::take(run_directory)).transpose()?;
    let claimed = bpffs::claim(pins)?;
    match claimed {
        Some(_claimed) => take_down(pins, tell)?,
        None => {
            check_nobody_else(pins)?;
            withdraw_vips(tell)?;
            remove_blackholes(tell)?;
        }
    }
    if lock.is_some() {
        let others = [status::SOCKET_NAME, status::SOCKET_UNREADY_NAME, super::leave::DRAINED_NAME];
        for name in others.into_iter().chain(super::health::NAMES).chain(["lock"]) {
            let path = run_directory.join(name);
            if path.exists() {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                tell(&format!("removed {}", path.display()));
            }
        }
        // What else is in it is not an agent's.
        let _ = fs::remove_dir(run_directory);
    }
    Ok(())
}

/// The same for what is pinned; the caller has claimed the directory.
pub(super) fn take_down(pins: &Path, tell: &mut dyn FnMut(&str)) -> Result<()> {
    // An agent may have been killed while maps changed places.
    let mut undos = BTreeMap::new();
    for part in MAP_DIRECTORIES {
        for (key, was_on) in read_undos(&pins.join(part))? {
            undos.entry(key).or_insert(was_on);
        }
    }
    let foreign = pinned::foreign(pins)?;
    let own = |pin: &PathBuf| !foreign.contains(pin);
    for link in bpffs::entries(&pins.join(LINKS))?.into_iter().filter(own) {
        let name = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What is no link, or leads nowhere, only loses its pin.
        if bpffs::detach(&link).is_ok() {
            tell(&format!("detached {name}"));
        }
    }
    withdraw_vips(tell)?;
    remove_blackholes(tell)?;
    put_back(&undos, tell)?;
    let maps = bpffs::entries(&pins.join(MAPS))?.into_iter().filter(own).count();
    bpffs::remove(pins, &foreign).with_context(|| format!("cannot remove the pins in {}", pins.display()))?;
    tell(&format!("removed {maps} pinned maps from {}", pins.display()));
    for pin in &foreign {
        tell(&format!("left {}, which no agent has made", pin.display()));
    }
    Ok(())
}

/// Routers have been told by now, or find out.
fn remove_blackholes(tell: &mut dyn FnMut(&str)) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let mut found = Blackholes::read(&mut netlink)?;
    if !found.is_empty() {
        let prefixes = found.prefixes.len();
        found.become_like(&Blackholes::default(), &mut netlink)?;
        tell(&format!("removed {prefixes} blackhole routes, and the rules that lead to them"));
    }
    Ok(())
}

/// Puts interfaces' settings back as they were.
fn put_back(undos: &BTreeMap<UndoKey, bool>, tell: &mut dyn FnMut(&str)) -> Result<()> {
    if undos.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    let links = links::snapshot(&mut netlink)?;
    let mut namespaces = Namespaces::default();
    let pods = cookies(&links, &mut netlink, &mut namespaces);
    for (&key, &was_on) in undos {
        if let (Some(raised), Some(netns_id)) = (raised_by(key.setting), pods.get(&key.netns_cookie)) {
            let netns = namespaces.find(&mut netlink, *netns_id);
            match netns.and_then(|netns| loopback::lower_unused(&netns, raised)) {
                Ok(_) | Err(NetError::NoNamespace { .. }) => {}
                Err(error) => bail!("cannot lower a pod's settings again: {error}; run `sluice detach` again"),
            }
        }
        if let (Some(mac), 0) = (virtual_mac(key.setting), key.netns_cookie) {
            let interface =
                links.by_index(key.ifindex).map_or_else(|| key.ifindex.to_string(), |link| link.name.clone());
            if let Err(error) = unicast::shut_out(&mut netlink, key.ifindex, mac) {
                bail!("{interface} still takes frames to a virtual MAC: {error}; run `sluice detach` again");
            }
            tell(&format!("took virtual MAC {} from the filter of {interface}", mac_text(mac)));
        }
        let Some(offload) = offload_of(key.setting) else { continue };
        let done = match key.netns_cookie {
            0 => links.by_index(key.ifindex).map(|link| {
                let done = Ethtool::open().and_then(|ethtool| ethtool.set(&link.name, offload, was_on));
                (link.name.clone(), done)
            }),
            cookie => pods.get(&cookie).map(|netns_id| {
                let netns = namespaces.find(&mut netlink, *netns_id);
                let done = netns.and_then(|netns| set_in(&netns, key.ifindex, offload, was_on));
                (format!("interface {} of a pod", key.ifindex), done)
            }),
        };
        let state = if was_on { "on" } else { "off" };
        match done {
            Some((interface, Ok(_))) => tell(&format!("turned {} of {interface} {state} again", offload.name())),
            // What is gone has taken its setting along.
            None | Some((_, Err(NetError::NoNamespace { .. } | NetError::NoInterface { .. }))) => {}
            Some((interface, Err(error))) => {
                bail!("cannot turn {} of {interface} {state} again: {error}; run `sluice detach` again", offload.name())
            }
        }
    }
    Ok(())
}

fn cookies(links: &Links, netlink: &mut Netlink, namespaces: &mut Namespaces) -> BTreeMap<u64, NetnsId> {
    let ids: BTreeSet<NetnsId> = links.pods.iter().map(|pod| pod.netns_id).collect();
    let cookie = |id: NetnsId| Some((namespaces.find(netlink, id).ok()?.cookie().ok()?, id));
    ids.into_iter().filter_map(cookie).collect()
}

/// VIPs on pods say not whose they are: where another directory's data plane goes on, they are left alone.
fn check_nobody_else(pins: &Path) -> Result<()> {
    let links = links::of_node(&mut Netlink::open()?)?;
    let names = look::program_names();
    let is_ours = |attached: &XdpAttachment| names.get(&attached.program_id).is_some_and(|name| name == "sluice_xdp");
    if let Some(link) = links.iter().find(|link| link.xdp.iter().any(is_ours)) {
        bail!(
            "{} runs sluice_xdp, and nothing is pinned in {}: the data plane is pinned elsewhere; name that agent's \
             configuration with --config",
            link.name,
            pins.display()
        );
    }
    Ok(())
}

/// Takes the VIPs that agents have put on pods from there.
fn withdraw_vips(tell: &mut dyn FnMut(&str)) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let links = links::snapshot(&mut netlink)?;
    let mut namespaces = Namespaces::default();
    let assigned: Vec<(NetnsId, IpAddr)> = vips::assigned(&links).into_iter().collect();
    for (netns_id, vip) in assigned {
        let netns = namespaces.find(&mut netlink, netns_id);
        match netns.and_then(|netns| loopback::withdraw(&netns, vip)) {
            Ok(()) => tell(&format!("took VIP {vip} from a pod's lo")),
            Err(NetError::NoNamespace { .. }) => {}
            Err(error) => bail!("VIP {vip} stays on a pod's lo: {error}; run `sluice detach` again"),
        }
    }
    Ok(())
}
