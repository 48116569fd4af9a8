//! Lists of tenants, a page at a time, and what they may be filtered by.
//!
//! # Guarantees
//!
//! * Each filter is an indexed query whose order is the index's: a page reads about as many documents as it
//!   has, however large the fleet is, and sorts none. A search text reads index entries instead.
//! * A query finds all that the filter asks for, and perhaps a tenant whose recorded status is that of an
//!   earlier desired state: who shows them leaves that one out.
//!
//! # Documents of other writers
//!
//! A document that no controller has looked at has no status. It counts as not ready, `Reconciling` and
//! `pending`, as it is shown. An edit past the API (a shell's) counts once a controller has noticed it, which
//! takes moments: no index can compare the desired state with what was observed.

use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{Hint, IndexOptions};

use super::document::{Record, projection, read};
use super::{Store, StoreError};
use crate::tenant::{PerStep, Phase, Reason, StepState, Upstream};

/// Which tenants to list: those for which all of this holds.
#[derive(Debug, Clone, Default)]
pub struct PageQuery {
    pub phase: Option<Phase>,
    /// Whether the condition `Ready` is true.
    pub ready: Option<bool>,
    /// Of the condition `Ready`, or of a step.
    pub reason: Option<Reason>,
    pub steps: PerStep<Option<StepState>>,
    /// A part of the slug, the name or the domain, in whatever case.
    pub search: Option<String>,
    /// Slugs after this one.
    pub after: Option<String>,
    pub limit: u16,
}

#[derive(Debug, Clone)]
pub struct Page {
    /// In order of their slugs.
    pub records: Vec<Record>,
    /// The slug to continue after, when there are more.
    pub next: Option<String>,
}

impl Store {
    /// Reads a page in order of the slugs. Documents without a slug are not listed.
    pub async fn list(&self, query: &PageQuery) -> Result<Page, StoreError> {
        let most = usize::from(query.limit.max(1));
        let mut find = self
            .tenants
            .find(query.filter())
            .projection(projection())
            .sort(doc! { "slug": 1 })
            // One more than asked for tells whether there is a next page.
            .limit(i64::from(query.limit.max(1)) + 1);
        if query.search.is_some() {
            // What matches may come late in every index, so that trying them for a while tells nothing.
            find = find.hint(Hint::Keys(search_keys()));
        }
        let slug = |document: &Document| document.get_str("slug").ok().map(ToOwned::to_owned);
        let mut found = self.read_all("list", find, |document| (slug(document), read(document))).await?;
        let more = found.len() > most;
        found.truncate(most);
        let next = if more { found.last().and_then(|(slug, _)| slug.clone()) } else { None };
        Ok(Page { records: found.into_iter().map(|(_, record)| record).collect(), next })
    }
}

impl PageQuery {
    fn filter(&self) -> Document {
        let steps = Upstream::ALL.into_iter().filter_map(|step| Some((step, self.steps[step]?)));
        let mut all: Vec<Vec<Document>> = Vec::new();
        all.extend(self.phase.map(of_phase));
        all.extend(self.ready.map(of_ready));
        all.extend(self.reason.map(of_reason));
        all.extend(steps.map(|(step, state)| of_step(step, state)));
        all.extend(self.search.as_deref().map(matching));
        let after = doc! { "slug": { "$gt": self.after.as_deref().unwrap_or_default() } };
        let all = all.into_iter().map(|any| {
            // In each branch, so that each is read from its index in order, and the branches are merged.
            let branch = |one: Document| doc! { "$and": [after.clone(), one] };
            let mut any: Vec<_> = any.into_iter().map(branch).collect();
            if any.len() == 1 {
                any.remove(0)
            } else {
                doc! { "$or": any }
            }
        });
        let mut all: Vec<_> = all.collect();
        match all.len() {
            0 => after,
            1 => all.remove(0),
            _ => doc! { "$and": all },
        }
    }
}

