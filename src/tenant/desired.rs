//! The desired state of a tenant, and the part of it that each step answers for.

use std::fmt;
use std::str::FromStr;

use super::{MailDomain, PerStep, TenantName, Upstream};

/// What a tenant should be. Slug and id belong to its identity and never change, so they are not
/// part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub name: TenantName,
    pub domain: Option<MailDomain>,
    /// Storage quota of the project space in bytes; 0 is unlimited. `None` is no business of ours, once what we
    /// gave before is taken back.
    pub storage_bytes: Option<i64>,
    pub services: Services,
    /// Look, but change nothing.
    pub paused: bool,
    /// Whether it may take over what was not made for it; `None` leaves it to the fleet's default. See
    /// [`MayAdopt`](super::MayAdopt).
    pub adopt: Option<bool>,
    /// The tenant is to go, and this is what becomes of its resources.
    pub deletion: Option<DeletionPolicy>,
}

impl Desired {
    /// A tenant of this name with everything else as it usually is.
    pub fn new(name: TenantName) -> Self {
        Self {
            name,
            domain: None,
            storage_bytes: None,
            services: Services::default(),
            paused: false,
            adopt: None,
            deletion: None,
        }
    }
}

/// What becomes of a deleted tenant's resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeletionPolicy {
    /// They stay, marked as released.
    Retain,
    /// The group is deleted, the space disabled, the mail domain removed once nothing is left in it.
    Delete,
    /// As `Delete`, and the disabled space is purged: its files are gone for ever.
    Purge,
}

impl DeletionPolicy {
    pub const ALL: [Self; 3] = [Self::Retain, Self::Delete, Self::Purge];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Retain => "retain",
            Self::Delete => "delete",
            Self::Purge => "purge",
        }
    }
}

impl fmt::Display for DeletionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeletionPolicy {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or(())
    }
}

/// Which services a tenant has; all of them unless told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Services(PerStep<bool>);

impl Services {
    pub fn new(enabled: impl FnMut(Upstream) -> bool) -> Self {
        Self(PerStep::from_fn(enabled))
    }

    pub fn has(&self, step: Upstream) -> bool {
        self.0[step]
    }
}

impl Default for Services {
    fn default() -> Self {
        Self::new(|_| true)
    }
}

/// What a step is to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The resource is there and as desired.
    Present,
    /// The service is switched off: what there is stays, marked as not in use.
    Off,
    /// The tenant is to go.
    Gone(DeletionPolicy),
}

impl Presence {
    pub const ALL: [Self; 5] = [
        Self::Present,
        Self::Off,
        Self::Gone(DeletionPolicy::Retain),
        Self::Gone(DeletionPolicy::Delete),
        Self::Gone(DeletionPolicy::Purge),
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Off => "off",
            Self::Gone(policy) => policy.name(),
        }
    }
}

impl FromStr for Presence {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|presence| presence.name() == name).ok_or(())
    }
}

/// The part of the desired state that concerns one step. A step is due when this differs from what
/// it was last run for, so a change of the quota wakes oCIS alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepDesired {
    pub presence: Presence,
    pub name: TenantName,
    pub domain: Option<MailDomain>,
    pub storage_bytes: Option<i64>,
    pub paused: bool,
    pub adopt: Option<bool>,
}

impl StepDesired {
    /// What the step is to bring about. Without a mail domain there is nothing to be there: what was is let go
    /// as if the service were off.
    pub fn presence_for(&self, step: Upstream) -> Presence {
        match (step, self.presence) {
            (Upstream::Stalwart, Presence::Present) if self.domain.is_none() => Presence::Off,
            (_, presence) => presence,
        }
    }
}

impl Desired {
    pub fn for_step(&self, step: Upstream) -> StepDesired {
        StepDesired {
            presence: match self.deletion {
                Some(policy) => Presence::Gone(policy),
                None if self.services.has(step) => Presence::Present,
                None => Presence::Off,
            },
            name: self.name.clone(),
            domain: match step {
                Upstream::Stalwart => self.domain.clone(),
                Upstream::Authentik | Upstream::Ocis => None,
            },
            storage_bytes: match step {
                Upstream::Ocis => self.storage_bytes,
                Upstream::Authentik | Upstream::Stalwart => None,
            },
            paused: self.paused,
            adopt: self.adopt,
        }
    }
}
