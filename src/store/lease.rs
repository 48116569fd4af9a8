//! Claim, renew, commit, release: how a reconcile holds a tenant, and how it is kept from writing
//! once it no longer does.
//!
//! A claim takes the lease (`lease.holder`, `lease.expiresAt`) and bumps `lease.epoch`, which never
//! goes back. Every later write of the reconcile is conditional on that epoch: a process that was replaced
//! in the meantime (*fenced out*) cannot write, however late it wakes up.

use std::fmt;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;

use super::document::{
    InvalidDocument, Record, TRACEPARENT, WAITED_FOR, date, integer, object_id, observation_document,
    projection, read, ready_document, snapshot, step_document, timestamp,
};
use super::due::{content_due, current_desired, lease_held, time_due};
use super::{Store, StoreError};
use crate::tenant::{
    IntentId, Ready, Reason, Status, StepState, Tenant, TenantId, Transition, Upstream,
};

/// Who holds leases: one per process, never used twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder(String);

impl Holder {
    /// `host` and process id tell people who it is; `nonce` tells two processes apart for certain.
    pub fn new(host: &str, nonce: u64) -> Self {
        Self(format!("{host}/{}/{nonce:016x}", std::process::id()))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant whose lease we took. Only this can be committed, and only once.
#[derive(Debug)]
pub struct Claim {
    pub tenant: Tenant,
    epoch: i64,
    /// The document said that it had not been claimed before.
    unclaimed: bool,
    new: bool,
    holder: Holder,
    /// The desired state as stored when the claim was made.
    desired: Document,
    /// `reconcileRequestedAt` and `generation` as stored when the claim was made.
    request: Bson,
    generation: Bson,
    /// The trace of the latest request for it.
    trace: Option<String>,
    claimed_at: Timestamp,
    claimed: Instant,
}

/// A document that says nothing of claims, and whose id is older than this, may have been claimed before
/// it was replaced as a whole.
const YOUNG: Duration = Duration::from_secs(60);

impl Claim {
    /// The server's time, carried forward by the monotonic clock since the claim was answered.
    pub fn now(&self) -> Timestamp {
        self.claimed_at + self.claimed.elapsed()
    }

    /// The trace of the latest request that this reconcile acts on (W3C Trace Context).
    pub fn trace(&self) -> Option<&str> {
        self.trace.as_deref()
    }

    /// Whether this is the first time that a process looks at it, and no API said that it made it.
    pub fn is_found(&self) -> bool {
        self.epoch == 1 && !self.unclaimed
    }

    /// Whether no desired state of it was ever handled.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Whether an earlier reconcile may have made something for this step that was not recorded.
    pub fn may_have_made(&self, step: Upstream) -> bool {
        match self.tenant.status.steps[step].create_intent {
            // An earlier claim would have left an intent, unless the document was replaced since.
            Some(intent) if step.needs_intent() => !intent.fresh || (self.epoch == 1 && !self.unclaimed),
            _ => !self.is_first(),
        }
    }

    /// Whether this is the first claim of the tenant ever, so that no earlier reconcile can have
    /// made anything for it.
    fn is_first(&self) -> bool {
        let made_at = i64::from(self.tenant.id.made_at_seconds());
        let age = self.claimed_at.as_second() - made_at;
        self.epoch == 1 && (self.unclaimed || age < YOUNG.as_secs().cast_signed())
    }
}

/// What came of trying to claim a tenant.
#[derive(Debug)]
pub enum ClaimAnswer {
    Claimed(Box<Claim>),
    /// Not due any more, held by another process, or gone: nothing to do here.
    NotDue,
    /// The document is invalid. That is recorded in it, and it is looked at again when it
    /// changes, or after a while.
    Invalid(InvalidDocument),
}

/// The two statuses that a commit chooses from; see [`crate::tenant::Basis`].
#[derive(Debug)]
pub struct CommitCandidates {
    pub current: Transition,
    pub superseded: Transition,
    /// The steps that ran; the recorded detail of others is not touched.
    pub ran: Vec<Upstream>,
    /// The steps that were looked at: nothing but what was seen is written of them.
    pub looked: Vec<Upstream>,
}

impl CommitCandidates {
    /// The one that was written.
    pub fn written(&self, superseded: bool) -> &Transition {
        if superseded { &self.superseded } else { &self.current }
    }
}

/// What a fenced write is of a reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The reconcile goes on, and the lease with it.
    Progress,
    /// The rest is left to another reconcile.
    Abandoned,
    /// All due steps have run.
    End,
}

/// How a commit, or a renewal, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Written. The tenant is due again at `next`, `None` being now.
    Done {
        next: Option<Timestamp>,
        /// Something came while the reconcile ran: the tenant is due at once.
        interrupted: bool,
        /// What came was a change of the desired state: [`CommitCandidates::superseded`] was written.
        superseded: bool,
    },
    /// Another process took the lease, or the document is gone: nothing was written.
    Fenced,
}

