//! Privileged: makes network namespaces, loads programs into the kernel and sends real traffic.
//!
//! What an agent finds that starts after another one: a start that was cut short, pins that no agent makes, capacities that
//! do not fit, uplinks and pods that have changed meanwhile. It takes it up, or refuses and the data plane goes on.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader,
    maps::{Array, Map, MapData},
};
use lb_common::{abi::ABI_VERSION, agent::About};
use lb_tests::{
    agent::{Agent, Configuration, Service, available, check_nothing_left},
    kernel::object,
    lab::{Family, Lab, Options, ROUTER_END, vip, wait_until},
    programs::{
        PATIENCE,
        conversation::{self, Conversation, Speaker},
    },
};
use serde_json::Value;

const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
const CAPACITIES: &str = "capacities: {services: 4, backends: 8, maglevSlots: 4096, bypasses: 256, flows: 1024}\n";
const LARGER: &str = "capacities: {services: 8, backends: 16, maglevSlots: 8192, bypasses: 512, flows: 2048}\n";
const LARGEST: &str = "capacities: {services: 16, backends: 32, maglevSlots: 16384, bypasses: 1024, flows: 4096}\n";

/// A lab whose first pod is behind a VIP, and what listens there.
struct Scene {
    lab: Lab,
    listener: TcpListener,
}

impl Scene {
    fn new(name: &str, pods: u8) -> Result<Self> {
        let mut lab = Lab::new(name, Options { pods, ..Options::default() })?;
        lab.attach_router_program()?;
        let listener = conversation::listen(&lab.pods[0].namespace, POD_PORT)?;
        Ok(Self { lab, listener })
    }

    /// A service of each family, before the first pod.
    fn yaml(&self) -> String {
        let service = |family: Family| Service {
            name: format!("web-{family:?}").to_lowercase(),
            vip: vip(1).of(family),
            protocol: "TCP",
            port: VIP_PORT,
            replies: None,
            rung: "auto",
            backends: vec![SocketAddr::new(self.lab.pods[0].addresses.of(family), POD_PORT)],
        };
        Configuration { mode: "native", services: Family::BOTH.map(service).into() }.yaml_in(&self.lab)
    }

    fn start(&self, yaml: &str) -> Result<Agent> {
        let agent = Agent::start_with(&self.lab, yaml)?;
        wait_ready(&agent, &self.lab.pods[0].host_interface)?;
        Ok(agent)
    }

    /// A session of each family through the VIP, with data both ways.
    fn open(&self) -> Result<Vec<Conversation>> {
        Family::BOTH.map(|family| self.open_to(vip(1).of(family), VIP_PORT)).into_iter().collect()
    }

    fn open_to(&self, target: IpAddr, port: u16) -> Result<Conversation> {
        let mut session = Conversation::open(&self.lab.element, SocketAddr::new(target, port), &self.listener)?;
        session.exchange(Speaker::Client).and_then(|()| session.exchange(Speaker::Pod))?;
        Ok(session)
    }

    fn pins(&self) -> PathBuf {
        self.lab.bpffs().join("sluice")
    }
}

fn wait_ready(agent: &Agent, interface: &str) -> Result<()> {
    agent.wait_status(&format!("every backend to be reached through {interface}"), |status| {
        let services = status["services"].as_array()?.iter();
        let mut backends = services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
        backends.all(|backend| backend["state"] == "ready" && backend["interface"] == interface).then_some(())
    })
}

