//! The change stream: which tenants somebody else changed, as soon as they did.
//!
//! # Guarantees
//!
//! * The server filters: the controller's own claims and commits produce no event.
//! * After an interruption the stream resumes where it was; where it cannot, the caller is told
//!   ([`Change::Gap`]), and asks the database instead.
//!
//! # Why not the driver's change stream
//!
//! It resumes by itself, at once and without a limit, so that a server whose `getMore` keeps failing
//! is asked thousands of times a second. Here an error ends the stream, and how soon the next one is
//! opened is the caller's decision. The protocol is two commands: `aggregate` and `getMore`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{SelectionCriteria, ServerAddress};
use mongodb::{ClientSession, ServerType};

use super::document::timestamp;
use super::due::{Urgency, content_due};
use super::{Store, StoreError, TENANTS, within};
use crate::tenant::TenantId;

/// How long the server holds a `getMore` open for an event to come.
pub(super) const AWAIT: Duration = Duration::from_secs(10);

/// One thing that the stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A tenant was inserted, or changed by somebody else. `at` is the server's time of the change.
    Tenant { id: TenantId, urgency: Urgency, at: Option<Timestamp> },
    /// The collection was dropped or renamed: this stream has ended, and the next one cannot resume.
    Gap,
}

/// Why a stream ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// It may be resumed where it was.
    #[error("{0}")]
    Interrupted(StoreError),
    /// Events were missed, or cannot be read: open a new stream and ask the database.
    #[error("the change stream cannot be resumed: {0}")]
    Unresumable(StoreError),
}

/// Where a stream was, for the next one to go on from.
#[derive(Debug, Clone)]
pub struct ResumeToken(Bson);

/// An open change stream.
pub struct Watch {
    store: Store,
    session: ClientSession,
    selection: SelectionCriteria,
    cursor: i64,
    token: Option<ResumeToken>,
    first: Vec<Change>,
}

/// Codes after which a resume token is of no more use: history lost, fatal, invalid token, an event
/// beyond the size limit.
const UNRESUMABLE: &[i32] = &[286, 280, 260, 10334, 136];

pub(super) fn interrupted(error: StoreError) -> WatchError {
    match &error {
        StoreError::Refused { code: Some(code), .. } if UNRESUMABLE.contains(code) => {
            WatchError::Unresumable(error)
        }
        _ => WatchError::Interrupted(error),
    }
}

impl Store {
    /// Opens a stream of changes from now on, or from where an earlier one was.
    pub async fn watch(&self, resume: Option<ResumeToken>) -> Result<Watch, WatchError> {
        let start = self.client.start_session();
        let mut session = self.bounded("start session", start).await.map_err(WatchError::Interrupted)?;
        let selection = one_server();
        let mut stage = Document::new();
        if let Some(ResumeToken(token)) = &resume {
            stage.insert("resumeAfter", token.clone());
        }
        let open = doc! {
            "aggregate": TENANTS,
            "pipeline": [{ "$changeStream": stage }, { "$match": of_others() }, essence()],
            "cursor": {},
        };
        let run =
            self.database.run_command(open).selection_criteria(selection.clone()).session(&mut session);
        let opened = self.bounded("open change stream", run).await;
        let reply = opened.map_err(|error| match error {
            // Whatever the server has against it, it has against the token.
            StoreError::Refused { .. } if resume.is_some() => WatchError::Unresumable(error),
            _ => interrupted(error),
        })?;
        let mut watch = Watch {
            store: self.clone(),
            session,
            selection,
            cursor: 0,
            token: resume,
            first: Vec::new(),
        };
        watch.first = watch.batch(&reply);
        Ok(watch)
    }
}

impl Watch {
    /// Where the stream is. Moves on even while nothing happens.
    pub fn token(&self) -> Option<ResumeToken> {
        self.token.clone()
    }

