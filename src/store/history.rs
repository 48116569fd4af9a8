//! The tenants' histories: one document for each in a collection of their own, of which the latest events
//! are kept, and which expires when nothing has happened for long.
//!
//! # Guarantees
//!
//! * Events are written in batches, by a task that [`Journal::start`] starts: a history costs a command a
//!   second at the most, whatever the number of tenants, and no reconcile waits for it. Only a tombstone is
//!   written at once.
//! * A batch that could not be written is kept, and tried again until it is. Each event has an id, so that
//!   it is in the history once, whatever became of earlier tries.
//! * What waits is bounded; what finds no room, or cannot be part of a history, is dropped and counted.
//! * A process that ends writes what it has. A crash loses what happened within the last second, or since the
//!   database is away.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc, oid::ObjectId};
use mongodb::options::IndexOptions;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::collection::{Collection, simple_document};
use super::document::{date, object_id, timestamp};
use super::{DUPLICATE_KEY, OpenError, Store, StoreError, TRANSIENT_CODES};
use crate::delay::GrowingDelay;
use crate::metrics::Metrics;
use crate::tenant::{Event, EventKind, Reason, Slug, Subject, TenantId, Upstream};

const HISTORY: &str = "tenantry_events";
/// Events kept of each tenant; the oldest go first.
pub const KEPT: i32 = 100;
/// A history is removed when its latest event is older.
const EXPIRES: Duration = Duration::from_secs(90 * 86_400);
/// Events that wait to be written; more are dropped, and counted.
const WAITING: usize = 10_000;
const INTERVAL: Duration = Duration::from_millis(500);
/// Between tries to write the same batch.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Updates in one command.
const BATCH: usize = 500;

/// An event on its way into a history.
#[derive(Debug, Clone)]
struct Entry {
    /// Of this event alone, or of all that are the same one told again.
    id: String,
    subject: Subject,
    event: Event,
}

impl Entry {
    fn new(subject: Subject, event: Event) -> Self {
        let id = event.key.clone().unwrap_or_else(|| ObjectId::new().to_hex());
        Self { id, subject, event }
    }
}

/// Where a store leaves events that it could not write itself.
pub(super) type Backlog = Arc<OnceLock<Journal>>;

/// Writes histories. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    events: mpsc::Sender<Entry>,
    metrics: Arc<Metrics>,
}

impl Journal {
    /// Starts the task that writes; it ends when `ended` is cancelled, having written what it has.
    pub fn start(
        store: Store,
        metrics: Arc<Metrics>,
        ended: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (events, entries) = mpsc::channel(WAITING);
        let journal = Self { events, metrics: Arc::clone(&metrics) };
        // A process has one; where a test has several, any will do.
        let _ = store.backlog.set(journal.clone());
        let writer = Writer { store, metrics, entries, ended };
        (journal, tokio::spawn(writer.run()))
    }

    /// Notes an event; never waits.
    pub fn note(&self, subject: Subject, event: Event) {
        self.keep(Entry::new(subject, event));
    }

    fn keep(&self, entry: Entry) {
        if self.events.try_send(entry).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

/// A tenant whose document is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    pub id: TenantId,
    /// When it went, by the server's clock, where that was told.
    pub at: Option<Timestamp>,
}

struct Writer {
    store: Store,
    metrics: Arc<Metrics>,
    entries: mpsc::Receiver<Entry>,
    ended: CancellationToken,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                received = self.entries.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                }
                () = self.ended.cancelled() => {
                    self.entries.close();
                    if self.entries.recv_many(&mut batch, BATCH).await == 0 {
                        return;
                    }
                }
            }
            self.write(&batch).await;
            if batch.len() < BATCH {
                self.pause(INTERVAL).await;
            }
        }
    }

    /// Writes a batch, however often that takes.
    async fn write(&self, batch: &[Entry]) {
        let mut delay = GrowingDelay::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match self.store.write_entries(batch).await {
                Ok(lost) => return self.metrics.events_dropped.inc_by(lost),
                Err(error) if error.is_unavailable() => {
                    tracing::debug!(%error, events = batch.len(), "cannot write to the histories yet");
                }
                Err(error) => {
                    tracing::error!(%error, events = batch.len(), "these events cannot be written");
                    return self.metrics.events_dropped.inc_by(batch.len() as u64);
                }
            }
            delay.wait().await;
        }
    }

    async fn pause(&self, span: Duration) {
        tokio::select! {
            () = tokio::time::sleep(span) => {}
            () = self.ended.cancelled() => {}
        }
    }
}

