//! Decoders of foreign bytes keep their promises for every input of their corpora, and for mutations of them: what
//! fuzzers do for hours, in seconds and without any compiler but the usual one.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    thread,
};

use lb_tests::{
    fuzz::{TARGETS, Target, corpus, mutation},
    packets::{hex, random::Random},
};

const SEED: u64 = 0x5109;
/// For each decoder.
const MUTATIONS: u64 = 50_000;
/// Of all corpora: they are read by people, too.
const CORPORA_BYTES_MAX: u64 = 256 * 1024;
/// Of each corpus.
const INPUTS: std::ops::RangeInclusive<usize> = 10..=100;

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

fn corpus_of(target: &Target) -> Vec<Vec<u8>> {
    let path = directory().join("corpus").join(target.name).with_extension("hex");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    corpus::read(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn check(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.check)(input))).is_err() {
        panic!("{}, {what}: {}", target.name, hex(input));
    }
}

#[test]
fn decoders_keep_their_promises_for_their_corpora_and_mutations_of_them() {
    thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(move || {
                let inputs = corpus_of(target);
                assert!(INPUTS.contains(&inputs.len()), "{}: {} inputs", target.name, inputs.len());
                for (number, input) in inputs.iter().enumerate() {
                    check(target, input, &format!("input {number}"));
                }
                let mut random = Random::new(SEED);
                for number in 0..MUTATIONS {
                    check(target, &mutation(&inputs, &mut random), &format!("seed {SEED:#x}, mutation {number}"));
                }
            });
        }
    });
}

/// Names of files in a folder, without their last part.
fn stems(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory().join(folder)).expect("the folder is there");
    let stem = |entry: fs::DirEntry| Some(entry.path().file_stem()?.to_str()?.to_owned());
    entries.filter_map(|entry| stem(entry.expect("it can be read"))).collect()
}

#[test]
fn each_decoder_has_a_corpus_and_a_fuzz_target_and_nothing_else_has() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len());
    assert_eq!(stems("corpus"), names);
    assert_eq!(stems("targets"), names);
    let manifest = fs::read_to_string(directory().join("Cargo.toml")).expect("the manifest");
    for name in &names {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")), "{name}");
        let program = fs::read_to_string(directory().join(format!("targets/{name}.rs"))).expect("the target");
        assert!(program.contains(&format!("check(\"{name}\", input)")), "{name}");
    }
    let files = fs::read_dir(directory().join("corpus")).expect("the folder is there");
    let bytes: u64 = files.map(|file| file.and_then(|file| file.metadata()).expect("its size").len()).sum();
    assert!(bytes <= CORPORA_BYTES_MAX, "{bytes} bytes of corpora");
}
