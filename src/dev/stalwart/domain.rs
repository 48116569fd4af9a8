//! `x:Domain`: its properties, which names it takes, and how a patch changes it.

use std::collections::BTreeSet;

use psl::Psl;
use serde_json::{Map, Value, json};

use super::error::{SetError, invalid_object, invalid_patch, invalid_value, no_such, required};
use super::id::Id;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Domain {
    pub name: String,
    pub aliases: BTreeSet<String>,
    pub description: Option<String>,
    pub disabled: bool,
    pub created_at: String,
    /// Further properties where they differ from what [`default`] says, to keep 100,000 domains small.
    others: Map<String, Value>,
}

/// Every property name of the objects in the notes. The server tells a name that belongs to some other
/// object from one that it has never heard of (observed).
const KNOWN: [&str; 60] = [
    "@type",
    "algorithms",
    "aliases",
    "allowRelaying",
    "allowedIps",
    "auid",
    "canonicalization",
    "catchAllAddress",
    "certificateManagement",
    "clientId",
    "contacts",
    "createdAt",
    "credentialId",
    "credentials",
    "deleteAfter",
    "description",
    "directoryId",
    "disabledPermissions",
    "dkimManagement",
    "dnsManagement",
    "dnsZoneFile",
    "domainId",
    "email",
    "emailAddress",
    "enabled",
    "enabledPermissions",
    "encryptionAtRest",
    "expire",
    "expiresAt",
    "headers",
    "id",
    "isEnabled",
    "locale",
    "logo",
    "memberGroupIds",
    "memberTenantId",
    "name",
    "nextTransitionAt",
    "otpAuth",
    "permissions",
    "privateKey",
    "publicKey",
    "quotas",
    "recipients",
    "redirectUris",
    "report",
    "reportAddressUri",
    "retireAfter",
    "roleIds",
    "roles",
    "rotateAfter",
    "secret",
    "selector",
    "selectorTemplate",
    "stage",
    "subAddressing",
    "thirdParty",
    "thirdPartyHash",
    "timeZone",
    "usedDiskQuota",
];

pub fn is_known_property(name: &str) -> bool {
    KNOWN.binary_search(&name).is_ok()
}

/// The refusal of a property that the object does not have.
pub fn unknown_property(name: &str, creating: bool) -> SetError {
    if creating && !is_known_property(name) {
        invalid_patch("Invalid key for object", "")
    } else {
        invalid_patch("Invalid property", name)
    }
}

fn default(property: &str) -> Option<Value> {
    Some(match property {
        "certificateManagement" | "dnsManagement" => json!({ "@type": "Manual" }),
        "dkimManagement" => automatic_dkim(),
        "subAddressing" => json!({ "@type": "Enabled" }),
        "allowRelaying" => json!(false),
        "reportAddressUri" => json!("mailto:postmaster"),
        "catchAllAddress" | "directoryId" | "logo" | "memberTenantId" => Value::Null,
        _ => return None,
    })
}

const OTHERS: [&str; 9] = [
    "allowRelaying",
    "catchAllAddress",
    "certificateManagement",
    "directoryId",
    "dkimManagement",
    "dnsManagement",
    "logo",
    "memberTenantId",
    "reportAddressUri",
];

fn automatic_dkim() -> Value {
    json!({
        "@type": "Automatic",
        "algorithms": { "Dkim1Ed25519Sha256": true, "Dkim1RsaSha256": true },
        "selectorTemplate": "v{version}-{algorithm}-{date-%Y%m%d}",
        "rotateAfter": 7_776_000_000_u64, "retireAfter": 604_800_000, "deleteAfter": 2_592_000_000_u64,
    })
}

impl Domain {
    pub fn has_automatic_dkim(&self) -> bool {
        self.others.get("dkimManagement").is_none_or(|value| value["@type"] == "Automatic")
    }

    /// Words by which `text` finds it: of its name and of its description.
    pub fn words(&self) -> BTreeSet<String> {
        words(&self.name).chain(self.description.iter().flat_map(|text| words(text))).collect()
    }

    /// As `/get` shows it; `wanted` says which properties, and is asked before costly ones are made.
    pub fn show(&self, id: Id, wanted: impl Fn(&str) -> bool) -> Value {
        let mut shown = Map::new();
        let mut put = |name: &str, value: &dyn Fn() -> Value| {
            if wanted(name) {
                shown.insert(name.to_owned(), value());
            }
        };
        put("name", &|| json!(self.name));
        put("aliases", &|| set(&self.aliases));
        put("description", &|| json!(self.description));
        put("isEnabled", &|| json!(!self.disabled));
        put("createdAt", &|| json!(self.created_at));
        put("dnsZoneFile", &|| json!(self.zone_file()));
        for name in OTHERS.into_iter().chain(["subAddressing"]) {
            put(name, &|| self.others.get(name).cloned().or_else(|| default(name)).unwrap_or_default());
        }
        shown.insert("id".into(), json!(id.to_string()));
        Value::Object(shown)
    }

