//! The namespace lab: a network element, a router, a node and its pods, made of network namespaces and veths.
//!
//! ```text
//!  element ───── router ───── node ─┬─ pod 1
//!  192.0.2.10    .1  198.51.100.1  .10  10.244.0.11
//!                                   └─ pod N
//! ```
//! Everything is removed on drop. Names carry the process id, so that [`sweep`] finds what a killed process left.

mod frames;
mod host;
mod namespace;
mod pods;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};

pub use frames::Tap;
pub use host::Host;
pub(crate) use namespace::checked;
pub use namespace::{Namespace, Transport};
pub use pods::{Pod, PodLink};

/// The network element: the client of every test, in a subnet of its own.
pub const ELEMENT: Pair =
    Pair { v4: Ipv4Addr::new(192, 0, 2, 10), v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10) };
/// The node's address on its uplink `eth0`.
pub const NODE: Pair =
    Pair { v4: Ipv4Addr::new(198, 51, 100, 10), v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10) };
/// The node's uplink.
pub const UPLINK: &str = "eth0";
/// The router's end of the node's uplink.
pub const ROUTER_END: &str = "node0";
/// Environment variable that names the eBPF object with the program `pass`.
pub const LAB_OBJECT: &str = "SLUICE_LAB_OBJECT";

/// How often a condition is looked at while it is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often a process that ends sweeps.
const SWEEPS: usize = 3;
/// First word of every name of a lab; the process id follows.
const PREFIX: &str = "sluice-lab";

/// The two families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which tests run them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// An IPv4 and an IPv6 address of the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    /// The address of one family.
    #[must_use]
    pub const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }
}

/// The VIPs with this last byte; the router sends 10.96.0.0/24 and fd00:96::/64 to the node.
#[must_use]
pub const fn vip(last: u8) -> Pair {
    Pair { v4: Ipv4Addr::new(10, 96, 0, last), v6: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, last as u16) }
}

/// What a lab looks like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many pods.
    pub pods: u8,
    /// How pods are connected to the node.
    pub pod_link: PodLink,
    /// Leave transmit checksum offload on in node and pods. The element's is always off.
    pub checksum_offload: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { pods: 2, pod_link: PodLink::Routed, checksum_offload: false }
    }
}

/// A running lab. Fields are dropped in order: the program, pods and node before what they hang on.
pub struct Lab {
    router_program: Option<Ebpf>,
    /// The pods, first pod first.
    pub pods: Vec<Pod>,
    /// The worker node; forwards.
    pub node: Namespace,
    /// The next hop of both sides; owns the first address of each subnet.
    pub router: Namespace,
    /// The network element.
    pub element: Namespace,
    directory: Directory,
    options: Options,
}

impl Lab {
    /// Makes the namespaces and joins them. `name` is for people; the whole name is unique on the machine.
    pub fn new(name: &str, options: Options) -> Result<Self> {
        let full_name = unique(name);
        let directory = Directory::new(&full_name)?;
        let namespace = |role: &str| Namespace::new(format!("{full_name}-{role}"));
        let mut lab = Self {
            router_program: None,
            pods: Vec::new(),
            node: namespace("node")?,
            router: namespace("router")?,
            element: namespace("element")?,
            directory,
            options,
        };
        lab.join()?;
        pods::prepare(&lab.node, options.pod_link)?;
        for index in 1..=options.pods {
            let pod = Pod::new(&full_name, (0, index), &lab.node, options)?;
            lab.pods.push(pod);
        }
        Ok(lab)
    }

    /// A lab with one pod, whose router finds the first VIPs on the uplink's segment, by ARP and Neighbor Discovery.
    pub fn on_segment(name: &str) -> Result<Self> {
        let mut lab = Self::new(name, Options { pods: 1, ..Options::default() })?;
        lab.attach_router_program()?;
        let (v4, v6) = (vip(1).v4, vip(1).v6);
        lab.router.ip(&format!("route add {v4}/32 dev {ROUTER_END}\nroute add {v6}/128 dev {ROUTER_END}\n"))?;
        Ok(lab)
    }

