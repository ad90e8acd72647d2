//! BIRD 2: a BGP speaker in the element that exports routes, and one in a pod that waits for it.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{PATIENCE, make_directory};
use crate::{
    lab::{ELEMENT, Family, Namespace, Pod, Transport, checked, require_program, wait_until},
    process::Process,
};

/// BGP's port (RFC 4271).
pub const PORT: u16 = 179;
const ELEMENT_AS: u32 = 64501;
const POD_AS: u32 = 64500;

/// The prefixes that the element announces.
#[must_use]
pub const fn announced(family: Family) -> [&'static str; 2] {
    match family {
        Family::V4 => ["203.0.113.0/25", "203.0.113.128/25"],
        Family::V6 => ["2001:db8:a::/48", "2001:db8:b::/48"],
    }
}

/// A running BIRD; ends on drop.
#[derive(Debug)]
pub struct Bird {
    process: Process,
    socket: PathBuf,
    family: Family,
}

/// What protects a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    None,
    /// A signature of each segment, addresses and ports included (RFC 2385).
    Md5,
    /// Nobody farther away than one router gets a segment through (RFC 5082).
    Ttl,
}

impl Guard {
    /// As it stands in both ends' configuration. With GTSM, one router between the two is one that there is.
    const fn lines(self) -> &'static str {
        match self {
            Self::None => "multihop;",
            Self::Md5 => "multihop; password \"sluice-test\";",
            Self::Ttl => "multihop 2; ttl security on;",
        }
    }
}

/// Where an end of a guarded session runs.
#[derive(Clone, Copy, Debug)]
pub enum Side<'a> {
    /// Waits for the session.
    Pod(&'a Pod),
    /// Opens it, and exports [`announced`].
    Element(&'a Namespace),
}

/// An established session, as the pod sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The address that the session came from.
    pub neighbor: IpAddr,
    /// The prefixes learned from it, sorted.
    pub routes: Vec<String>,
}

impl Bird {
    /// The pod's side: accepts a session from any address, so that the address it shows is the one it saw.
    pub fn collector(pod: &Pod, family: Family, directory: &Path) -> Result<Self> {
        let (channel, any, via) = match family {
            Family::V4 => ("ipv4", "0.0.0.0/0", "192.0.2.0/24"),
            Family::V6 => ("ipv6", "::/0", "2001:db8:1::/64"),
        };
        let configuration = format!(
            "router id 10.244.0.{id};\n\
             protocol device {{ }}\n\
             # Routes of a multihop session resolve through this one.\n\
             protocol static resolver {{ {channel}; route {via} via \"eth0\"; }}\n\
             protocol bgp element {{\n\
               local as {POD_AS};\n\
               neighbor range {any} as {ELEMENT_AS};\n\
               dynamic name \"session\";\n\
               multihop;\n\
               passive;\n\
               {channel} {{ import all; export none; }};\n\
             }}\n",
            id = pod.index,
        );
        let bird =
            Self::start(&pod.namespace, &format!("{}-{channel}", pod.name()), family, &configuration, directory)?;
        pod.namespace.wait_listening(Transport::Tcp, PORT, PATIENCE).with_context(|| bird.log_tail())?;
        Ok(bird)
    }

    /// The element's side: opens a session to `target` and exports [`announced`].
    pub fn element(element: &Namespace, target: IpAddr, directory: &Path) -> Result<Self> {
        let (family, channel) = if target.is_ipv4() { (Family::V4, "ipv4") } else { (Family::V6, "ipv6") };
        let routes: String = announced(family).iter().map(|prefix| format!("route {prefix} blackhole; ")).collect();
        let configuration = format!(
            "router id 192.0.2.10;\n\
             protocol device {{ }}\n\
             protocol static announced {{ {channel}; {routes} }}\n\
             protocol bgp collector {{\n\
               local {local} as {ELEMENT_AS};\n\
               neighbor {target} as {POD_AS};\n\
               multihop;\n\
               connect delay time 1;\n\
               connect retry time 2;\n\
               {channel} {{ import none; export where source = RTS_STATIC; }};\n\
             }}\n",
            local = ELEMENT.of(family),
        );
        Self::start(element, &format!("element-{channel}"), family, &configuration, directory)
    }

