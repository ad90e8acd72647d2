//! One network namespace: threads and processes inside it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{creation, wait_until};

/// Where iproute2 keeps the handles of named namespaces.
pub(super) const DIRECTORY: &str = "/run/netns";

/// A named network namespace, removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Keeps the namespace reachable, also while its name is being removed.
    handle: Arc<File>,
}

/// Transport whose listening sockets [`Namespace::wait_listening`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP sockets in state LISTEN.
    Tcp,
    /// Bound UDP sockets.
    Udp,
}

impl Namespace {
    /// Makes the namespace and sets what every namespace of a lab shares: no duplicate address detection, so that
    /// IPv6 addresses are usable at once, and no reverse path filter.
    pub(crate) fn new(name: String) -> Result<Self> {
        {
            let _creation = creation();
            checked(Command::new("ip").args(["netns", "add", &name]))?;
        }
        let path = Path::new(DIRECTORY).join(&name);
        let handle = Arc::new(File::open(&path).with_context(|| format!("cannot open {}", path.display()))?);
        let namespace = Self { name, handle };
        namespace.sysctl(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/dad_transmits", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Name under which `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// File that stands for the namespace; `nsenter --net=PATH` takes it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// A command that will run inside. Unlike `ip netns exec` this leaves the mounts alone (bpffs, cgroups).
    ///
    /// The child is killed when the *thread* that spawns it ends, so that no failure of a test leaves one behind.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let handle = Arc::clone(&self.handle);
        // A group of its own: Ctrl-C is for the demo, which then ends its children in order.
        command.process_group(0);
        // SAFETY: all calls are async-signal-safe and get valid pointers; nothing is allocated and no lock taken after
        // the fork.
        unsafe {
            command.pre_exec(move || {
                enter(&handle)?;
                // The demo blocks the signals that it waits for; its children must not inherit that.
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut none);
                libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }

    /// Runs `task` on a thread inside the namespace and waits for it. Sockets that it makes stay in the namespace
    /// wherever they are used later.
    ///
    /// # Panics
    /// When `task` panics, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        let handle = Arc::clone(&self.handle);
        let outcome = thread::scope(|scope| {
            scope
                .spawn(move || {
                    enter(&handle).expect("a namespace that is held open can be entered");
                    task()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts `task` on a thread inside the namespace.
    pub fn spawn<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let handle = Arc::clone(&self.handle);
        thread::spawn(move || {
            enter(&handle).expect("a namespace that is held open can be entered");
            task()
        })
    }

    /// Runs lines of `ip` arguments in one batch; the first that fails is the error.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start ip (Debian package iproute2)")?;
        // Dropped at once: the end of the input ends the batch.
        child.stdin.take().context("ip has no standard input")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("ip in {} failed: {}\n{lines}", self.name, message.trim());
        }
        Ok(())
    }

    /// Writes values under `/proc/sys`, as seen inside.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in values {
                let path = Path::new("/proc/sys").join(key);
                fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Turns the calculation of transmit checksums by the (missing) hardware on or off.
    ///
    /// XDP cannot see that a checksum is still partial: with offload on, what arrives over a veth proves nothing.
    pub fn checksum_offload(&self, interface: &str, on: bool) -> Result<()> {
        let switch = if on { "on" } else { "off" };
        checked(self.command("ethtool").args(["-K", interface, "tx", switch]))
    }

    /// Waits until a socket listens on (TCP) or is bound to (UDP) `port`.
    pub fn wait_listening(&self, transport: Transport, port: u16, limit: Duration) -> Result<()> {
        wait_until(&format!("{transport:?} port {port} to be open in {}", self.name), limit, || {
            Ok(self.listens(transport, port)?.then_some(()))
        })
    }

    fn listens(&self, transport: Transport, port: u16) -> Result<bool> {
        let (tables, state) = match transport {
            Transport::Tcp => (["tcp", "tcp6"], "0A"),
            Transport::Udp => (["udp", "udp6"], "07"),
        };
        let suffix = format!(":{port:04X}");
        self.run(|| {
            for table in tables {
                // Columns: slot, local address:port, remote address:port, state (proc_pid_net(5)).
                let text = fs::read_to_string(Path::new("/proc/thread-self/net").join(table))?;
                let open = text.lines().skip(1).any(|line| {
                    let mut columns = line.split_whitespace().skip(1);
                    columns.next().is_some_and(|local| local.ends_with(&suffix)) && columns.nth(1) == Some(state)
                });
                if open {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes a namespace's name; the namespace goes with its last process and handle. Errors have no one to go to.
pub(super) fn remove(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

fn enter(handle: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which `handle` keeps open, and changes the calling thread only.
    if unsafe { libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Runs a command to its end; failure carries what it wrote.
pub(crate) fn checked(command: &mut Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
