//! Sweeps: every upstream is listed as a whole and compared with the tenants, one sweep at a time over all
//! processes.
//!
//! # How the memory stays bounded
//!
//! Tenants are read in batches, upstreams in pages or as a stream, and neither is kept: every tenant's
//! recorded fingerprint and every resource's present one go into a [`Sketch`] with opposite signs, where
//! what is equal cancels out. What is left is the difference, and only those tenants are read again.
//!
//! # What it does about it
//!
//! Lists shift while they are read, and absences lie, so a sweep only ever *flags*; the reconcile looks
//! again before it acts. Nothing is written for a fleet that matches. More differences than the change
//! guard believes are not flagged, but trip it. Resources whose tenant does not exist are listed for
//! people, and never removed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::feed::Hint;
use super::guard::Guards;
use super::sketch::{Entry, Sketch, TooMany};
use crate::failpoint;
use crate::integration::{Integrations, Seen};
use crate::metrics::Metrics;
use crate::store::{BATCH, Gone, Holder, Journal, Store, StoreError};
use crate::tenant::{Event, EventKind, Fingerprint, Part, PerStep, StepKind, Subject, TenantId};

/// Sweeps when it is time, for as long as the process runs.
pub struct Sweeper {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub metrics: Arc<Metrics>,
    pub guards: Arc<Guards>,
    pub journal: Journal,
    /// Where work may be, the database is asked at once.
    pub hints: mpsc::Sender<Hint>,
    pub holder: Holder,
    pub interval: Duration,
}

/// How long a crashed process keeps others from sweeping.
const LEASE: Duration = Duration::from_secs(60);
/// By how much clocks may differ.
const CLOCKS: Duration = Duration::from_secs(5);
/// Resources between two words in the log.
const PROGRESS: u64 = 50_000;
/// Part of the interval by which looks for a due sweep are spread.
const SPREAD: f64 = 0.1;

/// What a sweep of one upstream found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    /// By what differs.
    drifted: BTreeMap<String, Vec<TenantId>>,
    /// Tenants that have more than one.
    twins: Vec<TenantId>,
    /// Tenants that resources name, and that do not exist.
    orphans: HashSet<TenantId>,
}