    /// A directory of this lab for configurations and sockets; removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// A bpffs of this lab, mounted where the host's bpftool can read it.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.directory.0.join("bpf")
    }

    /// Gives the router's end of the uplink an XDP program, without which what the node sends by `XDP_TX` vanishes.
    /// The object is the one that [`LAB_OBJECT`] names.
    pub fn attach_router_program(&mut self) -> Result<()> {
        self.router_program = Some(attach_pass(&self.router, ROUTER_END)?);
        Ok(())
    }

    /// Makes one more pod.
    pub fn add_pod(&mut self) -> Result<()> {
        let index = u8::try_from(self.pods.len() + 1).context("too many pods")?;
        let name = self.directory.0.file_name().context("a lab's directory has a name")?.to_string_lossy().into_owned();
        self.pods.push(Pod::new(&name, (0, index), &self.node, self.options)?);
        Ok(())
    }

    /// Ends the pod with this index (0 is the first) and everything in it, and makes it again with the same address.
    pub fn restart_pod(&mut self, index: usize) -> Result<()> {
        self.unwire_pod(index)?;
        self.renew_pod(index)?;
        self.wire_pod(index)
    }

    /// Removes the pod's veth; its namespace and what is in it stay.
    pub fn unwire_pod(&self, index: usize) -> Result<()> {
        self.pods.get(index).context("no such pod")?.unwire(&self.node)
    }

    /// Gives the pod another namespace, without a veth. The old one goes with its last process and socket.
    pub fn renew_pod(&mut self, index: usize) -> Result<()> {
        self.pods.get_mut(index).context("no such pod")?.renew()
    }

    /// Gives a pod without one a veth.
    pub fn wire_pod(&self, index: usize) -> Result<()> {
        self.pods.get(index).context("no such pod")?.wire(&self.node, self.options)
    }

    /// Gives the pod with this index a new veth, as if its sandbox was rebuilt; the address stays.
    pub fn move_pod(&mut self, index: usize) -> Result<()> {
        let options = self.options;
        let pod = self.pods.get_mut(index).context("no such pod")?;
        pod.rewire(&self.node, options)
    }

    /// Removes the node's uplink and makes it anew, with all that hangs on it.
    pub fn renew_uplink(&mut self) -> Result<()> {
        self.node.ip(&format!("link del {UPLINK}"))?;
        self.join_uplink()?;
        match self.router_program.take() {
            Some(_) => self.attach_router_program(),
            None => Ok(()),
        }
    }

    fn join(&self) -> Result<()> {
        // Made where it belongs: a link that moves between namespaces takes its IPv6 settings along.
        self.element.ip(&format!("link add eth0 type veth peer name client0 netns {}", self.router.name()))?;
        for namespace in [&self.router, &self.node] {
            namespace.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        }
        self.element.ip("link set eth0 up\n\
             address add 192.0.2.10/24 dev eth0\n\
             address add 2001:db8:1::10/64 dev eth0 nodad\n")?;
        self.router.ip("link set client0 up\n\
             address add 192.0.2.1/24 dev client0\n\
             address add 2001:db8:1::1/64 dev client0 nodad\n")?;
        self.element.ip("route add default via 192.0.2.1\nroute add default via 2001:db8:1::1\n")?;
        self.element.checksum_offload("eth0", false)?;
        self.router.checksum_offload("client0", false)?;
        self.join_uplink()
    }

    fn join_uplink(&self) -> Result<()> {
        let router = self.router.name();
        self.node.ip(&format!("link add {UPLINK} type veth peer name {ROUTER_END} netns {router}"))?;
        self.router.ip(&format!(
            "link set {ROUTER_END} up\n\
             address add 198.51.100.1/24 dev {ROUTER_END}\n\
             address add 2001:db8:2::1/64 dev {ROUTER_END} nodad\n"
        ))?;
        self.node.ip(&format!(
            "link set {UPLINK} up\n\
             address add {}/24 dev {UPLINK}\n\
             address add {}/64 dev {UPLINK} nodad\n\
             route add default via 198.51.100.1\n\
             route add default via 2001:db8:2::1\n",
            NODE.v4, NODE.v6
        ))?;
        for prefix in ["10.96.0.0/24", pods::PREFIX_V4] {
            self.router.ip(&format!("route add {prefix} via {}\n", NODE.v4))?;
        }
        for prefix in ["fd00:96::/64", pods::PREFIX_V6] {
            self.router.ip(&format!("route add {prefix} via {}\n", NODE.v6))?;
        }
        self.router.checksum_offload(ROUTER_END, false)?;
        self.node.checksum_offload(UPLINK, self.options.checksum_offload)
    }
}

/// A name that no other lab on this machine has, after removing what dead processes have left.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    sweep(Sweep::DeadProcesses);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{number}-{name}", process::id())
}

/// Gives an interface an XDP program that passes everything, for as long as the returned object lives.
pub fn attach_pass(namespace: &Namespace, interface: &str) -> Result<Ebpf> {
    let path = std::env::var_os(LAB_OBJECT).with_context(|| {
        format!("{LAB_OBJECT} is not set: run this through `cargo xtask`, which builds the lab's eBPF object")
    })?;
    let object = fs::read(&path).with_context(|| format!("cannot read {LAB_OBJECT}={}", Path::new(&path).display()))?;
    namespace.run(|| {
        let mut ebpf = Ebpf::load(&object).context("cannot load the lab's eBPF object")?;
        let program: &mut Xdp =
            ebpf.program_mut("pass").context("the lab's eBPF object has no program `pass`")?.try_into()?;
        program.load().context("cannot load the XDP program `pass`")?;
        program
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("cannot attach `pass` to {interface} in {}", namespace.name()))?;
        Ok(ebpf)
    })
}

