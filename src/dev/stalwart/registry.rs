//! What the server holds, and the indexes that answer by name, word and address without looking at all.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Release;
use super::domain::Domain;
use super::error::{SetError, duplicate, forbidden, invalid_patch, no_such, not_found};
use super::id::Id;
use super::mailbox::{Kind, Mailbox};

/// Objects that are simulated. The order is the one in which `linkedObjects` names them (observed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    Account,
    DkimSignature,
    Domain,
    MailingList,
}

impl Object {
    pub const ALL: [Self; 4] = [Self::Account, Self::DkimSignature, Self::Domain, Self::MailingList];

    pub fn name(self) -> &'static str {
        match self {
            Self::Account => "Account",
            Self::DkimSignature => "DkimSignature",
            Self::Domain => "Domain",
            Self::MailingList => "MailingList",
        }
    }
}

#[derive(Debug)]
struct Signature {
    domain: Id,
    rsa: bool,
    created_at: String,
}

/// Ids of signatures are large and grow with time; those of the notes begin so.
const FIRST_SIGNATURE: u64 = 0x04bd_b000_0000_0000;

#[derive(Debug, Default)]
pub struct Registry {
    domains: BTreeMap<Id, Domain>,
    by_name: BTreeMap<String, Id>,
    by_alias: HashMap<String, Id>,
    by_word: HashMap<String, BTreeSet<Id>>,
    accounts: BTreeMap<Id, Mailbox>,
    lists: BTreeMap<Id, Mailbox>,
    by_address: HashMap<(String, Id), (Object, Id)>,
    signatures: BTreeMap<Id, Signature>,
    /// What the system settings name as the default domain.
    default_domain: Option<Id>,
    /// What stands in the way of a domain's end.
    links: HashMap<Id, BTreeSet<(Object, Id)>>,
    /// When which domain gets its keys; in order, for all wait equally long.
    due: VecDeque<(Instant, Id)>,
    /// The last ids given out. They are never given twice (observed).
    last_domain: u64,
    last_account: u64,
    last_list: u64,
    last_signature: u64,
    dkim_delay: Duration,
    release: Release,
}

impl Registry {
    pub fn new(dkim_delay: Duration, release: Release) -> Self {
        // Account "b" is the caller's.
        Self { dkim_delay, release, last_account: 1, ..Self::default() }
    }

