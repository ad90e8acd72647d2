//! Maps that agents leave to each other, and the maps of an earlier data plane, which the return programs read too while
//! programs are switched.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use lb_common::{
    abi::{Bypass, BypassKey, Member, coarse_ticks},
    agent::{About, UNDO_MAX, Undo, UndoKey, earlier},
    flow::{self, Key},
};

use crate::maps::{MMAPABLE, jiffies, top_bits};

/// What is read in the maps of an earlier data plane too: [`EARLIER_BYPASSES`], [`EARLIER_FLOWS`]. Set by the loader
/// for the time in which programs are switched from that data plane's maps to these; 0 costs nothing, because the
/// verifier knows it.
#[unsafe(no_mangle)]
static EARLIER: Global<u32> = Global::new(0);
/// Logarithm to base 2 of the buckets in `earlier_flows`; set by the loader.
#[unsafe(no_mangle)]
static EARLIER_FLOWS_LOG2: Global<u32> = Global::new(0);
/// Where `backend` stands in a value of `earlier_bypasses`, which may be of another ABI; set by the loader.
#[unsafe(no_mangle)]
static EARLIER_BACKEND_AT: Global<u32> = Global::new(0);

/// The bypasses of an earlier data plane, while programs are switched: what was recorded there and is not copied yet.
/// Read by the return programs. 4.18.
#[btf_map(name = "earlier_bypasses")]
static EARLIER_BYPASSES: HashMap<BypassKey, Bypass, 1> = HashMap::new();
/// The flow cache of an earlier data plane, while programs are switched. Read by the return programs. 5.5.
#[btf_map(name = "earlier_flows")]
static EARLIER_FLOWS: Array<flow::Bucket, 1, MMAPABLE> = Array::new();

/// Backend id → whose backend that is. Written and read by agents alone, through memory. 5.5.
#[btf_map(name = "members")]
static MEMBERS: Array<Member, 1, MMAPABLE> = Array::new();
/// Which data plane this is. Written and read by agents alone. 4.18.
#[btf_map(name = "about")]
static ABOUT: Array<About, 1> = Array::new();
/// What agents have changed of others' interfaces, and how it was before. Written and read by agents alone. 4.18.
#[btf_map(name = "undo")]
static UNDO: HashMap<UndoKey, Undo, UNDO_MAX> = HashMap::new();

/// Whether bypasses may be recorded in the earlier data plane's map, where nothing counts them.
#[inline(always)]
pub fn has_bypasses() -> bool {
    EARLIER.load() & earlier::BYPASSES != 0
}

/// A bypass that only the earlier data plane knows.
#[inline(always)]
pub fn bypass(key: &BypassKey) -> Option<Bypass> {
    if EARLIER.load() & earlier::BYPASSES == 0 {
        return None;
    }
    let found = EARLIER_BYPASSES.get_ptr(key)?.cast::<u8>();
    // SAFETY: an aligned word of a live element, whose place the loader has read from the map's types.
    let backend = unsafe { found.add(EARLIER_BACKEND_AT.load() as usize).cast::<u32>().read_volatile() };
    Some(Bypass::new(backend, 0))
}

/// A client that only the earlier data plane knows.
#[inline(always)]
pub fn flow(key: &Key, table_seed: u64) -> Option<u32> {
    if EARLIER.load() & earlier::FLOWS == 0 {
        return None;
    }
    let bucket = EARLIER_FLOWS.get(top_bits(key.hash(table_seed), EARLIER_FLOWS_LOG2.load()))?;
    flow::find(bucket, key, coarse_ticks(jiffies()))
}
