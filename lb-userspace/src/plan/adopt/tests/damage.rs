//! Maps that no agent has written.

use super::*;
use crate::{model::Capacities, plan::adopt::tests::world::CAPACITIES};

/// A word of a map that becomes another one.
#[derive(Clone, Debug)]
struct Damage {
    which: u8,
    at: prop::sample::Index,
    word: usize,
    value: u16,
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let value = prop_oneof![0u16..10, any::<u16>(), Just(u16::MAX)];
    (0u8..8, any::<prop::sample::Index>(), 0usize..32, value).prop_map(|(which, at, word, value)| Damage {
        which,
        at,
        word,
        value,
    })
}

/// Sets one of the value's 16-bit words.
fn spoil<T: Copy>(place: &mut T, word: usize, value: u16) {
    let words = size_of::<T>() / 2;
    // SAFETY: in bounds; the values of maps are plain integers, of which any bytes are a value.
    unsafe { std::ptr::from_mut(place).cast::<u16>().add(word % words).write_unaligned(value) }
}

impl Damage {
    fn strike(&self, maps: &mut Maps) {
        let Self { at, word, value, .. } = self;
        fn one<'a, K: Ord + 'a, V>(
            all: impl Iterator<Item = (K, &'a mut V)>,
            at: &prop::sample::Index,
        ) -> Option<&'a mut V> {
            let mut all: Vec<_> = all.collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            (!all.is_empty()).then(|| all.swap_remove(at.index(all.len())).1)
        }
        let order = |key: &ServiceKey| (key.address, key.port, key.protocol, key.interface);
        match self.which {
            0 => one(maps.services.iter_mut().map(|(k, v)| (order(k), v)), at).map(|v| spoil(v, *word, *value)),
            1 => one(maps.endpoints.iter_mut().map(|(k, v)| (order(k), v)), at).map(|v| spoil(v, *word, *value)),
            2 => one(maps.members.iter_mut().map(|(k, v)| (*k, v)), at).map(|v| spoil(v, *word, *value)),
            3 => one(maps.tx_ports.iter_mut().map(|(k, v)| (*k, v)), at).map(|v| spoil(v, *word, *value)),
            4 => {
                let mut key = ServiceKey::default();
                spoil(&mut key, *word, *value);
                maps.services.insert(key, abi::Service { slots_log2: 7, backends_count: 1, ..abi::Service::default() });
                None
            }
            // Ranges are given out from the beginning.
            5 => one(maps.slots.iter_mut().take(4096).enumerate(), at).map(|v| spoil(v, *word, *value)),
            6 => one(maps.histories.iter_mut().take(64).enumerate(), at).map(|v| spoil(v, *word, *value)),
            _ => one(maps.backends.iter_mut().take(16).enumerate(), at).map(|v| spoil(v, *word, *value)),
        };
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn whatever_stands_in_the_maps_the_next_plan_installs_what_is_wanted(
        steps in any_steps(),
        damage in prop::collection::vec(any_damage(), 1..12),
        later in any_step(),
    ) {
        let world = World::of(&steps);
        let mut maps = world.maps.clone();
        damage.iter().for_each(|damage| damage.strike(&mut maps));
        let last = steps.last().expect("there is a step");
        let adopted = maps.adopt(world.now);
        let mut resumed = World { planner: adopted.planner, maps, now: world.now };
        // What was damaged is seen until it is mended.
        adopted.ops.iter().for_each(|op| resumed.maps.apply(op));
        let ops = last.plan(&mut resumed.planner, resumed.now);
        ops.iter().for_each(|op| resumed.maps.apply(op));
        resumed.maps.check();
        last.assert_owned(&resumed.maps);
        assert_members(&resumed.planner, &resumed.maps);
        prop_assert_eq!(last.plan(&mut resumed.planner, resumed.now), vec![]);
        let ops = resumed.take(&later);
        resumed.apply(&ops);
        later.assert_owned(&resumed.maps);
    }
}

proptest! {
    #![proptest_config(config(16))]

    #[test]
    fn the_same_state_in_new_maps_is_the_same_to_every_packet(steps in any_steps()) {
        let world = World::of(&steps);
        let last = steps.last().expect("there is a step");
        let capacities = Capacities { services: 32, backends: 100, maglev_slots: 1 << 15, ..CAPACITIES };
        let (mut planner, ops) = world.planner.rebuilt(capacities).expect("there is room");
        let mut rebuilt = World { planner: planner.clone(), maps: Maps::new(&capacities), now: world.now };
        rebuilt.apply(&ops);
        prop_assert_eq!(rebuilt.maps.seen(), world.maps.seen());
        prop_assert_eq!(&rebuilt.maps.vips, &world.maps.vips);
        prop_assert_eq!(&rebuilt.maps.members, &world.maps.members);
        prop_assert_eq!(&rebuilt.maps.tx_ports, &world.maps.tx_ports);
        prop_assert!(rebuilt.maps.endpoints.keys().all(|key| world.maps.endpoints.contains_key(key)));
        assert_members(&planner, &rebuilt.maps);
        prop_assert_eq!(last.plan(&mut planner, world.now), vec![]);
        let adopted = Planner::adopt(capacities, world::HERTZ, &rebuilt.maps.read_back(), &rebuilt.maps, world.now);
        prop_assert!(adopted.discarded.is_empty(), "{:?}", adopted.discarded);
    }
}
