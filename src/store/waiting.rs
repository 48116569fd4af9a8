//! Steps that wait for something that is over: an outage, a stop, a change guard. They are made due, a batch
//! at a time.
//!
//! # Guarantees
//!
//! * Finding them, and finding that there are none, reads those that wait and no other tenant: there are
//!   indexes of nothing else. A fleet in which nothing waits has empty ones.
//! * What was made due is not found again. So this may be repeated, by any process, until there is none: what
//!   is left to do after a crash stands in the tenants themselves.

use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::IndexOptions;

use super::{Store, StoreError};
use crate::tenant::{Reason, StepState, Upstream};

/// Why a step waits for something that affects the fleet.
const HELD: [Reason; 3] = [Reason::Stopped, Reason::ChangeGuard, Reason::DesiredStateChanged];

/// What came of looking for tenants that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Woken {
    /// Another process may be doing the same, so that of these none may be left: only when none is found, none
    /// waits.
    pub found: usize,
    /// Those that this made due.
    pub made_due: u64,
}

impl Store {
    /// Makes due at most so many of the tenants that wait for an upstream.
    pub async fn unpark(&self, step: Upstream, most: u32) -> Result<Woken, StoreError> {
        let parked = doc! { format!("steps.{step}.parked"): true };
        self.go_on("unpark", step, parked, most).await
    }

    /// Makes due at most so many of the tenants that a stop or a guard held back.
    pub async fn wake_held(&self, step: Upstream, most: u32) -> Result<Woken, StoreError> {
        let held = doc! {
            format!("steps.{step}.state"): StepState::Pending.name(),
            format!("steps.{step}.reason"): { "$in": HELD.map(Reason::name).to_vec() },
            // Those that are not due by themselves.
            "$expr": { "$gt": [format!("$steps.{step}.nextAttemptAt"), "$$NOW"] },
        };
        self.go_on("wake held tenants", step, held, most).await
    }

    async fn go_on(
        &self,
        operation: &'static str,
        step: Upstream,
        waiting: Document,
        most: u32,
    ) -> Result<Woken, StoreError> {
        let find = self.tenants.find(waiting.clone()).projection(doc! { "_id": 1 });
        let id = |found: &Document| found.get("_id").cloned().unwrap_or(Bson::Null);
        let ids = self.read_all(operation, find.limit(i64::from(most)), id).await?;
        let found = ids.len();
        if ids.is_empty() {
            return Ok(Woken::default());
        }
        let mut these = waiting;
        these.insert("_id", doc! { "$in": ids });
        let due = vec![doc! { "$set": {
            "nextReconcileAt": "$$NOW",
            format!("steps.{step}.nextAttemptAt"): "$$NOW",
            format!("steps.{step}.parked"): "$$REMOVE",
        } }];
        let update = self.bounded(operation, self.tenants.update_many(these, due)).await?;
        Ok(Woken { found, made_due: update.modified_count })
    }
}

/// Indexes of what waits.
pub(super) fn indexes() -> impl Iterator<Item = IndexModel> {
    Upstream::ALL.into_iter().flat_map(|step| {
        let field = |name: &str| format!("steps.{step}.{name}");
        let index = |name: &str, keys: Document, those: Document| {
            let options = IndexOptions::builder()
                .name(format!("tenantry_{name}_{step}"))
                .partial_filter_expression(those)
                .build();
            IndexModel::builder().keys(keys).options(options).build()
        };
        let parked = doc! { field("parked"): 1 };
        let held = doc! { field("reason"): 1, field("nextAttemptAt"): 1 };
        [
            index("parked", parked, doc! { field("parked"): true }),
            index("held", held, doc! { field("state"): StepState::Pending.name() }),
        ]
    })
}
