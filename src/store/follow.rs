//! A change stream that tells how tenants are, for whoever waits for one or watches many.
//!
//! Unlike [`watch`](super::watch), which tells the controller what others changed, it tells the outcome:
//! every change but claims, each with the tenant as it is then. The server looks the document up, so that
//! waiting for an outcome costs no command of its own.

use std::time::Duration;

use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::SelectionCriteria;

use super::document::{Record, projection, read};
use super::watch::{AWAIT, WatchError, interrupted, one_server};
use super::{Store, TENANTS, within};
use crate::tenant::TenantId;

/// Something that became of a tenant.
#[derive(Debug, Clone)]
pub enum Told {
    /// It is now like this. `token` names the event, in every process alike.
    Is { token: String, record: Box<Record> },
    /// Its document is gone.
    Gone { token: String, id: TenantId },
}

/// An open stream. Where it breaks, events are missed: it does not resume.
pub struct Follow {
    store: Store,
    session: ClientSession,
    selection: SelectionCriteria,
    cursor: i64,
    first: Vec<Told>,
}

impl Store {
    /// Opens a stream from now on.
    pub async fn follow(&self) -> Result<Follow, WatchError> {
        let start = self.client.start_session();
        let mut session = self.bounded("start session", start).await.map_err(WatchError::Interrupted)?;
        let selection = one_server();
        let open = doc! {
            "aggregate": TENANTS,
            "pipeline": [
                { "$changeStream": { "fullDocument": "updateLookup" } },
                { "$match": outcomes() },
                essence(),
            ],
            "cursor": {},
        };
        let run =
            self.database.run_command(open).selection_criteria(selection.clone()).session(&mut session);
        let reply = self.bounded("open change stream", run).await.map_err(interrupted)?;
        let mut follow =
            Follow { store: self.clone(), session, selection, cursor: 0, first: Vec::new() };
        follow.first = follow.batch(&reply);
        Ok(follow)
    }
}

impl Follow {
    /// The next events; empty when nothing happened for a while.
    ///
    /// Not cancel-safe: after dropping the future, open a new stream.
    pub async fn next(&mut self) -> Result<Vec<Told>, WatchError> {
        if !self.first.is_empty() {
            return Ok(std::mem::take(&mut self.first));
        }
        if self.cursor == 0 {
            return Err(WatchError::Unresumable(super::StoreError::Refused {
                operation: "read change stream",
                message: "the collection was dropped or renamed".into(),
                code: None,
            }));
        }
        let more = doc! {
            "getMore": self.cursor,
            "collection": TENANTS,
            "maxTimeMS": i64::try_from(AWAIT.as_millis()).unwrap_or(i64::MAX),
        };
        let limit: Duration = AWAIT + self.store.timeout;
        let run = self
            .store
            .database
            .run_command(more)
            .selection_criteria(self.selection.clone())
            .session(&mut self.session);
        let reply = within(limit, "read change stream", run.into_future()).await.map_err(interrupted)?;
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

    fn batch(&mut self, reply: &Document) -> Vec<Told> {
        let empty = Document::new();
        let cursor = reply.get_document("cursor").unwrap_or(&empty);
        self.cursor = cursor.get_i64("id").unwrap_or_default();
        let events = cursor.get_array("nextBatch").or_else(|_| cursor.get_array("firstBatch"));
        let events = events.map(Vec::as_slice).unwrap_or_default();
        events.iter().filter_map(Bson::as_document).filter_map(told).collect()
    }
}

fn told(event: &Document) -> Option<Told> {
    let token = event.get_document("_id").ok()?.get_str("_data").ok()?.to_owned();
    if let Ok(document) = event.get_document("fullDocument") {
        return Some(Told::Is { token, record: Box::new(read(document)) });
    }
    // Deleted, now or since.
    let id = event.get_document("documentKey").ok()?.get_object_id("_id").ok()?;
    Some(Told::Gone { token, id: TenantId::from_bytes(id.bytes()) })
}

/// Selects all but claims and renewals of leases, which set the holder or the time of its end.
fn outcomes() -> Document {
    let set = |field: &str| {
        let input = "$updateDescription.updatedFields";
        doc! { "$ne": [{ "$type": { "$getField": { "field": field, "input": input } } }, "missing"] }
    };
    doc! { "$or": [
        { "operationType": { "$in": ["insert", "replace", "delete"] } },
        { "operationType": "update", "$expr": { "$not": [
            { "$or": [set("lease.holder"), set("lease.expiresAt")] },
        ] } },
    ] }
}

/// Only what [`told`] reads.
fn essence() -> Document {
    let mut fields = doc! { "documentKey": 1, "fullDocument._id": 1 };
    fields.extend(projection().into_iter().map(|(name, on)| (format!("fullDocument.{name}"), on)));
    doc! { "$project": fields }
}
