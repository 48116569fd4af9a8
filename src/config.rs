//! Settings: flags and environment variables, all checked at start, all mistakes told at once.

mod access;

pub use access::{AccessConfig, AccessSettings, Patience, issuers_of};

use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use secrecy::ExposeSecret;
use url::Url;

use crate::http::{BaseUrl, roots};
use crate::integration::{
    ClientCredentials, Credentials, DkimManagement, GroupTemplate, Limits, Membership, SpaceRole,
    TokenEndpoint,
};
use crate::secret::Secret;
use crate::store::{check_uri, database_of};
use crate::telemetry::{self, LogFilter, LogFormat};
use crate::tenant::{Backoff, ChangeGuardPolicy, Policy};

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
    /// Database that holds the collection `tenants` [default: that in the path of MONGODB_URI, or tenantry]
    #[arg(long, env = "MONGODB_DATABASE", value_name = "NAME")]
    pub mongodb_database: Option<String>,

    /// Address of the HTTP API; loopback only with INSECURE_NO_AUTH [default: 127.0.0.1:8080]
    #[arg(long, env = "HTTP_ADDR", value_name = "IP:PORT", help_heading = "Listeners")]
    pub http_addr: Option<String>,
    /// Address of /metrics, which need no token; loopback only with INSECURE_NO_AUTH
    /// [default: 127.0.0.1:9090]
    #[arg(long, env = "TELEMETRY_ADDR", value_name = "IP:PORT", help_heading = "Listeners")]
    pub telemetry_addr: Option<String>,

    #[command(flatten)]
    pub access: AccessSettings,

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
    /// Authentik: requests at once, 1 to 1024 [default: 64]
    #[arg(long, env = "AUTHENTIK_MAX_CONCURRENT", value_name = "NUMBER", help_heading = "Upstreams")]
    pub authentik_max_concurrent: Option<String>,
    /// Authentik: requests a minute; 0 is without a limit [default: 0]
    #[arg(long, env = "AUTHENTIK_MAX_PER_MINUTE", value_name = "NUMBER", help_heading = "Upstreams")]
    pub authentik_max_per_minute: Option<String>,
    /// Stalwart's address (0.16 or newer), with any path prefix; /jmap at the end is understood. Without
    /// it the step is skipped
    #[arg(long, env = "STALWART_API_URL", value_name = "URL", help_heading = "Upstreams")]
    pub stalwart_api_url: Option<String>,
    /// Secret of a Stalwart API key
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
    /// Login name of a Stalwart administrator, instead of an API key
    #[arg(long, env = "STALWART_USERNAME", value_name = "NAME", help_heading = "Upstreams")]
    pub stalwart_username: Option<String>,
    /// File that holds the login name, instead of STALWART_USERNAME
    #[arg(long, env = "STALWART_USERNAME_FILE", value_name = "FILE", help_heading = "Upstreams")]
    pub stalwart_username_file: Option<String>,
    /// Password of that administrator
    #[arg(
        long,
        env = "STALWART_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        help_heading = "Upstreams"
    )]
    pub stalwart_password: Option<String>,
    /// File that holds the password, instead of STALWART_PASSWORD
    #[arg(long, env = "STALWART_PASSWORD_FILE", value_name = "FILE", help_heading = "Upstreams")]
    pub stalwart_password_file: Option<String>,
    /// Who makes a new domain's DKIM keys: automatic (Stalwart) or manual [default: automatic]
    #[arg(long, env = "STALWART_DKIM", value_name = "WHO", help_heading = "Upstreams")]
    pub stalwart_dkim: Option<String>,
    /// Stalwart: requests at once, 1 to 1024; it takes 4 of one account, unless that has the permission
    /// unlimitedRequests [default: 3]
    #[arg(long, env = "STALWART_MAX_CONCURRENT", value_name = "NUMBER", help_heading = "Upstreams")]
    pub stalwart_max_concurrent: Option<String>,
    /// Stalwart: requests a minute; it takes 1000 of one account, unless that has the permission
    /// unlimitedRequests; 0 is without a limit [default: 900]
    #[arg(long, env = "STALWART_MAX_PER_MINUTE", value_name = "NUMBER", help_heading = "Upstreams")]
    pub stalwart_max_per_minute: Option<String>,
    /// oCIS' or OpenCloud's address, with any path prefix; /graph/v1.0 at the end is understood. Without
    /// it the step is skipped
    #[arg(long, env = "OCIS_API_URL", value_name = "URL", help_heading = "Upstreams")]
    pub ocis_api_url: Option<String>,
    /// Token endpoint of the issuer that oCIS trusts, by its public address, such as
    /// https://id.acme.test/application/o/token/
    #[arg(long, env = "OCIS_OIDC_TOKEN_URL", value_name = "URL", help_heading = "Upstreams")]
    pub ocis_oidc_token_url: Option<String>,
    /// The issuer itself, instead of OCIS_OIDC_TOKEN_URL, which is then looked up there
    #[arg(long, env = "OCIS_OIDC_ISSUER", value_name = "URL", help_heading = "Upstreams")]
    pub ocis_oidc_issuer: Option<String>,
    /// Client id at the issuer: that of the provider that oCIS uses
    #[arg(long, env = "OCIS_OIDC_CLIENT_ID", value_name = "ID", help_heading = "Upstreams")]
    pub ocis_oidc_client_id: Option<String>,
    /// Client secret; with Authentik it may be base64 of account:app-password
    #[arg(
        long,
        env = "OCIS_OIDC_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        help_heading = "Upstreams"
    )]
    pub ocis_oidc_client_secret: Option<String>,
    /// File that holds the client secret, instead of OCIS_OIDC_CLIENT_SECRET
    #[arg(long, env = "OCIS_OIDC_CLIENT_SECRET_FILE", value_name = "FILE", help_heading = "Upstreams")]
    pub ocis_oidc_client_secret_file: Option<String>,
    /// Service account at the issuer, with OCIS_OIDC_PASSWORD
    #[arg(long, env = "OCIS_OIDC_USERNAME", value_name = "NAME", help_heading = "Upstreams")]
    pub ocis_oidc_username: Option<String>,
    /// The service account's app password
    #[arg(
        long,
        env = "OCIS_OIDC_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        help_heading = "Upstreams"
    )]
    pub ocis_oidc_password: Option<String>,
    /// File that holds the app password, instead of OCIS_OIDC_PASSWORD
    #[arg(long, env = "OCIS_OIDC_PASSWORD_FILE", value_name = "FILE", help_heading = "Upstreams")]
    pub ocis_oidc_password_file: Option<String>,
    /// Scopes of the token; oCIS needs the claims of all three [default: openid profile email]
    #[arg(long, env = "OCIS_OIDC_SCOPE", value_name = "SCOPES", help_heading = "Upstreams")]
    pub ocis_oidc_scope: Option<String>,
    /// Role of the tenant's group in its space: viewer, editor, manager or none [default: none]
    #[arg(long, env = "OCIS_GROUP_ROLE", value_name = "ROLE", help_heading = "Upstreams")]
    pub ocis_group_role: Option<String>,
    /// Name of that group as oCIS knows it [default: AUTHENTIK_GROUP_TEMPLATE]
    #[arg(long, env = "OCIS_GROUP_TEMPLATE", value_name = "TEXT", help_heading = "Upstreams")]
    pub ocis_group_template: Option<String>,
    /// oCIS: requests at once, 1 to 1024 [default: 16]
    #[arg(long, env = "OCIS_MAX_CONCURRENT", value_name = "NUMBER", help_heading = "Upstreams")]
    pub ocis_max_concurrent: Option<String>,
    /// oCIS: requests a minute; 0 is without a limit [default: 0]
    #[arg(long, env = "OCIS_MAX_PER_MINUTE", value_name = "NUMBER", help_heading = "Upstreams")]
    pub ocis_max_per_minute: Option<String>,
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
    /// Between routine re-checks of a converged tenant, a safety net below the sweeps, spread by ±10 %, from
    /// 1s to 30d [default: 1d]
    #[arg(long, env = "RESYNC_INTERVAL", value_name = "DURATION", help_heading = "Reconciling")]
    pub resync_interval: Option<String>,
    /// Between sweeps, which list each upstream as a whole and compare it with the tenants, spread by ±10 %,
    /// from 1s to 30d [default: 10m]
    #[arg(long, env = "SWEEP_INTERVAL", value_name = "DURATION", help_heading = "Reconciling")]
    pub sweep_interval: Option<String>,
    /// The most of an upstream's resources that may have changed between two sweeps, in percent (and at
    /// least 20); more is not believed, and repairs rest until a person lifts the guard, 0 to 100
    /// [default: 10]
    #[arg(long, env = "GUARD_PERCENT", value_name = "NUMBER", help_heading = "Reconciling")]
    pub guard_percent: Option<String>,
    /// Whether a tenant that does not say so itself (`adopt`) takes over a group or mail domain of its name
    /// that carries no mark: true or false [default: false]
    #[arg(long, env = "ADOPT_UNMARKED", value_name = "BOOL", help_heading = "Reconciling")]
    pub adopt_unmarked: Option<String>,
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
    /// error, warn, info, debug, trace or off; also by module: warn,tenantry::store=debug
    /// [default: info]
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", help_heading = "Logs")]
    pub log_level: Option<String>,
}

