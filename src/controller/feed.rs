//! Follows the change stream and tells the dispatcher which tenants changed.
//!
//! It survives whatever ends a stream (primary changes, network cuts, lost history, a dropped or
//! renamed collection): it opens a new one after a growing delay, and where events may have been
//! missed, marks by one query what they would have told. Opening comes first, so that nothing falls
//! between the two.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::store::{Change, Relist, ResumeToken, Store, Urgency, Watch, WatchError};
use crate::tenant::TenantId;

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

/// Owns the stream; its only output are hints, and whether a stream is open.
pub struct Feed {
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub hints: mpsc::Sender<Hint>,
    /// Told of tenants whose documents are gone, as far as there is room; nobody waits for that.
    pub gone: mpsc::Sender<TenantId>,
    pub open: watch::Sender<bool>,
    pub shutdown: CancellationToken,
}

/// What has to be made good before hints can be relied on.
struct Lost {
    /// The collection may be gone, and its indexes and validator with it.
    collection: bool,
    /// Changes that no event told, at the start those made while nobody watched; and how far looking
    /// for them has come.
    events: Option<Relist>,
}

/// How a stream ended, and so how to go on.
enum End {
    Resume(Option<ResumeToken>),
    StartOver { cause: &'static str },
    Shutdown,
}

impl Feed {
    /// Runs until shutdown.
    pub async fn run(self) {
        let mut resume = None;
        let mut lost = Lost { collection: false, events: Some(Relist::default()) };
        let mut delay = FIRST_DELAY;
        loop {
            let opened = Instant::now();
            let end = self.follow(resume.take(), &mut lost).await;
            self.tell(false);
            let cause = match end {
                End::Shutdown => return,
                End::Resume(token) => {
                    resume = token;
                    "interrupted"
                }
                End::StartOver { cause } => {
                    lost = Lost { collection: true, events: Some(Relist::default()) };
                    cause
                }
            };
            self.metrics.watch_restarts.with_label_values(&[cause]).inc();
            if opened.elapsed() >= HEALTHY_AFTER {
                delay = FIRST_DELAY;
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.shutdown.cancelled() => return,
            }
            delay = (delay * 2).min(LONGEST_DELAY);
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

    /// Opens a stream, and asks the database for what earlier ones may have missed.
    async fn open(&self, resume: Option<ResumeToken>, lost: &mut Lost) -> Result<Watch, End> {
        if lost.collection {
            if let Err(error) = self.store.prepare().await {
                tracing::warn!(%error, "cannot prepare the collection");
                return Err(End::Resume(None));
            }
            lost.collection = false;
        }
        let watch = self.store.watch(resume.clone()).await.map_err(|error| ended(error, resume))?;
        if let Some(relist) = &mut lost.events {
            if let Err(error) = self.store.relist(relist).await {
                tracing::warn!(%error, "cannot look for missed changes");
                // What is missed from here on is told by this stream's continuation.
                return Err(End::Resume(watch.token()));
            }
            if relist.marked > 0 {
                tracing::info!(marked = relist.marked, "found changes that no event had told");
            }
            self.metrics.relists.inc();
            lost.events = None;
        }
        Ok(watch)
    }

    async fn read(&self, watch: &mut Watch) -> End {
        loop {
            let changes = tokio::select! {
                changes = watch.next() => changes,
                () = self.shutdown.cancelled() => return End::Shutdown,
            };
            let changes = match changes {
                Ok(changes) => changes,
                Err(error) => return ended(error, watch.token()),
            };
            for change in changes {
                match change {
                    Change::Tenant { id, urgency, at } => {
                        if let Some(at) = at {
                            let lag = Timestamp::now().duration_since(at).as_secs_f64();
                            self.metrics.watch_lag_seconds.set(lag.max(0.0));
                        }
                        // A full channel holds the stream back, not the memory up.
                        if self.hints.send(Hint::Tenant { id, urgency }).await.is_err() {
                            return End::Shutdown;
                        }
                    }
                    Change::Gone(id) => drop(self.gone.try_send(id)),
                    Change::Gap => {
                        tracing::warn!("the collection was dropped or renamed");
                        return End::StartOver { cause: "collection_gone" };
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
        WatchError::Unresumable(error) => {
            tracing::warn!(%error, "the change stream cannot be resumed; asking the database instead");
            End::StartOver { cause: "history_lost" }
        }
    }
}
