//! Writes the flow cache without the reader's second look at an entry's control word, so that a stress test can show
//! that it would notice.

use std::{error::Error, fs, path::Path};

const EXPECTED: &str = "#[expect(warnings, reason = \"a copy with a defect, of which little is used\")]\n";
const CHECK: &str = "if entry.control.load() == control {";

/// Writes a module `unchecked` from lb-common's `flow.rs` to `to`.
pub fn write(common: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let path = common.join("flow.rs");
    println!("cargo::rerun-if-changed={}", path.display());
    let source = fs::read_to_string(&path)?;
    let text = source.split("#[cfg(test)]").next().unwrap_or_default();
    if text.matches(CHECK).count() != 1 {
        return Err(format!("{} no longer has {CHECK:?} once", path.display()).into());
    }
    let text = text.replace(CHECK, "{").replace("crate::", "lb_common::");
    Ok(fs::write(to, format!("{EXPECTED}mod unchecked {{\n{text}\n}}\n"))?)
}
