//! The JSON schema of the file, made from the types that it is read into, for editors and for the reference.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::raw::RawConfig;

/// Where the schema can be had.
const ID: &str = "https://raw.githubusercontent.com/sluice-lb/sluice/main/deploy/sluice.schema.json";

/// The schema, in the draft that editors know (draft 07), each object in its place.
///
/// Beside the standard's, it has keywords that validators pass over: `x-kubernetes`, the field of a Kubernetes object
/// that says the same; `x-default`, what stands for a key that is left out where that is no single value.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<RawConfig>();
    schema.insert("$id".to_owned(), ID.into());
    schema.to_value()
}

/// The same as a file.
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

/// One key of the file.
#[derive(Clone, Debug)]
pub struct Key {
    /// Such as `services[].backends[].weight`.
    pub path: String,
    /// Whether it must be there.
    pub required: bool,
    /// Its part of the schema.
    pub schema: Value,
}

/// All keys, each before those below it.
pub fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    collect("", &schema(), &mut keys);
    keys
}

fn collect(prefix: &str, object: &Value, keys: &mut Vec<Key>) {
    let required = object["required"].as_array().map_or(&[][..], Vec::as_slice);
    for (name, schema) in object["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        let is_list = schema["items"].is_object();
        // One that may be left out, and whose keys say something about each other, is one of two.
        let may_be_missing = schema["anyOf"][0]["properties"].is_object();
        let below = match (is_list, may_be_missing) {
            (true, _) => &schema["items"],
            (false, true) => &schema["anyOf"][0],
            (false, false) => schema,
        };
        let deeper = format!("{path}{}.", if is_list { "[]" } else { "" });
        keys.push(Key { path, required: required.iter().any(|key| key == name), schema: schema.clone() });
        collect(&deeper, below, keys);
    }
}
