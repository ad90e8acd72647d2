use std::{
    fs::{self, OpenOptions},
    io::Write,
    time::Duration,
};

use tokio::time::timeout;

use super::*;

/// Longer than any change takes that is whole, shorter than a writer is waited for.
const MOMENT: Duration = Duration::from_millis(300);
/// Long enough for everything.
const PATIENCE: Duration = Duration::from_secs(10);

struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-reload-{}-{name}.yaml", std::process::id()));
        fs::write(&path, text(1)).unwrap();
        Self(path)
    }

    fn replace(&self, text: &str) {
        let fresh = self.0.with_extension("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, &self.0).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A configuration with so many services; one cut off after a line is valid too.
fn text(services: u8) -> String {
    let mut text = "node: { addresses: [192.0.2.1] }\nuplinks: [{ interface: eth0 }]\nservices:\n".to_owned();
    for last in 1..=services {
        text += &format!("  - {{ name: s{last}, vip: 198.51.100.{last}, protocol: TCP, ports: [80] }}\n");
    }
    text
}

async fn next(source: &mut Source) -> Result<usize, String> {
    let read = timeout(PATIENCE, source.next()).await.expect("the change is heard");
    read.map(|snapshot| snapshot.services.len()).map_err(|error| error.to_string())
}

async fn is_quiet(source: &mut Source) -> bool {
    timeout(MOMENT, source.next()).await.is_err()
}

#[tokio::test]
async fn a_change_is_taken_within_milliseconds_and_a_storm_as_its_last() {
    let file = File::new("rename");
    let (mut source, first) = Source::open(&file.0).unwrap();
    assert_eq!(first.services.len(), 1);
    assert!(is_quiet(&mut source).await);
    let changed = Instant::now();
    file.replace(&text(2));
    assert_eq!(next(&mut source).await, Ok(2));
    let took = changed.elapsed();
    assert!(took < MOMENT, "{took:?}: the version alone is looked at each second");
    for services in 3..=20 {
        file.replace(&text(services));
    }
    while next(&mut source).await.unwrap() != 20 {}
    assert!(is_quiet(&mut source).await, "the last is read once");
}

#[tokio::test]
async fn half_of_a_file_is_not_taken_although_it_would_be_valid() {
    let file = File::new("half");
    let (mut source, _) = Source::open(&file.0).unwrap();
    let whole = text(4);
    let half = whole.len() - text(4).lines().last().unwrap().len() - 1;
    let mut writer = OpenOptions::new().write(true).truncate(true).open(&file.0).unwrap();
    writer.write_all(&whole.as_bytes()[..half]).unwrap();
    assert!(is_quiet(&mut source).await, "the writer is not done");
    writer.write_all(&whole.as_bytes()[half..]).unwrap();
    drop(writer);
    assert_eq!(next(&mut source).await, Ok(4));
}

#[tokio::test]
async fn a_file_that_is_gone_for_a_moment_is_not_missed_and_one_that_stays_away_is() {
    let file = File::new("gone");
    let (mut source, _) = Source::open(&file.0).unwrap();
    fs::remove_file(&file.0).unwrap();
    assert!(is_quiet(&mut source).await);
    file.replace(&text(3));
    assert_eq!(next(&mut source).await, Ok(3));
    fs::remove_file(&file.0).unwrap();
    let refusal = next(&mut source).await.unwrap_err();
    assert!(refusal.contains("cannot be read: No such file or directory"), "{refusal}");
    file.replace(&text(5));
    assert_eq!(next(&mut source).await, Ok(5));
}

#[tokio::test]
async fn what_no_event_tells_of_is_found_by_its_version() {
    let file = File::new("version");
    let (mut source, _) = Source::open(&file.0).unwrap();
    source.watch = None;
    file.replace(&text(2));
    source.look();
    assert_eq!(next(&mut source).await, Ok(2));
    source.look();
    assert!(is_quiet(&mut source).await);
    source.ask();
    assert_eq!(next(&mut source).await, Ok(2), "asked for, it is read though it is the same");
}
