//! What may stand behind a key, in the words of a JSON schema. A value is a plain scalar or the same text in quotes, as
//! the file is read; what a schema cannot say (a power of two, no loopback address) is left to the validator.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::scalar::Scalar;

/// One kind: its name in messages, and its schema.
macro_rules! kind {
    ($(#[doc = $doc:expr] $name:ident: $schema:tt)*) => {
        $(
            #[doc = $doc]
            pub(super) struct $name;

            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($name).into()
                }

                fn inline_schema() -> bool {
                    true
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!($schema)
                }
            }
        )*
    };
}

kind! {
    /// A whole decimal number.
    Number: { "type": ["integer", "string"], "pattern": "^\\+?[0-9]+$" }
    /// A number that is a power of two.
    PowerOfTwo: { "type": ["integer", "string"], "pattern": "^\\+?[0-9]+$", "format": "power-of-two" }
    /// A truth value.
    Switch: { "type": ["boolean", "string"], "pattern": "^(true|false)$" }
    /// Any text; a number is one too.
    Text: { "type": ["string", "number", "boolean"] }
    /// A whole number of milliseconds or seconds.
    TimeSpan: { "type": "string", "pattern": "^[0-9]+(ms|s)$" }
    /// An IPv4 or IPv6 address.
    Address: { "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] }
    /// An address, or a prefix of some with its length.
    AddressPrefix: { "type": "string", "pattern": "^[0-9a-fA-F:.]+(/(0|[1-9][0-9]{0,2}))?$" }
    /// An address family.
    FamilyName: { "type": "string", "enum": ["ipv4", "ipv6"] }
    /// Two numbers with a colon in between.
    NumberPair: { "type": "string", "pattern": "^(0|[1-9][0-9]*):(0|[1-9][0-9]*)$" }
    /// Three numbers with colons in between.
    NumberTriple: { "type": "string", "pattern": "^(0|[1-9][0-9]*):(0|[1-9][0-9]*):(0|[1-9][0-9]*)$" }
    /// An absolute path.
    PathName: { "type": "string", "pattern": "^/(?!.*(^|/)\\.\\.(/|$))" }
}

/// Marks a key whose kind is not said, which a test refuses.
pub(super) const UNSAID: &str = "x-unsaid";

impl JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ UNSAID: true })
    }
}

/// What a key with choices can be.
pub(super) fn words<T>(choices: &[(&str, T)]) -> Vec<Value> {
    choices.iter().map(|(word, _)| json!(word)).collect()
}

/// The same where the key may also stand without a value.
pub(super) fn optional_words<T>(choices: &[(&str, T)]) -> Vec<Value> {
    [words(choices), vec![Value::Null]].concat()
}

/// What the keys of a service say about each other.
pub(super) fn rules() -> Value {
    let is = |key: &str, word: Value| json!({ "required": [key], "properties": { key: { "const": word } } });
    let on = || json!({ "required": ["assignVip"], "properties": { "assignVip": { "enum": [true, "true"] } } });
    let timeout =
        || json!({ "required": ["sessionAffinityTimeoutSeconds"], "not": is_null("sessionAffinityTimeoutSeconds") });
    let only = |key: &str, words: Value| json!({ "properties": { key: { "enum": words } } });
    json!([
        { "if": is("protocol", json!("TCP")), "then": only("replies", json!(["static", null])) },
        { "if": is("rung", json!("direct")), "then": only("replies", json!(["static", "none", null])) },
        { "if": on(), "then": is("rung", json!("direct")) },
        { "if": timeout(), "then": is("sessionAffinity", json!("ClientIP")) },
    ])
}

fn is_null(key: &str) -> Value {
    json!({ "properties": { key: { "type": "null" } } })
}
