//! Authentik: one group per tenant, `/api/v3/core/groups/`.
//!
//! Sources: the API schema, and what servers 2025.12.4 and 2025.8.1 were observed to do. Where a
//! comment says *observed*, it is the latter.
//!
//! * Group rights are admin rights in Authentik (observed: an account that may change groups can make itself
//!   a superuser). Nothing of a tenant but slug, id and name ever reaches a request body.
//! * A write that is answered with `405` and an empty body failed inside the server, or was applied
//!   (observed): the outcome is unknown.
//! * Filters are hints: unknown ones are ignored silently, an empty `name=` lists everything
//!   (observed). Every result is compared again here, and `search=`, a substring match, is not used.
//! * Attributes are replaced whole by PATCH and have no version: foreign ones are sent back as they
//!   were read, byte for byte.

use std::collections::{BTreeMap, HashSet};

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Error;
use super::GroupTemplate;
use super::adopt::Owner;
use super::converge::{Checked, DUPLICATE, Integration, Marked, Release, Released, Seen, Target, Usage};
use super::deeds::note;
use super::upstream::{Answer, Call, Dialect, Purpose, To, UpstreamClient};
use crate::metrics::Operation;
use crate::tenant::{Before, Deed, Fate, Field, Fingerprint, FleetId, Reason, TenantId, Upstream};

/// The attributes that we own. All strings: a number beyond 64 bits would make every list that holds
/// the group fail (observed).
const MARK: &str = "tenantry_id";
const SLUG: &str = "tenantry_slug";
const NAME: &str = "tenantry_name";
/// Absent while the group is in use.
const USAGE: &str = "tenantry_status";
/// The fleet whose group it is. Older marks are without it, and get it when the group is written anyway.
const FLEET: &str = "tenantry_fleet";
const OURS: [&str; 5] = [MARK, SLUG, NAME, USAGE, FLEET];

/// More pages than any fleet has: two million groups at 100 a page.
const MAX_PAGES: u32 = 20_000;
/// The most that a server since 2025.12 gives (it caps silently; observed).
const PAGE_SIZE: &str = "100";

/// The integration with one Authentik server.
pub struct Authentik {
    upstream: UpstreamClient,
    template: GroupTemplate,
}

/// A group as the API shows it; of its many members only those that matter.
#[derive(Debug, Clone, Deserialize)]
pub struct Group {
    pk: String,
    name: String,
    #[serde(default)]
    attributes: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    users: Vec<i64>,
    #[serde(default)]
    is_superuser: bool,
    /// Present since 2025.12, where group names are unique in the database.
    parents: Option<serde::de::IgnoredAny>,
    /// Other groups that carry the same mark.
    #[serde(skip)]
    twins: Vec<Group>,
    /// Why it could not be understood: then only its id, its name and its marks are as the server shows
    /// them.
    #[serde(skip)]
    fault: Option<String>,
}

#[derive(Deserialize)]
struct Listing {
    pagination: Pagination,
    results: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Pagination {
    /// Number of the next page, 0 when there is none.
    next: u32,
}

/// Everything that we ever send. Add nothing that a tenant's document controls: see the module's
/// first point.
#[derive(Serialize)]
struct GroupBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    attributes: BTreeMap<String, Box<RawValue>>,
}

#[derive(Deserialize)]
struct Detail {
    detail: String,
}

const PERMISSIONS: &str = "The token's user needs the permissions view_group, add_group, change_group and \
                           delete_group of authentik_core";

/// The 403s that are about the credential rather than a permission (observed; Authentik's API has no
/// 401). They are not localized; the one about permissions is.
const CREDENTIAL_DETAILS: [&str; 4] = [
    "Authentication credentials were not provided.",
    "Token invalid/expired",
    "Unsupported authentication type",
    "Malformed header",
];

impl Authentik {
    pub fn new(upstream: UpstreamClient, template: GroupTemplate) -> Self {
        let dialect = Dialect { judge, closed: "" };
        Self { upstream: upstream.speaking(dialect), template }
    }

