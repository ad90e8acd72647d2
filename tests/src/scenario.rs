//! The main job: which programs run where, and which services stand before them. Demo and tests share it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use crate::{
    agent::Service,
    lab::{ELEMENT, Family, Lab, Pod, vip},
    programs::{
        bird::{self, Bird},
        snmp,
        telemetry::{self, Collector},
    },
};

/// Pods that the main job needs: two receivers of traps, and one for BGP and telemetry.
pub const PODS: u8 = 3;
/// Last byte of the VIP that traps are sent to.
const TRAP_VIP: u8 = 10;
/// Last byte of the VIP of BGP and telemetry.
const SESSION_VIP: u8 = 20;

/// The programs in the pods, ready to receive.
#[derive(Debug)]
pub struct MainJob {
    /// `snmptrapd` in the first two pods.
    pub receivers: Vec<snmp::Receiver>,
    /// BIRD in the third pod, by family.
    pub speakers: [Bird; 2],
    /// The telemetry collector in the third pod.
    pub collector: Collector,
}

impl MainJob {
    /// Starts everything that receives.
    pub fn start(lab: &Lab) -> Result<Self> {
        ensure!(lab.pods.len() >= usize::from(PODS), "the main job needs {PODS} pods");
        let directory = lab.directory();
        let receivers = lab.pods[..2].iter().map(|pod| snmp::Receiver::start(pod, directory));
        Ok(Self {
            receivers: receivers.collect::<Result<_>>()?,
            speakers: [
                Bird::collector(&lab.pods[2], Family::V4, directory)?,
                Bird::collector(&lab.pods[2], Family::V6, directory)?,
            ],
            collector: Collector::start(&lab.pods[2].namespace)?,
        })
    }

    /// The BIRD that waits for sessions of this family.
    #[must_use]
    pub fn speaker(&self, family: Family) -> &Bird {
        match family {
            Family::V4 => &self.speakers[0],
            Family::V6 => &self.speakers[1],
        }
    }
}

/// Where traps go.
#[must_use]
pub fn trap_vip(family: Family) -> IpAddr {
    vip(TRAP_VIP).of(family)
}

/// Where BGP and telemetry go.
#[must_use]
pub fn session_vip(family: Family) -> IpAddr {
    vip(SESSION_VIP).of(family)
}

/// The services before the main job's pods.
#[must_use]
pub fn services(lab: &Lab, rung: &'static str) -> Vec<Service> {
    let mut services = Vec::new();
    for family in Family::BOTH {
        let suffix = format!("{family:?}").to_lowercase();
        let mut add = |name: &str, vip, protocol, port, pods: &[Pod]| {
            services.push(service(&format!("{name}-{suffix}"), vip, protocol, port, rung, pods, family));
        };
        add("traps", trap_vip(family), "UDP", snmp::PORT, &lab.pods[..2]);
        add("bgp", session_vip(family), "TCP", bird::PORT, &lab.pods[2..3]);
        add("telemetry", session_vip(family), "TCP", telemetry::PORT, &lab.pods[2..3]);
    }
    services
}

/// A service whose backends are the pods at the same port.
#[must_use]
pub fn service(
    name: &str,
    vip: IpAddr,
    protocol: &'static str,
    port: u16,
    rung: &'static str,
    pods: &[Pod],
    family: Family,
) -> Service {
    let backends = pods.iter().map(|pod| SocketAddr::new(pod.addresses.of(family), port)).collect();
    Service { name: name.to_owned(), vip, protocol, port, replies: None, rung, backends }
}

/// Fails unless the pod saw the network element's own address.
pub fn check_source(what: &str, seen: IpAddr, family: Family) -> Result<()> {
    let wanted = ELEMENT.of(family);
    ensure!(seen == wanted, "{what}: the pod saw {seen} instead of the sender's {wanted}");
    Ok(())
}
