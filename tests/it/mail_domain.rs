//! A mail domain is never renamed, and none that has accounts is ever removed: their addresses, which are
//! also their logins, stay as they are whatever people ask for, and in which order. And what was not made for
//! the tenant is never destroyed, and says in the end what it said before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mongodb::bson::{Document, doc, oid::ObjectId};
use proptest::prelude::*;
use serde_json::json;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::stalwart::{Options, Simulator};
use tenantry::integration::{Credentials, Integrations, Limits, Mode, Target, Unbounded};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::tenant::{
    Basis, DeletionPolicy, Desired, Fleet, Jitter, Reason, Services, Status, StepRun, Tenant, TenantId,
    Upstream, transition,
};

use crate::stalwart::{Bench, desired, next, target};
use crate::support::{eventually, settings};
use crate::three::Suite;

const DOMAINS: [&str; 3] = ["nl.test", "nl2.test", "nl3.test"];

/// What happens in a tenant's life, in any order.
#[derive(Debug, Clone)]
enum Act {
    Move(Option<usize>),
    Rename(&'static str),
    Pause(bool),
    Switch(bool),
    Delete(DeletionPolicy),
    Undelete,
    Adopt(Option<bool>),
    /// A domain is made by hand.
    Plant(usize),
    /// A person gets a mailbox in one of the domains, if it is there.
    Join(usize),
    /// The last who got one there gives it up.
    Leave(usize),
    Reconcile,
    /// A reconcile whose outcome is lost.
    Crash,
    /// The next write is done and not answered.
    LoseAnswer,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop::option::weighted(0.8, 0..DOMAINS.len()).prop_map(Act::Move),
        1 => prop::sample::select(vec!["Acme", "Acme AG"]).prop_map(Act::Rename),
        2 => any::<bool>().prop_map(Act::Pause),
        3 => any::<bool>().prop_map(Act::Switch),
        1 => prop::sample::select(DeletionPolicy::ALL.to_vec()).prop_map(Act::Delete),
        2 => Just(Act::Undelete),
        2 => prop::option::of(any::<bool>()).prop_map(Act::Adopt),
        2 => (0..DOMAINS.len()).prop_map(Act::Plant),
        3 => (0..DOMAINS.len()).prop_map(Act::Join),
        1 => (0..DOMAINS.len()).prop_map(Act::Leave),
        8 => Just(Act::Reconcile),
        1 => Just(Act::Crash),
        1 => Just(Act::LoseAnswer),
    ]
}

/// A tenant and its mail server: the whole product but for the database.
struct Life {
    server: Simulator,
    integrations: Integrations,
    tenant: Tenant,
    claimed: bool,
    people: BTreeMap<String, String>,
    joined: usize,
    /// The ids of the domains that were made by hand, as long as no purge was asked for.
    made_by_hand: Vec<String>,
}

const BY_HAND: &str = "bought in 2019";

impl Life {
    async fn new() -> Self {
        let options = Options { dkim_delay: Duration::from_millis(1), ..Options::default() };
        let server = Simulator::new(0, "key", options).await.unwrap();
        let integrations = process(&server);
        let mut desired = Desired::new("Acme".parse().unwrap());
        desired.domain = Some(DOMAINS[0].parse().unwrap());
        let tenant = new_tenant(desired);
        let (people, made_by_hand) = (BTreeMap::new(), Vec::new());
        Self { server, integrations, tenant, claimed: false, people, joined: 0, made_by_hand }
    }

