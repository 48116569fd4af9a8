//! Whether a request may still go when its turn comes.
//!
//! A run waits: for its turn at the limiter, for a token, for slow answers. What held when it began may no
//! longer hold when one of its requests is ready. Therefore [`UpstreamClient`](super::Upstream) asks here for every
//! request, right before it is sent, whatever the integration that sends it. A refused request was not sent,
//! so that it leaves nothing to be found out.
//!
//! Why a run writes is known where the run decides to write, and asked where its requests go out. It travels
//! with the task, because a run sends all its writes from one task.

use std::sync::{Arc, OnceLock};

use super::upstream::Purpose;
use crate::tenant::{Reason, Upstream};

/// Why a run writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something is new, or a person asked for it.
    Asked,
    /// It undoes a change in the upstream, or lets go what is there. That rests while a change guard doubts
    /// what is seen.
    Doubtful,
}

tokio::task_local! {
    static CAUSE: Cause;
}

impl Cause {
    /// Runs `run`, all of whose writes have this cause.
    pub async fn of<T>(self, run: impl Future<Output = T>) -> T {
        CAUSE.scope(self, run).await
    }

    fn current() -> Self {
        CAUSE.try_with(|cause| *cause).unwrap_or(Self::Asked)
    }
}

/// A request that is ready to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub step: Upstream,
    pub purpose: Purpose,
    pub cause: Cause,
}

/// Why a request may not go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// What it would change is to be left alone, for this reason: the step is held.
    Held(Reason),
}

/// Says whether requests may go. It must answer from what the process knows, without waiting.
pub trait Permission: Send + Sync {
    /// # Errors
    /// Why the request may not go now.
    fn ask(&self, request: Ready) -> Result<(), Refusal>;
}

/// Whom an upstream asks. Until that is known, as in a program that runs no controller, everything may go.
#[derive(Default)]
pub(super) struct Permit(OnceLock<Arc<dyn Permission>>);

impl Permit {
    pub fn obey(&self, permission: Arc<dyn Permission>) {
        // One controller runs in a process; a second would bring the same answers.
        let _ = self.0.set(permission);
    }

    pub fn ask(&self, step: Upstream, purpose: Purpose) -> Result<(), Refusal> {
        match self.0.get() {
            Some(permission) => permission.ask(Ready { step, purpose, cause: Cause::current() }),
            None => Ok(()),
        }
    }
}
