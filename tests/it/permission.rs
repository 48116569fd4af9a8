//! Whether writes ask before they go: each write of each run, and under a stop that is ordered meanwhile.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mongodb::bson::doc;
use serde_json::json;
use tenantry::dev::authentik::Release;
use tenantry::dev::faults::{Fault, Faults};
use tenantry::dev::ocis::Flavour;
use tenantry::http::{BaseUrl, HttpClient};
use tenantry::integration::{
    Authentik, Credentials, GroupTemplate, Integrations, Intent, Limits, Membership, Mode, Permission,
    Purpose, Ready, Refusal, SpaceRole, Target, Unbounded, UpstreamClient,
};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::store::Scope;
use tenantry::tenant::{
    DeletionPolicy, Desired, IntentId, MayAdopt, Outcome, Reason, Services, TenantId, Upstream,
};

use crate::support::{Running, TOKEN, World, eventually, holds_for, settings};
use crate::three::Suite;

/// Lets so many writes go, and says that everything is stopped before any other.
#[derive(Default)]
struct Few(AtomicUsize);

impl Permission for Few {
    fn ask(&self, request: Ready) -> Result<(), Refusal> {
        let take = |left: usize| left.checked_sub(1);
        let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
        match request.purpose {
            Purpose::Write if self.0.fetch_update(set, fetch, take).is_err() => {
                Err(Refusal::Held(Reason::Stopped))
            }
            Purpose::Read | Purpose::Write => Ok(()),
        }
    }
}

const MANY: u32 = 1_000_000;

/// Counts the writes that reach an upstream: one rule for each form that they have.
fn count_writes(faults: &Faults) {
    let rule = Fault { times: Some(MANY), ..Fault::default() };
    faults.add(Fault { body: Some("/set\"".into()), ..rule.clone() });
    for method in ["PATCH", "PUT", "DELETE"] {
        faults.add(Fault { method: Some(method.into()), ..rule.clone() });
    }
    for path in ["/api/v3", "/graph", "/ocs"] {
        faults.add(Fault { method: Some("POST".into()), path: Some(path.into()), ..rule.clone() });
    }
}

fn writes(faults: &Faults) -> u32 {
    let counting =
        faults.rules().into_iter().filter_map(|rule| rule.times.filter(|left| *left > MANY / 2));
    counting.map(|left| MANY - left).sum()
}

/// One tenant and its three upstreams, without a controller.
struct Bench {
    suite: Suite,
    integrations: Arc<Integrations>,
    few: Arc<Few>,
}

impl Bench {
    async fn new() -> Self {
        let mut suite = Suite::with(Flavour::OpenCloud).await;
        suite.world = World::with_release(Release::R2025_8).await;
        let metrics = Arc::new(Metrics::new());
        let groups = GroupTemplate::parse("tenant-{slug}").unwrap();
        let membership = Membership { role: SpaceRole::Editor, groups };
        let ocis = suite.files.connect_with(suite.files.credentials(), Some(membership), &metrics);
        let integrations = suite.integrations_with(&metrics, &[], ocis);
        let few = Arc::new(Few::default());
        let permission: Arc<dyn Permission> = few.clone();
        integrations.obey(&permission);
        for step in Upstream::ALL {
            count_writes(suite.faults(step));
        }
        Self { suite, integrations, few }
    }

    /// Runs a step again and again, each time with one write more than before, until it is not held any more.
    /// Until then as many writes reach the upstream as may. Returns how many did, and how it ended.
    async fn write_by_write(&self, step: Upstream, target: &mut Target) -> (u32, Outcome) {
        let faults = self.suite.faults(step);
        let mut arrived = 0;
        for allowed in 0..10 {
            let before = writes(faults);
            self.few.0.store(allowed, Ordering::SeqCst);
            let outcome = self.integrations.run(step, target, &Unbounded).await;
            let now = writes(faults) - before;
            arrived += now;
            let Outcome::Held { reason, external_id, .. } = outcome else { return (arrived, outcome) };
            assert_eq!(reason, Reason::Stopped);
            assert_eq!(now, u32::try_from(allowed).unwrap(), "{step}: {target:?}");
            if external_id.is_some() {
                target.recorded = external_id;
            }
        }
        panic!("{step} does not end: {target:?}");
    }
}

fn desired(step: Upstream, change: impl FnOnce(&mut Desired)) -> tenantry::tenant::StepDesired {
    let mut desired = Desired::new("Acme".parse().unwrap());
    desired.domain = Some("acme.test".parse().unwrap());
    change(&mut desired);
    desired.for_step(step)
}