    /// In kind and length what the server builds anew at every `/get` that does not leave it out.
    fn zone_file(&self) -> String {
        const HOST: &str = "mail.example.org";
        let name = &self.name;
        let mut zone = format!(
            "{name}. IN TXT \"v=spf1 mx -all\"\n{name}. IN MX 10 {HOST}.\n\
             _dmarc.{name}. IN TXT \"v=DMARC1; p=reject; rua=mailto:postmaster@{name}\"\n"
        );
        for (service, port) in [
            ("caldavs", 443),
            ("carddavs", 443),
            ("imaps", 993),
            ("jmap", 443),
            ("pop3s", 995),
            ("submissions", 465),
        ] {
            zone += &format!("_{service}._tcp.{name}. IN SRV 0 1 {port} {HOST}.\n");
        }
        for host in ["mta-sts", "ua-auto-config", "autoconfig", "autodiscover"] {
            zone += &format!("{host}.{name}. IN CNAME {HOST}.\n");
        }
        zone + &format!("_mta-sts.{name}. IN TXT \"v=STSv1; id=138449342089700316\"\n")
    }

    /// A new one from what a create says.
    pub fn create(properties: &Map<String, Value>, created_at: String) -> Result<Self, SetError> {
        let mut domain = Self { created_at, ..Self::default() };
        domain.apply(properties, true)?;
        if domain.name.is_empty() {
            return Err(required("name"));
        }
        Ok(domain)
    }

    pub fn apply(&mut self, patch: &Map<String, Value>, creating: bool) -> Result<(), SetError> {
        for (path, value) in patch {
            let (property, key) = match path.split_once('/') {
                Some((property, key)) if !creating => (property, Some(key)),
                _ => (path.as_str(), None),
            };
            if let Some(key) = key {
                if property != "aliases" {
                    return Err(unknown_property(path, creating));
                }
                let alias = normalize(key, "aliases")?;
                match value {
                    Value::Bool(true) => self.aliases.insert(alias),
                    Value::Null => self.aliases.remove(&alias),
                    _ => return Err(invalid_object("aliases")),
                };
                continue;
            }
            self.set(property, value, creating)?;
        }
        Ok(())
    }

    fn set(&mut self, property: &str, value: &Value, creating: bool) -> Result<(), SetError> {
        match property {
            "name" => self.name = normalize(value.as_str().unwrap_or_default(), "name")?,
            "description" => self.description = text_or_null(property, value)?,
            "isEnabled" => self.disabled = !boolean(property, value)?,
            "aliases" => {
                let members = read_set(property, value)?;
                self.aliases = members
                    .into_iter()
                    .map(|name| normalize(name, property))
                    .collect::<Result<_, _>>()?;
            }
            "createdAt" | "dnsZoneFile" => {
                return Err(invalid_patch("Cannot modify server set property", property));
            }
            "allowRelaying" => self.put(property, json!(boolean(property, value)?)),
            "logo" | "reportAddressUri" => self.put(property, json!(text_or_null(property, value)?)),
            "catchAllAddress" => {
                let address = text_or_null(property, value)?;
                if address.as_ref().is_some_and(|address| !address.contains('@')) {
                    return Err(invalid_value(property));
                }
                self.put(property, json!(address));
            }
            "memberTenantId" => reference("Tenant", property, value)?,
            "directoryId" => reference("Directory", property, value)?,
            "subAddressing" => self.put(property, variant(property, value, &["Enabled", "Disabled"])?),
            // Automatic ones point at providers, of which there are none here.
            "certificateManagement" | "dnsManagement" => {
                self.put(property, variant(property, value, &["Manual"])?);
            }
            "dkimManagement" => self.put(property, dkim_management(value)?),
            _ => return Err(unknown_property(property, creating)),
        }
        Ok(())
    }

    fn put(&mut self, property: &str, value: Value) {
        if default(property).as_ref() == Some(&value) {
            self.others.remove(property);
        } else {
            self.others.insert(property.to_owned(), value);
        }
    }
}

