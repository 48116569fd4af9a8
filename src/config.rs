//! Settings: flags and environment variables, all checked at start, all mistakes told at once.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::filter::Targets;

use crate::integration::{BaseUrl, GroupTemplate, extra_roots};
use crate::store::check_uri;
use crate::telemetry::LogFormat;
use crate::tenant::{Backoff, Policy};

/// The settings as given. They are text until [`Given::check`], so that one run names every mistake.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Database")]
pub struct Given {
    /// Address of the MongoDB replica set or sharded cluster (6.0 or newer), such as
    /// mongodb://user:password@db.acme.test/?replicaSet=rs0
    #[arg(long, env = "MONGODB_URI", hide_env_values = true, value_name = "URI")]
    pub mongodb_uri: Option<String>,
    /// File that holds the address, instead of MONGODB_URI
    #[arg(long, env = "MONGODB_URI_FILE", value_name = "FILE")]
    pub mongodb_uri_file: Option<String>,
    /// Database that holds the collection `tenants` [default: tenantry]
    #[arg(long, env = "MONGODB_DATABASE", value_name = "NAME")]
    pub mongodb_database: Option<String>,

    /// Address of the HTTP API; loopback only, until the API has authentication [default: 127.0.0.1:8080]
    #[arg(long, env = "HTTP_ADDR", value_name = "IP:PORT", help_heading = "Listeners")]
    pub http_addr: Option<String>,
    /// Address of /metrics; loopback only as well [default: 127.0.0.1:9090]
    #[arg(long, env = "TELEMETRY_ADDR", value_name = "IP:PORT", help_heading = "Listeners")]
    pub telemetry_addr: Option<String>,

    /// Authentik's address, with any path prefix; /api/v3 at the end is understood. Without it the
    /// step is skipped
    #[arg(long, env = "AUTHENTIK_API_URL", value_name = "URL", help_heading = "Upstreams")]
    pub authentik_api_url: Option<String>,
    /// Key of an Authentik token with intent "API" that does not expire
    #[arg(
        long,
        env = "AUTHENTIK_API_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Upstreams"
    )]
    pub authentik_api_token: Option<String>,
    /// File that holds the token, instead of AUTHENTIK_API_TOKEN
    #[arg(long, env = "AUTHENTIK_API_TOKEN_FILE", value_name = "FILE", help_heading = "Upstreams")]
    pub authentik_api_token_file: Option<String>,
    /// Name of a tenant's group; {slug} stands for its slug [default: tenant-{slug}]
    #[arg(long, env = "AUTHENTIK_GROUP_TEMPLATE", value_name = "TEXT", help_heading = "Upstreams")]
    pub authentik_group_template: Option<String>,
    /// Stalwart's address. This version has no Stalwart client yet: the step is skipped
    #[arg(long, env = "STALWART_API_URL", value_name = "URL", help_heading = "Upstreams")]
    pub stalwart_api_url: Option<String>,
    /// Stalwart API key
    #[arg(
        long,
        env = "STALWART_API_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Upstreams"
    )]
    pub stalwart_api_token: Option<String>,
    /// File that holds the API key, instead of STALWART_API_TOKEN
    #[arg(long, env = "STALWART_API_TOKEN_FILE", value_name = "FILE", help_heading = "Upstreams")]
    pub stalwart_api_token_file: Option<String>,
    /// oCIS' address. This version has no oCIS client yet: the step is skipped
    #[arg(long, env = "OCIS_API_URL", value_name = "URL", help_heading = "Upstreams")]
    pub ocis_api_url: Option<String>,
    /// PEM bundle of root certificates to trust beside the system's, such as mkcert's rootCA.pem
    #[arg(long, env = "EXTRA_CA_FILE", value_name = "FILE", help_heading = "Upstreams")]
    pub extra_ca_file: Option<String>,
    /// Longest time of one request to an upstream, one database operation, or one API request, from
    /// 100ms to 5m [default: 10s]
    #[arg(long, env = "REQUEST_TIMEOUT", value_name = "DURATION", help_heading = "Upstreams")]
    pub request_timeout: Option<String>,

    /// Reconciles at once, 1 to 1024 [default: 16]
    #[arg(long, env = "WORKERS", value_name = "NUMBER", help_heading = "Reconciling")]
    pub workers: Option<String>,
    /// Between routine re-checks of a converged tenant, spread by ±10 %, from 1s to 30d; also how slowly
    /// a failure is retried that only a person can mend [default: 10m]
    #[arg(long, env = "RESYNC_INTERVAL", value_name = "DURATION", help_heading = "Reconciling")]
    pub resync_interval: Option<String>,
    /// Between looks for due tenants, beside the change stream, from 100ms to 10m [default: 5s]
    #[arg(long, env = "POLL_INTERVAL", value_name = "DURATION", help_heading = "Reconciling")]
    pub poll_interval: Option<String>,
    /// Delay after a step's first failure, doubled after each further one and spread by ±50 %, from 10ms
    /// [default: 1s]
    #[arg(long, env = "BACKOFF_INITIAL", value_name = "DURATION", help_heading = "Reconciling")]
    pub backoff_initial: Option<String>,
    /// Longest delay between retries, up to 1d [default: 5m]
    #[arg(long, env = "BACKOFF_MAX", value_name = "DURATION", help_heading = "Reconciling")]
    pub backoff_max: Option<String>,
    /// How long a tenant stays with a controller that no longer renews its lease, from 1s to 10m
    /// [default: 30s]
    #[arg(long, env = "LEASE_TTL", value_name = "DURATION", help_heading = "Reconciling")]
    pub lease_ttl: Option<String>,
    /// From SIGTERM until the process has ended, from 1s to 10m [default: 25s]
    #[arg(long, env = "SHUTDOWN_GRACE", value_name = "DURATION", help_heading = "Reconciling")]
    pub shutdown_grace: Option<String>,

    /// auto (human on a terminal, else JSON), human or json [default: auto]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT", help_heading = "Logs")]
    pub log_format: Option<String>,
    /// error, warn, info, debug or trace; also by module: info,tenantry::store=debug [default: info]
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", help_heading = "Logs")]
    pub log_level: Option<String>,
}

