//! The real agent, started in the node of a lab.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    halted::Halted,
    lab::{Host, LAB_OBJECT, Lab, Namespace, Pair, UPLINK, privileged, wait_until},
    process::Process,
};

/// Environment variable that names the `sluice` binary.
pub const BINARY: &str = "SLUICE_BIN";

/// How long the agent may take to load its programs, test the rungs and answer.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A service of the configuration.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The virtual address.
    pub vip: IpAddr,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// The port at the VIP.
    pub port: u16,
    /// `static`, `recorded` or `none`; the default of the protocol where absent.
    pub replies: Option<&'static str>,
    /// `auto`, `redirect`, `peer`, `stack` or `direct`.
    pub rung: &'static str,
    /// Pods, all of weight 1.
    pub backends: Vec<SocketAddr>,
}

/// Configuration of an agent in a lab.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// XDP mode of the uplink: `auto`, `native` or `generic`.
    pub mode: &'static str,
    /// The services.
    pub services: Vec<Service>,
}

/// Whether what [`Agent::start`] needs is there. Missing, the test is skipped with a message, or, where
/// `SLUICE_REQUIRE_PRIVILEGES=1` says that everything must run, fails.
///
/// # Panics
/// Where it is required and missing.
#[must_use]
pub fn available(test: &str) -> bool {
    if !privileged(test) {
        return false;
    }
    let missing: Vec<_> = [BINARY, LAB_OBJECT].into_iter().filter(|name| std::env::var_os(name).is_none()).collect();
    let required = std::env::var("SLUICE_REQUIRE_PRIVILEGES").is_ok_and(|value| value == "1");
    assert!(missing.is_empty() || !required, "{test} needs {missing:?}: run it through `cargo xtask test`");
    if !missing.is_empty() {
        eprintln!("skipped: {test} needs {missing:?}: run it through `cargo xtask test`");
    }
    missing.is_empty()
}

/// A running agent; SIGTERM on drop. What it has made goes with the lab.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    detach: Command,
    binary: PathBuf,
    configuration: PathBuf,
    addresses: Pair,
    pins: PathBuf,
    runtime: PathBuf,
}

impl Agent {
    /// Starts the agent in the lab's node and waits until it answers. The router's end of the uplink gets its XDP
    /// program first, without which the agent's own packets vanish.
    pub fn start(lab: &mut Lab, configuration: &Configuration) -> Result<Self> {
        lab.attach_router_program()?;
        let yaml = configuration.yaml_in(lab);
        Self::start_with(lab, &yaml)
    }

    /// Starts the agent with this text as its configuration, which must name the paths of [`Configuration::yaml_in`],
    /// and waits until it answers. The uplink is left as it is.
    pub fn start_with(host: &dyn Host, yaml: &str) -> Result<Self> {
        Self::start_as(host, yaml, |command| command)
    }

    /// As [`start_with`](Self::start_with), an agent of another build.
    pub fn start_binary(host: &dyn Host, binary: Option<&str>, yaml: &str) -> Result<Self> {
        Self::start_as(host, yaml, |command| {
            let Some(binary) = binary else { return command };
            let mut other = host.namespace().command(binary);
            other.args(command.get_args().skip_while(|argument| *argument != "agent"));
            other
        })
    }

    /// As [`start_with`](Self::start_with); `change` may put a program before the agent that executes it.
    pub fn start_as(host: &dyn Host, yaml: &str, change: impl FnOnce(Command) -> Command) -> Result<Self> {
        let mut agent = Self::launch(host, yaml, change)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts the agent, and waits only until it has pinned a map: its programs are not attached by then.
    pub fn start_unready(host: &dyn Host, yaml: &str) -> Result<Self> {
        let mut agent = Self::launch(host, yaml, |command| command)?;
        wait_until("the agent's first pinned map", READY_LIMIT, || {
            agent.process.check_running()?;
            let some = fs::read_dir(agent.pins.join("maps")).is_ok_and(|mut maps| maps.next().is_some());
            Ok(some.then_some(()))
        })?;
        Ok(agent)
    }

    /// Starts the agent and does not wait for anything. `change` as in [`start_as`](Self::start_as).
    pub fn launch(host: &dyn Host, yaml: &str, change: impl FnOnce(Command) -> Command) -> Result<Self> {
        let (configuration, command) = prepare(host, yaml)?;
        let process = Process::start("sluice agent", &mut change(command))?;
        let (pins, runtime) = paths(host);
        Ok(Self {
            process,
            detach: detach_command(host)?,
            binary: binary()?,
            configuration,
            addresses: host.addresses(),
            pins,
            runtime,
        })
    }

    /// Starts an agent that must refuse to run, and returns what it says. `change` as in [`start_as`](Self::start_as).
    pub fn refusal(host: &dyn Host, yaml: &str, change: impl FnOnce(Command) -> Command) -> Result<String> {
        let (_, command) = prepare(host, yaml)?;
        let mut process = Process::start("sluice agent", &mut change(command))?;
        let status = process.wait(READY_LIMIT)?;
        let text = process.wait_output();
        ensure!(!status.success(), "the agent ended with {status} instead of refusing:\n{text}");
        Ok(text)
    }

    /// Replaces the configuration by this text, whole, and tells the agent.
    pub fn reload(&mut self, yaml: &str) -> Result<()> {
        // The agent looks at the file by itself too, and must not see half of it.
        let fresh = self.configuration.with_extension("fresh");
        fs::write(&fresh, yaml)?;
        fs::rename(&fresh, &self.configuration)?;
        self.process.signal(libc::SIGHUP)
    }

    /// Ends the agent as a crash does: its programs and maps stay.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(libc::SIGKILL)?;
        self.process.wait(READY_LIMIT).map(drop)
    }

