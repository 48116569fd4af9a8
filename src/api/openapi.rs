//! `/openapi.json`, generated from the handlers, and `/docs`, which shows it without any other host.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Deserialize;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, ObjectBuilder, Ref, RefOr, Schema, Type};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi, ToSchema};

use super::problem::Problem;
use super::representation::TenantView;
use super::{edit, events, fleet, health, list, plan, stream, tenants, upstreams, whoami};

/// The description of the API. A handler that is missing here is missing there.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "tenantry",
        description = "Tenants of a self-hosted collaboration suite. What is written here is the desired \
                       state; a controller makes Authentik, Stalwart and oCIS match it, and records how \
                       that went. Errors are problem details (RFC 9457).",
        license(name = "MIT", identifier = "MIT"),
    ),
    paths(
        tenants::create,
        list::list,
        stream::watch,
        tenants::show,
        edit::patch,
        edit::put,
        tenants::delete,
        tenants::undelete,
        tenants::pause,
        tenants::resume,
        tenants::reconcile,
        plan::show,
        events::list,
        events::of_fleet,
        fleet::orphans,
        fleet::release_orphan,
        fleet::guards,
        fleet::guard,
        fleet::lift,
        fleet::stops,
        fleet::stop,
        fleet::start,
        upstreams::list,
        upstreams::check,
        upstreams::retire,
        whoami::show,
        health::live,
        health::ready,
    ),
    components(schemas(TenantView, Problem)),
    modifiers(&BearerToken, &ProblemId),
    security(("token" = [])),
    tags(
        (name = "tenants", description = "The desired state of tenants, and how they are"),
        (name = "fleet", description = "Stops, change guards, orphans and upstreams of all tenants together"),
        (name = "health", description = "For probes"),
    ),
)]
struct Description;

/// What every request needs but probes and this description.
struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("An access token of a trusted issuer, with a role"))
            .build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token));
    }
}

/// Added to every problem on its way out.
struct ProblemId;

impl Modify for ProblemId {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        if let Some(RefOr::T(Schema::Object(problem))) = components.schemas.get_mut("Problem") {
            let id = ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some("Names the request in the log, as does the header `X-Request-Id`"));
            problem.properties.insert("requestId".to_owned(), id.into());
            problem.required.push("requestId".to_owned());
        }
    }
}

/// The document, as it is served.
pub fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        Description::openapi().to_pretty_json().unwrap_or_else(|error| {
            // A fault of the program, which its test would show.
            tracing::error!(%error, "the API cannot be described");
            "{}".to_owned()
        })
    });
    &DOCUMENT
}

/// Neither of them says anything secret, nor anything of a tenant.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/openapi.json", get(async || file("application/json", document())))
        .route("/docs", get(async || file("text/html; charset=utf-8", include_str!("docs/index.html"))))
        .route(
            "/docs/docs.js",
            get(async || file("text/javascript; charset=utf-8", include_str!("docs/docs.js"))),
        )
        .route(
            "/docs/docs.css",
            get(async || file("text/css; charset=utf-8", include_str!("docs/docs.css"))),
        )
}

/// The page loads nothing but its own files, and the browser sees to it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

/// Statuses with which any request may end.
const ALWAYS: &[u16] = &[400, 401, 403, 414, 429, 503];

fn problems(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    let all = ALWAYS.iter().chain(statuses);
    all.map(|status| {
        let title = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new()
            .description(title.unwrap_or("Problem"))
            .content("application/problem+json", content)
            .build();
        (status.to_string(), response.into())
    })
    .collect()
}

macro_rules! problem_sets {
    ($( $(#[$doc:meta])* $name:ident: $statuses:expr; )*) => { $(
        $(#[$doc])*
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                problems(&$statuses)
            }
        }
    )* };
}

problem_sets! {
    /// Of a request that creates.
    Creating: [409, 413, 415, 422];
    /// Of a request that edits.
    Editing: [404, 409, 412, 413, 415, 422];
    /// Of a request that names a tenant.
    Finding: [404];
    /// Of a request that names a tenant and has a query.
    Searching: [404, 422];
    /// Of a request that changes something which may not be in the state for it.
    Changing: [404, 409, 422];
    /// Of a request that names something, which may not be in the state for it.
    Deciding: [404, 409];
    /// Of a request with a query.
    Listing: [422];
    /// Of a request that names nothing.
    Reading: [];
}

