//! What is wrong with a configuration file, where, and what to do about it.

use std::{fmt, io};

use thiserror::Error;

use super::FILE_BYTES_MAX;

/// Problems that one message prints. A generator that goes wrong does so in every entry; nobody reads them all.
const PRINTED_MAX: usize = 50;

/// Characters of a line that an excerpt shows.
const EXCERPT_CHARACTERS_MAX: usize = 100;

/// A place in the file. Lines and columns count from 1; a column is a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: u64,
    /// Character in the line, from 1.
    pub column: u64,
}

impl Position {
    /// The first character of the file, for what is wrong with it as a whole.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the offending value stands.
    pub position: Position,
    /// What is wrong, with which value.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

impl Problem {
    pub(super) fn new(position: Position, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { position, what: what.into(), advice: advice.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.position;
        write!(f, "{line}:{column}: {}; {}", self.what, self.advice)
    }
}

/// Why a configuration file was not taken.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{name}: cannot be read: {cause}; check the path and its permissions")]
    Unreadable {
        /// Path of the file.
        name: String,
        /// The operating system's answer.
        #[source]
        cause: io::Error,
    },
    /// The file is longer than [`FILE_BYTES_MAX`].
    #[error("{name}: is larger than {} MiB; a configuration is not, check that this is the right file", FILE_BYTES_MAX >> 20)]
    TooLarge {
        /// Path of the file.
        name: String,
    },
    /// It is a directory, a pipe or a device.
    #[error("{name}: is not a regular file; name the file itself, which is read again when it changes")]
    NotAFile {
        /// Path of the file.
        name: String,
    },
    /// It was written each time that it was read.
    #[error("{name}: changes while it is read; replace it by a rename, as `mv new.yaml {name}` does")]
    Changing {
        /// Path of the file.
        name: String,
    },
    /// The file was read and is wrong.
    #[error("{}", print(name, problems, &[]))]
    Refused {
        /// Path of the file.
        name: String,
        /// Everything that is wrong, in the order of the file; never empty.
        problems: Vec<Problem>,
        /// The lines where the first of them are, each once, in the order of the file.
        lines: Vec<(u64, String)>,
    },
}

impl ConfigError {
    pub(super) fn refused(name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.position);
        let mut numbers: Vec<u64> = problems.iter().take(PRINTED_MAX).map(|problem| problem.position.line).collect();
        numbers.dedup();
        let mut numbers = numbers.into_iter().peekable();
        let numbered = (1..).zip(text.lines());
        let lines = numbered.filter(|(number, _)| numbers.next_if_eq(number).is_some());
        let lines = lines.map(|(number, line)| (number, line.to_owned())).collect();
        Self::Refused { name: name.to_owned(), problems, lines }
    }

    /// The message, with the line under each problem and a mark where it is.
    pub fn with_excerpts(&self) -> String {
        match self {
            Self::Refused { name, problems, lines } => print(name, problems, lines),
            other => other.to_string(),
        }
    }
}

fn print(name: &str, problems: &[Problem], lines: &[(u64, String)]) -> String {
    let mut printed = Vec::new();
    for problem in problems.iter().take(PRINTED_MAX) {
        printed.push(format!("{name}:{problem}"));
        let Position { line, column } = problem.position;
        if let Ok(at) = lines.binary_search_by_key(&line, |(number, _)| *number) {
            printed.extend(excerpt(line, column, &lines[at].1));
        }
    }
    if problems.len() > PRINTED_MAX {
        printed.push(format!("{name}: and {} more problems", problems.len() - PRINTED_MAX));
    }
    printed.join("\n")
}

/// What stands around a place, and a mark below it. Nothing that a terminal would obey.
fn excerpt(line: u64, column: u64, text: &str) -> [String; 2] {
    let column = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
    let from = if column < EXCERPT_CHARACTERS_MAX { 0 } else { column - EXCERPT_CHARACTERS_MAX / 2 };
    let shown: String = text.chars().skip(from).take(EXCERPT_CHARACTERS_MAX).map(visible).collect();
    let number = line.to_string();
    let (dots, space) = if from == 0 { ("", "") } else { ("…", " ") };
    let blank = " ".repeat(column - from);
    let gutter = " ".repeat(number.len());
    [format!("  {number} | {dots}{}", shown.trim_end()), format!("  {gutter} | {space}{blank}^")]
}

fn visible(c: char) -> char {
    if c == '\t' || c.is_control() { ' ' } else { c }
}

/// `valid` is what precedes the first byte that is not UTF-8.
pub(super) fn not_utf8(valid: &[u8]) -> Problem {
    let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count() as u64;
    let last = valid.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    let column = 1 + String::from_utf8_lossy(last).chars().count() as u64;
    Problem::new(
        Position { line, column },
        "this byte is not UTF-8",
        "save the file as UTF-8, and check that it is a text file",
    )
}
