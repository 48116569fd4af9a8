//! The steps of a tenant, one per upstream, and what is recorded of each.

use std::fmt;
use std::ops::{Index, IndexMut};
use std::str::FromStr;

use jiff::Timestamp;

use super::{Adopted, Fingerprint, IntentId, Observation, StepDesired};

/// A step, named after the upstream it drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Upstream {
    Authentik,
    Stalwart,
    Ocis,
}

impl Upstream {
    pub const ALL: [Self; 3] = [Self::Authentik, Self::Stalwart, Self::Ocis];

    /// The name used in documents, the API, metrics and logs alike.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authentik => "authentik",
            Self::Stalwart => "stalwart",
            Self::Ocis => "ocis",
        }
    }

    /// The setting without which a process cannot reach the upstream.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Authentik => "AUTHENTIK_API_URL",
            Self::Stalwart => "STALWART_API_URL",
            Self::Ocis => "OCIS_API_URL",
        }
    }

    /// Whether nothing in the upstream is unique, so that a create whose outcome is unknown can only be
    /// found again by a mark that was recorded before it was sent.
    pub const fn needs_intent(self) -> bool {
        matches!(self, Self::Ocis)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value for each step; total, so that no step can be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerStep<T>([T; 3]);

impl<T> PerStep<T> {
    pub fn from_fn(make: impl FnMut(Upstream) -> T) -> Self {
        Self(Upstream::ALL.map(make))
    }

    pub fn iter(&self) -> impl Iterator<Item = (Upstream, &T)> {
        Upstream::ALL.into_iter().zip(&self.0)
    }
}

impl<T> Index<Upstream> for PerStep<T> {
    type Output = T;

    fn index(&self, step: Upstream) -> &T {
        &self.0[step as usize]
    }
}

impl<T> IndexMut<Upstream> for PerStep<T> {
    fn index_mut(&mut self, step: Upstream) -> &mut T {
        &mut self.0[step as usize]
    }
}

/// The state of a step, in the words of the service that this one replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StepState {
    /// Not tried yet for the current desired state.
    #[default]
    Pending,
    /// Observed to match.
    Ok,
    /// Nothing to do for this tenant; the reason says why.
    Skipped,
    /// The last attempt failed; the reason and message say how, `next_attempt_at` when it is tried again.
    Error,
}

impl StepState {
    pub const ALL: [Self; 4] = [Self::Pending, Self::Ok, Self::Skipped, Self::Error];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Error => "error",
        }
    }

    /// Whether nothing is left to do.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Ok | Self::Skipped)
    }
}

impl FromStr for StepState {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or(())
    }
}

macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident, )*) => {
        /// Why a step or a tenant is in its state: a closed list, the same in documents, API,
        /// metrics and docs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $( $(#[$doc])* $name, )* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            pub const fn name(self) -> &'static str {
                match self { $( Self::$name => stringify!($name), )* }
            }
        }
    };
}

