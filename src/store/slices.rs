//! Going over all tenants in slices, in order of their ids, each small enough for the time limit of one
//! operation.
//!
//! # Guarantees
//!
//! * Ids of all types are gone over.
//! * A slice that was too much for the time limit is made smaller, and larger again once they succeed.

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::Hint;

use super::{Store, StoreError};

/// Documents that one slice reads, at most and at least.
const LARGEST: u64 = 10_000;
const SMALLEST: u64 = 50;

/// How far it has come.
#[derive(Debug, Clone)]
pub(super) struct Slices {
    /// The last `_id` of the slices that are done.
    after: Option<Bson>,
    size: u64,
}

/// Tenants whose ids are next to each other; without an end, all that are left.
#[derive(Debug)]
pub(super) struct Slice {
    after: Option<Bson>,
    until: Option<Bson>,
}

impl Default for Slices {
    fn default() -> Self {
        Self { after: None, size: LARGEST }
    }
}

impl Slices {
    /// Moves on after what was done with the latest slice. Returns whether it was the last one, and what was
    /// done.
    pub fn ended<T>(&mut self, done: Result<(Slice, T), StoreError>) -> Result<(bool, T), StoreError> {
        let (slice, done) = match done {
            Err(error) => {
                if matches!(error, StoreError::Late { .. }) {
                    self.size = (self.size / 4).max(SMALLEST);
                }
                return Err(error);
            }
            Ok(done) => done,
        };
        self.size = (self.size * 2).min(LARGEST);
        let last = slice.until.is_none();
        if !last {
            self.after = slice.until;
        }
        Ok((last, done))
    }
}

impl Slice {
    /// Aggregation expressions that select it. As expressions, because ids of all types are meant.
    pub fn bounds(&self) -> Vec<Document> {
        let bound = |operator: &str, id: &Option<Bson>| {
            id.as_ref().map(|id| doc! { operator: ["$_id", { "$literal": id }] })
        };
        [bound("$gt", &self.after), bound("$lte", &self.until)].into_iter().flatten().collect()
    }
}

impl Store {
    /// The next slice, by a look at the index.
    pub(super) async fn slice(
        &self,
        operation: &'static str,
        slices: &Slices,
    ) -> Result<Slice, StoreError> {
        let find = self
            .tenants
            .find_one(doc! {})
            .projection(doc! { "_id": 1 })
            .sort(doc! { "_id": 1 })
            .hint(by_id());
        // The least that is returned is the end of the slice before.
        let find = match &slices.after {
            Some(after) => find.min(doc! { "_id": after.clone() }).skip(slices.size),
            None => find.skip(slices.size - 1),
        };
        let last = self.bounded(operation, find).await?;
        let until = last.and_then(|document| document.get("_id").cloned());
        Ok(Slice { after: slices.after.clone(), until })
    }
}

/// Makes the server go by ids.
pub(super) fn by_id() -> Hint {
    Hint::Keys(doc! { "_id": 1 })
}