impl Commit {
    /// What `after`, the fields of [`written`], says of a write of these plans.
    fn of(after: &Document, plans: Option<&CommitCandidates>) -> Self {
        let next = after.get("nextReconcileAt").and_then(timestamp);
        let planned = plans.and_then(|plans| plans.current.status.next_reconcile_at);
        let interrupted = plans.is_some() && next.map(whole_millis) != planned.map(whole_millis);
        let lease = after.get_document("lease");
        let superseded = lease.is_ok_and(|lease| lease.get_bool("superseded").unwrap_or(false));
        Self::Done { next, interrupted, superseded }
    }
}

/// The fields that tell what a fenced write came to.
fn written() -> Document {
    doc! { "_id": 0, "nextReconcileAt": 1, "lease.superseded": 1 }
}

impl Store {
    /// Takes the lease of a tenant that is due and that no other process holds, for `ttl`.
    ///
    /// A lease of our own that we do not know of (the answer to an earlier claim was lost) is taken
    /// again. `invalid_retry` is when an invalid document is looked at again.
    pub async fn claim(
        &self,
        id: TenantId,
        holder: &Holder,
        ttl: Duration,
        invalid_retry: Duration,
    ) -> Result<ClaimAnswer, StoreError> {
        let filter = doc! {
            "_id": object_id(id),
            "$expr": { "$and": [
                { "$or": [{ "$not": [lease_held()] }, { "$eq": ["$lease.holder", &holder.0] }] },
                { "$or": [time_due(), content_due("$")] },
            ] },
        };
        let epoch = doc! { "$cond": [{ "$isNumber": "$lease.epoch" }, "$lease.epoch", 0_i64] };
        let scheduled = doc! { "$eq": [{ "$type": "$nextReconcileAt" }, "date"] };
        let intent = new_intent(self.clock.now());
        let mut take = doc! {
            "lease": { "$mergeObjects": [{
                "holder": &holder.0,
                "epoch": { "$add": [epoch, 1_i64] },
                "expiresAt": { "$add": ["$$NOW", millis(ttl)] },
                "unscheduled": { "$not": [scheduled.clone()] },
                "unclaimed": { "$and": [
                    { "$isNumber": "$lease.epoch" }, { "$eq": ["$lease.epoch", 0] },
                ] },
                // A commit frees the lease: where there is a holder, none came.
                "interrupted": { "$eq": [{ "$type": "$lease.holder" }, "string"] },
            }] },
            // Due until committed: if we die now, the due scan finds the tenant after the lease. And
            // never missing, so that removing it meanwhile is seen by the commit.
            "nextReconcileAt": { "$cond": [
                { "$and": [scheduled, time_due()] }, "$nextReconcileAt", "$$NOW",
            ] },
        };
        // What is about to be created must be known before it is: a request may be applied although
        // its answer is lost, or we are.
        for step in Upstream::ALL.into_iter().filter(|step| step.needs_intent()) {
            let field = format!("steps.{step}.createIntent");
            let recorded = format!("${field}");
            let is_recorded = doc! { "$eq": [{ "$type": &recorded }, "string"] };
            take.insert(field, doc! { "$cond": [is_recorded, &recorded, intent.to_string()] });
        }
        let take = vec![doc! { "$set": take }];
        let found = self
            .bounded(
                "claim",
                self.tenants
                    .find_one_and_update(filter, take)
                    .projection(projection())
                    .return_document(ReturnDocument::After),
            )
            .await?;
        let claimed = Instant::now();
        let Some(document) = found else {
            return Ok(ClaimAnswer::NotDue);
        };
        let lease = document.get_document("lease").cloned().unwrap_or_default();
        let epoch = lease.get("epoch").and_then(integer).unwrap_or_default();
        match read(&document) {
            Record::Tenant(mut tenant) => {
                if lease.get_bool("unscheduled").unwrap_or(false) {
                    tenant.status.next_reconcile_at = None;
                }
                tenant.interrupted = lease.get_bool("interrupted").unwrap_or(false);
                for step in Upstream::ALL {
                    if let Some(recorded) = &mut tenant.status.steps[step].create_intent {
                        recorded.fresh = recorded.id == intent;
                    }
                }
                let expires_at = lease.get("expiresAt").and_then(timestamp).unwrap_or_default();
                self.clock.learn(expires_at - ttl);
                Ok(ClaimAnswer::Claimed(Box::new(Claim {
                    tenant: *tenant,
                    epoch,
                    unclaimed: lease.get_bool("unclaimed").unwrap_or(false),
                    new: matches!(document.get("lastHandledDesired"), None | Some(Bson::Null)),
                    holder: holder.clone(),
                    desired: snapshot(&document),
                    request: document.get("reconcileRequestedAt").cloned().unwrap_or(Bson::Null),
                    generation: document.get("generation").cloned().unwrap_or(Bson::Null),
                    trace: document.get_str(TRACEPARENT).ok().map(ToOwned::to_owned),
                    claimed_at: expires_at - ttl,
                    claimed,
                })))
            }
            Record::Invalid(invalid) => {
                let held = doc! { "_id": object_id(id), "lease.epoch": epoch };
                let handled = doc! { "$literal": snapshot(&document) };
                // Nothing was sent for what this claim intended.
                let unused = Upstream::ALL.into_iter().map(|step| format!("steps.{step}.createIntent"));
                let unused: Vec<_> =
                    unused.filter(|field| is_intent(&document, field, intent)).collect();
                self.reject(held, handled, &invalid, invalid_retry, &unused).await?;
                Ok(ClaimAnswer::Invalid(invalid))
            }
        }
    }

