//! What people are told when something fails.

/// An error with its causes in one text. A cause that the error's own text names already is not told again: some types
/// show their source, and others leave it to the reader to ask for it.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// What failed in the run directory, and what to do about it.
pub fn in_run_directory(error: std::io::Error, what: &str, path: &std::path::Path) -> anyhow::Error {
    use std::io::ErrorKind;
    let advice = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free blocks or inodes there (`df`, `df -i`), or set runDirectory to a directory on another file system"
        }
        ErrorKind::ReadOnlyFilesystem => "remount it read-write, or set runDirectory to a directory that is writable",
        ErrorKind::PermissionDenied => {
            "run as root, or set runDirectory to a directory that the agent's user may write to"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a file is in the way: remove it, or set another runDirectory"
        }
        _ => "see the path and its permissions, or set another runDirectory",
    };
    anyhow::anyhow!("cannot {what} {}: {error}; {advice}", path.display())
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("eth0: {source}; detach it first")]
    struct Shown {
        source: io::Error,
    }

    #[test]
    fn each_cause_is_told_once() {
        let shown = Err::<(), _>(Shown { source: io::Error::other("busy") }).context("cannot start");
        assert_eq!(describe(&shown.unwrap_err()), "cannot start: eth0: busy; detach it first");
        let hidden = Err::<(), _>(io::Error::other("busy")).context("eth0").context("cannot start");
        assert_eq!(describe(&hidden.unwrap_err()), "cannot start: eth0: busy");
    }
}
