//! Layouts read from types made by hand, and conversions between layouts made by hand and at random. Layouts of the real
//! maps are in the package `lb-tests`.

mod properties;

use super::{Conversion, Field, Kind, Layout, LayoutError, WHOLE};
use crate::dataplane::btf::{Btf, kind, tests::blob};

/// Fields side by side, without padding.
fn structure(fields: &[(&str, &Layout)]) -> Layout {
    let mut size = 0;
    let mut place = |(name, layout): &(&str, &Layout)| {
        let offset = size;
        size += layout.size;
        Field { name: (*name).to_owned(), offset, layout: (*layout).clone() }
    };
    let fields = fields.iter().map(&mut place).collect();
    Layout { size, kind: Kind::Struct(fields) }
}

fn array(element: &Layout, count: usize) -> Layout {
    Layout { size: element.size * count, kind: Kind::Array { element: Box::new(element.clone()), count } }
}

const U8: Layout = Layout::integer(1);
const U16: Layout = Layout::integer(2);
const U32: Layout = Layout::integer(4);
const U64: Layout = Layout::integer(8);

fn convert(old: &Layout, new: &Layout, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let conversion = Conversion::between(old, new).map_err(|error| error.to_string())?;
    // Nothing of what was there before may shine through.
    let mut converted = vec![0xee; new.size];
    conversion.apply(bytes, &mut converted).map_err(|error| error.to_string())?;
    Ok(converted)
}

#[test]
fn fields_are_taken_over_by_name_wherever_they_lie() {
    let old = structure(&[("id", &U32), ("port", &U16), ("gone", &U16)]);
    let new = structure(&[("later", &U64), ("port", &U16), ("pad", &U16), ("id", &U32)]);
    let conversion = Conversion::between(&old, &new).unwrap();
    assert!(!conversion.is_identity());
    assert_eq!(conversion.dropped(), ["gone"]);
    assert_eq!(conversion.added(), ["later", "pad"]);
    assert_eq!(
        convert(&old, &new, &[1, 2, 3, 4, 5, 6, 7, 8]),
        Ok(vec![0, 0, 0, 0, 0, 0, 0, 0, 5, 6, 0, 0, 1, 2, 3, 4])
    );
}

#[test]
fn what_lies_in_arrays_is_named_once() {
    let element = structure(&[("a", &U8), ("b", &U8)]);
    let other = structure(&[("c", &U8), ("a", &U8)]);
    let (old, new) = (structure(&[("entries", &array(&element, 2))]), structure(&[("entries", &array(&other, 3))]));
    let conversion = Conversion::between(&old, &new).unwrap();
    assert_eq!(conversion.dropped(), ["entries[].b"]);
    assert_eq!(conversion.added(), ["entries[].c"]);
    assert_eq!(convert(&old, &new, &[1, 2, 3, 4]), Ok(vec![0, 1, 0, 3, 0, 0]));
}

#[test]
fn integers_become_wider_and_narrower_and_lose_no_bits() {
    let value = |value: u32| value.to_ne_bytes();
    assert_eq!(convert(&U32, &U64, &value(0x8000_0001)), Ok(0x8000_0001_u64.to_ne_bytes().to_vec()));
    assert_eq!(convert(&U32, &U16, &value(0xffff)), Ok(0xffff_u16.to_ne_bytes().to_vec()));
    let refusal = convert(&U32, &U16, &value(0x1_0000)).unwrap_err();
    assert_eq!(refusal, format!("`{WHOLE}` is 65536, which the other build has no room for"));
    let named = |layout: &Layout| structure(&[("first", &U16), ("count", layout)]);
    let refusal = convert(&named(&U32), &named(&U8), &[&[0, 0][..], &value(300)].concat()).unwrap_err();
    assert_eq!(refusal, "`count` is 300, which the other build has no room for");
}

