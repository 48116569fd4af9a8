//! A simulated OIDC issuer, as Authentik 2025.12 was observed to be one: discovery, JWKS, the token
//! endpoint for client_credentials, and userinfo.
//!
//! Tokens are real: ES256, signed with a key that is made at the start. Claims follow the scopes that
//! were asked for, and the issuer follows the `Host` that was asked, as in Authentik. What the real one
//! refuses, this one refuses with the same words. One thing is ours: `GET /_sim/token/{account}` is a token
//! of the last provider, ready to be put into a header.

mod device;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rand::seq::SliceRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Map, Value, json};

use super::faults::{self, Faults, empty_405};
use super::server::Server;

/// An application with its OAuth2 provider.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Last part of the issuer.
    pub slug: String,
    pub client_id: String,
    /// Public clients have one too, and it works (observed). Stored empty, it lets every caller in (observed).
    pub client_secret: String,
    /// Whether it is a public client. It makes no difference to client_credentials (observed).
    pub public: bool,
    /// Only members of this group get tokens, as with a group bound to the application.
    pub only_group: Option<String>,
}

impl Provider {
    /// A public client, as a file server has one for its web interface.
    pub fn public(slug: &str, client_id: &str) -> Self {
        let client_secret = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        Self {
            slug: slug.into(),
            client_id: client_id.into(),
            client_secret,
            public: true,
            only_group: None,
        }
    }
}

/// An account that may ask for tokens with an app password; a person's works the same.
#[derive(Debug, Clone)]
pub struct Account {
    /// User name; becomes `preferred_username`.
    pub name: String,
    pub display_name: String,
    /// Service accounts are made without one (observed), and then the claim is the empty string.
    pub email: String,
    pub app_password: String,
    /// Names of its groups.
    pub groups: Vec<String>,
    pub active: bool,
    /// Claims that a scope mapping sets; `null` takes a claim away.
    pub claims: Map<String, Value>,
}

impl Account {
    /// An active service account with an e-mail address.
    pub fn new(name: &str, app_password: &str, groups: &[&str]) -> Self {
        Self {
            name: name.into(),
            display_name: format!("Service account {name}"),
            email: format!("{name}@example.test"),
            app_password: app_password.into(),
            groups: groups.iter().map(|&group| group.into()).collect(),
            active: true,
            claims: Map::new(),
        }
    }

    /// What a standard OAuth client sends as its client_secret to be this account (observed).
    pub fn client_secret(&self) -> String {
        base64(format!("{}:{}", self.name, self.app_password).as_bytes())
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    pub providers: Vec<Provider>,
    pub accounts: Vec<Account>,
    /// How long access tokens are good.
    pub validity: Duration,
}

impl Default for Options {
    /// The provider `ocis` with the public client `web`, no accounts, ten minutes.
    fn default() -> Self {
        Self {
            providers: vec![Provider::public("ocis", "web")],
            accounts: Vec::new(),
            validity: Duration::from_secs(600),
        }
    }
}

/// How to sign a token that is made by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// As the issuer signs. Only these tokens are known to userinfo.
    Rightly,
    /// With a key that is not in the JWKS, under the kid of one that is.
    WithAnotherKey,
    /// With a key that is not in the JWKS, under a kid that is not there either.
    WithUnknownKid,
    /// Not at all: `alg` is `none`.
    Not,
    /// With HS256 and the client's secret, without a kid: as a provider without a signing key does.
    WithClientSecret,
}

/// The simulator: its state survives a stop and restart of its [`Server`].
pub struct Simulator {
    pub server: Server,
    pub faults: Faults,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<Issuer>>,
    token_requests: Arc<AtomicU64>,
}

struct Issuer {
    providers: Vec<Provider>,
    accounts: BTreeMap<String, Account>,
    validity: Duration,
    /// Seconds by which the issuer's clock is ahead of ours.
    skew: i64,
    /// `None` is a provider without a signing key.
    key: Option<Key>,
    /// Tokens that userinfo answers for.
    tokens: BTreeMap<String, Issued>,
    devices: device::Devices,
}

