//! `tenantry login` and `logout`: a person's token, by the device authorization grant (RFC 8628).
//!
//! # Guarantees
//!
//! * The token is kept in a file that only its owner may read, and shown to the context's API only.
//! * It is renewed shortly before it ends, by one process at a time: an issuer may take each refresh token once.
//! * No token is ever in a message.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use super::client::{Client, Connection, TIMEOUT, sentence};
use super::failure::{Exit, Failure};
use super::printable::in_line;
use super::profile::{self, Login};
use super::token::Source;
use super::{private, whoami};
use crate::http::{Broken, page};
use crate::secret::Secret;
use crate::terminal::say;

#[derive(Debug, Args)]
pub struct LogIn {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub struct LogOut {
    #[command(flatten)]
    connection: Connection,
}

/// What is kept of a login.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    access_token: String,
    refresh_token: Option<String>,
    expires_at: Option<Timestamp>,
}

/// Of the discovery document, what is needed.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    token_endpoint: Url,
    device_authorization_endpoint: Option<Url>,
}

/// The answer of the device authorization endpoint (RFC 8628, section 3.2).
#[derive(Deserialize)]
struct Device {
    device_code: String,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: Option<u64>,
}

/// The answer of the token endpoint.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    error_description: Option<String>,
}

/// Between questions whether the person has agreed, unless the issuer says otherwise.
const INTERVAL: u64 = 5;
/// However short the issuer says.
const SHORTEST: Duration = Duration::from_millis(200);
/// More between them, each time that the issuer asks for it, or does not answer.
const SLOWER: Duration = Duration::from_secs(5);
/// A token that ends so soon is renewed before it is used.
const SOON: Duration = Duration::from_secs(30);
const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The login of the context in use.
fn login_of(connection: &Connection) -> Result<Login, Failure> {
    match profile::resolve(connection)?.source {
        Source::Login(login) => Ok(login),
        Source::Given(_) | Source::Client(_) => Err(Failure::usage(
            "there is a token without a login: remove TENANTRY_TOKEN, TENANTRY_TOKEN_FILE and \
             TENANTRY_OIDC_TOKEN_URL, or choose a context with [contexts.NAME.login] (--context)",
        )),
        Source::None => Err(Failure::usage(
            "no context says where to log in. Write to ~/.config/tenantry/config.toml, for example:\n\n  \
             [contexts.prod]\n  url = \"https://tenantry.acme.test\"\n  [contexts.prod.login]\n  \
             issuer = \"https://id.acme.test/application/o/tenantry/\"\n  client_id = \"tenantry\"",
        )),
    }
}

impl LogIn {
    pub async fn run(self) -> Result<String, Failure> {
        let login = login_of(&self.connection)?;
        let http = Client::http(&self.connection)?;
        let discovery = discover(&http, &login).await?;
        let kept = agreed(&http, &login, &discovery).await?;
        keep(&login, &kept)?;
        // What the API makes of it, so that a missing role is seen now.
        let client = Client::new(&self.connection).await?;
        whoami::told(&client).await
    }
}

impl LogOut {
    pub fn run(self) -> Result<String, Failure> {
        let path = path_of(&login_of(&self.connection)?)?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok("logged out: the token is removed from this machine\n".into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("not logged in\n".into()),
            Err(error) => Err(Failure::failed(format!("{}: {error}", path.display()))),
        }
    }
}

/// The token of a login, renewed if it ends soon or is the one that was refused.
///
/// # Errors
/// When there is no login, or it has ended.
pub async fn token(
    http: &reqwest::Client,
    login: &Login,
    refused: Option<&Secret>,
) -> Result<Secret, Failure> {
    let good = |kept: &Kept| {
        let refused =
            refused.is_some_and(|refused| refused.current().expose_secret() == kept.access_token);
        let later = Timestamp::now() + SOON;
        !refused && kept.expires_at.is_none_or(|ends| ends > later)
    };
    let kept = read(login)?.ok_or_else(not_logged_in)?;
    if good(&kept) {
        return Ok(Secret::from(kept.access_token.as_str()));
    }
    let lock = path_of(login)?.with_extension("lock");
    // It blocks for as long as another process asks the issuer.
    let _lock = tokio::task::spawn_blocking(move || private::lock(&lock)).await;
    let kept = read(login)?.ok_or_else(not_logged_in)?;
    if good(&kept) {
        return Ok(Secret::from(kept.access_token.as_str()));
    }
    let renewed = renew(http, login, kept).await?;
    keep(login, &renewed)?;
    Ok(Secret::from(renewed.access_token.as_str()))
}

