//! Stalwart: one mail domain per tenant, managed over JMAP (`x:Domain`).
//!
//! Source: what servers 0.16.18 and 0.16.19 were observed to do; they have no other documentation of most of this.
//!
//! * Domain names are unique, over names and aliases. Ids are the server's.
//! * The only free field is `description`; it carries the tenant's name and mark. It is indexed by word,
//!   so that a domain is found by its mark, which is therefore one unbroken word.
//! * Filters are exact and not normalised; results are compared again here.
//! * There is no state and no version: to notice a change is to look again.
//! * A new domain's DKIM keys come about half a second after it. If the domain is destroyed before, one can
//!   stay behind without a domain (0.16.19), so they are waited for.
//! * The tenant's domain is the one of its name. A domain is never renamed: its accounts' addresses, which are
//!   also their logins, would change with it.
//! * A tenant whose domain changes gets the new one first. The former one, and one of ours that a person
//!   renamed, is removed as soon as nothing is in it but what the server itself put there (DKIM signatures);
//!   accounts, lists and aliases are never touched.

mod jmap;

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use self::jmap::{Answers, Batch, DIALECT, ObjectRef, SetError, Written, accepted, send};
use super::Error;
use super::adopt::Owner;
use super::converge::{
    Checked, FORMER, Integration, Marked, Release, Released, Remarks, Seen, Target, Usage,
};
use super::deeds::note;
use super::upstream::{Call, Purpose, UpstreamClient};
use crate::metrics::Operation;
use crate::tenant::{
    Before, Deed, Fate, Field, Fingerprint, FleetId, MailDomain, Presence, Reason, TenantId, Upstream,
};

/// Who makes a new domain's DKIM keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DkimManagement {
    /// The server, about half a second after the domain was made.
    #[default]
    Automatic,
    /// All who want them.
    Manual,
}

impl DkimManagement {
    const fn name(self) -> &'static str {
        match self {
            Self::Automatic => "Automatic",
            Self::Manual => "Manual",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be automatic or manual")]
pub struct InvalidDkimManagement;

impl FromStr for DkimManagement {
    type Err = InvalidDkimManagement;

    fn from_str(text: &str) -> Result<Self, InvalidDkimManagement> {
        match text {
            "automatic" => Ok(Self::Automatic),
            "manual" => Ok(Self::Manual),
            _ => Err(InvalidDkimManagement),
        }
    }
}

/// The integration with one Stalwart server.
pub struct Stalwart {
    upstream: UpstreamClient,
    dkim: DkimManagement,
}

/// A domain, as far as we look at it: everything else, such as its DNS zone, is long.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Domain {
    pub id: String,
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default = "enabled")]
    pub is_enabled: bool,
    #[serde(default)]
    aliases: serde_json::Map<String, Value>,
    /// Why it could not be understood: then only its id, name and mark are as the server shows them.
    #[serde(skip)]
    pub fault: Option<String>,
}

fn enabled() -> bool {
    true
}

/// A part of the list of all domains.
#[derive(Debug)]
pub struct Page {
    pub domains: Vec<Domain>,
    /// The name after which the next part begins; none after the last.
    pub next: Option<String>,
}

/// What a tenant has.
pub struct MailService {
    domain: Domain,
    /// Domains of ours with other names: what the tenant had before.
    former: Vec<Former>,
}

struct Former {
    domain: Domain,
    /// Why it cannot be removed.
    kept: Option<String>,
}

/// How long a domain's DKIM keys are waited for before it is destroyed: a few times as long as they take.
const KEYS_COME_WITHIN: Duration = Duration::from_secs(2);
/// Between looks whether they came.
const LOOK_FOR_KEYS: Duration = Duration::from_millis(200);
/// Suffixes that the server takes although they are no public ones (its source).
const PRIVATE_SUFFIXES: [&str; 10] = [
    "test",
    "localhost",
    "local",
    "internal",
    "lan",
    "home",
    "corp",
    "intranet",
    "private",
    "localdomain",
];
const PROPERTIES: [&str; 4] = ["name", "description", "isEnabled", "aliases"];
/// What a search brings; names and marks are unique, so more than a few are noise.
const FEW: u32 = 20;
/// Domains in a page of a list; the most that `/get` gives (observed).
const PAGE: usize = 500;
/// What our account must be able to do.
const NEEDED: [&str; 7] = [
    "sysDomainGet",
    "sysDomainQuery",
    "sysDomainCreate",
    "sysDomainUpdate",
    "sysDomainDestroy",
    "sysDkimSignatureQuery",
    "sysDkimSignatureDestroy",
];
/// Needed only to adopt domains.
const READS_SETTINGS: &str = "sysSystemSettingsGet";
const PERMISSIONS: &str = "The API key needs the permissions authenticate, \
                           sysDomain{Get,Query,Create,Update,Destroy} and \
                           sysDkimSignature{Query,Destroy}";

