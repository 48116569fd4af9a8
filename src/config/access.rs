//! Settings of who may use the API, and how much.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::{Checker, some};
use crate::auth::{AuthConfig, IssuerConfig, KEY_REFRESH, RoleMapping};
use crate::secret::Secret;

/// As given.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessSettings {
    /// Issuer of the tokens that the API accepts, to the letter as they say it in iss, such as
    /// https://id.acme.test/application/o/tenantry/
    #[arg(long, env = "OIDC_ISSUER", value_name = "URL")]
    pub oidc_issuer: Option<String>,
    /// Audiences of which a token of OIDC_ISSUER must name one, with commas between them; with Authentik
    /// the provider's client id
    #[arg(long, env = "OIDC_AUDIENCE", value_name = "NAMES")]
    pub oidc_audience: Option<String>,
    /// Several issuers, instead of OIDC_ISSUER, as JSON: `[{"issuer": URL, "audiences": [NAME], "jwksUrl": URL}]`;
    /// jwksUrl only for one without a discovery document
    #[arg(long, env = "OIDC_ISSUERS", value_name = "JSON")]
    pub oidc_issuers: Option<String>,
    /// File that holds that JSON, instead of OIDC_ISSUERS
    #[arg(long, env = "OIDC_ISSUERS_FILE", value_name = "FILE")]
    pub oidc_issuers_file: Option<String>,
    /// Claim whose values give roles, a list or one text; dots lead into objects, as in
    /// realm_access.roles [default: groups]
    #[arg(long, env = "OIDC_ROLES_CLAIM", value_name = "CLAIM")]
    pub oidc_roles_claim: Option<String>,
    /// Values of that claim that let an account see everything, with commas between them
    /// [default: tenantry-readers]
    #[arg(long, env = "OIDC_READERS", value_name = "VALUES")]
    pub oidc_readers: Option<String>,
    /// Values that also let an account create, edit and reconcile tenants [default: tenantry-operators]
    #[arg(long, env = "OIDC_OPERATORS", value_name = "VALUES")]
    pub oidc_operators: Option<String>,
    /// Values that also let an account delete them [default: tenantry-admins]
    #[arg(long, env = "OIDC_ADMINS", value_name = "VALUES")]
    pub oidc_admins: Option<String>,
    /// Run without authentication: every caller that can connect may do everything. HTTP_ADDR and TELEMETRY_ADDR
    /// must then be loopback addresses
    #[arg(
        long,
        env = "INSECURE_NO_AUTH",
        value_name = "BOOLEAN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub insecure_no_auth: Option<String>,
    /// Requests a minute of one client, by its token, else by its address; 0 is without a limit
    /// [default: 600, 0 without authentication]
    #[arg(long, env = "RATE_LIMIT", value_name = "NUMBER")]
    pub rate_limit: Option<String>,
    /// Requests to the API at once, 1 to 65536; more are turned away, but never probes [default: 2048]
    #[arg(long, env = "MAX_REQUESTS", value_name = "NUMBER")]
    pub max_requests: Option<String>,
    /// Origins whose pages may use the API in a browser, with commas between them, such as
    /// https://portal.acme.test; without it none may
    #[arg(long, env = "CORS_ORIGINS", value_name = "ORIGINS")]
    pub cors_origins: Option<String>,
}

/// Checked.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// `None`: everybody may do everything.
    pub auth: Option<AuthConfig>,
    /// The list of issuers in JSON, where that is how they were given.
    pub issuers_list: Option<Secret>,
    /// Requests a minute of one client.
    pub rate_limit: Option<NonZeroU32>,
    /// Requests at once.
    pub max_requests: usize,
    /// As browsers send them in `Origin`.
    pub cors_origins: Vec<String>,
    pub patience: Patience,
}

/// What clients are put up with. No settings; tests are in a hurry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Connections at once, if the system lets us have so many.
    pub connections: usize,
    /// From the end of a request, or the beginning of the connection, until the next one's headers are
    /// there. Long enough for a proxy that keeps connections for reuse to be the one that ends them.
    pub headers: Duration,
    /// In which a client must take some of its answer.
    pub reading: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let (headers, reading) = (Duration::from_secs(65), Duration::from_secs(30));
        Self { connections: 4096, headers, reading }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GivenIssuer {
    issuer: String,
    audiences: Vec<String>,
    jwks_url: Option<String>,
}

const RATE_LIMIT: Option<NonZeroU32> = NonZeroU32::new(600);
const MAX_REQUESTS: usize = 2048;

impl AccessSettings {
    /// Whether an issuer is named, or that there shall be none.
    pub fn is_decided(&self) -> bool {
        let issuers = [&self.oidc_issuer, &self.oidc_issuers, &self.oidc_issuers_file];
        issuers.into_iter().any(|given| some(given).is_some())
            || matches!(some(&self.insecure_no_auth), Some("true" | "1"))
    }