fn dkim_management(value: &Value) -> Result<Value, SetError> {
    let chosen = variant("dkimManagement", value, &["Automatic", "Manual"])?;
    if chosen["@type"] == "Manual" {
        return Ok(json!({ "@type": "Manual" }));
    }
    let mut full = automatic_dkim();
    for (name, value) in chosen.as_object().into_iter().flatten() {
        match full.get_mut(name) {
            Some(place) => *place = value.clone(),
            None => return Err(invalid_patch("Invalid key for object property", "dkimManagement")),
        }
    }
    Ok(full)
}

/// Words as the index knows them: runs of letters and digits.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

pub fn set<'a>(members: impl IntoIterator<Item = &'a String>) -> Value {
    members.into_iter().map(|member| (member.clone(), json!(true))).collect::<Map<_, _>>().into()
}

/// Sets are objects `{"member": true}`; arrays are refused (observed).
pub fn read_set<'a>(property: &str, value: &'a Value) -> Result<Vec<&'a str>, SetError> {
    let Value::Object(members) = value else { return Err(invalid_object(property)) };
    if members.values().any(|value| *value != true) {
        return Err(invalid_object(property));
    }
    Ok(members.keys().map(String::as_str).collect())
}

/// A text that is not empty, or null; kept as it is.
pub fn text_or_null(property: &str, value: &Value) -> Result<Option<String>, SetError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if !text.is_empty() => Ok(Some(text.clone())),
        _ => Err(invalid_value(property)),
    }
}

fn boolean(property: &str, value: &Value) -> Result<bool, SetError> {
    let text = "Invalid value for boolean property (expected true or false)";
    value.as_bool().ok_or_else(|| invalid_patch(text, property))
}

/// An object whose `@type` is one of these.
pub fn variant(property: &str, value: &Value, types: &[&str]) -> Result<Value, SetError> {
    let Value::Object(_) = value else { return Err(invalid_object(property)) };
    if value["@type"].as_str().is_some_and(|kind| types.contains(&kind)) {
        return Ok(value.clone());
    }
    Err(invalid_patch("Missing or invalid '@type' property in object", property))
}

/// An id of something of which there is none here.
pub fn reference(object: &str, property: &str, value: &Value) -> Result<(), SetError> {
    match value {
        Value::Null => Ok(()),
        Value::String(id) if id.parse::<Id>().is_ok() => Err(no_such(object, id)),
        _ => Err(invalid_patch("Failed to parse Id from string", property)),
    }
}

/// Top levels without a public suffix that are taken nevertheless (from the server's source).
const SPECIAL: [&str; 10] = [
    "corp",
    "home",
    "internal",
    "intranet",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "private",
    "test",
];
/// The name as the server keeps it: lower case, no white space, in ASCII; or its refusal. Labels are
/// hardly looked at: `-bad-.test` and `a@b.test` are domains to it (observed).
fn normalize(name: &str, property: &str) -> Result<String, SetError> {
    if name.is_empty() {
        return Err(invalid_value(property));
    }
    let refused = || invalid_patch("Invalid domain name", property);
    let mut name: String =
        name.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase();
    if !name.is_ascii() {
        name = idna::domain_to_ascii(&name).map_err(|_| refused())?;
    }
    let last = name.rsplit_once('.').map(|(_, last)| last).ok_or_else(refused)?;
    let public = psl::List.suffix(name.as_bytes()).is_some_and(|suffix| suffix.is_known());
    if !(public || SPECIAL.contains(&last))
        || name.split('.').any(str::is_empty)
        || name.contains(['"', '*'])
    {
        return Err(refused());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_properties_are_sorted() {
        assert!(KNOWN.is_sorted());
    }

    /// The sweep in the notes.
    #[test]
    fn names_are_taken_and_refused_as_by_the_real_server() {
        for (given, kept) in [
            ("Globex.Test", "globex.test"),
            ("-bad-.test", "-bad-.test"),
            ("has space.test", "hasspace.test"),
            ("under_score.test", "under_score.test"),
            ("a@b.test", "a@b.test"),
            ("bücher.test", "xn--bcher-kva.test"),
            ("foo/bar.test", "foo/bar.test"),
            ("semi;colon.test", "semi;colon.test"),
            ("t1.mail.svc.cluster.local", "t1.mail.svc.cluster.local"),
            ("co.uk", "co.uk"),
        ] {
            assert_eq!(normalize(given, "name").unwrap(), kept);
        }
        for refused in [
            "",
            "nodot",
            "foo..test",
            "foo.test.",
            "acme.example",
            "foo.invalid",
            "foo.nosuchtld",
            "*.wild.test",
            "1.2.3.4",
            "foo.test/../x",
            "quote\".test",
            "bad name",
        ] {
            assert!(normalize(refused, "name").is_err(), "{refused}");
        }
    }
}
