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
use crate::tenant::{Event, EventKind, Reason, Slug, StepKind, Subject, TenantId};

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
        let mut by_subject: HashMap<&Subject, Vec<Document>> = HashMap::new();
        for (subject, event) in events {
            let told = by_subject.entry(subject).or_insert_with(|| {
                order.push(subject);
                Vec::new()
            });
            told.push(event_document(event));
        }
        let updates = order.iter().map(|subject| {
            let events = by_subject.remove(subject).unwrap_or_default();
            let mut set = doc! { "updatedAt": date(Timestamp::now()) };
            if let Subject::Tenant { slug: Some(slug), .. } = subject {
                set.insert("slug", slug.as_str());
            }
            doc! {
                "q": { "_id": subject_id(subject) },
                "u": {
                    "$set": set,
                    "$push": { "events": { "$each": events, "$slice": -KEPT } },
                },
                "upsert": true,
            }
        });
        let updates: Vec<Document> = updates.collect();
        for updates in updates.chunks(BATCH) {
            let command = doc! {
                "update": HISTORY, "updates": updates, "ordered": false,
                "writeConcern": { "w": "majority" },
            };
            let reply = self.command("record events", command).await?;
            let errors = reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
            if let Some(first) = errors.first() {
                let message = format!("{} of them were not written: {first}", errors.len());
                return Err(StoreError::Refused { operation: "record events", message, code: None });
            }
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

    /// The latest events of the fleet, the newest first.
    pub async fn fleet_events(&self, limit: usize) -> Result<Vec<Event>, StoreError> {
        let history = self.history();
        let find = history.find_one(doc! { "_id": subject_id(&Subject::Fleet) });
        let found = self.bounded("events", find).await?.unwrap_or_default();
        let events = found.get_array("events").map(Vec::as_slice).unwrap_or_default();
        Ok(events
            .iter()
            .rev()
            .filter_map(Bson::as_document)
            .filter_map(read_event)
            .take(limit)
            .collect())
    }

    /// Tells the fleet's history something. What it is about has happened, whether or not this can be
    /// written.
    pub(super) async fn tell_fleet(&self, event: Event) {
        let told = self.record_events(&[(Subject::Fleet, event.by(self.by.clone()))]).await;
        if let Err(error) = told {
            tracing::warn!(%error, "cannot write to the fleet's history");
        }
    }

    /// Of tenants whose documents are gone, those that nobody asked us to delete, with their slugs as far as
    /// they are known. Their histories end with that; where there is one, a single caller is told.
    pub async fn vanished(
        &self,
        gone: &[TenantId],
    ) -> Result<Vec<(TenantId, Option<Slug>)>, StoreError> {
        use futures_util::TryStreamExt;
        let ids: Vec<_> = gone.iter().map(|id| object_id(*id)).collect();
        let these = doc! { "_id": { "$in": ids } };
        let tenants = self.tenants.find(these.clone()).projection(doc! { "_id": 1 });
        let history = self.history();
        let histories = history.find(these).projection(doc! { "slug": 1, "events.type": 1 });
        let find = async {
            let there = tenants.await?.try_collect::<Vec<Document>>().await?;
            Ok((there, histories.await?.try_collect::<Vec<Document>>().await?))
        };
        let (there, histories) = self.bounded("vanished", find).await?;
        let of = |documents: &[Document], id: TenantId| {
            let id = object_id(id);
            documents
                .iter()
                .find(|document| document.get_object_id("_id").is_ok_and(|found| found == id))
                .cloned()
        };
        let ends = [EventKind::Deleted.name(), EventKind::Vanished.name()];
        let history_of = self.history();
        let mut vanished = Vec::new();
        for id in gone.iter().copied().filter(|id| of(&there, *id).is_none()) {
            let Some(history) = of(&histories, id) else {
                vanished.push((id, None));
                continue;
            };
            let slug = history.get_str("slug").ok().and_then(|slug| slug.parse().ok());
            let told = event_document(&Event::now(
                EventKind::Vanished,
                "its document was deleted, and not by tenantry; its resources are orphans",
            ));
            let end = history_of.update_one(
                doc! { "_id": object_id(id), "events.type": { "$nin": ends.to_vec() } },
                doc! {
                    "$set": { "updatedAt": date(Timestamp::now()) },
                    "$push": { "events": { "$each": [told], "$slice": -KEPT } },
                },
            );
            if self.bounded("vanished", end).await?.modified_count > 0 {
                vanished.push((id, slug));
            }
        }
        Ok(vanished)
    }
}

fn subject_id(subject: &Subject) -> Bson {
    match subject {
        Subject::Tenant { id, .. } => object_id(*id).into(),
        Subject::Fleet => "fleet".into(),
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
