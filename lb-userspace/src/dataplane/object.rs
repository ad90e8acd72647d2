//! The eBPF object: where it comes from, and how it is loaded.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::ProgramArray,
    programs::{Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{COARSE_SHIFT, program, return_program},
    agent::earlier,
};
use tracing::warn;

use super::{DataPlaneError, bpffs, capacity::Sizes, earlier::Beside, signals::BlockedSignals, summed::Summed};
use crate::model::Capacities;

/// The object that `cargo xtask build` put into this program.
#[cfg(sluice_ebpf_object)]
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(env!("SLUICE_EBPF_OBJECT"));
#[cfg(not(sluice_ebpf_object))]
static EMBEDDED: &[u8] = &[];

/// Names of the XDP programs.
pub const XDP_PROGRAMS: [&str; 5] =
    ["sluice_xdp", "sluice_xdp_slow", "sluice_xdp_fragment", "sluice_xdp_neighbor", "sluice_inject"];
/// Names of the tc programs.
pub const TC_PROGRAMS: [&str; 8] = [
    "sluice_return",
    "sluice_return_slow",
    "sluice_return_fragment",
    "sluice_bypass",
    "sluice_uplink_in",
    "sluice_uplink_out",
    "sluice_out_fragment",
    CLOCK,
];
const CLOCK: &str = "sluice_clock";
/// Programs that others go on in: the map, their place in it, their name.
pub const CALLED_PROGRAMS: [(&str, u32, &str); 6] = [
    ("programs", program::SLOW, "sluice_xdp_slow"),
    ("programs", program::FRAGMENT, "sluice_xdp_fragment"),
    ("programs", program::NEIGHBOR, "sluice_xdp_neighbor"),
    ("return_programs", return_program::SLOW, "sluice_return_slow"),
    ("return_programs", return_program::POD_FRAGMENT, "sluice_return_fragment"),
    ("return_programs", return_program::UPLINK_FRAGMENT, "sluice_out_fragment"),
];

/// Maps of programs that others go on in. They belong to the programs, not to the data plane: each load has its own,
/// because an agent's programs go on in programs of the same build.
pub const CALLS: [&str; 2] = ["programs", "return_programs"];

/// Maps that are those of an earlier data plane while programs are switched from that. Otherwise nothing is in them, and
/// they are not pinned.
pub const EARLIER: [&str; 2] = ["earlier_bypasses", "earlier_flows"];

/// Where maps are pinned, and taken from where they are pinned already.
#[derive(Clone, Debug)]
pub struct Pins {
    maps: PathBuf,
    /// Tells this load's [`CALLS`] from those of the programs that are still attached.
    load: (u32, u32),
}

impl Pins {
    /// In this directory, for one load.
    pub fn new(maps: PathBuf) -> Self {
        static LOADS: AtomicU32 = AtomicU32::new(0);
        Self { maps, load: (std::process::id(), LOADS.fetch_add(1, Relaxed)) }
    }

    fn path(&self, map: &str) -> PathBuf {
        let (process, number) = self.load;
        if CALLS.contains(&map) { self.maps.join(format!("{map}-{process}-{number}")) } else { self.maps.join(map) }
    }

    /// Once no program of an earlier load is attached: this load's [`CALLS`] get their proper names, and others go.
    pub fn settle(&self) -> io::Result<()> {
        for map in CALLS {
            fs::rename(self.path(map), self.maps.join(map))?;
            let others = format!("{map}-");
            for pin in bpffs::entries(&self.maps)? {
                if pin.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&others)) {
                    fs::remove_file(pin)?;
                }
            }
        }
        Ok(())
    }
}

/// What a map is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `enum bpf_map_type` (include/uapi/linux/bpf.h).
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries at most.
    pub entries: u32,
    /// `BPF_F_…` (include/uapi/linux/bpf.h) that it is made with: whether it can be mapped into memory. The kernel adds some.
    pub flags: u32,
}

/// The shape of each map, by name.
pub type Shapes = BTreeMap<String, Shape>;

/// What the maps of these sizes are shaped like.
pub fn shapes(sizes: &Sizes) -> Result<Shapes, DataPlaneError> {
    let object = aya_obj::Object::parse(&bytes()?).map_err(|_| DataPlaneError::ForeignObject { what: "maps" })?;
    let entries: BTreeMap<&str, u32> = sizes.maps(1).into_iter().map(|(name, entries, _)| (name, entries)).collect();
    let shape = |(name, map): (String, aya_obj::Map)| {
        let entries = entries.get(name.as_str()).copied()?;
        let (kind, flags) = (map.map_type(), map.map_flags());
        Some((name, Shape { kind, key: map.key_size(), value: map.value_size(), entries, flags }))
    };
    Ok(object.maps.into_iter().filter_map(shape).collect())
}

/// Whether a load pins a map by this name.
pub fn is_map(name: &str) -> bool {
    let of_load = |map: &str| name.strip_prefix(map).is_some_and(|rest| rest.starts_with('-'));
    let sizes = Sizes::new(&Capacities::default());
    sizes.maps(1).iter().any(|(map, ..)| *map == name) || CALLS.into_iter().any(of_load)
}

