//! The way of one request: through the proxy, to what answers it.

use std::sync::atomic::Ordering;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::state::User;
use super::{Flavour, Role, Shared, auth, directory, drives, members, text};

/// One request that the proxy let through.
pub struct Call<'a> {
    pub shared: &'a Shared,
    pub user: User,
    pub method: &'a Method,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    ids: &'a RequestIds,
}

/// The ids of one request. A client's own is taken for both; else header and body carry two different ones,
/// consecutive numbers (observed).
pub struct RequestIds {
    header: String,
    body: String,
}

impl RequestIds {
    fn new(shared: &Shared, headers: &HeaderMap) -> Self {
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        match given.filter(|id| !id.is_empty()) {
            Some(id) => Self { header: id.into(), body: id.into() },
            None => {
                let number = shared.counter.fetch_add(2, Ordering::Relaxed);
                let id = |number| format!("sim/{:010}-{number:06}", std::process::id());
                Self { header: id(number + 1), body: id(number + 2) }
            }
        }
    }
}

impl Call<'_> {
    pub fn flavour(&self) -> Flavour {
        self.shared.flavour
    }

    /// May see and change all spaces.
    pub fn is_provisioner(&self) -> bool {
        self.user.role != Role::User
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// A graph error, with the body that all of them have.
    pub fn error(&self, status: StatusCode, code: &str, message: &str) -> Response {
        let date = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut body = String::from("{\"error\":{\"code\":");
        text::string(&mut body, code);
        body.push_str(",\"innererror\":{\"date\":");
        text::string(&mut body, &date);
        body.push_str(",\"request-id\":");
        text::string(&mut body, &self.ids.body);
        body.push_str("},\"message\":");
        text::string(&mut body, message);
        body.push_str("}}\n");
        (status, self.json_type(), body).into_response()
    }

    /// A JSON answer in the flavour's content type.
    pub fn json(&self, status: StatusCode, body: String) -> Response {
        (status, self.json_type(), body).into_response()
    }

    pub fn value(&self, status: StatusCode, body: &Value) -> Response {
        self.json(status, body.to_string() + "\n")
    }

    pub fn json_type(&self) -> [(HeaderName, &'static str); 1] {
        let kind = match self.flavour() {
            Flavour::Ocis31 => "application/json; charset=utf-8",
            Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud => "application/json",
        };
        [(header::CONTENT_TYPE, kind)]
    }

    /// A method that the path does not know: empty in both, and OpenCloud names the ones it knows.
    pub fn not_allowed(&self, allowed: &[&'static str]) -> Response {
        let mut response = StatusCode::METHOD_NOT_ALLOWED.into_response();
        if self.flavour() != Flavour::Ocis31 {
            for method in allowed {
                response.headers_mut().append(header::ALLOW, HeaderValue::from_static(method));
            }
        }
        response
    }
}

fn page_not_found() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (StatusCode::NOT_FOUND, kind, "404 page not found\n").into_response()
}

/// Every request: first the proxy, then what lies behind it.
pub async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let ids = RequestIds::new(&shared, &headers);
    let path = uri.path().to_owned();
    let (mut response, by_graph) = if method == Method::OPTIONS {
        let status = match shared.flavour {
            Flavour::Ocis31 => StatusCode::OK,
            Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud => StatusCode::NO_CONTENT,
        };
        (status.into_response(), false)
    } else {
        match auth::authenticate(&shared, &headers).await {
            Err(refusal) => (auth::refuse(&shared, refusal, &method, &path, &headers), false),
            Ok(user) => {
                let call = Call {
                    shared: &shared,
                    user,
                    method: &method,
                    query: uri.query().unwrap_or_default(),
                    headers: &headers,
                    body: &body,
                    ids: &ids,
                };
                (route(&call, &path), path.starts_with("/graph/"))
            }
        }
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(&ids.header) {
        headers.insert("x-request-id", id);
    }
    if by_graph {
        // On what the graph service answers, and not on what the proxy in front of it does (observed).
        headers.insert("x-graph-version", HeaderValue::from_static(shared.flavour.graph_version()));
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    response
}

fn route(call: &Call, path: &str) -> Response {
    let segments: Vec<String> =
        path.split('/').filter(|segment| !segment.is_empty()).map(percent_decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let beta = call.flavour() != Flavour::Ocis31;
    let invites = call.flavour().invites();
    match segments.as_slice() {
        ["graph", "v1.0", "drives"] => drives::collection(call, text::Shape::Full),
        ["graph", "v1.0", "drives", id] => drives::member(call, id),
        ["graph", "v1.0", "me"] => directory::me(call),
        ["graph", "v1.0", "me", "drive"] => drives::personal(call),
        ["graph", "v1.0", "me", "drives"] => drives::mine(call),
        ["graph", "v1.0", "applications"] => directory::applications(call),
        ["graph", "v1.0", "groups"] => directory::groups(call),
        ["graph", "v1.0", "groups", id] => directory::group(call, id),
        ["graph", "v1.0", "users"] => directory::users(call),
        ["graph", "v1.0", "users", id] => directory::user(call, id),
        ["graph", "v1beta1", "drives"] if beta => drives::collection(call, text::Shape::Beta),
        ["graph", "v1beta1", "drives", id, "root", "invite"] if invites => members::invite(call, id),
        ["graph", "v1beta1", "drives", id, "root", "permissions"] if invites => {
            members::permissions(call, id)
        }
        ["graph", "v1beta1", "drives", id, "root", "permissions", permission] if invites => {
            members::permission(call, id, permission)
        }
        ["graph", "v1beta1", "roleManagement", "permissions", "roleDefinitions"] if beta => {
            members::role_definitions(call)
        }
        ["ocs", "v2.php", "apps", "files_sharing", "api", "v1", "shares"] => members::share(call),
        ["ocs", "v2.php", "apps", "files_sharing", "api", "v1", "shares", id] => {
            members::unshare(call, id)
        }
        ["ocs", "v1.php", "cloud", "capabilities"] => directory::capabilities(call),
        _ => page_not_found(),
    }
}

/// A path segment without its percent signs. What is no UTF-8 then matches nothing.
fn percent_decoded(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
