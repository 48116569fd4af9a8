//! Documents to tenants, and statuses back into documents.
//!
//! Reading is strict about the desired state, where a guess could provision the wrong thing, and
//! lenient about what the controller itself wrote: a status that cannot be read is as good as none,
//! and the next reconcile writes it anew.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};

use crate::telemetry::traces;
use crate::tenant::{
    Adopted, Attribution, CreateIntent, DeletionPolicy, Desired, Field, Found, MailDomain, Observation,
    OtherResource, PerStep, Presence, Ready, Reason, Services, Slug, Status, StepDesired, StepStatus,
    Tenant, TenantId, TenantName, Upstream, shortened,
};

/// The fields that hold the desired state, in the order in which snapshots of it are taken.
pub(super) const DESIRED: [&str; 9] = [
    "slug",
    "name",
    "domain",
    "quota",
    "services",
    "paused",
    "adopt",
    "deletionRequestedAt",
    "deletionPolicy",
];

/// Says that a client waits until the tenant has been acted on, so that it comes before others. The commit that
/// acts on it removes it.
pub(super) const WAITED_FOR: &str = "waitedFor";

/// The trace of the latest request that the tenant has not been acted on for (W3C Trace Context). The commit that
/// acts on it removes it.
pub(super) const TRACEPARENT: &str = traces::TRACEPARENT;

/// A stored document, whether it makes sense or not.
#[derive(Debug, Clone)]
pub enum Record {
    Tenant(Box<Tenant>),
    Invalid(InvalidDocument),
}

/// A document that is no tenant, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDocument {
    /// `_id`, as text.
    pub id: String,
    /// `slug`, where there is one.
    pub slug: Option<String>,
    /// One entry per field: `name: must not be blank`.
    pub problems: Vec<String>,
    /// Whether this was recorded in the document already.
    pub known: bool,
}

impl fmt::Display for InvalidDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

/// Nothing but the fields that the controller knows: others may be large, and are not ours.
pub(super) fn projection() -> Document {
    let mut fields = doc! {
        "status": 1, "provisioningStatus": 1, "steps": 1, "conditions": 1, "generation": 1, "observedGeneration": 1,
        "reconcileRequestedAt": 1, "reconcileRequest": 1, "changedBy": 1, "lastHandledReconcileAt": 1, "lastHandledDesired": 1,
        "nextReconcileAt": 1, "lease": 1, "createdAt": 1, "updatedAt": 1, TRACEPARENT: 1,
    };
    fields.extend(DESIRED.map(|field| (field.to_owned(), Bson::Int32(1))));
    fields
}

pub(super) fn read(document: &Document) -> Record {
    match read_tenant(document).or_else(|problems| read_leaving(document).ok_or(problems)) {
        Ok(tenant) => Record::Tenant(Box::new(tenant)),
        Err(problems) => {
            let message = problems.join("; ");
            let known = ready_condition(document).is_some_and(|condition| {
                is(condition, "reason", Reason::InvalidDocument.name())
                    && is(condition, "message", &message)
            });
            Record::Invalid(InvalidDocument {
                id: document.get("_id").map_or_else(String::new, |id| match id {
                    Bson::ObjectId(id) => id.to_hex(),
                    other => other.to_string(),
                }),
                slug: document.get_str("slug").ok().map(ToOwned::to_owned),
                problems,
                known,
            })
        }
    }
}

/// An invalid tenant that is to go. What it shall be like matters no longer, and a deletion must come to an end:
/// what cannot be read is as it was when a reconcile last read it. A policy that cannot be read keeps the data.
fn read_leaving(document: &Document) -> Option<Tenant> {
    let (Bson::DateTime(_), Bson::ObjectId(id)) =
        (document.get("deletionRequestedAt")?, document.get("_id")?)
    else {
        return None;
    };
    let mut document = document.clone();
    let handled = document.get_document("lastHandledDesired").cloned().unwrap_or_default();
    // One that no reconcile ever read has nothing anywhere, and may be called anything.
    let name = format!("invalid-{}", id.to_hex());
    for field in DESIRED.into_iter().chain(["reconcileRequestedAt"]) {
        let is_readable = |value: Option<&Bson>| {
            let mut trial = doc! { "_id": id, "slug": &name, "name": &name };
            trial.extend(value.map(|value| (field.to_owned(), value.clone())));
            read_tenant(&trial).is_ok()
        };
        let required = matches!(field, "slug" | "name");
        let present = document.get(field).filter(|value| !required || **value != Bson::Null);
        if is_readable(present) && !(required && present.is_none()) {
            continue;
        }
        let before = handled.get(field).filter(|value| is_readable(Some(value))).cloned();
        match before.or_else(|| required.then(|| name.clone().into())) {
            Some(value) => document.insert(field, value),
            None => document.remove(field),
        };
    }
    read_tenant(&document).ok()
}