fn of_phase(phase: Phase) -> Vec<Document> {
    match phase {
        // A document that no controller has seen yet has no status.
        Phase::Pending => vec![doc! { "status": { "$in": [phase.name(), Bson::Null] } }],
        _ => vec![doc! { "status": phase.name() }],
    }
}

fn of_ready(ready: bool) -> Vec<Document> {
    if ready {
        return vec![recorded(doc! { "status": "True" })];
    }
    vec![recorded(doc! { "status": "False" }), unseen(), edited()]
}

fn of_reason(reason: Reason) -> Vec<Document> {
    let mut any = vec![recorded(doc! { "reason": reason.name() })];
    any.extend(Upstream::ALL.map(|step| doc! { format!("steps.{step}.reason"): reason.name() }));
    match reason {
        Reason::Reconciling => any.extend([unseen(), edited()]),
        Reason::DesiredStateChanged => any.push(edited()),
        _ => {}
    }
    any
}

fn of_step(step: Upstream, state: StepState) -> Vec<Document> {
    let field = format!("steps.{step}.state");
    let recorded = doc! { &field: state.name() };
    match state {
        StepState::Pending => vec![recorded, doc! { field: { "$exists": false } }, edited()],
        _ => vec![recorded],
    }
}

fn matching(text: &str) -> Vec<Document> {
    let pattern = escaped(text);
    let part = |field: &str| doc! { field: { "$regex": &pattern, "$options": "i" } };
    ["slug", "name", "domain"].map(part).to_vec()
}

/// What the controller recorded in the condition `Ready`.
fn recorded(mut condition: Document) -> Document {
    condition.insert("type", "Ready");
    doc! { "conditions": { "$elemMatch": condition } }
}

/// No reconcile has come to an end yet.
fn unseen() -> Document {
    // Of an array, such as the conditions are, no index tells in order which tenants lack an element.
    doc! { "observedGeneration": { "$exists": false } }
}

/// Edited through the API, and no reconcile has told it yet: what is recorded may be of an earlier desired state.
fn edited() -> Document {
    doc! { "changedBy": { "$exists": true } }
}

/// As a regular expression that matches this and nothing else.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // BSON ends a pattern there.
            '\0' => pattern.push_str("\\x00"),
            c if c.is_ascii_punctuation() => pattern.extend(['\\', c]),
            c => pattern.push(c),
        }
    }
    pattern
}

/// All that a search text is looked for in, so that no other document need be read.
fn search_keys() -> Document {
    doc! { "slug": 1, "name": 1, "domain": 1 }
}

/// Indexes of what lists are filtered by, each with the slug last, which is the order of lists.
pub(super) fn indexes() -> Vec<IndexModel> {
    let index = |name: &str, keys: Document| {
        let options = IndexOptions::builder().name(format!("tenantry_{name}")).build();
        IndexModel::builder().keys(keys).options(options).build()
    };
    let by = |name: &str, field: &str| index(name, doc! { field: 1, "slug": 1 });
    // Others may keep conditions of their own beside ours.
    let condition =
        |name: &str, field: &str| index(name, doc! { "conditions.type": 1, field: 1, "slug": 1 });
    let mut all = vec![
        by("status", "status"),
        condition("ready", "conditions.status"),
        condition("reason", "conditions.reason"),
        by("unseen", "observedGeneration"),
        index("search", search_keys()),
    ];
    for step in Upstream::ALL {
        all.push(by(&format!("state_{step}"), &format!("steps.{step}.state")));
        all.push(by(&format!("reason_{step}"), &format!("steps.{step}.reason")));
    }
    let options = IndexOptions::builder()
        .name("tenantry_edited".to_owned())
        .partial_filter_expression(edited())
        .build();
    all.push(IndexModel::builder().keys(doc! { "slug": 1, "generation": 1 }).options(options).build());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_text_is_no_pattern() {
        assert_eq!(escaped("a.b*c"), r"a\.b\*c");
        assert_eq!(escaped(r"Bü (\d+)"), r"Bü \(\\d\+\)");
    }
}