fn bytes() -> Result<Cow<'static, [u8]>, DataPlaneError> {
    match (EMBEDDED, std::env::var_os("SLUICE_EBPF_OBJECT")) {
        ([], None) => Err(DataPlaneError::NoObject),
        ([], Some(path)) => {
            let read = fs::read(&path).map_err(|source| DataPlaneError::PinDirectory {
                path: path.into(),
                what: "reading the eBPF object",
                source,
                advice: "; build it with `cargo xtask build-ebpf`",
            })?;
            Ok(read.into())
        }
        (embedded, _) => Ok(embedded.into()),
    }
}

/// Loads the object's maps and programs; nothing is attached. With `pins`, maps that are pinned there already are the
/// object's, and the others are made and pinned.
pub fn load(sizes: &Sizes, pins: Option<&Pins>) -> Result<Ebpf, DataPlaneError> {
    load_beside(sizes, pins, None)
}

/// As [`load`]; with `beside`, programs that look into the maps of an earlier data plane too.
pub fn load_beside(sizes: &Sizes, pins: Option<&Pins>, beside: Option<&Beside>) -> Result<Ebpf, DataPlaneError> {
    let mut object = make_maps(sizes, pins, beside)?;
    // The kernel verifies each for itself, and the largest take a second: side by side they take as long as the longest.
    let _blocked = BlockedSignals::new();
    std::thread::scope(|scope| {
        let loads = object.programs_mut().filter(|(name, _)| *name != CLOCK);
        let loads: Vec<_> = loads.map(|(name, program)| scope.spawn(move || load_program(name, program))).collect();
        loads.into_iter().try_for_each(|load| load.join().expect("loading a program does not panic"))
    })?;
    fill_programs(&mut object)?;
    Ok(object)
}

fn load_program(name: &str, program: &mut Program) -> Result<(), DataPlaneError> {
    let Some(name) = XDP_PROGRAMS.into_iter().chain(TC_PROGRAMS).find(|known| *known == name) else { return Ok(()) };
    let done = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(DataPlaneError::ForeignObject { what: name }),
    };
    done.map_err(|source| loading(name, source))
}

/// The object's maps, as for [`load`], and of its programs only the clock.
pub fn make_maps(sizes: &Sizes, pins: Option<&Pins>, beside: Option<&Beside>) -> Result<Ebpf, DataPlaneError> {
    let bytes = bytes()?;
    let filled = with_summed(&bytes)?;
    let mut loader = EbpfLoader::new();
    let (mut earlier, mut flows_log2, mut backend_at) = (0, 0, 0);
    if let Some(beside) = beside {
        earlier |= beside.flows_log2.map_or(0, |_| earlier::FLOWS);
        earlier |= beside.backend_at.map_or(0, |_| earlier::BYPASSES);
        (flows_log2, backend_at) = (beside.flows_log2.unwrap_or(0), beside.backend_at.unwrap_or(0));
    }
    loader
        .override_global("EARLIER", &earlier, true)
        .override_global("EARLIER_FLOWS_LOG2", &flows_log2, true)
        .override_global("EARLIER_BACKEND_AT", &backend_at, true)
        .override_global("SERVICE_INDEX_LOG2", &sizes.service_index_log2, true)
        .override_global("ENDPOINT_INDEX_LOG2", &sizes.endpoint_index_log2, true)
        .override_global("FLOWS_LOG2", &sizes.flows_log2, true)
        .override_global("FRAGMENTS_LOG2", &sizes.fragments_log2, true);
    for (name, entries, _) in sizes.maps(1) {
        loader.map_max_entries(name, entries);
        if let Some(pins) = pins.filter(|_| !EARLIER.contains(&name)) {
            loader.map_pin_path(name, pins.path(name));
        }
    }
    if let Some(beside) = beside {
        let readable = [beside.backend_at.is_some(), beside.flows_log2.is_some()];
        for (name, _) in EARLIER.into_iter().zip(readable).filter(|(_, readable)| *readable) {
            loader.map_pin_path(name, beside.maps.join(name.trim_start_matches("earlier_")));
        }
    }
    let mut object = loader.load(&filled).map_err(|error| DataPlaneError::Load(Box::new(error)))?;
    let _blocked = BlockedSignals::new();
    tc(&mut object, CLOCK)?.load().map_err(|source| loading(CLOCK, source))?;
    Ok(object)
}

/// Puts the programs that others go on in where they are called from. Pinned with the map, they stay.
fn fill_programs(object: &mut Ebpf) -> Result<(), DataPlaneError> {
    for (map, position, name) in CALLED_PROGRAMS {
        let fd = match object.program_mut(name) {
            Some(Program::Xdp(program)) => program.fd(),
            Some(Program::SchedClassifier(program)) => program.fd(),
            _ => return Err(DataPlaneError::ForeignObject { what: name }),
        };
        let fd = fd.and_then(|fd| fd.try_clone().map_err(ProgramError::from));
        let fd = fd.map_err(|source| loading(name, source))?;
        let programs = object.map_mut(map).ok_or(DataPlaneError::ForeignObject { what: map })?;
        ProgramArray::try_from(programs)?.set(position, &fd, 0)?;
    }
    Ok(())
}

