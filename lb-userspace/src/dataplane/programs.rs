//! Where the programs are attached: XDP and tc at uplinks, tc at the pods' host-side interfaces. Every link is
//! pinned, so that the data plane outlives the agent.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, TcAttachType, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        loaded_programs,
        tc::TcAttachOptions,
    },
};
use tracing::warn;

use super::{
    DataPlaneError, bpffs,
    object::{tc, xdp},
};
use crate::{
    model::XdpModeChoice,
    net::links::{self, Link, Links, XdpAttachment},
    status::{AttachMode, ProgramStatus},
};

/// Where each attached program's link stands, in the order in which programs are replaced: who reads what another writes
/// comes first.
const PLACES: [(&str, &str); 5] = [
    ("sluice_return", "tcx ingress"),
    ("sluice_uplink_out", "tcx egress"),
    ("sluice_bypass", "tcx egress"),
    ("sluice_uplink_in", "tcx ingress"),
    (XDP, "xdp"),
];
const XDP: &str = "sluice_xdp";

/// What is attached, by interface index.
#[derive(Default)]
pub struct Attached {
    links: PathBuf,
    places: BTreeMap<u32, Vec<Placed>>,
}

/// A program at an interface.
struct Placed {
    status: ProgramStatus,
    /// What keeps it there, beside the pin: whoever removes that detaches nothing.
    link: OwnedFd,
}

impl Placed {
    /// Whether the link leads to the interface. What cannot be asked has not changed.
    fn is_at(&self, ifindex: u32) -> bool {
        bpffs::interface_of(self.link.as_fd()).map_or(true, |interface| interface == Some(ifindex))
    }
}

impl Attached {
    /// Nothing yet; links will be pinned in this directory.
    pub fn new(links: PathBuf) -> Self {
        Self { links, places: BTreeMap::new() }
    }

    /// Takes over what an earlier agent has attached: the programs behind its pinned links are replaced by this object's,
    /// each in one step. Links whose interface is gone go.
    ///
    /// # Errors
    /// Where the kernel refuses a replacement. The links before it have been replaced.
    pub fn adopt(&mut self, object: &mut Ebpf, links: &Links) -> Result<(), DataPlaneError> {
        let pins = bpffs::entries(&self.links).map_err(|source| DataPlaneError::PinDirectory {
            path: self.links.clone(),
            what: "looking at what is pinned",
            source,
            advice: "",
        })?;
        self.places.clear();
        for (program, attach_point) in PLACES {
            for pin in &pins {
                let Some(ifindex) = interface_in_name(pin, program) else { continue };
                let found = bpffs::open_link(pin).and_then(|found| Ok((bpffs::interface_of(found.as_fd())?, found)));
                match (found, links.by_index(ifindex)) {
                    (Ok((Some(interface), found)), Some(link)) if interface == ifindex => {
                        replace(object, program, pin, &link.name)?;
                        self.note_adopted(object, program, attach_point, link, found)?;
                    }
                    // Nothing follows from what cannot be asked.
                    (Err(source), Some(_)) if is_refused(&source) => return Err(unopened(pin, source)),
                    // Its interface is gone, or it is no link at all.
                    _ => drop(fs::remove_file(pin)),
                }
            }
        }
        Ok(())
    }

    fn note_adopted(
        &mut self,
        object: &mut Ebpf,
        program: &'static str,
        attach_point: &str,
        link: &Link,
        found: OwnedFd,
    ) -> Result<(), DataPlaneError> {
        let (mode, id) = if program == XDP {
            let generic = link.xdp.iter().any(|attachment| attachment.mode == links::XdpMode::Generic);
            let mode = if generic { AttachMode::Generic } else { AttachMode::Native };
            (mode, xdp(object)?.info().ok().map(|info| info.id()))
        } else {
            (AttachMode::Tcx, tc(object, program)?.info().ok().map(|info| info.id()))
        };
        let status = ProgramStatus {
            name: program.into(),
            interface: link.name.clone(),
            attach_point: attach_point.into(),
            mode: Some(mode),
            program_id: id,
            error: None,
        };
        self.places.entry(link.index).or_default().push(Placed { status, link: found });
        Ok(())
    }

