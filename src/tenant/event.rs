//! What happened to a tenant: its history, for people.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::{Reason, Slug, StepKind, TenantId};

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
    /// Somebody asked for a reconcile.
    ReconcileRequested,
    /// A step's state or reason changed.
    StepChanged,
    /// What somebody had changed in an upstream was put back; the message says what.
    DriftRepaired,
    /// Every step was ok or skipped for the first time.
    Active,
    Paused,
    Resumed,
    /// Somebody asked for its deletion.
    DeletionRequested,
    /// The deletion was taken back.
    Undeleted,
    /// Its resources were let go as asked, and its document is gone: the last event.
    Deleted,
    /// Its document is gone although nobody asked tenantry for it; its resources are orphans.
    Vanished,
    /// An upstream's change guard tripped.
    GuardTripped,
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
    pub step: Option<StepKind>,
    pub reason: Option<Reason>,
    pub message: String,
    /// Who asked for it, where that is known.
    pub by: Option<String>,
}

impl Event {
    pub fn now(kind: EventKind, message: impl Into<String>) -> Self {
        let at = Timestamp::now();
        Self { at, kind, step: None, reason: None, message: message.into(), by: None }
    }

    #[must_use]
    pub fn of_step(mut self, step: StepKind, reason: Option<Reason>) -> Self {
        (self.step, self.reason) = (Some(step), reason);
        self
    }

    #[must_use]
    pub fn by(mut self, who: Option<String>) -> Self {
        self.by = who;
        self
    }
}

/// Whose history an event belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub id: TenantId,
    pub slug: Slug,
}
