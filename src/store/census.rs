//! How many tenants and steps are in which state, for the metrics: one pass over all tenants, in slices.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};

use super::document::integer;
use super::lease::millis;
use super::slices::{Slice, Slices, by_id};
use super::{Store, StoreError};
use crate::tenant::{PerStep, Phase, Reason, StepState, Upstream};

/// A tenant that is not ready for longer than this is failing long.
const LONG: Duration = Duration::from_secs(15 * 60);

/// For these reasons people hold a tenant, and it is not failing.
const HELD: [Reason; 2] = [Reason::Paused, Reason::Stopped];

/// How many steps are in which state, and tenants in which phase, over the whole fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// By state, in the order of [`StepState::ALL`].
    pub steps: PerStep<[u64; 4]>,
    /// In the order of [`Phase::ALL`].
    pub phases: [u64; 3],
    /// By whether the condition `Ready` holds, and its reason. Of a tenant that no reconcile has seen it does not,
    /// because it is `Reconciling`.
    pub ready: BTreeMap<(bool, &'static str), u64>,
    /// Not ready for longer than 15 minutes, and neither held by people nor to be deleted.
    pub failing_long: u64,
    /// Their time for a reconcile has come.
    pub due: u64,
    /// How long the one that is due the longest has been.
    pub oldest_due: Duration,
}

/// A census that is being taken.
#[derive(Debug, Default)]
pub struct Counting {
    slices: Slices,
    /// Of the slices that are done.
    pub census: Census,
}

impl Store {
    /// Counts the next slice of the tenants. Returns whether that was the last one.
    ///
    /// After an error, call it again with the same `counting` to go on from there.
    pub async fn count(&self, counting: &mut Counting) -> Result<bool, StoreError> {
        let counted = self.count_slice(&counting.slices).await;
        let (last, groups) = counting.slices.ended(counted)?;
        for group in &groups {
            counting.census.add(group);
        }
        Ok(last)
    }

    async fn count_slice(&self, slices: &Slices) -> Result<(Slice, Vec<Document>), StoreError> {
        let slice = self.slice("census", slices).await?;
        let state = |step: Upstream| {
            doc! { "$ifNull": [format!("$provisioningStatus.{step}"), StepState::Pending.name()] }
        };
        let mut keys = doc! { "phase": { "$ifNull": ["$status", Phase::Pending.name()] } };
        for step in Upstream::ALL {
            keys.insert(step.name(), state(step));
        }
        // Others may keep conditions of their own beside ours.
        let conditions = doc! { "$cond": [{ "$isArray": "$conditions" }, "$conditions", []] };
        let ours = doc! { "$eq": ["$$this.type", "Ready"] };
        let ready = doc! { "$first": { "$filter": { "input": conditions, "cond": ours } } };
        keys.insert("ready", doc! { "$ifNull": ["$ready.status", "False"] });
        keys.insert("reason", doc! { "$ifNull": ["$ready.reason", Reason::Reconciling.name()] });
        let failing = doc! { "$and": [
            { "$ne": ["$ready.status", "True"] },
            { "$not": { "$in": ["$ready.reason", HELD.map(|reason| Bson::from(reason.name())).to_vec()] } },
            { "$ne": ["$status", Phase::Deleting.name()] },
            { "$lt": [
                { "$ifNull": ["$ready.lastTransitionTime", "$createdAt", "$$NOW"] },
                { "$subtract": ["$$NOW", millis(LONG)] },
            ] },
        ] };
        let due = doc! { "$or": [
            { "$ne": [{ "$type": "$nextReconcileAt" }, "date"] },
            { "$lte": ["$nextReconcileAt", "$$NOW"] },
        ] };
        let scheduled = doc! { "$eq": [{ "$type": "$nextReconcileAt" }, "date"] };
        let overdue = doc! { "$subtract": ["$$NOW", "$nextReconcileAt"] };
        let number = |those: Document| doc! { "$sum": { "$cond": [those, 1_i64, 0_i64] } };
        let pipeline = [
            doc! { "$match": { "$expr": { "$and": slice.bounds() } } },
            doc! { "$set": { "ready": ready } },
            doc! { "$group": {
                "_id": keys,
                "count": { "$sum": 1_i64 },
                "failing": number(failing),
                "due": number(due),
                "oldest": { "$max": { "$cond": [scheduled, overdue, 0_i64] } },
            } },
        ];
        let count = async {
            let groups = self.tenants.aggregate(pipeline).hint(by_id()).await?;
            groups.try_collect::<Vec<Document>>().await
        };
        Ok((slice, self.bounded("census", count).await?))
    }
}

impl Census {
    fn add(&mut self, group: &Document) {
        let (Ok(keys), Ok(count)) = (group.get_document("_id"), group.get_i64("count")) else { return };
        let whole = |value: Option<&Bson>| value.and_then(integer).and_then(|it| u64::try_from(it).ok());
        let count = u64::try_from(count).unwrap_or_default();
        let reason = keys.get_str("reason").ok().and_then(|name| name.parse::<Reason>().ok());
        let is_ready = keys.get_str("ready").is_ok_and(|status| status == "True");
        // A reason of another version is one that is not known.
        if let Some(reason) = reason {
            *self.ready.entry((is_ready, reason.name())).or_default() += count;
        }
        self.failing_long += whole(group.get("failing")).unwrap_or_default();
        self.due += whole(group.get("due")).unwrap_or_default();
        let oldest = Duration::from_millis(whole(group.get("oldest")).unwrap_or_default());
        self.oldest_due = self.oldest_due.max(oldest);
        let place = |name: &str, names: &[&str]| {
            let name = keys.get_str(name).ok()?;
            names.iter().position(|known| *known == name)
        };
        if let Some(phase) = place("phase", &Phase::ALL.map(Phase::name)) {
            self.phases[phase] += count;
        }
        for step in Upstream::ALL {
            if let Some(state) = place(step.name(), &StepState::ALL.map(StepState::name)) {
                self.steps[step][state] += count;
            }
        }
    }
}
