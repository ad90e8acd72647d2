//! [`Status`] as a table of at most [`WIDTH`] columns, as long as names and addresses allow.

mod announce;
mod peers;

use std::{
    fmt::{self, Write},
    net::{IpAddr, SocketAddr},
};

pub use self::{
    announce::{render_vip, render_vrrp},
    peers::{render_bfd, render_bgp},
};
use super::{BackendState, BackendStatus, HealthState, HealthStatus, ProgramStatus, ServiceStatus, Source, Status};
use crate::{
    model::{ReplyMode, Rung},
    preflight::Severity,
};

/// Columns of text that is wrapped or cut.
const WIDTH: usize = 100;
/// Spaces between two columns.
const GAP: usize = 2;

/// Colours mean something: green works, yellow works in part, red does not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Heading,
    Faint,
    Good,
    Partly,
    Bad,
}

impl Style {
    /// Parameters of the escape sequence "select graphic rendition" (ECMA-48, 8.3.117).
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Heading => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Partly => "33",
            Self::Bad => "31",
        }
    }
}

struct Cell {
    text: String,
    style: Style,
}

fn cell(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), style: Style::Plain }
}

/// A dash for what is not there.
fn optional(text: Option<impl fmt::Display>) -> Cell {
    text.map_or_else(|| Cell { text: "-".into(), style: Style::Faint }, |text| cell(text.to_string()))
}

impl Cell {
    fn styled(self, style: Style) -> Self {
        Self { style, ..self }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

enum Line {
    /// A cell for each column.
    Row(Vec<Cell>),
    /// A text across the first columns, and a cell for each of the last.
    Heading(Cell, Vec<Cell>),
    /// What does not fit into a column, below the row that it is about.
    Note(Cell),
}

/// Columns are as wide as their widest cell; the right-aligned ones are numbers.
struct Table {
    titles: &'static [&'static str],
    right: &'static [usize],
    lines: Vec<Line>,
}

impl Table {
    fn write(&self, out: &mut Output) {
        let rows = self.lines.iter().filter_map(|line| match line {
            Line::Row(cells) => Some(cells),
            Line::Heading(..) | Line::Note(_) => None,
        });
        let mut widths: Vec<usize> = self.titles.iter().map(|title| title.len()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        for line in &self.lines {
            if let Line::Heading(_, tail) = line {
                let first = widths.len() - tail.len();
                for (width, cell) in widths[first..].iter_mut().zip(tail) {
                    *width = (*width).max(cell.width());
                }
            }
        }
        let titles: Vec<Cell> = self.titles.iter().map(|title| cell(*title).styled(Style::Heading)).collect();
        self.write_row(&titles, 0, &widths, out);
        for line in &self.lines {
            match line {
                Line::Row(cells) => self.write_row(cells, 0, &widths, out),
                Line::Heading(text, tail) => {
                    let first = widths.len() - tail.len();
                    let across = widths[..first].iter().sum::<usize>() + GAP * first.saturating_sub(1);
                    out.put(text);
                    out.space(across.saturating_sub(text.width()) + GAP);
                    self.write_row(tail, first, &widths, out);
                }
                Line::Note(text) => out.note(text),
            }
        }
        out.end_section();
    }

    fn write_row(&self, cells: &[Cell], first: usize, widths: &[usize], out: &mut Output) {
        for (column, cell) in cells.iter().enumerate().map(|(index, cell)| (first + index, cell)) {
            let fill = widths[column] - cell.width();
            if column > first {
                out.space(GAP);
            }
            if self.right.contains(&column) {
                out.space(fill);
                out.put(cell);
            } else {
                out.put(cell);
                out.space(fill);
            }
        }
        out.end_line();
    }
}

/// The text so far. Spaces are held back, so that no line ends in them.
struct Output {
    text: String,
    spaces: usize,
    color: bool,
}

impl Output {
    fn space(&mut self, count: usize) {
        self.spaces += count;
    }

    fn put(&mut self, cell: &Cell) {
        if cell.text.is_empty() {
            return;
        }
        self.text.extend(std::iter::repeat_n(' ', self.spaces));
        self.spaces = 0;
        if self.color && cell.style != Style::Plain {
            write!(self.text, "\x1b[{}m{}\x1b[0m", cell.style.code(), cell.text).expect("a String takes everything");
        } else {
            self.text.push_str(&cell.text);
        }
    }

    fn end_line(&mut self) {
        self.spaces = 0;
        self.text.push('\n');
    }

    fn line(&mut self, text: &str) {
        self.put(&cell(text));
        self.end_line();
    }

    fn end_section(&mut self) {
        self.text.push('\n');
    }