/// The settings of a process, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub mongodb_uri: SecretString,
    pub mongodb_database: String,
    pub http_addr: SocketAddr,
    pub telemetry_addr: SocketAddr,
    pub authentik: Option<AuthentikConfig>,
    /// Upstreams that are configured, but that this version has no client for.
    pub unsupported: Vec<&'static str>,
    pub extra_ca_file: Option<PathBuf>,
    pub request_timeout: Duration,
    pub workers: usize,
    pub policy: Policy,
    pub poll_interval: Duration,
    pub lease_ttl: Duration,
    pub shutdown_grace: Duration,
    pub log_format: LogFormat,
    pub log_filter: Targets,
}

#[derive(Debug, Clone)]
pub struct AuthentikConfig {
    pub url: BaseUrl,
    pub token: SecretString,
    pub group_template: GroupTemplate,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<String>);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Collects mistakes while reading.
#[derive(Default)]
struct Checker(Vec<String>);

impl Checker {
    /// Whether something was wrong with this setting, or with its file.
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|mistake| mistake.starts_with(name))
    }

    fn wrong(&mut self, name: &str, why: impl Display) {
        self.0.push(format!("{name}: {why}"));
    }

    fn parsed<T>(&mut self, name: &str, given: Option<&str>, default: &str) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        match given.unwrap_or(default).parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(name, error);
                None
            }
        }
    }

    fn duration(
        &mut self,
        name: &str,
        given: Option<&str>,
        default: Duration,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        let Some(text) = given else { return default };
        match humantime::parse_duration(text) {
            Ok(span) if range.contains(&span) => return span,
            Ok(_) => {
                let (low, high) = (range.start(), range.end());
                let (low, high) = (humantime::format_duration(*low), humantime::format_duration(*high));
                self.wrong(name, format!("must be from {low} to {high}, not {text:?}"));
            }
            Err(_) => self.wrong(name, format!("must be a duration such as 30s or 10m, not {text:?}")),
        }
        default
    }

    /// Beside `{name}` there is `{name}_FILE`; at most one of them is given.
    fn secret(&mut self, name: &str, given: Option<&str>, file: Option<&str>) -> Option<SecretString> {
        match (given, file) {
            (Some(_), Some(_)) => {
                self.wrong(name, format!("give it or {name}_FILE, not both"));
                None
            }
            (Some(secret), None) => Some(SecretString::from(secret)),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) if text.trim().is_empty() => {
                    self.wrong(&format!("{name}_FILE"), format!("{path} is empty"));
                    None
                }
                Ok(text) => Some(SecretString::from(text.trim())),
                Err(error) => {
                    self.wrong(&format!("{name}_FILE"), format!("cannot read {path}: {error}"));
                    None
                }
            },
            (None, None) => None,
        }
    }

    fn loopback(&mut self, name: &str, given: Option<&str>, default: &str) -> Option<SocketAddr> {
        let address = given.unwrap_or(default);
        match address.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => return Some(address),
            Ok(_) => self.wrong(
                name,
                format!(
                    "{address} is not a loopback address, and without authentication tenantry listens \
                     on no other; use 127.0.0.1 and a proxy that authenticates"
                ),
            ),
            Err(_) => self.wrong(
                name,
                format!("must be an IP address and port such as {default}, not {address:?}"),
            ),
        }
        None
    }

    fn base_url(&mut self, name: &str, given: Option<&str>, suffix: &str) -> Option<BaseUrl> {
        match BaseUrl::parse(given?, suffix) {
            Ok(url) => Some(url),
            Err(error) => {
                self.wrong(name, error);
                None
            }
        }
    }
}