/// The settings of a process, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub mongodb_uri: Secret,
    pub mongodb_database: String,
    pub http_addr: SocketAddr,
    pub telemetry_addr: SocketAddr,
    pub access: AccessConfig,
    pub authentik: Option<AuthentikConfig>,
    pub stalwart: Option<StalwartConfig>,
    pub ocis: Option<OcisConfig>,
    /// A PEM bundle of roots to trust beside the system's.
    pub extra_ca: Option<Secret>,
    pub request_timeout: Duration,
    pub workers: usize,
    pub policy: Policy,
    pub sweep_interval: Duration,
    pub guard: ChangeGuardPolicy,
    /// What holds for tenants that do not say whether they may adopt.
    pub adopt_unmarked: bool,
    pub poll_interval: Duration,
    pub lease_ttl: Duration,
    pub shutdown_grace: Duration,
    pub log_format: LogFormat,
    pub log_filter: LogFilter,
    /// Of those above the ones that come from files, which are read again while the process runs.
    pub from_files: Vec<Secret>,
}

#[derive(Debug, Clone)]
pub struct AuthentikConfig {
    pub url: BaseUrl,
    pub token: Secret,
    pub group_template: GroupTemplate,
    pub limits: Limits,
}

#[derive(Debug, Clone)]
pub struct StalwartConfig {
    pub url: BaseUrl,
    pub credentials: StalwartCredentials,
    pub dkim: DkimManagement,
    pub limits: Limits,
}