    /// Sends SIGHUP, whatever stands in the configuration's place.
    pub fn hangup(&mut self) -> Result<()> {
        self.process.signal(libc::SIGHUP)
    }

    /// Waits for the agent to end by itself, and returns everything that it has said.
    pub fn wait_end(mut self) -> Result<(ExitStatus, String)> {
        let status = self.process.wait(READY_LIMIT)?;
        Ok((status, self.process.wait_output()))
    }

    /// The command `sluice`, for other things than the agent.
    #[must_use]
    pub fn sluice(&self) -> Command {
        Command::new(&self.binary)
    }

    /// What a subcommand of this agent's `sluice` prints about this agent.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.sluice().args(words).arg("--config").arg(self.configuration()).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "sluice {words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    }

    /// Has the thread of the engine stand still, while all others go on, until what is returned is dropped by this thread.
    pub fn halt_engine(&self) -> Result<Halted> {
        Halted::thread(self.id())
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the status is as wanted; a failure shows the last one.
    pub fn wait_status<T>(&self, what: &str, mut wanted: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        let mut last = Value::Null;
        wait_until(what, READY_LIMIT, || {
            last = self.status()?;
            Ok(wanted(&last))
        })
        .with_context(|| {
            let (refusal, waiting) = (&last["lastError"], &last["waiting"]);
            format!("services: {:#}\nlast error: {refusal}\nwaiting: {waiting}", last["services"])
        })
        .with_context(|| self.log_tail())
    }

    /// Replaces the configuration and tells the agent.
    pub fn reconfigure(&mut self, configuration: &Configuration) -> Result<()> {
        self.reload(&configuration.yaml(self.addresses, &self.pins, &self.runtime))
    }

    /// What `sluice status` says.
    pub fn status(&self) -> Result<Value> {
        let output = self.status_command()?.args(["-o", "json"]).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "sluice status failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        serde_json::from_slice(&output.stdout).context("the status is not JSON")
    }

    /// The table that `sluice status` prints for people.
    pub fn status_table(&self) -> Result<String> {
        let output = self.status_command()?.output()?;
        ensure!(output.status.success(), "sluice status failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The command that prints the status, for people to type.
    #[must_use]
    pub fn status_line(&self) -> String {
        let socket = self.socket().unwrap_or_else(|_| self.runtime.clone());
        format!("{} status --socket {}", self.binary.display(), socket.display())
    }

    /// The pinned maps.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.pins.clone()
    }

    /// The configuration file.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.configuration.clone()
    }

    /// Last lines of the log, for failures.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// The log so far, by lines.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }

    /// Waits until the log has a line with this text.
    pub fn wait_log(&self, text: &str) -> Result<()> {
        let has = |lines: &[String]| lines.iter().any(|line| line.contains(text)).then_some(());
        self.process.wait_log(text, 0, READY_LIMIT, has)
    }

    /// Starts an agent and ends it as a crash does, that long after.
    pub fn start_and_kill(host: &dyn Host, yaml: &str, after: Duration) -> Result<()> {
        let agent = Self::launch(host, yaml, |command| command)?;
        // Where it is by then is for chance to say.
        std::thread::sleep(after);
        agent.kill()
    }

    /// Starts an agent and ends it as a crash does, once its log has this text.
    pub fn start_and_kill_at(host: &dyn Host, yaml: &str, text: &str) -> Result<()> {
        let agent = Self::launch(host, yaml, |command| command)?;
        agent.wait_log(text)?;
        agent.kill()
    }

    /// Waits until the agent is so much older than when it was asked first: what it does in each second is done by then.
    pub fn wait_age(&self, seconds: u64) -> Result<()> {
        let age = |status: &Value| status["uptimeSeconds"].as_u64();
        let now = age(&self.status()?).context("no age")?;
        self.wait_status("the agent to be some seconds older", |status| (age(status)? >= now + seconds).then_some(()))
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// Sends SIGTERM and waits for a clean exit. The data plane goes on.
    pub fn end(mut self) -> Result<()> {
        let status = self.process.stop()?;
        ensure!(status.success(), "the agent ended with {status}\n{}", self.log_tail());
        Ok(())
    }

    /// Ends the agent, and removes what it has made.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop()?;
        ensure!(status.success(), "the agent ended with {status}\n{}", self.log_tail());
        run_detach(&mut self.detach).map(drop)
    }

    /// Waits until the agent answers.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut last = String::from("not asked yet");
        let ready = wait_until("the agent to answer `sluice status`", READY_LIMIT, || {
            self.process.check_running()?;
            match self.status() {
                Ok(_) => Ok(Some(())),
                Err(error) => {
                    last = format!("{error:#}");
                    Ok(None)
                }
            }
        });
        ready.with_context(|| format!("last answer: {last}\n{}", self.log_tail()))
    }

