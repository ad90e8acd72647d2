//! Maglev tables that are computed before the plan that needs them, while the agent waits for something else.

use std::{collections::HashMap, num::NonZero, thread};

use super::{
    history::Column,
    maglev::{self, Member, TableSize},
    planner::{VipKey, table_member, vip_key},
};
use crate::model::Service;

/// The tables of some services, each until it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Ahead(HashMap<VipKey, Table>);

#[derive(Clone, Debug)]
struct Table {
    members: Vec<Member>,
    size: TableSize,
    /// By index into the members.
    owners: Column,
}

impl Ahead {
    /// The tables that these services have if they have had no larger ones before. Takes all CPUs.
    pub fn of(services: &[Service]) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let each = services.len().div_ceil(threads).max(1);
        thread::scope(|scope| {
            let parts = services.chunks(each).map(|part| scope.spawn(|| part.iter().filter_map(table).collect()));
            let parts: Vec<thread::ScopedJoinHandle<'_, Vec<_>>> = parts.collect();
            let tables = parts.into_iter().flat_map(|part| part.join().expect("computing a table does not panic"));
            Self(tables.collect())
        })
    }

    /// The owner of each slot, as [`maglev::owners`] has it, whether it was computed ahead or not.
    pub(super) fn owners(&mut self, service: &VipKey, members: &[Member], size: TableSize) -> Vec<u16> {
        let table = self.0.remove(service).filter(|table| table.size == size && table.members == members);
        table.map_or_else(|| maglev::owners(members, size), |table| table.owners.iter().collect())
    }
}

fn table(service: &Service) -> Option<(VipKey, Table)> {
    let members: Vec<Member> = service.backends.iter().map(table_member).collect();
    if members.iter().all(|member| member.weight == 0) {
        return None;
    }
    let size = maglev::table_size(members.iter().map(|member| member.weight));
    let owners = maglev::owners(&members, size).into_iter().collect();
    Some((vip_key(service), Table { members, size, owners }))
}
