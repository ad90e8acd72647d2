//! Type information as the kernel, eBPF objects and maps carry it (Documentation/bpf/btf.rst).
//!
//! Of the format only what is asked here. aya reads it too, but shows no fields, and the library that does is under
//! another licence than this agent.

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;

/// `BTF_KIND_*` (include/uapi/linux/btf.h).
pub mod kind {
    /// Integer.
    pub const INT: u32 = 1;
    /// Pointer.
    pub const PTR: u32 = 2;
    /// Array.
    pub const ARRAY: u32 = 3;
    /// Structure.
    pub const STRUCT: u32 = 4;
    /// Union.
    pub const UNION: u32 = 5;
    /// Enumeration of 32 bits and less.
    pub const ENUM: u32 = 6;
    /// Another name.
    pub const TYPEDEF: u32 = 8;
    /// `volatile`.
    pub const VOLATILE: u32 = 9;
    /// `const`.
    pub const CONST: u32 = 10;
    /// `restrict`.
    pub const RESTRICT: u32 = 11;
    /// Function.
    pub const FUNC: u32 = 12;
    /// Prototype.
    pub const FUNC_PROTO: u32 = 13;
    /// Variable.
    pub const VAR: u32 = 14;
    /// Section of variables.
    pub const DATASEC: u32 = 15;
    /// Note on a declaration.
    pub const DECL_TAG: u32 = 17;
    /// Note on a type.
    pub const TYPE_TAG: u32 = 18;
    /// Enumeration of 64 bits.
    pub const ENUM64: u32 = 19;
}

/// Types with their names.
pub struct Btf<'a> {
    strings: &'a [u8],
    /// By id, from 1; each with what follows it.
    types: Vec<&'a [u8]>,
}

/// One type.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    strings: &'a [u8],
    /// As long as its kind says.
    bytes: &'a [u8],
}

/// One field of a structure or union.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    strings: &'a [u8],
    name: usize,
    /// Id of its type.
    pub target: u32,
    /// Bits from the start.
    pub offset: u32,
    /// Bits; 0 where it is no bit field.
    pub bits: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

impl<'a> Btf<'a> {
    /// Reads this machine's form. `None` where it is something else.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| {
            let (start, length) = (header + word(bytes, at)? as usize, word(bytes, at + 4)? as usize);
            bytes.get(start..start.checked_add(length)?)
        };
        let (mut rest, strings) = (section(8)?, section(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (this, after) = rest.split_at_checked(TYPE_BYTES + following(rest)?)?;
            types.push(this);
            rest = after;
        }
        Some(Self { strings, types })
    }

    /// The type with this id.
    pub fn get(&self, id: u32) -> Option<Type<'a>> {
        let bytes = self.types.get((id as usize).checked_sub(1)?)?;
        Some(Type { strings: self.strings, bytes })
    }

    /// The first type of this kind and name, and its id.
    pub fn find(&self, kind: u32, name: &str) -> Option<(u32, Type<'a>)> {
        let is_it = |this: &&[u8]| {
            kind_of(this) == Some(kind) && word(this, 0).is_some_and(|at| is_named(self.strings, at as usize, name))
        };
        let id = u32::try_from(self.types.iter().position(is_it)? + 1).ok()?;
        Some((id, self.get(id)?))
    }
}

impl<'a> Type<'a> {
    fn word(self, at: usize) -> u32 {
        word(self.bytes, at).expect("as long as its kind says")
    }

    /// One of [`kind`].
    pub fn kind(self) -> u32 {
        kind_of(self.bytes).expect("as long as its kind says")
    }

