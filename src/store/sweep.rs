//! What a sweep needs of the database: every tenant's fingerprints in order, a second look at some of
//! them, flags for those that differ, and the list of orphans.

use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc};

use super::collection::Collection;
use super::document::{date, object_id, other_document, read_others, timestamp};
use super::due::{content_due, lease_held};
use super::lease::millis;
use super::{Store, StoreError};
use crate::tenant::{
    Event, EventKind, Fingerprint, OtherResource, PerStep, Reason, StepState, TenantId, Upstream,
};

/// Tenants in one batch of a sweep.
pub const BATCH: u32 = 1_000;
/// Orphans that are kept for people to look at.
pub const MOST_ORPHANS: usize = 10_000;
/// Of those, the ones that an event names.
const NAMED_ORPHANS: usize = 10;
const ORPHANS: &str = "tenantry_orphans";

/// A tenant as a sweep sees it: of each step that is `ok`, what its resource looked like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweptTenant {
    pub id: TenantId,
    pub slug: String,
    pub prints: PerStep<Option<Fingerprint>>,
    /// The ids of its resources, as far as they are recorded.
    pub ids: PerStep<Option<String>>,
    /// Other resources with its mark, as they are recorded.
    pub others: PerStep<Vec<OtherResource>>,
    /// Steps of which something is under way or has gone wrong.
    pub unsettled: PerStep<bool>,
    /// Of a tenant that is read again: whether it is worked on, or was edited since.
    pub busy: bool,
}

/// A resource that is marked for a tenant of which there is no document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownResource {
    pub tenant: TenantId,
    pub external_id: String,
    pub name: String,
}

/// A resource that is marked for a tenant that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    pub upstream: Upstream,
    pub external_id: String,
    pub name: String,
    pub tenant: TenantId,
    pub first_seen_at: Timestamp,
    pub last_seen_at: Timestamp,
    /// Whether it is to be released, and why that has not been done yet, where that is known.
    pub release: Option<Option<String>>,
}

impl Store {
    /// The next batch of tenants in order of their ids, after `after`.
    pub async fn swept(&self, after: Option<TenantId>) -> Result<Vec<SweptTenant>, StoreError> {
        let after = after.map(object_id).unwrap_or_else(|| object_id(TenantId::from_bytes([0; 12])));
        self.read_swept(doc! { "_id": { "$gt": after } }, Document::new()).await
    }

