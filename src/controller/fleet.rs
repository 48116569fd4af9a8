//! This process as a member of its fleet: which upstreams it lacks, whether it takes tenants although it
//! lacks one, and what becomes of the tenants that were reconciled without an upstream.
//!
//! # A process that lacks an upstream of the fleet
//!
//! It was started without a setting that others have, or had. It must not undo what they know: while a
//! process runs that has every upstream, this one stands by, takes no tenant, and serves the API. If there
//! is none it works, and holds the steps that it cannot run (`NotConfigured`); what is recorded of them
//! stays, and deletions wait.
//!
//! Whether there is such a process is found out by asking: the question and the answer are two times in the
//! fleet's document, which every process watches. A fleet in which nothing is lacking asks nothing.
//!
//! # What waited
//!
//! The document also says that tenants may have been reconciled without an upstream. A process that has the
//! upstream makes them due, a slice of the collection at a time; if the upstream was retired, any process
//! makes those due that are held.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::feed::Hint;
use crate::integration::Integrations;
use crate::metrics::Metrics;
use crate::store::{Pass, Store, StoreError};
use crate::tenant::{Controls, Fleet, FleetId, Standing, StepState, Upstream, lacking};

/// Between two questions of a process that lacks an upstream.
const ASK: Duration = Duration::from_secs(15);
/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(2);
/// An answer that is not older than this at a question says that there is a process that has everything.
const ALIVE: Duration = Duration::from_secs(45);
/// After the database did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Tenants that are made due in a second.
const PACE: u64 = 200;
/// Until what may wait is looked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// Takes part in the fleet for as long as the process runs.
pub struct Member {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub metrics: Arc<Metrics>,
    /// Where work may be, the database is asked at once.
    pub hints: mpsc::Sender<Hint>,
    pub controls: watch::Receiver<Controls>,
    /// Whether this process takes tenants.
    pub works: watch::Sender<bool>,
}

/// What this process has done about the upstreams that it lacks.
#[derive(Default)]
struct Lack {
    steps: Vec<Upstream>,
    next_question: Option<Instant>,
    /// Tenants may have been reconciled without them since that was last noted.
    to_note: bool,
}