impl Store {
    fn history(&self) -> Collection {
        Collection::of(&self.database, HISTORY)
    }

    pub(super) async fn ensure_history(&self) -> Result<(), OpenError> {
        let expire = IndexOptions::builder().name("tenantry_expiry".to_owned()).expire_after(EXPIRES);
        let slug = IndexOptions::builder().name("tenantry_slug".to_owned());
        let indexes = vec![
            IndexModel::builder().keys(doc! { "updatedAt": 1 }).options(expire.build()).build(),
            IndexModel::builder().keys(doc! { "slug": 1 }).options(slug.build()).build(),
        ];
        self.ensure_indexes(&self.history(), indexes).await
    }

    /// Appends events, in their order, with one command for at most 500 tenants.
    ///
    /// # Errors
    /// Also when one of them cannot be appended to its history; the others are.
    pub async fn record_events(&self, events: &[(Subject, Event)]) -> Result<(), StoreError> {
        let entry = |(subject, event): &(Subject, Event)| Entry::new(subject.clone(), event.clone());
        match self.write_entries(&events.iter().map(entry).collect::<Vec<_>>()).await? {
            0 => Ok(()),
            lost => {
                let message = format!("{lost} events were not written");
                Err(StoreError::Refused { operation: "record events", message, code: None })
            }
        }
    }

