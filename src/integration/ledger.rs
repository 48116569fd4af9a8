//! What the processes of a fleet tell each other of refused credentials.
//!
//! They share an address or an account, and so a server's patience: three tries in ten minutes are three of
//! all of them. What one process was told, another that starts with the same credential need not find out.
//!
//! It is asked at start, after a refusal, before a probe and now and then while refused, and never for a
//! request.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::upstream::Credentials;
use crate::tenant::Upstream;

/// What the fleet knows of refusals by an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// No credential is refused, as far as any process knows.
    Nothing,
    /// Another credential is.
    Another,
    /// This one is.
    This {
        /// Until a process may try it again.
        wait: Duration,
        /// What was told.
        message: String,
    },
}

/// The database was not to be asked. What a process knows by itself still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// Where the processes of a fleet meet.
pub trait Ledger: Send + Sync {
    /// What is known of this credential.
    fn known<'a>(
        &'a self,
        step: Upstream,
        credentials: &'a Credentials,
    ) -> BoxFuture<'a, Result<Known, Away>>;

    /// Notes that so many tries were refused. Returns how long no process may try again: `wait`, or longer
    /// if all together have tried too often.
    fn note<'a>(
        &'a self,
        step: Upstream,
        credentials: &'a Credentials,
        tries: u32,
        wait: Duration,
        message: &'a str,
    ) -> BoxFuture<'a, Result<Duration, Away>>;

    /// Takes the next try, if it is due and no other process has. Else how long to wait.
    fn take_try<'a>(
        &'a self,
        step: Upstream,
        credentials: &'a Credentials,
    ) -> BoxFuture<'a, Result<Option<Duration>, Away>>;

    /// The credential is accepted.
    fn clear(&self, step: Upstream) -> BoxFuture<'_, Result<(), Away>>;
}