impl Stalwart {
    pub fn new(upstream: UpstreamClient, dkim: DkimManagement) -> Self {
        Self { upstream: upstream.speaking(DIALECT), dkim }
    }

    /// A page of all domains, in order of their names, after the name `after`.
    ///
    /// The order is given because the default one, cut into pages, repeats some and never shows others
    /// (observed). A page begins after a name rather than at a position, so that domains that come and go
    /// meanwhile move nothing. Which page is the last the server says: one may have fewer domains than were
    /// found, because some were destroyed in between.
    pub async fn list(&self, after: Option<&str>) -> Result<Page, Error> {
        #[derive(Deserialize)]
        struct Ids {
            ids: Vec<String>,
            total: usize,
        }
        let mut batch = Batch::new(Operation::ListDomains, Purpose::Read);
        let mut arguments = json!({ "limit": PAGE, "calculateTotal": true });
        if let Some(after) = after {
            arguments["filter"] = json!({ "nameIsGreaterThan": after });
        }
        query(&mut batch, arguments, "list");
        let answers = send(&self.upstream, &batch).await?;
        let Ids { ids, total } = answers.read("list")?;
        let objects = answers.objects("list.get")?;
        let domains: Vec<Domain> = objects.iter().map(|object| self.read_object(object)).collect();
        if total <= ids.len() {
            return Ok(Page { domains, next: None });
        }
        // The order of the answer to `/get` is the server's own.
        let named = |id: &String| domains.iter().find(|it| it.id == *id && !it.name.is_empty());
        let last = ids.iter().rev().find_map(named).map(|domain| domain.name.clone());
        let none = || answers.unexpected("none of the domains that were found can be read");
        let next = Some(last.ok_or_else(none)?);
        Ok(Page { domains, next })
    }

    /// A domain of a list. One that cannot be understood does not spoil the others.
    fn read_object(&self, object: &Value) -> Domain {
        Domain::deserialize(object).unwrap_or_else(|error| {
            let domain = Domain::of_odd(object, error.to_string());
            let call = Call::get(Operation::ListDomains, &[]);
            self.upstream.skipped(&call, &domain.id, &error.to_string());
            domain
        })
    }

    /// Whether domains can be listed now.
    async fn look_for_any(&self) -> Result<(), Error> {
        let mut batch = Batch::new(Operation::Check, Purpose::Read);
        query(&mut batch, json!({ "limit": 1 }), "any");
        send(&self.upstream, &batch).await?.list::<Domain>("any.get").map(drop)
    }

    /// Asks for everything that could be the tenant's, in one request.
    async fn look(&self, target: &Target, name: Option<&MailDomain>) -> Result<Look, Error> {
        let mut batch = Batch::new(Operation::FindDomain, Purpose::Read);
        if let Some(id) = &target.recorded {
            batch.call("x:Domain/get", json!({ "ids": [id], "properties": PROPERTIES }), "recorded");
        }
        if let Some(name) = name {
            query(&mut batch, json!({ "filter": { "name": name.as_str() }, "limit": FEW }), "named");
            query(&mut batch, json!({ "filter": { "aliases": name.as_str() }, "limit": FEW }), "alias");
        }
        let mark = target.id.to_string();
        query(&mut batch, json!({ "filter": { "text": mark }, "limit": FEW }), "marked");
        let answers = send(&self.upstream, &batch).await?;
        let mut found = Look { domains: self.marked_by(&answers, target)?, alias_of: Vec::new() };
        if target.recorded.is_some() {
            found.domains.extend(answers.list::<Domain>("recorded")?);
        }
        if let Some(name) = name {
            // The filters are exact, but that is the server's word.
            let named: Vec<Domain> = answers.list("named.get")?;
            found.domains.extend(named.into_iter().filter(|domain| domain.name == name.as_str()));
            found.alias_of = answers.list("alias.get")?;
            found.alias_of.retain(|domain| domain.aliases.contains_key(name.as_str()));
        }
        found.domains.sort_by(|a, b| a.id.cmp(&b.id));
        found.domains.dedup_by(|a, b| a.id == b.id);
        Ok(found)
    }

    /// Of a search by mark, those that really carry it: leading words that match nothing are ignored by
    /// the server (observed), and names are searched too.
    fn marked_by(&self, answers: &Answers, target: &Target) -> Result<Vec<Domain>, Error> {
        let mut domains: Vec<Domain> = answers.list("marked.get")?;
        domains.retain(|domain| domain.is_of(target));
        Ok(domains)
    }

    /// The former domains among ours, beside the one called `name`.
    fn former(name: &str, ours: Vec<Domain>, target: &Target) -> Vec<Former> {
        let former = ours.into_iter().filter(|domain| domain.name != name && domain.is_of(target));
        former.map(|domain| Former { domain, kept: None }).collect()
    }

