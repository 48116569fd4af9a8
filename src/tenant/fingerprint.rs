//! What a resource looked like when it was last observed to match, in a few bytes.
//!
//! A sweep lists an upstream and compares fingerprints: one that differs from what is recorded means that
//! somebody changed the resource since. It is told by part, so that the reason can be.

use std::fmt;
use std::str::FromStr;

/// Parts of a resource that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Id,
    Name,
    Mark,
    /// Attributes, quota, members.
    Settings,
    /// Enabled or not.
    State,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::Id, Self::Name, Self::Mark, Self::Settings, Self::State];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Name => "name",
            Self::Mark => "mark",
            Self::Settings => "settings",
            Self::State => "state",
        }
    }
}

/// One hash per part. Kept in documents, so what makes it must never change without its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u32; 5]);

const VERSION: &str = "1:";

impl Fingerprint {
    /// In the order of [`Part::ALL`].
    pub fn of(parts: [&dyn fmt::Display; 5]) -> Self {
        Self(parts.map(|part| fnv1a(part.to_string().as_bytes())))
    }

    /// The parts in which two differ.
    pub fn differences(self, other: Self) -> Vec<Part> {
        let pairs = Part::ALL.into_iter().zip(self.0.into_iter().zip(other.0));
        pairs.filter(|(_, (a, b))| a != b).map(|(part, _)| part).collect()
    }

    pub const fn parts(self) -> [u32; 5] {
        self.0
    }

    pub const fn from_parts(parts: [u32; 5]) -> Self {
        Self(parts)
    }
}

/// FNV-1a, 64 bits folded into 32: fixed for ever, and no adversary gains by making it collide.
fn fnv1a(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    #[allow(clippy::cast_possible_truncation)] // that is folding
    let folded = (hash >> 32) as u32 ^ hash as u32;
    folded
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VERSION)?;
        self.0.iter().try_for_each(|part| write!(f, "{part:08x}"))
    }
}

/// Of another version, or none at all: as good as unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownFingerprint;

impl FromStr for Fingerprint {
    type Err = UnknownFingerprint;

    fn from_str(text: &str) -> Result<Self, UnknownFingerprint> {
        let digits = text.strip_prefix(VERSION).ok_or(UnknownFingerprint)?;
        if digits.len() != 40 || !digits.is_ascii() {
            return Err(UnknownFingerprint);
        }
        let mut parts = [0; 5];
        for (index, part) in parts.iter_mut().enumerate() {
            let digits = &digits[index * 8..index * 8 + 8];
            *part = u32::from_str_radix(digits, 16).map_err(|_| UnknownFingerprint)?;
        }
        Ok(Self(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: &str = "1:296230c029622ee94fd0bfc129623dda1b8ead1e";

    #[test]
    fn a_fingerprint_reads_back_as_it_is_written_and_never_changes() {
        let print = Fingerprint::of([&"a", &"b", &"", &7, &"enabled"]);
        assert_eq!(print.to_string().parse(), Ok(print));
        // Recorded in documents: another value here is another version.
        assert_eq!(print.to_string(), FIXED);
        for other in ["", "1:", "2:e40c", "1:zz"] {
            assert_eq!(other.parse::<Fingerprint>(), Err(UnknownFingerprint), "{other}");
        }
    }

    #[test]
    fn differences_are_told_by_part() {
        let a = Fingerprint::of([&"id", &"name", &"mark", &"1", &"enabled"]);
        let b = Fingerprint::of([&"id", &"other", &"mark", &"2", &"enabled"]);
        assert_eq!(a.differences(b), [Part::Name, Part::Settings]);
        assert_eq!(a.differences(a), []);
    }
}
