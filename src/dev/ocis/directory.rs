//! Users and groups in the graph, as far as an account that is no administrator of them sees any.

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::call::Call;
use super::state::{Group, User};
use super::{Flavour, Role};

const APPLICATION: &str = "dbfec1e9-84f6-4d26-89b1-9e50945931f4";
/// Letters that a search needs, of an account that is no administrator. That there is such a limit was
/// observed, by a search without any; the number is oCIS' own default.
const SHORTEST_SEARCH: usize = 3;

fn is_admin(call: &Call) -> bool {
    call.user.role == Role::Admin
}

/// 401 on oCIS 3.1, though the token is good; 403 on OpenCloud (observed).
fn denied(call: &Call) -> Response {
    match call.flavour() {
        Flavour::Ocis31 => call.error(StatusCode::UNAUTHORIZED, "accessDenied", "Unauthorized"),
        Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud => {
            call.error(StatusCode::FORBIDDEN, "accessDenied", "Forbidden")
        }
    }
}

fn expands(call: &Call, what: &str) -> bool {
    url::form_urlencoded::parse(call.query.as_bytes())
        .any(|(name, value)| name == "$expand" && value.split(',').any(|part| part == what))
}

fn show_user(call: &Call, user: &User) -> Value {
    let mut shown = json!({
        "displayName": user.display_name,
        "id": user.id,
        "onPremisesSamAccountName": user.name,
    });
    if !user.mail.is_empty() {
        shown["mail"] = json!(user.mail);
    }
    if call.flavour() != Flavour::Ocis31 {
        let issuer = call.shared.url.get().cloned().unwrap_or_default();
        shown["identities"] = json!([{ "issuer": issuer, "issuerAssignedId": user.id }]);
        shown["preferredLanguage"] = json!("en");
        shown["userType"] = json!("Member");
    }
    shown
}

fn show_group(group: &Group) -> Value {
    json!({ "displayName": group.name, "groupTypes": [], "id": group.id })
}

fn product(call: &Call) -> &'static str {
    match call.flavour() {
        Flavour::Ocis31 | Flavour::Ocis5 | Flavour::Ocis7 => "ownCloud Infinite Scale",
        Flavour::OpenCloud => "OpenCloud",
    }
}

/// `GET /graph/v1.0/me`.
pub fn me(call: &Call) -> Response {
    if !matches!(*call.method, Method::GET | Method::HEAD) {
        return call.not_allowed(&["GET"]);
    }
    let mut shown = show_user(call, &call.user);
    if expands(call, "appRoleAssignments") {
        shown["appRoleAssignments"] = json!([{
            "appRoleId": call.user.role.id(), "id": call.user.id, "principalId": call.user.id,
            "principalType": "User", "resourceDisplayName": product(call), "resourceId": APPLICATION,
        }]);
    }
    if expands(call, "memberOf") {
        let spaces = call.shared.lock();
        let groups = call.user.groups.iter().filter_map(|id| spaces.group_by_id(id));
        shown["memberOf"] = groups.map(show_group).collect();
    }
    call.value(StatusCode::OK, &shown)
}

/// `GET /graph/v1.0/applications`: the roles there are.
pub fn applications(call: &Call) -> Response {
    if !matches!(*call.method, Method::GET | Method::HEAD) {
        return call.not_allowed(&["GET"]);
    }
    let roles = [("Admin", Role::Admin), ("Space Admin", Role::SpaceAdmin), ("User", Role::User)];
    let roles = roles.map(|(name, role)| json!({ "displayName": name, "id": role.id() }));
    let shown =
        json!({ "value": [{ "appRoles": roles, "displayName": product(call), "id": APPLICATION }] });
    call.value(StatusCode::OK, &shown)
}

