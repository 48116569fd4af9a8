//! A drive (a space) as LibreGraph shows it, the marks that it carries, and the names that it may have.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::integration::Usage;
use crate::tenant::{FleetId, IntentId, Slug, TenantId, TenantName};

/// A drive, as far as we look at it. Where a server says `null`, it says nothing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drive {
    pub id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    #[serde(default)]
    pub drive_alias: Option<String>,
    /// Absent when it is empty (observed).
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub drive_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub quota: Quota,
    #[serde(default, deserialize_with = "or_default")]
    pub root: Root,
    /// Why it could not be understood: then only its id and its marks are as the server shows them.
    #[serde(skip)]
    pub fault: Option<String>,
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Of a disabled drive, and in oCIS 3.1's answer to a create, only `total` (observed).
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Quota {
    /// In bytes; 0 is unlimited.
    #[serde(default)]
    pub total: Option<i64>,
    #[serde(default)]
    pub used: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Root {
    #[serde(default)]
    pub deleted: Option<Deleted>,
    #[serde(default, deserialize_with = "or_default")]
    pub permissions: Vec<Permission>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Deleted {
    #[serde(default, deserialize_with = "or_default")]
    pub state: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Permission {
    /// To be removed, says the source of oCIS 7.
    #[serde(default, deserialize_with = "or_default")]
    granted_to_identities: Vec<Identities>,
    /// The same, since oCIS 7 (observed beside the other).
    #[serde(default)]
    granted_to_v2: Option<Identities>,
    #[serde(default, deserialize_with = "or_default")]
    roles: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Identities {
    #[serde(default)]
    group: Option<Identity>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    #[serde(default, deserialize_with = "or_default")]
    display_name: String,
}

impl Permission {
    /// The names of the groups that have it, each once.
    fn groups(&self) -> BTreeSet<&str> {
        let all = self.granted_to_identities.iter().chain(&self.granted_to_v2);
        all.filter_map(|who| who.group.as_ref()).map(|group| group.display_name.as_str()).collect()
    }
}

impl Drive {
    /// Of an element of a list that is no drive as we know one: what it is and whose, as far as that can be
    /// read, so that it is never taken for absent.
    pub fn of_odd(element: &Value, fault: String) -> Self {
        let text = |field: &str| element.get(field).and_then(Value::as_str).map(ToOwned::to_owned);
        Self {
            id: text("id").unwrap_or_default(),
            drive_alias: text("driveAlias"),
            description: text("description"),
            drive_type: text("driveType").unwrap_or_default(),
            fault: Some(fault),
            ..Self::default()
        }
    }

    /// Whether it was disabled. It is still listed, and can be restored.
    pub fn is_disabled(&self) -> bool {
        self.root.deleted.as_ref().is_some_and(|deleted| deleted.state == "trashed")
    }

    /// The tenants that its alias and its description name as the owner.
    pub fn marks(&self) -> Marks {
        Marks {
            alias: self.drive_alias.as_deref().and_then(Mark::from_alias),
            description: self.description.as_deref().and_then(Mark::from_description),
        }
    }

    /// Whether a tenant of this slug released it. An alias of that form is not enough: a person may have written
    /// it, and only a mark that can be read says whose the space was.
    pub fn was_released_by(&self, slug: &Slug) -> bool {
        let alias = self.drive_alias.as_deref().and_then(released_slug);
        alias.is_some_and(|(released, _)| released == slug.as_str())
            && self.marks().are_released()
            && !self.has_illegible_mark()
    }

    /// Whether one of its marks has the form of ours, and cannot be read.
    pub fn has_illegible_mark(&self) -> bool {
        let marks = self.marks();
        let alias = self.drive_alias.as_deref().unwrap_or_default();
        let description = self.description.as_deref().unwrap_or_default();
        (marks.alias.is_none() && (alias.starts_with(ALIAS) || alias.starts_with(RELEASED)))
            || (marks.description.is_none() && description.contains(WORD))
    }

    /// Which groups have which roles in it, in an order of its own: the server's is random (observed).
    /// Of those that `wanted` agrees with.
    pub fn group_roles(&self, wanted: impl Fn(&str) -> bool) -> String {
        let groups = self.root.permissions.iter().flat_map(|permission| {
            let roles = permission.roles.join("+");
            let groups = permission.groups().into_iter().filter(|group| wanted(group));
            groups.map(|group| format!("{group}={roles}")).collect::<Vec<_>>()
        });
        let mut groups: Vec<_> = groups.collect();
        groups.sort_unstable();
        groups.join(",")
    }

    /// The server has given a group this role, and none other: so will it show it.
    pub fn give(&mut self, group: &str, role: &str) {
        self.root.permissions.retain(|permission| !permission.groups().contains(group));
        let display_name = group.to_owned();
        self.root.permissions.push(Permission {
            granted_to_identities: Vec::new(),
            granted_to_v2: Some(Identities { group: Some(Identity { display_name }) }),
            roles: vec![role.to_owned()],
        });
    }

    /// The roles that a group of this name has in it.
    pub fn roles_of_group<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let is_it = move |permission: &&Permission| permission.groups().contains(name);
        self.root.permissions.iter().filter(is_it).flat_map(|p| p.roles.iter().map(String::as_str))
    }
}

/// What is written on a drive: whose it is, which create made it, and whether it is in use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub tenant: TenantId,
    pub intent: Option<IntentId>,
    pub usage: Usage,
    /// Only in the description, and not in marks of before fleets had ids.
    pub fleet: Option<FleetId>,
}

/// Without the fleet: fingerprints are made of this.
impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, intent, usage, fleet: _ } = self;
        let mut shown = f.debug_struct("Mark");
        shown.field("tenant", tenant).field("intent", intent).field("usage", usage).finish()
    }
}

