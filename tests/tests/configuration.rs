//! Privileged: makes network namespaces, loads programs into the kernel and mounts bpffs.
//!
//! The configuration of a running agent: followed however it is changed, shown before it is applied, and refused whatever
//! stands in its place.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Configuration, Service, available, check_nothing_left},
    lab::{Family, Lab, Options, vip},
    programs::conversation::{self, Conversation, Speaker},
};
use serde_json::Value;

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
/// What the agent needs, and none of what lets root read everything.
const ENOUGH: &str = "-all,+net_broadcast,+net_admin,+sys_admin,+perfmon,+bpf";

fn lab(name: &str) -> Result<Lab> {
    let mut lab = Lab::new(name, Options { pods: 2, ..Options::default() })?;
    lab.attach_router_program()?;
    Ok(lab)
}

/// One TCP service before these pods, and what follows it in the file.
fn yaml(lab: &Lab, pods: &[usize], more: &str) -> String {
    let backends = pods.iter().map(|pod| SocketAddr::new(lab.pods[*pod].addresses.v4.into(), POD_PORT)).collect();
    let (protocol, replies, rung) = ("TCP", None, "auto");
    let service =
        Service { name: "web".into(), vip: vip(1).v4.into(), protocol, port: VIP_PORT, replies, rung, backends };
    Configuration { mode: "native", services: vec![service] }.yaml_in(lab) + more
}

fn limit(lab: &Lab, refusals: u32) -> String {
    yaml(lab, &[0], &format!("limits: {{ refusals: {refusals} }}\n"))
}

fn open(lab: &Lab) -> Result<Conversation> {
    let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
    let target = SocketAddr::new(vip(1).of(Family::V4), VIP_PORT);
    let mut session = Conversation::open(&lab.element, target, &listener)?;
    session.exchange(Speaker::Client)?;
    Ok(session)
}

fn wait_ready(agent: &Agent, backends: usize) -> Result<()> {
    agent.wait_status("every backend to be ready", |status| {
        let all = status["services"][0]["backends"].as_array()?;
        (all.len() == backends && all.iter().all(|backend| backend["state"] == "ready")).then_some(())
    })
}

/// Asks for the differences to this text.
fn diff(lab: &Lab, agent: &Agent, text: &str, more: &[&str]) -> Result<Output> {
    let file = lab.directory().join("proposed.yaml");
    fs::write(&file, text)?;
    agent.sluice().arg("diff").arg(&file).args(more).output().context("sluice diff")
}

/// The differences; fails where there is an exit status that does not say so.
fn difference(lab: &Lab, agent: &Agent, text: &str) -> Result<Value> {
    let output = diff(lab, agent, text, &["-o", "json"])?;
    ensure!(output.status.code() == Some(3), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn rename_over(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path).context("rename")
}

#[test]
fn a_configuration_is_followed_however_it_is_changed() -> Result<()> {
    if !available("configuration") {
        return Ok(());
    }
    let lab = lab("follow")?;
    let mut agent = Agent::start_with(&lab, &limit(&lab, 1))?;
    wait_ready(&agent, 1)?;
    let mut session = open(&lab)?;
    let file = agent.configuration();
    // What is in force is what nothing differs from.
    let in_force = |agent: &Agent, refusals: u32| -> Result<bool> {
        Ok(diff(&lab, agent, &limit(&lab, refusals), &[])?.status.code() == Some(0))
    };
    let wait = |agent: &Agent, refusals: u32, what: &str| -> Result<Duration> {
        let begin = Instant::now();
        while !in_force(agent, refusals)? {
            ensure!(begin.elapsed() < Duration::from_secs(10), "{what}: not in force\n{}", agent.log_tail());
        }
        Ok(begin.elapsed())
    };
    rename_over(&file, &limit(&lab, 2))?;
    // Milliseconds, and the time that the question takes; the version alone is looked at each second.
    let took = wait(&agent, 2, "a rename")?;
    ensure!(took < Duration::from_millis(700), "a rename is in force after {took:?}");
    fs::write(&file, limit(&lab, 3))?;
    wait(&agent, 3, "a file written in its place")?;

    let volume = lab.directory().join("volume");
    let swap = |version: &str, refusals: u32| -> Result<()> {
        fs::create_dir_all(volume.join(version))?;
        fs::write(volume.join(version).join("sluice.yaml"), limit(&lab, refusals))?;
        symlink(version, volume.join("..data_tmp"))?;
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).context("swap")
    };
    swap("..1", 4)?;
    symlink(volume.join("..data/sluice.yaml"), lab.directory().join("link"))?;
    fs::rename(lab.directory().join("link"), &file)?;
    wait(&agent, 4, "a symlink in the file's place")?;
    swap("..2", 5)?;
    let took = wait(&agent, 5, "a swapped symlink")?;
    ensure!(took < Duration::from_millis(700), "a swapped symlink is in force after {took:?}");
    agent.reload(&limit(&lab, 6))?;
    wait(&agent, 6, "SIGHUP")?;
    ensure!(agent.status()?["lastError"].is_null(), "{}", agent.log_tail());
    session.exchange(Speaker::Pod)?;
    agent.stop()?;
    check_nothing_left(&lab)
}

