//! What a run of a step did, noted at the place that did it.
//!
//! A run that fails, or that is given up in the middle, has done all the same what it did before. So the acts
//! are not part of its result: they are noted in a list that the caller holds.

use std::sync::{Arc, Mutex, PoisonError};

use crate::tenant::{Act, Deed, Resource};

tokio::task_local! {
    static DEEDS: Deeds;
}

/// See the module. Clones are the same list.
#[derive(Clone, Default)]
pub struct Deeds(Arc<Mutex<Vec<Act>>>);

impl Deeds {
    /// Runs `run`, and notes here what it does.
    pub async fn of<T>(&self, run: impl Future<Output = T>) -> T {
        DEEDS.scope(self.clone(), run).await
    }

    /// What was noted since the last time.
    pub fn take(&self) -> Vec<Act> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Notes what was just done. Outside of [`Deeds::of`] nothing is kept.
pub fn note(deed: Deed, name: &str, id: &str) {
    let resource = Resource { name: name.to_owned(), id: id.to_owned() };
    let _ = DEEDS.try_with(|list| {
        list.0.lock().unwrap_or_else(PoisonError::into_inner).push(Act { deed, resource });
    });
}
