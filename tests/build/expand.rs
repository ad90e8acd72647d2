//! A module's source with its parts in it, for copies.

use std::{error::Error, fmt::Write as _, fs, path::Path};

/// What makes another text of a file's.
pub type Change<'a> = &'a mut dyn FnMut(&Path, String) -> Result<String, Box<dyn Error>>;

/// A module in `directory`, or in the file of that name: its parts stand where they are named, but for the part `without`, and
/// its tests stay behind. `change` is asked of each file's text.
pub fn expand(directory: &Path, without: &str, change: Change<'_>) -> Result<String, Box<dyn Error>> {
    let beside = directory.with_extension("rs");
    let file = if beside.is_file() { beside } else { directory.join("mod.rs") };
    let text = fs::read_to_string(&file)?;
    let text = change(&file, text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())?;
    let mut expanded = String::new();
    for line in text.lines() {
        let named = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ").and_then(|it| it.strip_suffix(';'));
        match named {
            Some(part) if part == without => {}
            Some(part) => {
                let inner = expand(&directory.join(part), without, change)?;
                writeln!(expanded, "pub mod {part} {{\n{inner}}}")?;
            }
            None => writeln!(expanded, "{line}")?,
        }
    }
    Ok(expanded)
}

/// Puts `new` in the place of what must stand there once.
pub fn replace_once(text: &str, old: &str, new: &str, name: &str) -> Result<String, Box<dyn Error>> {
    match text.matches(old).count() {
        1 => Ok(text.replace(old, new)),
        matches => Err(format!("{matches} matches of {old:?} instead of one for the mutant {name:?}").into()),
    }
}