    /// Wrapped at spaces, behind an indentation that shows where it belongs.
    fn note(&mut self, note: &Cell) {
        const FIRST: &str = "    └ ";
        let room = WIDTH - FIRST.chars().count();
        let mut lead = FIRST;
        for line in note.text.lines() {
            for part in wrap(line, room) {
                self.put(&cell(lead).styled(Style::Faint));
                self.put(&cell(part).styled(note.style));
                self.end_line();
                lead = "      ";
            }
        }
    }
}

/// Lines of at most `room` characters, but a longer word stays whole: it may be a path to be copied.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The status as an operator reads it. Escape sequences only where `color` is asked for.
pub fn render_table(status: &Status, color: bool) -> String {
    let mut out = Output { text: String::new(), spaces: 0, color };
    let nodes: Vec<String> = status.node_addresses.iter().map(IpAddr::to_string).collect();
    let nodes = nodes.join(", ");
    let state = match status.source {
        Source::Agent => cell(format!(", up {}, node {nodes}", duration(status.uptime_seconds))),
        Source::Maps => cell(format!(", no agent, node {nodes}; read from the pinned maps")).styled(Style::Bad),
    };
    out.put(&cell(format!("Sluice {}", status.version)).styled(Style::Heading));
    out.put(&state);
    out.end_line();
    out.end_section();
    let troubles = [
        (&status.last_error, "The new configuration was refused; the one before it is in force:", Style::Bad),
        (&status.waiting, "Not everything is in force yet; it is tried again each second:", Style::Partly),
        (&status.observation.error, "Metrics and health are not served; it is tried again each second:", Style::Partly),
    ];
    for (trouble, title, style) in troubles {
        let Some(trouble) = trouble else { continue };
        out.put(&cell(title).styled(style));
        out.end_line();
        out.note(&cell(trouble));
        out.end_section();
    }
    warnings(status, &mut out);
    programs(&status.programs).write(&mut out);
    services(&status.services).write(&mut out);
    announce::write(&status.announce, &mut out);
    reasons(status).write(&mut out);
    maps(status).write(&mut out);
    let end = out.text.trim_end().len();
    out.text.truncate(end);
    out.text.push('\n');
    out.text
}

/// What pre-flight warns of; the rest is in the JSON, and `sluice preflight` prints it.
fn warnings(status: &Status, out: &mut Output) {
    let warned: Vec<_> = status.preflight.iter().filter(|finding| finding.severity <= Severity::Warned).collect();
    if warned.is_empty() {
        return;
    }
    out.put(&cell("Pre-flight warns:").styled(Style::Partly));
    out.end_line();
    for finding in warned {
        out.note(&cell(finding.to_string()));
    }
    out.end_section();
}

fn programs(programs: &[ProgramStatus]) -> Table {
    let mut lines = Vec::new();
    for program in programs {
        let mode = match program.mode {
            Some(mode) => cell(match mode {
                super::AttachMode::Native => "native",
                super::AttachMode::Generic => "generic",
                super::AttachMode::Tcx => "tcx",
            })
            .styled(Style::Good),
            None => cell("not attached").styled(Style::Bad),
        };
        lines.push(Line::Row(vec![
            cell(&program.name),
            cell(&program.interface),
            cell(&program.attach_point),
            mode,
            optional(program.program_id),
        ]));
        lines.extend(program.error.as_ref().map(|error| Line::Note(cell(error).styled(Style::Bad))));
    }
    if programs.is_empty() {
        lines.push(Line::Note(cell("nothing is attached")));
    }
    Table { titles: &["PROGRAM", "INTERFACE", "AT", "MODE", "ID"], right: &[4], lines }
}

fn services(services: &[ServiceStatus]) -> Table {
    let mut lines = Vec::new();
    for service in services {
        let replies = match service.replies {
            ReplyMode::Static => "static",
            ReplyMode::Recorded => "recorded",
            ReplyMode::None => "none",
        };
        let endpoint = SocketAddr::new(service.vip, service.port);
        let moved = match (service.moved_slots, service.dropped_owners) {
            (0, 0) => String::new(),
            (moved, 0) => format!(", {moved} moved"),
            (moved, dropped) => format!(", {moved} moved, {dropped} owners forgotten"),
        };
        let slots = format!("{} slots{moved}", service.slots);
        let affinity = service.session_affinity_seconds.map_or(String::new(), |after| format!("affinity {after} s, "));
        let check = service.health_check.as_ref().map_or(String::new(), |check| format!("check {check}, "));
        let name = service.name.as_ref().map_or(String::new(), |name| format!("{name}  "));
        let heading = format!("{} {endpoint}  {name}(replies {replies}, {affinity}{check}{slots})", service.protocol);
        lines.push(Line::Heading(
            cell(heading).styled(Style::Heading),
            vec![cell(count(service.packets)), cell(bytes(service.bytes))],
        ));
        if service.backends.is_empty() {
            lines.push(Line::Note(cell("no backends: new connections are refused").styled(Style::Partly)));
        }
        if service.fails_open {
            let text = "all health checks fail: new connections go to all backends as if none did";
            lines.push(Line::Note(cell(text).styled(Style::Bad)));
        }
        for backend in &service.backends {
            lines.push(Line::Row(backend_row(backend, service.slots)));
            let style = if backend.state == BackendState::Ready { Style::Plain } else { Style::Partly };
            lines.extend(backend.reason.as_ref().map(|reason| Line::Note(cell(reason).styled(style))));
            lines.extend(backend.opaque.as_ref().map(|why| Line::Note(cell(format!("opaque: {why}")))));
            lines.extend(backend.health.as_ref().and_then(health_note));
        }
    }
    if services.is_empty() {
        lines.push(Line::Note(cell("no services are configured")));
    }
    Table {
        titles: &["SERVICE, BACKENDS", "WEIGHT", "SHARE", "RUNG", "STATE", "INTERFACE", "PACKETS", "BYTES"],
        right: &[1, 2, 6, 7],
        lines,
    }
}

/// What an operator wants to know of a check: that it has failed, for how long and why.
fn health_note(health: &HealthStatus) -> Option<Line> {
    let text = match (health.state, &health.last_error) {
        (HealthState::Unhealthy, error) => {
            let why = error.as_deref().unwrap_or("no reason is known");
            format!("health check failed for {}: {why}", duration(health.seconds))
        }
        (HealthState::Unknown, Some(error)) => format!("no health check has passed yet: {error}"),
        (HealthState::Unknown, None) | (HealthState::Healthy, _) => return None,
    };
    Some(Line::Note(cell(text).styled(Style::Partly)))
}

fn backend_row(backend: &BackendStatus, slots: u32) -> Vec<Cell> {
    let is_unhealthy = backend.health.as_ref().is_some_and(|health| health.state == HealthState::Unhealthy);
    let state = match (backend.state, backend.drain) {
        (BackendState::Ready, _) if is_unhealthy => cell("unhealthy").styled(Style::Bad),
        (BackendState::Ready, false) if backend.opaque.is_some() => cell("opaque").styled(Style::Good),
        (BackendState::Ready, false) => cell("ready").styled(Style::Good),
        (BackendState::Ready, true) => cell("draining").styled(Style::Partly),
        (state @ (BackendState::Pending | BackendState::Remote | BackendState::Unknown), _) => {
            cell(state.name()).styled(Style::Partly)
        }
        (
            state @ (BackendState::NoInterface
            | BackendState::SelfTestFailed
            | BackendState::Failed
            | BackendState::VipMissing),
            _,
        ) => cell(state.name()).styled(Style::Bad),
    };
    vec![
        cell(format!("  {}", SocketAddr::new(backend.address, backend.port))),
        optional(backend.weight),
        cell(share(backend.slots.into(), slots.into())),
        optional(backend.rung.map(Rung::name)),
        state,
        optional(backend.interface.as_ref()),
        cell(count(backend.packets)),
        cell(bytes(backend.bytes)),
    ]
}

fn reasons(status: &Status) -> Table {
    let mut seen: Vec<_> = status.reasons.iter().filter(|reason| reason.packets > 0).collect();
    seen.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.name.cmp(&b.name)));
    let longest = seen.iter().map(|reason| reason.name.chars().count()).max().unwrap_or(0);
    // The numbers are at most eight characters wide.
    let room = WIDTH.saturating_sub(longest.max("REASON".len()) + 2 * 8 + 3 * GAP);
    let mut lines: Vec<Line> = seen
        .iter()
        .map(|reason| {
            Line::Row(vec![
                cell(&reason.name),
                cell(count(reason.packets)),
                cell(bytes(reason.bytes)),
                cell(cut(&reason.doc, room)),
            ])
        })
        .collect();
    if lines.is_empty() {
        lines.push(Line::Note(cell("no packets yet")));
    }
    Table { titles: &["REASON", "PACKETS", "BYTES", "MEANING"], right: &[1, 2], lines }
}

