//! What the HTTP layer needs: insert, get, list, flag for reconcile.

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc, oid::ObjectId};
use mongodb::options::ReturnDocument;

use super::document::{Record, WAITED_FOR, desired_document, projection, read, timestamp};
use super::{Store, StoreError};
use crate::tenant::{DeletionPolicy, Desired, EventKind, Phase, Slug, StepKind};

/// Codes of a refused insert.
pub(super) const DUPLICATE_KEY: i32 = 11000;

/// A tenant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTenant {
    pub slug: Slug,
    pub desired: Desired,
}

/// Which tenants to list.
#[derive(Debug, Clone, Default)]
pub struct PageQuery {
    pub phase: Option<Phase>,
    /// Slugs after this one.
    pub after: Option<String>,
    pub limit: u16,
}

#[derive(Debug, Clone)]
pub struct Page {
    /// In order of their slugs.
    pub records: Vec<Record>,
    /// The slug to continue after, when there are more.
    pub next: Option<String>,
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
            Err(StoreError::Refused { code: Some(DUPLICATE_KEY), .. }) => Ok(None),
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

    /// Reads a page in order of the slugs. Documents without a slug are not listed.
    pub async fn list(&self, query: &PageQuery) -> Result<Page, StoreError> {
        let mut filter = doc! { "slug": { "$gt": query.after.as_deref().unwrap_or_default() } };
        match query.phase {
            // A document that no controller has seen yet has no status.
            Some(Phase::Pending) => {
                filter.insert("status", doc! { "$in": [Phase::Pending.name(), Bson::Null] });
            }
            Some(phase) => {
                filter.insert("status", phase.name());
            }
            None => {}
        }
        let most = usize::from(query.limit.max(1));
        let find = self
            .tenants
            .find(filter)
            .projection(projection())
            .sort(doc! { "slug": 1 })
            // One more than asked for tells whether there is a next page.
            .limit(i64::from(query.limit.max(1)) + 1);
        let slug = |document: &Document| document.get_str("slug").ok().map(ToOwned::to_owned);
        let mut found = self.read_all("list", find, |document| (slug(document), read(document))).await?;
        let more = found.len() > most;
        found.truncate(most);
        let next = if more { found.last().and_then(|(slug, _)| slug.clone()) } else { None };
        Ok(Page { records: found.into_iter().map(|(_, record)| record).collect(), next })
    }

    /// Asks for a tenant's deletion: from now on its resources are released, and the document goes last.
    /// A second request may ask for more (`purge` after `delete`), never for less. `None` when there is
    /// no such tenant.
    pub async fn request_deletion(
        &self,
        slug: &Slug,
        policy: DeletionPolicy,
    ) -> Result<Option<Record>, StoreError> {
        let rank = |field: &str| {
            let names: Vec<Bson> = DeletionPolicy::ALL.map(|policy| policy.name().into()).to_vec();
            doc! { "$indexOfArray": [names, field] }
        };
        let asked = doc! { "$eq": [{ "$type": "$deletionRequestedAt" }, "date"] };
        let more = doc! { "$gt": [rank("$deletionPolicy"), rank(policy.name())] };
        let flag = vec![doc! { "$set": {
            "deletionRequestedAt": { "$cond": [asked.clone(), "$deletionRequestedAt", "$$NOW"] },
            "deletionPolicy": { "$cond": [{ "$and": [asked, more] }, "$deletionPolicy", policy.name()] },
            "status": Phase::Deleting.name(),
            "nextReconcileAt": "$$REMOVE",
            "updatedAt": "$$NOW",
        } }];
        self.change("request deletion", by_slug(slug), EventKind::DeletionRequested, flag).await
    }

