//! The edge to the kernel: the object, its maps and its programs' places. No decisions.

pub mod bpffs;
pub mod btf;
pub mod capacity;
pub mod earlier;
pub mod holders;
pub mod kernel_types;
pub mod layout;
pub mod look;
pub mod mapped;
pub mod object;
pub mod pinned;
pub mod probe;
pub mod programs;
mod raw;
pub mod remains;
mod signals;
pub mod summed;
mod syscall;
pub mod tables;

use std::{io, path::PathBuf};

use aya::{
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use thiserror::Error;

/// Why the data plane could not be brought to what is wanted.
#[derive(Debug, Error)]
pub enum DataPlaneError {
    /// The object was not built into this program, and none was named.
    #[error("no eBPF object in this build; build with `cargo xtask build`, or name one in SLUICE_EBPF_OBJECT")]
    NoObject,
    /// The object is another one than this program was written for.
    #[error("the eBPF object has no {what} as this agent knows it; build both together with `cargo xtask build`")]
    ForeignObject {
        /// What is missing.
        what: &'static str,
    },
    /// The kernel did not take the object.
    #[error("cannot load the eBPF object: {0}")]
    Load(Box<aya::EbpfError>),
    /// The kernel did not take a program, or its place.
    #[error("{program} at {interface}: {source}{advice}")]
    Program {
        /// Program.
        program: &'static str,
        /// Interface, or `-` while loading.
        interface: String,
        /// What the kernel said.
        source: Box<ProgramError>,
        /// What to do.
        advice: String,
    },
    /// A map operation failed.
    #[error("map: {0}")]
    Map(#[from] MapError),
    /// A map could not be read.
    #[error("cannot read the entries of a map: {source}")]
    Entries {
        /// What the kernel said.
        source: io::Error,
    },
    /// A port could not be written.
    #[error("cannot write port {id} to tx_ports: {source}")]
    Port {
        /// Next hop.
        id: u32,
        /// What the kernel said.
        source: aya::maps::xdp::XdpMapError,
    },
    /// A map could not be mapped.
    #[error("cannot map {map} into memory: {source}")]
    Memory {
        /// Map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is pinned is not what an agent pins there.
    #[error("{path}: {what}; `sluice detach` removes what agents have left, and ends sessions through VIPs")]
    ForeignPin {
        /// The pin.
        path: PathBuf,
        /// How it differs.
        what: String,
    },
    /// Something could not be pinned.
    #[error("cannot pin {path}: {source}; is the directory on a bpffs that may be written?")]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: PinError,
    },
    /// A link could not be pinned or taken over.
    #[error("cannot pin the link of {program}: {source}")]
    Link {
        /// Program.
        program: &'static str,
        /// What the kernel said.
        source: LinkError,
    },
    /// The pin directory cannot be used.
    #[error("{path}: {what}: {source}{advice}")]
    PinDirectory {
        /// Directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The kernel's clock could not be read.
    #[error("cannot read the kernel's clock through the loaded program: {0}")]
    Clock(Box<ProgramError>),
}