impl Member {
    /// Notes the upstreams that this process has, and makes the fleet if there is none. Waits for the
    /// database until `shutdown`.
    pub async fn join(&self, shutdown: &CancellationToken) {
        let configured = self.integrations.configured();
        let joining = async {
            loop {
                match self.store.join_fleet(&configured, None).await {
                    Ok(before) => return before,
                    Err(error) => tracing::warn!(%error, "cannot join the fleet yet"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let before = tokio::select! {
            before = joining => before,
            () = shutdown.cancelled() => return,
        };
        // Else it has to ask first.
        if before.is_none_or(|fleet| fleet.lacked_by(&configured).is_empty()) {
            self.work(true);
        }
    }

    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: &CancellationToken) {
        tokio::select! {
            () = async { tokio::join!(self.take_part(), self.wake()); } => {}
            () = shutdown.cancelled() => {}
        }
        let answered = self.controls.borrow().fleet.as_ref().is_some_and(|f| f.answered_at.is_some());
        if answered && let Err(error) = self.store.leave_fleet(&self.integrations.configured()).await {
            tracing::debug!(%error, "that this process has ended is found out in a while");
        }
    }

    async fn take_part(&self) {
        let mut controls = self.controls.clone();
        let configured = self.integrations.configured();
        let mut lack = Lack::default();
        let mut known = None;
        loop {
            let fleet = controls.borrow_and_update().fleet.clone();
            let step = match &fleet {
                Some(fleet) if configured.iter().all(|step| fleet.has(*step)) => {
                    known = Some(fleet.id);
                    self.with(fleet, &configured, &mut lack).await
                }
                // Not read yet.
                None if known.is_none() => Ok(()),
                // The document was lost, or what this process has was retired.
                _ => self.rejoin(&configured, known).await,
            };
            if let Err(error) = step {
                tracing::debug!(%error, "cannot take part in the fleet now");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let question = lack.next_question;
            let time_to_ask = async {
                match question {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = controls.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = time_to_ask => {}
            }
        }
    }

    async fn rejoin(&self, configured: &[Upstream], known: Option<FleetId>) -> Result<(), StoreError> {
        let Some(before) = self.store.join_fleet(configured, known).await? else { return Ok(()) };
        for step in configured.iter().filter(|step| !before.has(**step)) {
            tracing::warn!(
                upstream = %step,
                "the fleet has this upstream again, because this process has its setting"
            );
        }
        Ok(())
    }

    /// Does what the fleet, as it is now, asks of this process.
    async fn with(
        &self,
        fleet: &Fleet,
        configured: &[Upstream],
        lack: &mut Lack,
    ) -> Result<(), StoreError> {
        let lacked = fleet.lacked_by(configured);
        self.tell(&lacked, &lack.steps);
        lack.steps = lacked;
        if lack.steps.is_empty() {
            *lack = Lack::default();
            if fleet.asked_at > fleet.answered_at {
                self.store.answer_fleet(configured, true).await?;
            }
            self.work(true);
            return Ok(());
        }
        if fleet.answered_at.is_none() && !*self.works.borrow() {
            // The last process that had them all may have ended just now.
            lack.next_question = None;
        }
        if lack.next_question.is_none_or(|at| at <= Instant::now()) {
            self.ask(configured, lack).await?;
        }
        Ok(())
    }

    /// Says which upstreams of the fleet this process lacks, when that has changed.
    fn tell(&self, lacked: &[Upstream], before: &[Upstream]) {
        for step in Upstream::ALL {
            let lacks = lacked.contains(&step);
            let gauge = self.metrics.upstream_not_configured.of(step);
            gauge.set(i64::from(lacks));
            if lacks && !before.contains(&step) {
                tracing::error!(upstream = %step, "{}", lacking(step));
            }
        }
    }

    /// Finds out whether a process has every upstream; if so, this one stands by.
    async fn ask(&self, configured: &[Upstream], lack: &mut Lack) -> Result<(), StoreError> {
        if lack.to_note {
            // What was under way when this process began to stand by has been committed since.
            self.store.wait_for_upstreams(&lack.steps).await?;
            lack.to_note = false;
        }
        self.store.answer_fleet(configured, false).await?;
        let asked = self.store.ask_fleet().await?;
        lack.next_question = Some(Instant::now() + ASK);
        let Some(asked_at) = asked.as_ref().and_then(|fleet| fleet.asked_at) else { return Ok(()) };
        let mut controls = self.controls.clone();
        let answered = controls.wait_for(|controls| {
            controls.fleet.as_ref().is_some_and(|fleet| fleet.answered_at >= Some(asked_at))
        });
        let answered = tokio::time::timeout(ANSWER, answered).await.is_ok_and(|answer| answer.is_ok());
        let latest = self.controls.borrow().fleet.as_ref().and_then(|fleet| fleet.answered_at);
        let stands_by = answered || latest.is_some_and(|at| at + ALIVE >= asked_at);
        if stands_by {
            if self.work(false) {
                lack.to_note = true;
                tracing::warn!("standing by: another process has all upstreams of the fleet");
            }
        } else if !*self.works.borrow() {
            self.store.wait_for_upstreams(&lack.steps).await?;
            tracing::error!("no process has all upstreams of the fleet; this one works without");
            self.work(true);
        }
        Ok(())
    }

    /// Whether to take tenants from now on; returns whether that is a change.
    fn work(&self, works: bool) -> bool {
        self.works.send_if_modified(|before| std::mem::replace(before, works) != works)
    }

    /// Makes due what was reconciled without an upstream, whenever there may be something.
    async fn wake(&self) {
        let mut controls = self.controls.clone();
        let configured = self.integrations.configured();
        loop {
            let fleet = controls.borrow_and_update().fleet.clone();
            let mut again = false;
            for step in Upstream::ALL {
                let Some(fleet) = &fleet else { continue };
                let states: &[StepState] = match fleet.upstreams[step] {
                    Standing::Known { .. } if configured.contains(&step) => {
                        &[StepState::Pending, StepState::Skipped]
                    }
                    Standing::Retired { .. } => &[StepState::Pending],
                    Standing::Known { .. } | Standing::Never => continue,
                };
                let Some(since) = fleet.waiting[step] else { continue };
                let woken = match self.wake_all(step, states).await {
                    Ok(0) => self.store.nothing_waits(step, since).await.map(|()| 0),
                    woken => woken,
                };
                match woken {
                    Ok(0) => {}
                    Ok(tenants) => {
                        tracing::info!(upstream = %step, tenants, "made due what had waited for it");
                        again = true;
                    }
                    Err(error) => {
                        tracing::debug!(upstream = %step, %error, "cannot look for what waits");
                        again = true;
                    }
                }
            }
            if again {
                tokio::time::sleep(AGAIN).await;
            } else if controls.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// One pass over the tenants; returns how many were made due.
    async fn wake_all(&self, step: Upstream, states: &[StepState]) -> Result<u64, StoreError> {
        let mut pass = Pass::default();
        let mut all = 0;
        while !pass.ended {
            let woken = self.store.wake_without(step, states, &mut pass).await?;
            all += woken;
            if woken > 0 {
                let _ = self.hints.try_send(Hint::Scan);
                // The upstream is not to be run over by all of them at once.
                tokio::time::sleep(Duration::from_secs(1).mul_f64(woken as f64 / PACE as f64)).await;
            }
        }
        Ok(all)
    }
}