reasons! {
    /// Observed to match the desired state.
    InSync,
    /// Work is under way or waits for its turn.
    Reconciling,
    /// The desired state changed after the step was last observed to match.
    DesiredStateChanged,
    /// The document is no valid tenant; the message names each field.
    InvalidDocument,
    /// The process lacks the upstream's setting: the step is held if the fleet has the upstream, else
    /// skipped.
    NotConfigured,
    /// The tenant has no mail domain.
    NoMailDomain,
    /// `services` switches the service off for this tenant.
    ServiceDisabled,
    /// The tenant is to go, and its resource stays, marked as released.
    Released,
    /// The tenant is to go, and its resource is gone, or disabled where that is what deleting means.
    Deleted,
    /// What is to be removed still holds something of people's.
    NotEmpty,
    /// The tenant is paused: what differs is shown and left as it is.
    Paused,
    /// The upstream, or everything, was stopped: what differs is shown and left as it is.
    Stopped,
    /// The upstream's change guard has tripped: what differs is shown and left as it is, until a person
    /// lifts the guard or a sweep finds the upstream sane.
    ChangeGuard,
    /// The upstream could not be reached.
    Unreachable,
    /// The upstream did not answer in time; whether a write was applied is found out by looking.
    Timeout,
    /// The upstream answered with an error of its own.
    UpstreamError,
    /// The upstream asked for fewer requests.
    RateLimited,
    /// The upstream runs but is not ready for us: it starts, or has not been set up.
    NotReady,
    /// The upstream's storage is away. It then answers as if nothing existed, which is not believed.
    StorageAway,
    /// The upstream answered something that its API does not say.
    UnexpectedAnswer,
    /// The resource belongs to another tenant, or to an owner whose it must stay.
    Conflict,
    /// More than one resource carries this tenant's mark.
    Duplicate,
    /// The upstream refused the request as invalid.
    Rejected,
    /// Our account in the upstream lacks a permission.
    Forbidden,
    /// The upstream rejected our credentials: nothing works until a person mends them.
    CredentialsRejected,
    /// The upstream accepts the token but not what it says of us: role, e-mail or user name.
    ClaimsRejected,
    /// The upstream's TLS certificate is not trusted, or TLS failed otherwise.
    TlsFailed,
    /// The configured address does not lead to the upstream's API.
    WrongAddress,
}

impl Reason {
    /// Whether it holds a step: what differs is shown and left as it is, until what holds it is taken back.
    pub const fn holds(self) -> bool {
        matches!(self, Self::Paused | Self::Stopped | Self::ChangeGuard | Self::NotConfigured)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Reason {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name).ok_or(())
    }
}

/// The intention to create a resource, as a claim records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateIntent {
    pub id: IntentId,
    /// Recorded by the claim that is being worked on: nothing can have been created for it before.
    pub fresh: bool,
}

/// What is recorded of one step (`steps.<name>` in the document).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepStatus {
    pub state: StepState,
    pub reason: Option<Reason>,
    /// What is wrong, or, of a step that is well, what a person should know all the same.
    pub message: Option<String>,
    /// The upstream's own id of the resource. Kept through errors: it comes first when looking.
    pub external_id: Option<String>,
    /// Resources that were adopted and are not let go yet: the recorded one, and those of before.
    pub adopted: Vec<Adopted>,
    /// Resources beside the recorded one that carry the tenant's mark as in use, as the latest sweep saw them.
    pub others: Vec<OtherResource>,
    /// One of them is new: the next run searches for all that carry the tenant's mark.
    pub search: bool,
    /// The quota that the resource was last given, if it was.
    pub given_quota: Option<i64>,
    /// The service before this one had noted that the step was done, and no run of ours has ended well since.
    pub legacy: bool,
    /// Where the upstream needs one: what may have been created without our knowing it.
    pub create_intent: Option<CreateIntent>,
    /// What the resource looked like when it was last observed to match; sweeps compare it.
    pub fingerprint: Option<Fingerprint>,
    /// What the step was last observed to match, in terms of the desired state.
    pub observed: Option<StepDesired>,
    /// What a look since its latest attempt saw.
    pub observation: Option<Observation>,
    /// Since when it waits for something that the upstream has yet to learn, though it is `ok`.
    pub awaits_since: Option<Timestamp>,
    /// It waits for its upstream to work again.
    pub parked: bool,
    /// Failed attempts in a row; the backoff grows with it.
    pub attempts: u32,
    pub last_attempt_at: Option<Timestamp>,
    /// When `state` last changed.
    pub last_transition_at: Option<Timestamp>,
    /// When the step is due again; `None` is now.
    pub next_attempt_at: Option<Timestamp>,
}

/// A resource that carries a tenant's mark and is not the recorded one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherResource {
    pub external_id: String,
    pub name: String,
}

impl StepStatus {
    /// The quota that we last gave the resource. Before that was recorded, what was observed tells.
    pub fn last_given_quota(&self) -> Option<i64> {
        self.given_quota.or_else(|| self.observed.as_ref()?.storage_bytes)
    }
}
