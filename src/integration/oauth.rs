//! Access tokens by client credentials (RFC 6749, section 4.4), for an upstream whose issuer is another
//! server.
//!
//! # Guarantees
//!
//! * One token for everybody, renewed at 80 % of its life, by one request however many wait; while it is
//!   renewed the old one goes on being used, so that an issuer that is away does no harm before it must.
//! * A token that the upstream refuses (401) is replaced once. If its successor is refused as well, that
//!   one is *kept*: what helps then (a clock that lags, keys that are being fetched, an issuer that is
//!   down) is time, and each new token would start the wait anew (observed with oCIS and Authentik).
//! * A token whose claims the upstream does not seem to take is thrown away, and the next one fetched only
//!   after a pause: the upstream remembers bad claims as long as the token lives (observed). One that was
//!   taken before is kept.
//! * An answer that no token endpoint gives means that the address is wrong, and says nothing of us.
//! * No token, secret or password is ever in a message or a log.
//!
//! The `oauth2` crate is not used: this is one form sent by the shared client, and which failures are
//! the configuration's and which will pass is the point of it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use super::Error;
use super::upstream::{Answer, Call, Purpose, To, UpstreamClient};
use crate::http::{TokenAnswer, no_token_endpoint};
use crate::metrics::Operation;
use crate::secret::Secret;
use crate::tenant::Reason;

/// Where tokens come from.
#[derive(Debug, Clone)]
pub enum TokenEndpoint {
    Url(Url),
    /// The endpoint is looked up in the issuer's discovery document.
    DiscoveredFrom(Url),
}

/// What is sent there.
#[derive(Debug, Clone)]
pub struct ClientCredentials {
    pub endpoint: TokenEndpoint,
    pub client_id: String,
    pub client_secret: Option<Secret>,
    /// A service account with an app password, as Authentik has them.
    pub account: Option<(String, Secret)>,
    pub scope: String,
}

/// An access token. Debug output does not show it.
#[derive(Clone)]
pub struct Token {
    secret: Secret,
    /// Tells tokens apart.
    number: u64,
    renew_at: Instant,
    expires_at: Instant,
}

impl Token {
    pub fn secret(&self) -> SecretString {
        self.secret.current()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.number)
    }
}

type Fetch = Shared<BoxFuture<'static, Result<Token, Error>>>;

/// See the module.
pub struct TokenSource {
    /// The issuer's side; its address is that of the endpoint.
    issuer: Arc<UpstreamClient>,
    credentials: Arc<ClientCredentials>,
    state: Arc<Mutex<State>>,
    count: Arc<OnceLock<Count>>,
}

/// Told of each request for a token whether there was one.
type Count = Box<dyn Fn(bool) + Send + Sync>;

#[derive(Default)]
struct State {
    token: Option<Token>,
    fetching: Option<Fetch>,
    /// The token was fetched because its predecessor was refused, and has not been accepted since.
    replacement: bool,
    /// The latest token that the upstream took.
    accepted: Option<u64>,
    /// Until then nothing is fetched, for this reason.
    held: Option<(Instant, Error)>,
    /// Fetches that failed in a row.
    failures: u32,
    tokens: u64,
    discovered: Option<Url>,
}

/// Part of a token's life after which it is renewed.
const RENEW_AFTER: f64 = 0.8;
/// For an issuer that does not say how long its tokens live.
const USUAL_LIFE: Duration = Duration::from_secs(300);
/// Between fetches that fail; doubled after each.
const FIRST_HOLD: Duration = Duration::from_secs(1);
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// After a token was thrown away for its claims.
const CLAIMS_HOLD: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    token_endpoint: Url,
}

impl TokenSource {
    /// `issuer` sends the requests; it needs no credentials of its own.
    pub fn new(issuer: UpstreamClient, credentials: ClientCredentials) -> Self {
        let (issuer, credentials) = (Arc::new(issuer), Arc::new(credentials));
        Self { issuer, credentials, state: Arc::default(), count: Arc::default() }
    }

    /// Counts each request for a token from now on.
    pub(super) fn count_with(&self, count: impl Fn(bool) + Send + Sync + 'static) {
        // A source belongs to one upstream.
        let _ = self.count.set(Box::new(count));
    }

    /// The token to use now.
    pub async fn current(&self) -> Result<Token, Error> {
        let fetch = {
            let mut state = self.lock();
            let now = Instant::now();
            match state.token.clone() {
                Some(token) if now < token.renew_at => return Ok(token),
                Some(token) if now < token.expires_at => {
                    if state.fetching.is_none() && !state.is_held(now) {
                        // It goes on by itself; no caller needs to wait for it.
                        tokio::spawn(self.fetch(&mut state));
                    }
                    return Ok(token);
                }
                _ => self.fetch_unless_held(&mut state)?,
            }
        };
        fetch.await
    }