/// A signing key. Its kid has the form of Authentik's, 32 hexadecimal digits.
struct Key {
    kid: String,
    private: EncodingKey,
    /// Of the public point, base64url as in the JWKS.
    x: String,
    y: String,
}

/// What a token was issued for.
#[derive(Clone)]
struct Issued {
    account: Option<String>,
    scopes: Vec<String>,
    expires: i64,
    /// Claims of a token whose account the issuer does not have.
    claims: Map<String, Value>,
}

/// In the order in which discovery lists them.
const SCOPES: [&str; 6] =
    ["openid", "email", "profile", "entitlements", "offline_access", "goauthentik.io/api"];
const ACR: &str = "goauthentik.io/providers/oauth2/default";
const INVALID_TOKEN: &str = "error=\"invalid_token\", error_description=\"The access token provided is expired, revoked, malformed, or invalid for other reasons\"";

impl Key {
    fn new() -> Option<Self> {
        let random = ring::rand::SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok()?;
        let private = EncodingKey::from_ec_der(document.as_ref());
        let public = Jwk::from_encoding_key(&private, Algorithm::ES256).ok()?;
        let AlgorithmParameters::EllipticCurve(point) = public.algorithm else { return None };
        Some(Self { kid: format!("{:032x}", rand::random::<u128>()), private, x: point.x, y: point.y })
    }
}

