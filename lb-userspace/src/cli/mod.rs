//! The command line: what there is to say ([`Cli`]) and who is called ([`run`]).

mod diff;
mod drain;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::{
    config::{self, PIN_DIRECTORY_DEFAULT, RUN_DIRECTORY_DEFAULT},
    dataplane::remains,
    failure,
    net::{Netlink, links},
    preflight::{self, Report},
    privileges,
    status::{
        self, ConflictStatus, FetchError, SOCKET_NAME, Status, VipStatus, render_bfd, render_bgp, render_table,
        render_vip, render_vrrp,
    },
    survey,
};

/// XDP load balancer for bare-metal Kubernetes in telecom networks.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Examples:
  sluice check /etc/sluice/sluice.yaml             say what is wrong with a configuration
  sluice preflight --config /etc/sluice/sluice.yaml  say what of this node stands in an agent's way
  sluice agent --config /etc/sluice/sluice.yaml    balance
  sluice diff /etc/sluice/sluice.yaml              see what the agent would change with it
  sluice status                                    see what the agent does

Exit status: 0 success, 1 failure, 2 wrong usage; `sluice diff`: 3 where there are differences."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `sluice` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent on this node, in the foreground.
    ///
    /// Attaches the programs to the uplinks and to the pods' interfaces, fills the maps and keeps them true to the
    /// configuration, which is applied again when the file changes and on SIGHUP, as a whole or not at all. When the agent
    /// ends, however that is, the data plane goes on: the next agent adopts it, and no packet is lost. `sluice detach`
    /// removes it.
    ///
    /// Needs root, or CAP_BPF, CAP_NET_ADMIN, CAP_NET_BROADCAST, CAP_PERFMON and CAP_SYS_ADMIN. Once it runs, it keeps
    /// CAP_NET_ADMIN; a helper process that works in pods' namespaces keeps CAP_SYS_ADMIN as well. One agent runs on a
    /// node.
    #[command(after_help = "\
Examples:
  sluice agent --config /etc/sluice/sluice.yaml
  sluice agent --config sluice.yaml --log-level debug
  sluice agent --config sluice.yaml --log-level info,lb_userspace::net=trace --log-format json")]
    Agent(AgentArgs),
    /// Show what the agent of this node does: programs, services, backends, packets by reason.
    ///
    /// Where no agent answers, says so, shows what the pinned maps know of the data plane that it left behind (not with
    /// --socket, which names no maps), and fails.
    #[command(after_help = "\
Examples:
  sluice status
  sluice status -o json | jq '.services[].backends[] | select(.state != \"ready\" or .health.state == \"unhealthy\")'
  sluice status --config /etc/sluice/sluice.yaml    the agent whose runDirectory is in that file
  watch --color sluice status --color always")]
    Status(StatusArgs),
    /// Validate a configuration file, without an agent and without privileges.
    ///
    /// Names every problem with its line and column and what to do about it. Does not look at the node: whether an
    /// interface exists, only the agent knows.
    #[command(after_help = "\
Example:
  sluice check sluice.yaml && systemctl reload sluice")]
    Check(CheckArgs),
    /// Show what the agent of this node would change if its configuration were this file, without doing it.
    ///
    /// Asks the running agent, which plans the change and writes nothing: services, backends, Maglev slots and whom they
    /// move from and to, uplinks, settings, and how many entries of which map would be written. What is known only once it
    /// is done, such as how a pod is reached that the agent has not seen yet, is said.
    #[command(after_help = "\
Exit status: 0 no differences, 3 differences, 1 failure or a file that would be refused, 2 wrong usage.

Examples:
  sluice diff new.yaml
  sluice diff new.yaml -o json | jq '.services[] | {name, moved: .slots.moved}'
  sluice diff new.yaml; [ $? -eq 3 ] && mv new.yaml /etc/sluice/sluice.yaml")]
    Diff(DiffArgs),
    /// Print the JSON schema of the configuration file, for editors and other programs.
    #[command(after_help = "\
Example:
  sluice schema > sluice.schema.json
