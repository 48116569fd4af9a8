//! One process: wires the rooms together, starts them, and ends them in order.

mod reload;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{
    Admission, Api, CheckAnswer, CheckRequest, Hub, Limits as ApiLimits, Patience, Readiness,
    RequestTimeout, Telemetry, Upstreams, serve,
};
use crate::auth::Authenticator;
use crate::config;
use crate::config::{AuthentikConfig, Config, OcisConfig, StalwartConfig};
use crate::controller::{Controller, QUEUE_CAPACITY, Settings, SharedRefusals};
use crate::delay::GrowingDelay;
use crate::http::{BaseUrl, HttpClient, HttpClientError};
use crate::integration::{
    Authentik, Credentials, Integrations, Limits, Ocis, Stalwart, TokenSource, UpstreamClient,
};
use crate::metrics::{Metrics, MongoCommand, Worked};
use crate::secret::Secret;
use crate::store::{Holder, Journal, OpenError, Store, StoreError, StoreOptions, TENANTS, Unsuitable};
use crate::telemetry;
use crate::telemetry::traces::{Traces, TracesError};
use crate::tenant::{Controls, Upstream};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {address} ({setting}): {error}")]
    Listen { setting: &'static str, address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Http(#[from] HttpClientError),
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    #[error(transparent)]
    Traces(#[from] TracesError),
}

/// Where a process listens, once it does; port 0 in the settings is a free one here.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub http: SocketAddr,
    pub telemetry: SocketAddr,
}

/// Connections beside the workers': API requests, the change stream, due scans.
const OTHER_CONNECTIONS: u32 = 32;
/// The longest pause before or in a list of all spaces: half a millisecond a space passes before its first
/// byte (observed).
const LIST_PAUSE: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// Checks that are asked for and not begun.
const CHECKS: usize = 8;
/// Files that are plenty: connections of clients, to MongoDB and to the upstreams.
const FILES: u64 = 32_768;
/// Part of the grace period in which open HTTP connections may end once everything else has.
const LINGER: u32 = 10;

