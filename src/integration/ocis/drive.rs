//! A drive (a space) as LibreGraph shows it, the marks that it carries, and the names that it may have.

use serde::Deserialize;

use crate::integration::Usage;
use crate::tenant::{IntentId, Slug, TenantId, TenantName};

/// A drive, as far as we look at it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drive {
    pub id: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub drive_alias: Option<String>,
    /// Absent when it is empty (observed).
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub drive_type: String,
    #[serde(default)]
    pub quota: Quota,
    #[serde(default)]
    pub root: Root,
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
    #[serde(default)]
    pub permissions: Vec<Permission>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Deleted {
    #[serde(default)]
    pub state: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Permission {
    #[serde(default)]
    pub granted_to_identities: Vec<Identities>,
    #[serde(default)]
    pub roles: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Identities {
    #[serde(default)]
    pub group: Option<Identity>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    #[serde(default)]
    pub display_name: String,
}

impl Drive {
    /// Whether somebody disabled it. It is still listed, and can be restored.
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

    /// Whether a tenant of this slug released it.
    pub fn was_released_by(&self, slug: &Slug) -> bool {
        let alias = self.drive_alias.as_deref().and_then(released_slug);
        alias.is_some_and(|(released, _)| released == slug.as_str())
    }

    /// Which groups have which roles in it, in an order of its own: the server's is random (observed).
    pub fn group_roles(&self) -> String {
        let groups = self.root.permissions.iter().flat_map(|permission| {
            let roles = permission.roles.join("+");
            let groups = permission.granted_to_identities.iter().filter_map(|who| who.group.as_ref());
            groups.map(move |group| format!("{}={roles}", group.display_name))
        });
        let mut groups: Vec<_> = groups.collect();
        groups.sort_unstable();
        groups.join(",")
    }

    /// The roles that a group of this name has in it.
    pub fn roles_of_group<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let is_it = move |permission: &&Permission| {
            permission.granted_to_identities.iter().any(|identities| {
                identities.group.as_ref().is_some_and(|group| group.display_name == name)
            })
        };
        self.root.permissions.iter().filter(is_it).flat_map(|p| p.roles.iter().map(String::as_str))
    }
}

/// What is written on a drive: whose it is, which create made it, and whether it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub tenant: TenantId,
    pub intent: Option<IntentId>,
    pub usage: Usage,
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

    /// `[tenantry <tenant>/<intent>]`, beside whatever people write.
    fn word(&self) -> String {
        match self.usage {
            Usage::InUse => format!("{WORD}{}]", self.ids()),
            usage => format!("{WORD}{} {}]", self.ids(), usage.name()),
        }
    }

    fn ids(&self) -> String {
        match self.intent {
            Some(intent) => format!("{}/{intent}", self.tenant),
            None => self.tenant.to_string(),
        }
    }

    /// What people wrote, with this mark instead of any other.
    pub fn describe(&self, before: Option<&str>) -> String {
        let text = before.unwrap_or_default();
        let text = match text.split_once(WORD) {
            Some((before, rest)) => {
                let after = rest.split_once(']').map_or("", |(_, after)| after);
                format!("{}{after}", before.trim_end())
            }
            None => text.to_owned(),
        };
        format!("{} {}", text.trim(), self.word()).trim().to_owned()
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
        let word = rest.split_once(']')?.0;
        match word.split_once(' ') {
            Some((ids, usage)) => Self::parse(ids, Usage::parse(usage)?),
            None => Self::parse(word, Usage::InUse),
        }
    }

    fn parse(text: &str, usage: Usage) -> Option<Self> {
        let (tenant, intent) = match text.split_once('/') {
            Some((tenant, intent)) => (tenant, Some(intent.parse().ok()?)),
            None => (text, None),
        };
        Some(Self { tenant: tenant.parse().ok()?, intent, usage })
    }
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
    use super::*;

    fn mark() -> Mark {
        let intent = Some(IntentId::from_bytes([2; 12]));
        Mark { tenant: TenantId::from_bytes([1; 12]), intent, usage: Usage::InUse }
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
        for usage in [Usage::Off, Usage::Released] {
            let mark = Mark { usage, ..mark() };
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
        let other = Mark { tenant: TenantId::from_bytes([9; 12]), intent: None, usage: Usage::InUse };
        assert_eq!(mark.describe(Some(&other.describe(Some("Our files.")))), once);
        assert_eq!(
            mark.describe(Some(&format!("{once} More."))),
            format!("Our files. More. {}", mark.word())
        );
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
