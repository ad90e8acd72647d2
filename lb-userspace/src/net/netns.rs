//! Network namespaces: found by the id that ours has for them, and entered for a moment.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            net::UnixDatagram,
        },
    },
    panic,
    path::{Path, PathBuf},
    thread,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{Capability, Error, Netlink, NetnsId, Result, sys};

/// Entries looked at in each searched directory; the processes of a large node are some thousands.
const SEARCH_ENTRIES: usize = 1 << 16;

/// A network namespace, held open. It lives, with its interfaces, for as long as this does: do not keep it.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens a namespace by a path like `/run/netns/blue` or `/proc/1/ns/net`. Does not check that it is one.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        // Not to hang on a FIFO that somebody put there.
        match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => {
                Err(Error::new(format!("open the namespace {}", path.display()), Capability::SysPtrace, source))
            }
        }
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread of its own inside this namespace, and waits for it. Sockets that it opens stay there.
    ///
    /// # Panics
    /// With the panic of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let action = || format!("make a thread for the namespace {}", self.path.display());
        thread::scope(|scope| {
            let inside = || self.enter().map(|()| work());
            let spawned = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, inside);
            let thread = spawned.map_err(|source| Error::Kernel { action: action(), source })?;
            match thread.join() {
                Ok(result) => result,
                Err(payload) => panic::resume_unwind(payload),
            }
        })
    }

    /// Runs `work` on the calling thread inside this namespace, and takes the thread back to `home`: cheaper than
    /// [`Netns::run`], for a process of one thread.
    ///
    /// # Panics
    /// Where there is no way back: whatever came next would be done in the wrong namespace. A panic of `work` leaves the
    /// thread here.
    pub fn visit<T>(&self, home: &Self, work: impl FnOnce() -> T) -> Result<T> {
        self.enter()?;
        let result = work();
        home.enter().expect("the way back into the process's own namespace");
        Ok(result)
    }

    /// Moves the calling thread, and no other, into this namespace for good.
    pub fn enter(&self) -> Result<()> {
        let action = || format!("enter the namespace {}", self.path.display());
        sys::enter_network_namespace(self.file.as_fd())
            .map_err(|source| Error::new(action(), Capability::SysAdmin, source))
    }

    /// The number by which this namespace is told from every other one, those that are gone included.
    pub fn cookie(&self) -> Result<u64> {
        self.run(cookie)?
    }

    /// The id that the namespace of `netlink` has for this one; none if it never needed one.
    pub fn id(&self, netlink: &mut Netlink) -> Result<Option<NetnsId>> {
        let mut question = NsidMessage::default();
        question.attributes.push(NsidAttribute::Fd(self.file.as_raw_fd() as u32));
        let action = format!("ask for the id of the namespace {}", self.path.display());
        let answer = netlink.get(&action, RouteNetlinkMessage::GetNsId(question))?;
        let RouteNetlinkMessage::NewNsId(answer) = answer else {
            return Err(Error::Answer { action, detail: "not a namespace id".to_owned() });
        };
        Ok(answer.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) if *id >= 0 => Some(NetnsId(*id)),
            _ => None,
        }))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Finds namespaces by id. Remembers where each was, never the namespace itself, which would keep dead pods' interfaces
/// alive; what is remembered is asked again each time, as ids and inodes are reused.
///
/// A namespace that neither a name nor a process's first thread holds is not found.
#[derive(Debug)]
pub struct Namespaces {
    processes: PathBuf,
    named: Vec<PathBuf>,
    known: HashMap<NetnsId, PathBuf>,
}

impl Default for Namespaces {
    fn default() -> Self {
        // container runtimes name theirs in the first, Docker in the second
        Self::searching("/proc", ["/run/netns", "/run/docker/netns"])
    }
}

impl Namespaces {
    /// Searches these directories: a procfs, and directories of named namespaces. Those that do not exist are skipped.
    pub fn searching<P: Into<PathBuf>>(processes: impl Into<PathBuf>, named: impl IntoIterator<Item = P>) -> Self {
        Self { processes: processes.into(), named: named.into_iter().map(Into::into).collect(), known: HashMap::new() }
    }

    /// The namespace that the one of `netlink` calls `id`.
    ///
    /// One that is not remembered costs a search: a system call for each process and a few for each namespace. That
    /// search remembers all that it meets.
    pub fn find(&mut self, netlink: &mut Netlink, id: NetnsId) -> Result<Netns> {
        if let Some(netns) = self.remembered(netlink, id) {
            return Ok(netns);
        }
        self.search(netlink);
        self.remembered(netlink, id).ok_or_else(|| Error::NoNamespace { action: "find a namespace".to_owned(), id })
    }

    fn remembered(&mut self, netlink: &mut Netlink, id: NetnsId) -> Option<Netns> {
        let netns = Netns::open(self.known.get(&id)?).ok()?;
        let is_it = netns.id(netlink).is_ok_and(|found| found == Some(id));
        if !is_it {
            self.known.remove(&id);
        }
        is_it.then_some(netns)
    }

    fn search(&mut self, netlink: &mut Netlink) {
        self.known.clear();
        let named = self.named.iter().flat_map(|directory| entries(directory));
        let held = entries(&self.processes).filter(|path| is_process(path)).map(|path| path.join("ns/net"));
        let mut seen = HashSet::new();
        for path in named.chain(held) {
            // Follows the link of /proc to the namespace's own inode without opening it. Processes end and
            // belong to others: what cannot be looked at is passed over.
            let Ok(inode) = fs::metadata(&path).map(|metadata| (metadata.dev(), metadata.ino())) else { continue };
            if !seen.insert(inode) {
                continue;
            }
            if let Ok(Some(id)) = Netns::open(&path).and_then(|netns| netns.id(netlink)) {
                self.known.insert(id, path);
            }
        }
    }
}

/// [`Netns::cookie`] of the calling thread's namespace.
pub fn cookie() -> Result<u64> {
    let asked = UnixDatagram::unbound().and_then(|socket| sys::network_namespace_cookie(socket.as_fd()));
    asked.map_err(|source| Error::Kernel { action: "ask for the cookie of a namespace".to_owned(), source })
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().take(SEARCH_ENTRIES).flatten().map(|entry| entry.path())
}

fn is_process(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}