    /// Those of the groups for which the server claims `filter` holds that `wanted` agrees with, from
    /// all pages. No more than a page of the others is ever kept.
    async fn list(
        &self,
        operation: Operation,
        filter: (&str, &str),
        mut wanted: impl FnMut(&Group) -> bool,
    ) -> Result<Vec<Group>, Error> {
        let mut groups = Vec::new();
        let mut page = 1;
        for _ in 0..MAX_PAGES {
            let number = page.to_string();
            let query = [
                filter,
                // Members' e-mail addresses are none of our business.
                ("include_users", "false"),
                ("page_size", PAGE_SIZE),
                ("page", &number),
            ];
            let call = Call::get(operation, &GROUPS).query(&query);
            let answer = self.upstream.read(&call).await?;
            match answer.status {
                StatusCode::OK => {}
                // The list shrank while we paged (observed): what we have read may have gaps.
                StatusCode::NOT_FOUND if page > 1 && answer.json::<Detail>().is_some() => {
                    let message = self.upstream.refusal(&call, &answer);
                    return Err(Error::transient(Reason::UnexpectedAnswer, message));
                }
                _ => return Err(self.refused(&call, &answer)),
            }
            let listing: Listing = self.parse(&call, &answer)?;
            let results = listing.results.iter().map(|element| self.read_element(&call, element));
            groups.extend(results.filter(&mut wanted));
            page = listing.pagination.next;
            if page == 0 {
                return Ok(groups);
            }
        }
        let message = format!("authentik: {operation}: more than {MAX_PAGES} pages");
        Err(Error::transient(Reason::UnexpectedAnswer, message))
    }

    /// A group of a list. One that cannot be understood does not spoil the others.
    fn read_element(&self, call: &Call<'_>, element: &RawValue) -> Group {
        serde_json::from_str(element.get()).unwrap_or_else(|error: serde_json::Error| {
            let group = Group::of_odd(element, error.to_string());
            self.upstream.skipped(call, &group.pk, &error.to_string());
            group
        })
    }

    async fn named(&self, name: &str) -> Result<Vec<Group>, Error> {
        // One whose name cannot be read may be it.
        let wanted =
            |group: &Group| group.name == name || group.fault.is_some() && group.name.is_empty();
        self.list(Operation::FindGroupByName, ("name", name), wanted).await
    }

    async fn marked(&self, id: TenantId) -> Result<Vec<Group>, Error> {
        let mark = id.to_string();
        let filter = serde_json::json!({ MARK: mark }).to_string();
        let wanted = |group: &Group| {
            let unreadable = group.fault.is_some() && group.attributes.is_empty();
            unreadable || group.text(MARK).as_deref() == Some(&mark)
        };
        self.list(Operation::FindGroupByMark, ("attributes", &filter), wanted).await
    }

