//! Whether a run has asked its upstream anything.
//!
//! A run that waited for its turn, shared the failure of another's, or met a breaker that shut in between,
//! has not; and what is told of it must not say so.

use std::cell::Cell;
use std::future::Future;

tokio::task_local! {
    static ASKED: Cell<bool>;
}

/// Runs something, and says whether it asked the upstream.
pub async fn observed<T>(run: impl Future<Output = T>) -> (T, bool) {
    ASKED
        .scope(Cell::new(false), async {
            let done = run.await;
            (done, ASKED.with(Cell::get))
        })
        .await
}

/// A request is sent for the run that this task is part of, if it is part of one.
pub fn note() {
    let _ = ASKED.try_with(|asked| asked.set(true));
}
