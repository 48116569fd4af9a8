//! The fleet's document: its id, the upstreams that it has, and what follows when a process lacks one.
//!
//! It is one of the controls, so that every process sees a change within a moment. All times in it are the
//! server's: they are compared with each other, and never with a process's clock.

use std::time::Duration;

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;

use super::document::{date, object_id, timestamp};
use super::lease::millis;
use super::{Store, StoreError};
use crate::tenant::{
    Event, EventKind, Fleet, FleetId, PerStep, Reason, Standing, StepState, TenantId, Upstream,
};

/// Id of the document.
pub(super) const FLEET: &str = "fleet";

/// Documents that one command of [`Store::wake_without`] reads.
const SLICE: u32 = 2_000;
/// How long an answer that a process has an upstream holds against retiring it.
const IN_USE: Duration = Duration::from_secs(60);

/// What became of an attempt to retire an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    Done,
    /// The fleet does not have it.
    NotKnown,
    /// A process that runs has its setting.
    InUse,
}

/// How far [`Store::wake_without`] has come.
#[derive(Debug, Clone, Default)]
pub struct Pass {
    after: Option<TenantId>,
    pub ended: bool,
}

impl Store {
    /// Makes the fleet's document if there is none, and notes that a process has these upstreams. Returns
    /// the fleet as it was before. `known` is the id that this process knows already: should
    /// the document be lost, the fleet stays the same.
    ///
    /// Several processes may do so at once: the id is made by the first.
    pub async fn join_fleet(
        &self,
        configured: &[Upstream],
        known: Option<FleetId>,
    ) -> Result<Option<Fleet>, StoreError> {
        let id = known.unwrap_or_else(|| FleetId::from_bytes(rand::random()));
        let mut set = doc! { "id": { "$ifNull": ["$id", id.to_string()] } };
        for step in configured {
            let field = format!("upstreams.{step}");
            let has = doc! { "$and": [
                { "$eq": [{ "$type": format!("${field}.since") }, "date"] },
                { "$eq": [{ "$type": format!("${field}.retiredAt") }, "missing"] },
            ] };
            // What was reconciled without it until now is to be looked at.
            let new = doc! { "since": "$$NOW", "waitingAt": "$$NOW" };
            set.insert(&field, doc! { "$cond": [has, format!("${field}"), new] });
        }
        let controls = self.controls_collection();
        let join = controls
            .find_one_and_update(doc! { "_id": FLEET }, vec![doc! { "$set": set }])
            .upsert(true)
            .return_document(ReturnDocument::Before);
        let before = self.bounded("join fleet", join).await?;
        let had = before.as_ref().and_then(read_fleet);
        if let Some(fleet) = &had {
            for step in configured.iter().filter(|step| !fleet.has(**step)) {
                let event = Event::new(
                    self.clock.now(),
                    EventKind::UpstreamAdded,
                    "a process was started with its setting",
                );
                self.tell_fleet(event.of_step(*step, None)).await;
            }
        }
        Ok(had)
    }

    /// Asks, on behalf of a process that lacks an upstream, whether another process has them all, and
    /// returns the fleet as it is then.
    pub async fn ask_fleet(&self) -> Result<Option<Fleet>, StoreError> {
        self.change_fleet("ask fleet", doc! { "askedAt": "$$NOW" }).await
    }

    /// Says that a process has these upstreams, and whether they are all that the fleet has.
    pub async fn answer_fleet(&self, configured: &[Upstream], all: bool) -> Result<(), StoreError> {
        let mut set = Document::new();
        for step in configured {
            set.insert(format!("upstreams.{step}.seenAt"), "$$NOW");
        }
        if all {
            set.insert("answeredAt", "$$NOW");
        }
        self.change_fleet("answer fleet", set).await.map(drop)
    }

    /// Takes that answer back: the process ends. Others that have all upstreams say so again.
    pub async fn leave_fleet(&self, configured: &[Upstream]) -> Result<(), StoreError> {
        let mut set = doc! { "answeredAt": "$$REMOVE" };
        for step in configured {
            set.insert(format!("upstreams.{step}.seenAt"), "$$REMOVE");
        }
        self.change_fleet("leave fleet", set).await.map(drop)
    }

    /// Notes that tenants are reconciled without these upstreams of the fleet.
    pub async fn wait_for_upstreams(&self, lacked: &[Upstream]) -> Result<(), StoreError> {
        let waiting = lacked.iter().map(|step| (format!("upstreams.{step}.waitingAt"), "$$NOW".into()));
        self.change_fleet("note what is lacked", waiting.collect()).await.map(drop)
    }

    async fn change_fleet(
        &self,
        operation: &'static str,
        set: Document,
    ) -> Result<Option<Fleet>, StoreError> {
        let controls = self.controls_collection();
        let change = controls
            .find_one_and_update(doc! { "_id": FLEET }, vec![doc! { "$set": set }])
            .return_document(ReturnDocument::After);
        Ok(self.bounded(operation, change).await?.as_ref().and_then(read_fleet))
    }

