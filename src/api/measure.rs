//! What the metrics tell of each request.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::problem::{CountsAs, Problem};
use crate::metrics::{HttpMethod, Metrics, PanicPlace, Route, StatusCode};

pub async fn measure(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or(Route::OTHER, of);
    let method = HttpMethod::of(request.method().as_str());
    let began = Instant::now();
    let response = next.run(request).await;
    let status = StatusCode(response.status().as_u16());
    // Of an answer that goes on, such as a stream of changes, this is the time to its beginning.
    metrics.http_seconds.of((route, method, status)).observe(began.elapsed().as_secs_f64());
    match response.extensions().get::<Problem>().and_then(|problem| problem.counts_as) {
        Some(CountsAs::Refused(refusal)) => metrics.http_refusals.of(refusal).inc(),
        Some(CountsAs::Panic) => metrics.panics.of(PanicPlace::Request).inc(),
        None => {}
    }
    response
}

/// A path of the router, of which there are a few, as a label.
fn of(path: &MatchedPath) -> Route {
    static ROUTES: LazyLock<Mutex<HashMap<String, Route>>> = LazyLock::new(Mutex::default);
    let mut routes = ROUTES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(route) = routes.get(path.as_str()) {
        return *route;
    }
    let route = Route::of(Box::leak(path.as_str().to_owned().into_boxed_str()));
    routes.insert(path.as_str().to_owned(), route);
    route
}
