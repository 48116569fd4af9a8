//! Stops, guards and the sweep's lease: a handful of documents in a collection of their own, which all
//! processes watch.

use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;

use super::change_stream::{ChangeStream, WatchError};
use super::collection::Collection;
use super::document::{integer, object_id, timestamp};
use super::fleet::{FLEET, read_fleet};
use super::lease::{Holder, millis};
use super::orphans::RELEASES;
use super::{Store, StoreError};
use crate::tenant::{
    ChangeGuard, Controls, Event, EventKind, PerStep, SweepEnd, SweepFound, Swept, TenantId, Upstream,
};

/// Name of the collection.
pub const CONTROLS: &str = "tenantry_controls";

const STOP: &str = "stop";
const SWEEP: &str = "sweep";
const SIZES: &str = "sizes";
const SWEEPS: &str = "sweeps";

fn guard_id(step: Upstream) -> String {
    format!("guard/{step}")
}

/// What a stop or a start is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Upstream(Upstream),
}

impl Scope {
    fn field(self) -> String {
        match self {
            Self::Everything => "all".to_owned(),
            Self::Upstream(step) => format!("upstreams.{step}"),
        }
    }

    /// Whether the document says so.
    fn is_stopped(self, stop: &Document) -> bool {
        match self {
            Self::Everything => stop.get_bool("all").unwrap_or(false),
            Self::Upstream(step) => stop
                .get_document("upstreams")
                .is_ok_and(|upstreams| upstreams.get_bool(step.name()).unwrap_or(false)),
        }
    }

    fn event(self, at: Timestamp, kind: EventKind, message: &str) -> Event {
        match self {
            Self::Everything => Event::new(at, kind, format!("all upstreams: {message}")),
            Self::Upstream(step) => Event::new(at, kind, message).of_step(step, None),
        }
    }
}

impl Store {
    pub(super) fn controls_collection(&self) -> Collection {
        Collection::of(&self.database, CONTROLS)
    }

    /// All stops and guards, as they are now.
    pub async fn controls(&self) -> Result<Controls, StoreError> {
        let others = [STOP, FLEET, SIZES, SWEEPS, RELEASES].map(ToOwned::to_owned);
        let ids: Vec<String> = Upstream::ALL.into_iter().map(guard_id).chain(others).collect();
        let controls = self.controls_collection();
        // Whether the time of a lift is over, the clock decides that it was made by.
        let fields = doc! { "is": "$$ROOT", "isLifted": { "$gt": ["$until", "$$NOW"] } };
        let find = async {
            let found = controls.find(doc! { "_id": { "$in": ids } }).projection(fields);
            found.await?.try_collect::<Vec<_>>().await
        };
        let found = self.bounded("read controls", find).await?;
        let whole =
            |id: &str| found.iter().find(|found| found.get_str("_id").is_ok_and(|found| found == id));
        let by_id = |id: &str| whole(id)?.get_document("is").ok();
        let guard = |step: Upstream| {
            let is_lifted = whole(&guard_id(step))?.get_bool("isLifted").unwrap_or(false);
            Some(read_guard(by_id(&guard_id(step))?, is_lifted))
        };
        let size = |step: Upstream| by_id(SIZES)?.get(step.name()).and_then(integer)?.try_into().ok();
        let stop = by_id(STOP);
        let is_stopped = |scope: Scope| stop.is_some_and(|stop| scope.is_stopped(stop));
        Ok(Controls {
            stopped: is_stopped(Scope::Everything),
            stopped_upstreams: PerStep::from_fn(|step| is_stopped(Scope::Upstream(step))),
            guards: PerStep::from_fn(|step| guard(step).unwrap_or_default()),
            sizes: PerStep::from_fn(|step| size(step).unwrap_or_default()),
            sweeps: PerStep::from_fn(|step| read_swept(by_id(SWEEPS)?.get_document(step.name()).ok()?)),
            fleet: by_id(FLEET).and_then(read_fleet),
            release_asked_at: by_id(RELEASES).and_then(|asked| asked.get("askedAt").and_then(timestamp)),
        })
    }

