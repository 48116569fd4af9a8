//! The simulated upstreams of `tenantry dev` and `tenantry sim`, set up as the real ones are recommended
//! to be, with credentials that are no secrets: they listen on loopback only, and hold nothing.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::{authentik, issuer, ocis, stalwart};
use crate::config::Given;
use crate::terminal;

pub const AUTHENTIK_TOKEN: &str = "dev-authentik-token";
pub const STALWART_KEY: &str = "API_dev-stalwart-key";
/// Of `tenantry sim` only: tokens with fewer rights, for tests of what is refused.
const AUTHENTIK_FEWER: [(&str, authentik::Rights); 2] =
    [("dev-authentik-viewer", authentik::Rights::Viewer), ("dev-authentik-own", authentik::Rights::Own)];
/// The same of Stalwart: what tenantry needs and no more, what only reads, and what may not come in.
const STALWART_FEWER: [(&str, &[&str]); 3] = [
    ("API_dev-stalwart-least", &stalwart::LEAST),
    ("API_dev-stalwart-reader", &["authenticate", "sysDomainGet", "sysDomainQuery"]),
    ("API_dev-stalwart-barred", &["sysDomainGet", "sysDomainQuery"]),
];
/// An account of the role User in the simulated oCIS.
const USER: &str = "user";
pub const ISSUER_SLUG: &str = "ocis";
/// The provider of those who use the API, and its client id.
pub const API_CLIENT: &str = "tenantry";
/// Their accounts; each has the role of its name.
pub const API_ACCOUNTS: [(&str, &str); 3] =
    [("reader", "tenantry-readers"), ("operator", "tenantry-operators"), ("admin", "tenantry-admins")];
/// A day's work with one token.
const TOKEN_VALIDITY: Duration = Duration::from_secs(12 * 3600);
pub const CLIENT: &str = "web";
pub const ACCOUNT: &str = "tenantry";
pub const APP_PASSWORD: &str = "dev-app-password";
const SPACE_ADMINS: &str = "tenant-provisioners";

/// Where the simulators listen; a port that is 0 or absent is a free one.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Ports {
    /// Port of the simulated Authentik; 0 takes a free one [default: 0]
    #[arg(long, env = "TENANTRY_AUTHENTIK_PORT", value_name = "PORT", help_heading = "Dev")]
    pub authentik_port: Option<u16>,
    /// Port of the simulated Stalwart; 0 takes a free one [default: 0]
    #[arg(long, env = "TENANTRY_STALWART_PORT", value_name = "PORT", help_heading = "Dev")]
    pub stalwart_port: Option<u16>,
    /// Port of the simulated issuer of oCIS' tokens and the API's; 0 takes a free one [default: 0]
    #[arg(long, env = "TENANTRY_ISSUER_PORT", value_name = "PORT", help_heading = "Dev")]
    pub issuer_port: Option<u16>,
    /// Port of the simulated oCIS; 0 takes a free one [default: 0]
    #[arg(long, env = "TENANTRY_OCIS_PORT", value_name = "PORT", help_heading = "Dev")]
    pub ocis_port: Option<u16>,
}

/// Those that run; an upstream whose real address is given is not simulated.
#[derive(Default)]
pub struct Upstreams {
    pub authentik: Option<authentik::Simulator>,
    pub stalwart: Option<stalwart::Simulator>,
    pub issuer: Option<issuer::Simulator>,
    pub ocis: Option<ocis::Simulator>,
    /// Whether the simulated issuer is the API's.
    issues_for_api: bool,
}

fn is_given(setting: &Option<String>) -> bool {
    setting.as_ref().is_some_and(|setting| !setting.is_empty())
}

