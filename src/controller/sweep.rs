//! Sweeps: every upstream is listed as a whole and compared with the tenants, one sweep at a time over all
//! processes.
//!
//! # How the memory stays bounded
//!
//! Tenants are read in batches into a sorted array of a few bytes each, and upstreams in pages or as a stream
//! against it; see [`Comparison`]. Of a fleet of millions it is one range of ids after the other.
//!
//! # What it does about it
//!
//! Lists shift while they are read, so where something is missing the list is read twice, and a tenant that
//! differs is read again. Absences lie, so a sweep only ever *flags*; the reconcile looks again before it acts.
//! Nothing is written to a fleet that matches. More differences than the change guard believes are not
//! flagged, but recorded for people, and trip it. What differs because a setting changed is no drift: it is
//! made due, paced. Resources whose tenant does not exist are listed for people, and never removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::change_guard::{ChangeGuards, PACE, WITHIN};
use super::comparison::{Comparison, Differences, Expected, Other};
use super::feed::Hint;
use crate::failpoint;
use crate::integration::Integrations;
use crate::metrics::{Differing, Metrics};
use crate::store::{
    BATCH, Gone, Holder, Journal, MOST_ORPHANS, Store, StoreError, SweptTenant, UnknownResource,
};
use crate::tenant::{
    ChangeGuard, Event, EventKind, Fingerprint, OtherResource, Part, PerStep, Subject, SweepEnd,
    SweepFound, TenantId, Upstream,
};

/// Sweeps when it is time, for as long as the process runs.
pub struct Sweeper {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub metrics: Arc<Metrics>,
    pub guards: Arc<ChangeGuards>,
    pub journal: Journal,
    /// Where work may be, the database is asked at once.
    pub hints: mpsc::Sender<Hint>,
    pub holder: Holder,
    pub interval: Duration,
}

/// How long a crashed process keeps others from sweeping.
const LEASE: Duration = Duration::from_secs(60);
/// Resources between two words in the log.
const PROGRESS: u64 = 50_000;
/// Until an upstream is swept that never was.
const FIRST_SWEEP: Duration = Duration::from_secs(20);
/// Part of the interval by which looks for a due sweep are spread.
const SPREAD: f64 = 0.1;

/// Tenants of one range of ids: those of larger fleets are compared range by range, the upstreams listed for
/// each.
const RANGE: usize = 2_000_000;

/// What a sweep of one upstream found.
#[derive(Debug, Default)]
struct Findings {
    /// Resources in the list, and tenants that should have one.
    seen: u64,
    size: u64,
    /// Tenants and their slugs by what differs.
    drifted: BTreeMap<Vec<Differing>, Vec<(TenantId, String)>>,
    /// Tenants of which other resources than those recorded are newly seen: these are looked for.
    twins: BTreeSet<TenantId>,
    /// Of tenants where that has changed, all other resources with their marks.
    others: BTreeMap<TenantId, Vec<OtherResource>>,
    /// Tenants whose resource was recorded under other settings.
    outdated: Vec<TenantId>,
    /// Resources that are marked for tenants which do not exist.
    orphans: Vec<UnknownResource>,
    /// Resources that are marked as another fleet's.
    foreign: u64,
    /// How long listing and comparing took.
    took: Duration,
}

impl Findings {
    fn in_short(&self) -> SweepFound {
        SweepFound {
            took: self.took,
            seen: self.seen,
            expected: self.size,
            differing: self.differing(),
            second: self.twins.len() as u64,
            orphans: self.orphans.len() as u64,
            foreign: self.foreign,
        }
    }

    /// Tenants whose resource differs.
    fn differing(&self) -> u64 {
        self.drifted.values().map(Vec::len).sum::<usize>() as u64
    }
}

/// What a list showed.
struct Listed {
    /// Resources that are in use by tenants.
    seen: u64,
    /// Of those the ones that are marked as another fleet's.
    foreign: u64,
}

