//! What an integration can fail with.

use std::time::Duration;

use super::circuit::LONGEST_PAUSE;
use super::upstream::Purpose;
use crate::tenant::{Failure, FailureKind, Reason, TenantId};

/// A failure, and what it says about the upstream's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub failure: Failure,
    pub effect: Effect,
    /// What is true for all tenants, where the message says more: what was being done for one, or words of
    /// the upstream that may name it.
    pub(super) common: Option<String>,
    /// Whose resource is in the way.
    pub(super) against: Option<Box<Against>>,
}

/// A resource that is in the way because of its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Against {
    /// The tenant that it is marked for.
    pub tenant: TenantId,
    pub external_id: String,
}

/// What a request that failed may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Nothing, because what we had observed is no longer so: look again and go on.
    Stale,
    /// Nothing: it was not sent, because what it would change is to be left alone now. The failure's reason
    /// says why.
    Held,
    /// Perhaps what it was asked to do, perhaps later: look, and write nothing more for now.
    Unknown,
}

impl Error {
    fn new(kind: FailureKind, reason: Reason, message: String) -> Self {
        let failure = Failure {
            kind,
            reason,
            message,
            external_id: None,
            unresolved: false,
            parked: false,
            asked: true,
        };
        Self { failure, effect: Effect::None, common: None, against: None }
    }

    /// May pass by itself.
    pub fn transient(reason: Reason, message: String) -> Self {
        Self::new(FailureKind::Transient { retry_after: None }, reason, message)
    }

    /// The upstream asked for a pause: the request waits its turn.
    pub fn throttled(message: String, wait: Duration) -> Self {
        Self::new(FailureKind::Paced { wait }, Reason::RateLimited, message)
    }

    /// A request that was not sent; see [`Effect::Held`].
    pub fn held(reason: Reason, message: String) -> Self {
        let mut error = Self::transient(reason, message);
        error.effect = Effect::Held;
        error
    }

    /// Needs a person or another desired state.
    pub fn terminal(reason: Reason, message: String) -> Self {
        Self::new(FailureKind::Terminal, reason, message)
    }

    /// The integration as a whole does not work; the gate says when it is tried again.
    pub fn misconfigured(reason: Reason, message: String) -> Self {
        let kind = FailureKind::Misconfigured { retry_after: Duration::ZERO };
        Self::new(kind, reason, message)
    }

    /// A write that failed like this may have been applied all the same.
    #[must_use]
    pub fn after(mut self, purpose: Purpose) -> Self {
        if purpose == Purpose::Write {
            self.effect = Effect::Unknown;
        }
        self
    }

    /// After a write that was refused because of something that we had not seen.
    #[must_use]
    pub fn stale(mut self) -> Self {
        self.effect = Effect::Stale;
        self
    }

    /// A create failed like this: unless it certainly did nothing, a later run must look for it.
    #[must_use]
    pub fn of_create(mut self) -> Self {
        self.failure.unresolved = self.effect == Effect::Unknown;
        self
    }

    /// After a create whose outcome could not be found out.
    #[must_use]
    pub fn unresolved(mut self) -> Self {
        self.failure.unresolved = true;
        self
    }

    /// Records which resource this is about.
    #[must_use]
    pub fn about(mut self, external_id: &str) -> Self {
        self.failure.external_id = Some(external_id.to_owned());
        self
    }

    /// Records which resource this is about, unless it says so itself.
    #[must_use]
    pub fn at_least_about(mut self, external_id: Option<&str>) -> Self {
        if self.failure.external_id.is_none() {
            self.failure.external_id = external_id.map(ToOwned::to_owned);
        }
        self
    }

    /// Records whose resource is in the way.
    #[must_use]
    pub(super) fn against(mut self, tenant: TenantId, external_id: &str) -> Self {
        self.against = Some(Box::new(Against { tenant, external_id: external_id.to_owned() }));
        self
    }

    /// Says what the other tenants of the upstream are told instead of the message.
    #[must_use]
    pub fn told_to_all(mut self, message: String) -> Self {
        self.common = Some(message);
        self
    }

    /// The same, without what concerns only the tenant that met it.
    #[must_use]
    pub fn for_everybody(&self) -> Self {
        let mut error = self.clone();
        error.failure.external_id = None;
        error.failure.unresolved = false;
        error.failure.asked = false;
        error.effect = Effect::None;
        error.against = None;
        if let Some(common) = error.common.take() {
            error.failure.message = common;
        }
        error
    }

    /// Whether it counts as a sign that the upstream is down: it did not answer, or not as one that works.
    pub fn is_outage(&self) -> bool {
        self.is_transient()
            && matches!(
                self.failure.reason,
                Reason::Unreachable
                    | Reason::Timeout
                    | Reason::UpstreamError
                    | Reason::NotReady
                    | Reason::StorageAway
                    | Reason::ClaimsRejected
            )
    }

    /// Whether any other tenant would have met it too.
    pub fn is_about_the_upstream(&self) -> bool {
        self.is_misconfigured()
            || matches!(
                self.failure.reason,
                Reason::Unreachable
                    | Reason::Timeout
                    | Reason::NotReady
                    | Reason::StorageAway
                    | Reason::ClaimsRejected
            )
    }

    /// Whether it was not tried, or is to be tried again, only because the upstream asked for a pause.
    pub fn is_paced(&self) -> bool {
        matches!(self.failure.kind, FailureKind::Paced { .. })
    }

    /// How long it is to be left alone, as far as it is given that.
    pub fn asked_pause(&self) -> Duration {
        let asked = match self.failure.kind {
            FailureKind::Misconfigured { retry_after } => retry_after,
            FailureKind::Transient { retry_after } => retry_after.unwrap_or_default(),
            FailureKind::Paced { wait } => wait,
            FailureKind::Terminal => Duration::ZERO,
        };
        asked.min(LONGEST_PAUSE)
    }

    /// The same with another message.
    #[must_use]
    pub fn reworded(mut self, words: impl FnOnce(&str) -> String) -> Self {
        self.failure.message = words(&self.failure.message);
        self
    }

    /// Whether another secret could be what is needed: a credential, or the roots that are trusted.
    pub fn is_about_our_secrets(&self) -> bool {
        matches!(
            self.failure.reason,
            Reason::CredentialsRejected | Reason::ClaimsRejected | Reason::TlsFailed
        )
    }

    pub fn is_misconfigured(&self) -> bool {
        matches!(self.failure.kind, FailureKind::Misconfigured { .. })
    }

    pub fn is_transient(&self) -> bool {
        matches!(self.failure.kind, FailureKind::Transient { .. })
    }
}
