//! Type ids and places of fields in the running kernel, from its own type information.

use super::btf::{Btf, Type, kind};

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// How deep unnamed structs and unions are searched: `ip_summed` lies four deep in Linux 6.18.
const DEPTH: u32 = 8;

/// A field of some bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Bits from the start of the structure.
    pub offset: u32,
    /// Bits; 0 where it is no bit field.
    pub size: u32,
}

/// Types of a kernel.
pub struct KernelTypes<'a>(Btf<'a>);

impl<'a> KernelTypes<'a> {
    /// Reads the form that the kernel shows. `None` where it is something else.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Btf::parse(bytes).map(Self)
    }

    /// Id of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.0.find(kind::FUNC, name).map(|(id, _)| id)
    }

    /// Where a structure has a field, its own or one of an unnamed part.
    pub fn field(&self, structure: &str, field: &str) -> Option<Field> {
        self.field_of(self.0.find(kind::STRUCT, structure)?.1, field, DEPTH)
    }

    fn field_of(&self, structure: Type<'_>, name: &str, depth: u32) -> Option<Field> {
        structure.members().find_map(|member| {
            if member.is_named(name) {
                return Some(Field { offset: member.offset, size: member.bits });
            }
            if depth == 0 || !member.is_named("") {
                return None;
            }
            // What has no members has no such field.
            let inner = self.field_of(self.0.get(member.target)?, name, depth - 1)?;
            Some(Field { offset: member.offset + inner.offset, ..inner })
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::dataplane::btf::tests::blob;

    /// An integer, an unnamed union with the bit field `bits` 5 bits into it, `struct buffer` with `plain` and that
    /// union at bit 64, a prototype, and the function `ask`.
    pub fn types() -> Vec<u8> {
        let types: [&[u32]; 5] = [
            &[0, kind::INT << 24, 4, 32],
            &[0, 1 << 31 | kind::UNION << 24 | 1, 4, 14, 1, 2 << 24 | 5],
            &[1, kind::STRUCT << 24 | 2, 16, 8, 1, 32, 0, 2, 64],
            &[0, kind::FUNC_PROTO << 24 | 1, 1, 0, 1],
            &[19, kind::FUNC << 24, 4],
        ];
        blob(&types, b"\0buffer\0plain\0bits\0ask\0")
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
}
