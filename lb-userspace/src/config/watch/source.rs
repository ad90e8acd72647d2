//! One reading of the file, and whether it was whole.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
};

use super::machine::{Outcome, RETRY};
use crate::{
    config::{ConfigError, FILE_BYTES_MAX, parse_bytes},
    model::Snapshot,
};

/// Readings at the start of a file that changes each time.
const READINGS_MAX: usize = 5;

/// Another value where the file is another one, or was written, or a symlink on its way was swapped.
pub type Version = Option<Facts>;

/// Device, inode, length, and the times of the last change of the contents and of the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    device: u64,
    inode: u64,
    bytes: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Facts {
    fn of(facts: &Metadata) -> Self {
        Self {
            device: facts.dev(),
            inode: facts.ino(),
            bytes: facts.len(),
            written: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
        }
    }
}

/// The file's version now; none where there is no file.
pub fn version(path: &Path) -> Version {
    std::fs::metadata(path).ok().map(|facts| Facts::of(&facts))
}

/// What was read.
#[derive(Debug)]
pub struct Reading {
    /// Of the file that was read.
    pub version: Version,
    /// Whether it was whole.
    pub outcome: Outcome,
    /// What it says.
    pub snapshot: Result<Snapshot, ConfigError>,
}

/// Reads the file once. Only a regular file is read: another one has no contents that stay, and reading may never end.
pub fn read(path: &Path) -> Reading {
    let name = path.display().to_string();
    let mut version = None;
    match read_bytes(path, &mut version) {
        Err(error) => {
            let is_missing = error.kind() == io::ErrorKind::NotFound;
            let outcome = if is_missing { Outcome::Missing } else { Outcome::Whole };
            let refusal = match error.kind() {
                io::ErrorKind::FileTooLarge => ConfigError::TooLarge { name },
                io::ErrorKind::InvalidInput => ConfigError::NotAFile { name },
                _ => ConfigError::Unreadable { name, cause: error },
            };
            Reading { version, outcome, snapshot: Err(refusal) }
        }
        Ok((bytes, true)) => Reading { version, outcome: Outcome::Whole, snapshot: parse_bytes(&name, &bytes) },
        Ok((_, false)) => {
            Reading { version, outcome: Outcome::Changing, snapshot: Err(ConfigError::Changing { name }) }
        }
    }
}

/// The contents, and whether they are those of one version.
fn read_bytes(path: &Path, found: &mut Version) -> io::Result<(Vec<u8>, bool)> {
    // A pipe without a writer would hold up whoever opens it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let facts = file.metadata()?;
    let before = Facts::of(&facts);
    *found = Some(before);
    if !facts.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if facts.len() > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Vec::with_capacity(facts.len() as usize + 1);
    (&file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let is_same = |file: &File| io::Result::Ok(Facts::of(&file.metadata()?) == before);
    let is_whole = bytes.len() as u64 == before.bytes && is_same(&file)? && version(path) == Some(before);
    Ok((bytes, is_whole))
}

/// Reads the file, again where it changes meanwhile. Blocks for milliseconds.
pub fn read_at_start(path: &Path) -> Reading {
    let mut reading = read(path);
    for _ in 1..READINGS_MAX {
        if reading.outcome != Outcome::Changing {
            break;
        }
        thread::sleep(RETRY);
        reading = read(path);
    }
    reading
}
