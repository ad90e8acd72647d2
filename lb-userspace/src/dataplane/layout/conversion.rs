//! How bytes of one layout become bytes of another.

use std::mem;

use thiserror::Error;

use super::{Field, Kind, Layout, join};

/// Stands for a field's name where a value has no fields.
pub const WHOLE: &str = "all of it";

fn or_whole(path: String) -> String {
    if path.is_empty() { WHOLE.to_owned() } else { path }
}

/// Two layouts of which one does not become the other.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{field}` was {old} and is {new}: what it held cannot be taken over")]
pub struct Incompatible {
    /// Name, or [`WHOLE`].
    pub field: String,
    /// What the one says of it.
    pub old: String,
    /// What the other says.
    pub new: String,
}

/// A value that the other layout has no room for.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{field}` is {value}, which the other build has no room for")]
pub struct Overflow {
    /// Name, with the positions in arrays; or [`WHOLE`].
    pub field: String,
    /// The value.
    pub value: u128,
}

/// Takes values of one layout over into another, field by field, by name. Made once for a map, so that its entries are
/// mere copies of a few ranges of bytes.
#[derive(Clone, Debug)]
pub struct Conversion {
    old: Layout,
    new_size: usize,
    is_identity: bool,
    steps: Vec<Step>,
    dropped: Vec<String>,
    added: Vec<String>,
}

/// Each of one byte at least, so that there are no more than the old value has bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Copy {
        from: usize,
        to: usize,
        bytes: usize,
    },
    /// Of the old value; the new one has no place for another value than zero.
    MustBeZero {
        from: usize,
        bytes: usize,
    },
}

impl Conversion {
    /// Compares two layouts. Fields of the same name hold the same; a field that has another name is another field.
    ///
    /// Integers may become wider or narrower and arrays longer or shorter: [`Self::apply`] then refuses values that the
    /// new one has no room for. A struct that is nothing but one field is as good as what this field holds, so that a
    /// number may get a type of its own.
    pub fn between(old: &Layout, new: &Layout) -> Result<Self, Incompatible> {
        let mut builder = Builder::default();
        builder.walk((old, 0), (new, 0), "")?;
        let Builder { steps, dropped, added } = builder;
        Ok(Self { old: old.clone(), new_size: new.size, is_identity: old == new, steps, dropped, added })
    }

    /// Whether nothing changes: entries may stay where they are.
    pub const fn is_identity(&self) -> bool {
        self.is_identity
    }