    fn status_command(&self) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        command.args(["status", "--socket"]).arg(self.socket()?);
        Ok(command)
    }

    /// The agent's socket: the only one in its run directory.
    fn socket(&self) -> Result<PathBuf> {
        fs::read_dir(&self.runtime)?
            .flatten()
            .find(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
            .map(|entry| entry.path())
            .with_context(|| format!("no socket in {}", self.runtime.display()))
    }
}

/// Runs `sluice detach`, and returns what it says.
pub fn detach(host: &dyn Host) -> Result<String> {
    run_detach(&mut detach_command(host)?)
}

/// The command that removes what the agents of this host have made.
pub fn detach_command(host: &dyn Host) -> Result<Command> {
    detach_by(host, &host.directory().join("sluice.yaml"))
}

/// The same with another configuration.
pub fn detach_by(host: &dyn Host, config: &Path) -> Result<Command> {
    let mut command = host.namespace().command(binary()?);
    command.args(["detach", "--config"]).arg(config);
    Ok(command)
}

fn run_detach(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(output.status.success(), "sluice detach ended with {}:\n{text}", output.status);
    Ok(text)
}

/// Fails unless an agent has taken everything along: pins, and programs on the node's interfaces.
pub fn check_nothing_left(host: &dyn Host) -> Result<()> {
    let pins = paths(host).0;
    for part in ["maps", "links"] {
        let path = pins.join(part);
        ensure!(!path.exists(), "{} is still there", path.display());
    }
    wait_until("the node's interfaces to be without programs", READY_LIMIT, || {
        let output = host.namespace().command("bpftool").args(["-j", "net"]).output().context("bpftool")?;
        let shown: Value = serde_json::from_slice(&output.stdout).context("bpftool net prints no JSON")?;
        let empty = |kind: &str| shown[0][kind].as_array().is_some_and(Vec::is_empty);
        Ok((empty("xdp") && empty("tc")).then_some(()))
    })
}

/// Whether generic receive offload is on at an interface.
pub fn gro(namespace: &Namespace, interface: &str) -> Result<bool> {
    let output = namespace.command("ethtool").args(["-k", interface]).output().context("ethtool")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("generic-receive-offload:"));
    Ok(line.with_context(|| format!("no GRO in {text}"))?.contains(": on"))
}

/// The agent's binary.
fn binary() -> Result<PathBuf> {
    let path = std::env::var_os(BINARY)
        .with_context(|| format!("{BINARY} is not set: run this through `cargo xtask`, which builds the agent"))?;
    Ok(path.into())
}

/// The pin directory and the run directory.
fn paths(host: &dyn Host) -> (PathBuf, PathBuf) {
    (host.bpffs().join("sluice"), host.directory().join("run"))
}

/// Writes the configuration, and gives the command that runs an agent with it.
fn prepare(host: &dyn Host, yaml: &str) -> Result<(PathBuf, Command)> {
    let file = host.directory().join("sluice.yaml");
    fs::create_dir_all(paths(host).1)?;
    fs::write(&file, yaml)?;
    let mut command = host.namespace().command(binary()?);
    command.args(["agent", "--config"]).arg(&file);
    Ok((file, command))
}

impl Configuration {
    /// The configuration file of an agent on this host.
    #[must_use]
    pub fn yaml_in(&self, host: &dyn Host) -> String {
        let (pins, runtime) = paths(host);
        self.yaml(host.addresses(), &pins, &runtime)
    }

    fn yaml(&self, node: Pair, pins: &Path, runtime: &Path) -> String {
        let mut yaml = format!(
            "node:\n  addresses: [\"{}\", \"{}\"]\n\
             uplinks:\n  - interface: {UPLINK}\n    mode: {}\n\
             pinDirectory: {}\nrunDirectory: {}\nservices:\n",
            node.v4,
            node.v6,
            self.mode,
            pins.display(),
            runtime.display()
        );
        for service in &self.services {
            service.write_yaml(&mut yaml).expect("writing to a string cannot fail");
        }
        yaml
    }
}

impl Service {
    fn write_yaml(&self, yaml: &mut String) -> std::fmt::Result {
        writeln!(yaml, "  - name: {}\n    vip: \"{}\"", self.name, self.vip)?;
        writeln!(yaml, "    protocol: {}\n    ports: [{}]\n    rung: {}", self.protocol, self.port, self.rung)?;
        if let Some(replies) = self.replies {
            writeln!(yaml, "    replies: {replies}")?;
        }
        writeln!(yaml, "    backends:")?;
        for backend in &self.backends {
            writeln!(yaml, "      - {{address: \"{}\", port: {}, weight: 1}}", backend.ip(), backend.port())?;
        }
        Ok(())
    }
}