    /// Ends an upstream for the fleet: steps that wait for it are skipped from now on, and deletions go on.
    pub async fn retire_upstream(&self, step: Upstream) -> Result<Retired, StoreError> {
        let field = |name: &str| format!("upstreams.{step}.{name}");
        let in_use = doc! { "$gt": [
            format!("${}", field("seenAt")), { "$subtract": ["$$NOW", millis(IN_USE)] },
        ] };
        let known = doc! {
            "_id": FLEET,
            field("since"): { "$type": "date" },
            field("retiredAt"): { "$exists": false },
        };
        let mut may = known.clone();
        may.insert("$expr", doc! { "$not": [in_use] });
        let retire = vec![doc! { "$set": { field("retiredAt"): "$$NOW", field("waitingAt"): "$$NOW" } }];
        let controls = self.controls_collection();
        let retired = self.bounded("retire upstream", controls.update_one(may, retire)).await?;
        if retired.modified_count > 0 {
            let event = Event::new(
                self.clock.now(),
                EventKind::UpstreamRetired,
                "its steps are skipped from now on",
            );
            self.tell_fleet(event.of_step(step, None)).await;
            return Ok(Retired::Done);
        }
        let known = self.bounded("retire upstream", controls.find_one(known)).await?;
        Ok(if known.is_some() { Retired::InUse } else { Retired::NotKnown })
    }

    /// Makes due some of the tenants that were reconciled without an upstream: those whose step says
    /// `NotConfigured` in one of these states. One command reads a slice of the collection, so call it until
    /// the pass has ended. Returns how many there were.
    pub async fn wake_without(
        &self,
        step: Upstream,
        states: &[StepState],
        pass: &mut Pass,
    ) -> Result<u64, StoreError> {
        use futures_util::TryStreamExt;
        let after = object_id(pass.after.unwrap_or_else(|| TenantId::from_bytes([0; 12])));
        let states: Vec<Bson> = states.iter().map(|state| state.name().into()).collect();
        let waits = doc! { "$and": [
            { "$eq": [format!("$steps.{step}.reason"), Reason::NotConfigured.name()] },
            { "$in": [{ "$ifNull": [format!("$steps.{step}.state"), ""] }, states.clone()] },
            // Those that are due already have been woken before.
            { "$gt": [format!("$steps.{step}.nextAttemptAt"), "$$NOW"] },
        ] };
        let slice = self.tenants.aggregate(vec![
            doc! { "$match": { "_id": { "$gt": after } } },
            doc! { "$sort": { "_id": 1 } },
            doc! { "$limit": i64::from(SLICE) },
            doc! { "$group": {
                "_id": Bson::Null,
                "read": { "$sum": 1_i64 },
                "last": { "$max": "$_id" },
                "waiting": { "$push": { "$cond": [waits, "$_id", "$$REMOVE"] } },
            } },
        ]);
        let slice = async { slice.await?.try_next().await };
        let slice = self.bounded("look for what waits", slice).await?.unwrap_or_default();
        pass.after = slice.get_object_id("last").ok().map(|id| TenantId::from_bytes(id.bytes()));
        pass.ended =
            slice.get_i64("read").unwrap_or_default() < i64::from(SLICE) || pass.after.is_none();
        let waiting = slice.get_array("waiting").cloned().unwrap_or_default();
        if waiting.is_empty() {
            return Ok(0);
        }
        let these = doc! {
            "_id": { "$in": waiting },
            format!("steps.{step}.reason"): Reason::NotConfigured.name(),
            format!("steps.{step}.state"): { "$in": states },
        };
        let due = vec![doc! { "$set": {
            "nextReconcileAt": "$$NOW", format!("steps.{step}.nextAttemptAt"): "$$NOW",
        } }];
        let woken = self.bounded("wake what waits", self.tenants.update_many(these, due)).await?;
        Ok(woken.modified_count)
    }

    /// Notes that no tenant waits for the upstream any more, unless one may since `since`.
    pub async fn nothing_waits(&self, step: Upstream, since: Timestamp) -> Result<(), StoreError> {
        let field = format!("upstreams.{step}.waitingAt");
        let controls = self.controls_collection();
        let settle = controls
            .update_one(doc! { "_id": FLEET, &field: date(since) }, doc! { "$unset": { &field: 1 } });
        self.bounded("note that nothing waits", settle).await.map(drop)
    }
}

pub(super) fn read_fleet(fleet: &Document) -> Option<Fleet> {
    let of = |step: Upstream, field: &str| {
        let upstream = fleet.get_document("upstreams").ok()?.get_document(step.name()).ok()?;
        upstream.get(field).and_then(timestamp)
    };
    let standing = |step| match (of(step, "since"), of(step, "retiredAt")) {
        (_, Some(at)) => Standing::Retired { at },
        (Some(since), None) => Standing::Known { since },
        (None, None) => Standing::Never,
    };
    Some(Fleet {
        id: fleet.get_str("id").ok()?.parse().ok()?,
        upstreams: PerStep::from_fn(standing),
        waiting: PerStep::from_fn(|step| of(step, "waitingAt")),
        asked_at: fleet.get("askedAt").and_then(timestamp),
        answered_at: fleet.get("answeredAt").and_then(timestamp),
    })
}
