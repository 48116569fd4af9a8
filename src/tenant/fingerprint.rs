//! What a resource looked like when it was last observed to match, in a few bytes.
//!
//! A sweep lists an upstream and compares fingerprints: one that differs from what is recorded means that
//! the resource was changed since. It is told by part, so that the reason can be.
//!
//! What a resource should look like depends on settings too, such as the role of a tenant's group. A
//! fingerprint therefore says under which it was taken: of two that were taken under different ones only the
//! resource's id can be compared, and what differs otherwise is no drift.

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
    /// Whether it is.
    Enabled,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::Id, Self::Name, Self::Mark, Self::Settings, Self::Enabled];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Name => "name",
            Self::Mark => "mark",
            Self::Settings => "settings",
            Self::Enabled => "enabled",
        }
    }
}

/// One hash per part. Kept in documents, so what makes it must never change without its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint {
    /// A hash of the settings; 0 where there are none, and in what was recorded before they were told.
    settings: u32,
    parts: [u32; 5],
}

/// Without settings, and with them.
const VERSIONS: [&str; 2] = ["1:", "2:"];

impl Fingerprint {
    /// In the order of [`Part::ALL`].
    pub fn of(parts: [&dyn fmt::Display; 5]) -> Self {
        Self { settings: 0, parts: parts.map(|part| fnv1a(part.to_string().as_bytes())) }
    }

    /// The same, taken under these settings.
    #[must_use]
    pub fn under(self, settings: &str) -> Self {
        Self { settings: fnv1a(settings.as_bytes()).max(1), ..self }
    }

    /// The parts in which two differ, as far as they can be compared.
    pub fn differences(self, other: Self) -> Vec<Part> {
        let all = self.settings == other.settings;
        let pairs = Part::ALL.into_iter().zip(self.parts.into_iter().zip(other.parts));
        let comparable = pairs.filter(|(part, _)| all || *part == Part::Id);
        comparable.filter(|(_, (a, b))| a != b).map(|(part, _)| part).collect()
    }

    /// Its hash, never 0: 16 bits of the settings, and 48 of all parts.
    pub fn short(self) -> u64 {
        let parts = self.parts.iter().flat_map(|part| part.to_be_bytes()).collect::<Vec<_>>();
        let settings = u64::from(self.settings ^ (self.settings >> 16)) & 0xffff;
        (settings << 48) | (fnv1a_64(&parts) >> 16).max(1)
    }

    /// Whether two hashes are of fingerprints that were taken under the same settings.
    pub const fn is_comparable(a: u64, b: u64) -> bool {
        a >> 48 == b >> 48
    }
}

fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// FNV-1a, 64 bits folded into 32: fixed for ever, and no adversary gains by making it collide.
fn fnv1a(bytes: &[u8]) -> u32 {
    let hash = fnv1a_64(bytes);
    #[allow(clippy::cast_possible_truncation)] // that is folding
    let folded = (hash >> 32) as u32 ^ hash as u32;
    folded
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VERSIONS[usize::from(self.settings != 0)])?;
        if self.settings != 0 {
            write!(f, "{:08x}", self.settings)?;
        }
        self.parts.iter().try_for_each(|part| write!(f, "{part:08x}"))
    }
}

/// Of another version, or none at all: as good as unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownFingerprint;

impl FromStr for Fingerprint {
    type Err = UnknownFingerprint;

    fn from_str(text: &str) -> Result<Self, UnknownFingerprint> {
        let mut numbers = [0; 6];
        let (digits, rest) = match VERSIONS.map(|version| text.strip_prefix(version)) {
            [Some(digits), _] => (digits, &mut numbers[1..]),
            [_, Some(digits)] => (digits, &mut numbers[..]),
            [None, None] => return Err(UnknownFingerprint),
        };
        if digits.len() != rest.len() * 8 || !digits.is_ascii() {
            return Err(UnknownFingerprint);
        }
        for (index, number) in rest.iter_mut().enumerate() {
            let digits = &digits[index * 8..index * 8 + 8];
            *number = u32::from_str_radix(digits, 16).map_err(|_| UnknownFingerprint)?;
        }
        let [settings, parts @ ..] = numbers;
        Ok(Self { settings, parts })
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
        let under = print.under("role editor");
        assert_eq!(under.to_string().parse(), Ok(under));
        assert_eq!(under.to_string().len(), 2 + 8 + 40);
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
        let (one, two) = (a.under("role viewer"), b.under("role editor"));
        assert_eq!(one.differences(two), [], "of other settings");
        let another = Fingerprint::of([&"another", &"name", &"mark", &"1", &"enabled"]);
        assert_eq!(one.differences(another), [Part::Id]);
        assert!(Fingerprint::is_comparable(a.short(), b.short()));
        assert!(!Fingerprint::is_comparable(one.short(), two.short()));
    }
}
