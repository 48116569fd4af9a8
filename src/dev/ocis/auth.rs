//! The proxy in front: from a bearer token to a user with a role, or the refusal.
//!
//! A token is checked by the issuer's keys, then its claims are fetched from userinfo, once per token,
//! and kept until it expires: bad claims as well as good ones (observed).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::state::{Spaces, User};
use super::{Flavour, Role, Shared};

type Claims = Map<String, Value>;

/// Why the proxy lets a request not through. Both have an empty body, so a client cannot tell more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No token, a bad one, or an issuer that does not answer.
    Unauthorized,
    /// A good token whose claims do not make a user with a role.
    BadClaims,
}

/// What the proxy remembers.
pub struct Proxy {
    /// As configured; must be what the discovery document says, byte for byte.
    issuer: String,
    client: reqwest::Client,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    endpoints: Option<Endpoints>,
    keys: Option<JwkSet>,
    /// When the keys were last read again for an unknown kid.
    refreshed: Option<Instant>,
    /// Claims by token.
    claims: HashMap<String, Known>,
}

#[derive(Clone)]
struct Endpoints {
    keys: String,
    userinfo: String,
}

struct Known {
    claims: Claims,
    /// Seconds since 1970.
    until: f64,
}

/// How long the claims of a token without `exp` are kept (`PROXY_OIDC_USERINFO_CACHE_TTL`).
const CACHE_SECONDS: f64 = 10.0;

impl Proxy {
    pub fn new(issuer: &str) -> Result<Self, reqwest::Error> {
        // The second to come finds one installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build()?;
        Ok(Self { issuer: issuer.to_owned(), client, memory: Mutex::default() })
    }

