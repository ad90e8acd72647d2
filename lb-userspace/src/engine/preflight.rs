//! Pre-flight in the agent's life: before anything is touched, where the uplinks change, and what the kernel says of what was
//! attached.

use anyhow::{Result, bail};
use tracing::{info, warn};

use super::Engine;
use crate::{
    model::{Snapshot, XdpModeChoice},
    net::{
        ethtool::{Ethtool, Offload},
        links,
    },
    preflight::{self, Finding, Severity, facts::AttachedFacts},
    status::AttachMode,
    survey,
};

/// What was found, for the status.
#[derive(Default)]
pub(super) struct Findings {
    /// At the start, or when the uplinks changed.
    before: Vec<Finding>,
    /// Of what is attached.
    attached: Vec<Finding>,
    /// Something was attached or released since.
    stale: bool,
}

impl Findings {
    /// Of the start.
    pub(super) fn of_start(before: Vec<Finding>) -> Self {
        Self { before, attached: Vec::new(), stale: true }
    }

    /// That what is attached has changed.
    pub(super) fn expire(&mut self) {
        self.stale = true;
    }

    /// All of them; what was foreseen is not told again.
    pub(super) fn all(&self) -> Vec<Finding> {
        let foreseen =
            |new: &&Finding| self.before.iter().any(|finding| (finding.id, &finding.object) == (new.id, &new.object));
        self.before.iter().chain(self.attached.iter().filter(|new| !foreseen(new))).cloned().collect()
    }
}

/// Looks at the node for this configuration, and refuses it with everything that stands in the way.
pub(super) fn approve(snapshot: &Snapshot) -> Result<Vec<Finding>> {
    let findings = preflight::check(&survey::gather(snapshot, []), snapshot);
    refuse(&findings, "this node is not ready, and nothing was changed")?;
    log(&findings);
    Ok(findings)
}

fn refuse(findings: &[Finding], what: &str) -> Result<()> {
    let refused = findings.iter().filter(|finding| finding.severity == Severity::Refused);
    let reasons: Vec<String> = refused.map(|finding| format!("[{}] {finding}", finding.id.id())).collect();
    match reasons.as_slice() {
        [] => Ok(()),
        [one] => bail!("{what}: {one}"),
        several => bail!("{what}:\n  {}", several.join("\n  ")),
    }
}

fn log(findings: &[Finding]) {
    for finding in findings {
        let (check, object) = (finding.id.id(), &finding.object);
        match finding.severity {
            Severity::Refused | Severity::Warned | Severity::Unseen => warn!(check, object, "{finding}"),
            Severity::Mended | Severity::Noted => info!(check, object, "{finding}"),
        }
    }
}

impl Engine {
    /// Refuses a configuration whose uplinks cannot be, before anything of it is taken over.
    pub(super) fn approve_uplinks(&self, wanted: &Snapshot) -> Result<Option<Vec<Finding>>> {
        if wanted.uplinks == self.snapshot.uplinks {
            return Ok(None);
        }
        let own = self.attached.programs().filter_map(|program| program.program_id);
        let findings = preflight::check_uplinks(&survey::gather(wanted, own), wanted);
        refuse(&findings, "the uplinks cannot be")?;
        log(&findings);
        Ok(Some(findings))
    }

    /// Takes up what was found of changed uplinks.
    pub(super) fn note_approval(&mut self, findings: Option<Vec<Finding>>) {
        if let Some(mut findings) = findings {
            let of_uplink = |finding: &Finding| findings.iter().any(|new| new.id == finding.id);
            let others = self.preflight.before.iter().filter(|finding| !of_uplink(finding)).cloned();
            findings.extend(others.collect::<Vec<_>>());
            self.preflight.before = findings;
        }
    }

    /// Asks the kernel what became of the uplinks' programs, where that may have changed.
    pub(super) fn note_attached(&mut self) {
        if !self.preflight.stale {
            return;
        }
        let Ok(links) = links::of_node(&mut self.netlink) else { return };
        let ethtool = Ethtool::open().ok();
        let mut findings = Vec::new();
        for uplink in &self.uplinks {
            let Some(link) = links.iter().find(|link| link.index == uplink.ifindex) else { continue };
            let programs = self.attached.programs();
            let mut programs =
                programs.filter(|program| program.interface == link.name && program.attach_point == "xdp");
            let strips_vlan = ethtool.as_ref().and_then(|ethtool| ethtool.get(&link.name, Offload::RxVlan).ok());
            findings.extend(preflight::attached(&AttachedFacts {
                interface: link.name.clone(),
                is_generic: uplink.mode == AttachMode::Generic,
                is_auto: uplink.mode_choice() == XdpModeChoice::Auto,
                program_id: programs.next().and_then(|program| program.program_id),
                reported: link.xdp.iter().map(|program| (program.mode, program.program_id)).collect(),
                strips_vlan: strips_vlan.unwrap_or(false),
            }));
        }
        let fresh: Vec<Finding> =
            findings.iter().filter(|finding| !self.preflight.attached.contains(finding)).cloned().collect();
        log(&fresh);
        self.preflight.attached = findings;
        self.preflight.stale = false;
    }
}