#[derive(Debug, Clone)]
pub enum StalwartCredentials {
    ApiKey(Secret),
    Login { user: Secret, password: Secret },
}

impl StalwartCredentials {
    pub fn credentials(self) -> Credentials {
        match self {
            Self::ApiKey(token) => Credentials::Bearer(token),
            Self::Login { user, password } => Credentials::Basic { user, password },
        }
    }
}

#[derive(Debug, Clone)]
pub struct OcisConfig {
    pub url: BaseUrl,
    pub credentials: ClientCredentials,
    pub membership: Option<Membership>,
    pub limits: Limits,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the settings are wrong:{}", .0.iter().map(|mistake| format!("\n  {mistake}")).collect::<String>())]
pub struct Mistakes(pub Vec<String>);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Collects mistakes while reading, and the secrets that come from files.
#[derive(Default)]
struct Checker {
    mistakes: Vec<String>,
    from_files: Vec<Secret>,
}

impl Checker {
    /// Whether something was wrong with this setting, or with its file.
    fn has(&self, name: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.starts_with(name))
    }

    fn wrong(&mut self, name: &str, why: impl Display) {
        self.mistakes.push(format!("{name}: {why}"));
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
    fn secret(&mut self, name: &str, given: Option<&str>, file: Option<&str>) -> Option<Secret> {
        match (given, file) {
            (Some(_), Some(_)) => {
                self.wrong(name, format!("give it or {name}_FILE, not both"));
                None
            }
            (Some(secret), None) => Some(Secret::from(secret)),
            (None, Some(path)) => self.file(&format!("{name}_FILE"), path),
            (None, None) => None,
        }
    }

    /// What a file holds, now and later.
    fn file(&mut self, name: &str, path: &str) -> Option<Secret> {
        match Secret::from_file(name, Path::new(path)) {
            Ok(secret) => {
                self.from_files.push(secret.clone());
                Some(secret)
            }
            Err(why) => {
                self.wrong(name, why);
                None
            }
        }
    }

    /// An address to listen on; any, or a loopback address only.
    fn listen(
        &mut self,
        name: &str,
        given: Option<&str>,
        default: &str,
        any: bool,
    ) -> Option<SocketAddr> {
        let address = given.unwrap_or(default);
        match address.parse::<SocketAddr>() {
            Ok(address) if any || address.ip().is_loopback() => return Some(address),
            Ok(_) => self.wrong(
                name,
                format!(
                    "{address} is not a loopback address, and with INSECURE_NO_AUTH tenantry listens on \
                     no other; use 127.0.0.1 and a proxy that authenticates"
                ),
            ),
            Err(_) => self.wrong(
                name,
                format!("must be an IP address and port such as {default}, not {address:?}"),
            ),
        }
        None
    }

    fn url(&mut self, name: &str, given: Option<&str>) -> Option<Url> {
        // The same rules; but the path counts to the letter, so it is kept as it is.
        self.base_url(name, given, "")?;
        Url::parse(given?.trim()).ok()
    }

    fn template(&mut self, name: &str, text: &str) -> Option<GroupTemplate> {
        match GroupTemplate::parse(text) {
            Ok(template) => Some(template),
            Err(error) => {
                self.wrong(name, error);
                None
            }
        }
    }

    fn limits(
        &mut self,
        [concurrent, per_minute]: [&str; 2],
        [given, rate]: [&Option<String>; 2],
        default: Limits,
    ) -> Limits {
        let mut limits = default;
        match some(given).map(str::parse::<usize>) {
            None => {}
            Some(Ok(number)) if (1..=1024).contains(&number) => limits.concurrent = number,
            Some(_) => self.wrong(concurrent, "must be from 1 to 1024"),
        }
        match some(rate).map(str::parse::<u32>) {
            None => {}
            Some(Ok(number)) => limits.per_minute = NonZeroU32::new(number),
            Some(Err(_)) => self.wrong(per_minute, "must be a whole number, 0 for no limit"),
        }
        limits
    }

    /// Two settings of which neither makes sense alone.
    fn both(&mut self, one: &str, has_one: bool, other: &str, has_other: bool) {
        if has_one && !has_other && !self.has(other) {
            self.wrong(other, format!("is required with {one}"));
        }
        if has_other && !has_one && !self.has(one) {
            self.wrong(one, format!("is required with {other}"));
        }
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
                if let Err(error) = check_uri(uri.current().expose_secret()) {
                    check.wrong("MONGODB_URI", error);
                }
            }
            None if !check.has("MONGODB_URI") => {
                let why = "is required (or MONGODB_URI_FILE); to just try it: tenantry dev";
                check.wrong("MONGODB_URI", why);
            }
            None => {}
        }
        let in_path = || database_of(mongodb_uri.as_ref()?.current().expose_secret());
        let mongodb_database = some(&self.mongodb_database).map(ToOwned::to_owned);
        let mongodb_database = mongodb_database.or_else(in_path).unwrap_or_else(|| "tenantry".into());
        if mongodb_database.len() > 63
            || mongodb_database.contains(['/', '\\', '.', ' ', '"', '$', '*', '<', '>', ':', '|', '?'])
        {
            let why = "must be a database name: at most 63 characters, none of / \\ . \" $ * < > : | ?";
            check.wrong("MONGODB_DATABASE", why);
        }
        let access = self.access.check(&mut check);
        let any = access.auth.is_some();
        let http_addr = check.listen("HTTP_ADDR", some(&self.http_addr), "127.0.0.1:8080", any);
        let telemetry_addr =
            check.listen("TELEMETRY_ADDR", some(&self.telemetry_addr), "127.0.0.1:9090", any);
        let authentik = self.check_authentik(&mut check);
        let stalwart = self.check_stalwart(&mut check);
        let ocis = self.check_ocis(&mut check);