#[test]
fn arrays_become_longer_and_shorter_and_lose_no_element() {
    let owners = |count| structure(&[("count", &U16), ("owners", &array(&U16, count))]);
    let (short, long) = (owners(2), owners(3));
    assert_eq!(convert(&short, &long, &[1, 0, 2, 0, 3, 0]), Ok(vec![1, 0, 2, 0, 3, 0, 0, 0]));
    assert_eq!(convert(&long, &short, &[1, 0, 2, 0, 3, 0, 0, 0]), Ok(vec![1, 0, 2, 0, 3, 0]));
    let refusal = convert(&long, &short, &[1, 0, 2, 0, 3, 0, 4, 1]).unwrap_err();
    assert_eq!(
        refusal,
        format!("`owners[2]` is {}, which the other build has no room for", u16::from_ne_bytes([4, 1]))
    );
}

#[test]
fn of_arrays_that_go_side_by_side_each_is_looked_at_and_nothing_between() {
    let none = array(&U8, 0);
    let old = structure(&[("a", &array(&U8, 1)), ("kept", &U8), ("b", &array(&U8, 1))]);
    let new = structure(&[("a", &none), ("b", &none), ("kept", &U8)]);
    assert_eq!(convert(&old, &new, &[0, 7, 0]), Ok(vec![7]));
    for (bytes, name) in [([1, 0, 0], "a[0]"), ([0, 0, 1], "b[0]")] {
        let refusal = convert(&old, &new, &bytes).unwrap_err();
        assert_eq!(refusal, format!("`{name}` is 1, which the other build has no room for"));
    }
}

#[test]
fn a_value_without_room_is_named_down_to_its_place() {
    let bucket = |value: &Layout, count| {
        let entry = structure(&[("key", &U8), ("value", value)]);
        structure(&[("sequence", &U8), ("entries", &array(&entry, count))])
    };
    let refusal = convert(&bucket(&U16, 2), &bucket(&U8, 2), &[9, 1, 7, 0, 2, 0, 1]).unwrap_err();
    assert!(refusal.starts_with("`entries[1].value` is "), "{refusal}");
    let refusal = convert(&bucket(&U16, 2), &bucket(&U16, 1), &[9, 1, 7, 0, 2, 0, 0]).unwrap_err();
    assert_eq!(refusal, "`entries[1].key` is 2, which the other build has no room for");
}

#[test]
fn a_number_may_get_a_type_of_its_own() {
    let word = structure(&[("value", &structure(&[("value", &U64)]))]);
    let bytes = 0x0102_0304_0506_0708_u64.to_ne_bytes();
    for (old, new) in [(&U64, &word), (&word, &U64)] {
        let (old, new) = (structure(&[("run", old)]), structure(&[("run", new)]));
        assert_eq!(convert(&old, &new, &bytes), Ok(bytes.to_vec()));
        let conversion = Conversion::between(&old, &new).unwrap();
        assert_eq!((conversion.dropped(), conversion.added()), (&[][..], &[][..]));
    }
    // Not where it would lose its alignment's padding: that struct is more than its field.
    let aligned = Layout { size: 16, ..word };
    assert!(Conversion::between(&U64, &aligned).is_err());
}

#[test]
fn a_field_that_has_become_something_else_is_refused() {
    let (old, new) = (structure(&[("mac", &array(&U8, 6))]), structure(&[("mac", &U64)]));
    let refusal = Conversion::between(&old, &new).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "`mac` was 6 times an integer of 1 bytes and is an integer of 8 bytes: what it held cannot be taken over"
    );
    let pair = structure(&[("low", &U32), ("high", &U32)]);
    assert_eq!(Conversion::between(&pair, &U64).unwrap_err().field, WHOLE);
}

#[test]
#[should_panic(expected = "bytes of the old and of the new value")]
fn bytes_of_another_length_are_a_defect_of_the_caller() {
    let _ = Conversion::between(&U32, &U64).unwrap().apply(&[0; 8], &mut [0; 8]);
}

const NAMES: &[u8] = b"\0__0\0pair\0address\0port\0";
const TUPLE: u32 = 1;
const PAIR: u32 = 5;
const ADDRESS: u32 = 10;
const PORT: u32 = 18;
const BYTE: &[u32] = &[0, kind::INT << 24, 1, 8];

