//! The self-test of a rung: a frame through the loaded program into the pod, whose kernel's answer the return program
//! must see. Interface flags are no proof.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{TestRun, TestRunAttrs, TestRunOptions},
};
use lb_common::{
    abi::{self, ServiceKey, endpoint_flags, protocol},
    checksum,
};

use super::{DataPlaneError, capacity::Sizes, object, tables::Tables};
use crate::{
    model::{Rung, SELF_TEST_VIPS},
    plan::{
        ops::MapOp,
        planner::{Place, rung_number},
    },
};

/// Frames that are sent, one each [`PATIENCE`].
const TRIES: u32 = 5;
/// How long an answer is waited for before the next frame.
const PATIENCE: Duration = Duration::from_millis(40);

/// One question: does this rung reach this address?
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The pod's address.
    pub address: IpAddr,
    /// The VIP that the pod owns: by rung `direct` it is that which must answer.
    pub vip: Option<IpAddr>,
    /// Its place, with the rung in question.
    pub place: Place,
    /// Who the frame comes from: an address that the node reaches by the uplink.
    pub client: IpAddr,
    /// The uplink that the frame comes in by.
    pub uplink: u32,
    /// Whether XDP is generic there: the frame then meets the attached program.
    pub generic: bool,
    /// Its MAC: the stack takes nothing that is addressed to another.
    pub uplink_mac: [u8; 6],
    /// A port of the pod that is no endpoint; of the VIP that the pod owns, one that no service has.
    pub port: u16,
}

/// Asks, and returns whether an answer came back through the return program.
pub fn ask(object: &mut Ebpf, tables: &mut Tables, sizes: &Sizes, question: &Question) -> Result<bool, DataPlaneError> {
    let vip = question.vip.unwrap_or(SELF_TEST_VIPS[usize::from(question.address.is_ipv6())]);
    let service = ServiceKey::new(vip.into(), question.port, protocol::TCP);
    let endpoint = match question.vip {
        Some(_) => service.at(question.place.ifindex),
        None => ServiceKey::new(question.address.into(), question.port, protocol::TCP),
    };
    let backend = sizes.backends - 1;
    for op in install(question, sizes, service, endpoint) {
        tables.apply(&op)?;
    }
    let answered = send_until_answered(object, tables, backend, vip, question);
    for op in [MapOp::RemoveService { key: service }, MapOp::RemoveEndpoint { key: endpoint }] {
        tables.apply(&op)?;
    }
    tables.apply(&MapOp::SetTxPort { id: backend, ifindex: 0 })?;
    answered
}

/// The writes that lead exactly this question's frame into the pod.
fn install(question: &Question, sizes: &Sizes, service: ServiceKey, endpoint: ServiceKey) -> Vec<MapOp> {
    let id = sizes.backends - 1;
    let place = &question.place;
    let rung = rung_number(place.rung);
    let stack = if place.rung == Rung::Stack { endpoint_flags::STACK } else { 0 };
    let slots = (sizes.slot_blocks - 1) * abi::SLOTS_PER_BLOCK as u32;
    let entry = sizes.backend_entries - 1;
    vec![
        MapOp::SetTxPort { id, ifindex: place.ifindex },
        MapOp::WriteBackends {
            offset: entry,
            backends: vec![abi::Backend {
                address: endpoint.address,
                id,
                endpoint: id,
                ifindex: place.ifindex,
                tx_port: id,
                mtu: place.mtu,
                netns_id: place.netns_id.unwrap_or(abi::NO_NETNS),
                port: question.port,
                rung,
                destination_mac: place.destination_mac,
                source_mac: place.source_mac,
                address_change: checksum::change_address(service.address, endpoint.address, question.address.is_ipv4()),
                ..abi::Backend::default()
            }],
        },
        MapOp::UpdateSlots { offset: slots, slots: vec![(0, abi::Slot::default())] },
        MapOp::SetEndpoint {
            key: endpoint,
            value: abi::Endpoint {
                vip: service.address,
                vip_port: service.port,
                flags: endpoint_flags::SELF_TEST | stack,
                id,
                backend: id,
                netns_id: abi::NO_NETNS,
            },
        },
        MapOp::SetService {
            key: service,
            value: abi::Service { slots, backends: entry, backends_count: 1, ..abi::Service::default() },
        },
    ]
}

fn send_until_answered(
    object: &mut Ebpf,
    tables: &Tables,
    backend: u32,
    vip: IpAddr,
    question: &Question,
) -> Result<bool, DataPlaneError> {
    let before = tables.backend_traffic(backend)?.reply_packets;
    for attempt in 0..TRIES {
        // A port of its own for each frame: what an earlier one left in the pod is no answer to this one.
        let ports = (40_000 + attempt as u16, question.port);
        let frame = syn(question.uplink_mac, question.client, vip, ports);
        let mut context = [0u8; size_of::<aya_xdp_md>()];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&question.uplink.to_ne_bytes());
        let program = if question.generic { object::inject(object)? } else { object::xdp(object)? };
        program
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                attrs: TestRunAttrs::new().xdp_live_frames(1),
                ..TestRunOptions::default()
            })
            .map_err(|source| DataPlaneError::Program {
                program: "sluice_xdp",
                interface: format!("interface {}", question.uplink),
                source: Box::new(source),
                advice: "; the self-test sends live frames, which needs Linux 5.18".into(),
            })?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if tables.backend_traffic(backend)?.reply_packets > before {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::yield_now();
        }
    }
    Ok(false)
}

/// `struct xdp_md` (include/uapi/linux/bpf.h): data, data_end, data_meta, ingress_ifindex, rx_queue_index,
/// egress_ifindex.
#[expect(non_camel_case_types, reason = "the kernel's name")]
type aya_xdp_md = [u32; 6];

/// A TCP SYN, which every kernel answers: from a listener by a SYN-ACK, from a closed port by a RST.
fn syn(mac: [u8; 6], source: IpAddr, destination: IpAddr, (from, to): (u16, u16)) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(from.to_be_bytes());
    tcp.extend(to.to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    // From a locally administered address that nobody has.
    let mut frame = [mac, [2, 0, 0, 0, 0, 2]].concat();
    let pseudo = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0]);
            let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol::TCP, 0, 0];
            ip.extend(source.octets());
            ip.extend(destination.octets());
            let check = checksum::finish(sum(&ip));
            ip[10..12].copy_from_slice(&check.to_ne_bytes());
            frame.extend(&ip);
            [&source.octets()[..], &destination.octets()[..]].concat()
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol::TCP, 64]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
            [octets(source), octets(destination)].concat()
        }
    };
    let length_and_protocol = u64::from(20u16.to_be()) + u64::from(u16::from(protocol::TCP).to_be());
    let check = checksum::finish(sum(&pseudo) + sum(&tcp) + length_and_protocol);
    tcp[16..18].copy_from_slice(&check.to_ne_bytes());
    frame.extend(tcp);
    frame
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
}
