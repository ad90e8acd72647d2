//! The page that documents the metrics, from the same table as they.

use std::fmt::Write;

use super::{BaseUnit, Family, Kind, all};

const HEAD: &str = "\
# Metrics

Generated from `lb-userspace/src/observe/metrics/`; a test compares it, and
`SLUICE_WRITE_DOCS=1 cargo test -p lb-userspace --test docs` writes it anew.

`/metrics` of the agent ([observation.md](observation.md)) has these in the format OpenMetrics 1.0. Counters begin at 0 with the agent,
except where the agent reads them from the maps; a counter that falls is a restart, as ever with Prometheus.

| metric | type | labels | series | meaning |
|---|---|---|---|---|
";

/// The page, in Markdown.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    for family in all() {
        let labels: Vec<String> = family.source.labels().iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, series) = (exposed(family), kind(family.kind), family.source.series());
        writeln!(page, "| `{name}` | {kind} | {} | {series} | {}. |", labels.join(", "), family.help)
            .expect("writing to a string cannot fail");
    }
    page
}

/// The name that a query has.
fn exposed(family: &Family) -> String {
    let unit = match family.unit {
        Some(BaseUnit::Bytes) => "_bytes",
        Some(BaseUnit::Seconds) => "_seconds",
        None => "",
    };
    let suffix = match family.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    format!("{}{unit}{suffix}", family.name)
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
        Kind::Info => "info",
    }
}
