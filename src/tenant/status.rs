//! What the controller records about a tenant.

use std::str::FromStr;

use jiff::Timestamp;

use super::{Desired, PerStep, Reason, StepStatus};

/// The tenant's summary (`status` in the document), in the legacy service's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    /// Not every step has been observed to match yet.
    #[default]
    Pending,
    /// Every step was `ok` or `skipped` once. It stays so: the tenant's people are working. Whether
    /// all is well now is what `Ready` says.
    Active,
    /// It is to go: its resources are being released, and the document goes last.
    Deleting,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Pending, Self::Active, Self::Deleting];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Deleting => "deleting",
        }
    }
}

impl FromStr for Phase {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or(())
    }
}

/// The condition `Ready`: whether the tenant matches its desired state now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub ready: bool,
    pub reason: Reason,
    pub message: String,
    /// The generation this was said of.
    pub observed_generation: i64,
    /// When `ready` last changed.
    pub last_transition_time: Timestamp,
}

/// Everything that the controller writes about a tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    pub phase: Phase,
    pub steps: PerStep<StepStatus>,
    pub ready: Option<Ready>,
    pub observed_generation: Option<i64>,
    /// The explicit request that was last acted on.
    pub last_handled_reconcile_at: Option<Timestamp>,
    /// The desired state that the steps were last run for. It differs from what the steps *observed*
    /// while one of them fails.
    pub last_handled_desired: Option<Desired>,
    /// When the tenant is due; `None` is now.
    pub next_reconcile_at: Option<Timestamp>,
}