    /// After a 401: another token to try with, or `None` when `refused` is to be kept.
    pub async fn after_refusal(&self, refused: &Token) -> Result<Option<Token>, Error> {
        let fetch = {
            let mut state = self.lock();
            match &state.token {
                Some(token) if token.number != refused.number => return Ok(Some(token.clone())),
                Some(_) if state.replacement => return Ok(None),
                _ => {}
            }
            let fetch = self.fetch_unless_held(&mut state)?;
            state.replacement = true;
            fetch
        };
        let fetched = fetch.await;
        if fetched.is_err() {
            self.lock().replacement = false;
        }
        // Why there is no other one says more than the 401.
        fetched.map(Some)
    }

    /// The upstream took the token.
    pub fn accepted(&self, token: &Token) {
        let mut state = self.lock();
        state.accepted = Some(token.number);
        if state.token.as_ref().is_some_and(|current| current.number == token.number) {
            state.replacement = false;
        }
    }

    /// The upstream gave an error without a word: unless it took the token before, it may be the token's
    /// claims. Returns what that means.
    pub fn discard(&self, token: &Token) -> Option<Error> {
        if self.lock().accepted == Some(token.number) {
            return None;
        }
        let message = format!(
            "{}: 500 without a word, twice: the file server is starting, or a service inside it is away. If \
             this lasts, the token was accepted but not what it says of us: does the account {:?} have an \
             e-mail address, a user name without blanks or a leading digit, and a group that maps to a \
             role with the right to manage spaces; does the scope {:?} bring these claims?",
            self.issuer.step,
            self.account(),
            self.credentials.scope,
        );
        let error = Error::transient(Reason::ClaimsRejected, message);
        let mut state = self.lock();
        if state.token.as_ref().is_some_and(|current| current.number == token.number) {
            state.token = None;
            state.held = Some((Instant::now() + CLAIMS_HOLD, error.clone()));
        }
        Some(error)
    }

    /// Everything that makes our credentials what they are.
    pub(super) fn each_part(&self, mut part: impl FnMut(&str)) {
        let ClientCredentials { client_id, client_secret, account, scope, .. } = &*self.credentials;
        part(client_id);
        part(scope);
        part(
            client_secret.as_ref().map(Secret::current).as_ref().map_or("", ExposeSecret::expose_secret),
        );
        if let Some((user, password)) = account {
            part(user);
            part(password.current().expose_secret());
        }
    }

    pub fn scope(&self) -> &str {
        &self.credentials.scope
    }

    /// What tokens are asked for with.
    pub fn secrets(&self) -> Vec<Secret> {
        self.credentials.secrets()
    }

    /// They are others than before. A token that was got with the old ones is used until the next one is
    /// there, which is asked for at once: if it is refused, that shows while there is time.
    pub fn credentials_changed(&self) {
        let mut state = self.lock();
        (state.held, state.failures, state.replacement) = (None, 0, false);
        // A run that waits for what was asked for with the old ones goes on waiting; none joins.
        state.fetching = None;
        if let Some(token) = &mut state.token {
            token.renew_at = Instant::now();
        }
    }

    /// Who we are, for messages.
    pub fn account(&self) -> &str {
        let account = self.credentials.account.as_ref();
        account.map_or(&self.credentials.client_id, |(user, _)| user)
    }

    /// `text` without our secrets.
    pub fn redact(&self, text: &str) -> String {
        let mut text = self.credentials.redact(text);
        if let Some(token) = &self.lock().token {
            text = token.secret.redact(&text);
        }
        text
    }

    fn fetch_unless_held(&self, state: &mut State) -> Result<Fetch, Error> {
        match (&state.fetching, &state.held) {
            (None, Some((until, error))) if Instant::now() < *until => Err(error.clone()),
            _ => Ok(self.fetch(state)),
        }
    }

