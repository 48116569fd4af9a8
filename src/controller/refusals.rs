//! The fleet's ledger of refused credentials, in the database.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::integration::{Away, Credentials, Known, Ledger};
use crate::store::{Refusals, Store, StoreError};
use crate::tenant::{PerStep, TryLimits, Upstream};

/// See the module.
pub struct SharedRefusals {
    store: Store,
    /// The salt of each upstream's digests, once it is known. It never changes.
    salts: Mutex<PerStep<Option<String>>>,
}

impl SharedRefusals {
    pub fn new(store: Store) -> Self {
        Self { store, salts: Mutex::default() }
    }

    async fn read(&self, step: Upstream) -> Result<Refusals, Away> {
        let read = self.store.refusals(step).await.map_err(away)?;
        if let Ok(mut salts) = self.salts.lock() {
            salts[step] = Some(read.salt.clone());
        }
        Ok(read)
    }

    async fn digest(&self, step: Upstream, credentials: &Credentials) -> Result<u16, Away> {
        let known = self.salts.lock().ok().and_then(|salts| salts[step].clone());
        let salt = match known {
            Some(salt) => salt,
            None => self.read(step).await?.salt,
        };
        Ok(credentials.digest(&salt))
    }
}

fn away(error: StoreError) -> Away {
    tracing::debug!(%error, "what other processes know of refused credentials cannot be asked for");
    Away
}

impl Ledger for SharedRefusals {
    fn known<'a>(
        &'a self,
        step: Upstream,
        credentials: &'a Credentials,
    ) -> BoxFuture<'a, Result<Known, Away>> {
        async move {
            let Refusals { salt, refused } = self.read(step).await?;
            Ok(match refused {
                None => Known::Nothing,
                Some(refused) if refused.digest == credentials.digest(&salt) => {
                    Known::This { wait: refused.wait, message: refused.message }
                }
                Some(_) => Known::Another,
            })
        }
        .boxed()
    }

    fn note<'a>(
        &'a self,
        step: Upstream,
        credentials: &'a Credentials,
        tries: u32,
        wait: Duration,
        message: &'a str,
    ) -> BoxFuture<'a, Result<Duration, Away>> {
        async move {
            let digest = self.digest(step, credentials).await?;
            self.store
                .note_refusals(step, digest, tries, wait, message, TryLimits::DEFAULT)
                .await
                .map_err(away)
        }
        .boxed()
    }

    fn take_try<'a>(
        &'a self,
        step: Upstream,
        credentials: &'a Credentials,
    ) -> BoxFuture<'a, Result<Option<Duration>, Away>> {
        async move {
            let digest = self.digest(step, credentials).await?;
            self.store.take_try(step, digest).await.map_err(away)
        }
        .boxed()
    }

    fn clear(&self, step: Upstream) -> BoxFuture<'_, Result<(), Away>> {
        async move { self.store.forget_refusals(step).await.map_err(away) }.boxed()
    }
}
