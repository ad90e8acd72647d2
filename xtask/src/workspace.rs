//! What is built and run for the host: the agent, the tests, the demo and the benchmark.

use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    ebpf::{self, Objects},
    packages,
    results::Results,
    shell::{cargo, is_root, root, run, set_aside, step},
};

/// Which tests run, and how.
#[derive(Args)]
pub struct TestOptions {
    /// Only tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Only this package's tests
    #[arg(long, short)]
    package: Option<String>,
    /// Tests at a time in one test binary [default: two for each core, as most of them wait for others]
    #[arg(long)]
    threads: Option<usize>,
    /// Passed to each test binary
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// How the demonstration runs.
#[derive(Args)]
pub struct DemoOptions {
    /// Leave everything up afterwards, to play with
    #[arg(long)]
    keep: bool,
    /// Passed to the demonstration
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// How sessions are tried.
#[derive(Args)]
pub struct SurviveOptions {
    /// Seeds to run
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// Passed to the program
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// How long everything is tried at once.
#[derive(Args)]
pub struct SoakOptions {
    /// For how long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Of everything that is random: the same seed makes the same sequence
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How failing over is measured.
#[derive(Args)]
pub struct FailoverOptions {
    /// How often each event happens
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Fail where a bound is missed
    #[arg(long)]
    check: bool,
    /// Only rows whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// Which runs are simulated.
#[derive(Args)]
pub struct SimOptions {
    /// What is simulated: `vrrp`, `bgp` (which BFD watches), or both where none is named
    #[arg(long)]
    machine: Option<String>,
    /// The first seed: the same one makes the same run
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many, one after another
    #[arg(long, default_value_t = 1)]
    seeds: u64,
}

/// How the benchmark runs.
#[derive(Args)]
pub struct BenchOptions {
    /// Fail where a target is missed
    #[arg(long)]
    check: bool,
    /// Passed to the benchmark
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// What is built beside the product.
#[derive(Args)]
pub struct BuildOptions {
    /// Also build what stands for the next release, with another ABI, into target/next
    #[arg(long)]
    next: bool,
}

/// Builds the product.
pub fn build(options: &BuildOptions) -> Result<()> {
    if options.next {
        Next::build(Profile::Release)?;
    }
    Product::build(Profile::Release).map(drop)
}

/// What stands for the next release, with another ABI: what tests upgrade to, and downgrade from.
struct Next {
    object: PathBuf,
    agent: PathBuf,
}

impl Next {
    /// To be built before the product: cargo puts both in the same places.
    fn build(profile: Profile) -> Result<Self> {
        let object = ebpf::build_next()?;
        let mut build = agent_build(&object, profile);
        build.arg("--features").arg(format!("lb-userspace/{}", ebpf::NEXT_ABI));
        let built = step("building the agent of the next ABI", || built_agent(&mut build))?;
        let agent = set_aside(&built, &ebpf::next_directory().join("sluice"))?;
        println!("agent of the next ABI: {}", agent.display());
        Ok(Self { object, agent })
    }

    fn export(&self, command: &mut Command) {
        command.env("SLUICE_NEXT_OBJECT", &self.object).env("SLUICE_NEXT_BIN", &self.agent);
    }
}

/// The product: objects, and the agent with the first of them inside.
struct Product {
    objects: Objects,
    agent: PathBuf,
}

impl Product {
    /// Builds everything that demo, test and bench run.
    fn build(profile: Profile) -> Result<Self> {
        let objects = ebpf::build(&ebpf::Options::default())?;
        let agent = step("building the agent", || built_agent(&mut agent_build(&objects.sluice, profile)))?;
        println!("agent: {}", agent.display());
        Ok(Self { objects, agent })
    }