fn target(step: Upstream) -> Target {
    let mut id: [u8; 12] = rand::random();
    id[..4].copy_from_slice(&1_800_000_000_u32.to_be_bytes());
    Target {
        id: TenantId::from_bytes(id),
        slug: "acme".parse().unwrap(),
        desired: desired(step, |_| {}),
        observed: None,
        left: None,
        recorded: None,
        settled: false,
        search: false,
        may_exist: false,
        intent: Some(Intent { id: IntentId::from_bytes(id), open: false, age: Duration::ZERO }),
        mode: Mode::Apply,
        fleet: crate::fleet::FLEET,
        known: true,
        may_adopt: MayAdopt::default(),
        adopted: Vec::new(),
        given_quota: None,
    }
}

#[tokio::test]
async fn every_write_of_every_run_asks_and_one_that_may_not_go_holds_the_step() {
    let bench = Bench::new().await;
    bench.suite.files.server.add_group("tenant-acme");
    for step in Upstream::ALL {
        let mut target = target(step);
        let (created, outcome) = bench.write_by_write(step, &mut target).await;
        let Outcome::Ok { external_id, .. } = outcome else { panic!("{step}: {outcome:?}") };
        target.recorded = external_id;
        target.may_exist = true;
        target.observed = Some(target.desired.clone());

        target.desired = desired(step, |desired| desired.name = "Other".parse().unwrap());
        let (updated, outcome) = bench.write_by_write(step, &mut target).await;
        assert!(matches!(outcome, Outcome::Ok { .. }), "{step}: {outcome:?}");

        // A second resource of the tenant, or for mail the former one.
        let id = target.id.to_string();
        match step {
            Upstream::Authentik => {
                let mark = json!({ "tenantry_id": id });
                bench.suite.world.authentik.plant("tenant-acme", mark, &[]);
            }
            Upstream::Stalwart => {
                target.desired = desired(step, |desired| {
                    desired.domain = Some("other.test".parse().unwrap());
                });
                eventually("the server has made its keys", async || {
                    bench.suite.stalwart.dkim_keys("acme.test") > 0
                })
                .await;
            }
            Upstream::Ocis => {
                let intent = target.intent.map(|intent| Intent { open: true, ..intent });
                let alias = format!("tenantry/{id}/{}", intent.unwrap().id);
                bench.suite.files.server.plant(json!({ "name": "Twin", "driveAlias": alias }));
                target.intent = intent;
            }
        }
        let (tidied, outcome) = bench.write_by_write(step, &mut target).await;
        let Outcome::Ok { external_id, .. } = outcome else { panic!("{step}: {outcome:?}") };
        target.recorded = external_id;
        target.intent = target.intent.map(|intent| Intent { open: false, ..intent });

        let off = |desired: &mut Desired| desired.services = Services::new(|_| false);
        target.desired = desired(step, off);
        let (off, outcome) = bench.write_by_write(step, &mut target).await;
        assert!(matches!(outcome, Outcome::Released { .. }), "{step}: {outcome:?}");

        let purge = |desired: &mut Desired| desired.deletion = Some(DeletionPolicy::Purge);
        target.desired = desired(step, purge);
        eventually("the server has made its keys", async || {
            step != Upstream::Stalwart || bench.suite.stalwart.dkim_keys("other.test") > 0
        })
        .await;
        let (purged, outcome) = bench.write_by_write(step, &mut target).await;
        assert!(matches!(outcome, Outcome::Released { .. }), "{step}: {outcome:?}");
        let expected = match step {
            Upstream::Authentik => [1, 1, 1, 1, 1],
            // A domain is tried as it is before it goes with its keys.
            Upstream::Stalwart => [1, 1, 3, 1, 3],
            // With the group's role; the mark that it is released comes before disabling and purging.
            Upstream::Ocis => [2, 1, 1, 1, 3],
        };
        assert_eq!([created, updated, tidied, off, purged], expected, "{step}");
    }
}

/// A read of one tenant's resource that takes a moment.
fn slow_read(step: Upstream) -> Fault {
    let slow = Fault { times: Some(1), delay_ms: 700, ..Fault::default() };
    match step {
        Upstream::Authentik | Upstream::Ocis => Fault { method: Some("GET".into()), ..slow },
        Upstream::Stalwart => Fault { body: Some("x:Domain/query".into()), ..slow },
    }
}

