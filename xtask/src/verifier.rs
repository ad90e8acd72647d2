//! What each program costs, from the kernel's verifier itself.
//!
//! aya creates the maps, but the programs are loaded by a call of our own: the depth of the stack stands only in the
//! verifier's log, and aya asks for that log only when a load fails.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CStr,
    io, mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result, bail};
use aya::maps::MapData;
use aya_obj::{
    EbpfSectionKind, Function, Object, Program, ProgramSection,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type},
};
use serde::{Deserialize, Serialize};

/// `BPF_LOG_LEVEL1`: each instruction. `BPF_LOG_STATS`: the closing lines with stack and work.
const LOG_INSTRUCTIONS: u32 = 1;
const LOG_STATS: u32 = 4;
/// The kernel keeps the log's end where it is longer.
const LOG_BYTES: usize = 1 << 20;
/// How much of a refused program's log is shown.
const TAIL_LINES: usize = 60;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// The loader rounds ring buffers up to a page; the largest page that a supported machine has.
const LARGEST_PAGE_BYTES: u32 = 1 << 16;

/// What one program costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// In the object, functions that are not inlined included.
    pub instructions: u32,
    /// That the verifier walked through, over all paths. The kernel's limit is a million.
    pub verified_instructions: u32,
    /// Bytes of stack, summed over the program's functions: never less than the deepest chain of calls.
    pub stack_bytes: u32,
}

/// Loads every program of an object and returns what each costs. `None` where this process may not load any.
pub fn measure(object: &[u8]) -> Result<Option<BTreeMap<String, Cost>>> {
    let mut object = Object::parse(object).context("this is no eBPF object")?;
    let features = aya::features();
    let btf = match features.btf() {
        Some(features) => object.fixup_and_sanitize_btf(features)?.map(|btf| btf.to_bytes()),
        None => None,
    };
    let btf = match btf.map(|bytes| load_btf(&bytes)).transpose() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(None),
        other => other.context("the kernel refuses the object's type information")?,
    };
    if object.has_btf_relocations() {
        object.relocate_btf(&aya::Btf::from_sys_fs()?)?;
    }
    let maps = match create_maps(&mut object, btf.as_ref()) {
        // Without capabilities some kernels accept the type information and only then refuse.
        Err(error) if is_not_permitted(&error) => return Ok(None),
        other => other?,
    };
    let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(maps.iter().map(|(name, (fd, map))| (name.as_str(), fd.as_raw_fd(), map)), &text_sections)?;
    object.relocate_calls(&text_sections)?;
    object.sanitize_functions(features);

    let mut costs = BTreeMap::new();
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let cost = load(program, function, btf.as_ref()).with_context(|| format!("program {name}"))?;
        costs.insert(name.clone(), cost);
    }
    Ok(Some(costs))
}

type Maps = HashMap<String, (OwnedFd, aya_obj::Map)>;

/// All maps, none pinned. Sizes that only the agent knows are made small.
fn create_maps(object: &mut Object, btf: Option<&OwnedFd>) -> Result<Maps> {
    let mut maps = Maps::new();
    for (name, mut map) in mem::take(&mut object.maps) {
        let map_type = map.map_type();
        if map_type == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
            map.set_max_entries(map.max_entries().next_power_of_two().max(LARGEST_PAGE_BYTES));
        } else if map.max_entries() == 0 && map_type != bpf_map_type::BPF_MAP_TYPE_PERF_EVENT_ARRAY as u32 {
            map.set_max_entries(1);
        }
        let data = MapData::create(map.clone(), &name, btf.map(|fd| fd.as_fd()))?;
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        fill(&fd, &map).with_context(|| format!("cannot fill {name}"))?;
        maps.insert(name, (fd, map));
    }
    Ok(maps)
}

/// Writes a data section's contents; read-only ones are frozen, so that the verifier knows their values.
fn fill(fd: &OwnedFd, map: &aya_obj::Map) -> io::Result<()> {
    if !map.data().is_empty() {
        let key = 0_u32;
        let mut attr = empty_attr();
        // SAFETY: the element part of the union is what this command reads; it was zeroed.
        let element = unsafe { &mut attr.__bindgen_anon_2 };
        element.map_fd = fd.as_raw_fd() as u32;
        element.key = (&raw const key) as u64;
        element.__bindgen_anon_1.value = map.data().as_ptr() as u64;
        bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        let mut attr = empty_attr();
        attr.__bindgen_anon_2.map_fd = fd.as_raw_fd() as u32;
        bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr)?;
    }
    Ok(())
}