    async fn act(&mut self, act: &Act) {
        let desired = &mut self.tenant.desired;
        match act {
            Act::Move(to) => desired.domain = to.map(|to| DOMAINS[to].parse().unwrap()),
            Act::Rename(name) => desired.name = name.parse().unwrap(),
            Act::Pause(paused) => desired.paused = *paused,
            Act::Switch(on) => desired.services = Services::new(|_| *on),
            Act::Delete(policy) => {
                desired.deletion = Some(*policy);
                if *policy == DeletionPolicy::Purge {
                    self.made_by_hand.clear();
                }
            }
            Act::Undelete => desired.deletion = None,
            Act::Adopt(adopt) => desired.adopt = *adopt,
            Act::Plant(at) => self.plant(DOMAINS[*at]),
            Act::Join(at) => self.join(DOMAINS[*at]),
            Act::Leave(at) => self.leave(DOMAINS[*at]),
            Act::Reconcile => self.reconcile(true).await,
            Act::Crash => self.reconcile(false).await,
            Act::LoseAnswer => {
                let body = Some("/set\"".into());
                let fault = Fault { body, times: Some(1), apply: true, ..Fault::default() };
                self.server.faults.add(Fault { answer: FaultAnswer::Drop, ..fault });
            }
        }
    }

    fn plant(&mut self, domain: &str) {
        if !self.server.domains().iter().any(|there| there["name"] == domain) {
            let by_hand = json!({ "description": BY_HAND, "isEnabled": false });
            self.made_by_hand.push(self.server.plant(domain, by_hand));
        }
    }

    /// What was made by hand is there, and says so unless the tenant has it now.
    fn check_made_by_hand(&self) {
        let domains = self.server.domains();
        for id in &self.made_by_hand {
            let found = domains.iter().find(|domain| domain["id"] == **id);
            let domain = found.unwrap_or_else(|| panic!("{id} was destroyed"));
            let is_marked = domain["description"].as_str().unwrap_or_default().contains("[tenantry ");
            let says = (domain["description"].as_str(), domain["isEnabled"].as_bool());
            assert!(is_marked || says == (Some(BY_HAND), Some(false)), "{domain}");
        }
    }

    /// The tenant goes, and all that it had adopted says again what it said before.
    async fn end(&mut self) {
        let desired = &mut self.tenant.desired;
        (desired.paused, desired.deletion) = (false, Some(DeletionPolicy::Retain));
        self.server.faults.clear();
        // Lost answers in a row make the breaker pause; a new process does not know of them.
        self.integrations = process(&self.server);
        let id = self.tenant.id;
        for _ in 0..4 {
            self.reconcile(true).await;
            if self.tenant.id != id {
                break;
            }
        }
        assert_ne!(self.tenant.id, id, "it is gone");
        let mark = id.to_string();
        for domain in self.server.domains().iter().filter(|it| it.to_string().contains(&mark)) {
            let by_hand = self.made_by_hand.iter().any(|id| domain["id"] == **id);
            assert!(!by_hand, "made by hand, and not let go: {domain}");
        }
    }

    fn join(&mut self, domain: &str) {
        if self.server.domains().iter().any(|there| there["name"] == domain) {
            self.joined += 1;
            let name = format!("person{}", self.joined);
            let id = self.server.plant_account(domain, &name);
            self.people.insert(id, format!("{name}@{domain}"));
        }
    }

    fn leave(&mut self, domain: &str) {
        let at = format!("@{domain}");
        let last = self.people.iter().rev().find(|(_, address)| address.ends_with(&at));
        if let Some((id, address)) = last.map(|(id, address)| (id.clone(), address.clone())) {
            let (name, _) = address.split_once('@').unwrap();
            assert!(self.server.remove_account(domain, name), "{address} was there");
            self.people.remove(&id);
        }
    }

    async fn reconcile(&mut self, is_committed: bool) {
        let step = Upstream::Stalwart;
        let paused = self.tenant.desired.paused;
        let mode = if paused { Mode::Hold(Reason::Paused) } else { Mode::Apply };
        let now = Timestamp::now();
        let fleet = Fleet::new(crate::fleet::FLEET);
        let target = Target::of(&self.tenant, &fleet, step, self.claimed, mode, false, now);
        self.claimed = true;
        let outcome = self.integrations.run(step, &target, &Unbounded).await;
        let runs = [StepRun { step, outcome, at: now, jitter: Jitter::new(0.5) }];
        if !is_committed {
            return;
        }
        let policy = settings().policy;
        let after =
            transition(&self.tenant, &[step], &runs, Basis::Current, now, &policy, Jitter::new(0.5));
        self.tenant.status = after.status;
        if self.tenant.desired.deletion.is_some() && self.tenant.current_state(step).is_settled() {
            // Its document goes, and a new tenant of that slug comes.
            let desired = Desired { deletion: None, ..self.tenant.desired.clone() };
            (self.tenant, self.claimed) = (new_tenant(desired), false);
        }
    }
}

