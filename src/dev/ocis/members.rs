//! Members of a space: OCS shares on all servers, invitations and permissions on oCIS 7 and OpenCloud only.
//!
//! Both ask for a manager member: who may change all spaces but is no member is told that there is none
//! (observed).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::state::{Drive, Grantee, Rank, Spaces};
use super::text;

/// A role definition that is not for the roots of spaces.
const FILE_VIEWER: &str = "b1e2218d-eef8-4d4c-b82d-0f1a1b48f3b5";

/// An OCS answer: JSON where it was asked for, else XML.
fn ocs(call: &Call, status: StatusCode, word: &str, code: u16, message: &str) -> Response {
    let json = url::form_urlencoded::parse(call.query.as_bytes())
        .any(|(name, value)| name == "format" && value == "json");
    let meta = json!({ "status": word, "statuscode": code, "message": message });
    let version = ("ocs-api-version", "2");
    if json {
        let kind = ("content-type", "application/json; charset=utf-8");
        return (status, [version, kind], json!({ "ocs": { "meta": meta } }).to_string())
            .into_response();
    }
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ocs><meta><status>{word}</status><statuscode>{code}</statuscode><message>{message}</message></meta></ocs>"
    );
    let kind = ("content-type", "text/xml; charset=utf-8");
    (status, [version, kind], body).into_response()
}

fn ocs_ok(call: &Call) -> Response {
    ocs(call, StatusCode::OK, "ok", 200, "OK")
}

fn wrong_path(call: &Call) -> Response {
    let text = "Wrong path, file/folder doesn't exist";
    ocs(call, StatusCode::NOT_FOUND, "failure", 404, text)
}

/// The space, for a member of it. A disabled one is not found either.
fn space_of_member(call: &Call, spaces: &Spaces, id: &str) -> Option<(Arc<Drive>, Rank)> {
    let drive = spaces.find(id).filter(|drive| !drive.disabled && !spaces.away)?;
    let rank = drive.rank_of(&call.user)?;
    Some((drive, rank))
}

/// A user's or group's id and display name, found by name: by id they are not (observed).
fn grantee_named(spaces: &Spaces, name: &str, group: bool) -> Option<(Grantee, String)> {
    if group {
        let group = spaces.groups.get(name)?;
        Some((Grantee::Group(group.id.clone()), group.name.clone()))
    } else {
        let user = spaces.users.get(name)?;
        Some((Grantee::User(user.id.clone()), user.display_name.clone()))
    }
}

/// `POST /ocs/v2.php/apps/files_sharing/api/v1/shares`.
pub fn share(call: &Call) -> Response {
    if *call.method != Method::POST {
        return call.not_allowed(&["POST"]);
    }
    let kind = call.header(header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let form: BTreeMap<String, String> = if kind.starts_with("application/x-www-form-urlencoded") {
        url::form_urlencoded::parse(call.body).into_owned().collect()
    } else {
        BTreeMap::new()
    };
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let group = match field("shareType") {
        "7" => false,
        "8" => true,
        _ => return ocs(call, StatusCode::BAD_REQUEST, "error", 400, "unknown share type"),
    };
    let mut spaces = call.shared.lock();
    let Some((drive, rank)) = space_of_member(call, &spaces, field("space_ref")) else {
        return wrong_path(call);
    };
    let Some((who, display_name)) = grantee_named(&spaces, field("shareWith"), group) else {
        return ocs(call, StatusCode::NOT_FOUND, "error", 998, "error getting grantee");
    };
    if rank != Rank::Manager {
        return ocs(call, StatusCode::FORBIDDEN, "error", 403, "permission denied");
    }
    // An unknown role is taken for the least, without a word (taken: observed; which: not looked at).
    let wanted = Rank::ALL.into_iter().find(|rank| rank.name() == field("role"));
    let wanted = wanted.unwrap_or(Rank::Viewer);
    if wanted != Rank::Manager && !drive.managed_without(&who) {
        let text = "the space must have at least one manager";
        return ocs(call, StatusCode::FORBIDDEN, "error", 403, text);
    }
    spaces.edit(field("space_ref"), |drive| drive.grant(who, &display_name, wanted));
    ocs_ok(call)
}

/// `DELETE /ocs/v2.php/apps/files_sharing/api/v1/shares/{id}?shareWith=…`.
pub fn unshare(call: &Call, id: &str) -> Response {
    if *call.method != Method::DELETE {
        return call.not_allowed(&["DELETE"]);
    }
    let name = url::form_urlencoded::parse(call.query.as_bytes())
        .find(|(name, _)| name == "shareWith")
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default();
    let mut spaces = call.shared.lock();
    let Some((drive, rank)) = space_of_member(call, &spaces, id) else { return wrong_path(call) };
    let found = grantee_named(&spaces, &name, false).or_else(|| grantee_named(&spaces, &name, true));
    let Some((who, _)) = found else {
        return ocs(call, StatusCode::NOT_FOUND, "error", 998, "error getting grantee");
    };
    if rank != Rank::Manager {
        return ocs(call, StatusCode::FORBIDDEN, "error", 403, "permission denied");
    }
    if !drive.members.iter().any(|member| member.who == who) {
        return ocs(call, StatusCode::INTERNAL_SERVER_ERROR, "error", 996, "error removing grant");
    }
    if !drive.managed_without(&who) {
        let text = "can't remove the last manager";
        return ocs(call, StatusCode::FORBIDDEN, "error", 403, text);
    }
    spaces.edit(id, |drive| drive.members.retain(|member| member.who != who));
    ocs_ok(call)
}

/// The space for v1beta1, or the refusal.
fn root(call: &Call, spaces: &Spaces, id: &str, must: Rank) -> Result<Arc<Drive>, Box<Response>> {
    let Some((drive, rank)) = space_of_member(call, spaces, id) else {
        let space = id.rsplit('$').next().unwrap_or_default();
        let text = format!("stat: error: not found: {id}!{space}");
        return Err(Box::new(call.error(StatusCode::NOT_FOUND, "itemNotFound", &text)));
    };
    if must == Rank::Manager && rank != Rank::Manager {
        let text = "permission denied";
        return Err(Box::new(call.error(StatusCode::FORBIDDEN, "accessDenied", text)));
    }
    Ok(drive)
}

#[derive(Deserialize)]
struct Invitation {
    #[serde(default)]
    recipients: Vec<Recipient>,
    #[serde(default)]
    roles: Vec<String>,
}

#[derive(Deserialize)]
struct Recipient {
    #[serde(rename = "objectId", default)]
    object_id: String,
    #[serde(rename = "@libre.graph.recipient.type", default)]
    kind: String,
}

fn rank_of_role(id: &str) -> Result<Rank, &'static str> {
    match Rank::ALL.into_iter().find(|rank| rank.id() == id) {
        Some(rank) => Ok(rank),
        None if id == FILE_VIEWER => Err("role not applicable to this resource"),
        None => Err(
            "Key: 'DriveItemInvite.Roles' Error:Field validation for 'Roles' failed on the 'available_role' tag",
        ),
    }
}

