//! Changes of the desired state that clients of the API make.
//!
//! # Guarantees
//!
//! * One command each, and one read more where the client names the version that it edits.
//! * The server compares, so that a change that changes nothing writes nothing: no new generation, no
//!   event, no reconcile.
//! * Everything else in the document stays as it is, unknown fields among it. What the
//!   controller makes of the change is its own business: it sees it as it sees every writer's.

use mongodb::bson::{Bson, Document, doc, oid::ObjectId};
use mongodb::options::ReturnDocument;

use super::document::{Record, TRACEPARENT, WAITED_FOR, projection, read, snapshot};
use super::due::{content_due, current_desired};
use super::tenants::{NewTenant, by_slug, due_as_it_is, signed};
use super::{Store, StoreError};
use crate::telemetry::traces::traceparent;
use crate::tenant::{
    DeletionPolicy, Desired, EventKind, MailDomain, PerStep, Phase, Slug, TenantName, Upstream,
};

/// A change of the desired state, field by field. `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    pub name: Option<TenantName>,
    /// `Some(None)` removes it.
    pub domain: Option<Option<MailDomain>>,
    /// Bytes; `Some(None)` removes it.
    pub storage_bytes: Option<Option<i64>>,
    /// Whether the tenant shall have the service.
    pub services: PerStep<Option<bool>>,
    pub paused: Option<bool>,
    /// `Some(None)` leaves it to the fleet's default.
    pub adopt: Option<Option<bool>>,
    /// Whether it is all that the tenant shall be, so that what cannot be read beside it is removed.
    pub corrects: bool,
}

impl Edit {
    /// The change that makes any desired state this one.
    pub fn replace(desired: &Desired) -> Self {
        Self {
            name: Some(desired.name.clone()),
            domain: Some(desired.domain.clone()),
            storage_bytes: Some(desired.storage_bytes),
            services: PerStep::from_fn(|step| Some(desired.services.has(step))),
            paused: Some(desired.paused),
            adopt: Some(desired.adopt),
            corrects: true,
        }
    }
}

/// What became of an edit.
#[derive(Debug, Clone)]
pub enum Edited {
    /// The tenant is as asked for, whether or not that was a change.
    Done(Record),
    /// There is no such tenant.
    Missing,
    /// It is to be deleted, and untouched.
    Leaving,
    /// The tenant is not as the caller expected it, and is untouched.
    Unexpected,
}

/// What became of a tenant that was put.
#[derive(Debug, Clone)]
pub struct Put {
    pub record: Record,
    /// Whether there was none before.
    pub created: bool,
}

/// How often an upsert that lost a race against another one is repeated; the next one finds a document.
const UPSERTS: usize = 3;

impl Store {
    /// Edits a tenant, whatever it is like now.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] the edit was made whole or not at all. It may be repeated.
    pub async fn edit(&self, slug: &Slug, edit: &Edit) -> Result<Edited, StoreError> {
        let stage = self.stage(edit, EventKind::Edited);
        if let Some(after) = self.find_and_set("edit", not_deleting(by_slug(slug)), stage).await? {
            return Ok(Edited::Done(after));
        }
        // The same question again, so that the answer is true at some moment.
        let found = self.bounded("get", self.tenants.find_one(by_slug(slug)).projection(projection()));
        Ok(if found.await?.is_some() { Edited::Leaving } else { Edited::Missing })
    }

    /// Edits a tenant if it is as `expected`, and its desired state is not changed in between.
    ///
    /// # Errors
    /// As with [`Store::edit`]; but a repetition may find that the tenant is no longer as expected.
    pub async fn edit_if(
        &self,
        slug: &Slug,
        edit: &Edit,
        expected: impl Fn(&Record) -> bool,
    ) -> Result<Edited, StoreError> {
        let find = self.tenants.find_one(by_slug(slug)).projection(projection());
        let Some(before) = self.bounded("get", find).await? else { return Ok(Edited::Missing) };
        if matches!(before.get("deletionRequestedAt"), Some(Bson::DateTime(_))) {
            return Ok(Edited::Leaving);
        }
        if !expected(&read(&before)) {
            return Ok(Edited::Unexpected);
        }
        let unchanged = doc! {
            "_id": before.get("_id").cloned().unwrap_or(Bson::Null),
            "$expr": { "$and": [
                { "$eq": [current_desired("$"), { "$literal": snapshot(&before) }] },
                { "$eq": [
                    { "$ifNull": ["$generation", Bson::Null] },
                    { "$literal": before.get("generation").cloned().unwrap_or(Bson::Null) },
                ] },
            ] },
        };
        let stage = self.stage(edit, EventKind::Edited);
        let after = self.find_and_set("edit", unchanged, stage).await?;
        Ok(after.map_or(Edited::Unexpected, Edited::Done))
    }