/// What the maps say of services, as bpftool prints it. Not the settings: they count changes of routes.
fn installed(agent: &Agent) -> Result<String> {
    let mut text = String::new();
    for map in ["services", "maglev", "backends", "endpoints"] {
        let pin = agent.pins().join("maps").join(map);
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&pin).output()?;
        ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stdout));
        text += &format!("{map}: {}\n", String::from_utf8_lossy(&output.stdout));
    }
    Ok(text)
}

#[test]
fn what_a_reload_would_change_is_shown_and_then_comes_true() -> Result<()> {
    if !available("configuration") {
        return Ok(());
    }
    let lab = lab("diff")?;
    let capacities = "capacities: {services: 8, backends: 16, maglevSlots: 8192, bypasses: 256, flows: 1024}\n";
    let one = yaml(&lab, &[0], capacities);
    let two = yaml(&lab, &[0, 1], capacities);
    let mut agent = Agent::start_with(&lab, &one)?;
    wait_ready(&agent, 1)?;
    let mut session = open(&lab)?;
    let before = installed(&agent)?;
    let same = diff(&lab, &agent, &one, &[])?;
    ensure!(same.status.success() && same.stdout == b"no differences\n", "{same:?}");

    let change = difference(&lab, &agent, &two)?;
    let service = &change["services"][0];
    let (from, to) = (lab.pods[0].addresses.v4, lab.pods[1].addresses.v4);
    ensure!(service["change"] == "changed" && service["backends"][0]["change"] == "added", "{change:#}");
    let moves = &service["slots"]["moves"];
    ensure!(moves[0]["from"] == format!("{from}:{POD_PORT}") && moves[1].is_null(), "{change:#}");
    let moved = moves[0]["slots"].as_u64().context("no slots move")?;
    ensure!(change["notes"][0].as_str().is_some_and(|note| note.starts_with(&to.to_string())), "{change:#}");

    let elsewhere = difference(&lab, &agent, &two.replacen("addresses: [", "addresses: [192.0.2.77, ", 1))?;
    ensure!(elsewhere["settings"][0]["key"] == "node.addresses", "{elsewhere:#}");
    for (text, why) in [
        (one.replacen("services: 8", "services: 9", 1), "capacities are fixed while the agent runs"),
        (one.replacen("interface: eth0", "interface: eth9", 1), "uplink eth9 does not exist on this node; there are: "),
    ] {
        let refused = diff(&lab, &agent, &text, &[])?;
        let said = String::from_utf8_lossy(&refused.stdout).into_owned();
        ensure!(refused.status.code() == Some(1) && said.contains(why), "{refused:?}");
    }
    let wrong = diff(&lab, &agent, &one.replacen("rung:", "rnug:", 1), &[])?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(wrong.status.code() == Some(1) && said.contains("did you mean `rung`?"), "{wrong:?}");
    ensure!(installed(&agent)? == before, "asking has changed the maps");

    agent.reload(&two)?;
    wait_ready(&agent, 2)?;
    let status = agent.status()?;
    ensure!(status["services"][0]["backends"][1]["slots"] == moved, "{moved} were to move\n{:#}", status["services"]);
    ensure!(diff(&lab, &agent, &two, &[])?.status.success(), "nothing is left to change");
    session.exchange(Speaker::Pod)?;
    agent.stop()
}

/// Puts something that is no configuration in the place of the file.
type Spoil = fn(&Path) -> Result<()>;