impl Sweeper {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: &CancellationToken) {
        let sweeping = async {
            let mut taken_back = self.guards.taken_back();
            self.guards.known().await;
            let mut wait = self.first_wait();
            loop {
                // Another process may have swept; the database knows.
                let spread = 1.0 + SPREAD * (2.0 * rand::random::<f64>() - 1.0);
                let sleep =
                    tokio::time::sleep(std::mem::replace(&mut wait, self.interval).mul_f64(spread));
                tokio::select! {
                    () = sleep => {}
                    // A person who lifts a guard wants a sweep now.
                    _ = taken_back.changed() => {}
                }
                match self.store.begin_sweep(&self.holder, self.interval / 2, LEASE).await {
                    Ok(Some(begun)) => self.sweep(begun).await,
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "cannot begin a sweep"),
                }
            }
        };
        tokio::select! {
            () = sweeping => {}
            () = shutdown.cancelled() => {
                // For the next process; without an answer, it expires.
                let _ = self.store.hold_sweep(&self.holder, Duration::ZERO).await;
            }
        }
    }

    /// How long until the first sweep. An upstream that this fleet has never swept is looked at soon: it may
    /// carry the marks of another one. Those that are known to be there are told again at every start.
    fn first_wait(&self) -> Duration {
        let configured = self.integrations.configured();
        let swept = self.guards.sweeps();
        for step in &configured {
            let found = swept[*step].as_ref().and_then(|swept| swept.found);
            self.tell_foreign(*step, found.map_or(0, |found| found.foreign), 0);
        }
        if configured.iter().all(|step| swept[*step].is_some()) {
            return self.interval;
        }
        self.interval.min(FIRST_SWEEP)
    }

    /// Tells of resources that are marked as another fleet's, where there are others than `before`.
    fn tell_foreign(&self, step: Upstream, foreign: u64, before: u64) {
        let gauge = self.metrics.foreign_marks.of(step);
        gauge.set(i64::try_from(foreign).unwrap_or(i64::MAX));
        if foreign > 0 && foreign != before {
            tracing::error!(
                upstream = %step, resources = foreign,
                "it carries marks of another fleet, which are left alone. Is this the right database for this \
                 upstream? Does another installation of tenantry use it?"
            );
        }
    }

    /// One sweep of all upstreams, under the lease, which began then by the server's clock.
    async fn sweep(&self, begun: Timestamp) {
        let started = Instant::now();
        let steps = self.integrations.configured();
        let holding = async {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                if matches!(self.store.hold_sweep(&self.holder, LEASE).await, Ok(false)) {
                    // Another process sweeps: two that only flag do no harm.
                    tracing::warn!("the sweep's lease is lost");
                }
            }
        };
        let work = async {
            let found = match self.compare_all(&steps).await {
                Ok(found) => found,
                Err(error) => return tracing::warn!(%error, "cannot read the tenants for a sweep"),
            };
            let mut ended = Vec::new();
            for (step, findings) in found {
                let seen = findings.as_ref().map(Findings::in_short);
                let end = match findings {
                    Some(findings) => self.judge(step, findings, begun).await.unwrap_or_else(|error| {
                        tracing::warn!(upstream = %step, %error, "a sweep could not be finished");
                        SweepEnd::Failed
                    }),
                    None => SweepEnd::Failed,
                };
                self.metrics.sweeps.of((step, end)).inc();
                ended.push((step, end, seen));
            }
            if let Err(error) = self.store.record_sweeps(&ended).await {
                tracing::warn!(%error, "cannot record how the sweep ended");
            }
            tracing::info!(took = ?started.elapsed(), "swept");
        };
        tokio::select! {
            () = work => {}
            () = holding => {}
        }
        if let Err(error) = self.store.hold_sweep(&self.holder, Duration::ZERO).await {
            tracing::debug!(%error, "the sweep's lease will expire");
        }
    }

    /// Compares each upstream with the tenants; without findings where an upstream could not be listed.
    async fn compare_all(
        &self,
        steps: &[Upstream],
    ) -> Result<Vec<(Upstream, Option<Findings>)>, StoreError> {
        let mut found: Vec<_> = steps.iter().map(|step| (*step, Some(Findings::default()))).collect();
        let mut sizes = PerStep::<u64>::default();
        let mut after = None;
        let mut rest = true;
        while rest {
            let mut expected = Expected::after(after);
            rest = self.read_tenants(&mut expected, after, RANGE).await?;
            if rest {
                after = expected.close();
            }
            failpoint::reach(failpoint::SWEEPING);
            for (step, findings) in &mut found {
                sizes[*step] += expected.size(*step);
                let Some(all) = findings else { continue };
                if !self.compare(*step, &expected, all).await {
                    *findings = None;
                }
            }
        }
        self.guards.record_sizes(&sizes).await?;
        Ok(found)
    }

    /// Reads the next range of tenants; whether there may be another.
    async fn read_tenants(
        &self,
        expected: &mut Expected,
        mut after: Option<TenantId>,
        most: usize,
    ) -> Result<bool, StoreError> {
        while expected.len() < most {
            let batch = self.store.swept(after).await?;
            batch.iter().for_each(|tenant| expected.push(tenant));
            after = batch.last().map(|tenant| tenant.id);
            if batch.len() < BATCH as usize {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Compares one upstream with a range of tenants, and adds what is found; `false` when it cannot be.
    async fn compare(&self, step: Upstream, expected: &Expected, findings: &mut Findings) -> bool {
        let started = Instant::now();
        let mut comparison = Comparison::new(expected, step, MOST_ORPHANS);
        let mut listed = self.list(step, expected, &mut comparison).await;
        if listed.is_some() && comparison.misses_something() {
            // It may have shifted while it was read.
            listed = self.list(step, expected, &mut comparison).await;
        }
        self.metrics.sweep_seconds.of(step).observe(started.elapsed().as_secs_f64());
        let Some(Listed { seen, foreign }) = listed else { return false };
        (findings.seen, findings.foreign) = (seen, foreign);
        findings.size += expected.size(step);
        findings.took += started.elapsed();
        match self.look_again(step, comparison.finish(), expected.with_others(step), findings).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(upstream = %step, %error, "a sweep could not be finished");
                false
            }
        }
    }

    /// Reads an upstream's list.
    async fn list(
        &self,
        step: Upstream,
        expected: &Expected,
        comparison: &mut Comparison<'_>,
    ) -> Option<Listed> {
        let fleet = self.guards.fleet()?.id;
        let (mut seen, mut foreign) = (0_u64, 0_u64);
        let gauge = self.metrics.sweep_seen.of(step);
        gauge.set(0);
        let listed = self
            .integrations
            .sweep(step, |resource| {
                if fleet.is_not(resource.fleet) {
                    foreign += 1;
                } else {
                    comparison.see(&resource);
                }
                seen += 1;
                gauge.set(i64::try_from(seen).unwrap_or(i64::MAX));
                if seen.is_multiple_of(PROGRESS) {
                    tracing::info!(upstream = %step, seen, of = expected.size(step), "sweeping");
                }
            })
            .await;
        match listed {
            Ok(()) => Some(Listed { seen, foreign }),
            Err(error) => {
                tracing::warn!(
                    upstream = %step, reason = %error.failure.reason,
                    "cannot be swept: {}", error.failure.message
                );
                None
            }
        }
    }

    /// Reads the tenants that differ once more: what changed since they were read is no drift.
    async fn look_again(
        &self,
        step: Upstream,
        differences: Differences,
        with_others: &BTreeSet<TenantId>,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let Differences { missing, others, outdated, unknown, doubtful } = differences;
        self.look_at_others(step, doubtful, with_others, findings).await?;
        for missing in missing.chunks(BATCH as usize) {
            let recorded: BTreeMap<TenantId, u64> = missing.iter().copied().collect();
            for tenant in self.settled_still(recorded.keys()).await? {
                if tenant.prints[step].map(Fingerprint::short) == recorded.get(&tenant.id).copied() {
                    let of = findings.drifted.entry(vec![Differing::Missing]).or_default();
                    of.push((tenant.id, tenant.slug));
                }
            }
        }
        for others in others.chunks(BATCH as usize) {
            let ids: BTreeSet<TenantId> = others.iter().map(|other| other.tenant).collect();
            for tenant in self.settled_still(&ids).await? {
                let Some(recorded) = tenant.prints[step] else { continue };
                let of_it =
                    |other: &&Other| other.tenant == tenant.id && other.recorded == recorded.short();
                let others: Vec<&Other> = others.iter().filter(of_it).collect();
                note_others(findings, &tenant, recorded, &others);
            }
        }
        for outdated in outdated.chunks(BATCH as usize) {
            let still = self.settled_still(outdated).await?;
            findings.outdated.extend(still.iter().map(|tenant| tenant.id));
        }
        let ids: BTreeSet<TenantId> = unknown.iter().map(|resource| resource.tenant).collect();
        let mut newcomers = BTreeSet::new();
        for ids in ids.into_iter().collect::<Vec<_>>().chunks(BATCH as usize) {
            newcomers.extend(self.store.swept_again(ids).await?.iter().map(|tenant| tenant.id));
        }
        let orphans = unknown.into_iter().filter(|resource| !newcomers.contains(&resource.tenant));
        findings.orphans.extend(orphans);
        findings.orphans.truncate(MOST_ORPHANS);
        Ok(())
    }

    /// Finds out which resources carry a tenant's mark and are not the recorded one, and of which tenants that is
    /// news.
    async fn look_at_others(
        &self,
        step: Upstream,
        doubtful: Vec<UnknownResource>,
        with_others: &BTreeSet<TenantId>,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let mut seen = BTreeMap::<TenantId, Vec<OtherResource>>::new();
        for UnknownResource { tenant, external_id, name } in doubtful {
            seen.entry(tenant).or_default().push(OtherResource { external_id, name });
        }
        let ids: BTreeSet<TenantId> = seen.keys().chain(with_others).copied().collect();
        for ids in ids.into_iter().collect::<Vec<_>>().chunks(BATCH as usize) {
            for tenant in self.settled_still(ids).await? {
                // What is being made or repaired is not judged; that is for the next sweep.
                if tenant.unsettled[step] {
                    continue;
                }
                let mut others = seen.remove(&tenant.id).unwrap_or_default();
                others.retain(|other| tenant.ids[step].as_ref() != Some(&other.external_id));
                others.sort_unstable();
                let known = &tenant.others[step];
                if others.iter().any(|other| !known.contains(other)) {
                    findings.twins.insert(tenant.id);
                }
                if others != *known {
                    findings.others.insert(tenant.id, others);
                }
            }
        }
        Ok(())
    }

    /// These tenants as they are now, without those that are worked on or were edited.
    async fn settled_still(
        &self,
        ids: impl IntoIterator<Item = &TenantId>,
    ) -> Result<Vec<SweptTenant>, StoreError> {
        let ids: Vec<TenantId> = ids.into_iter().copied().collect();
        let mut found = self.store.swept_again(&ids).await?;
        found.retain(|tenant| !tenant.busy);
        Ok(found)
    }

    /// Acts on what was found.
    async fn judge(
        &self,
        step: Upstream,
        findings: Findings,
        begun: Timestamp,
    ) -> Result<SweepEnd, StoreError> {
        let drifting = findings.differing();
        let Findings { seen, size, drifted, twins, others, outdated, orphans, foreign, took: _ } =
            findings;
        for (tenant, others) in &others {
            self.store.record_others(step, *tenant, others, twins.contains(tenant)).await?;
        }
        let before = self.guards.sweeps()[step].as_ref().and_then(|swept| swept.found);
        self.tell_foreign(step, foreign, before.map_or(0, |found| found.foreign));
        let bound = self.guards.bound(size);
        let guard = self.guards.guard(step);
        if drifting > bound && !matches!(guard, ChangeGuard::Lifted { .. }) {
            for (what, tenants) in &drifted {
                let tenants = tenants.iter().map(|(id, slug)| (*id, slug.clone(), in_words(what)));
                self.store.record_drift(step, &tenants.collect::<Vec<_>>()).await?;
            }
            let what: Vec<_> =
                drifted.iter().map(|(what, ids)| format!("{} {}", ids.len(), in_words(what))).collect();
            let message = format!(
                "a sweep saw {seen} resources where {size} were expected; {drifting} tenants differ \
                 ({}), and no more than {bound} are believed to",
                what.join(", ")
            );
            self.guards.trip(step, &message).await;
            return Ok(SweepEnd::Refused);
        }
        if guard != ChangeGuard::Armed && drifting <= bound {
            tracing::info!(upstream = %step, "a sweep found it sane; the change guard is armed again");
            self.store.arm_guard(step).await?;
        }
        self.flag(step, &drifted).await?;
        if !outdated.is_empty() {
            tracing::info!(upstream = %step, tenants = outdated.len(), "settings changed since these were made");
            self.make_due_paced(step, &outdated).await?;
        }
        if !twins.is_empty() {
            tracing::warn!(upstream = %step, tenants = twins.len(), "a sweep found second resources");
            self.metrics.drift_found.of((step, Differing::Twin)).inc_by(twins.len() as u64);
        }
        if drifting > 0 || !twins.is_empty() || !outdated.is_empty() {
            // Other processes find them by their own scans.
            let _ = self.hints.try_send(Hint::Scan);
        }
        self.report_orphans(step, orphans, begun).await?;
        Ok(SweepEnd::Finished)
    }

    /// Makes the tenants that differ due, and says so.
    async fn flag(
        &self,
        step: Upstream,
        drifted: &BTreeMap<Vec<Differing>, Vec<(TenantId, String)>>,
    ) -> Result<(), StoreError> {
        for (what, tenants) in drifted {
            for part in what {
                self.metrics.drift_found.of((step, *part)).inc_by(tenants.len() as u64);
            }
            let what = in_words(what);
            tracing::info!(upstream = %step, tenants = tenants.len(), differs = what, "a sweep found drift");
            for (id, _) in tenants {
                let event =
                    Event::new(self.store.now(), EventKind::DriftFound, format!("a sweep saw: {what}"));
                let subject = Subject::Tenant { id: *id, slug: None };
                self.journal.note(subject, event.of_step(step, None));
            }
            let ids: Vec<TenantId> = tenants.iter().map(|(id, _)| *id).collect();
            self.make_due_paced(step, &ids).await?;
        }
        Ok(())
    }

    async fn make_due_paced(&self, step: Upstream, ids: &[TenantId]) -> Result<(), StoreError> {
        let batches = ids.chunks(BATCH as usize);
        let pace = PACE.min(WITHIN / u32::try_from(batches.len()).unwrap_or(u32::MAX).max(1));
        for (batch, ids) in (0..).zip(batches) {
            self.store.make_due(step, ids, pace * batch).await?;
        }
        Ok(())
    }

    async fn report_orphans(
        &self,
        step: Upstream,
        found: Vec<UnknownResource>,
        begun: Timestamp,
    ) -> Result<(), StoreError> {
        // Those that no event told, because no process watched.
        let tenants: BTreeSet<TenantId> = found.iter().map(|resource| resource.tenant).collect();
        for ids in tenants.into_iter().collect::<Vec<_>>().chunks(BATCH as usize) {
            let gone: Vec<_> = ids.iter().map(|id| Gone { id: *id, at: None }).collect();
            let vanished = self.store.vanished(&gone).await?;
            let told = vanished.iter().filter(|(_, slug)| slug.is_some()).count();
            self.metrics.vanished.inc_by(told as u64);
        }
        self.metrics.orphans.of(step).set(i64::try_from(found.len()).unwrap_or(i64::MAX));
        if !found.is_empty() {
            tracing::warn!(
                upstream = %step, orphans = found.len(),
                "resources are marked for tenants that do not exist; GET /orphans lists them"
            );
        }
        self.store.record_orphans(step, &found, begun).await
    }
}

/// Other resources of the tenant's beside its own, or its own that looks otherwise.
fn note_others(findings: &mut Findings, tenant: &SweptTenant, recorded: Fingerprint, others: &[&Other]) {
    let Some(first) = others.first() else { return };
    let another = |other: &&Other| recorded.differences(other.seen).contains(&Part::Id);
    if first.is_second {
        // Its own was seen as it was recorded; which others there are is looked at by their ids.
        return;
    }
    let own = others.iter().find(|other| !another(other)).unwrap_or(first);
    let differences = recorded.differences(own.seen);
    if differences.is_empty() {
        findings.outdated.push(tenant.id);
        return;
    }
    let parts: Vec<_> = differences.into_iter().map(Differing::from).collect();
    let of = findings.drifted.entry(parts).or_default();
    of.push((tenant.id, tenant.slug.clone()));
}

/// In what a resource differs, for people.
fn in_words(what: &[Differing]) -> String {
    match what {
        [Differing::Missing] => "missing or unmarked".to_owned(),
        parts => parts.iter().map(|part| part.name()).collect::<Vec<_>>().join("+"),
    }
}