fn maps(status: &Status) -> Table {
    let lines = status.maps.iter().map(|map| {
        Line::Row(vec![
            cell(&map.name),
            optional(map.entries),
            cell(map.capacity.to_string()),
            optional(map.entries.map(|entries| share(entries, map.capacity))),
            cell(bytes(map.bytes)),
        ])
    });
    Table { titles: &["MAP", "ENTRIES", "CAPACITY", "USED", "MEMORY"], right: &[1, 2, 3, 4], lines: lines.collect() }
}

/// At most `room` characters.
fn cut(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Percent with one decimal.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1}%", part as f64 * 100.0 / whole as f64)
}

/// Three digits and a decimal prefix; exact below 10,000.
pub(super) fn count(number: u64) -> String {
    if number < 10_000 { number.to_string() } else { scaled(number, 1000.0, &[" k", " M", " G", " T", " P", " E"]) }
}

/// Three digits and a binary prefix.
pub(super) fn bytes(number: u64) -> String {
    if number < 1024 {
        format!("{number} B")
    } else {
        scaled(number, 1024.0, &[" KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
    }
}

fn scaled(number: u64, base: f64, units: &[&str]) -> String {
    let mut value = number as f64 / base;
    let mut unit = 0;
    // What would be rounded to the next unit is written in it.
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}

/// The two largest units that are not zero.
pub(super) fn duration(seconds: u64) -> String {
    let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let shown: Vec<String> = parts
        .iter()
        .skip_while(|(value, _)| *value == 0)
        .take(2)
        .filter(|(value, _)| *value > 0)
        .map(|(value, unit)| format!("{value} {unit}"))
        .collect();
    if shown.is_empty() { "0 s".to_owned() } else { shown.join(" ") }
}
