//! Which fields lie where in a map's keys and values, by the type information that the map carries itself, and how
//! entries of another build's map become ones of this build's.
//!
//! A map that another build has made is not read by this build's structs. Its layout is read from the kernel
//! ([`MapLayout::of`]), and a [`Conversion`] takes entries over field by field, by name.

mod conversion;
mod map;
#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

pub use self::{
    conversion::{Conversion, Incompatible, Overflow, WHOLE},
    map::{MapLayout, MapLayoutError},
};
use super::btf::{Btf, Member, Type, kind};

/// How deep types may lie in each other, typedefs included. Ours lie five deep.
const DEPTH: u32 = 32;
/// Fields of one layout at most, those of elements counted once. Ours have 20.
const FIELDS: usize = 4096;

/// Where what lies in a type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes, padding included.
    pub size: usize,
    /// What it is made of.
    pub kind: Kind,
}

/// What a type is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One unsigned integer in this machine's byte order. What kernel and user space exchange has no signed ones.
    Integer,
    /// So many of the same, side by side.
    Array {
        /// One of them.
        element: Box<Layout>,
        /// How many.
        count: usize,
    },
    /// Named fields, in the order of the declaration.
    Struct(Vec<Field>),
}

/// A field of a struct.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// Name.
    pub name: String,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// What lies there.
    pub layout: Layout,
}

/// Why a type has no layout here.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LayoutError {
    /// It is damaged.
    #[error("type {id} is named in the type information, but not there, or not as its user says")]
    Broken {
        /// Of the type.
        id: u32,
    },
    /// It holds something that no map of Sluice does.
    #[error("`{name}` is or holds {what}, which no map of sluice does")]
    Unsupported {
        /// Of the type, or of the field.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// It would take more time or memory than any type of ours.
    #[error("`{name}` lies deeper than {DEPTH} types, or has more than {FIELDS} fields")]
    Excessive {
        /// Of the type.
        name: String,
    },
}

impl Layout {
    /// Of the type with this id.
    pub fn of_type(types: &Btf<'_>, id: u32) -> Result<Self, LayoutError> {
        Reader { types, fields: 0 }.layout(id, 0)
    }

    /// Of an integer.
    pub const fn integer(size: usize) -> Self {
        Self { size, kind: Kind::Integer }
    }

    /// The only field of a struct that is nothing but this field: what people write to give an integer or an array a
    /// type of its own.
    fn only_field(&self) -> Option<&Field> {
        match &self.kind {
            Kind::Struct(fields) => match &fields[..] {
                [field] if field.layout.size == self.size => Some(field),
                _ => None,
            },
            _ => None,
        }
    }

    /// Name and place of the innermost field at a byte, as programmers write it: `entries[2].value`.
    fn field_at(&self, byte: usize) -> (String, usize, &Self) {
        let (mut path, mut start, mut layout) = (String::new(), 0, self);
        loop {
            let within = byte - start;
            match &layout.kind {
                Kind::Array { element, .. } => {
                    let index = within / element.size;
                    path += &format!("[{index}]");
                    start += index * element.size;
                    layout = element;
                }
                Kind::Struct(fields) => {
                    let covers = |f: &&Field| (f.offset..f.offset + f.layout.size).contains(&within);
                    let Some(field) = fields.iter().find(covers) else { break };
                    path = join(&path, &field.name);
                    start += field.offset;
                    layout = &field.layout;
                }
                Kind::Integer => break,
            }
        }
        (path, start, layout)
    }
}

/// What people read about a layout as a whole.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Integer => write!(f, "an integer of {} bytes", self.size),
            Kind::Array { element, count } => write!(f, "{count} times {element}"),
            Kind::Struct(fields) => {
                let names: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
                write!(f, "a struct of {}", names.join(", "))
            }
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

struct Reader<'a> {
    types: &'a Btf<'a>,
    /// Read so far.
    fields: usize,
}

impl Reader<'_> {
    fn layout(&mut self, id: u32, depth: u32) -> Result<Layout, LayoutError> {
        let this = self.types.get(id).ok_or(LayoutError::Broken { id })?;
        if depth == DEPTH {
            return Err(LayoutError::Excessive { name: this.name().to_owned() });
        }
        let unsupported = |what| LayoutError::Unsupported { name: this.name().to_owned(), what };
        let size = this.size() as usize;
        match this.kind() {
            kind::INT if this.is_whole_integer() => Ok(Layout::integer(size)),
            kind::INT => Err(unsupported("a part of an integer")),
            kind::ENUM | kind::ENUM64 => Ok(Layout::integer(size)),
            kind::TYPEDEF | kind::CONST | kind::VOLATILE | kind::RESTRICT | kind::TYPE_TAG => {
                self.layout(this.target(), depth + 1)
            }
            kind::ARRAY => {
                let (element, count) = this.elements().ok_or(LayoutError::Broken { id })?;
                let (element, count) = (Box::new(self.layout(element, depth + 1)?), count as usize);
                let size = element.size.checked_mul(count).ok_or(LayoutError::Broken { id })?;
                Ok(Layout { size, kind: Kind::Array { element, count } })
            }
            kind::STRUCT => self.structure(id, this, depth),
            kind::UNION => Err(unsupported("a union")),
            kind::PTR => Err(unsupported("a pointer")),
            kind::DATASEC => Err(unsupported("variables of a program")),
            _ => Err(unsupported("something else than integers, arrays and structs")),
        }
    }

    fn structure(&mut self, id: u32, this: Type<'_>, depth: u32) -> Result<Layout, LayoutError> {
        let fields: Vec<_> = this.members().map(|member| self.field(this, member, depth)).collect::<Result<_, _>>()?;
        let layout = Layout { size: this.size() as usize, kind: Kind::Struct(fields) };
        let Kind::Struct(fields) = &layout.kind else { unreachable!("just made") };
        let fits = |f: &Field| f.offset.checked_add(f.layout.size).is_some_and(|end| end <= layout.size);
        if !fields.iter().all(fits) {
            return Err(LayoutError::Broken { id });
        }
        // A tuple struct of one has no name for what it holds: it is that.
        match layout.only_field() {
            Some(field) if field.name == "__0" => Ok(field.layout.clone()),
            _ => Ok(layout),
        }
    }

    fn field(&mut self, structure: Type<'_>, member: Member<'_>, depth: u32) -> Result<Field, LayoutError> {
        self.fields += 1;
        if self.fields > FIELDS {
            return Err(LayoutError::Excessive { name: structure.name().to_owned() });
        }
        let unsupported = |name: &str, what| Err(LayoutError::Unsupported { name: name.to_owned(), what });
        match member.name() {
            "" => unsupported(structure.name(), "a part without a name"),
            name if member.bits != 0 || !member.offset.is_multiple_of(8) => unsupported(name, "a bit field"),
            name => {
                let layout = self.layout(member.target, depth + 1)?;
                Ok(Field { name: name.to_owned(), offset: member.offset as usize / 8, layout })
            }
        }
    }
}
