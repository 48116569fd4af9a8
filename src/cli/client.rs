//! Requests to tenantry's HTTP API.

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use clap::Args;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;
use url::Url;

use super::failure::{Exit, Failure};
use crate::integration::{BaseUrl, Broken, TokenAnswer, no_token_endpoint, roots};
use crate::secret::Secret;

/// Where the API is, and who asks.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Address of tenantry's API, with any path prefix
    #[arg(long, global = true, env = "TENANTRY_URL", value_name = "URL", default_value = DEFAULT_URL)]
    url: String,
    /// Access token
    #[arg(long, global = true, env = "TENANTRY_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// File that holds the access token
    #[arg(long, global = true, env = "TENANTRY_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Token endpoint of the issuer, to fetch a token with client credentials
    #[arg(long, global = true, env = "TENANTRY_OIDC_TOKEN_URL", value_name = "URL")]
    oidc_token_url: Option<String>,
    /// Client id there
    #[arg(long, global = true, env = "TENANTRY_OIDC_CLIENT_ID", value_name = "ID")]
    oidc_client_id: Option<String>,
    /// Client secret there
    #[arg(
        long,
        global = true,
        env = "TENANTRY_OIDC_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    oidc_client_secret: Option<String>,
    /// Scopes of that token
    #[arg(
        long,
        global = true,
        env = "TENANTRY_OIDC_SCOPE",
        value_name = "SCOPES",
        default_value = "openid profile email"
    )]
    oidc_scope: String,
    /// PEM bundle of root certificates to trust beside the system's
    #[arg(long, global = true, env = "EXTRA_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// The longest time of one request, beside what it asks the server to wait.
const TIMEOUT: Duration = Duration::from_secs(30);

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
    connection: Connection,
    /// A command may run for days, and then needs more than one.
    token: RwLock<Option<Secret>>,
}

