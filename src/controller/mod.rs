//! The loop: hints and due scans feed a queue, workers reconcile what it hands out.
//!
//! One task owns the queue and everything about scheduling; workers, the change stream and the due
//! scan only send it messages. It decides nothing about tenants: whether there is work to do is
//! settled by the claim, in the database.

mod change_guard;
mod comparison;
mod feed;
mod fleet;
mod history;
mod orphans;
mod queue;
mod reconcile;
mod recovery;
mod refusals;
mod relist;
mod report;
mod steps;
mod sweep;
mod vanished;

pub use queue::Queue;
pub use refusals::SharedRefusals;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::change_guard::ChangeGuards;
use self::feed::{Feed, Hint};
use self::fleet::Member;
use self::orphans::Orphans;
use self::reconcile::{Reconciler, Verdict};
use self::recovery::Recovery;
use self::relist::{Gaps, Relister};
use self::sweep::Sweeper;
use self::vanished::Vanished;
use crate::delay::GrowingDelay;
use crate::integration::{Integrations, Permission};
use crate::metrics::{Metrics, PanicPlace};
use crate::store::{DueScan, Holder, Journal, Store, StoreError};
use crate::tenant::{ChangeGuardPolicy, Controls, Policy, TenantId, Urgency};

/// How the loop runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Reconciles at once.
    pub workers: usize,
    pub policy: Policy,
    pub lease_ttl: Duration,
    /// Between due scans while nothing happens.
    pub poll_interval: Duration,
    /// From the request to shut down until everything has ended.
    pub shutdown_grace: Duration,
    pub holder: Holder,
    /// Between sweeps of the upstreams.
    pub sweep_interval: Duration,
    pub guard: ChangeGuardPolicy,
    /// Whether tenants whose documents do not say so may adopt unmarked resources of their names.
    pub adopt_unmarked: bool,
    /// Tenants that may wait in memory; the others wait in the database. See [`QUEUE_CAPACITY`].
    pub queue_capacity: usize,
}

/// A queue of this size takes a few megabytes when it is full.
pub const QUEUE_CAPACITY: usize = 10_000;
/// Tenants that one due scan brings.
const SCAN_LIMIT: u32 = 1_000;
/// Below this many ready tenants a scan that was cut short is continued.
const LOW_WATER: usize = 500;
/// Appointments further away are left to the due scan.
const APPOINTMENTS: Duration = Duration::from_secs(60);
/// Events that wait for the dispatcher.
const HINTS: usize = 1_024;
/// Part of the grace period that is kept for writing down what is known.
const WIND_DOWN: u32 = 5;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// The controller of one process.
pub struct Controller {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub metrics: Arc<Metrics>,
    pub journal: Journal,
    pub settings: Settings,
}

