//! Where the token comes from that the command line shows to the API.

use std::path::Path;

use reqwest::header::LOCATION;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::client::{Connection, TIMEOUT, sentence, some};
use super::failure::{Exit, Failure};
use super::login;
use super::profile::Login;
use crate::http::{Broken, TokenAnswer, no_token_endpoint, page};
use crate::secret::Secret;

/// See the module.
#[derive(Clone)]
pub enum Source {
    None,
    /// Directly, or in a file, which is read again when the token is refused.
    Given(Secret),
    Client(ClientCredentials),
    Login(Login),
}

/// Of a service.
#[derive(Clone)]
pub struct ClientCredentials {
    /// What names the endpoint, for messages.
    pub setting: String,
    pub token_url: String,
    pub client_id: String,
    pub client_secret: SecretString,
    pub scope: String,
}

impl Source {
    /// What flags and variables say.
    ///
    /// # Errors
    /// When a file cannot be read, or something is missing.
    pub fn given(connection: &Connection) -> Result<Self, Failure> {
        if let Some(token) = some(&connection.token) {
            return Ok(Self::Given(Secret::from(token.trim())));
        }
        if let Some(file) = connection.token_file.as_deref().filter(|file| !file.as_os_str().is_empty())
        {
            return Self::file(file);
        }
        let Some(endpoint) = some(&connection.oidc_token_url) else { return Ok(Self::None) };
        let (Some(id), Some(secret)) =
            (some(&connection.oidc_client_id), some(&connection.oidc_client_secret))
        else {
            return Err(Failure::usage(
                "TENANTRY_OIDC_TOKEN_URL needs TENANTRY_OIDC_CLIENT_ID and TENANTRY_OIDC_CLIENT_SECRET too",
            ));
        };
        Ok(Self::Client(ClientCredentials {
            setting: "TENANTRY_OIDC_TOKEN_URL".into(),
            token_url: endpoint.to_owned(),
            client_id: id.to_owned(),
            client_secret: secret.into(),
            scope: connection.oidc_scope.clone(),
        }))
    }

    /// # Errors
    /// When it cannot be read.
    pub fn file(file: &Path) -> Result<Self, Failure> {
        let token = Secret::from_file("TENANTRY_TOKEN_FILE", file);
        token.map(Self::Given).map_err(|why| Failure::usage(format!("the file with the token: {why}")))
    }

    /// Whether the issuer is asked with TLS.
    pub fn needs_roots(&self) -> bool {
        let issuer = match self {
            Self::Client(client) => &client.token_url,
            Self::Login(login) => &login.issuer,
            Self::None | Self::Given(_) => return false,
        };
        issuer.starts_with("https:")
    }

    /// The token to show.
    ///
    /// # Errors
    /// When the issuer gives none.
    pub async fn token(&self, http: &reqwest::Client) -> Result<Option<Secret>, Failure> {
        match self {
            Self::None => Ok(None),
            Self::Given(token) => Ok(Some(token.clone())),
            Self::Client(client) => client.token(http).await.map(Some),
            Self::Login(of) => login::token(http, of, None).await.map(Some),
        }
    }

    /// Another one, after this one was refused. `None` if there is none.
    ///
    /// # Errors
    /// As with [`Source::token`].
    pub async fn another(
        &self,
        http: &reqwest::Client,
        refused: &Secret,
    ) -> Result<Option<Secret>, Failure> {
        match self {
            Self::None => Ok(None),
            Self::Given(token) => Ok(token.reread().await.then(|| token.clone())),
            Self::Client(client) => client.token(http).await.map(Some),
            Self::Login(of) => login::token(http, of, Some(refused)).await.map(Some),
        }
    }
}

impl ClientCredentials {
    async fn token(&self, http: &reqwest::Client) -> Result<Secret, Failure> {
        let Self { setting, token_url: endpoint, .. } = self;
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.client_id),
            ("client_secret", self.client_secret.expose_secret()),
            ("scope", &self.scope),
        ];
        let url = Url::parse(endpoint).map_err(|error| Failure::usage(format!("{setting}: {error}")))?;
        let unreachable = |error: reqwest::Error| {
            let mut failure = Failure::failed(format!(
                "cannot reach the issuer at {endpoint}: {} {setting} says where it is",
                sentence(Broken::from(error).in_words(&url))
            ));
            failure.hopeless = true;
            failure
        };
        let answer =
            http.post(url.clone()).timeout(TIMEOUT).form(&form).send().await.map_err(unreachable)?;
        let (status, leads) = (answer.status(), answer.headers().get(LOCATION).cloned());
        let body = answer.bytes().await.map_err(unreachable)?;
        let leads = leads.as_ref().and_then(|to| to.to_str().ok()).filter(|_| status.is_redirection());
        let mut no_token = format!("the issuer at {endpoint} gives no token ({status}");
        let other = leads.map(|to| format!("a redirection to {to}")).or_else(|| page(&body, &url));
        if let Some(other) = other {
            no_token.push_str(&format!(": {other}"));
        }
        Err(match TokenAnswer::read(status, &body, &url) {
            TokenAnswer::Granted { token, .. } => return Ok(token.into()),
            TokenAnswer::Refused { why } => {
                let message = format!(
                    "{no_token}: {why}). Are TENANTRY_OIDC_CLIENT_ID and TENANTRY_OIDC_CLIENT_SECRET right?"
                );
                Failure::new(Exit::NotAuthorized, message)
            }
            TokenAnswer::WrongAddress => {
                Failure::usage(format!("{setting}: {no_token}). {}", no_token_endpoint(&url)))
            }
            TokenAnswer::Failed => Failure::failed(format!(
                "{no_token}): an error inside it, or before it; try again, and look into its log"
            )),
            TokenAnswer::Odd => {
                Failure::failed(format!("{no_token}): its answer holds no access_token"))
            }
        })
    }
}