    /// The next changes; empty when nothing happened for a while.
    ///
    /// Not cancel-safe: after dropping the future, open a new stream from the last [`Watch::token`].
    pub async fn next(&mut self) -> Result<Vec<Change>, WatchError> {
        if !self.first.is_empty() {
            return Ok(std::mem::take(&mut self.first));
        }
        if self.cursor == 0 {
            return Ok(vec![Change::Gap]);
        }
        let more = doc! {
            "getMore": self.cursor,
            "collection": TENANTS,
            "maxTimeMS": i64::try_from(AWAIT.as_millis()).unwrap_or(i64::MAX),
        };
        let run = self
            .store
            .database
            .run_command(more)
            .selection_criteria(self.selection.clone())
            .session(&mut self.session);
        let reply = within(AWAIT + self.store.timeout, "read change stream", run.into_future())
            .await
            .map_err(interrupted)?;
        Ok(self.batch(&reply))
    }

    /// Ends the stream on the server too.
    pub async fn close(mut self) {
        if self.cursor != 0 {
            let kill = doc! { "killCursors": TENANTS, "cursors": [self.cursor] };
            let run = self
                .store
                .database
                .run_command(kill)
                .selection_criteria(self.selection.clone())
                .session(&mut self.session);
            // The server drops idle cursors by itself; this is mere tidiness.
            let _ = self.store.bounded("close change stream", run).await;
        }
    }

    fn batch(&mut self, reply: &Document) -> Vec<Change> {
        let empty = Document::new();
        let cursor = reply.get_document("cursor").unwrap_or(&empty);
        self.cursor = cursor.get_i64("id").unwrap_or_default();
        if let Some(token) = cursor.get("postBatchResumeToken") {
            self.token = Some(ResumeToken(token.clone()));
        }
        let events = cursor.get_array("nextBatch").or_else(|_| cursor.get_array("firstBatch"));
        let events = events.map(Vec::as_slice).unwrap_or_default();
        events.iter().filter_map(Bson::as_document).filter_map(change).collect()
    }
}

fn change(event: &Document) -> Option<Change> {
    let operation = event.get_str("operationType").unwrap_or_default();
    match operation {
        "insert" | "update" | "replace" => {
            // Another kind of `_id` cannot be claimed; the due scan deals with it.
            let id = event.get_document("documentKey").ok()?.get_object_id("_id").ok()?;
            let urgency = if event.get_bool("requested").unwrap_or(false) {
                Urgency::Requested
            } else {
                Urgency::New
            };
            let at = event.get("wallTime").and_then(timestamp);
            Some(Change::Tenant { id: TenantId::from_bytes(id.bytes()), urgency, at })
        }
        "drop" | "rename" | "dropDatabase" | "invalidate" => Some(Change::Gap),
        _ => None,
    }
}

/// Selects events that somebody else caused and that give us work.
fn of_others() -> Document {
    // `updatedFields` names changed fields by path (`quota.storageBytes`), so its keys are matched.
    let path = "^(slug|name|domain|quota|services|reconcileRequestedAt|deletionRequestedAt)([.]|$)";
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
    // Claims set the holder, commits remove it, and nobody else does either. The server evaluates all
    // this for each of our writes, so the cheap test comes first.
    let set = |field: Document| doc! { "$ne": [{ "$type": field }, "missing"] };
    let fields = "$updateDescription.updatedFields";
    let ours = doc! { "$or": [
        { "$in": ["lease.holder", removed.clone()] },
        set(doc! { "$getField": { "field": "lease", "input": fields } }),
        set(doc! { "$getField": { "field": "lease.holder", "input": fields } }),
    ] };
    doc! { "$or": [
        { "operationType": { "$in": ["insert", "drop", "rename", "dropDatabase", "invalidate"] } },
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
fn essence() -> Document {
    doc! { "$project": {
        "operationType": 1,
        "documentKey": 1,
        "wallTime": 1,
        "requested": { "$ne": [
            { "$type": "$updateDescription.updatedFields.reconcileRequestedAt" }, "missing",
        ] },
    } }
}

/// Selects the primary, or always the same router: a cursor lives on one server.
pub(super) fn one_server() -> SelectionCriteria {
    let router: Arc<OnceLock<ServerAddress>> = Arc::default();
    SelectionCriteria::Predicate(Arc::new(move |server| match server.server_type() {
        ServerType::RsPrimary => true,
        ServerType::Mongos => router.get_or_init(|| server.address().clone()) == server.address(),
        _ => false,
    }))
}