and in the first line of the configuration, for editors with the YAML language server:
  # yaml-language-server: $schema=sluice.schema.json")]
    Schema,
    /// Remove everything that agents have made on this node: programs, maps, pins; and put back what they have changed.
    ///
    /// Traffic to VIPs ends with it, and so do sessions through VIPs. The agent must have ended; whether it was stopped,
    /// has crashed or has only half started makes no difference. A second run finds nothing to do.
    #[command(after_help = "\
Examples:
  systemctl stop sluice && sluice detach
  sluice detach --config /etc/sluice/sluice.yaml    the pinDirectory and runDirectory in that file")]
    Detach(DetachArgs),
    /// Look whether an agent could run on this node, and how well, without touching anything.
    ///
    /// Kernel, privileges, memory, bpffs, and each uplink: driver, XDP mode, queues, MTU, other programs, what bonds and
    /// VLANs mean. Each finding says what to do; docs/preflight.md has them all. The agent does the same when it starts, and
    /// does not start where something is refused. Without root, what could not be looked at is listed.
    #[command(after_help = "\
Examples:
  sluice preflight                                  the interfaces of the default routes
  sluice preflight --config /etc/sluice/sluice.yaml --strict
  sluice preflight -o json | jq '.findings[] | select(.severity == \"refused\")'

Exit status: 0 an agent would start, 1 it would not, or, with --strict, there are warnings; 2 wrong usage.")]
    Preflight(PreflightArgs),
    /// Hand over what this node announces, and announce nothing more until `sluice undrain`.
    ///
    /// Virtual routers hand over make-before-break. BGP routes get the community GRACEFUL_SHUTDOWN, are withdrawn after
    /// `shutdownWait`, and once traffic has fallen sessions end with a Cease, and BFD with AdminDown. Each VIP must have another
    /// node, or it has none. Packets that still come are forwarded. An agent that starts anew stays drained, until the machine
    /// does.
    #[command(after_help = "\
Examples:
  sluice drain --wait && systemctl restart sluice
  sluice status vip 198.51.100.1                    says `draining` among the reasons")]
    Drain(drain::DrainArgs),
    /// Take `sluice drain` back.
    Undrain(drain::AgentPlace),
    /// Work in pods' namespaces for an agent, which starts this itself.
    #[command(name = privileges::HELPER_COMMAND, hide = true)]
    NetnsHelper,
}

/// Arguments of `sluice agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Configuration file; docs/configuration.md has the keys.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// How log lines are written to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// The least level that is logged: error, warn, info, debug, trace or off, also as a list of MODULE=LEVEL.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_filter)]
    pub log_level: String,
}

/// A part of the status.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Virtual routers: state, priority, whom they hear.
    Vrrp,
    /// BGP peers: state, what they were told, what went wrong.
    Bgp,
    /// BFD sessions: state, intervals, losses.
    Bfd,
    /// How a VIP is announced, who holds it, and everything that is against announcing it from here.
    Vip {
        /// The VIP.
        #[arg(value_name = "VIP")]
        vip: IpAddr,
    },
}

/// Arguments of `sluice status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// What of the status; without it everything.
    #[command(subcommand)]
    pub part: Option<Part>,
    /// How the status is written: for people, or for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Table, global = true)]
    pub output: Format,
    /// Socket of the agent [default: status.sock in /run/sluice].
    #[arg(long, value_name = "PATH", conflicts_with = "config", global = true)]
    pub socket: Option<PathBuf>,
    /// Configuration file whose runDirectory has the socket.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Whether the table is coloured; `auto`: in a terminal, unless NO_COLOR is set.
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN", global = true)]
    pub color: Color,
}

/// Arguments of `sluice check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `sluice diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Proposed configuration file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How the differences are written: for people, or for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Socket of the agent [default: status.sock in the runDirectory of FILE].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Whether the table is coloured; `auto`: in a terminal, unless NO_COLOR is set.
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
}

