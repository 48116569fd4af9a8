//! Indexes: which there are, what they guarantee, and how those that are missing are made.
//!
//! Another program's index serves as well as one of ours if it guarantees the same: its keys, whether it is
//! unique, which documents it holds, and by which collation it compares. An index of ours that differs, such
//! as one of an earlier version, is made anew. One of another program is never touched.

use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc, serialize_to_document};

use super::collection::{Collection, simple};
use super::document::integer;
use super::{OpenError, Store, StoreError, UNAUTHORIZED, Unsuitable};

const NO_COLLECTION: i32 = 26;
/// An index of that name, or on these keys, is there with other options.
const IN_THE_WAY: [i32; 2] = [85, 86];
/// Names of indexes that tenantry made.
pub(super) const OURS: &str = "tenantry_";

/// What an index guarantees, and for which documents.
#[derive(Debug, Clone, PartialEq)]
struct Guarantee {
    /// Field and direction or kind, in order.
    keys: Vec<(String, Bson)>,
    unique: bool,
    /// Only documents that match.
    partial: Option<Document>,
    /// Only documents that have the field.
    sparse: bool,
    /// Whether it compares otherwise than by bytes.
    collated: bool,
    /// Seconds after which documents are removed.
    expires: Option<i64>,
    /// Enforced, but no query uses it.
    hidden: bool,
}

impl Guarantee {
    /// Of an index as `listIndexes` and `createIndexes` describe it.
    fn of(index: &Document) -> Self {
        let flag = |field: &str| match index.get(field) {
            Some(Bson::Boolean(on)) => *on,
            // Old shells wrote 1.
            Some(other) => integer(other).is_some_and(|number| number != 0),
            None => false,
        };
        let key = |(field, kind): (&String, &Bson)| {
            (field.clone(), integer(kind).map_or_else(|| kind.clone(), Bson::Int64))
        };
        let locale = index.get_document("collation").ok();
        let locale = locale.and_then(|collation| collation.get_str("locale").ok());
        Self {
            keys: index
                .get_document("key")
                .map(|keys| keys.iter().map(key).collect())
                .unwrap_or_default(),
            unique: flag("unique"),
            partial: index.get_document("partialFilterExpression").ok().cloned(),
            sparse: flag("sparse"),
            collated: locale.is_some_and(|locale| locale != "simple"),
            expires: index.get("expireAfterSeconds").and_then(integer),
            hidden: flag("hidden"),
        }
    }

    fn wanted(index: &IndexModel) -> Self {
        Self::of(&serialize_to_document(index).unwrap_or_default())
    }

    /// Whether an index with this guarantee does all that `wanted` is for.
    fn covers(&self, wanted: &Self) -> bool {
        let holds_them = match &self.partial {
            None => true,
            Some(filter) => wanted.partial.as_ref() == Some(filter),
        };
        // Of a sparse index no query knows that it is complete. A unique one need not be: it is there for what
        // it forbids, and a document without the field has no slug to share.
        let holds_all = !self.sparse || wanted.sparse || wanted.unique;
        self.keys == wanted.keys
            && (self.unique || !wanted.unique)
            && holds_them
            && holds_all
            && self.collated == wanted.collated
            && self.expires == wanted.expires
            && !self.hidden
    }
}

fn name_of(index: &IndexModel) -> &str {
    index.options.as_ref().and_then(|options| options.name.as_deref()).unwrap_or_default()
}