impl Controller {
    /// Runs until `shutdown`, then winds down within the grace period: no new work, running work
    /// finishes or is abandoned safely, leases are released.
    ///
    /// `watch_open` tells whether a change stream is open, `controls` what stops and guards there are.
    pub async fn run(
        self,
        watch_open: watch::Sender<bool>,
        controls: watch::Sender<Controls>,
        shutdown: CancellationToken,
    ) {
        let Self { store, integrations, metrics, journal, settings } = self;
        metrics.workers.set(i64::try_from(settings.workers).unwrap_or(i64::MAX));
        let (hints, hinted) = mpsc::channel(HINTS);
        let (gone, went) = mpsc::channel(vanished::WAITING);
        let (works, working) = watch::channel(false);
        let member = Member {
            store: store.clone(),
            integrations: Arc::clone(&integrations),
            metrics: Arc::clone(&metrics),
            hints: hints.clone(),
            controls: controls.subscribe(),
            works,
        };
        let member_controls = member.controls.clone();
        member.join(&shutdown).await;
        let abandon = CancellationToken::new();
        let feeding = TaskTracker::new();
        let (gaps, gap) = watch::channel(0);
        let relister = Relister {
            store: store.clone(),
            metrics: Arc::clone(&metrics),
            holder: settings.holder.clone(),
            hints: hints.clone(),
            gaps: gap,
        };
        let ending = shutdown.clone();
        feeding.spawn(async move { relister.run(&ending).await });
        feeding.spawn(
            Feed {
                store: store.clone(),
                metrics: Arc::clone(&metrics),
                hints: hints.clone(),
                gaps: gaps.clone(),
                gone,
                open: watch_open,
                shutdown: shutdown.clone(),
            }
            .run(),
        );
        let guards = Arc::new(ChangeGuards::new(
            store.clone(),
            Arc::clone(&metrics),
            settings.guard,
            settings.sweep_interval,
            controls,
            hints.clone(),
        ));
        let permission: Arc<dyn Permission> = Arc::clone(&guards) as _;
        integrations.obey(&permission);
        let (following, ending) = (Arc::clone(&guards), shutdown.clone());
        feeding.spawn(async move { following.follow(&ending).await });
        let refusals = SharedRefusals::new(store.clone());
        // Before anything is asked of an upstream.
        tokio::select! {
            () = integrations.recall(&refusals) => {}
            () = shutdown.cancelled() => {}
        }
        let ending = shutdown.clone();
        feeding.spawn(async move { member.run(&ending).await });
        let (checked, ending) = (Arc::clone(&integrations), shutdown.clone());
        feeding.spawn(async move { checked.keep_checked(&refusals, &ending).await });
        for step in integrations.configured() {
            let recovery = Recovery {
                store: store.clone(),
                integrations: Arc::clone(&integrations),
                step,
                hints: hints.clone(),
            };
            let ending = shutdown.clone();
            feeding.spawn(async move { recovery.run(&ending).await });
        }
        let orphans = Orphans {
            store: store.clone(),
            integrations: Arc::clone(&integrations),
            guards: Arc::clone(&guards),
            controls: member_controls,
        };
        let ending = shutdown.clone();
        feeding.spawn(async move { orphans.run(&ending).await });
        let vanished = Vanished {
            store: store.clone(),
            integrations: Arc::clone(&integrations),
            metrics: Arc::clone(&metrics),
            guards: Arc::clone(&guards),
            gone: went,
        };
        let ending = shutdown.clone();
        feeding.spawn(async move { vanished.run(&ending).await });
        let sweeper = Sweeper {
            journal: journal.clone(),
            hints: hints.clone(),
            store: store.clone(),
            integrations: Arc::clone(&integrations),
            metrics: Arc::clone(&metrics),
            guards: Arc::clone(&guards),
            holder: settings.holder.clone(),
            interval: settings.sweep_interval,
        };
        let ending = shutdown.clone();
        feeding.spawn(async move { sweeper.run(&ending).await });
        feeding.close();
        // What is stopped must be known before anything is changed.
        tokio::select! {
            () = guards.known() => {}
            () = shutdown.cancelled() => {}
        }
        let reconciler = Arc::new(Reconciler {
            store: store.clone(),
            integrations,
            guards,
            journal,
            metrics: Arc::clone(&metrics),
            policy: settings.policy,
            holder: settings.holder.clone(),
            lease_ttl: settings.lease_ttl,
            adopt_unmarked: settings.adopt_unmarked,
            abandon: abandon.clone(),
        });
        let dispatcher = Dispatcher {
            queue: Queue::new(settings.queue_capacity),
            reconciler,
            store,
            metrics,
            working,
            running: JoinSet::new(),
            scanning: JoinSet::new(),
            scan_wanted: true,
            gaps,
            overflowed: false,
            next_poll: Instant::now() + settings.poll_interval,
            paused_until: None,
            pause: GrowingDelay::new(FIRST_PAUSE, LONGEST_PAUSE),
            settings: settings.clone(),
        };
        let mut running = dispatcher.run(hinted, &shutdown).await;

        let wind_down = settings.shutdown_grace / WIND_DOWN;
        let finished = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(settings.shutdown_grace - wind_down, finished).await.is_err() {
            tracing::warn!(
                left = running.len(),
                "abandoning work that takes longer than the grace period"
            );
            abandon.cancel();
            let finished = async { while running.join_next().await.is_some() {} };
            if tokio::time::timeout(wind_down, finished).await.is_err() {
                tracing::error!(left = running.len(), "leases could not be released; they will expire");
            }
        }
        if tokio::time::timeout(wind_down, feeding.wait()).await.is_err() {
            tracing::debug!("the change stream did not close in time");
        }
    }
}

/// Owns the queue.
struct Dispatcher {
    queue: Queue,
    reconciler: Arc<Reconciler>,
    store: Store,
    metrics: Arc<Metrics>,
    settings: Settings,
    /// Whether this process takes tenants; see [`fleet`].
    working: watch::Receiver<bool>,
    running: JoinSet<(TenantId, Verdict)>,
    /// At most one due scan.
    scanning: JoinSet<(Instant, Result<DueScan, StoreError>)>,
    scan_wanted: bool,
    /// Told when hints were dropped. An edit by a shell is in no index: a relist marks what no reconcile has
    /// handled.
    gaps: Gaps,
    /// They were, and the relist has not been told yet.
    overflowed: bool,
    next_poll: Instant,
    /// Set while the database does not answer: no work is handed out until then.
    paused_until: Option<Instant>,
    pause: GrowingDelay,
}