fn read(types: &[&[u32]], id: u32) -> Result<Layout, LayoutError> {
    let bytes = blob(types, NAMES);
    Layout::of_type(&Btf::parse(&bytes).expect("well formed"), id)
}

/// A structure with the number of its fields.
const fn header(count: u32) -> u32 {
    kind::STRUCT << 24 | count
}

#[test]
fn typedefs_qualifiers_and_tuples_of_one_are_what_they_are_of() {
    let types: [&[u32]; 7] = [
        BYTE,
        &[0, kind::ARRAY << 24, 0, 1, 1, 16],
        &[ADDRESS, header(1), 16, TUPLE, 2, 0],
        &[ADDRESS, kind::TYPEDEF << 24, 3],
        &[0, kind::CONST << 24, 4],
        &[0, kind::ENUM << 24, 2],
        &[PAIR, header(2), 20, ADDRESS, 5, 0, PORT, 6, 8 * 16],
    ];
    let layout = read(&types, 7).unwrap();
    let port = Field { name: "port".into(), offset: 16, layout: U16 };
    let address = Field { name: "address".into(), offset: 0, layout: array(&U8, 16) };
    assert_eq!(layout, Layout { size: 20, kind: Kind::Struct(vec![address, port]) });
}

#[test]
fn a_tuple_of_one_with_padding_stays_a_struct() {
    let layout = read(&[BYTE, &[PAIR, header(1), 64, TUPLE, 1, 0]], 2).unwrap();
    assert!(matches!(&layout.kind, Kind::Struct(fields) if fields[0].name == "__0"), "{layout:?}");
}

#[test]
fn what_no_map_holds_is_refused_by_name() {
    let struct_of = |target, offset| [PAIR, header(1), 8, PORT, target, offset];
    for (types, text) in [
        (vec![&[PAIR, kind::UNION << 24, 4][..], &struct_of(1, 0)], "`pair` is or holds a union"),
        (vec![&[0, kind::PTR << 24, 0][..], &struct_of(1, 0)], "`` is or holds a pointer"),
        (vec![&[PORT, kind::DATASEC << 24, 4][..], &struct_of(1, 0)], "`port` is or holds variables of a program"),
        (vec![&[PORT, kind::FUNC << 24, 4][..], &struct_of(1, 0)], "something else"),
        (vec![&[PORT, kind::INT << 24, 4, 5][..], &struct_of(1, 0)], "`port` is or holds a part of an integer"),
        (vec![BYTE, &struct_of(1, 3)], "`port` is or holds a bit field"),
        (vec![BYTE, &[PAIR, 1 << 31 | header(1), 8, PORT, 1, 4 << 24]], "`port` is or holds a bit field"),
        (vec![BYTE, &[PAIR, header(1), 8, 0, 1, 0]], "`pair` is or holds a part without a name"),
    ] {
        let refusal = read(&types, 2).unwrap_err().to_string();
        assert!(refusal.contains(text), "{refusal}");
    }
}

#[test]
fn damaged_types_are_refused() {
    assert_eq!(read(&[BYTE], 2), Err(LayoutError::Broken { id: 2 }));
    assert_eq!(read(&[BYTE], 0), Err(LayoutError::Broken { id: 0 }));
    let beyond = [PAIR, header(1), 8, PORT, 1, 8 * 8];
    assert_eq!(read(&[BYTE, &beyond], 2), Err(LayoutError::Broken { id: 2 }));
    // A typedef of itself.
    let excessive = LayoutError::Excessive { name: "port".into() };
    assert_eq!(read(&[&[PORT, kind::TYPEDEF << 24, 1]], 1), Err(excessive));
    // Each structure has the one before twice: 2^20 fields.
    let twice: Vec<_> = (1..=20).map(|of| [PAIR, header(2), 8, ADDRESS, of, 0, PORT, of, 0]).collect();
    let types: Vec<&[u32]> = [BYTE].into_iter().chain(twice.iter().map(|words| &words[..])).collect();
    assert_eq!(read(&types, 21), Err(LayoutError::Excessive { name: "pair".into() }));
}