        let extra_ca = some(&self.extra_ca_file).and_then(|path| check.file("EXTRA_CA_FILE", path));
        if let Some(bundle) = &extra_ca
            && let Err(error) = roots(bundle.current().expose_secret())
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
        let resync = check.duration("RESYNC_INTERVAL", resync, DAY, SECOND..=30 * DAY);
        let sweep = some(&self.sweep_interval);
        let sweep_interval = check.duration("SWEEP_INTERVAL", sweep, 10 * MINUTE, SECOND..=30 * DAY);
        let percent = check.parsed::<u32>("GUARD_PERCENT", some(&self.guard_percent), "10");
        if percent.is_some_and(|percent| percent > 100) {
            check.wrong("GUARD_PERCENT", "must be from 0 to 100");
        }
        let guard = ChangeGuardPolicy { percent: percent.unwrap_or_default() };
        let adopt_unmarked = check.parsed::<bool>("ADOPT_UNMARKED", some(&self.adopt_unmarked), "false");
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
            ) if check.mistakes.is_empty() => Ok(Config {
                mongodb_uri,
                mongodb_database,
                http_addr,
                telemetry_addr,
                access,
                authentik,
                stalwart,
                ocis,
                extra_ca,
                request_timeout,
                workers,
                policy: Policy { backoff: Backoff { initial, max }, resync },
                sweep_interval,
                guard,
                adopt_unmarked: adopt_unmarked.unwrap_or_default(),
                poll_interval,
                lease_ttl,
                shutdown_grace,
                log_format,
                log_filter,
                from_files: check.from_files,
            }),
            _ => Err(Mistakes(check.mistakes)),
        }
    }

    /// Sets up logs as far as that is possible with mistakes in the settings: a collector that is promised
    /// JSON gets nothing else.
    pub fn log_as_given(&self) {
        if some(&self.log_format).map(str::parse) == Some(Ok(LogFormat::Json)) {
            let filter = some(&self.log_level).and_then(|level| level.parse().ok());
            telemetry::init(LogFormat::Json, filter.unwrap_or_default(), None);
        }
    }

    fn check_authentik(&self, check: &mut Checker) -> Option<AuthentikConfig> {
        let url = check.base_url("AUTHENTIK_API_URL", some(&self.authentik_api_url), "api/v3");
        let token = some(&self.authentik_api_token);
        let token = check.secret("AUTHENTIK_API_TOKEN", token, some(&self.authentik_api_token_file));
        let template = some(&self.authentik_group_template).unwrap_or(GROUP_TEMPLATE);
        let group_template = check.template("AUTHENTIK_GROUP_TEMPLATE", template);
        let limits = check.limits(
            ["AUTHENTIK_MAX_CONCURRENT", "AUTHENTIK_MAX_PER_MINUTE"],
            [&self.authentik_max_concurrent, &self.authentik_max_per_minute],
            Limits::GENEROUS,
        );
        let given = some(&self.authentik_api_url).is_some();
        check.both("AUTHENTIK_API_URL", given, "AUTHENTIK_API_TOKEN", token.is_some());
        Some(AuthentikConfig { url: url?, token: token?, group_template: group_template?, limits })
    }

    fn check_stalwart(&self, check: &mut Checker) -> Option<StalwartConfig> {
        let url = check.base_url("STALWART_API_URL", some(&self.stalwart_api_url), "jmap");
        let token = some(&self.stalwart_api_token);
        let token = check.secret("STALWART_API_TOKEN", token, some(&self.stalwart_api_token_file));
        let user = some(&self.stalwart_username);
        let user = check.secret("STALWART_USERNAME", user, some(&self.stalwart_username_file));
        let password = some(&self.stalwart_password);
        let password = check.secret("STALWART_PASSWORD", password, some(&self.stalwart_password_file));
        check.both("STALWART_USERNAME", user.is_some(), "STALWART_PASSWORD", password.is_some());
        if token.is_some() && user.is_some() {
            check.wrong("STALWART_API_TOKEN", "give it or STALWART_USERNAME, not both");
        }
        let dkim = check.parsed("STALWART_DKIM", some(&self.stalwart_dkim), "automatic");
        let limits = check.limits(
            ["STALWART_MAX_CONCURRENT", "STALWART_MAX_PER_MINUTE"],
            [&self.stalwart_max_concurrent, &self.stalwart_max_per_minute],
            Limits { concurrent: 3, per_minute: NonZeroU32::new(900) },
        );
        let credentials = match (token, user, password) {
            (Some(token), ..) => Some(StalwartCredentials::ApiKey(token)),
            (None, Some(user), Some(password)) => Some(StalwartCredentials::Login { user, password }),
            _ => None,
        };
        let given = some(&self.stalwart_api_url).is_some();
        if !check.has("STALWART_") {
            check.both("STALWART_API_URL", given, "STALWART_API_TOKEN", credentials.is_some());
        }
        Some(StalwartConfig { url: url?, credentials: credentials?, dkim: dkim?, limits })
    }

    fn check_ocis(&self, check: &mut Checker) -> Option<OcisConfig> {
        let url = check.base_url("OCIS_API_URL", some(&self.ocis_api_url), "graph/v1.0");
        let token_url = check.url("OCIS_OIDC_TOKEN_URL", some(&self.ocis_oidc_token_url));
        let issuer = check.url("OCIS_OIDC_ISSUER", some(&self.ocis_oidc_issuer));
        let secret = some(&self.ocis_oidc_client_secret);
        let secret =
            check.secret("OCIS_OIDC_CLIENT_SECRET", secret, some(&self.ocis_oidc_client_secret_file));
        let password = some(&self.ocis_oidc_password);
        let password = check.secret("OCIS_OIDC_PASSWORD", password, some(&self.ocis_oidc_password_file));
        let user = some(&self.ocis_oidc_username).map(ToOwned::to_owned);
        check.both("OCIS_OIDC_USERNAME", user.is_some(), "OCIS_OIDC_PASSWORD", password.is_some());
        let groups = match some(&self.ocis_group_template) {
            Some(template) => check.template("OCIS_GROUP_TEMPLATE", template),
            // What is wrong with that one has been told.
            None => {
                let authentik = some(&self.authentik_group_template).unwrap_or(GROUP_TEMPLATE);
                GroupTemplate::parse(authentik).ok()
            }
        };
        let role = some(&self.ocis_group_role).filter(|role| *role != "none");
        let role = role.and_then(|role| check.parsed::<SpaceRole>("OCIS_GROUP_ROLE", Some(role), role));
        let limits = check.limits(
            ["OCIS_MAX_CONCURRENT", "OCIS_MAX_PER_MINUTE"],
            [&self.ocis_max_concurrent, &self.ocis_max_per_minute],
            Limits { concurrent: 16, per_minute: None },
        );
        if some(&self.ocis_api_url).is_some() {
            if token_url.is_none() && issuer.is_none() && !check.has("OCIS_OIDC_TOKEN_URL") {
                check
                    .wrong("OCIS_OIDC_TOKEN_URL", "is required with OCIS_API_URL (or OCIS_OIDC_ISSUER)");
            }
            if some(&self.ocis_oidc_client_id).is_none() {
                check.wrong("OCIS_OIDC_CLIENT_ID", "is required with OCIS_API_URL");
            }
            if secret.is_none() && password.is_none() && !check.has("OCIS_OIDC_") {
                let why = "is required with OCIS_API_URL (or OCIS_OIDC_USERNAME and OCIS_OIDC_PASSWORD)";
                check.wrong("OCIS_OIDC_CLIENT_SECRET", why);
            }
        }
        let endpoint = match (token_url, issuer) {
            (Some(url), _) => TokenEndpoint::Url(url),
            (None, Some(issuer)) => TokenEndpoint::DiscoveredFrom(issuer),
            (None, None) => return None,
        };
        let credentials = ClientCredentials {
            endpoint,
            client_id: some(&self.ocis_oidc_client_id)?.to_owned(),
            client_secret: secret,
            account: user.zip(password),
            scope: some(&self.ocis_oidc_scope).unwrap_or("openid profile email").to_owned(),
        };
        let membership = role.zip(groups).map(|(role, groups)| Membership { role, groups });
        Some(OcisConfig { url: url?, credentials, membership, limits })
    }
}

