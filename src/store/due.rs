//! Which tenants need work: the question that the database can answer at any time.
//!
//! "Due" is `nextReconcileAt` in the past or missing, which an index answers. Writers that know
//! nothing of it (a shell that sets `name`) make a tenant due by content: the desired state differs
//! from the snapshot of the last commit, `lastHandledDesired`. That is noticed by the change stream,
//! by [`Store::relist`](super::relist) whenever the stream may have missed something, and by the routine re-check.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};

use super::document::{DESIRED, InvalidDocument, WAITED_FOR, timestamp};
use super::{Store, StoreError};
use crate::tenant::{StepState, TenantId, Urgency};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueTenant {
    pub id: TenantId,
    pub urgency: Urgency,
}

/// What a due scan found.
#[derive(Debug, Default)]
pub struct DueScan {
    /// The longest overdue first.
    pub tenants: Vec<DueTenant>,
    /// Documents that cannot be claimed because their `_id` is no ObjectId. They have been put off.
    pub misfits: Vec<InvalidDocument>,
    /// Whether the limit was reached, so that there may be more.
    pub full: bool,
}

impl Store {
    /// The tenants that are due and not held, at most `limit`, by one indexed query.
    pub async fn due(&self, limit: u32, invalid_retry: Duration) -> Result<DueScan, StoreError> {
        let filter = doc! { "$expr": { "$and": [
            // Missing and null sort before every date, so this one range covers them as well.
            { "$lte": ["$nextReconcileAt", "$$NOW"] },
            { "$not": [lease_held()] },
        ] } };
        let fields = doc! {
            WAITED_FOR: 1, "reconcileRequestedAt": 1, "lastHandledReconcileAt": 1, "lastHandledDesired.slug": 1,
            "steps.authentik.state": 1, "steps.stalwart.state": 1, "steps.ocis.state": 1,
        };
        let find = self
            .tenants
            .find(filter)
            .projection(fields)
            .sort(doc! { "nextReconcileAt": 1 })
            .limit(i64::from(limit))
            .batch_size(limit);
        let found = self.read_all("due scan", find, due_tenant).await?;
        let mut scan = DueScan { full: found.len() == limit as usize, ..DueScan::default() };
        for tenant in found {
            match tenant {
                Ok(tenant) => scan.tenants.push(tenant),
                Err(id) => match self.reject_misfit(&id, invalid_retry).await {
                    Ok(invalid) => scan.misfits.push(invalid),
                    // It must not keep the others from being found.
                    Err(error) => tracing::warn!(%id, %error, "cannot put off an invalid document"),
                },
            }
        }
        Ok(scan)
    }
}

fn due_tenant(document: &Document) -> Result<DueTenant, Bson> {
    let id = match document.get("_id") {
        Some(Bson::ObjectId(id)) => *id,
        other => return Err(other.cloned().unwrap_or(Bson::Null)),
    };
    let asked = document.get("reconcileRequestedAt").and_then(timestamp);
    let handled = document.get("lastHandledReconcileAt").and_then(timestamp);
    let failing = || {
        document.get_document("steps").is_ok_and(|steps| {
            let error = Bson::from(StepState::Error.name());
            steps.values().filter_map(Bson::as_document).any(|step| step.get("state") == Some(&error))
        })
    };
    let urgency = if document.get_bool(WAITED_FOR).unwrap_or(false) {
        Urgency::Waited
    } else if asked.is_some() && asked != handled {
        Urgency::Requested
    } else if document.get_document("lastHandledDesired").is_err() {
        Urgency::New
    } else if failing() {
        Urgency::Retry
    } else {
        Urgency::Resync
    };
    Ok(DueTenant { id: TenantId::from_bytes(id.bytes()), urgency })
}

/// Aggregation expression: a process holds the tenant's lease now.
pub(super) fn lease_held() -> Document {
    doc! { "$and": [
        { "$eq": [{ "$type": "$lease.expiresAt" }, "date"] },
        { "$gt": ["$lease.expiresAt", "$$NOW"] },
    ] }
}

/// Aggregation expression: the tenant's time has come.
pub(super) fn time_due() -> Document {
    doc! { "$not": [{ "$and": [
        { "$eq": [{ "$type": "$nextReconcileAt" }, "date"] },
        { "$gt": ["$nextReconcileAt", "$$NOW"] },
    ] }] }
}

/// Aggregation expression: what is asked of the tenant differs from what was last handled. `root` is
/// the path prefix of the document's fields: `$`, or `$fullDocument.` in a change event.
pub(super) fn content_due(root: &str) -> Document {
    let field = |name: &str| Bson::String(format!("{root}{name}"));
    doc! { "$or": [
        { "$ne": [current_desired(root), field("lastHandledDesired")] },
        { "$and": [
            { "$gt": [field("reconcileRequestedAt"), Bson::Null] },
            { "$ne": [field("reconcileRequestedAt"), field("lastHandledReconcileAt")] },
        ] },
    ] }
}

/// Aggregation expression: the desired state as `document::snapshot` takes it. Fields that are
/// missing stay missing.
pub(super) fn current_desired(root: &str) -> Document {
    DESIRED.into_iter().map(|field| (field.to_owned(), Bson::String(format!("{root}{field}")))).collect()
}
