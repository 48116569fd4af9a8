//! The change stream: which tenants other writers changed, as soon as they did.
//!
//! # Guarantees
//!
//! * The server filters: the controller's own claims and commits produce no event.
//! * After an interruption the stream resumes where it was; where it cannot, the caller is told
//!   ([`WorkEvent::Gap`]), and asks the database instead.

use jiff::Timestamp;
use mongodb::bson::{Document, doc};

use super::change_stream::{ChangeStream, ResumeToken, WatchError};
use super::document::{WAITED_FOR, timestamp};
use super::due::content_due;
use super::history::Gone;
use super::{Store, TENANTS};
use crate::tenant::{TenantId, Urgency};

/// One thing that the stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkEvent {
    /// A tenant was inserted, or changed by another writer. `at` is the server's time of the change.
    Tenant { id: TenantId, urgency: Urgency, at: Option<Timestamp> },
    /// A tenant's document is gone.
    Gone(Gone),
    /// The collection was dropped or renamed: this stream has ended, and the next one cannot resume.
    Gap,
}

/// An open stream of the tenants' changes.
pub struct WorkStream(ChangeStream);

impl Store {
    /// Opens a stream of changes from now on, or from where an earlier one was.
    pub async fn watch(&self, resume: Option<ResumeToken>) -> Result<WorkStream, WatchError> {
        let stages = vec![doc! { "$match": that_give_work() }, only_what_is_read()];
        ChangeStream::open(self, TENANTS, Document::new(), stages, resume).await.map(WorkStream)
    }
}

impl WorkStream {
    /// Where the stream is. Moves on even while nothing happens.
    pub fn token(&self) -> Option<ResumeToken> {
        self.0.token()
    }

    /// The next changes; empty when nothing happened for a while.
    ///
    /// Not cancel-safe: after dropping the future, open a new stream from the last [`WorkStream::token`].
    pub async fn next(&mut self) -> Result<Vec<WorkEvent>, WatchError> {
        let events = self.0.next().await?;
        Ok(events
            .map_or_else(|| vec![WorkEvent::Gap], |events| events.iter().filter_map(change).collect()))
    }

    /// Ends the stream on the server too.
    pub async fn close(self) {
        self.0.close().await;
    }
}

fn change(event: &Document) -> Option<WorkEvent> {
    let operation = event.get_str("operationType").unwrap_or_default();
    match operation {
        "insert" | "update" | "replace" => {
            // Another kind of `_id` cannot be claimed; the due scan deals with it.
            let id = event.get_document("documentKey").ok()?.get_object_id("_id").ok()?;
            let says = |field| event.get_bool(field).unwrap_or(false);
            let urgency = match (says("waited"), says("requested")) {
                (true, _) => Urgency::Waited,
                (false, true) => Urgency::Requested,
                (false, false) => Urgency::New,
            };
            let at = event.get("wallTime").and_then(timestamp);
            Some(WorkEvent::Tenant { id: TenantId::from_bytes(id.bytes()), urgency, at })
        }
        "delete" => {
            let id = event.get_document("documentKey").ok()?.get_object_id("_id").ok()?;
            let at = event.get("wallTime").and_then(timestamp);
            Some(WorkEvent::Gone(Gone { id: TenantId::from_bytes(id.bytes()), at }))
        }
        "drop" | "rename" | "dropDatabase" | "invalidate" => Some(WorkEvent::Gap),
        _ => None,
    }
}

/// Selects events that other writers caused and that give us work.
fn that_give_work() -> Document {
    // `updatedFields` names changed fields by path (`quota.storageBytes`), so its keys are matched.
    let path = "^(slug|name|domain|quota|services|paused|adopt|deletionRequestedAt|deletionPolicy|\
                reconcileRequestedAt|waitedFor)([.]|$)";
    let touches = |input: Document| {
        doc! { "$anyElementTrue": [{ "$map": {
            "input": input,
            "as": "path",
            "in": { "$regexMatch": { "input": "$$path", "regex": path } },
        } }] }
    };
    let updated = doc! { "$map": {
        "input": { "$objectToArray": { "$ifNull": ["$updateDescription.updatedFields", {}] } },
        "as": "field",
        "in": "$$field.k",
    } };
    let removed = doc! { "$ifNull": ["$updateDescription.removedFields", []] };
    // A shell that removes `nextReconcileAt` asks for a reconcile; so does the flag of the API.
    let unscheduled = doc! { "$in": ["nextReconcileAt", removed.clone()] };
    // Claims set the holder, commits remove it, and no other writer does either. The server evaluates all
    // this for each of our writes, so the cheap test comes first.
    let set = |field: Document| doc! { "$ne": [{ "$type": field }, "missing"] };
    let fields = "$updateDescription.updatedFields";
    let ours = doc! { "$or": [
        { "$in": ["lease.holder", removed.clone()] },
        set(doc! { "$getField": { "field": "lease", "input": fields } }),
        set(doc! { "$getField": { "field": "lease.holder", "input": fields } }),
    ] };
    doc! { "$or": [
        { "operationType": { "$in": ["insert", "delete", "drop", "rename", "dropDatabase", "invalidate"] } },
        { "operationType": "update", "$expr": { "$and": [
            { "$not": [ours] },
            { "$or": [touches(updated), touches(removed), unscheduled] },
        ] } },
        // The server records a small document that grew a lot as a replacement, our own commits
        // among them. Ours leave nothing to do, or hold the lease, whose commit will look again.
        { "operationType": "replace", "$expr": { "$and": [
            { "$not": [{ "$eq": [{ "$type": "$fullDocument.lease.holder" }, "string"] }] },
            content_due("$fullDocument."),
        ] } },
    ] }
}

/// Only what [`change`] reads: a document may be large.
fn only_what_is_read() -> Document {
    doc! { "$project": {
        "operationType": 1,
        "documentKey": 1,
        "wallTime": 1,
        // In whichever way the server tells the change.
        "waited": { "$eq": [true, { "$ifNull": [
            format!("$updateDescription.updatedFields.{WAITED_FOR}"), format!("$fullDocument.{WAITED_FOR}"),
        ] }] },
        "requested": { "$ne": [
            { "$type": "$updateDescription.updatedFields.reconcileRequestedAt" }, "missing",
        ] },
    } }
}