/// `POST /graph/v1beta1/drives/{id}/root/invite`: exactly one recipient and one role (observed).
pub fn invite(call: &Call, id: &str) -> Response {
    if *call.method != Method::POST {
        return call.not_allowed(&["POST"]);
    }
    let invalid = |text: &str| call.error(StatusCode::BAD_REQUEST, "invalidRequest", text);
    let Ok(invitation) = serde_json::from_slice::<Invitation>(call.body) else {
        return invalid("invalid body schema definition");
    };
    let [recipient] = invitation.recipients.as_slice() else {
        return invalid(
            "Key: 'DriveItemInvite.Recipients' Error:Field validation for 'Recipients' failed on the 'len' tag",
        );
    };
    if !matches!(recipient.kind.as_str(), "user" | "group") {
        return invalid(
            "Key: 'DriveItemInvite.Recipients[0].LibreGraphRecipientType' Error:Field validation for 'LibreGraphRecipientType' failed on the 'oneof' tag",
        );
    }
    let rank = match invitation.roles.as_slice() {
        [] => {
            return invalid(
                "Key: 'DriveItemInvite.Roles' Error:Field validation for 'Roles' failed on the 'one_or_another' tag\nKey: 'DriveItemInvite.LibreGraphPermissionsActions' Error:Field validation for 'LibreGraphPermissionsActions' failed on the 'one_or_another' tag",
            );
        }
        [role] => match rank_of_role(role) {
            Ok(rank) => rank,
            Err(text) => return invalid(text),
        },
        _ => {
            return invalid(
                "Key: 'DriveItemInvite.Roles' Error:Field validation for 'Roles' failed on the 'max' tag",
            );
        }
    };
    let mut spaces = call.shared.lock();
    let drive = match root(call, &spaces, id, Rank::Manager) {
        Ok(drive) => drive,
        Err(refusal) => return *refusal,
    };
    let found = if recipient.kind == "user" {
        let user = spaces.user_by_id(&recipient.object_id);
        user.map(|user| (Grantee::User(user.id.clone()), user.display_name.clone()))
    } else {
        let group = spaces.group_by_id(&recipient.object_id);
        group.map(|group| (Grantee::Group(group.id.clone()), group.name.clone()))
    };
    // By name they are not found (observed).
    let Some((who, display_name)) = found else { return invalid("itemNotFound: not found") };
    if drive.members.iter().any(|member| member.who == who) {
        let text = format!("add grant: error: already exists: {}", drive.name);
        return call.error(StatusCode::CONFLICT, "nameAlreadyExists", &text);
    }
    spaces.edit(id, |drive| drive.grant(who.clone(), &display_name, rank));
    drop(spaces);
    let mut body = String::from("{\"value\":[");
    text::write_permission(&mut body, &who, &display_name, rank, Some(&call.user));
    body.push_str("]}\n");
    call.json(StatusCode::OK, body)
}

