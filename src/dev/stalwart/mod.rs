//! A simulated Stalwart: the management of domains over JMAP as versions 0.16.18 and 0.16.19 were observed
//! to speak it, quirks included. It is never lenient: what the real one refuses, it refuses.
//!
//! Simulated are `x:Domain`, `x:Account`, `x:MailingList` and `x:DkimSignature` with `/get`, `/query` and
//! `/set`, and `x:ApiKey/set`. Other objects are known only to the permissions. Differences that remain:
//!
//! * its list of public suffixes is as old as this program;
//! * a domain of 0.16.19 that is destroyed before its keys came always leaves one behind, not sometimes;
//! * limits and bans count callers on loopback too, whom the real server exempts; failed logins are never
//!   forgotten, which takes the real one a day;
//! * wrong logins are refused without the real delay of up to half a second;
//! * passwords are only measured, not weighed, and accounts cannot log in; they have no aliases and no
//!   groups, there are no tenants, and DKIM signatures are only made by the server;
//! * logins belong to the account "b", which no list shows, and so do keys that name no other account;
//!   a key of another account may do what that account was given;
//! * JSON members are in alphabetical order, and creates of one `/set` are done in that order.

mod access;
mod ban;
mod domain;
mod error;
mod http;
mod id;
mod jmap;
mod mailbox;
mod query;
mod registry;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

pub use self::access::LEAST;
use self::access::{Access, PROVISIONER, Permissions};
use self::ban::Bans;
use self::http::router;
use self::registry::{Object, Registry};
use super::faults::Faults;
use super::server::Server;

/// Which release to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Release {
    R0_16_18,
    /// A malformed `ifInState` fails its call instead of the request, `notFound` is in an order of its own,
    /// and a domain that is destroyed too soon can leave a key behind.
    #[default]
    R0_16_19,
}

/// What a simulator is like; the default is a fresh server's settings.
#[derive(Debug, Clone)]
pub struct Options {
    pub release: Release,
    /// Requests a minute of one account whose key lacks `unlimitedRequests`; 0 refuses all.
    pub requests_per_minute: u32,
    /// Wrong logins that are answered with 401; the next one is a ban.
    pub max_failed_logins: u64,
    /// From a domain's creation until it has its two DKIM keys, and cannot be destroyed any more.
    pub dkim_delay: Duration,
    /// How long a request is worked on. Without it nothing is ever concurrent enough to be refused.
    pub latency: Duration,
    /// Whether the first key is exempt from the limits of rate and concurrency.
    pub unlimited_requests: bool,
    /// What the session says where to post to. Seldom an address that a client in a cluster can reach.
    pub public_url: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            release: Release::default(),
            requests_per_minute: 1000,
            max_failed_logins: 100,
            dkim_delay: Duration::from_millis(500),
            latency: Duration::ZERO,
            unlimited_requests: false,
            public_url: "https://mail.example.org".to_owned(),
        }
    }
}

/// The simulator: its state survives a stop and restart of its [`Server`].
pub struct Simulator {
    pub server: Server,
    pub faults: Faults,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    in_flight: Arc<AtomicU32>,
    options: Arc<Options>,
}

struct State {
    release: Release,
    access: Access,
    bans: Bans,
    registry: Registry,
    bootstrap: bool,
    /// The next `x:Domain/set` commits so many objects and then loses a race.
    race: Option<usize>,
    /// Connections that were closed without an answer.
    dropped: u64,
}