    /// Waits until the server has made the keys of a new domain; not for ever, for they may have been
    /// removed again.
    async fn await_keys(&self, id: &str) -> Result<(), Error> {
        let until = Instant::now() + KEYS_COME_WITHIN;
        loop {
            let mut batch = Batch::new(Operation::FindKeys, Purpose::Read);
            let read = json!({ "ids": [id], "properties": ["dkimManagement"] });
            batch.call("x:Domain/get", read, "domain").call(
                "x:DkimSignature/query",
                json!({ "filter": { "domainId": id } }),
                "keys",
            );
            let answers = send(&self.upstream, &batch).await?;
            let Found { ids } = answers.read("keys")?;
            let expected = answers.objects("domain")?.first().map_or(0, automatic_keys);
            if ids.len() >= expected || Instant::now() >= until {
                return Ok(());
            }
            tokio::time::sleep(LOOK_FOR_KEYS).await;
        }
    }

    /// Removes keys that are left of a domain that is gone.
    async fn drop_keys(&self, keys: &[String]) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(Operation::DropKeys, Purpose::Write);
        batch.call("x:DkimSignature/set", json!({ "destroy": keys }), "drop");
        send(&self.upstream, &batch).await?.of("drop").map(drop)
    }

    /// Marks those domains like this that are not yet.
    async fn mark_all(&self, target: &Target, domains: &[&Domain], usage: Usage) -> Result<(), Error> {
        let patch = json!({ "description": new_description(target, usage) });
        let others = domains.iter().filter(|one| !one.says(target, usage));
        self.patch(others.map(|one| (*one, patch.clone())).collect(), Fate::Kept(usage.name())).await
    }

    /// Makes adopted domains of ours say again what they said before.
    async fn put_back(&self, adopted: &[(&Domain, &Before)]) -> Result<(), Error> {
        let patch = |(domain, before): &(&Domain, &Before)| {
            let mut patch = json!({ "description": before.get("description") });
            if before.get("isEnabled") == Some(&Some("false".to_owned())) && domain.is_enabled {
                patch["isEnabled"] = json!(false);
            }
            patch
        };
        self.patch(adopted.iter().map(|it| (it.0, patch(it))).collect(), Fate::PutBack).await
    }

    /// Patches several domains in one request. One that is gone is none that had to be changed.
    async fn patch(&self, patches: Vec<(&Domain, Value)>, fate: Fate) -> Result<(), Error> {
        if patches.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(Operation::ReleaseDomain, Purpose::Write);
        let update: serde_json::Map<_, _> =
            patches.iter().map(|(one, patch)| (one.id.clone(), patch.clone())).collect();
        batch.call("x:Domain/set", json!({ "update": update }), "update");
        let answers = send(&self.upstream, &batch).await?;
        for (one, _) in patches {
            match answers.updated("update", &one.id)? {
                Written::Done => note(Deed::LetGo(fate), &one.name, &one.id),
                Written::Refused(refused) if refused.r#type == "notFound" => {}
                Written::Refused(refused) => {
                    return Err(refused.terminal(&answers.what()).about(&one.id));
                }
            }
        }
        Ok(())
    }

    /// The id of the domain that the server's settings name as the default one: its own mail is from there, and
    /// logins without a domain are taken to be of it.
    ///
    /// # Errors
    /// If it cannot be told, of which `domain` is it then. Only who may read the settings, and who tries to
    /// destroy it, learns which one it is (observed).
    async fn default_domain(&self, domain: &Domain) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Settings {
            #[serde(default)]
            default_domain_id: Option<String>,
        }
        let mut batch = Batch::new(Operation::FindDefaultDomain, Purpose::Read);
        let arguments = json!({ "ids": ["singleton"], "properties": ["defaultDomainId"] });
        batch.call("x:SystemSettings/get", arguments, "settings");
        match send(&self.upstream, &batch).await?.list::<Settings>("settings") {
            Ok(settings) => Ok(settings.into_iter().find_map(|settings| settings.default_domain_id)),
            Err(error) if error.failure.reason == Reason::Forbidden => {
                let message = format!(
                    "stalwart: whether {} ({}) is the server's default domain, which is never adopted, cannot \
                     be told. To adopt domains, the API key needs the permission {READS_SETTINGS} as well",
                    domain.name, domain.id
                );
                Err(Error::terminal(Reason::Forbidden, message))
            }
            Err(error) => Err(error),
        }
    }

    /// Marks a former domain that must stay as not in use, so that sweeps do not take it for a second one.
    async fn set_aside(&self, target: &Target, domain: &Domain) -> Result<(), Error> {
        if domain.mark().is_none_or(|mark| mark.usage != Usage::InUse) {
            return Ok(());
        }
        self.mark_all(target, &[domain], Usage::Off).await
    }

    /// Removes a domain in which nothing is kept. Says why it stays if it must.
    async fn remove(&self, domain: &Domain) -> Result<Option<String>, Error> {
        let id = domain.id.as_str();
        self.await_keys(id).await?;
        let mut batch = Batch::new(Operation::RemoveDomain, Purpose::Write);
        // As it is, first: only the answer tells for certain what is in it.
        batch.call("x:Domain/set", json!({ "destroy": [id] }), "remove").call(
            "x:DkimSignature/query",
            json!({ "filter": { "domainId": id } }),
            "left",
        );
        let answers = send(&self.upstream, &batch).await?;
        let refused = match answers.destroyed("remove", id)? {
            Written::Done => {
                note(Deed::LetGo(Fate::Deleted), &domain.name, id);
                self.drop_keys(&answers.read::<Found>("left")?.ids).await?;
                return Ok(None);
            }
            Written::Refused(refused) => refused,
        };
        match refused.r#type.as_str() {
            "notFound" => {
                self.drop_keys(&answers.read::<Found>("left")?.ids).await?;
                return Ok(None);
            }
            "objectIsLinked" => {}
            _ => return Err(refused.terminal(&answers.what())),
        }
        let linked = &refused.linked_objects;
        if linked.is_empty() || linked.iter().any(|object| object.object != "DkimSignature") {
            return Ok(Some(what_is_in(&domain.name, linked)));
        }
        let mut batch = Batch::new(Operation::RemoveDomain, Purpose::Write);
        batch
            .call("x:DkimSignature/query", json!({ "filter": { "domainId": id } }), "keys")
            .call(
                "x:DkimSignature/set",
                json!({ "#destroy": reference("keys", "x:DkimSignature/query") }),
                "drop",
            )
            .call("x:Domain/set", json!({ "destroy": [id] }), "remove");
        let answers = send(&self.upstream, &batch).await?;
        answers.of("keys")?;
        answers.of("drop")?;
        match answers.destroyed("remove", id)? {
            Written::Done => {
                note(Deed::LetGo(Fate::Deleted), &domain.name, id);
                Ok(None)
            }
            Written::Refused(refused) if refused.r#type == "objectIsLinked" => {
                Ok(Some(what_is_in(&domain.name, &refused.linked_objects)))
            }
            Written::Refused(refused) => Err(refused.terminal(&answers.what())),
        }
    }
}

