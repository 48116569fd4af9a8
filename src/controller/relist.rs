//! Looks for what hints did not tell, in the background: after a gap in the change stream, at start, and after
//! a rush that did not fit into the queue.
//!
//! Nothing waits for it. It goes on in slices whatever becomes of the stream, and what is missed while it runs
//! makes another pass. Over all processes one pass runs at a time, and counts for all that waited for it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::feed::Hint;
use crate::delay::GrowingDelay;
use crate::metrics::Metrics;
use crate::store::{Holder, Relist, Store, Turn};

/// How long a crashed process keeps others from a pass. Should a slice take longer, two processes make one at
/// the same time, which does no harm.
const LEASE: Duration = Duration::from_secs(10);
/// Between looks at how the pass of another process goes.
const PAUSE: Duration = Duration::from_secs(1);
/// Between attempts at what fails.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(15);

/// How often something was missed; the part that misses something counts it up.
pub type Gaps = watch::Sender<u64>;

/// Makes the passes of one process.
pub struct Relister {
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub holder: Holder,
    /// Where work may be, the database is asked at once.
    pub hints: mpsc::Sender<Hint>,
    pub gaps: watch::Receiver<u64>,
}

impl Relister {
    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: &CancellationToken) {
        let (store, holder) = (self.store.clone(), self.holder.clone());
        let relisting = async {
            while self.gaps.changed().await.is_ok() {
                self.make_good().await;
            }
        };
        tokio::select! {
            () = relisting => {}
            () = shutdown.cancelled() => {
                // For the next process; without an answer, it expires.
                let _ = store.hold_relist(&holder, Duration::ZERO).await;
            }
        }
    }

    /// Until a pass has ended that began after what was missed.
    async fn make_good(&self) {
        let mut since = None;
        let mut delay = GrowingDelay::new(FIRST_DELAY, LONGEST_DELAY);
        loop {
            match self.store.take_relist(&self.holder, since, LEASE).await {
                Ok(Turn::Ours { from }) => return self.pass(from).await,
                Ok(Turn::Over) => return self.look(),
                Ok(Turn::Others { since: missed }) => {
                    since = Some(missed);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot look for missed changes yet");
                    delay.wait().await;
                }
            }
        }
    }

    async fn pass(&self, from: Timestamp) {
        let mut progress = Relist::default();
        let mut delay = GrowingDelay::new(FIRST_DELAY, LONGEST_DELAY);
        loop {
            let marked = progress.marked;
            let done = self.store.relist(&mut progress).await;
            if progress.marked > marked {
                self.look();
            }
            match done {
                Ok(true) => break,
                Ok(false) => delay.reset(),
                Err(error) => {
                    tracing::warn!(%error, "the relist resumes where it was");
                    delay.wait().await;
                }
            }
            // Two that only mark do no harm, so that nothing depends on this.
            if let Err(error) = self.store.hold_relist(&self.holder, LEASE).await {
                tracing::debug!(%error, "the lease for looking for missed changes may expire");
            }
        }
        if progress.marked > 0 {
            tracing::info!(marked = progress.marked, "found changes that no event had told");
        }
        self.metrics.relists.inc();
        if let Err(error) = self.store.end_relist(&self.holder, from).await {
            tracing::debug!(%error, "other processes look for missed changes themselves");
        }
    }

    /// Where the channel is full, a scan follows anyway.
    fn look(&self) {
        let _ = self.hints.try_send(Hint::Scan);
    }
}