    /// The same; returns how many cannot be part of their histories, and never will.
    async fn write_entries(&self, entries: &[Entry]) -> Result<u64, StoreError> {
        let mut order = Vec::new();
        let mut by_subject: HashMap<&Subject, Vec<Document>> = HashMap::new();
        for Entry { id, subject, event } in entries {
            let told = by_subject.entry(subject).or_insert_with(|| {
                order.push(subject);
                Vec::new()
            });
            told.push(event_document(id, event));
        }
        let mut lost = 0;
        for subjects in order.chunks(BATCH) {
            let counts: Vec<usize> = subjects.iter().map(|subject| by_subject[subject].len()).collect();
            let updates = subjects.iter().map(|subject| {
                let events = by_subject.remove(subject).unwrap_or_default();
                let append = append(events, (*subject).slug());
                doc! { "q": { "_id": subject_id(subject) }, "u": [append], "upsert": true, "collation": simple_document() }
            });
            let command = doc! {
                "update": HISTORY, "updates": updates.collect::<Vec<_>>(), "ordered": false,
                "writeConcern": { "w": "majority" },
            };
            let reply = self.command("record events", command).await?;
            lost += refused(&reply, &counts)?;
        }
        Ok(lost)
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

    /// The slug that a tenant has or had, as far as its history tells.
    pub(super) async fn slug_of(&self, id: TenantId) -> Result<Option<Slug>, StoreError> {
        let history = self.history();
        let find = history.find_one(doc! { "_id": object_id(id) }).projection(doc! { "slug": 1 });
        let found = self.bounded("events", find).await?;
        Ok(found.and_then(|history| history.get_str("slug").ok()?.parse().ok()))
    }

    /// Tells the fleet's history something. What it is about has happened, whether or not this can be
    /// written now; if not, that is left to the journal.
    pub(super) async fn tell_fleet(&self, event: Event) {
        let entry = Entry::new(Subject::Fleet, event.by(self.by.clone()));
        let Err(error) = self.write_entries(std::slice::from_ref(&entry)).await else { return };
        match self.backlog.get() {
            Some(journal) if error.is_unavailable() => journal.keep(entry),
            _ => tracing::warn!(%error, "cannot write to the fleet's history"),
        }
    }

    /// Of tenants whose documents are gone, those that tenantry was not asked to delete, with their slugs as
    /// far as they are known. Their histories end with that; where there is one, a single caller is told.
    ///
    /// A document may come back, as from a backup, and vanish again. That is told again.
    pub async fn vanished(&self, gone: &[Gone]) -> Result<Vec<(TenantId, Option<Slug>)>, StoreError> {
        use futures_util::TryStreamExt;
        let ids: Vec<_> = gone.iter().map(|gone| object_id(gone.id)).collect();
        let these = doc! { "_id": { "$in": ids } };
        let tenants = self.tenants.find(these.clone()).projection(doc! { "_id": 1 });
        let history = self.history();
        let fields = doc! { "slug": 1, "ended": has_ended(None) };
        let histories = history.find(these).projection(fields);
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
        let history_of = self.history();
        let mut vanished = Vec::new();
        for Gone { id, at } in gone.iter().copied().filter(|gone| of(&there, gone.id).is_none()) {
            let Some(history) = of(&histories, id) else {
                vanished.push((id, None));
                continue;
            };
            // Those that a sweep finds again and again are not written to again and again.
            if at.is_none() && history.get_bool("ended").unwrap_or(false) {
                continue;
            }
            let slug = history.get_str("slug").ok().and_then(|slug| slug.parse().ok());
            let told = Event::new(
                self.clock.now(),
                EventKind::Vanished,
                "its document was deleted, and not by tenantry; its resources are orphans",
            );
            let open = doc! { "_id": object_id(id), "$expr": { "$not": [has_ended(at)] } };
            let end = history_of.update_one(open, vec![end(&told)]);
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

/// Aggregation expression: the history ends with the end of its tenant, and nothing came after: no other event,
/// and no deletion, as far as it is known when the document went.
fn has_ended(gone_at: Option<Timestamp>) -> Document {
    let events = doc! { "$cond": [{ "$isArray": "$events" }, "$events", []] };
    let ends = [EventKind::Deleted.name(), EventKind::Vanished.name()];
    let is_end = doc! { "$in": ["$$this.type", ends.to_vec()] };
    let last = doc! { "$last": { "$filter": { "input": events.clone(), "cond": is_end.clone() } } };
    let later = doc! { "$and": [{ "$not": [is_end] }, { "$gt": ["$$this.at", "$$end.at"] }] };
    let later = doc! { "$size": { "$filter": { "input": events, "cond": later } } };
    let mut all = vec![doc! { "$ne": [{ "$type": "$$end" }, "missing"] }, doc! { "$eq": [later, 0] }];
    if let Some(at) = gone_at {
        // Of what tenantry deleted, the end is told before.
        all.push(doc! { "$or": [
            { "$eq": ["$$end.type", EventKind::Deleted.name()] }, { "$gte": ["$$end.at", date(at)] },
        ] });
    }
    doc! { "$let": { "vars": { "end": last }, "in": { "$and": all } } }
}

/// Adds an event that happens now, by the server's clock.
fn end(event: &Event) -> Document {
    let event = doc! { "$literal": event_document(&ObjectId::new().to_hex(), event) };
    let now = doc! { "$mergeObjects": [event, { "at": "$$NOW" }] };
    let all = doc! { "$concatArrays": [{ "$ifNull": ["$events", []] }, [now]] };
    doc! { "$set": { "updatedAt": "$$NOW", "events": { "$slice": [all, -KEPT] } } }
}

/// Adds events to a history, but those that are in it already.
fn append(events: Vec<Document>, slug: Option<&Slug>) -> Document {
    let known = doc! { "$ifNull": ["$events.id", []] };
    let new = doc! { "$filter": {
        "input": { "$literal": events }, "cond": { "$not": [{ "$in": ["$$this.id", known] }] },
    } };
    let all = doc! { "$concatArrays": [{ "$ifNull": ["$events", []] }, new] };
    let mut set = doc! { "updatedAt": "$$NOW", "events": { "$slice": [all, -KEPT] } };
    if let Some(slug) = slug {
        set.insert("slug", doc! { "$literal": slug.as_str() });
    }
    doc! { "$set": set }
}

/// How many events were refused for good, by what an update of several histories answered; `events` are the
/// numbers of them in each.
///
/// # Errors
/// Where another try may help.
fn refused(reply: &Document, events: &[usize]) -> Result<u64, StoreError> {
    let errors = reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
    let mut lost = 0;
    for error in errors.iter().filter_map(Bson::as_document) {
        let message = error.get_str("errmsg").unwrap_or_default().to_owned();
        let code = error.get_i32("code").unwrap_or_default();
        // Two that make the same history at once: one of them finds it the next time.
        if TRANSIENT_CODES.contains(&code) || code == DUPLICATE_KEY {
            return Err(StoreError::Unavailable { operation: "record events", message });
        }
        tracing::warn!(%message, "a history takes no more events");
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        lost += index.and_then(|index| events.get(index)).map_or(1, |events| *events as u64);
    }
    Ok(lost)
}

fn event_document(id: &str, event: &Event) -> Document {
    let mut document = doc! {
        "id": id, "at": date(event.at), "type": event.kind.name(), "message": &event.message,
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
    let step = text("step").and_then(|name| Upstream::ALL.into_iter().find(|step| step.name() == name));
    Some(Event {
        at: event.get("at").and_then(timestamp)?,
        kind: text("type")?.parse().ok()?,
        step,
        reason: text("reason").and_then(|reason| reason.parse::<Reason>().ok()),
        message: text("message").unwrap_or_default().to_owned(),
        by: text("by").map(ToOwned::to_owned),
        key: None,
    })
}