impl Simulator {
    /// Starts a simulator on loopback; port 0 takes a free one. `key` is an API key with what it takes
    /// to provision domains, mailing lists and accounts without a role.
    pub async fn new(port: u16, key: &str, options: Options) -> std::io::Result<Self> {
        let mut access = Access::default();
        let unlimited = options.unlimited_requests.then_some("unlimitedRequests");
        access.add_key(key, Permissions::only(PROVISIONER.into_iter().chain(unlimited)));
        let release = options.release;
        let registry = Registry::new(options.dkim_delay, release);
        let bans = Bans::default();
        let state = State { release, access, bans, registry, bootstrap: false, race: None, dropped: 0 };
        let shared = Shared {
            state: Arc::new(Mutex::new(state)),
            in_flight: Arc::default(),
            options: Arc::new(options),
        };
        let faults = Faults::default();
        let server = Server::start(port, router(shared.clone(), &faults)).await?;
        Ok(Self { server, faults, shared })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Lets a key in. Without `authenticate` among its permissions it is told 403.
    pub fn add_key(&self, key: &str, permissions: &[&str]) {
        self.lock().access.add_key(key, Permissions::only(permissions.iter().copied()));
    }

    pub fn remove_key(&self, key: &str) {
        self.lock().access.keys.remove(key);
    }

    /// Lets an administrator in by name and password: Basic, with every permission.
    pub fn add_user(&self, name: &str, password: &str) {
        self.lock().access.users.insert(name.to_owned(), password.to_owned());
    }

    /// All domains, as `x:Domain/get` shows them, by id.
    pub fn domains(&self) -> Vec<Value> {
        self.lock().domains()
    }

    pub fn count(&self) -> usize {
        self.lock().registry.len(Object::Domain)
    }

    /// Puts a domain there without asking the API; returns its id. Unless `properties` say otherwise,
    /// its DKIM keys are managed by hand.
    ///
    /// # Panics
    ///
    /// When the server would refuse it.
    pub fn plant(&self, name: &str, properties: Value) -> String {
        let mut given = Map::new();
        given.insert("dkimManagement".into(), json!({ "@type": "Manual" }));
        given.extend(properties.as_object().cloned().unwrap_or_default());
        given.insert("name".into(), json!(name));
        planted(self.lock().registry.create(Object::Domain, &given, true))
    }

    /// Patches the domain of that name, as an administrator might; whether it could be done.
    pub fn change(&self, name: &str, patch: Value) -> bool {
        let mut state = self.lock();
        let patch = patch.as_object().cloned().unwrap_or_default();
        let Some(id) = state.registry.domain_named(name) else { return false };
        state.registry.update(Object::Domain, id, &patch).is_ok()
    }

    /// Makes the domain of that name the server's default one; whether there is such a domain.
    pub fn make_default(&self, name: &str) -> bool {
        let mut state = self.lock();
        let Some(id) = state.registry.domain_named(name) else { return false };
        state.registry.set_default_domain(id);
        true
    }

    /// Removes the domain of that name with all that is linked to it, as an administrator might.
    pub fn delete(&self, name: &str) -> bool {
        self.lock().delete(name)
    }

    /// Puts an account (a user of the default role) into a domain; returns its id.
    ///
    /// # Panics
    ///
    /// When there is no such domain, or the server would refuse it.
    pub fn plant_account(&self, domain: &str, local: &str) -> String {
        self.plant_mailbox(Object::Account, domain, json!({ "@type": "User", "name": local }))
    }

    pub fn remove_account(&self, domain: &str, local: &str) -> bool {
        let mut state = self.lock();
        let Some(id) = state.registry.account_named(domain, local) else { return false };
        state.registry.destroy(Object::Account, id).is_ok()
    }

    /// The addresses of all accounts, by the accounts' ids.
    pub fn addresses(&self) -> BTreeMap<String, String> {
        let state = self.lock();
        let show = |id| state.registry.show(Object::Account, id, |_| true);
        let shown = state.registry.ids(Object::Account).filter_map(show);
        let text = |account: &Value, name: &str| account[name].as_str().unwrap_or_default().to_owned();
        shown.map(|account| (text(&account, "id"), text(&account, "emailAddress"))).collect()
    }

    /// Puts a mailing list into a domain; returns its id.
    ///
    /// # Panics
    ///
    /// When there is no such domain, or the server would refuse it.
    pub fn plant_list(&self, domain: &str, local: &str) -> String {
        self.plant_mailbox(Object::MailingList, domain, json!({ "name": local }))
    }

    fn plant_mailbox(&self, object: Object, domain: &str, mut properties: Value) -> String {
        let mut state = self.lock();
        let domain = state.registry.domain_named(domain).map(|id| id.to_string());
        properties["domainId"] = json!(domain);
        let properties = properties.as_object().cloned().unwrap_or_default();
        planted(state.registry.create(object, &properties, true))
    }

    /// How many DKIM keys the server has made for the domain of that name.
    pub fn dkim_keys(&self, domain: &str) -> usize {
        let mut state = self.lock();
        state.registry.settle();
        state.registry.domain_named(domain).map_or(0, |id| state.registry.keys_of(id))
    }

    /// Keys whose domain does not exist.
    pub fn stray_keys(&self) -> usize {
        let mut state = self.lock();
        state.registry.settle();
        state.registry.stray_keys()
    }

    /// Wrong logins so far.
    pub fn failed_logins(&self) -> u64 {
        self.lock().bans.failed
    }

    /// Connections that a ban has closed without an answer.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Lifts all bans, as an administrator does: the blocks are destroyed and read again. The wrong logins
    /// stay counted.
    pub fn lift_ban(&self) {
        self.lock().bans.lift();
    }

    /// Addresses that are blocked.
    pub fn bans(&self) -> usize {
        self.lock().bans.show().len()
    }

    /// Being (or no longer being) a server that was never set up.
    pub fn bootstrap(&self, on: bool) {
        self.lock().bootstrap = on;
    }

    /// The next `x:Domain/set` commits `objects` of its objects and then answers `serverUnavailable`, as
    /// one that lost a race.
    pub fn fail_next_set_after(&self, objects: usize) {
        self.lock().race = Some(objects);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

fn planted(created: Result<id::Id, Value>) -> String {
    match created {
        Ok(id) => id.to_string(),
        Err(refused) => panic!("the simulated Stalwart refuses what is planted: {refused}"),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn domains(&mut self) -> Vec<Value> {
        self.registry.settle();
        let ids = self.registry.ids(Object::Domain);
        ids.filter_map(|id| self.registry.show(Object::Domain, id, |_| true)).collect()
    }

    fn delete(&mut self, name: &str) -> bool {
        self.registry.settle();
        let Some(id) = self.registry.domain_named(name) else { return false };
        self.registry.destroy_with_links(id)
    }
}
