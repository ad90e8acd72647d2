use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{machine::*, *};

/// A directory of its own for one test, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-watch-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const HEAD: &str = "node: { addresses: [192.0.2.1] }\nuplinks: [{ interface: eth0 }]\nservices: []\n";

fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

/// All that is heard by now: what a system call did is heard when it returns.
fn heard(watch: &mut Watch) -> Vec<Sign> {
    watch.drain().unwrap().signs
}

fn settled(settling: &Settling, start: Instant) -> Option<Duration> {
    settling.poll_timeout().map(|due| due - start)
}

#[test]
fn a_file_that_is_replaced_is_read_at_once_and_a_storm_of_it_not_put_off_for_long() {
    let start = Instant::now();
    let mut settling = Settling::default();
    assert_eq!(settled(&settling, start), None);
    settling.hear(Sign::Replaced, start);
    assert_eq!(settled(&settling, start), Some(QUIET));
    assert!(!settling.begins(start + QUIET / 2));
    let mut now = start;
    while now < start + DELAY_MAX {
        now += QUIET / 2;
        settling.hear(Sign::Replaced, now);
    }
    assert_eq!(settled(&settling, start), Some(DELAY_MAX));
    assert!(settling.begins(start + DELAY_MAX));
    assert!(settling.ends(Outcome::Whole, start + DELAY_MAX));
    assert_eq!(settled(&settling, start), None);
}

#[test]
fn a_file_that_is_being_written_is_read_when_it_is_closed() {
    let start = Instant::now();
    let mut settling = Settling::default();
    settling.hear(Sign::Replaced, start);
    settling.hear(Sign::Writing, start + QUIET / 2);
    assert_eq!(settled(&settling, start), Some(QUIET / 2 + WRITER_SILENCE_MAX));
    let closed = start + WRITER_SILENCE_MAX / 2;
    settling.hear(Sign::Written, closed);
    assert!(settling.begins(closed + QUIET));

    // Who does not close it is waited for while he writes, and not for ever.
    let mut settling = Settling::default();
    let mut now = start;
    while !settling.begins(now) {
        settling.hear(Sign::Writing, now);
        now += WRITER_SILENCE_MAX / 2;
    }
    assert_eq!(now - start, WRITER_TIME_MAX);
}

#[test]
fn what_is_asked_for_is_read_at_once_and_what_is_only_seen_when_it_stays() {
    let start = Instant::now();
    let mut settling = Settling::default();
    settling.hear(Sign::Writing, start);
    settling.hear(Sign::Asked, start);
    assert_eq!(settled(&settling, start), Some(Duration::ZERO));
    let mut settling = Settling::default();
    settling.hear(Sign::Seen, start);
    assert_eq!(settled(&settling, start), Some(UNTOLD_QUIET));
    settling.hear(Sign::Replaced, start + QUIET);
    settling.hear(Sign::Seen, start + QUIET);
    assert_eq!(settled(&settling, start), Some(2 * QUIET), "what is heard is not put off by what is seen");
}

#[test]
fn what_is_heard_during_a_reading_calls_for_another() {
    let start = Instant::now();
    let mut settling = Settling::default();
    settling.hear(Sign::Asked, start);
    assert!(settling.begins(start));
    settling.hear(Sign::Replaced, start);
    assert!(settling.ends(Outcome::Whole, start + QUIET));
    assert_eq!(settled(&settling, start), Some(QUIET));
}

#[test]
fn a_file_that_is_missing_for_a_moment_is_read_again_and_one_that_stays_away_is_told_of() {
    let start = Instant::now();
    for outcome in [Outcome::Missing, Outcome::Changing] {
        let mut settling = Settling::default();
        settling.hear(Sign::Replaced, start);
        let mut readings = 0;
        let now = loop {
            let now = settling.poll_timeout().unwrap();
            assert!(settling.begins(now));
            readings += 1;
            if settling.ends(outcome, now) {
                break now;
            }
        };
        assert!(now - start >= PATIENCE && now - start < PATIENCE + 2 * RETRY + QUIET, "{:?}", now - start);
        assert!(readings > 50, "{readings}");
        assert_eq!(settled(&settling, start), None, "told once");
        settling.hear(Sign::Replaced, now);
        assert!(settling.begins(now + QUIET) && settling.ends(Outcome::Whole, now + QUIET));
    }
}

