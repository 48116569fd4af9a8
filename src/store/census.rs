//! How many tenants and steps are in which state, for the metrics: one pass over all tenants, in slices.

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};

use super::slices::{Slice, Slices, by_id};
use super::{Store, StoreError};
use crate::tenant::{PerStep, Phase, StepKind, StepState};

/// How many steps are in which state, and tenants in which phase, over the whole fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// By state, in the order of [`StepState::ALL`].
    pub steps: PerStep<[u64; 4]>,
    /// In the order of [`Phase::ALL`].
    pub phases: [u64; 3],
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
        let state = |step: StepKind| {
            doc! { "$ifNull": [format!("$provisioningStatus.{step}"), StepState::Pending.name()] }
        };
        let mut keys = doc! { "phase": { "$ifNull": ["$status", Phase::Pending.name()] } };
        for step in StepKind::ALL {
            keys.insert(step.name(), state(step));
        }
        let pipeline = [
            doc! { "$match": { "$expr": { "$and": slice.bounds() } } },
            doc! { "$group": { "_id": keys, "count": { "$sum": 1_i64 } } },
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
        let count = u64::try_from(count).unwrap_or_default();
        let place = |name: &str, names: &[&str]| {
            let name = keys.get_str(name).ok()?;
            names.iter().position(|known| *known == name)
        };
        if let Some(phase) = place("phase", &Phase::ALL.map(Phase::name)) {
            self.phases[phase] += count;
        }
        for step in StepKind::ALL {
            if let Some(state) = place(step.name(), &StepState::ALL.map(StepState::name)) {
                self.steps[step][state] += count;
            }
        }
    }
}