impl Upstreams {
    /// Starts the ones that `given` does not name, and lets it name them.
    pub async fn start(ports: Ports, given: &mut Given) -> anyhow::Result<Self> {
        let mut upstreams = Self::default();
        if !is_given(&given.authentik_api_url) {
            let simulator =
                start_authentik(ports.authentik_port.unwrap_or(0), Default::default()).await?;
            given.authentik_api_url = Some(simulator.url());
            given.authentik_api_token = Some(AUTHENTIK_TOKEN.into());
            given.authentik_api_token_file = None;
            upstreams.authentik = Some(simulator);
        }
        if !is_given(&given.stalwart_api_url) {
            let simulator = start_stalwart(ports.stalwart_port.unwrap_or(0), Default::default()).await?;
            given.stalwart_api_url = Some(simulator.url());
            given.stalwart_api_token = Some(STALWART_KEY.into());
            (given.stalwart_api_token_file, given.stalwart_username) = (None, None);
            (given.stalwart_username_file, given.stalwart_password) = (None, None);
            given.stalwart_password_file = None;
            upstreams.stalwart = Some(simulator);
        }
        upstreams.issues_for_api = !given.access.is_decided();
        if upstreams.issues_for_api || !is_given(&given.ocis_api_url) {
            upstreams.issuer = Some(start_issuer(ports.issuer_port.unwrap_or(0)).await?);
        }
        if let Some(issuer) = upstreams.issuer.as_ref().filter(|_| upstreams.issues_for_api) {
            given.access.oidc_issuer = Some(issuer.issuer_url(API_CLIENT));
            given.access.oidc_audience = Some(API_CLIENT.into());
        }
        if let Some(issuer) = upstreams.issuer.as_ref().filter(|_| !is_given(&given.ocis_api_url)) {
            let trusted = issuer.issuer_url(ISSUER_SLUG);
            let files =
                start_ocis(ports.ocis_port.unwrap_or(0), ocis::Flavour::Ocis31, &trusted).await?;
            given.ocis_api_url = Some(files.url());
            given.ocis_oidc_token_url = Some(issuer.token_url());
            given.ocis_oidc_client_id = Some(CLIENT.into());
            given.ocis_oidc_username = Some(ACCOUNT.into());
            given.ocis_oidc_password = Some(APP_PASSWORD.into());
            (given.ocis_oidc_issuer, given.ocis_oidc_client_secret) = (None, None);
            (given.ocis_oidc_client_secret_file, given.ocis_oidc_password_file) = (None, None);
            given.ocis_oidc_scope = None;
            upstreams.ocis = Some(files);
        }
        Ok(upstreams)
    }

    /// What the settings of upstreams that will be simulated must not be checked for.
    pub fn forget_settings(given: &mut Given) {
        if !given.access.is_decided() {
            given.access.oidc_issuer = Some("http://127.0.0.1/".into());
            given.access.oidc_audience = Some(API_CLIENT.into());
        }
        if !is_given(&given.authentik_api_url) {
            (given.authentik_api_token, given.authentik_api_token_file) = (None, None);
        }
        if !is_given(&given.stalwart_api_url) {
            (given.stalwart_api_token, given.stalwart_api_token_file) = (None, None);
            (given.stalwart_username, given.stalwart_username_file) = (None, None);
            (given.stalwart_password, given.stalwart_password_file) = (None, None);
        }
    }

    /// For people: what listens where.
    pub fn describe(&self) -> Vec<[String; 2]> {
        let mut lines = Vec::new();
        let mut say = |what: &str, text: String| lines.push([what.to_owned(), text]);
        if let Some(authentik) = &self.authentik {
            say("Authentik", describe_authentik(authentik));
        }
        if let Some(stalwart) = &self.stalwart {
            say("Stalwart", describe_stalwart(stalwart));
        }
        if let Some(files) = &self.ocis {
            say("oCIS", describe_ocis(files));
        }
        if let Some(issuer) = self.issuer.as_ref().filter(|_| self.ocis.is_some()) {
            say("its issuer", describe_issuer(issuer));
        }
        if let Some(issuer) = self.issuer.as_ref().filter(|_| self.issues_for_api) {
            say("API tokens", describe_api_tokens(issuer));
        }
        lines
    }

