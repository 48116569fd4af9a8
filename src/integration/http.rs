//! The HTTP client that all integrations share.
//!
//! rustls with the system's root certificates and `EXTRA_CA_FILE`'s, connect and total time limits,
//! a bound on what an answer may hold, no redirects (an API that redirects is not the API, and the
//! `Authorization` header must not follow), one metric per request, and error messages that name
//! system, operation, status and the upstream's own words, never a secret.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Client, Method, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::Error;
use crate::metrics::Metrics;
use crate::tenant::{Reason, StepKind};

/// The longest answer that is read, in bytes. The largest expected one, a page of 100 groups with
/// generous attributes, is a tenth of it.
const MAX_ANSWER: usize = 8 << 20;
/// How much of an upstream's own words goes into a message, in characters.
const MAX_WORDS: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    #[error("{path}: {why}")]
    ExtraCa { path: String, why: String },
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Connections to all upstreams. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    client: Client,
}

impl HttpClient {
    /// `extra_ca` is a PEM bundle of root certificates to trust beside the system's.
    pub fn new(extra_ca: Option<&Path>, total: Duration) -> Result<Self, HttpClientError> {
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let extra = extra_ca.map(extra_roots).transpose()?.unwrap_or_default();
        let builder = || {
            Client::builder()
                .user_agent(concat!("tenantry/", env!("CARGO_PKG_VERSION")))
                .connect_timeout((total / 2).min(Duration::from_secs(5)))
                .timeout(total)
                .redirect(redirect::Policy::none())
                .pool_idle_timeout(Duration::from_secs(30))
        };
        let client = builder().tls_certs_merge(extra.clone()).build().or_else(|error| {
            tracing::warn!(
                error = %innermost(&error),
                "cannot read the system's root certificates; trusting only EXTRA_CA_FILE's"
            );
            builder().tls_certs_only(extra).build()
        });
        let client = client.map_err(|error| HttpClientError::Tls(innermost(&error)))?;
        Ok(Self { client })
    }
}

/// The root certificates in a PEM bundle.
pub fn extra_roots(path: &Path) -> Result<Vec<Certificate>, HttpClientError> {
    let wrong = |why: String| HttpClientError::ExtraCa { path: path.display().to_string(), why };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(innermost(&error)))?;
    if certificates.is_empty() {
        return Err(wrong("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)".into()));
    }
    Ok(certificates)
}

/// An upstream's address with any path prefix, always ending in a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(Url);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBaseUrl {
    #[error("is not a URL: {0}")]
    Syntax(url::ParseError),
    #[error("must begin with http:// or https://")]
    Scheme,
    #[error("must not hold a user name or password; give credentials in their own settings")]
    Credentials,
    #[error("must not have a query or fragment")]
    Query,
}

impl BaseUrl {
    /// Parses an address; a trailing `suffix` (such as `api/v3`) that people copy along with it is
    /// understood and removed.
    pub fn parse(text: &str, suffix: &str) -> Result<Self, InvalidBaseUrl> {
        let mut url = Url::parse(text.trim()).map_err(InvalidBaseUrl::Syntax)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidBaseUrl::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidBaseUrl::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidBaseUrl::Query);
        }
        let path = url.path().trim_end_matches('/');
        let path = match path.strip_suffix(suffix.trim_matches('/')) {
            Some(rest) if !suffix.is_empty() && rest.ends_with('/') => rest.trim_end_matches('/'),
            _ => path,
        };
        let path = format!("{path}/");
        url.set_path(&path);
        Ok(Self(url))
    }

    /// The address of a path below it; each segment is escaped.
    fn join(&self, segments: &[&str]) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One upstream's connection: address, credentials, metrics.
pub struct Upstream {
    step: StepKind,
    http: HttpClient,
    base: BaseUrl,
    token: SecretString,
    metrics: Arc<Metrics>,
}

/// A request to an upstream.
pub struct Call<'a> {
    /// Names the request in metrics and messages: `create_group`.
    pub operation: &'static str,
    pub method: Method,
    /// Path below the base address; an empty last segment gives a trailing slash.
    pub path: &'a [&'a str],
    pub query: &'a [(&'a str, &'a str)],
}

/// An answer of the upstream, whatever its status.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    retry_after: Option<Duration>,
    location: Option<String>,
}