    /// Old fields that the new layout does not have, each once: `entries[].stamp`. Whatever they hold is lost.
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }

    /// New fields that the old layout does not have. They become zero.
    pub fn added(&self) -> &[String] {
        &self.added
    }

    /// Writes the whole of `new`, padding as zero. After an error `new` is of no use.
    ///
    /// # Panics
    /// Where a length is not its layout's.
    pub fn apply(&self, old: &[u8], new: &mut [u8]) -> Result<(), Overflow> {
        assert_eq!((old.len(), new.len()), (self.old.size, self.new_size), "bytes of the old and of the new value");
        if self.is_identity {
            new.copy_from_slice(old);
            return Ok(());
        }
        new.fill(0);
        for step in &self.steps {
            match *step {
                Step::Copy { from, to, bytes } => new[to..to + bytes].copy_from_slice(&old[from..from + bytes]),
                Step::MustBeZero { from, bytes } => {
                    if let Some(at) = old[from..from + bytes].iter().position(|byte| *byte != 0) {
                        return Err(self.overflow(old, from + at));
                    }
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn overflow(&self, old: &[u8], byte: usize) -> Overflow {
        let (field, start, layout) = self.old.field_at(byte);
        let value = match layout.kind {
            Kind::Integer => integer(&old[start..start + layout.size]),
            // Padding, or an integer of more than 16 bytes.
            _ => None,
        };
        Overflow { field: or_whole(field), value: value.unwrap_or_else(|| old[byte].into()) }
    }
}

/// `None` where it is longer than any that is.
fn integer(bytes: &[u8]) -> Option<u128> {
    let mut value = [0; size_of::<u128>()];
    let low = low(value.len(), bytes.len());
    value.get_mut(low..low + bytes.len())?.copy_from_slice(bytes);
    Some(u128::from_ne_bytes(value))
}

const LITTLE_ENDIAN: bool = cfg!(target_endian = "little");

/// Where the lowest `bytes` of an integer of `size` lie.
const fn low(size: usize, bytes: usize) -> usize {
    if LITTLE_ENDIAN { 0 } else { size.saturating_sub(bytes) }
}

#[derive(Default)]
struct Builder {
    steps: Vec<Step>,
    dropped: Vec<String>,
    added: Vec<String>,
}

impl Builder {
    /// Layouts with where they begin, and the name of what lies there.
    fn walk(
        &mut self,
        (old, from): (&Layout, usize),
        (new, to): (&Layout, usize),
        path: &str,
    ) -> Result<(), Incompatible> {
        if old == new {
            self.copy(from, to, old.size);
            return Ok(());
        }
        match (&old.kind, &new.kind) {
            (Kind::Integer, Kind::Integer) => {
                let bytes = old.size.min(new.size);
                self.copy(from + low(old.size, bytes), to + low(new.size, bytes), bytes);
                self.must_be_zero(if LITTLE_ENDIAN { from + bytes } else { from }, old.size - bytes);
                Ok(())
            }
            (Kind::Array { element: old, count }, Kind::Array { element: new, count: new_count }) => {
                let common = *count.min(new_count);
                self.repeat((old, from), (new, to), common, path)?;
                self.must_be_zero(from + common * old.size, (count - common) * old.size);
                Ok(())
            }
            (Kind::Struct(old), Kind::Struct(new)) => self.fields((old, from), (new, to), path),
            _ => match (old.only_field(), new.only_field()) {
                (Some(field), _) => self.walk((&field.layout, from), (new, to), path),
                (_, Some(field)) => self.walk((old, from), (&field.layout, to), path),
                _ => Err(Incompatible { field: or_whole(path.to_owned()), old: old.to_string(), new: new.to_string() }),
            },
        }
    }

    fn fields(
        &mut self,
        (old, from): (&[Field], usize),
        (new, to): (&[Field], usize),
        path: &str,
    ) -> Result<(), Incompatible> {
        for field in new {
            let path = join(path, &field.name);
            match old.iter().find(|old| old.name == field.name) {
                Some(old) => self.walk((&old.layout, from + old.offset), (&field.layout, to + field.offset), &path)?,
                None => self.added.push(path),
            }
        }
        let is_new = |name: &str| new.iter().any(|field| field.name == name);
        self.dropped.extend(old.iter().filter(|old| !is_new(&old.name)).map(|old| join(path, &old.name)));
        Ok(())
    }

    /// Elements side by side: what is found of the first goes for each.
    fn repeat(
        &mut self,
        (old, from): (&Layout, usize),
        (new, to): (&Layout, usize),
        count: usize,
        path: &str,
    ) -> Result<(), Incompatible> {
        if old == new {
            self.copy(from, to, count * old.size);
            return Ok(());
        }
        let before = mem::take(&mut self.steps);
        self.walk((old, 0), (new, 0), &format!("{path}[]"))?;
        let element = mem::replace(&mut self.steps, before);
        for index in if element.is_empty() { 0..0 } else { 0..count } {
            let (from, to) = (from + index * old.size, to + index * new.size);
            for step in &element {
                match *step {
                    Step::Copy { from: start, to: end, bytes } => self.copy(from + start, to + end, bytes),
                    Step::MustBeZero { from: start, bytes } => self.must_be_zero(from + start, bytes),
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, start: usize, end: usize, length: usize) {
        match self.steps.last_mut() {
            Some(Step::Copy { from, to, bytes }) if (*from + *bytes, *to + *bytes) == (start, end) => *bytes += length,
            _ if length > 0 => self.steps.push(Step::Copy { from: start, to: end, bytes: length }),
            _ => {}
        }
    }

    fn must_be_zero(&mut self, start: usize, length: usize) {
        match self.steps.last_mut() {
            Some(Step::MustBeZero { from, bytes }) if *from + *bytes == start => *bytes += length,
            _ if length > 0 => self.steps.push(Step::MustBeZero { from: start, bytes: length }),
            _ => {}
        }
    }
}