impl Sweeper {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: &CancellationToken) {
        let sweeping = async {
            loop {
                // Another process may have swept; the database knows.
                let spread = 1.0 + SPREAD * (2.0 * rand::random::<f64>() - 1.0);
                tokio::time::sleep(self.interval.mul_f64(spread)).await;
                match self.store.begin_sweep(&self.holder, self.interval / 2, LEASE).await {
                    Ok(true) => self.sweep().await,
                    Ok(false) => {}
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

    /// One sweep of all upstreams, under the lease.
    pub async fn sweep(&self) {
        let started = Instant::now();
        // Other processes' clocks may be a little behind.
        let since = Timestamp::now() - CLOCKS;
        let steps = self.integrations.configured();
        let holding = async {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                if matches!(self.store.hold_sweep(&self.holder, LEASE).await, Ok(false)) {
                    // Somebody else sweeps: two that only flag harm nobody.
                    tracing::warn!("the sweep's lease is lost");
                }
            }
        };
        let work = async {
            let (mut sketches, sizes) = match self.read_tenants(&steps).await {
                Ok(read) => read,
                Err(error) => return tracing::warn!(%error, "cannot read the tenants for a sweep"),
            };
            failpoint::reach(failpoint::SWEEPING);
            for step in steps {
                self.guards.learn_size(step, sizes[step]);
                if let Some(sketch) = sketches[step].take() {
                    self.sweep_one(step, sketch, sizes[step], since).await;
                }
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

    /// Puts every tenant's fingerprints into a sketch per upstream, and counts them.
    async fn read_tenants(
        &self,
        steps: &[StepKind],
    ) -> Result<(PerStep<Option<Sketch>>, PerStep<u64>), StoreError> {
        let mut sketches = PerStep::from_fn(|step| steps.contains(&step).then(Sketch::default));
        let mut sizes = PerStep::<u64>::default();
        let mut after = None;
        loop {
            let batch = self.store.swept(after).await?;
            for tenant in &batch {
                for step in steps {
                    if let (Some(print), Some(sketch)) = (tenant.prints[*step], &mut sketches[*step]) {
                        sketch.put(&Entry { tenant: tenant.id, print }, 1);
                        sizes[*step] += 1;
                    }
                }
            }
            after = batch.last().map(|tenant| tenant.id);
            if batch.len() < BATCH as usize {
                return Ok((sketches, sizes));
            }
        }
    }

    async fn sweep_one(&self, step: StepKind, mut sketch: Sketch, size: u64, since: Timestamp) {
        let started = Instant::now();
        let label = [step.name()];
        let mut seen = 0_u64;
        let gauge = self.metrics.sweep_seen.with_label_values(&label);
        gauge.set(0);
        let listed = self
            .integrations
            .sweep(step, |Seen { tenant, fingerprint }| {
                sketch.put(&Entry { tenant, print: fingerprint }, -1);
                seen += 1;
                gauge.set(i64::try_from(seen).unwrap_or(i64::MAX));
                if seen.is_multiple_of(PROGRESS) {
                    tracing::info!(upstream = %step, seen, of = size, "sweeping");
                }
            })
            .await;
        let result = match listed {
            Err(error) => {
                tracing::warn!(
                    upstream = %step, reason = %error.failure.reason,
                    "cannot be swept: {}", error.failure.message
                );
                "failed"
            }
            Ok(()) => match self.judge(step, sketch, size, seen, since).await {
                Ok(result) => result,
                Err(error) => {
                    tracing::warn!(upstream = %step, %error, "a sweep could not be finished");
                    "failed"
                }
            },
        };
        self.metrics.sweeps.with_label_values(&[step.name(), result]).inc();
        self.metrics.sweep_seconds.with_label_values(&label).observe(started.elapsed().as_secs_f64());
    }

    /// Acts on what is left in the sketch.
    async fn judge(
        &self,
        step: StepKind,
        sketch: Sketch,
        size: u64,
        seen: u64,
        since: Timestamp,
    ) -> Result<&'static str, StoreError> {
        let bound = self.guards.bound(step);
        let findings = match sketch.decode() {
            Ok(difference) => self.look_again(step, &difference).await?,
            Err(TooMany) => {
                let message = format!(
                    "a sweep saw {seen} resources where {size} were expected, and more of them differ than \
                     can be told apart"
                );
                self.guards.trip(step, &message).await;
                return Ok("refused");
            }
        };
        let Findings { drifted, twins, orphans } = findings;
        let drifting = drifted.values().map(Vec::len).sum::<usize>() as u64;
        let lifted = matches!(self.guards.guard(step), crate::tenant::Guard::Lifted { .. });
        if drifting > bound && !lifted {
            let what: Vec<_> =
                drifted.iter().map(|(what, ids)| format!("{} {what}", ids.len())).collect();
            let message = format!(
                "a sweep saw {seen} resources where {size} were expected; {drifting} tenants differ \
                 ({}), and no more than {bound} are believed to",
                what.join(", ")
            );
            self.guards.trip(step, &message).await;
            return Ok("refused");
        }
        if self.guards.guard(step) != crate::tenant::Guard::Armed && drifting <= bound {
            tracing::info!(upstream = %step, "a sweep found it sane; the change guard is armed again");
            self.store.arm_guard(step).await?;
        }
        for (what, ids) in &drifted {
            tracing::info!(upstream = %step, tenants = ids.len(), differs = %what, "a sweep found drift");
            self.metrics.drift_found.with_label_values(&[step.name(), what]).inc_by(ids.len() as u64);
            for id in ids {
                let event = Event::now(EventKind::DriftFound, format!("a sweep saw: {what}"));
                let subject = Subject::Tenant { id: *id, slug: None };
                self.journal.note(subject, event.of_step(step, None));
            }
            for ids in ids.chunks(BATCH as usize) {
                self.store.flag_drift(step, ids, false).await?;
            }
        }
        if !twins.is_empty() {
            tracing::warn!(upstream = %step, tenants = twins.len(), "a sweep found second resources");
            self.metrics
                .drift_found
                .with_label_values(&[step.name(), "twin"])
                .inc_by(twins.len() as u64);
            for ids in twins.chunks(BATCH as usize) {
                self.store.flag_drift(step, ids, step.needs_intent()).await?;
            }
        }
        if drifting > 0 || !twins.is_empty() {
            // Other processes find them by their own scans.
            let _ = self.hints.try_send(Hint::Scan);
        }
        self.report_orphans(step, orphans, since).await?;
        Ok("ok")
    }

    /// Reads the tenants that differ once more: what changed since they were read is no drift.
    async fn look_again(
        &self,
        step: StepKind,
        difference: &[(Entry, i32)],
    ) -> Result<Findings, StoreError> {
        let mut sides: BTreeMap<TenantId, [Vec<Fingerprint>; 2]> = BTreeMap::new();
        for (entry, sign) in difference {
            let [expected, seen] = sides.entry(entry.tenant).or_default();
            if *sign > 0 { expected } else { seen }.push(entry.print);
        }
        let mut findings = Findings::default();
        let ids: Vec<TenantId> = sides.keys().copied().collect();
        for ids in ids.chunks(BATCH as usize) {
            let found = self.store.swept_again(ids).await?;
            for id in ids {
                let [expected, seen] = &sides[id];
                let Some(tenant) = found.iter().find(|tenant| tenant.id == *id) else {
                    if !seen.is_empty() {
                        findings.orphans.insert(*id);
                    }
                    continue;
                };
                let now = tenant.prints[step];
                match (expected.first(), seen.first()) {
                    (Some(print), _) if now != Some(*print) => {}
                    (Some(_), None) => {
                        findings.drifted.entry("missing or unmarked".into()).or_default().push(*id);
                    }
                    (Some(expected), Some(seen)) => {
                        let parts: Vec<_> =
                            expected.differences(*seen).into_iter().map(Part::name).collect();
                        findings.drifted.entry(parts.join("+")).or_default().push(*id);
                    }
                    // Its own is as it should be, and there is another.
                    (None, Some(seen)) if now.is_some_and(|now| now != *seen) => {
                        findings.twins.push(*id)
                    }
                    // It is being worked on, or was seen twice in a list that shifted.
                    (None, _) => {}
                }
            }
        }
        Ok(findings)
    }

    async fn report_orphans(
        &self,
        step: StepKind,
        tenants: HashSet<TenantId>,
        since: Timestamp,
    ) -> Result<(), StoreError> {
        // Those that no event told, because nobody watched.
        let ids: Vec<TenantId> = tenants.iter().copied().collect();
        for ids in ids.chunks(BATCH as usize) {
            let gone: Vec<_> = ids.iter().map(|id| Gone { id: *id, at: None }).collect();
            let vanished = self.store.vanished(&gone).await?;
            let told = vanished.iter().filter(|(_, slug)| slug.is_some()).count();
            self.metrics.vanished.inc_by(told as u64);
        }
        let found = if tenants.is_empty() {
            Vec::new()
        } else {
            match self.integrations.marked_as(step, &tenants).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(upstream = %step, "cannot look at orphans: {}", error.failure.message);
                    return Ok(());
                }
            }
        };
        self.metrics
            .orphans
            .with_label_values(&[step.name()])
            .set(i64::try_from(found.len()).unwrap_or(i64::MAX));
        if !found.is_empty() {
            tracing::warn!(
                upstream = %step, orphans = found.len(),
                "resources are marked for tenants that do not exist; GET /orphans lists them"
            );
        }
        let found: Vec<_> =
            found.into_iter().map(|marked| (marked.tenant, marked.external_id, marked.name)).collect();
        self.store.record_orphans(step, &found, since).await
    }
}
