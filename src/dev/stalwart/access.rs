//! Who may do what, and how often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use jiff::Timestamp;

/// Objects of the registry with which permissions are granted; those that are not simulated too.
pub const OBJECTS: [&str; 18] = [
    "Account",
    "Action",
    "ApiKey",
    "BlockedIp",
    "Directory",
    "DkimSignature",
    "Domain",
    "Enterprise",
    "Http",
    "Jmap",
    "MailingList",
    "OAuthClient",
    "Role",
    "Security",
    "SystemSettings",
    "Task",
    "Tenant",
    "Tracer",
];
const VERBS: [&str; 5] = ["Get", "Query", "Create", "Update", "Destroy"];
const OTHERS: [&str; 5] =
    ["authenticate", "jmapCoreEcho", "unlimitedRequests", "impersonate", GRANTS_ROLE_USER];

/// Stands for the 244 permissions of the role User: an account with it may create accounts with that role.
pub const GRANTS_ROLE_USER: &str = "jmapPrincipalCreate";

/// What a key of tenantry's own needs, and no more.
pub const LEAST: [&str; 8] = [
    "authenticate",
    "sysDomainGet",
    "sysDomainQuery",
    "sysDomainCreate",
    "sysDomainUpdate",
    "sysDomainDestroy",
    "sysDkimSignatureQuery",
    "sysDkimSignatureDestroy",
];

/// What a provisioner's key is given (observed to be enough for everything but accounts with a role).
pub const PROVISIONER: [&str; 21] = [
    "authenticate",
    "jmapCoreEcho",
    "sysDomainGet",
    "sysDomainQuery",
    "sysDomainCreate",
    "sysDomainUpdate",
    "sysDomainDestroy",
    "sysAccountGet",
    "sysAccountQuery",
    "sysAccountCreate",
    "sysAccountUpdate",
    "sysAccountDestroy",
    "sysMailingListGet",
    "sysMailingListQuery",
    "sysMailingListCreate",
    "sysMailingListUpdate",
    "sysMailingListDestroy",
    "sysDkimSignatureGet",
    "sysDkimSignatureQuery",
    "sysDkimSignatureDestroy",
    // Which domain is the default one, nothing else tells without trying to destroy it.
    "sysSystemSettingsGet",
];

/// Every permission of which the simulator knows the name.
pub fn permissions() -> impl Iterator<Item = String> {
    let of_objects =
        OBJECTS.iter().flat_map(|object| VERBS.iter().map(move |verb| format!("sys{object}{verb}")));
    OTHERS.iter().map(ToString::to_string).chain(of_objects)
}

#[derive(Debug, Clone)]
pub enum Permissions {
    /// Those of the role Admin, or of a key that inherits them.
    All,
    Only(Arc<BTreeSet<String>>),
}

impl Permissions {
    pub fn only<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Only(Arc::new(names.into_iter().map(str::to_owned).collect()))
    }

    pub fn have(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }

    pub fn list(&self) -> Vec<String> {
        match self {
            Self::All => permissions().collect(),
            Self::Only(names) => names.iter().cloned().collect(),
        }
    }
}

/// How a credential was taken.
pub enum Login {
    /// No `Authorization` header. No attempt either: it is not counted.
    Anonymous,
    Known(Permissions),
    /// With the login name, where there is one.
    Wrong(Option<String>),
    /// A key past its time: refused without telling how to authenticate (observed).
    Expired,
}

pub struct Key {
    pub permissions: Permissions,
    pub expires: Option<Timestamp>,
}

#[derive(Default)]
pub struct Access {
    pub keys: BTreeMap<String, Key>,
    /// Keys made through the API, by their id.
    pub key_ids: BTreeMap<u64, String>,
    pub users: BTreeMap<String, String>,
    /// The minute that is counted, and the requests in it.
    window: (i64, u32),
}

impl Access {
    pub fn add_key(&mut self, key: &str, permissions: Permissions) {
        self.keys.insert(key.to_owned(), Key { permissions, expires: None });
    }

    pub fn login(&self, headers: &HeaderMap) -> Login {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Login::Anonymous };
        let Some((scheme, credential)) = value.to_str().ok().and_then(|value| value.split_once(' '))
        else {
            return Login::Wrong(None);
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return match self.keys.get(credential) {
                None => Login::Wrong(None),
                Some(key) if key.expires.is_some_and(|end| end <= Timestamp::now()) => Login::Expired,
                Some(key) => Login::Known(key.permissions.clone()),
            };
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Login::Wrong(None);
        }
        let decoded = decode_base64(credential).and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((name, password)) if self.users.get(name).is_some_and(|it| it == password) => {
                Login::Known(Permissions::All)
            }
            Some((name, _)) => Login::Wrong(Some(name.to_owned())),
            None => Login::Wrong(None),
        }
    }

    /// Counts a request; the seconds until the window ends when it is one too many. The windows are
    /// those of the clock (observed: unlike limits named the same end of it).
    pub fn count_request(&mut self, limit: u32) -> Option<i64> {
        let now = Timestamp::now().as_second();
        let window = now.div_euclid(60);
        if self.window.0 != window {
            self.window = (window, 0);
        }
        if self.window.1 >= limit {
            return Some(60 - now.rem_euclid(60));
        }
        self.window.1 += 1;
        None
    }
}

/// Standard alphabet, padding optional; `None` for anything else.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()
}