    async fn get(&self, pk: &str) -> Result<Option<Group>, Error> {
        let path = group_path(pk);
        let call = Call::get(Operation::GetGroup, &path).query(&[("include_users", "false")]);
        let answer = self.upstream.read(&call).await?;
        match answer.status {
            StatusCode::OK => self.parse(&call, &answer).map(Some),
            StatusCode::NOT_FOUND if answer.json::<Detail>().is_some() => Ok(None),
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// Writes what a group says once it is let go.
    async fn let_go(
        &self,
        group: &Group,
        name: Option<&str>,
        attributes: BTreeMap<String, Box<RawValue>>,
    ) -> Result<(), Error> {
        let path = group_path(&group.pk);
        let body = GroupBody { name, attributes };
        let call = Call::new(Operation::ReleaseGroup, Method::PATCH, &path).json(&body);
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// Marks a group as no longer in use.
    async fn keep(&self, target: &Target, group: &Group, usage: Usage) -> Result<(), Error> {
        if group.usage() == usage {
            return Ok(());
        }
        let mut attributes = group.attributes.clone();
        attributes.insert(USAGE.to_owned(), raw_string(usage.name()));
        attributes.insert(FLEET.to_owned(), raw_string(&target.fleet.to_string()));
        self.let_go(group, None, attributes).await?;
        note(Deed::LetGo(Fate::Kept(usage.name())), &group.name, &group.pk);
        Ok(())
    }

    /// Removes a second group of ours that has no members.
    async fn remove_twin(&self, twin: &Group) -> Result<(), Error> {
        let path = group_path(&twin.pk);
        let call = Call::new(Operation::DeleteDuplicateGroup, Method::DELETE, &path);
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::NO_CONTENT => {
                note(Deed::TwinLetGo(Fate::Deleted), &twin.name, &twin.pk);
                Ok(())
            }
            StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.refused(&call, &answer)),
        }
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, call: &Call<'_>, answer: &Answer) -> Result<T, Error> {
        answer.json().ok_or_else(|| {
            let message = self.upstream.refusal(call, answer);
            Error::transient(Reason::UnexpectedAnswer, message).after(purpose(call))
        })
    }

    /// What a refusal means.
    fn refused(&self, call: &Call<'_>, answer: &Answer) -> Error {
        let message = self.upstream.refusal(call, answer);
        let detail = answer.json::<Detail>().map(|body| body.detail);
        match answer.status {
            StatusCode::METHOD_NOT_ALLOWED if answer.body.is_empty() => {
                let message = format!("{message} (in Authentik: an error inside the server)");
                Error::transient(Reason::UpstreamError, message).after(purpose(call))
            }
            StatusCode::FORBIDDEN if detail.is_none() => {
                let message = format!("{message} (not in Authentik's words: does a proxy refuse it?)");
                Error::terminal(Reason::Forbidden, message)
            }
            StatusCode::FORBIDDEN => {
                Error::terminal(Reason::Forbidden, format!("{message}. {PERMISSIONS}"))
            }
            // Every Authentik has the list; another path may be missing for another reason.
            StatusCode::NOT_FOUND
                if detail.is_none() && matches!(call.to, To::Path(path) if path == GROUPS) =>
            {
                let message = format!("{message}. Is AUTHENTIK_API_URL an Authentik server's address?");
                Error::misconfigured(Reason::WrongAddress, message)
            }
            status if status.is_client_error() => Error::terminal(Reason::Rejected, message),
            _ => Error::transient(Reason::UnexpectedAnswer, message).after(purpose(call)),
        }
    }

    fn our_attributes(target: &Target) -> [(&'static str, String); 4] {
        [
            (MARK, target.id.to_string()),
            (SLUG, target.slug.to_string()),
            (NAME, target.desired.name.to_string()),
            (FLEET, target.fleet.to_string()),
        ]
    }

    /// Picks the tenant's group among those that could be it.
    fn choose(&self, target: &Target, mut groups: Vec<Group>) -> Result<Option<Group>, Error> {
        if let Some((group, fault)) = groups.iter().find_map(|it| Some((it, it.fault.as_ref()?))) {
            // It is there, so nothing is made in its place.
            let fault = self.upstream.printable(fault);
            let message = format!("authentik: the group {:?} cannot be understood: {fault}", group.pk);
            return Err(Error::transient(Reason::UnexpectedAnswer, message));
        }
        groups.sort_by(|a, b| a.pk.cmp(&b.pk));
        groups.dedup_by(|a, b| a.pk == b.pk);
        let recorded = |group: &Group| target.recorded.as_ref() == Some(&group.pk);
        let (mut ours, mut others): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| {
            group.marked_for() == Some(target.id) && !target.fleet.is_not(group.fleet())
        });
        if ours.is_empty() {
            if let Some(position) = others.iter().position(recorded) {
                return Ok(Some(others.swap_remove(position)));
            }
            // Only before 2025.12 can two groups have one name.
            return match others.len() {
                0 | 1 => Ok(others.pop()),
                _ => Err(Error::terminal(
                    Reason::Conflict,
                    format!(
                        "authentik: {} groups are named {:?} and none carries this tenant's mark; \
                         rename or remove all but the one to adopt",
                        others.len(),
                        others[0].name,
                    ),
                )),
            };
        }
        // Every process, at every time, must keep the same one: the recorded, else the first by id.
        let keep = ours.iter().position(recorded).unwrap_or(0);
        let mut group = ours.remove(keep);
        group.twins = ours;
        Ok(Some(group))
    }
}

/// What Authentik says of our token, whatever was asked.
fn judge(upstream: &UpstreamClient, call: &Call<'_>, answer: &Answer) -> Option<Error> {
    let detail = answer.json::<Detail>().map(|body| body.detail);
    let is_about_us = match answer.status {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::FORBIDDEN => {
            detail.as_deref().is_some_and(|detail| CREDENTIAL_DETAILS.contains(&detail))
        }
        _ => false,
    };
    is_about_us.then(|| {
        let message = format!(
            "{}. AUTHENTIK_API_TOKEN must be the key of a token with intent \"API\" that does not expire",
            upstream.refusal(call, answer)
        );
        Error::misconfigured(Reason::CredentialsRejected, message)
    })
}

/// Path of the collection; the trailing slash is required (a POST without is answered 405, observed).
const GROUPS: [&str; 5] = ["api", "v3", "core", "groups", ""];

fn group_path(pk: &str) -> [&str; 6] {
    ["api", "v3", "core", "groups", pk, ""]
}

/// A REST API: its methods tell.
fn purpose(call: &Call<'_>) -> Purpose {
    if call.method.is_safe() { Purpose::Read } else { Purpose::Write }
}

impl Group {
    /// Of an element of a list that is no group as we know one: what it is and whose, as far as that can be
    /// read, so that it is never taken for absent.
    fn of_odd(element: &RawValue, fault: String) -> Self {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Odd {
            pk: Option<Box<RawValue>>,
            name: Option<Box<RawValue>>,
            attributes: Option<Box<RawValue>>,
        }
        fn read<T: serde::de::DeserializeOwned + Default>(value: Option<Box<RawValue>>) -> T {
            value.and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default()
        }
        let odd: Odd = serde_json::from_str(element.get()).unwrap_or_default();
        Self {
            pk: read(odd.pk),
            name: read(odd.name),
            attributes: read(odd.attributes),
            users: Vec::new(),
            is_superuser: false,
            parents: None,
            twins: Vec::new(),
            fault: Some(fault),
        }
    }