/// What a list of users or groups is to be searched for, or the refusal.
///
/// On oCIS 3.1 only administrators may list; on OpenCloud everybody may search. A term with a dash needs
/// quotation marks, or it does not parse (observed).
fn search(call: &Call) -> Result<Option<String>, Box<Response>> {
    let given = url::form_urlencoded::parse(call.query.as_bytes())
        .find(|(name, _)| name == "$search")
        .map(|(_, value)| value.into_owned());
    if !is_admin(call) && call.flavour() == Flavour::Ocis31 {
        return Err(Box::new(denied(call)));
    }
    let term = match &given {
        None => None,
        Some(given) => match given.strip_prefix('"').and_then(|term| term.strip_suffix('"')) {
            Some(term) => Some(term.to_owned()),
            None => match given.find('-') {
                Some(at) => {
                    let text = format!("Token '{}' is invalid", &given[at..]);
                    let refusal = call.error(StatusCode::BAD_REQUEST, "invalidRequest", &text);
                    return Err(Box::new(refusal));
                }
                None => Some(given.clone()),
            },
        },
    };
    if !is_admin(call) && term.as_ref().is_none_or(|term| term.len() < SHORTEST_SEARCH) {
        let text = "search term too short";
        return Err(Box::new(call.error(StatusCode::FORBIDDEN, "accessDenied", text)));
    }
    Ok(term.map(|term| term.to_lowercase()))
}

/// Whether a name is what was searched for. A part of it is enough, so a client must compare.
fn found(term: Option<&str>, name: &str) -> bool {
    term.is_none_or(|term| name.to_lowercase().contains(term))
}

/// `/graph/v1.0/groups`.
pub fn groups(call: &Call) -> Response {
    match *call.method {
        Method::GET | Method::HEAD => {
            let term = match search(call) {
                Ok(term) => term,
                Err(refusal) => return *refusal,
            };
            let spaces = call.shared.lock();
            let groups = spaces.groups.values().filter(|group| found(term.as_deref(), &group.name));
            let shown: Vec<Value> = groups.map(show_group).collect();
            drop(spaces);
            call.value(StatusCode::OK, &json!({ "value": shown }))
        }
        Method::POST if !is_admin(call) => denied(call),
        Method::POST => {
            let body: Value = serde_json::from_slice(call.body).unwrap_or_default();
            let Some(name) = body.get("displayName").and_then(Value::as_str) else {
                return call.error(
                    StatusCode::BAD_REQUEST,
                    "invalidRequest",
                    "missing required property: displayName",
                );
            };
            let mut spaces = call.shared.lock();
            if spaces.groups.contains_key(name) {
                drop(spaces);
                return call.error(StatusCode::CONFLICT, "nameAlreadyExists", "group already exists");
            }
            let group = Group { id: spaces.add_group(name), name: name.to_owned() };
            drop(spaces);
            call.value(made(call), &show_group(&group))
        }
        _ => call.not_allowed(&["GET", "POST"]),
    }
}

/// oCIS 3.1 answers 200 to what it made, OpenCloud 201 (observed).
fn made(call: &Call) -> StatusCode {
    match call.flavour() {
        Flavour::Ocis31 => StatusCode::OK,
        Flavour::Ocis5 | Flavour::Ocis7 | Flavour::OpenCloud => StatusCode::CREATED,
    }
}

