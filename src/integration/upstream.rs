//! One upstream's connection: address, credentials, limits and metrics, and the meaning of those answers
//! that mean the same everywhere.
//!
//! Messages name system, operation, status and the upstream's own words, never a secret. What an answer
//! may hold is bounded.

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use url::Url;

use super::asked;
use super::gate::{Gate, Leave};
use super::limits::{Limiter, Limits};
use super::oauth::{Token, TokenSource};
use super::pace::{PATIENCE, Pace};
use super::permission::{Permission, Permit, Refusal};
use super::recent::Recent;
use super::{Effect, Error};
use crate::http::{BaseUrl, Broken, HttpClient, NOT_TLS, PRIVATE_CA, Through, challenged, page};
use crate::metrics::{CallEnd, Metrics, Operation, StatusCode as Status, Worked};
use crate::secret::Secret;
use crate::telemetry::traces;
use crate::tenant::{Failure, FailureKind, Reason, Traffic, Upstream};

/// The longest answer that is read whole, in bytes. The largest expected one, a page of 100 groups with
/// generous attributes, is a tenth of it.
const MAX_ANSWER: usize = 8 << 20;
/// As good as no time limit.
const LONGEST: Duration = Duration::from_secs(86_400);
/// How much of an upstream's own words goes into a message, in characters.
const MAX_WORDS: usize = 300;

/// How we show who we are.
#[derive(Clone)]
pub enum Credentials {
    /// Nothing in the header.
    None,
    Bearer(Secret),
    Basic {
        user: Secret,
        password: Secret,
    },
    /// Tokens of an issuer, renewed as they age.
    Tokens(Arc<TokenSource>),
}

/// See the module.
pub struct UpstreamClient {
    pub(super) step: Upstream,
    http: HttpClient,
    base: BaseUrl,
    credentials: Credentials,
    limiter: Limiter,
    recent: Recent,
    pace: Pace,
    /// None in a program that has no fleet to protect it from.
    gate: OnceLock<Arc<Gate>>,
    dialect: Dialect,
    permit: Permit,
    metrics: Arc<Metrics>,
}

/// What an upstream says in its own way, whatever was asked.
#[derive(Clone, Copy)]
pub struct Dialect {
    /// What an answer says of us or of a pause, if anything.
    pub judge: fn(&UpstreamClient, &Call<'_>, &Answer) -> Option<Error>,
    /// What a connection that is closed without an answer may mean.
    pub closed: &'static str,
}

impl Dialect {
    const PLAIN: Self = Self { judge: |_, _, _| None, closed: "" };
}

/// Pauses that a request waits for before its run is given back.
const MOST_PAUSES: u32 = 3;

/// A request to an upstream.
pub struct Call<'a> {
    /// Names the request in metrics and messages: `create_group`.
    pub operation: Operation,
    pub method: Method,
    pub to: To<'a>,
    pub query: &'a [(&'a str, &'a str)],
    pub header: Option<(&'static str, &'static str)>,
    pub body: Option<Body>,
    /// The answer may take as long as it is long; the reader bounds each piece.
    pub unhurried: bool,
}

/// Where a request goes.
#[derive(Clone, Copy)]
pub enum To<'a> {
    /// Below the base address; an empty last segment gives a trailing slash.
    Path(&'a [&'a str]),
    /// Elsewhere.
    Url(&'a Url),
}

pub struct Body {
    kind: &'static str,
    bytes: Bytes,
}

impl<'a> Call<'a> {
    pub fn new(operation: Operation, method: Method, path: &'a [&'a str]) -> Self {
        let to = To::Path(path);
        Self { operation, method, to, query: &[], header: None, body: None, unhurried: false }
    }

    pub fn get(operation: Operation, path: &'a [&'a str]) -> Self {
        Self::new(operation, Method::GET, path)
    }

    #[must_use]
    pub fn query(mut self, query: &'a [(&'a str, &'a str)]) -> Self {
        self.query = query;
        self
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    #[must_use]
    pub fn without_time_limit(mut self) -> Self {
        self.unhurried = true;
        self
    }

    /// # Panics
    /// When `body` is of a type that is no JSON, such as a map whose keys are not text.
    #[must_use]
    pub fn json(mut self, body: &impl Serialize) -> Self {
        let bytes = serde_json::to_vec(body).expect("our own types are JSON").into();
        self.body = Some(Body { kind: "application/json", bytes });
        self
    }

    #[must_use]
    pub fn form(mut self, fields: &[(&str, &str)]) -> Self {
        let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.body = Some(Body { kind: "application/x-www-form-urlencoded", bytes: text.into() });
        self
    }
}