/// Of every request that may wait for what comes of it; see [`Wait`](super::wait::Wait).
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "a description; `wait` reads it")]
pub struct Prefer {
    /// `wait=10`: answer when the tenant has settled, or after so many seconds, at most 60. `Preference-Applied` says whether it was heeded. A tenant that a client waits for is worked on before all others
    #[param(rename = "Prefer", nullable = false, example = "wait=10")]
    prefer: Option<String>,
}

/// The desired state of a new tenant. Absent fields and `null` have their defaults.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a description; `fields` reads it")]
pub struct NewTenantBody {
    /// The tenant's name for machines. It never changes
    #[schema(max_length = 63, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", example = "acme")]
    slug: String,
    /// The tenant's name for people
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        example = "Acme GmbH"
    )]
    name: String,
    /// Mail domain, of the tenant's own and so no public suffix. Without one the tenant has no mail
    #[schema(max_length = 253, example = "acme.test")]
    domain: Option<String>,
    quota: Option<QuotaBody>,
    services: Option<ServicesBody>,
    /// Whether it is only looked at, and nothing is changed
    paused: Option<bool>,
    /// Whether it takes over what was not made for it: a group or mail domain of its name that carries no
    /// mark, and whatever a tenant of its slug or domain released. Without it, the setting ADOPT_UNMARKED
    /// decides about the former; `false` refuses both
    adopt: Option<bool>,
}

/// The desired state of the tenant that the path names.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a description; `fields` reads it")]
pub struct ReplacementBody {
    /// The same as in the path, or absent
    slug: Option<String>,
    /// The tenant's name for people
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        example = "Acme GmbH"
    )]
    name: String,
    /// Mail domain, of the tenant's own and so no public suffix. Without one the tenant has no mail
    #[schema(max_length = 253, example = "acme.test")]
    domain: Option<String>,
    quota: Option<QuotaBody>,
    services: Option<ServicesBody>,
    /// Whether it is only looked at, and nothing is changed
    paused: Option<bool>,
    /// Whether it takes over what was not made for it: a group or mail domain of its name that carries no
    /// mark, and whatever a tenant of its slug or domain released. Without it, the setting ADOPT_UNMARKED
    /// decides about the former; `false` refuses both
    adopt: Option<bool>,
}

/// A JSON merge patch (RFC 7396): absent fields stay, `null` removes.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a description; `fields` reads it")]
pub struct PatchBody {
    /// The tenant's name for people. Cannot be removed
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        nullable = false,
        example = "Acme GmbH"
    )]
    name: Option<String>,
    /// Mail domain
    #[schema(max_length = 253, example = "acme.test")]
    domain: Option<String>,
    quota: Option<QuotaBody>,
    services: Option<ServicesBody>,
    /// Whether it is only looked at, and nothing is changed
    paused: Option<bool>,
    /// Whether it takes over what was not made for it: a group or mail domain of its name that carries no
    /// mark, and whatever a tenant of its slug or domain released. Without it, the setting ADOPT_UNMARKED
    /// decides about the former; `false` refuses both
    adopt: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a description; `fields` reads it")]
pub struct QuotaBody {
    /// Bytes of the project space; 0 is unlimited. Without one, or with `null`, the space gets the server's default when it is made, and people may set another. Removing one that was set here takes the limit away
    #[schema(minimum = 0, maximum = 9223372036854775807i64)]
    storage_bytes: Option<i64>,
}

/// Which services the tenant has; all of them unless told otherwise.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a description; `fields` reads it")]
pub struct ServicesBody {
    authentik: Option<bool>,
    stalwart: Option<bool>,
    ocis: Option<bool>,
}

/// What to reconcile.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a description; `fields` reads it")]
pub struct StepsBody {
    /// One or more of `authentik`, `stalwart`, `ocis`; all of them if absent
    #[schema(min_items = 1, example = json!(["ocis"]))]
    steps: Option<Vec<StepName>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum StepName {
    Authentik,
    Stalwart,
    Ocis,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::{Slug, TenantName};

    #[test]
    fn the_described_limits_are_those_of_the_domain() {
        let document: serde_json::Value = serde_json::from_str(document()).unwrap();
        let fields = &document["components"]["schemas"]["NewTenantBody"]["properties"];
        assert_eq!(fields["slug"]["maxLength"], Slug::MAX_LEN);
        assert_eq!(fields["slug"]["pattern"], Slug::PATTERN);
        assert_eq!(fields["name"]["maxLength"], TenantName::MAX_CHARS);
    }
}