/// `/graph/v1.0/groups/{id}`: by id for everybody (observed). That a name finds one was not observed, so
/// here it does not.
pub fn group(call: &Call, id: &str) -> Response {
    let group = call.shared.lock().group_by_id(id).cloned();
    match *call.method {
        Method::DELETE if !is_admin(call) => denied(call),
        Method::GET | Method::HEAD | Method::DELETE if group.is_none() => {
            call.error(StatusCode::NOT_FOUND, "itemNotFound", "not found")
        }
        Method::GET | Method::HEAD => {
            let shown = group.as_ref().map(show_group).unwrap_or_default();
            call.value(StatusCode::OK, &shown)
        }
        Method::DELETE => {
            call.shared.lock().groups.retain(|_, group| group.id != id);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => call.not_allowed(&["GET", "DELETE", "PATCH"]),
    }
}

/// `/graph/v1.0/users`.
pub fn users(call: &Call) -> Response {
    match *call.method {
        Method::GET | Method::HEAD => {
            let term = match search(call) {
                Ok(term) => term,
                Err(refusal) => return *refusal,
            };
            let spaces = call.shared.lock();
            let users = spaces.users.values().filter(|user| {
                found(term.as_deref(), &user.name) || found(term.as_deref(), &user.display_name)
            });
            let mut shown: Vec<Value> = users.map(|user| show_user(call, user)).collect();
            drop(spaces);
            if !is_admin(call) {
                // Others' names and addresses are kept from them (observed).
                for user in &mut shown {
                    user["onPremisesSamAccountName"] = json!("");
                    if let Some(user) = user.as_object_mut() {
                        user.remove("mail");
                        user.remove("preferredLanguage");
                    }
                }
            }
            call.value(StatusCode::OK, &json!({ "value": shown }))
        }
        Method::POST if !is_admin(call) => denied(call),
        Method::POST => {
            let body: Value = serde_json::from_slice(call.body).unwrap_or_default();
            let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
            let (name, display_name) = (text("onPremisesSamAccountName"), text("displayName"));
            if name.is_empty() || display_name.is_empty() {
                return call.error(
                    StatusCode::BAD_REQUEST,
                    "invalidRequest",
                    "missing required property",
                );
            }
            let mut spaces = call.shared.lock();
            if spaces.users.contains_key(name) {
                drop(spaces);
                let text = "a user with that name already exists";
                return call.error(StatusCode::CONFLICT, "nameAlreadyExists", text);
            }
            let user = spaces.add_user(name, display_name, text("mail"), Role::User);
            drop(spaces);
            call.value(made(call), &show_user(call, &user))
        }
        _ => call.not_allowed(&["GET", "POST"]),
    }
}

/// `/graph/v1.0/users/{id or name}`: both find one, for everybody (observed).
pub fn user(call: &Call, key: &str) -> Response {
    let user = {
        let spaces = call.shared.lock();
        spaces.users.get(key).or_else(|| spaces.user_by_id(key)).cloned()
    };
    match *call.method {
        Method::DELETE if !is_admin(call) => denied(call),
        Method::GET | Method::HEAD | Method::DELETE => {
            let Some(user) = user else {
                return call.error(StatusCode::NOT_FOUND, "itemNotFound", "not found");
            };
            if *call.method == Method::DELETE {
                call.shared.lock().remove_user(&user.name);
                return StatusCode::NO_CONTENT.into_response();
            }
            let mut shown = show_user(call, &user);
            shown["accountEnabled"] = json!(true);
            call.value(StatusCode::OK, &shown)
        }
        _ => call.not_allowed(&["GET", "DELETE", "PATCH"]),
    }
}

/// `GET /ocs/v1.php/cloud/capabilities`, as much of it as tells one server from another.
pub fn capabilities(call: &Call) -> Response {
    let version = call.flavour().graph_version();
    let product = match call.flavour() {
        Flavour::Ocis31 | Flavour::Ocis5 | Flavour::Ocis7 => "Infinite Scale",
        Flavour::OpenCloud => "OpenCloud",
    };
    let status = json!({
        "installed": true, "maintenance": false, "needsDbUpgrade": false, "edition": "Community",
        "productname": product, "product": product, "productversion": version,
    });
    let body = json!({ "ocs": {
        "meta": { "status": "ok", "statuscode": 100, "message": "OK" },
        "data": { "capabilities": { "core": { "pollinterval": 60, "status": status } } },
    } });
    let headers = [("ocs-api-version", "1"), ("content-type", "application/json; charset=utf-8")];
    (headers, body.to_string()).into_response()
}