impl Answer {
    /// Whether the body is a JSON value of this form.
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Upstream {
    /// `token` is sent as a bearer token.
    pub fn new(
        step: StepKind,
        http: HttpClient,
        base: BaseUrl,
        token: SecretString,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { step, http, base, token, metrics }
    }

    /// Reads something. A connection that broke before the answer is tried once more: servers close
    /// idle connections, and Authentik recycles its workers every thousand requests.
    pub async fn read(&self, call: &Call<'_>) -> Result<Answer, Error> {
        match self.send(call, None).await {
            Err(Broken::Connection(_)) => self.send(call, None).await,
            other => other,
        }
        .map_err(|broken| self.broken(call, broken))
        .and_then(|answer| self.expected(call, answer))
    }

    /// Changes something. See [`Effect`](super::Effect) for what a failure may have done.
    pub async fn write(&self, call: &Call<'_>, body: Option<&impl Serialize>) -> Result<Answer, Error> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| {
            let message = format!("{}: cannot be put into JSON: {error}", self.what(call));
            Error::terminal(Reason::Rejected, message)
        })?;
        self.send(call, body)
            .await
            .map_err(|broken| self.broken(call, broken))
            .and_then(|answer| self.expected(call, answer))
    }

    async fn send(&self, call: &Call<'_>, body: Option<Vec<u8>>) -> Result<Answer, Broken> {
        let started = Instant::now();
        let result = self.exchange(call, body).await;
        let status = match &result {
            Ok(answer) => answer.status.as_str().to_owned(),
            Err(broken) => broken.label().to_owned(),
        };
        self.metrics
            .upstream_seconds
            .with_label_values(&[self.step.name(), call.operation, &status])
            .observe(started.elapsed().as_secs_f64());
        result
    }

    async fn exchange(&self, call: &Call<'_>, body: Option<Vec<u8>>) -> Result<Answer, Broken> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", self.token.expose_secret()))
            .map_err(|_| Broken::Credential)?;
        bearer.set_sensitive(true);
        let mut request = self
            .http
            .client
            .request(call.method.clone(), self.base.join(call.path))
            .header(AUTHORIZATION, bearer)
            // Without it Authentik's proxy answers in HTML while it starts.
            .header(ACCEPT, "application/json");
        if !call.query.is_empty() {
            request = request.query(call.query);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let mut response = request.send().await.map_err(Broken::from)?;
        let status = response.status();
        let header = |name| response.headers().get(name)?.to_str().ok().map(ToOwned::to_owned);
        let retry_after = header(RETRY_AFTER).as_deref().and_then(parse_retry_after);
        let location = header(reqwest::header::LOCATION);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Broken::from)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Broken::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body, retry_after, location })
    }

    /// Turns answers that mean the same for every upstream into errors.
    fn expected(&self, call: &Call<'_>, answer: Answer) -> Result<Answer, Error> {
        let status = answer.status;
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Error::throttled(self.refusal(call, &answer), answer.retry_after));
        }
        if status.is_server_error() {
            let mut error = Error::transient(Reason::UpstreamError, self.refusal(call, &answer));
            if let Some(wait) = answer.retry_after {
                error.failure.kind = crate::tenant::FailureKind::Transient { retry_after: Some(wait) };
            }
            return Err(error.with_unknown_effect_if(is_write(&call.method)));
        }
        if status.is_redirection() {
            let to = answer.location.as_deref().unwrap_or("elsewhere");
            let message = format!(
                "{}: {status}: {} redirects to {}; configure the address it leads to",
                self.what(call),
                self.base,
                self.printable(to),
            );
            return Err(Error::misconfigured(Reason::WrongAddress, message));
        }
        Ok(answer)
    }

    fn broken(&self, call: &Call<'_>, broken: Broken) -> Error {
        let what = self.what(call);
        let base = &self.base;
        match broken {
            Broken::Connect(why) => {
                let message = format!("{what}: cannot connect to {base}: {why}");
                Error::transient(Reason::Unreachable, message)
            }
            Broken::Tls(why) => {
                let message = format!(
                    "{what}: TLS with {base} failed: {why}. For a certificate of a private CA, give \
                     the CA's certificate in EXTRA_CA_FILE"
                );
                Error::misconfigured(Reason::TlsFailed, message)
            }
            Broken::Timeout => {
                let message = format!("{what}: {base} did not answer in time");
                Error::transient(Reason::Timeout, message).with_unknown_effect_if(is_write(&call.method))
            }
            Broken::Connection(why) => {
                let message = format!("{what}: the connection to {base} broke: {why}");
                Error::transient(Reason::Unreachable, message)
                    .with_unknown_effect_if(is_write(&call.method))
            }
            Broken::TooLong => {
                let message = format!("{what}: the answer is longer than {MAX_ANSWER} bytes");
                Error::transient(Reason::UnexpectedAnswer, message)
                    .with_unknown_effect_if(is_write(&call.method))
            }
            Broken::Credential => {
                let message = format!("{what}: the token holds characters that no header may hold");
                Error::misconfigured(Reason::CredentialsRejected, message)
            }
        }
    }

    /// A message about an answer that refuses: who, what, status and the upstream's own words.
    pub fn refusal(&self, call: &Call<'_>, answer: &Answer) -> String {
        format!("{}: {}: {}", self.what(call), answer.status, self.words(&answer.body))
    }

    fn what(&self, call: &Call<'_>) -> String {
        format!("{}: {}", self.step, call.operation.replace('_', " "))
    }

    /// What the upstream said, shortened, on one line, and without our token should it echo that.
    fn words(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        if text.is_empty() {
            return "no explanation".into();
        }
        if text.starts_with('<') {
            return "a page of HTML".into();
        }
        self.printable(text)
    }

    fn printable(&self, text: &str) -> String {
        let text = text.replace(self.token.expose_secret(), "[redacted]");
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut short: String = line.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
        if short.len() < line.len() {
            short.push('…');
        }
        short
    }
}

