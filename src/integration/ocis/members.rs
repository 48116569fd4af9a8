//! Giving the tenant's group a role in its space.
//!
//! oCIS 3.1 does it by OCS shares and the group's name; where LibreGraph's `v1beta1` exists, it is an
//! invitation with the group's id, which has to be looked up (both observed). oCIS 5.0 has the roles of
//! `v1beta1` but no route to invite, and takes OCS shares (observed). Which it is shows on the first try,
//! whatever the server calls itself, and is remembered for as long as the process runs.
//!
//! A group that oCIS does not know yet (it learns of it when its first member logs in, or never) is no
//! failure: the space is there, and the group is tried again with every look, of which there are more while it is
//! waited for.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{graph_code, refused};
use crate::integration::upstream::{Call, Purpose, UpstreamClient};
use crate::integration::{Error, GroupTemplate};
use crate::metrics::Operation;
use crate::tenant::{Reason, Slug};

/// What the group may do in the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceRole {
    Viewer,
    Editor,
    Manager,
}

impl SpaceRole {
    const ALL: [Self; 3] = [Self::Viewer, Self::Editor, Self::Manager];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Manager => "manager",
        }
    }

    /// Its id in `v1beta1`; fixed in the servers' source (observed).
    const fn id(self) -> &'static str {
        match self {
            Self::Viewer => "a8d5fe5e-96e3-418d-825b-534dbdf22b99",
            Self::Editor => "58c63c02-1d89-4572-916a-870abc5a1b7d",
            Self::Manager => "312c0871-5ef7-4b3a-85b6-0e4074c64049",
        }
    }
}

impl fmt::Display for SpaceRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be viewer, editor or manager")]
pub struct InvalidSpaceRole;

impl FromStr for SpaceRole {
    type Err = InvalidSpaceRole;

    fn from_str(text: &str) -> Result<Self, InvalidSpaceRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(InvalidSpaceRole)
    }
}

/// Which group gets which role in its tenant's space.
#[derive(Debug, Clone)]
pub struct Membership {
    pub role: SpaceRole,
    pub groups: GroupTemplate,
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.role, self.groups)
    }
}

/// How a server takes members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    /// OCS shares.
    Shares,
    /// LibreGraph `v1beta1`.
    Invitations,
}

/// Adds groups to spaces.
pub struct Members {
    pub membership: Membership,
    /// As far as it is known.
    api: Mutex<Option<Api>>,
}

/// What came of giving a group its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    Given,
    /// The server does not know the group: it learns of it when its first member signs in.
    UnknownGroup,
    /// For a person, why it could not be given.
    Refused(String),
}

const SHARES: [&str; 7] = ["ocs", "v2.php", "apps", "files_sharing", "api", "v1", "shares"];
/// OCS' way of saying that there is no such user or group (observed).
const NO_GRANTEE: i64 = 998;

impl Members {
    pub fn new(membership: Membership) -> Self {
        Self { membership, api: Mutex::default() }
    }

    /// Whether a group is one that tenants have, by its name.
    pub fn may_be_ours(&self, group: &str) -> bool {
        self.membership.groups.may_name(group)
    }

    pub fn group(&self, slug: &Slug) -> String {
        self.membership.groups.name_for(slug)
    }

    /// Gives the group its role. Repeating it changes nothing.
    pub async fn add(
        &self,
        upstream: &UpstreamClient,
        drive: &str,
        slug: &Slug,
    ) -> Result<Added, Error> {
        let group = self.group(slug);
        if self.api(upstream).await? == Api::Invitations {
            let Some(id) = find_group(upstream, &group).await? else {
                return Ok(Added::UnknownGroup);
            };
            if let Some(added) = self.invite(upstream, drive, &group, &id).await? {
                return Ok(added);
            }
            self.remember(Api::Shares);
        }
        self.share(upstream, drive, &group).await
    }

    /// Asks which API there is, once.
    pub async fn learn(&self, upstream: &UpstreamClient) -> Result<(), Error> {
        self.api(upstream).await.map(drop)
    }

