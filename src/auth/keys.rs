//! An issuer's public keys, fetched when they are needed and kept.
//!
//! # Guarantees
//!
//! * One request at a time, however many wait for it; and it goes on if they leave.
//! * A token with an unknown key makes the keys be fetched again at most once per [`KEY_REFRESH`], so that
//!   no caller can make us flood the issuer.
//! * Keys outlive an issuer that is away. A key that it has withdrawn is forgotten within [`MAX_AGE`],
//!   or when it can be asked again.
//! * An issuer that cannot be asked is asked again after a pause that grows to [`LONGEST_HOLD`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::issuer::IssuerConfig;
use super::verify::algorithm;
use crate::http::{HttpClient, page};
use crate::metrics::{Counters, Worked};

/// Unless a test is in a hurry.
pub const KEY_REFRESH: Duration = Duration::from_secs(60);
/// After which the keys are fetched again, while the old ones are still used.
const MAX_AGE: Duration = Duration::from_secs(600);
const FIRST_HOLD: Duration = Duration::from_secs(1);
const LONGEST_HOLD: Duration = Duration::from_secs(30);
/// RFC 7518, section 3.3.
const LEAST_RSA_BITS: usize = 2048;
/// Keys that a token is tried with, at most.
const MOST_TRIED: usize = 8;

const NO_KEY: &str = "the provider has no signing key, so that its tokens cannot be verified; choose one \
                      (in Authentik: the provider's Signing Key)";
const NO_USABLE_KEY: &str = "none of the provider's keys is an RSA key of 2048 bits or more, or a P-256, P-384 or \
                             Ed25519 key, for signatures; choose another signing key";

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

impl Kind {
    /// One that such a key can sign with.
    const fn algorithm(self) -> Algorithm {
        match self {
            Self::Rsa => Algorithm::RS256,
            Self::P256 => Algorithm::ES256,
            Self::P384 => Algorithm::ES384,
            Self::Ed25519 => Algorithm::EdDSA,
        }
    }

    fn suits(self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => self == Self::Rsa,
            Algorithm::ES256 => self == Self::P256,
            Algorithm::ES384 => self == Self::P384,
            Algorithm::EdDSA => self == Self::Ed25519,
            _ => false,
        }
    }
}

/// A key as it is published (RFC 7517), as far as it concerns us. Each member is read for itself: what is odd
/// about one of them, or about one key, spoils no other.
#[derive(Deserialize)]
struct Published {
    kty: Value,
    #[serde(default)]
    crv: Value,
    #[serde(default)]
    kid: Value,
    #[serde(default)]
    r#use: Value,
    #[serde(default)]
    key_ops: Value,
    #[serde(default)]
    alg: Value,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

/// Why a key is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unusable {
    /// It is for something else, or of a kind that is not understood.
    Other,
    /// Its numbers are none of such a key.
    Broken,
    /// RFC 7518, section 3.3, asks for 2048 bits.
    Short { bits: usize },
}