    /// The tenant that it is marked for.
    fn marked_for(&self) -> Option<TenantId> {
        self.text(MARK)?.parse().ok()
    }

    /// The fleet that its mark names.
    fn fleet(&self) -> Option<FleetId> {
        self.text(FLEET)?.parse().ok()
    }

    fn usage(&self) -> Usage {
        self.text(USAGE).and_then(|usage| Usage::parse(&usage)).unwrap_or_default()
    }

    /// An attribute that is a string.
    fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.attributes.get(key)?.get()).ok()
    }
}

impl Integration for Authentik {
    type Resource = Group;

    fn step(&self) -> Upstream {
        Upstream::Authentik
    }

    fn upstream(&self) -> &UpstreamClient {
        &self.upstream
    }

    async fn observe(&self, target: &Target) -> Result<Option<Group>, Error> {
        let name = self.template.name_for(&target.slug);
        let mut found = match self.named(&name).await {
            Ok(found) => found,
            // An account with rights on its own groups only gets 403 instead of an empty list until
            // it has one (observed). Whether it may create, creating tells.
            Err(error) if error.failure.reason == Reason::Forbidden && target.recorded.is_none() => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let Some(pk) = &target.recorded
            && !found.iter().any(|group| group.pk == *pk)
        {
            // It was renamed, or it is gone.
            found.extend(self.get(pk).await?);
        }
        if found.is_empty() && (target.may_exist || target.recorded.is_some()) {
            found = self.marked(target.id).await?;
        }
        self.choose(target, found)
    }

    async fn create(&self, target: &Target) -> Result<Group, Error> {
        let name = self.template.name_for(&target.slug);
        let attributes =
            Self::our_attributes(target).map(|(key, value)| (key.to_owned(), raw_string(&value))).into();
        let body = GroupBody { name: Some(&name), attributes };
        let call = Call::new(Operation::CreateGroup, Method::POST, &GROUPS).json(&body);
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::CREATED => {
                let group: Group = self.parse(&call, &answer)?;
                if group.parents.is_some() {
                    return Ok(group);
                }
                // Before 2025.12 a lost race makes two groups of one name, and tells neither
                // (observed). Look who else was there; both sides keep the same one.
                let looked = self.named(&name).await;
                let mut all = looked.map_err(|error| error.about(&group.pk))?;
                if !all.iter().any(|other| other.pk == group.pk) {
                    all.push(group);
                }
                self.choose(target, all)?.ok_or_else(|| {
                    let message = format!("authentik: group {name:?} vanished after its creation");
                    Error::transient(Reason::UnexpectedAnswer, message)
                })
            }
            // The key tells, not the text, which is localized and differs by version (observed).
            StatusCode::BAD_REQUEST if mentions_name(&answer) => {
                let message = format!(
                    "{}. A group of that name exists where our account cannot see it",
                    self.upstream.refusal(&call, &answer)
                );
                // Most likely it was made after we looked.
                Err(Error::terminal(Reason::Conflict, message).stale())
            }
            _ => Err(self.refused(&call, &answer)),
        }
    }

