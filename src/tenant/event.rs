//! What happened to a tenant: its history, for people.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::{Reason, Slug, TenantId, Upstream};

macro_rules! kinds {
    ($( $(#[$doc:meta])* $name:ident, )*) => {
        /// What an event is about: a closed list, the same in documents, API and docs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventKind { $( $(#[$doc])* $name, )* }

        impl EventKind {
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            pub const fn name(self) -> &'static str {
                match self { $( Self::$name => stringify!($name), )* }
            }
        }
    };
}

kinds! {
    /// The tenant was created, or seen for the first time.
    Created,
    /// Its desired state changed; the message says what from and to.
    Edited,
    /// A reconcile was requested.
    ReconcileRequested,
    /// A step's state or reason changed.
    StepChanged,
    /// A sweep saw that a resource differs; the message says in what.
    DriftFound,
    /// What had been changed in an upstream was put back; the message says what.
    DriftRepaired,
    /// A resource was made.
    ResourceCreated,
    /// A resource was made again, because the recorded one is gone: what people kept in it may be lost.
    ResourceRecreated,
    /// A resource that tenantry had not made for this tenant was taken over.
    ResourceAdopted,
    /// A resource that was off, released or disabled is in use again.
    ResourceRestored,
    /// A resource was let go and stays; the message says how.
    ResourceReleased,
    /// A resource was let go and is gone for ever.
    ResourceDeleted,
    /// A second resource with the tenant's mark was put out of use.
    TwinDisabled,
    /// Every step was ok or skipped for the first time.
    Active,
    Paused,
    Resumed,
    /// Its deletion was requested.
    DeletionRequested,
    /// The deletion was taken back.
    Undeleted,
    /// Its resources were let go as asked, and its document is gone: the last event.
    Deleted,
    /// Its document is gone although its deletion was not requested; its resources are orphans.
    Vanished,
    /// Of the fleet: an upstream's change guard tripped; the message says what was seen.
    GuardTripped,
    /// Of the fleet: a person has looked, and wants the repairs.
    GuardLifted,
    /// Of the fleet: a sweep found the upstream sane.
    GuardArmed,
    /// Of the fleet: nothing is changed any more in an upstream, or in any.
    Stopped,
    /// Of the fleet: a stop was taken back.
    Started,
    /// Of the fleet: resources were found that are marked for tenants which do not exist.
    OrphansFound,
    /// Of the fleet: such resources are no longer there, or no longer orphans.
    OrphansGone,
    /// Of the fleet: such a resource was released, because an administrator asked for it.
    OrphanReleased,
    /// Of the fleet: it has an upstream that it did not have before.
    UpstreamAdded,
    /// Of the fleet: an administrator said that it no longer has an upstream.
    UpstreamRetired,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EventKind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name).ok_or(())
    }
}

/// One entry of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: Timestamp,
    pub kind: EventKind,
    pub step: Option<Upstream>,
    pub reason: Option<Reason>,
    pub message: String,
    /// Who asked for it, where that is known.
    pub by: Option<String>,
    /// What it has in common with the same event told again, should that be possible.
    pub key: Option<String>,
}

impl Event {
    pub fn new(at: Timestamp, kind: EventKind, message: impl Into<String>) -> Self {
        Self { at, kind, step: None, reason: None, message: message.into(), by: None, key: None }
    }

    #[must_use]
    pub fn of_step(mut self, step: Upstream, reason: Option<Reason>) -> Self {
        (self.step, self.reason) = (Some(step), reason);
        self
    }

    /// Told again with the same key, it is the same event.
    #[must_use]
    pub fn keyed(mut self, key: String) -> Self {
        self.key = Some(key);
        self
    }

    #[must_use]
    pub fn by(mut self, who: Option<String>) -> Self {
        self.by = who;
        self
    }
}

/// A change that was asked for, until it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribution {
    /// Who asked for it, where that is known.
    pub by: Option<String>,
    pub kind: EventKind,
}

/// Whose history an event belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A tenant's. Where its slug is not known, it is not made known.
    Tenant { id: TenantId, slug: Option<Slug> },
    /// That of all tenants together.
    Fleet,
}

impl Subject {
    /// The tenant's slug, where there is one and it is known.
    pub fn slug(&self) -> Option<&Slug> {
        match self {
            Self::Tenant { slug, .. } => slug.as_ref(),
            Self::Fleet => None,
        }
    }
}
