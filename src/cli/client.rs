//! Requests to tenantry's HTTP API.

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use clap::Args;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;
use url::Url;

use super::failure::{Exit, Failure, no_api};
use super::profile::{self, Resolved};
use crate::http::{BaseUrl, Broken, Connections, Habits, page, roots};
use crate::secret::Secret;

/// Where the API is, and who asks.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Use this context of the file of contexts (~/.config/tenantry/config.toml)
    #[arg(long, global = true, env = "TENANTRY_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Address of tenantry's API, with any path prefix [default: the context's, or http://127.0.0.1:8080]
    #[arg(long, global = true, env = "TENANTRY_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Access token
    #[arg(long, global = true, env = "TENANTRY_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File that holds the access token
    #[arg(long, global = true, env = "TENANTRY_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Token endpoint of the issuer, to fetch a token with client credentials
    #[arg(long, global = true, env = "TENANTRY_OIDC_TOKEN_URL", value_name = "URL")]
    pub oidc_token_url: Option<String>,
    /// Client id there
    #[arg(long, global = true, env = "TENANTRY_OIDC_CLIENT_ID", value_name = "ID")]
    pub oidc_client_id: Option<String>,
    /// Client secret there
    #[arg(
        long,
        global = true,
        env = "TENANTRY_OIDC_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    pub oidc_client_secret: Option<String>,
    /// Scopes of that token
    #[arg(
        long,
        global = true,
        env = "TENANTRY_OIDC_SCOPE",
        value_name = "SCOPES",
        default_value = "openid profile email"
    )]
    pub oidc_scope: String,
    /// PEM bundle of root certificates to trust beside the system's
    #[arg(long, global = true, env = "EXTRA_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// The longest time of one request, beside what it asks the server to wait.
pub const TIMEOUT: Duration = Duration::from_secs(30);

const HABITS: Habits = Habits {
    agent: concat!("tenantry-cli/", env!("CARGO_PKG_VERSION")),
    connect: Duration::from_secs(5),
    // Each request has its own.
    total: None,
};

/// An answer that is no refusal.
pub struct Answer {
    pub body: Value,
    pub etag: Option<HeaderValue>,
}

/// A request to the API.
#[derive(Clone)]
pub struct Ask<'a> {
    method: Method,
    path: &'a [&'a str],
    /// What a server lacks that does not know it: `way to pause tenants`.
    feature: &'static str,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, HeaderValue)>,
    body: Option<Value>,
    waits: Duration,
}

impl<'a> Ask<'a> {
    pub fn new(method: Method, path: &'a [&'a str], feature: &'static str) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self { method, path, feature, query, headers, body: None, waits: Duration::ZERO }
    }

    pub fn get(path: &'a [&'a str], feature: &'static str) -> Self {
        Self::new(Method::GET, path, feature)
    }

    #[must_use]
    pub fn query(mut self, name: &'static str, value: Option<String>) -> Self {
        self.query.extend(value.map(|value| (name, value)));
        self
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: Option<HeaderValue>) -> Self {
        self.headers.extend(value.map(|value| (name, value)));
        self
    }

    #[must_use]
    pub fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Asks the server to answer only when the tenant has settled, if it can.
    #[must_use]
    pub fn wait(mut self, wait: Option<Duration>) -> Self {
        if let Some(wait) = wait {
            self.waits = wait;
            let preference = HeaderValue::try_from(format!("wait={}", wait.as_secs().max(1)));
            self.headers.extend(preference.ok().map(|value| ("prefer", value)));
        }
        self
    }
}

/// A connection to the API. Idle until it is asked something.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    resolved: Resolved,
    /// A command may run for days, and then needs more than one.
    token: RwLock<Option<Secret>>,
}

impl Client {
    /// # Errors
    /// When a setting is wrong, or the issuer gives no token.
    pub async fn new(connection: &Connection) -> Result<Self, Failure> {
        let resolved = profile::resolve(connection)?;
        let wrong = |why: String| match &resolved.context {
            Some(context) if some(&connection.url).is_none() => {
                Failure::usage(format!("the url of the context {context} {why}"))
            }
            _ => Failure::usage(format!("TENANTRY_URL {why}")),
        };
        let base = BaseUrl::parse(&resolved.url, "tenants").map_err(|error| wrong(error.to_string()))?;
        let base = Url::parse(&base.to_string()).map_err(|error| wrong(error.to_string()))?;
        let http = http(&resolved, base.scheme() == "https")?;
        let token = resolved.source.token(&http).await?;
        Ok(Self { http, base, resolved, token: RwLock::new(token) })
    }

    /// What asks the issuer of a login.
    ///
    /// # Errors
    /// When a setting is wrong.
    pub fn http(connection: &Connection) -> Result<reqwest::Client, Failure> {
        http(&profile::resolve(connection)?, false)
    }

    /// Where the API is, and which context says so.
    pub fn describe(&self) -> String {
        let context = self.resolved.context.as_ref().map(|name| format!(" (context {name})"));
        format!("{}{}", self.base.as_str().trim_end_matches('/'), context.unwrap_or_default())
    }

    fn token(&self) -> Option<Secret> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// After the token was refused: whether there is another one now, in its file or at the issuer.
    async fn renew_token(&self) -> Result<bool, Failure> {
        let Some(refused) = self.token() else { return Ok(false) };
        let another = self.resolved.source.another(&self.http, &refused).await?;
        let renewed = another.is_some();
        if renewed {
            *self.token.write().unwrap_or_else(PoisonError::into_inner) = another;
        }
        Ok(renewed)
    }

