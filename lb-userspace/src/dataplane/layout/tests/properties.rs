//! Conversions between random layouts, against a plain reading of values as trees.

use std::iter;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{RngAlgorithm, RngSeed},
};

use super::{Conversion, Field, Kind, Layout, array};

/// Bytes of a value's tree.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Value {
    Integer(u128),
    Array(Vec<Value>),
    Struct(Vec<(String, Value)>),
}

fn read(layout: &Layout, bytes: &[u8]) -> Value {
    match &layout.kind {
        Kind::Integer => {
            let mut wide = [0; 16];
            wide[..layout.size].copy_from_slice(&bytes[..layout.size]);
            Value::Integer(u128::from_le_bytes(wide))
        }
        Kind::Array { element, count } => {
            Value::Array((0..*count).map(|index| read(element, &bytes[index * element.size..])).collect())
        }
        Kind::Struct(fields) => Value::Struct(
            fields.iter().map(|field| (field.name.clone(), read(&field.layout, &bytes[field.offset..]))).collect(),
        ),
    }
}

/// Padding is left alone.
fn write(layout: &Layout, value: &Value, bytes: &mut [u8]) {
    match (&layout.kind, value) {
        (Kind::Integer, Value::Integer(value)) => {
            bytes[..layout.size].copy_from_slice(&value.to_le_bytes()[..layout.size]);
        }
        (Kind::Array { element, .. }, Value::Array(values)) => {
            for (index, value) in values.iter().enumerate() {
                write(element, value, &mut bytes[index * element.size..]);
            }
        }
        (Kind::Struct(fields), Value::Struct(values)) => {
            for (field, (_, value)) in fields.iter().zip(values) {
                write(&field.layout, value, &mut bytes[field.offset..]);
            }
        }
        _ => panic!("{value:?} is none of {layout}"),
    }
}

fn zero(layout: &Layout) -> Value {
    read(layout, &vec![0; layout.size])
}

/// `None` where there is no room.
fn converted(value: Value, old: &Layout, new: &Layout) -> Option<Value> {
    Some(match (value, &old.kind, &new.kind) {
        (Value::Integer(value), _, Kind::Integer) => {
            let fits = new.size >= 16 || value >> (8 * new.size) == 0;
            Value::Integer(fits.then_some(value)?)
        }
        (Value::Array(mut values), Kind::Array { element: old, .. }, Kind::Array { element: new, count }) => {
            let rest = values.split_off(values.len().min(*count));
            if rest.iter().any(|value| *value != zero(old)) {
                return None;
            }
            let mut values: Vec<_> =
                values.into_iter().map(|value| converted(value, old, new)).collect::<Option<_>>()?;
            values.resize(*count, zero(new));
            Value::Array(values)
        }
        (Value::Struct(values), Kind::Struct(old), Kind::Struct(new)) => {
            let one = |field: &Field| {
                let found = old.iter().zip(&values).find(|(old, _)| old.name == field.name);
                let value = match found {
                    Some((old, (_, value))) => converted(value.clone(), &old.layout, &field.layout)?,
                    None => zero(&field.layout),
                };
                Some((field.name.clone(), value))
            };
            Value::Struct(new.iter().map(one).collect::<Option<_>>()?)
        }
        (value, _, _) => {
            // Only wrapping is left.
            let field = new.only_field().expect("a number with a type of its own");
            Value::Struct(vec![(field.name.clone(), converted(value, old, &field.layout)?)])
        }
    })
}

fn struct_of(fields: Vec<(String, Layout, usize)>) -> Layout {
    let mut size = 0;
    let place = |(name, layout, gap): (String, Layout, usize)| {
        let offset = size + gap;
        size = offset + layout.size;
        Field { name, offset, layout }
    };
    let fields = fields.into_iter().map(place).collect();
    Layout { size, kind: Kind::Struct(fields) }
}

fn layouts() -> impl Strategy<Value = Layout> {
    let integer = prop::sample::select(vec![1, 2, 4, 8, 16]).prop_map(Layout::integer);
    integer.prop_recursive(3, 24, 4, |inner| {
        let fields = vec((inner.clone(), 0..3_usize), 1..5).prop_map(|fields| {
            struct_of(iter::zip('a'.., fields).map(|(name, (layout, gap))| (name.into(), layout, gap)).collect())
        });
        prop_oneof![(inner, 0..4_usize).prop_map(|(element, count)| array(&element, count)), fields]
    })
}

