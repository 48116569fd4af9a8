//! What the collection needs before the first tenant: a validator and indexes.

use mongodb::bson::{Document, doc};
use mongodb::{IndexModel, options::IndexOptions};

use super::validator::{Present, validator};
use super::{OpenError, Store, StoreError, TENANTS, UNAUTHORIZED, Unsuitable};

const NAMESPACE_EXISTS: i32 = 48;

impl Store {
    /// Creates the collection, its validator and its indexes where they are missing.
    pub(super) async fn ensure_schema(&self) -> Result<(), OpenError> {
        match self.present_validator().await? {
            Some(present) => self.ensure_validator(present).await?,
            None => self.create_collection().await?,
        }
        let mut wanted = vec![
            index("tenantry_due", doc! { "nextReconcileAt": 1 }),
            super::idempotency::index(),
            unique_slug(),
        ];
        wanted.extend(super::waiting::indexes());
        wanted.extend(super::list::indexes());
        self.ensure_indexes(&self.tenants, wanted).await
    }

    async fn create_collection(&self) -> Result<(), OpenError> {
        let create = doc! {
            "create": TENANTS,
            "validator": validator(),
            "validationLevel": "moderate",
        };
        match self.command("create collection", create).await {
            Ok(_) => Ok(()),
            // Another process was quicker.
            Err(StoreError::Refused { code: Some(NAMESPACE_EXISTS), .. }) => {
                let present = self.present_validator().await?.unwrap_or(Present::None);
                self.ensure_validator(present).await
            }
            Err(StoreError::Refused { code: Some(UNAUTHORIZED), message, .. }) => {
                let database = self.database.name();
                Err(Unsuitable::Schema(format!(
                    "there is no collection `{TENANTS}` in the database {database:?}, and the user of MONGODB_URI \
                     may not create it; give that user the role readWrite on that database, or name another one \
                     with MONGODB_DATABASE: {message}"
                ))
                .into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The former service's own unique index on `slug` will do, if it holds every slug.
pub(super) fn unique_slug() -> IndexModel {
    let options = IndexOptions::builder()
        .name("tenantry_slug".to_owned())
        .unique(true)
        // Documents without a slug are invalid, but several of them must not keep the index from being built.
        .partial_filter_expression(doc! { "slug": { "$gt": "" } })
        .build();
    IndexModel::builder().keys(doc! { "slug": 1 }).options(options).build()
}

fn index(name: &str, keys: Document) -> IndexModel {
    let options = IndexOptions::builder().name(name.to_owned()).build();
    IndexModel::builder().keys(keys).options(options).build()
}
