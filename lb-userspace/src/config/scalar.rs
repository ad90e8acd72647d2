//! Text of the file to values, each refusal with the value, its place and the remedy.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    path::{Component, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer};
use serde_saphyr::{Location, Spanned};

use super::problem::{Position, Problem};

/// Characters of a value that a message quotes.
const QUOTED_CHARACTERS_MAX: usize = 60;

/// A single value as written, and its place.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub text: String,
    pub position: Position,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { position: position(&spanned.referenced), text: spanned.value })
    }
}

pub(super) fn position(location: &Location) -> Position {
    match (location.line(), location.column()) {
        (0, _) | (_, 0) => Position::START,
        (line, column) => Position { line, column },
    }
}

/// A value for a message: bounded, and without control characters, which a terminal would obey.
pub(super) fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTED_CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED_CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The candidate that `text` is most likely a misspelling of.
pub(super) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&text, &candidate.to_lowercase()), candidate))
        // Every third letter wrong is still a misspelling; more is another word.
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A number as it is printed. [`str::parse`] takes a sign and zeros before it too, which the schema does not.
pub(super) fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let is_printed = text == "0" || !text.starts_with(['0', '+', '-']);
    is_printed.then(|| text.parse().ok()).flatten()
}

impl Scalar {
    pub(super) fn problem(&self, what: impl Into<String>, advice: impl Into<String>) -> Problem {
        Problem::new(self.position, what, advice)
    }

    /// A whole decimal number in `range`. `key` is what the message calls it.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<u32>) -> Result<u32, Problem> {
        let (low, high) = (range.start(), range.end());
        let advice = format!("write a whole number from {low} to {high}");
        let digits = self.text.strip_prefix(['-', '+']).unwrap_or(&self.text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.problem(format!("{key} {} is not a whole number", quote(&self.text)), advice));
        }
        match self.text.parse::<u32>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(self.problem(format!("{key} {} is out of range", quote(&self.text)), advice)),
        }
    }

    /// A whole number of milliseconds or seconds in `range`: `500ms`, `5s`.
    pub(super) fn duration(&self, key: &str, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
        let (low, high) = (range.start(), range.end());
        let advice = format!("write {low:?} to {high:?}, in whole milliseconds (ms) or seconds (s)");
        let (digits, unit) = self.text.split_at(self.text.bytes().take_while(u8::is_ascii_digit).count());
        let milliseconds = match unit {
            "ms" => digits.parse::<u64>().ok(),
            "s" => digits.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1000)),
            _ => {
                let what = format!("{key} {} is no duration with its unit", quote(&self.text));
                return Err(self.problem(what, advice));
            }
        };
        match milliseconds.map(Duration::from_millis) {
            Some(duration) if range.contains(&duration) => Ok(duration),
            _ => Err(self.problem(format!("{key} {} is out of range", quote(&self.text)), advice)),
        }
    }

    /// [`Self::number`] that is a power of two.
    pub(super) fn power_of_two(&self, key: &str, range: RangeInclusive<u32>) -> Result<u32, Problem> {
        let number = self.number(key, range)?;
        if number.is_power_of_two() {
            return Ok(number);
        }
        // In range: both bounds are powers of two themselves.
        let above = number.next_power_of_two();
        Err(self.problem(format!("{key} {number} is not a power of two"), format!("write {} or {above}", above / 2)))
    }

    pub(super) fn port(&self) -> Result<u16, Problem> {
        let number = self.number("port", 1..=u32::from(u16::MAX))?;
        Ok(u16::try_from(number).expect("within the range"))
    }

    pub(super) fn weight(&self) -> Result<u16, Problem> {
        let number = self.number("weight", 0..=u32::from(super::service::WEIGHT_MAX))?;
        Ok(u16::try_from(number).expect("within the range"))
    }

    /// An address that a unicast packet can carry in from elsewhere. `role` is what the message calls it.
    pub(super) fn unicast(&self, role: &str) -> Result<IpAddr, Problem> {
        let shown = quote(&self.text);
        let address: IpAddr = self.text.parse().map_err(|_| {
            let advice = if self.text.contains('/') {
                "write the address without a prefix length"
            } else {
                "write an IPv4 or IPv6 address, for example 192.0.2.10 or 2001:db8::10"
            };
            self.problem(format!("{role} {shown} is not an IP address"), advice)
        })?;
        if let IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            let what = format!("{role} {shown} is IPv4-mapped, which no packet carries");
            return Err(self.problem(what, format!("write the IPv4 address {v4}")));
        }
        match unusable(address) {
            None => Ok(address),
            Some(kind) => Err(self.problem(
                format!("{role} {shown} is {kind} address"),
                "write a unicast address that other machines can reach",
            )),
        }
    }

    pub(super) fn switch(&self, key: &str) -> Result<bool, Problem> {
        match self.text.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(self.problem(format!("{key} {} is not a truth value", quote(other)), "write true or false")),
        }
    }

    /// One of `choices`, exactly as written there.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == self.text) {
            return Ok(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let advice = match nearest(&self.text, names.iter().copied()) {
            Some(name) => format!("did you mean `{name}`? it can be {}", names.join(", ")),
            None => format!("write one of {}", names.join(", ")),
        };
        Err(self.problem(format!("{key} {} is unknown", quote(&self.text)), advice))
    }

    /// An absolute path without `..`, of at most `bytes_max` bytes; `why` not more.
    pub(super) fn directory(&self, key: &str, bytes_max: usize, why: &str) -> Result<PathBuf, Problem> {
        let path = PathBuf::from(&self.text);
        let shown = quote(&self.text);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            let what = format!("{key} {shown} is not an absolute path");
            return Err(self.problem(what, "write a path that starts with / and has no .."));
        }
        if self.text.contains('\0') || self.text.len() > bytes_max {
            let what = format!("{key} {shown} has {} bytes", self.text.len());
            return Err(self.problem(what, format!("write a path of at most {bytes_max} bytes without NUL: {why}")));
        }
        Ok(path)
    }
}

/// Why no unicast packet from another machine carries this address, with its article.
fn unusable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) if v4.is_broadcast() => return Some("the broadcast"),
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        _ if address.is_unspecified() => Some("the unspecified"),
        _ if address.is_multicast() => Some("a multicast"),
        _ if address.is_loopback() => Some("a loopback"),
        _ if link_local => Some("a link-local"),
        _ => None,
    }
}
