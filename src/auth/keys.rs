//! An issuer's public keys, fetched when they are needed and kept.
//!
//! # Guarantees
//!
//! * One request at a time, however many wait for it; and it goes on if they leave.
//! * A token with an unknown key makes the keys be fetched again at most once per [`KEY_REFRESH`], so that
//!   nobody can make us flood the issuer.
//! * Keys outlive an issuer that is away. A key that it has withdrawn is forgotten within [`MAX_AGE`],
//!   or when it can be asked again.
//! * An issuer that cannot be asked is asked again after a pause that grows to [`LONGEST_HOLD`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::issuer::IssuerConfig;
use crate::integration::HttpClient;

/// Unless a test is in a hurry.
pub const KEY_REFRESH: Duration = Duration::from_secs(60);
/// After which the keys are fetched again, while the old ones are still used.
const MAX_AGE: Duration = Duration::from_secs(600);
const FIRST_HOLD: Duration = Duration::from_secs(1);
const LONGEST_HOLD: Duration = Duration::from_secs(30);
/// RFC 8037.
const ED25519_BYTES: usize = 32;

const NO_KEY: &str = "the provider has no signing key, so that its tokens cannot be verified; choose one \
                      (in Authentik: the provider's Signing Key)";
const NO_USABLE_KEY: &str = "none of the provider's keys is an RSA, P-256, P-384 or Ed25519 key for \
                             signatures; choose another signing key";

/// A public key.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    kind: Kind,
    pub decoding: DecodingKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Key {
    /// `None` for keys that are for something else.
    fn read(jwk: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk.clone()).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|r#use| *r#use != PublicKeyUse::Signature) {
            return None;
        }
        let kind = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Kind::Rsa,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Kind::P256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => Kind::P384,
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                Kind::Ed25519
            }
            // A secret that is published, among others.
            _ => return None,
        };
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        // The verifier takes the length for granted, and panics.
        if kind == Kind::Ed25519 && decoding.try_get_as_bytes().ok()?.len() != ED25519_BYTES {
            return None;
        }
        Some(Self { id: jwk.common.key_id, kind, decoding })
    }

    pub fn suits(&self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => self.kind == Kind::Rsa,
            Algorithm::ES256 => self.kind == Kind::P256,
            Algorithm::ES384 => self.kind == Kind::P384,
            Algorithm::EdDSA => self.kind == Kind::Ed25519,
            _ => false,
        }
    }
}

/// Why there is no key.
pub enum Missing {
    /// The issuer was asked, lately enough.
    Unknown,
    Unavailable {
        why: &'static str,
        retry_in: Duration,
    },
}

#[derive(Clone)]
struct Failure {
    /// For the log.
    why: String,
    /// For whoever asks with a token: no addresses.
    told: &'static str,
    /// The issuer answered, and has no keys: those that are held are no longer its.
    disowned: bool,
}

type Set = Arc<[Key]>;
type Fetch = Shared<BoxFuture<'static, Result<Set, Failure>>>;

/// See the module.
pub struct Keys {
    issuer: Arc<IssuerConfig>,
    http: HttpClient,
    refresh: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    keys: Option<Set>,
    fetched: Option<Instant>,
    fetching: Option<Fetch>,
    /// When a token with an unknown key last made us ask.
    sought: Option<Instant>,
    /// Until then nothing is fetched, for this reason.
    held: Option<(Instant, Failure)>,
    /// Fetches that failed in a row.
    failures: u32,
    discovered: Option<Url>,
}

#[derive(Deserialize)]
struct Jwks {
    #[serde(default)]
    keys: Vec<Value>,
}

impl Keys {
    pub fn new(issuer: IssuerConfig, http: HttpClient, refresh: Duration) -> Self {
        Self { issuer: Arc::new(issuer), http, refresh, state: Arc::default() }
    }

    /// Fetches the keys unless they are there.
    pub async fn prepare(&self) {
        let fetch = {
            let mut state = self.lock();
            if state.keys.is_some() {
                return;
            }
            self.fetch(&mut state)
        };
        // What went wrong is in the log.
        let _ = fetch.await;
    }