/// `GET /graph/v1beta1/drives/{id}/root/permissions`.
pub fn permissions(call: &Call, id: &str) -> Response {
    if !matches!(*call.method, Method::GET | Method::HEAD) {
        return call.not_allowed(&["GET"]);
    }
    let spaces = call.shared.lock();
    let drive = match root(call, &spaces, id, Rank::Viewer) {
        Ok(drive) => drive,
        Err(refusal) => return *refusal,
    };
    drop(spaces);
    let mut body = format!(
        "{{\"@libre.graph.permissions.actions.allowedValues\":[\"libre.graph/driveItem/permissions/create\",\"libre.graph/driveItem/permissions/read\"],\"@libre.graph.permissions.roles.allowedValues\":{},\"value\":[",
        Value::from(roles())
    );
    for (index, member) in drive.members.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        text::write_permission(&mut body, &member.who, &member.display_name, member.rank, None);
    }
    body.push_str("]}\n");
    call.json(StatusCode::OK, body)
}

/// `PATCH` and `DELETE /graph/v1beta1/drives/{id}/root/permissions/{u:id|g:id}`.
pub fn permission(call: &Call, id: &str, permission: &str) -> Response {
    let mut spaces = call.shared.lock();
    let drive = match root(call, &spaces, id, Rank::Manager) {
        Ok(drive) => drive,
        Err(refusal) => return *refusal,
    };
    let who = match permission.split_once(':') {
        Some(("u", id)) => Grantee::User(id.to_owned()),
        Some(("g", id)) => Grantee::Group(id.to_owned()),
        _ => return call.error(StatusCode::NOT_FOUND, "itemNotFound", "permission not found"),
    };
    let member = drive.members.iter().find(|member| member.who == who).cloned();
    let last = || call.error(StatusCode::FORBIDDEN, "accessDenied", "can't remove the last manager");
    match *call.method {
        Method::DELETE => {
            if member.is_none() {
                let text = "rpc error: code = Unknown desc = gateway: error getting grant to remove from storage";
                return call.error(StatusCode::INTERNAL_SERVER_ERROR, "generalException", text);
            }
            if !drive.managed_without(&who) {
                return last();
            }
            spaces.edit(id, |drive| drive.members.retain(|member| member.who != who));
            StatusCode::NO_CONTENT.into_response()
        }
        Method::PATCH => {
            let Some(member) = member else {
                return call.error(StatusCode::NOT_FOUND, "itemNotFound", "permission not found");
            };
            let invalid = |text: &str| call.error(StatusCode::BAD_REQUEST, "invalidRequest", text);
            let body: Value = serde_json::from_slice(call.body).unwrap_or_default();
            let Some(role) = body.pointer("/roles/0").and_then(Value::as_str) else {
                return invalid("invalid body schema definition");
            };
            let rank = match rank_of_role(role) {
                Ok(rank) => rank,
                Err(text) => return invalid(text),
            };
            if rank != Rank::Manager && !drive.managed_without(&who) {
                return last();
            }
            spaces.edit(id, |drive| drive.grant(who.clone(), &member.display_name, rank));
            let mut body = String::new();
            text::write_permission(&mut body, &who, &member.display_name, rank, None);
            body.push('\n');
            call.json(StatusCode::OK, body)
        }
        _ => call.not_allowed(&["PATCH", "DELETE"]),
    }
}

/// The role definitions for the roots of spaces.
fn roles() -> Vec<Value> {
    let names = [
        ("Can view", "View and download."),
        ("Can edit", "View, download, upload, edit, add, delete including the history."),
        ("Can manage", "View, download, upload, edit, add, delete and manage members."),
    ];
    Rank::ALL
        .into_iter()
        .zip(names)
        .zip(1..)
        .map(|((rank, (name, description)), weight)| {
            json!({ "@libre.graph.weight": weight, "description": description,
                    "displayName": name, "id": rank.id() })
        })
        .collect()
}

/// `GET /graph/v1beta1/roleManagement/permissions/roleDefinitions`: a bare array, and also of roles that
/// are not for the roots of spaces, under the same display names (observed).
pub fn role_definitions(call: &Call) -> Response {
    let mut all = vec![json!({
        "@libre.graph.weight": 0, "description": "View and download.", "displayName": "Can view",
        "id": FILE_VIEWER, "rolePermissions": [{ "condition": "exists @Resource.File" }],
    })];
    for mut role in roles() {
        role["@libre.graph.weight"] = json!(0);
        role["rolePermissions"] = json!([{ "condition": "exists @Resource.Root" }]);
        all.push(role);
    }
    call.value(StatusCode::OK, &Value::from(all))
}
