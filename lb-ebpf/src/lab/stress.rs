//! Torture of the flow cache: every turn looks for one of few keys in a table that is too small for them, and records it
//! where it is missing, as `sluice_xdp` does. On all CPUs at once, while user space removes what it finds.

use core::ffi::{c_long, c_void};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_action},
    btf_maps::{Array, PerCpuArray},
    helpers::generated::bpf_loop,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::flow;

use crate::torture::{BUCKETS, Tally, question};

// The product's own cache, with one check taken out of it by the build script: the negative control.
include!(concat!(env!("OUT_DIR"), "/unchecked.rs"));

/// The table.
#[btf_map(name = "stress_flows")]
static FLOWS: Array<flow::Bucket, BUCKETS, { BPF_F_MMAPABLE as usize }> = Array::new();
/// By [`stress`] and [`stress_unchecked`].
#[btf_map(name = "tally")]
static TALLY: PerCpuArray<Tally, 2> = PerCpuArray::new();

macro_rules! torture {
    ($cache:path, $tally:literal, $bucket:expr) => {{
        use $cache as cache;
        let Some(tally) = TALLY.get_ptr_mut($tally) else { return STOP };
        // SAFETY: this CPU's own element.
        let tally = unsafe { &mut *tally };
        let random = tally.next();
        let question = question(random >> 20);
        let key = cache::Key::udp(question.endpoint, question.client, question.port);
        let Some(bucket) = FLOWS.get((key.hash(0) >> 61) as u32) else { return STOP };
        let bucket: &cache::Bucket = $bucket(bucket);
        // The time moves often, so that found records are refreshed too.
        let now = (random >> 32) as u32 & 3;
        match cache::find(bucket, &key, now) {
            Some(backend) => {
                tally.hits += 1;
                tally.wrong += (backend != question.backend) as u64;
            }
            None => {
                tally.misses += 1;
                let full = bucket.entries.iter().all(|entry| entry.control.load() << 16 != 0);
                tally.evictions += full as u64;
                cache::record(bucket, &key, question.backend, now);
            }
        }
        CONTINUE
    }};
}

/// What a callback of `bpf_loop` returns.
const CONTINUE: c_long = 0;
const STOP: c_long = 1;

/// Turns in one run: what a test run does for each run takes many times as long as one.
const TURNS: u32 = 64;

/// The flow cache as it is.
#[xdp]
pub fn stress(_ctx: XdpContext) -> u32 {
    repeat(turn)
}

/// The flow cache without the reader's second look.
#[xdp]
pub fn stress_unchecked(_ctx: XdpContext) -> u32 {
    repeat(turn_unchecked)
}

unsafe extern "C" fn turn(_number: u32, _context: *mut c_void) -> c_long {
    torture!(flow, 0, |bucket| bucket)
}

unsafe extern "C" fn turn_unchecked(_number: u32, _context: *mut c_void) -> c_long {
    // SAFETY: the same layout, by the same source.
    torture!(unchecked, 1, |bucket: &'static flow::Bucket| unsafe { &*core::ptr::from_ref(bucket).cast() })
}

#[inline(always)]
fn repeat(turn: unsafe extern "C" fn(u32, *mut c_void) -> c_long) -> u32 {
    // SAFETY: the callback takes nothing.
    let turns = unsafe { bpf_loop(TURNS, turn as *mut c_void, core::ptr::null_mut(), 0) };
    if turns == TURNS as c_long { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}
