//! A simulated oCIS 3.1, 5.0 or 7.1, or OpenCloud: spaces in LibreGraph, their members, and who may do what, as real
//! servers were observed to behave, quirks included. It is never lenient: what the real one refuses, it
//! refuses, and where the real one lies, it lies the same.
//!
//! * `call`: the way of a request; `auth`: from a bearer token to a user with a role, or the refusal of the proxy in front;
//! * `drives`: spaces; `query`: what their lists understand of OData; `text`: how they look;
//! * `members`: OCS shares and invitations; `directory`: users and groups;
//! * `state`: what there is.
//!
//! A test finds, beside faults and requests, `/_sim/drives`: `GET` lists all project spaces,
//! `PATCH /_sim/drives/{id}` changes one, `POST …/disable` disables it, `DELETE` purges it.

mod auth;
mod call;
mod directory;
mod drives;
mod members;
mod query;
mod state;
mod text;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::Value;

use self::auth::Proxy;
use self::state::{Grantee, Rank, Spaces};
use super::faults::{self, Faults};
use super::server::Server;

/// Which server to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// oCIS 3.1.0-next.2 of July 2023.
    Ocis31,
    /// oCIS 5.0.9: it tells the role definitions of v1beta1, but has no route to invite (observed). What
    /// was not compared with 3.1 is as in OpenCloud, whose graph descends from it.
    Ocis5,
    /// oCIS 7.1.0: as [`Self::Ocis5`], with the route.
    Ocis7,
    /// OpenCloud 0.1.0 of February 2025, whose graph descends from oCIS 5 to 7.
    OpenCloud,
}

impl Flavour {
    pub const ALL: [Self; 4] = [Self::Ocis31, Self::Ocis5, Self::Ocis7, Self::OpenCloud];

    /// What it says in `X-Graph-Version`.
    fn graph_version(self) -> &'static str {
        match self {
            Self::Ocis31 => "3.1.0-next.2+ca929abd3",
            Self::Ocis5 => "5.0.9",
            Self::Ocis7 => "7.1.0",
            Self::OpenCloud => "0.1.0+ebba86148",
        }
    }

    /// Whether members can be invited; else there are only OCS shares.
    pub fn invites(self) -> bool {
        matches!(self, Self::Ocis7 | Self::OpenCloud)
    }
}

/// What a user may do on the whole server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Admin,
    /// All of project spaces; nothing of users and groups.
    SpaceAdmin,
    User,
}