    /// Opens a stream of changes of the controls.
    pub async fn watch_controls(&self) -> Result<ControlsWatch, WatchError> {
        let stages = vec![
            doc! { "$match": { "documentKey._id": { "$regex": "^(stop$|fleet$|orphans$|sizes$|sweeps$|guard/)" } } },
        ];
        ChangeStream::open(self, CONTROLS, Document::new(), stages, None).await.map(ControlsWatch)
    }

    /// Stops everything, or one upstream: tenants are observed, and nothing is changed.
    pub async fn stop(&self, scope: Scope) -> Result<(), StoreError> {
        let set = doc! { "$set": { scope.field(): true, "changedAt": Bson::DateTime(now()) } };
        let controls = self.controls_collection();
        let update = controls.find_one_and_update(doc! { "_id": STOP }, set).upsert(true);
        let before = self.bounded("stop", update).await?.unwrap_or_default();
        if !scope.is_stopped(&before) {
            self.tell_fleet(scope.event(
                self.clock.now(),
                EventKind::Stopped,
                "nothing is changed any more",
            ))
            .await;
        }
        Ok(())
    }

    /// Takes a stop back. What it held back, each process makes due when it learns of it.
    pub async fn start(&self, scope: Scope) -> Result<(), StoreError> {
        let set = doc! {
            "$unset": { scope.field(): 1 }, "$set": { "changedAt": Bson::DateTime(now()) },
        };
        let update = self.controls_collection();
        let update = update.find_one_and_update(doc! { "_id": STOP }, set);
        let before = self.bounded("start", update).await?.unwrap_or_default();
        if scope.is_stopped(&before) {
            self.tell_fleet(scope.event(self.clock.now(), EventKind::Started, "resumed")).await;
        }
        Ok(())
    }

    /// Lets these steps of one tenant be run now: what held them back, a stop, a guard or an outage, no
    /// longer did when that was recorded.
    pub async fn wake(&self, id: TenantId, steps: &[Upstream]) -> Result<(), StoreError> {
        let mut due = doc! { "nextReconcileAt": "$$NOW" };
        for step in steps {
            due.insert(format!("steps.{step}.nextAttemptAt"), "$$NOW");
            due.insert(format!("steps.{step}.parked"), "$$REMOVE");
        }
        let tenant = doc! { "_id": object_id(id) };
        let update = self.tenants.update_one(tenant, vec![doc! { "$set": due }]);
        self.bounded("wake a tenant", update).await.map(drop)
    }

    /// Trips an upstream's guard, unless a person has lifted it. Returns whether it was this that did.
    pub async fn trip_guard(&self, step: Upstream, message: &str) -> Result<bool, StoreError> {
        let lifted = doc! { "$and": [
            { "$eq": ["$state", "lifted"] }, { "$gt": ["$until", "$$NOW"] },
        ] };
        let may = doc! { "$not": [{ "$or": [{ "$eq": ["$state", "tripped"] }, lifted] }] };
        let what = doc! {
            "state": "tripped", "at": "$$NOW", "message": { "$literal": message },
        };
        let tripped = self.take(guard_id(step), "trip guard", may, what).await?.is_some();
        if tripped {
            self.tell_fleet(
                Event::new(self.clock.now(), EventKind::GuardTripped, message).of_step(step, None),
            )
            .await;
        }
        Ok(tripped)
    }