    pub(super) fn check(&self, check: &mut Checker) -> AccessConfig {
        let open = match some(&self.insecure_no_auth) {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => {
                check.wrong("INSECURE_NO_AUTH", "must be true or false");
                false
            }
        };
        let (issuers, issuers_list) = self.check_issuers(check, open);
        let values = |given: &Option<String>, default: &str| -> BTreeSet<String> {
            list(some(given).unwrap_or(default)).collect()
        };
        let roles = RoleMapping {
            claim: some(&self.oidc_roles_claim).unwrap_or("groups").to_owned(),
            readers: values(&self.oidc_readers, "tenantry-readers"),
            operators: values(&self.oidc_operators, "tenantry-operators"),
            admins: values(&self.oidc_admins, "tenantry-admins"),
        };
        let auth = (!open).then_some(AuthConfig { issuers, roles, key_refresh: KEY_REFRESH });

        // Without authentication all clients look alike.
        let mut rate_limit = if open { None } else { RATE_LIMIT };
        match some(&self.rate_limit).map(str::parse::<u32>) {
            None => {}
            Some(Ok(number)) => rate_limit = NonZeroU32::new(number),
            Some(Err(_)) => check.wrong("RATE_LIMIT", "must be a whole number, 0 for no limit"),
        }
        let mut max_requests = MAX_REQUESTS;
        match some(&self.max_requests).map(str::parse::<usize>) {
            None => {}
            Some(Ok(number)) if (1..=1 << 16).contains(&number) => max_requests = number,
            Some(_) => check.wrong("MAX_REQUESTS", "must be from 1 to 65536"),
        }
        let cors_origins: Vec<_> = list(some(&self.cors_origins).unwrap_or_default()).collect();
        for origin in &cors_origins {
            // Compared to the letter: a pattern would never match.
            if origin.contains('*') {
                let why = format!(
                    "{origin:?} is a pattern; name each origin, such as https://portal.acme.test"
                );
                check.wrong("CORS_ORIGINS", why);
                continue;
            }
            // As the browser writes it: no path, not even a slash.
            let parsed = url::Url::parse(origin).ok();
            if parsed.is_none_or(|url| url.origin().ascii_serialization() != *origin) {
                let why = format!("{origin:?} is not an origin such as https://portal.acme.test");
                check.wrong("CORS_ORIGINS", why);
            }
        }
        let patience = Patience::default();
        AccessConfig { auth, issuers_list, rate_limit, max_requests, cors_origins, patience }
    }

    fn check_issuers(&self, check: &mut Checker, open: bool) -> (Vec<IssuerConfig>, Option<Secret>) {
        let list_of =
            check.secret("OIDC_ISSUERS", some(&self.oidc_issuers), some(&self.oidc_issuers_file));
        let (issuer, audience) = (some(&self.oidc_issuer), some(&self.oidc_audience));
        check.both("OIDC_ISSUER", issuer.is_some(), "OIDC_AUDIENCE", audience.is_some());
        let (name, issuers) = match (issuer, &list_of) {
            _ if check.has("OIDC_") => return (Vec::new(), None),
            (Some(_), Some(_)) => {
                check.wrong("OIDC_ISSUERS", "give it or OIDC_ISSUER, not both");
                return (Vec::new(), None);
            }
            (Some(issuer), None) => {
                let audiences = list(audience.unwrap_or_default()).collect();
                let given = GivenIssuer { issuer: issuer.to_owned(), audiences, jwks_url: None };
                ("OIDC_ISSUER", trusted(vec![given]))
            }
            (None, Some(json)) => ("OIDC_ISSUERS", issuers_of(json)),
            (None, None) => ("OIDC_ISSUER", Ok(Vec::new())),
        };
        let issuers = match issuers {
            Ok(issuers) => issuers,
            Err(mistakes) => {
                for mistake in mistakes {
                    check.wrong(name, mistake);
                }
                return (Vec::new(), None);
            }
        };
        match (open, issuers.is_empty()) {
            (true, false) => {
                check.wrong("INSECURE_NO_AUTH", "give it or an issuer, not both");
            }
            (false, true) => {
                let why = "is required, with OIDC_AUDIENCE (or OIDC_ISSUERS): the API accepts only those \
                           who have a token of it. On loopback, INSECURE_NO_AUTH=true does without";
                check.wrong("OIDC_ISSUER", why);
            }
            _ => {}
        }
        (issuers, list_of)
    }
}