/// A later build's layout: fields in another order, fewer and more of them, other lengths; or, where it `only_grows`, with
/// room for everything that is kept. `choices` decide.
fn later(layout: &Layout, only_grows: bool, choices: &mut impl Iterator<Item = u8>) -> Layout {
    let mut choose = |of: u8| choices.next().unwrap_or(0) % of;
    match &layout.kind {
        Kind::Integer => {
            let size = match choose(4) {
                0 if !only_grows => (layout.size / 2).max(1),
                1 => (layout.size * 2).min(16),
                _ => layout.size,
            };
            match choose(4) {
                0 => struct_of(vec![("wrapped".into(), Layout::integer(size), 0)]),
                _ => Layout::integer(size),
            }
        }
        Kind::Array { element, count } => {
            let count = match choose(3) {
                0 if !only_grows => count.saturating_sub(1),
                1 => count + 1,
                _ => *count,
            };
            array(&later(element, only_grows, choices), count)
        }
        Kind::Struct(fields) => {
            let mut laid: Vec<(String, Layout, usize)> = Vec::new();
            for field in fields {
                let at = choices.next().unwrap_or(0) as usize % (laid.len() + 1);
                match choices.next().unwrap_or(0) % 4 {
                    0 => {}
                    1 => {
                        laid.insert(at, (format!("new_{}", field.name), field.layout.clone(), 0));
                        laid.push((field.name.clone(), later(&field.layout, only_grows, choices), 1));
                    }
                    _ => laid.insert(at, (field.name.clone(), later(&field.layout, only_grows, choices), 0)),
                }
            }
            struct_of(laid)
        }
    }
}

/// A layout, a later one, and a value of the first with small and large numbers.
fn cases(only_grows: bool) -> impl Strategy<Value = (Layout, Layout, Vec<u8>)> {
    (layouts(), vec(any::<u8>(), 64)).prop_flat_map(move |(old, choices)| {
        let new = later(&old, only_grows, &mut choices.into_iter());
        let bytes = vec(prop_oneof![3 => Just(0), 1 => any::<u8>()], old.size).prop_map({
            let old = old.clone();
            move |random| {
                let mut bytes = vec![0; old.size];
                write(&old, &read(&old, &random), &mut bytes);
                bytes
            }
        });
        (Just(old), Just(new), bytes)
    })
}

fn apply(old: &Layout, new: &Layout, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut to = vec![0xee; new.size];
    Conversion::between(old, new).expect("nothing has become something else").apply(bytes, &mut to).ok()?;
    Some(to)
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 1000,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(64),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_conversion_is_that_of_the_values_as_trees((old, new, bytes) in cases(false)) {
        let expected = converted(read(&old, &bytes), &old, &new).map(|value| {
            let mut bytes = vec![0; new.size];
            write(&new, &value, &mut bytes);
            bytes
        });
        prop_assert_eq!(apply(&old, &new, &bytes), expected);
    }

    #[test]
    fn what_both_builds_have_survives_the_way_there_and_back((old, new, bytes) in cases(true)) {
        let there = apply(&old, &new, &bytes).expect("there is room for everything");
        let back = apply(&new, &old, &there).expect("it comes from there");
        // Of what was dropped nothing is left; converted into a layout and back, that is all that changes.
        prop_assert_eq!(apply(&old, &new, &back), Some(there));
        let kept = Conversion::between(&old, &new).unwrap().dropped().is_empty();
        prop_assert!(!kept || back == bytes);
    }

    #[test]
    fn equal_layouts_are_an_identity_and_others_are_none((old, new, bytes) in cases(false)) {
        let conversion = Conversion::between(&old, &old).unwrap();
        prop_assert!(conversion.is_identity() && conversion.dropped().is_empty() && conversion.added().is_empty());
        prop_assert_eq!(apply(&old, &old, &bytes), Some(bytes));
        prop_assert_eq!(Conversion::between(&old, &new).unwrap().is_identity(), old == new);
    }
}
