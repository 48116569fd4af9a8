//! The validator of the tenants' collection: ours, and what to know of one that others made.
//!
//! Ours refuses a shell's typing error where it is made. Nothing depends on it: a user that may not set it
//! works all the same, and a validator of others stays as it is. That one may refuse what tenantry writes, so
//! it is tried: whole documents are written in transactions that are never committed.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};

use super::document::{DESIRED, TRACEPARENT, WAITED_FOR};
use super::indexes::first_batch;
use super::{OpenError, Store, StoreError, TENANTS, UNAUTHORIZED};
use crate::tenant::{Phase, Slug, Upstream};

/// Version of the validator. A newer process replaces an older one's, never the other way round.
pub const SCHEMA_VERSION: i64 = 2;
const TITLE: &str = "tenantry tenants, schema ";

/// How long what was found of a validator of others is believed.
const BELIEVED: Duration = Duration::from_secs(10);

/// The validator that the collection has.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Present {
    None,
    /// Of tenantry, of this version.
    Ours(i64),
    /// Of others; whether it refuses what does not match.
    Foreign {
        refuses: bool,
    },
}

/// What a validator of others refuses of what tenantry writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The rules that are broken, in words.
    pub rules: Vec<String>,
    /// Not only new tenants are refused, but also what tenantry records in those that are there: no tenant
    /// can converge.
    pub all: bool,
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.all { "what tenantry writes" } else { "new tenants of the API" };
        let rules = self.rules.join("; ");
        write!(
            f,
            "the validator of the collection `{TENANTS}` refuses {what}: {rules}. Change it (collMod) so that it \
             allows the fields that docs/operating.md lists, or remove it"
        )
    }
}

/// What is known of the validator.
#[derive(Debug, Default)]
pub(super) struct Known {
    since: Option<Instant>,
    rejection: Option<Rejection>,
}

impl Store {
    /// The collection's validator; nothing if there is no collection.
    pub(super) async fn present_validator(&self) -> Result<Option<Present>, StoreError> {
        let command = doc! { "listCollections": 1, "filter": { "name": TENANTS } };
        let reply = self.command("listCollections", command).await?;
        let found = first_batch(&reply);
        let Some(found) = found.first() else { return Ok(None) };
        let options = found.get_document("options").ok();
        let text = |field: &str| options.and_then(|options| options.get_str(field).ok());
        let present = options.and_then(|options| options.get_document("validator").ok());
        let Some(present) = present.filter(|present| !present.is_empty()) else {
            return Ok(Some(Present::None));
        };
        let title = present.get_document("$jsonSchema").and_then(|schema| schema.get_str("title"));
        let version = title.unwrap_or_default().strip_prefix(TITLE);
        let ours = version.and_then(|version| version.parse().ok()).map(Present::Ours);
        let refuses = text("validationAction") != Some("warn") && text("validationLevel") != Some("off");
        Ok(Some(ours.unwrap_or(Present::Foreign { refuses })))
    }

    /// Puts ours where there is none, or an older one.
    pub(super) async fn ensure_validator(&self, present: Present) -> Result<(), OpenError> {
        match present {
            Present::Ours(version) if version >= SCHEMA_VERSION => Ok(()),
            Present::Foreign { .. } => {
                tracing::warn!(
                    collection = TENANTS,
                    "the collection has a validator that another program made; leaving it as it is"
                );
                Ok(())
            }
            Present::None | Present::Ours(_) => self.put_validator().await,
        }
    }

