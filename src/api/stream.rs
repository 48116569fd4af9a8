//! `GET /tenants/watch`: what becomes of tenants, as Server-Sent Events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;

use super::hub::{Event, Hub, Listener};
use super::openapi::Listing;
use super::problem::{FieldError, Problem};
use super::representation::TenantView;
use super::wait::is_of;
use crate::store::Record;
use crate::tenant::{Phase, Slug, TenantId};

/// Between two comments that keep a quiet connection alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// After which a client connects again.
const RETRY: Duration = Duration::from_secs(2);

/// Which tenants to hear of.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct WatchParameters {
    /// Only this tenant
    #[param(nullable = false)]
    slug: Option<String>,
    /// Only tenants with this status
    #[param(pattern = "^(pending|active|deleting)$", nullable = false)]
    status: Option<String>,
}

struct Filter {
    slug: Option<Slug>,
    phase: Option<Phase>,
    /// Ids of the one tenant, whose end is told by its id alone.
    known: Option<TenantId>,
}

/// Watch tenants
///
/// Server-Sent Events: `tenant` with the tenant as it is now, `gone` with the id of one that was removed,
/// and `gap` when events were missed, so that you should read again what you care for. An event's `id`,
/// given as `Last-Event-ID`, continues after it. Who reads too slowly is cut off.
#[utoipa::path(get, path = "/tenants/watch", tag = "tenants", operation_id = "watchTenants",
    params(WatchParameters, ("Last-Event-ID" = Option<String>, Header, description = "Continue after it",
        nullable = false)),
    responses(
        (status = 200, description = "Events", body = String, content_type = "text/event-stream"),
        Listing,
    ))]
pub async fn watch(
    State(hub): State<Hub>,
    headers: HeaderMap,
    parameters: Result<Query<WatchParameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let filter = parameters.read()?;
    let after = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let full = || Problem::unavailable("there are too many watchers already");
    let place = hub.watchers().clone().try_acquire_owned().map_err(|_| full())?;
    let away = || Problem::unavailable("the database's changes cannot be followed now");
    let listener = hub.listen(after).await.ok_or_else(away)?;
    let events = axum::response::Sse::new(Reader::new(filter, listener, place).stream());
    let events = events.keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive"));
    // A proxy that collects the answer first would hold every event back.
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((unbuffered, events).into_response())
}

/// One connection. What it has not read yet is in the hub, once for all readers.
struct Reader {
    filter: Filter,
    first: VecDeque<Sse>,
    missed: VecDeque<Arc<Event>>,
    events: Receiver<Arc<Event>>,
    closing: CancellationToken,
    over: bool,
    /// One of a limited number of places.
    _place: OwnedSemaphorePermit,
}

impl Reader {
    fn new(filter: Filter, listener: Listener, place: OwnedSemaphorePermit) -> Self {
        // Begun at once, so that a client sees that it is connected.
        let mut first: VecDeque<_> = [Sse::default().comment("watching").retry(RETRY)].into();
        if !listener.complete {
            first.push_back(gap());
        }
        let Listener { events, missed, closing, .. } = listener;
        Self { filter, first, missed: missed.into(), events, closing, over: false, _place: place }
    }

    fn stream(self) -> impl Stream<Item = Result<Sse, Infallible>> {
        stream::unfold(self, async |mut reader| {
            let event = reader.next().await?;
            Some((event, reader))
        })
        .map(Ok)
    }

    /// The next event; `None` at the end of the connection.
    async fn next(&mut self) -> Option<Sse> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        while !self.over {
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => tokio::select! {
                    // Who has fallen behind is told, and cut off: the client may come back for what is kept.
                    told = self.events.recv() => told.unwrap_or_else(|_| {
                        self.over = true;
                        Arc::new(Event::Gap)
                    }),
                    () = self.closing.cancelled() => return None,
                },
            };
            if let Some(sse) = self.filter.show(&event) {
                return Some(sse);
            }
        }
        None
    }
}

impl Filter {
    fn show(&mut self, event: &Event) -> Option<Sse> {
        match event {
            Event::Tenant { token, record } => {
                if self.slug.as_ref().is_some_and(|slug| !is_of(record, slug)) {
                    return None;
                }
                if let Record::Tenant(tenant) = record {
                    if self.slug.is_some() {
                        self.known = Some(tenant.id);
                    }
                    if self.phase.is_some_and(|phase| phase != tenant.status.phase) {
                        return None;
                    }
                } else if self.phase.is_some() {
                    return None;
                }
                Sse::default().event("tenant").id(token).json_data(TenantView::from(record)).ok()
            }
            Event::Gone { token, id } => {
                if self.slug.is_some() && self.known != Some(*id) {
                    return None;
                }
                let data = serde_json::json!({ "id": id.to_string() });
                Sse::default().event("gone").id(token).json_data(data).ok()
            }
            Event::Gap => Some(gap()),
        }
    }
}

fn gap() -> Sse {
    Sse::default().event("gap").data("{}")
}

impl WatchParameters {
    fn read(self) -> Result<Filter, Problem> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: String| {
            errors.push(FieldError { field: field.into(), message });
        };
        let slug = self.slug.and_then(|slug| {
            slug.parse::<Slug>().map_err(|error| wrong("slug", error.to_string())).ok()
        });
        let phase = self.status.and_then(|status| {
            let names = Phase::ALL.map(Phase::name).join(", ");
            status.parse::<Phase>().map_err(|()| wrong("status", format!("must be one of {names}"))).ok()
        });
        if errors.is_empty() {
            Ok(Filter { slug, phase, known: None })
        } else {
            Err(Problem::invalid(errors))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hub::KEPT;
    use super::*;

    async fn reader(hub: &Hub, after: Option<&str>) -> Reader {
        let place = Arc::clone(hub.watchers()).try_acquire_owned().unwrap();
        let filter = Filter { slug: None, phase: None, known: None };
        Reader::new(filter, hub.listen(after).await.unwrap(), place)
    }

    fn gone(number: usize) -> Event {
        Event::Gone { token: number.to_string(), id: TenantId::from_bytes([0; 12]) }
    }

    /// Only the kept events take memory, however many readers are slow.
    #[tokio::test]
    async fn who_reads_too_slowly_is_told_and_cut_off_and_holds_no_other_up() {
        let hub = Hub::opened();
        let slow = reader(&hub, None).await;
        let quick = reader(&hub, None).await;
        let (mut slow, mut quick) = (Box::pin(slow.stream()), Box::pin(quick.stream()));
        assert!(quick.next().await.is_some(), "it begins");
        for number in 0..KEPT + 500 {
            hub.tell(gone(number));
            assert!(quick.next().await.is_some(), "the quick one gets everything at once");
        }
        assert!(slow.next().await.is_some(), "it begins");
        assert!(slow.next().await.is_some(), "it is told of the gap");
        assert!(slow.next().await.is_none(), "and cut off");
        drop(slow);
        assert_eq!(hub.watchers().available_permits(), super::super::hub::WATCHERS - 1);

        // It comes back for what is kept.
        let last = (KEPT + 490).to_string();
        let mut back = Box::pin(reader(&hub, Some(&last)).await.stream());
        for _ in 0..=9 {
            assert!(back.next().await.is_some(), "the beginning, and what it missed");
        }
        let nothing = tokio::time::timeout(Duration::from_millis(20), back.next()).await;
        assert!(nothing.is_err(), "and nothing more");
    }
}
