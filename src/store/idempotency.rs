//! Creating a tenant only once, however often the request comes.
//!
//! The key and a digest of what was asked for are part of the tenant's document, so that one insert
//! records both or nothing, and they hold as long as the tenant does. A unique index finds the key again.

use std::fmt;
use std::str::FromStr;

use futures_util::TryStreamExt;
use mongodb::IndexModel;
use mongodb::bson::{Document, doc};
use mongodb::options::IndexOptions;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::document::{Record, projection, read};
use super::tenants::{NewTenant, by_slug};
use super::{Store, StoreError};
use crate::tenant::Upstream;

/// A client's name for one creation: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    pub const MAX_LEN: usize = 128;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {} visible ASCII characters", IdempotencyKey::MAX_LEN)]
pub struct InvalidIdempotencyKey;

impl FromStr for IdempotencyKey {
    type Err = InvalidIdempotencyKey;

    fn from_str(text: &str) -> Result<Self, InvalidIdempotencyKey> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if visible && (1..=Self::MAX_LEN).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidIdempotencyKey)
        }
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What became of a creation with a key.
#[derive(Debug, Clone)]
pub enum Inserted {
    Created(Record),
    /// The same was asked for before; this is the tenant as it is now.
    Repeated(Record),
    /// The key belongs to a creation of something else.
    KeyReused,
    /// Another tenant has the slug.
    SlugTaken,
}

impl Store {
    /// Inserts a tenant unless a request with the same key did.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] it may be repeated, which is what the key is for.
    pub async fn insert_once(
        &self,
        new: &NewTenant,
        key: &IdempotencyKey,
    ) -> Result<Inserted, StoreError> {
        let digest = digest(new);
        let mut document = self.new_document(new);
        document.insert("idempotency", doc! { "key": &key.0, "digest": &digest });
        let duplicate = match self.bounded("insert", self.tenants.insert_one(&document)).await {
            Ok(_) => return Ok(Inserted::Created(read(&document))),
            Err(duplicate @ StoreError::Duplicate { .. }) => duplicate,
            Err(error) => return Err(error),
        };
        let mut fields = projection();
        fields.insert("idempotency", 1);
        let find = async {
            let either = doc! { "$or": [{ "idempotency.key": &key.0 }, by_slug(&new.slug)] };
            self.tenants.find(either).projection(fields).limit(2).await?.try_collect::<Vec<_>>().await
        };
        let found = self.bounded("look for a creation", find).await?;
        let recorded = |document: &Document, field: &str| {
            let idempotency = document.get_document("idempotency").ok();
            idempotency.and_then(|recorded| recorded.get_str(field).ok().map(ToOwned::to_owned))
        };
        let same_key = |document: &&Document| recorded(document, "key").as_deref() == Some(&key.0);
        match found.iter().find(same_key) {
            Some(document) if recorded(document, "digest").as_deref() == Some(&digest) => {
                Ok(Inserted::Repeated(read(document)))
            }
            Some(_) => Ok(Inserted::KeyReused),
            None if found.is_empty() => Err(duplicate.unless_raced()),
            None => Ok(Inserted::SlugTaken),
        }
    }
}

/// What was asked for, whatever the order and spelling in which it came.
fn digest(new: &NewTenant) -> String {
    let desired = &new.desired;
    let text = json!([
        new.slug.as_str(),
        desired.name.as_str(),
        desired.domain.as_ref().map(|domain| domain.as_str()),
        desired.storage_bytes,
        Upstream::ALL.map(|step| desired.services.has(step)),
        desired.paused,
        desired.adopt,
    ])
    .to_string();
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Few documents have a key, and the index holds only those.
pub(super) fn index() -> IndexModel {
    let options = IndexOptions::builder()
        .name("tenantry_idempotency".to_owned())
        .unique(true)
        .partial_filter_expression(doc! { "idempotency.key": { "$exists": true } })
        .build();
    IndexModel::builder().keys(doc! { "idempotency.key": 1 }).options(options).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_ascii_and_not_too_long() {
        for fine in ["a", "3f2b9c1e-77aa-4c1e-9d5e-0c5f0a1b2c3d", &"x".repeat(128)] {
            assert_eq!(fine.parse::<IdempotencyKey>().unwrap().to_string(), fine);
        }
        for wrong in ["", " ", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert_eq!(wrong.parse::<IdempotencyKey>(), Err(InvalidIdempotencyKey), "{wrong:?}");
        }
    }
}