const GROUP_TEMPLATE: &str = "tenant-{slug}";

#[cfg(test)]
mod tests {
    use super::*;

    fn given(settings: &[(&str, &str)]) -> Given {
        let mut given = Given { mongodb_uri: Some("mongodb://127.0.0.1".into()), ..Given::default() };
        given.access.insecure_no_auth = Some("true".into());
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
                "STALWART_API_URL" => given.stalwart_api_url = value,
                "STALWART_API_TOKEN" => given.stalwart_api_token = value,
                "STALWART_USERNAME" => given.stalwart_username = value,
                "STALWART_PASSWORD" => given.stalwart_password = value,
                "STALWART_MAX_CONCURRENT" => given.stalwart_max_concurrent = value,
                "STALWART_MAX_PER_MINUTE" => given.stalwart_max_per_minute = value,
                "OCIS_API_URL" => given.ocis_api_url = value,
                "OCIS_OIDC_TOKEN_URL" => given.ocis_oidc_token_url = value,
                "OCIS_OIDC_CLIENT_ID" => given.ocis_oidc_client_id = value,
                "OCIS_OIDC_USERNAME" => given.ocis_oidc_username = value,
                "OCIS_OIDC_PASSWORD" => given.ocis_oidc_password = value,
                "OCIS_GROUP_ROLE" => given.ocis_group_role = value,
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
    fn with_an_issuer_any_address_may_be_listened_on() {
        let mut given = given(&[("HTTP_ADDR", "0.0.0.0:8080"), ("TELEMETRY_ADDR", "[::]:9090")]);
        assert_eq!(given.check().unwrap_err().0.len(), 2);
        given.access = AccessSettings {
            oidc_issuer: Some("https://id.acme.test/".into()),
            oidc_audience: Some("tenantry".into()),
            ..AccessSettings::default()
        };
        assert_eq!(given.check().unwrap().http_addr.port(), 8080);
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
        assert_eq!(token.current().expose_secret(), "s3cret");
        assert_eq!(config.from_files.len(), 1, "it is read again");
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

    #[test]
    fn an_upstream_is_configured_whole_or_not_at_all() {
        for (settings, mistakes) in [
            (
                &[("STALWART_API_URL", "https://mail.acme.test")][..],
                &["STALWART_API_TOKEN: is required with STALWART_API_URL"][..],
            ),
            (
                &[("STALWART_USERNAME", "admin@acme.test")],
                &["STALWART_PASSWORD: is required with STALWART_USERNAME"],
            ),
            (
                &[
                    ("STALWART_API_URL", "https://mail.acme.test"),
                    ("STALWART_API_TOKEN", "API_x"),
                    ("STALWART_USERNAME", "admin"),
                    ("STALWART_PASSWORD", "secret"),
                ],
                &["STALWART_API_TOKEN: give it or STALWART_USERNAME, not both"],
            ),
            (
                &[("OCIS_API_URL", "https://files.acme.test")],
                &[
                    "OCIS_OIDC_TOKEN_URL: is required with OCIS_API_URL (or OCIS_OIDC_ISSUER)",
                    "OCIS_OIDC_CLIENT_ID: is required with OCIS_API_URL",
                ],
            ),
            (&[("OCIS_GROUP_ROLE", "boss")], &["OCIS_GROUP_ROLE: must be viewer, editor or manager"]),
            (&[("STALWART_MAX_CONCURRENT", "0")], &["STALWART_MAX_CONCURRENT: must be from 1 to 1024"]),
        ] {
            assert_eq!(given(settings).check().unwrap_err().0, mistakes, "{settings:?}");
        }
    }

    #[test]
    fn stalwart_is_used_gently_and_a_token_endpoint_to_the_letter_unless_told_otherwise() {
        let config = given(&[
            ("STALWART_API_URL", "https://mail.acme.test/jmap/"),
            ("STALWART_API_TOKEN", "API_x"),
            ("OCIS_API_URL", "https://files.acme.test/graph/v1.0"),
            ("OCIS_OIDC_TOKEN_URL", "https://id.acme.test/oidc/token"),
            ("OCIS_OIDC_CLIENT_ID", "web"),
            ("OCIS_OIDC_USERNAME", "tenantry"),
            ("OCIS_OIDC_PASSWORD", "secret"),
        ])
        .check()
        .unwrap();
        let stalwart = config.stalwart.unwrap();
        assert!(stalwart.limits.concurrent < 4, "{:?}", stalwart.limits);
        assert!(stalwart.limits.per_minute.unwrap().get() < 1_000, "{:?}", stalwart.limits);
        assert_eq!(stalwart.url.to_string(), "https://mail.acme.test/");
        let ocis = config.ocis.unwrap();
        assert_eq!(ocis.url.to_string(), "https://files.acme.test/");
        assert!(matches!(&ocis.credentials.endpoint, TokenEndpoint::Url(url)
            if url.as_str() == "https://id.acme.test/oidc/token"));
        assert_eq!(ocis.credentials.scope, "openid profile email");
        let free = [
            ("STALWART_MAX_PER_MINUTE", "0"),
            ("STALWART_API_TOKEN", "x"),
            ("STALWART_API_URL", "http://m.test"),
        ];
        assert_eq!(given(&free).check().unwrap().stalwart.unwrap().limits.per_minute, None);
    }
}
