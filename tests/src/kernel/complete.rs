//! Test runs on buffers whose sum the kernel knows (`CHECKSUM_COMPLETE`), and verifies after the program. aya has no flag for it.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::programs::SchedClassifier;

const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// Linux 6.16.
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

/// The part of `union bpf_attr` that is about test runs (include/uapi/linux/bpf.h).
#[derive(Default)]
#[repr(C)]
struct Attributes {
    program: u32,
    returned: u32,
    in_bytes: u32,
    out_bytes: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_bytes: [u32; 2],
    contexts: [u64; 2],
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

/// Runs a program on a packet: its action, and the packet's length in `out` after. `EBADMSG` where the sum beside the packet is no longer the packet's.
pub fn run(program: &SchedClassifier, packet: &[u8], out: &mut [u8]) -> io::Result<(i32, usize)> {
    let fd = program.fd().map_err(io::Error::other)?;
    let mut attributes = Attributes {
        program: fd.as_fd().as_raw_fd() as u32,
        in_bytes: packet.len() as u32,
        out_bytes: out.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        ..Attributes::default()
    };
    // SAFETY: the attributes and both buffers live across the call, with the lengths that are said.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>()) };
    if result == 0 {
        Ok((attributes.returned as i32, attributes.out_bytes as usize))
    } else {
        Err(io::Error::last_os_error())
    }
}