    /// The XDP mode of an interface that has all programs of an uplink.
    pub fn uplink_mode(&self, ifindex: u32) -> Option<AttachMode> {
        let programs = self.places.get(&ifindex)?;
        let has = |name: &str| programs.iter().find(|placed| placed.status.name == name);
        has("sluice_uplink_in").and(has("sluice_uplink_out")).and(has(XDP))?.status.mode
    }

    /// Whether an interface has all programs of a pod's.
    pub fn is_pod(&self, ifindex: u32) -> bool {
        let has = |name: &str| {
            self.places.get(&ifindex).is_some_and(|all| all.iter().any(|placed| placed.status.name == name))
        };
        has("sluice_bypass") && has("sluice_return")
    }

    /// Every program at every place.
    pub fn programs(&self) -> impl Iterator<Item = &ProgramStatus> {
        self.places.values().flatten().map(|placed| &placed.status)
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
                        .map_err(|source| at(XDP, link, source))?
                        .try_into()
                        .map_err(|source| DataPlaneError::Link { program: XDP, source })?;
                    let id = program.info().ok().map(|info| info.id());
                    self.pin(fd, XDP, link.index, &link.name, "xdp", *name, id)?;
                    return Ok(*name);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        // `tries` is never empty, so there is a failure to tell of.
        Err(failure.map_or(DataPlaneError::NoObject, |source| at(XDP, link, source)))
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
        let path = self.pin_of(program, ifindex);
        // Of an interface that had this number before.
        let _ = fs::remove_file(&path);
        let pinned = link.pin(&path).map_err(|source| DataPlaneError::Pin { path: path.clone(), source })?;
        let opened = bpffs::open_link(&path);
        drop(pinned);
        let link = opened.map_err(|source| {
            // A program that nobody knows of would keep others from its place.
            let _ = fs::remove_file(&path);
            unopened(&path, source)
        })?;
        let status = ProgramStatus {
            name: program.into(),
            interface: interface.into(),
            attach_point: attach_point.into(),
            mode: Some(mode),
            program_id,
            error: None,
        };
        self.places.entry(ifindex).or_default().push(Placed { status, link });
        Ok(())
    }

    /// Detaches everything from an interface, or tidies up after one that is gone.
    pub fn detach(&mut self, ifindex: u32) {
        for Placed { status, link } in self.places.remove(&ifindex).unwrap_or_default() {
            let pin = self.pin_of(&status.name, ifindex);
            if let Err(error) = bpffs::detach_link(link.as_fd(), &pin) {
                warn!(%error, path = %pin.display(), "cannot detach a program; a restart of the agent will");
            }
        }
    }

    fn pin_of(&self, program: &str, ifindex: u32) -> PathBuf {
        self.links.join(format!("{program}-{ifindex}"))
    }

    /// Interfaces from which somebody else has detached a program.
    pub fn bereft(&self) -> Vec<u32> {
        self.places.keys().copied().filter(|ifindex| !self.is_whole(*ifindex)).collect()
    }

    /// Whether every program that was attached to an interface still is: by its link, whatever netlink shows.
    pub fn is_whole(&self, ifindex: u32) -> bool {
        self.places.get(&ifindex).is_some_and(|all| all.iter().all(|placed| placed.is_at(ifindex)))
    }

