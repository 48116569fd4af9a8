//! `x:Account` and `x:MailingList`: as much of them as it takes to hold a domain, and an address.

use serde_json::{Map, Value, json};

use super::domain::{
    is_known_property, read_set, reference, text_or_null, unknown_property, variant, words,
};
use super::error::{SetError, invalid_object, invalid_patch, invalid_value, required};
use super::id::Id;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    User,
    Group,
    List,
}

#[derive(Debug, Clone)]
pub struct Mailbox {
    pub kind: Kind,
    pub name: String,
    pub domain: Id,
    properties: Map<String, Value>,
}

const QUOTAS: [&str; 19] = [
    "maxEmails",
    "maxMailboxes",
    "maxEmailSubmissions",
    "maxEmailIdentities",
    "maxParticipantIdentities",
    "maxSieveScripts",
    "maxPushSubscriptions",
    "maxCalendars",
    "maxCalendarEvents",
    "maxCalendarEventNotifications",
    "maxAddressBooks",
    "maxContactCards",
    "maxFiles",
    "maxFolders",
    "maxMaskedAddresses",
    "maxAppPasswords",
    "maxApiKeys",
    "maxPublicKeys",
    "maxDiskQuota",
];

impl Mailbox {
    fn blank(kind: Kind, created_at: &str) -> Self {
        let mut properties = json!({ "aliases": {}, "description": null, "memberTenantId": null });
        match kind {
            Kind::List => properties["recipients"] = json!({}),
            Kind::User | Kind::Group => {
                for (name, value) in [
                    ("createdAt", json!(created_at)),
                    ("quotas", json!({})),
                    ("permissions", json!({ "@type": "Inherit" })),
                    ("locale", json!("en_US")),
                    ("timeZone", Value::Null),
                    ("usedDiskQuota", json!(0)),
                ] {
                    properties[name] = value;
                }
            }
        }
        match kind {
            Kind::User => {
                properties["@type"] = json!("User");
                properties["credentials"] = json!({});
                properties["memberGroupIds"] = json!({});
                properties["roles"] = json!({ "@type": "User" });
                properties["encryptionAtRest"] = json!({ "@type": "Disabled" });
            }
            Kind::Group => {
                properties["@type"] = json!("Group");
                properties["roles"] = json!({ "@type": "Default" });
            }
            Kind::List => {}
        }
        let properties = properties.as_object().cloned().unwrap_or_default();
        Self { kind, name: String::new(), domain: Id(0), properties }
    }

    pub fn create_account(given: &Map<String, Value>, created_at: &str) -> Result<Self, SetError> {
        let kind = match given.get("@type").and_then(Value::as_str) {
            Some("User") => Kind::User,
            Some("Group") => Kind::Group,
            _ => return Err(invalid_patch("Missing or invalid '@type' property in object", "")),
        };
        Self::blank(kind, created_at).filled(given)
    }

    pub fn create_list(given: &Map<String, Value>) -> Result<Self, SetError> {
        Self::blank(Kind::List, "").filled(given)
    }

    fn filled(mut self, given: &Map<String, Value>) -> Result<Self, SetError> {
        self.apply(given, true)?;
        for (property, missing) in [("name", self.name.is_empty()), ("domainId", self.domain == Id(0))] {
            if missing {
                return Err(required(property));
            }
        }
        Ok(self)
    }

    pub fn apply(&mut self, patch: &Map<String, Value>, creating: bool) -> Result<(), SetError> {
        for (path, value) in patch {
            match path.split_once('/') {
                Some(("quotas", quota)) if !creating && self.has("quotas") => {
                    let mut quotas = self.properties["quotas"].as_object().cloned().unwrap_or_default();
                    match value {
                        Value::Null => quotas.remove(quota),
                        _ => quotas.insert(quota.to_owned(), value.clone()),
                    };
                    self.set("quotas", &quotas.into(), creating)?;
                }
                Some(_) => return Err(unknown_property(path, creating)),
                None => self.set(path, value, creating)?,
            }
        }
        Ok(())
    }

    fn has(&self, property: &str) -> bool {
        self.properties.contains_key(property)
    }