impl Key {
    fn read(jwk: &Value) -> Result<Self, Unusable> {
        let jwk = Published::deserialize(jwk).map_err(|_| Unusable::Broken)?;
        let signs = jwk.r#use.is_null() || jwk.r#use == "sig";
        let verifies = match &jwk.key_ops {
            Value::Null => true,
            Value::Array(operations) => operations.iter().any(|operation| operation == "verify"),
            _ => false,
        };
        let kind = match (jwk.kty.as_str(), jwk.crv.as_str()) {
            (Some("RSA"), _) => Kind::Rsa,
            (Some("EC"), Some("P-256")) => Kind::P256,
            (Some("EC"), Some("P-384")) => Kind::P384,
            (Some("OKP"), Some("Ed25519")) => Kind::Ed25519,
            // A secret that is published, among others.
            _ => return Err(Unusable::Other),
        };
        let for_it = |name: &str| algorithm(name).is_some_and(|algorithm| kind.suits(algorithm));
        if !(signs && verifies && (jwk.alg.is_null() || jwk.alg.as_str().is_some_and(for_it))) {
            return Err(Unusable::Other);
        }
        let decoding = match kind {
            Kind::Rsa => {
                let bits = bits(&jwk.n).ok_or(Unusable::Broken)?;
                if bits < LEAST_RSA_BITS {
                    return Err(Unusable::Short { bits });
                }
                check_exponent(&jwk.e)?;
                DecodingKey::from_rsa_components(&jwk.n, &jwk.e)
            }
            // The verifiers take the lengths for granted, and one panics.
            Kind::P256 | Kind::P384 if [&jwk.x, &jwk.y].iter().any(|it| !has_length(it, kind)) => {
                return Err(Unusable::Broken);
            }
            Kind::P256 | Kind::P384 => DecodingKey::from_ec_components(&jwk.x, &jwk.y),
            Kind::Ed25519 if !has_length(&jwk.x, kind) => return Err(Unusable::Broken),
            Kind::Ed25519 => DecodingKey::from_ed_components(&jwk.x),
        };
        let decoding = decoding.map_err(|_| Unusable::Broken)?;
        // A point that is not on its curve, say, shows only when the key is to be used.
        jsonwebtoken::crypto::verify("", b"", &decoding, kind.algorithm())
            .map_err(|_| Unusable::Broken)?;
        Ok(Self { id: jwk.kid.as_str().map(ToOwned::to_owned), kind, decoding })
    }

