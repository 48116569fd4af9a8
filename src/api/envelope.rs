//! What every request and answer has around it: an id, a span for the log, and headers that tell browsers
//! to be careful.

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::Instrument;
use tracing::field::Empty;

use super::problem::Problem;
use crate::telemetry::traces;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over from a client, in bytes.
const MAX_ID: usize = 128;

/// Names a request in logs, answers and errors, among its extensions.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// A problem that can be found in the log.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Named<'a> {
    #[serde(flatten)]
    problem: Problem,
    request_id: &'a str,
}

/// Answers say this unless the handler says something else.
const CAREFUL: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

pub async fn wrap(mut request: Request, next: Next) -> Response {
    let id = taken_over(request.headers()).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    request.extensions_mut().insert(RequestId(id.clone()));
    let route = request.extensions().get::<MatchedPath>();
    let name = route.map(|route| format!("{} {}", request.method(), route.as_str()));
    // Of the highest level, so that it is there whichever lines are logged.
    let span = tracing::error_span!(
        "request", request_id = id, method = %request.method(), path = request.uri().path(),
        sub = Empty, client = Empty, role = Empty, trace_id = Empty, otel.kind = "server", otel.name = name,
        http.response.status_code = Empty,
    );
    let traced = request.headers().get(traces::TRACEPARENT).and_then(|traced| traced.to_str().ok());
    traces::continue_from(&span, traced);
    traces::note_trace(&span);
    let ended = span.clone();
    let answer = async {
        match named_host(&request) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        }
    };
    let mut response = answer.instrument(span).await;
    ended.record("http.response.status_code", response.status().as_u16());
    if let Some(problem) = response.extensions_mut().remove::<Problem>()
        && let Ok(body) = serde_json::to_vec(&Named { problem, request_id: &id })
    {
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(body);
    }
    let headers = response.headers_mut();
    for (name, value) in CAREFUL {
        headers.entry(name).or_insert(value);
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// RFC 9112, section 3.2: a request of HTTP/1.1 names one host.
fn named_host(request: &Request) -> Result<(), Problem> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11) {
        return Ok(());
    }
    Err(Problem::bad_request("a request of HTTP/1.1 must have the header Host, once"))
}

/// The client's own id, if it is one that can be put into logs and headers.
fn taken_over(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fine = (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    fine.then(|| id.to_owned())
}