/// Runs the controller and the HTTP API until `shutdown`. `listening` is told the addresses as soon
/// as both listeners are bound, which is before the database has answered.
///
/// # Errors
/// When something is wrong that waiting does not correct. A database that is away is waited for.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    listening: Option<oneshot::Sender<Addresses>>,
) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::new());
    let (commands, answers) = (metrics.mongodb_commands.clone(), metrics.mongodb_seconds.clone());
    let workers = u32::try_from(config.workers).unwrap_or(u32::MAX);
    let store = Store::new(StoreOptions {
        uri: config.mongodb_uri.current().expose_secret().to_owned(),
        database: config.mongodb_database.clone(),
        operation_timeout: config.request_timeout,
        max_connections: workers.saturating_add(OTHER_CONNECTIONS),
        on_command: Some(Arc::new(move |name, _| commands.of(MongoCommand::of(name)).inc())),
        on_answer: Some(Arc::new(move |name, took, worked| {
            answers.of((MongoCommand::of(name), Worked::of(worked))).observe(took.as_secs_f64());
        })),
    })
    .await?;
    let client = HttpClient::new(config.extra_ca.clone(), config.request_timeout)?;
    let integrations = integrations(&config, &client, &metrics);
    let authenticator =
        config.access.auth.clone().map(|auth| Authenticator::new(auth, &client, &metrics));
    let guard = Admission::new(
        authenticator.clone(),
        ApiLimits {
            rate: config.access.rate_limit,
            at_once: config.access.max_requests,
            origins: config.access.cors_origins.clone(),
        },
    );

    reload::start(&config, &store, authenticator.as_ref(), &shutdown);

    let http = bind("HTTP_ADDR", config.http_addr).await?;
    let telemetry = bind("TELEMETRY_ADDR", config.telemetry_addr).await?;
    let addresses = Addresses {
        http: http.local_addr().unwrap_or(config.http_addr),
        telemetry: telemetry.local_addr().unwrap_or(config.telemetry_addr),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), http = %addresses.http,
        telemetry = %addresses.telemetry, database = config.mongodb_database, collection = TENANTS,
        "tenantry is starting"
    );
    let linger = config.shutdown_grace / LINGER;
    let (watch_open, watch_opened) = watch::channel(false);
    let controls = watch::Sender::new(Controls::default());
    let holder = Holder::new(&host_name(), rand::random());
    let hub = Hub::default();
    tokio::spawn(hub.clone().run(store.clone(), shutdown.clone()));
    let api = Api {
        store: store.clone(),
        metrics: Arc::clone(&metrics),
        hub,
        // The handler's own limits come first, and say more.
        timeout: RequestTimeout(config.request_timeout + config.request_timeout / 10),
        readiness: Readiness {
            watch_open: watch_opened,
            upstreams: integrations.health(),
            controls: controls.subscribe(),
            draining: shutdown.clone(),
        },
        upstreams: Upstreams {
            process: holder.to_string().into(),
            board: integrations.health(),
            traffic: {
                let integrations = Arc::clone(&integrations);
                Arc::new(move |step| integrations.traffic(step))
            },
            checks: checks(Arc::clone(&integrations), store.clone()),
            controls: controls.subscribe(),
        },
        guard,
    };
    let grace = Grace::of(config.shutdown_grace, &shutdown);
    // Written until everything else has ended.
    let closing = CancellationToken::new();
    let (journal, writing) = Journal::start(store.clone(), Arc::clone(&metrics), closing.clone());
    match authenticator {
        Some(authenticator) => drop(tokio::spawn(async move { authenticator.prepare().await })),
        None => tracing::warn!("no authentication: every caller that can connect may do everything"),
    }
    // Probes and metrics are answered until the very end, so that they can say what is going on.
    let ended = CancellationToken::new();
    let config::Patience { connections, headers, reading } = config.access.patience;
    let patience = Patience { connections: connections.min(affordable()), headers, reading };
    let telemetry_router =
        Telemetry::new(Arc::clone(&metrics), store.clone(), api.guard.clone()).router();
    let servers = [
        tokio::spawn(serve(http, api.router(), patience, ended.clone())),
        tokio::spawn(serve(telemetry, telemetry_router, patience, ended.clone())),
    ];
    if let Some(listening) = listening {
        // The caller may not be waiting any more.
        let _ = listening.send(addresses);
    }

    let prepared = tokio::select! {
        prepared = prepare(&store, &config.mongodb_uri) => prepared,
        () = shutdown.cancelled() => Ok(()),
    };
    if prepared.is_ok() && !shutdown.is_cancelled() {
        tracing::info!("watching for tenants");
        let settings = Settings {
            workers: config.workers,
            policy: config.policy,
            lease_ttl: config.lease_ttl,
            poll_interval: config.poll_interval,
            shutdown_grace: config.shutdown_grace - linger,
            holder,
            sweep_interval: config.sweep_interval,
            guard: config.guard,
            adopt_unmarked: config.adopt_unmarked,
            queue_capacity: QUEUE_CAPACITY,
        };
        let controller = Controller { store: store.clone(), integrations, metrics, journal, settings };
        controller.run(watch_open, controls, shutdown).await;
    }
    ended.cancel();
    let [api, telemetry] = servers;
    tokio::join!(end(api, linger / 2), end(telemetry, linger / 2));
    closing.cancel();
    // Most often there is much time left, and a new primary may take some of it.
    let left = grace.left().saturating_sub(linger / 2).max(linger / 2);
    if tokio::time::timeout(left, writing).await.is_err() {
        tracing::warn!("the latest events could not be written");
    }
    // Connections that hang must not hold us up.
    let _ = tokio::time::timeout(linger / 2, store.close()).await;
    tracing::info!("tenantry has ended");
    prepared.map_err(RunError::from)
}

/// Sets up logs and traces. Traces are sent with the roots and proxies that everything else is sent with.
///
/// # Errors
/// When the environment asks for traces in a way that is not supported.
pub fn observe(config: &Config) -> Result<Option<Traces>, RunError> {
    let client = HttpClient::new(config.extra_ca.clone(), config.request_timeout)?;
    let traces = Traces::start(client.client())?;
    telemetry::init(config.log_format, config.log_filter.clone(), traces.as_ref());
    Ok(traces)
}

