//! Type ids and places of fields in the running kernel, from its own type information.
//!
//! Of the format (Documentation/bpf/btf.rst) only what these two questions need. aya reads it too, but shows no fields,
//! and the library that does is under another licence than this agent.

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// How deep unnamed structs and unions are searched: `ip_summed` lies four deep in Linux 6.18.
const DEPTH: u32 = 8;

/// `BTF_KIND_*` (include/uapi/linux/btf.h).
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

/// A field of some bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Bits from the start of the structure.
    pub offset: u32,
    /// Bits; 0 where it is no bit field.
    pub size: u32,
}

/// Types of a kernel.
pub struct KernelTypes<'a> {
    strings: &'a [u8],
    /// By id, from 1; each with what follows it.
    types: Vec<&'a [u8]>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

impl<'a> KernelTypes<'a> {
    /// Reads the form that the kernel shows. `None` where it is something else.
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

    /// Id of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        let at = self.types.iter().position(|this| kind_of(this) == Some(kind::FUNC) && self.is_named(this, name))?;
        u32::try_from(at + 1).ok()
    }

    /// Where a structure has a field, its own or one of an unnamed part.
    pub fn field(&self, structure: &str, field: &str) -> Option<Field> {
        let is_it = |this: &&&[u8]| kind_of(this) == Some(kind::STRUCT) && self.is_named(this, structure);
        self.field_of(self.types.iter().find(is_it)?, field, DEPTH)
    }

    fn field_of(&self, structure: &[u8], name: &str, depth: u32) -> Option<Field> {
        let has_bit_fields = word(structure, 4)? >> 31 != 0;
        structure[TYPE_BYTES..].chunks_exact(MEMBER_BYTES).find_map(|member| {
            let raw = word(member, 8)?;
            let (offset, size) = if has_bit_fields { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            if self.is_named(member, name) {
                return Some(Field { offset, size });
            }
            let part = *self.types.get((word(member, 4)? as usize).checked_sub(1)?)?;
            let is_part = self.is_named(member, "") && matches!(kind_of(part), Some(kind::STRUCT | kind::UNION));
            if !is_part || depth == 0 {
                return None;
            }
            let inner = self.field_of(part, name, depth - 1)?;
            Some(Field { offset: offset + inner.offset, ..inner })
        })
    }

    /// Types and members begin with their name.
    fn is_named(&self, this: &[u8], name: &str) -> bool {
        let at = word(this, 0).and_then(|at| self.strings.get(at as usize..));
        at.is_some_and(|at| at.get(..name.len()) == Some(name.as_bytes()) && at.get(name.len()) == Some(&0))
    }
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

    const NAMES: &[u8] = b"\0buffer\0plain\0bits\0ask\0";

    /// An integer, an unnamed union with the bit field `bits` 5 bits into it, `struct buffer` with `plain` and that
    /// union at bit 64, a prototype, and the function `ask`.
    pub fn types() -> Vec<u8> {
        let word = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_ne_bytes()).collect() };
        let types = word(
            &[
                &[0, kind::INT << 24, 4, 32][..],
                &[0, 1 << 31 | kind::UNION << 24 | 1, 4, 14, 1, 2 << 24 | 5],
                &[1, kind::STRUCT << 24 | 2, 16, 8, 1, 32, 0, 2, 64],
                &[0, kind::FUNC_PROTO << 24 | 1, 1, 0, 1],
                &[19, kind::FUNC << 24, 4],
            ]
            .concat(),
        );
        let mut bytes = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        bytes.extend(word(&[24, 0, types.len() as u32, types.len() as u32, NAMES.len() as u32]));
        bytes.extend(types);
        bytes.extend(NAMES);
        bytes
    }

    #[test]
    fn functions_and_fields_are_found_by_name() {
        let bytes = types();
        let types = KernelTypes::parse(&bytes).unwrap();
        assert_eq!(types.function("ask"), Some(5));
        assert_eq!(types.function("buffer"), None);
        assert_eq!(types.field("buffer", "plain"), Some(Field { offset: 32, size: 0 }));
        assert_eq!(types.field("buffer", "bits"), Some(Field { offset: 69, size: 2 }));
        assert_eq!(types.field("buffer", "bit"), None);
        assert_eq!(types.field("ask", "bits"), None);
    }

    #[test]
    fn what_is_cut_short_or_something_else_is_refused() {
        let bytes = types();
        for length in 0..bytes.len() {
            if let Some(types) = KernelTypes::parse(&bytes[..length]) {
                panic!("{length} of {} bytes are {} types", bytes.len(), types.types.len());
            }
        }
        let mut other = bytes;
        other[0] ^= 1;
        assert!(KernelTypes::parse(&other).is_none());
    }
}