    /// Makes the keys whose time has come. Call it before looking.
    pub fn settle(&mut self) {
        let now = Instant::now();
        while self.due.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, id)) = self.due.pop_front() else { break };
            // Gone in the meantime, or Manual by now: none, but that 0.16.19 can leave one (observed).
            let keys: &[bool] = match self.domains.get(&id) {
                Some(domain) if domain.has_automatic_dkim() => &[false, true],
                None if self.release == Release::R0_16_19 => &[false],
                _ => &[],
            };
            for rsa in keys.iter().copied() {
                self.last_signature += 1;
                let signature = Id(FIRST_SIGNATURE + (self.last_signature << 20));
                let created_at = timestamp();
                self.signatures.insert(signature, Signature { domain: id, rsa, created_at });
                self.links.entry(id).or_default().insert((Object::DkimSignature, signature));
            }
        }
    }

    pub fn default_domain(&self) -> Option<Id> {
        self.default_domain
    }

    pub fn set_default_domain(&mut self, id: Id) {
        self.default_domain = Some(id);
    }

    pub fn domain_named(&self, name: &str) -> Option<Id> {
        self.by_name.get(name).copied()
    }

    pub fn keys_of(&self, domain: Id) -> usize {
        let links = self.links.get(&domain).into_iter().flatten();
        links.filter(|(object, _)| *object == Object::DkimSignature).count()
    }

    pub fn stray_keys(&self) -> usize {
        self.signatures.values().filter(|key| !self.domains.contains_key(&key.domain)).count()
    }

    pub fn domain_with_alias(&self, alias: &str) -> Option<Id> {
        self.by_alias.get(alias).copied()
    }

    pub fn domain_name(&self, id: Id) -> Option<&str> {
        self.domains.get(&id).map(|domain| domain.name.as_str())
    }

    pub fn domains_by_name(&self) -> &BTreeMap<String, Id> {
        &self.by_name
    }

    pub fn domains_with_word(&self, word: &str) -> Option<&BTreeSet<Id>> {
        self.by_word.get(word)
    }

    pub fn linked(&self, domain: Id) -> impl Iterator<Item = (Object, Id)> {
        self.links.get(&domain).into_iter().flatten().copied()
    }

    pub fn mailbox(&self, object: Object, id: Id) -> Option<&Mailbox> {
        match object {
            Object::Account => self.accounts.get(&id),
            Object::MailingList => self.lists.get(&id),
            Object::Domain | Object::DkimSignature => None,
        }
    }

    pub fn len(&self, object: Object) -> usize {
        match object {
            Object::Account => self.accounts.len(),
            Object::DkimSignature => self.signatures.len(),
            Object::Domain => self.domains.len(),
            Object::MailingList => self.lists.len(),
        }
    }

    /// All ids, ascending.
    pub fn ids(&self, object: Object) -> Box<dyn DoubleEndedIterator<Item = Id> + '_> {
        match object {
            Object::Account => Box::new(self.accounts.keys().copied()),
            Object::DkimSignature => Box::new(self.signatures.keys().copied()),
            Object::Domain => Box::new(self.domains.keys().copied()),
            Object::MailingList => Box::new(self.lists.keys().copied()),
        }
    }

    pub fn show(&self, object: Object, id: Id, wanted: impl Fn(&str) -> bool) -> Option<Value> {
        match object {
            Object::Domain => self.domains.get(&id).map(|domain| domain.show(id, wanted)),
            Object::DkimSignature => self.signatures.get(&id).map(|it| it.show(id, wanted)),
            Object::Account | Object::MailingList => self.mailbox(object, id).map(|mailbox| {
                let domain = self.domain_name(mailbox.domain).unwrap_or_default();
                mailbox.show(id, domain, wanted)
            }),
        }
    }

    /// `may_grant`: the caller holds all permissions of the default role.
    pub fn create(
        &mut self,
        object: Object,
        properties: &Map<String, Value>,
        may_grant: bool,
    ) -> Result<Id, SetError> {
        match object {
            Object::Domain => {
                let domain = Domain::create(properties, timestamp())?;
                self.check_names(&domain, None)?;
                self.last_domain += 1;
                let id = Id(self.last_domain);
                self.index_domain(id, &domain);
                if domain.has_automatic_dkim() {
                    self.due.push_back((Instant::now() + self.dkim_delay, id));
                }
                self.domains.insert(id, domain);
                Ok(id)
            }
            Object::Account | Object::MailingList => {
                let mailbox = match object {
                    Object::Account => Mailbox::create_account(properties, &timestamp())?,
                    _ => Mailbox::create_list(properties)?,
                };
                self.check_address(&mailbox, None)?;
                if mailbox.takes_default_role() && !may_grant {
                    let more = if mailbox.kind == Kind::Group { 224 } else { 238 };
                    return Err(forbidden(&format!(
                        "You are not authorized to grant permissions: jmapPrincipalCreate, \
                         jmapPrincipalGetAvailability, jmapPrincipalQueryChanges, jmapPrincipalChanges, \
                         jmapPrincipalQuery and {more} more"
                    )));
                }
                let last = match object {
                    Object::Account => &mut self.last_account,
                    _ => &mut self.last_list,
                };
                *last += 1;
                let id = Id(*last);
                self.insert_mailbox(object, id, mailbox);
                Ok(id)
            }
            // Keys of one's own are not simulated.
            Object::DkimSignature => {
                Err(invalid_patch("Missing or invalid '@type' property in object", ""))
            }
        }
    }

    pub fn update(
        &mut self,
        object: Object,
        id: Id,
        patch: &Map<String, Value>,
    ) -> Result<(), SetError> {
        match object {
            Object::Domain => {
                let before = self.domains.get(&id).ok_or_else(not_found)?.clone();
                let mut after = before.clone();
                after.apply(patch, false)?;
                self.check_names(&after, Some(id))?;
                self.unindex_domain(id, &before);
                self.index_domain(id, &after);
                if after.has_automatic_dkim() && !before.has_automatic_dkim() {
                    self.due.push_back((Instant::now() + self.dkim_delay, id));
                }
                self.domains.insert(id, after);
                Ok(())
            }
            Object::Account | Object::MailingList => {
                let mut after = self.mailbox(object, id).ok_or_else(not_found)?.clone();
                after.apply(patch, false)?;
                self.check_address(&after, Some((object, id)))?;
                self.remove_mailbox(object, id);
                self.insert_mailbox(object, id, after);
                Ok(())
            }
            Object::DkimSignature => {
                self.signatures.get(&id).ok_or_else(not_found)?;
                let property = patch.keys().next().map(String::as_str).unwrap_or_default();
                Err(invalid_patch("Cannot modify server set property", property))
            }
        }
    }

    pub fn destroy(&mut self, object: Object, id: Id) -> Result<(), SetError> {
        match object {
            Object::Domain => {
                let domain = self.domains.get(&id).ok_or_else(not_found)?;
                let show =
                    |object: Object, id: Id| json!({ "object": object.name(), "id": id.to_string() });
                let mut linked: Vec<Value> =
                    self.linked(id).map(|(object, id)| show(object, id)).collect();
                // The settings hold it too (observed).
                if self.default_domain == Some(id) {
                    linked.push(json!({ "object": "SystemSettings", "id": "singleton" }));
                }
                if !linked.is_empty() {
                    return Err(json!({
                        "type": "objectIsLinked",
                        "objectId": show(object, id),
                        "linkedObjects": linked,
                    }));
                }
                let domain = domain.clone();
                self.unindex_domain(id, &domain);
                self.domains.remove(&id);
            }
            Object::Account | Object::MailingList => {
                self.mailbox(object, id).ok_or_else(not_found)?;
                self.remove_mailbox(object, id);
            }
            Object::DkimSignature => {
                let signature = self.signatures.remove(&id).ok_or_else(not_found)?;
                self.unlink(signature.domain, object, id);
            }
        }
        Ok(())
    }

    /// Removes a domain with whatever is linked to it.
    pub fn destroy_with_links(&mut self, domain: Id) -> bool {
        let linked: Vec<_> = self.linked(domain).collect();
        for (object, id) in linked {
            // They are there: nothing of theirs is linked in turn.
            let _ = self.destroy(object, id);
        }
        self.destroy(Object::Domain, domain).is_ok()
    }

    fn check_names(&self, domain: &Domain, own: Option<Id>) -> Result<(), SetError> {
        let holder = |name: &str| {
            let holder = self.domain_named(name).or_else(|| self.domain_with_alias(name));
            holder.filter(|holder| Some(*holder) != own)
        };
        if let Some(holder) = holder(&domain.name) {
            return Err(duplicate("name", "Domain", holder));
        }
        match domain.aliases.iter().find_map(|alias| holder(alias)) {
            Some(holder) => Err(duplicate("aliases", "Domain", holder)),
            None => Ok(()),
        }
    }

    fn check_address(&self, mailbox: &Mailbox, own: Option<(Object, Id)>) -> Result<(), SetError> {
        if !self.domains.contains_key(&mailbox.domain) {
            return Err(no_such("Domain", &mailbox.domain.to_string()));
        }
        let holder = self.by_address.get(&(mailbox.name.clone(), mailbox.domain));
        match holder.filter(|holder| Some(**holder) != own) {
            Some((object, id)) => Err(duplicate("email", object.name(), *id)),
            None => Ok(()),
        }
    }

    fn index_domain(&mut self, id: Id, domain: &Domain) {
        self.by_name.insert(domain.name.clone(), id);
        for alias in &domain.aliases {
            self.by_alias.insert(alias.clone(), id);
        }
        for word in domain.words() {
            self.by_word.entry(word).or_default().insert(id);
        }
    }

    fn unindex_domain(&mut self, id: Id, domain: &Domain) {
        self.by_name.remove(&domain.name);
        for alias in &domain.aliases {
            self.by_alias.remove(alias);
        }
        for word in domain.words() {
            if let Some(ids) = self.by_word.get_mut(&word) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_word.remove(&word);
                }
            }
        }
    }

    fn insert_mailbox(&mut self, object: Object, id: Id, mailbox: Mailbox) {
        self.by_address.insert((mailbox.name.clone(), mailbox.domain), (object, id));
        self.links.entry(mailbox.domain).or_default().insert((object, id));
        match object {
            Object::Account => self.accounts.insert(id, mailbox),
            _ => self.lists.insert(id, mailbox),
        };
    }

    fn remove_mailbox(&mut self, object: Object, id: Id) {
        let removed = match object {
            Object::Account => self.accounts.remove(&id),
            _ => self.lists.remove(&id),
        };
        if let Some(mailbox) = removed {
            self.by_address.remove(&(mailbox.name, mailbox.domain));
            self.unlink(mailbox.domain, object, id);
        }
    }

    fn unlink(&mut self, domain: Id, object: Object, id: Id) {
        if let Some(links) = self.links.get_mut(&domain) {
            links.remove(&(object, id));
            if links.is_empty() {
                self.links.remove(&domain);
            }
        }
    }

    pub fn account_named(&self, domain: &str, local: &str) -> Option<Id> {
        let domain = self.domain_named(domain)?;
        match self.by_address.get(&(local.to_owned(), domain))? {
            (Object::Account, id) => Some(*id),
            _ => None,
        }
    }
}

