//! All three upstreams at once: the whole controller against a real mongod and the three simulators.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Bson, DateTime, Document, doc};
use serde_json::{Value, json};
use tenantry::controller::Settings;
use tenantry::dev::faults::{Fault, FaultAnswer, Faults};
use tenantry::dev::ocis::Flavour;
use tenantry::dev::stalwart;
use tenantry::failpoint::{CLAIMED, COMMITTED, CREATED, CREATING, RAN};
use tenantry::integration::{Credentials, Integrations, Limits, Ocis};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::store::NewTenant;
use tenantry::tenant::{Desired, Services, Upstream};

use crate::ocis::{ACCOUNT, FileServer, PASSWORD};
use crate::support::{Process, Running, TOKEN, World, eventually, settings};

pub const KEY: &str = "API_test-key";
pub const STEPS: [&str; 3] = ["authentik", "stalwart", "ocis"];

/// Requests of the check at start, by upstream.
pub const CHECK: [u64; 3] = [1, 2, 2];

/// Resources of another owner, by upstream.
pub type Strangers = [Vec<Value>; 3];

/// A world with all three.
pub struct Suite {
    pub world: World,
    pub stalwart: stalwart::Simulator,
    pub files: FileServer,
}

impl Suite {
    pub async fn new() -> Self {
        Self::with(Flavour::Ocis31).await
    }

    pub async fn with(flavour: Flavour) -> Self {
        let options = stalwart::Options {
            dkim_delay: Duration::from_millis(20),
            // What exceeds the limits is found out by the counts, not by refusals.
            unlimited_requests: true,
            ..stalwart::Options::default()
        };
        let stalwart = stalwart::Simulator::new(0, KEY, options).await.unwrap();
        Self { world: World::new().await, stalwart, files: FileServer::new(flavour).await }
    }

    fn integrations(&self, metrics: &Arc<Metrics>, lacked: &[Upstream]) -> Arc<Integrations> {
        self.integrations_with(metrics, lacked, self.files.connect(metrics))
    }

    /// The same with an oCIS of the test's own.
    pub fn integrations_with(
        &self,
        metrics: &Arc<Metrics>,
        lacked: &[Upstream],
        ocis: Ocis,
    ) -> Arc<Integrations> {
        let timeout = self.files.timeout;
        let mut integrations = Integrations::new(Arc::clone(metrics));
        if !lacked.contains(&Upstream::Authentik) {
            let url = self.world.authentik.url();
            let authentik = crate::support::authentik(&url, TOKEN, timeout, metrics);
            integrations = integrations.with_authentik(authentik);
        }
        if !lacked.contains(&Upstream::Stalwart) {
            let credentials = Credentials::Bearer(Secret::from(KEY));
            let limits = Limits { concurrent: 3, per_minute: None };
            let url = self.stalwart.url();
            let stalwart = crate::stalwart::connect_with(&url, credentials, limits, timeout);
            integrations = integrations.with_stalwart(stalwart);
        }
        if !lacked.contains(&Upstream::Ocis) {
            integrations = integrations.with_ocis(ocis);
        }
        Arc::new(integrations)
    }

    /// A controller that was started without the settings of some upstreams.
    pub async fn controller_without(&self, lacked: &[Upstream]) -> Running {
        let metrics = Arc::new(Metrics::new());
        let integrations = self.integrations(&metrics, lacked);
        Running::start(self.world.other_store().await, integrations, metrics, settings()).await
    }

    pub async fn controller(&self, change: impl FnOnce(&mut Settings)) -> Running {
        let mut settings = settings();
        change(&mut settings);
        let metrics = Arc::new(Metrics::new());
        let integrations = self.integrations(&metrics, &[]);
        Running::start(self.world.store.clone(), integrations, metrics, settings).await
    }