/// The issuers that a list in JSON names, as it is now.
///
/// # Errors
/// Everything that is wrong with it, in words.
pub fn issuers_of(json: &Secret) -> Result<Vec<IssuerConfig>, Vec<String>> {
    let given = serde_json::from_str::<Vec<GivenIssuer>>(json.current().expose_secret());
    trusted(given.map_err(|error| {
        let form = r#"[{"issuer": "https://…/", "audiences": ["…"]}]"#;
        vec![format!("must be JSON like {form}: {error}")]
    })?)
}

fn trusted(given: Vec<GivenIssuer>) -> Result<Vec<IssuerConfig>, Vec<String>> {
    let (mut issuers, mut mistakes) = (Vec::<IssuerConfig>::new(), Vec::new());
    for GivenIssuer { issuer, audiences, jwks_url } in given {
        if issuers.iter().any(|other| other.issuer == issuer) {
            mistakes.push(format!("{issuer} is there twice; give all its audiences at once"));
            continue;
        }
        match IssuerConfig::new(&issuer, audiences, jwks_url.as_deref()) {
            Ok(config) => issuers.push(config),
            Err(error) => mistakes.push(error.to_string()),
        }
    }
    if mistakes.is_empty() { Ok(issuers) } else { Err(mistakes) }
}

fn list(text: &str) -> impl Iterator<Item = String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(settings: AccessSettings) -> (AccessConfig, Vec<String>) {
        let mut check = Checker::default();
        let config = settings.check(&mut check);
        (config, check.mistakes)
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn without_an_issuer_it_must_be_said_that_everybody_may_do_everything() {
        let (_, mistakes) = check(AccessSettings::default());
        assert!(mistakes[0].starts_with("OIDC_ISSUER: is required"), "{mistakes:?}");
        let open = AccessSettings { insecure_no_auth: text("true"), ..AccessSettings::default() };
        let (config, mistakes) = check(open.clone());
        assert!(mistakes.is_empty() && config.auth.is_none() && config.rate_limit.is_none());
        let both = AccessSettings {
            oidc_issuer: text("https://id.acme.test/"),
            oidc_audience: text("tenantry"),
            ..open
        };
        assert_eq!(check(both).1, ["INSECURE_NO_AUTH: give it or an issuer, not both"]);
    }

    #[test]
    fn one_issuer_or_a_list_of_them_each_with_its_audiences() {
        let one = AccessSettings {
            oidc_issuer: text("https://id.acme.test/o/tenantry/"),
            oidc_audience: text("tenantry, portal,"),
            oidc_admins: text("root,wheel"),
            ..AccessSettings::default()
        };
        let (config, mistakes) = check(one);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let auth = config.auth.unwrap();
        assert_eq!(auth.issuers[0].audiences, ["tenantry", "portal"]);
        assert!(auth.roles.admins.contains("wheel") && auth.roles.readers.contains("tenantry-readers"));

        let list = r#"[{"issuer":"https://a.test/","audiences":["x"]},
                       {"issuer":"https://b.test/","audiences":["y"],"jwksUrl":"https://b.test/keys"}]"#;
        let several = AccessSettings { oidc_issuers: text(list), ..AccessSettings::default() };
        let (config, mistakes) = check(several);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(config.auth.unwrap().issuers.len(), 2);
    }

    #[test]
    fn mistakes_name_the_setting_and_what_would_be_right() {
        let wrong = |settings: AccessSettings| check(settings).1.join("\n");
        let issuers =
            |json: &str| wrong(AccessSettings { oidc_issuers: text(json), ..AccessSettings::default() });
        assert!(issuers("https://id.acme.test/").contains("must be JSON like"));
        assert!(
            issuers(r#"[{"issuer":"https://a.test/","audiences":[]}]"#).contains("needs an audience")
        );
        assert!(issuers(r#"[{"issuer":"a.test","audiences":["x"]}]"#).contains("OIDC_ISSUERS"));
        let twice = r#"[{"issuer":"https://a.test/","audiences":["x"]},
                        {"issuer":"https://a.test/","audiences":["y"]}]"#;
        assert!(issuers(twice).contains("twice"));
        let alone =
            AccessSettings { oidc_issuer: text("https://id.acme.test/"), ..AccessSettings::default() };
        assert_eq!(wrong(alone), "OIDC_AUDIENCE: is required with OIDC_ISSUER");
        let open = AccessSettings { insecure_no_auth: text("true"), ..AccessSettings::default() };
        let cors = AccessSettings { cors_origins: text("https://a.test/,*"), ..open.clone() };
        assert_eq!(wrong(cors).lines().count(), 2);
        assert!(
            wrong(AccessSettings { rate_limit: text("many"), ..open.clone() }).contains("RATE_LIMIT")
        );
        assert!(wrong(AccessSettings { max_requests: text("0"), ..open }).contains("MAX_REQUESTS"));
    }
}