    /// A token with which one may do everything, if it is the simulated issuer that the API trusts.
    pub fn token(&self) -> Option<String> {
        let issuer = self.issuer.as_ref().filter(|_| self.issues_for_api)?;
        issuer.token(API_CLIENT, "admin", "openid profile email")
    }
}

fn describe_authentik(simulator: &authentik::Simulator) -> String {
    format!("{0}/_sim/groups  (simulated; token {AUTHENTIK_TOKEN})", simulator.url())
}

fn describe_stalwart(simulator: &stalwart::Simulator) -> String {
    format!("{0}/_sim/domains  (simulated; API key {STALWART_KEY})", simulator.url())
}

fn describe_ocis(simulator: &ocis::Simulator) -> String {
    format!("{0}/_sim/drives  (simulated)", simulator.url())
}

fn describe_issuer(simulator: &issuer::Simulator) -> String {
    format!(
        "{}  (simulated; client {CLIENT}, account {ACCOUNT}, or {USER} of the role User, app password \
         {APP_PASSWORD})",
        simulator.token_url()
    )
}

fn describe_api_tokens(simulator: &issuer::Simulator) -> String {
    format!("{}/_sim/token/reader  (simulated; or operator, admin)", simulator.url())
}

async fn start_authentik(
    port: u16,
    release: authentik::Release,
) -> anyhow::Result<authentik::Simulator> {
    let started = authentik::Simulator::new(port, AUTHENTIK_TOKEN, release).await;
    started.context("cannot start the simulated Authentik")
}

async fn start_stalwart(port: u16, release: stalwart::Release) -> anyhow::Result<stalwart::Simulator> {
    let unlimited_requests = true;
    let options = stalwart::Options { release, unlimited_requests, ..stalwart::Options::default() };
    let started = stalwart::Simulator::new(port, STALWART_KEY, options).await;
    started.context("cannot start the simulated Stalwart")
}

async fn start_issuer(port: u16) -> anyhow::Result<issuer::Simulator> {
    let account = issuer::Account::new(ACCOUNT, APP_PASSWORD, &[SPACE_ADMINS]);
    let user = issuer::Account::new(USER, APP_PASSWORD, &["ocis-users"]);
    let people = API_ACCOUNTS.map(|(name, group)| issuer::Account::new(name, APP_PASSWORD, &[group]));
    let options = issuer::Options {
        providers: vec![
            issuer::Provider::public(ISSUER_SLUG, CLIENT),
            issuer::Provider::public(API_CLIENT, API_CLIENT),
        ],
        accounts: people.into_iter().chain([account, user]).collect(),
        validity: TOKEN_VALIDITY,
    };
    let started = issuer::Simulator::new(port, options).await;
    started.context("cannot start the simulated issuer")
}

async fn start_ocis(port: u16, flavour: ocis::Flavour, issuer: &str) -> anyhow::Result<ocis::Simulator> {
    let started = ocis::Simulator::new(port, flavour, issuer, ocis::Options::default()).await;
    started.context("cannot start the simulated oCIS")
}

/// `tenantry sim`: one upstream alone.
#[derive(Debug, Clone, Args)]
pub struct Sim {
    /// Which one to simulate
    #[arg(value_enum)]
    pub which: Which,
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub port: u16,
    /// Which release to be: authentik 2025.12 or 2025.8, stalwart 0.16.19 or 0.16.18, ocis 3.1, 5.0 or 7.1;
    /// the first unless told otherwise
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<String>,
    /// The issuer that ocis and opencloud trust, to the letter; without it one is simulated as well
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// Authentik 2025: groups
    Authentik,
    /// Stalwart 0.16: mail domains, over JMAP
    Stalwart,
    /// An OIDC issuer as Authentik is one: discovery, keys, tokens
    Issuer,
    /// oCIS 3, 5 or 7: project spaces
    Ocis,
    /// OpenCloud 0.1: project spaces
    Opencloud,
}

