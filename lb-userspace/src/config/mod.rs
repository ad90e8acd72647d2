//! The configuration file: YAML to raw values with their positions ([`raw`]), then validated into a
//! [`Snapshot`]. A file is taken as a whole or not at all, and a refusal names every problem that was found, each
//! with its place and what to do about it.
//!
//! `docs/configuration.md` is the reference of the keys; a test compares it with [`raw`].

mod announce;
mod bgp;
mod capacity;
mod health;
mod kinds;
mod observation;
mod problem;
mod raw;
mod scalar;
mod schema;
mod service;
mod shape;
#[cfg(test)]
mod tests;
mod validate;
pub mod watch;
mod yaml;

use std::{fs::File, io::Read, path::Path};

pub use capacity::maglev_slots;
pub use problem::{ConfigError, Position, Problem};
pub use schema::{Key, keys, schema, schema_text};

use crate::model::Snapshot;

/// Longest file that is read: some 700,000 backends with every key written out.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// Where maps and links are pinned unless the file says otherwise.
pub const PIN_DIRECTORY_DEFAULT: &str = "/sys/fs/bpf/sluice";

/// Where the lock file and the status socket are unless the file says otherwise.
pub const RUN_DIRECTORY_DEFAULT: &str = "/run/sluice";

/// Reads and validates a configuration file, which may also be a pipe. The agent's is read by [`watch`].
pub fn load(path: &Path) -> Result<Snapshot, ConfigError> {
    parse_bytes(&path.display().to_string(), &load_bytes(path)?)
}

/// The text of a configuration file, which may also be a pipe.
pub fn load_bytes(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let name = path.display().to_string();
    let unreadable = |cause| ConfigError::Unreadable { name: name.clone(), cause };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { name });
    }
    // The length of a pipe is unknown beforehand, and a file may grow while it is read.
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { name });
    }
    Ok(bytes)
}

/// Validates the bytes of a configuration file. `name` is what messages call the file.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Result<Snapshot, ConfigError> {
    match str::from_utf8(bytes) {
        Ok(text) => parse(name, text),
        Err(error) => {
            let valid = &bytes[..error.valid_up_to()];
            Err(ConfigError::refused(name, &String::from_utf8_lossy(bytes), vec![problem::not_utf8(valid)]))
        }
    }
}

/// Validates the text of a configuration file. `name` is what messages call the file.
pub fn parse(name: &str, text: &str) -> Result<Snapshot, ConfigError> {
    let refused = |problems| ConfigError::refused(name, text, problems);
    let raw = yaml::read(text).map_err(refused)?;
    validate::validate(&raw).map_err(refused)
}
