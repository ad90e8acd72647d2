//! `sluice diff`: what a reload would change, as people read it.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;

use super::{DiffArgs, Format, colored, counted};
use crate::{
    config,
    plan::diff::{BackendChange, Change, Diff, ServiceChange, Setting, SlotChange},
    status::{self, SOCKET_NAME},
};

/// Exit status where the reload would change something.
const DIFFERENT: u8 = 3;
/// Pairs of backends between which slots move that the table shows of a service; JSON has all.
const MOVES_SHOWN: usize = 10;

/// Asks the agent, and renders its answer.
pub(super) fn ask(args: &DiffArgs) -> Result<(Diff, String)> {
    let name = args.file.display().to_string();
    let bytes = config::load_bytes(&args.file)?;
    // Refused here too: with the place, and without an agent.
    let proposed = config::parse_bytes(&name, &bytes)?;
    let socket = args.socket.clone().unwrap_or_else(|| proposed.run_directory.join(SOCKET_NAME));
    let diff = status::fetch_diff(&socket, &name, str::from_utf8(&bytes)?)?;
    let text = match args.output {
        Format::Json => serde_json::to_string_pretty(&diff)? + "\n",
        Format::Yaml => serde_saphyr::to_string(&diff)?,
        Format::Table => render(&diff, colored(args.color)),
    };
    Ok((diff, text))
}

pub(super) fn exit_code(diff: &Diff) -> ExitCode {
    match diff {
        Diff { refused: Some(_), .. } => ExitCode::FAILURE,
        diff if diff.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::from(DIFFERENT),
    }
}

struct Output {
    text: String,
    color: bool,
}

impl Output {
    fn line(&mut self, depth: usize, change: Option<Change>, text: &str) {
        let (mark, code) = match change {
            Some(Change::Added) => ("+ ", "32"),
            Some(Change::Removed) => ("- ", "31"),
            Some(Change::Changed) => ("~ ", "33"),
            None => ("", ""),
        };
        let indent = "  ".repeat(depth);
        if self.color && !code.is_empty() {
            self.text += &format!("{indent}\x1b[{code}m{mark}{text}\x1b[0m\n");
        } else {
            self.text += &format!("{indent}{mark}{text}\n");
        }
    }

    fn heading(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(0, None, text);
    }

    fn settings(&mut self, depth: usize, settings: &[Setting]) {
        for Setting { key, before, after } in settings {
            self.line(depth, Some(Change::Changed), &format!("{key}: {before} -> {after}"));
        }
    }
}

/// The differences as an operator reads them. Escape sequences only where `color` is asked for.
pub(super) fn render(diff: &Diff, color: bool) -> String {
    let mut out = Output { text: String::new(), color };
    if diff.is_empty() {
        out.line(0, None, "no differences");
    }
    if let Some(why) = &diff.refused {
        out.line(0, None, &format!("the reload would be refused as a whole: {why}"));
    }
    if !diff.settings.is_empty() {
        out.heading("SETTINGS");
        out.settings(1, &diff.settings);
    }
    if !diff.uplinks.is_empty() {
        out.heading("UPLINKS");
    }
    for uplink in &diff.uplinks {
        out.line(1, Some(uplink.change), &uplink.interface);
        out.settings(2, &uplink.settings);
    }
    if !diff.services.is_empty() {
        out.heading("SERVICES");
    }
    diff.services.iter().for_each(|service| show(service, &mut out));
    if !diff.notes.is_empty() && !diff.is_empty() {
        out.heading("TO BE KNOWN");
        diff.notes.iter().for_each(|note| out.line(1, None, note));
    }
    if !diff.writes.is_empty() && !diff.is_empty() {
        out.heading("WRITES");
        let writes: Vec<String> = diff.writes.iter().map(|(map, entries)| format!("{map} {entries}")).collect();
        out.line(1, None, &writes.join(", "));
    }
    out.text
}

fn show(service: &ServiceChange, out: &mut Output) {
    let ServiceChange { name, vip, protocol, port, change, settings, backends, slots } = service;
    let mut heading = format!("{protocol} {}  {name}", SocketAddr::new(*vip, *port));
    if *change != Change::Changed {
        heading += &format!(", {}", counted(backends.len(), "backend"));
    }
    out.line(1, Some(*change), &heading);
    out.settings(2, settings);
    for BackendChange { address, change, settings } in backends {
        let settings: Vec<String> = settings
            .iter()
            .map(|Setting { key, before, after }| match change {
                Change::Changed => format!("{key} {before} -> {after}"),
                Change::Added | Change::Removed => format!("{key} {after}"),
            })
            .collect();
        out.line(2, Some(*change), format!("{address}  {}", settings.join(", ")).trim_end());
    }
    let Some(SlotChange { before, after, moved, moves }) = slots else { return };
    let size = if before == after { format!("{after}") } else { format!("{before} -> {after}") };
    if *moved == 0 {
        out.line(2, None, &format!("slots: {size}"));
        return;
    }
    let share = f64::from(*moved) / f64::from(*before.max(after)) * 100.0;
    out.line(2, None, &format!("slots: {size}, {moved} move ({share:.1}%)"));
    let backend = |of: Option<SocketAddr>| of.map_or_else(|| "nobody".to_owned(), |address| address.to_string());
    for one in moves.iter().take(MOVES_SHOWN) {
        out.line(3, None, &format!("{:>6}  {} -> {}", one.slots, backend(one.from), backend(one.to)));
    }
    if moves.len() > MOVES_SHOWN {
        out.line(3, None, &format!("and between {} more pairs", moves.len() - MOVES_SHOWN));
    }
}

#[cfg(test)]
mod tests;
