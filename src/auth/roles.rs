//! Which values of which claim give which role.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::principal::{Role, Roles};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleMapping {
    /// Name of the claim, or a path to it with dots in it, such as `realm_access.roles`.
    pub claim: String,
    pub readers: BTreeSet<String>,
    pub operators: BTreeSet<String>,
    pub admins: BTreeSet<String>,
}

impl RoleMapping {
    /// What these claims say of roles.
    pub(super) fn of(&self, claims: &Map<String, Value>) -> Roles {
        match self.find(claims) {
            None => Roles::Unsaid { claim: self.claim.clone() },
            Some(_) => self.role(claims).map_or(Roles::None, Roles::Highest),
        }
    }

    /// The highest role that these claims give.
    fn role(&self, claims: &Map<String, Value>) -> Option<Role> {
        let values: Vec<&str> = match self.find(claims)? {
            Value::String(text) => vec![text],
            Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let any = |of: &BTreeSet<String>| values.iter().any(|value| of.contains(*value));
        [(Role::Admin, &self.admins), (Role::Operator, &self.operators), (Role::Reader, &self.readers)]
            .into_iter()
            .find_map(|(role, values)| any(values).then_some(role))
    }

    /// A claim of exactly this name comes first: names that are URLs have dots too.
    fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        if let Some(value) = claims.get(&self.claim) {
            return Some(value);
        }
        let mut path = self.claim.split('.');
        let first = claims.get(path.next()?)?;
        path.try_fold(first, |value, name| value.as_object()?.get(name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(claim: &str, claims: &Value) -> Option<Role> {
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        let mapping = RoleMapping {
            claim: claim.into(),
            readers: set("readers"),
            operators: set("operators"),
            admins: set("admins"),
        };
        mapping.role(claims.as_object().unwrap())
    }

    #[test]
    fn the_highest_role_counts_wherever_the_claim_is() {
        for (claim, claims, expected) in [
            ("groups", json!({ "groups": ["readers", "admins", "x"] }), Some(Role::Admin)),
            ("groups", json!({ "groups": "operators" }), Some(Role::Operator)),
            ("groups", json!({ "groups": ["Readers", "admin"] }), None),
            ("groups", json!({ "groups": { "admins": true } }), None),
            ("groups", json!({ "groups": [["admins"], 7, null] }), None),
            ("groups", json!({}), None),
            ("realm.roles", json!({ "realm": { "roles": ["readers"] } }), Some(Role::Reader)),
            ("realm.roles", json!({ "realm": "readers" }), None),
            (
                "https://acme.test/roles",
                json!({ "https://acme.test/roles": ["readers"] }),
                Some(Role::Reader),
            ),
        ] {
            assert_eq!(role(claim, &claims), expected, "{claim} in {claims}");
        }
    }
}
