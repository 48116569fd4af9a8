//! Follows the change stream and tells the dispatcher which tenants changed.
//!
//! It survives whatever ends a stream (primary changes, network cuts, lost history, a dropped or
//! renamed collection, a place too far back to go on from): it opens a new one after a growing delay, and
//! where events may have been missed, reports a gap, which a relist makes good. Opening comes first, so that
//! nothing falls between the two.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::relist::Gaps;
use crate::delay::GrowingDelay;
use crate::metrics::{Metrics, WatchEnd};
use crate::store::{Gone, ResumeToken, Store, WatchError, WorkEvent, WorkStream};
use crate::tenant::{TenantId, Urgency};

/// Says that a tenant may need work, or, without one, that any may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    Tenant {
        id: TenantId,
        urgency: Urgency,
    },
    /// Ask the database.
    Scan,
}

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A stream that lived this long was healthy: the next delay begins anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// After so many vain attempts to catch up in time, what is between is taken for missed.
const VAIN: u32 = 2;

/// Owns the stream; its only output are hints, gaps, and whether a stream is open.
pub struct Feed {
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub hints: mpsc::Sender<Hint>,
    /// Told when changes were missed.
    pub gaps: Gaps,
    /// Told of tenants whose documents are gone, as far as there is room; that is not waited for.
    pub gone: mpsc::Sender<Gone>,
    pub open: watch::Sender<bool>,
    pub shutdown: CancellationToken,
}

/// What the next stream has to make good.
struct Lost {
    /// The collection may be gone, and its indexes and validator with it.
    collection: bool,
    /// Changes that no event told, at the start those made while no process watched.
    events: bool,
    /// How often going on from where the stream was took too long.
    vain: u32,
}

/// How a stream ended, and so how to go on.
enum End {
    Resume(Option<ResumeToken>),
    /// The same, but it took too long to get further.
    Slow(Option<ResumeToken>),
    StartOver {
        cause: WatchEnd,
    },
    Shutdown,
}

impl Feed {
    /// Runs until shutdown.
    pub async fn run(self) {
        let mut resume = None;
        let mut lost = Lost { collection: false, events: true, vain: 0 };
        let mut delay = GrowingDelay::new(FIRST_DELAY, LONGEST_DELAY);
        loop {
            let opened = Instant::now();
            let end = self.follow(resume.take(), &mut lost).await;
            self.tell(false);
            let cause = match end {
                End::Shutdown => return,
                End::Resume(token) => {
                    resume = token;
                    WatchEnd::Interrupted
                }
                End::Slow(token) => {
                    lost.vain += 1;
                    if lost.vain < VAIN {
                        resume = token;
                    } else {
                        tracing::warn!("cannot resume the change stream where it was");
                        lost.events = true;
                    }
                    WatchEnd::Slow
                }
                End::StartOver { cause } => {
                    lost = Lost { collection: true, events: true, vain: 0 };
                    cause
                }
            };
            self.metrics.watch_restarts.of(cause).inc();
            if opened.elapsed() >= HEALTHY_AFTER {
                delay.reset();
            }
            tokio::select! {
                () = delay.wait() => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    /// One stream, from its opening to its end.
    async fn follow(&self, resume: Option<ResumeToken>, lost: &mut Lost) -> End {
        let opened = tokio::select! {
            opened = self.open(resume, lost) => opened,
            () = self.shutdown.cancelled() => return End::Shutdown,
        };
        let mut watch = match opened {
            Ok(watch) => watch,
            Err(end) => return end,
        };
        lost.vain = 0;
        if std::mem::take(&mut lost.events) {
            self.gaps.send_modify(|gaps| *gaps += 1);
        }
        if self.hints.send(Hint::Scan).await.is_err() {
            return End::Shutdown;
        }
        self.tell(true);
        tracing::debug!("watching for changes");
        let end = self.read(&mut watch).await;
        if matches!(end, End::Shutdown) {
            watch.close().await;
        }
        end
    }

    /// Opens a stream, on a collection that is as it has to be.
    async fn open(&self, resume: Option<ResumeToken>, lost: &mut Lost) -> Result<WorkStream, End> {
        if lost.collection {
            if let Err(error) = self.store.prepare().await {
                tracing::warn!(%error, "cannot prepare the collection");
                return Err(End::Resume(None));
            }
            lost.collection = false;
        }
        self.store.watch(resume.clone()).await.map_err(|error| ended(error, resume))
    }

    async fn read(&self, watch: &mut WorkStream) -> End {
        loop {
            let changes = tokio::select! {
                changes = watch.next() => changes,
                () = self.shutdown.cancelled() => return End::Shutdown,
            };
            let changes = match changes {
                Ok(changes) => changes,
                Err(error) => return ended(error, watch.token()),
            };
            self.metrics.watch_events.inc_by(changes.len() as u64);
            for change in changes {
                match change {
                    WorkEvent::Tenant { id, urgency, at } => {
                        if let Some(at) = at {
                            let lag = Timestamp::now().duration_since(at).as_secs_f64();
                            self.metrics.watch_lag_seconds.set(lag.max(0.0));
                        }
                        // A full channel holds the stream back, not the memory up.
                        if self.hints.send(Hint::Tenant { id, urgency }).await.is_err() {
                            return End::Shutdown;
                        }
                    }
                    WorkEvent::Gone(gone) => drop(self.gone.try_send(gone)),
                    WorkEvent::Gap => {
                        tracing::warn!("the collection was dropped or renamed");
                        return End::StartOver { cause: WatchEnd::CollectionGone };
                    }
                }
            }
        }
    }

    fn tell(&self, open: bool) {
        self.metrics.watch_open.set(i64::from(open));
        self.open.send_replace(open);
    }
}

fn ended(error: WatchError, token: Option<ResumeToken>) -> End {
    match error {
        WatchError::Interrupted(error) => {
            tracing::warn!(%error, "the change stream was interrupted");
            End::Resume(token)
        }
        WatchError::Slow(error) => {
            tracing::warn!(%error, "the change stream does not get on");
            End::Slow(token)
        }
        WatchError::Unresumable(error) => {
            tracing::warn!(%error, "the change stream cannot be resumed; asking the database instead");
            End::StartOver { cause: WatchEnd::HistoryLost }
        }
    }
}