impl Store {
    /// Makes the wanted indexes that nothing there stands in for.
    pub(super) async fn ensure_indexes(
        &self,
        collection: &Collection,
        wanted: Vec<IndexModel>,
    ) -> Result<(), OpenError> {
        let present = self.indexes_of(collection).await?;
        let named =
            |index: &Document, name: &str| index.get_str("name").is_ok_and(|found| found == name);
        let mut missing = Vec::new();
        for mut index in wanted {
            let guarantee = Guarantee::wanted(&index);
            if present.iter().any(|found| Guarantee::of(found).covers(&guarantee)) {
                continue;
            }
            let name = name_of(&index).to_owned();
            if name.starts_with(OURS) && present.iter().any(|found| named(found, &name)) {
                tracing::warn!(
                    collection = collection.name(),
                    index = name,
                    "the index is not as this version needs it; making it anew"
                );
                let drop = doc! { "dropIndexes": collection.name(), "index": &name };
                self.command("dropIndexes", drop).await?;
            }
            // Otherwise it would have that of the collection.
            index.options.get_or_insert_default().collation = Some(simple());
            missing.push(index);
        }
        if missing.is_empty() {
            return Ok(());
        }
        match self.bounded("createIndexes", collection.create_indexes(missing)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Duplicate { message, .. }) => Err(Unsuitable::Schema(format!(
                "two documents in `{}` have the same {}, so that it cannot be made unique; correct or remove one of \
                 them: {message}",
                collection.name(),
                if message.contains("idempotency") { "Idempotency-Key" } else { "slug" },
            ))
            .into()),
            Err(StoreError::Refused { code: Some(code), message, .. }) if IN_THE_WAY.contains(&code) => {
                Err(Unsuitable::Schema(format!(
                    "an index of `{}` is in the way of one that tenantry needs; rename or drop it: {message}",
                    collection.name()
                ))
                .into())
            }
            Err(StoreError::Refused { code: Some(UNAUTHORIZED), .. }) => {
                Err(Unsuitable::Schema(format!(
                    "the collection `{}` of the database {:?} lacks indexes, and the user of MONGODB_URI may not create \
                     them; give that user the role readWrite on that database",
                    collection.name(),
                    self.database.name()
                ))
                .into())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn indexes_of(&self, collection: &Collection) -> Result<Vec<Document>, StoreError> {
        // There are at most 64.
        let list = doc! { "listIndexes": collection.name(), "cursor": { "batchSize": 100 } };
        match self.command("listIndexes", list).await {
            Ok(reply) => Ok(first_batch(&reply)),
            Err(StoreError::Refused { code: Some(NO_COLLECTION), .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// What a command that lists something found.
pub(super) fn first_batch(reply: &Document) -> Vec<Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.map(|batch| batch.iter().filter_map(Bson::as_document).cloned().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug() -> Guarantee {
        Guarantee::wanted(&super::super::schema::unique_slug())
    }

    #[test]
    fn an_index_stands_in_for_another_only_if_it_guarantees_the_same() {
        let with = |more: Document| {
            let mut index = doc! { "v": 2, "key": { "slug": 1 }, "name": "slug_1", "unique": true };
            index.extend(more);
            Guarantee::of(&index).covers(&slug())
        };
        assert!(with(doc! {}));
        assert!(with(doc! { "key": { "slug": 1.0 } }), "a shell's numbers are doubles");
        assert!(with(doc! { "sparse": true }), "a document without a slug shares none");
        assert!(with(doc! { "partialFilterExpression": { "slug": { "$gt": "" } } }));
        assert!(with(doc! { "collation": { "locale": "simple" } }));
        for lacking in [
            doc! { "unique": false },
            doc! { "partialFilterExpression": { "deletedAt": Bson::Null } },
            doc! { "partialFilterExpression": { "slug": { "$gt": "m" } } },
            doc! { "collation": { "locale": "en", "strength": 2 } },
            doc! { "key": { "slug": -1 } },
            doc! { "key": { "slug": 1, "realm": 1 } },
            doc! { "key": { "slug": "hashed" } },
            doc! { "hidden": true },
            doc! { "expireAfterSeconds": 60 },
        ] {
            assert!(!with(lacking.clone()), "{lacking}");
        }
    }

    #[test]
    fn an_index_for_queries_must_hold_every_document_that_they_ask_for() {
        let wanted = Guarantee::of(&doc! { "key": { "nextReconcileAt": 1 }, "name": "tenantry_due" });
        let with = |more: Document| {
            let mut index = doc! { "key": { "nextReconcileAt": 1 }, "name": "due" };
            index.extend(more);
            Guarantee::of(&index).covers(&wanted)
        };
        assert!(with(doc! {}));
        assert!(!with(doc! { "sparse": true }));
        assert!(!with(doc! { "partialFilterExpression": { "status": "pending" } }));
    }
}