    /// Takes a deletion back, for as long as the document is there.
    pub async fn undelete(&self, slug: &Slug) -> Result<Option<Record>, StoreError> {
        let asked = doc! { "$eq": [{ "$type": "$deletionRequestedAt" }, "date"] };
        let status =
            doc! { "$cond": [asked, Phase::Pending.name(), { "$ifNull": ["$status", "$$REMOVE"] }] };
        let flag = vec![doc! { "$set": {
            "status": status,
            "deletionRequestedAt": "$$REMOVE",
            "deletionPolicy": "$$REMOVE",
            "nextReconcileAt": "$$REMOVE",
            "updatedAt": "$$NOW",
        } }];
        self.change("undelete", by_slug(slug), EventKind::Undeleted, flag).await
    }

    /// Pauses a tenant, or lets it go on.
    pub async fn set_paused(&self, slug: &Slug, paused: bool) -> Result<Option<Record>, StoreError> {
        let value = if paused { Bson::from(true) } else { Bson::from("$$REMOVE") };
        let kind = if paused { EventKind::Paused } else { EventKind::Resumed };
        let flag = vec![doc! { "$set": {
            "paused": value, "nextReconcileAt": "$$REMOVE", "updatedAt": "$$NOW",
        } }];
        self.change("pause", by_slug(slug), kind, flag).await
    }

    async fn change(
        &self,
        operation: &'static str,
        filter: Document,
        kind: EventKind,
        mut change: Vec<Document>,
    ) -> Result<Option<Record>, StoreError> {
        change.push(doc! { "$set": self.signature(kind, true) });
        let update = self
            .tenants
            .find_one_and_update(filter, change)
            .projection(projection())
            .return_document(ReturnDocument::After);
        Ok(self.bounded(operation, update).await?.as_ref().map(read))
    }

    /// Flags a tenant for reconcile, now and for all its steps. Returns the time of the request, which
    /// `lastHandledReconcileAt` will equal once it has been acted on, and no two requests share;
    /// `None` when there is no such tenant.
    pub async fn request_reconcile(&self, slug: &Slug) -> Result<Option<Timestamp>, StoreError> {
        self.request_reconcile_of(slug, &StepKind::ALL).await
    }

    /// The same of some steps only, and of those that an earlier request which nobody has handled yet is
    /// about.
    pub async fn request_reconcile_of(
        &self,
        slug: &Slug,
        steps: &[StepKind],
    ) -> Result<Option<Timestamp>, StoreError> {
        self.request("request reconcile", slug, steps, false).await
    }

    /// Asks for a look at a tenant's resources that changes nothing; what is due, and what others asked for,
    /// is done all the same.
    pub async fn request_observation(&self, slug: &Slug) -> Result<Option<Timestamp>, StoreError> {
        self.request("request observation", slug, &[], true).await
    }

    async fn request(
        &self,
        operation: &'static str,
        slug: &Slug,
        steps: &[StepKind],
        observe: bool,
    ) -> Result<Option<Timestamp>, StoreError> {
        let earlier = doc! { "$cond": [
            { "$eq": [{ "$type": "$reconcileRequestedAt" }, "date"] },
            { "$add": ["$reconcileRequestedAt", 1_i64] },
            "$$NOW",
        ] };
        let at = doc! { "$max": ["$$NOW", earlier] };
        let all = steps.len() == StepKind::ALL.len();
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
        let update = self
            .tenants
            .find_one_and_update(by_slug(slug), flag)
            .projection(doc! { "_id": 0, "reconcileRequestedAt": 1 })
            .return_document(ReturnDocument::After);
        let after = self.bounded(operation, update).await?;
        Ok(after.and_then(|after| after.get("reconcileRequestedAt").and_then(timestamp)))
    }
}

/// Aggregation expression: nobody has handled the latest request yet.
fn open_request() -> Document {
    doc! { "$and": [
        { "$eq": [{ "$type": "$reconcileRequestedAt" }, "date"] },
        { "$ne": ["$reconcileRequestedAt", "$lastHandledReconcileAt"] },
    ] }
}

/// Aggregation expression: these steps, and those of an open request; nothing if that is about all.
fn about(steps: &[StepKind], observe: bool) -> Document {
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

/// Who may have changed a tenant's desired state between two reconciles and is remembered; whoever comes
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
        document
    }
}
