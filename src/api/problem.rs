//! Errors as RFC 9457 problem details (`application/problem+json`).

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::{Principal, Role};
use crate::metrics::Refusal;
use crate::store::StoreError;

/// One error. Titles are fixed per kind; the detail says what happened this time and what to do.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the status and title say all that a program could want to know.
    r#type: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    #[schema(value_type = u16)]
    status: StatusCode,
    detail: String,
    /// One entry per field that is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldError>,
    #[serde(skip)]
    retry_after: Option<Duration>,
    /// With which a client is asked to show who it is.
    #[serde(skip)]
    challenge: Option<Challenge>,
    /// RFC 9110, section 12.5.3: tells a refused coding from a refused media type.
    #[serde(skip)]
    accepts_no_coding: bool,
    /// What the metrics count it as.
    #[serde(skip)]
    pub(super) counts_as: Option<CountsAs>,
}

/// What the metrics count apart from other answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CountsAs {
    Refused(Refusal),
    Panic,
}

/// RFC 6750, section 3.
#[derive(Debug, Clone, Copy)]
enum Challenge {
    NoToken,
    BadToken,
    LacksRole,
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Path of the field, such as `quota.storageBytes`.
    pub field: String,
    pub message: String,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

const SECOND: Duration = Duration::from_secs(1);
/// After which a client may try again when the database was away.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Problem {
    fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            r#type: "about:blank",
            title,
            status,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            challenge: None,
            accepts_no_coding: false,
            counts_as: None,
        }
    }

    fn refused(mut self, refusal: Refusal) -> Self {
        self.counts_as = Some(CountsAs::Refused(refusal));
        self
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let names: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        let detail = format!("nothing was changed; see `errors` for: {}", names.join(", "));
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid fields", detail);
        problem.errors = errors;
        problem
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Bad request", detail)
    }

    /// `expected` are the media types that are understood.
    pub fn unsupported_media_type(expected: &[&str]) -> Self {
        let detail = format!("send JSON, with Content-Type: {}", expected.join(" or "));
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", detail)
    }

    pub fn compressed() -> Self {
        let detail = "the body has a Content-Encoding, and none is understood here; send it as it is";
        let mut problem =
            Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported content coding", detail);
        problem.accepts_no_coding = true;
        problem
    }

    pub fn too_large(limit: usize) -> Self {
        let detail = format!("the body must be at most {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Body too large", detail)
    }

    pub fn slug_taken(slug: &str) -> Self {
        let detail = format!("there is a tenant with the slug {slug:?} already");
        Self::new(StatusCode::CONFLICT, "Slug taken", detail)
    }

    /// An index that is none of tenantry's.
    pub fn refused_by_index(index: &str) -> Self {
        let detail = format!(
            "nothing was changed: the unique index {index:?} of the collection of tenants refuses it, because another \
             document has the same value. Use another value, or correct the index"
        );
        Self::new(StatusCode::CONFLICT, "Refused by a unique index", detail)
    }

    /// A validator that is none of tenantry's.
    pub fn refused_by_validator(rules: &[String]) -> Self {
        let detail = format!(
            "nothing was changed: the validator of the collection of tenants refuses it: {}. Use other values, or \
             correct the validator (collMod): it must allow the fields that docs/operating.md lists",
            rules.join("; ")
        );
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Refused by the collection's validator", detail)
    }

    pub fn leaving(slug: &str) -> Self {
        let detail = format!(
            "the tenant {slug:?} is being deleted; nothing was changed. Undelete it first, or wait until it \
             is gone"
        );
        Self::new(StatusCode::CONFLICT, "Tenant is being deleted", detail)
    }

    /// A condition of the request (`If-Match`, `If-None-Match`) does not hold.
    pub fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "Precondition failed", detail)
    }

    /// The key was used for another creation.
    pub fn key_reused() -> Self {
        let detail = "this Idempotency-Key was used to create another tenant, or this one with another \
                      body; nothing was created. Use a new key for a new tenant";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Idempotency-Key used before", detail)
    }

    pub fn no_tenant(slug: &str) -> Self {
        let detail = format!("there is no tenant with the slug {slug:?}");
        Self::new(StatusCode::NOT_FOUND, "No such tenant", detail)
    }

    /// It was there when the request came.
    pub fn removed(slug: &str) -> Self {
        let detail = format!("the tenant {slug:?} was being deleted, and is gone now");
        Self::new(StatusCode::NOT_FOUND, "No such tenant", detail)
    }

    /// The document is no tenant, and `why` says how.
    pub fn invalid_document(why: &str) -> Self {
        let detail = format!("nothing is done about this tenant until its document is corrected: {why}");
        Self::new(StatusCode::CONFLICT, "Invalid document", detail)
    }

    /// The document's `_id` is no ObjectId.
    pub fn not_deletable(id: &str) -> Self {
        let detail = format!(
            "the document's _id is {id}, which is no ObjectId. tenantry has created nothing for it and cannot work for \
             it; nothing was changed. Remove the document itself, with deleteOne in the collection of tenants"
        );
        Self::new(StatusCode::CONFLICT, "Invalid document", detail)
    }

    pub fn no_upstream(name: &str) -> Self {
        let detail = format!("{name:?} is none of authentik, stalwart, ocis");
        Self::new(StatusCode::NOT_FOUND, "No such upstream", detail)
    }

    pub fn no_orphan(upstream: &str, id: &str) -> Self {
        let detail = format!("no orphan of {upstream} has the id {id:?}; GET /orphans lists them");
        Self::new(StatusCode::NOT_FOUND, "No such orphan", detail)
    }

    pub fn has_tenant(id: &str) -> Self {
        let detail = format!(
            "the tenant that {id:?} is marked for exists, so it is no orphan; delete that tenant to release it"
        );
        Self::new(StatusCode::CONFLICT, "Tenant exists", detail)
    }

    pub fn upstream_in_use(upstream: &str, setting: &str) -> Self {
        let detail = format!(
            "a process that runs has {upstream}; remove {setting} from every process, wait a minute, and \
             retire it then"
        );
        Self::new(StatusCode::CONFLICT, "Upstream in use", detail)
    }

    pub fn upstream_not_known(upstream: &str) -> Self {
        let detail = format!("this fleet does not have {upstream}, so there is nothing to retire");
        Self::new(StatusCode::CONFLICT, "Upstream not known", detail)
    }

    pub fn upstream_not_configured(upstream: &str, setting: &str) -> Self {
        let detail = format!(
            "{setting} is not set in the process that answers, so that it cannot ask {upstream}"
        );
        Self::new(StatusCode::CONFLICT, "Upstream not configured", detail)
    }

    /// Its credentials were refused, and are the same still.
    pub fn refused_lately(upstream: &str, retry_in: Duration) -> Self {
        let detail = format!(
            "{upstream} refuses our credentials, and they are still the same: it was not asked, because it may \
             ban an address for failed logins. Correct them: others are used at once. The same ones are tried \
             again in {} s",
            retry_in.as_secs().max(1)
        );
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "Credentials refused lately", detail);
        problem.retry_after = Some(retry_in.max(SECOND));
        problem
    }

    pub fn guard_not_tripped(upstream: &str) -> Self {
        let detail =
            format!("the change guard of {upstream} has not tripped, so there is nothing to lift");
        Self::new(StatusCode::CONFLICT, "Guard not tripped", detail)
    }

    pub fn too_slow(limit: Duration) -> Self {
        Self::unavailable(format!("the request could not be answered within {limit:?}"))
    }

    pub fn unavailable(detail: impl Into<String>) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "Temporarily unavailable", detail);
        problem.retry_after = Some(RETRY_AFTER);
        problem
    }

    /// No token came with the request.
    pub fn no_token() -> Self {
        let detail = "send an access token of a trusted issuer, as Authorization: Bearer …";
        let mut problem = Self::new(StatusCode::UNAUTHORIZED, "Not authenticated", detail);
        problem.challenge = Some(Challenge::NoToken);
        problem.refused(Refusal::Token)
    }

    pub fn bad_token(why: &str) -> Self {
        let mut problem = Self::new(StatusCode::UNAUTHORIZED, "Token not accepted", why);
        problem.challenge = Some(Challenge::BadToken);
        problem.refused(Refusal::Token)
    }

    pub fn lacks_role(needed: Role, principal: &Principal) -> Self {
        let detail = match (principal.role, &principal.lacks_claim) {
            (Some(role), _) => {
                format!("this needs the role {needed}; the token gives only the role {role}")
            }
            (None, None) => format!("this needs the role {needed}; the token gives no role"),
            (None, Some(claim)) => format!(
                "this needs the role {needed}; the token lacks the claim {claim:?}, which gives roles, altogether. Ask \
                 the issuer for the scope that brings it (in Authentik, profile brings groups), or name another claim \
                 in OIDC_ROLES_CLAIM"
            ),
        };
        let mut problem = Self::new(StatusCode::FORBIDDEN, "Role missing", detail);
        problem.challenge = Some(Challenge::LacksRole);
        problem.refused(Refusal::Role)
    }

    /// The issuer's keys cannot be had.
    pub fn issuer_away(why: &str, retry_in: Duration) -> Self {
        let mut problem = Self::unavailable(format!("the token cannot be verified now: {why}"));
        problem.retry_after = Some(retry_in.max(SECOND));
        problem
    }

    pub fn too_many(retry_in: Duration) -> Self {
        let detail = "this client sends too many requests; see Retry-After";
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests", detail);
        problem.retry_after = Some(retry_in.max(SECOND));
        problem.refused(Refusal::Rate)
    }

    /// Others are being answered already, as many as can be.
    pub fn overloaded() -> Self {
        let mut problem =
            Self::unavailable("too many requests are being answered at once; nothing was done");
        problem.retry_after = Some(SECOND);
        problem.refused(Refusal::Overload)
    }

    pub fn long_address(limit: usize) -> Self {
        let detail = format!("the path and query must be at most {limit} bytes together");
        Self::new(StatusCode::URI_TOO_LONG, "Address too long", detail)
    }

    fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal error",
            "the request could not be carried out; the log of tenantry says why",
        )
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if error.is_unavailable() {
            // Addresses and topology are for the log.
            tracing::warn!(%error, "cannot answer a request");
            Self::unavailable(
                "the database did not answer. A change may or may not have been made: look before \
                 you repeat it",
            )
        } else {
            tracing::error!(%error, "cannot answer a request");
            match error {
                StoreError::Duplicate { index, .. } => Self::refused_by_index(&index),
                StoreError::Invalid { rules, .. } => Self::refused_by_validator(&rules),
                _ => Self::internal(),
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(&self)).into_response();
        let headers = response.headers_mut();
        let problem_json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem_json);
        if let Some(wait) = self.retry_after {
            // Rounded up: who comes too early comes in vain.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge.and_then(|challenge| challenge.header(&self.detail)) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if self.accepts_no_coding {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        // So that the request's id can be added where it is known.
        response.extensions_mut().insert(self);
        response
    }
}

impl Challenge {
    fn header(self, description: &str) -> Option<HeaderValue> {
        let error = match self {
            // A caller who does not know that a token is needed has made no error.
            Self::NoToken => return Some(HeaderValue::from_static("Bearer realm=\"tenantry\"")),
            Self::BadToken => "invalid_token",
            Self::LacksRole => "insufficient_scope",
        };
        let allowed = |c: &char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
        let description: String = description.chars().filter(allowed).collect();
        let text =
            format!("Bearer realm=\"tenantry\", error=\"{error}\", error_description=\"{description}\"");
        HeaderValue::try_from(text).ok()
    }
}

pub async fn unknown_path(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "Not found", detail)
}

pub async fn unknown_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not possible at {}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", detail)
}

/// Axum's catcher of panics wants a whole response.
pub fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    let mut problem = Problem::internal();
    problem.counts_as = Some(CountsAs::Panic);
    problem.into_response()
}