    /// Changes a control document if `may` holds for it as it is, or where it is missing; returns what it is
    /// then if it did. One command: an upsert must not have conditions, so they are in the change.
    async fn take(
        &self,
        id: String,
        operation: &'static str,
        may: Document,
        what: Document,
    ) -> Result<Option<Document>, StoreError> {
        let ours = format!("{:016x}", rand::random::<u64>());
        let decide = doc! { "$set": { "taken": may } };
        let mut change = doc! { "by": { "$cond": ["$taken", &ours, "$by"] } };
        for (field, value) in what {
            let kept = doc! { "$ifNull": [format!("${field}"), "$$REMOVE"] };
            change.insert(field, doc! { "$cond": ["$taken", value, kept] });
        }
        let pipeline = vec![decide, doc! { "$set": change }, doc! { "$unset": "taken" }];
        let controls = self.controls_collection();
        let update = controls
            .find_one_and_update(doc! { "_id": id }, pipeline)
            .upsert(true)
            .return_document(ReturnDocument::After);
        let after = self.bounded(operation, update).await?.unwrap_or_default();
        let is_ours = after.get_str("by").is_ok_and(|by| by == ours);
        Ok(Some(after).filter(|_| is_ours))
    }

    /// A person wants the repairs: no bounds for `span`, and a sweep at once. `false` when the guard was not
    /// tripped. The processes that follow the controls make due what is recorded to differ.
    pub async fn lift_guard(&self, step: Upstream, span: Duration) -> Result<bool, StoreError> {
        let lift = vec![doc! { "$set": {
            "state": "lifted", "until": { "$add": ["$$NOW", millis(span)] },
        } }];
        let controls = self.controls_collection();
        let tripped = doc! { "_id": guard_id(step), "state": "tripped" };
        let lifted = self.bounded("lift guard", controls.update_one(tripped, lift)).await?;
        if lifted.modified_count > 0 {
            let wanted = doc! { "$set": { "wanted": true } };
            let sweep = controls.update_one(doc! { "_id": SWEEP }, wanted).upsert(true);
            self.bounded("want a sweep", sweep).await?;
            let message = format!("repairs resume without bounds for {span:?}");
            self.tell_fleet(
                Event::new(self.clock.now(), EventKind::GuardLifted, message).of_step(step, None),
            )
            .await;
        }
        Ok(lifted.modified_count > 0)
    }

    /// A sweep found the upstream sane.
    pub async fn arm_guard(&self, step: Upstream) -> Result<(), StoreError> {
        let controls = self.controls_collection();
        let delete = controls.delete_one(doc! { "_id": guard_id(step) });
        if self.bounded("arm guard", delete).await?.deleted_count > 0 {
            self.forget_drift(step).await?;
            let armed = Event::new(self.clock.now(), EventKind::GuardArmed, "a sweep found it sane");
            self.tell_fleet(armed.of_step(step, None)).await;
        }
        Ok(())
    }

    /// Records how many resources each upstream should have, where that has changed.
    pub async fn record_sizes(&self, sizes: &PerStep<u64>) -> Result<(), StoreError> {
        let fields = sizes.iter().map(|(step, size)| {
            (step.name().to_owned(), Bson::from(i64::try_from(*size).unwrap_or(i64::MAX)))
        });
        let set = doc! { "$set": fields.collect::<Document>() };
        let controls = self.controls_collection();
        let update = controls.update_one(doc! { "_id": SIZES }, set).upsert(true);
        self.bounded("record sizes", update).await.map(drop)
    }

    /// Records how a sweep of each upstream ended, and what it saw where it could compare.
    pub async fn record_sweeps(
        &self,
        ended: &[(Upstream, SweepEnd, Option<SweepFound>)],
    ) -> Result<(), StoreError> {
        let mut set = Document::new();
        for (step, end, found) in ended {
            let mut swept = doc! { "endedAt": "$$NOW", "end": end.name() };
            if let Some(found) = found {
                swept.extend(doc! { "comparedAt": "$$NOW", "found": write_found(found) });
            }
            let former = format!("${step}");
            set.insert(step.name(), doc! { "$mergeObjects": [former, swept] });
        }
        let controls = self.controls_collection();
        let update = controls.update_one(doc! { "_id": SWEEPS }, vec![doc! { "$set": set }]);
        self.bounded("record sweeps", update.upsert(true)).await.map(drop)
    }