    async fn update(&self, target: &Target, group: Group) -> Result<Group, Error> {
        for twin in &group.twins {
            if !twin.users.is_empty() {
                let message = format!(
                    "authentik: the groups {} and {} both carry this tenant's mark; the first is kept. \
                     The second has {} members: move them, and it will be removed",
                    group.pk,
                    twin.pk,
                    twin.users.len(),
                );
                return Err(Error::terminal(Reason::Duplicate, message).about(&group.pk));
            }
            self.remove_twin(twin).await?;
        }
        let name = self.template.name_for(&target.slug);
        let path = group_path(&group.pk);
        let mut attributes = group.attributes.clone();
        attributes.remove(USAGE);
        for (key, value) in Self::our_attributes(target) {
            attributes.insert(key.to_owned(), raw_string(&value));
        }
        let body = GroupBody { name: (group.name != name).then_some(&*name), attributes };
        let call = Call::new(Operation::UpdateGroup, Method::PATCH, &path).json(&body);
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::OK => self.parse(&call, &answer),
            StatusCode::BAD_REQUEST if mentions_name(&answer) && body.name.is_some() => {
                let message = format!(
                    "{}. The tenant's group was renamed to {:?}, and its name is taken by another group",
                    self.upstream.refusal(&call, &answer),
                    group.name,
                );
                Err(Error::terminal(Reason::Conflict, message).about(&group.pk))
            }
            // Gone since we looked.
            StatusCode::NOT_FOUND if answer.json::<Detail>().is_some() => {
                let message = self.upstream.refusal(&call, &answer);
                Err(Error::transient(Reason::UnexpectedAnswer, message).stale())
            }
            _ => Err(self.refused(&call, &answer).about(&group.pk)),
        }
    }

    fn external_id(group: &Group) -> &str {
        &group.pk
    }

    fn name(group: &Group) -> &str {
        &group.name
    }

    fn usage(group: &Group) -> Usage {
        group.usage()
    }

    fn owner(&self, target: &Target, group: &Group) -> Owner {
        if !group.attributes.contains_key(MARK) {
            return Owner::Unmarked;
        }
        if let Some(fleet) = group.fleet().filter(|fleet| target.fleet.is_not(Some(*fleet))) {
            return Owner::Foreign(fleet);
        }
        match group.marked_for() {
            Some(tenant) if tenant == target.id => Owner::Us,
            Some(tenant) if group.usage() == Usage::Released => Owner::Released(tenant),
            Some(tenant) => Owner::Other(tenant),
            // No controller writes such a one.
            None => Owner::Illegible,
        }
    }

    fn describe(group: &Group) -> String {
        format!("group {:?} ({})", group.name, group.pk)
    }

    async fn protected(&self, group: &Group) -> Result<Option<&'static str>, Error> {
        Ok(group.is_superuser.then_some("makes its members superusers"))
    }

    fn says(&self, group: &Group) -> Before {
        let attribute =
            |key: &str| (key.to_owned(), group.attributes.get(key).map(|value| value.get().to_owned()));
        let name = ("name".to_owned(), Some(group.name.clone()));
        OURS.into_iter().map(attribute).chain([name]).collect()
    }

    fn fingerprint(&self, group: &Group) -> Fingerprint {
        let own = |key: &str| group.text(key).unwrap_or_default();
        let settings = format!("{}\n{}", own(SLUG), own(NAME));
        let parts =
            Fingerprint::of([&group.pk, &group.name, &own(MARK), &settings, &group.usage().name()]);
        // They decide what a group is called.
        parts.under(&self.template.to_string())
    }

    async fn sweep(&self, mut each: impl FnMut(Seen<'_>) + Send) -> Result<(), Error> {
        let not_ours = |group: &Group| -> bool {
            let Some(tenant) = group.marked_for() else { return false };
            if group.usage() == Usage::InUse {
                let (fingerprint, fleet) = (self.fingerprint(group), group.fleet());
                each(Seen { tenant, fingerprint, external_id: &group.pk, name: &group.name, fleet });
            }
            // Seen, and not to be kept.
            false
        };
        self.list(Operation::SweepGroups, ("ordering", "name"), not_ours).await.map(drop)
    }

    async fn marked_as(&self, tenants: &HashSet<TenantId>) -> Result<Vec<Marked>, Error> {
        let mut found = Vec::new();
        for tenant in tenants {
            let marked = self.marked(*tenant).await?.into_iter();
            let in_use = marked.filter(|group| group.usage() == Usage::InUse);
            found.extend(in_use.map(|group| Marked {
                fleet: group.fleet(),
                tenant: *tenant,
                external_id: group.pk,
                name: group.name,
            }));
        }
        Ok(found)
    }

    async fn release(&self, target: &Target, group: Group, how: Release) -> Result<Released, Error> {
        let usage = match how {
            Release::Keep(usage) => usage,
            Release::Delete | Release::Purge => Usage::Released,
        };
        for twin in &group.twins {
            match how {
                Release::Delete | Release::Purge if twin.users.is_empty() => {
                    self.remove_twin(twin).await?
                }
                _ => self.keep(target, twin, usage).await?,
            }
        }
        if let Some(before) = target.to_put_back(&group.pk, how) {
            let name = before.get("name").cloned().flatten();
            let name = name.filter(|name| *name != group.name);
            self.let_go(&group, name.as_deref(), as_before(&group, before)).await?;
            note(Deed::LetGo(Fate::PutBack), &group.name, &group.pk);
            let note =
                format!("authentik: group {:?} is left as it was before it was adopted", group.name);
            return Ok(Released { external_id: Some(group.pk), note: Some(note) });
        }
        let Release::Keep(usage) = how else {
            let path = group_path(&group.pk);
            let call = Call::new(Operation::DeleteGroup, Method::DELETE, &path);
            let answer = self.upstream.write(&call).await?;
            return match answer.status {
                StatusCode::NO_CONTENT => {
                    note(Deed::LetGo(Fate::Deleted), &group.name, &group.pk);
                    Ok(Released::default())
                }
                StatusCode::NOT_FOUND => Ok(Released::default()),
                _ => Err(self.refused(&call, &answer)),
            };
        };
        self.keep(target, &group, usage).await?;
        let note = format!("authentik: group {:?} is kept, marked {}", group.name, usage.name());
        Ok(Released { external_id: Some(group.pk), note: Some(note) })
    }

    async fn check(&self) -> Result<Checked, Error> {
        let query = [("include_users", "false"), ("page_size", "1")];
        let call = Call::get(Operation::Check, &GROUPS).query(&query);
        let answer = self.upstream.read(&call).await?;
        // What it may change shows only when it does: nothing in the API tells (observed).
        let remedy = PERMISSIONS.to_owned();
        match answer.status {
            StatusCode::OK => {
                let listing: Listing = self.parse(&call, &answer)?;
                let first = listing.results.first().map(|element| self.read_element(&call, element));
                let newer = first.map(|group| group.parents.is_some());
                let version = newer
                    .map(|newer| if newer { "2025.12 or newer" } else { "before 2025.12" }.to_owned());
                Ok(Checked { version, lacks: Vec::new(), remedy })
            }
            _ => match self.refused(&call, &answer) {
                // Or the account sees only its own groups, and has none yet.
                error if error.failure.reason == Reason::Forbidden => {
                    Ok(Checked { version: None, lacks: vec!["view_group".into()], remedy })
                }
                error => Err(error),
            },
        }
    }

    fn fields(&self, target: &Target, group: &Group) -> Vec<Field> {
        let name = self.template.name_for(&target.slug);
        let mut fields = Vec::new();
        let mut compare = |field, observed: Option<String>, desired: String| {
            fields.push(Field::new(field, observed.unwrap_or_else(|| "(none)".into()), desired));
        };
        compare("name", Some(group.name.clone()), name);
        // One that is missing is no reason to write.
        let matters = |key: &str| key != FLEET || group.fleet().is_some();
        for (key, value) in Self::our_attributes(target).into_iter().filter(|(key, _)| matters(key)) {
            compare(key, group.text(key), value);
        }
        compare(USAGE, Some(group.usage().name().into()), Usage::InUse.name().into());
        for twin in &group.twins {
            compare(DUPLICATE, Some(twin.pk.clone()), "(none)".into());
        }
        fields
    }
}

/// A group's attributes, ours among them as they were before it was adopted.
fn as_before(group: &Group, before: &Before) -> BTreeMap<String, Box<RawValue>> {
    let mut attributes = group.attributes.clone();
    for key in OURS {
        let value = before.get(key).cloned().flatten();
        match value.and_then(|value| RawValue::from_string(value).ok()) {
            Some(value) => attributes.insert(key.to_owned(), value),
            None => attributes.remove(key),
        };
    }
    attributes
}

fn mentions_name(answer: &Answer) -> bool {
    #[derive(Deserialize)]
    struct Fields {
        name: Option<serde::de::IgnoredAny>,
    }
    answer.json::<Fields>().is_some_and(|fields| fields.name.is_some())
}

fn raw_string(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).expect("a string is JSON")
}
