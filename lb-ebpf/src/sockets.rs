//! Asking the kernel for a TCP connection's socket.

use aya_ebpf::{
    bindings::bpf_sock_tuple,
    cty::c_void,
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp},
};
use lb_common::abi::BypassKey;

/// `struct bpf_sock_tuple` of IPv4 (include/uapi/linux/bpf.h): remote and local address, remote and local port.
#[repr(C)]
struct TupleV4 {
    client: u32,
    pod: u32,
    ports: u32,
}

/// The same of IPv6.
#[repr(C)]
struct TupleV6 {
    client: [u64; 2],
    pod: [u64; 2],
    ports: u32,
    pad: u32,
}

/// No state of include/net/tcp_states.h.
pub const NO_SOCKET: u32 = 0;
/// `TCP_LISTEN` of include/net/tcp_states.h.
pub const LISTEN: u32 = 10;

/// Asks the kernel for the state of a TCP connection's socket in a namespace, or in this one (`BPF_F_CURRENT_NETNS`).
#[inline(always)]
pub fn ask(context: *mut c_void, netns: u64, connection: &BypassKey) -> u32 {
    let BypassKey { client, pod, .. } = connection;
    let ports = connection.client_port.to_be() as u32 | (connection.pod_port.to_be() as u32) << 16;
    if pod.is_v4() {
        let mut tuple = TupleV4 { client: client.v4_word(), pod: pod.v4_word(), ports };
        // SAFETY: a tuple of 12 bytes.
        unsafe { look_up(context, (&raw mut tuple).cast(), 12, netns) }
    } else {
        let mut tuple = TupleV6 { client: client.words(), pod: pod.words(), ports, pad: 0 };
        // SAFETY: a tuple of 36 bytes.
        unsafe { look_up(context, (&raw mut tuple).cast(), 36, netns) }
    }
}

/// # Safety
/// The context must be the program's own, and the tuple have as many bytes.
#[inline(always)]
unsafe fn look_up(context: *mut c_void, tuple: *mut bpf_sock_tuple, bytes: u32, netns: u64) -> u32 {
    // SAFETY: as the caller warrants; the socket is released below.
    let socket = unsafe { bpf_skc_lookup_tcp(context, tuple, bytes, netns, 0) };
    if socket.is_null() {
        return NO_SOCKET;
    }
    // SAFETY: a socket that is held until it is released, once.
    let state = unsafe { (*socket).state };
    // SAFETY: as above.
    unsafe { bpf_sk_release(socket.cast()) };
    state
}
