//! What RFCs demand of an announcer, from the markers beside the code that does it: `docs/compliance.md`.
//!
//! - `//= rfc5880#6.8.6:version MUST: words` stands where a rule is kept;
//! - `//= test rfc5880#6.8.6:version` above the test that shows it;
//! - `//= not rfc5880#6.7:authentication SHOULD: why` where a rule is not kept, in the protocol's `mod.rs` (of ARP and Neighbor
//!   Discovery, in `l2.rs`).
//!
//! `SLUICE_UPDATE=1 cargo test -p lb-userspace --test compliance` writes the page anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

const SOURCES: &str = "lb-userspace/src/announce";
/// What answers for VIPs in the data plane.
const ANSWERS: &str = "lb-common/src";
/// Tests with real peers, which show rules too.
const TESTS: &str = "tests/tests";
const PAGE: &str = "docs/compliance.md";
const HEAD: &str = "\
# Compliance

What the RFCs of announcing demand of a speaker that only announces, as it is kept: each rule in our words, where the code keeps it, and
how many tests show it; then what is not kept, and why. Made from markers in the code by `lb-userspace/tests/compliance.rs`, which also
sees to it that each MUST that is kept has a test. RFC 826 has no numbered sections and none of these words: its packet reception is
what MUST stands for.
";

/// A rule's name: RFC, section, and a word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    rfc: u32,
    section: Vec<u32>,
    word: String,
}

#[derive(Debug)]
struct Rule {
    level: String,
    text: String,
    /// File below [`SOURCES`], or else below the workspace.
    file: String,
}

#[derive(Debug, Default)]
struct Markers {
    kept: BTreeMap<Name, Vec<Rule>>,
    tests: BTreeMap<Name, usize>,
    not: BTreeMap<Name, Rule>,
    wrong: Vec<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn name(text: &str) -> Option<Name> {
    let (rfc, rest) = text.strip_prefix("rfc")?.split_once('#')?;
    let (section, word) = rest.split_once(':')?;
    let section = section.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?;
    let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    Some(Name { rfc: rfc.parse().ok()?, section, word: is_word.then(|| word.to_owned())? })
}

/// Behind the name: level and words.
fn rule(rest: &str, file: &str) -> Option<Rule> {
    let (level, text) = rest.split_once(": ")?;
    let is_level = ["MUST", "SHOULD", "MAY"].contains(&level);
    is_level.then(|| Rule { level: level.to_owned(), text: text.trim().to_owned(), file: file.to_owned() })
}

fn markers() -> Markers {
    let (base, mut files) = (root().join(SOURCES), Vec::new());
    sources(&base, &mut files);
    sources(&root().join(ANSWERS), &mut files);
    sources(&root().join(TESTS), &mut files);
    files.sort();
    let mut markers = Markers::default();
    for path in files {
        let file =
            path.strip_prefix(&base).or_else(|_| path.strip_prefix(root())).unwrap_or(&path).display().to_string();
        let text = fs::read_to_string(&path).expect("a source");
        for (number, line) in (1..).zip(text.lines()) {
            let Some(marker) = line.trim().strip_prefix("//= ") else { continue };
            if markers.take(marker, &file).is_none() {
                markers.wrong.push(format!("{file}:{number}: {marker}"));
            }
        }
    }
    markers
}

impl Markers {
    fn take(&mut self, marker: &str, file: &str) -> Option<()> {
        if let Some(tested) = marker.strip_prefix("test ") {
            *self.tests.entry(name(tested.trim())?).or_default() += 1;
            return Some(());
        }
        let (not, marker) = marker.strip_prefix("not ").map_or((false, marker), |marker| (true, marker));
        let (named, rest) = marker.split_once(' ')?;
        let (name, rule) = (name(named)?, rule(rest, file)?);
        if not {
            return self.not.insert(name, rule).is_none().then_some(());
        }
        self.kept.entry(name).or_default().push(rule);
        Some(())
    }

    fn page(&self) -> String {
        let mut page = HEAD.to_owned();
        let rfcs: BTreeSet<u32> = self.kept.keys().chain(self.not.keys()).map(|name| name.rfc).collect();
        for rfc in rfcs {
            write!(page, "\n## RFC {rfc}\n").expect("a String takes everything");
            let kept: Vec<_> = self.kept.iter().filter(|(name, _)| name.rfc == rfc).collect();
            if !kept.is_empty() {
                page += "\n| section | level | rule | kept in | tests |\n|---|---|---|---|---|\n";
            }
            for (name, rules) in kept {
                let files: BTreeSet<&str> = rules.iter().map(|rule| rule.file.as_str()).collect();
                let files: Vec<String> = files.iter().map(|file| format!("`{file}`")).collect();
                let Rule { level, text, .. } = &rules[0];
                let tests = self.tests.get(name).copied().unwrap_or_default();
                writeln!(page, "| {} | {level} | {text} | {} | {tests} |", name.section(), files.join(", "))
                    .expect("a String takes everything");
            }
            let not: Vec<_> = self.not.iter().filter(|(name, _)| name.rfc == rfc).collect();
            if !not.is_empty() {
                page += "\nNot kept, or not as the RFC says:\n\n| section | level | what, and why |\n|---|---|---|\n";
            }
            for (name, Rule { level, text, .. }) in not {
                writeln!(page, "| {} | {level} | {text} |", name.section()).expect("a String takes everything");
            }
        }
        page
    }
}

impl Name {
    fn section(&self) -> String {
        self.section.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
    }
}

#[test]
fn each_rule_that_is_kept_has_a_test_and_each_test_a_rule() {
    let markers = markers();
    assert!(markers.wrong.is_empty(), "markers that cannot be read, or twice:\n  {}", markers.wrong.join("\n  "));
    assert!(markers.kept.len() > 100, "markers are found");
    for (name, rules) in &markers.kept {
        let is_tested = markers.tests.contains_key(name);
        assert!(is_tested || rules.iter().all(|rule| rule.level != "MUST"), "{name:?} has no test: {rules:?}");
        assert!(!markers.not.contains_key(name), "{name:?} is kept and not kept");
    }
    for name in markers.tests.keys() {
        assert!(markers.kept.contains_key(name), "a test of {name:?}, which nothing keeps");
    }
}

#[test]
fn the_page_is_what_the_markers_give() {
    let (file, wanted) = (root().join(PAGE), markers().page());
    if std::env::var_os("SLUICE_UPDATE").is_some() {
        fs::write(&file, wanted).expect("the page can be written");
        return;
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(found == wanted, "{PAGE} is another: SLUICE_UPDATE=1 cargo test -p lb-userspace --test compliance");
}