/// What a query found.
#[derive(Deserialize)]
struct Found {
    ids: Vec<String>,
}

/// How many DKIM keys the server makes for a domain.
fn automatic_keys(domain: &Value) -> usize {
    let dkim = &domain["dkimManagement"];
    let algorithms = dkim["algorithms"].as_object().map_or(0, serde_json::Map::len);
    if dkim["@type"] == DkimManagement::Automatic.name() { algorithms } else { 0 }
}

/// What one look at all that could be the tenant's found.
struct Look {
    /// In order of their ids.
    domains: Vec<Domain>,
    /// Domains that have the wanted name as an alias.
    alias_of: Vec<Domain>,
}

/// A query, always sorted, and a `/get` of what it found, answered as `{id}.get`.
fn query(batch: &mut Batch, mut arguments: Value, id: &str) {
    arguments["sort"] = json!([{ "property": "name", "isAscending": true }]);
    let ids = reference(id, "x:Domain/query");
    batch.call("x:Domain/query", arguments, id).call(
        "x:Domain/get",
        json!({ "#ids": ids, "properties": PROPERTIES }),
        &format!("{id}.get"),
    );
}

fn reference(call: &str, method: &str) -> Value {
    json!({ "resultOf": call, "name": method, "path": "/ids" })
}

/// For people: what keeps a domain from being removed.
fn what_is_in(name: &str, linked: &[ObjectRef]) -> String {
    let count = |object: &str| linked.iter().filter(|linked| linked.object == object).count();
    let mut parts = Vec::new();
    for (object, one, many) in
        [("Account", "account", "accounts"), ("MailingList", "mailing list", "mailing lists")]
    {
        match count(object) {
            0 => {}
            1 => parts.push(format!("1 {one}")),
            n => parts.push(format!("{n} {many}")),
        }
    }
    let known = ["Account", "MailingList", "DkimSignature"];
    let others = linked.iter().filter(|linked| !known.contains(&linked.object.as_str()));
    parts.extend(others.map(|linked| format!("{} {}", linked.object, linked.id)));
    if parts.is_empty() {
        parts.push("something".into());
    }
    format!("{} still in {name}", parts.join(", "))
}

impl Domain {
    /// Of an object that is no domain as we know one: what it is and whose, as far as that can be read, so
    /// that it is never taken for absent.
    fn of_odd(object: &Value, fault: String) -> Self {
        let text = |field: &str| object.get(field).and_then(Value::as_str).map(ToOwned::to_owned);
        Self {
            id: text("id").unwrap_or_default(),
            name: text("name").unwrap_or_default(),
            description: text("description"),
            is_enabled: true,
            aliases: serde_json::Map::new(),
            fault: Some(fault),
        }
    }

    /// The tenant that the description names as the owner.
    pub fn owner(&self) -> Option<TenantId> {
        self.mark().map(|mark| mark.tenant)
    }