    /// A real process on all three.
    pub fn process(&self, settings: &[(&str, &str)]) -> Process {
        let mut command = Process::run(&self.world);
        command
            .env("STALWART_API_URL", self.stalwart.url())
            .env("STALWART_API_TOKEN", KEY)
            .env("OCIS_API_URL", self.files.server.url())
            .env("OCIS_OIDC_TOKEN_URL", self.files.issuer.token_url())
            .env("OCIS_OIDC_CLIENT_ID", "web")
            .env("OCIS_OIDC_USERNAME", ACCOUNT)
            .env("OCIS_OIDC_PASSWORD", PASSWORD)
            .envs(settings.iter().copied());
        Process::spawn(command)
    }

    /// Inserts a tenant with a mail domain as the API does.
    pub async fn create(&self, slug: &str) {
        let desired = Desired {
            name: format!("The {slug}").parse().unwrap(),
            domain: Some(format!("{slug}.test").parse().unwrap()),
            storage_bytes: Some(1_000_000_000),
            services: Services::default(),
            paused: false,
            adopt: None,
            deletion: None,
        };
        let new = NewTenant { slug: slug.parse().unwrap(), desired };
        self.world.store.insert(&new).await.unwrap().expect("the slug is free");
    }

    /// Waits until every step is `ok`, or `skipped` where it must be, and nothing is due.
    pub async fn settled(&self, slug: &str) -> Document {
        eventually(&format!("{slug} is settled"), async || {
            let tenant = self.world.find(slug).await;
            let states = tenant.get_document("provisioningStatus").cloned().unwrap_or_default();
            let ready = tenant.get_array("conditions").is_ok_and(|conditions| {
                conditions[0]
                    .as_document()
                    .is_some_and(|ready| ready.get_str("status").is_ok_and(|is| is == "True"))
            });
            ready
                && STEPS
                    .iter()
                    .all(|step| states.get_str(step).is_ok_and(|s| s == "ok" || s == "skipped"))
                && tenant.get_datetime("nextReconcileAt").is_ok_and(|next| *next > DateTime::now())
        })
        .await;
        self.world.find(slug).await
    }

    /// Asks for a reconcile and waits until it has been handled and all is well.
    pub async fn reconcile(&self, slug: &str) -> Document {
        let asked = self.world.store.request_reconcile(&slug.parse().unwrap()).await;
        let asked = asked.unwrap().expect("there is such a tenant");
        eventually(&format!("the request for {slug} is handled"), async || {
            let tenant = self.world.find(slug).await;
            tenant
                .get_datetime("lastHandledReconcileAt")
                .is_ok_and(|at| at.timestamp_millis() == asked.at.as_millisecond())
        })
        .await;
        self.settled(slug).await
    }