    /// Extends the lease to `ttl` from now, and records what has been found out so far.
    pub async fn renew(
        &self,
        claim: &Claim,
        ttl: Duration,
        progress: Option<&CommitCandidates>,
    ) -> Result<Commit, StoreError> {
        let lease = doc! { "$mergeObjects": [{
            "holder": &claim.holder.0,
            "epoch": claim.epoch,
            "expiresAt": { "$add": ["$$NOW", millis(ttl)] },
            "superseded": superseded(),
        }] };
        self.write_fenced("renew", claim, lease, progress, Stage::Progress).await
    }

    /// Writes the outcome of a reconcile, computes when the tenant is due next, and releases the
    /// lease, in one command.
    pub async fn commit(&self, claim: &Claim, plans: &CommitCandidates) -> Result<Commit, StoreError> {
        self.write_fenced("commit", claim, free_lease(claim), Some(plans), Stage::End).await
    }

    /// Removes the document of a tenant that is to go and has nothing left, if that was not taken back
    /// since it was claimed. [`Commit::Fenced`] says that it is still there, or was gone already.
    pub async fn remove(&self, claim: &Claim) -> Result<Commit, StoreError> {
        let unchanged = doc! { "$eq": [current_desired("$"), { "$literal": &claim.desired }] };
        let held = doc! {
            "_id": object_id(claim.tenant.id),
            "lease.epoch": claim.epoch,
            "lease.holder": &claim.holder.0,
            "deletionRequestedAt": { "$type": "date" },
            "$expr": unchanged,
        };
        let removed = self.bounded("remove", self.tenants.delete_one(held)).await?;
        Ok(match removed.deleted_count {
            0 => Commit::Fenced,
            _ => Commit::Done { next: None, interrupted: false, superseded: false },
        })
    }