/// What a request is for, and so what its failure may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Changes nothing, and may be repeated.
    Read,
    /// May have been applied, whatever the answer. See [`Effect`].
    Write,
}

/// An answer of the upstream, whatever its status.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    headers: HeaderMap,
}

impl Answer {
    /// The body as a JSON value of this form, if it is one.
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    pub fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn retry_after(&self) -> Option<Duration> {
        self.header(RETRY_AFTER).and_then(parse_retry_after)
    }
}

/// An answer whose body has not been read yet. It counts as a request under way until it is dropped.
pub struct Begun {
    response: Response,
    started: Instant,
    _place: Option<OwnedSemaphorePermit>,
    _leave: Option<Leave>,
}

impl Begun {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The next piece of the body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Unanswered> {
        self.response.chunk().await.map_err(Unanswered::from)
    }
}

/// Counts how often a request has waited because the upstream asked for a pause.
#[derive(Default)]
struct Turns(u32);

impl Turns {
    /// Whether a request that ended like this is tried again: it was not done, and the pause, which the
    /// next try keeps, is a short one.
    fn has_another(&mut self, error: &Error) -> bool {
        let again = error.is_paced()
            && error.effect == Effect::None
            && error.asked_pause() <= PATIENCE
            && self.0 < MOST_PAUSES;
        self.0 += u32::from(again);
        again
    }
}

impl UpstreamClient {
    pub fn new(
        step: Upstream,
        http: HttpClient,
        base: BaseUrl,
        credentials: Credentials,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        if let Credentials::Tokens(tokens) = &credentials {
            let metrics = Arc::clone(&metrics);
            tokens
                .count_with(move |worked| metrics.token_refreshes.of((step, Worked::of(worked))).inc());
        }
        let (limiter, pace, gate) = (Limiter::new(limits), Pace::default(), OnceLock::new());
        let (permit, dialect, recent) = (Permit::default(), Dialect::PLAIN, Recent::default());
        Self { step, http, base, credentials, limiter, recent, pace, gate, permit, dialect, metrics }
    }