    /// What the description says of whose it is.
    pub fn mark(&self) -> Option<Mark> {
        let description = self.description.as_deref()?;
        let (_, rest) = description.rsplit_once(MARK_BEFORE)?;
        let mut words = rest.split_once(MARK_AFTER)?.0.split(' ');
        let tenant = words.next()?.parse().ok()?;
        let (usage, fleet) = Usage::from_words(words)?;
        Some(Mark { tenant, usage, fleet })
    }

    /// Whether it is marked for the tenant, and not by another fleet.
    fn is_of(&self, target: &Target) -> bool {
        self.mark().is_some_and(|mark| mark.tenant == target.id && !target.fleet.is_not(mark.fleet))
    }

    /// Whether the description says what it should. An older one, without the fleet, does.
    fn says(&self, target: &Target, usage: Usage) -> bool {
        let said = self.description.as_deref();
        [Some(target.fleet), None]
            .into_iter()
            .any(|fleet| said == Some(&description(target, usage, fleet)))
    }

    fn fingerprint(&self) -> Fingerprint {
        let owner = self.owner().map(|owner| owner.to_string()).unwrap_or_default();
        let description = self.description.as_deref().unwrap_or_default();
        Fingerprint::of([&self.id, &self.name, &owner, &description, &self.is_enabled])
    }

    fn is_marked_by_something(&self) -> bool {
        self.description.as_deref().is_some_and(|text| text.contains(MARK_BEFORE))
    }
}

/// Whose a domain is, as its description says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub tenant: TenantId,
    /// Whether the tenant still uses it.
    pub usage: Usage,
    /// `None` in marks of before fleets had ids.
    pub fleet: Option<FleetId>,
}

const MARK_BEFORE: &str = "[tenantry ";
const MARK_AFTER: char = ']';

/// For people, of a tenant that is to move to a domain which another one has: if that one is to move as well,
/// maybe to this one's, each waits for the other. Neither domain is given up unasked: there may be an address
/// that people use, though there is no account (a catch-all, an alias).
fn how_to_exchange(target: &Target, wanted: &str) -> Option<String> {
    let former = target.observed.as_ref().and_then(|last| last.domain.as_ref())?;
    if target.desired.domain.as_ref() == Some(former) {
        return None;
    }
    let slug = &target.slug;
    Some(format!(
        ". If tenants are to exchange their domains, free one first: `tenantry tenants edit {slug} --domain \
         {slug}.{former} --wait`; then `tenantry tenants reconcile <slug> --wait` of the tenant that is to have \
         {former}, and so on around the ring; at last `tenantry tenants edit {slug} --domain {wanted} --wait`. \
         A domain is free once no account, list or alias is left in it"
    ))
}

/// What a domain's description says: `Acme Corporation [tenantry 65f0… 1f00abcdef09]` with tenant and fleet, or
/// `[tenantry 65f0… released 1f00abcdef09]`.
fn description(target: &Target, usage: Usage, fleet: Option<FleetId>) -> String {
    let words = usage.words(fleet);
    format!("{} {MARK_BEFORE}{}{words}{MARK_AFTER}", target.desired.name, target.id)
}

/// What it is to say when it is written.
fn new_description(target: &Target, usage: Usage) -> String {
    description(target, usage, Some(target.fleet))
}

/// What it means that a domain of this name was not made or changed. The server does not say which of the
/// many things that make a name invalid it is.
fn refusal(name: &MailDomain, refused: &SetError, what: &str) -> Error {
    if refused.r#type != "invalidPatch" || !refused.properties.iter().any(|property| property == "name")
    {
        return refused.terminal(what);
    }
    let top = name.top();
    let why = if name.has_public_suffix() || PRIVATE_SUFFIXES.contains(&top) {
        "it says no more than that it is invalid".to_owned()
    } else {
        format!(
            ".{top} is no public suffix that it knows. It takes those of the public suffix list, and such as \
             .test, .local and .internal"
        )
    };
    let message = format!("{what}: the server does not take {name} as a domain's name: {why}");
    Error::terminal(Reason::Rejected, message)
}

/// The step is only run for tenants that have one.
fn wanted(target: &Target) -> Result<&MailDomain, Error> {
    target.desired.domain.as_ref().ok_or_else(|| {
        Error::terminal(Reason::NoMailDomain, "stalwart: the tenant has no mail domain".into())
    })
}

impl Integration for Stalwart {
    type Resource = MailService;

    fn step(&self) -> Upstream {
        Upstream::Stalwart
    }

    fn upstream(&self) -> &UpstreamClient {
        &self.upstream
    }