    /// Gives the lease back without an outcome: the tenant stays due. The holder stays too, as in a
    /// crash: the process that claims it next knows that something may have been left half done.
    pub async fn release(&self, claim: &Claim) -> Result<Commit, StoreError> {
        self.write_fenced("release", claim, abandoned_lease(claim), None, Stage::Abandoned).await
    }

    /// Gives the lease back with the outcomes that there are, some steps having been left half done.
    pub async fn abandon(&self, claim: &Claim, plans: &CommitCandidates) -> Result<Commit, StoreError> {
        self.write_fenced("abandon", claim, abandoned_lease(claim), Some(plans), Stage::Abandoned).await
    }

    /// What a commit of these plans wrote whose answer was lost; [`Commit::Fenced`] where it was not applied,
    /// or that cannot be found out any more.
    pub async fn find_commit(
        &self,
        claim: &Claim,
        plans: &CommitCandidates,
    ) -> Result<Commit, StoreError> {
        let freed = doc! {
            "_id": object_id(claim.tenant.id),
            "lease.epoch": claim.epoch,
            "lease.holder": { "$exists": false },
        };
        let find = self.tenants.find_one(freed).projection(written());
        let found = self.bounded("look for a commit", find).await?;
        Ok(found.map_or(Commit::Fenced, |found| Commit::of(&found, Some(plans))))
    }

    async fn write_fenced(
        &self,
        operation: &'static str,
        claim: &Claim,
        lease: Document,
        plans: Option<&CommitCandidates>,
        stage: Stage,
    ) -> Result<Commit, StoreError> {
        let held = doc! {
            "_id": object_id(claim.tenant.id),
            "lease.epoch": claim.epoch,
            "lease.holder": &claim.holder.0,
        };
        let mut pipeline = plans.map_or_else(Vec::new, |plans| outcome_stages(claim, plans, stage));
        pipeline.push(doc! { "$set": { "lease": lease } });
        let after = self
            .bounded(
                operation,
                self.tenants
                    .find_one_and_update(held, pipeline)
                    .projection(written())
                    .return_document(ReturnDocument::After),
            )
            .await?;
        Ok(after.map_or(Commit::Fenced, |after| Commit::of(&after, plans)))
    }

    /// Notes in a document that it is invalid, and why. `held` selects it, `handled` is the
    /// snapshot of its desired state: a later change makes it due again. Fields that are `unused` go.
    async fn reject(
        &self,
        held: Document,
        handled: Document,
        invalid: &InvalidDocument,
        retry: Duration,
        unused: &[String],
    ) -> Result<(), StoreError> {
        let condition = doc! {
            "type": "Ready",
            "status": "False",
            "reason": Reason::InvalidDocument.name(),
            "message": invalid.to_string(),
            "observedGeneration": 0_i64,
        };
        let since = doc! { "lastTransitionTime": "$$NOW" };
        let condition = doc! { "$mergeObjects": [{ "$literal": condition }, since] };
        let mut set = doc! {
            "nextReconcileAt": { "$add": ["$$NOW", millis(retry)] },
            "lastHandledDesired": handled,
            "lastHandledReconcileAt": "$reconcileRequestedAt",
            "lease": { "$mergeObjects": [{ "epoch": "$lease.epoch" }] },
            // Who made it invalid is not who corrects it.
            "changedBy": "$$REMOVE",
            WAITED_FOR: "$$REMOVE",
            TRACEPARENT: "$$REMOVE",
        };
        if !invalid.known {
            set.insert("conditions", conditions_with(condition));
        }
        set.extend(unused.iter().map(|field| (field.clone(), Bson::from("$$REMOVE"))));
        let update = self.tenants.update_one(held, vec![doc! { "$set": set }]);
        self.bounded("reject", update).await?;
        Ok(())
    }

    /// As [`Store::claim`] does for an invalid document, for one that cannot be claimed
    /// because its `_id` is no ObjectId.
    pub(super) async fn reject_misfit(
        &self,
        id: &Bson,
        retry: Duration,
    ) -> Result<InvalidDocument, StoreError> {
        let selected = doc! { "_id": id };
        let find = self.tenants.find_one(selected.clone()).projection(projection());
        let document = self.bounded("find", find).await?.unwrap_or_else(|| selected.clone());
        let Record::Invalid(invalid) = read(&document) else {
            return Err(StoreError::Refused {
                operation: "reject",
                message: format!("{id} is a tenant's id after all"),
                code: None,
            });
        };
        let handled = doc! { "$mergeObjects": [current_desired("$")] };
        self.reject(selected, handled, &invalid, retry, &[]).await?;
        Ok(invalid)
    }
}