    /// Makes the tenant if there is none, and edits it otherwise. `None` if there is one that is to be deleted.
    /// `edit` must set all that `new` has, but for fields whose default is the absence of the field.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] it was done whole or not at all. It may be repeated.
    pub async fn put(&self, new: &NewTenant, edit: &Edit) -> Result<Option<Put>, StoreError> {
        let id = ObjectId::new();
        let absent = doc! { "$eq": [{ "$type": "$_id" }, "missing"] };
        let edit = self.stage(edit, EventKind::Edited);
        let mut made = Document::new();
        // Fields of a new document only; a present one keeps its own, or stays without.
        let mut initial = |field: &str, value: Bson| {
            let own = format!("${field}");
            made.insert(field, doc! { "$cond": [absent.clone(), value, own] });
        };
        initial("_id", id.into());
        initial("status", Phase::Pending.name().into());
        initial("generation", 1_i64.into());
        initial("lease", doc! { "epoch": 0_i64 }.into());
        initial("createdAt", "$$NOW".into());
        initial("updatedAt", "$$NOW".into());
        let created = doc! { "$literal": signed(self.by.as_deref(), EventKind::Created) };
        initial("changedBy", Bson::Array(vec![created.into()]));
        // After the edit, which looks at what was there.
        let pipeline = vec![edit, doc! { "$set": made }];
        let mut left = UPSERTS;
        loop {
            left -= 1;
            let update = self
                .tenants
                .find_one_and_update(not_deleting(by_slug(&new.slug)), pipeline.clone())
                .projection(projection())
                .upsert(true)
                .return_document(ReturnDocument::After);
            match self.bounded("put", update).await {
                Ok(Some(after)) => {
                    let created = after.get_object_id("_id").is_ok_and(|found| found == id);
                    return Ok(Some(Put { record: read(&after), created }));
                }
                // An upsert that finds nothing makes something, and tells it.
                Ok(None) if left > 0 => {}
                // Another request made it just now, or it is there and leaves, or an index of others refuses it.
                Err(duplicate @ StoreError::Duplicate { .. }) => {
                    let leaving =
                        doc! { "slug": new.slug.as_str(), "deletionRequestedAt": { "$type": "date" } };
                    let find = self.tenants.find_one(leaving).projection(doc! { "_id": 1 });
                    if self.bounded("get", find).await?.is_some() {
                        return Ok(None);
                    }
                    if left == 0 {
                        return Err(duplicate.unless_raced());
                    }
                }
                Ok(None) => return Err(contended()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Pauses a tenant, or lets it go on.
    ///
    /// # Errors
    /// As with [`Store::edit`].
    pub async fn set_paused(&self, slug: &Slug, paused: bool) -> Result<Option<Record>, StoreError> {
        let kind = if paused { EventKind::Paused } else { EventKind::Resumed };
        let edit = Edit { paused: Some(paused), ..Edit::default() };
        self.find_and_set("pause", by_slug(slug), self.stage(&edit, kind)).await
    }

    /// Asks for a tenant's deletion. Of several requests the one that removes the most counts. One whose `_id`
    /// is no ObjectId stays as it is: no reconcile could ever carry it out.
    ///
    /// # Errors
    /// As with [`Store::edit`].
    pub async fn request_deletion(
        &self,
        slug: &Slug,
        policy: DeletionPolicy,
    ) -> Result<Option<Record>, StoreError> {
        let rank = |field: &str| {
            let names: Vec<Bson> = DeletionPolicy::ALL.map(|policy| policy.name().into()).to_vec();
            doc! { "$indexOfArray": [names, field] }
        };
        let asked = leaving();
        let less = doc! { "$lt": [rank("$deletionPolicy"), rank(policy.name())] };
        let changed = Bson::from(doc! { "$or": [{ "$not": [asked.clone()] }, less] });
        let mut fields = self.edited(EventKind::DeletionRequested, &changed);
        let when = |value: Bson, field: &str| doc! { "$cond": [changed.clone(), value, field] };
        fields.extend(doc! {
            "deletionRequestedAt": { "$cond": [asked, "$deletionRequestedAt", "$$NOW"] },
            "deletionPolicy": when(policy.name().into(), "$deletionPolicy"),
            "status": Phase::Deleting.name(),
            "nextReconcileAt": when("$$REMOVE".into(), "$nextReconcileAt"),
        });
        let filter = doc! { "slug": slug.as_str(), "_id": { "$type": "objectId" } };
        match self.find_and_set("request deletion", filter, doc! { "$set": fields }).await? {
            Some(record) => Ok(Some(record)),
            None => self.get(slug).await,
        }
    }

    /// Takes a deletion back, for as long as the document is there.
    ///
    /// # Errors
    /// As with [`Store::edit`].
    pub async fn undelete(&self, slug: &Slug) -> Result<Option<Record>, StoreError> {
        let changed = Bson::from(leaving());
        let mut fields = self.edited(EventKind::Undeleted, &changed);
        let when = |value: Bson, field: &str| doc! { "$cond": [changed.clone(), value, field] };
        fields.extend(doc! {
            "status": when(Phase::Pending.name().into(), "$status"),
            "deletionRequestedAt": when("$$REMOVE".into(), "$deletionRequestedAt"),
            "deletionPolicy": when("$$REMOVE".into(), "$deletionPolicy"),
            "nextReconcileAt": when("$$REMOVE".into(), "$nextReconcileAt"),
        });
        self.find_and_set("undelete", by_slug(slug), doc! { "$set": fields }).await
    }

    async fn find_and_set(
        &self,
        operation: &'static str,
        filter: Document,
        stage: Document,
    ) -> Result<Option<Record>, StoreError> {
        let update = self
            .tenants
            .find_one_and_update(filter, vec![stage])
            .projection(projection())
            .return_document(ReturnDocument::After);
        Ok(self.bounded(operation, update).await?.as_ref().map(read))
    }
}

/// Aggregation expression: the tenant is to be deleted.
fn leaving() -> Document {
    doc! { "$eq": [{ "$type": "$deletionRequestedAt" }, "date"] }
}

fn contended() -> StoreError {
    let message = "the tenant came and went while it was written".to_owned();
    StoreError::Unavailable { operation: "put", message }
}

/// Of what matches, tenants that are not to be deleted.
fn not_deleting(mut filter: Document) -> Document {
    // Not as an equality, which an upsert would write into what it makes.
    filter.insert("deletionRequestedAt", doc! { "$not": { "$type": "date" } });
    filter
}

impl Store {
    /// One stage, in which every expression sees the document as it was.
    fn stage(&self, edit: &Edit, kind: EventKind) -> Document {
        let mut fields = Document::new();
        let mut changes = Vec::new();
        let mut set = |field: &str, changed: Bson, value: Bson| {
            fields.insert(field, doc! { "$cond": [changed.clone(), value, format!("${field}")] });
            changes.push(changed);
        };
        if let Some(name) = &edit.name {
            let name = literal(name.as_str());
            set("name", differs("$name", Bson::Null, name.clone()), name);
        }
        if let Some(domain) = &edit.domain {
            let wanted = domain.as_ref().map(|domain| literal(domain.as_str()));
            let changed = differs("$domain", Bson::Null, wanted.clone().unwrap_or(Bson::Null));
            set("domain", changed, wanted.unwrap_or_else(|| "$$REMOVE".into()));
        }
        if let Some(bytes) = edit.storage_bytes {
            let wanted = bytes.map_or(Bson::Null, Bson::from);
            let differs = differs("$quota.storageBytes", Bson::Null, wanted.clone());
            let changed = doc! { "$or": [differs, no_object("$quota")] }.into();
            let quota = match bytes {
                Some(_) => doc! { "$mergeObjects": [object("$quota"), { "storageBytes": wanted }] },
                None => doc! { "$unsetField": { "field": "storageBytes", "input": object("$quota") } },
            };
            set("quota", changed, quota.into());
        }
        let wanted: Vec<_> =
            edit.services.iter().filter_map(|(step, on)| Some((step, (*on)?))).collect();
        if !wanted.is_empty() {
            let differing = |(step, on): &(Upstream, bool)| {
                differs(&format!("$services.{step}"), true.into(), (*on).into())
            };
            let mut changed: Vec<_> = wanted.iter().map(differing).collect();
            changed.push(no_object("$services"));
            let switches: Document =
                wanted.iter().map(|(step, on)| (step.name().to_owned(), Bson::from(*on))).collect();
            let services = doc! { "$mergeObjects": [object("$services"), switches] };
            set("services", doc! { "$or": changed }.into(), services.into());
        }
        if let Some(on) = edit.paused {
            set("paused", differs("$paused", false.into(), on.into()), on.into());
        }
        if let Some(adopt) = edit.adopt {
            let wanted = adopt.map(Bson::from);
            let changed = differs("$adopt", Bson::Null, wanted.clone().unwrap_or(Bson::Null));
            set("adopt", changed, wanted.unwrap_or_else(|| "$$REMOVE".into()));
        }
        if edit.corrects {
            // Of a deletion or a request that cannot be read, nothing is known but that it makes the document
            // invalid.
            let date: [Bson; 3] = ["missing".into(), "null".into(), "date".into()];
            for field in ["deletionRequestedAt", "reconcileRequestedAt"] {
                set(field, not_of_type(&format!("${field}"), &date), "$$REMOVE".into());
            }
            // What was to be paused stays so until a client says otherwise.
            if edit.paused.is_none() {
                let flag: [Bson; 3] = ["missing".into(), "null".into(), "bool".into()];
                set("paused", not_of_type("$paused", &flag), true.into());
            }
            let mut known: Vec<Bson> = vec![Bson::Null];
            known.extend(DeletionPolicy::ALL.map(|policy| Bson::from(policy.name())));
            let policy = doc! { "$ifNull": ["$deletionPolicy", Bson::Null] };
            let unknown = doc! { "$not": { "$in": [policy, known] } };
            set("deletionPolicy", unknown.into(), "$$REMOVE".into());
        }
        let changed = Bson::from(doc! { "$or": changes });
        fields.extend(self.edited(kind, &changed));
        // Though it may be taken back before any process sees it: who made it is told.
        fields
            .insert("nextReconcileAt", doc! { "$cond": [changed, due_as_it_is(), "$nextReconcileAt"] });
        doc! { "$set": fields }
    }

    /// What every change of the desired state sets, if `changed` says that it is one.
    fn edited(&self, kind: EventKind, changed: &Bson) -> Document {
        // Another writer may have written anything there.
        let generation = doc! { "$convert": {
            "input": "$generation", "to": "long", "onError": 1_i64, "onNull": 1_i64,
        } };
        let next = doc! { "$add": [generation, 1_i64] };
        let mut fields = doc! {
            "generation": { "$cond": [changed.clone(), next, "$generation"] },
            "updatedAt": { "$cond": [changed.clone(), "$$NOW", "$updatedAt"] },
        };
        if self.waits {
            // Also for what others changed and no reconcile has handled yet: that is what the client waits for.
            let waits = doc! { "$or": [changed.clone(), content_due("$")] };
            fields.insert(WAITED_FOR, doc! { "$cond": [waits, true, format!("${WAITED_FOR}")] });
        }
        if let Some(trace) = traceparent() {
            let own = format!("${TRACEPARENT}");
            fields.insert(TRACEPARENT, doc! { "$cond": [changed.clone(), trace, own] });
        }
        fields.extend(self.signature(kind, changed.clone()));
        fields
    }
}

/// Aggregation expression: the field, or `absent` where there is none, is not `wanted`.
fn differs(field: &str, absent: Bson, wanted: Bson) -> Bson {
    doc! { "$ne": [{ "$ifNull": [field, absent] }, wanted] }.into()
}

/// Aggregation expression: the field has something else than these types.
fn not_of_type(field: &str, types: &[Bson]) -> Bson {
    doc! { "$not": { "$in": [{ "$type": field }, types] } }.into()
}

/// Aggregation expression: the field has something that is no object, so that what it should hold cannot be read.
fn no_object(field: &str) -> Bson {
    not_of_type(field, &["missing".into(), "null".into(), "object".into()])
}

/// Aggregation expression: the field if it is an object, else an empty one.
fn object(field: &str) -> Document {
    doc! { "$cond": [{ "$eq": [{ "$type": field }, "object"] }, field, { "$literal": {} }] }
}

/// A text that is no path and no variable, whatever it begins with.
fn literal(text: &str) -> Bson {
    doc! { "$literal": text }.into()
}
