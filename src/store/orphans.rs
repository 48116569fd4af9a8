//! Orphans that an administrator wants released, so that a new tenant may adopt them.
//!
//! The HTTP layer records the wish beside the orphan, and touches a document among the controls, which every
//! process watches: one that has the upstream carries it out.

use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::{Document, doc};

use super::document::{date, object_id};
use super::sweep::{Orphan, orphan_id, read_orphan};
use super::{Store, StoreError};
use crate::tenant::{Event, EventKind, Slug, TenantId, Upstream};

/// Id of the document among the controls.
pub(super) const RELEASES: &str = "orphans";
/// Wishes that are carried out at a time.
const SOME: i64 = 100;

/// What became of a wish for a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Done,
    /// There is no such orphan.
    Missing,
    /// The tenant that it is marked for exists.
    HasTenant,
    /// Nothing tells the slug of the tenant that it is marked for.
    NeedsSlug,
}

/// An orphan that is to be released.
#[derive(Debug, Clone)]
pub struct ToRelease {
    pub orphan: Orphan,
    /// A tenant of this slug finds it.
    pub slug: Slug,
    by: Option<String>,
}

impl Store {
    /// Records that an orphan is to be released for a tenant of this slug; by default, of the slug that its
    /// tenant had.
    pub async fn ask_for_release(
        &self,
        upstream: Upstream,
        external_id: &str,
        slug: Option<&Slug>,
    ) -> Result<Asked, StoreError> {
        let orphans = self.orphans_collection();
        let this = doc! { "_id": orphan_id(upstream, external_id) };
        let found = self.bounded("orphans", orphans.find_one(this.clone())).await?;
        let Some(orphan) = found.as_ref().and_then(read_orphan) else { return Ok(Asked::Missing) };
        if self.has_tenant(orphan.tenant).await? {
            return Ok(Asked::HasTenant);
        }
        let slug = match slug {
            Some(slug) => Some(slug.clone()),
            None => self.slug_of(orphan.tenant).await?,
        };
        let Some(slug) = slug else { return Ok(Asked::NeedsSlug) };
        let mut release = doc! { "slug": slug.as_str() };
        if let Some(by) = &self.by {
            release.insert("by", by);
        }
        let wish = orphans.update_one(this, doc! { "$set": { "release": release } });
        self.bounded("ask for a release", wish).await?;
        let controls = self.controls_collection();
        let touch = vec![doc! { "$set": { "askedAt": "$$NOW" } }];
        let touch = controls.update_one(doc! { "_id": RELEASES }, touch).upsert(true);
        self.bounded("ask for a release", touch).await?;
        Ok(Asked::Done)
    }

    /// Whether there is a tenant of this id.
    pub async fn has_tenant(&self, id: TenantId) -> Result<bool, StoreError> {
        let find = self.tenants.find_one(doc! { "_id": object_id(id) }).projection(doc! { "_id": 1 });
        Ok(self.bounded("get", find).await?.is_some())
    }

    /// Some of the orphans that are to be released.
    pub async fn to_release(&self) -> Result<Vec<ToRelease>, StoreError> {
        let orphans = self.orphans_collection();
        let find = async {
            let found = orphans.find(doc! { "release": { "$exists": true } }).limit(SOME).await?;
            found.try_collect::<Vec<Document>>().await
        };
        let found = self.bounded("orphans", find).await?;
        Ok(found.iter().filter_map(read_to_release).collect())
    }

    /// An orphan was released: it is none any more.
    pub async fn orphan_released(&self, released: &ToRelease) -> Result<(), StoreError> {
        let Orphan { upstream, external_id, name, tenant, .. } = &released.orphan;
        let orphans = self.orphans_collection();
        let remove = orphans.delete_one(doc! { "_id": orphan_id(*upstream, external_id) });
        if self.bounded("orphans", remove).await?.deleted_count > 0 {
            let message = format!(
                "{name:?} ({external_id}) of tenant {tenant} is released: a tenant of the slug {} may adopt it",
                released.slug
            );
            let event = Event::new(self.clock.now(), EventKind::OrphanReleased, message)
                .of_step(*upstream, None);
            self.on_behalf_of(released.by.clone()).tell_fleet(event).await;
        }
        Ok(())
    }

    /// An orphan could not be released now; `why` is shown. `None`: it is not to be released any more.
    pub async fn orphan_stays(&self, kept: &ToRelease, why: Option<&str>) -> Result<(), StoreError> {
        let this = doc! { "_id": orphan_id(kept.orphan.upstream, &kept.orphan.external_id) };
        let change = match why {
            Some(why) => doc! { "$set": { "release.message": why } },
            None => doc! { "$unset": { "release": 1 } },
        };
        let orphans = self.orphans_collection();
        self.bounded("orphans", orphans.update_one(this, change)).await.map(drop)
    }

    /// Nothing is left to release, unless a release was asked for since `asked`.
    pub async fn nothing_to_release(&self, asked: Timestamp) -> Result<(), StoreError> {
        let controls = self.controls_collection();
        let settle = controls.delete_one(doc! { "_id": RELEASES, "askedAt": date(asked) });
        self.bounded("orphans", settle).await.map(drop)
    }
}

fn read_to_release(document: &Document) -> Option<ToRelease> {
    let release = document.get_document("release").ok()?;
    Some(ToRelease {
        orphan: read_orphan(document)?,
        slug: release.get_str("slug").ok()?.parse().ok()?,
        by: release.get_str("by").ok().map(ToOwned::to_owned),
    })
}