    /// The same, which understands what its server says in its own way.
    #[must_use]
    pub fn speaking(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// From now on asks the gate before each request, and tells it who is refused.
    pub(super) fn behind(&self, gate: Arc<Gate>) {
        // An upstream belongs to one integration, which has one gate.
        let _ = self.gate.set(gate);
    }

    /// Asks before each request from now on.
    pub fn obey(&self, permission: Arc<dyn Permission>) {
        self.permit.obey(permission);
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub fn base(&self) -> &BaseUrl {
        &self.base
    }

    /// Reads something. A connection that broke before the answer is tried once more: servers close
    /// idle connections, and Authentik recycles its workers every thousand requests.
    pub async fn read(&self, call: &Call<'_>) -> Result<Answer, Error> {
        self.ask(call, Purpose::Read).await
    }

    /// Changes something. See [`Effect`] for what a failure may have done.
    pub async fn write(&self, call: &Call<'_>) -> Result<Answer, Error> {
        self.ask(call, Purpose::Write).await
    }

    /// The answer, unless its status means the same for every upstream, or it says of us what its server
    /// says in its own way.
    pub async fn ask(&self, call: &Call<'_>, purpose: Purpose) -> Result<Answer, Error> {
        let mut turns = Turns::default();
        loop {
            let answer = match (self.exchange(call, purpose).await, purpose) {
                (Err(Unanswered::Broken(Broken::Connection(_))), Purpose::Read) => {
                    self.exchange(call, purpose).await
                }
                (other, _) => other,
            };
            match answer.map_err(|broken| self.broken(call, purpose, broken)) {
                Err(error) if turns.has_another(&error) => {}
                other => return other,
            }
        }
    }

    /// Begins to read something that is too long to be held in memory. An answer other than 200 is
    /// returned whole, unless it means the same for every upstream.
    pub async fn open(&self, call: &Call<'_>) -> Result<Result<Begun, Answer>, Error> {
        let mut turns = Turns::default();
        loop {
            let begun = self.begin(call, Purpose::Read).instrument(self.span(call));
            let answer = match begun.await {
                Ok(begun) if begun.status() == StatusCode::OK => {
                    self.measure(call, begun.started, status_of(&begun));
                    self.well_answered();
                    return Ok(Ok(begun));
                }
                Ok(begun) => self.finish(call, Purpose::Read, begun).await,
                Err(broken) => Err(broken),
            };
            match answer.map_err(|broken| self.broken(call, Purpose::Read, broken)) {
                Err(error) if turns.has_another(&error) => {}
                other => return other.map(Err),
            }
        }
    }

    async fn exchange(&self, call: &Call<'_>, purpose: Purpose) -> Result<Answer, Unanswered> {
        let exchange = async {
            let begun = self.begin(call, purpose).await?;
            self.finish(call, purpose, begun).await
        };
        exchange.instrument(self.span(call)).await
    }

    /// Surrounds a request in traces.
    fn span(&self, call: &Call<'_>) -> Span {
        tracing::debug_span!(
            "upstream", otel.name = call.operation.name(), otel.kind = "client", upstream = %self.step,
            http.request.method = %call.method, http.response.status_code = Empty, error.type = Empty,
        )
    }

    /// Sends the request, with another token where that may help.
    async fn begin(&self, call: &Call<'_>, purpose: Purpose) -> Result<Begun, Unanswered> {
        if let Some(gate) = self.gate.get() {
            // Not even a token is asked for.
            gate.lets_through()?;
        }
        let Credentials::Tokens(tokens) = &self.credentials else {
            return self.send(call, purpose, None).await;
        };
        let mut token = tokens.current().await?;
        let mut begun = self.send(call, purpose, Some(&token)).await?;
        if is_refusal(&begun)
            && let Some(another) = tokens.after_refusal(&token).await?
        {
            self.measure(call, begun.started, status_of(&begun));
            drop(begun);
            token = another;
            begun = self.send(call, purpose, Some(&token)).await?;
        }
        if !is_refusal(&begun) && !begun.status().is_server_error() {
            tokens.accepted(&token);
        }
        if is_empty_500(&begun) && purpose == Purpose::Read {
            // Two first requests of a new account at once, perhaps.
            self.measure(call, begun.started, status_of(&begun));
            drop(begun);
            begun = self.send(call, purpose, Some(&token)).await?;
            if is_empty_500(&begun)
                && let Some(error) = tokens.discard(&token)
            {
                self.measure(call, begun.started, status_of(&begun));
                return Err(error.into());
            }
        }
        Ok(begun)
    }

    fn url(&self, call: &Call<'_>) -> Url {
        match call.to {
            To::Path(path) => self.base.join(path),
            To::Url(url) => url.clone(),
        }
    }

    async fn send(
        &self,
        call: &Call<'_>,
        purpose: Purpose,
        token: Option<&Token>,
    ) -> Result<Begun, Unanswered> {
        // Before it takes a place from others, and after it may have waited long for one.
        self.pace.turn().await.map_err(Unanswered::Paused)?;
        let place = self.limiter.admit().await;
        self.pace.turn().await.map_err(Unanswered::Paused)?;
        let leave = match self.gate.get() {
            Some(gate) => Some(gate.may_send().await?),
            None => None,
        };
        // Last: it may have waited long.
        self.permit.ask(self.step, purpose).map_err(|Refusal::Held(reason)| {
            Error::held(reason, format!("{}: not sent: {reason}", self.what(call)))
        })?;
        if self.gate.get().is_some() {
            asked::note();
        }
        let started = Instant::now();
        let mut request = self
            .http
            .client()
            .request(call.method.clone(), self.url(call))
            // Without it Authentik's proxy answers in HTML while it starts.
            .header(ACCEPT, "application/json")
            // An upstream's logs and ours can be laid side by side.
            .header("x-request-id", format!("tenantry-{:016x}", rand::random::<u64>()));
        request = match (&self.credentials, token) {
            (_, Some(token)) => request.bearer_auth(token.secret().expose_secret()),
            (Credentials::Bearer(token), None) => request.bearer_auth(token.current().expose_secret()),
            (Credentials::Basic { user, password }, None) => {
                let (user, password) = (user.current(), password.current());
                request.basic_auth(user.expose_secret(), Some(password.expose_secret()))
            }
            (Credentials::None | Credentials::Tokens(_), None) => request,
        };
        if let Some(trace) = traces::traceparent() {
            request = request.header(traces::TRACEPARENT, trace);
        }
        if call.unhurried {
            request = request.timeout(LONGEST);
        }
        if let Some((name, value)) = call.header {
            request = request.header(HeaderName::from_static(name), value);
        }
        if !call.query.is_empty() {
            request = request.query(call.query);
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, body.kind).body(body.bytes.clone());
        }
        let sent = request.send().await.map_err(Unanswered::from);
        if let Err(broken) = &sent {
            self.measure(call, started, broken.label());
        }
        Ok(Begun { response: sent?, started, _place: place, _leave: leave })
    }

    /// Reads the whole answer, and learns what it means before another request takes its place.
    async fn finish(
        &self,
        call: &Call<'_>,
        purpose: Purpose,
        mut begun: Begun,
    ) -> Result<Answer, Unanswered> {
        let body = whole(&mut begun).await;
        let status = begun.status();
        self.measure(
            call,
            begun.started,
            match &body {
                Ok(_) => CallEnd::Status(Status(status.as_u16())),
                Err(broken) => broken.label(),
            },
        );
        let answer = Answer { status, body: body?, headers: begun.response.headers().clone() };
        let Some(error) = self.meaning(call, purpose, &answer) else {
            if status.is_success() {
                self.well_answered();
            } else {
                self.pace.answered();
            }
            return Ok(answer);
        };
        match (&error.failure, self.gate.get()) {
            (Failure { kind: FailureKind::Paced { wait }, .. }, _) => self.pace.slow_down(*wait),
            (failure, Some(gate)) if failure.reason == Reason::CredentialsRejected => {
                gate.refused(&error);
            }
            _ => self.pace.answered(),
        }
        Err(error.into())
    }

    fn well_answered(&self) {
        self.pace.answered();
        if let Some(gate) = self.gate.get() {
            gate.accepted();
        }
    }

    fn measure(&self, call: &Call<'_>, started: Instant, end: CallEnd) {
        let took = started.elapsed();
        self.recent.note(took);
        match end {
            CallEnd::Status(status) => Span::current().record("http.response.status_code", status.0),
            other => Span::current().record("error.type", other.name()),
        };
        self.metrics.upstream_seconds.of((self.step, call.operation, end)).observe(took.as_secs_f64());
    }

    /// How requests fare now.
    pub fn traffic(&self) -> Traffic {
        let limits = self.limiter.limits();
        let (waiting, under_way) = self.limiter.now();
        Traffic {
            latency: self.recent.latency(),
            under_way,
            waiting,
            at_once: limits.concurrent,
            per_minute: limits.per_minute.map(NonZeroU32::get),
            paused_for: Some(self.pace.left()).filter(|left| !left.is_zero()),
        }
    }

    /// What an answer means whatever was asked: of us, or for every upstream the same.
    fn meaning(&self, call: &Call<'_>, purpose: Purpose, answer: &Answer) -> Option<Error> {
        if let Some(error) = (self.dialect.judge)(self, call, answer) {
            return Some(error);
        }
        let status = answer.status;
        if status == StatusCode::TOO_MANY_REQUESTS {
            let wait = answer.retry_after().unwrap_or(USUAL_PAUSE);
            return Some(Error::throttled(self.refusal(call, answer), wait));
        }
        if status.is_server_error() {
            let page = page(&answer.body, &self.url(call)).map(|page| format!(" with {page}"));
            let common = format!("{}: it answers {status}{}", self.step, page.unwrap_or_default());
            let mut error =
                Error::transient(Reason::UpstreamError, self.refusal(call, answer)).told_to_all(common);
            if status == StatusCode::SERVICE_UNAVAILABLE
                && let Some(wait) = answer.retry_after()
                && !self.pace.is_an_outage()
            {
                error.failure.kind = FailureKind::Paced { wait };
            }
            return Some(error.after(purpose));
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            let message = format!("{}: {}", self.what(call), challenged(&self.url(call)));
            let common = format!("{}: {}", self.step, challenged(&self.url(call)));
            return Some(Error::transient(Reason::Unreachable, message).told_to_all(common));
        }
        if status.is_redirection() {
            let to = answer.header(LOCATION).unwrap_or("elsewhere");
            let message = format!(
                "{}: {status}: {} redirects to {}; configure the address it leads to",
                self.what(call),
                self.address(call),
                self.printable(to),
            );
            return Some(Error::misconfigured(Reason::WrongAddress, message));
        }
        None
    }

    /// Turns what kept a request from being answered into an error.
    pub(super) fn broken(&self, call: &Call<'_>, purpose: Purpose, broken: Unanswered) -> Error {
        if let Unanswered::Means(error) = broken {
            return *error;
        }
        let error = self.unanswered(call, purpose, broken);
        // What was being done when it was found out concerns one tenant.
        let common = error.failure.message.replacen(&self.what(call), self.step.name(), 1);
        error.told_to_all(common)
    }

    fn unanswered(&self, call: &Call<'_>, purpose: Purpose, broken: Unanswered) -> Error {
        let (what, to) = (self.what(call), self.address(call));
        match broken {
            Unanswered::Broken(Broken::Connect(why)) => {
                let message = format!("{what}: cannot connect to {to}: {why}");
                Error::transient(Reason::Unreachable, message)
            }
            Unanswered::Broken(Broken::Tls(why)) => {
                let message = format!("{what}: TLS with {to} failed: {why}. {PRIVATE_CA}");
                Error::misconfigured(Reason::TlsFailed, message)
            }
            Unanswered::Broken(Broken::NotTls) => {
                let message = format!("{what}: {to} {NOT_TLS}");
                Error::misconfigured(Reason::WrongAddress, message)
            }
            Unanswered::Broken(Broken::Timeout) => {
                let through = Through::to(Some(&self.url(call)));
                let message = format!("{what}: {to} did not answer in time{through}");
                Error::transient(Reason::Timeout, message).after(purpose)
            }
            Unanswered::Broken(Broken::Connection(why)) => {
                let hint = self.dialect.closed;
                let message = format!("{what}: the connection to {to} broke: {why}{hint}");
                Error::transient(Reason::Unreachable, message).after(purpose)
            }
            Unanswered::Broken(Broken::TooLong) => {
                let message = format!("{what}: the answer is longer than {MAX_ANSWER} bytes");
                Error::transient(Reason::UnexpectedAnswer, message).after(purpose)
            }
            Unanswered::Broken(Broken::Unprintable) => {
                let message = format!("{what}: the credentials hold characters that no header may hold");
                Error::misconfigured(Reason::CredentialsRejected, message)
            }
            Unanswered::Paused(wait) => {
                let message = format!(
                    "{what}: not sent yet: the server asked for a pause, which ends in {} s",
                    wait.as_secs() + 1
                );
                Error::throttled(message, wait)
            }
            Unanswered::Means(error) => *error,
        }
    }

    /// A message about an answer that refuses: who, what, status and the upstream's own words.
    pub fn refusal(&self, call: &Call<'_>, answer: &Answer) -> String {
        let words = match page(&answer.body, &self.url(call)) {
            Some(page) => format!("{page} (at {})", self.address(call)),
            None => self.words(&answer.body),
        };
        format!("{}: {}: {words}", self.what(call), answer.status)
    }

    /// What was configured as the address of a request.
    fn address<'a>(&'a self, call: &'a Call<'_>) -> &'a dyn std::fmt::Display {
        match call.to {
            To::Path(_) => &self.base,
            To::Url(url) => url,
        }
    }

    /// An element of a list could not be understood, and the others are read all the same.
    pub fn skipped(&self, call: &Call<'_>, id: &str, why: &str) {
        self.metrics.unreadable.of(self.step).inc();
        let id = if id.is_empty() { "(without a readable id)" } else { id };
        tracing::warn!(
            upstream = %self.step, operation = call.operation.name(), id,
            "an element of a list cannot be understood and is passed over: {}", self.printable(why)
        );
    }

    pub fn what(&self, call: &Call<'_>) -> String {
        format!("{}: {}", self.step, call.operation.name().replace('_', " "))
    }

    /// What the upstream said, shortened, on one line, and without our secrets should it echo them.
    fn words(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        match text.trim() {
            "" => "no explanation".into(),
            text => self.printable(text),
        }
    }

    pub fn printable(&self, text: &str) -> String {
        let text = self.credentials.redact(text);
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut short: String = line.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
        if short.len() < line.len() {
            short.push('…');
        }
        short
    }
}

