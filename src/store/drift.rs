//! Tenants whose resources were seen to differ from what was last recorded of them, for people who judge a
//! change guard, and for the guard itself, which counts them: each tenant once, however often its repair is
//! tried.
//!
//! Kept for a day after they were last seen, and of each upstream no more than [`MOST`].

use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{IndexOptions, ReturnDocument};

use super::collection::Collection;
use super::document::{integer, object_id, timestamp};
use super::lease::millis;
use super::sweep::BATCH;
use super::{OpenError, Store, StoreError};
use crate::tenant::{Slug, TenantId, Upstream, shortened};

const DRIFT: &str = "tenantry_drift";
/// Tenants that are kept of one upstream; a sweep finds the others again.
pub const MOST: usize = 100_000;
const KEPT: Duration = Duration::from_secs(86_400);

/// A tenant whose resource differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drifted {
    pub tenant: TenantId,
    pub slug: String,
    /// What was seen.
    pub seen: String,
    pub seen_at: Timestamp,
}

fn id_of(step: Upstream, tenant: TenantId) -> String {
    format!("{step}/{tenant}")
}

/// The control document that counts repairs.
fn repairs_id(step: Upstream) -> String {
    format!("repairs/{step}")
}

fn number_in(document: &Document) -> Option<u64> {
    document.get("number").and_then(integer)?.try_into().ok()
}

/// Those of one upstream, after this tenant, in order of the tenants' ids.
fn after(step: Upstream, tenant: Option<TenantId>) -> Document {
    let after = tenant.map_or_else(|| format!("{step}/"), |tenant| id_of(step, tenant));
    doc! { "_id": { "$gt": after, "$lt": format!("{step}0") } }
}

impl Store {
    fn drift_collection(&self) -> Collection {
        Collection::of(&self.database, DRIFT)
    }

    pub(super) async fn ensure_drift(&self) -> Result<(), OpenError> {
        let ends = IndexOptions::builder().name("tenantry_ends".to_owned()).expire_after(KEPT).build();
        let index = IndexModel::builder().keys(doc! { "seenAt": 1 }).options(ends).build();
        self.ensure_indexes(&self.drift_collection(), vec![index]).await
    }

    /// Records that a reconcile would repair the tenant's resource. Returns how many tenants, this one
    /// included, that was so of before it within `window`, over all processes: no two get the same number, and
    /// one that tries again keeps its own.
    pub async fn count_repair(
        &self,
        step: Upstream,
        (tenant, slug): (TenantId, &Slug),
        seen: &str,
        window: Duration,
    ) -> Result<u64, StoreError> {
        let fresh = |field: &str| doc! { "$gt": [field, { "$subtract": ["$$NOW", millis(window)] }] };
        let drift = vec![doc! { "$set": {
            "upstream": step.name(), "tenantId": object_id(tenant), "slug": slug.as_str(),
            "seen": { "$literal": &*shortened(seen) }, "seenAt": "$$NOW",
            "number": { "$cond": [fresh("$countedAt"), "$number", "$$REMOVE"] },
        } }];
        let this = doc! { "_id": id_of(step, tenant) };
        let collection = self.drift_collection();
        let put = collection.find_one_and_update(this.clone(), drift);
        let put = put.upsert(true).return_document(ReturnDocument::After);
        let known = self.bounded("count repair", put).await?;
        if let Some(number) = known.as_ref().and_then(number_in) {
            return Ok(number);
        }
        let count = vec![doc! { "$set": {
            "number": { "$cond": [fresh("$since"), { "$add": ["$number", 1_i64] }, 1_i64] },
            "since": { "$cond": [fresh("$since"), "$since", "$$NOW"] },
        } }];
        let controls = self.controls_collection();
        let next = controls.find_one_and_update(doc! { "_id": repairs_id(step) }, count);
        let next = next.upsert(true).return_document(ReturnDocument::After);
        let next = self.bounded("count repair", next).await?;
        let number = next.as_ref().and_then(number_in).unwrap_or(1);
        let kept = doc! { "number": i64::try_from(number).unwrap_or(i64::MAX), "countedAt": "$$NOW" };
        let keep = collection.update_one(this, vec![doc! { "$set": kept }]);
        self.bounded("count repair", keep).await?;
        Ok(number)
    }