    pub fn forget(&self) {
        *self.lock() = Memory::default();
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, url: &str, token: Option<&str>) -> Option<Value> {
        let mut request = self.client.get(url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.ok()?;
        if response.status() != reqwest::StatusCode::OK {
            return None;
        }
        serde_json::from_slice(&response.bytes().await.ok()?).ok()
    }

    /// The issuer's endpoints. Read once; tried again with each request while it fails (observed).
    async fn endpoints(&self) -> Option<Endpoints> {
        if let Some(endpoints) = self.lock().endpoints.clone() {
            return Some(endpoints);
        }
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let document = self.get(&url, None).await?;
        let text = |name: &str| document.get(name)?.as_str().map(ToOwned::to_owned);
        if text("issuer")? != self.issuer {
            return None;
        }
        let endpoints = Endpoints { keys: text("jwks_uri")?, userinfo: text("userinfo_endpoint")? };
        self.lock().endpoints = Some(endpoints.clone());
        Some(endpoints)
    }

    /// The key of that kid. For an unknown one the set is read again, but not more often than `limit`
    /// allows, from whichever caller: a stranger's made-up kid uses it up as well (observed).
    async fn key(&self, url: &str, kid: &str, limit: Duration) -> Option<DecodingKey> {
        let find = |keys: &JwkSet| keys.find(kid).map(DecodingKey::from_jwk);
        let known = {
            let memory = self.lock();
            memory.keys.as_ref().map(find)
        };
        match known {
            Some(Some(key)) => return key.ok(),
            None => {}
            Some(None) => {
                let mut memory = self.lock();
                if memory.refreshed.is_some_and(|at| at.elapsed() < limit) {
                    return None;
                }
                memory.refreshed = Some(Instant::now());
            }
        }
        // Without a signing key there is not even an empty list.
        let keys: JwkSet = serde_json::from_value(self.get(url, None).await?).ok()?;
        let key = find(&keys);
        self.lock().keys = Some(keys);
        key?.ok()
    }

    /// The claims of a good token.
    async fn claims(&self, flavour: Flavour, token: &str, limit: Duration) -> Option<Claims> {
        let now = now();
        {
            let mut memory = self.lock();
            if let Some(known) = memory.claims.get(token) {
                if now < known.until {
                    return Some(known.claims.clone());
                }
                memory.claims.remove(token);
            }
        }
        let endpoints = self.endpoints().await?;
        let header = jsonwebtoken::decode_header(token).ok()?;
        let kid = header.kid.as_ref()?;
        if !matches!(header.alg, Algorithm::ES256 | Algorithm::RS256) {
            return None;
        }
        let key = self.key(&endpoints.keys, kid, limit).await?;
        // Times are compared below, without leeway; the audience is not looked at (observed).
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let signed = jsonwebtoken::decode::<Claims>(token, &key, &validation).ok()?.claims;
        if signed.get("iss").and_then(Value::as_str) != Some(self.issuer.as_str()) {
            return None;
        }
        let time = |name: &str| signed.get(name).and_then(Value::as_f64);
        // No `exp` is fine (observed).
        let expired = time("exp").is_some_and(|exp| now >= exp);
        let early = time("nbf").is_some_and(|nbf| now < nbf);
        let from_the_future = flavour == Flavour::Ocis31 && time("iat").is_some_and(|iat| now < iat);
        if expired || early || from_the_future {
            return None;
        }
        let told = match self.get(&endpoints.userinfo, Some(token)).await? {
            Value::Object(claims) => claims,
            _ => return None,
        };
        let claims = match flavour {
            // Only what userinfo says (observed).
            Flavour::Ocis31 => told,
            Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud => {
                let mut claims = signed.clone();
                claims.extend(told);
                claims
            }
        };
        let until = time("exp").unwrap_or(now + CACHE_SECONDS);
        let mut memory = self.lock();
        memory.claims.retain(|_, known| now < known.until);
        memory.claims.insert(token.to_owned(), Known { claims: claims.clone(), until });
        Some(claims)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Who asks, with the role that this token gives.
pub async fn authenticate(shared: &Shared, headers: &HeaderMap) -> Result<User, Refusal> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    // Upper and lower case matter (observed).
    let Some(token) = value.and_then(|value| value.strip_prefix("Bearer ")) else {
        // The built-in administrator gets no role from a password, and that is a 500 (observed).
        return Err(match value {
            Some("Basic YWRtaW46YWRtaW4=") => Refusal::BadClaims,
            _ => Refusal::Unauthorized,
        });
    };
    let limit = shared.options.jwks_refresh_limit;
    let claims = shared.proxy.claims(shared.flavour, token, limit).await;
    let claims = claims.ok_or(Refusal::Unauthorized)?;
    let name = match claims.get("preferred_username").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => name,
        _ => return Err(Refusal::BadClaims),
    };
    provision(shared, name, &claims).await?;

    // After the user was made, so that one without a role exists all the same.
    let groups: Vec<&str> = match claims.get(&shared.options.role_claim) {
        Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
        _ => return Err(Refusal::BadClaims),
    };
    let role = shared.options.roles.iter().find(|(value, _)| groups.contains(&value.as_str()));
    let role = role.map(|(_, role)| *role).ok_or(Refusal::BadClaims)?;
    let mut spaces = shared.lock();
    let copied = match shared.flavour {
        Flavour::Ocis7 | Flavour::OpenCloud => copy_groups(&mut spaces, &claims),
        Flavour::Ocis31 | Flavour::Ocis5 => None,
    };
    // It may have been removed in between.
    let user = spaces.users.get_mut(name).ok_or(Refusal::Unauthorized)?;
    user.role = role;
    if let Some(groups) = copied {
        user.groups = groups;
    }
    Ok(user.clone())
}

/// OpenCloud makes groups of its own of the claim `groups`, all of them (observed).
fn copy_groups(spaces: &mut Spaces, claims: &Claims) -> Option<Vec<String>> {
    let names = claims.get("groups")?.as_array()?;
    Some(names.iter().filter_map(Value::as_str).map(|name| spaces.add_group(name)).collect())
}

/// Sees to it that the user exists.
async fn provision(shared: &Shared, name: &str, claims: &Claims) -> Result<(), Refusal> {
    {
        let mut spaces = shared.lock();
        if let Some(user) = spaces.users.get_mut(name) {
            return update(shared, user, claims);
        }
    }
    if !shared.options.autoprovision {
        return Err(Refusal::Unauthorized);
    }
    let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
    let display_name = text("name").filter(|name| !name.is_empty()).ok_or(Refusal::BadClaims)?;
    let mail = match (claims.get("email"), shared.flavour) {
        (None, Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud) => "",
        _ => text("email").filter(|mail| is_mail(mail)).ok_or(Refusal::BadClaims)?,
    };
    if !is_user_name(name) {
        return Err(Refusal::BadClaims);
    }
    if shared.options.autoprovision_race {
        race(shared, name).await?;
    }
    let mut spaces = shared.lock();
    spaces.provisioning.remove(name);
    if !spaces.users.contains_key(name) {
        spaces.add_user(name, display_name, mail, Role::User);
    }
    Ok(())
}

/// OpenCloud takes over a changed e-mail address at each login: an empty one wipes it with the first
/// request, and fails with every later one (observed).
fn update(shared: &Shared, user: &mut User, claims: &Claims) -> Result<(), Refusal> {
    if shared.flavour == Flavour::Ocis31 || !shared.options.autoprovision {
        return Ok(());
    }
    let Some(mail) = claims.get("email").and_then(Value::as_str) else { return Ok(()) };
    if mail.is_empty() && user.mail.is_empty() {
        return Err(Refusal::BadClaims);
    }
    mail.clone_into(&mut user.mail);
    Ok(())
}

/// Making a user takes a while, in which others who want to make the same one fail, though not all.
async fn race(shared: &Shared, name: &str) -> Result<(), Refusal> {
    let first = {
        let mut spaces = shared.lock();
        match spaces.provisioning.get_mut(name) {
            None => {
                spaces.provisioning.insert(name.to_owned(), 0);
                true
            }
            Some(failed) if *failed < 2 => {
                *failed += 1;
                return Err(Refusal::BadClaims);
            }
            Some(_) => false,
        }
    };
    if first {
        // Long enough for another to come in between, and no longer.
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if shared.lock().provisioning.get(name).is_none_or(|failed| *failed > 0) {
                break;
            }
        }
        return Ok(());
    }
    while shared.lock().provisioning.contains_key(name) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Neither blanks nor a digit in front: a UUID is refused half of the time (observed).
fn is_user_name(name: &str) -> bool {
    let (local, host) = match name.split_once('@') {
        Some((local, host)) => (local, Some(host)),
        None => (name, None),
    };
    let mut letters = local.chars();
    let first = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first
        && letters.all(|c| c.is_ascii_alphanumeric() || ".!#$%&'*+/=?^_`{|}~-".contains(c))
        && host.is_none_or(|host| {
            !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c))
        })
}