    /// Joins the fetch that is under way, or begins one.
    fn fetch(&self, state: &mut State) -> Fetch {
        if let Some(fetching) = &state.fetching {
            return fetching.clone();
        }
        let (issuer, credentials, shared) =
            (Arc::clone(&self.issuer), Arc::clone(&self.credentials), Arc::clone(&self.state));
        let (discovered, count) = (state.discovered.clone(), Arc::clone(&self.count));
        let fetch = async move {
            let version = credentials.version();
            let fetched = request(&issuer, &credentials, discovered).await;
            if let Some(count) = count.get() {
                count(fetched.is_ok());
            }
            let mut state = lock(&shared);
            match fetched {
                // It says nothing about those that are there now.
                Err(error) if credentials.version() != version => Err(error),
                fetched => state.learn(fetched),
            }
        };
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

/// A token, when it was asked for, and the endpoint that gave it.
struct Fetched {
    token: SecretString,
    life: Option<Duration>,
    asked: Instant,
    endpoint: Url,
}

impl State {
    fn is_held(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|(until, _)| now < *until)
    }

    fn learn(&mut self, fetched: Result<Fetched, Error>) -> Result<Token, Error> {
        self.fetching = None;
        match fetched {
            Ok(Fetched { token, life, asked, endpoint }) => {
                self.failures = 0;
                self.held = None;
                self.discovered = Some(endpoint);
                self.tokens += 1;
                let life = life.unwrap_or(USUAL_LIFE);
                let token = Token {
                    secret: token.into(),
                    number: self.tokens,
                    renew_at: asked + life.mul_f64(RENEW_AFTER),
                    expires_at: asked + life,
                };
                self.token = Some(token.clone());
                Ok(token)
            }
            Err(error) => {
                let hold = FIRST_HOLD * 2_u32.saturating_pow(self.failures.min(6));
                self.failures = self.failures.saturating_add(1);
                self.held = Some((Instant::now() + hold.min(LONGEST_HOLD), error.clone()));
                Err(error)
            }
        }
    }
}

/// Asks for a token.
async fn request(
    issuer: &UpstreamClient,
    credentials: &ClientCredentials,
    discovered: Option<Url>,
) -> Result<Fetched, Error> {
    let endpoint = match (&credentials.endpoint, discovered) {
        (TokenEndpoint::Url(url), _) => url.clone(),
        (TokenEndpoint::DiscoveredFrom(_), Some(url)) => url,
        (TokenEndpoint::DiscoveredFrom(url), None) => discover(issuer, url).await?,
    };
    let mut form = vec![
        ("grant_type", "client_credentials"),
        ("client_id", &credentials.client_id),
        ("scope", &credentials.scope),
    ];
    // In the body: of a header's secret Authentik does not decode what RFC 6749 says to encode (observed).
    let client_secret = credentials.client_secret.as_ref().map(Secret::current);
    if let Some(secret) = &client_secret {
        form.push(("client_secret", secret.expose_secret()));
    }
    let account = credentials.account.as_ref().map(|(user, password)| (user, password.current()));
    if let Some((user, password)) = &account {
        form.extend([("username", user.as_str()), ("password", password.expose_secret())]);
    }
    let mut call = Call::new(Operation::GetToken, Method::POST, &[]).form(&form);
    call.to = To::Url(&endpoint);
    let asked = Instant::now();
    // A token more than needed does no harm, so it may be asked for again.
    let answer = issuer.ask(&call, Purpose::Read).await;
    let answer = answer.map_err(|error| error.reworded(|words| credentials.redact(words)))?;
    let refusal = || credentials.redact(&issuer.refusal(&call, &answer));
    match TokenAnswer::read(answer.status, &answer.body, &endpoint) {
        TokenAnswer::Granted { token, life } => Ok(Fetched { token, life, asked, endpoint }),
        TokenAnswer::Refused { .. } => {
            let message = format!(
                "{}. The issuer refuses OCIS_OIDC_CLIENT_ID with OCIS_OIDC_CLIENT_SECRET or \
                 OCIS_OIDC_USERNAME and _PASSWORD (wrong or replaced, the account deactivated, or not \
                 allowed by the application's policies)",
                refusal(),
            );
            Err(Error::misconfigured(Reason::CredentialsRejected, message))
        }
        TokenAnswer::WrongAddress => {
            let message = format!("{}. {}", refusal(), no_token_endpoint(&endpoint));
            Err(Error::misconfigured(Reason::WrongAddress, message))
        }
        TokenAnswer::Failed => {
            let message = format!("{} (in Authentik: an error inside the server)", refusal());
            Err(Error::transient(Reason::UpstreamError, message))
        }
        TokenAnswer::Odd => {
            // Not its body, which may hold a token all the same.
            let message = format!("{}: the answer holds no access_token", issuer.what(&call));
            Err(Error::transient(Reason::UnexpectedAnswer, message))
        }
    }
}

/// Looks the token endpoint up.
async fn discover(issuer: &UpstreamClient, url: &Url) -> Result<Url, Error> {
    let mut document = url.clone();
    let path = format!("{}/.well-known/openid-configuration", url.path().trim_end_matches('/'));
    document.set_path(&path);
    let mut call = Call::get(Operation::DiscoverIssuer, &[]);
    call.to = To::Url(&document);
    let answer: Answer = issuer.read(&call).await?;
    let discovery = answer.json::<Discovery>().filter(|_| answer.status == StatusCode::OK);
    let Some(discovery) = discovery else {
        let message = format!(
            "{}. There is no discovery document at {document}: is OCIS_OIDC_ISSUER the issuer's address?",
            issuer.refusal(&call, &answer),
        );
        return Err(Error::misconfigured(Reason::WrongAddress, message));
    };
    if discovery.issuer != url.as_str() {
        // Its tokens will say so, and the server that compares will refuse them.
        tracing::warn!(
            configured = %url, says = %discovery.issuer,
            "the issuer calls itself otherwise than OCIS_OIDC_ISSUER; file servers compare letter by letter"
        );
    }
    Ok(discovery.token_endpoint)
}

impl ClientCredentials {
    fn redact(&self, text: &str) -> String {
        self.secrets().iter().fold(text.to_owned(), |text, secret| secret.redact(&text))
    }

    fn secrets(&self) -> Vec<Secret> {
        let password = self.account.as_ref().map(|(_, password)| password);
        self.client_secret.iter().chain(password).cloned().collect()
    }

    /// Tells those that a token was asked for with from those that are there now.
    fn version(&self) -> u64 {
        self.secrets().iter().map(Secret::version).sum()
    }
}