    async fn observe(&self, target: &Target) -> Result<Option<MailService>, Error> {
        let wanted = target.desired.domain.as_ref();
        let Some(name) = wanted.filter(|_| target.desired.presence == Presence::Present) else {
            // Whatever the tenant has, and not what it was to have: a move may never have succeeded.
            let Look { domains, .. } = self.look(target, None).await?;
            let ours = |domain: &&Domain| domain.is_of(target);
            let recorded = |domain: &&Domain| target.recorded.as_ref() == Some(&domain.id);
            let both = domains.iter().find(|domain| ours(domain) && recorded(domain));
            let domain = both.or_else(|| domains.iter().find(ours)).or(domains.first()).cloned();
            return Ok(domain.map(|domain| {
                let former = Self::former(&domain.name, domains, target);
                MailService { domain, former }
            }));
        };
        let Look { mut domains, alias_of } = self.look(target, Some(name)).await?;
        // By its name alone. One of ours that has another name, because the tenant moves or because a person
        // renamed it, is a former one: to give it this name would change the addresses of all accounts in it.
        if let Some(chosen) = domains.iter().position(|domain| domain.name == name.as_str()) {
            let domain = domains.swap_remove(chosen);
            let former = Self::former(name.as_str(), domains, target);
            return Ok(Some(MailService { domain, former }));
        }
        if let Some(holder) = alias_of.first() {
            return Err(Error::terminal(
                Reason::Conflict,
                format!(
                    "stalwart: {name} is an alias of the domain {} ({}); remove the alias there to make \
                     it a domain of its own",
                    holder.name, holder.id
                ),
            ));
        }
        Ok(None)
    }

