//! The desired state of a tenant, and the part of it that each step answers for.

use super::{MailDomain, PerStep, StepKind, TenantName};

/// What a tenant should be. Slug and id belong to its identity and never change, so they are not
/// part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub name: TenantName,
    pub domain: Option<MailDomain>,
    /// Storage quota of the project space in bytes; 0 is unlimited, `None` leaves it to oCIS.
    pub storage_bytes: Option<i64>,
    pub services: Services,
}

/// Which services a tenant has; all of them unless told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Services(PerStep<bool>);

impl Services {
    pub fn new(enabled: impl FnMut(StepKind) -> bool) -> Self {
        Self(PerStep::from_fn(enabled))
    }

    pub fn has(&self, step: StepKind) -> bool {
        self.0[step]
    }
}

impl Default for Services {
    fn default() -> Self {
        Self::new(|_| true)
    }
}

/// The part of the desired state that concerns one step. A step is due when this differs from what
/// it was last run for, so a change of the quota wakes oCIS and nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepDesired {
    pub enabled: bool,
    pub name: TenantName,
    pub domain: Option<MailDomain>,
    pub storage_bytes: Option<i64>,
}

impl Desired {
    pub fn for_step(&self, step: StepKind) -> StepDesired {
        StepDesired {
            enabled: self.services.has(step),
            name: self.name.clone(),
            domain: match step {
                StepKind::Stalwart => self.domain.clone(),
                StepKind::Authentik | StepKind::Ocis => None,
            },
            storage_bytes: match step {
                StepKind::Ocis => self.storage_bytes,
                StepKind::Authentik | StepKind::Stalwart => None,
            },
        }
    }
}