/// An empty variable is the same as none.
fn some(given: &Option<String>) -> Option<&str> {
    given.as_deref().filter(|text| !text.is_empty())
}

impl Given {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Every mistake, each with the setting's name and what would be right.
    pub fn check(&self) -> Result<Config, Mistakes> {
        let mut check = Checker::default();
        let mongodb_uri =
            check.secret("MONGODB_URI", some(&self.mongodb_uri), some(&self.mongodb_uri_file));
        match &mongodb_uri {
            Some(uri) => {
                if let Err(error) = check_uri(uri.expose_secret()) {
                    check.wrong("MONGODB_URI", error);
                }
            }
            None if !check.has("MONGODB_URI") => {
                let why = "is required (or MONGODB_URI_FILE); to just try it: tenantry dev";
                check.wrong("MONGODB_URI", why);
            }
            None => {}
        }
        let mongodb_database = some(&self.mongodb_database).unwrap_or("tenantry").to_owned();
        if mongodb_database.len() > 63
            || mongodb_database.contains(['/', '\\', '.', ' ', '"', '$', '*', '<', '>', ':', '|', '?'])
        {
            let why = "must be a database name: at most 63 characters, none of / \\ . \" $ * < > : | ?";
            check.wrong("MONGODB_DATABASE", why);
        }
        let http_addr = check.loopback("HTTP_ADDR", some(&self.http_addr), "127.0.0.1:8080");
        let telemetry_addr =
            check.loopback("TELEMETRY_ADDR", some(&self.telemetry_addr), "127.0.0.1:9090");
        let authentik = self.check_authentik(&mut check);

        check.base_url("STALWART_API_URL", some(&self.stalwart_api_url), "jmap");
        let token = some(&self.stalwart_api_token);
        check.secret("STALWART_API_TOKEN", token, some(&self.stalwart_api_token_file));
        check.base_url("OCIS_API_URL", some(&self.ocis_api_url), "graph/v1.0");
        let unsupported = [("stalwart", &self.stalwart_api_url), ("ocis", &self.ocis_api_url)];
        let unsupported = unsupported.into_iter().filter(|(_, url)| some(url).is_some());

        let extra_ca_file = some(&self.extra_ca_file).map(PathBuf::from);
        if let Some(path) = &extra_ca_file
            && let Err(error) = extra_roots(path)
        {
            check.wrong("EXTRA_CA_FILE", error);
        }

        let millis = Duration::from_millis;
        let request_timeout = check.duration(
            "REQUEST_TIMEOUT",
            some(&self.request_timeout),
            10 * SECOND,
            millis(100)..=5 * MINUTE,
        );
        let workers = check.parsed::<usize>("WORKERS", some(&self.workers), "16");
        if workers.is_some_and(|workers| !(1..=1024).contains(&workers)) {
            check.wrong("WORKERS", "must be from 1 to 1024");
        }
        let resync = some(&self.resync_interval);
        let resync = check.duration("RESYNC_INTERVAL", resync, 10 * MINUTE, SECOND..=30 * DAY);
        let poll = some(&self.poll_interval);
        let poll_interval = check.duration("POLL_INTERVAL", poll, 5 * SECOND, millis(100)..=10 * MINUTE);
        let initial = some(&self.backoff_initial);
        let initial = check.duration("BACKOFF_INITIAL", initial, SECOND, millis(10)..=DAY);
        let max = check.duration("BACKOFF_MAX", some(&self.backoff_max), 5 * MINUTE, millis(10)..=DAY);
        if initial > max {
            check.wrong("BACKOFF_INITIAL", "must not be longer than BACKOFF_MAX");
        }
        let lease = some(&self.lease_ttl);
        let lease_ttl = check.duration("LEASE_TTL", lease, 30 * SECOND, SECOND..=10 * MINUTE);
        let grace = some(&self.shutdown_grace);
        let shutdown_grace = check.duration("SHUTDOWN_GRACE", grace, 25 * SECOND, SECOND..=10 * MINUTE);
        let log_format = check.parsed("LOG_FORMAT", some(&self.log_format), "auto");
        let log_filter = check.parsed("LOG_LEVEL", some(&self.log_level), "info");

        match (mongodb_uri, http_addr, telemetry_addr, workers, log_format, log_filter) {
            (
                Some(mongodb_uri),
                Some(http_addr),
                Some(telemetry_addr),
                Some(workers),
                Some(log_format),
                Some(log_filter),
            ) if check.0.is_empty() => Ok(Config {
                mongodb_uri,
                mongodb_database,
                http_addr,
                telemetry_addr,
                authentik,
                unsupported: unsupported.map(|(name, _)| name).collect(),
                extra_ca_file,
                request_timeout,
                workers,
                policy: Policy { backoff: Backoff { initial, max }, resync },
                poll_interval,
                lease_ttl,
                shutdown_grace,
                log_format,
                log_filter,
            }),
            _ => Err(Mistakes(check.0)),
        }
    }

