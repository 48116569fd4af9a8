//! What the HTTP layer needs: insert, get, list, flag for reconcile.

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc, oid::ObjectId};
use mongodb::options::ReturnDocument;

use super::document::{Record, TRACEPARENT, WAITED_FOR, desired_document, projection, read, timestamp};
use super::{Store, StoreError};
use crate::telemetry::traces::traceparent;
use crate::tenant::{Desired, EventKind, Phase, Slug, TenantId, Upstream};

/// A tenant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTenant {
    pub slug: Slug,
    pub desired: Desired,
}

/// A request for a reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requested {
    /// Names it: no two requests of a tenant have the same time, and `lastHandledReconcileAt` equals it once it
    /// has been acted on.
    pub at: Timestamp,
    /// The tenant's; none where the document has an id of another kind.
    pub id: Option<TenantId>,
}

impl Store {
    /// About how many tenants there are, from the collection's own count.
    pub async fn estimate(&self) -> Result<u64, StoreError> {
        let count = self.tenants.estimated_document_count();
        self.bounded("estimate tenants", count).await
    }

    /// Inserts a tenant. `None` when the slug is taken.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] the document is there or not there, never in part.
    pub async fn insert(&self, new: &NewTenant) -> Result<Option<Record>, StoreError> {
        let document = self.new_document(new);
        match self.bounded("insert", self.tenants.insert_one(&document)).await {
            Ok(_) => Ok(Some(read(&document))),
            Err(duplicate @ StoreError::Duplicate { .. }) => match self.get(&new.slug).await? {
                Some(_) => Ok(None),
                None => Err(duplicate.unless_raced()),
            },
            Err(error) => Err(error),
        }
    }

    /// Whether the primary answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.command("ping", doc! { "ping": 1 }).await.map(drop)
    }

    /// Reads one tenant.
    pub async fn get(&self, slug: &Slug) -> Result<Option<Record>, StoreError> {
        let find = self.tenants.find_one(by_slug(slug)).projection(projection());
        Ok(self.bounded("get", find).await?.as_ref().map(read))
    }

    /// Flags a tenant for reconcile, now and for all its steps; `None` when there is no such tenant.
    pub async fn request_reconcile(&self, slug: &Slug) -> Result<Option<Requested>, StoreError> {
        self.request_reconcile_of(slug, &Upstream::ALL).await
    }

    /// The same of some steps only, and of those that an earlier request which was not handled yet is
    /// about.
    pub async fn request_reconcile_of(
        &self,
        slug: &Slug,
        steps: &[Upstream],
    ) -> Result<Option<Requested>, StoreError> {
        self.request("request reconcile", slug, steps, false).await
    }

    /// Asks for a look at a tenant's resources that changes nothing; what is due, and what others asked for,
    /// is done all the same.
    pub async fn request_observation(&self, slug: &Slug) -> Result<Option<Requested>, StoreError> {
        self.request("request observation", slug, &[], true).await
    }

    async fn request(
        &self,
        operation: &'static str,
        slug: &Slug,
        steps: &[Upstream],
        observe: bool,
    ) -> Result<Option<Requested>, StoreError> {
        let earlier = doc! { "$cond": [
            { "$eq": [{ "$type": "$reconcileRequestedAt" }, "date"] },
            { "$add": ["$reconcileRequestedAt", 1_i64] },
            "$$NOW",
        ] };
        let at = doc! { "$max": ["$$NOW", earlier] };
        let all = steps.len() == Upstream::ALL.len();
        // Who only wants to look has no part in what was asked for before.
        let by = self.by.iter().filter(|_| !observe);
        let by: Vec<Bson> = by.map(|by| doc! { "$literal": by }.into()).collect();
        let joins = doc! { "$and": [open_request(), { "$isArray": "$reconcileRequest.by" }] };
        let earlier = doc! { "$cond": [joins, "$reconcileRequest.by", []] };
        let names = doc! { "$slice": [{ "$setUnion": [earlier, by] }, REMEMBERED] };
        let request = doc! { "at": at.clone(), "by": names };
        let about = if all {
            doc! {}
        } else {
            about(steps, observe)
        };
        // Missing sorts before every date, so that even the due scan takes requests first.
        let next = if all { Bson::from("$$REMOVE") } else { due_as_it_is().into() };
        let mut flag = vec![doc! { "$set": {
            "reconcileRequestedAt": at,
            // An expression, so that nothing of an earlier request is left in it.
            "reconcileRequest": { "$mergeObjects": [request, about] },
            "nextReconcileAt": next,
        } }];
        if self.waits {
            flag.push(doc! { "$set": { WAITED_FOR: true } });
        }
        if let Some(trace) = traceparent() {
            flag.push(doc! { "$set": { TRACEPARENT: trace } });
        }
        let update = self
            .tenants
            .find_one_and_update(by_slug(slug), flag)
            .projection(doc! { "_id": 1, "reconcileRequestedAt": 1 })
            .return_document(ReturnDocument::After);
        let Some(after) = self.bounded(operation, update).await? else { return Ok(None) };
        let id = after.get_object_id("_id").ok().map(|id| TenantId::from_bytes(id.bytes()));
        let at = after.get("reconcileRequestedAt").and_then(timestamp);
        Ok(at.map(|at| Requested { at, id }))
    }
}

