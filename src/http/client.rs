//! The HTTP client that all integrations share.
//!
//! rustls with the system's root certificates and `EXTRA_CA_FILE`'s, connect and total time limits,
//! the environment's proxies, and no redirects: an API that redirects is not the API, and the
//! `Authorization` header must not follow. The command line's client is made here as well.

use std::error::Error as StdError;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::ACCEPT;
use reqwest::{Certificate, Client, StatusCode, redirect};
use secrecy::ExposeSecret;
use url::Url;

use super::broken::Broken;
use super::proxy::{Through, obeyed};
use crate::secret::Secret;

/// The longest public document that is read, in bytes.
const MAX_DOCUMENT: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    #[error("EXTRA_CA_FILE: {0}")]
    ExtraCa(String),
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Connections to all upstreams. Cheap to clone: clones share them, and whom they trust.
#[derive(Clone)]
pub struct HttpClient(Arc<Shared>);

struct Shared {
    /// A PEM bundle of root certificates to trust beside the system's.
    extra_ca: Option<Secret>,
    total: Duration,
    /// The connections, and the version of the bundle that they were made for.
    made: RwLock<(Client, u64)>,
}

impl HttpClient {
    /// `extra_ca` is a PEM bundle of root certificates to trust beside the system's; `total` bounds each
    /// request.
    ///
    /// # Errors
    /// When the bundle holds no certificate, or TLS cannot be set up.
    pub fn new(extra_ca: Option<Secret>, total: Duration) -> Result<Self, HttpClientError> {
        let version = extra_ca.as_ref().map_or(0, Secret::version);
        let made = RwLock::new((connections(extra_ca.as_ref(), total)?, version));
        Ok(Self(Arc::new(Shared { extra_ca, total, made })))
    }

    /// The bundle of roots, if there is one.
    pub fn extra_ca(&self) -> Option<&Secret> {
        self.0.extra_ca.as_ref()
    }

    /// The connections to use now: new ones once the bundle of roots is another one.
    pub fn client(&self) -> Client {
        let Shared { extra_ca, total, made } = &*self.0;
        let version = extra_ca.as_ref().map_or(0, Secret::version);
        {
            let made = made.read().unwrap_or_else(PoisonError::into_inner);
            if made.1 == version {
                return made.0.clone();
            }
        }
        let mut made = made.write().unwrap_or_else(PoisonError::into_inner);
        if made.1 != version {
            match connections(extra_ca.as_ref(), *total) {
                Ok(client) => made.0 = client,
                Err(error) => tracing::error!("the root certificates before are kept: {error}"),
            }
            made.1 = version;
        }
        made.0.clone()
    }

    /// Reads a small public document, without credentials; whatever its status.
    ///
    /// # Errors
    /// In words: what kept it from being read.
    pub async fn document(&self, url: &Url) -> Result<(StatusCode, Vec<u8>), String> {
        let broken = |error: reqwest::Error| Broken::from(error).in_words(url);
        let request = self.client().get(url.clone()).header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(broken)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > MAX_DOCUMENT {
                return Err(format!("it is longer than {MAX_DOCUMENT} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }
}

fn connections(extra_ca: Option<&Secret>, total: Duration) -> Result<Client, HttpClientError> {
    let extra = extra_ca.map(|bundle| roots(bundle.current().expose_secret())).transpose();
    let extra = extra.map_err(HttpClientError::ExtraCa)?.unwrap_or_default();
    let habits = Habits {
        agent: concat!("tenantry/", env!("CARGO_PKG_VERSION")),
        connect: (total / 2).min(Duration::from_secs(5)),
        total: Some(total),
    };
    let Connections { client, rootless } = Connections::new(&habits, extra)?;
    if let Some(why) = rootless {
        tracing::warn!(
            error = why,
            "cannot read the system's root certificates; trusting only EXTRA_CA_FILE's"
        );
    }
    Ok(client)
}

/// In what the clients of the program differ.
pub struct Habits {
    pub agent: &'static str,
    /// The longest time until there is a connection.
    pub connect: Duration,
    /// The longest time of a request that sets none of its own.
    pub total: Option<Duration>,
}

/// Connections to be made.
pub struct Connections {
    pub client: Client,
    /// Why the system's root certificates cannot be read. Only the extra ones are trusted then, and what
    /// needs no TLS works all the same.
    pub rootless: Option<String>,
}

impl Connections {
    /// `extra` are roots to trust beside the system's.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(habits: &Habits, extra: Vec<Certificate>) -> Result<Self, HttpClientError> {
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            let builder = obeyed(Client::builder())
                .user_agent(habits.agent)
                .connect_timeout(habits.connect)
                .redirect(redirect::Policy::none())
                .pool_idle_timeout(Duration::from_secs(30));
            match habits.total {
                Some(total) => builder.timeout(total),
                None => builder,
            }
        };
        let error = match builder().tls_certs_merge(extra.clone()).build() {
            Ok(client) => return Ok(Self { client, rootless: None }),
            Err(error) => innermost(&error),
        };
        let client = builder().tls_certs_only(extra).build();
        let client = client.map_err(|error| HttpClientError::Tls(innermost(&error)))?;
        Ok(Self { client, rootless: Some(error) })
    }
}

/// In words: what the status 407 means, which only proxies answer.
pub fn challenged(url: &Url) -> String {
    let through = Through::to(Some(url));
    format!(
        "cannot get{through}, which demands credentials (407): give them with its address, as in \
         http://NAME:PASSWORD@HOST:PORT"
    )
}

/// In words: that a body is a page, which no API answers, and whose it may be. Nothing of what it says.
pub fn page(body: &[u8], url: &Url) -> Option<String> {
    let start = body.trim_ascii_start();
    if !start.starts_with(b"<") {
        return None;
    }
    let language = if start.starts_with(b"<?xml") { "XML" } else { "HTML" };
    let whose = match Through::to(Some(url)).proxy() {
        Some(proxy) => format!(", perhaps of the proxy {proxy}, which the environment names"),
        None => String::new(),
    };
    Some(format!("a page of {language}{whose}"))
}

/// The root certificates in a PEM bundle.
///
/// # Errors
/// In words: why there are none.
pub fn roots(bundle: &str) -> Result<Vec<Certificate>, String> {
    let certificates =
        Certificate::from_pem_bundle(bundle.as_bytes()).map_err(|error| innermost(&error))?;
    if certificates.is_empty() {
        return Err("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)".into());
    }
    Ok(certificates)
}

/// The cause at the bottom, which is the one that says what happened.
pub fn innermost(error: &dyn StdError) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
