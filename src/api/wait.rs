//! `Prefer: wait=SECONDS` (RFC 7240): answering when a tenant has settled, or saying that it has not yet.

use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::admission::Place;
use super::hub::{Event, Hub, Listener};
use super::problem::Problem;
use crate::store::{Record, Store};
use crate::tenant::{Reason, Slug, StepState, Tenant, TenantId, Upstream};

/// The longest wait; a longer one is cut to it.
pub const LONGEST: Duration = Duration::from_secs(60);
const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// How long the client would wait, as far as it says.
pub fn asked(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let seconds = preferences.flat_map(|line| line.split([',', ';'])).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("wait").then(|| value.parse::<u32>().ok())?
    })?;
    Some(Duration::from_secs(u64::from(seconds)).min(LONGEST))
}

/// The client's wish to wait, if it has one that can be granted.
pub struct Wait(Option<Waiting>);

struct Waiting {
    asked: Duration,
    until: Instant,
    listener: Listener,
    /// Of this request among those that are being answered.
    busy: Option<Place>,
    /// One of a limited number of places of its own.
    _place: OwnedSemaphorePermit,
}

impl<S: Send + Sync> FromRequestParts<S> for Wait
where
    Hub: FromRef<S>,
{
    type Rejection = Problem;

    /// Listening begins here, before anything is written.
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Some(asked) = asked(&parts.headers).filter(|asked| !asked.is_zero()) else {
            return Ok(Self(None));
        };
        let hub = Hub::from_ref(state);
        let until = Instant::now() + asked;
        // A preference may be ignored: that is better than to refuse what was asked for.
        let Ok(place) = hub.waiters().clone().try_acquire_owned() else { return Ok(Self(None)) };
        let Some(listener) = hub.listen(None).await else { return Ok(Self(None)) };
        let busy = parts.extensions.get().cloned();
        Ok(Self(Some(Waiting { asked, until, listener, busy, _place: place })))
    }
}

/// What a waiter found.
pub struct Waited {
    /// The tenant as it is at the end of the wait, where that is known to differ from before.
    pub record: Option<Record>,
    pub settled: bool,
    /// The tenant was removed during the wait.
    pub gone: bool,
    /// `wait=…`, when the wish was granted.
    applied: Option<Duration>,
}

impl Waited {
    /// Says in the answer that the preference was applied.
    pub fn mark(&self, response: &mut Response) {
        let value = self.applied.map(|asked| HeaderValue::try_from(format!("wait={}", asked.as_secs())));
        if let Some(Ok(value)) = value {
            response.headers_mut().insert(APPLIED, value);
        }
    }
}

impl Wait {
    /// Whether there is a wish, and a place to wait.
    pub fn is_granted(&self) -> bool {
        self.0.is_some()
    }

    /// The store that notes with each change whether a client waits for what becomes of it.
    pub fn noted_by(&self, store: &Store) -> Store {
        store.for_one_who_waits(self.is_granted())
    }

    /// Waits until `settled` is true of the tenant, it is gone, or the time is over.
    pub async fn until(
        self,
        store: &Store,
        slug: &Slug,
        subject: &Subject<'_>,
        settled: impl Fn(&Tenant) -> bool,
    ) -> Waited {
        let is = |record: &Record| matches!(record, Record::Tenant(tenant) if settled(tenant));
        let mut waited = Waited { record: None, settled: false, gone: false, applied: None };
        let Some(mut waiting) = self.0 else { return waited };
        waited.applied = Some(waiting.asked);
        if matches!(subject, Subject::Record(record) if is(record)) {
            waited.settled = true;
            return waited;
        }
        if let Some(busy) = &waiting.busy {
            // From here on nothing is done for it, and there may be many who wait.
            busy.release();
        }
        let id = subject.id();
        loop {
            let told = tokio::select! {
                told = waiting.listener.events.recv() => told,
                () = tokio::time::sleep_until(waiting.until) => break,
                () = waiting.listener.closing.cancelled() => break,
            };
            let record = match told.as_deref() {
                Ok(Event::Tenant { record, .. }) if is_of(record, slug) => record.clone(),
                Ok(Event::Gone { id: gone, .. }) if Some(*gone) == id => {
                    waited.gone = true;
                    break;
                }
                Ok(Event::Tenant { .. } | Event::Gone { .. }) => continue,
                // Its event may have been among those that were missed.
                Ok(Event::Gap) | Err(RecvError::Lagged(_)) => match store.get(slug).await {
                    Ok(Some(record)) => record,
                    Ok(None) => {
                        waited.gone = true;
                        break;
                    }
                    Err(_) => break,
                },
                Err(RecvError::Closed) => break,
            };
            waited.settled = is(&record);
            waited.record = Some(record);
            if waited.settled {
                break;
            }
        }
        waited
    }
}

/// What is waited for.
pub enum Subject<'a> {
    /// As the request left it.
    Record(&'a Record),
    /// What a document has for an id, which is no tenant's if the document is invalid.
    Id(Option<TenantId>),
}

impl Subject<'_> {
    fn id(&self) -> Option<TenantId> {
        match self {
            Self::Record(Record::Tenant(tenant)) => Some(tenant.id),
            Self::Record(Record::Invalid(_)) => None,
            Self::Id(id) => *id,
        }
    }
}

impl<'a> From<&'a Record> for Subject<'a> {
    fn from(record: &'a Record) -> Self {
        Self::Record(record)
    }
}

/// Whether the record is that tenant's.
pub fn is_of(record: &Record, slug: &Slug) -> bool {
    match record {
        Record::Tenant(tenant) => tenant.slug == *slug,
        Record::Invalid(invalid) => invalid.slug.as_deref() == Some(slug.as_str()),
    }
}

/// Whether the current desired state has been acted on, well or not.
pub fn acted_on(tenant: &Tenant) -> bool {
    // What is held back stays pending until a person says otherwise.
    let held = |step: Upstream| tenant.status.steps[step].reason.is_some_and(Reason::holds);
    let pending = |step: Upstream| tenant.current_state(step) == StepState::Pending && !held(step);
    tenant.status.observed_generation == Some(tenant.generation)
        && tenant.status.last_handled_desired.as_ref() == Some(&tenant.desired)
        && !Upstream::ALL.into_iter().any(pending)
}

/// Whether this reconcile request has been acted on.
pub fn handled(tenant: &Tenant, token: Timestamp) -> bool {
    tenant.status.last_handled_reconcile_at.is_some_and(|at| at >= token) && acted_on(tenant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wish_is_read_as_rfc_7240_writes_it() {
        let read = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("prefer", HeaderValue::from_str(line).unwrap());
            }
            asked(&headers).map(|wait| wait.as_secs())
        };
        for (lines, seconds) in [
            (&["wait=10"][..], Some(10)),
            (&["respond-async, WAIT = \"5\""], Some(5)),
            (&["return=minimal", "wait=7"], Some(7)),
            (&["wait=86400"], Some(60)),
            (&["wait=soon"], None),
            (&["wait"], None),
            (&[], None),
        ] {
            assert_eq!(read(lines), seconds, "{lines:?}");
        }
    }
}
