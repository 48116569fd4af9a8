//! The fleet: which of all installations this one is, and which upstreams it has.
//!
//! # Why it is remembered
//!
//! The settings of one process say which upstreams *it* can reach. What the fleet has is another question:
//! a process that was started without a setting must not take that for the end of an upstream. And two
//! fleets (production and staging) may meet in one upstream, where each must leave the other's resources
//! alone. Both answers are in the database, see `store::fleet`.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::{PerStep, Upstream};

/// Names one fleet: six random bytes, shown as 12 lower-case hex digits. It is made once for a database, and
/// marks in the upstreams carry it, as one unbroken word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FleetId([u8; 6]);

impl FleetId {
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Whether a mark that names this fleet, or none, is another fleet's. Marks of before fleets had ids, and of
    /// the service before tenantry, name none: they are this fleet's.
    pub fn is_not(self, marked: Option<Self>) -> bool {
        marked.is_some_and(|marked| marked != self)
    }
}

impl fmt::Display for FleetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FleetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fleet's id is 12 lower-case hexadecimal digits")]
pub struct InvalidFleetId;

impl FromStr for FleetId {
    type Err = InvalidFleetId;

    fn from_str(text: &str) -> Result<Self, InvalidFleetId> {
        let digits = text.as_bytes();
        if digits.len() != 12 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidFleetId);
        }
        let mut bytes = [0; 6];
        for (byte, digits) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| InvalidFleetId)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidFleetId)?;
        }
        Ok(Self(bytes))
    }
}

/// What an upstream is to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// No process ever had its setting.
    #[default]
    Never,
    /// The fleet has it, whether or not this process can reach it.
    Known { since: Timestamp },
    /// An administrator said that the fleet no longer has it.
    Retired { at: Timestamp },
}

/// What the database remembers of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    pub id: FleetId,
    pub upstreams: PerStep<Standing>,
    /// Set while tenants may wait for an upstream that they were reconciled without; then since when.
    pub waiting: PerStep<Option<Timestamp>>,
    /// When a process that lacks an upstream last asked whether another process has them all.
    pub asked_at: Option<Timestamp>,
    /// When a process that has them all last said so.
    pub answered_at: Option<Timestamp>,
}

impl Fleet {
    /// A fleet that has no upstream yet.
    pub fn new(id: FleetId) -> Self {
        Self {
            id,
            upstreams: PerStep::default(),
            waiting: PerStep::default(),
            asked_at: None,
            answered_at: None,
        }
    }

    pub fn has(&self, step: Upstream) -> bool {
        matches!(self.upstreams[step], Standing::Known { .. })
    }

    /// The upstreams of the fleet that a process with these settings lacks.
    pub fn lacked_by(&self, configured: &[Upstream]) -> Vec<Upstream> {
        let lacks = |step: &Upstream| self.has(*step) && !configured.contains(step);
        Upstream::ALL.into_iter().filter(lacks).collect()
    }
}

/// For people: what it means that this process lacks the setting of an upstream that the fleet has.
pub fn lacking(step: Upstream) -> String {
    format!(
        "{step}: this fleet has it, and this process was started without {}. Its steps are held, what is \
         recorded of them stays, and deletions wait. Set it again, or end this upstream for the fleet with \
         `tenantry upstreams retire {step}`",
        step.setting()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_id_reads_back_as_it_is_written_and_is_no_other_id() {
        let id = FleetId::from_bytes([0x1f, 0, 0xab, 0xcd, 0xef, 9]);
        assert_eq!(id.to_string(), "1f00abcdef09");
        assert_eq!(id.to_string().parse(), Ok(id));
        for other in ["", "1f00abcdef0", "1F00ABCDEF09", "65a0000000000000000000aa", "1f00abcdef0g"] {
            assert_eq!(other.parse::<FleetId>(), Err(InvalidFleetId), "{other}");
        }
    }
}