    async fn put_validator(&self) -> Result<(), OpenError> {
        let command = doc! {
            "collMod": TENANTS,
            "validator": validator(),
            // "moderate": documents that were invalid before stay writable, so that the former
            // service goes on working and the controller can note what is wrong with them.
            "validationLevel": "moderate",
        };
        match self.command("collMod", command).await {
            Ok(_) => Ok(()),
            Err(StoreError::Refused { code: Some(UNAUTHORIZED), .. }) => {
                tracing::warn!(
                    collection = TENANTS,
                    "the user of MONGODB_URI may not set the collection's validator (collMod, which the role dbAdmin \
                     allows and readWrite does not); going on without: a document that is written past the API with \
                     a mistake in it is found by a reconcile instead of being refused"
                );
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a validator of others refuses of what tenantry writes, as far as that is known. Found out anew
    /// if that is longer ago than a few seconds.
    pub async fn rejection(&self) -> Result<Option<Rejection>, StoreError> {
        {
            let mut known = self.validator.lock().unwrap_or_else(PoisonError::into_inner);
            if known.since.is_some_and(|since| since.elapsed() < BELIEVED) {
                return Ok(known.rejection.clone());
            }
            // Others that ask meanwhile are told what was known.
            known.since = Some(Instant::now());
        }
        let rejection = match self.present_validator().await? {
            Some(Present::Foreign { refuses: true }) => self.try_validator().await?,
            _ => None,
        };
        let mut known = self.validator.lock().unwrap_or_else(PoisonError::into_inner);
        match (&known.rejection, &rejection) {
            (before, Some(now)) if before.as_ref() != Some(now) => tracing::error!("{now}"),
            (Some(_), None) => {
                tracing::info!(
                    collection = TENANTS,
                    "the collection's validator refuses nothing any more"
                );
            }
            _ => {}
        }
        known.rejection.clone_from(&rejection);
        Ok(rejection)
    }

    async fn try_validator(&self) -> Result<Option<Rejection>, StoreError> {
        let mut rules = Vec::new();
        for phase in Phase::ALL {
            let mut document = doc! { "_id": ObjectId::new() };
            document.extend(whole(phase));
            self.try_write(Trial::Insert(&document), &mut rules).await?;
        }
        let mut all = !rules.is_empty();
        let some = self.tenants.find_one(doc! {}).projection(doc! { "_id": 1 });
        if let Some(tenant) = self.bounded("look at a tenant", some).await? {
            let before = rules.len();
            for phase in Phase::ALL {
                let mut recorded = whole(phase);
                // Those are another writer's, and may be what the validator wants them to be.
                for field in DESIRED {
                    recorded.remove(field);
                }
                self.try_write(Trial::Record(&tenant, &recorded), &mut rules).await?;
            }
            all = rules.len() > before;
        }
        // In both, the same fields are refused.
        let mut seen = std::collections::HashSet::new();
        rules.retain(|rule| seen.insert(rule.clone()));
        Ok((!rules.is_empty()).then_some(Rejection { rules, all }))
    }

    async fn try_write(&self, trial: Trial<'_>, rules: &mut Vec<String>) -> Result<(), StoreError> {
        const OPERATION: &str = "try the validator";
        let mut session = self.bounded(OPERATION, self.client.start_session()).await?;
        self.bounded(OPERATION, session.start_transaction()).await?;
        let written = match trial {
            Trial::Insert(document) => {
                let insert = self.tenants.insert_one(document).session(&mut session);
                self.bounded(OPERATION, insert).await.map(drop)
            }
            Trial::Record(tenant, fields) => {
                let update = self.tenants.update_one(tenant.clone(), doc! { "$set": fields });
                self.bounded(OPERATION, update.session(&mut session)).await.map(drop)
            }
        };
        // What was refused has ended it already.
        let _ = self.bounded(OPERATION, session.abort_transaction()).await;
        match written {
            Err(StoreError::Invalid { rules: broken, .. }) => {
                rules.extend(broken);
                Ok(())
            }
            Err(error) if error.is_unavailable() => Err(error),
            // Of anything else, such as a unique index, the request is told that it concerns.
            _ => Ok(()),
        }
    }
}

enum Trial<'a> {
    Insert(&'a Document),
    Record(&'a Document, &'a Document),
}

/// A tenant with every field that tenantry writes.
fn whole(phase: Phase) -> Document {
    let now = Bson::DateTime(DateTime::now());
    let slug = format!("trial-{:016x}", rand::random::<u64>());
    debug_assert!(slug.parse::<Slug>().is_ok());
    let observed = doc! { "presence": "present", "name": "Trial", "storageBytes": 1_i64 };
    let steps: Document = Upstream::ALL
        .into_iter()
        .map(|step| {
            let status = doc! {
                "state": "error", "reason": "Conflict", "message": "trial", "externalId": "trial",
                "attempts": 1_i64, "observed": &observed, "lastAttemptAt": now.clone(),
                "lastTransitionAt": now.clone(), "nextAttemptAt": now.clone(),
            };
            (step.name().to_owned(), Bson::from(status))
        })
        .collect();
    let noted: Document =
        Upstream::ALL.into_iter().map(|step| (step.name().to_owned(), "ok".into())).collect();
    let ready = doc! {
        "type": "Ready", "status": "False", "reason": "Conflict", "message": "trial",
        "observedGeneration": 1_i64, "lastTransitionTime": now.clone(),
    };
    let mut document = doc! {
        "slug": &slug, "name": "Trial", "domain": "trial.example", "quota": { "storageBytes": 1_i64 },
        "services": { "authentik": true, "stalwart": true, "ocis": true }, "paused": false, "adopt": false,
        "status": phase.name(), "provisioningStatus": noted, "steps": steps, "conditions": [ready],
        "generation": 1_i64, "observedGeneration": 1_i64,
        "reconcileRequestedAt": now.clone(), "reconcileRequest": { "at": now.clone(), "by": ["trial"] },
        "lastHandledReconcileAt": now.clone(), "lastHandledDesired": { "slug": &slug, "name": "Trial" },
        "changedBy": [{ "type": "Created", "by": "trial" }],
        "nextReconcileAt": now.clone(), "createdAt": now.clone(), "updatedAt": now.clone(),
        "lease": { "epoch": 1_i64, "holder": "trial", "expiresAt": now.clone() },
        "idempotency": { "key": slug, "digest": "trial" },
    };
    document.insert(WAITED_FOR, true);
    document.insert(TRACEPARENT, "trial");
    if phase == Phase::Deleting {
        document.extend(doc! { "deletionRequestedAt": now, "deletionPolicy": "retain" });
    }
    document
}

/// The rules that a refused document broke, in words, from the server's `errInfo`. Without the values, which may
/// be private.
pub(super) fn rules(info: Option<&Document>) -> Vec<String> {
    let mut rules = Vec::new();
    if let Some(details) = info.and_then(|info| info.get_document("details").ok()) {
        broken(details, "", &mut rules);
    }
    if rules.is_empty() {
        rules.push("it does not say which rule is broken".into());
    }
    rules
}

fn broken(details: &Document, path: &str, rules: &mut Vec<String>) {
    let within =
        |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    let listed = |field: &str| {
        let items = details.get_array(field).map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(Bson::as_document)
    };
    let names = |field: &str| {
        let names = details.get_array(field).map(Vec::as_slice).unwrap_or_default();
        names.iter().filter_map(Bson::as_str).map(within).collect::<Vec<_>>().join(", ")
    };
    let before = rules.len();
    for rule in listed("schemaRulesNotSatisfied").chain(listed("details")) {
        broken(rule, path, rules);
    }
    for property in listed("propertiesNotSatisfied") {
        broken(property, &within(property.get_str("propertyName").unwrap_or("?")), rules);
    }
    for clause in listed("clausesNotSatisfied").chain(listed("clausesSatisfied")) {
        if let Ok(inner) = clause.get_document("details") {
            broken(inner, path, rules);
        }
    }
    if rules.len() > before {
        return;
    }
    let operator = details.get_str("operatorName").unwrap_or("rule");
    rules.push(match operator {
        "additionalProperties" if details.contains_key("additionalProperties") => {
            format!("fields that it does not allow: {}", names("additionalProperties"))
        }
        "required" => format!("fields that it requires: {}", names("missingProperties")),
        _ => {
            let specified =
                details.get("specifiedAs").map(|rule| format!(" {rule}")).unwrap_or_default();
            let field = if path.is_empty() { String::new() } else { format!("{path}: ") };
            format!("{field}{operator}{specified}")
        }
    });
}

/// Only what a writer could get wrong about the *desired* state. What the controller itself writes needs no
/// guard, and what others keep in the documents is theirs.
pub(super) fn validator() -> Document {
    doc! { "$jsonSchema": {
        "title": format!("{TITLE}{SCHEMA_VERSION}"),
        "bsonType": "object",
        "required": ["slug", "name"],
        "properties": {
            "slug": {
                "bsonType": "string",
                "pattern": Slug::PATTERN,
                "description": "a DNS label: a-z, 0-9 and '-', at most 63 characters",
            },
            "name": { "bsonType": "string", "minLength": 1 },
            "domain": { "bsonType": ["string", "null"] },
            "quota": {
                "bsonType": ["object", "null"],
                "properties": {
                    "storageBytes": { "bsonType": ["int", "long", "double", "null"], "minimum": 0 },
                },
            },
            "services": {
                "bsonType": ["object", "null"],
                "properties": {
                    "authentik": { "bsonType": "bool" },
                    "stalwart": { "bsonType": "bool" },
                    "ocis": { "bsonType": "bool" },
                },
            },
            "reconcileRequestedAt": { "bsonType": ["date", "null"] },
            "nextReconcileAt": { "bsonType": ["date", "null"] },
            "paused": { "bsonType": ["bool", "null"] },
            "adopt": { "bsonType": ["bool", "null"] },
            "deletionRequestedAt": { "bsonType": ["date", "null"] },
            "deletionPolicy": { "enum": [Bson::Null, "retain", "delete", "purge"] },
        },
    } }
}