/// Aggregation expression: the latest request was not handled yet.
fn open_request() -> Document {
    doc! { "$and": [
        { "$eq": [{ "$type": "$reconcileRequestedAt" }, "date"] },
        { "$ne": ["$reconcileRequestedAt", "$lastHandledReconcileAt"] },
    ] }
}

/// Aggregation expression: these steps, and those of an open request; nothing if that is about all.
fn about(steps: &[Upstream], observe: bool) -> Document {
    let names: Vec<_> = steps.iter().map(|step| step.name()).collect();
    let only = |steps: Bson, observe: Bson| doc! { "steps": steps, "observe": observe };
    let observes = doc! { "$or": [observe, { "$eq": ["$reconcileRequest.observe", true] }] };
    let partial = doc! { "$and": [
        { "$eq": ["$reconcileRequest.at", "$reconcileRequestedAt"] },
        { "$isArray": "$reconcileRequest.steps" },
    ] };
    let both = doc! { "$setUnion": ["$reconcileRequest.steps", names.clone()] };
    doc! { "$switch": {
        "branches": [
            { "case": { "$not": [open_request()] }, "then": only(names.into(), observe.into()) },
            { "case": partial, "then": only(both.into(), observes.into()) },
        ],
        "default": {},
    } }
}

/// Who may have changed a tenant's desired state between two reconciles and is remembered; those who come
/// after so many is not.
const REMEMBERED: i64 = 20;

/// One element of `changedBy`: also of a change by an unknown caller, which may be taken back before a
/// reconcile sees it, and is told all the same.
pub(super) fn signed(by: Option<&str>, kind: EventKind) -> Document {
    let mut change = doc! { "type": kind.name() };
    change.extend(by.map(|by| ("by".to_owned(), by.into())));
    change
}

impl Store {
    /// Fields of a change's `$set`: who asked for it, if `changed` says that it is a change.
    pub(super) fn signature(&self, kind: EventKind, changed: impl Into<Bson>) -> Document {
        let change = signed(self.by.as_deref(), kind);
        let names = doc! { "$cond": [{ "$isArray": "$changedBy" }, "$changedBy", []] };
        let full = doc! { "$gte": [{ "$size": names.clone() }, REMEMBERED] };
        let more = doc! { "$concatArrays": [names, [{ "$literal": change }]] };
        let sign = doc! { "$and": [changed.into(), { "$not": [full] }] };
        doc! { "changedBy": { "$cond": [sign, more, "$changedBy"] } }
    }
}

/// Aggregation expression: due now, for no more steps than those that have a reason.
pub(super) fn due_as_it_is() -> Document {
    doc! { "$cond": [
        { "$eq": [{ "$type": "$nextReconcileAt" }, "date"] },
        { "$min": ["$nextReconcileAt", "$$NOW"] },
        "$$REMOVE",
    ] }
}

pub(super) fn by_slug(slug: &Slug) -> Document {
    doc! { "slug": slug.as_str() }
}

impl Store {
    /// The document of a tenant that no controller has seen yet.
    pub(super) fn new_document(&self, new: &NewTenant) -> Document {
        let created = Bson::DateTime(mongodb::bson::DateTime::now());
        let mut document = doc! { "_id": ObjectId::new(), "slug": new.slug.as_str() };
        document.extend(desired_document(&new.desired));
        document.extend(doc! {
            "status": Phase::Pending.name(),
            "generation": 1_i64,
            // Says that it was never claimed, which of other writers' documents is only a guess.
            "lease": { "epoch": 0_i64 },
            "createdAt": created.clone(),
            "updatedAt": created,
        });
        let created = signed(self.by.as_deref(), EventKind::Created);
        document.insert("changedBy", vec![Bson::from(created)]);
        if self.waits {
            document.insert(WAITED_FOR, true);
        }
        if let Some(trace) = traceparent() {
            document.insert(TRACEPARENT, trace);
        }
        document
    }
}
