//! Takes over the data plane of an earlier agent while packets go through it.
//!
//! Read back first, then replaced: the maps say what is installed, this build's programs take the place of the earlier
//! ones behind their pinned links, and only then is the configuration applied, as a reload would be.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_common::abi::{self, NO_NETNS, endpoint_flags};
use tracing::{info, warn};

use super::{
    Engine,
    connections::endpoint_of,
    opaque::{Opaque, Why},
    pods::Finding,
    renew::Aside,
    start::{BUILD, Begun, settle},
    uplinks::AttachedUplink,
};
use crate::{
    dataplane::{
        bpffs::MAPS,
        object::{self, Clock, Pins},
        tables::Tables,
    },
    model::{Uplink, XdpModeChoice},
    net::{
        links::{self, Links},
        routes,
    },
    plan::planner::Planner,
    preflight::resolve::Place,
    status::AttachMode,
};

impl Engine {
    /// Adopts what is pinned. On an error everything goes on as it was.
    pub(super) fn adopt(begun: Begun) -> Result<Self> {
        let began = Instant::now();
        let maps = begun.snapshot.pin_directory.join(MAPS);
        let pins = Pins::new(maps.clone());
        let mut aside = Aside::find(&begun.snapshot.pin_directory)?;
        let beside = aside.as_ref().map(|aside| aside.earlier.beside()).transpose()?;
        let (object, ahead) = begun.with_tables(|| object::load_beside(&begun.sizes, Some(&pins), beside.as_ref()));
        let mut object = object?;
        let clock = Clock::measure(&mut object)?;
        let mut tables = Tables::adopt(&mut object, &begun.sizes)?;
        let earlier = tables.signed_by()?;
        let read_back = tables.read_back();
        let adopted = Planner::adopt(begun.snapshot.capacities, clock.hertz, &read_back, &tables, Duration::ZERO);
        for words in &adopted.discarded {
            warn!(discarded = words, "left over by an earlier agent, and removed");
        }
        let planner = adopted.planner.with_ahead(ahead);
        let removed = tables.keep_only(&adopted.used, |key| endpoint_of(&planner, key));
        if let Some(aside) = &mut aside {
            aside.carry(&mut tables, &planner)?;
        }
        let mut engine = Self::new(begun, object, tables, planner, clock)?;
        engine.is_adopted = true;
        engine.apply(adopted.ops)?;
        let links = links::snapshot(&mut engine.netlink)?;
        engine.attached.adopt(&mut engine.object, &links)?;
        settle(&pins, &engine.snapshot.pin_directory)?;
        if let Some(aside) = aside {
            aside.finish(&mut engine)?;
            let pins = Pins::new(maps);
            engine.object = object::load(&engine.sizes, Some(&pins))?;
            engine.attached.adopt(&mut engine.object, &links)?;
            settle(&pins, &engine.snapshot.pin_directory)?;
        }
        engine.tables.sign(BUILD)?;
        engine.adopt_uplinks(&links)?;
        engine.adopt_undos(&links);
        engine.adopt_opaque();
        engine.adopt_pods(&links)?;
        info!(
            earlier,
            services = engine.planner.services().len(),
            endpoints = engine.planner.endpoints().len(),
            records_removed = removed,
            milliseconds = began.elapsed().as_millis() as u64,
            "data plane adopted"
        );
        engine.take_over()?;
        Ok(engine)
    }

    /// Uplinks that have their programs. One that is configured no longer is released by the next plan.
    fn adopt_uplinks(&mut self, links: &Links) -> Result<()> {
        // What cannot be resolved is an error of the configuration, which is taken over later.
        let _ = self.resolve_uplinks(links);
        for ifindex in self.attached.interfaces() {
            let (Some(mode), Some(link)) = (self.attached.uplink_mode(ifindex), links.by_index(ifindex)) else {
                continue;
            };
            let place = self.places.iter().find(|place| place.index == ifindex);
            let is_generic = mode == AttachMode::Generic;
            // What `auto` has come to is not tried again: the program would be gone meanwhile.
            let fits = |wanted: &&Uplink| match wanted.mode {
                XdpModeChoice::Auto => true,
                XdpModeChoice::Native => !is_generic,
                XdpModeChoice::Generic => is_generic,
            };
            let as_it_is = || {
                let mode = if is_generic { XdpModeChoice::Generic } else { XdpModeChoice::Native };
                Uplink { interface: link.name.clone(), mode }
            };
            let wanted = place.map(|place| &place.wanted).filter(fits).cloned().unwrap_or_else(as_it_is);
            let exit = place.map_or(ifindex, Place::exit);
            self.uplinks.push(AttachedUplink { ifindex, mac: link.mac, mode, exit, wanted });
        }
        // In the order of the configuration, whose first is where this node's own clients are answered.
        let order: Vec<u32> = self.places.iter().map(|place| place.index).collect();
        let rank = |uplink: &AttachedUplink| order.iter().position(|index| *index == uplink.ifindex);
        self.uplinks.sort_by_key(|uplink| rank(uplink).unwrap_or(usize::MAX));
        let exits = self.places.iter().flat_map(|place| place.exits.iter().copied());
        let named: Vec<u32> = exits.chain(self.uplinks.iter().map(|uplink| uplink.ifindex)).collect();
        self.tables.keep_uplinks(&named)?;
        self.exits = self.tables.uplinks().into_iter().map(|(ifindex, uplink)| (ifindex, uplink.mac)).collect();
        Ok(())
    }

    /// What earlier agents have found opaque stays so for as long as its pod lives.
    fn adopt_opaque(&mut self) {
        let now = self.started.elapsed();
        for (key, endpoint) in self.planner.endpoints() {
            let Some(value) = endpoint.value.filter(|value| value.flags & endpoint_flags::OPAQUE != 0) else {
                continue;
            };
            let segments = self.tables.watch(endpoint.id).run();
            let why = if value.netns_id == NO_NETNS { Why::NotAsked } else { Why::Unseen { segments } };
            self.opaque.insert(*key, Opaque::found(now, why));
        }
    }

    /// Pods whose interface has its programs are known, by the rung that their packets take: nothing is tested while
    /// sessions depend on it. Others are found as new ones are.
    fn adopt_pods(&mut self, links: &Links) -> Result<()> {
        let routes = routes::snapshot(&mut self.netlink)?;
        let cookies = self.cookies(links);
        let served: BTreeSet<IpAddr> = self.planner.endpoints().keys().map(|key| key.address).collect();
        for pod in links.pods.iter().filter(|pod| self.attached.is_pod(pod.host_ifindex)) {
            let Some(cookie) = cookies.iter().find(|(_, id)| **id == pod.netns_id).map(|(cookie, _)| *cookie) else {
                continue;
            };
            let addresses = pod.addresses.iter().chain(&pod.loopback_addresses);
            let served = addresses.filter(|address| served.contains(address));
            self.followed.extend(served.map(|address| (*address, cookie)));
        }
        for (address, choice) in self.wanted_pods() {
            let installed = self.planner.endpoints().iter().find(|(key, endpoint)| {
                (key.address, key.vip) == (address, choice.owned_vip()) && endpoint.way().rung != abi::rung::NONE
            });
            let Some((_, endpoint)) = installed else { continue };
            let way = *endpoint.way();
            if let Some(finding) =
                self.site(address, links, &routes).and_then(|site| Finding::adopted(site, choice, &way))
            {
                self.findings.insert((address, choice), finding);
            }
        }
        Ok(())
    }
}