    pub fn suits(&self, algorithm: Algorithm) -> bool {
        self.kind.suits(algorithm)
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

fn has_length(text: &str, kind: Kind) -> bool {
    let length = if kind == Kind::P384 { 48 } else { 32 };
    decoded(text).is_some_and(|bytes| bytes.len() == length)
}

/// How long a number is, without the zeros before it.
fn bits(text: &str) -> Option<usize> {
    let bytes = decoded(text)?;
    let number: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
    let first = number.first()?;
    Some(number.len() * 8 - first.leading_zeros() as usize)
}

/// With an exponent of 1 everything is its own signature; an even one is none.
fn check_exponent(text: &str) -> Result<(), Unusable> {
    let bytes = decoded(text).ok_or(Unusable::Broken)?;
    let odd = bytes.last().is_some_and(|last| last % 2 == 1);
    let one = bytes.iter().rev().skip(1).all(|byte| *byte == 0) && bytes.last() == Some(&1);
    if odd && !one { Ok(()) } else { Err(Unusable::Broken) }
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
    /// For a caller with a token: no addresses.
    told: &'static str,
    /// The issuer answered, and has no keys: those that are held are no longer its.
    disowned: bool,
}

type Set = Arc<[Key]>;

/// What an issuer publishes.
struct Fetched {
    keys: Set,
    /// Keys that are not used because they are too short, by name.
    short: Vec<String>,
    url: Url,
}

type Fetch = Shared<BoxFuture<'static, Result<Set, Failure>>>;

/// See the module.
pub struct Keys {
    issuer: Arc<IssuerConfig>,
    http: HttpClient,
    refresh: Duration,
    refreshes: Counters<Worked>,
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
    /// Of which it was told that they are too short.
    told_short: Vec<String>,
}

#[derive(Deserialize)]
struct Jwks {
    #[serde(default)]
    keys: Vec<Value>,
}

impl Keys {
    pub fn new(
        issuer: IssuerConfig,
        http: HttpClient,
        refresh: Duration,
        refreshes: Counters<Worked>,
    ) -> Self {
        Self { issuer: Arc::new(issuer), http, refresh, refreshes, state: Arc::default() }
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

    /// The keys that a token may be signed with: those for its algorithm, and of these the ones of its `kid`.
    /// A token or a key without one may belong to any. There is at least one.
    pub async fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Result<Vec<Key>, Missing> {
        let fetch = {
            let mut state = self.lock();
            let now = Instant::now();
            let found = state.keys.as_deref().map(|keys| pick(keys, algorithm, id)).unwrap_or_default();
            if !found.is_empty() {
                let old = state.fetched.is_none_or(|at| now.duration_since(at) > MAX_AGE);
                if old && state.fetching.is_none() && !state.is_held(now) {
                    // It goes on by itself; no caller needs to wait for it.
                    drop(self.fetch(&mut state));
                }
                return Ok(found);
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
            Ok(keys) => match pick(&keys, algorithm, id) {
                found if found.is_empty() => Err(Missing::Unknown),
                found => Ok(found),
            },
            Err(Failure { told, .. }) => Err(Missing::Unavailable { why: told, retry_in: FIRST_HOLD }),
        }
    }

    /// Begins to fetch the keys, or joins the fetch that runs.
    fn fetch(&self, state: &mut State) -> Fetch {
        if let Some(fetching) = &state.fetching {
            return fetching.clone();
        }
        let (issuer, http, shared) =
            (Arc::clone(&self.issuer), self.http.clone(), Arc::clone(&self.state));
        let (discovered, refreshes) = (state.discovered.clone(), self.refreshes.clone());
        // A caller that waits may give up; the others, and those who come later, must not.
        let fetching = tokio::spawn(async move {
            let fetched = request(&issuer, &http, discovered).await;
            refreshes.of(Worked::of(fetched.is_ok())).inc();
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

fn pick(keys: &[Key], algorithm: Algorithm, id: Option<&str>) -> Vec<Key> {
    let suiting = || keys.iter().filter(|key| key.suits(algorithm));
    let of = |wanted: Option<&str>| -> Vec<Key> {
        suiting().filter(|key| key.id.as_deref() == wanted).take(MOST_TRIED).cloned().collect()
    };
    match id {
        None => suiting().take(MOST_TRIED).cloned().collect(),
        Some(id) => match of(Some(id)) {
            none if none.is_empty() => of(None),
            found => found,
        },
    }
}

/// The keys' ids, for the log.
fn names(keys: &[Key]) -> Vec<String> {
    let mut names: Vec<_> = keys.iter().map(|key| name(key.id.as_deref())).collect();
    names.sort_unstable();
    names
}

fn name(kid: Option<&str>) -> String {
    kid.unwrap_or("(no kid)").to_owned()
}

impl State {
    fn is_held(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|(until, _)| now < *until)
    }

    fn learn(
        &mut self,
        issuer: &IssuerConfig,
        fetched: Result<Fetched, Failure>,
    ) -> Result<Set, Failure> {
        self.fetching = None;
        match fetched {
            Ok(Fetched { keys, short, url }) => {
                if !short.is_empty() && self.told_short != short {
                    tracing::warn!(
                        issuer = issuer.issuer, keys = ?short,
                        "RSA keys of fewer than {LEAST_RSA_BITS} bits are not used, because what they sign can be \
                         forged (RFC 7518, section 3.3). Choose a longer key there"
                    );
                }
                self.told_short = short;
                let (had, has) = (self.keys.as_deref().map(names), names(&keys));
                if self.failures > 0 || had.is_none() {
                    tracing::info!(issuer = issuer.issuer, keys = keys.len(), "have the issuer's keys");
                } else if had.as_ref() != Some(&has) {
                    tracing::info!(issuer = issuer.issuer, before = ?had, now = ?has, "the issuer's keys have changed");
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
) -> Result<Fetched, Failure> {
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
        .map_err(|error| failed(format!("the keys at {url} are invalid: {error}")))?;
    let (mut usable, mut short) = (Vec::new(), Vec::new());
    for jwk in &keys.keys {
        match Key::read(jwk) {
            Ok(key) => usable.push(key),
            Err(Unusable::Short { bits }) => {
                short.push(format!("{} ({bits} bits)", name(jwk["kid"].as_str())))
            }
            Err(Unusable::Other | Unusable::Broken) => {}
        }
    }
    if usable.is_empty() {
        let told = if keys.keys.is_empty() { NO_KEY } else { NO_USABLE_KEY };
        return Err(Failure { why: format!("{told} (asked at {url})"), told, disowned: true });
    }
    Ok(Fetched { keys: usable.into(), short, url })
}

async fn read(http: &HttpClient, url: &Url, what: &str) -> Result<Vec<u8>, Failure> {
    let failed = |why: String| failed(format!("cannot read the issuer's {what} at {url}: {why}"));
    match http.document(url).await {
        Ok((status, body)) => match page(&body, url) {
            Some(page) => Err(failed(format!("it answers {status} with {page}"))),
            None if status.is_success() => Ok(body),
            None => Err(failed(format!("it answers {status}"))),
        },
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

    fn point(more: Value) -> Value {
        let mut jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "1", "x": X, "y": Y });
        jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwk
    }

    fn rsa(bytes: usize, exponent: &str) -> Value {
        let mut modulus = vec![0xc3; bytes];
        modulus[0] = 0x80;
        json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(modulus), "e": exponent })
    }

    #[test]
    fn an_rsa_key_below_2048_bits_is_not_used_and_zeros_before_it_do_not_lengthen_it() {
        for bytes in [64, 96, 128, 255] {
            let bits = bytes * 8;
            assert_eq!(Key::read(&rsa(bytes, "AQAB")).err(), Some(Unusable::Short { bits }));
        }
        let padded = [vec![0; 160], vec![0xc3; 96]].concat();
        let padded = json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(padded), "e": "AQAB" });
        assert_eq!(Key::read(&padded).err(), Some(Unusable::Short { bits: 768 }));
        assert!(Key::read(&rsa(256, "AQAB")).is_ok());
    }

    #[test]
    fn an_exponent_with_which_anything_verifies_or_nothing_does_is_none() {
        for exponent in ["AQ", "AAE", "Ag", "", "AA", "not base64!"] {
            assert_eq!(Key::read(&rsa(256, exponent)).err(), Some(Unusable::Broken), "{exponent}");
        }
        assert!(Key::read(&rsa(256, "Aw")).is_ok(), "3");
    }

    #[test]
    fn a_key_that_is_for_something_else_or_is_invalid_is_passed_over() {
        assert!(Key::read(&point(json!({}))).is_ok());
        for fine in [
            json!({ "use": "sig" }),
            json!({ "key_ops": ["verify"] }),
            json!({ "alg": "ES256" }),
            json!({ "kid": 7 }),
            json!({ "x5c": 7, "exp": "never" }),
        ] {
            assert!(Key::read(&point(fine.clone())).is_ok(), "{fine}");
        }
        for (odd, why) in [
            (json!({ "use": "enc" }), Unusable::Other),
            (json!({ "use": 7 }), Unusable::Other),
            (json!({ "key_ops": ["encrypt"] }), Unusable::Other),
            (json!({ "key_ops": "verify" }), Unusable::Other),
            (json!({ "alg": "ECDH-ES" }), Unusable::Other),
            (json!({ "alg": "ES384" }), Unusable::Other),
            (json!({ "alg": "HS256" }), Unusable::Other),
            (json!({ "crv": "secp256k1" }), Unusable::Other),
            (json!({ "kty": "oct", "k": "c2VjcmV0" }), Unusable::Other),
            (json!({ "x": "AAAA" }), Unusable::Broken),
            (json!({ "x": Y }), Unusable::Broken),
            (json!({ "y": 7 }), Unusable::Broken),
            (json!({ "crv": "P-384" }), Unusable::Broken),
            (json!({ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" }), Unusable::Broken),
        ] {
            assert_eq!(Key::read(&point(odd.clone())).err(), Some(why), "{odd}");
        }
        assert_eq!(Key::read(&json!("nonsense")).err(), Some(Unusable::Broken));
    }

    #[test]
    fn keys_are_chosen_by_algorithm_first_then_by_id() {
        let keys: Vec<Key> = [point(json!({})), point(json!({ "kid": null })), rsa(256, "AQAB")]
            .iter()
            .map(|jwk| Key::read(jwk).ok().unwrap())
            .collect();
        let ids = |algorithm, id| -> Vec<Option<String>> {
            pick(&keys, algorithm, id).into_iter().map(|key| key.id).collect()
        };
        let one = Some("1".to_owned());
        assert_eq!(ids(Algorithm::ES256, Some("1")).as_slice(), std::slice::from_ref(&one));
        assert_eq!(ids(Algorithm::ES256, None), [one, None]);
        assert_eq!(ids(Algorithm::ES256, Some("2")), [None], "a key without an id may be it");
        assert_eq!(ids(Algorithm::RS256, Some("1")), [None], "of its algorithm only");
        assert!(ids(Algorithm::EdDSA, None).is_empty());
    }
}