/// The object with what the kernel knows of checksums, where it does.
fn with_summed(bytes: &[u8]) -> Result<Vec<u8>, DataPlaneError> {
    let mut object = bytes.to_vec();
    match Summed::of_kernel() {
        Some(summed) if summed.fill(&mut object) == 0 => {
            Err(DataPlaneError::ForeignObject { what: "place for ip_summed" })
        }
        Some(_) => Ok(object),
        None => {
            warn!("the kernel has no bpf_cast_to_kern_ctx or no BTF: replies cost some 20 ns more");
            Ok(object)
        }
    }
}

fn loading(program: &'static str, source: ProgramError) -> DataPlaneError {
    DataPlaneError::Program {
        program,
        interface: "-".into(),
        source: Box::new(source),
        advice: "; the kernel must be 6.6 or newer, and the agent needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN".into(),
    }
}

/// The uplink's program.
pub fn xdp(object: &mut Ebpf) -> Result<&mut Xdp, DataPlaneError> {
    xdp_named(object, "sluice_xdp")
}

/// The program that brings frames of the self-test in where XDP is generic.
pub fn inject(object: &mut Ebpf) -> Result<&mut Xdp, DataPlaneError> {
    xdp_named(object, "sluice_inject")
}

fn xdp_named<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, DataPlaneError> {
    match object.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(DataPlaneError::ForeignObject { what: name }),
    }
}

/// A tc program.
pub fn tc<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, DataPlaneError> {
    match object.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(DataPlaneError::ForeignObject { what: name }),
    }
}

/// The kernel's clock as the programs see it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Jiffies in a second.
    pub hertz: u64,
    read_at: Instant,
    jiffies: u32,
}

impl Clock {
    /// Measures the kernel's tick, which no file tells reliably.
    pub fn measure(object: &mut Ebpf) -> Result<Self, DataPlaneError> {
        let (from, start) = (jiffies(object)?, Instant::now());
        // Time itself is what is measured here.
        std::thread::sleep(Duration::from_millis(60));
        let (to, elapsed) = (jiffies(object)?, start.elapsed());
        let measured = f64::from(to.wrapping_sub(from)) / elapsed.as_secs_f64();
        let distance = |hertz: &u64| ((*hertz as f64 - measured).abs() * 1000.0) as u64;
        let hertz = [100, 250, 300, 1000].into_iter().min_by_key(distance).unwrap_or(250);
        Ok(Self { hertz, read_at: Instant::now(), jiffies: to })
    }

    /// Coarse ticks since a record was used last.
    pub fn ticks_since(&self, since: u32) -> u32 {
        age(self.coarse(), since)
    }

    /// The same in time.
    pub fn age(&self, since: u32) -> Duration {
        Duration::from_millis(u64::from(self.ticks_since(since)) * (1 << COARSE_SHIFT) * 1000 / self.hertz)
    }

    /// So much time in coarse ticks.
    pub const fn ticks(&self, time: Duration) -> u32 {
        ((time.as_secs() * self.hertz) >> COARSE_SHIFT) as u32
    }

    /// Coarse time of records now, as [`lb_common::abi::coarse_ticks`] counts it, without its highest bits.
    pub fn coarse(&self) -> u32 {
        let since = self.read_at.elapsed().as_millis() as u64 * self.hertz / 1000;
        lb_common::abi::coarse_ticks(u64::from(self.jiffies).wrapping_add(since))
    }
}

/// Coarse ticks from `since` to `now`. The highest bits of a coarse time are the kernel's alone; what seems to come is
/// of this moment, because two clocks tick here.
const fn age(now: u32, since: u32) -> u32 {
    let age = now.wrapping_sub(since) & KNOWN;
    if age > KNOWN / 2 { 0 } else { age }
}

/// Bits of a coarse time that a program's return value tells.
const KNOWN: u32 = u32::MAX >> COARSE_SHIFT;

fn jiffies(object: &mut Ebpf) -> Result<u32, DataPlaneError> {
    let frame = [0; 64];
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
    let run = tc(object, CLOCK)?.test_run(options).map_err(|error| DataPlaneError::Clock(Box::new(error)))?;
    Ok(run.return_value)
}

#[cfg(test)]
mod tests {
    use super::age;

    #[test]
    fn an_age_knows_nothing_of_the_highest_bits_and_none_of_the_future() {
        assert_eq!(age(0x0000_0010, 0x4200_0004), 12);
        assert_eq!(age(0x0000_0003, 0x41ff_ffff), 4);
        assert_eq!(age(0x0000_0010, 0x4200_0011), 0, "the kernel's clock is ahead");
    }
}