#[test]
fn a_rename_into_the_place_of_the_file_is_heard_and_of_its_neighbours_not() {
    let directory = Directory::new("rename");
    let file = directory.at("sluice.yaml");
    put(&file, HEAD);
    let mut watch = Watch::open(&file).unwrap();
    put(&directory.at("other.yaml"), HEAD);
    put(&directory.at("fresh"), HEAD);
    assert_eq!(heard(&mut watch), []);
    for _ in 0..2 {
        put(&directory.at("fresh"), HEAD);
        fs::rename(directory.at("fresh"), &file).unwrap();
        assert_eq!(heard(&mut watch), [Sign::Replaced]);
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(heard(&mut watch), [Sign::Replaced]);
    assert_eq!(read(&file).outcome, Outcome::Missing);
    put(&file, HEAD);
    let signs = heard(&mut watch);
    assert_eq!((signs.first(), signs.last()), (Some(&Sign::Writing), Some(&Sign::Written)), "{signs:?}");
}

#[test]
fn nothing_is_lost_in_a_storm_of_neighbours() {
    let directory = Directory::new("storm");
    let file = directory.at("sluice.yaml");
    put(&file, HEAD);
    let mut watch = Watch::open(&file).unwrap();
    put(&directory.at("fresh"), HEAD);
    // Two events each, and with names so long a page of them ends amid what is taken in one go.
    for neighbour in 0..128 {
        put(&directory.at(&format!("a-neighbour-of-the-file-{neighbour:03}")), "");
    }
    fs::rename(directory.at("fresh"), &file).unwrap();
    let mut signs = Vec::new();
    loop {
        let drained = watch.drain().unwrap();
        signs.extend(drained.signs);
        if !drained.more {
            break;
        }
    }
    assert_eq!(signs, [Sign::Replaced]);
}

#[test]
fn a_writer_is_heard_from_his_first_byte_until_he_closes_the_file() {
    let directory = Directory::new("write");
    let file = directory.at("sluice.yaml");
    put(&file, HEAD);
    let mut watch = Watch::open(&file).unwrap();
    let mut writer = OpenOptions::new().write(true).truncate(true).open(&file).unwrap();
    assert_eq!(heard(&mut watch), [Sign::Writing], "it is empty");
    writer.write_all(b"node: ").unwrap();
    assert_eq!(heard(&mut watch), [Sign::Writing]);
    drop(writer);
    assert_eq!(heard(&mut watch), [Sign::Written]);
}

/// As the kubelet does it (pkg/volume/util/atomic_writer.go): the file is a symlink through `..data`, itself a symlink that
/// is swapped by a rename; the directory before is then removed.
#[test]
fn the_swap_of_a_symlink_on_the_way_is_heard_each_time() {
    let directory = Directory::new("configmap");
    let file = directory.at("sluice.yaml");
    let fill = |version: &str| {
        fs::create_dir(directory.at(version)).unwrap();
        put(&directory.at(version).join("sluice.yaml"), HEAD);
        symlink(version, directory.at("..data_tmp")).unwrap();
        fs::rename(directory.at("..data_tmp"), directory.at("..data")).unwrap();
    };
    fill("..1");
    symlink("..data/sluice.yaml", &file).unwrap();
    let mut watch = Watch::open(&file).unwrap();
    let mut before = version(&file);
    for (old, new) in [("..1", "..2"), ("..2", "..3"), ("..3", "..4")] {
        fill(new);
        assert_eq!(heard(&mut watch), [Sign::Replaced], "{new}");
        assert_ne!(version(&file), before, "{new}");
        before = version(&file);
        fs::remove_dir_all(directory.at(old)).unwrap();
        assert_eq!(heard(&mut watch), [], "what is on the way no more is not heard");
    }
    // The file behind the symlinks is followed too.
    put(&directory.at("..4").join("sluice.yaml"), HEAD);
    assert!(heard(&mut watch).contains(&Sign::Written));
}

#[test]
fn a_way_that_is_not_there_yet_is_heard_of_as_it_grows() {
    let directory = Directory::new("grow");
    let file = directory.at("a/b/sluice.yaml");
    let mut watch = Watch::open(&file).unwrap();
    fs::create_dir(directory.at("a")).unwrap();
    assert_eq!(heard(&mut watch), [Sign::Replaced]);
    fs::create_dir(directory.at("a/b")).unwrap();
    assert_eq!(heard(&mut watch), [Sign::Replaced]);
    put(&file, HEAD);
    assert_eq!(heard(&mut watch).last(), Some(&Sign::Written));
    assert!(read(&file).snapshot.is_ok());
    // A symlink that leads to itself is no reason to walk for ever.
    symlink("loop", directory.at("loop")).unwrap();
    assert_eq!(heard(&mut Watch::open(&directory.at("loop")).unwrap()), []);
}

#[test]
fn each_file_that_cannot_be_read_is_refused_with_its_reason() {
    let directory = Directory::new("unreadable");
    let refusal = |name: &str| {
        let reading = read(&directory.at(name));
        assert_eq!(reading.outcome, Outcome::Whole, "{name}: there is nothing to wait for");
        reading.snapshot.unwrap_err().to_string()
    };
    put(&directory.at("empty"), "");
    assert!(refusal("empty").contains("empty:1:1: the file holds no configuration; write at least node, uplinks"));
    fs::write(directory.at("latin1"), b"node: \xfc").unwrap();
    assert!(refusal("latin1").contains("latin1:1:7: this byte is not UTF-8"));
    fs::create_dir(directory.at("directory")).unwrap();
    assert!(refusal("directory").contains("directory: is not a regular file; name the file itself"));
    let fifo = std::ffi::CString::new(directory.at("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a path that ends with NUL and lives across the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    assert!(refusal("fifo").contains("is not a regular file"), "and nobody waits for its writer");
    fs::File::create(directory.at("gigabyte")).unwrap().set_len(1 << 30).unwrap();
    assert!(refusal("gigabyte").contains("is larger than 64 MiB; a configuration is not"));
    put(&directory.at("half"), &HEAD[..HEAD.len() / 2]);
    assert!(refusal("half").contains("half:2:"), "{}", refusal("half"));
    let missing = read(&directory.at("missing"));
    assert_eq!((missing.outcome, missing.version), (Outcome::Missing, None));
    assert!(missing.snapshot.unwrap_err().to_string().contains("cannot be read: No such file or directory"));
}
