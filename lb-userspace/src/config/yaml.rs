//! YAML text to [`RawConfig`], and what the parser refuses in our own words.

use serde_saphyr::{Error, Options, Spanned};

use super::{
    problem::{Position, Problem},
    raw::RawConfig,
    scalar::{nearest, position, quote},
    shape,
};

/// Values, keys and lists of one file: twice what the longest one that is read has.
const NODES_MAX: usize = 16 << 20;

pub(super) fn read(text: &str) -> Result<RawConfig, Vec<Problem>> {
    let parsed: Spanned<Option<RawConfig>> =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| problems(text, &error))?;
    parsed.value.ok_or_else(|| {
        vec![Problem::new(
            Position::START,
            "the file holds no configuration",
            "write at least node, uplinks and services; deploy/samples/standalone.yaml is a start",
        )]
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

/// The parser stops at the first thing that is wrong. Where that is a matter of shape, the others are looked for.
fn problems(text: &str, error: &Error) -> Vec<Problem> {
    let first = problem(error);
    let is_shape = matches!(
        error.without_snippet(),
        Error::SerdeUnknownField { .. } | Error::Unexpected { .. } | Error::AliasError { .. }
    );
    let all = if is_shape { shape::problems(text, options()) } else { Vec::new() };
    // What only the parser sees, as a value behind an alias, is told by it.
    if all.iter().any(|one| one.position == first.position) { all } else { vec![first] }
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
                "mapping start" => shape::KEYS,
                "sequence start" => shape::LIST,
                "string scalar" => shape::SINGLE,
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