    /// Records what a sweep saw, as far as there is room.
    pub async fn record_drift(
        &self,
        step: Upstream,
        found: &[(TenantId, String, String)],
    ) -> Result<(), StoreError> {
        let documents: Vec<Document> = found
            .iter()
            .take(MOST)
            .map(|(tenant, slug, seen)| {
                doc! {
                    "_id": id_of(step, *tenant), "upstream": step.name(), "tenantId": object_id(*tenant),
                    "slug": slug, "seen": seen,
                }
            })
            .collect();
        let stamp = doc! { "seenAt": "$$NOW" };
        self.put_all("record drift", &self.drift_collection(), &documents, &stamp).await.map(drop)
    }

    /// Of an upstream, the tenants after `tenant` in order of their ids, at most `limit`.
    pub async fn drift(
        &self,
        step: Upstream,
        tenant: Option<TenantId>,
        limit: u32,
    ) -> Result<Vec<Drifted>, StoreError> {
        let collection = self.drift_collection();
        let find = async {
            let found = collection.find(after(step, tenant)).sort(doc! { "_id": 1 });
            let found = found.limit(i64::from(limit)).batch_size(limit);
            found.await?.try_collect::<Vec<_>>().await
        };
        let found = self.bounded("drift", find).await?;
        Ok(found.iter().filter_map(read_drifted).collect())
    }

    /// How many tenants are recorded of an upstream.
    pub async fn count_drift(&self, step: Upstream) -> Result<u64, StoreError> {
        let collection = self.drift_collection();
        self.bounded("drift", collection.count_documents(after(step, None))).await
    }

    /// Makes due what is recorded of an upstream, [`BATCH`] tenants after each other with a pause of `pace`,
    /// but all within `span`; and records it no longer. Returns how many they were.
    pub async fn repair_drift(
        &self,
        step: Upstream,
        pace: Duration,
        span: Duration,
    ) -> Result<u64, StoreError> {
        let all = self.count_drift(step).await?;
        let batches = u32::try_from(all.div_ceil(u64::from(BATCH))).unwrap_or(u32::MAX).max(1);
        let pace = pace.min(span / batches);
        let mut done = 0;
        let mut last = None;
        for batch in 0.. {
            let found = self.drift(step, last, BATCH).await?;
            let ids: Vec<TenantId> = found.iter().map(|drifted| drifted.tenant).collect();
            let Some(end) = ids.last() else { break };
            last = Some(*end);
            self.make_due(step, &ids, pace * batch).await?;
            let told: Vec<Bson> = ids.iter().map(|id| id_of(step, *id).into()).collect();
            let told = doc! { "_id": { "$in": told } };
            let collection = self.drift_collection();
            self.bounded("drift", collection.delete_many(told)).await?;
            done += ids.len() as u64;
        }
        Ok(done)
    }

    /// Forgets what is recorded of an upstream: it was found sane.
    pub(super) async fn forget_drift(&self, step: Upstream) -> Result<(), StoreError> {
        let collection = self.drift_collection();
        self.bounded("drift", collection.delete_many(after(step, None))).await?;
        let controls = self.controls_collection();
        self.bounded("drift", controls.delete_one(doc! { "_id": repairs_id(step) })).await.map(drop)
    }
}

fn read_drifted(document: &Document) -> Option<Drifted> {
    let text = |field| document.get_str(field).unwrap_or_default().to_owned();
    Some(Drifted {
        tenant: TenantId::from_bytes(document.get_object_id("tenantId").ok()?.bytes()),
        slug: text("slug"),
        seen: text("seen"),
        seen_at: document.get("seenAt").and_then(timestamp)?,
    })
}
