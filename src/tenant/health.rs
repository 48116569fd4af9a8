//! How an upstream is, as far as this process knows.

use jiff::Timestamp;

use super::Reason;

/// The health of one integration, for `/readyz` and the metrics. `None` is "not known yet".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamHealth {
    /// Whether it answers.
    pub reachable: Option<bool>,
    /// Whether it accepts our credentials.
    pub authenticated: Option<bool>,
    /// The release, where it says so.
    pub version: Option<String>,
    /// Permissions that our account lacks, by the upstream's own names.
    pub lacks: Vec<String>,
    /// What is wrong, and what to do about it. Never a secret.
    pub problem: Option<(Reason, String)>,
    /// Whether steps are let through.
    pub breaker: Breaker,
    /// When it last accepted our credentials.
    pub accepted_at: Option<Timestamp>,
}

/// Whether steps are let through to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Breaker {
    /// It has not answered yet, or has just begun to again: one step at a time is let through.
    #[default]
    Unproven,
    /// It works.
    Closed,
    /// It is down or refuses us: its steps wait until a probe finds that it works.
    Open {
        /// When the next probe is due.
        probe_at: Timestamp,
    },
}

impl Breaker {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Closed => "closed",
            Self::Open { .. } => "open",
        }
    }
}

impl UpstreamHealth {
    /// Whether nothing is known to be wrong.
    pub fn is_healthy(&self) -> bool {
        self.problem.is_none() && self.authenticated == Some(true)
    }

    /// Whether steps are let through, because it answers and knows us. A missing permission keeps none back.
    pub fn lets_through(&self) -> bool {
        match self.breaker {
            Breaker::Closed => true,
            Breaker::Unproven => self.reachable == Some(true) && self.authenticated == Some(true),
            Breaker::Open { .. } => false,
        }
    }

    /// Whether `other` says the same to those who wait for a change: when the credentials were last
    /// accepted is no change.
    pub fn says_the_same(&self, other: &Self) -> bool {
        Self { accepted_at: other.accepted_at, ..self.clone() } == *other
    }
}
