//! The addresses of the server, who is let in at them, and what becomes of a request as a whole.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request as HttpRequest, State as Shares};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::Shared;
use super::access::{Login, Permissions};
use super::ban::Greeting;
use super::jmap::{ACCOUNT, CAPABILITIES, MANAGEMENT, MAX_CALLS, Request, SESSION_STATE};
use super::registry::Object;
use crate::dev::faults::{self, Faults};

const MAX_SIZE_REQUEST: usize = 10_000_000;
const MAX_CONCURRENT_REQUESTS: u32 = 4;

/// An answer that ends a request early. Boxed, because it is large and rare.
type Refusal = Box<Response>;

pub fn router(shared: Shared, faults: &Faults) -> Router {
    let tormentor = Router::new()
        .route("/_sim/domains", get(inspect))
        .route("/_sim/domains/{name}", axum::routing::delete(delete).patch(change))
        .with_state(shared.clone());
    Router::new()
        .route("/.well-known/jmap", get(well_known).fallback(nothing_here))
        // HEAD finds nothing there (observed), which a route for GET would answer.
        .route("/jmap/session", get(session).head(nothing_here).fallback(nothing_here))
        .route("/jmap", post(jmap).fallback(nothing_here))
        .route("/jmap/", post(jmap).fallback(nothing_here))
        .route("/api/account", get(account).fallback(nothing_here))
        .route("/healthz/live", get(healthy).fallback(nothing_here))
        .route("/healthz/ready", get(healthy).fallback(nothing_here))
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::disable())
        .with_state(shared.clone())
        .layer(middleware::from_fn_with_state(faults.clone(), faults::torment))
        .layer(middleware::from_fn_with_state(shared, shut_out))
        .merge(faults.router())
        .merge(tormentor)
}

/// What a banned caller gets, valid credential or not: 403 on a connection that was open, and none at all
/// on a new one (observed).
async fn shut_out(
    Shares(shared): Shares<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: HttpRequest,
    next: Next,
) -> Response {
    let greeting = {
        let mut state = shared.lock();
        let greeting = state.bans.greet(peer);
        state.dropped += u64::from(greeting == Greeting::Closed);
        greeting
    };
    match greeting {
        Greeting::Welcome => next.run(request).await,
        Greeting::Forbidden => forbidden(),
        // Nothing else ends a connection from within a handler. No hook sees it, and no message is
        // printed; the task of this one connection ends.
        Greeting::Closed => std::panic::resume_unwind(Box::new("banned")),
    }
}

/// For a banned address and for a key that may not authenticate alike.
fn forbidden() -> Response {
    let text = "You do not have enough permissions to access this resource.";
    plain_problem(StatusCode::FORBIDDEN, "Forbidden", text)
}

async fn inspect(Shares(shared): Shares<Shared>) -> Json<Vec<Value>> {
    Json(shared.lock().domains())
}

async fn delete(Shares(shared): Shares<Shared>, Path(name): Path<String>) -> StatusCode {
    if shared.lock().delete(&name) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

async fn change(
    Shares(shared): Shares<Shared>,
    Path(name): Path<String>,
    Json(patch): Json<Map<String, Value>>,
) -> Response {
    let mut state = shared.lock();
    let Some(id) = state.registry.domain_named(&name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match state.registry.update(Object::Domain, id, &patch) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => (StatusCode::UNPROCESSABLE_ENTITY, Json(refused)).into_response(),
    }
}

fn problem(status: StatusCode, body: Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

fn plain_problem(status: StatusCode, title: &str, detail: &str) -> Response {
    let body =
        json!({ "type": "about:blank", "status": status.as_u16(), "title": title, "detail": detail });
    problem(status, body)
}

fn json(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], body.to_string()).into_response()
}