    /// These tenants, as far as they exist; at most [`BATCH`].
    pub async fn swept_again(&self, ids: &[TenantId]) -> Result<Vec<SweptTenant>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| object_id(*id)).collect();
        let busy = doc! { "busy": { "$or": [lease_held(), content_due("$")] } };
        self.read_swept(doc! { "_id": { "$in": ids } }, busy).await
    }

    async fn read_swept(
        &self,
        filter: Document,
        more: Document,
    ) -> Result<Vec<SweptTenant>, StoreError> {
        let mut fields = doc! { "slug": 1 };
        fields.extend(more);
        for step in Upstream::ALL {
            fields.insert(format!("steps.{step}.state"), 1);
            fields.insert(format!("steps.{step}.reason"), 1);
            fields.insert(format!("steps.{step}.fingerprint"), 1);
            fields.insert(format!("steps.{step}.externalId"), 1);
            fields.insert(format!("steps.{step}.others"), 1);
        }
        let find = async {
            let cursor = self
                .tenants
                .find(filter)
                .projection(fields)
                .sort(doc! { "_id": 1 })
                .limit(i64::from(BATCH))
                .batch_size(BATCH)
                .await?;
            cursor.try_collect::<Vec<_>>().await
        };
        let found = self.bounded("sweep", find).await?;
        Ok(found.iter().filter_map(read_swept).collect())
    }

    /// Makes these tenants due for one step after a while, or earlier if they are due anyway.
    pub async fn make_due(
        &self,
        step: Upstream,
        ids: &[TenantId],
        wait: Duration,
    ) -> Result<(), StoreError> {
        let at = doc! { "$add": ["$$NOW", millis(wait)] };
        // Where there is none, it is due already.
        let sooner = |field: &str| {
            let dated = doc! { "$eq": [{ "$type": format!("${field}") }, "date"] };
            let field = format!("${field}");
            doc! { "$cond": [dated, { "$min": [&field, &at] }, { "$ifNull": [&field, "$$REMOVE"] }] }
        };
        let next = format!("steps.{step}.nextAttemptAt");
        let set = doc! { "nextReconcileAt": sooner("nextReconcileAt"), &next: sooner(&next) };
        self.set_in_all(ids, set).await
    }

    /// Records which other resources carry a tenant's mark. With a new one among them, the step is made due,
    /// and its run searches: in the same command, so that a reconcile that is under way overwrites both or none.
    pub async fn record_others(
        &self,
        step: Upstream,
        tenant: TenantId,
        others: &[OtherResource],
        is_new: bool,
    ) -> Result<(), StoreError> {
        let field = |name: &str| format!("steps.{step}.{name}");
        let documents: Vec<_> = others.iter().map(|it| Bson::from(other_document(it))).collect();
        let recorded = if documents.is_empty() {
            Bson::from("$$REMOVE")
        } else {
            doc! { "$literal": documents }.into()
        };
        let mut set = doc! { field("others"): recorded };
        if is_new {
            set.insert(field("search"), true);
            set.insert(field("nextAttemptAt"), "$$NOW");
            set.insert("nextReconcileAt", "$$NOW");
        }
        // A tenant that was never reconciled has no steps to note it in.
        let known = doc! { "_id": object_id(tenant), format!("steps.{step}"): { "$type": "object" } };
        let update = self.tenants.update_one(known, vec![doc! { "$set": set }]);
        self.bounded("record others", update).await.map(drop)
    }

    async fn set_in_all(&self, ids: &[TenantId], set: Document) -> Result<(), StoreError> {
        for ids in ids.chunks(BATCH as usize) {
            let ids: Vec<_> = ids.iter().map(|id| object_id(*id)).collect();
            let these = doc! { "_id": { "$in": ids } };
            let flag = self.tenants.update_many(these, vec![doc! { "$set": &set }]);
            self.bounded("make due", flag).await?;
        }
        Ok(())
    }

    pub(super) fn orphans_collection(&self) -> Collection {
        Collection::of(&self.database, ORPHANS)
    }

    /// Records what a sweep of one upstream, which began at `since` by the server's clock, found to be orphans,
    /// and forgets those that were not seen since. Without any, then or before, nothing is written.
    pub async fn record_orphans(
        &self,
        upstream: Upstream,
        found: &[UnknownResource],
        since: Timestamp,
    ) -> Result<(), StoreError> {
        let collection = self.orphans_collection();
        let known = doc! { "upstream": upstream.name() };
        let had = collection.find_one(known).projection(doc! { "_id": 1 });
        if found.is_empty() && self.bounded("orphans", had).await?.is_none() {
            return Ok(());
        }
        self.add_orphans(upstream, found).await?;
        // Of more than are kept, some were not seen again for want of room.
        if found.len() >= MOST_ORPHANS {
            return Ok(());
        }
        // Those that are to be released are taken off the list by what releases them, which tells it.
        let gone = doc! {
            "upstream": upstream.name(), "lastSeenAt": { "$lt": date(since) },
            "release": { "$exists": false },
        };
        let gone = self.bounded("orphans", collection.delete_many(gone)).await?.deleted_count;
        if gone > 0 {
            let event = Event::new(self.clock.now(), EventKind::OrphansGone, format!("{gone} fewer"));
            self.tell_fleet(event.of_step(upstream, None)).await;
        }
        Ok(())
    }

    /// Records some more orphans.
    pub async fn add_orphans(
        &self,
        upstream: Upstream,
        found: &[UnknownResource],
    ) -> Result<(), StoreError> {
        let document = |found: &UnknownResource| {
            doc! {
                "_id": orphan_id(upstream, &found.external_id),
                "upstream": upstream.name(),
                "externalId": &found.external_id,
                "name": &found.name,
                "tenantId": object_id(found.tenant),
            }
        };
        let documents: Vec<Document> = found.iter().take(MOST_ORPHANS).map(document).collect();
        let stamp =
            doc! { "firstSeenAt": { "$ifNull": ["$firstSeenAt", "$$NOW"] }, "lastSeenAt": "$$NOW" };
        let new = self.put_all("orphans", &self.orphans_collection(), &documents, &stamp).await?;
        if !new.is_empty() {
            let some = new.iter().take(NAMED_ORPHANS).map(|place| found[*place].name.as_str());
            let some = some.collect::<Vec<_>>().join(", ");
            let more = if new.len() > NAMED_ORPHANS { ", …" } else { "" };
            let message = format!("{} more: {some}{more}", new.len());
            let event =
                Event::new(self.clock.now(), EventKind::OrphansFound, message).of_step(upstream, None);
            self.tell_fleet(event).await;
        }
        Ok(())
    }

    /// How many orphans of an upstream are known.
    pub async fn count_orphans(&self, upstream: Upstream) -> Result<u64, StoreError> {
        let collection = self.orphans_collection();
        self.bounded("orphans", collection.count_documents(doc! { "upstream": upstream.name() })).await
    }

    /// The orphans that the latest sweeps found.
    pub async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        let collection = self.orphans_collection();
        let find = async {
            let found = collection
                .find(doc! {})
                .sort(doc! { "_id": 1 })
                .limit(i64::try_from(MOST_ORPHANS).unwrap_or(i64::MAX))
                .await?;
            found.try_collect::<Vec<_>>().await
        };
        let found = self.bounded("orphans", find).await?;
        Ok(found.iter().filter_map(read_orphan).collect())
    }
}

