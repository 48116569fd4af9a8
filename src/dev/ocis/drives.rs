//! Spaces in the graph: list, create, change, disable, restore, purge.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::Flavour;
use super::call::Call;
use super::query::{Filter, Query, Unfit};
use super::state::{self, DEFAULT_QUOTA, Drive, Grantee, Rank};
use super::text::{self, Shape, Shown};

const FORBIDDEN: [char; 10] = ['/', '\\', '.', ':', '?', '*', '"', '>', '<', '|'];
const FORBIDDEN_TEXT: &str = "spacenames must not contain [/ \\ . : ? * \" > < |]";

/// Fields of a drive that a request may name; any other is refused (observed).
const FIELDS: [&str; 18] = [
    "createdBy",
    "createdDateTime",
    "description",
    "driveAlias",
    "driveType",
    "eTag",
    "id",
    "items",
    "lastModifiedBy",
    "lastModifiedDateTime",
    "name",
    "owner",
    "parentReference",
    "quota",
    "root",
    "sharepointIds",
    "special",
    "webUrl",
];
const QUOTA_FIELDS: [&str; 5] = ["deleted", "remaining", "state", "total", "used"];

/// What a request says of a drive.
#[derive(Default)]
struct Written {
    name: Option<String>,
    description: Option<String>,
    alias: Option<String>,
    drive_type: Option<String>,
    total: Option<i64>,
}

/// `/graph/v1.0/drives`, and the same in v1beta1.
pub fn collection(call: &Call, shape: Shape) -> Response {
    match *call.method {
        Method::GET | Method::HEAD => list(call, shape, call.is_provisioner()),
        Method::POST if shape == Shape::Full => create(call),
        _ => call.not_allowed(&["GET", "POST"]),
    }
}

/// `/graph/v1.0/me/drives`.
pub fn mine(call: &Call) -> Response {
    match *call.method {
        Method::GET | Method::HEAD => list(call, Shape::Full, false),
        _ => call.not_allowed(&["GET"]),
    }
}

/// `/graph/v1.0/me/drive`: one's own personal space, which is 404 while the storage is away.
pub fn personal(call: &Call) -> Response {
    match *call.method {
        Method::GET | Method::HEAD if call.shared.lock().away => not_returned(call),
        Method::GET | Method::HEAD => {
            let scene = call.shared.scene();
            call.json(StatusCode::OK, text::personal(&scene, &call.user) + "\n")
        }
        _ => call.not_allowed(&["GET"]),
    }
}

/// Whether a user sees a space among the own ones: disabled ones only as a manager.
fn is_mine(call: &Call, drive: &Drive) -> bool {
    match drive.rank_of(&call.user) {
        Some(Rank::Manager) => true,
        Some(_) => !drive.disabled,
        None => false,
    }
}

fn list(call: &Call, shape: Shape, all: bool) -> Response {
    let query = match Query::parse(call.query) {
        Ok(query) => query,
        Err(Unfit::Invalid(text)) => {
            return call.error(StatusCode::BAD_REQUEST, "invalidRequest", &text);
        }
        Err(Unfit::NotSupported(text)) => {
            return call.error(StatusCode::NOT_IMPLEMENTED, "notSupported", &text);
        }
    };
    let mut shown = {
        let spaces = call.shared.lock();
        let mut shown = Vec::new();
        // Without its storage the list is 200, and only what needs none is in it (observed).
        if !spaces.away {
            let users = spaces.users.values().filter(|user| all || user.id == call.user.id);
            shown.extend(users.cloned().map(Shown::Personal));
            let projects = match &query.filter {
                Some(Filter::Id(id)) => spaces.find(id).into_iter().collect(),
                Some(Filter::DriveType(kind)) if kind != "project" => Vec::new(),
                _ => spaces.projects(),
            };
            // By id, oCIS 3.1 finds for no account what it is no member of, although it lists it (observed).
            let by_id = matches!(query.filter, Some(Filter::Id(_)));
            let all = all && !(by_id && call.flavour() == Flavour::Ocis31);
            shown.extend(
                projects.into_iter().filter(|drive| all || is_mine(call, drive)).map(Shown::Project),
            );
        }
        shown.push(Shown::Shares);
        shown
    };
    let scene = call.shared.scene();
    match &query.filter {
        Some(Filter::DriveType(wanted)) => shown.retain(|drive| drive.kind() == wanted),
        Some(Filter::Id(id)) => shown.retain(|drive| match drive {
            Shown::Project(_) => true,
            Shown::Personal(user) => *id == user.id || *id == format!("{}${}", scene.storage, user.id),
            Shown::Shares => false,
        }),
        None => {}
    }
    query.arrange(&mut shown);
    (StatusCode::OK, call.json_type(), text::list(scene, shown, shape)).into_response()
}

