//! The device authorization grant (RFC 8628) and refresh tokens of the simulated issuer.
//!
//! As the RFCs have it: how Authentik does it was not observed. The addresses are Authentik's. Stricter than the
//! RFCs demand: a refresh token is good once, and asking more often than agreed is told as `slow_down` each time.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Provider, Shared, base_url};

/// What was begun, and what may be renewed.
#[derive(Default)]
pub struct Devices {
    /// By device code.
    begun: BTreeMap<String, Begun>,
    /// By refresh token: provider, account and scopes.
    refresh: BTreeMap<String, Renewable>,
    /// What the client is asked to leave between two questions, in seconds.
    interval: u64,
}

struct Begun {
    user_code: String,
    client_id: String,
    scope: String,
    decided: Decided,
    ends: Instant,
    asked: Option<Instant>,
}

enum Decided {
    NotYet,
    By(String),
    Declined,
}

#[derive(Clone)]
struct Renewable {
    client_id: String,
    account: String,
    scope: String,
}

/// How long a code is good.
const LIFE: Duration = Duration::from_secs(600);
const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

impl Devices {
    pub fn set_interval(&mut self, seconds: u64) {
        self.interval = seconds;
    }

    /// What a person decides at the verification address; `false` when there is no such code.
    pub fn decide(&mut self, user_code: &str, account: Option<&str>) -> bool {
        let begun = self.begun.values_mut().find(|begun| begun.user_code == user_code);
        let decided = account.map_or(Decided::Declined, |account| Decided::By(account.to_owned()));
        begun.map(|begun| begun.decided = decided).is_some()
    }

    /// Ends all logins: no refresh token is good any more.
    pub fn end(&mut self) {
        self.refresh.clear();
    }

    /// Whose token the device gets, or the error.
    fn ask(&mut self, code: &str, client_id: &str) -> Result<Renewable, &'static str> {
        let interval = Duration::from_secs(self.interval);
        let begun = self.begun.get_mut(code).filter(|begun| begun.client_id == client_id);
        let begun = begun.ok_or("invalid_grant")?;
        if begun.ends < Instant::now() {
            return Err("expired_token");
        }
        if begun.asked.replace(Instant::now()).is_some_and(|last| last.elapsed() < interval) {
            return Err("slow_down");
        }
        let account = match &begun.decided {
            Decided::NotYet => return Err("authorization_pending"),
            Decided::Declined => return Err("access_denied"),
            Decided::By(account) => account.clone(),
        };
        let renewable =
            Renewable { client_id: client_id.to_owned(), account, scope: begun.scope.clone() };
        self.begun.remove(code);
        Ok(renewable)
    }
}

/// The answer of the token endpoint, if it is asked for one of these grants.
pub fn grant(
    issuer: &mut super::Issuer,
    provider: &Provider,
    form: &BTreeMap<String, String>,
    base: &str,
) -> Option<Response> {
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let whose = match field("grant_type") {
        DEVICE_CODE => issuer.devices.ask(field("device_code"), &provider.client_id),
        "refresh_token" => {
            let renewable = issuer.devices.refresh.remove(field("refresh_token"));
            let own = renewable.filter(|renewable| renewable.client_id == provider.client_id);
            own.ok_or("invalid_grant")
        }
        _ => return None,
    };
    let renewable = match whose {
        Ok(renewable) => renewable,
        Err(error) => {
            return Some((StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response());
        }
    };
    let account = issuer.accounts.get(&renewable.account).filter(|account| account.active).cloned();
    let granted = account.and_then(|account| issuer.grant(provider, &account, &renewable.scope, base));
    let Some(mut granted) = granted else {
        return Some(
            (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" }))).into_response(),
        );
    };
    if renewable.scope.split(' ').any(|scope| scope == "offline_access") {
        let refresh = format!("{:032x}", rand::random::<u128>());
        granted["refresh_token"] = Value::from(refresh.as_str());
        issuer.devices.refresh.insert(refresh, renewable);
    }
    Some((StatusCode::OK, [("cache-control", "no-store")], Json(granted)).into_response())
}

pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/application/o/device/", axum::routing::post(begin))
        .route("/device", axum::routing::get(page))
        .route("/_sim/device/{code}/{account}", axum::routing::post(approve))
}

async fn begin(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let form: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let client_id = form.get("client_id").cloned().unwrap_or_default();
    let mut issuer = shared.lock();
    if !issuer.providers.iter().any(|provider| provider.client_id == client_id) {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_client" }))).into_response();
    }
    let (device_code, user_code) = (
        format!("{:032x}", rand::random::<u128>()),
        format!("{:09}", rand::random_range(0..1_000_000_000)),
    );
    let begun = Begun {
        user_code: user_code.clone(),
        client_id,
        scope: form.get("scope").cloned().unwrap_or_default(),
        decided: Decided::NotYet,
        ends: Instant::now() + LIFE,
        asked: None,
    };
    issuer.devices.begun.retain(|_, begun| begun.ends > Instant::now());
    issuer.devices.begun.insert(device_code.clone(), begun);
    let address = format!("{}/device", base_url(&headers));
    Json(json!({
        "device_code": device_code,
        "user_code": user_code,
        "verification_uri": address,
        "verification_uri_complete": format!("{address}?code={user_code}"),
        "expires_in": LIFE.as_secs(),
        "interval": issuer.devices.interval,
    }))
    .into_response()
}

/// A page on which a person agrees, as one of the accounts.
async fn page(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Html<String> {
    let code: String = query
        .get("code")
        .into_iter()
        .flat_map(|code| code.chars())
        .filter(char::is_ascii_digit)
        .collect();
    let accounts: String = shared
        .lock()
        .accounts
        .keys()
        .map(|name| format!("<button formaction=\"/_sim/device/{code}/{name}\">as {name}</button> "))
        .collect();
    Html(format!(
        "<!DOCTYPE html>\n<form method=\"post\">Let the device with the code {code} in {accounts}</form>\n"
    ))
}

async fn approve(
    State(shared): State<Shared>,
    Path((code, account)): Path<(String, String)>,
) -> (StatusCode, &'static str) {
    let mut issuer = shared.lock();
    if issuer.accounts.contains_key(&account) && issuer.devices.decide(&code, Some(&account)) {
        (StatusCode::OK, "the device is let in\n")
    } else {
        (StatusCode::NOT_FOUND, "there is no such code or account\n")
    }
}