    fn set(&mut self, property: &str, value: &Value, creating: bool) -> Result<(), SetError> {
        let server_set = matches!(property, "createdAt" | "usedDiskQuota" | "emailAddress");
        if server_set && (self.has(property) || property == "emailAddress") {
            return Err(invalid_patch("Cannot modify server set property", property));
        }
        match property {
            "name" => {
                let name = value.as_str().filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| invalid_value(property))?.to_lowercase();
                if name.contains(|c: char| c == '@' || c.is_whitespace()) {
                    return Err(invalid_patch("Invalid email local part", property));
                }
                self.name = name;
                return Ok(());
            }
            "domainId" => {
                let id = value.as_str().and_then(|id| id.parse().ok());
                let text = "Failed to parse Id from string";
                self.domain = id.ok_or_else(|| invalid_patch(text, property))?;
                return Ok(());
            }
            _ if !self.has(property) => return Err(unknown_property(property, creating)),
            "@type" => {
                if *value != self.properties["@type"] {
                    let text = "Cannot change the type of an existing account.";
                    let properties = [property];
                    return Err(json!({
                        "type": "invalidProperties", "description": text, "properties": properties,
                    }));
                }
            }
            "description" => _ = text_or_null(property, value)?,
            "recipients" => _ = read_set(property, value)?,
            // There are no groups to be a member of, and no tenants.
            "memberTenantId" => reference("Tenant", property, value)?,
            "quotas" => {
                let Value::Object(quotas) = value else { return Err(invalid_object(property)) };
                if quotas.keys().any(|quota| !QUOTAS.contains(&quota.as_str())) {
                    return Err(invalid_patch("Invalid key for object property", property));
                }
                if quotas.values().any(|quota| !quota.is_u64()) {
                    return Err(invalid_value(property));
                }
            }
            "roles" if self.kind == Kind::User => {
                variant(property, value, &["User", "Admin", "Custom"])?;
            }
            "roles" => _ = variant(property, value, &["Default", "Custom"])?,
            "permissions" => _ = variant(property, value, &["Inherit", "Merge", "Replace"])?,
            "credentials" => {
                self.properties.insert(property.into(), credentials(value)?);
                return Ok(());
            }
            // Not simulated further: only what it is already.
            _ if *value == self.properties[property] => {}
            _ => return Err(invalid_object(property)),
        }
        self.properties.insert(property.to_owned(), value.clone());
        Ok(())
    }

    /// Whether creating it takes the permissions of the default role: unless it is given others.
    pub fn takes_default_role(&self) -> bool {
        let is = |property: &str, kind: &str| {
            self.properties.get(property).is_some_and(|value| value["@type"] == kind)
        };
        self.kind != Kind::List && !is("roles", "Custom") && !is("permissions", "Replace")
    }

    /// The permissions that were given in place of those of its role, if any were.
    pub fn replaced_permissions(&self) -> Option<impl Iterator<Item = &str>> {
        let given = self.properties.get("permissions").filter(|given| given["@type"] == "Replace")?;
        Some(
            given["enabledPermissions"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()),
        )
    }

    pub fn words(&self) -> impl Iterator<Item = String> {
        let description = self.properties.get("description").and_then(Value::as_str);
        words(&self.name).chain(words(description.unwrap_or_default()))
    }

    pub fn show(&self, id: Id, domain: &str, wanted: impl Fn(&str) -> bool) -> Value {
        let mut shown = self.properties.clone();
        shown.insert("name".into(), json!(self.name));
        shown.insert("domainId".into(), json!(self.domain.to_string()));
        shown.insert("emailAddress".into(), json!(format!("{}@{domain}", self.name)));
        shown.retain(|name, _| wanted(name));
        shown.insert("id".into(), json!(id.to_string()));
        shown.into()
    }
}

/// Credentials as they are read again: the secret is gone.
fn credentials(value: &Value) -> Result<Value, SetError> {
    let Value::Object(given) = value else { return Err(invalid_object("credentials")) };
    let mut kept = Map::new();
    for (place, credential) in given {
        variant("credentials", credential, &["Password"])?;
        for key in credential.as_object().into_iter().flatten().map(|(key, _)| key.as_str()) {
            match key {
                "credentialId" => {
                    let path = "credentials/credentialId";
                    return Err(invalid_patch("Cannot modify server set property", path));
                }
                _ if !is_known_property(key) => {
                    return Err(invalid_patch("Invalid key for object property", "credentials"));
                }
                _ => {}
            }
        }
        let secret = credential["secret"].as_str().unwrap_or_default();
        if secret.len() < 8 {
            let text = "Password must be at least 8 characters long.";
            let properties = ["secret"];
            return Err(json!({
                "type": "invalidProperties", "description": text, "properties": properties,
            }));
        }
        kept.insert(
            place.clone(),
            json!({
                "@type": "Password", "credentialId": "a", "secret": "****",
                "expiresAt": null, "allowedIps": {},
            }),
        );
    }
    Ok(kept.into())
}