/// Waits for `probe` to give a value; an error of the probe ends the wait at once.
pub fn wait_until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "waited {} s for {what}", limit.as_secs());
        thread::sleep(POLL_INTERVAL);
    }
}

/// Whether the privileged tests can run here.
///
/// Without root they are skipped, with a message, unless `SLUICE_REQUIRE_PRIVILEGES=1` says that they must run.
///
/// # Panics
/// Where privileges are required and missing.
#[must_use]
pub fn privileged(test: &str) -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let required = std::env::var("SLUICE_REQUIRE_PRIVILEGES").is_ok_and(|value| value == "1");
    assert!(root || !required, "{test} needs root, and SLUICE_REQUIRE_PRIVILEGES=1 forbids skipping it");
    if !root {
        eprintln!("skipped: {test} needs root (network namespaces, XDP)");
    }
    root
}

/// Whose leftovers [`sweep`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Labs of processes that no longer exist.
    DeadProcesses,
    /// Those, and this process's own: the last act before it ends.
    AndOwn,
}

/// Held while something is made that outlives the process, and by [`shut_down`] for good.
static CREATION: Mutex<()> = Mutex::new(());

fn creation() -> MutexGuard<'static, ()> {
    CREATION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process from whatever thread a signal is handled on, leaving nothing behind: nothing new can be made any
/// more, and the programs in the namespaces die with this process.
pub fn shut_down(exit_status: i32) -> ! {
    let _never_released = creation();
    // Other threads still run, and may be writing a file into a directory while it is removed.
    for _ in 0..SWEEPS {
        sweep(Sweep::AndOwn);
    }
    process::exit(exit_status)
}

/// Removes namespaces, mounts and directories of labs that nobody cleans up any more.
pub fn sweep(whose: Sweep) {
    for (parent, remove) in [
        (PathBuf::from(namespace::DIRECTORY), namespace::remove as fn(&str)),
        (std::env::temp_dir(), |name: &str| remove_directory(&std::env::temp_dir().join(name))),
    ] {
        let Ok(entries) = fs::read_dir(parent) else {
            continue;
        };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if owner(&name).is_some_and(|pid| abandoned(pid, whose)) {
                remove(&name);
            }
        }
    }
}

/// The process that made what bears this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

fn abandoned(pid: u32, whose: Sweep) -> bool {
    (whose == Sweep::AndOwn && pid == process::id()) || !Path::new("/proc").join(pid.to_string()).exists()
}

/// A lab's directory with its bpffs.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn new(name: &str) -> Result<Self> {
        let _creation = creation();
        let directory = Self(std::env::temp_dir().join(name));
        let bpffs = directory.0.join("bpf");
        fs::create_dir_all(&bpffs).with_context(|| format!("cannot make {}", bpffs.display()))?;
        checked(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs))?;
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        remove_directory(&self.0);
    }
}

/// Errors have no one to go to; the next lab's sweep tries again.
fn remove_directory(path: &Path) {
    let _ = Command::new("umount").arg(path.join("bpf")).stderr(Stdio::null()).status();
    let _ = fs::remove_dir_all(path);
}

/// Finds a program that a test needs; the error names the Debian package.
pub(crate) fn require_program(program: &str, package: &str) -> Result<()> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons in sbin, which is not on everybody's PATH.
    let extra = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    if std::env::split_paths(&directories).chain(extra).any(|directory| directory.join(program).is_file()) {
        return Ok(());
    }
    bail!("{program} is not installed: `apt-get install {package}`, or `cargo xtask setup`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_name_is_the_process_in_it() {
        assert_eq!(owner("sluice-lab-123-0-demo-node"), Some(123));
        assert_eq!(owner("sluice-lab-x-0-demo"), None);
        assert_eq!(owner("cni-123"), None);
    }

    #[test]
    fn only_own_and_dead_processes_are_swept() {
        assert!(!abandoned(process::id(), Sweep::DeadProcesses));
        assert!(abandoned(process::id(), Sweep::AndOwn));
        assert!(!abandoned(1, Sweep::AndOwn));
        // Above the largest process id that Linux gives (pid_max is at most 2^22).
        assert!(abandoned(1 << 23, Sweep::DeadProcesses));
    }
}
