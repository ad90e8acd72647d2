//! YAML text to [`RawConfig`], and what the parser refuses in our own words.

use serde_saphyr::{Error, Options, Spanned};

use super::{
    problem::{Position, Problem},
    raw::RawConfig,
    scalar::{nearest, position, quote},
};

/// Values, keys and lists of one file: twice what the longest one that is read has.
const NODES_MAX: usize = 16 << 20;

pub(super) fn read(text: &str) -> Result<RawConfig, Problem> {
    let parsed: Spanned<Option<RawConfig>> =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| problem(&error))?;
    parsed.value.ok_or_else(|| {
        Problem::new(
            Position::START,
            "the file holds no configuration",
            "write at least node, uplinks and services; deploy/samples/standalone.yaml is a start",
        )
    })
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            // A node is at most three events.
            max_events: 3 * NODES_MAX,
        },
        // Ours quotes the value; the parser's copy of the surrounding lines would only be thrown away.
        with_snippet: false,
    }
}

fn problem(error: &Error) -> Problem {
    let place = error.location().map_or(Position::START, |location| position(&location));
    let refused = |what: String, advice: String| Problem::new(place, what, advice);
    match error.without_snippet() {
        Error::AliasError { error: inner, .. } => Problem { position: place, ..problem(inner) },
        Error::SerdeUnknownField { field, expected, .. } => refused(
            format!("unknown key {}", quote(field)),
            match nearest(field, expected.iter().copied()) {
                Some(key) => format!("did you mean `{key}`?"),
                None => format!("the keys here are {}", expected.join(", ")),
            },
        ),
        Error::DuplicateMappingKey { key, .. } => refused(
            format!("the key {} is written twice", key.as_deref().map_or_else(|| "here".to_owned(), quote)),
            "keep one of them".to_owned(),
        ),
        Error::Unexpected { expected, .. } => {
            let (wanted, advice) = match *expected {
                "mapping start" => ("keys with values", "write `key: value` lines, indented below the key"),
                "sequence start" => ("a list", "write [a, b], or lines that start with `- `"),
                "string scalar" => ("a single value", "write the value behind the key, without a list or keys"),
                other => (other, "see docs/configuration.md for the shape of this key"),
            };
            refused(format!("wrong type: {wanted} must stand here"), advice.to_owned())
        }
        Error::NullIntoString { .. } => {
            refused("the value is missing".to_owned(), "write a value, or remove the entry".to_owned())
        }
        Error::MultipleDocuments { .. } => refused(
            "a second YAML document starts here".to_owned(),
            "keep one document in the file, without `---` after it".to_owned(),
        ),
        Error::Budget { .. } => refused(
            "the file holds more values than any configuration".to_owned(),
            "check that this is the right file, and for aliases that refer to each other".to_owned(),
        ),
        other => refused(
            format!("not valid YAML: {}", syntax(other)),
            "look for a missing quote, bracket or colon, or wrong indentation, here or on the line before".to_owned(),
        ),
    }
}

/// The parser's message without the place, which ours starts with.
fn syntax(error: &Error) -> String {
    let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}

/// The path of every key, in the notation of the reference. The parser's own list: it cannot fall behind.
#[cfg(test)]
pub(super) fn keys() -> Vec<String> {
    use serde::de::DeserializeOwned;

    use super::raw::{RawBackend, RawCapacities, RawLimits, RawNode, RawObservation, RawService, RawTls, RawUplink};

    fn of<T: DeserializeOwned + std::fmt::Debug>(prefix: &str) -> Vec<String> {
        match serde_saphyr::from_str::<T>("no such key: 0").expect_err("unknown keys are refused").without_snippet() {
            Error::SerdeUnknownField { expected, .. } => expected.iter().map(|key| format!("{prefix}{key}")).collect(),
            other => panic!("{other}"),
        }
    }
    [
        of::<RawConfig>(""),
        of::<RawNode>("node."),
        of::<RawUplink>("uplinks[]."),
        of::<RawCapacities>("capacities."),
        of::<RawLimits>("limits."),
        of::<RawObservation>("observation."),
        of::<RawTls>("observation.tls."),
        of::<RawService>("services[]."),
        of::<RawBackend>("services[].backends[]."),
    ]
    .concat()
}