fn not_logged_in() -> Failure {
    Failure::new(Exit::NotAuthorized, "not logged in: run tenantry login")
}

async fn renew(http: &reqwest::Client, login: &Login, kept: Kept) -> Result<Kept, Failure> {
    let ended = |why: &str| {
        Failure::new(Exit::NotAuthorized, format!("the login has ended{why}: run tenantry login"))
    };
    let refresh = kept.refresh_token.ok_or_else(|| ended(""))?;
    let discovery = discover(http, login).await?;
    let form =
        [("grant_type", "refresh_token"), ("refresh_token", &refresh), ("client_id", &login.client_id)];
    match ask(http, &discovery.token_endpoint, &form).await? {
        Answer::Granted(mut renewed) => {
            // It may stay the same (RFC 6749, section 6).
            renewed.refresh_token.get_or_insert(refresh);
            Ok(renewed)
        }
        Answer::Refused(refusal) => Err(ended(&format!(" ({})", refusal.words()))),
        Answer::Silent(why) => Err(Failure::failed(why)),
    }
}

/// Where the token of a login is kept.
fn path_of(login: &Login) -> Result<PathBuf, Failure> {
    let Login { issuer, client_id, scope } = login;
    let name = Sha256::digest(format!("{issuer}\n{client_id}\n{scope}"));
    let name: String = name.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    profile::beside(&format!("tokens/{name}.json"))
}

fn read(login: &Login) -> Result<Option<Kept>, Failure> {
    let text = private::read(&path_of(login)?)?;
    // One that cannot be read is as good as none.
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

fn keep(login: &Login, kept: &Kept) -> Result<(), Failure> {
    let text = serde_json::to_string(kept).map_err(|error| Failure::failed(error.to_string()))?;
    private::write(&path_of(login)?, &text)
}

async fn discover(http: &reqwest::Client, login: &Login) -> Result<Discovery, Failure> {
    let document = format!("{}/.well-known/openid-configuration", login.issuer.trim_end_matches('/'));
    let wrong = |why: String| Failure::usage(format!("issuer {}: {why}", login.issuer));
    let document = Url::parse(&document).map_err(|error| wrong(error.to_string()))?;
    let unreachable = |error: reqwest::Error| Failure::failed(unreachable(error, &document));
    let answer = http.get(document.clone()).timeout(TIMEOUT).send().await.map_err(unreachable)?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(unreachable)?;
    let found = serde_json::from_slice::<Discovery>(&body).ok().filter(|_| status == StatusCode::OK);
    let found = found.ok_or_else(|| {
        let other = page(&body, &document).map(|page| format!(": {page}")).unwrap_or_default();
        wrong(format!("there is no discovery document at {document} ({status}{other})"))
    })?;
    if found.issuer != login.issuer {
        return Err(wrong(format!("it calls itself {}: write it so, to the letter", found.issuer)));
    }
    Ok(found)
}

fn unreachable(error: reqwest::Error, url: &Url) -> String {
    format!("cannot reach the issuer at {url}: {}", sentence(Broken::from(error).in_words(url)))
}

/// What a token endpoint says.
enum Answer {
    Granted(Kept),
    Refused(Refusal),
    /// No answer, or an error inside it.
    Silent(String),
}

impl Refusal {
    fn words(&self) -> String {
        in_line(self.error_description.as_deref().unwrap_or(&self.error))
    }
}

async fn ask(http: &reqwest::Client, endpoint: &Url, form: &[(&str, &str)]) -> Result<Answer, Failure> {
    let sent = http.post(endpoint.clone()).timeout(TIMEOUT).form(form).send().await;
    let answer = match sent {
        Ok(answer) => answer,
        Err(error) => return Ok(Answer::Silent(unreachable(error, endpoint))),
    };
    let status = answer.status();
    let Ok(body) = answer.bytes().await else {
        return Ok(Answer::Silent(format!("{endpoint} did not answer to the end")));
    };
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Ok(Answer::Silent(format!("{endpoint} answered {status}")));
    }
    if let Ok(Granted { access_token, refresh_token, expires_in }) = serde_json::from_slice(&body)
        && status == StatusCode::OK
    {
        let expires_at = expires_in.map(|life| Timestamp::now() + Duration::from_secs(life));
        return Ok(Answer::Granted(Kept { access_token, refresh_token, expires_at }));
    }
    serde_json::from_slice(&body).map(Answer::Refused).map_err(|_| {
        let other = page(&body, endpoint).map(|page| format!(": {page}")).unwrap_or_default();
        Failure::failed(format!("{endpoint} is no token endpoint (it answered {status}{other})"))
    })
}