impl Dispatcher {
    /// Returns what is still running at shutdown.
    async fn run(
        mut self,
        mut hinted: mpsc::Receiver<Hint>,
        shutdown: &CancellationToken,
    ) -> JoinSet<(TenantId, Verdict)> {
        // The gauges are refreshed as often as they could be scraped, not with every event.
        let mut gauges = tokio::time::interval(Duration::from_secs(1));
        loop {
            self.dispatch();
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.running,
                Some(ended) = self.running.join_next() => self.ended(ended),
                Some(scan) = self.scanning.join_next() => self.scanned(scan),
                Some(hint) = hinted.recv() => match hint {
                    Hint::Tenant { id, urgency } => self.queue.push(id, urgency, Instant::now()),
                    Hint::Scan => self.scan_wanted = true,
                },
                Ok(()) = self.working.changed() => self.scan_wanted = true,
                _ = gauges.tick() => self.measure(),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    fn dispatch(&mut self) {
        let now = Instant::now();
        if !*self.working.borrow() {
            return;
        }
        if self.paused_until.is_some_and(|until| until > now) {
            return;
        }
        self.paused_until = None;
        while self.running.len() < self.settings.workers
            && let Some((id, urgency, waited)) = self.queue.pop(now)
        {
            self.metrics.queue_wait_seconds.of(urgency).observe(waited.as_secs_f64());
            let (reconciler, metrics) = (Arc::clone(&self.reconciler), Arc::clone(&self.metrics));
            self.running.spawn(async move {
                // A bug that only one tenant meets must not be tried at full speed, nor stop others.
                let reconcile = AssertUnwindSafe(reconciler.reconcile(id, urgency)).catch_unwind();
                let verdict = reconcile.await.unwrap_or_else(|_| {
                    metrics.panics.of(PanicPlace::Reconcile).inc();
                    Verdict::Refused
                });
                (id, verdict)
            });
        }
        self.metrics.workers_busy.set(i64::try_from(self.running.len()).unwrap_or(i64::MAX));
        if self.queue.take_overflow() {
            self.metrics.queue_overflows.inc();
            self.overflowed = true;
        }
        let poll = now >= self.next_poll;
        if (poll || (self.scan_wanted && self.queue.ready_len() < LOW_WATER)) && self.scanning.is_empty()
        {
            self.scan_wanted = false;
            self.next_poll = now + self.settings.poll_interval;
            // A pass over the collection is for when the rush is over, and not for every poll.
            if poll && self.queue.ready_len() < LOW_WATER && std::mem::take(&mut self.overflowed) {
                self.gaps.send_modify(|gaps| *gaps += 1);
            }
            // Those that wait for their time are found too, and must not hide the others.
            let limit = SCAN_LIMIT + u32::try_from(self.queue.delayed_len()).unwrap_or(u32::MAX / 2);
            let store = self.store.clone();
            let invalid_retry = self.settings.policy.terminal();
            self.scanning.spawn(async move { (now, store.due(limit, invalid_retry).await) });
        }
    }

    fn wake_at(&self) -> Instant {
        if !*self.working.borrow() {
            // Told when that changes.
            return Instant::now() + self.settings.poll_interval;
        }
        let poll = if self.scanning.is_empty() { Some(self.next_poll) } else { None };
        let appointment =
            if self.running.len() < self.settings.workers { self.queue.next_ready_at() } else { None };
        match self.paused_until {
            Some(until) => until,
            None => [poll, appointment]
                .into_iter()
                .flatten()
                .min()
                // Something that is running will wake us before.
                .unwrap_or_else(|| Instant::now() + self.settings.poll_interval),
        }
    }

    fn ended(&mut self, ended: Result<(TenantId, Verdict), tokio::task::JoinError>) {
        let now = Instant::now();
        // Panics are caught inside, and these tasks are never aborted.
        let Ok((id, verdict)) = ended else { return };
        self.queue.finish(id, now);
        match verdict {
            Verdict::Done => {}
            Verdict::DueIn { wait, urgency } if wait <= APPOINTMENTS => {
                self.queue.push_at(id, urgency, now + wait, now);
            }
            Verdict::DueIn { .. } => {}
            Verdict::Again => self.queue.push(id, Urgency::New, now),
            Verdict::Refused => self.queue.keep_back(id, Urgency::Retry, now + REFUSED_PAUSE),
            Verdict::Unavailable => {
                self.queue.push(id, Urgency::Retry, now);
                self.store_unavailable(now);
                return;
            }
        }
        self.pause.reset();
    }

    /// A scan is known by when it began.
    fn scanned(
        &mut self,
        scanned: Result<(Instant, Result<DueScan, StoreError>), tokio::task::JoinError>,
    ) {
        let now = Instant::now();
        let (begun, scanned) = match scanned {
            Ok(scanned) => scanned,
            Err(error) => return tracing::error!(%error, "a due scan panicked"),
        };
        match scanned {
            Ok(scan) => {
                for invalid in &scan.misfits {
                    self.reconciler.report(invalid);
                }
                for tenant in &scan.tenants {
                    self.queue.offer(tenant.id, tenant.urgency, begun, now);
                }
                self.scan_wanted |= scan.full;
                self.pause.reset();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look for due tenants");
                self.scan_wanted = true;
                self.store_unavailable(now);
            }
        }
    }

    /// Hands out nothing for a while: every reconcile would only wait for the database.
    fn store_unavailable(&mut self, now: Instant) {
        if self.paused_until.is_none() {
            self.paused_until = Some(now + self.pause.grow());
        }
    }

    fn measure(&self) {
        let now = Instant::now();
        for urgency in Urgency::ALL {
            let (depth, oldest) = self.queue.waiting(urgency, now);
            let depth = i64::try_from(depth).unwrap_or(i64::MAX);
            self.metrics.queue_depth.of(urgency).set(depth);
            let oldest = oldest.as_secs_f64();
            self.metrics.queue_oldest_seconds.of(urgency).set(oldest);
        }
    }
}
