//! ICMP errors about the packets of a service, in both directions. Routers and clients send them to the VIP, and they are for the
//! pod whose packet they quote; pods send them from their own address, and they are for a client that knows only the VIP.
//! The quoted packet is rewritten as the packet itself was, or its sender's kernel would not know it (RFC 5508, 4.2).
//!
//! They claim, record and remember nothing: who forges one moves no session. Whether it is believed is the business
//! of the kernel that gets it, which knows the sequence numbers that were sent (RFC 5927).

use crate::{
    abi::{BypassKey, ServiceKey, protocol, rung},
    address::Address,
    answer, checksum,
    headers::{self, Headers, IPV4, IPV6, UDP, v4, v6},
    packet::{Frame, View},
    reason::Reason,
    reply::{self, Place, ReturnTables, Through},
    steer::{self, Choice, Tables, Verdict, flow_hash, ports_word},
};

/// Bytes of an ICMP error's own header.
const ICMP: usize = 8;
/// Where TCP has its checksum.
const TCP_CHECKSUM: usize = 16;

/// Whether a message of this type is an error and quotes a packet: unreachable, time exceeded and parameter problem in
/// IPv4 (RFC 1122, 3.2.2; source quench and redirects are for no one behind a router: RFC 6633, RFC 1812, 5.2.7.2), all
/// types below 128 in IPv6 (RFC 4443, 2.1), known or not, as kernels take them.
#[inline(always)]
const fn is_error(kind: u8, is_v4: bool) -> bool {
    if is_v4 { matches!(kind, 3 | 11 | 12) } else { kind < 128 }
}

/// The head of the packet that an ICMP error speaks of.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// Offset of its IP header.
    pub l3: usize,
    /// Offset of its transport header, of which eight bytes are there. Means nothing where there is a defect.
    pub l4: usize,
    /// TCP or UDP.
    pub protocol: u8,
    /// Who sent the packet, hence to whom the error goes.
    pub source: Address,
    /// To whom the packet went.
    pub destination: Address,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
    /// Why nobody can be found whom it concerns: `OtherProtocol` where the message is no error, or quotes neither TCP nor
    /// UDP.
    pub defect: Option<Reason>,
}

/// Reads what an ICMP message quotes.
#[inline(always)]
pub fn quote<F: Frame>(frame: &F, headers: &Headers) -> Quote {
    let l3 = headers.l4 + ICMP;
    let is_error = frame.at::<ICMP>(headers.l4).is_some_and(|icmp| is_error(icmp.get::<0, _>(), headers.is_v4));
    let mut quote = match (is_error, headers.is_v4) {
        (false, _) => Quote::unreadable(l3, Reason::OtherProtocol),
        (true, true) => quoted_v4(frame, l3),
        (true, false) => quoted_v6(frame, l3),
    };
    // An error goes to whom its packet came from; and what is cut short is not read any further.
    if quote.defect.is_some_and(|defect| matches!(defect, Reason::Malformed)) || !is_error {
        return quote;
    }
    if quote.source != headers.destination {
        quote.defect = Some(Reason::IcmpForeign);
    }
    if quote.defect.is_some() {
        return quote;
    }
    match frame.at::<UDP>(quote.l4) {
        Some(transport) if quote.l4 + UDP <= headers.l3 + headers.length => {
            quote.source_port = u16::from_be(transport.get::<0, _>());
            quote.destination_port = u16::from_be(transport.get::<2, _>());
            quote.defect = defect_of_protocol(quote.protocol, headers.is_v4, transport.get::<0, _>());
        }
        _ => quote.defect = Some(Reason::Malformed),
    }
    quote
}

impl Quote {
    #[inline(always)]
    const fn unreadable(l3: usize, defect: Reason) -> Self {
        let nobody = Address::from_words([0, 0]);
        Self {
            l3,
            l4: l3,
            protocol: 0,
            source: nobody,
            destination: nobody,
            source_port: 0,
            destination_port: 0,
            defect: Some(defect),
        }
    }
}