    /// The answer, with another token where the first is refused.
    async fn send(&self, ask: Ask<'_>, timeout: Option<Duration>) -> Result<reqwest::Response, Failure> {
        let unreachable = |error| self.unreachable(error);
        let answer = self.request(ask.clone(), timeout)?.send().await.map_err(unreachable)?;
        if answer.status() == StatusCode::UNAUTHORIZED && self.renew_token().await? {
            return self.request(ask, timeout)?.send().await.map_err(unreachable);
        }
        Ok(answer)
    }

    /// A stream of server-sent events, which ends when the server or the network ends it.
    pub async fn events(&self, ask: Ask<'_>) -> Result<reqwest::Response, Failure> {
        let (what, url, feature) = (self.what(&ask), self.url(ask.path), ask.feature);
        let answer = self.send(ask, None).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.map_err(|error| self.unreachable(error))?;
        Err(Failure::refused(status.as_u16(), &text, &what, &url, feature))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn what(&self, ask: &Ask<'_>) -> String {
        format!("{} {}", ask.method, self.url(ask.path).path())
    }

    fn request(
        &self,
        ask: Ask<'_>,
        timeout: Option<Duration>,
    ) -> Result<reqwest::RequestBuilder, Failure> {
        let mut request = self.http.request(ask.method, self.url(ask.path)).query(&ask.query);
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(token) = self.token() {
            request = request.header(AUTHORIZATION, bearer(&token)?);
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        if let Some(body) = ask.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        Ok(request)
    }

    pub async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Failure> {
        self.answer(ask, StatusCode::is_success).await
    }

    /// The same where a server that has no room now tells something too.
    pub async fn ask_whatever_comes(&self, ask: Ask<'_>) -> Result<Answer, Failure> {
        let tells =
            |status: &StatusCode| status.is_success() || *status == StatusCode::SERVICE_UNAVAILABLE;
        self.answer(ask, tells).await
    }

    async fn answer(&self, ask: Ask<'_>, tells: fn(&StatusCode) -> bool) -> Result<Answer, Failure> {
        let (what, feature, limit) = (self.what(&ask), ask.feature, TIMEOUT + ask.waits);
        let url = self.url(ask.path);
        let answer = self.send(ask, Some(limit)).await?;
        let (status, etag) = (answer.status(), answer.headers().get(ETAG).cloned());
        let retry_after = retry_after(&answer);
        let text = answer.text().await.map_err(|error| self.unreachable(error))?;
        if status.is_redirection() {
            return Err(Failure::failed(no_api(&what, &format!("with a redirection ({status})"))));
        }
        if !tells(&status) {
            let mut refused = Failure::refused(status.as_u16(), &text, &what, &url, feature);
            refused.retry_after = retry_after;
            return Err(refused);
        }
        let body = match serde_json::from_str(&text) {
            Ok(body) => body,
            Err(_) if status == StatusCode::NO_CONTENT || text.is_empty() => Value::Null,
            Err(_) => {
                let other = page(text.as_bytes(), &url).unwrap_or_else(|| "no JSON".into());
                return Err(Failure::failed(no_api(&what, &format!("with {other}"))));
            }
        };
        Ok(Answer { body, etag })
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let base = self.base.as_str().trim_end_matches('/');
        let in_time = !error.is_timeout() || error.is_connect();
        let why = Broken::from(error).in_words(&self.base);
        if !in_time {
            return Failure::new(Exit::Timeout, format!("{base}: {why}"));
        }
        let mut failure = Failure::failed(format!(
            "cannot reach {base}: {} Is tenantry running there? TENANTRY_URL or --url says where it is",
            sentence(why)
        ));
        failure.hopeless = true;
        failure
    }
}

/// After how long a server that has no room now is to be asked again.
fn retry_after(answer: &reqwest::Response) -> Option<Duration> {
    let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    busy.contains(&answer.status()).then_some(Duration::from_secs(seconds))
}

pub fn some(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// What sends requests, with the roots that it needs.
fn http(resolved: &Resolved, secure: bool) -> Result<reqwest::Client, Failure> {
    let extra = match &resolved.ca_file {
        Some(file) => {
            let wrong = |why| Failure::usage(format!("EXTRA_CA_FILE: {}: {why}", file.display()));
            let bundle = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
            roots(&bundle).map_err(wrong)?
        }
        None => Vec::new(),
    };
    let trusts_some = !extra.is_empty();
    let Connections { client, rootless } =
        Connections::new(&HABITS, extra).map_err(|error| Failure::failed(error.to_string()))?;
    let needs_roots = secure || resolved.source.needs_roots();
    if let Some(why) = rootless.filter(|_| needs_roots && !trusts_some) {
        return Err(Failure::failed(format!(
            "cannot read the system's root certificates, without which no https:// address can be \
             trusted: {why}. Install them, or give those to trust in EXTRA_CA_FILE or --ca-file"
        )));
    }
    Ok(client)
}

fn bearer(token: &Secret) -> Result<HeaderValue, Failure> {
    let value = HeaderValue::try_from(format!("Bearer {}", token.current().expose_secret()));
    let mut value = value.map_err(|_| Failure::usage("the token holds characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// With its full stop.
pub fn sentence(text: String) -> String {
    if text.ends_with(['.', '?']) { text } else { text + "." }
}