    /// Everything that there is for a tenant, and that it is what the document records: one of each.
    pub async fn audit(&self, slug: &str) {
        let tenant = self.world.find(slug).await;
        let id = tenant.get_object_id("_id").unwrap().to_hex();
        let steps = tenant.get_document("steps").unwrap();
        let recorded = |step: &str| {
            let id = steps.get_document(step).unwrap().get_str("externalId");
            id.map(ToOwned::to_owned).unwrap_or_else(|_| panic!("{step} has an id: {tenant}"))
        };
        let marked = |resources: Vec<Value>, key: &str| -> Vec<String> {
            let ours = resources.into_iter().filter(|resource| {
                resource.to_string().contains(&id) && resource.pointer("/root/deleted").is_none()
            });
            ours.map(|resource| resource[key].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(marked(self.world.authentik.groups(), "pk"), [recorded("authentik")]);
        assert_eq!(marked(self.stalwart.domains(), "id"), [recorded("stalwart")]);
        assert_eq!(marked(self.files.server.drives(), "id"), [recorded("ocis")]);
    }

    /// Rules and record of an upstream.
    pub fn faults(&self, step: Upstream) -> &Faults {
        match step {
            Upstream::Authentik => &self.world.authentik.faults,
            Upstream::Stalwart => &self.stalwart.faults,
            Upstream::Ocis => &self.files.server.faults,
        }
    }

    pub fn requests(&self) -> [u64; 3] {
        Upstream::ALL.map(|step| self.faults(step).total())
    }

    pub fn forget_requests(&self) {
        self.world.authentik.faults.forget_requests();
        self.stalwart.faults.forget_requests();
        self.files.server.faults.forget_requests();
    }

    /// Puts a resource of a tenant of another owner into each upstream.
    pub fn plant_strangers(&self) -> Strangers {
        let (id, intent) = ("65a0000000000000000000aa", "65a0000000000000000000bb");
        let attributes = json!({
            "tenantry_id": id, "tenantry_slug": "stranger", "tenantry_name": "Stranger",
        });
        self.world.authentik.plant("tenant-stranger", attributes, &[]);
        let description = format!("Stranger [tenantry {id}]");
        self.stalwart.plant("stranger.test", json!({ "description": description }));
        let alias = format!("tenantry/{id}/{intent}");
        let description = format!("[tenantry {id}/{intent}]");
        let space = json!({ "name": "Stranger", "driveAlias": alias, "description": description });
        self.files.server.plant(space);
        self.strangers()
    }

    /// What there is of them now.
    pub fn strangers(&self) -> Strangers {
        let of = |all: Vec<Value>| {
            let theirs = |it: &Value| it.to_string().contains("65a0000000000000000000aa");
            all.into_iter().filter(theirs).collect()
        };
        let files = self.files.server.drives();
        [of(self.world.authentik.groups()), of(self.stalwart.domains()), of(files)]
    }

    /// What holds of the whole fleet when there is nothing left to do: no request is open, no process holds a
    /// lease, and what the metrics count is what there is.
    pub async fn adds_up(&self, process: &Process) {
        use futures_util::TryStreamExt;
        let find = self.world.tenants.find(doc! {}).await.unwrap();
        let tenants: Vec<Document> = find.try_collect().await.unwrap();
        for tenant in &tenants {
            let request = tenant.get("reconcileRequestedAt");
            assert_eq!(tenant.get("lastHandledReconcileAt"), request, "a request is open: {tenant}");
            let lease = tenant.get_document("lease").unwrap();
            assert!(!lease.contains_key("holder"), "a process holds it: {tenant}");
        }
        let url = format!("http://{}/metrics", process.address("telemetry").await);
        let scrape =
            async || crate::support::http().get(&url).send().await.unwrap().text().await.unwrap();
        let metrics = scrape().await;
        let sum = |name: &str, label: &str| -> f64 {
            let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let there = tenants.len() as f64;
        assert_eq!(sum("tenantry_tenants{", ""), there, "{metrics}");
        for step in STEPS {
            let label = format!("upstream=\"{step}\"");
            assert_eq!(sum("tenantry_steps{", &label), there, "{step}: {metrics}");
        }
        for none in ["tenantry_claims_lost_total 0", "tenantry_events_dropped_total 0"] {
            assert!(metrics.lines().any(|line| line == none), "{none}: {metrics}");
        }
        // Counted after it was committed.
        eventually("every claim ended in exactly one of the results", async || {
            let metrics = scrape().await;
            let of = |name: &str| -> f64 {
                let lines = metrics.lines().filter(|line| line.starts_with(name));
                lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
            };
            let claims =
                of("tenantry_reconciles_total{") - of("tenantry_reconciles_total{result=\"not_due\"}");
            of("tenantry_reconcile_duration_seconds_count ") == claims
        })
        .await;
    }

    pub fn space(&self, slug: &str) -> Value {
        let drives = self.files.server.drives();
        let name = format!("The {slug}");
        drives.into_iter().find(|drive| drive["name"] == name).expect("the space is there")
    }
}

fn rarely_polling(settings: &mut Settings) {
    settings.poll_interval = Duration::from_secs(600);
}

#[tokio::test]
async fn a_new_tenant_costs_at_most_two_requests_each_and_a_re_check_one() {
    for flavour in [Flavour::Ocis31, Flavour::OpenCloud] {
        let suite = Suite::with(flavour).await;
        let controller = suite.controller(rarely_polling).await;
        suite.create("first").await;
        suite.settled("first").await;
        suite.world.commands.rest().await;
        suite.forget_requests();
        suite.world.commands.take();
        let tokens = suite.files.issuer.token_requests();

        suite.create("acme").await;
        suite.settled("acme").await;
        let requests = suite.requests();
        assert!(requests.iter().all(|requests| *requests <= 2), "{flavour:?}: {requests:?}");
        let commands = suite.world.commands.of_reconciles();
        assert_eq!(commands, ["insert", "findAndModify", "findAndModify"], "the intent costs nothing");

        suite.forget_requests();
        suite.reconcile("acme").await;
        assert_eq!(suite.requests(), [1, 1, 1], "{flavour:?}");
        assert_eq!(suite.files.issuer.token_requests(), tokens, "one token for all of it");
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_tenant_without_a_domain_or_a_service_skips_the_step_and_is_active() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.world.insert("plain").await;
    suite.world.tenants.insert_one(doc! {
        "slug": "mailless", "name": "Mailless", "domain": "mailless.test", "services": { "stalwart": false },
    }).await.unwrap();
    for (slug, reason) in [("plain", "NoMailDomain"), ("mailless", "ServiceDisabled")] {
        let tenant = suite.settled(slug).await;
        assert_eq!(tenant.get_str("status").unwrap(), "active");
        let step = suite.world.step_of(slug, "stalwart").await;
        assert_eq!(
            (step.get_str("state").unwrap(), step.get_str("reason").unwrap()),
            ("skipped", reason)
        );
    }
    assert_eq!(suite.stalwart.count(), 0);
    controller.stop().await;
}

#[tokio::test]
async fn whatever_is_broken_in_an_upstream_is_repaired() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let space = suite.space("acme")["id"].as_str().unwrap().to_owned();
    let files = &suite.files.server;
    let breaks: [(&str, &dyn Fn() -> bool); 7] = [
        ("the group is deleted", &|| suite.world.authentik.delete_named("tenant-acme") == 1),
        ("the domain is deleted", &|| suite.stalwart.delete("acme.test")),
        ("the domain loses its mark", &|| {
            suite.stalwart.change("acme.test", json!({ "description": null }))
        }),
        ("the space is disabled", &|| files.disable(&space)),
        ("the space loses its marks", &|| {
            files.change(&space, json!({ "description": "", "driveAlias": "project/acme" }))
        }),
        ("the quota is changed", &|| files.change(&space, json!({ "quota": { "total": 1 } }))),
        ("the space is purged", &|| files.disable(&space) && files.purge(&space)),
    ];
    for (what, break_it) in breaks {
        assert!(break_it(), "{what}");
        suite.reconcile("acme").await;
        suite.audit("acme").await;
        let space = suite.space("acme");
        assert_eq!(space["quota"]["total"], 1_000_000_000, "{what}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn an_outage_of_each_shows_as_an_honest_error_and_heals() {
    let mut suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    for step in STEPS {
        let server = match step {
            "authentik" => &mut suite.world.authentik.server,
            "stalwart" => &mut suite.stalwart.server,
            _ => &mut suite.files.server.server,
        };
        server.stop().await;
        suite.world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
        eventually(&format!("{step} is in error"), async || {
            suite.world.step_of("acme", step).await.get_str("state").is_ok_and(|state| state == "error")
        })
        .await;
        let tenant = suite.world.find("acme").await;
        assert_eq!(tenant.get_str("status").unwrap(), "active", "its people are working");
        let failed = suite.world.step_of("acme", step).await;
        assert_eq!(failed.get_str("reason").unwrap(), "Unreachable", "{failed}");
        assert!(failed.contains_key("externalId"), "what is known is kept: {failed}");
        let server = match step {
            "authentik" => &mut suite.world.authentik.server,
            "stalwart" => &mut suite.stalwart.server,
            _ => &mut suite.files.server.server,
        };
        server.restart().await.unwrap();
        suite.settled("acme").await;
        suite.audit("acme").await;
    }
    // And of oCIS' storage, which lies.
    suite.files.server.storage_away(true);
    suite.world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    eventually("the storage is away", async || {
        suite.world.step_of("acme", "ocis").await.get_str("reason").is_ok_and(|why| why == "StorageAway")
    })
    .await;
    suite.files.server.storage_away(false);
    suite.settled("acme").await;
    suite.audit("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn creates_that_are_applied_but_not_answered_end_with_one_resource_each() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    let lost = |method: &str, path: &str, body: Option<&str>| Fault {
        method: Some(method.into()),
        path: Some(path.into()),
        body: body.map(ToOwned::to_owned),
        times: Some(1),
        apply: true,
        answer: FaultAnswer::Hang,
        ..Fault::default()
    };
    suite.world.authentik.faults.add(lost("POST", "/api/v3/core/groups/", None));
    suite.stalwart.faults.add(lost("POST", "/jmap", Some("\"create\":")));
    suite.files.server.faults.add(lost("POST", "/graph/v1.0/drives", None));
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.audit("acme").await;
    assert_eq!(
        (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count()),
        (2, 2, 2)
    );
    controller.stop().await;
}

#[tokio::test]
async fn a_kill_at_any_point_of_a_creation_ends_with_one_resource_each() {
    assert!(fail::has_failpoints(), "tests are built with failpoints");
    let suite = Suite::new().await;
    let mut tenants = 0;
    for failpoint in [CLAIMED, CREATING, CREATED, RAN, COMMITTED] {
        // One step at a time, so that it is this one's create that the kill hits.
        for step in STEPS {
            tenants += 1;
            let slug = format!("acme-{tenants}");
            suite.create(&slug).await;
            let others = STEPS.iter().filter(|other| **other != step);
            let services: Document =
                others.map(|other| ((*other).to_owned(), Bson::from(false))).collect();
            suite.world.set(&slug, doc! { "services": services }).await;
            let mut process = suite.process(&[("FAILPOINTS", &format!("{failpoint}=return"))]);
            let status = process.ended().await;
            assert_eq!(status.signal(), Some(9), "{failpoint}, {step}: {}", process.log());
            suite
                .world
                .tenants
                .update_one(doc! { "slug": &slug }, doc! { "$unset": { "services": 1 } })
                .await
                .unwrap();
            let process = suite.process(&[]);
            suite.reconcile(&slug).await;
            suite.audit(&slug).await;
            suite.adds_up(&process).await;
            let log = process.stop().await;
            assert!(!log.contains("panicked"), "{log}");
        }
    }
    let made = (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count());
    assert_eq!(made, (tenants, tenants, tenants));
}

#[tokio::test]
async fn a_controller_that_creates_late_after_losing_its_lease_leaves_one_enabled_space_and_a_report() {
    let suite = Suite::new().await;
    let first = suite.process(&[("REQUEST_TIMEOUT", "20s")]);
    suite.create("warm").await;
    suite.settled("warm").await;
    // Its create is on its way for long, and the process stalls meanwhile.
    suite.files.server.faults.add(Fault {
        method: Some("POST".into()),
        path: Some("/graph/v1.0/drives".into()),
        times: Some(1),
        delay_ms: 6_000,
        ..Fault::default()
    });
    suite.create("acme").await;
    eventually("the create is on its way", async || {
        suite
            .files
            .server
            .faults
            .requests()
            .iter()
            .filter(|line| line.starts_with("POST /graph"))
            .count()
            == 2
    })
    .await;
    first.signal(rustix::process::Signal::STOP);
    let second = suite.process(&[]);
    suite.settled("acme").await;
    eventually("the late create is applied", async || suite.files.server.enabled() == 3).await;
    first.signal(rustix::process::Signal::CONT);
    suite.reconcile("acme").await;
    let step = suite.world.step_of("acme", "ocis").await;
    assert!(step.get_str("message").unwrap().contains("was disabled"), "{step}");
    suite.audit("acme").await;
    assert_eq!((suite.files.server.enabled(), suite.files.server.count()), (2, 3));
    let logs = [first.stop().await, second.stop().await].concat();
    assert!(logs.contains("a second one of this tenant"), "one of them reports it: {logs}");
}

#[tokio::test]
async fn a_document_that_was_replaced_as_a_whole_gets_its_resources_back() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let id = suite.world.find("acme").await.get_object_id("_id").unwrap();
    let bare = doc! { "_id": id, "slug": "acme", "name": "The acme", "domain": "acme.test" };
    // Nothing of what was recorded is left, not even that it was ever claimed.
    suite.world.tenants.delete_one(doc! { "_id": id }).await.unwrap();
    suite.world.tenants.insert_one(bare).await.unwrap();
    suite.settled("acme").await;
    suite.audit("acme").await;
    let made = (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count());
    assert_eq!(made, (1, 1, 1));
    controller.stop().await;
}

#[tokio::test]
async fn a_fleet_that_is_taken_over_costs_a_list_and_not_one_for_each() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    // As the service before wrote them: they say nothing of claims.
    let legacy = (0..200).map(|n| {
        doc! { "slug": format!("t{n}"), "name": format!("Tenant {n}"), "status": "active", "__v": 0 }
    });
    suite.world.tenants.insert_many(legacy).await.unwrap();
    for n in 0..200 {
        suite.settled(&format!("t{n}")).await;
    }
    assert_eq!(suite.files.server.enabled(), 200);
    let requests = suite.files.server.faults.requests();
    let lists = requests.iter().filter(|line| line.contains("driveType")).count();
    assert!((1..=3).contains(&lists), "{lists} lists for 200 tenants");
    controller.stop().await;
}

#[tokio::test]
async fn two_thousand_tenants_at_once_hold_every_limit() {
    const TENANTS: usize = 2_000;
    let mut suite = Suite::new().await;
    // A busy machine is no reason to ask again, nor to take a tenant from who is at it.
    suite.files.timeout = Duration::from_secs(60);
    // A fleet that was never swept is swept after some 20 seconds, which is about how long this takes: its lists would count.
    let sweeper =
        suite.controller(|settings| settings.sweep_interval = Duration::from_millis(100)).await;
    eventually("all are swept", async || {
        let controls = sweeper.controls.borrow();
        Upstream::ALL.into_iter().all(|step| controls.sweeps[step].is_some())
    })
    .await;
    sweeper.stop().await;
    suite.forget_requests();
    for faults in [&suite.world.authentik.faults, &suite.stalwart.faults, &suite.files.server.faults] {
        faults.add(Fault { delay_ms: 5, ..Fault::default() });
    }
    let controller = suite
        .controller(|settings| (settings.workers, settings.lease_ttl) = (16, Duration::from_secs(60)))
        .await;
    let documents = (0..TENANTS).map(|n| {
        doc! {
            "slug": format!("t{n}"), "name": format!("Tenant {n}"), "domain": format!("t{n}.test"),
            "lease": { "epoch": 0_i64 },
        }
    });
    suite.world.tenants.insert_many(documents).await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(240);
    loop {
        let active = suite.world.tenants.count_documents(doc! { "status": "active" }).await.unwrap();
        if active == TENANTS as u64 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{active} of {TENANTS} are active");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let made = (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count());
    assert_eq!(made, (TENANTS, TENANTS, TENANTS));
    let names: BTreeSet<_> =
        suite.files.server.drives().iter().map(|drive| drive["name"].to_string()).collect();
    assert_eq!(names.len(), TENANTS, "one space each");
    assert!(suite.stalwart.faults.most_at_once() <= 3, "{}", suite.stalwart.faults.most_at_once());
    assert!(suite.files.server.faults.most_at_once() <= 16);
    let [authentik, stalwart, ocis] = suite.requests();
    for (name, requests) in [("authentik", authentik), ("stalwart", stalwart), ("ocis", ocis)] {
        assert!(
            requests <= 2 * TENANTS as u64 + 20,
            "{name}: {requests} requests for {TENANTS} tenants"
        );
    }
    controller.stop().await;
}

#[tokio::test]
async fn the_health_of_each_upstream_is_shown_with_the_remedy_and_does_not_make_the_process_unready() {
    let suite = Suite::new().await;
    suite.stalwart.add_key("API_reader", &["authenticate", "sysDomainGet", "sysDomainQuery"]);
    let process =
        suite.process(&[("AUTHENTIK_API_TOKEN", "wrong"), ("STALWART_API_TOKEN", "API_reader")]);
    let http = crate::support::http();
    let url = format!("http://{}/readyz", process.address("http").await);
    let mut shown = Value::Null;
    eventually("all three were asked", async || {
        let answer = http.get(&url).send().await.unwrap();
        let ready = answer.status() == 200;
        shown = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        ready
            && STEPS.iter().all(|step| !shown["upstreams"][step]["authenticated"].is_null())
            && !shown["upstreams"]["stalwart"]["lacks"].is_null()
            && !shown["upstreams"]["ocis"]["version"].is_null()
    })
    .await;
    let upstreams = &shown["upstreams"];
    assert_eq!(upstreams["authentik"]["authenticated"], false, "{upstreams}");
    assert_eq!(upstreams["authentik"]["reason"], "CredentialsRejected");
    let message = upstreams["authentik"]["message"].as_str().unwrap();
    assert!(message.contains("AUTHENTIK_API_TOKEN"), "{message}");
    assert_eq!(upstreams["stalwart"]["lacks"][0], "sysDomainCreate", "{upstreams}");
    let message = upstreams["stalwart"]["message"].as_str().unwrap();
    assert!(message.contains("lacks sysDomainCreate"), "{message}");
    assert_eq!(upstreams["ocis"]["authenticated"], true, "{upstreams}");
    assert!(upstreams["ocis"]["version"].as_str().unwrap().starts_with("3.1"), "{upstreams}");
    let metrics = format!("http://{}/metrics", process.address("telemetry").await);
    let metrics = http.get(metrics).send().await.unwrap().text().await.unwrap();
    for line in [
        "tenantry_integration_healthy{upstream=\"authentik\"} 0",
        "tenantry_integration_healthy{upstream=\"ocis\"} 1",
        "tenantry_integration_missing_permissions{upstream=\"stalwart\"} 5",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    process.stop().await;
}

/// The peak of a process' resident memory, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_list_of_two_hundred_thousand_spaces_is_read_in_bounded_memory() {
    const SPACES: usize = 200_000;
    let suite = Suite::new().await;
    let process = suite.process(&[]);
    suite.create("warm").await;
    suite.settled("warm").await;
    // A first list, so that what every list needs is counted before.
    let find = doc! { "$set": { "steps.ocis.createIntent": "0".repeat(24) } };
    suite.world.tenants.update_one(doc! { "slug": "warm" }, find.clone()).await.unwrap();
    suite.reconcile("warm").await;
    for n in 0..SPACES {
        let alias = format!("tenantry/{:024x}/{:024x}", n + 1, n + 1);
        suite.files.server.plant(json!({ "name": format!("Space {n}"), "driveAlias": alias }));
    }
    let before = peak_memory(process.pid());
    suite.files.server.faults.forget_requests();
    suite.world.tenants.update_one(doc! { "slug": "warm" }, find).await.unwrap();
    let asked = std::time::Instant::now();
    suite.reconcile("warm").await;
    let listed = suite.files.server.faults.requests().iter().any(|line| line.contains("driveType"));
    assert!(listed, "all were listed: {:?}", suite.files.server.faults.requests());
    let grown = peak_memory(process.pid()).saturating_sub(before);
    eprintln!("{SPACES} spaces: {} KiB more, {:?}", grown >> 10, asked.elapsed());
    assert!(grown <= 16 << 20, "{grown} bytes");
    process.stop().await;
}
