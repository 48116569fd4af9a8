//! `GET /whoami`: who asks, as the API sees it. For people whose token gives less than they expect.

use axum::{Extension, Json};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::Reading;
use crate::auth::{Principal, Role};

/// Whose token came with the request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WhoAmI {
    /// The issuer's name for the account (`sub`).
    sub: String,
    /// For people to read; not unique.
    name: Option<String>,
    /// Null where no token is needed.
    issuer: Option<String>,
    /// The client that the token was issued to.
    client: Option<String>,
    /// The highest role that the token gives; null gives none.
    role: Option<&'static str>,
    /// Every role that it gives, as each includes those before it.
    roles: Vec<&'static str>,
    /// The claim that gives roles, where the token lacks it altogether.
    #[serde(skip_serializing_if = "Option::is_none")]
    lacks_claim: Option<String>,
    /// When the token is no longer good.
    expires_at: Option<Timestamp>,
}

/// Say who asks
///
/// For every good token, whatever role it gives.
#[utoipa::path(get, path = "/whoami", tag = "health", operation_id = "whoAmI",
    responses((status = 200, description = "Who, and what they may do", body = WhoAmI), Reading))]
pub async fn show(Extension(principal): Extension<Principal>) -> Json<WhoAmI> {
    let roles = Role::ALL.into_iter().filter(|role| principal.may(*role)).map(Role::name).collect();
    Json(WhoAmI {
        roles,
        role: principal.role.map(Role::name),
        issuer: Some(principal.issuer).filter(|issuer| !issuer.is_empty()),
        sub: principal.sub,
        name: principal.name,
        client: principal.client,
        lacks_claim: principal.lacks_claim,
        expires_at: principal.expires_at,
    })
}