fn go_on(sessions: &mut [Conversation], when: &str) -> Result<()> {
    for session in sessions {
        for speaker in Speaker::BOTH {
            session.exchange(speaker).with_context(|| when.to_owned())?;
        }
    }
    Ok(())
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().context("bpftool")?;
    ensure!(output.status.success(), "bpftool {arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).context("bpftool prints no JSON")
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The names of what is in a directory of pins.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(_) => return Ok(Vec::new()),
    };
    let mut names: Vec<String> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// The pins of one program's links.
fn links(scene: &Scene, program: &str) -> Result<Vec<PathBuf>> {
    let links = scene.pins().join("links");
    let of_program = names(&links)?.into_iter().filter(|name| name.rsplit_once('-').is_some_and(|(p, _)| p == program));
    Ok(of_program.map(|name| links.join(name)).collect())
}

/// A native program is refused where the other end of the veth has more queues.
#[test]
fn a_program_that_auto_could_only_attach_in_generic_mode_stays_where_it_is() -> Result<()> {
    if !available("adopt") {
        return Ok(());
    }
    let scene = Scene::new("auto", 1)?;
    let output = scene.lab.router.command("ethtool").args(["-L", ROUTER_END, "tx", "2"]).output()?;
    ensure!(output.status.success(), "ethtool: {}", String::from_utf8_lossy(&output.stderr));
    let yaml = scene.yaml().replacen("mode: native", "mode: auto", 1);
    let agent = scene.start(&yaml)?;
    let mut sessions = scene.open()?;
    let programs = agent.status()?["programs"].clone();
    let is_generic = |program: &Value| program["name"] == "sluice_xdp" && program["mode"] == "generic";
    ensure!(programs.as_array().is_some_and(|all| all.iter().any(is_generic)), "not in generic mode: {programs:#}");
    let link = || bpftool(&["link", "show", "pinned", &shown(&links(&scene, "sluice_xdp")?[0])]);
    let before = link()?["id"].clone();
    agent.end()?;
    let agent = scene.start(&yaml)?;
    ensure!(link()?["id"] == before, "the program was detached and attached again");
    go_on(&mut sessions, "after a restart")?;
    agent.stop()?;
    check_nothing_left(&scene.lab)
}

/// An agent was killed between the two programs of a pod's interface, or of an uplink's.
#[test]
fn an_interface_that_has_half_of_its_programs_gets_the_others() -> Result<()> {
    if !available("adopt") {
        return Ok(());
    }
    let scene = Scene::new("half", 1)?;
    let yaml = scene.yaml();
    let mut agent = scene.start(&yaml)?;
    for missing in ["sluice_return", "sluice_xdp"] {
        agent.kill()?;
        let pins = links(&scene, missing)?;
        ensure!(!pins.is_empty(), "{missing} is not attached");
        for pin in pins {
            bpftool(&["link", "detach", "pinned", &shown(&pin)])?;
            fs::remove_file(pin)?;
        }
        agent = scene.start(&yaml).with_context(|| format!("without {missing}"))?;
        let mut sessions = scene.open().with_context(|| format!("without {missing}"))?;
        go_on(&mut sessions, "the same sessions")?;
        let programs = agent.status()?["programs"].as_array().context("no programs")?.len();
        ensure!(programs == 5, "{programs} programs are shown after {missing} was missing");
    }
    agent.stop()?;
    check_nothing_left(&scene.lab)
}

/// Kills the agent that is to start as soon as this directory of pins is there.
fn cut_short(scene: &Scene, yaml: &str, part: &str) -> Result<()> {
    let path = scene.pins().join(part);
    let before = path.exists();
    let agent = Agent::launch(&scene.lab, yaml, |command| command)?;
    wait_until(part, PATIENCE, || Ok(path.exists().then_some(())))?;
    agent.kill()?;
    ensure!(!before && path.exists(), "the agent was killed too late");
    Ok(())
}

#[test]
fn a_change_of_capacities_that_was_cut_short_is_taken_up_with_whatever_capacities_come_next() -> Result<()> {
    if !available("adopt") {
        return Ok(());
    }
    let scene = Scene::new("cut", 1)?;
    let [own, larger, largest] = [CAPACITIES, LARGER, LARGEST].map(|capacities| scene.yaml() + capacities);
    let agent = scene.start(&own)?;
    let mut sessions = scene.open()?;
    agent.kill()?;
    let pins = scene.pins();
    let rename = |from: &str, to: &str| fs::rename(pins.join(from), pins.join(to)).context("renaming pins");
    // The old programs go on in all of these; the last is between two renames.
    for (part, next) in [("maps-new", &own), ("maps-old", &own), ("maps-old", &largest), ("between", &own)] {
        cut_short(&scene, &larger, if part == "between" { "maps-old" } else { part })?;
        if part == "between" {
            rename("maps", "maps-new")?;
        }
        go_on(&mut sessions, part)?;
        let mut beside = scene.open_to(scene.lab.pods[0].addresses.v4.into(), POD_PORT)?;
        let agent = scene.start(next).with_context(|| format!("cut short at {part}"))?;
        go_on(&mut sessions, part)?;
        beside.exchange(Speaker::Pod).context("a connection that was recorded meanwhile")?;
        ensure!(names(&pins)? == ["links", "maps", "owner"], "left over after {part}: {:?}", names(&pins)?);
        agent.kill()?;
        if next != &own {
            scene.start(&own)?.kill()?;
        }
    }
    // Killed when the programs were switched, before what came in between was carried over.
    let earlier = pins.join("maps-earlier");
    fs::create_dir(&earlier)?;
    for map in names(&pins.join("maps"))? {
        bpftool(&["map", "pin", "pinned", &shown(&pins.join("maps").join(&map)), &shown(&earlier.join(&map))])?;
    }
    let mut beside = scene.open_to(scene.lab.pods[0].addresses.v4.into(), POD_PORT)?;
    scene.start(&larger)?.kill()?;
    rename("maps-earlier", "maps-old")?;
    let agent = scene.start(&largest).context("cut short after the switch")?;
    go_on(&mut sessions, "after the switch")?;
    beside.exchange(Speaker::Pod)?;
    ensure!(names(&pins)? == ["links", "maps", "owner"], "left over: {:?}", names(&pins)?);
    agent.stop()?;
    check_nothing_left(&scene.lab)
}

/// What must be the same after a start that was refused.
fn state(scene: &Scene) -> Result<Vec<Value>> {
    let pins = scene.pins();
    let mut state = vec![names(&pins)?.into(), names(&pins.join("maps"))?.into()];
    for link in names(&pins.join("links"))? {
        let link = bpftool(&["link", "show", "pinned", &shown(&pins.join("links").join(link))])?;
        state.push([link["id"].clone(), link["prog_id"].clone()].as_slice().into());
    }
    Ok(state)
}

/// Refused with these words, and everything goes on as it was.
fn check_refused(scene: &Scene, sessions: &mut [Conversation], yaml: &str, wanted: &[&str]) -> Result<()> {
    let before = state(scene)?;
    let text = Agent::refusal(&scene.lab, yaml, |command| command)?;
    for words in wanted {
        ensure!(text.contains(words), "no `{words}` in\n{text}");
    }
    let after = state(scene)?;
    ensure!(after == before, "changed:\n{after:?}\nbefore:\n{before:?}\n{text}");
    go_on(sessions, "after a refused start")?;
    scene.open().context("a new session after a refused start").map(drop)
}

#[test]
fn a_pinned_map_of_a_foreign_layout_is_refused_and_the_data_plane_goes_on() -> Result<()> {
    if !available("adopt") {
        return Ok(());
    }
    let scene = Scene::new("foreign", 1)?;
    let yaml = scene.yaml() + CAPACITIES;
    let agent = scene.start(&yaml)?;
    let mut sessions = scene.open()?;
    agent.kill()?;
    let maps = scene.pins().join("maps");
    let services = bpftool(&["map", "show", "pinned", &shown(&maps.join("services"))])?;
    let own = |key: &str| services[key].to_string();
    let (key, value, entries) = (own("bytes_key"), own("bytes_value"), own("max_entries"));
    let larger = (services["bytes_value"].as_u64().context("no size")? + 8).to_string();
    let kept = maps.with_file_name("kept");
    for (map, description, wanted) in [
        ("services", ["lru_hash", &key, &value, &entries], "its type is 9, not 1"),
        ("services", ["hash", &key, &larger, &entries], "keys and values have"),
        ("about", ["array", "4", "64", "1"], "it begins with"),
        ("about", ["array", "4", "32", "1"], "its value has 32 bytes, not 64"),
    ] {
        let path = maps.join(map);
        fs::rename(&path, &kept)?;
        let [kind, key, value, entries] = description;
        let about = ["type", kind, "key", key, "value", value, "entries", entries, "name", "mine"];
        bpftool(&[&["map", "create", &shown(&path)], about.as_slice()].concat())?;
        if value == "64" {
            let ones = vec!["1"; 64];
            let update =
                ["map", "update", "pinned", &shown(&path), "key", "0", "0", "0", "0", "value"].map(str::to_owned);
            let update: Vec<&str> = update.iter().map(String::as_str).chain(ones).collect();
            bpftool(&update)?;
        }
        check_refused(&scene, &mut sessions, &yaml, &[&shown(&path), wanted, "sluice detach"])?;
        fs::rename(&kept, &path)?;
    }
    let agent = scene.start(&yaml)?;
    go_on(&mut sessions, "with its own maps again")?;
    agent.stop()?;
    check_nothing_left(&scene.lab)
}

#[test]
fn capacities_that_what_is_installed_does_not_fit_are_refused_and_the_data_plane_goes_on() -> Result<()> {
    if !available("adopt") {
        return Ok(());
    }
    let scene = Scene::new("small", 1)?;
    let yaml = scene.yaml();
    let agent = scene.start(&(yaml.clone() + CAPACITIES))?;
    let mut sessions = scene.open()?;
    for family in Family::BOTH {
        for _ in 0..2 {
            sessions.push(scene.open_to(scene.lab.pods[0].addresses.of(family), POD_PORT)?);
        }
    }
    agent.kill()?;
    let small = |capacities: &str| yaml.clone() + "capacities: " + capacities + "\n";
    // The first service is wanted no longer; the other one has the second number.
    let second = yaml.find("  - name: web-v4").zip(yaml.find("  - name: web-v6"));
    let (first, second) = second.context("two services")?;
    let fewer =
        [&yaml[..first], &yaml[second..], "capacities: {services: 1, backends: 8, maglevSlots: 4096}\n"].concat();
    let detach = "run `sluice detach` first";
    check_refused(&scene, &mut sessions, &fewer, &["capacities.services cannot become 1", "choose 2 or more", detach])?;
    let bypasses = small("{services: 4, backends: 8, maglevSlots: 4096, bypasses: 3, flows: 1024}");
    check_refused(&scene, &mut sessions, &bypasses, &["capacities.bypasses cannot become 3", "4 are", detach])?;
    let agent = scene.start(&small("{services: 4, backends: 8, maglevSlots: 4096, bypasses: 8, flows: 1024}"))?;
    go_on(&mut sessions, "with capacities that fit")?;
    agent.stop()?;
    check_nothing_left(&scene.lab)
}

/// Exchanges two words of equal length where they stand as whole strings, as names do in an object's types.
fn exchange(bytes: &mut [u8], one: &str, other: &str) -> Result<()> {
    let terminated = |word: &str| [b"\0", word.as_bytes(), b"\0"].concat();
    let (one, other) = (terminated(one), terminated(other));
    ensure!(one.len() == other.len(), "of different length");
    let mut found = [false; 2];
    for at in 0..=bytes.len() - one.len() {
        let window = &mut bytes[at..at + one.len()];
        if window == one {
            (found[0], ()) = (true, window.copy_from_slice(&other));
        } else if window == other {
            (found[1], ()) = (true, window.copy_from_slice(&one));
        }
    }
    ensure!(found == [true; 2], "not in the object");
    Ok(())
}

/// What a release that nobody knows yet might leave: a data plane of another ABI that has no way to this one.
#[test]
fn a_data_plane_of_an_abi_that_cannot_be_converted_is_refused_and_goes_on() -> Result<()> {
    let Some(object) = object().filter(|_| available("adopt")) else { return Ok(()) };
    let scene = Scene::new("abi", 1)?;
    let yaml = scene.yaml() + CAPACITIES;
    let agent = scene.start(&yaml)?;
    let mut sessions = scene.open()?;
    agent.kill()?;
    let maps = scene.pins().join("maps");
    let sign = |abi_version| -> Result<()> {
        let map = Map::Array(MapData::from_pin(maps.join("about"))?);
        let mut about: Array<_, About> = map.try_into()?;
        let signed = about.get(&0, 0)?;
        about.set(0, About { abi_version, ..signed }, 0).context("about")
    };
    sign(ABI_VERSION + 100)?;
    // A number where this ABI has an address, and an address where it has a number.
    let mut bytes = fs::read(object)?;
    exchange(&mut bytes, "address", "ifindex")?;
    let other = EbpfLoader::new().load(&bytes)?;
    let (path, kept) = (maps.join("backends"), maps.with_file_name("kept"));
    type Put<'a> = Box<dyn Fn() -> Result<()> + 'a>;
    let without_types: Put = Box::new(|| {
        bpftool(&[
            "map",
            "create",
            &shown(&path),
            "type",
            "array",
            "key",
            "4",
            "value",
            "64",
            "entries",
            "9",
            "name",
            "b",
        ])
        .map(drop)
    });
    let of_another_kind: Put = Box::new(|| match other.map("backends") {
        Some(Map::Array(data)) => Ok(data.pin(&path)?),
        _ => anyhow::bail!("no such array"),
    });
    let gone: Put = Box::new(|| Ok(()));
    for (put, wanted) in [
        (of_another_kind, "its entries cannot be carried over"),
        (without_types, "carries no types"),
        (gone, "cannot be read as a map"),
    ] {
        fs::rename(&path, &kept)?;
        put()?;
        check_refused(&scene, &mut sessions, &yaml, &[&shown(&path), wanted, "sluice detach"])?;
        if path.exists() {
            fs::remove_file(&path)?;
        }
        fs::rename(&kept, &path)?;
    }
    sign(ABI_VERSION)?;
    let agent = scene.start(&yaml)?;
    go_on(&mut sessions, "as it was again")?;
    agent.stop()?;
    check_nothing_left(&scene.lab)
}