/// Arguments of `sluice detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Configuration file with the agent's pinDirectory and runDirectory [default: /sys/fs/bpf/sluice and /run/sluice].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What the command line calls and does not know: it does not depend on the engine.
pub struct Actions<'a> {
    /// Runs the agent with a configuration file until it is told to stop.
    pub agent: &'a dyn Fn(&Path) -> Result<()>,
    /// Removes what agents have made under a pin directory and a run directory, and says each thing that it does.
    pub detach: &'a Detach<'a>,
}

/// See [`Actions::detach`].
pub type Detach<'a> = dyn Fn(&Path, &Path, &mut dyn FnMut(&str)) -> Result<()> + 'a;

/// Arguments of `sluice preflight`.
#[derive(Debug, Args)]
pub struct PreflightArgs {
    /// Configuration file; without it the interfaces of the default routes are looked at, with default capacities.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How the findings are written: for people, or for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Fail for warnings, and for what could not be looked at, too.
    #[arg(long)]
    pub strict: bool,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How a status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// One JSON document.
    Json,
    /// The same in YAML.
    Yaml,
}

/// When output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// In a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

fn log_filter(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it is empty; write a level such as debug".to_owned());
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; write a level such as debug, or info,MODULE=trace")),
    }
}

/// Does what `cli` says.
pub fn run(cli: Cli, actions: &Actions) -> ExitCode {
    let mut found = ExitCode::SUCCESS;
    let done = match cli.command {
        Command::Agent(args) => {
            start_log(args.log_format, &args.log_level);
            (actions.agent)(&args.config)
        }
        Command::Status(args) => show_status(&args),
        Command::Check(args) => check(&args.file).and_then(|text| print(&text)),
        Command::Diff(args) => diff::ask(&args).and_then(|(diff, text)| {
            found = diff::exit_code(&diff);
            print(&text)
        }),
        Command::Schema => print(&config::schema_text()),
        Command::Detach(args) => detach(&args, actions),
        Command::Preflight(args) => look_at_node(&args),
        Command::Drain(args) => drain::drain(&args).and_then(|text| print(&text)),
        Command::Undrain(place) => drain::undrain(&place).and_then(|text| print(&text)),
        Command::NetnsHelper => privileges::serve(),
    };
    match done {
        Ok(()) => found,
        Err(error) => {
            // Nothing is left to do where standard error is gone too.
            let _ = writeln!(io::stderr(), "{}", complaint(&error));
            ExitCode::FAILURE
        }
    }
}

/// A refused configuration is a list of places, which an editor can follow if nothing stands before them.
fn complaint(error: &anyhow::Error) -> String {
    match error.downcast_ref::<config::ConfigError>() {
        Some(refused) => refused.with_excerpts(),
        None if error.is::<FetchError>() => format!("sluice: {error}"),
        None => format!("sluice: {}", failure::describe(error)),
    }
}