impl Sim {
    /// The one that was asked for, or the first.
    fn release<T: Copy>(&self, known: &[(&str, T)]) -> anyhow::Result<T> {
        let asked = self.release.as_deref();
        let found = known.iter().find(|(name, _)| asked.is_none_or(|asked| asked == *name));
        found.map(|(_, release)| *release).with_context(|| {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            format!("--release must be one of {}", names.join(", "))
        })
    }

    /// Runs until `shutdown`.
    pub async fn execute(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        // What an arm starts lives until its end.
        match self.which {
            Which::Authentik => {
                use authentik::Release::{R2025_8, R2025_12};
                let release = self.release(&[("2025.12", R2025_12), ("2025.8", R2025_8)])?;
                let simulator = start_authentik(self.port, release).await?;
                let fewer = AUTHENTIK_FEWER.map(|(token, rights)| {
                    simulator.add_token(token, rights);
                    format!("fewer rights  {token}: {rights:?}")
                });
                let told = [[describe_authentik(&simulator)].as_slice(), &fewer].concat();
                serve(&simulator.url(), &told, &shutdown).await;
            }
            Which::Stalwart => {
                use stalwart::Release::{R0_16_18, R0_16_19};
                let release = self.release(&[("0.16.19", R0_16_19), ("0.16.18", R0_16_18)])?;
                let simulator = start_stalwart(self.port, release).await?;
                let fewer = STALWART_FEWER.map(|(key, permissions)| {
                    simulator.add_key(key, permissions);
                    format!("fewer rights  {key}: {}", permissions.join(", "))
                });
                let told = [[describe_stalwart(&simulator)].as_slice(), &fewer].concat();
                serve(&simulator.url(), &told, &shutdown).await;
            }
            Which::Issuer => {
                self.release(&[("2025.12", ())])?;
                let simulator = start_issuer(self.port).await?;
                let issuer = simulator.issuer_url(ISSUER_SLUG);
                let told = [issuer, describe_issuer(&simulator), describe_api_tokens(&simulator)];
                serve(&simulator.url(), &told, &shutdown).await;
            }
            Which::Ocis | Which::Opencloud => {
                use ocis::Flavour::{Ocis5, Ocis7, Ocis31, OpenCloud};
                let flavour = match self.which {
                    Which::Opencloud => self.release(&[("0.1", OpenCloud)])?,
                    _ => self.release(&[("3.1", Ocis31), ("5.0", Ocis5), ("7.1", Ocis7)])?,
                };
                let own = match &self.issuer {
                    Some(_) => None,
                    None => Some(start_issuer(0).await?),
                };
                let trusted = match (&self.issuer, &own) {
                    (None, Some(own)) => own.issuer_url(ISSUER_SLUG),
                    (given, _) => given.clone().unwrap_or_default(),
                };
                let simulator = start_ocis(self.port, flavour, &trusted).await?;
                let tokens = own.as_ref().map_or(trusted, describe_issuer);
                serve(&simulator.url(), &[describe_ocis(&simulator), tokens], &shutdown).await;
            }
        }
        Ok(())
    }
}

async fn serve(url: &str, described: &[String], shutdown: &CancellationToken) {
    let mut text = format!("  listening  {url}\n");
    for line in described {
        text.push_str(&format!("             {line}\n"));
    }
    text.push_str(&format!(
        r#"  torment    curl -X POST {url}/_sim/faults -H 'Content-Type: application/json' \
                  -d '{{"answer":{{"status":{{"status":503}}}}}}'   (DELETE ends it)
             curl {url}/_sim/requests
  Ctrl-C ends it.
"#
    ));
    // It serves as well without.
    let _ = terminal::print(&text);
    shutdown.cancelled().await;
}
