//! What the collection needs before the first tenant: a validator and indexes.

use mongodb::bson::{Bson, Document, doc};
use mongodb::{IndexModel, options::IndexOptions};

use super::{OpenError, Store, StoreError, TENANTS, Unsuitable};
use crate::tenant::Slug;

/// Version of the validator. A newer process replaces an older one's, never the other way round.
pub const SCHEMA_VERSION: i64 = 2;
const TITLE: &str = "tenantry tenants, schema ";

const NAMESPACE_EXISTS: i32 = 48;
const DUPLICATE_KEY: i32 = 11000;

impl Store {
    /// Creates the collection, its validator and its indexes where they are missing.
    pub(super) async fn ensure_schema(&self) -> Result<(), OpenError> {
        let create = doc! {
            "create": TENANTS,
            "validator": validator(),
            "validationLevel": "moderate",
        };
        match self.command("create collection", create).await {
            Ok(_) => {}
            Err(StoreError::Refused { code: Some(NAMESPACE_EXISTS), .. }) => {
                self.ensure_validator().await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.ensure_indexes().await
    }

    async fn ensure_validator(&self) -> Result<(), OpenError> {
        let command = doc! { "listCollections": 1, "filter": { "name": TENANTS } };
        let reply = self.command("listCollections", command).await?;
        let present = first_batch(&reply)
            .first()
            .and_then(|collection| collection.get_document("options").ok())
            .and_then(|options| options.get_document("validator").ok())
            .cloned()
            .unwrap_or_default();
        let title = present
            .get_document("$jsonSchema")
            .and_then(|schema| schema.get_str("title"))
            .unwrap_or_default();
        let version = title.strip_prefix(TITLE).and_then(|version| version.parse::<i64>().ok());
        match version {
            Some(version) if version >= SCHEMA_VERSION => return Ok(()),
            None if !present.is_empty() => {
                tracing::warn!(
                    collection = TENANTS,
                    "the collection has a validator of somebody else's; leaving it as it is"
                );
                return Ok(());
            }
            _ => {}
        }
        let command = doc! {
            "collMod": TENANTS,
            "validator": validator(),
            // "moderate": documents that were invalid before stay writable, so that the legacy
            // service goes on working and the controller can note what is wrong with them.
            "validationLevel": "moderate",
        };
        self.command("collMod", command).await?;
        Ok(())
    }

    async fn ensure_indexes(&self) -> Result<(), OpenError> {
        let mut wanted =
            vec![index("tenantry_due", doc! { "nextReconcileAt": 1 }), super::idempotency::index()];
        wanted.extend(super::waiting::indexes());
        wanted.extend(super::list::indexes());
        if !self.has_unique_slug_index().await? {
            let options = IndexOptions::builder()
                .name("tenantry_slug".to_owned())
                .unique(true)
                // Documents without a slug make no sense, but several of them must not keep the
                // index from being built.
                .partial_filter_expression(doc! { "slug": { "$gt": "" } })
                .build();
            wanted.push(IndexModel::builder().keys(doc! { "slug": 1 }).options(options).build());
        }
        match self.bounded("createIndexes", self.tenants.create_indexes(wanted)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Refused { code: Some(DUPLICATE_KEY), message, .. }) => {
                Err(Unsuitable::Schema(format!(
                    "two documents in `{TENANTS}` have the same slug, so it cannot be made unique; \
                     rename or remove one of them: {message}"
                ))
                .into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The legacy service's own unique index on `slug` will do.
    async fn has_unique_slug_index(&self) -> Result<bool, StoreError> {
        let reply = self.command("listIndexes", doc! { "listIndexes": TENANTS }).await?;
        Ok(first_batch(&reply).iter().any(|index| {
            let keys = index.get_document("key").ok();
            index.get_bool("unique").unwrap_or(false)
                && keys.is_some_and(|keys| keys.len() == 1 && keys.contains_key("slug"))
        }))
    }
}

fn index(name: &str, keys: Document) -> IndexModel {
    let options = IndexOptions::builder().name(name.to_owned()).build();
    IndexModel::builder().keys(keys).options(options).build()
}

fn first_batch(reply: &Document) -> Vec<Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.map(|batch| batch.iter().filter_map(Bson::as_document).cloned().collect()).unwrap_or_default()
}

/// Only what a writer could get wrong about the *desired* state: a shell's typing error is refused
/// where it is made. What the controller itself writes needs no guard, and what others keep in the
/// documents is theirs.
fn validator() -> Document {
    doc! { "$jsonSchema": {
        "title": format!("{TITLE}{SCHEMA_VERSION}"),
        "bsonType": "object",
        "required": ["slug", "name"],
        "properties": {
            "slug": {
                "bsonType": "string",
                "pattern": Slug::PATTERN,
                "description": "a DNS label: a-z, 0-9 and '-', at most 63 characters",
            },
            "name": { "bsonType": "string", "minLength": 1 },
            "domain": { "bsonType": ["string", "null"] },
            "quota": {
                "bsonType": ["object", "null"],
                "properties": {
                    "storageBytes": { "bsonType": ["int", "long", "double", "null"], "minimum": 0 },
                },
            },
            "services": {
                "bsonType": ["object", "null"],
                "properties": {
                    "authentik": { "bsonType": "bool" },
                    "stalwart": { "bsonType": "bool" },
                    "ocis": { "bsonType": "bool" },
                },
            },
            "reconcileRequestedAt": { "bsonType": ["date", "null"] },
            "nextReconcileAt": { "bsonType": ["date", "null"] },
            "paused": { "bsonType": ["bool", "null"] },
            "adopt": { "bsonType": ["bool", "null"] },
            "deletionRequestedAt": { "bsonType": ["date", "null"] },
            "deletionPolicy": { "enum": [Bson::Null, "retain", "delete", "purge"] },
        },
    } }
}