/// Four bytes of the server's time, which is what its age is measured by, and eight that cannot be guessed: what
/// carries an intent must be ours.
fn new_intent(now: Timestamp) -> IntentId {
    let mut bytes = [0; 12];
    let seconds = u32::try_from(now.as_second()).unwrap_or_default();
    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
    bytes[4..].copy_from_slice(&rand::random::<[u8; 8]>());
    IntentId::from_bytes(bytes)
}

/// Whether the field, by its path, holds this intent.
fn is_intent(document: &Document, path: &str, intent: IntentId) -> bool {
    let mut names = path.split('.');
    let last = names.next_back().unwrap_or_default();
    let holder = names.try_fold(document, |inside, name| inside.get_document(name).ok());
    holder.is_some_and(|holder| holder.get_str(last).is_ok_and(|found| found == intent.to_string()))
}

/// Held by no process. The epoch stays: the next claim must have a higher one.
fn free_lease(claim: &Claim) -> Document {
    doc! { "$mergeObjects": [{ "epoch": claim.epoch, "superseded": superseded() }] }
}

/// Free for others, but not finished.
fn abandoned_lease(claim: &Claim) -> Document {
    let holder = doc! { "$literal": &claim.holder.0 };
    doc! { "$mergeObjects": [{ "epoch": claim.epoch, "holder": holder, "superseded": superseded() }] }
}

/// Aggregation expression: which of two plans this write chose; see [`outcome_stages`].
fn superseded() -> Document {
    doc! { "$ifNull": ["$lease.superseded", false] }
}

