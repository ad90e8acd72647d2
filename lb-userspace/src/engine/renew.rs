//! A data plane of another ABI or of other capacities takes the place of an earlier one, and nothing is lost.
//!
//! New maps are made and filled while the earlier programs go on. Then the directories change places, which is the step
//! that a later agent goes by; then the programs are switched, whose return path looks into both data planes' records;
//! then what was recorded meanwhile is carried over, and programs that know only the new maps take over.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, bail};
use aya::maps::MapError;
use tracing::{info, warn};

use super::{
    Engine,
    connections::endpoint_of,
    start::{BUILD, Begun, settings},
};
use crate::{
    dataplane::{
        DataPlaneError,
        bpffs::{self, MAPS, MAPS_NEW, MAPS_OLD, MAPS_OLDER},
        earlier::{Carried, Earlier},
        holders::Holders,
        object::{self, Clock, Pins},
        pinned,
        tables::{Tables, read_undos},
    },
    plan::planner::Planner,
};

/// Makes and fills new maps beside those of an earlier data plane, and lets them take their place. On an error nothing has
/// changed.
pub(super) fn prepare(begun: &Begun, how: &str) -> Result<()> {
    let directory = &begun.snapshot.pin_directory;
    // The directory changes its name.
    let foreign = pinned::foreign(directory)?.into_iter().find(|pin| pin.parent() == Some(&directory.join(MAPS)));
    if let Some(pin) = foreign {
        bail!("{} is no agent's: move it elsewhere, so that the data plane can be carried over ({how})", pin.display());
    }
    info!(reason = how, "the data plane of an earlier agent is carried over to new maps");
    let filled = fill(begun).context("the data plane of an earlier agent cannot be carried over, and goes on");
    if filled.is_err() {
        // The error that is returned matters more than one of tidying up.
        let _ = bpffs::remove_pins(&directory.join(MAPS_NEW));
    }
    filled?;
    Ok(bpffs::replace_maps(directory).map_err(failed(directory, "putting new maps in the place of the old"))?)
}

fn failed(directory: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> DataPlaneError {
    let path = directory.to_path_buf();
    move |source| DataPlaneError::PinDirectory { path, what, source, advice: "" }
}

fn fill(begun: &Begun) -> Result<()> {
    let directory = &begun.snapshot.pin_directory;
    let (old, new) = (directory.join(MAPS), directory.join(MAPS_NEW));
    std::fs::create_dir_all(&new).map_err(failed(&new, "making the directory"))?;
    let mut object = object::make_maps(&begun.sizes, Some(&Pins::new(new.clone())), None)?;
    let clock = Clock::measure(&mut object)?;
    let earlier = Earlier::open(&old, &new)?;
    let capacities = earlier.capacities()?;
    let adopted = Planner::adopt(capacities, clock.hertz, &earlier.read_back()?, &earlier, std::time::Duration::ZERO);
    for words in &adopted.discarded {
        warn!(discarded = words, "left over by an earlier agent, and not carried over");
    }
    let (planner, ops) = adopted.planner.rebuilt(begun.snapshot.capacities)?;
    // Records are found by the seeds.
    let seeds = earlier.settings()?;
    let settings = lb_common::abi::Settings {
        table_seed: seeds.table_seed,
        maglev_seed: seeds.maglev_seed,
        uplink: seeds.uplink,
        ..settings(&begun.snapshot, clock.hertz)
    };
    let mut holders = Holders::take(&mut object)?;
    let mut tables = Tables::new(&mut object, &begun.sizes, settings)?;
    for op in &ops {
        tables.apply(op)?;
    }
    for (ifindex, uplink) in earlier.uplinks()? {
        tables.set_uplink(ifindex, uplink.mac)?;
    }
    for error in carry_holders(&earlier, &mut holders) {
        warn!(error, "not all who answer for VIPs are carried over: nobody does until they are announced again");
    }
    if !earlier.has_own_flows() {
        warn!("what clients are recorded cannot be carried over: the earlier agent records them in another form");
    }
    let recorded = earlier.bypasses_count()?;
    if recorded > begun.snapshot.capacities.bypasses as usize {
        bail!(
            "capacities.bypasses cannot become {}: {recorded} are recorded; choose more, or run `sluice detach` first, which \
             ends sessions",
            begun.snapshot.capacities.bypasses
        );
    }
    earlier.carry(&mut tables, |key| endpoint_of(&planner, key))?;
    // An agent was killed before it had carried over everything from those.
    let before = directory.join(MAPS_OLD);
    if before.exists() {
        Earlier::open(&before, &new)?.carry(&mut tables, |key| endpoint_of(&planner, key))?;
    }
    for (key, was_on) in read_undos(&old)? {
        tables.note_undo(key, was_on)?;
    }
    tables.sign(BUILD)?;
    Ok(())
}

/// Until the thread that announces begins, the data plane answers as it did. Why not, for what is not carried over.
fn carry_holders(earlier: &Earlier, holders: &mut Holders) -> BTreeSet<String> {
    let mut refused = BTreeSet::new();
    carry(earlier.holders(), |(key, holder)| holders.set(key, holder), &mut refused);
    carry(earlier.virtual_macs(), |(key, mac)| holders.set_mac(key, mac), &mut refused);
    refused
}

/// Goes on after each that fails.
fn carry<T>(
    entries: Result<Vec<T>, DataPlaneError>,
    mut set: impl FnMut(&T) -> Result<(), MapError>,
    refused: &mut BTreeSet<String>,
) {
    match entries {
        Ok(entries) => {
            refused.extend(entries.iter().filter_map(|entry| set(entry).err()).map(|error| error.to_string()))
        }
        Err(error) => drop(refused.insert(error.to_string())),
    }
}

/// What was laid aside, where programs may still be using it.
pub(super) struct Aside {
    pub earlier: Earlier,
    carried: Carried,
}

impl Aside {
    /// Looks for maps that were laid aside.
    pub fn find(directory: &Path) -> Result<Option<Self>> {
        let old = directory.join(MAPS_OLD);
        if !old.exists() {
            return Ok(None);
        }
        Ok(Some(Self { earlier: Earlier::open(&old, &directory.join(MAPS))?, carried: Carried::new() }))
    }

    /// What is recorded now, before programs are switched.
    pub fn carry(&mut self, tables: &mut Tables, planner: &Planner) -> Result<()> {
        self.carried = self.earlier.carry(tables, |key| endpoint_of(planner, key))?;
        Ok(())
    }

    /// No program uses it any more: what came in between is carried over, and the maps go.
    pub fn finish(self, engine: &mut Engine) -> Result<()> {
        let planner = &engine.planner;
        let last = self.earlier.carry(&mut engine.tables, |key| endpoint_of(planner, key))?;
        let gone = self.carried.into_iter().filter(|(key, _)| !last.contains_key(key));
        engine.tables.drop_carried(gone, |key| endpoint_of(planner, key))?;
        self.earlier.carry_counters()?;
        for part in [MAPS_OLDER, MAPS_OLD] {
            let old = engine.snapshot.pin_directory.join(part);
            bpffs::remove_pins(&old).map_err(failed(&old, "removing maps that nothing uses any more"))?;
        }
        Ok(())
    }
}