fn is_mail(mail: &str) -> bool {
    let valid = |part: &str| !part.is_empty() && !part.contains(char::is_whitespace);
    mail.split_once('@').is_some_and(|(local, host)| valid(local) && valid(host))
}

/// The proxy's own answer. There is nothing in it to tell one reason from another.
pub fn refuse(
    shared: &Shared,
    refusal: Refusal,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Response {
    if refusal == Refusal::BadClaims {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let mut response = if *method == Method::DELETE {
        // As WebDAV does it (observed).
        let kind = [(header::CONTENT_TYPE, "text/xml; charset=utf-8")];
        let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<d:error xmlns:d=\"DAV\" xmlns:s=\"http://sabredav.org/ns\"><s:Exception>Sabre\\DAV\\Exception\\PermissionDenied</s:Exception><s:Message>Authentication error</s:Message></d:error>";
        (StatusCode::UNAUTHORIZED, kind, body).into_response()
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    };
    // How often both challenges are sent (observed).
    let times = match shared.flavour {
        _ if headers.contains_key("x-requested-with") => 0,
        Flavour::Ocis31 if path.starts_with("/ocs/") => 2,
        Flavour::Ocis31 => 0,
        Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud => 1,
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    for _ in 0..times {
        let schemes = ["Bearer", "Basic"];
        for scheme in schemes.into_iter().filter(|it| *it == "Bearer" || shared.options.basic_auth) {
            let challenge = format!("{scheme} realm=\"{host}\", charset=\"UTF-8\"");
            if let Ok(challenge) = HeaderValue::try_from(challenge) {
                response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
            }
        }
    }
    response
}