impl Credentials {
    /// Tells credentials apart, and nothing of them: sixteen bits are too few to guess one by.
    pub fn digest(&self, salt: &str) -> u16 {
        let mut hash = Sha256::new_with_prefix(salt);
        let mut part = |part: &str| {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        };
        match self {
            Self::None => {}
            Self::Bearer(token) => part(token.current().expose_secret()),
            Self::Basic { user, password } => {
                part(user.current().expose_secret());
                part(password.current().expose_secret());
            }
            Self::Tokens(tokens) => tokens.each_part(part),
        }
        let digest = hash.finalize();
        u16::from_be_bytes([digest[0], digest[1]])
    }

    fn redact(&self, text: &str) -> String {
        match self {
            Self::None => text.to_owned(),
            Self::Bearer(secret) => secret.redact(text),
            Self::Basic { password, .. } => password.redact(text),
            Self::Tokens(tokens) => tokens.redact(text),
        }
    }

    /// All that they are made of.
    fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::None => Vec::new(),
            Self::Bearer(secret) => vec![secret.clone()],
            Self::Basic { user, password } => vec![user.clone(), password.clone()],
            Self::Tokens(tokens) => tokens.secrets(),
        }
    }
}

/// For a server that asks for a pause and does not say how long.
const USUAL_PAUSE: Duration = Duration::from_secs(1);