    /// The key of this id; without an id the issuer's only one.
    pub async fn find(&self, id: Option<&str>) -> Result<Key, Missing> {
        let fetch = {
            let mut state = self.lock();
            let now = Instant::now();
            if let Some(key) = state.keys.as_deref().and_then(|keys| pick(keys, id)) {
                let key = key.clone();
                let old = state.fetched.is_none_or(|at| now.duration_since(at) > MAX_AGE);
                if old && state.fetching.is_none() && !state.is_held(now) {
                    // It goes on by itself; nobody needs to wait for it.
                    drop(self.fetch(&mut state));
                }
                return Ok(key);
            }
            match (&state.fetching, &state.keys) {
                (Some(fetching), _) => fetching.clone(),
                (None, Some(_)) => {
                    if state.sought.is_some_and(|at| now.duration_since(at) < self.refresh) {
                        return Err(Missing::Unknown);
                    }
                    state.sought = Some(now);
                    self.fetch(&mut state)
                }
                (None, None) => match &state.held {
                    Some((until, failure)) if now < *until => {
                        let retry_in = until.duration_since(now);
                        return Err(Missing::Unavailable { why: failure.told, retry_in });
                    }
                    _ => self.fetch(&mut state),
                },
            }
        };
        match fetch.await {
            Ok(keys) => pick(&keys, id).cloned().ok_or(Missing::Unknown),
            Err(Failure { told, .. }) => Err(Missing::Unavailable { why: told, retry_in: FIRST_HOLD }),
        }
    }

    /// Begins to fetch the keys, or joins whoever does.
    fn fetch(&self, state: &mut State) -> Fetch {
        if let Some(fetching) = &state.fetching {
            return fetching.clone();
        }
        let (issuer, http, shared) =
            (Arc::clone(&self.issuer), self.http.clone(), Arc::clone(&self.state));
        let discovered = state.discovered.clone();
        // Whoever waits may give up; the others, and those who come later, must not.
        let fetching = tokio::spawn(async move {
            let fetched = request(&issuer, &http, discovered).await;
            lock(&shared).learn(&issuer, fetched)
        });
        let fetch = fetching.map(|ended| match ended {
            Ok(fetched) => fetched,
            Err(error) => Err(failed(error.to_string())),
        });
        let fetch = fetch.boxed().shared();
        state.fetching = Some(fetch.clone());
        fetch
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pick<'a>(keys: &'a [Key], id: Option<&str>) -> Option<&'a Key> {
    match (id, keys) {
        (Some(id), _) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        (None, [only]) => Some(only),
        (None, _) => None,
    }
}

impl State {
    fn is_held(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|(until, _)| now < *until)
    }

    fn learn(
        &mut self,
        issuer: &IssuerConfig,
        fetched: Result<(Set, Url), Failure>,
    ) -> Result<Set, Failure> {
        self.fetching = None;
        match fetched {
            Ok((keys, url)) => {
                if self.failures > 0 || self.keys.is_none() {
                    tracing::info!(issuer = issuer.issuer, keys = keys.len(), "have the issuer's keys");
                }
                self.failures = 0;
                self.held = None;
                self.discovered = Some(url);
                self.fetched = Some(Instant::now());
                self.keys = Some(Arc::clone(&keys));
                Ok(keys)
            }
            Err(failure) => {
                let hold = FIRST_HOLD * 2_u32.saturating_pow(self.failures.min(5));
                self.failures = self.failures.saturating_add(1);
                self.held = Some((Instant::now() + hold.min(LONGEST_HOLD), failure.clone()));
                // It may have moved.
                self.discovered = None;
                if failure.disowned {
                    self.keys = None;
                }
                let kept = self.keys.is_some();
                tracing::warn!(
                    issuer = issuer.issuer,
                    keys_kept = kept,
                    why = failure.why,
                    "cannot fetch the issuer's keys"
                );
                Err(failure)
            }
        }
    }
}

async fn request(
    issuer: &IssuerConfig,
    http: &HttpClient,
    discovered: Option<Url>,
) -> Result<(Set, Url), Failure> {
    let url = match (&issuer.jwks_url, discovered) {
        (Some(url), _) => url.clone(),
        (None, Some(url)) => url,
        (None, None) => {
            let url = issuer.discovery_url().ok_or_else(|| failed("the issuer is no address".into()))?;
            issuer.read_discovery(&read(http, &url, "discovery document").await?).map_err(failed)?
        }
    };
    let document = read(http, &url, "keys").await?;
    let keys: Jwks = serde_json::from_slice(&document)
        .map_err(|error| failed(format!("the keys at {url} make no sense: {error}")))?;
    let usable: Set = keys.keys.iter().filter_map(Key::read).collect();
    if usable.is_empty() {
        let told = if keys.keys.is_empty() { NO_KEY } else { NO_USABLE_KEY };
        return Err(Failure { why: format!("{told} (asked at {url})"), told, disowned: true });
    }
    Ok((usable, url))
}

async fn read(http: &HttpClient, url: &Url, what: &str) -> Result<Vec<u8>, Failure> {
    let failed = |why: String| failed(format!("cannot read the issuer's {what} at {url}: {why}"));
    match http.document(url).await {
        Ok((status, body)) if status.is_success() => Ok(body),
        Ok((status, _)) => Err(failed(format!("it answers {status}"))),
        Err(why) => Err(failed(why)),
    }
}

fn failed(why: String) -> Failure {
    Failure {
        why,
        told: "the issuer's keys cannot be fetched; the log of tenantry says why",
        disowned: false,
    }
}
