//! Tenants as people and programs describe them in files: one document each, with the fields of the API.
//!
//! # Guarantees
//!
//! * All documents are read and checked before anything is sent, and all that is wrong with them is told at once,
//!   each with its place.
//! * What the API says of a tenant is such a document: fields that only the controller sets are left out. Any other
//!   field that no tenant has is a mistake.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::desired::SERVICES;
use super::document::{self, Document, Place};
use super::failure::Failure;
use crate::tenant::{MailDomain, Slug, TenantName};

/// One tenant as a document describes it.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub slug: Slug,
    /// The desired state, whole: every field but `paused`, which is absent where the document says nothing of it.
    pub spec: Value,
    pub place: Place,
}

/// How much a document must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    All,
    /// Which tenant it is about.
    Slug,
}

/// Fields of a tenant that are not its desired state. The API says them, and takes none of them.
const RECORDED: [&str; 14] = [
    "id",
    "deletion",
    "status",
    "provisioningStatus",
    "provisioningErrors",
    "steps",
    "conditions",
    "generation",
    "observedGeneration",
    "reconcileRequestedAt",
    "lastHandledReconcileAt",
    "nextReconcileAt",
    "createdAt",
    "updatedAt",
];

/// The tenants in all these files, folders or standard input.
///
/// # Errors
/// Everything that is wrong with the documents.
pub fn read(names: &[String], needs: Needs) -> Result<Vec<Manifest>, Failure> {
    let (mut manifests, mut mistakes) = (Vec::new(), Vec::new());
    let mut seen: BTreeMap<Slug, Place> = BTreeMap::new();
    for name in names {
        for document in document::read(name)?.into_iter().flat_map(Document::items) {
            let Some(manifest) = Reading::of(&document, &mut mistakes).manifest(needs) else { continue };
            if let Some(first) = seen.insert(manifest.slug.clone(), manifest.place.clone()) {
                let place = &manifest.place;
                mistakes.push(format!("{place}: the tenant {} is in {first} already", manifest.slug));
            }
            manifests.push(manifest);
        }
    }
    if mistakes.is_empty() && manifests.is_empty() {
        mistakes.push(format!("there is no document in {}", names.join(", ")));
    }
    if !mistakes.is_empty() {
        let nothing = "nothing was sent, because documents are wrong";
        return Err(Failure::usage(format!("{nothing}:\n  {}", mistakes.join("\n  "))));
    }
    Ok(manifests)
}

/// A document that is read field by field.
struct Reading<'a> {
    document: &'a Document,
    left: Map<String, Value>,
    /// Of this document.
    wrong: bool,
    mistakes: &'a mut Vec<String>,
}

impl<'a> Reading<'a> {
    fn of(document: &'a Document, mistakes: &'a mut Vec<String>) -> Self {
        let mut reading = Self { document, left: Map::new(), wrong: false, mistakes };
        match &document.value {
            Value::Object(fields) => reading.left = fields.clone(),
            _ => reading.wrong("", "is no tenant: it must have fields such as slug and name"),
        }
        reading
    }

    /// `field` as in `quota.storageBytes`.
    fn wrong(&mut self, field: &str, why: impl Display) {
        self.wrong = true;
        let pointer = format!("/{}", field.replace('.', "/"));
        let place = self.document.place_of(if field.is_empty() { "" } else { &pointer });
        let field = if field.is_empty() { String::new() } else { format!("{field} ") };
        self.mistakes.push(format!("{place}: {field}{why}"));
    }

    /// `null` is the same as absent.
    fn take(&mut self, field: &str) -> Option<Value> {
        self.left.remove(field).filter(|value| !value.is_null())
    }

    fn text<T: FromStr<Err: Display>>(&mut self, field: &str, required: bool) -> Option<T> {
        match self.take(field) {
            Some(Value::String(text)) => match text.parse() {
                Ok(value) => return Some(value),
                Err(error) => self.wrong(field, error),
            },
            Some(other) => self.wrong(field, format!("must be a text; {other} needs quotes")),
            None if required => self.wrong(field, "is required"),
            None => {}
        }
        None
    }