fn read_tenant(document: &Document) -> Result<Tenant, Vec<String>> {
    let mut problems = Vec::new();
    let id = match document.get("_id") {
        Some(Bson::ObjectId(id)) => Some(TenantId::from_bytes(id.bytes())),
        _ => {
            problems.push("_id: must be an ObjectId".to_owned());
            None
        }
    };
    let slug = required::<Slug>(document, "slug", &mut problems);
    let desired = read_desired(document, &mut problems);
    let reconcile_requested_at = match document.get("reconcileRequestedAt") {
        None | Some(Bson::Null) => None,
        Some(value) => timestamp(value).or_else(|| {
            problems.push("reconcileRequestedAt: must be a date".to_owned());
            None
        }),
    };
    let (Some(id), Some(slug), Some(desired), []) = (id, slug, desired, problems.as_slice()) else {
        return Err(problems);
    };
    let at = |field| document.get(field).and_then(timestamp);
    let made_at = Timestamp::from_second(i64::from(id.made_at_seconds())).unwrap_or_default();
    Ok(Tenant {
        id,
        slug,
        desired,
        generation: document.get("generation").and_then(integer).unwrap_or(1),
        reconcile_requested_at,
        reconcile_requested_steps: requested_steps(document),
        observation_requested: of_latest_request(document)
            .is_some_and(|request| request.get_bool("observe").unwrap_or(false)),
        reconcile_requested_by: of_latest_request(document)
            .and_then(|request| request.get_array("by").ok())
            .map(|names| names.iter().filter_map(Bson::as_str).map(ToOwned::to_owned).collect())
            .unwrap_or_default(),
        changed_by: document
            .get_array("changedBy")
            .map(|changes| changes.iter().map(read_change).collect())
            .unwrap_or_default(),
        deletion_requested_at: at("deletionRequestedAt"),
        status: read_status(document),
        interrupted: false,
        created_at: at("createdAt").unwrap_or(made_at),
        updated_at: at("updatedAt"),
    })
}

/// One for each element, whatever it is: they are counted.
fn read_change(change: &Bson) -> Option<Attribution> {
    let change = change.as_document()?;
    Some(Attribution {
        by: change.get_str("by").ok().map(ToOwned::to_owned),
        kind: change.get_str("type").ok()?.parse().ok()?,
    })
}

/// What is said of the latest request. What belongs to an earlier one says nothing of one that another
/// writer made since.
fn of_latest_request(document: &Document) -> Option<&Document> {
    let requested = document.get_document("reconcileRequest").ok()?;
    let at = requested.get("at").and_then(timestamp)?;
    (document.get("reconcileRequestedAt").and_then(timestamp)? == at).then_some(requested)
}

/// The steps that the latest request is about, unless it is about all.
fn requested_steps(document: &Document) -> Option<PerStep<bool>> {
    let steps = of_latest_request(document)?.get_array("steps").ok()?;
    Some(PerStep::from_fn(|step| steps.iter().any(|named| named.as_str() == Some(step.name()))))
}

fn read_desired(document: &Document, problems: &mut Vec<String>) -> Option<Desired> {
    let before = problems.len();
    let name = required::<TenantName>(document, "name", problems);
    // A form sends an empty text for a field that was left empty.
    let domain = match document.get_str("domain") {
        Ok("") => None,
        _ => optional::<MailDomain>(document, "domain", problems),
    };
    let storage_bytes = match document.get("quota") {
        None | Some(Bson::Null) => None,
        Some(Bson::Document(quota)) => match quota.get("storageBytes") {
            None | Some(Bson::Null) => None,
            Some(value) => integer(value).filter(|bytes| *bytes >= 0).or_else(|| {
                problems.push("quota.storageBytes: must be a whole number, 0 or more".to_owned());
                None
            }),
        },
        Some(_) => {
            problems.push("quota: must be an object".to_owned());
            None
        }
    };
    let mut switch = |services: &Document, step: Upstream| match services.get(step.name()) {
        None | Some(Bson::Null) => true,
        Some(Bson::Boolean(on)) => *on,
        Some(_) => {
            problems.push(format!("services.{step}: must be true or false"));
            true
        }
    };
    let services = match document.get("services") {
        None | Some(Bson::Null) => Services::default(),
        Some(Bson::Document(services)) => Services::new(|step| switch(services, step)),
        Some(_) => {
            problems.push("services: must be an object".to_owned());
            Services::default()
        }
    };
    let mut flag = |field: &str| match document.get(field) {
        None | Some(Bson::Null) => None,
        Some(Bson::Boolean(on)) => Some(*on),
        Some(_) => {
            problems.push(format!("{field}: must be true or false"));
            None
        }
    };
    let (paused, adopt) = (flag("paused").unwrap_or(false), flag("adopt"));
    let deletion = read_deletion(document, problems);
    let (true, Some(name)) = (problems.len() == before, name) else { return None };
    Some(Desired { name, domain, storage_bytes, services, paused, adopt, deletion })
}