fn request_error(kind: &str, detail: &str, limit: Option<&str>) -> Response {
    let kind = format!("urn:ietf:params:jmap:error:{kind}");
    let mut body = json!({ "type": kind, "status": 400, "detail": detail });
    if let Some(limit) = limit {
        body["limit"] = json!(limit);
    }
    problem(StatusCode::BAD_REQUEST, body)
}

async fn nothing_here() -> Response {
    let text = "The requested resource does not exist on this server.";
    plain_problem(StatusCode::NOT_FOUND, "Not Found", text)
}

async fn healthy() -> Response {
    plain_problem(StatusCode::OK, "OK", "OK")
}

async fn well_known() -> Response {
    let headers = [(header::LOCATION, "/jmap/session"), (header::CACHE_CONTROL, "no-cache")];
    (StatusCode::TEMPORARY_REDIRECT, headers).into_response()
}

fn unauthorized() -> Response {
    plain_problem(StatusCode::UNAUTHORIZED, "Unauthorized", "You have to authenticate first.")
}

/// Two headers of one name, one for each way to authenticate.
fn challenged() -> Response {
    let mut response = unauthorized();
    for challenge in [
        "Bearer realm=\"Stalwart Server\", resource_metadata=\"/.well-known/oauth-protected-resource\"",
        "Basic realm=\"Stalwart Server\"",
    ] {
        response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}

/// Who asks, `None` without credentials; or the refusal.
fn authenticate(
    shared: &Shared,
    address: IpAddr,
    headers: &HeaderMap,
) -> Result<Option<Permissions>, Refusal> {
    let mut state = shared.lock();
    let permissions = match state.access.login(headers) {
        Login::Anonymous => return Ok(None),
        Login::Known(permissions) => permissions,
        Login::Expired => return Err(Box::new(unauthorized())),
        Login::Wrong(login) => {
            if !state.bans.count(address, login.as_deref(), shared.options.max_failed_logins) {
                return Err(Box::new(challenged()));
            }
            let title = "Too Many Authentication Attempts";
            let text = "Your request has been rate limited. Please try again in a few minutes.";
            return Err(Box::new(plain_problem(StatusCode::TOO_MANY_REQUESTS, title, text)));
        }
    };
    if !permissions.have("authenticate") {
        return Err(Box::new(forbidden()));
    }
    if !permissions.have("unlimitedRequests") {
        let limit = shared.options.requests_per_minute;
        if let Some(seconds) = state.access.count_request(limit) {
            return Err(Box::new(rate_limited(limit, seconds)));
        }
    }
    Ok(Some(permissions))
}

fn rate_limited(limit: u32, seconds: i64) -> Response {
    let text = "Your request has been rate limited. Please try again in a few seconds.";
    let mut response = plain_problem(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests", text);
    for (name, value) in [
        ("retry-after", seconds.to_string()),
        ("ratelimit-policy", format!("\"requests\";q={limit}")),
        ("ratelimit", format!("\"requests\";r=0;t={seconds}")),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn session(
    Shares(shared): Shares<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    let known = match authenticate(&shared, peer.ip(), &headers) {
        Ok(who) => who.is_some(),
        Err(refusal) => return *refusal,
    };
    let base = if shared.lock().bootstrap { "" } else { shared.options.public_url.as_str() };
    let mut capabilities: Map<String, Value> = CAPABILITIES[..CAPABILITIES.len() - 1]
        .iter()
        .map(|name| (name.to_string(), json!({})))
        .collect();
    capabilities["urn:ietf:params:jmap:core"] = json!({
        "maxSizeUpload": 50_000_000, "maxConcurrentUpload": 4, "maxSizeRequest": MAX_SIZE_REQUEST,
        "maxConcurrentRequests": MAX_CONCURRENT_REQUESTS, "maxCallsInRequest": MAX_CALLS,
        "maxObjectsInGet": 500, "maxObjectsInSet": 500,
        "collationAlgorithms": ["i;ascii-numeric", "i;ascii-casemap", "i;unicode-casemap"],
    });
    capabilities["urn:ietf:params:jmap:sieve"] = json!({ "implementation": "Stalwart v1.0.0" });
    // Without credentials it is a 200 as well, of no account (observed).
    let (accounts, primary, username, state) = if known {
        let account = json!({
            "name": "root@lab.test", "isPersonal": true, "isReadOnly": false,
            "accountCapabilities": { "urn:ietf:params:jmap:mail": {}, MANAGEMENT: {} },
        });
        let primary = json!({ "urn:ietf:params:jmap:mail": ACCOUNT, MANAGEMENT: ACCOUNT });
        (json!({ ACCOUNT: account }), primary, "root@lab.test", SESSION_STATE)
    } else {
        (json!({}), json!({}), "", "0")
    };
    json(&json!({
        "capabilities": capabilities, "accounts": accounts, "primaryAccounts": primary,
        "username": username,
        "apiUrl": format!("{base}/jmap/"),
        "downloadUrl": format!("{base}/jmap/download/{{accountId}}/{{blobId}}/{{name}}?accept={{type}}"),
        "uploadUrl": format!("{base}/jmap/upload/{{accountId}}/"),
        "eventSourceUrl":
            format!("{base}/jmap/eventsource/?types={{types}}&closeafter={{closeafter}}&ping={{ping}}"),
        "state": state,
    }))
}

async fn account(
    Shares(shared): Shares<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    match authenticate(&shared, peer.ip(), &headers) {
        Ok(Some(permissions)) => {
            json(&json!({ "permissions": permissions.list(), "edition": "oss", "locale": "en_US" }))
        }
        Ok(None) => challenged(),
        Err(refusal) => *refusal,
    }
}

/// A place among the requests that are worked on, given back when the work ends.
struct Place(Arc<AtomicU32>);

impl Place {
    fn take(shared: &Shared) -> Option<Self> {
        let place = Self(shared.in_flight.clone());
        (place.0.fetch_add(1, Ordering::Relaxed) < MAX_CONCURRENT_REQUESTS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn jmap(
    Shares(shared): Shares<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let permissions = match authenticate(&shared, peer.ip(), &headers) {
        Ok(Some(permissions)) => permissions,
        Ok(None) => return challenged(),
        Err(refusal) => return *refusal,
    };
    let _place = if permissions.have("unlimitedRequests") {
        None
    } else {
        let Some(place) = Place::take(&shared) else { return too_concurrent() };
        Some(place)
    };
    if !shared.options.latency.is_zero() {
        tokio::time::sleep(shared.options.latency).await;
    }
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    if kind.is_some_and(|kind| !kind.starts_with("application/json")) {
        let text = "Failed to parse JSON: The Content-Type header must be application/json.";
        return request_error("notJSON", text, None);
    }
    if body.len() > MAX_SIZE_REQUEST {
        let text = "The request is larger than the server is willing to process.";
        return request_error("limit", text, Some("maxSizeRequest"));
    }
    let Some(request) = Request::parse(&body, shared.options.release) else {
        // All of it comes back, secrets included (observed).
        return request_error("notRequest", &String::from_utf8_lossy(&body), None);
    };
    if request.calls() > MAX_CALLS {
        let text = "The request exceeds the maximum number of calls in a single request.";
        return request_error("limit", text, Some("maxCallsInRequest"));
    }
    json(&request.answer(&mut shared.lock(), &permissions))
}

/// A 400 and not a 429, and without `retry-after` (observed).
fn too_concurrent() -> Response {
    let text = "The request exceeds the maximum number of concurrent requests.";
    let mut response = request_error("limit", text, Some("maxConcurrentRequests"));
    let policy = "\"concurrent-requests\";q=4;qu=\"concurrent-requests\"";
    let headers = response.headers_mut();
    headers.insert("ratelimit-policy", HeaderValue::from_static(policy));
    headers.insert("ratelimit", HeaderValue::from_static("\"concurrent-requests\";r=0"));
    response
}
