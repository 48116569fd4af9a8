//! Fault injection and a record of requests, for every simulator alike.
//!
//! A simulator answers under `/_sim/` to the test that drives it:
//!
//! * `POST /_sim/faults` adds a rule, `GET` lists them, `DELETE` removes all;
//! * `GET /_sim/requests` tells how many requests there were and the latest of them, `DELETE` forgets.
//!
//! Rules apply in the order in which they were added; the first that matches a request decides.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// What to do to which requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fault {
    /// Only requests with this method.
    pub method: Option<String>,
    /// Only requests whose path begins so.
    pub path: Option<String>,
    /// Only requests whose query contains this.
    pub query: Option<String>,
    /// Only requests whose body contains this; JMAP has one path for everything.
    pub body: Option<String>,
    /// How many requests it applies to; for ever when absent.
    pub times: Option<u32>,
    /// Wait this long before anything else.
    pub delay_ms: u64,
    /// Do what was asked before answering as `answer` says: the answer is then a lie.
    pub apply: bool,
    pub answer: FaultAnswer,
}

/// What the client gets to see.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultAnswer {
    /// The true answer.
    #[default]
    True,
    /// A status and body; `retryAfter` in seconds.
    Status {
        status: u16,
        #[serde(default)]
        body: String,
        #[serde(default, rename = "retryAfter")]
        retry_after: Option<u64>,
    },
    /// `405` with an empty body, which is Authentik's answer to an error inside it.
    #[serde(rename = "empty405")]
    Empty405,
    /// The connection breaks off in the middle of the answer.
    Drop,
    /// No answer, ever.
    Hang,
}

/// More than any simulated server takes: refusing is their business.
const MAX_BODY: usize = 32 << 20;
/// Requests that are remembered; older ones are only counted.
const REMEMBERED: usize = 10_000;

/// Rules and record, shared between a simulator's handlers and its owner.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    rules: Vec<Fault>,
    total: u64,
    latest: VecDeque<String>,
    under_way: usize,
    most_at_once: usize,
}

struct UnderWay(Faults);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

#[derive(Serialize)]
struct Requests {
    total: u64,
    latest: Vec<String>,
}

impl Faults {
    pub fn add(&self, fault: Fault) {
        self.lock().rules.push(fault);
    }

    /// The rules, with how many requests each still applies to.
    pub fn rules(&self) -> Vec<Fault> {
        self.lock().rules.clone()
    }

    pub fn clear(&self) {
        self.lock().rules.clear();
    }

    /// The latest requests: `GET /api/v3/core/groups/?name=x`.
    pub fn requests(&self) -> Vec<String> {
        self.lock().latest.iter().cloned().collect()
    }

    /// Requests so far.
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// The most requests that were under way at once.
    pub fn most_at_once(&self) -> usize {
        self.lock().most_at_once
    }

    pub fn forget_requests(&self) {
        let mut inner = self.lock();
        inner.total = 0;
        inner.most_at_once = inner.under_way;
        inner.latest.clear();
    }

    /// Counts a request as under way until it is dropped, as it is when its client goes away.
    fn begin(&self) -> UnderWay {
        let mut inner = self.lock();
        inner.under_way += 1;
        inner.most_at_once = inner.most_at_once.max(inner.under_way);
        UnderWay(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rule for a request, counted as used.
    fn decide(&self, request: &Parts, body: &[u8]) -> Fault {
        let mut inner = self.lock();
        inner.total += 1;
        if inner.latest.len() == REMEMBERED {
            inner.latest.pop_front();
        }
        let line = format!("{} {}", request.method, request.uri);
        inner.latest.push_back(line);
        let matching = inner.rules.iter().position(|rule| {
            rule.times != Some(0)
                && rule.method.as_ref().is_none_or(|method| request.method == method.as_str())
                && rule.path.as_ref().is_none_or(|path| request.uri.path().starts_with(path))
                && rule.query.as_ref().is_none_or(|text| {
                    request.uri.query().is_some_and(|query| query.contains(text.as_str()))
                })
                && rule.body.as_ref().is_none_or(|text| contains(body, text))
        });
        let Some(index) = matching else { return Fault::default() };
        let rule = &mut inner.rules[index];
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        rule.clone()
    }

    /// The routes for the tormentor; merge them outside of [`torment`].
    pub fn router(&self) -> Router {
        Router::new()
            .route("/_sim/faults", get(list).post(add).delete(clear))
            .route("/_sim/requests", get(requests).delete(forget))
            .with_state(self.clone())
    }
}

async fn list(State(faults): State<Faults>) -> Json<Vec<Fault>> {
    Json(faults.rules())
}

async fn add(State(faults): State<Faults>, Json(fault): Json<Fault>) -> StatusCode {
    faults.add(fault);
    StatusCode::CREATED
}

async fn clear(State(faults): State<Faults>) -> StatusCode {
    faults.clear();
    StatusCode::NO_CONTENT
}

async fn requests(State(faults): State<Faults>) -> Json<Requests> {
    Json(Requests { total: faults.total(), latest: faults.requests() })
}

async fn forget(State(faults): State<Faults>) -> StatusCode {
    faults.forget_requests();
    StatusCode::NO_CONTENT
}

fn contains(body: &[u8], text: &str) -> bool {
    let text = text.as_bytes();
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

/// Middleware: does to each request what the rules say.
pub async fn torment(State(faults): State<Faults>, request: Request, next: Next) -> Response {
    let _under_way = faults.begin();
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let fault = faults.decide(&parts, &body);
    let request = Request::from_parts(parts, Body::from(body));
    let delay = Duration::from_millis(fault.delay_ms);
    let truth = fault.apply || matches!(fault.answer, FaultAnswer::True);
    // A real server goes on with a request whose client has given up.
    let work = tokio::spawn(async move {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if truth { Some(next.run(request).await) } else { None }
    });
    let answer = work.await.ok().flatten();
    match fault.answer {
        FaultAnswer::True => answer.unwrap_or_default(),
        FaultAnswer::Status { status, body, retry_after } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = (status, body).into_response();
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
        FaultAnswer::Empty405 => empty_405(),
        FaultAnswer::Drop => {
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            let body = futures_util::stream::once(async { Err::<&[u8], _>(broken) });
            ([(header::CONTENT_LENGTH, "100")], Body::from_stream(body)).into_response()
        }
        FaultAnswer::Hang => std::future::pending().await,
    }
}

/// Authentik's answer to a write that failed inside it (observed).
pub fn empty_405() -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::ALLOW, "GET, HEAD, OPTIONS")];
    (StatusCode::METHOD_NOT_ALLOWED, headers, Body::empty()).into_response()
}
