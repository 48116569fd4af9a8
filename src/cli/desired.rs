//! The desired state: its fields, and as flags.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::tenant::Slug;

/// Whether the tenant takes over what was not made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Adopt {
    /// A group or mail domain of its name that carries no mark, and what a former tenant released
    Yes,
    /// Nothing
    No,
    /// As the setting ADOPT_UNMARKED says
    Default,
}

impl Adopt {
    fn value(self) -> Value {
        match self {
            Self::Yes => json!(true),
            Self::No => json!(false),
            Self::Default => Value::Null,
        }
    }
}

pub const SERVICES: [&str; 3] = ["authentik", "stalwart", "ocis"];

/// The fields of a new tenant.
#[derive(Debug, Args)]
pub struct Given {
    /// The tenant's name for people
    #[arg(long)]
    name: String,
    /// Its mail domain; without one it has no mail
    #[arg(long)]
    domain: Option<String>,
    /// Storage of its space, such as 10GB, 512MiB, a number of bytes, or unlimited
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    quota: Option<i64>,
    /// Services that it shall not have, separated by commas
    #[arg(long, value_name = "SERVICES", value_delimiter = ',', value_parser = SERVICES)]
    disable: Vec<String>,
    /// Whether it takes over what was not made for it
    #[arg(long, value_enum, value_name = "WHETHER")]
    adopt: Option<Adopt>,
}

impl Given {
    pub fn body(&self, slug: &Slug) -> Value {
        let mut body = json!({ "slug": slug.as_str(), "name": self.name });
        if let Some(domain) = &self.domain {
            body["domain"] = json!(domain);
        }
        if let Some(bytes) = self.quota {
            body["quota"] = json!({ "storageBytes": bytes });
        }
        for service in &self.disable {
            body["services"][service] = json!(false);
        }
        if let Some(adopt) = self.adopt {
            body["adopt"] = adopt.value();
        }
        body
    }
}

/// Changes of a tenant. Without any, an editor is opened.
#[derive(Debug, Args)]
pub struct Changes {
    /// The tenant's name for people
    #[arg(long)]
    name: Option<String>,
    /// Its mail domain
    #[arg(long, conflicts_with = "no_domain")]
    domain: Option<String>,
    /// Remove its mail domain
    #[arg(long)]
    no_domain: bool,
    /// Storage of its space, such as 10GB, 512MiB, a number of bytes, or unlimited
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE", conflicts_with = "no_quota")]
    quota: Option<i64>,
    /// Set no quota: one that was set before is taken away, and the server's or a person's stays
    #[arg(long)]
    no_quota: bool,
    /// Services that it shall have, separated by commas
    #[arg(long, value_name = "SERVICES", value_delimiter = ',', value_parser = SERVICES)]
    enable: Vec<String>,
    /// Services that it shall not have
    #[arg(long, value_name = "SERVICES", value_delimiter = ',', value_parser = SERVICES)]
    disable: Vec<String>,
    /// Whether it takes over what was not made for it
    #[arg(long, value_enum, value_name = "WHETHER")]
    adopt: Option<Adopt>,
}

impl Changes {
    /// As a JSON merge patch; `None` when there are none.
    pub fn patch(&self) -> Option<Value> {
        let mut patch = Map::new();
        if let Some(name) = &self.name {
            patch.insert("name".into(), json!(name));
        }
        if self.no_domain || self.domain.is_some() {
            patch.insert("domain".into(), json!(self.domain));
        }
        if self.no_quota || self.quota.is_some() {
            patch.insert("quota".into(), json!({ "storageBytes": self.quota }));
        }
        let on = self.enable.iter().map(|service| (service.clone(), json!(true)));
        let off = self.disable.iter().map(|service| (service.clone(), json!(false)));
        let services: Map<_, _> = on.chain(off).collect();
        if !services.is_empty() {
            patch.insert("services".into(), services.into());
        }
        if let Some(adopt) = self.adopt {
            patch.insert("adopt".into(), adopt.value());
        }
        (!patch.is_empty()).then_some(Value::Object(patch))
    }
}

/// The fields of the desired state, as the API names them.
pub const FIELDS: [&str; 6] = ["name", "domain", "quota", "services", "paused", "adopt"];

/// A tenant's desired state, out of all that the API says of it.
pub fn spec(tenant: &Value) -> Value {
    FIELDS
        .iter()
        .map(|field| ((*field).to_owned(), tenant[*field].clone()))
        .collect::<Map<_, _>>()
        .into()
}

/// `10GB`, `512MiB`, `1000`, `unlimited`.
fn parse_bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("must be a size such as 10GB, 512MiB or unlimited, not {text:?}");
    if text == "unlimited" {
        return Ok(0);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor: i64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    digits.parse::<i64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("10GB", 10_000_000_000),
            ("512 MiB", 536_870_912),
            ("7", 7),
            ("unlimited", 0),
            ("1tb", 1_000_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "GB", "-1", "1.5GB", "10XB", "99999999999TB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