impl Client {
    /// # Errors
    /// When a setting is wrong, or the issuer gives no token.
    pub async fn new(connection: &Connection) -> Result<Self, Failure> {
        let base = BaseUrl::parse(&connection.url, "tenants")
            .map_err(|error| Failure::usage(format!("TENANTRY_URL {error}")))?;
        let base = Url::parse(&base.to_string())
            .map_err(|error| Failure::usage(format!("TENANTRY_URL {error}")))?;
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let extra = match connection.ca_file.as_deref().filter(|file| !file.as_os_str().is_empty()) {
            Some(file) => {
                let wrong = |why| Failure::usage(format!("EXTRA_CA_FILE: {}: {why}", file.display()));
                let bundle = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
                roots(&bundle).map_err(wrong)?
            }
            None => Vec::new(),
        };
        let http = reqwest::Client::builder()
            .user_agent(concat!("tenantry-cli/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            // A redirect must not take the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge(extra)
            .build()
            .map_err(|error| Failure::failed(format!("cannot set up TLS: {}", cause(&error))))?;
        let token = match given(connection)? {
            Some(token) => Some(token),
            None => issued(&http, connection).await?,
        };
        Ok(Self { http, base, connection: connection.clone(), token: RwLock::new(token) })
    }

    fn token(&self) -> Option<Secret> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// After the token was refused: whether there is another one now, in its file or at the issuer.
    async fn renew_token(&self) -> Result<bool, Failure> {
        match self.token() {
            Some(token) if token.is_from_file() => Ok(token.reread().await),
            Some(_) if some(&self.connection.token).is_none() => {
                let another = issued(&self.http, &self.connection).await?;
                *self.token.write().unwrap_or_else(PoisonError::into_inner) = another;
                Ok(true)
            }
            _ => Ok(false),
        }
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
        let (what, feature) = (self.what(&ask), ask.feature);
        let answer = self.send(ask, None).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.map_err(|error| self.unreachable(error))?;
        Err(Failure::refused(status.as_u16(), &text, &what, feature))
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
        let (what, feature, limit) = (self.what(&ask), ask.feature, TIMEOUT + ask.waits);
        let answer = self.send(ask, Some(limit)).await?;
        let (status, etag) = (answer.status(), answer.headers().get(ETAG).cloned());
        let text = answer.text().await.map_err(|error| self.unreachable(error))?;
        if status.is_redirection() {
            let message =
                format!("{what} was redirected ({status}): is TENANTRY_URL the API's own address?");
            return Err(Failure::failed(message));
        }
        if !status.is_success() {
            return Err(Failure::refused(status.as_u16(), &text, &what, feature));
        }
        let body = match serde_json::from_str(&text) {
            Ok(body) => body,
            Err(_) if status == StatusCode::NO_CONTENT || text.is_empty() => Value::Null,
            Err(_) => {
                let message =
                    format!("{what} did not answer JSON: is TENANTRY_URL the API's own address?");
                return Err(Failure::failed(message));
            }
        };
        Ok(Answer { body, etag })
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let base = self.base.as_str().trim_end_matches('/');
        if error.is_timeout() && !error.is_connect() {
            return Failure::new(Exit::Timeout, format!("{base} did not answer in time"));
        }
        Failure::failed(format!(
            "cannot reach {base}: {}. Is tenantry running there? TENANTRY_URL or --url says where it is",
            Broken::from(error).in_words()
        ))
    }
}

fn some(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// The token that was given, directly or in a file.
fn given(connection: &Connection) -> Result<Option<Secret>, Failure> {
    if let Some(token) = some(&connection.token) {
        return Ok(Some(Secret::from(token.trim())));
    }
    let file = connection.token_file.as_deref().filter(|file| !file.as_os_str().is_empty());
    let token = file.map(|file| Secret::from_file("TENANTRY_TOKEN_FILE", file)).transpose();
    token.map_err(|why| Failure::usage(format!("TENANTRY_TOKEN_FILE: {why}")))
}

/// A token of the issuer, where one is configured.
async fn issued(http: &reqwest::Client, connection: &Connection) -> Result<Option<Secret>, Failure> {
    let Some(endpoint) = some(&connection.oidc_token_url) else { return Ok(None) };
    let (Some(id), Some(secret)) =
        (some(&connection.oidc_client_id), some(&connection.oidc_client_secret))
    else {
        return Err(Failure::usage(
            "TENANTRY_OIDC_TOKEN_URL needs TENANTRY_OIDC_CLIENT_ID and TENANTRY_OIDC_CLIENT_SECRET too",
        ));
    };
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", id),
        ("client_secret", secret),
        ("scope", &connection.oidc_scope),
    ];
    let url = Url::parse(endpoint)
        .map_err(|error| Failure::usage(format!("TENANTRY_OIDC_TOKEN_URL: {error}")))?;
    let unreachable = |error: reqwest::Error| {
        Failure::failed(format!(
            "cannot reach the issuer at {endpoint}: {}",
            Broken::from(error).in_words()
        ))
    };
    let answer =
        http.post(url.clone()).timeout(TIMEOUT).form(&form).send().await.map_err(unreachable)?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(unreachable)?;
    let no_token = format!("the issuer at {endpoint} gives no token ({status}");
    Err(match TokenAnswer::read(status, &body, &url) {
        TokenAnswer::Granted { token, .. } => return Ok(Some(token.into())),
        TokenAnswer::Refused { why } => {
            let message = format!(
                "{no_token}: {why}). Are TENANTRY_OIDC_CLIENT_ID and TENANTRY_OIDC_CLIENT_SECRET right?"
            );
            Failure::new(Exit::NotAuthorized, message)
        }
        TokenAnswer::WrongAddress => {
            Failure::usage(format!("TENANTRY_OIDC_TOKEN_URL: {no_token}). {}", no_token_endpoint(&url)))
        }
        TokenAnswer::Failed => Failure::failed(format!("{no_token}): an error inside it; try again")),
        TokenAnswer::Odd => Failure::failed(format!("{no_token}): its answer holds no access_token")),
    })
}

fn bearer(token: &Secret) -> Result<HeaderValue, Failure> {
    let value = HeaderValue::try_from(format!("Bearer {}", token.current().expose_secret()));
    let mut value = value.map_err(|_| Failure::usage("the token holds characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The cause at the bottom, which is the one that says what happened.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
