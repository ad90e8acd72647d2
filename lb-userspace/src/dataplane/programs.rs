//! Where the programs are attached: XDP and tc at uplinks, tc at the pods' host-side interfaces. Every link is
//! pinned, so that the data plane outlives the agent.

use std::{collections::BTreeMap, fs, path::PathBuf};

use aya::{
    Ebpf,
    programs::{LinkOrder, ProgramError, TcAttachType, XdpMode, links::FdLink, loaded_programs, tc::TcAttachOptions},
};
use tracing::warn;

use super::{
    DataPlaneError, bpffs,
    object::{tc, xdp},
};
use crate::{
    model::XdpModeChoice,
    net::links::{Link, XdpAttachment},
    status::{AttachMode, ProgramStatus},
};

/// What is attached, by interface index.
#[derive(Default)]
pub struct Attached {
    links: PathBuf,
    places: BTreeMap<u32, Vec<ProgramStatus>>,
}

impl Attached {
    /// Nothing yet; links will be pinned in this directory.
    pub fn new(links: PathBuf) -> Self {
        Self { links, places: BTreeMap::new() }
    }

    /// Every program at every place.
    pub fn programs(&self) -> impl Iterator<Item = &ProgramStatus> {
        self.places.values().flatten()
    }

    /// Whether programs are attached to an interface.
    pub fn contains(&self, ifindex: u32) -> bool {
        self.places.contains_key(&ifindex)
    }

    /// Attaches all of an uplink's programs; returns the XDP mode.
    pub fn attach_uplink(
        &mut self,
        object: &mut Ebpf,
        link: &Link,
        choice: XdpModeChoice,
    ) -> Result<AttachMode, DataPlaneError> {
        // tc first: what XDP hands on must find its receiver.
        self.attach_tc(object, "sluice_uplink_in", link.index, &link.name, TcAttachType::Ingress)?;
        self.attach_tc(object, "sluice_uplink_out", link.index, &link.name, TcAttachType::Egress)?;
        let mode = self.attach_xdp(object, link, choice)?;
        Ok(mode)
    }

    fn attach_xdp(
        &mut self,
        object: &mut Ebpf,
        link: &Link,
        choice: XdpModeChoice,
    ) -> Result<AttachMode, DataPlaneError> {
        let program = xdp(object)?;
        let tries: &[(XdpMode, AttachMode)] = match choice {
            XdpModeChoice::Native => &[(XdpMode::Driver, AttachMode::Native)],
            XdpModeChoice::Generic => &[(XdpMode::Skb, AttachMode::Generic)],
            XdpModeChoice::Auto => &[(XdpMode::Driver, AttachMode::Native), (XdpMode::Skb, AttachMode::Generic)],
        };
        let mut failure = None;
        for (mode, name) in tries {
            match program.attach(&link.name, *mode) {
                Ok(id) => {
                    let fd: FdLink = program
                        .take_link(id)
                        .map_err(|source| at("sluice_xdp", link, source))?
                        .try_into()
                        .map_err(|source| DataPlaneError::Link { program: "sluice_xdp", source })?;
                    let id = program.info().ok().map(|info| info.id());
                    self.pin(fd, "sluice_xdp", link.index, &link.name, "xdp", *name, id)?;
                    return Ok(*name);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        // `tries` is never empty, so there is a failure to tell of.
        Err(failure.map_or(DataPlaneError::NoObject, |source| at("sluice_xdp", link, source)))
    }

    /// Attaches the programs of a pod's host-side interface; the recorder first, so that no connection comes in
    /// unseen once replies are rewritten.
    pub fn attach_recorder(&mut self, object: &mut Ebpf, ifindex: u32, name: &str) -> Result<(), DataPlaneError> {
        self.attach_tc(object, "sluice_bypass", ifindex, name, TcAttachType::Egress)
    }

    /// Attaches the return program of a pod's host-side interface.
    pub fn attach_return(&mut self, object: &mut Ebpf, ifindex: u32, name: &str) -> Result<(), DataPlaneError> {
        self.attach_tc(object, "sluice_return", ifindex, name, TcAttachType::Ingress)
    }

    fn attach_tc(
        &mut self,
        object: &mut Ebpf,
        program: &'static str,
        ifindex: u32,
        interface: &str,
        place: TcAttachType,
    ) -> Result<(), DataPlaneError> {
        let classifier = tc(object, program)?;
        let failed = |source| DataPlaneError::Program {
            program,
            interface: interface.to_owned(),
            source: Box::new(source),
            advice: "; tcx needs Linux 6.6".into(),
        };
        // First in line: a reply must be seen before another program redirects it.
        let id = classifier
            .attach_with_options(interface, place, TcAttachOptions::TcxOrder(LinkOrder::first()))
            .map_err(failed)?;
        let fd: FdLink = classifier
            .take_link(id)
            .map_err(failed)?
            .try_into()
            .map_err(|source| DataPlaneError::Link { program, source })?;
        let id = classifier.info().ok().map(|info| info.id());
        let point = if matches!(place, TcAttachType::Ingress) { "tcx ingress" } else { "tcx egress" };
        self.pin(fd, program, ifindex, interface, point, AttachMode::Tcx, id)
    }

    #[expect(clippy::too_many_arguments, reason = "a link and the six facts that the status shows of it")]
    fn pin(
        &mut self,
        link: FdLink,
        program: &'static str,
        ifindex: u32,
        interface: &str,
        attach_point: &str,
        mode: AttachMode,
        program_id: Option<u32>,
    ) -> Result<(), DataPlaneError> {
        let path = self.links.join(format!("{program}-{ifindex}"));
        // Of an interface that had this number before.
        let _ = fs::remove_file(&path);
        link.pin(&path).map_err(|source| DataPlaneError::Pin { path, source })?;
        self.places.entry(ifindex).or_default().push(ProgramStatus {
            name: program.into(),
            interface: interface.into(),
            attach_point: attach_point.into(),
            mode: Some(mode),
            program_id,
            error: None,
        });
        Ok(())
    }

    /// Detaches everything from an interface, or tidies up after one that is gone.
    pub fn detach(&mut self, ifindex: u32) {
        for program in self.places.remove(&ifindex).unwrap_or_default() {
            let pin = self.links.join(format!("{}-{ifindex}", program.name));
            if let Err(error) = bpffs::detach(&pin) {
                warn!(%error, path = %pin.display(), "cannot detach a program; a restart of the agent will");
            }
        }
    }

    /// Interfaces with programs.
    pub fn interfaces(&self) -> Vec<u32> {
        self.places.keys().copied().collect()
    }
}

fn at(program: &'static str, link: &Link, source: ProgramError) -> DataPlaneError {
    let advice = match link.xdp.first() {
        Some(other) => format!("; {} has XDP program {} already: detach it first", link.name, owner(other)),
        None => "; try mode: generic, or see whether the driver can XDP at this MTU and number of queues".into(),
    };
    DataPlaneError::Program { program, interface: link.name.clone(), source: Box::new(source), advice }
}

/// Name and id of somebody else's program.
fn owner(attachment: &XdpAttachment) -> String {
    let id = attachment.program_id;
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    let name = program.and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) => format!("{name} (id {id})"),
        None => format!("id {id}"),
    }
}
