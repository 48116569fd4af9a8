//! Writing many documents of one kind at once.

use mongodb::bson::{Document, doc};
use mongodb::error::ErrorKind;

use super::collection::Collection;
use super::{DUPLICATE_KEY, Store, StoreError};

/// Documents that one command writes.
const AT_ONCE: usize = 1_000;

impl Store {
    /// Inserts those of the documents that are not there yet, and sets `stamp` (expressions) in all of them.
    /// Returns the places of those that are new.
    pub(super) async fn put_all(
        &self,
        operation: &'static str,
        collection: &Collection,
        documents: &[Document],
        stamp: &Document,
    ) -> Result<Vec<usize>, StoreError> {
        let mut new = Vec::new();
        for (chunk, some) in documents.chunks(AT_ONCE).enumerate() {
            let insert = async {
                match collection.insert_many(some).ordered(false).await {
                    Ok(_) => Ok(Vec::new()),
                    Err(error) => match there_already(error.kind.as_ref()) {
                        Some(there) => Ok(there),
                        None => Err(error),
                    },
                }
            };
            let there = self.bounded(operation, insert).await?;
            let inserted = (0..some.len()).filter(|place| !there.contains(place));
            new.extend(inserted.map(|place| chunk * AT_ONCE + place));
            let ids: Vec<_> = some.iter().filter_map(|document| document.get("_id").cloned()).collect();
            let all = doc! { "_id": { "$in": ids } };
            let stamped = collection.update_many(all, vec![doc! { "$set": stamp }]);
            self.bounded(operation, stamped).await?;
        }
        Ok(new)
    }
}

/// The places of the documents that were there, if nothing else was wrong.
fn there_already(error: &ErrorKind) -> Option<Vec<usize>> {
    let ErrorKind::InsertMany(failed) = error else { return None };
    let errors = failed.write_errors.as_ref()?;
    let only =
        failed.write_concern_error.is_none() && errors.iter().all(|error| error.code == DUPLICATE_KEY);
    only.then(|| errors.iter().map(|error| error.index).collect())
}
