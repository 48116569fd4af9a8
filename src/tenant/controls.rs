//! What holds the whole fleet back: stops that people order, and guards that trip by themselves.

use jiff::Timestamp;

use super::{Fleet, PerStep, Swept, Upstream};

/// The state of all stops and guards, as every process sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Controls {
    /// Nothing is changed anywhere.
    pub stopped: bool,
    /// Nothing is changed in this upstream.
    pub stopped_upstreams: PerStep<bool>,
    pub guards: PerStep<ChangeGuard>,
    /// How many resources each upstream should have, as the latest sweep counted; 0 before the first.
    pub sizes: PerStep<u64>,
    /// How the latest sweep of each upstream ended; `None` before the first.
    pub sweeps: PerStep<Option<Swept>>,
    /// `None` until a controller has joined it.
    pub fleet: Option<Fleet>,
    /// When an administrator last asked for the release of an orphan that is not released yet.
    pub release_asked_at: Option<Timestamp>,
}

impl Controls {
    pub fn is_stopped(&self, step: Upstream) -> bool {
        self.stopped || self.stopped_upstreams[step]
    }

    /// Whether a stop or a guard holds anything of the step back.
    pub fn hold(&self, step: Upstream) -> bool {
        self.is_stopped(step) || self.guards[step].is_tripped()
    }

    /// Whether the fleet has the upstream, whatever this process can reach.
    pub fn fleet_has(&self, step: Upstream) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| fleet.has(step))
    }
}

/// An upstream's change guard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ChangeGuard {
    /// Repairs go on, within bounds.
    #[default]
    Armed,
    /// More would have been changed than can be right: repairs rest until a person lifts the guard, or a
    /// sweep finds the upstream sane.
    Tripped {
        at: Timestamp,
        /// What was seen.
        message: String,
    },
    /// A person has looked, and wants the repairs: there are no bounds until then.
    Lifted { until: Timestamp },
}

impl ChangeGuard {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Tripped { .. } => "tripped",
            Self::Lifted { .. } => "lifted",
        }
    }

    pub fn is_tripped(&self) -> bool {
        matches!(self, Self::Tripped { .. })
    }
}

/// How much may be repaired in an upstream at once before that is not believed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChangeGuardPolicy {
    /// Of the upstream's resources, in percent.
    pub percent: u32,
}

impl ChangeGuardPolicy {
    /// Fewer than that are always believed.
    pub const AT_LEAST: u64 = 20;

    /// The most that may change of `resources`.
    pub fn bound(self, resources: u64) -> u64 {
        (resources.saturating_mul(u64::from(self.percent)) / 100).max(Self::AT_LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_may_change_by_twenty_and_a_large_one_by_its_share() {
        let policy = ChangeGuardPolicy { percent: 10 };
        assert_eq!([0, 1, 100, 200, 201, 1_000].map(|n| policy.bound(n)), [20, 20, 20, 20, 20, 100]);
    }
}
