//! Who is let in: authentication, roles, rates, and no more at once than can be answered.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Span;

use super::access;
use super::problem::Problem;
use super::rates::Rates;
use super::serve::Peer;
use crate::auth::{Authenticator, Principal, Refusal, Role};

/// Bounds on what clients may do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests a minute of one client; `None` is as many as there are.
    pub rate: Option<NonZeroU32>,
    /// Requests at once.
    pub at_once: usize,
    /// Origins whose pages may use the API in a browser.
    pub origins: Vec<String>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    /// `None`: everybody may do everything.
    authenticator: Option<Authenticator>,
    rates: Option<Rates>,
    places: Arc<Semaphore>,
    origins: Vec<HeaderValue>,
    refused: RefusedTokens,
}

/// Tells of tokens that are refused, a few a minute: anyone can send as many as they like.
struct RefusedTokens {
    may_tell: DefaultDirectRateLimiter,
    untold: AtomicU64,
}

/// Lines a minute about refused tokens.
const REFUSALS: NonZeroU32 = NonZeroU32::new(6).unwrap();

impl RefusedTokens {
    fn new() -> Self {
        Self { may_tell: RateLimiter::direct(Quota::per_minute(REFUSALS)), untold: AtomicU64::new(0) }
    }

    /// `why` holds nothing of the token.
    fn tell(&self, why: &str) {
        if self.may_tell.check().is_err() {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let untold = self.untold.swap(0, Ordering::Relaxed);
        tracing::warn!(why, others_untold = untold, "a token was refused");
    }
}

/// A request's place among those that are answered at once, among its extensions.
#[derive(Clone)]
pub struct Place(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Place {
    /// Gives the place to others before the request is answered. For a handler that does nothing any more
    /// but wait, and bounds by itself how many wait.
    pub fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The longest path and query, in bytes.
const MAX_ADDRESS: usize = 4096;

impl Admission {
    pub fn new(authenticator: Option<Authenticator>, limits: Limits) -> Self {
        let Limits { rate, at_once, origins } = limits;
        let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        Self(Arc::new(Inner {
            authenticator,
            rates: rate.map(Rates::new),
            places: Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS))),
            origins: origins.collect(),
            refused: RefusedTokens::new(),
        }))
    }

    /// For browsers: pages of other origins are kept out unless theirs is listed.
    pub fn cross_origin(&self) -> Option<CorsLayer> {
        let origins = &self.0.origins;
        if origins.is_empty() {
            return None;
        }
        let header = HeaderName::from_static;
        let layer = CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins.iter().cloned()))
            .allow_methods([
                Method::GET,
                Method::HEAD,
                Method::POST,
                Method::PUT,
                Method::PATCH,
                Method::DELETE,
            ])
            .allow_headers([
                header::AUTHORIZATION,
                header::CONTENT_TYPE,
                header::IF_MATCH,
                header::IF_NONE_MATCH,
                header("idempotency-key"),
                header("last-event-id"),
                header("prefer"),
                header("x-request-id"),
            ])
            .expose_headers([
                header::ETAG,
                header::LOCATION,
                header::RETRY_AFTER,
                header::WWW_AUTHENTICATE,
                header("preference-applied"),
                header("x-request-id"),
            ])
            .max_age(Duration::from_secs(600));
        Some(layer)
    }

    /// Says who asks.
    async fn principal(&self, headers: &HeaderMap) -> Result<Principal, Problem> {
        let Some(authenticator) = &self.0.authenticator else { return Ok(Principal::anonymous()) };
        let token = bearer(headers).ok_or_else(Problem::no_token)?;
        authenticator.authenticate(token).await.map_err(|refusal| match refusal {
            Refusal::Invalid(why) => {
                self.0.refused.tell(&why);
                Problem::bad_token(&why)
            }
            Refusal::Unavailable { why, retry_in } => Problem::issuer_away(why, retry_in),
        })
    }

    /// Lets a caller through who has the role, outside the API.
    ///
    /// # Errors
    /// Why the caller is not let through.
    pub async fn admits(&self, headers: &HeaderMap, needed: Role) -> Result<(), Problem> {
        let principal = self.principal(headers).await?;
        if principal.may(needed) { Ok(()) } else { Err(Problem::lacks_role(needed, &principal)) }
    }

    /// Counts the request against its caller.
    fn count(&self, principal: Option<&Principal>, request: &Request) -> Result<(), Problem> {
        let Some(rates) = &self.0.rates else { return Ok(()) };
        match principal {
            // Without authentication everybody has the same name.
            Some(principal) if self.0.authenticator.is_some() => rates.count(principal),
            _ => rates.count_stranger(request.extensions().get::<Peer>().map(|peer| peer.address)),
        }
        .map_err(Problem::too_many)
    }
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Lets a request through to its handler, or says why not. The handler finds the [`Principal`] among the
/// request's extensions.
pub async fn admit(
    State(guard): State<Admission>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if request.uri().path_and_query().is_some_and(|address| address.as_str().len() > MAX_ADDRESS) {
        return Err(Problem::long_address(MAX_ADDRESS));
    }
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    if route.as_deref().is_some_and(|route| access::OPEN.contains(&route)) {
        // A token is not needed here, but a caller who shows one may be told more.
        let shows =
            guard.0.authenticator.is_none() || request.headers().contains_key(header::AUTHORIZATION);
        if shows && let Ok(principal) = guard.principal(request.headers()).await {
            request.extensions_mut().insert(principal);
        }
        return Ok(next.run(request).await);
    }

    let crowded = request.extensions().get::<Peer>().is_some_and(|peer| peer.crowded);
    let place = Arc::clone(&guard.0.places).try_acquire_owned();
    let place = place.ok().filter(|_| !crowded).ok_or_else(Problem::overloaded)?;
    let principal = match guard.principal(request.headers()).await {
        Ok(principal) => principal,
        Err(problem) => {
            guard.count(None, &request)?;
            return Err(problem);
        }
    };
    guard.count(Some(&principal), &request)?;
    let span = Span::current();
    span.record("sub", principal.sub.as_str());
    span.record("client", principal.client.as_deref());
    span.record("role", principal.role.map(|role| role.name()));

    let needed = access::needed(request.method(), route.as_deref());
    let changes = !request.method().is_safe();
    let lacked = needed.filter(|needed| !principal.may(*needed));
    let answer = if let Some(lacked) = lacked {
        Err(Problem::lacks_role(lacked, &principal))
    } else {
        // The request, and what is in it, is gone as soon as its body has been read; the place is not.
        let place = Place(Arc::new(Mutex::new(Some(place))));
        request.extensions_mut().insert(principal);
        request.extensions_mut().insert(place.clone());
        let response = next.run(request).await;
        place.release();
        Ok(response)
    };
    if changes {
        let status = answer.as_ref().map_or_else(Problem::status, |response| response.status());
        // Who asked for what is in the span.
        tracing::info!(status = status.as_u16(), "answered a request for a change");
    }
    answer
}
