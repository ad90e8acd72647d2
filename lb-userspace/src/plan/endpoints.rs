//! What the return path is told of endpoints: pure.

use std::collections::{BTreeSet, HashMap};

use lb_common::abi::{self, ServiceKey, endpoint_flags};

use super::{
    difference::Difference,
    ops::MapOp,
    planner::{EndpointKey, InstalledEndpoint, Planner, Replies, Steps, VipKey, vip_key},
};
use crate::model::ReplyMode;

impl Planner {
    pub(super) fn write_endpoints(&mut self, difference: &Difference, steps: &mut Steps) {
        let replies = Replies::new();
        let mut ids: HashMap<(VipKey, EndpointKey), u32> = HashMap::new();
        for vip in difference.services.iter().map(|service| vip_key(service)) {
            let backends = self.services.get(&vip).into_iter().flat_map(|service| &service.backends);
            ids.extend(backends.map(|backend| ((vip, backend.endpoint), backend.value.id)));
        }
        let (mut moved, mut gone, mut set) = (Vec::new(), Vec::new(), Vec::new());
        for key in &difference.endpoints {
            let Some(installed) = self.endpoints.get(key) else { continue };
            let is_opaque = Self::is_opaque(&self.opaque, key, &installed.way);
            let opaque = if is_opaque { endpoint_flags::OPAQUE } else { 0 };
            let value = self.default_service(installed, &replies).and_then(|default| {
                Some(abi::Endpoint {
                    vip: default.address.into(),
                    vip_port: default.port,
                    flags: self.flags_of(installed) | opaque,
                    id: installed.id,
                    backend: *ids.get(&(default, *key))?,
                    netns_id: installed.way.netns_id,
                })
            });
            // A pod that owns its VIP is known by its interface, and not at all without one.
            let value = value.filter(|_| key.vip.is_none() || installed.way.ifindex != 0);
            let at = if key.vip.is_some() { key.to_abi().at(installed.way.ifindex) } else { key.to_abi() };
            match (installed.value, value) {
                (Some(_), None) => gone.push(installed.key),
                (Some(_), Some(_)) if at != installed.key => moved.push(installed.key),
                _ => {}
            }
            if (installed.value, installed.key) == (value, at) {
                continue;
            }
            if let Some(value) = value {
                set.push(MapOp::SetEndpoint { key: at, value });
            }
            if let Some(installed) = self.endpoints.get_mut(key) {
                (installed.value, installed.key) = (value, at);
            }
        }
        // Before what takes its place, which may need the room.
        steps.endpoints.extend(self.without_endpoints(&moved));
        steps.endpoints.extend(set);
        steps.remove.extend(self.without_endpoints(&gone));
    }

    /// Takes keys out of `endpoints`, but for those that another endpoint has now: two addresses of one pod are one at
    /// its interface.
    fn without_endpoints(&self, keys: &[ServiceKey]) -> Vec<MapOp> {
        let shared: BTreeSet<u32> = keys.iter().map(|key| key.interface).filter(|interface| *interface != 0).collect();
        let mut heirs: HashMap<ServiceKey, abi::Endpoint> = HashMap::new();
        if !shared.is_empty() {
            let others = self.endpoints.values().filter(|other| shared.contains(&other.key.interface));
            for (key, value) in others.filter_map(|other| Some((other.key, other.value?))) {
                heirs.entry(key).or_insert(value);
            }
        }
        let op = |key: &ServiceKey| match heirs.get(key) {
            Some(value) => MapOp::SetEndpoint { key: *key, value: *value },
            None => MapOp::RemoveEndpoint { key: *key },
        };
        keys.iter().map(op).collect()
    }

    pub(super) fn drop_endpoints(&mut self, difference: &Difference, steps: &mut Steps) {
        let mut keys = Vec::new();
        for key in &difference.endpoints {
            if self.endpoints.get(key).is_none_or(|installed| !installed.services.is_empty()) {
                continue;
            }
            let Some(installed) = self.endpoints.remove(key) else { continue };
            keys.extend(installed.value.map(|_| installed.key));
            self.endpoint_ids.free(installed.id, steps.now);
        }
        steps.remove.extend(self.without_endpoints(&keys));
    }

    /// Whose replies an endpoint's are where no record says otherwise: the oldest static service, else the oldest
    /// recorded. `replies` are of services that are being written.
    pub(super) fn default_service(&self, endpoint: &InstalledEndpoint, replies: &Replies) -> Option<VipKey> {
        let mode_of = |key| replies.get(key).copied().or_else(|| self.services.get(key)?.replies);
        let of_mode = |mode| endpoint.services.iter().find(|service| mode_of(service) == Some(mode)).copied();
        of_mode(ReplyMode::Static).or_else(|| of_mode(ReplyMode::Recorded))
    }

    fn flags_of(&self, endpoint: &InstalledEndpoint) -> u16 {
        let mut flags = if endpoint.way.rung == abi::rung::STACK { endpoint_flags::STACK } else { 0 };
        for service in &endpoint.services {
            flags |= match self.services.get(service).and_then(|service| service.replies) {
                Some(ReplyMode::Static) => endpoint_flags::STATIC,
                Some(ReplyMode::Recorded) => endpoint_flags::RECORDED,
                Some(ReplyMode::None) | None => 0,
            };
        }
        flags
    }
}
