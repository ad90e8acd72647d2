//! Signs of a change, from inotify(7).

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

use super::machine::Sign;

/// Symlinks on the way to the file: as many as the kernel follows (`MAXSYMLINKS`, include/linux/namei.h).
const SYMLINKS_MAX: usize = 40;
/// How often watches are set anew where the way changes while they are set.
const ARMINGS_MAX: usize = 4;
/// Events taken in one go, so that a storm in the file's directory cannot hold the caller; what has not been read from the
/// kernel by then stays readable.
const EVENTS_MAX: usize = 256;

/// What may change the way.
const STRUCTURE: ReadFlags = ReadFlags::CREATE
    .union(ReadFlags::DELETE)
    .union(ReadFlags::MOVED_TO)
    .union(ReadFlags::MOVED_FROM)
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::MOVE_SELF)
    .union(ReadFlags::IGNORED);
/// What a directory is watched for.
const DIRECTORY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ONLYDIR);

/// What the file is watched for. Its directory does not tell of a file that is mounted there.
const FILE: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::CLOSE_WRITE);

/// A name in a directory that the way to the file leads through.
type Step = (PathBuf, OsString);

/// What one watch is of.
enum Watched {
    /// The file itself.
    File,
    /// A directory, and the names in it that are of the way.
    Directory(PathBuf, Vec<OsString>),
}

/// Watches each directory on the way to the file that has a symlink of the way or the file itself, and the file. A
/// directory above that is itself renamed goes unheard; so the file's version is to be looked at now and then.
pub struct Watch {
    inotify: OwnedFd,
    path: PathBuf,
    watched: HashMap<i32, Watched>,
}

impl Watch {
    /// Watches the file at `path`, which need not exist.
    ///
    /// # Errors
    /// Where the user has as many watches as `fs.inotify` allows.
    pub fn open(path: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut watch = Self { inotify, path: path.to_path_buf(), watched: HashMap::new() };
        watch.arm()?;
        Ok(watch)
    }

    /// Takes what has been heard, without waiting. Empty where that was of other files.
    pub fn drain(&mut self) -> io::Result<Drained> {
        let mut drained = Drained::default();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut is_moved = false;
        drained.more = true;
        let mut taken = 0;
        // What is in the buffer would be lost with it.
        while taken < EVENTS_MAX || !reader.is_buffer_empty() {
            taken += 1;
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => {
                    drained.more = false;
                    break;
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                is_moved = true;
                drained.signs.push(Sign::Replaced);
            }
            // Events of watches that were taken away may still come.
            let Some(watched) = self.watched.get(&event.wd()) else { continue };
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            if let Some(sign) = watched.sign(event.events(), name) {
                is_moved |= event.events().intersects(STRUCTURE);
                // File and directory both tell of what happens to the file.
                if drained.signs.last() != Some(&sign) {
                    drained.signs.push(sign);
                }
            }
        }
        if is_moved {
            self.arm()?;
        }
        Ok(drained)
    }

    /// Watches the way as it is now, and nothing else.
    fn arm(&mut self) -> io::Result<()> {
        for _ in 0..ARMINGS_MAX {
            let (way, file) = way(&self.path);
            let mut watched = HashMap::new();
            for (directory, name) in &way {
                // One that has just gone is heard of by the one above, or by the file's version.
                let Some(watch) = gone_is_none(inotify::add_watch(&self.inotify, directory, DIRECTORY))? else {
                    continue;
                };
                let entry = watched.entry(watch).or_insert_with(|| Watched::Directory(directory.clone(), Vec::new()));
                if let Watched::Directory(_, names) = entry {
                    names.push(name.clone());
                }
            }
            if let Some(watch) = gone_is_none(inotify::add_watch(&self.inotify, &file, FILE))? {
                watched.insert(watch, Watched::File);
            }
            for watch in self.watched.keys().filter(|watch| !watched.contains_key(watch)) {
                // The kernel has removed the watches of what is gone.
                let _ = inotify::remove_watch(&self.inotify, *watch);
            }
            self.watched = watched;
            if self::way(&self.path).0 == way {
                break;
            }
        }
        Ok(())
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

/// What was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// In order.
    pub signs: Vec<Sign>,
    /// More is waiting, and none of it makes the descriptor readable anew: drain again.
    pub more: bool,
}

impl Watched {
    /// What an event tells of the way, if anything.
    fn sign(&self, events: ReadFlags, name: Option<&OsStr>) -> Option<Sign> {
        match (self, name) {
            (Self::File, _) if events.contains(ReadFlags::MODIFY) => Some(Sign::Writing),
            (Self::File, _) if events.contains(ReadFlags::CLOSE_WRITE) => Some(Sign::Written),
            // It is gone, and the directory says so too.
            (Self::File, _) => None,
            (Self::Directory(..), None) => Some(Sign::Replaced),
            (Self::Directory(_, names), Some(name)) if !names.iter().any(|ours| ours == name) => None,
            (Self::Directory(..), Some(_)) if events.contains(ReadFlags::CLOSE_WRITE) => Some(Sign::Written),
            // A symlink that is made is complete, and a file that is made is empty.
            (Self::Directory(path, _), Some(name)) if events.contains(ReadFlags::CREATE) => {
                let is_file = fs::symlink_metadata(path.join(name)).is_ok_and(|facts| facts.is_file());
                Some(if is_file { Sign::Writing } else { Sign::Replaced })
            }
            (Self::Directory(..), Some(_)) => Some(Sign::Replaced),
        }
    }
}

fn gone_is_none(watch: rustix::io::Result<i32>) -> io::Result<Option<i32>> {
    match watch {
        Ok(watch) => Ok(Some(watch)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The symlinks on the way to a file and the file itself, each with the directory that it is in; and where the file really
/// is. The way ends at what is not there.
fn way(path: &Path) -> (Vec<Step>, PathBuf) {
    let mut ahead: Vec<PathBuf> = vec![path.to_path_buf()];
    let mut at = PathBuf::from(".");
    let (mut way, mut symlinks) = (Vec::new(), 0);
    while let Some(piece) = ahead.pop() {
        let mut parts = piece.components();
        let Some(part) = parts.next() else { continue };
        let rest = parts.as_path().to_path_buf();
        if !rest.as_os_str().is_empty() {
            ahead.push(rest);
        }
        let name = match part {
            Component::Normal(name) => name,
            Component::ParentDir => {
                at.push("..");
                continue;
            }
            Component::RootDir => {
                at = PathBuf::from("/");
                continue;
            }
            Component::CurDir | Component::Prefix(_) => continue,
        };
        let full = at.join(name);
        match fs::read_link(&full) {
            Ok(target) => {
                way.push((at.clone(), name.to_owned()));
                symlinks += 1;
                if symlinks > SYMLINKS_MAX {
                    break;
                }
                ahead.push(target);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && !ahead.is_empty() => {}
            Err(error) => {
                way.push((at.clone(), name.to_owned()));
                if error.kind() != io::ErrorKind::InvalidInput {
                    return (way, full);
                }
            }
        }
        at = full;
    }
    (way, at)
}