impl Simulator {
    /// Starts an issuer on loopback; port 0 takes a free one.
    pub async fn new(port: u16, options: Options) -> std::io::Result<Self> {
        let key = Key::new().ok_or_else(|| std::io::Error::other("no signing key could be made"))?;
        let accounts = options.accounts.into_iter().map(|account| (account.name.clone(), account));
        let issuer = Issuer {
            providers: options.providers,
            accounts: accounts.collect(),
            validity: options.validity,
            skew: 0,
            key: Some(key),
            tokens: BTreeMap::new(),
            devices: device::Devices::default(),
        };
        let shared = Shared { state: Arc::new(Mutex::new(issuer)), token_requests: Arc::default() };
        let faults = Faults::default();
        let server = Server::start(port, router(shared.clone(), &faults)).await?;
        Ok(Self { server, faults, shared })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The `iss` of a provider's tokens, byte for byte: it ends with a slash.
    pub fn issuer_url(&self, slug: &str) -> String {
        issuer_url(&self.url(), slug)
    }

    pub fn token_url(&self) -> String {
        format!("{}/application/o/token/", self.url())
    }

    /// Requests to the token endpoint so far, refused ones included.
    pub fn token_requests(&self) -> u64 {
        self.shared.token_requests.load(Ordering::Relaxed)
    }

    /// Adds an account, or replaces the one of that name. Its tokens stay.
    pub fn add_account(&self, account: Account) {
        self.lock().accounts.insert(account.name.clone(), account);
    }

    /// Removes an account and its tokens; `false` when there was none.
    pub fn remove_account(&self, name: &str) -> bool {
        let mut issuer = self.lock();
        issuer.forget_tokens(name);
        issuer.accounts.remove(name).is_some()
    }

    /// Activates or deactivates. Deactivating ends the account's tokens, and activating it again does not
    /// bring them back (observed).
    pub fn set_active(&self, name: &str, active: bool) -> bool {
        if !active {
            self.lock().forget_tokens(name);
        }
        self.change(name, |account| account.active = active)
    }

    pub fn set_groups(&self, name: &str, groups: &[&str]) -> bool {
        let groups = groups.iter().map(|&group| group.into()).collect();
        self.change(name, |account| account.groups = groups)
    }

    pub fn set_email(&self, name: &str, email: &str) -> bool {
        self.change(name, |account| account.email = email.into())
    }

    /// Replaces the app password; tokens got with the old one stay good (observed).
    pub fn set_app_password(&self, name: &str, app_password: &str) -> bool {
        self.change(name, |account| account.app_password = app_password.into())
    }

    /// Claims laid over the account's own in tokens and at userinfo; `null` takes one away.
    pub fn set_claims(&self, name: &str, claims: Value) -> bool {
        let claims = claims.as_object().cloned().unwrap_or_default();
        self.change(name, |account| account.claims = claims)
    }

    /// Adds a provider, or replaces the one with that slug.
    pub fn add_provider(&self, provider: Provider) {
        let mut issuer = self.lock();
        issuer.providers.retain(|other| other.slug != provider.slug);
        issuer.providers.push(provider);
    }

    pub fn remove_provider(&self, slug: &str) {
        self.lock().providers.retain(|provider| provider.slug != slug);
    }

    /// How long tokens issued from now on are good.
    pub fn set_validity(&self, validity: Duration) {
        self.lock().validity = validity;
    }

    /// What a person decides about the device of this code: which account it gets a token of, or none.
    /// `false` when there is no such code.
    pub fn decide(&self, user_code: &str, account: Option<&str>) -> bool {
        self.lock().devices.decide(user_code, account)
    }

    /// Ends the logins of all devices: no refresh token is good any more.
    pub fn end_logins(&self) {
        self.lock().devices.end();
    }

    /// What devices are asked to leave between two questions, in seconds.
    pub fn set_interval(&self, seconds: u64) {
        self.lock().devices.set_interval(seconds);
    }

    /// Seconds by which the issuer's clock is ahead; negative when it is behind.
    pub fn set_skew(&self, seconds: i64) {
        self.lock().skew = seconds;
    }

    /// Signs with a new key from now on; the old one leaves the JWKS at once (observed).
    pub fn rotate_key(&self) {
        self.lock().key = Key::new();
    }

    /// Takes the signing key away: tokens become HS256 and the JWKS `{}` (observed).
    /// [`rotate_key`](Self::rotate_key) gives a new one.
    pub fn remove_key(&self) {
        self.lock().key = None;
    }

    /// Ends a token as far as the issuer is asked about it.
    pub fn revoke(&self, token: &str) -> bool {
        self.lock().tokens.remove(token).is_some()
    }

    /// A token as the endpoint would issue it to an account.
    pub fn token(&self, slug: &str, account: &str, scope: &str) -> Option<String> {
        let base = self.url();
        let mut issuer = self.lock();
        let provider = issuer.providers.iter().find(|provider| provider.slug == slug)?.clone();
        let account = issuer.accounts.get(account)?.clone();
        let answer = issuer.grant(&provider, &account, scope, &base)?;
        Some(answer["access_token"].as_str()?.to_owned())
    }

    /// A token made by hand. `claims` are laid over those of a token of the first provider, with all
    /// scopes, for the account named by `preferred_username` where there is one; `null` takes a claim
    /// away. So can wrong ones be made: another `iss` or `aud`, expired, `nbf` in the future.
    pub fn issue(&self, claims: Value, signed: Signed) -> Option<String> {
        let base = self.url();
        let mut issuer = self.lock();
        let provider = issuer.providers.first()?.clone();
        let scopes: Vec<String> =
            ["openid", "profile", "email"].into_iter().map(ToOwned::to_owned).collect();
        let given = claims.as_object().cloned().unwrap_or_default();
        let name = given.get("preferred_username").and_then(Value::as_str);
        let account = name.and_then(|name| issuer.accounts.get(name)).cloned();
        let sub = subject(name.unwrap_or("(none)"));
        let mut all = issuer.protocol_claims(&provider, &base, &sub);
        if let Some(account) = &account {
            all.extend(account_claims(account, &scopes));
        }
        all.extend(access_claims(&provider, &scopes));
        overlay(&mut all, &given);

        let another = Key::new()?;
        let token = match signed {
            Signed::Rightly => issuer.sign(&all, &provider)?,
            Signed::WithUnknownKid => sign_es256(&all, &another.private, &another.kid)?,
            Signed::WithAnotherKey => sign_es256(&all, &another.private, &issuer.key.as_ref()?.kid)?,
            Signed::WithClientSecret => sign_hs256(&all, &provider.client_secret)?,
            Signed::Not => {
                let signed = sign_es256(&all, &another.private, &another.kid)?;
                let payload = signed.split('.').nth(1)?;
                // {"alg":"none","typ":"JWT"}
                format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.")
            }
        };
        if signed == Signed::Rightly {
            let issued = Issued {
                account: account.map(|account| account.name),
                scopes,
                expires: all.get("exp").and_then(Value::as_i64).unwrap_or(i64::MAX),
                claims: all,
            };
            issuer.tokens.insert(token.clone(), issued);
        }
        Some(token)
    }

    fn change(&self, name: &str, how: impl FnOnce(&mut Account)) -> bool {
        self.lock().accounts.get_mut(name).map(how).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Issuer> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Issuer> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer {
    /// The issuer's clock, in seconds.
    fn now(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_add(self.skew)
    }

    fn forget_tokens(&mut self, account: &str) {
        self.tokens.retain(|_, issued| issued.account.as_deref() != Some(account));
    }

    /// The answer of the token endpoint, for an account that may have one.
    fn grant(
        &mut self,
        provider: &Provider,
        account: &Account,
        scope: &str,
        base: &str,
    ) -> Option<Value> {
        let asked: BTreeSet<&str> = scope.split_whitespace().collect();
        // Unknown scopes are dropped silently, and the order is none in particular (observed).
        let mut scopes: Vec<String> =
            SCOPES.into_iter().filter(|scope| asked.contains(scope)).map(ToOwned::to_owned).collect();
        scopes.shuffle(&mut rand::rng());

        let mut claims = self.protocol_claims(provider, base, &subject(&account.name));
        claims.extend(account_claims(account, &scopes));
        // ID tokens look like access tokens, but for these few claims (observed).
        let mut id_claims = claims.clone();
        claims.extend(access_claims(provider, &scopes));
        overlay(&mut id_claims, &account.claims);
        overlay(&mut claims, &account.claims);

        let token = self.sign(&claims, provider)?;
        let id_token = self.sign(&id_claims, provider)?;
        let expires = claims.get("exp").and_then(Value::as_i64).unwrap_or(i64::MAX);
        let now = self.now();
        // No request is about tokens that are long gone.
        self.tokens.retain(|_, issued| issued.expires.saturating_add(60) > now);
        let scope = scopes.join(" ");
        let issued = Issued { account: Some(account.name.clone()), scopes, expires, claims };
        self.tokens.insert(token.clone(), issued);
        Some(json!({
            "access_token": token,
            "token_type": "Bearer",
            "scope": scope,
            "expires_in": self.validity.as_secs(),
            "id_token": id_token,
        }))
    }

    fn protocol_claims(&self, provider: &Provider, base: &str, sub: &str) -> Map<String, Value> {
        let now = self.now();
        let validity = i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX);
        let claims = [
            ("iss", json!(issuer_url(base, &provider.slug))),
            ("sub", json!(sub)),
            ("aud", json!(provider.client_id)),
            ("exp", json!(now.saturating_add(validity))),
            ("iat", json!(now)),
            ("auth_time", json!(now)),
            ("acr", json!(ACR)),
        ];
        claims.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn sign(&self, claims: &Map<String, Value>, provider: &Provider) -> Option<String> {
        match &self.key {
            Some(key) => sign_es256(claims, &key.private, &key.kid),
            None => sign_hs256(claims, &provider.client_secret),
        }
    }
}

fn issuer_url(base: &str, slug: &str) -> String {
    format!("{base}/application/o/{slug}/")
}

/// A hash of the user, 64 hexadecimal digits, the same at every provider (observed).
fn subject(user: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, user.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn account_claims(account: &Account, scopes: &[String]) -> Map<String, Value> {
    let has = |scope: &str| scopes.iter().any(|other| other == scope);
    let mut claims = Map::new();
    if has("email") {
        claims.insert("email".into(), json!(account.email));
        claims.insert("email_verified".into(), json!(false));
    }
    if has("profile") {
        claims.insert("name".into(), json!(account.display_name));
        claims.insert("given_name".into(), json!(account.display_name));
        claims.insert("preferred_username".into(), json!(account.name));
        claims.insert("nickname".into(), json!(account.name));
        claims.insert("groups".into(), json!(account.groups));
    }
    if has("entitlements") {
        claims.insert("entitlements".into(), json!([]));
        claims.insert("roles".into(), json!([]));
    }
    claims
}

/// Claims that only access tokens have.
fn access_claims(provider: &Provider, scopes: &[String]) -> Map<String, Value> {
    let uid: u128 = rand::random();
    let claims = [
        ("azp", json!(provider.client_id)),
        ("uid", json!(format!("{uid:040x}"))),
        ("scope", json!(scopes.join(" "))),
    ];
    claims.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn overlay(claims: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (name, value) in over {
        if value.is_null() {
            claims.remove(name);
        } else {
            claims.insert(name.clone(), value.clone());
        }
    }
}

fn sign_es256(claims: &Map<String, Value>, key: &EncodingKey, kid: &str) -> Option<String> {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(kid.to_owned());
    jsonwebtoken::encode(&header, claims, key).ok()
}

fn sign_hs256(claims: &Map<String, Value>, secret: &str) -> Option<String> {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).ok()
}

fn router(shared: Shared, faults: &Faults) -> Router {
    Router::new()
        .route("/application/o/token/", any(token))
        .merge(device::routes())
        .route("/application/o/userinfo/", any(userinfo))
        // No slash at the end of this one, and with one it is not found (observed).
        .route("/application/o/{slug}/.well-known/openid-configuration", get(discovery))
        .route("/application/o/{slug}/jwks/", get(jwks))
        .fallback(unknown)
        .layer(middleware::from_fn(request_id))
        .layer(middleware::from_fn_with_state(faults.clone(), faults::torment))
        .with_state(shared.clone())
        .merge(faults.router())
        .merge(Router::new().route("/_sim/token/{account}", get(ready_token)).with_state(shared))
}

async fn ready_token(
    State(shared): State<Shared>,
    Path(account): Path<String>,
    headers: HeaderMap,
) -> Response {
    let mut issuer = shared.lock();
    let (provider, account) = (issuer.providers.last().cloned(), issuer.accounts.get(&account).cloned());
    let granted = provider.zip(account).and_then(|(provider, account)| {
        let granted = issuer.grant(&provider, &account, "openid profile email", &base_url(&headers))?;
        Some(granted["access_token"].as_str()?.to_owned())
    });
    granted.map_or_else(not_found, IntoResponse::into_response)
}

async fn request_id(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if !response.headers().contains_key("x-authentik-id")
        && let Ok(id) = HeaderValue::try_from(format!("{:032x}", rand::random::<u128>()))
    {
        response.headers_mut().insert("x-authentik-id", id);
    }
    response
}

/// A POST to a path below the issuer's that it does not have is forbidden, in HTML, and one that lacks only
/// the final slash gets an empty 405 (observed).
async fn unknown(method: Method, uri: Uri) -> Response {
    if method == Method::GET || method == Method::HEAD {
        not_found()
    } else if uri.path().starts_with("/application/o/") && uri.path() != "/application/o/token" {
        (StatusCode::FORBIDDEN, Html("<!DOCTYPE html>\n<html lang=\"en\">\n</html>\n")).into_response()
    } else {
        empty_405()
    }
}

fn not_found() -> Response {
    let page = "\n\n<!DOCTYPE html>\n<html\n    lang=\"en\"\n>\n</html>\n";
    (StatusCode::NOT_FOUND, Html(page)).into_response()
}

/// Scheme and host come from the request, so a token fetched under another name of the same server has
/// another issuer (observed).
fn base_url(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = if text("x-forwarded-proto") == Some("https") { "https" } else { "http" };
    format!("{scheme}://{}", text("host").unwrap_or("localhost"))
}

async fn discovery(
    State(shared): State<Shared>,
    Path(slug): Path<String>,
    headers: HeaderMap,
) -> Response {
    let issuer = shared.lock();
    if !issuer.providers.iter().any(|provider| provider.slug == slug) {
        return not_found();
    }
    let base = base_url(&headers);
    let endpoint = |name: &str| format!("{base}/application/o/{name}");
    let alg = if issuer.key.is_some() { "ES256" } else { "HS256" };
    Json(json!({
        "issuer": issuer_url(&base, &slug),
        "authorization_endpoint": endpoint("authorize/"),
        "token_endpoint": endpoint("token/"),
        "userinfo_endpoint": endpoint("userinfo/"),
        "end_session_endpoint": endpoint(&format!("{slug}/end-session/")),
        "introspection_endpoint": endpoint("introspect/"),
        "revocation_endpoint": endpoint("revoke/"),
        "device_authorization_endpoint": endpoint("device/"),
        "jwks_uri": endpoint(&format!("{slug}/jwks/")),
        "response_types_supported": ["code", "id_token", "id_token token", "code token",
            "code id_token", "code id_token token"],
        "response_modes_supported": ["query", "fragment", "form_post"],
        "grant_types_supported": ["authorization_code", "refresh_token", "implicit",
            "client_credentials", "password", "urn:ietf:params:oauth:grant-type:device_code"],
        "id_token_signing_alg_values_supported": [alg],
        "subject_types_supported": ["public"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "acr_values_supported": [ACR],
        "scopes_supported": SCOPES,
        "request_parameter_supported": false,
        "claims_supported": ["sub", "iss", "aud", "exp", "iat", "auth_time", "acr", "amr", "nonce",
            "email", "email_verified", "entitlements", "roles", "name", "given_name",
            "preferred_username", "nickname", "groups"],
        "claims_parameter_supported": false,
        "code_challenge_methods_supported": ["plain", "S256"],
    }))
    .into_response()
}

async fn jwks(State(shared): State<Shared>, Path(slug): Path<String>) -> Response {
    let issuer = shared.lock();
    if !issuer.providers.iter().any(|provider| provider.slug == slug) {
        return not_found();
    }
    let keys = match &issuer.key {
        Some(key) => json!({ "keys": [{
            "alg": "ES256", "kid": key.kid, "kty": "EC", "use": "sig", "crv": "P-256",
            "x": key.x, "y": key.y,
        }] }),
        // Not even an empty list (observed).
        None => json!({}),
    };
    ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], Json(keys)).into_response()
}

/// Every refusal of the token endpoint is a 400, never a 401 (observed).
fn refuse(error: &str) -> Response {
    let description = match error {
        "invalid_client" => {
            "Client authentication failed (e.g., unknown client, no client authentication included, or unsupported authentication method)"
        }
        "invalid_grant" => {
            "The provided authorization grant or refresh token is invalid, expired, revoked, does not match the redirection URI used in the authorization request, or was issued to another client"
        }
        _ => "The authorization grant type is not supported by the authorization server",
    };
    let id = format!("{:032x}", rand::random::<u128>());
    let body = json!({ "error": error, "error_description": description, "request_id": id });
    let headers = [("cache-control", "no-store"), ("pragma", "no-cache"), ("x-authentik-id", &id)];
    (StatusCode::BAD_REQUEST, headers, Json(body)).into_response()
}

async fn token(
    State(shared): State<Shared>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    shared.token_requests.fetch_add(1, Ordering::Relaxed);
    if method != Method::POST {
        let headers =
            [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::ALLOW, "POST, OPTIONS")];
        return (StatusCode::METHOD_NOT_ALLOWED, headers).into_response();
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_form = kind.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
    let form: BTreeMap<String, String> = if is_form {
        url::form_urlencoded::parse(&body).into_owned().collect()
    } else {
        // A JSON body is as good as none: no client is found in it (observed).
        BTreeMap::new()
    };
    let field = |name: &str| form.get(name).map(String::as_str);
    let basic = basic_credentials(&headers);
    let (client_id, client_secret) = match &basic {
        Some((id, secret)) => (Some(id.as_str()), Some(secret.as_str())),
        None => (field("client_id"), field("client_secret")),
    };

    let mut issuer = shared.lock();
    let provider =
        issuer.providers.iter().find(|provider| Some(provider.client_id.as_str()) == client_id);
    let Some(provider) = provider.cloned() else { return refuse("invalid_client") };
    if let Some(answer) = device::grant(&mut issuer, &provider, &form, &base_url(&headers)) {
        return answer;
    }
    // `password` is the same as client_credentials (observed).
    if !matches!(field("grant_type"), Some("client_credentials" | "password")) {
        return refuse("unsupported_grant_type");
    }
    let secret = client_secret.unwrap_or_default();
    let by_password = |name: &str, password: &str| {
        let account = issuer.accounts.get(name)?;
        (account.active && account.app_password == password).then(|| account.clone())
    };
    let account = match (field("username"), field("password")) {
        // No client secret is checked here (observed).
        (Some(name), Some(password)) => by_password(name, password),
        _ if secret == provider.client_secret => Some(issuer.autogenerated(&provider)),
        _ => unbase64(secret)
            .and_then(|text| String::from_utf8(text).ok())
            .and_then(|text| text.split_once(':').and_then(|(name, pw)| by_password(name, pw))),
    };
    let allowed = |account: &Account| {
        provider.only_group.as_ref().is_none_or(|group| account.groups.contains(group))
    };
    let Some(account) = account.filter(allowed) else { return refuse("invalid_grant") };
    issuer.accounts.entry(account.name.clone()).or_insert_with(|| account.clone());
    let base = base_url(&headers);
    let scope = field("scope").unwrap_or_default();
    match issuer.grant(&provider, &account, scope, &base) {
        Some(answer) => {
            let headers = [("cache-control", "no-store"), ("pragma", "no-cache")];
            (headers, Json(answer)).into_response()
        }
        None => empty_405(),
    }
}

impl Issuer {
    /// The account that a client secret stands for: made at its first use, without an e-mail address, and
    /// not stopped by deactivating it (observed).
    fn autogenerated(&self, provider: &Provider) -> Account {
        let name = format!("ak-{}-client_credentials", provider.slug);
        let display_name =
            format!("Autogenerated user from application {} (client credentials)", provider.slug);
        match self.accounts.get(&name) {
            // E-mail and groups survive, the name is overwritten (observed).
            Some(account) => Account { display_name, ..account.clone() },
            None => Account {
                email: String::new(),
                display_name,
                // It cannot be guessed, so only the client secret gets in.
                ..Account::new(&name, &format!("{:032x}", rand::random::<u128>()), &[])
            },
        }
    }
}

async fn userinfo(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = text.and_then(|text| text.split_once(' ')).map(|(_, token)| token);
    let issuer = shared.lock();
    let now = issuer.now();
    let issued = token.and_then(|token| issuer.tokens.get(token));
    let Some(issued) = issued.filter(|issued| now < issued.expires) else {
        let headers = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::WWW_AUTHENTICATE, INVALID_TOKEN),
        ];
        return (StatusCode::UNAUTHORIZED, headers).into_response();
    };
    if !issued.scopes.iter().any(|scope| scope == "openid") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let account = issued.account.as_ref().and_then(|name| issuer.accounts.get(name));
    let mut claims = match account {
        // As the account is now, not as it was when the token was issued (observed).
        Some(account) => {
            let mut claims = account_claims(account, &issued.scopes);
            overlay(&mut claims, &account.claims);
            claims
        }
        None => {
            let mut claims = issued.claims.clone();
            for protocol in
                ["iss", "aud", "exp", "iat", "nbf", "auth_time", "acr", "azp", "uid", "scope"]
            {
                claims.remove(protocol);
            }
            claims
        }
    };
    if let Some(sub) = issued.claims.get("sub") {
        claims.insert("sub".into(), sub.clone());
    }
    let headers = [("cache-control", "no-store"), ("pragma", "no-cache")];
    (headers, Json(Value::Object(claims))).into_response()
}

/// Name and secret of HTTP Basic, which are not URL-decoded: a client that encodes them, as RFC 6749 says,
/// is refused (observed).
fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(unbase64(encoded)?).ok()?;
    let (name, secret) = decoded.split_once(':')?;
    Some((name.to_owned(), secret.to_owned()))
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// With or without padding.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()
}