fn integrations(config: &Config, http: &HttpClient, metrics: &Arc<Metrics>) -> Arc<Integrations> {
    let upstream = |step, url: &BaseUrl, credentials, limits| {
        UpstreamClient::new(step, http.clone(), url.clone(), credentials, limits, Arc::clone(metrics))
    };
    let not_set = |variable, step| {
        tracing::info!("{variable} is not set: the step {step} is skipped, or held if the fleet has it");
    };
    let mut integrations = Integrations::new(Arc::clone(metrics));
    match &config.authentik {
        Some(AuthentikConfig { url, token, group_template, limits }) => {
            let credentials = Credentials::Bearer(token.clone());
            let upstream = upstream(Upstream::Authentik, url, credentials, *limits);
            let authentik = Authentik::new(upstream, group_template.clone());
            integrations = integrations.with_authentik(authentik);
        }
        None => not_set("AUTHENTIK_API_URL", Upstream::Authentik),
    }
    match &config.stalwart {
        Some(StalwartConfig { url, credentials, dkim, limits }) => {
            let credentials = credentials.clone().credentials();
            let upstream = upstream(Upstream::Stalwart, url, credentials, *limits);
            integrations = integrations.with_stalwart(Stalwart::new(upstream, *dkim));
        }
        None => not_set("STALWART_API_URL", Upstream::Stalwart),
    }
    match &config.ocis {
        Some(OcisConfig { url, credentials, membership, limits }) => {
            let issuer = upstream(Upstream::Ocis, url, Credentials::None, Limits::GENEROUS);
            let tokens = TokenSource::new(issuer, credentials.clone());
            let credentials = Credentials::Tokens(Arc::new(tokens));
            let upstream = upstream(Upstream::Ocis, url, credentials, *limits);
            let patience = config.request_timeout.max(LIST_PAUSE);
            let metrics = Arc::clone(metrics);
            let ocis = Ocis::new(upstream, membership.clone(), patience, metrics);
            integrations = integrations.with_ocis(ocis);
        }
        None => not_set("OCIS_API_URL", Upstream::Ocis),
    }
    Arc::new(integrations)
}

/// The time between the request to shut down and the end.
struct Grace {
    span: Duration,
    began: Arc<OnceLock<Instant>>,
}

impl Grace {
    fn of(span: Duration, shutdown: &CancellationToken) -> Self {
        let began = Arc::<OnceLock<Instant>>::default();
        let (begins, shutdown) = (Arc::clone(&began), shutdown.clone());
        tokio::spawn(async move {
            shutdown.cancelled().await;
            let _ = begins.set(Instant::now());
        });
        Self { span, began }
    }

    /// What is left of it.
    fn left(&self) -> Duration {
        self.span.saturating_sub(self.began.get().map_or(Duration::ZERO, Instant::elapsed))
    }
}

/// Where the API asks for checks of upstreams. Each is made beside the others.
fn checks(integrations: Arc<Integrations>, store: Store) -> mpsc::Sender<CheckRequest> {
    let (checks, mut asked) = mpsc::channel::<CheckRequest>(CHECKS);
    let ledger = Arc::new(SharedRefusals::new(store));
    tokio::spawn(async move {
        while let Some(CheckRequest { upstream, answer }) = asked.recv().await {
            let (integrations, ledger) = (Arc::clone(&integrations), Arc::clone(&ledger));
            tokio::spawn(async move {
                let answered = match integrations.check(upstream, &*ledger).await {
                    Ok(()) => CheckAnswer::Checked,
                    Err(wait) => CheckAnswer::NotYet(wait),
                };
                // The run that asked may be gone.
                let _ = answer.send(answered);
            });
        }
    });
    checks
}

/// Waits for the database, and prepares it. Credentials that it refuses are waited for only where others
/// may be put in their place.
async fn prepare(store: &Store, uri: &Secret) -> Result<(), Unsuitable> {
    let mut delay = GrowingDelay::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        match store.prepare().await {
            Ok(()) => return Ok(()),
            Err(OpenError::Unsuitable(unsuitable)) => return Err(unsuitable),
            Err(OpenError::Store(error @ StoreError::CredentialsRefused { .. }))
                if !uri.is_from_file() =>
            {
                return Err(Unsuitable::Schema(error.to_string()));
            }
            Err(OpenError::Store(StoreError::NoServer { servers, .. })) if !servers.is_empty() => {
                tracing::warn!(retry_in = ?delay.upcoming(), "waiting for MongoDB: no server can be used");
                for (server, reason) in servers {
                    tracing::warn!(server, reason, "this MongoDB server cannot be used");
                }
            }
            Err(OpenError::Store(error)) if error.is_unavailable() => {
                tracing::warn!(%error, retry_in = ?delay.upcoming(), "waiting for MongoDB");
            }
            Err(OpenError::Store(error)) => return Err(Unsuitable::Schema(error.to_string())),
        }
        delay.wait().await;
    }
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|error| RunError::Listen { setting, address, error })
}

/// Connections at once for each listener, as far as the system lets us have files open; most systems give
/// a process far fewer than it may have if it asks.
fn affordable() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(FILES).min(FILES);
    let files = match current {
        Some(current) if current < wanted => {
            let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
            if raised.is_ok() { wanted } else { current }
        }
        _ => wanted,
    };
    usize::try_from(files / 4).unwrap_or(usize::MAX).max(1)
}

/// Lets open requests finish, but not for ever.
async fn end(mut server: JoinHandle<()>, linger: Duration) {
    if tokio::time::timeout(linger, &mut server).await.is_err() {
        server.abort();
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
