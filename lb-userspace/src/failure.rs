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
