//! The caller, and what the caller may do.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value};

/// What a caller may do; each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See everything.
    Reader,
    /// Create, edit and reconcile tenants.
    Operator,
    /// Delete them, and everything else.
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Reader, Self::Operator, Self::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a token says of roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roles {
    /// The highest that it gives.
    Highest(Role),
    /// It gives none.
    None,
    /// It lacks the claim altogether that gives roles.
    Unsaid { claim: String },
}

/// A caller whose token was verified: a person or a service. Handlers find it among a request's
/// extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The issuer's name for the caller; the same person may have another at another issuer.
    pub sub: String,
    pub issuer: String,
    /// The client that the token was issued to (`azp`).
    pub client: Option<String>,
    /// For people to read; not unique.
    pub name: Option<String>,
    /// The highest that the claims give; `None` may do nothing.
    pub role: Option<Role>,
    /// The claim that gives roles, where the token lacks it altogether.
    pub lacks_claim: Option<String>,
    /// When the token is no longer good.
    pub expires_at: Option<Timestamp>,
}

/// How much of a name is kept, in characters.
const MAX_NAME: usize = 200;

impl Principal {
    /// Stands for everybody when there is no authentication.
    pub fn anonymous() -> Self {
        Self {
            sub: "anonymous".into(),
            issuer: String::new(),
            client: None,
            name: None,
            role: Some(Role::Admin),
            lacks_claim: None,
            expires_at: None,
        }
    }

    /// From claims that were verified.
    pub(super) fn from_claims(claims: &Map<String, Value>, issuer: &str, roles: Roles) -> Self {
        let first = |names: &[&str]| {
            let texts = names.iter().filter_map(|name| claims.get(*name)?.as_str());
            let text = texts.into_iter().find(|text| !text.is_empty())?;
            Some(text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>())
        };
        let (role, lacks_claim) = match roles {
            Roles::Highest(role) => (Some(role), None),
            Roles::None => (None, None),
            Roles::Unsaid { claim } => (None, Some(claim)),
        };
        Self {
            sub: first(&["sub"]).unwrap_or_default(),
            issuer: issuer.to_owned(),
            client: first(&["azp", "client_id", "appid"]),
            name: first(&["preferred_username", "name", "email"]),
            role,
            lacks_claim,
            expires_at: claims.get("exp").and_then(seconds),
        }
    }

    /// For histories: the issuer's name for the caller, after the one for people. `None` where the caller is not known.
    pub fn label(&self) -> Option<String> {
        let known = !self.issuer.is_empty();
        known.then(|| match &self.name {
            // Names are lists elsewhere, and a caller who chooses their own name must not look like two.
            Some(name) if *name != self.sub => {
                let name = name.replace([',', '(', ')'], " ");
                format!("{} ({})", name.trim(), self.sub)
            }
            _ => self.sub.clone(),
        })
    }

    pub fn may(&self, role: Role) -> bool {
        self.role.is_some_and(|own| own >= role)
    }
}

/// A time as tokens have it; part of a second does not count.
fn seconds(time: &Value) -> Option<Timestamp> {
    #[expect(clippy::cast_possible_truncation, reason = "out of range is refused below")]
    let seconds = time.as_i64().or_else(|| time.as_f64().map(|seconds| seconds as i64))?;
    Timestamp::from_second(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_includes_the_ones_below_it() {
        let with = |role| Principal { role, ..Principal::anonymous() };
        assert!(with(Some(Role::Admin)).may(Role::Reader));
        assert!(with(Some(Role::Operator)).may(Role::Operator));
        assert!(!with(Some(Role::Operator)).may(Role::Admin));
        assert!(!with(Some(Role::Reader)).may(Role::Operator));
        assert!(!with(None).may(Role::Reader));
    }
}
