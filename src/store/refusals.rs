//! Refused credentials, one small document per upstream, which all processes share.
//!
//! It tells credentials apart and nothing of them: sixteen bits of a salted digest are enough to see that
//! one was replaced, and too few to guess one by. The salt stays, so that the same credential always gives
//! the same bits. Times are the server's.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;

use super::collection::Collection;
use super::controls::CONTROLS;
use super::document::integer;
use super::lease::millis;
use super::{Store, StoreError};
use crate::tenant::{TryLimits, Upstream};

/// What is recorded of refusals by one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals {
    /// What credentials are digested with.
    pub salt: String,
    /// `None` when no credential is refused.
    pub refused: Option<Refused>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub digest: u16,
    /// Until it may be tried again.
    pub wait: Duration,
    /// What was told, for people.
    pub message: String,
}

/// A try that does not end may be taken by another process after so long.
const TRY_LASTS: Duration = Duration::from_secs(60);

fn id(step: Upstream) -> String {
    format!("refusals/{step}")
}

impl Store {
    fn refusals_collection(&self) -> Collection {
        Collection::of(&self.database, CONTROLS)
    }

    /// What is known of refusals by an upstream, together with the salt, which is made when there is none.
    pub async fn refusals(&self, step: Upstream) -> Result<Refusals, StoreError> {
        let salt = format!("{:032x}", rand::random::<u128>());
        let keep = vec![doc! { "$set": { "salt": { "$ifNull": ["$salt", salt] } } }];
        let refusals = self.refusals_collection();
        let update = refusals
            .find_one_and_update(doc! { "_id": id(step) }, keep)
            .upsert(true)
            .return_document(ReturnDocument::After)
            .projection(shown());
        let found = self.bounded("read refusals", update).await?.unwrap_or_default();
        Ok(read(&found))
    }

    /// Notes tries that were refused. Returns how long none may follow: `wait`, or longer when there were
    /// too many.
    pub async fn note_refusals(
        &self,
        step: Upstream,
        digest: u16,
        count: u32,
        wait: Duration,
        message: &str,
        limits: TryLimits,
    ) -> Result<Duration, StoreError> {
        let TryLimits { few: (few, within), many: (many, a_day), rarely } = limits;
        let [few, many] = [few, many].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        let new = vec![
            Bson::from("$$NOW");
            usize::try_from(count).unwrap_or(limits.many.0).min(limits.many.0)
        ];
        let recent = doc! { "$filter": {
            "input": { "$cond": [
                { "$eq": ["$digest", i32::from(digest)] }, { "$ifNull": ["$tries", []] }, [],
            ] },
            "as": "at",
            "cond": { "$gt": ["$$at", { "$subtract": ["$$NOW", millis(a_day)] }] },
        } };
        let more_than = |count: i64| doc! { "$gte": [{ "$size": "$tries" }, count] };
        let after_few = doc! { "$add": [{ "$arrayElemAt": ["$tries", -few] }, millis(within)] };
        let after_many = doc! { "$add": ["$$NOW", millis(rarely)] };
        let next = doc! { "$max": [
            { "$add": ["$$NOW", millis(wait)] },
            { "$cond": [more_than(few), after_few, Bson::Null] },
            { "$cond": [more_than(many), after_many, Bson::Null] },
        ] };
        let note = vec![
            doc! { "$set": {
                "tries": { "$slice": [{ "$concatArrays": [recent, new] }, -many] },
                "digest": i32::from(digest),
                "refused": true,
                "message": { "$literal": message },
            } },
            doc! { "$set": { "nextTryAt": next } },
        ];
        let refusals = self.refusals_collection();
        let update = refusals
            .find_one_and_update(doc! { "_id": id(step) }, note)
            .upsert(true)
            .return_document(ReturnDocument::After)
            .projection(shown());
        let found = self.bounded("note refusals", update).await?.unwrap_or_default();
        Ok(read(&found).refused.map_or(wait, |refused| refused.wait))
    }

    /// Takes the next try with a refused credential. Returns how long to wait when it is not due, or another
    /// process has taken it.
    pub async fn take_try(&self, step: Upstream, digest: u16) -> Result<Option<Duration>, StoreError> {
        let due = doc! {
            "_id": id(step),
            "digest": i32::from(digest),
            "refused": true,
            "$expr": { "$lte": ["$nextTryAt", "$$NOW"] },
        };
        let take = vec![doc! { "$set": { "nextTryAt": { "$add": ["$$NOW", millis(TRY_LASTS)] } } }];
        let refusals = self.refusals_collection();
        let update = refusals.find_one_and_update(due, take).projection(doc! { "_id": 1 });
        if self.bounded("take try", update).await?.is_some() {
            return Ok(None);
        }
        let refused = self.refusals(step).await?.refused;
        Ok(refused.filter(|refused| refused.digest == digest).map(|refused| refused.wait))
    }

    /// The upstream accepts us. The tries stay counted, as they do there.
    pub async fn forget_refusals(&self, step: Upstream) -> Result<(), StoreError> {
        let forget = doc! { "$unset": { "refused": 1, "nextTryAt": 1, "message": 1 } };
        let refusals = self.refusals_collection();
        let update = refusals.update_one(doc! { "_id": id(step) }, forget);
        self.bounded("forget refusals", update).await.map(drop)
    }
}

/// The document, with the time that is left by the server's clock.
fn shown() -> Document {
    doc! { "salt": 1, "digest": 1, "refused": 1, "message": 1, "wait": { "$subtract": ["$nextTryAt", "$$NOW"] } }
}

fn read(found: &Document) -> Refusals {
    let number = |field: &str| found.get(field).and_then(integer);
    let digest = number("digest").and_then(|digest| u16::try_from(digest).ok());
    let refused = digest.filter(|_| found.get_bool("refused").unwrap_or(false)).map(|digest| {
        let wait = number("wait").and_then(|wait| u64::try_from(wait).ok()).unwrap_or_default();
        Refused {
            digest,
            wait: Duration::from_millis(wait),
            message: found.get_str("message").unwrap_or_default().to_owned(),
        }
    });
    Refusals { salt: found.get_str("salt").unwrap_or_default().to_owned(), refused }
}
