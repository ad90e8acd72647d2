//! `sluice drain` and `sluice undrain`.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    config::{self, RUN_DIRECTORY_DEFAULT},
    status::{self, SOCKET_NAME, Status},
};

/// The longest that leaving takes: the longest `shutdownWait`, and each step's own limit.
const WAIT_MAX: Duration = Duration::from_secs(700);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Where the agent is.
#[derive(Debug, Args)]
pub struct AgentPlace {
    /// Socket of the agent [default: status.sock in /run/sluice].
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub socket: Option<PathBuf>,
    /// Configuration file whose runDirectory has the socket.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `sluice drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    place: AgentPlace,
    /// Return only once everything is handed over and withdrawn.
    #[arg(long)]
    wait: bool,
}

impl AgentPlace {
    fn socket(&self) -> Result<PathBuf> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => Ok(config::load(file)?.run_directory.join(SOCKET_NAME)),
            (None, None) => Ok(Path::new(RUN_DIRECTORY_DEFAULT).join(SOCKET_NAME)),
        }
    }
}

/// Returns what is to be printed.
pub(super) fn drain(args: &DrainArgs) -> Result<String> {
    let socket = args.place.socket()?;
    let mut said = status::tell_drain(&socket, true)?;
    if args.wait {
        wait(&socket)?;
        said = "drained".to_owned();
    }
    Ok(format!("{said}\n"))
}

/// Returns what is to be printed.
pub(super) fn undrain(place: &AgentPlace) -> Result<String> {
    Ok(format!("{}\n", status::tell_drain(&place.socket()?, false)?))
}

fn wait(socket: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = status::fetch(socket)?;
        if status.announce.leaving.is_none() {
            bail!("somebody has taken the drain back: `sluice undrain`");
        }
        let left = left(&status);
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > WAIT_MAX {
            bail!(
                "after {} s this node still announces: {}; `sluice status` says more",
                WAIT_MAX.as_secs(),
                left.join(", ")
            );
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// What still has to be handed over.
fn left(status: &Status) -> Vec<String> {
    let announce = &status.announce;
    let step = announce.leaving.iter().filter(|step| *step != "drained").cloned();
    let routers = announce.routers.iter().filter(|router| matches!(router.state.as_str(), "active" | "leaving"));
    let routers = routers.map(|router| format!("virtual router {} on {}", router.vrid, router.interface));
    let held =
        announce.vips.iter().filter(|vip| vip.means.iter().any(|means| means.holds)).map(|vip| vip.vip.to_string());
    step.chain(routers).chain(held).collect()
}
