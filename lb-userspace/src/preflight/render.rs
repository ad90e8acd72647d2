//! Findings for people, and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::{Finding, Severity};

/// The answer of `sluice preflight`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report<'a> {
    /// Whether an agent would start.
    pub ready: bool,
    /// What was found, what is refused first.
    pub findings: &'a [Finding],
}

impl<'a> Report<'a> {
    /// Of these findings.
    pub fn new(findings: &'a [Finding]) -> Self {
        Self { ready: count(findings, Severity::Refused) == 0, findings }
    }

    /// Whether there is nothing to complain of; `strict`: nothing to warn of or unseen either.
    pub fn passes(&self, strict: bool) -> bool {
        self.ready && !(strict && self.findings.iter().any(|finding| finding.severity <= Severity::Unseen))
    }
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

/// A paragraph for each finding, and a summary.
pub fn render_table(findings: &[Finding]) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|finding| finding.id.id().len()).max().unwrap_or(0);
    for finding in findings {
        let Finding { id, severity, found, advice, .. } = finding;
        writeln!(text, "{:7}  {:width$}  {found}", severity.name(), id.id()).expect("a String takes everything");
        if let Some(advice) = advice {
            writeln!(text, "{:7}  {:width$}  → {advice}", "", "").expect("a String takes everything");
        }
    }
    let of = |severity| count(findings, severity);
    let summary = match of(Severity::Refused) {
        0 => "The agent would start here",
        _ => "The agent would not start here",
    };
    let (refused, warned, unseen) = (of(Severity::Refused), of(Severity::Warned), of(Severity::Unseen));
    writeln!(text, "{summary}: {refused} refused, {warned} warned, {unseen} unseen.")
        .expect("a String takes everything");
    text
}