/// Both places that a mark can be in. Every manager of a space can change either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub alias: Option<Mark>,
    pub description: Option<Mark>,
}

impl Marks {
    pub fn name(&self, tenant: TenantId) -> bool {
        self.tenants().any(|named| named == tenant)
    }

    /// Another tenant that one of them names.
    pub fn another_than(&self, tenant: TenantId) -> Option<TenantId> {
        self.tenants().find(|named| *named != tenant)
    }

    /// As far as either says that it is not in use, it is not.
    pub fn usage(&self) -> Usage {
        self.all().map(|mark| mark.usage).find(|usage| *usage != Usage::InUse).unwrap_or_default()
    }

    /// Whether there are any, and all of them say that it was released.
    pub fn are_released(&self) -> bool {
        self.all().next().is_some() && self.all().all(|mark| mark.usage == Usage::Released)
    }

    /// The fleet that they name.
    pub fn fleet(&self) -> Option<FleetId> {
        self.description.and_then(|mark| mark.fleet)
    }

    pub fn intent(&self) -> Option<IntentId> {
        self.all().find_map(|mark| mark.intent)
    }

    /// Everybody whom they name.
    pub fn tenants(&self) -> impl Iterator<Item = TenantId> {
        self.all().map(|mark| mark.tenant)
    }

    fn all(&self) -> impl Iterator<Item = Mark> {
        self.alias.into_iter().chain(self.description)
    }
}

const ALIAS: &str = "tenantry/";
/// Of a released space: `tenantry-released/<slug>/<tenant>/<intent>`, so that a new tenant of that slug
/// finds it if it may.
const RELEASED: &str = "tenantry-released/";
const WORD: &str = "[tenantry ";

impl Mark {
    /// `tenantry/<tenant>/<intent>`: the alias is part of the space's address in the web interface.
    pub fn alias(&self, slug: &Slug) -> String {
        match self.usage {
            Usage::Released => format!("{RELEASED}{slug}/{}", self.ids()),
            Usage::InUse | Usage::Off => format!("{ALIAS}{}", self.ids()),
        }
    }

    /// `[tenantry <tenant>/<intent> <fleet>]`, beside whatever people write.
    pub fn word(self) -> String {
        format!("{WORD}{}{}]", self.ids(), self.usage.words(self.fleet))
    }

    /// Whether `found` says this. An older one, without the fleet, does.
    pub fn is_said_by(self, found: Option<Self>) -> bool {
        found.is_some_and(|found| found == self || found == Self { fleet: None, ..self })
    }

    fn ids(self) -> String {
        match self.intent {
            Some(intent) => format!("{}/{intent}", self.tenant),
            None => self.tenant.to_string(),
        }
    }

    /// What people wrote, with this mark instead of any other.
    pub fn describe(self, before: Option<&str>) -> String {
        with_word(before, &self.word())
    }

    fn from_alias(alias: &str) -> Option<Self> {
        match released_slug(alias) {
            Some((_, ids)) => Self::parse(ids, Usage::Released),
            // Whether it is switched off, the description says: this is its address.
            None => Self::parse(alias.strip_prefix(ALIAS)?, Usage::InUse),
        }
    }

    fn from_description(description: &str) -> Option<Self> {
        let (_, rest) = description.split_once(WORD)?;
        let mut words = rest.split_once(']')?.0.split(' ');
        let ids = words.next()?;
        let (usage, fleet) = Usage::from_words(words)?;
        Some(Self { fleet, ..Self::parse(ids, usage)? })
    }

    fn parse(text: &str, usage: Usage) -> Option<Self> {
        let (tenant, intent) = match text.split_once('/') {
            Some((tenant, intent)) => (tenant, Some(intent.parse().ok()?)),
            None => (text, None),
        };
        Some(Self { tenant: tenant.parse().ok()?, intent, usage, fleet: None })
    }
}

/// What people wrote, with this word at its end instead of any mark.
pub fn with_word(before: Option<&str>, word: &str) -> String {
    let text = before.unwrap_or_default();
    let text = match text.split_once(WORD) {
        Some((before, rest)) => {
            let after = rest.split_once(']').map_or("", |(_, after)| after);
            format!("{}{after}", before.trim_end())
        }
        None => text.to_owned(),
    };
    format!("{} {word}", text.trim()).trim().to_owned()
}