    /// Attaches again what somebody else has detached from an interface, as it was; the other programs go on.
    ///
    /// # Errors
    /// Where the kernel refuses, as for XDP while another program has the interface. The interface lacks programs then.
    pub fn restore(&mut self, object: &mut Ebpf, link: &Link) -> Result<(), DataPlaneError> {
        let all = self.places.remove(&link.index).unwrap_or_default();
        let (kept, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(|placed| placed.is_at(link.index));
        self.places.insert(link.index, kept);
        let is_lost = |(name, _): &(&str, &str)| lost.iter().any(|placed| placed.status.name == *name);
        // Who reads what another writes comes after it, and XDP, which hands on to others, last.
        let mut order = PLACES;
        order.reverse();
        order.rotate_left(1);
        for (name, point) in order.into_iter().filter(is_lost) {
            match point {
                "tcx ingress" => self.attach_tc(object, name, link.index, &link.name, TcAttachType::Ingress)?,
                "tcx egress" => self.attach_tc(object, name, link.index, &link.name, TcAttachType::Egress)?,
                _ => {
                    let was = lost.iter().find_map(|placed| placed.status.mode.filter(|_| placed.status.name == name));
                    let choice =
                        if was == Some(AttachMode::Generic) { XdpModeChoice::Generic } else { XdpModeChoice::Native };
                    self.attach_xdp(object, link, choice)?;
                }
            }
        }
        Ok(())
    }

    /// Pins again what is pinned no more: the next agent finds programs by their pins. How many those were, and why others
    /// cannot be.
    pub fn restore_pins(&self) -> (usize, Option<io::Error>) {
        let (mut restored, mut refused) = (0, None);
        for (ifindex, Placed { status, link }) in
            self.places.iter().flat_map(|(ifindex, all)| all.iter().map(move |placed| (ifindex, placed)))
        {
            let pin = self.pin_of(&status.name, *ifindex);
            if fs::symlink_metadata(&pin).is_ok() {
                continue;
            }
            // Somebody may have taken all of it away.
            let pinned = bpffs::make_again(&self.links).and_then(|()| bpffs::pin_link(link.as_fd(), &pin));
            match pinned {
                Ok(()) => restored += 1,
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        (restored, refused)
    }

    /// Interfaces with programs.
    pub fn interfaces(&self) -> Vec<u32> {
        self.places.keys().copied().collect()
    }
}

/// Whether the kernel says nothing about a link, rather than that there is none.
fn is_refused(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EPERM, libc::EACCES]
        .into_iter()
        .any(|refused| number == Some(refused))
}

fn unopened(pin: &Path, source: io::Error) -> DataPlaneError {
    let advice = "; where there are too many open files, allow the agent more (LimitNOFILE=)";
    DataPlaneError::PinDirectory { path: pin.to_path_buf(), what: "opening a pinned link", source, advice }
}

/// The interface in the name of a link's pin, where it is this program's.
fn interface_in_name(pin: &Path, program: &str) -> Option<u32> {
    let (name, ifindex) = pin.file_name()?.to_str()?.rsplit_once('-')?;
    (name == program).then(|| ifindex.parse().ok()).flatten()
}

/// Puts this object's program behind a pinned link. No packet meets neither program.
fn replace(object: &mut Ebpf, program: &'static str, pin: &Path, interface: &str) -> Result<(), DataPlaneError> {
    let failed = |source: ProgramError| DataPlaneError::Program {
        program,
        interface: interface.to_owned(),
        source: Box::new(source),
        advice: "; `sluice detach` removes what an earlier agent has attached, and ends sessions through VIPs".into(),
    };
    let foreign = |source: LinkError| DataPlaneError::Link { program, source };
    let link: FdLink = PinnedLink::from_pin(pin).map_err(foreign)?.into();
    // The link lives on in its pin when what is taken here goes.
    if program == XDP {
        let xdp = xdp(object)?;
        let id = xdp.attach_to_link(link.try_into().map_err(foreign)?).map_err(failed)?;
        xdp.take_link(id).map(drop).map_err(failed)
    } else {
        let classifier = tc(object, program)?;
        let id = classifier.attach_to_link(link.try_into().map_err(foreign)?).map_err(failed)?;
        classifier.take_link(id).map(drop).map_err(failed)
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