impl Signature {
    fn show(&self, id: Id, wanted: impl Fn(&str) -> bool) -> Value {
        let day = self.created_at[..10].replace('-', "");
        let (kind, algorithm) =
            if self.rsa { ("Dkim1RsaSha256", "rsa") } else { ("Dkim1Ed25519Sha256", "ed25519") };
        let all = json!({
            "@type": kind, "domainId": self.domain.to_string(), "memberTenantId": null,
            "selector": format!("v1-{algorithm}-{day}"), "createdAt": self.created_at,
            "stage": "active", "nextTransitionAt": null, "expire": null, "auid": null,
            "canonicalization": "relaxed/relaxed", "report": true, "thirdParty": null,
            "thirdPartyHash": null, "privateKey": { "@type": "Text", "secret": "****" },
            "headers": { "From": true, "To": true, "Date": true, "Subject": true, "Message-ID": true },
            "publicKey": "I9BsMscwbJvMqPmcvwdg396/UVFlbwePtKLhdAwlZec=",
        });
        let mut shown = all.as_object().cloned().unwrap_or_default();
        shown.retain(|name, _| wanted(name));
        shown.insert("id".into(), json!(id.to_string()));
        shown.into()
    }
}

/// Now, to the second, as the server writes it.
fn timestamp() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