fn read_deletion(document: &Document, problems: &mut Vec<String>) -> Option<DeletionPolicy> {
    let policy = match document.get("deletionPolicy") {
        None | Some(Bson::Null) => DeletionPolicy::Retain,
        // A guess could delete what was to stay.
        Some(policy) => policy.as_str().and_then(|policy| policy.parse().ok()).unwrap_or_else(|| {
            let names = DeletionPolicy::ALL.map(DeletionPolicy::name).join(", ");
            problems.push(format!("deletionPolicy: must be one of {names}"));
            DeletionPolicy::Retain
        }),
    };
    match document.get("deletionRequestedAt") {
        None | Some(Bson::Null) => None,
        Some(Bson::DateTime(_)) => Some(policy),
        Some(_) => {
            problems.push("deletionRequestedAt: must be a date".to_owned());
            None
        }
    }
}

fn required<T: FromStr<Err: fmt::Display>>(
    document: &Document,
    field: &str,
    problems: &mut Vec<String>,
) -> Option<T> {
    if matches!(document.get(field), None | Some(Bson::Null)) {
        problems.push(format!("{field}: is required"));
    }
    optional(document, field, problems)
}

fn optional<T: FromStr<Err: fmt::Display>>(
    document: &Document,
    field: &str,
    problems: &mut Vec<String>,
) -> Option<T> {
    match document.get(field) {
        None | Some(Bson::Null) => None,
        Some(Bson::String(text)) => match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                problems.push(format!("{field}: {error}"));
                None
            }
        },
        Some(_) => {
            problems.push(format!("{field}: must be a string"));
            None
        }
    }
}

fn read_status(document: &Document) -> Status {
    let empty = Document::new();
    let steps = document.get_document("steps").unwrap_or(&empty);
    let at = |field| document.get(field).and_then(timestamp);
    Status {
        phase: parsed(document, "status").unwrap_or_default(),
        steps: PerStep::from_fn(|step| {
            let recorded = steps.get_document(step.name()).unwrap_or(&empty);
            let mut status = read_step(recorded);
            status.legacy |= is_legacy(document, step, recorded);
            status
        }),
        ready: ready_condition(document).and_then(read_ready),
        observed_generation: document.get("observedGeneration").and_then(integer),
        last_handled_reconcile_at: at("lastHandledReconcileAt"),
        last_handled_desired: document
            .get_document("lastHandledDesired")
            .ok()
            .and_then(|desired| read_desired(desired, &mut Vec::new())),
        next_reconcile_at: at("nextReconcileAt"),
    }
}

/// Whether the service before this one had noted that the step was done, and no commit of ours has overwritten
/// that yet. A claim leaves a create intent in `steps`, and nothing else.
fn is_legacy(document: &Document, step: Upstream, recorded: &Document) -> bool {
    let noted = document.get_document("provisioningStatus");
    !recorded.contains_key("state") && noted.is_ok_and(|noted| is(noted, step.name(), "ok"))
}

fn read_step(step: &Document) -> StepStatus {
    let text = |field: &str| step.get_str(field).ok().map(ToOwned::to_owned);
    let at = |field| step.get(field).and_then(timestamp);
    StepStatus {
        state: parsed(step, "state").unwrap_or_default(),
        reason: parsed(step, "reason"),
        message: text("message"),
        external_id: text("externalId"),
        adopted: step
            .get_array("adopted")
            .map(|adopted| adopted.iter().filter_map(read_adopted).collect())
            .unwrap_or_default(),
        others: read_others(step),
        search: step.get_bool("search").unwrap_or(false),
        given_quota: step.get("givenQuota").and_then(integer),
        legacy: step.get_bool("legacy").unwrap_or(false),
        create_intent: parsed(step, "createIntent").map(|id| CreateIntent { id, fresh: false }),
        fingerprint: parsed(step, "fingerprint"),
        awaits_since: at("awaitsSince"),
        parked: step.get_bool("parked").unwrap_or(false),
        observed: step.get_document("observed").ok().and_then(read_observed),
        observation: step.get_document("observation").ok().and_then(read_observation),
        attempts: step
            .get("attempts")
            .and_then(integer)
            .and_then(|attempts| u32::try_from(attempts).ok())
            .unwrap_or_default(),
        last_attempt_at: at("lastAttemptAt"),
        last_transition_at: at("lastTransitionAt"),
        next_attempt_at: at("nextAttemptAt"),
    }
}