    async fn api(&self, upstream: &UpstreamClient) -> Result<Api, Error> {
        if let Some(api) = *self.api.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(api);
        }
        let path = ["graph", "v1beta1", "roleManagement", "permissions", "roleDefinitions"];
        let call = Call::get(Operation::FindMemberApi, &path);
        let answer = upstream.read(&call).await?;
        let api = match answer.status {
            StatusCode::OK => Api::Invitations,
            StatusCode::NOT_FOUND => Api::Shares,
            _ => return Err(refused(upstream, &call, Purpose::Read, answer)),
        };
        self.remember(api);
        Ok(api)
    }

    fn remember(&self, api: Api) {
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(api);
    }

    async fn share(&self, upstream: &UpstreamClient, drive: &str, group: &str) -> Result<Added, Error> {
        #[derive(Deserialize)]
        struct Reply {
            ocs: Ocs,
        }
        #[derive(Deserialize)]
        struct Ocs {
            meta: Meta,
        }
        #[derive(Deserialize)]
        struct Meta {
            statuscode: i64,
            #[serde(default)]
            message: String,
        }
        // An unknown role would be taken without a word (observed); ours is one of three.
        let role = self.membership.role.name();
        let form = [("space_ref", drive), ("shareType", "8"), ("shareWith", group), ("role", role)];
        let call = Call::new(Operation::AddGroup, Method::POST, &SHARES)
            .query(&[("format", "json")])
            .form(&form);
        let answer = upstream.write(&call).await?;
        let meta = answer.json::<Reply>().map(|reply| reply.ocs.meta);
        match (answer.status, meta) {
            (StatusCode::OK, _) => Ok(Added::Given),
            (StatusCode::NOT_FOUND, Some(meta)) if meta.statuscode == NO_GRANTEE => {
                Ok(Added::UnknownGroup)
            }
            // Only members of a space may share it.
            (StatusCode::NOT_FOUND | StatusCode::FORBIDDEN, Some(meta)) => {
                Ok(not_ours(group, &upstream.printable(&meta.message)))
            }
            _ => Err(refused(upstream, &call, Purpose::Write, answer)),
        }
    }

    /// `None` where there is no such route: oCIS 5.0 (observed).
    async fn invite(
        &self,
        upstream: &UpstreamClient,
        drive: &str,
        group: &str,
        id: &str,
    ) -> Result<Option<Added>, Error> {
        let role = self.membership.role.id();
        let path = ["graph", "v1beta1", "drives", drive, "root", "invite"];
        let body = json!({
            "recipients": [{ "objectId": id, "@libre.graph.recipient.type": "group" }],
            "roles": [role],
        });
        let call = Call::new(Operation::InviteGroup, Method::POST, &path).json(&body);
        let answer = upstream.write(&call).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED => return Ok(Some(Added::Given)),
            // It is a member, with another role.
            StatusCode::CONFLICT => {}
            StatusCode::NOT_FOUND if graph_code(&answer).is_none() => return Ok(None),
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {
                return Ok(Some(not_ours(group, &upstream.refusal(&call, &answer))));
            }
            _ => return Err(refused(upstream, &call, Purpose::Write, answer)),
        }
        let permission = format!("g:{id}");
        let path = ["graph", "v1beta1", "drives", drive, "root", "permissions", &permission];
        let call = Call::new(Operation::ChangeGroupRole, Method::PATCH, &path)
            .json(&json!({ "roles": [role] }));
        let answer = upstream.write(&call).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(Added::Given)),
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {
                Ok(Some(not_ours(group, &upstream.refusal(&call, &answer))))
            }
            _ => Err(refused(upstream, &call, Purpose::Write, answer)),
        }
    }
}

/// A group's id. Without a search of three characters or more a space admin is refused (observed); the
/// search is by substring, so its results are compared.
async fn find_group(upstream: &UpstreamClient, name: &str) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    struct Groups {
        #[serde(default)]
        value: Vec<Value>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Group {
        id: String,
        #[serde(default)]
        display_name: String,
    }
    let search = format!("\"{}\"", name.replace('"', ""));
    let query = [("$search", search.as_str())];
    let call = Call::get(Operation::FindGroup, &["graph", "v1.0", "groups"]).query(&query);
    let answer = upstream.read(&call).await?;
    match answer.status {
        StatusCode::OK => {}
        _ => return Err(refused(upstream, &call, Purpose::Read, answer)),
    }
    let unreadable = || {
        let message = format!("{}: the answer cannot be understood", upstream.what(&call));
        Error::transient(Reason::UnexpectedAnswer, message)
    };
    let groups = answer.json::<Groups>().ok_or_else(unreadable)?.value;
    let mut odd = false;
    for element in groups {
        match Group::deserialize(&element) {
            Ok(group) if group.display_name == name => return Ok(Some(group.id)),
            Ok(_) => {}
            Err(why) => {
                let id = element.get("id").and_then(Value::as_str).unwrap_or_default();
                upstream.skipped(&call, id, &why.to_string());
                odd = true;
            }
        }
    }
    // The one that was passed over may be it.
    if odd { Err(unreadable()) } else { Ok(None) }
}

/// For a person: what the tenant waits for.
pub fn unknown(group: &str) -> String {
    format!(
        "the group {group:?} is not known to oCIS yet, and so has no access to the space; it is looked for again \
         after a minute, and then whenever the wait has grown by a quarter"
    )
}

fn not_ours(group: &str, why: &str) -> Added {
    Added::Refused(format!(
        "the group {group:?} could not be given access, because our account is no manager of the space \
         any more ({why})"
    ))
}
