//! A map that can go back to what it was before a plan, at the price of what the plan has touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
};

/// Reads as the map that it is. Between [`Tracked::begin`] and [`Tracked::commit`] or [`Tracked::roll_back`] the first
/// change of an entry keeps a copy of it.
#[derive(Clone, Debug)]
pub(super) struct Tracked<K, V> {
    entries: BTreeMap<K, V>,
    /// `None` outside of a plan.
    before: Option<Before<K, V>>,
}

/// What entries were that have been touched since the beginning of a plan.
#[derive(Clone, Debug)]
struct Before<K, V> {
    there: BTreeMap<K, V>,
    /// At a start these are all, and far smaller without a place for what was not there.
    not_there: BTreeSet<K>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), before: None }
    }
}

impl<K, V> Deref for Tracked<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

impl<K: Ord + Copy, V: Clone> Tracked<K, V> {
    /// From here on changes can be taken back.
    pub fn begin(&mut self) {
        self.before = Some(Before { there: BTreeMap::new(), not_there: BTreeSet::new() });
    }

    /// What has been changed since the beginning stays.
    pub fn commit(&mut self) {
        let new = self.before.take().map_or(0, |before| before.not_there.len());
        // Entries that came one by one leave a tree of half-empty nodes.
        if new > self.entries.len() / 2 {
            self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        }
    }

    /// What has been changed since the beginning is as it was.
    pub fn roll_back(&mut self) {
        let Some(Before { there, not_there }) = self.before.take() else { return };
        for key in not_there {
            self.entries.remove(&key);
        }
        self.entries.extend(there);
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.touch(key);
        self.entries.insert(key, value);
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.touch(*key);
        self.entries.remove(key)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.touch(*key);
        self.entries.get_mut(key)
    }

    /// The map itself, outside of a plan.
    ///
    /// # Panics
    /// Within a plan, which could not be taken back any more.
    pub fn untracked(&mut self) -> &mut BTreeMap<K, V> {
        assert!(self.before.is_none(), "within a plan each change is noted");
        &mut self.entries
    }

    fn touch(&mut self, key: K) {
        let Some(Before { there, not_there }) = &mut self.before else { return };
        if there.contains_key(&key) || not_there.contains(&key) {
            return;
        }
        match self.entries.get(&key) {
            Some(value) => drop(there.insert(key, value.clone())),
            None => drop(not_there.insert(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_goes_back_to_what_it_was_however_often_an_entry_was_changed() {
        let mut map = Tracked::default();
        map.insert(1, "one");
        map.insert(2, "two");
        map.begin();
        map.insert(1, "changed");
        map.insert(1, "changed again");
        assert_eq!(map.remove(&2), Some("two"));
        map.insert(3, "new");
        map.remove(&3);
        map.insert(4, "new");
        if let Some(value) = map.get_mut(&4) {
            *value = "newer";
        }
        map.roll_back();
        assert_eq!(*map, BTreeMap::from([(1, "one"), (2, "two")]));
        map.begin();
        map.insert(1, "changed");
        map.commit();
        map.roll_back();
        assert_eq!(*map, BTreeMap::from([(1, "changed"), (2, "two")]), "what is committed stays");
    }
}
