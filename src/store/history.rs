//! The tenants' histories: one document for each in a collection of their own, of which the latest events
//! are kept, and which expires when nothing has happened for long.
//!
//! Events are written in batches, by a task that [`Journal::start`] starts: a history costs a command a
//! second at the most, whatever the number of tenants, and no reconcile waits for it. A crash loses what
//! happened within that second. Only a tombstone is written at once.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::IndexOptions;
use mongodb::{Collection, IndexModel};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::document::{date, object_id, timestamp};
use super::{OpenError, Store, StoreError};
use crate::metrics::Metrics;
use crate::tenant::{Event, EventKind, Reason, Slug, StepKind, Subject};

const HISTORY: &str = "tenantry_events";
/// Events kept of each tenant; the oldest go first.
pub const KEPT: i32 = 100;
/// A history is removed when its latest event is older.
const EXPIRES: Duration = Duration::from_secs(90 * 86_400);
/// Events that wait to be written; more are dropped, and counted.
const WAITING: usize = 10_000;
const INTERVAL: Duration = Duration::from_millis(500);
/// Updates in one command.
const BATCH: usize = 500;

/// Writes histories. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    events: mpsc::Sender<(Subject, Event)>,
    metrics: std::sync::Arc<Metrics>,
}

impl Journal {
    /// Starts the task that writes; it ends when `ended` is cancelled, having written what it has.
    pub fn start(
        store: Store,
        metrics: std::sync::Arc<Metrics>,
        ended: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (events, written) = mpsc::channel(WAITING);
        let writing = tokio::spawn(write(store, written, ended));
        (Self { events, metrics }, writing)
    }

    /// Notes an event; never waits.
    pub fn note(&self, subject: Subject, event: Event) {
        if self.events.try_send((subject, event)).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

async fn write(store: Store, mut events: mpsc::Receiver<(Subject, Event)>, ended: CancellationToken) {
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            received = events.recv_many(&mut batch, BATCH) => {
                if received == 0 {
                    return;
                }
            }
            () = ended.cancelled() => {
                events.close();
                if events.recv_many(&mut batch, WAITING).await == 0 {
                    return;
                }
            }
        }
        if let Err(error) = store.record_events(&batch).await {
            tracing::warn!(%error, events = batch.len(), "cannot write to the tenants' histories");
        }
        if !ended.is_cancelled() && batch.len() < BATCH {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = ended.cancelled() => {}
            }
        }
    }
}

impl Store {
    fn history(&self) -> Collection<Document> {
        self.database.collection(HISTORY)
    }

    pub(super) async fn ensure_history(&self) -> Result<(), OpenError> {
        let expire = IndexOptions::builder().name("tenantry_expiry".to_owned()).expire_after(EXPIRES);
        let slug = IndexOptions::builder().name("tenantry_slug".to_owned());
        let indexes = [
            IndexModel::builder().keys(doc! { "updatedAt": 1 }).options(expire.build()).build(),
            IndexModel::builder().keys(doc! { "slug": 1 }).options(slug.build()).build(),
        ];
        self.bounded("createIndexes", self.history().create_indexes(indexes)).await?;
        Ok(())
    }

    /// Appends events, in their order, with one command for at most 500 tenants.
    pub async fn record_events(&self, events: &[(Subject, Event)]) -> Result<(), StoreError> {
        let mut order = Vec::new();
        let mut by_tenant: HashMap<_, (&Subject, Vec<Document>)> = HashMap::new();
        for (subject, event) in events {
            let entry = by_tenant.entry(subject.id).or_insert_with(|| {
                order.push(subject.id);
                (subject, Vec::new())
            });
            entry.1.push(event_document(event));
        }
        let updates = order.iter().map(|id| {
            let (subject, events) = &by_tenant[id];
            doc! {
                "q": { "_id": object_id(*id) },
                "u": {
                    "$set": { "slug": subject.slug.as_str(), "updatedAt": date(Timestamp::now()) },
                    "$push": { "events": { "$each": events.clone(), "$slice": -KEPT } },
                },
                "upsert": true,
            }
        });
        let updates: Vec<Document> = updates.collect();
        for updates in updates.chunks(BATCH) {
            let command = doc! { "update": HISTORY, "updates": updates, "ordered": false };
            self.command("record events", command).await?;
        }
        Ok(())
    }

    /// The latest events of the tenants that have or had this slug, the newest first.
    pub async fn events(&self, slug: &Slug, limit: usize) -> Result<Vec<Event>, StoreError> {
        use futures_util::TryStreamExt;
        let history = self.history();
        let find = async {
            let found = history.find(doc! { "slug": slug.as_str() }).sort(doc! { "updatedAt": -1 });
            found.limit(10).await?.try_collect::<Vec<_>>().await
        };
        let found = self.bounded("events", find).await?;
        let mut events: Vec<Event> = found
            .iter()
            .filter_map(|history| history.get_array("events").ok())
            .flat_map(|events| events.iter().filter_map(Bson::as_document).filter_map(read_event))
            .collect();
        events.reverse();
        events.sort_by_key(|event| std::cmp::Reverse(event.at));
        events.truncate(limit);
        Ok(events)
    }

    /// Whether a tenant went as it should: its history ends with a tombstone.
    pub async fn has_tombstone(&self, id: crate::tenant::TenantId) -> Result<bool, StoreError> {
        let deleted = EventKind::Deleted.name();
        let history = self.history();
        let find = history
            .find_one(doc! { "_id": object_id(id), "events.type": deleted })
            .projection(doc! { "_id": 1 });
        Ok(self.bounded("tombstone", find).await?.is_some())
    }
}

fn event_document(event: &Event) -> Document {
    let mut document = doc! {
        "at": date(event.at), "type": event.kind.name(), "message": &event.message,
    };
    if let Some(step) = event.step {
        document.insert("step", step.name());
    }
    if let Some(reason) = event.reason {
        document.insert("reason", reason.name());
    }
    if let Some(by) = &event.by {
        document.insert("by", by);
    }
    document
}

fn read_event(event: &Document) -> Option<Event> {
    let text = |field: &str| event.get_str(field).ok();
    let step = text("step").and_then(|name| StepKind::ALL.into_iter().find(|step| step.name() == name));
    Some(Event {
        at: event.get("at").and_then(timestamp)?,
        kind: text("type")?.parse().ok()?,
        step,
        reason: text("reason").and_then(|reason| reason.parse::<Reason>().ok()),
        message: text("message").unwrap_or_default().to_owned(),
        by: text("by").map(ToOwned::to_owned),
    })
}