/// The pipeline that writes one of two plans, depending on whether the desired state is still the one
/// that was claimed. Everything that came from outside is a `$literal`: an upstream's message may
/// begin with a dollar sign.
fn outcome_stages(claim: &Claim, plans: &CommitCandidates, stage: Stage) -> Vec<Document> {
    let object_or_empty = |field: &str| {
        doc! { "$cond": [{ "$eq": [{ "$type": field }, "object"] }, field, {}] }
    };
    let prepare = doc! { "$set": {
        "lease.superseded": { "$ne": [current_desired("$"), { "$literal": &claim.desired }] },
        "lease.asked": { "$or": [
            { "$ne": [{ "$ifNull": ["$reconcileRequestedAt", Bson::Null] }, { "$literal": &claim.request }] },
            // Edited, and back again: what is recorded is true, but the edits are to be told and counted.
            { "$ne": [{ "$ifNull": ["$generation", Bson::Null] }, { "$literal": &claim.generation }] },
            { "$ne": [{ "$type": "$nextReconcileAt" }, "date"] },
        ] },
        "steps": object_or_empty("$steps"),
        "provisioningStatus": object_or_empty("$provisioningStatus"),
        "provisioningErrors": object_or_empty("$provisioningErrors"),
    } };

    let (current, superseded) = (&plans.current.status, &plans.superseded.status);
    let choose = |value: &dyn Fn(&Status) -> Option<Bson>| -> Bson {
        let literal = |value: Option<Bson>| match value {
            Some(value) => doc! { "$literal": value }.into(),
            None => Bson::from("$$REMOVE"),
        };
        let (current, superseded) = (value(current), value(superseded));
        if current == superseded {
            literal(current)
        } else {
            doc! { "$cond": ["$lease.superseded", literal(superseded), literal(current)] }.into()
        }
    };
    let ready =
        |status: &Status| status.ready.as_ref().map(|ready: &Ready| ready_document(ready).into());
    let mut next = choose(&|status| status.next_reconcile_at.map(date));
    if current.next_reconcile_at.is_some() && superseded.next_reconcile_at.is_some() {
        // Others may have made a step due that did not run: a sweep, or the process that noticed that its upstream
        // works again.
        let others = Upstream::ALL.into_iter().filter(|step| !plans.ran.contains(step));
        let times = others.map(|step| Bson::from(format!("$steps.{step}.nextAttemptAt")));
        let times: Vec<Bson> = [next].into_iter().chain(times).collect();
        next = doc! { "$min": times }.into();
    }
    let mut set = doc! {
        "status": choose(&|status| Some(status.phase.name().into())),
        "observedGeneration": choose(&|status| status.observed_generation.map(Bson::from)),
        "lastHandledReconcileAt": choose(&|status| status.last_handled_reconcile_at.map(date)),
        "conditions": conditions_with(choose(&ready)),
    };
    // Until its end the tenant is due as it was claimed; and what is asked for meanwhile shows there.
    if stage != Stage::Progress {
        set.insert("nextReconcileAt", doc! { "$cond": ["$lease.asked", "$$NOW", next] });
    }
    if current.last_handled_desired.as_ref() == Some(&claim.tenant.desired) {
        set.insert("lastHandledDesired", doc! { "$literal": &claim.desired });
        if stage == Stage::End && !claim.tenant.changed_by.is_empty() {
            // Told in the history now. What came since is told next time.
            let told = i64::try_from(claim.tenant.changed_by.len()).unwrap_or(i64::MAX);
            let rest = doc! { "$slice": ["$changedBy", told, i64::from(i32::MAX)] };
            let more = doc! { "$gt": [
                { "$cond": [{ "$isArray": "$changedBy" }, { "$size": "$changedBy" }, 0] }, told,
            ] };
            set.insert("changedBy", doc! { "$cond": [more, rest, "$$REMOVE"] });
        }
    }
    if stage == Stage::End {
        let more = doc! { "$or": ["$lease.superseded", "$lease.asked"] };
        for field in [WAITED_FOR, TRACEPARENT] {
            set.insert(field, doc! { "$cond": [more.clone(), format!("${field}"), "$$REMOVE"] });
        }
    }
    let updated = |visible: bool| if visible { "$$NOW" } else { "$updatedAt" };
    let (otherwise, as_claimed) = (updated(plans.superseded.visible), updated(plans.current.visible));
    set.insert("updatedAt", doc! { "$cond": ["$lease.superseded", otherwise, as_claimed] });
    for step in &plans.ran {
        let detail = choose(&|status| Some(step_document(&status.steps[*step]).into()));
        set.insert(format!("steps.{step}"), detail);
    }
    for step in &plans.looked {
        let seen = |status: &Status| status.steps[*step].observation.as_ref().map(observation_document);
        set.insert(format!("steps.{step}.observation"), choose(&|status| seen(status).map(Bson::from)));
    }
    for step in Upstream::ALL.into_iter().filter(|step| !plans.ran.contains(step)) {
        if current.steps[step].legacy {
            // Written down, because what says so in `provisioningStatus` is overwritten below.
            set.insert(format!("steps.{step}.legacy"), true);
        }
        let claimed = claim.tenant.status.steps[step].create_intent;
        if claimed.is_some() && current.steps[step].create_intent.is_none() {
            set.insert(format!("steps.{step}.createIntent"), "$$REMOVE");
        }
    }
    for step in Upstream::ALL {
        let state = choose(&|status| Some(status.steps[step].state.name().into()));
        set.insert(format!("provisioningStatus.{step}"), state);
        let error = choose(&|status| {
            let step = &status.steps[step];
            let message = step.message.as_deref().unwrap_or("failed");
            (step.state == StepState::Error).then(|| message.into())
        });
        set.insert(format!("provisioningErrors.{step}"), error);
    }
    vec![prepare, doc! { "$set": set }]
}

/// Our condition beside those of others.
fn conditions_with(ready: impl Into<Bson>) -> Document {
    doc! { "$concatArrays": [
        { "$filter": {
            "input": { "$cond": [{ "$isArray": "$conditions" }, "$conditions", []] },
            "cond": { "$ne": ["$$this.type", "Ready"] },
        } },
        [ready.into()],
    ] }
}

pub(super) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// What the database keeps of a time.
fn whole_millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}