const SPOILED: &[(&str, Spoil, &str)] = &[
    ("empty", |file| rename_over(file, ""), "the file holds no configuration"),
    ("not UTF-8", |file| fs::write(file, b"node: \xff").map_err(Into::into), "this byte is not UTF-8"),
    (
        "too large",
        |file| fs::File::create(file)?.set_len(1 << 30).map_err(Into::into),
        "is larger than 64 MiB; a configuration is not",
    ),
    ("half", |file| rename_over(file, "node:\n  addresses: [\"192.0.2"), "not valid YAML"),
    (
        "a directory",
        |file| {
            fs::remove_file(file)?;
            fs::create_dir(file).map_err(Into::into)
        },
        "is not a regular file",
    ),
    ("gone", |file| fs::remove_dir(file).map_err(Into::into), "No such file or directory"),
];

#[test]
fn whatever_stands_in_the_place_of_the_file_leaves_the_running_state_alone() -> Result<()> {
    if !available("configuration") {
        return Ok(());
    }
    let lab = lab("spoiled")?;
    let good = yaml(&lab, &[0], "");
    let mut agent = Agent::start_as(&lab, &good, |agent| behind(&lab, &["setpriv", "--bounding-set", ENOUGH], &agent))?;
    wait_ready(&agent, 1)?;
    let mut session = open(&lab)?;
    let before = installed(&agent)?;
    let file = agent.configuration();
    let mut check = |agent: &Agent, name: &str, why: &str| -> Result<()> {
        agent
            .wait_status("the refusal in the status", |status| {
                status["lastError"].as_str().is_some_and(|error| error.contains(why)).then_some(())
            })
            .with_context(|| name.to_owned())?;
        ensure!(installed(agent)? == before, "{name}: the maps have changed");
        session.exchange(Speaker::Pod).with_context(|| name.to_owned())
    };
    for (name, spoil, why) in SPOILED {
        spoil(&file).with_context(|| (*name).to_owned())?;
        check(&agent, name, why)?;
    }
    rename_over(&file, &good)?;
    agent.wait_status("no error any more", |status| status["lastError"].is_null().then_some(()))?;
    Command::new("chmod").arg("000").arg(&file).status()?;
    agent.hangup()?;
    check(&agent, "no permission", "Permission denied (os error 13); check the path and its permissions")?;
    agent.reload(&good)?;
    agent.wait_status("no error any more", |status| status["lastError"].is_null().then_some(()))?;
    agent.stop()
}

/// Puts a program before the agent that executes it.
fn behind(lab: &Lab, arguments: &[&str], agent: &Command) -> Command {
    let mut command = lab.node.command(arguments[0]);
    command.args(&arguments[1..]).arg(agent.get_program()).args(agent.get_args());
    command
}

/// In a mount namespace of the agent's own.
#[test]
fn a_full_disk_for_lock_or_socket_is_refused_before_anything_is_touched() -> Result<()> {
    if !available("configuration") {
        return Ok(());
    }
    let lab = lab("disk")?;
    let full = lab.directory().join("full");
    fs::create_dir(&full)?;
    let full = full.display().to_string();
    let text = yaml(&lab, &[0], "");
    let own = lab.directory().join("run").display().to_string();
    let text = text.replacen(&format!("runDirectory: {own}\n"), &format!("runDirectory: {full}\n"), 1);
    let advice =
        "No space left on device (os error 28); free blocks or inodes there (`df`, `df -i`), or set runDirectory";
    for (options, fill, what) in [
        ("nr_inodes=1", "true", format!("cannot open the lock {full}/lock: ")),
        ("size=4k", "head -c 4096 /dev/zero >$0/filler", format!("cannot write to the lock {full}/lock: ")),
        ("nr_inodes=2", "true", format!("cannot make the status socket {full}/status.sock: ")),
    ] {
        let script = format!("mount -t tmpfs -o {options} tmpfs $0 && {fill} && exec \"$@\"");
        let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, &full];
        let said = Agent::refusal(&lab, &text, |agent| behind(&lab, &wrapper, &agent))?;
        ensure!(said.contains(&what) && said.contains(advice), "{options}:\n{said}");
        check_nothing_left(&lab).with_context(|| options.to_owned())?;
    }
    Ok(())
}
