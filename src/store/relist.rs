//! One pass over all tenants, for the changes that no event told.
//!
//! # Guarantees
//!
//! * It goes on where it was after an error, in [slices](super::slices).
//! * Over all processes, one at a time makes it ([`Store::take_relist`]). A pass that began after a process
//!   missed something is that process' pass too, whichever process made it. All times are the server's.
//! * No write to tenants that are as they should be.

use std::time::Duration;

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;

use super::document::{date, timestamp};
use super::due::content_due;
use super::lease::{Holder, millis};
use super::slices::{Slice, Slices, by_id};
use super::{Store, StoreError};

/// Name of the lease among the controls.
const RELIST: &str = "relist";

/// How far a pass has come.
#[derive(Debug, Clone, Default)]
pub struct Relist {
    slices: Slices,
    /// Tenants marked so far.
    pub marked: u64,
}

/// Whether a process shall make a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It shall: the lease is taken. What was changed before this time, the pass finds.
    Ours { from: Timestamp },
    /// Another process makes one. If its pass began at this time or later, it is enough.
    Others { since: Timestamp },
    /// One that began late enough has ended.
    Over,
}

impl Store {
    /// Marks as due, in the next slice of the collection, every tenant whose desired state or reconcile request
    /// no reconcile has handled yet. Returns whether that was the last slice.
    ///
    /// After an error, call it again with the same `progress` to go on from there.
    pub async fn relist(&self, progress: &mut Relist) -> Result<bool, StoreError> {
        let done = self.mark_slice(&progress.slices).await;
        let (last, marked) = progress.slices.ended(done)?;
        progress.marked += marked;
        Ok(last)
    }

    async fn mark_slice(&self, slices: &Slices) -> Result<(Slice, u64), StoreError> {
        let slice = self.slice("relist", slices).await?;
        let mut these = slice.bounds();
        these.push(unhandled());
        let filter = doc! { "$expr": { "$and": these } };
        let mark = vec![doc! { "$set": { "nextReconcileAt": "$$NOW" } }];
        let update = self.tenants.update_many(filter, mark).hint(by_id());
        Ok((slice, self.bounded("relist", update).await?.modified_count))
    }

    /// Takes the lease for a pass, for `ttl`, unless another process has it or a pass that began at `since` or
    /// later has ended. `None` is now.
    pub async fn take_relist(
        &self,
        holder: &Holder,
        since: Option<Timestamp>,
        ttl: Duration,
    ) -> Result<Turn, StoreError> {
        let holder = holder.to_string();
        let since_then = since.map_or_else(|| Bson::from("$$NOW"), date);
        let held = doc! { "$and": [
            { "$gt": ["$expiresAt", "$$NOW"] }, { "$ne": ["$holder", &holder] },
        ] };
        let look = doc! { "$set": {
            "askedAt": "$$NOW",
            "over": { "$gte": ["$endedFrom", since_then] },
            "held": held,
        } };
        let ours = doc! { "$not": [{ "$or": ["$over", "$held"] }] };
        let or_as_it_is = |field: &str, value: Bson| {
            let kept = doc! { "$ifNull": [format!("${field}"), "$$REMOVE"] };
            doc! { "$cond": [ours.clone(), value, kept] }
        };
        let expiry = doc! { "$add": ["$$NOW", millis(ttl)] };
        let take = doc! { "$set": {
            "holder": or_as_it_is("holder", holder.into()),
            "expiresAt": or_as_it_is("expiresAt", expiry.into()),
        } };
        let controls = self.controls_collection();
        let update = controls
            .find_one_and_update(doc! { "_id": RELIST }, vec![look, take])
            .upsert(true)
            .return_document(ReturnDocument::After);
        let after = self.bounded("take relist", update).await?.unwrap_or_default();
        let is = |field| after.get_bool(field).unwrap_or(false);
        let now = after.get("askedAt").and_then(timestamp).unwrap_or_default();
        Ok(match (is("over"), is("held")) {
            (true, _) => Turn::Over,
            (_, true) => Turn::Others { since: since.unwrap_or(now) },
            _ => Turn::Ours { from: now },
        })
    }

    /// Extends the lease of our pass, or gives it back with a `ttl` of nothing.
    pub async fn hold_relist(&self, holder: &Holder, ttl: Duration) -> Result<(), StoreError> {
        self.end_lease(holder, doc! { "expiresAt": { "$add": ["$$NOW", millis(ttl)] } }).await
    }

    /// Records that our pass, which began at `from`, has ended, and gives the lease back.
    pub async fn end_relist(&self, holder: &Holder, from: Timestamp) -> Result<(), StoreError> {
        let ended = doc! { "$max": ["$endedFrom", date(from)] };
        self.end_lease(holder, doc! { "expiresAt": "$$NOW", "endedFrom": ended }).await
    }

    async fn end_lease(&self, holder: &Holder, set: Document) -> Result<(), StoreError> {
        let ours = doc! { "_id": RELIST, "holder": holder.to_string() };
        let update = self.controls_collection();
        let update = update.update_one(ours, vec![doc! { "$set": set }]);
        self.bounded("hold relist", update).await.map(drop)
    }
}

/// Aggregation expression: an event would have told of it, and neither was it handled nor is it due.
fn unhandled() -> Document {
    let scheduled = doc! { "$and": [
        { "$eq": [{ "$type": "$nextReconcileAt" }, "date"] },
        { "$gt": ["$nextReconcileAt", "$$NOW"] },
    ] };
    let odd_type = doc! { "$not": [
        { "$in": [{ "$type": "$nextReconcileAt" }, ["date", "null", "missing"]] },
    ] };
    doc! { "$or": [{ "$and": [scheduled, content_due("$")] }, odd_type] }
}
