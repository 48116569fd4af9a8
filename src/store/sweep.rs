//! What a sweep needs of the database: every tenant's fingerprints in order, a second look at some of
//! them, flags for those that differ, and the list of orphans.

use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::Collection;
use mongodb::bson::{Bson, Document, doc};

use super::document::{date, object_id, timestamp};
use super::{Store, StoreError};
use crate::tenant::{Event, EventKind, Fingerprint, PerStep, StepKind, StepState, TenantId};

/// Tenants in one batch of a sweep.
pub const BATCH: u32 = 1_000;
/// Orphans that are kept for people to look at.
const MOST_ORPHANS: i64 = 10_000;
/// Of those, the ones that an event names.
const NAMED_ORPHANS: usize = 10;
const ORPHANS: &str = "tenantry_orphans";

/// A tenant as a sweep sees it: of each step that is `ok`, what its resource looked like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweptTenant {
    pub id: TenantId,
    pub slug: String,
    pub prints: PerStep<Option<Fingerprint>>,
}

/// A resource that is marked for a tenant that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    pub upstream: StepKind,
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
        self.read_swept(doc! { "_id": { "$gt": after } }).await
    }

    /// These tenants, as far as they exist; at most [`BATCH`].
    pub async fn swept_again(&self, ids: &[TenantId]) -> Result<Vec<SweptTenant>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| object_id(*id)).collect();
        self.read_swept(doc! { "_id": { "$in": ids } }).await
    }

    async fn read_swept(&self, filter: Document) -> Result<Vec<SweptTenant>, StoreError> {
        let mut fields = doc! { "slug": 1 };
        for step in StepKind::ALL {
            fields.insert(format!("steps.{step}.state"), 1);
            fields.insert(format!("steps.{step}.fingerprint"), 1);
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

    /// Makes these tenants due for one step, because their resource differs. With `search`, a second
    /// resource is looked for as well.
    pub async fn flag_drift(
        &self,
        step: StepKind,
        ids: &[TenantId],
        search: bool,
    ) -> Result<u64, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| object_id(*id)).collect();
        let mut set =
            doc! { "nextReconcileAt": "$$NOW", format!("steps.{step}.nextAttemptAt"): "$$NOW" };
        if search {
            // An intent of long ago: what it may have created is looked for once.
            set.insert(format!("steps.{step}.createIntent"), format!("{:024x}", 1));
        }
        let flag = self.tenants.update_many(doc! { "_id": { "$in": ids } }, vec![doc! { "$set": set }]);
        Ok(self.bounded("flag drift", flag).await?.modified_count)
    }

    pub(super) fn orphans_collection(&self) -> Collection<Document> {
        self.database.collection(ORPHANS)
    }

    /// Records what a sweep of one upstream, which began at `since`, found to be orphans, and forgets those
    /// that were not seen since. Without any, then or before, nothing is written.
    pub async fn record_orphans(
        &self,
        upstream: StepKind,
        found: &[(TenantId, String, String)],
        since: Timestamp,
    ) -> Result<(), StoreError> {
        let collection = self.orphans_collection();
        let known = doc! { "upstream": upstream.name() };
        let had = collection.find_one(known.clone()).projection(doc! { "_id": 1 });
        if found.is_empty() && self.bounded("orphans", had).await?.is_none() {
            return Ok(());
        }
        let keep: Vec<String> = found.iter().map(|(_, id, _)| orphan_id(upstream, id)).collect();
        // Those that are to be released are taken off the list by what releases them, which tells it.
        let gone = doc! {
            "upstream": upstream.name(), "_id": { "$nin": &keep }, "lastSeenAt": { "$lt": date(since) },
            "release": { "$exists": false },
        };
        let gone = self.bounded("orphans", collection.delete_many(gone)).await?.deleted_count;
        if gone > 0 {
            let event = Event::now(EventKind::OrphansGone, format!("{gone} fewer"));
            self.tell_fleet(event.of_step(upstream, None)).await;
        }
        self.add_orphans(upstream, found).await
    }

    /// Records some more orphans.
    pub async fn add_orphans(
        &self,
        upstream: StepKind,
        found: &[(TenantId, String, String)],
    ) -> Result<(), StoreError> {
        let collection = self.orphans_collection();
        let most = usize::try_from(MOST_ORPHANS).unwrap_or(usize::MAX);
        let mut new = Vec::new();
        for (tenant, external_id, name) in found.iter().take(most) {
            let id = orphan_id(upstream, external_id);
            let orphan = vec![doc! { "$set": {
                "upstream": upstream.name(),
                "externalId": { "$literal": external_id },
                "name": { "$literal": name },
                "tenantId": object_id(*tenant),
                "firstSeenAt": { "$ifNull": ["$firstSeenAt", "$$NOW"] },
                "lastSeenAt": "$$NOW",
            } }];
            let record = collection.update_one(doc! { "_id": id }, orphan).upsert(true);
            if self.bounded("orphans", record).await?.upserted_id.is_some() {
                new.push(name.as_str());
            }
        }
        if !new.is_empty() {
            let some = new[..new.len().min(NAMED_ORPHANS)].join(", ");
            let message = format!(
                "{} more: {some}{}",
                new.len(),
                if new.len() > NAMED_ORPHANS { ", …" } else { "" }
            );
            let event = Event::now(EventKind::OrphansFound, message).of_step(upstream, None);
            self.tell_fleet(event).await;
        }
        Ok(())
    }

    /// How many orphans of an upstream are known.
    pub async fn count_orphans(&self, upstream: StepKind) -> Result<u64, StoreError> {
        let collection = self.orphans_collection();
        self.bounded("orphans", collection.count_documents(doc! { "upstream": upstream.name() })).await
    }

    /// The orphans that the latest sweeps found.
    pub async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        let collection = self.orphans_collection();
        let find = async {
            let found = collection.find(doc! {}).sort(doc! { "_id": 1 }).limit(MOST_ORPHANS).await?;
            found.try_collect::<Vec<_>>().await
        };
        let found = self.bounded("orphans", find).await?;
        Ok(found.iter().filter_map(read_orphan).collect())
    }
}

pub(super) fn orphan_id(upstream: StepKind, external_id: &str) -> String {
    format!("{upstream}/{external_id}")
}

fn read_swept(document: &Document) -> Option<SweptTenant> {
    let id = TenantId::from_bytes(document.get_object_id("_id").ok()?.bytes());
    let steps = document.get_document("steps").ok();
    let print = |step: StepKind| -> Option<Fingerprint> {
        let step = steps?.get_document(step.name()).ok()?;
        let well = step.get_str("state").is_ok_and(|state| state == StepState::Ok.name());
        if well { step.get_str("fingerprint").ok()?.parse().ok() } else { None }
    };
    let slug = document.get_str("slug").unwrap_or_default().to_owned();
    Some(SweptTenant { id, slug, prints: PerStep::from_fn(print) })
}

pub(super) fn read_orphan(document: &Document) -> Option<Orphan> {
    let upstream = document.get_str("upstream").ok()?;
    let at = |field| document.get(field).and_then(timestamp);
    Some(Orphan {
        upstream: StepKind::ALL.into_iter().find(|step| step.name() == upstream)?,
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