    /// Takes the sweep's lease if a sweep is due or wanted and no process sweeps; returns when that was, by
    /// the server's clock. `interval` is from one sweep's start to the next one's.
    pub async fn begin_sweep(
        &self,
        holder: &Holder,
        interval: Duration,
        ttl: Duration,
    ) -> Result<Option<Timestamp>, StoreError> {
        let held = doc! { "$gt": ["$expiresAt", "$$NOW"] };
        let early = doc! { "$and": [
            { "$gt": ["$startedAt", { "$subtract": ["$$NOW", millis(interval)] }] },
            { "$ne": ["$wanted", true] },
        ] };
        let may = doc! { "$not": [{ "$or": [held, early] }] };
        let what = doc! {
            "holder": holder.to_string(),
            "startedAt": "$$NOW",
            "wanted": "$$REMOVE",
            "expiresAt": { "$add": ["$$NOW", millis(ttl)] },
        };
        let begun = self.take(SWEEP.to_owned(), "begin sweep", may, what).await?;
        Ok(begun.and_then(|begun| begun.get("startedAt").and_then(timestamp)))
    }

    /// Extends the sweep's lease, or gives it back with a `ttl` of nothing. `false` when it is lost.
    pub async fn hold_sweep(&self, holder: &Holder, ttl: Duration) -> Result<bool, StoreError> {
        let extend = vec![doc! { "$set": { "expiresAt": { "$add": ["$$NOW", millis(ttl)] } } }];
        let controls = self.controls_collection();
        let ours = doc! { "_id": SWEEP, "holder": holder.to_string() };
        let held = self.bounded("hold sweep", controls.update_one(ours, extend)).await?;
        Ok(held.matched_count > 0)
    }
}

/// An open stream of the controls' changes.
pub struct ControlsWatch(ChangeStream);

impl ControlsWatch {
    /// Waits until something may have changed, or for a while. `false` when the collection is gone.
    pub async fn changed(&mut self) -> Result<bool, WatchError> {
        Ok(self.0.next().await?.is_some())
    }
}

fn now() -> mongodb::bson::DateTime {
    mongodb::bson::DateTime::now()
}

fn write_found(found: &SweepFound) -> Document {
    let SweepFound { took, seen, expected, differing, second, orphans, foreign } = *found;
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    doc! {
        "tookMillis": i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
        "seen": number(seen), "expected": number(expected), "differing": number(differing),
        "second": number(second), "orphans": number(orphans), "foreign": number(foreign),
    }
}

fn read_swept(swept: &Document) -> Option<Swept> {
    let at = |field| swept.get(field).and_then(timestamp);
    let end = swept.get_str("end").ok()?;
    let found = swept.get_document("found").ok().map(|found| {
        let number = |field| -> u64 {
            found
                .get(field)
                .and_then(integer)
                .and_then(|number| number.try_into().ok())
                .unwrap_or_default()
        };
        SweepFound {
            took: Duration::from_millis(number("tookMillis")),
            seen: number("seen"),
            expected: number("expected"),
            differing: number("differing"),
            second: number("second"),
            orphans: number("orphans"),
            foreign: number("foreign"),
        }
    });
    Some(Swept {
        ended_at: at("endedAt")?,
        end: SweepEnd::ALL.into_iter().find(|known| known.name() == end)?,
        compared_at: at("comparedAt"),
        found,
    })
}

fn read_guard(guard: &Document, is_lifted: bool) -> ChangeGuard {
    let at = |field| guard.get(field).and_then(timestamp);
    match guard.get_str("state") {
        Ok("tripped") => ChangeGuard::Tripped {
            at: at("at").unwrap_or_default(),
            message: guard.get_str("message").unwrap_or_default().to_owned(),
        },
        Ok("lifted") => match at("until") {
            Some(until) if is_lifted => ChangeGuard::Lifted { until },
            _ => ChangeGuard::Armed,
        },
        _ => ChangeGuard::Armed,
    }
}