    async fn create(&self, target: &Target) -> Result<MailService, Error> {
        let name = wanted(target)?;
        let domain = json!({
            "name": name.as_str(),
            "description": new_description(target, Usage::InUse),
            "dkimManagement": { "@type": self.dkim.name() },
        });
        let mut batch = Batch::new(Operation::CreateDomain, Purpose::Write);
        batch.call("x:Domain/set", json!({ "create": { "new": domain } }), "create");
        let read = json!({ "ids": ["#new"], "properties": PROPERTIES });
        batch.call("x:Domain/get", read, "read");
        // Where the tenant has moved from.
        let mark = target.id.to_string();
        query(&mut batch, json!({ "filter": { "text": mark }, "limit": FEW }), "marked");
        let answers = send(&self.upstream, &batch).await?;
        match answers.created("create", "new")? {
            Written::Done => {}
            Written::Refused(refused) if refused.r#type == "primaryKeyViolation" => {
                let holder = refused.object_id.as_ref();
                let holder = holder.map_or_else(String::new, |holder| format!(" ({})", holder.id));
                let message = format!("stalwart: the name {name} is taken by another domain{holder}");
                // Another was faster, or it is an alias there.
                return Err(Error::terminal(Reason::Conflict, message).stale());
            }
            Written::Refused(refused) => return Err(refusal(name, &refused, &answers.what())),
        }
        let domain = answers.list::<Domain>("read").ok().and_then(|mut list| list.pop());
        let domain = domain.ok_or_else(|| {
            let message = format!("stalwart: domain {name} cannot be read after its creation");
            let error = Error::transient(Reason::UnexpectedAnswer, message).after(Purpose::Write);
            error.at_least_about(answers.created_id("create", "new"))
        })?;
        // Whether or not that worked, the domain is there; the next look finds the former ones too.
        let ours = self.marked_by(&answers, target).unwrap_or_default();
        Ok(MailService { domain, former: Self::former(name.as_str(), ours, target) })
    }

    async fn update(&self, target: &Target, service: MailService) -> Result<MailService, Error> {
        let MailService { mut domain, mut former } = service;
        let name = wanted(target)?;
        // Never the name: a domain that is renamed takes the addresses of its accounts along (observed).
        let mut patch = serde_json::Map::new();
        if !domain.is_enabled {
            patch.insert("isEnabled".into(), true.into());
        }
        // An older mark, which lacks the fleet, is no reason to write, but is completed.
        if !domain.says(target, Usage::InUse) || !patch.is_empty() {
            patch.insert("description".into(), new_description(target, Usage::InUse).into());
        }
        if !patch.is_empty() {
            let id = domain.id.as_str();
            let mut batch = Batch::new(Operation::UpdateDomain, Purpose::Write);
            batch.call("x:Domain/set", json!({ "update": { id: patch } }), "update");
            batch.call("x:Domain/get", json!({ "ids": [id], "properties": PROPERTIES }), "read");
            let answers = send(&self.upstream, &batch).await?;
            match answers.updated("update", id)? {
                Written::Done => {}
                Written::Refused(refused) => match refused.r#type.as_str() {
                    // Gone since we looked.
                    "notFound" => return Err(refused.terminal(&answers.what()).stale()),
                    _ => return Err(refused.terminal(&answers.what()).about(id)),
                },
            }
            let read = answers.list::<Domain>("read")?.pop();
            domain = read.ok_or_else(|| {
                let message = format!("stalwart: domain {name} cannot be read after its change");
                Error::transient(Reason::UnexpectedAnswer, message).after(Purpose::Write)
            })?;
        }
        // Only once the tenant's domain is as it should be.
        let mut kept = Vec::new();
        for Former { domain: old, kept: why } in former.drain(..) {
            let why = match (why, target.to_put_back(&old.id, Release::Delete)) {
                (Some(why), _) => Some(why),
                (None, Some(before)) => {
                    self.put_back(&[(&old, before)]).await?;
                    None
                }
                (None, None) => self.remove(&old).await?,
            };
            if why.is_some() {
                self.set_aside(target, &old).await?;
                kept.push(Former { domain: old, kept: why });
            }
        }
        Ok(MailService { domain, former: kept })
    }

    fn external_id(service: &MailService) -> &str {
        &service.domain.id
    }

    fn name(service: &MailService) -> &str {
        &service.domain.name
    }

    fn usage(service: &MailService) -> Usage {
        service.domain.mark().map_or(Usage::InUse, |mark| mark.usage)
    }

    fn owner(&self, target: &Target, service: &MailService) -> Owner {
        let domain = &service.domain;
        match domain.mark() {
            Some(Mark { fleet: Some(fleet), .. }) if fleet != target.fleet => Owner::Foreign(fleet),
            Some(Mark { tenant, .. }) if tenant == target.id => Owner::Us,
            Some(Mark { tenant, usage: Usage::Released, .. }) => Owner::Released(tenant),
            Some(Mark { tenant, .. }) => Owner::Other(tenant),
            None if domain.is_marked_by_something() => Owner::Illegible,
            None => Owner::Unmarked,
        }
    }

    fn describe(service: &MailService) -> String {
        format!("domain {} ({})", service.domain.name, service.domain.id)
    }

    fn way_out(&self, target: &Target, service: &MailService) -> Option<String> {
        how_to_exchange(target, &service.domain.name)
    }

    async fn protected(&self, service: &MailService) -> Result<Option<&'static str>, Error> {
        let default = self.default_domain(&service.domain).await?;
        let is_it = default.is_some_and(|id| id == service.domain.id);
        Ok(is_it.then_some("is the server's default domain"))
    }

    fn says(&self, service: &MailService) -> Before {
        let domain = &service.domain;
        let enabled = Some(domain.is_enabled.to_string());
        Before::from([
            ("description".to_owned(), domain.description.clone()),
            ("isEnabled".to_owned(), enabled),
        ])
    }

    fn fields(&self, target: &Target, service: &MailService) -> Vec<Field> {
        let domain = &service.domain;
        let mut fields = Vec::new();
        let mut compare = |field, observed: &dyn fmt::Display, desired: &dyn fmt::Display| {
            fields.push(Field::new(field, observed.to_string(), desired.to_string()));
        };
        if let Some(name) = &target.desired.domain {
            compare("name", &domain.name, name);
        }
        let said = domain.description.as_deref().unwrap_or("(none)");
        let wanted = match domain.says(target, Usage::InUse) {
            true => said.to_owned(),
            false => new_description(target, Usage::InUse),
        };
        compare("description", &said, &wanted);
        compare("isEnabled", &domain.is_enabled, &true);
        for former in service.former.iter().filter(|former| former.kept.is_none()) {
            compare(FORMER, &former.domain.name, &"(none)");
        }
        fields
    }

    fn remarks(&self, _target: &Target, service: &MailService) -> Remarks {
        let kept: Vec<_> = service.former.iter().filter_map(|former| former.kept.clone()).collect();
        let note = (!kept.is_empty()).then(|| format!("stalwart: kept: {}", kept.join("; ")));
        Remarks { note, ..Remarks::default() }
    }

    fn fingerprint(&self, service: &MailService) -> Fingerprint {
        service.domain.fingerprint()
    }

    async fn sweep(&self, mut each: impl FnMut(Seen<'_>) + Send) -> Result<(), Error> {
        let mut after = None;
        loop {
            let Page { domains, next } = self.list(after.as_deref()).await?;
            for domain in &domains {
                if let Some(Mark { tenant, usage: Usage::InUse, fleet }) = domain.mark() {
                    let fingerprint = domain.fingerprint();
                    let (external_id, name) = (domain.id.as_str(), domain.name.as_str());
                    each(Seen { tenant, fingerprint, external_id, name, fleet });
                }
            }
            match next {
                Some(_) => after = next,
                None => return Ok(()),
            }
        }
    }

    async fn marked_as(&self, tenants: &HashSet<TenantId>) -> Result<Vec<Marked>, Error> {
        let mut found = Vec::new();
        for tenant in tenants {
            let mut batch = Batch::new(Operation::FindMarkedDomains, Purpose::Read);
            let mark = tenant.to_string();
            query(&mut batch, json!({ "filter": { "text": mark }, "limit": FEW }), "marked");
            let domains: Vec<Domain> = send(&self.upstream, &batch).await?.list("marked.get")?;
            found.extend(domains.into_iter().filter_map(|domain| {
                let mark =
                    domain.mark().filter(|it| it.tenant == *tenant && it.usage == Usage::InUse)?;
                let Domain { id: external_id, name, .. } = domain;
                Some(Marked { tenant: *tenant, external_id, name, fleet: mark.fleet })
            }));
        }
        Ok(found)
    }

    async fn release(
        &self,
        target: &Target,
        service: MailService,
        how: Release,
    ) -> Result<Released, Error> {
        let MailService { domain, former } = service;
        let all: Vec<_> = former.iter().map(|former| &former.domain).chain([&domain]).collect();
        // Those that were adopted, and those that were made for the tenant.
        let (mut adopted, mut made) = (Vec::new(), Vec::new());
        for one in all {
            match target.to_put_back(&one.id, how) {
                Some(before) => adopted.push((one, before)),
                None => made.push(one),
            }
        }
        let mut notes = Vec::new();
        self.put_back(&adopted).await?;
        for (one, _) in &adopted {
            notes.push(format!("the domain {} is left as it was before it was adopted", one.name));
        }
        let stays = match how {
            Release::Keep(usage) => {
                self.mark_all(target, &made, usage).await?;
                for one in &made {
                    notes.push(format!("the domain {} is kept, marked {}", one.name, usage.name()));
                }
                true
            }
            // There is no way back from either, so they are the same: only what is empty.
            Release::Delete | Release::Purge => {
                for one in made {
                    if let Some(why) = self.remove(one).await? {
                        let message = format!("stalwart: waiting: {why}");
                        return Err(Error::terminal(Reason::NotEmpty, message).about(&one.id));
                    }
                }
                adopted.iter().any(|(one, _)| one.id == domain.id)
            }
        };
        let note = (!notes.is_empty()).then(|| format!("stalwart: {}", notes.join("; ")));
        Ok(Released { external_id: stays.then_some(domain.id), note })
    }

    async fn check(&self) -> Result<Checked, Error> {
        #[derive(Deserialize)]
        struct Account {
            permissions: Vec<String>,
            #[serde(default)]
            edition: String,
        }
        let call = Call::get(Operation::Check, &["api", "account"]);
        let answer = self.upstream.read(&call).await?;
        let answer = accepted(&self.upstream, &call, Purpose::Read, answer)?;
        let account: Account = answer.json().ok_or_else(|| {
            let message = "stalwart: check: the answer does not tell our permissions".to_owned();
            Error::transient(Reason::UnexpectedAnswer, message)
        })?;
        let may = |needed: &&str| account.permissions.iter().any(|permission| permission == *needed);
        if may(&"sysDomainGet") && may(&"sysDomainQuery") {
            // The account is known without the store in which the domains are.
            self.look_for_any().await?;
        }
        Ok(Checked {
            version: Some(format!("0.16 or newer, edition {}", account.edition)),
            lacks: NEEDED.iter().filter(|it| !may(it)).map(ToString::to_string).collect(),
            remedy: PERMISSIONS.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_from_a_description_whatever_the_name_before_it() {
        let id = TenantId::from_bytes([7; 12]);
        let domain = |text: &str| Domain {
            id: "b".into(),
            name: "acme.test".into(),
            description: Some(text.to_owned()),
            is_enabled: true,
            aliases: serde_json::Map::new(),
            fault: None,
        };
        let mark = |usage, fleet| Some(Mark { tenant: id, usage, fleet });
        assert_eq!(domain(&format!("Acme [tenantry {id}]")).mark(), mark(Usage::InUse, None));
        let fleet = FleetId::from_bytes([1; 6]);
        for (words, usage) in [("", Usage::InUse), (" off", Usage::Off), (" released", Usage::Released)]
        {
            let marked = domain(&format!("Acme [tenantry {id}{words} {fleet}]"));
            assert_eq!(marked.mark(), mark(usage, Some(fleet)), "{words}");
        }
        assert_eq!(domain(&format!("[tenantry x] [tenantry {id}]")).owner(), Some(id));
        let released = domain(&format!("Acme [tenantry {id} released]"));
        assert_eq!(released.mark(), mark(Usage::Released, None));
        assert_eq!(domain(&format!("Acme [tenantry {id} perhaps]")).mark(), None);
        assert_eq!(domain("Acme").mark(), None);
        assert!(!domain("Acme").is_marked_by_something());
        assert!(domain("[tenantry soon]").is_marked_by_something());
    }

    #[test]
    fn what_keeps_a_domain_is_told_in_words() {
        let linked = |object: &str| ObjectRef { object: object.into(), id: "d".into() };
        let accounts = [linked("Account"), linked("Account"), linked("DkimSignature")];
        assert_eq!(what_is_in("acme.test", &accounts), "2 accounts still in acme.test");
        let odd = [linked("MailingList"), linked("SystemSettings")];
        assert_eq!(what_is_in("acme.test", &odd), "1 mailing list, SystemSettings d still in acme.test");
    }
}