fn start_log(format: LogFormat, level: &str) {
    let log = tracing_subscriber::fmt()
        // netlink_packet_route warns of each type of link that it has no name for. What `level` says of that comes later, and wins.
        .with_env_filter(EnvFilter::new(format!("netlink_packet_route=error,{level}")))
        .with_ansi(io::stderr().is_terminal())
        // What cannot be written would be told to standard error by a macro that panics where that is full.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    // Fails where the process has a log already, as a test may.
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

fn show_status(args: &StatusArgs) -> Result<()> {
    let (socket, pins) = match (&args.socket, &args.config) {
        (Some(socket), _) => (socket.clone(), None),
        (None, Some(file)) => {
            let snapshot = config::load(file)?;
            (snapshot.run_directory.join(SOCKET_NAME), Some(snapshot.pin_directory))
        }
        (None, None) => (Path::new(RUN_DIRECTORY_DEFAULT).join(SOCKET_NAME), Some(PIN_DIRECTORY_DEFAULT.into())),
    };
    match (status::fetch(&socket), pins) {
        (Ok(status), _) => print(&written(&status, args)?),
        (
            Err(gone @ (FetchError::Missing { .. } | FetchError::Refused { .. } | FetchError::Silent { .. })),
            Some(pins),
        ) => {
            // Where the interfaces cannot be listed, they have no names.
            let links = Netlink::open().and_then(|mut netlink| links::snapshot(&mut netlink)).ok();
            match remains::read(&pins, links.as_ref()) {
                Ok(left) => print(&written(&left, args)?)?,
                Err(error) => bail!("{gone}\n{error}"),
            }
            Err(gone.into())
        }
        (Err(error), _) => Err(error.into()),
    }
}

fn written(status: &Status, args: &StatusArgs) -> Result<String> {
    let color = colored(args.color);
    let announce = &status.announce;
    match &args.part {
        None => in_format(args.output, status, || render_table(status, color)),
        Some(Part::Vrrp) => in_format(args.output, &announce.routers, || render_vrrp(announce, color)),
        Some(Part::Bgp) => in_format(args.output, &announce.bgp, || render_bgp(announce, color)),
        Some(Part::Bfd) => in_format(args.output, &announce.bfd, || render_bfd(announce, color)),
        Some(Part::Vip { vip }) => {
            let known = announce.vips.iter().find(|status| status.vip == *vip);
            let (Some(known), Some(table)) = (known, render_vip(announce, *vip, color)) else {
                bail!(
                    "{vip} is no VIP that is to be announced; `sluice status` lists them, `announce` in the file says which"
                );
            };
            let conflicts = announce.conflicts.iter().filter(|conflict| conflict.vip == *vip).collect();
            in_format(args.output, &ShownVip { known, conflicts }, || table)
        }
    }
}

/// `sluice status vip VIP` for programs.
#[derive(Serialize)]
struct ShownVip<'a> {
    #[serde(flatten)]
    known: &'a VipStatus,
    /// Who else claims it.
    conflicts: Vec<&'a ConflictStatus>,
}

fn in_format(format: Format, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_saphyr::to_string(value)?,
        Format::Table => table(),
    })
}

fn colored(color: Color) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        // https://no-color.org: set and not empty.
        Color::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

fn check(file: &Path) -> Result<String> {
    let snapshot = config::load(file)?;
    let backends: usize = snapshot.services.iter().map(|service| service.backends.len()).sum();
    Ok(format!(
        "{}: valid: {} on {}, {} in all, {} of {} Maglev slots\n",
        file.display(),
        counted(snapshot.services.len(), "service"),
        counted(snapshot.uplinks.len(), "uplink"),
        counted(backends, "backend"),
        config::maglev_slots(&snapshot.services),
        snapshot.capacities.maglev_slots,
    ))
}

fn detach(args: &DetachArgs, actions: &Actions) -> Result<()> {
    let (pins, run) = match &args.config {
        Some(file) => {
            let snapshot = config::load(file)?;
            (snapshot.pin_directory, snapshot.run_directory)
        }
        None => (PIN_DIRECTORY_DEFAULT.into(), RUN_DIRECTORY_DEFAULT.into()),
    };
    let mut done = 0u32;
    (actions.detach)(&pins, &run, &mut |what| {
        done += 1;
        // Where standard output is gone, the rest is done all the same.
        let _ = writeln!(io::stdout(), "{what}");
    })?;
    print(if done == 0 {
        "nothing to do: no agent has left anything here\n"
    } else {
        "nothing of Sluice is left here\n"
    })
}

fn look_at_node(args: &PreflightArgs) -> Result<()> {
    let snapshot = match &args.config {
        Some(file) => config::load(file)?,
        None => survey::supposed().context("cannot look at this node's interfaces")?,
    };
    if snapshot.uplinks.is_empty() {
        bail!("no default route says which interfaces would be uplinks; name a configuration with --config");
    }
    let findings = preflight::check(&survey::gather(&snapshot, []), &snapshot);
    let report = Report::new(&findings);
    print(&match args.output {
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        Format::Yaml => serde_saphyr::to_string(&report)?,
        Format::Table => preflight::render_table(&findings),
    })?;
    if !report.passes(args.strict) {
        bail!("this node did not pass pre-flight");
    }
    Ok(())
}

fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// A reader that has enough, such as `head`, is no failure.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