    fn check_authentik(&self, check: &mut Checker) -> Option<AuthentikConfig> {
        let url = check.base_url("AUTHENTIK_API_URL", some(&self.authentik_api_url), "api/v3");
        let token = some(&self.authentik_api_token);
        let token = check.secret("AUTHENTIK_API_TOKEN", token, some(&self.authentik_api_token_file));
        let template = some(&self.authentik_group_template).unwrap_or("tenant-{slug}");
        let template = match GroupTemplate::parse(template) {
            Ok(template) => Some(template),
            Err(error) => {
                check.wrong("AUTHENTIK_GROUP_TEMPLATE", error);
                None
            }
        };
        if some(&self.authentik_api_url).is_some()
            && token.is_none()
            && !check.has("AUTHENTIK_API_TOKEN")
        {
            check.wrong("AUTHENTIK_API_TOKEN", "is required with AUTHENTIK_API_URL");
        }
        if some(&self.authentik_api_url).is_none() && token.is_some() {
            check.wrong("AUTHENTIK_API_URL", "is required with AUTHENTIK_API_TOKEN");
        }
        Some(AuthentikConfig { url: url?, token: token?, group_template: template? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(settings: &[(&str, &str)]) -> Given {
        let mut given = Given { mongodb_uri: Some("mongodb://127.0.0.1".into()), ..Given::default() };
        for (name, value) in settings {
            let value = Some((*value).to_owned());
            match *name {
                "HTTP_ADDR" => given.http_addr = value,
                "TELEMETRY_ADDR" => given.telemetry_addr = value,
                "AUTHENTIK_API_URL" => given.authentik_api_url = value,
                "AUTHENTIK_API_TOKEN" => given.authentik_api_token = value,
                "AUTHENTIK_API_TOKEN_FILE" => given.authentik_api_token_file = value,
                "AUTHENTIK_GROUP_TEMPLATE" => given.authentik_group_template = value,
                "WORKERS" => given.workers = value,
                "LEASE_TTL" => given.lease_ttl = value,
                "BACKOFF_INITIAL" => given.backoff_initial = value,
                "BACKOFF_MAX" => given.backoff_max = value,
                "LOG_FORMAT" => given.log_format = value,
                other => panic!("{other} is not used in tests yet"),
            }
        }
        given
    }

    #[test]
    fn all_mistakes_are_told_at_once_each_with_the_settings_name() {
        let Mistakes(mistakes) = given(&[
            ("HTTP_ADDR", "0.0.0.0:8080"),
            ("TELEMETRY_ADDR", "9090"),
            ("AUTHENTIK_API_URL", "id.acme.test"),
            ("AUTHENTIK_GROUP_TEMPLATE", "tenants"),
            ("WORKERS", "0"),
            ("LEASE_TTL", "30"),
            ("BACKOFF_INITIAL", "10m"),
            ("LOG_FORMAT", "xml"),
        ])
        .check()
        .unwrap_err();
        let names: Vec<_> =
            mistakes.iter().filter_map(|mistake| Some(mistake.split_once(':')?.0)).collect();
        assert_eq!(
            names,
            [
                "HTTP_ADDR",
                "TELEMETRY_ADDR",
                "AUTHENTIK_API_URL",
                "AUTHENTIK_GROUP_TEMPLATE",
                "AUTHENTIK_API_TOKEN",
                "WORKERS",
                "BACKOFF_INITIAL",
                "LEASE_TTL",
                "LOG_FORMAT",
            ],
            "{mistakes:#?}"
        );
    }

    #[test]
    fn empty_variables_are_the_same_as_none() {
        let config = given(&[("AUTHENTIK_API_URL", ""), ("AUTHENTIK_API_TOKEN", "")]).check().unwrap();
        assert!(config.authentik.is_none());
        assert_eq!(config.workers, 16);
    }

    #[test]
    fn a_secret_comes_from_a_file_without_its_line_end_or_directly_but_not_both() {
        let file = std::env::temp_dir().join(format!("tenantry-secret-{}", std::process::id()));
        std::fs::write(&file, "s3cret\n").unwrap();
        let path = file.to_str().unwrap();
        let url = ("AUTHENTIK_API_URL", "https://id.acme.test");
        let config = given(&[url, ("AUTHENTIK_API_TOKEN_FILE", path)]).check().unwrap();
        let token = config.authentik.clone().unwrap().token;
        assert_eq!(secrecy::ExposeSecret::expose_secret(&token), "s3cret");
        assert!(!format!("{config:?}").contains("s3cret"), "secrets are never printed");
        let both = [url, ("AUTHENTIK_API_TOKEN_FILE", path), ("AUTHENTIK_API_TOKEN", "other")];
        let Mistakes(mistakes) = given(&both).check().unwrap_err();
        assert!(mistakes[0].contains("not both"), "{mistakes:?}");
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn an_address_without_credentials_is_a_mistake() {
        let Mistakes(mistakes) =
            given(&[("AUTHENTIK_API_URL", "https://id.acme.test")]).check().unwrap_err();
        assert_eq!(mistakes, ["AUTHENTIK_API_TOKEN: is required with AUTHENTIK_API_URL"]);
    }
}
