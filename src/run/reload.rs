//! What becomes of settings that are in files when the files change: they are read again while the process
//! runs, so that a secret can be rotated without a restart.
//!
//! Upstreams look after their own secrets, which they read again as well when they are refused; this is for
//! the others: the database's address and the list of trusted issuers. SIGHUP has all files read at once.

use std::future::Future;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::auth::Authenticator;
use crate::config::{Config, issuers_of};
use crate::delay::GrowingDelay;
use crate::secret::{Changes, Secret, keep_read};
use crate::store::{NotConnected, Store};

/// Between looks at the address after it was refused, and between tries with another one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Reads all files again and again, and puts to use what they say, until `shutdown`.
pub fn start(
    config: &Config,
    store: &Store,
    authenticator: Option<&Authenticator>,
    shutdown: &CancellationToken,
) {
    let until = |work| {
        let shutdown = shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(work).await });
    };
    until(boxed(keep_read(config.from_files.clone())));
    until(boxed(reread_on_hangup(config.from_files.clone())));
    until(boxed(follow_address(config.mongodb_uri.clone(), store.clone())));
    if let (Some(list), Some(authenticator)) = (&config.access.issuers_list, authenticator) {
        until(boxed(follow_issuers(list.clone(), authenticator.clone())));
    }
}

fn boxed(work: impl Future<Output = ()> + Send + 'static) -> BoxFuture<'static, ()> {
    Box::pin(work)
}

/// Reads the files when the process gets a SIGHUP, which would end it otherwise.
async fn reread_on_hangup(files: Vec<Secret>) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => return tracing::error!(%error, "cannot listen to SIGHUP"),
    };
    while hangups.recv().await.is_some() {
        let reread = join_all(files.iter().map(Secret::reread)).await;
        let changed = reread.into_iter().filter(|changed| *changed).count();
        tracing::info!(
            files = files.len(),
            changed,
            "SIGHUP: read the files of the settings again; other settings need a restart"
        );
    }
}

/// Trusts the issuers that the file names.
async fn follow_issuers(list: Secret, authenticator: Authenticator) {
    let mut changes = Changes::of(std::slice::from_ref(&list));
    loop {
        changes.next().await;
        match issuers_of(&list) {
            Ok(issuers) if issuers.is_empty() => {
                tracing::error!("OIDC_ISSUERS_FILE names no issuer; those before are kept");
            }
            Ok(issuers) => {
                let names: Vec<_> = issuers.iter().map(|config| config.issuer.clone()).collect();
                authenticator.trust(issuers);
                tracing::info!(issuers = ?names, "these issuers are trusted now");
                authenticator.prepare().await;
            }
            Err(mistakes) => {
                let mistakes = mistakes.join("; ");
                tracing::error!("OIDC_ISSUERS_FILE: the issuers before are kept: {mistakes}");
            }
        }
    }
}

/// Connects anew when the file holds another address, which is read again when the server refuses the one
/// that is used.
async fn follow_address(uri: Secret, store: Store) {
    let mut changes = Changes::of(std::slice::from_ref(&uri));
    loop {
        tokio::select! {
            () = changes.next() => reconnect(&uri, &store).await,
            () = store.credentials_refused() => {
                uri.reread().await;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Tries until it works, or cannot. The connection before is used meanwhile.
async fn reconnect(uri: &Secret, store: &Store) {
    let mut delay = GrowingDelay::new(PAUSE, LONGEST_PAUSE);
    loop {
        let tried = uri.version();
        match store.reconnect(uri.current().expose_secret().to_owned()).await {
            Ok(()) => {
                tracing::info!("connected to MongoDB with another address");
                return;
            }
            Err(error @ (NotConnected::Unsuitable(_) | NotConnected::Elsewhere)) => {
                tracing::error!("MONGODB_URI_FILE: the connection before is kept: {error}");
                return;
            }
            Err(NotConnected::Store(error)) => {
                tracing::warn!(%error, "MONGODB_URI_FILE: the earlier connection is kept");
            }
        }
        delay.wait().await;
        if uri.version() != tried {
            delay.reset();
        }
    }
}