fn read_adopted(adopted: &Bson) -> Option<Adopted> {
    let adopted = adopted.as_document()?;
    let said = |(field, value): (&String, &Bson)| (field.clone(), value.as_str().map(ToOwned::to_owned));
    Some(Adopted {
        external_id: adopted.get_str("externalId").ok()?.to_owned(),
        before: adopted.get_document("before").ok()?.iter().map(said).collect(),
    })
}

fn adopted_document(adopted: &Adopted) -> Document {
    let said = |(field, value): (&String, &Option<String>)| {
        (field.clone(), value.clone().map_or(Bson::Null, Bson::from))
    };
    let before: Document = adopted.before.iter().map(said).collect();
    doc! { "externalId": &adopted.external_id, "before": before }
}

fn read_observed(observed: &Document) -> Option<StepDesired> {
    Some(StepDesired {
        presence: parsed(observed, "presence").or_else(|| {
            // As versions before this one wrote it.
            let enabled = observed.get_bool("enabled").ok()?;
            Some(if enabled { Presence::Present } else { Presence::Off })
        })?,
        paused: observed.get_bool("paused").unwrap_or(false),
        adopt: observed.get_bool("adopt").ok(),
        name: parsed(observed, "name")?,
        domain: parsed(observed, "domain"),
        storage_bytes: observed.get("storageBytes").and_then(integer),
    })
}

fn read_observation(observation: &Document) -> Option<Observation> {
    let found = if let Ok(fields) = observation.get_array("fields") {
        let text = |field: &Document, name: &str| field.get_str(name).ok().map(ToOwned::to_owned);
        let field = |field: &Bson| {
            let field = field.as_document()?;
            Some(Field {
                name: text(field, "name")?.into(),
                observed: text(field, "observed")?,
                desired: text(field, "desired")?,
            })
        };
        Found::Fields(fields.iter().map(field).collect::<Option<_>>()?)
    } else if let Some(reason) = parsed(observation, "reason") {
        Found::Failed { reason, message: observation.get_str("message").ok()?.to_owned() }
    } else {
        Found::Missing
    };
    let against = read_observed(observation.get_document("against").ok()?)?;
    Some(Observation { at: observation.get("at").and_then(timestamp)?, against, found })
}

pub(super) fn observation_document(observation: &Observation) -> Document {
    let against = observed_document(&observation.against);
    let mut document = doc! { "at": date(observation.at), "against": against };
    match &observation.found {
        Found::Missing => {}
        Found::Fields(fields) => {
            let field = |field: &Field| {
                let Field { name, observed, desired } = field;
                let (observed, desired) = (shortened(observed), shortened(desired));
                Bson::from(doc! {
                    "name": name.as_ref(), "observed": observed.as_ref(), "desired": desired.as_ref(),
                })
            };
            document.insert("fields", fields.iter().map(field).collect::<Vec<_>>());
        }
        Found::Failed { reason, message } => {
            document.extend(doc! { "reason": reason.name(), "message": message });
        }
    }
    document
}

fn ready_condition(document: &Document) -> Option<&Document> {
    let conditions = document.get_array("conditions").ok()?;
    conditions.iter().filter_map(Bson::as_document).find(|condition| is(condition, "type", "Ready"))
}

fn read_ready(condition: &Document) -> Option<Ready> {
    Some(Ready {
        ready: is(condition, "status", "True"),
        reason: parsed(condition, "reason")?,
        message: condition.get_str("message").ok()?.to_owned(),
        observed_generation: condition.get("observedGeneration").and_then(integer)?,
        last_transition_time: condition.get("lastTransitionTime").and_then(timestamp)?,
    })
}

