//! The lab's eBPF object: loads, floors and single map operations.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData, ProgramArray, xdp::DevMap},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use lb_tests::lab::LAB_OBJECT;

#[path = "../../../../lb-ebpf/src/lab/load.rs"]
mod load;
pub use load::Load;

// SAFETY: repr(C), plain integers without padding between them; any bytes are a value.
unsafe impl aya::Pod for Load {}

/// The kind of program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// XDP.
    Xdp,
    /// tc.
    Tc,
}

const XDP_PROGRAMS: [&str; 10] = [
    "drop",
    "redirect",
    "empty",
    "transmit",
    "hash_lookup",
    "hash_fill",
    "lru_lookup",
    "lru_fill",
    "vary_v4",
    "vary_v6",
];
const TC_PROGRAMS: [&str; 3] = ["empty_tc", "vary_reply_v4", "vary_reply_v6"];

/// Index of the empty program in both arrays.
pub const EMPTY: u32 = 0;
/// Index of `hash_lookup`.
pub const HASH: u32 = 1;
/// Index of `lru_lookup`.
pub const LRU: u32 = 2;
/// Index of `lru_fill`.
pub const LRU_FILL: u32 = 3;
/// Index of `transmit`.
pub const TRANSMIT: u32 = 4;
/// Index of `hash_fill`.
pub const HASH_FILL: u32 = 6;
/// Index of the product's program in both arrays.
pub const PRODUCT: u32 = 5;

/// The lab's programs, loaded.
pub struct LabPrograms {
    object: Ebpf,
    load: Array<MapData, Load>,
    xdp_targets: ProgramArray<MapData>,
    tc_targets: ProgramArray<MapData>,
    ports: DevMap<MapData>,
}

impl LabPrograms {
    /// Loads everything, with the lab's own programs as targets.
    pub fn load() -> Result<Self> {
        let path = std::env::var_os(LAB_OBJECT)
            .with_context(|| format!("{LAB_OBJECT} is not set: run this as `cargo xtask bench`"))?;
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut object = Ebpf::load(&bytes).context("cannot load the lab's eBPF object")?;
        for name in XDP_PROGRAMS {
            xdp(&mut object, name)?.load().with_context(|| format!("cannot load {name}"))?;
        }
        for name in TC_PROGRAMS {
            tc(&mut object, name)?.load().with_context(|| format!("cannot load {name}"))?;
        }
        let mut lab = Self {
            load: object.take_map("load").context("no map load")?.try_into()?,
            xdp_targets: object.take_map("xdp_targets").context("no map xdp_targets")?.try_into()?,
            tc_targets: object.take_map("tc_targets").context("no map tc_targets")?.try_into()?,
            ports: object.take_map("ports").context("no map ports")?.try_into()?,
            object,
        };
        for (index, name) in [
            (EMPTY, "empty"),
            (HASH, "hash_lookup"),
            (HASH_FILL, "hash_fill"),
            (LRU, "lru_lookup"),
            (LRU_FILL, "lru_fill"),
            (TRANSMIT, "transmit"),
        ] {
            lab.xdp_targets.set(index, xdp(&mut lab.object, name)?.fd()?, 0)?;
        }
        lab.tc_targets.set(EMPTY, tc(&mut lab.object, "empty_tc")?.fd()?, 0)?;
        Ok(lab)
    }

    /// Sets the product's program of a kind.
    pub fn set_product(&mut self, kind: Kind, program: &ProgramFd) -> Result<()> {
        let targets = match kind {
            Kind::Xdp => &mut self.xdp_targets,
            Kind::Tc => &mut self.tc_targets,
        };
        targets.set(PRODUCT, program, 0).with_context(|| format!("cannot call {kind:?} {:?}", program.as_fd()))
    }

    /// Sets where `redirect` sends everything: an interface of the calling thread's namespace.
    pub fn set_port(&mut self, ifindex: u32) -> Result<()> {
        self.ports.set(0, ifindex, None, 0).context("cannot set the port of redirect")
    }

    /// An XDP program of the lab.
    pub fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        xdp(&mut self.object, name)
    }

    /// Runs `frame` through the target that `load` names, `repeat` times, and returns the last return value.
    pub fn run(
        &mut self,
        (kind, is_v4): (Kind, bool),
        load: &Load,
        frame: &[u8],
        context: Option<&[u8]>,
        repeat: u32,
    ) -> Result<u32> {
        self.load.set(0, load, 0)?;
        let options = TestRunOptions { data_in: Some(frame), ctx_in: context, repeat, ..TestRunOptions::default() };
        let run = match (kind, is_v4) {
            (Kind::Xdp, true) => self.xdp("vary_v4")?.test_run(options),
            (Kind::Xdp, false) => self.xdp("vary_v6")?.test_run(options),
            (Kind::Tc, true) => tc(&mut self.object, "vary_reply_v4")?.test_run(options),
            (Kind::Tc, false) => tc(&mut self.object, "vary_reply_v6")?.test_run(options),
        };
        Ok(run.context("BPF_PROG_TEST_RUN failed")?.return_value)
    }

    /// Sends `count` frames out of an interface of the calling thread's namespace.
    pub fn send(&mut self, load: &Load, frame: &[u8], interface: u32, count: u32) -> Result<()> {
        self.load.set(0, load, 0)?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&interface.to_ne_bytes());
        self.xdp("vary_v4")?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                repeat: count,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
            .context("cannot send live frames")?;
        Ok(())
    }
}

/// Frames that are sent before their softirq runs: a veth's ring takes 256.
const BATCH: u32 = 64;

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("the lab's object has no program {name}"))?.try_into()?)
}

fn tc<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(object.program_mut(name).with_context(|| format!("the lab's object has no program {name}"))?.try_into()?)
}