    fn name(&mut self, required: bool) -> Option<TenantName> {
        let name: TenantName = self.text("name", required)?;
        if let Err(error) = name.check_legible() {
            self.wrong("name", error);
        }
        Some(name)
    }

    fn domain(&mut self) -> Option<MailDomain> {
        let domain: MailDomain = self.text("domain", false)?;
        if domain.is_reserved() {
            self.wrong("domain", format!("must not end in .{}, which is reserved", domain.top()));
        }
        Some(domain)
    }

    fn flag(&mut self, field: &str) -> Option<bool> {
        match self.take(field)? {
            Value::Bool(on) => return Some(on),
            _ => self.wrong(field, "must be true or false"),
        }
        None
    }

    fn object(&mut self, field: &str) -> Map<String, Value> {
        match self.take(field) {
            Some(Value::Object(fields)) => return fields,
            Some(_) => self.wrong(field, "must have fields of its own"),
            None => {}
        }
        Map::new()
    }

    fn quota(&mut self) -> Value {
        let mut quota = self.object("quota");
        let bytes = quota.remove("storageBytes").unwrap_or_default();
        if !bytes.is_null() && bytes.as_i64().is_none_or(|bytes| bytes < 0) {
            self.wrong("quota.storageBytes", format!("must be a whole number from 0 to {}", i64::MAX));
        }
        for field in quota.keys() {
            self.wrong(&format!("quota.{field}"), "is not a field of a tenant");
        }
        json!({ "storageBytes": bytes })
    }

    fn services(&mut self) -> Value {
        let mut given = self.object("services");
        let mut services = Map::new();
        for service in SERVICES {
            let on = given.remove(service).filter(|on| !on.is_null()).unwrap_or(json!(true));
            if !on.is_boolean() {
                self.wrong(&format!("services.{service}"), "must be true or false");
            }
            services.insert(service.to_owned(), on);
        }
        for field in given.keys() {
            self.wrong(&format!("services.{field}"), "is not a service");
        }
        services.into()
    }

    /// `None` when something is wrong, which has been noted.
    fn manifest(mut self, needs: Needs) -> Option<Manifest> {
        if self.wrong {
            return None;
        }
        let slug: Option<Slug> = self.text("slug", true);
        if slug.as_ref().is_some_and(Slug::is_reserved) {
            self.wrong("slug", "is a word of the API's own: /tenants/watch");
        }
        let name = self.name(needs == Needs::All);
        let domain = self.domain();
        let (quota, services) = (self.quota(), self.services());
        let (paused, adopt) = (self.flag("paused"), self.flag("adopt"));
        for field in RECORDED {
            self.left.remove(field);
        }
        for field in std::mem::take(&mut self.left).keys() {
            self.wrong(field, "is not a field of a tenant");
        }
        let mut spec = json!({
            "name": name.as_ref().map(TenantName::as_str),
            "domain": domain.as_ref().map(MailDomain::as_str),
            "quota": quota,
            "services": services,
            "adopt": adopt,
        });
        if let Some(paused) = paused {
            spec["paused"] = json!(paused);
        }
        let place = self.document.place.clone();
        slug.filter(|_| !self.wrong).map(|slug| Manifest { slug, spec, place })
    }
}

/// A field that is not as a document wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// As in `quota.storageBytes`.
    pub field: String,
    pub from: Value,
    pub to: Value,
}

impl Manifest {
    /// What must change in a tenant, as the API shows it, so that it is as the document says.
    pub fn differences(&self, tenant: &Value) -> Vec<Difference> {
        let mut all = Vec::new();
        differences("", tenant, &self.spec, &mut all);
        all
    }

    /// What a new tenant would have beside defaults.
    pub fn as_new(&self) -> Vec<Difference> {
        let services: Map<_, _> =
            SERVICES.map(|service| (service.to_owned(), json!(true))).into_iter().collect();
        self.differences(&json!({ "services": services, "paused": false }))
    }
}