/// Of a released space's alias, the slug of the tenant that released it, and the rest.
fn released_slug(alias: &str) -> Option<(&str, &str)> {
    alias.strip_prefix(RELEASED)?.split_once('/')
}

/// Characters that no space name may hold (observed, with both flavours).
const FORBIDDEN: [char; 10] = ['/', '\\', '.', ':', '?', '*', '"', '>', '<', '|'];
/// The longest space name, in bytes (observed).
const LONGEST: usize = 255;

/// The tenant's name as a space may be called: forbidden characters become `-`, and it ends at 255
/// bytes.
pub fn legal_name(name: &TenantName, otherwise: &str) -> String {
    let mut legal: String =
        name.as_str().chars().map(|c| if FORBIDDEN.contains(&c) { '-' } else { c }).collect();
    while legal.len() > LONGEST {
        legal.pop();
    }
    let legal = legal.trim_matches(|c: char| c == '-' || c.is_whitespace());
    if legal.is_empty() { otherwise.to_owned() } else { legal.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mark() -> Mark {
        let intent = Some(IntentId::from_bytes([2; 12]));
        Mark { tenant: TenantId::from_bytes([1; 12]), intent, usage: Usage::InUse, fleet: None }
    }

    fn slug() -> Slug {
        "acme".parse().unwrap()
    }

    #[test]
    fn a_mark_survives_being_written_to_either_place() {
        for mark in [mark(), Mark { intent: None, ..mark() }] {
            assert_eq!(Mark::from_alias(&mark.alias(&slug())), Some(mark));
            assert_eq!(Mark::from_description(&mark.describe(None)), Some(mark));
            assert_eq!(Mark::from_description(&mark.describe(Some("Our files"))), Some(mark));
        }
        for usage in [Usage::InUse, Usage::Off, Usage::Released] {
            let mark = Mark { usage, fleet: Some(FleetId::from_bytes([3; 6])), ..mark() };
            assert_eq!(Mark::from_description(&mark.describe(Some("Our files"))), Some(mark));
        }
        let released = Mark { usage: Usage::Released, ..mark() };
        assert_eq!(Mark::from_alias(&released.alias(&slug())), Some(released));
        for foreign in ["project/acme", "tenantry/", "tenantry/xyz", "tenantry/0101/02"] {
            assert_eq!(Mark::from_alias(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_people_wrote_stays_beside_the_mark_and_there_is_only_one() {
        let mark = mark();
        let once = mark.describe(Some("Our files."));
        assert_eq!(once, format!("Our files. [tenantry {}/{}]", mark.tenant, mark.intent.unwrap()));
        assert_eq!(mark.describe(Some(&once)), once);
        let other = Mark { tenant: TenantId::from_bytes([9; 12]), intent: None, ..mark };
        assert_eq!(mark.describe(Some(&other.describe(Some("Our files.")))), once);
        assert_eq!(
            mark.describe(Some(&format!("{once} More."))),
            format!("Our files. More. {}", mark.word())
        );
    }

    #[test]
    fn a_groups_role_is_read_from_either_form_of_identities_and_is_the_same_in_both() {
        let drive = |permission: Value| -> Drive {
            let root = json!({ "permissions": [permission] });
            serde_json::from_value(json!({ "id": "a$b", "root": root })).unwrap()
        };
        let group = json!({ "group": { "displayName": "tenant-acme", "id": "1" } });
        let roles = json!(["editor"]);
        for permission in [
            json!({ "grantedToIdentities": [group], "roles": roles }),
            json!({ "grantedToIdentities": [group], "grantedToV2": group, "roles": roles }),
            json!({ "grantedToV2": group, "roles": roles }),
            json!({ "grantedToIdentities": null, "grantedToV2": group, "roles": roles }),
        ] {
            let drive = drive(permission);
            assert_eq!(drive.roles_of_group("tenant-acme").collect::<Vec<_>>(), ["editor"]);
            assert_eq!(drive.group_roles(|_| true), "tenant-acme=editor");
        }
    }

    #[test]
    fn a_field_that_is_null_says_nothing() {
        let odd = json!({ "id": "a$b", "name": null, "driveType": null, "quota": null, "root": null });
        let drive: Drive = serde_json::from_value(odd).unwrap();
        assert_eq!((drive.name.as_str(), drive.quota.total, drive.is_disabled()), ("", None, false));
        let without_an_id = serde_json::from_value::<Drive>(json!({ "id": null }));
        assert!(without_an_id.is_err(), "what has no id is no drive");
    }

    #[test]
    fn a_name_is_made_legal_and_stays_one() {
        let legal = |name: &str| legal_name(&name.parse().unwrap(), "acme");
        assert_eq!(legal("Acme Corporation"), "Acme Corporation");
        assert_eq!(legal("Acme Inc."), "Acme Inc");
        assert_eq!(legal("a/b: c.d?"), "a-b- c-d");
        assert_eq!(legal("..."), "acme");
        let long = legal(&"ü".repeat(200));
        assert_eq!(long.len(), 254);
        assert!(long.chars().all(|c| c == 'ü'));
    }
}
