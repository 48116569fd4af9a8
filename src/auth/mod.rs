//! Who asks: bearer tokens of OIDC issuers, and the roles that come with them.
//!
//! A signature proves little here: an Authentik signs the tokens of all its applications with the same
//! key. What decides is the issuer, to the letter, together with the audience, and that the token is one
//! for access and no ID token.

mod issuer;
mod keys;
mod principal;
mod roles;
mod verify;

pub use issuer::{InvalidIssuer, IssuerConfig};
pub use keys::KEY_REFRESH;
pub use principal::{Principal, Role};
pub use roles::RoleMapping;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::join_all;

use self::keys::{Keys, Missing};
use crate::http::HttpClient;
use crate::metrics::{Counters, Metrics, Worked};

/// Whom the API trusts, and what it makes of what they say.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    pub issuers: Vec<IssuerConfig>,
    pub roles: RoleMapping,
    /// The least time between two requests for an issuer's keys that tokens with unknown keys cause.
    pub key_refresh: Duration,
}

/// Why a token is not accepted. Nothing in it is secret, and nothing in it is the token's own text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another token is needed.
    #[error("{0}")]
    Invalid(String),
    /// The issuer's keys cannot be had, so nothing can be said about the token.
    #[error("{why}")]
    Unavailable { why: &'static str, retry_in: Duration },
}

impl Refusal {
    fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }
}

/// Checks tokens. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    /// Whom it trusts now; another list takes this one's place as a whole.
    issuers: Arc<RwLock<Arc<[Trusted]>>>,
    roles: Arc<RoleMapping>,
    http: HttpClient,
    key_refresh: Duration,
    refreshes: Counters<Worked>,
}

#[derive(Clone)]
struct Trusted {
    config: IssuerConfig,
    keys: Arc<Keys>,
}

/// No token that is needed is longer, in bytes; headers may be.
const MAX_TOKEN: usize = 16 << 10;

impl Authenticator {
    pub fn new(config: AuthConfig, http: &HttpClient, metrics: &Metrics) -> Self {
        let AuthConfig { issuers, roles, key_refresh } = config;
        let (no_issuers, roles, http) = (Arc::default(), Arc::new(roles), http.clone());
        let refreshes = metrics.jwks_refreshes.clone();
        let authenticator = Self { issuers: no_issuers, roles, http, key_refresh, refreshes };
        authenticator.trust(issuers);
        authenticator
    }

    /// Trusts these issuers from now on, and no others. The keys of those that stay are kept.
    pub fn trust(&self, issuers: Vec<IssuerConfig>) {
        let before = self.issuers();
        let issuers = issuers.into_iter().map(|config| {
            let known = before.iter().find(|trusted| trusted.config == config);
            known.cloned().unwrap_or_else(|| {
                let keys = Keys::new(
                    config.clone(),
                    self.http.clone(),
                    self.key_refresh,
                    self.refreshes.clone(),
                );
                Trusted { config, keys: Arc::new(keys) }
            })
        });
        let issuers = issuers.collect();
        *self.issuers.write().unwrap_or_else(PoisonError::into_inner) = issuers;
    }

    fn issuers(&self) -> Arc<[Trusted]> {
        Arc::clone(&self.issuers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches every issuer's keys, so that the first request need not wait and what is wrong is in the
    /// log from the start. An issuer that is away is asked again when a token needs it.
    pub async fn prepare(&self) {
        join_all(self.issuers().iter().map(|trusted| trusted.keys.prepare())).await;
    }

    /// Says whose token this is.
    ///
    /// # Errors
    /// A [`Refusal`] that says what is wrong with it, or that its issuer is away.
    pub async fn authenticate(&self, token: &str) -> Result<Principal, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::invalid("the token is too long"));
        }
        let token = verify::look(token)?;
        let issuers = self.issuers();
        let trusted = issuers.iter().find(|trusted| trusted.config.issuer == token.issuer);
        let Some(Trusted { config, keys }) = trusted else {
            return Err(Refusal::invalid(
                "the token is of an issuer that is not trusted here (its iss counts to the letter, \
                 including the slash at the end)",
            ));
        };
        let keys = keys.find(token.algorithm, token.key_id.as_deref()).await;
        let keys = keys.map_err(|missing| match missing {
            Missing::Unknown => Refusal::invalid(
                "the token is signed with a key that its issuer does not publish, or not yet",
            ),
            Missing::Unavailable { why, retry_in } => Refusal::Unavailable { why, retry_in },
        })?;
        let claims = verify::verify(token, &keys, config)?;
        Ok(Principal::from_claims(&claims, &config.issuer, self.roles.of(&claims)))
    }
}