/// How the upstream is met: with which credentials, and whom we trust to be it. They may come from files
/// that are replaced while the process runs.
impl UpstreamClient {
    /// Everything that an upstream's refusal may be about and that may change.
    pub fn secrets(&self) -> Vec<Secret> {
        let mut secrets = self.credentials.secrets();
        secrets.extend(self.http.extra_ca().cloned());
        secrets
    }

    /// Tells those that a request was sent with from those that are there now.
    pub fn secrets_version(&self) -> u64 {
        self.secrets().iter().map(Secret::version).sum()
    }

    /// Reads again what comes from files.
    pub async fn reread_secrets(&self) {
        join_all(self.secrets().iter().map(Secret::reread)).await;
    }

    /// They are others than before: what was learned with the old ones does not count.
    pub fn secrets_changed(&self) {
        if let Credentials::Tokens(tokens) = &self.credentials {
            tokens.credentials_changed();
        }
    }
}

/// Whether it is the token that is refused. The graph behind oCIS' proxy, which names its version, says 401
/// also for a missing right (observed).
fn is_refusal(begun: &Begun) -> bool {
    begun.status() == StatusCode::UNAUTHORIZED
        && !begun.response.headers().contains_key("x-graph-version")
}

/// The proxy before oCIS says nothing when it takes the token but not its claims (observed); what the
/// graph itself refuses has a body.
fn is_empty_500(begun: &Begun) -> bool {
    begun.status() == StatusCode::INTERNAL_SERVER_ERROR && begun.response.content_length() == Some(0)
}