/// The token, once the person has agreed in a browser, on whatever device.
async fn agreed(http: &reqwest::Client, login: &Login, discovery: &Discovery) -> Result<Kept, Failure> {
    let Some(endpoint) = &discovery.device_authorization_endpoint else {
        return Err(Failure::failed(format!("{} offers no login for devices (RFC 8628)", login.issuer)));
    };
    let device = begin(http, login, endpoint).await?;
    tell(&device);
    let ends = Instant::now() + Duration::from_secs(device.expires_in);
    let mut pause = Duration::from_secs(device.interval.unwrap_or(INTERVAL)).max(SHORTEST);
    let form = [
        ("grant_type", DEVICE_CODE),
        ("device_code", device.device_code.as_str()),
        ("client_id", &login.client_id),
    ];
    while Instant::now() < ends {
        tokio::time::sleep(pause).await;
        match ask(http, &discovery.token_endpoint, &form).await? {
            Answer::Granted(kept) => return Ok(kept),
            Answer::Refused(refusal) => match refusal.error.as_str() {
                "authorization_pending" => {}
                "slow_down" => pause += SLOWER,
                "expired_token" => break,
                "access_denied" => {
                    return Err(Failure::new(Exit::NotAuthorized, "the login was declined"));
                }
                _ => {
                    let said = format!("the issuer refuses the login: {}", refusal.words());
                    return Err(Failure::new(Exit::NotAuthorized, said));
                }
            },
            Answer::Silent(_) => pause += SLOWER,
        }
    }
    Err(Failure::new(
        Exit::Timeout,
        "the code has expired before anyone entered it: run tenantry login again",
    ))
}

async fn begin(http: &reqwest::Client, login: &Login, endpoint: &Url) -> Result<Device, Failure> {
    let form = [("client_id", login.client_id.as_str()), ("scope", login.scope.as_str())];
    let sent = http.post(endpoint.clone()).timeout(TIMEOUT).form(&form).send().await;
    let unreachable = |error| Failure::failed(unreachable(error, endpoint));
    let answer = sent.map_err(unreachable)?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(unreachable)?;
    serde_json::from_slice(&body).map_err(|_| {
        let why = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.words(),
            Err(_) => page(&body, endpoint).unwrap_or_else(|| "it is no answer to a device".into()),
        };
        let said = format!(
            "{endpoint} begins no login ({status}: {why}). Is the client_id {} right, and may it use device codes?",
            login.client_id
        );
        Failure::new(Exit::NotAuthorized, said)
    })
}

fn tell(device: &Device) {
    let (address, code) = (in_line(&device.verification_uri), in_line(&device.user_code));
    say(format_args!("Open {address} in a browser, on any device, and enter the code {code}"));
    if let Some(complete) = &device.verification_uri_complete {
        say(format_args!("(or {}, and compare the code)", in_line(complete)));
    }
}