fn differences(under: &str, from: &Value, to: &Value, into: &mut Vec<Difference>) {
    if let Value::Object(fields) = to {
        for (field, to) in fields {
            let path = if under.is_empty() { field.clone() } else { format!("{under}.{field}") };
            differences(&path, &from[field], to, into);
        }
    } else if from != to {
        into.push(Difference { field: under.to_owned(), from: from.clone(), to: to.clone() });
    }
}

/// A tenant's desired state as a document that says nothing but what is no default.
pub fn shortest(tenant: &Value) -> Value {
    let mut document = Map::new();
    for field in ["slug", "name", "domain", "adopt"] {
        document.extend((!tenant[field].is_null()).then(|| (field.to_owned(), tenant[field].clone())));
    }
    if !tenant["quota"]["storageBytes"].is_null() {
        document.insert("quota".into(), tenant["quota"].clone());
    }
    let services = tenant["services"].as_object().into_iter().flatten();
    let off: Map<_, _> =
        services.filter(|(_, on)| **on == false).map(|(name, on)| (name.clone(), on.clone())).collect();
    if !off.is_empty() {
        document.insert("services".into(), off.into());
    }
    if tenant["paused"] == true {
        document.insert("paused".into(), json!(true));
    }
    document.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, needs: Needs) -> (Vec<Manifest>, Vec<String>) {
        let mut mistakes = Vec::new();
        let documents = document::parse("a.yaml", text, false).unwrap();
        let items = documents.into_iter().flat_map(Document::items);
        let all = items.filter_map(|document| Reading::of(&document, &mut mistakes).manifest(needs));
        (all.collect(), mistakes)
    }

    #[test]
    fn all_that_is_wrong_with_a_document_is_told_by_its_line() {
        let text = "slug: acme\nname: Acme\n---\nslug: B\nnmae: x\ndomain: 7\nquota:\n  storageBytes: -1\n  files: 3\n\
                    services:\n  ocis: \"yes\"\n  mail: false\npaused: 1\n";
        let (manifests, mistakes) = read_text(text, Needs::All);
        assert_eq!(manifests.len(), 1);
        let expected = [
            ("line 4: slug ", "lower-case"),
            ("line 4: name ", "is required"),
            ("line 6: domain ", "7 needs quotes"),
            ("line 8: quota.storageBytes ", "whole number"),
            ("line 9: quota.files ", "not a field"),
            ("line 11: services.ocis ", "true or false"),
            ("line 12: services.mail ", "not a service"),
            ("line 13: paused ", "true or false"),
            ("line 5: nmae ", "not a field of a tenant"),
        ];
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
        for (place, why) in expected {
            let found = |said: &&String| {
                said.contains(&format!("a.yaml, document 2, {place}")) && said.contains(why)
            };
            assert!(mistakes.iter().any(|said| found(&said)), "{place}{why}: {mistakes:#?}");
        }
        assert_eq!(read_text("slug: acme\n", Needs::Slug).0.len(), 1);
        assert_eq!(read_text("slug: acme\n", Needs::All).1.len(), 1);
    }

    #[test]
    fn only_what_a_document_says_is_a_difference_and_a_pause_stays() {
        let (manifests, mistakes) = read_text("slug: acme\nname: Acme\ndomain: ACME.test\n", Needs::All);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let mut tenant = json!({
            "slug": "acme", "name": "Acme", "domain": "acme.test", "quota": { "storageBytes": null },
            "services": { "authentik": true, "stalwart": true, "ocis": true }, "paused": true, "adopt": null,
            "status": "active",
        });
        assert_eq!(manifests[0].differences(&tenant), []);
        tenant["services"]["ocis"] = json!(false);
        tenant["quota"]["storageBytes"] = json!(5);
        let fields: Vec<_> =
            manifests[0].differences(&tenant).into_iter().map(|difference| difference.field).collect();
        assert_eq!(fields, ["quota.storageBytes", "services.ocis"]);
        let new: Vec<_> = manifests[0].as_new().into_iter().map(|new| new.field).collect();
        assert_eq!(new, ["domain", "name"]);
        let short = json!({
            "slug": "acme", "name": "Acme", "domain": "acme.test", "quota": { "storageBytes": 5 },
            "services": { "ocis": false }, "paused": true,
        });
        assert_eq!(shortest(&tenant), short);
    }
}