/// Who sends TCP and UDP can be found; and no error is sent about an error (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)), of which
/// `first` would be the type.
#[inline(always)]
const fn defect_of_protocol(protocol: u8, is_v4: bool, first: u8) -> Option<Reason> {
    match (protocol, is_v4) {
        (protocol::TCP | protocol::UDP, _) => None,
        (protocol::ICMP, true) | (protocol::ICMPV6, false) if is_error(first, is_v4) => Some(Reason::IcmpForeign),
        _ => Some(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn quoted_v4<F: Frame>(frame: &F, l3: usize) -> Quote {
    let Some(ip) = frame.at::<IPV4>(l3) else { return Quote::unreadable(l3, Reason::Malformed) };
    let version_ihl: u8 = ip.get::<{ v4::VERSION_IHL }, _>();
    let header = (version_ihl & 15) as usize * 4;
    // The first fragment has ports, and is as long as the others: what is said of them is said of it too.
    let is_later = ip.get::<{ v4::FRAGMENT }, u16>() & 0x1fffu16.to_be() != 0;
    let defect = if version_ihl >> 4 != 4 || header < IPV4 {
        Some(Reason::Malformed)
    } else if is_later {
        Some(Reason::IcmpNoPorts)
    } else {
        None
    };
    Quote {
        l3,
        l4: l3 + header,
        protocol: ip.get::<{ v4::PROTOCOL }, _>(),
        source: Address::from_v4_word(ip.get::<{ v4::SOURCE }, _>()),
        destination: Address::from_v4_word(ip.get::<{ v4::DESTINATION }, _>()),
        source_port: 0,
        destination_port: 0,
        defect,
    }
}

#[inline(always)]
fn quoted_v6<F: Frame>(frame: &F, l3: usize) -> Quote {
    let Some(ip) = frame.at::<IPV6>(l3) else { return Quote::unreadable(l3, Reason::Malformed) };
    let source = Address::from_words([ip.get::<{ v6::SOURCE }, _>(), ip.get::<{ v6::SOURCE + 8 }, _>()]);
    let destination = Address::from_words([ip.get::<{ v6::DESTINATION }, _>(), ip.get::<{ v6::DESTINATION + 8 }, _>()]);
    let (protocol, extensions, defect) = headers::skip_quoted_extensions(frame, l3 + IPV6, ip.get::<{ v6::NEXT }, _>());
    let defect = if ip.get::<0, u8>() >> 4 != 6 || destination.is_v4() {
        Some(Reason::Malformed)
    } else if defect.is_some_and(|defect| matches!(defect, Reason::Fragment)) {
        Some(Reason::IcmpNoPorts)
    } else {
        defect
    };
    let l4 = l3 + IPV6 + extensions;
    Quote { l3, l4, protocol, source, destination, source_port: 0, destination_port: 0, defect }
}

/// Answers an ICMP echo request to a VIP, hands an ICMP error to the pod whose packet it quotes, and passes the rest.
#[inline(always)]
pub fn to_vip<F: Frame, T: Tables>(frame: &mut F, tables: &T, headers: &Headers) -> Verdict {
    let quote = quote(frame, headers);
    match quote.defect {
        None => to_pod(frame, tables, headers, &quote),
        Some(Reason::OtherProtocol) => answer::echo(frame, tables, headers),
        Some(reason) => Verdict::Drop(reason),
    }
}

/// Hands an error to the pod that the client's own packets go to.
#[inline(always)]
fn to_pod<F: Frame, T: Tables>(frame: &mut F, tables: &T, headers: &Headers, quote: &Quote) -> Verdict {
    let key = ServiceKey::new(quote.source, quote.source_port, quote.protocol);
    let service = match tables.service(&key) {
        Some(service) if service.backends_count != 0 => service,
        _ => return Verdict::Drop(Reason::IcmpUnowned),
    };
    let ports = ports_word(quote.destination_port, quote.source_port);
    let (client, vip) = (quote.destination.words(), quote.source.words());
    let hash = flow_hash(tables.maglev_seed(), client, vip, ports, quote.protocol);
    // As if the client had answered what is quoted.
    let flow = Headers { source: quote.destination, protocol: quote.protocol, ..*headers };
    let backend = match steer::choose(tables, &flow, &service, hash, quote.destination_port, steer::Kind::Quoted) {
        Choice::Backend(_, backend) => backend,
        Choice::Nobody => return Verdict::Drop(Reason::IcmpUnowned),
        Choice::Broken => return Verdict::Drop(Reason::BrokenTable),
    };
    if let Some(reason) = steer::unusable(backend, headers.is_v4) {
        return Verdict::Drop(reason);
    }
    // A pod that owns the VIP gets everything as it came; this node is no hop on the way there.
    let is_hop = backend.rung != rung::DIRECT;
    // What would be answered by an error, which is never sent about one.
    if is_hop && headers.hops <= 1 || headers.length > backend.mtu as usize {
        return Verdict::Drop(Reason::NotAnswered);
    }
    let change = Change {
        address: backend.address,
        port: backend.port,
        sum: backend.address_change as u64,
        outer: true,
        hop: is_hop,
    };
    if !rewrite::<true, F>(frame, headers, quote, &change) {
        return Verdict::Drop(Reason::NoRoom);
    }
    steer::deliver(frame, headers, backend)
}

/// What becomes of an ICMP message that leaves a pod, or the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// Left as it is.
    Pass(Reason),
    /// Not forwarded.
    Drop(Reason),
    /// Rewritten, for a client of a VIP.
    Client(Client),
}

/// Whom an error was rewritten for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Client {
    /// The client.
    pub client: Address,
    /// The VIP that it talks to.
    pub vip: Address,
    /// The id of the backend that the error is counted under.
    pub backend: u32,
    /// Zero.
    pub pad: u32,
}

/// Rewrites an error about a packet that came through a VIP. Whether it did is asked as for a reply. The source becomes
/// the VIP where it is the pod's; a router between the VIP and the pod, such as this node, remains one.
#[inline(always)]
pub fn to_client<F: Frame, T: ReturnTables>(frame: &F, tables: &T, place: Place) -> Told {
    let Some(headers) = &headers::parse(frame) else { return Told::Pass(Reason::NotAReply) };
    let quote = quote(frame, headers);
    if quote.defect.is_some() {
        return Told::Pass(Reason::NotAReply);
    }
    if quote.protocol == protocol::UDP && headers.source == quote.destination && is_port_unreachable(frame, headers) {
        note_refused(tables, &quote);
    }
    let key = BypassKey {
        client: quote.source,
        pod: quote.destination,
        client_port: quote.source_port,
        pod_port: quote.destination_port,
        protocol: quote.protocol,
        pad: 0,
        pad2: 0,
    };
    let (backend, vip, port) = match reply::through(tables, &key, false, place) {
        Through::Service { backend, vip, port, .. } => (backend, vip, port),
        Through::Dropped(reason) => return Told::Drop(reason),
        Through::Passed(reason) => return Told::Pass(reason),
        // The self-test is answered by segments.
        Through::Nobody | Through::SelfTest { .. } => return Told::Pass(Reason::NotAReply),
    };
    if place == Place::Pod && headers.hops <= 1 {
        return Told::Pass(Reason::TtlExceeded);
    }
    let change = Change {
        address: vip,
        port,
        sum: checksum::change_address(quote.destination, vip, headers.is_v4) as u64,
        outer: headers.source == quote.destination,
        hop: place == Place::Pod,
    };
    match rewrite::<false, F>(frame, headers, &quote, &change) {
        true => Told::Client(Client { client: headers.destination, vip, backend, pad: 0 }),
        false => Told::Drop(Reason::NoRoom),
    }
}

/// Whether it says that nobody has the port (RFC 792; RFC 4443, 3.1).
#[inline(always)]
fn is_port_unreachable<F: Frame>(frame: &F, headers: &Headers) -> bool {
    let [kind, code] = if headers.is_v4 { [3, 3] } else { [1, 4] };
    frame.at::<ICMP>(headers.l4).is_some_and(|icmp| icmp.get::<0, u16>() == u16::from_ne_bytes([kind, code]))
}

/// Counts a datagram that an endpoint's own kernel had no socket for, whichever way it came: the agent's health checks read
/// that. Of a pod that owns its VIP, the endpoint is known by the interface.
#[inline(always)]
fn note_refused<T: ReturnTables>(tables: &T, quote: &Quote) {
    let key = ServiceKey::new(quote.destination, quote.destination_port, quote.protocol);
    let endpoint = match tables.endpoint(&key) {
        None => tables.endpoint(&key.at(tables.interface())),
        found => found,
    };
    if let Some(counts) = endpoint.and_then(|endpoint| tables.counts(endpoint.id)) {
        counts.watch.note_refused();
    }
}

/// What is put in place of the service's end of a quoted packet.
struct Change {
    address: Address,
    /// Host order.
    port: u16,
    /// What sums over the old address change by.
    sum: u64,
    /// Also in place of the error's own address of that end.
    outer: bool,
    /// Whether a hop is used up.
    hop: bool,
}

/// Rewrites the service's end: inwards the quoted source and the error's destination, outwards the other two. False where
/// a part cannot be written.
#[inline(always)]
fn rewrite<const INWARDS: bool, F: Frame>(frame: &F, headers: &Headers, quote: &Quote, change: &Change) -> bool {
    let Change { address, sum, outer, .. } = *change;
    if !rewrite_outer::<INWARDS, F>(frame, headers, change) {
        return false;
    }
    let Some(transport) = rewrite_transport::<INWARDS, F>(frame, headers, quote, change) else { return false };
    // ICMPv6 has its own addresses in its checksum (RFC 4443, 2.3).
    let pseudo = if outer && !headers.is_v4 { sum } else { 0 };
    let header = if headers.is_v4 {
        let Some(ip) = frame.at::<IPV4>(quote.l3) else { return false };
        let old = ip.get::<{ v4::CHECKSUM }, u16>();
        let new = checksum::update(old, sum);
        ip.put::<{ v4::CHECKSUM }, u16>(new);
        match INWARDS {
            true => ip.put::<{ v4::SOURCE }, u32>(address.v4_word()),
            false => ip.put::<{ v4::DESTINATION }, u32>(address.v4_word()),
        }
        checksum::change16(old, new)
    } else {
        let Some(ip) = frame.at::<IPV6>(quote.l3) else { return false };
        put_v6::<INWARDS, _>(ip, address);
        0
    };
    let Some(icmp) = frame.at::<ICMP>(headers.l4) else { return false };
    icmp.put::<2, u16>(checksum::update(icmp.get::<2, _>(), sum + header + pseudo + transport));
    true
}

/// The error's own header.
#[inline(always)]
fn rewrite_outer<const INWARDS: bool, F: Frame>(frame: &F, headers: &Headers, change: &Change) -> bool {
    let Change { address, sum, outer, hop, .. } = *change;
    let hops = headers.hops.wrapping_sub(hop as u8);
    if headers.is_v4 {
        let Some(ip) = frame.at::<IPV4>(headers.l3) else { return false };
        let of_hops = checksum::change16(u16::from_ne_bytes([headers.hops, 0]), u16::from_ne_bytes([hops, 0]));
        let of_address = if outer { sum } else { 0 };
        let check = ip.get::<{ v4::CHECKSUM }, u16>();
        ip.put::<{ v4::CHECKSUM }, u16>(checksum::update(check, of_address + of_hops));
        ip.put::<{ v4::TTL }, u8>(hops);
        if outer {
            match INWARDS {
                true => ip.put::<{ v4::DESTINATION }, u32>(address.v4_word()),
                false => ip.put::<{ v4::SOURCE }, u32>(address.v4_word()),
            }
        }
    } else {
        let Some(ip) = frame.at::<IPV6>(headers.l3) else { return false };
        ip.put::<{ v6::HOPS }, u8>(hops);
        if outer {
            // The other end's field than in the quoted packet.
            match INWARDS {
                true => put_v6::<false, _>(ip, address),
                false => put_v6::<true, _>(ip, address),
            }
        }
    }
    true
}

/// Port and checksum of the quoted packet, as far as they are there; what the sum over both changes by.
#[inline(always)]
fn rewrite_transport<const INWARDS: bool, F: Frame>(
    frame: &F,
    headers: &Headers,
    quote: &Quote,
    change: &Change,
) -> Option<u64> {
    let (new_port, sum) = (change.port.to_be(), change.sum);
    let transport = frame.at::<UDP>(quote.l4)?;
    let old_port: u16 = if INWARDS { transport.get::<0, _>() } else { transport.get::<2, _>() };
    match INWARDS {
        true => transport.put::<0, u16>(new_port),
        false => transport.put::<2, u16>(new_port),
    }
    let ports = checksum::change16(old_port, new_port);
    if quote.protocol == protocol::UDP {
        let old: u16 = transport.get::<6, _>();
        // None, which is right in IPv4 and stays wrong in IPv6.
        if old == 0 {
            return Some(ports);
        }
        let new = checksum::udp(checksum::update(old, sum + ports));
        transport.put::<6, u16>(new);
        return Some(ports + checksum::change16(old, new));
    }
    if quote.l4 + TCP_CHECKSUM + 2 > headers.l3 + headers.length {
        return Some(ports);
    }
    let check = frame.at::<2>(quote.l4 + TCP_CHECKSUM)?;
    let old: u16 = check.get::<0, _>();
    let new = checksum::update(old, sum + ports);
    check.put::<0, u16>(new);
    Some(ports + checksum::change16(old, new))
}

/// Writes the source or the destination of an IPv6 header.
#[inline(always)]
fn put_v6<const SOURCE: bool, V: View<IPV6>>(ip: V, address: Address) {
    let words = address.words();
    if SOURCE {
        ip.put::<{ v6::SOURCE }, u64>(words[0]);
        ip.put::<{ v6::SOURCE + 8 }, u64>(words[1]);
    } else {
        ip.put::<{ v6::DESTINATION }, u64>(words[0]);
        ip.put::<{ v6::DESTINATION + 8 }, u64>(words[1]);
    }
}
