//! All keys that are unknown and values of the wrong shape, where the parser names the first. The schema knows the shapes.

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::{Options, Spanned};

use super::{
    problem::{Position, Problem},
    scalar::{nearest, position, quote},
    schema::schema,
};

/// Problems that are collected; nobody reads more.
const PROBLEMS_MAX: usize = 1000;

/// A file of any shape.
enum Node {
    /// A single value.
    Single,
    /// A key without a value, which is as good as no key.
    Nothing,
    List(Vec<Spanned<Node>>),
    Keys(Vec<(Spanned<String>, Spanned<Node>)>),
}

/// What is wrong with the shape of a file that is YAML.
pub(super) fn problems(text: &str, options: Options) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Ok(root) = serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options) {
        let schema = schema();
        compare(&root, &schema, &mut Walk { root: &schema, problems: &mut problems });
    }
    problems
}

struct Walk<'a> {
    root: &'a Value,
    problems: &'a mut Vec<Problem>,
}

fn compare(node: &Spanned<Node>, schema: &Value, walk: &mut Walk) {
    let place = position(&node.referenced);
    match &node.value {
        _ if walk.problems.len() == PROBLEMS_MAX => {}
        Node::Nothing => {}
        Node::Keys(keys) if schema["properties"].is_object() => {
            for (key, value) in keys {
                match schema["properties"].get(&key.value) {
                    Some(below) => compare(value, below, walk),
                    None => walk.problems.push(unknown(key, schema, walk.root)),
                }
            }
        }
        Node::List(items) if schema["items"].is_object() => {
            items.iter().for_each(|item| compare(item, &schema["items"], walk));
        }
        Node::Single if !schema["properties"].is_object() && !schema["items"].is_object() => {}
        _ => walk.problems.push(wrong_type(place, schema)),
    }
}

fn wrong_type(place: Position, schema: &Value) -> Problem {
    let (wanted, advice) = if schema["properties"].is_object() {
        KEYS
    } else if schema["items"].is_object() {
        LIST
    } else {
        SINGLE
    };
    Problem::new(place, format!("wrong type: {wanted} must stand here"), advice)
}

/// What must stand somewhere, and what to do about it.
pub(super) const KEYS: (&str, &str) = ("keys with values", "write `key: value` lines, indented below the key");
pub(super) const LIST: (&str, &str) = ("a list", "write [a, b], or lines that start with `- `");
pub(super) const SINGLE: (&str, &str) = ("a single value", "write the value behind the key, without a list or keys");

fn unknown(key: &Spanned<String>, schema: &Value, root: &Value) -> Problem {
    let names: Vec<&str> =
        schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let mut elsewhere = Vec::new();
    find(&key.value, "", root, &mut elsewhere);
    let advice = match (nearest(&key.value, names.iter().copied()), &elsewhere[..]) {
        (Some(name), _) => format!("did you mean `{name}`?"),
        (None, []) => format!("the keys here are {}", names.join(", ")),
        (None, places) => format!("the key belongs elsewhere, {}: look at the indentation", places.join(" or ")),
    };
    Problem::new(position(&key.referenced), format!("unknown key {}", quote(&key.value)), advice)
}

/// Where there is a key of this name, in words.
fn find(name: &str, above: &str, schema: &Value, places: &mut Vec<String>) {
    for (key, below) in schema["properties"].as_object().into_iter().flatten() {
        if key == name {
            places.push(if above.is_empty() { "at the top".to_owned() } else { format!("below `{above}`") });
        }
        let is_list = below["items"].is_object();
        let path =
            format!("{above}{}{key}{}", if above.is_empty() { "" } else { "." }, if is_list { "[]" } else { "" });
        find(name, &path, if is_list { &below["items"] } else { below }, places);
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

macro_rules! single {
    ($($visit:ident: $kind:ty),*) => {
        $(fn $visit<E>(self, _: $kind) -> Result<Node, E> {
            Ok(Node::Single)
        })*
    };
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("anything")
    }

    single! {
        visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64,
        visit_str: &str, visit_bytes: &[u8]
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Single)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut keys = Vec::new();
        while let Some(entry) = map.next_entry()? {
            keys.push(entry);
        }
        Ok(Node::Keys(keys))
    }
}