impl Suite {
    /// Orders a stop while the next request to the upstream is under way, and expects that nothing is
    /// written after it.
    async fn stop_in_the_middle(&self, controller: &Running, step: Upstream) {
        let faults = self.faults(step);
        let before = faults.total();
        eventually("the slow request is under way", async || faults.total() > before).await;
        self.world.store.stop(Scope::Upstream(step)).await.unwrap();
        let mut controls = controller.controls.clone();
        controls.wait_for(|controls| controls.is_stopped(step)).await.unwrap();
        count_writes(faults);
        eventually("the step is held", async || {
            let held = |found: mongodb::bson::Document| {
                if found.get_document("lease").ok()?.contains_key("holder") {
                    return Some(false);
                }
                let step = found.get_document("steps").ok()?.get_document(step.name()).ok()?;
                step.get_str("reason").ok().map(|reason| reason == "Stopped")
            };
            held(self.world.find("acme").await).unwrap_or(false)
        })
        .await;
        holds_for(Duration::from_millis(300), "nothing is written", async || writes(faults) == 0).await;
        let held = self.world.step_of("acme", step.name()).await;
        assert_eq!(held.get_str("state").unwrap(), "pending", "{held}");
        assert!(held.get_str("message").unwrap().contains("would change"), "{held}");
        assert_eq!(controller.metrics.step_errors.of((step, Reason::Stopped)).get(), 0);
        faults.clear();
        self.world.store.start(Scope::Upstream(step)).await.unwrap();
        controls.wait_for(|controls| !controls.is_stopped(step)).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_written_once_a_stop_is_known_though_the_run_began_before() {
    for step in Upstream::ALL {
        let suite = Suite::new().await;
        let controller = suite.controller(|_| {}).await;
        // The first request of a process proves that the upstream answers; it is not the tenant's.
        suite.create("before").await;
        suite.settled("before").await;

        suite.faults(step).add(slow_read(step));
        // As a shell does it: whether an earlier run made something is looked for first.
        let acme = doc! { "slug": "acme", "name": "The acme", "domain": "acme.test" };
        suite.world.tenants.insert_one(acme).await.unwrap();
        suite.stop_in_the_middle(&controller, step).await;
        let held = suite.world.step_of("acme", step.name()).await;
        assert!(!held.contains_key("createIntent"), "nothing was sent: {held}");
        suite.settled("acme").await;
        suite.audit("acme").await;

        suite.faults(step).add(slow_read(step));
        suite.world.set("acme", doc! { "name": "Edited" }).await;
        suite.stop_in_the_middle(&controller, step).await;
        suite.settled("acme").await;

        suite.faults(step).add(slow_read(step));
        let slug = "acme".parse().unwrap();
        let asked = suite.world.store.request_deletion(&slug, DeletionPolicy::Purge);
        asked.await.unwrap().expect("there is such a tenant");
        suite.stop_in_the_middle(&controller, step).await;
        eventually("it is gone", async || {
            suite.world.tenants.count_documents(doc! { "slug": "acme" }).await.unwrap() == 0
        })
        .await;
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_write_that_waits_for_its_turn_at_the_limiter_asks_when_it_has_it() {
    let world = World::new().await;
    let metrics = Arc::new(Metrics::new());
    // Three requests at once, and then one a second.
    let limits = Limits { concurrent: 64, per_minute: NonZeroU32::new(60) };
    let upstream = UpstreamClient::new(
        Upstream::Authentik,
        HttpClient::new(None, Duration::from_secs(2)).unwrap(),
        BaseUrl::parse(&world.authentik.url(), "api/v3").unwrap(),
        Credentials::Bearer(Secret::from(TOKEN)),
        limits,
        Arc::clone(&metrics),
    );
    let authentik = Authentik::new(upstream, GroupTemplate::parse("tenant-{slug}").unwrap());
    let integrations = Arc::new(Integrations::new(Arc::clone(&metrics)).with_authentik(authentik));
    let controller = Running::start(world.store.clone(), integrations, metrics, settings()).await;
    for n in 0..4 {
        world.insert(&format!("t{n}")).await;
    }
    eventually("the limiter is busy with them", async || world.authentik.faults.total() >= 3).await;
    world.store.stop(Scope::Everything).await.unwrap();
    controller.controls.clone().wait_for(|controls| controls.stopped).await.unwrap();
    let made = world.authentik.count();
    count_writes(&world.authentik.faults);
    for n in 0..4 {
        let slug = format!("t{n}");
        eventually(&format!("{slug} is made or held"), async || {
            let step = world.step(&slug).await;
            let is = |field: &str, value: &str| step.get_str(field).is_ok_and(|found| found == value);
            is("state", "ok") || is("reason", "Stopped")
        })
        .await;
    }
    assert_eq!(writes(&world.authentik.faults), 0);
    assert!(made < 4, "some had to wait");
    assert_eq!(world.authentik.count(), made);
    controller.stop().await;
}
