//! Filters in the older places of tc, the queueing disciplines `clsact` and `ingress`: whose they are is not ours.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};

use super::{InterfaceIndex, Netlink, Result};

/// `TC_H_CLSACT` and its minor numbers (include/uapi/linux/pkt_sched.h); `ingress` has the first.
const PLACES: [(u16, &str); 2] = [(0xfff2, "ingress"), (0xfff3, "egress")];
const CLSACT: u16 = 0xffff;

/// A filter on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its kind, like `bpf` or `flower`.
    pub kind: String,
    /// `ingress` or `egress`.
    pub place: &'static str,
}

/// The filters on an interface, each kind once for each place.
pub fn of_interface(netlink: &mut Netlink, index: InterfaceIndex) -> Result<Vec<Filter>> {
    let mut filters = Vec::new();
    for (minor, place) in PLACES {
        let mut question = TcMessage::default();
        question.header.index = index as i32;
        question.header.parent = TcHandle { major: CLSACT, minor };
        let answers = match netlink.dump("list tc filters", RouteNetlinkMessage::GetTrafficFilter(question)) {
            // Without such a discipline there is no such place.
            Err(super::Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => continue,
            other => other?,
        };
        for answer in answers {
            let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { continue };
            let kind = message.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            });
            let filter = kind.map(|kind| Filter { kind, place });
            filters.extend(filter.filter(|filter| !filters.contains(filter)));
        }
    }
    Ok(filters)
}