    /// Empty where it has none.
    pub fn name(self) -> &'a str {
        name(self.strings, self.word(0) as usize)
    }

    /// Bytes, of an integer, enumeration, structure or union.
    pub fn size(self) -> u32 {
        self.word(8)
    }

    /// Id of what a typedef, qualifier, pointer or variable is of.
    pub fn target(self) -> u32 {
        self.word(8)
    }

    /// Whether an integer fills its bytes. Old compilers described bit fields by integers that do not.
    pub fn is_whole_integer(self) -> bool {
        self.kind() == kind::INT && self.word(TYPE_BYTES) & 0x00ff_ffff == 8 * self.size()
    }

    /// Id of an array's elements, and how many there are.
    pub fn elements(self) -> Option<(u32, u32)> {
        (self.kind() == kind::ARRAY).then(|| (self.word(TYPE_BYTES), self.word(TYPE_BYTES + 8)))
    }

    /// Fields of a structure or union; none of another.
    pub fn members(self) -> impl Iterator<Item = Member<'a>> {
        let has_members = matches!(self.kind(), kind::STRUCT | kind::UNION);
        let has_bit_fields = self.word(4) >> 31 != 0;
        let bytes = if has_members { &self.bytes[TYPE_BYTES..] } else { &[] };
        bytes.chunks_exact(MEMBER_BYTES).filter_map(move |member| {
            let raw = word(member, 8)?;
            let (offset, bits) = if has_bit_fields { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            Some(Member {
                strings: self.strings,
                name: word(member, 0)? as usize,
                target: word(member, 4)?,
                offset,
                bits,
            })
        })
    }
}

impl<'a> Member<'a> {
    /// Empty where it has none.
    pub fn name(self) -> &'a str {
        name(self.strings, self.name)
    }

    /// Quicker than to compare [`Self::name`].
    pub fn is_named(self, name: &str) -> bool {
        is_named(self.strings, self.name, name)
    }
}

/// What is no text is no name either: compilers write identifiers.
fn name(strings: &[u8], at: usize) -> &str {
    let text = strings.get(at..).and_then(|at| at.split(|byte| *byte == 0).next()).unwrap_or_default();
    str::from_utf8(text).unwrap_or_default()
}

fn is_named(strings: &[u8], at: usize, name: &str) -> bool {
    let at = strings.get(at..).unwrap_or_default();
    at.get(..name.len()) == Some(name.as_bytes()) && at.get(name.len()) == Some(&0)
}

fn kind_of(this: &[u8]) -> Option<u32> {
    Some(word(this, 4)? >> 24 & 0x1f)
}

/// Bytes that follow a type's own.
fn following(this: &[u8]) -> Option<usize> {
    let count = word(this, 4)? as usize & 0xffff;
    Some(match kind_of(this)? {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION => MEMBER_BYTES * count,
        kind::ENUM | kind::FUNC_PROTO => 8 * count,
        kind::DATASEC | kind::ENUM64 => 12 * count,
        _ => 0,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Types as words, ids from 1, with the strings that they name by position.
    pub fn blob(types: &[&[u32]], strings: &[u8]) -> Vec<u8> {
        let bytes = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_ne_bytes()).collect() };
        let types = bytes(&types.concat());
        let mut blob = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        blob.extend(bytes(&[24, 0, types.len() as u32, types.len() as u32, strings.len() as u32]));
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    fn integer_and_pair() -> Vec<u8> {
        let integer = [1, kind::INT << 24, 4, 32];
        let pair = [5, kind::STRUCT << 24 | 2, 8, 10, 1, 0, 12, 1, 32];
        blob(&[&integer, &pair], b"\0u32\0pair\0a\0b\0")
    }

    #[test]
    fn types_are_found_by_kind_and_name_and_tell_their_members() {
        let bytes = integer_and_pair();
        let types = Btf::parse(&bytes).unwrap();
        let (id, pair) = types.find(kind::STRUCT, "pair").unwrap();
        assert_eq!((id, pair.name(), pair.size()), (2, "pair", 8));
        let members: Vec<_> = pair.members().map(|m| (m.name(), m.target, m.offset, m.bits)).collect();
        assert_eq!(members, [("a", 1, 0, 0), ("b", 1, 32, 0)]);
        assert!(types.get(1).unwrap().is_whole_integer());
        for (kind, name) in [(kind::STRUCT, "pai"), (kind::STRUCT, "pairs"), (kind::INT, "pair")] {
            assert!(types.find(kind, name).is_none(), "{name}");
        }
        assert!(types.get(0).is_none() && types.get(3).is_none());
    }

    #[test]
    fn what_is_cut_short_or_something_else_is_refused() {
        let bytes = integer_and_pair();
        for length in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..length]).is_none(), "{length} of {} bytes", bytes.len());
        }
        let mut other = bytes;
        other[0] ^= 1;
        assert!(Btf::parse(&other).is_none());
    }
}