fn not_returned(call: &Call) -> Response {
    call.error(StatusCode::NOT_FOUND, "itemNotFound", "no drive returned from storage")
}

fn not_found(call: &Call) -> Response {
    call.error(StatusCode::NOT_FOUND, "itemNotFound", "drive not found")
}

fn grpc_error(call: &Call) -> Response {
    call.error(StatusCode::INTERNAL_SERVER_ERROR, "generalException", "grpc error")
}

/// `/graph/v1.0/drives/{id}`.
pub fn member(call: &Call, id: &str) -> Response {
    match *call.method {
        Method::GET | Method::HEAD => show(call, id),
        Method::PATCH => patch(call, id),
        Method::DELETE => delete(call, id),
        _ => call.not_allowed(&["GET", "DELETE", "PATCH"]),
    }
}

fn show(call: &Call, id: &str) -> Response {
    let (found, away) = {
        let spaces = call.shared.lock();
        (spaces.find(id), spaces.away)
    };
    let scene = call.shared.scene();
    if !away && (id == call.user.id || id == format!("{}${}", scene.storage, call.user.id)) {
        return call.json(StatusCode::OK, text::personal(&scene, &call.user) + "\n");
    }
    let sees_all = call.is_provisioner() && call.flavour() != Flavour::Ocis31;
    match found.filter(|drive| !away && (sees_all || is_mine(call, drive))) {
        Some(drive) => show_drive(call, StatusCode::OK, &drive, Shape::Full),
        None => not_returned(call),
    }
}

fn show_drive(call: &Call, status: StatusCode, drive: &Arc<Drive>, shape: Shape) -> Response {
    call.json(status, text::drive(&call.shared.scene(), drive, shape) + "\n")
}

fn create(call: &Call) -> Response {
    // Before the body is looked at.
    if !call.is_provisioner() {
        let text = "insufficient permissions to create a space.";
        return call.error(StatusCode::FORBIDDEN, "notAllowed", text);
    }
    let schema = "invalid body schema definition";
    let invalid = |text: &str| call.error(StatusCode::BAD_REQUEST, "invalidRequest", text);
    let Ok(body) = serde_json::from_slice::<Map<String, Value>>(call.body) else {
        return invalid(schema);
    };
    let Ok(written) = read(&body) else { return invalid(schema) };
    if call.flavour() != Flavour::Ocis31 && !body.contains_key("name") {
        return invalid(schema);
    }
    let name = written.name.unwrap_or_default().trim().to_owned();
    if let Err(text) = check_name(&name) {
        return invalid(&format!("invalid spacename: {text}"));
    }
    if written.drive_type.is_some_and(|kind| !kind.is_empty() && kind != "project") {
        return invalid("drives of this type cannot be created via this api");
    }
    let mut spaces = call.shared.lock();
    if spaces.away {
        drop(spaces);
        let service = match call.flavour() {
            Flavour::Ocis31 | Flavour::Ocis5 | Flavour::Ocis7 => "com.owncloud",
            Flavour::OpenCloud => "eu.opencloud",
        };
        let text = format!(
            "gateway could not get storage provider client:{service}.api.storage-users: service not found"
        );
        return call.error(StatusCode::INTERNAL_SERVER_ERROR, "generalException", &text);
    }
    let alias = written.alias.filter(|alias| !alias.is_empty());
    let alias = alias.unwrap_or_else(|| state::default_alias(&name));
    // Nothing is unique: the same again makes another (observed).
    let quota = written.total.filter(|total| *total >= 0).unwrap_or(DEFAULT_QUOTA);
    let mut drive = Drive::new(name, alias, quota);
    drive.description = written.description.unwrap_or_default();
    let creator = Grantee::User(call.user.id.clone());
    drive.grant(creator, &call.user.display_name, Rank::Manager);
    let drive = spaces.insert(drive);
    drop(spaces);
    show_drive(call, StatusCode::CREATED, &drive, Shape::Created)
}

/// A name's length is counted in bytes, and a dot is refused (observed).
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("spacename must not be empty");
    }
    if name.len() > 255 {
        return Err("spacename must be smaller than 255");
    }
    if name.contains(FORBIDDEN) {
        return Err(FORBIDDEN_TEXT);
    }
    Ok(())
}