    /// What `lb-tests` reads to find it.
    fn export(&self, command: &mut Command) {
        command.env("SLUICE_EBPF_OBJECT", &self.objects.sluice).env("SLUICE_LAB_OBJECT", &self.objects.lab);
        command.env("SLUICE_BIN", &self.agent);
        if env::var_os("CI").is_some() {
            command.env("SLUICE_REQUIRE_PRIVILEGES", "1");
        }
    }
}

/// All packages that are for the host.
const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "lb-ebpf"];

/// How an agent is built.
#[derive(Clone, Copy)]
enum Profile {
    /// As it is shipped, demonstrated and measured.
    Release,
    /// As the tests are built: with assertions and overflow checks, and from the same compiled dependencies.
    Test,
}

/// Builds the agent with this object embedded.
fn agent_build(object: &Path, profile: Profile) -> Command {
    let mut build = cargo();
    match profile {
        Profile::Release => build.args(["build", "--release", "--package", "lb-userspace", "--bin", "sluice"]),
        // A test of the package brings its program along, with the features of dependencies that the tests have; this is any one.
        Profile::Test => build.args(["test", "--no-run"]).args(WORKSPACE).args(["--test", "log"]),
    };
    build.arg("--message-format=json-render-diagnostics").env("SLUICE_EBPF_OBJECT", object);
    build
}

/// Runs a build of the agent, and returns where it is.
fn built_agent(build: &mut Command) -> Result<PathBuf> {
    let mut agent = None;
    each_line(build, |line| {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        if message["target"]["name"] == "sluice"
            && let Some(path) = message["executable"].as_str()
        {
            agent = Some(PathBuf::from(path));
        }
    })?;
    agent.context("cargo named no executable")
}

/// The same command, which runs when nothing else wants to.
fn giving_way(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    nice.current_dir(root());
    nice
}

/// Runs the tests of the whole workspace. Every test binary runs, also after one has failed.
pub fn test(options: &TestOptions) -> Result<()> {
    packages::install_missing()?;
    let next = Next::build(Profile::Test)?;
    let product = Product::build(Profile::Test)?;
    let tests = |targets: &[&str]| {
        let mut command = cargo();
        command.args(["test", "--no-fail-fast"]);
        match &options.package {
            Some(package) => command.args(["--package", package]),
            None => command.args(WORKSPACE),
        };
        command.args(targets).args(&options.filter).arg("--").args(&options.arguments);
        let threads = options.threads.unwrap_or_else(|| 2 * thread::available_parallelism().map_or(1, usize::from));
        command.env("RUST_TEST_THREADS", threads.to_string());
        product.export(&mut command);
        next.export(&mut command);
        command
    };
    let (others, units) = if options.package.is_none() && options.filter.is_none() {
        step("building the tests", || run(&mut tests(&["--no-run"])))?;
        (tests(&["--bins", "--test", "*"]), Some(giving_way(&tests(&["--lib"]))))
    } else {
        (tests(&[]), None)
    };
    println!("==> running the tests");
    let start = Instant::now();
    let mut results = Results::default();
    let mut show = |line: &str| {
        println!("{line}");
        results.add(line);
    };
    // What computes runs while the others wait, and is shown after them.
    let units = units.map(|mut units| {
        thread::spawn(move || {
            let mut lines = Vec::new();
            let done = each_line(&mut units, |line| lines.push(line.to_owned()));
            (lines, done)
        })
    });
    let mut done = each_line(&mut { others }, &mut show);
    if let Some(units) = units {
        let (lines, units_done) = units.join().expect("a thread that only reads");
        lines.iter().for_each(|line| show(line));
        done = done.and(units_done);
    }
    if !results.failures.is_empty() {
        println!("==> what failed");
        results.failures.iter().for_each(|line| println!("{line}"));
    }
    println!(
        "all test binaries: {} passed; {} failed; {} ignored; {} binaries; finished in {:.0} s",
        results.passed,
        results.failed,
        results.ignored,
        results.binaries,
        start.elapsed().as_secs_f64()
    );
    done
}

/// Runs the demonstration in place of this process, so that Ctrl-C and the exit status are its own.
pub fn demo(options: &DemoOptions) -> Result<()> {
    ensure!(is_root(), "the demo makes network namespaces and loads eBPF: run it as root");
    packages::install_missing()?;
    let keep = options.keep.then_some("--keep");
    become_program("demo", None, keep.into_iter().chain(options.arguments.iter().map(String::as_str)))
}

/// Runs the benchmark in place of this process.
pub fn bench(options: &BenchOptions) -> Result<()> {
    packages::install_missing()?;
    let check = options.check.then_some("--check");
    become_program("bench", None, check.into_iter().chain(options.arguments.iter().map(String::as_str)))
}

/// Tries whether sessions survive.
pub fn survive(options: &SurviveOptions) -> Result<()> {
    packages::install_missing()?;
    let seeds = options.seeds.to_string();
    let words = ["--seeds", seeds.as_str()];
    become_program("survive", None, words.into_iter().chain(options.arguments.iter().map(String::as_str)))
}

/// Tries everything at once, with upgrades and downgrades.
pub fn soak(options: &SoakOptions) -> Result<()> {
    ensure!(is_root(), "the soak makes network namespaces and loads eBPF: run it as root");
    packages::install_missing()?;
    let next = Next::build(Profile::Release)?;
    let (minutes, seed) = (options.minutes.to_string(), options.seed.to_string());
    become_program("soak", Some(&next), ["--minutes", &minutes, "--seed", &seed].into_iter())
}

/// Measures how long VIPs are away when nodes fail, leave and come back.
pub fn failover(options: &FailoverOptions) -> Result<()> {
    ensure!(is_root(), "measuring makes network namespaces and loads eBPF: run it as root");
    packages::install_missing()?;
    let rounds = options.rounds.to_string();
    let mut words = vec!["--rounds", rounds.as_str()];
    words.extend(options.check.then_some("--check"));
    if let Some(only) = &options.only {
        words.extend(["--only", only]);
    }
    become_program("failover", None, words.into_iter())
}

/// Runs simulated virtual routers, and nodes that announce to routers. Needs neither privileges nor the eBPF toolchain.
pub fn sim(options: &SimOptions) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "lb-tests", "--bin", "sim", "--"]);
    command.args(["--seed", &options.seed.to_string(), "--seeds", &options.seeds.to_string()]);
    if let Some(machine) = &options.machine {
        command.args(["--machine", machine]);
    }
    Err(command.exec()).context("cannot start cargo")
}

fn become_program<'a>(binary: &str, next: Option<&Next>, arguments: impl Iterator<Item = &'a str>) -> Result<()> {
    let product = Product::build(Profile::Release)?;
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "lb-tests", "--bin", binary, "--"]).args(arguments);
    product.export(&mut command);
    if let Some(next) = next {
        next.export(&mut command);
    }
    eprintln!("==> {binary}");
    Err(command.exec()).context("cannot start cargo")
}

/// Runs to the end and hands over each line of its standard output; the rest goes straight through.
fn each_line(command: &mut Command, mut take: impl FnMut(&str)) -> Result<()> {
    let program = Path::new(command.get_program()).display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut stdout = BufReader::new(child.stdout.take().expect("it was piped"));
    let mut line = Vec::new();
    // By bytes: a test may print anything.
    while stdout.read_until(b'\n', &mut line)? > 0 {
        take(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        let subcommand = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
        bail!("cargo {subcommand} failed: {status}");
    }
    Ok(())
}