impl Role {
    /// Its `appRoleId`, the same on both servers.
    fn id(self) -> &'static str {
        match self {
            Self::Admin => "71881883-1768-46bd-a24d-a356a2afdf7f",
            Self::SpaceAdmin => "2aadd357-682c-406b-8874-293091995fdd",
            Self::User => "d7beeea8-8ff4-406b-8fb6-ab2dd81e6b11",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    /// Claim values and the roles they stand for; the first match wins, and none is a 500.
    pub roles: Vec<(String, Role)>,
    /// The claim that holds them: an array of strings.
    pub role_claim: String,
    /// Whether unknown users are made at their first request; else that is a 401.
    pub autoprovision: bool,
    /// Whether parallel first requests of a new user fail now and then, as they do (observed: 1 to 3 of 8).
    pub autoprovision_race: bool,
    /// Whether a 401 also challenges to basic authentication, as by default (observed; without, once).
    pub basic_auth: bool,
    /// After the JWKS was read again for an unknown kid, it is not read again for so long.
    pub jwks_refresh_limit: Duration,
    /// What the server believes to be its own address; where it listens, by default.
    pub public_url: Option<String>,
}

impl Default for Options {
    /// The roles of the recommended configuration: groups `ocis-admins`, `tenant-provisioners`,
    /// `ocis-users`.
    fn default() -> Self {
        Self {
            roles: vec![
                ("ocis-admins".into(), Role::Admin),
                ("tenant-provisioners".into(), Role::SpaceAdmin),
                ("ocis-users".into(), Role::User),
            ],
            role_claim: "groups".into(),
            autoprovision: true,
            autoprovision_race: false,
            basic_auth: true,
            jwks_refresh_limit: Duration::from_secs(60),
            public_url: None,
        }
    }
}

/// The simulator: its state survives a stop and restart of its [`Server`].
pub struct Simulator {
    pub server: Server,
    pub faults: Faults,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    flavour: Flavour,
    options: Arc<Options>,
    state: Arc<Mutex<Spaces>>,
    proxy: Arc<Proxy>,
    /// Set once the server listens.
    url: Arc<OnceLock<String>>,
    /// Numbers request ids.
    counter: Arc<AtomicU64>,
}

impl Simulator {
    /// Starts a server on loopback that trusts one issuer; port 0 takes a free one. `issuer` is compared
    /// byte for byte.
    pub async fn new(
        port: u16,
        flavour: Flavour,
        issuer: &str,
        options: Options,
    ) -> std::io::Result<Self> {
        let shared = Shared {
            flavour,
            state: Arc::new(Mutex::new(Spaces::new())),
            proxy: Arc::new(Proxy::new(issuer).map_err(std::io::Error::other)?),
            url: Arc::new(OnceLock::new()),
            counter: Arc::default(),
            options: Arc::new(options),
        };
        let faults = Faults::default();
        let server = Server::start(port, router(shared.clone(), &faults)).await?;
        let url = shared.options.public_url.clone().unwrap_or_else(|| server.url());
        let _ = shared.url.set(url);
        Ok(Self { server, faults, shared })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// All project spaces, as the graph shows them to an account that may see everything.
    pub fn drives(&self) -> Vec<Value> {
        let drives = self.shared.lock().projects();
        let scene = self.shared.scene();
        drives
            .iter()
            .filter_map(|drive| {
                serde_json::from_str(&text::drive(&scene, drive, text::Shape::Full)).ok()
            })
            .collect()
    }

    /// How many project spaces there are, disabled ones included.
    pub fn count(&self) -> usize {
        self.shared.lock().count()
    }

    /// How many project spaces are enabled.
    pub fn enabled(&self) -> usize {
        self.shared.lock().projects().iter().filter(|drive| !drive.disabled).count()
    }

    /// Puts a space there without asking the API; returns its id. Understood are `name`, `description`,
    /// `driveAlias`, `quota`, `disabled`, and `managers`, the names of users: the built-in `admin`
    /// where it is absent, so that our service user is no member.
    pub fn plant(&self, body: Value) -> String {
        self.shared.plant(&body)
    }

    /// Changes a space as a person might: `name`, `description` (empty clears it), `driveAlias`,
    /// `quota.total`, and `quota.used`, which is what people store.
    pub fn change(&self, id: &str, patch: Value) -> bool {
        self.shared.change(id, &patch)
    }

    pub fn disable(&self, id: &str) -> bool {
        self.shared.lock().edit(id, |drive| drive.disabled = true).is_some()
    }

    pub fn purge(&self, id: &str) -> bool {
        self.shared.lock().remove(id).is_some()
    }

    /// Removes the service users from a space's members; where they were the only managers, the built-in
    /// `admin` becomes one.
    pub fn expel(&self, id: &str) -> bool {
        let mut spaces = self.shared.lock();
        let provisioners = spaces.user_ids(|user| user.name != "admin" && user.role != Role::User);
        let admin = spaces.user_named("admin");
        spaces
            .edit(id, |drive| {
                let is_service =
                    |who: &Grantee| matches!(who, Grantee::User(id) if provisioners.contains(id));
                drive.members.retain(|member| !is_service(&member.who));
                if !drive.members.iter().any(|member| member.rank == Rank::Manager) {
                    drive.grant(Grantee::User(admin.id.clone()), &admin.display_name, Rank::Manager);
                }
            })
            .is_some()
    }

    /// The storage behind the graph goes away or comes back: lists are then 200 and empty.
    pub fn storage_away(&self, away: bool) {
        self.shared.lock().away = away;
    }

    /// A group that the server knows; returns its id.
    pub fn add_group(&self, name: &str) -> String {
        self.shared.lock().add_group(name)
    }

    /// A user that the server knows without having been seen; returns the id.
    pub fn add_user(&self, name: &str) -> String {
        self.shared.lock().user_named(name).id
    }

    /// Removes a user, as an administrator might: the next request makes it again, with another id, and
    /// it is no member of its former spaces any more (observed).
    pub fn remove_user(&self, name: &str) -> bool {
        self.shared.lock().remove_user(name)
    }

    /// Forgets tokens, keys and the issuer's discovery document, which are only in memory: as a restart
    /// does.
    pub fn forget_tokens(&self) {
        self.shared.proxy.forget();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Spaces> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scene(&self) -> text::Scene {
        let url = self.url.get().cloned().unwrap_or_default();
        text::Scene { flavour: self.flavour, url, storage: self.lock().storage.clone() }
    }

    fn plant(&self, body: &Value) -> String {
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        let name = text("name").unwrap_or_else(|| "Planted".into());
        let alias = text("driveAlias").unwrap_or_else(|| state::default_alias(&name));
        let quota = body.pointer("/quota/total").and_then(Value::as_i64);
        let mut managers: Vec<&str> = body
            .get("managers")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        if managers.is_empty() {
            managers.push("admin");
        }
        let mut spaces = self.lock();
        let mut drive = state::Drive::new(name, alias, quota.unwrap_or(state::DEFAULT_QUOTA));
        drive.description = text("description").unwrap_or_default();
        drive.disabled = body.get("disabled") == Some(&Value::Bool(true));
        for manager in managers {
            let user = spaces.user_named(manager);
            drive.grant(Grantee::User(user.id), &user.display_name, Rank::Manager);
        }
        let id = format!("{}${}", spaces.storage, drive.space);
        spaces.insert(drive);
        id
    }

    fn change(&self, id: &str, patch: &Value) -> bool {
        let text = |name: &str| patch.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        let changed = self.lock().edit(id, |drive| {
            if let Some(name) = text("name") {
                drive.name = name;
            }
            if let Some(description) = text("description") {
                drive.description = description;
            }
            if let Some(alias) = text("driveAlias") {
                drive.alias = alias;
            }
            if let Some(total) = patch.pointer("/quota/total").and_then(Value::as_i64) {
                drive.quota = total;
            }
            if let Some(used) = patch.pointer("/quota/used").and_then(Value::as_i64) {
                drive.used = used;
            }
            drive.touch();
        });
        changed.is_some()
    }
}

fn router(shared: Shared, faults: &Faults) -> Router {
    let torment = Router::new()
        .route("/_sim/drives", get(list_all))
        .route("/_sim/drives/{id}", get(show_one).delete(purge_one).patch(change_one))
        .route("/_sim/drives/{id}/disable", post(disable_one))
        .with_state(shared.clone());
    Router::new()
        .fallback(call::answer)
        .layer(middleware::from_fn_with_state(faults.clone(), faults::torment))
        .with_state(shared)
        .merge(faults.router())
        .merge(torment)
}

async fn list_all(State(shared): State<Shared>) -> Response {
    let drives = shared.lock().projects().into_iter().map(text::Shown::Project).collect();
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, text::list(shared.scene(), drives, text::Shape::Full)).into_response()
}

async fn show_one(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    let Some(drive) = shared.lock().find(&id) else { return StatusCode::NOT_FOUND.into_response() };
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, text::drive(&shared.scene(), &drive, text::Shape::Full)).into_response()
}

async fn purge_one(State(shared): State<Shared>, Path(id): Path<String>) -> StatusCode {
    done(shared.lock().remove(&id).is_some())
}

async fn change_one(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Json(patch): Json<Value>,
) -> StatusCode {
    done(shared.change(&id, &patch))
}

async fn disable_one(State(shared): State<Shared>, Path(id): Path<String>) -> StatusCode {
    done(shared.lock().edit(&id, |drive| drive.disabled = true).is_some())
}

fn done(done: bool) -> StatusCode {
    if done { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}