async fn whole(begun: &mut Begun) -> Result<Vec<u8>, Unanswered> {
    let mut body = Vec::new();
    while let Some(chunk) = begun.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Broken::TooLong.into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn status_of(begun: &Begun) -> CallEnd {
    CallEnd::Status(Status(begun.status().as_u16()))
}

/// What kept a request from being answered.
pub enum Unanswered {
    Broken(Broken),
    /// The server asked for a pause that is too long to be waited for.
    Paused(Duration),
    /// It was not to be sent, or had no token to be sent with, or its answer means this.
    Means(Box<Error>),
}

impl Unanswered {
    const fn label(&self) -> CallEnd {
        match self {
            Self::Broken(Broken::Connect(_)) => CallEnd::Connect,
            Self::Broken(Broken::Tls(_) | Broken::NotTls) => CallEnd::Tls,
            Self::Broken(Broken::Timeout) => CallEnd::Timeout,
            Self::Broken(Broken::Connection(_)) => CallEnd::Broken,
            Self::Broken(Broken::TooLong) => CallEnd::TooLong,
            Self::Paused(_) => CallEnd::Paused,
            Self::Broken(Broken::Unprintable) | Self::Means(_) => CallEnd::Credential,
        }
    }
}

impl From<Error> for Unanswered {
    fn from(error: Error) -> Self {
        Self::Means(Box::new(error))
    }
}

impl From<Broken> for Unanswered {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<reqwest::Error> for Unanswered {
    fn from(error: reqwest::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// Seconds, or an HTTP date.
fn parse_retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        assert_eq!(parse_retry_after("18"), Some(Duration::from_secs(18)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon"), None);
    }

    #[test]
    fn an_upstreams_words_lose_the_token_and_are_bounded() {
        let http = HttpClient::new(None, Duration::from_secs(1)).unwrap();
        let upstream = UpstreamClient::new(
            Upstream::Authentik,
            http,
            BaseUrl::parse("http://acme.test", "").unwrap(),
            Credentials::Bearer(Secret::from("s3cret-token")),
            Limits::GENEROUS,
            Arc::default(),
        );
        let echo = format!("your token s3cret-token\nis bad {}", "x".repeat(10_000));
        let words = upstream.words(echo.as_bytes());
        assert!(words.starts_with("your token [redacted] is bad xxx"), "{words}");
        assert!(words.chars().count() <= MAX_WORDS + 1);
    }
}