/// The fields that do something, checked as strictly as the graph does.
fn read(body: &Map<String, Value>) -> Result<Written, String> {
    let unknown = body.keys().find(|name| !FIELDS.contains(&name.as_str()));
    if let Some(name) = unknown {
        return Err(format!("json: unknown field \"{name}\""));
    }
    let wrong = |name: &str, kind: &str| {
        format!("json: cannot unmarshal value into Go struct field Drive.{name} of type {kind}")
    };
    let text = |name: &str| match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong(name, "string")),
    };
    let total = match body.get("quota") {
        None | Some(Value::Null) => None,
        Some(Value::Object(quota)) => {
            if let Some(name) = quota.keys().find(|name| !QUOTA_FIELDS.contains(&name.as_str())) {
                return Err(format!("json: unknown field \"{name}\""));
            }
            match quota.get("total") {
                None | Some(Value::Null) => None,
                Some(total) => Some(total.as_i64().ok_or_else(|| wrong("quota.total", "int64"))?),
            }
        }
        Some(_) => return Err(wrong("quota", "libregraph.Quota")),
    };
    text("id")?;
    Ok(Written {
        name: text("name")?,
        description: text("description")?,
        alias: text("driveAlias")?,
        drive_type: text("driveType")?,
        total,
    })
}

/// Go's `strconv.ParseBool`, which decides what the headers `Purge` and `Restore` mean: anything that it
/// does not know is false, and then a purge is a plain disable (observed).
fn is_true(header: Option<&str>) -> bool {
    matches!(header, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

fn patch(call: &Call, id: &str) -> Response {
    let invalid = |text: &str| {
        let text = format!("invalid request body: error: {text}");
        call.error(StatusCode::BAD_REQUEST, "invalidRequest", &text)
    };
    let written = match serde_json::from_slice::<Map<String, Value>>(call.body) {
        Err(_) if call.body.trim_ascii().is_empty() => return invalid("EOF"),
        Err(_) => return invalid("invalid character in the body"),
        Ok(body) => match read(&body) {
            Ok(written) => written,
            Err(text) => return invalid(&text),
        },
    };
    if written.total.is_some() && !call.is_provisioner() {
        // Managers of the space too, and before it is looked for (observed).
        let text = "user is not allowed to set the space quota";
        return call.error(StatusCode::FORBIDDEN, "notAllowed", text);
    }
    // Empty is the same as absent, but for the description (observed).
    let name = written.name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    if let Some(name) = &name
        && let Err(text) = check_name(name)
    {
        return call.error(StatusCode::BAD_REQUEST, "generalException", text);
    }
    let alias = written.alias.filter(|alias| !alias.is_empty());
    let restore = is_true(call.header("restore"));

    let mut spaces = call.shared.lock();
    if spaces.away {
        drop(spaces);
        return grpc_error(call);
    }
    let Some(drive) = spaces.find(id) else {
        drop(spaces);
        return not_found(call);
    };
    let manages = drive.rank_of(&call.user) == Some(Rank::Manager);
    // An account that may change all spaces changes this one only by asking for a change: with nothing in the
    // body it is not even found (observed, both).
    let asks = restore
        || name.is_some()
        || written.description.is_some()
        || alias.is_some()
        || written.total.is_some();
    let may = manages || (call.is_provisioner() && asks);
    if !may {
        drop(spaces);
        return not_found(call);
    }
    if written.total.is_some_and(|total| total < 0) {
        drop(spaces);
        return grpc_error(call);
    }
    let changed = spaces.edit(id, |drive| {
        if let Some(name) = name {
            drive.name = name;
        }
        if let Some(description) = written.description {
            drive.description = description;
        }
        if let Some(alias) = alias {
            drive.alias = alias;
        }
        if let Some(total) = written.total {
            drive.quota = total;
        }
        if restore {
            drive.disabled = false;
        }
        drive.touch();
    });
    drop(spaces);
    match changed {
        Some(drive) => show_drive(call, StatusCode::OK, &drive, Shape::Full),
        None => not_found(call),
    }
}

fn delete(call: &Call, id: &str) -> Response {
    let purge = is_true(call.header("purge"));
    let mut spaces = call.shared.lock();
    if spaces.away {
        drop(spaces);
        return grpc_error(call);
    }
    let found = spaces.find(id);
    let may =
        |drive: &Arc<Drive>| call.is_provisioner() || drive.rank_of(&call.user) == Some(Rank::Manager);
    let Some(drive) = found.filter(may) else {
        drop(spaces);
        return not_found(call);
    };
    if purge && !drive.disabled {
        drop(spaces);
        let text = "error: bad request: can't purge enabled space";
        return call.error(StatusCode::BAD_REQUEST, "invalidRequest", text);
    }
    if purge {
        spaces.remove(id);
    } else {
        // As often as one likes, and without touching the time of the last change (observed).
        spaces.edit(id, |drive| drive.disabled = true);
    }
    StatusCode::NO_CONTENT.into_response()
}