/// What a process that was just started works with.
fn process(server: &Simulator) -> Integrations {
    let credentials = Credentials::Bearer(Secret::from("key"));
    let stalwart = crate::stalwart::connect(&server.url(), credentials, Limits::GENEROUS);
    Integrations::new(Arc::new(Metrics::new())).with_stalwart(stalwart)
}

fn new_tenant(desired: Desired) -> Tenant {
    Tenant {
        id: TenantId::from_bytes(ObjectId::new().bytes()),
        slug: "nl".parse().unwrap(),
        desired,
        generation: 1,
        reconcile_requested_at: None,
        reconcile_requested_steps: None,
        observation_requested: false,
        reconcile_requested_by: Vec::new(),
        changed_by: Vec::new(),
        status: Status::default(),
        interrupted: false,
        deletion_requested_at: None,
        created_at: Timestamp::now(),
        updated_at: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn no_order_of_acts_changes_an_address_or_destroys_what_was_made_by_hand(acts in prop::collection::vec(any_act(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut life = Life::new().await;
            for (n, act) in acts.iter().enumerate() {
                life.act(act).await;
                assert_eq!(life.server.addresses(), life.people, "after {:?}", &acts[..=n]);
                life.check_made_by_hand();
            }
            life.end().await;
        });
    }
}

#[tokio::test]
async fn a_tenant_that_moves_while_its_mail_is_off_leaves_the_former_domain_as_it_is() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("nl").await;
    suite.settled("nl").await;
    suite.stalwart.plant_account("nl.test", "anna");
    let people = suite.stalwart.addresses();
    suite.world.set("nl", doc! { "services": { "stalwart": false } }).await;
    suite.settled("nl").await;
    suite.world.set("nl", doc! { "domain": "nl2.test" }).await;
    suite.settled("nl").await;
    suite.world.set("nl", doc! { "services": { "stalwart": true } }).await;
    let note = async || {
        let step: Document = suite.world.step_of("nl", "stalwart").await;
        step.get_str("state").is_ok_and(|state| state == "ok")
            && step.get_str("message").is_ok_and(|said| said.contains("1 account still in nl.test"))
    };
    eventually("the new domain is there, and the former one is kept", note).await;
    assert_eq!(suite.stalwart.addresses(), people);
    let names = suite.stalwart.domains().into_iter().map(|domain| domain["name"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["nl.test", "nl2.test"]);
    controller.stop().await;
}

#[tokio::test]
async fn a_domain_that_a_person_renamed_keeps_its_new_name_and_its_accounts() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    bench.server.plant_account("acme.test", "anna");
    assert!(bench.server.change("acme.test", json!({ "name": "acme-old.test" })));
    let people = bench.server.addresses();
    assert_eq!(people.values().collect::<Vec<_>>(), ["anna@acme-old.test"], "as the real server does");

    let settled = next(&target, &made);
    let anew = bench.converge(&settled).await.unwrap();
    assert_ne!(anew.external_id, made.external_id);
    assert_eq!(bench.domain("acme.test")["id"], anew.external_id);
    let note = anew.remarks.note.clone().unwrap();
    assert!(note.contains("1 account still in acme-old.test"), "{note}");
    assert_eq!(bench.server.addresses(), people);

    // Who wants the tenant to have the new name says so in its document.
    let moving = Target { desired: desired("acme-old.test"), ..next(&settled, &anew) };
    let moved = bench.converge(&moving).await.unwrap();
    assert_eq!((moved.external_id, moved.remarks.note), (made.external_id, None));
    assert_eq!(bench.names().into_iter().collect::<Vec<_>>(), ["acme-old.test"]);
    assert_eq!(bench.server.addresses(), people);
}