fn is_write(method: &Method) -> bool {
    !method.is_safe()
}

/// What kept a request from being answered.
enum Broken {
    /// Nothing was sent.
    Connect(String),
    Tls(String),
    Timeout,
    /// The connection ended in the middle.
    Connection(String),
    TooLong,
    Credential,
}

impl Broken {
    const fn label(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Timeout => "timeout",
            Self::Connection(_) => "broken",
            Self::TooLong => "too_long",
            Self::Credential => "credential",
        }
    }
}

impl From<reqwest::Error> for Broken {
    fn from(error: reqwest::Error) -> Self {
        let why = innermost(&error);
        if is_tls(&error) {
            Self::Tls(why)
        } else if error.is_connect() {
            Self::Connect(why)
        } else if error.is_timeout() {
            Self::Timeout
        } else {
            Self::Connection(why)
        }
    }
}

fn is_tls(error: &reqwest::Error) -> bool {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<rustls::Error>() {
            return true;
        }
        // An I/O error's own cause is not in the chain, but inside.
        source = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// The cause at the bottom, which is the one that says what happened.
fn innermost(error: &dyn StdError) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
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
    fn an_address_keeps_its_path_prefix_and_loses_only_the_api_suffix() {
        for (given, group) in [
            ("https://id.acme.test", "https://id.acme.test/api/v3/core/groups/"),
            ("https://acme.test/auth/", "https://acme.test/auth/api/v3/core/groups/"),
            ("https://acme.test/auth", "https://acme.test/auth/api/v3/core/groups/"),
            ("https://acme.test/auth/api/v3/", "https://acme.test/auth/api/v3/core/groups/"),
            ("http://acme.test:9000/api/v3", "http://acme.test:9000/api/v3/core/groups/"),
            ("http://acme.test/myapi/v3", "http://acme.test/myapi/v3/api/v3/core/groups/"),
        ] {
            let base = BaseUrl::parse(given, "api/v3").unwrap();
            assert_eq!(base.join(&["api", "v3", "core", "groups", ""]).as_str(), group, "{given}");
        }
    }

    #[test]
    fn an_address_with_credentials_query_or_another_scheme_is_refused() {
        for (given, error) in [
            ("ftp://acme.test", InvalidBaseUrl::Scheme),
            ("https://user@acme.test", InvalidBaseUrl::Credentials),
            ("https://acme.test/?a=b", InvalidBaseUrl::Query),
        ] {
            assert_eq!(BaseUrl::parse(given, "").unwrap_err(), error, "{given}");
        }
    }

    #[test]
    fn a_path_segment_cannot_escape_from_its_place() {
        let base = BaseUrl::parse("http://acme.test/", "").unwrap();
        assert_eq!(base.join(&["a", "../b?c", ""]).as_str(), "http://acme.test/a/..%2Fb%3Fc/");
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        assert_eq!(parse_retry_after("18"), Some(Duration::from_secs(18)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon"), None);
    }

    #[test]
    fn an_upstreams_words_lose_the_token_and_are_bounded() {
        let http = HttpClient::new(None, Duration::from_secs(1)).unwrap();
        let upstream = Upstream::new(
            StepKind::Authentik,
            http,
            BaseUrl::parse("http://acme.test", "").unwrap(),
            SecretString::from("s3cret-token"),
            Arc::default(),
        );
        let echo = format!("your token s3cret-token\nis bad {}", "x".repeat(10_000));
        let words = upstream.words(echo.as_bytes());
        assert!(words.starts_with("your token [redacted] is bad xxx"), "{words}");
        assert!(words.chars().count() <= MAX_WORDS + 1);
    }
}
