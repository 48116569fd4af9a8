//! A change stream that tells how tenants are, for callers that wait for one or watch many.
//!
//! Unlike [`watch`](super::work_stream), which tells the controller what others changed, it tells the outcome:
//! every change but claims, each with the tenant as it is then. The server looks the document up, so that
//! waiting for an outcome costs no command of its own.

use mongodb::bson::{Document, doc};

use super::change_stream::{ChangeStream, WatchError};
use super::document::{Record, projection, read};
use super::{Store, StoreError, TENANTS};
use crate::tenant::TenantId;

/// Something that became of a tenant.
#[derive(Debug, Clone)]
pub enum OutcomeEvent {
    /// It is now like this. `token` names the event, in every process alike.
    Is { token: String, record: Box<Record> },
    /// Its document is gone.
    Gone { token: String, id: TenantId },
}

/// An open stream. Where it breaks, events are missed: it does not resume.
pub struct OutcomeStream(ChangeStream);

impl Store {
    /// Opens a stream from now on.
    pub async fn follow(&self) -> Result<OutcomeStream, WatchError> {
        let options = doc! { "fullDocument": "updateLookup" };
        let stages = vec![doc! { "$match": outcomes() }, only_what_is_read()];
        ChangeStream::open(self, TENANTS, options, stages, None).await.map(OutcomeStream)
    }
}

impl OutcomeStream {
    /// The next events; empty when nothing happened for a while.
    ///
    /// Not cancel-safe: after dropping the future, open a new stream.
    pub async fn next(&mut self) -> Result<Vec<OutcomeEvent>, WatchError> {
        let events = self.0.next().await?.ok_or_else(|| {
            WatchError::Unresumable(StoreError::Refused {
                operation: "read change stream",
                message: "the collection was dropped or renamed".into(),
                code: None,
            })
        })?;
        Ok(events.iter().filter_map(told).collect())
    }

    /// Ends the stream on the server too.
    pub async fn close(self) {
        self.0.close().await;
    }
}

fn told(event: &Document) -> Option<OutcomeEvent> {
    let token = event.get_document("_id").ok()?.get_str("_data").ok()?.to_owned();
    if let Ok(document) = event.get_document("fullDocument") {
        return Some(OutcomeEvent::Is { token, record: Box::new(read(document)) });
    }
    // Deleted, now or since.
    let id = event.get_document("documentKey").ok()?.get_object_id("_id").ok()?;
    Some(OutcomeEvent::Gone { token, id: TenantId::from_bytes(id.bytes()) })
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
fn only_what_is_read() -> Document {
    let mut fields = doc! { "documentKey": 1, "fullDocument._id": 1 };
    fields.extend(projection().into_iter().map(|(name, on)| (format!("fullDocument.{name}"), on)));
    doc! { "$project": fields }
}
