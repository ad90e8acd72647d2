//! Maglev tables that are computed before the plan that needs them, while the agent waits for something else.

use std::collections::HashMap;

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
    /// The tables that these services have if they have had no larger ones before.
    pub fn of(services: &[Service]) -> Self {
        Self(services.iter().filter_map(table).collect())
    }

    /// These, and those of other services.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn a_table_is_taken_once_and_only_for_the_same_members_and_size() {
        let service = VipKey::new([198, 51, 100, 1].into(), Protocol::Tcp, 80);
        let members = [Member { identity: ([10, 0, 0, 1].into(), 80), weight: 1 }];
        let larger = TableSize::MIN.next().expect("there is a larger one");
        // Not what would be computed.
        let owners: Column = vec![7; TableSize::MIN.slots()].into_iter().collect();
        let table = Table { members: members.to_vec(), size: TableSize::MIN, owners };
        let ahead = Ahead([(service, table)].into());
        let first = |ahead: &mut Ahead, members: &[Member], size| ahead.owners(&service, members, size)[0];
        let mut taken = ahead.clone();
        assert_eq!(first(&mut taken, &members, TableSize::MIN), 7);
        assert_eq!(first(&mut taken, &members, TableSize::MIN), 0, "it is gone");
        assert_eq!(first(&mut ahead.clone(), &members, larger), 0);
        let heavier = [Member { weight: 2, ..members[0] }];
        assert_eq!(first(&mut ahead.clone(), &heavier, TableSize::MIN), 0);
    }
}