pub(super) fn orphan_id(upstream: Upstream, external_id: &str) -> String {
    format!("{upstream}/{external_id}")
}

fn read_swept(document: &Document) -> Option<SweptTenant> {
    let id = TenantId::from_bytes(document.get_object_id("_id").ok()?.bytes());
    let steps = document.get_document("steps").ok();
    let print = |step: Upstream| -> Option<Fingerprint> {
        let step = steps?.get_document(step.name()).ok()?;
        let is = |field: &str, name: &str| step.get_str(field).is_ok_and(|found| found == name);
        // What is held because it differs is still expected to be as it was.
        let doubted =
            || is("reason", Reason::ChangeGuard.name()) || is("reason", Reason::Stopped.name());
        let well = is("state", StepState::Ok.name());
        if well || (is("state", StepState::Pending.name()) && doubted()) {
            step.get_str("fingerprint").ok()?.parse().ok()
        } else {
            None
        }
    };
    let slug = document.get_str("slug").unwrap_or_default().to_owned();
    let busy = document.get_bool("busy").unwrap_or(false);
    let of = |step: Upstream| steps?.get_document(step.name()).ok();
    Some(SweptTenant {
        id,
        slug,
        prints: PerStep::from_fn(print),
        ids: PerStep::from_fn(|step| Some(of(step)?.get_str("externalId").ok()?.to_owned())),
        others: PerStep::from_fn(|step| of(step).map(read_others).unwrap_or_default()),
        unsettled: PerStep::from_fn(|step| {
            let state = of(step).and_then(|step| step.get_str("state").ok());
            let settled =
                |state: &str| [StepState::Ok, StepState::Skipped].iter().any(|s| s.name() == state);
            !state.is_some_and(settled)
        }),
        busy,
    })
}

pub(super) fn read_orphan(document: &Document) -> Option<Orphan> {
    let upstream = document.get_str("upstream").ok()?;
    let at = |field| document.get(field).and_then(timestamp);
    Some(Orphan {
        upstream: Upstream::ALL.into_iter().find(|step| step.name() == upstream)?,
        external_id: document.get_str("externalId").ok()?.to_owned(),
        name: document.get("name").and_then(Bson::as_str).unwrap_or_default().to_owned(),
        tenant: TenantId::from_bytes(document.get_object_id("tenantId").ok()?.bytes()),
        first_seen_at: at("firstSeenAt")?,
        last_seen_at: at("lastSeenAt")?,
        release: document
            .get_document("release")
            .ok()
            .map(|release| release.get_str("message").ok().map(ToOwned::to_owned)),
    })
}