pub(super) fn step_document(step: &StepStatus) -> Document {
    let mut document = doc! { "state": step.state.name(), "attempts": i64::from(step.attempts) };
    let mut put = |field: &str, value: Option<Bson>| {
        if let Some(value) = value {
            document.insert(field, value);
        }
    };
    put("reason", step.reason.map(|reason| reason.name().into()));
    put("message", step.message.clone().map(Bson::from));
    put("externalId", step.external_id.clone().map(Bson::from));
    let adopted: Vec<_> = step.adopted.iter().map(|it| Bson::from(adopted_document(it))).collect();
    put("adopted", (!adopted.is_empty()).then_some(adopted.into()));
    let others: Vec<_> = step.others.iter().map(|it| Bson::from(other_document(it))).collect();
    put("search", step.search.then_some(true.into()));
    put("others", (!others.is_empty()).then_some(others.into()));
    put("givenQuota", step.given_quota.map(Bson::from));
    put("legacy", step.legacy.then_some(true.into()));
    put("createIntent", step.create_intent.map(|intent| intent.id.to_string().into()));
    put("awaitsSince", step.awaits_since.map(date));
    put("parked", step.parked.then_some(true.into()));
    put("fingerprint", step.fingerprint.map(|print| print.to_string().into()));
    put("observed", step.observed.as_ref().map(|observed| observed_document(observed).into()));
    put("observation", step.observation.as_ref().map(|seen| observation_document(seen).into()));
    put("lastAttemptAt", step.last_attempt_at.map(date));
    put("lastTransitionAt", step.last_transition_at.map(date));
    put("nextAttemptAt", step.next_attempt_at.map(date));
    document
}

pub(super) fn other_document(other: &OtherResource) -> Document {
    doc! { "externalId": &other.external_id, "name": &other.name }
}

pub(super) fn read_others(step: &Document) -> Vec<OtherResource> {
    let others = step.get_array("others").map(Vec::as_slice).unwrap_or_default();
    let read = |other: &Bson| {
        let other = other.as_document()?;
        let name = other.get_str("name").unwrap_or_default().to_owned();
        Some(OtherResource { external_id: other.get_str("externalId").ok()?.to_owned(), name })
    };
    others.iter().filter_map(read).collect()
}

fn observed_document(observed: &StepDesired) -> Document {
    let mut document = doc! { "presence": observed.presence.name(), "name": observed.name.as_str() };
    if observed.paused {
        document.insert("paused", true);
    }
    if let Some(adopt) = observed.adopt {
        document.insert("adopt", adopt);
    }
    if let Some(domain) = &observed.domain {
        document.insert("domain", domain.as_str());
    }
    if let Some(bytes) = observed.storage_bytes {
        document.insert("storageBytes", bytes);
    }
    document
}

pub(super) fn ready_document(ready: &Ready) -> Document {
    doc! {
        "type": "Ready",
        "status": if ready.ready { "True" } else { "False" },
        "reason": ready.reason.name(),
        "message": &ready.message,
        "observedGeneration": ready.observed_generation,
        "lastTransitionTime": date(ready.last_transition_time),
    }
}

/// The desired state as new documents carry it.
pub(super) fn desired_document(desired: &Desired) -> Document {
    let mut document = doc! { "name": desired.name.as_str() };
    if let Some(domain) = &desired.domain {
        document.insert("domain", domain.as_str());
    }
    if let Some(bytes) = desired.storage_bytes {
        document.insert("quota", doc! { "storageBytes": bytes });
    }
    if desired.services != Services::default() {
        let mut services = Document::new();
        for step in Upstream::ALL {
            services.insert(step.name(), desired.services.has(step));
        }
        document.insert("services", services);
    }
    if desired.paused {
        document.insert("paused", true);
    }
    if let Some(adopt) = desired.adopt {
        document.insert("adopt", adopt);
    }
    document
}

/// A copy of the desired state exactly as it is stored, types and all, so that the server can tell
/// by itself whether it changed since.
pub(super) fn snapshot(document: &Document) -> Document {
    DESIRED
        .into_iter()
        .filter_map(|field| Some((field.to_owned(), document.get(field)?.clone())))
        .collect()
}

pub(super) fn object_id(id: TenantId) -> ObjectId {
    ObjectId::from_bytes(id.bytes())
}

pub(super) fn date(at: Timestamp) -> Bson {
    Bson::DateTime(DateTime::from_millis(at.as_millisecond()))
}

pub(super) fn timestamp(value: &Bson) -> Option<Timestamp> {
    match value {
        Bson::DateTime(at) => Timestamp::from_millisecond(at.timestamp_millis()).ok(),
        _ => None,
    }
}

fn is(document: &Document, field: &str, text: &str) -> bool {
    document.get_str(field).is_ok_and(|found| found == text)
}

fn parsed<T: FromStr>(document: &Document, field: &str) -> Option<T> {
    document.get_str(field).ok()?.parse().ok()
}

/// Whole numbers, in whichever of BSON's three ways a shell wrote them.
pub(super) fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        // Beyond 2^53 a double no longer tells neighbouring integers apart.
        Bson::Double(number) if number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 =>
        {
            #[allow(clippy::cast_possible_truncation)]
            Some(*number as i64)
        }
        _ => None,
    }
}