    /// One end of a session under a guard, bound to its own address, as it would be configured in the field.
    pub fn guarded(side: Side<'_>, own: IpAddr, other: IpAddr, guard: Guard, directory: &Path) -> Result<Self> {
        let (family, channel) = if own.is_ipv4() { (Family::V4, "ipv4") } else { (Family::V6, "ipv6") };
        let routes: String = announced(family).iter().map(|prefix| format!("route {prefix} blackhole; ")).collect();
        let length = if own.is_ipv4() { 32 } else { 128 };
        let (namespace, name, id, ases, extra, channel_lines, protocols) = match side {
            Side::Pod(pod) => (
                &pod.namespace,
                pod.name(),
                format!("10.244.0.{}", pod.index),
                (POD_AS, ELEMENT_AS),
                "passive;",
                "import all; export none;",
                // Routes of a multihop session resolve through this one.
                format!("protocol static resolver {{ {channel}; route {other}/{length} via \"eth0\"; }}"),
            ),
            Side::Element(element) => (
                element,
                "element".to_owned(),
                "192.0.2.10".to_owned(),
                (ELEMENT_AS, POD_AS),
                "connect delay time 1; connect retry time 2;",
                "import none; export where source = RTS_STATIC;",
                format!("protocol static announced {{ {channel}; {routes} }}"),
            ),
        };
        let configuration = format!(
            "router id {id};\n\
             protocol device {{ }}\n\
             {protocols}\n\
             protocol bgp session {{\n\
               local {own} as {};\n\
               neighbor {other} as {};\n\
               strict bind;\n\
               {}\n\
               {extra}\n\
               {channel} {{ {channel_lines} }};\n\
             }}\n",
            ases.0,
            ases.1,
            guard.lines(),
        );
        let bird = Self::start(namespace, &format!("{name}-{channel}-{guard:?}"), family, &configuration, directory)?;
        if matches!(side, Side::Pod(_)) {
            namespace.wait_listening(Transport::Tcp, PORT, PATIENCE).with_context(|| bird.log_tail())?;
        }
        Ok(bird)
    }

    /// A router with this configuration, whose kernel takes over what it learns where the text says so.
    pub fn router(namespace: &Namespace, name: &str, configuration: &str, directory: &Path) -> Result<Self> {
        Self::start(namespace, name, Family::V4, configuration, directory)
    }

    /// Runs it before all that has no such priority: a router's BFD does not wait for what else its machine has to do.
    pub fn hurry(&self) -> Result<()> {
        let id = self.process.id().to_string();
        // All of its threads: BFD has one of its own.
        checked(Command::new("chrt").args(["--all-tasks", "--fifo", "--pid", "1", &id]))
    }

    /// Ends it in order.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    fn start(namespace: &Namespace, name: &str, family: Family, configuration: &str, directory: &Path) -> Result<Self> {
        require_program("bird", "bird2")?;
        let directory = directory.join(format!("bird-{name}"));
        make_directory(&directory)?;
        let (file, socket) = (directory.join("bird.conf"), directory.join("bird.ctl"));
        fs::write(&file, format!("log stderr all;\ndebug protocols {{ states, events }};\n{configuration}"))?;
        let mut process = Process::start(
            &format!("bird in {name}"),
            namespace.command("bird").arg("-f").arg("-c").arg(&file).arg("-s").arg(&socket),
        )?;
        wait_until(&format!("bird in {name} to be ready"), PATIENCE, || {
            process.check_running()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self { process, socket, family })
    }

    /// Waits until a session is established and all announced prefixes are there.
    pub fn wait_session(&self) -> Result<Session> {
        let wanted = announced(self.family).map(str::to_owned).to_vec();
        let found = wait_until("a BGP session with its routes", PATIENCE, || {
            Ok(self.session()?.filter(|session| session.routes == wanted))
        });
        found.with_context(|| self.log_tail())
    }

    /// The established session, if there is one.
    pub fn session(&self) -> Result<Option<Session>> {
        let protocols = self.control(&["show", "protocols", "all"])?;
        let Some(neighbor) = established_neighbor(&protocols) else { return Ok(None) };
        let mut routes: Vec<_> = self
            .control(&["show", "route", "where", "source", "=", "RTS_BGP"])?
            .lines()
            .filter_map(|line| line.split_whitespace().next().filter(|word| word.contains('/')).map(str::to_owned))
            .collect();
        routes.sort();
        Ok(Some(Session { neighbor, routes }))
    }

    /// When the established session was established, as the time of day; nothing where there is none. BIRD keeps it by a
    /// monotonic clock and tells it by the wall's, so it wanders as these two do.
    pub fn established_since(&self) -> Result<Option<Duration>> {
        let protocols = self.control(&["show", "protocols"])?;
        // Columns: name, protocol, table, state, since, info.
        let mut lines = protocols.lines().filter(|line| line.trim_end().ends_with("Established"));
        let since = lines.next().and_then(|line| line.split_whitespace().nth(4));
        since.map(|since| time_of_day(since).with_context(|| format!("BIRD tells no time: {since}"))).transpose()
    }

    /// Last lines of the log, for failures.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What `birdc` answers.
    pub fn control(&self, words: &[&str]) -> Result<String> {
        // The control socket is a file: no namespace is needed.
        let output = Command::new("birdc").arg("-s").arg(&self.socket).args(words).output()?;
        ensure!(output.status.success(), "birdc {words:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// `hours:minutes:seconds`, with decimals.
fn time_of_day(text: &str) -> Option<Duration> {
    let mut parts = text.split(':');
    let mut whole = || parts.next()?.parse::<u64>().ok();
    let minutes = whole()? * 60 + whole()?;
    let seconds = Duration::try_from_secs_f64(parts.next()?.parse().ok()?).ok()?;
    Some(Duration::from_secs(minutes * 60) + seconds)
}

/// The neighbor of the first protocol whose BGP state is Established.
fn established_neighbor(protocols: &str) -> Option<IpAddr> {
    let (_, rest) = protocols.split_once("BGP state:          Established")?;
    let line = rest.lines().find_map(|line| line.trim().strip_prefix("Neighbor address:"))?;
    line.trim().parse().ok()
}
