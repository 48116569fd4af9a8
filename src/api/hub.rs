//! One change stream per process, for everybody who waits for a tenant or watches the fleet.
//!
//! # Guarantees
//!
//! * It is open only while there is a listener, and a little longer: an idle API costs the database nothing.
//! * Memory is bounded: the latest [`KEPT`] events are kept, once, for all readers. A reader that falls behind
//!   those is told so, and no other waits for it.
//! * Listening begins before the request is carried out, so that its outcome cannot be missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::store::{OutcomeEvent, Record, Store};
use crate::tenant::TenantId;

/// Events that are kept for those who are slow or come back.
pub const KEPT: usize = 1024;
/// Requests that wait at once; of more the wish is ignored.
pub const WAITERS: usize = 2_000;
/// Readers of the event stream at once.
pub const WATCHERS: usize = 500;
/// How long the stream stays open without a listener.
const LINGER: Duration = Duration::from_secs(60);
/// How long the first listener waits for it to open.
const OPENING: Duration = Duration::from_secs(2);
/// Between attempts to open it.
const RETRY: Duration = Duration::from_secs(1);

/// What is told to everybody.
#[derive(Debug)]
pub enum Event {
    Tenant {
        token: String,
        record: Record,
    },
    Gone {
        token: String,
        id: TenantId,
    },
    /// Events were missed: look for yourself.
    Gap,
}

impl Event {
    pub fn token(&self) -> Option<&str> {
        match self {
            Self::Tenant { token, .. } | Self::Gone { token, .. } => Some(token),
            Self::Gap => None,
        }
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    events: broadcast::Sender<Arc<Event>>,
    /// The latest ones, in order. Held while one is added and sent, so that no reader gets one twice or never.
    kept: Mutex<VecDeque<Arc<Event>>>,
    open: watch::Sender<bool>,
    wanted: Notify,
    waiters: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    closing: CancellationToken,
}

/// What a listener gets.
pub struct Listener {
    pub events: broadcast::Receiver<Arc<Event>>,
    /// What was told after the event that the listener named.
    pub missed: Vec<Arc<Event>>,
    /// Whether nothing is missing between that event and now.
    pub complete: bool,
    /// Cancelled when nothing more will be told, because the process ends.
    pub closing: CancellationToken,
}

impl Default for Hub {
    fn default() -> Self {
        let shared = Shared {
            events: broadcast::Sender::new(KEPT),
            kept: Mutex::default(),
            open: watch::Sender::new(false),
            wanted: Notify::new(),
            waiters: Arc::new(Semaphore::new(WAITERS)),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            closing: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Hub {
    /// Places for those who wait for one tenant.
    pub fn waiters(&self) -> &Arc<Semaphore> {
        &self.shared.waiters
    }

    /// Places for those who watch.
    pub fn watchers(&self) -> &Arc<Semaphore> {
        &self.shared.watchers
    }

    /// Listens from now on, or from the event `after`. `None` when the stream cannot be opened in time.
    pub async fn listen(&self, after: Option<&str>) -> Option<Listener> {
        // It stays interested while it waits, so that the stream is not closed under its feet.
        let early = self.shared.events.subscribe();
        self.shared.wanted.notify_one();
        let mut open = self.shared.open.subscribe();
        tokio::time::timeout(OPENING, open.wait_for(|open| *open)).await.ok()?.ok()?;
        let kept = self.kept();
        let events = self.shared.events.subscribe();
        drop(early);
        let place = after.and_then(|after| kept.iter().position(|event| event.token() == Some(after)));
        let missed: Vec<_> =
            place.map_or_else(Vec::new, |at| kept.iter().skip(at + 1).cloned().collect());
        let gap = missed.iter().any(|event| matches!(**event, Event::Gap));
        let complete = after.is_none() || (place.is_some() && !gap);
        Some(Listener { events, missed, complete, closing: self.shared.closing.clone() })
    }

    /// Keeps the stream open while it is wanted, until shutdown.
    pub async fn run(self, store: Store, shutdown: CancellationToken) {
        let following = async {
            loop {
                if self.shared.events.receiver_count() == 0 {
                    self.shared.wanted.notified().await;
                }
                match store.follow().await {
                    Ok(follow) => self.follow(follow).await,
                    Err(error) => tracing::warn!(%error, "cannot follow the tenants for those who wait"),
                }
                if self.shared.open.send_replace(false) {
                    self.tell(Event::Gap);
                }
                if self.shared.events.receiver_count() > 0 {
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = shutdown.cancelled() => {}
        }
        self.shared.closing.cancel();
    }

    async fn follow(&self, mut follow: crate::store::OutcomeStream) {
        // What was told by an earlier stream does not join on to this one.
        self.kept().clear();
        self.shared.open.send_replace(true);
        let mut idle_since = None;
        loop {
            let told = match follow.next().await {
                Ok(told) => told,
                Err(error) => {
                    tracing::warn!(%error, "the stream for those who wait was interrupted");
                    return;
                }
            };
            for told in told {
                self.tell(match told {
                    OutcomeEvent::Is { token, record } => Event::Tenant { token, record: *record },
                    OutcomeEvent::Gone { token, id } => Event::Gone { token, id },
                });
            }
            if self.shared.events.receiver_count() > 0 {
                idle_since = None;
            } else if idle_since.get_or_insert_with(tokio::time::Instant::now).elapsed() > LINGER {
                // A reader that comes from here on finds it closed, and has it opened again.
                self.shared.open.send_replace(false);
                follow.close().await;
                return;
            }
        }
    }

    pub(super) fn tell(&self, event: Event) {
        let event = Arc::new(event);
        let mut kept = self.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&event));
        // To have no listener is no failure.
        let _ = self.shared.events.send(event);
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Hub {
    /// One without a database behind it.
    pub(super) fn opened() -> Self {
        let hub = Self::default();
        hub.shared.open.send_replace(true);
        hub
    }
}