fn is_not_permitted(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.raw_os_error() == Some(libc::EPERM))
}

fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: the BTF part of the union is what this command reads; it was zeroed.
    let part = unsafe { &mut attr.__bindgen_anon_7 };
    part.btf = bytes.as_ptr() as u64;
    part.btf_size = bytes.len() as u32;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr).map(own)
}

fn load(program: &Program, function: &Function, btf: Option<&OwnedFd>) -> Result<Cost> {
    let mut log = vec![0; LOG_BYTES];
    if let Err(error) = load_once(program, function, btf, LOG_STATS, &mut log)? {
        // Once more for the way that led to the refusal.
        let _refused = load_once(program, function, btf, LOG_INSTRUCTIONS | LOG_STATS, &mut log)?;
        let text = text(&log);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        bail!("the kernel refuses to load it: {error}; the verifier's last words:\n{tail}");
    }
    let (verified_instructions, stack_bytes) = parse_stats(&text(&log))?;
    Ok(Cost { instructions: function.instructions.len() as u32, verified_instructions, stack_bytes })
}

fn load_once(
    program: &Program,
    function: &Function,
    btf: Option<&OwnedFd>,
    log_level: u32,
    log: &mut [u8],
) -> Result<io::Result<OwnedFd>> {
    let (program_type, attach_type, flags) = match program.section {
        ProgramSection::Xdp { frags, attach_type } => {
            let attach_type: bpf_attach_type = attach_type.into();
            let flags = if frags { BPF_F_XDP_HAS_FRAGS } else { 0 };
            (bpf_prog_type::BPF_PROG_TYPE_XDP, attach_type as u32, flags)
        }
        ProgramSection::SchedClassifier => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0),
        ref other => bail!("xtask does not know how to load {other:?}"),
    };
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    log.fill(0);
    let mut attr = empty_attr();
    // SAFETY: the program part of the union is what this command reads; it was zeroed.
    let part = unsafe { &mut attr.__bindgen_anon_3 };
    part.prog_type = program_type as u32;
    part.expected_attach_type = attach_type;
    part.prog_flags = flags;
    part.insns = function.instructions.as_ptr() as u64;
    part.insn_cnt = function.instructions.len() as u32;
    part.license = program.license.as_ptr() as u64;
    part.log_level = log_level;
    part.log_buf = log.as_mut_ptr() as u64;
    part.log_size = log.len() as u32;
    if let Some(btf) = btf {
        part.prog_btf_fd = btf.as_raw_fd() as u32;
        if function.func_info_rec_size > 0 {
            part.func_info = functions.as_ptr() as u64;
            part.func_info_cnt = function.func_info.len() as u32;
            part.func_info_rec_size = function.func_info_rec_size as u32;
        }
        if function.line_info_rec_size > 0 {
            part.line_info = lines.as_ptr() as u64;
            part.line_info_cnt = function.line_info.len() as u32;
            part.line_info_rec_size = function.line_info_rec_size as u32;
        }
    }
    Ok(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map(own))
}

/// From `stack depth 48+0+16` and `processed 1234 insns (limit 1000000) …`.
fn parse_stats(log: &str) -> Result<(u32, u32)> {
    let after = |start: &str| log.lines().rev().find_map(|line| line.strip_prefix(start));
    let processed = after("processed ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let depths =
        after("stack depth ").map(|rest| rest.trim().split(['+', ' ']).map_while(|depth| depth.parse::<u32>().ok()));
    match (processed, depths) {
        (Some(processed), Some(depths)) => Ok((processed, depths.sum())),
        _ => bail!("the verifier's log has no statistics:\n{log}"),
    }
}

fn text(log: &[u8]) -> String {
    CStr::from_bytes_until_nul(log).map_or_else(|_| String::from_utf8_lossy(log), CStr::to_string_lossy).into_owned()
}

fn empty_attr() -> bpf_attr {
    // SAFETY: a union of plain integers, for which all bits zero is a value.
    unsafe { mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the attribute lives through the call, has the size that is given, and every address in it points into
    // a buffer that its caller keeps alive for as long.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::parse_stats;

    #[test]
    fn statistics_are_read_from_the_logs_end() {
        let log =
            "0: R1=ctx()\nverification time 120 usec\nstack depth 48+0+16\nprocessed 1234 insns (limit 1000000)\n";
        assert_eq!(parse_stats(log).unwrap(), (1234, 64));
        let newer = "stack depth 48+0 max 48\nprocessed 1 insns (limit 1000000)\n";
        assert_eq!(parse_stats(newer).unwrap(), (1, 48));
        assert!(parse_stats("").is_err());
    }
}
