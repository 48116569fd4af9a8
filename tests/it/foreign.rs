//! Two fleets on one upstream: each leaves the other's resources alone, and says so.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use tenantry::controller::Settings;
use tenantry::metrics::Metrics;
use tenantry::store::NewTenant;
use tenantry::tenant::{Controls, DeletionPolicy, Desired, Upstream};

use crate::support::{Commands, Running, eventually, open_store, settings};
use crate::three::{STEPS, Suite};

impl Suite {
    /// All that there is in the upstreams.
    fn everything(&self) -> [Vec<Value>; 3] {
        [self.world.authentik.groups(), self.stalwart.domains(), self.files.server.drives()]
    }

    /// Takes the fleet's id out of all marks, as they were before there was one.
    fn forget_fleet(&self, fleet: &str) {
        let without = |text: &Value| text.as_str().unwrap().replace(&format!(" {fleet}]"), "]");
        for group in self.world.authentik.groups() {
            let mut attributes = group["attributes"].clone();
            if attributes.as_object_mut().unwrap().remove("tenantry_fleet").is_some() {
                self.world.authentik.delete_named(group["name"].as_str().unwrap());
                self.world.authentik.plant(group["name"].as_str().unwrap(), attributes, &[]);
            }
        }
        for domain in self.stalwart.domains() {
            let description = json!({ "description": without(&domain["description"]) });
            self.stalwart.change(domain["name"].as_str().unwrap(), description);
        }
        for drive in self.files.server.drives() {
            let description = json!({ "description": without(&drive["description"]) });
            self.files.server.change(drive["id"].as_str().unwrap(), description);
        }
    }

    pub async fn fleet_id(&self) -> String {
        self.world.store.controls().await.unwrap().fleet.unwrap().id.to_string()
    }

    fn texts(&self) -> String {
        self.everything().map(|all| format!("{all:?}")).concat()
    }
}

fn sweeping(settings: &mut Settings) {
    settings.sweep_interval = Duration::from_millis(300);
}

fn reason(tenant: &Document, step: &str) -> (String, String) {
    let step = tenant.get_document("steps").and_then(|steps| steps.get_document(step)).unwrap();
    let text = |field| step.get_str(field).unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

#[tokio::test]
async fn another_database_on_the_same_upstreams_conflicts_changes_nothing_and_is_told() {
    let suite = Suite::new().await;
    let production = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let before = suite.everything();

    let database = format!("{}_staging", suite.world.database);
    let store = open_store(&suite.world.uri, &database, &Commands::default()).await;
    store.prepare().await.unwrap();
    let metrics = Arc::new(Metrics::new());
    let integrations = suite.integrations_with(&metrics, &[], suite.files.connect(&metrics));
    let mut hurried = settings();
    sweeping(&mut hurried);
    let staging = Running::start(store.clone(), integrations, Arc::clone(&metrics), hurried).await;
    let desired = Desired {
        domain: Some("acme.test".parse().unwrap()),
        adopt: Some(true),
        ..Desired::new("Acme".parse().unwrap())
    };
    let new = NewTenant { slug: "acme".parse().unwrap(), desired };
    store.insert(&new).await.unwrap().expect("it is another database");
    let tenants = suite.world.mongo.client().database(&database).collection::<Document>("tenants");
    for step in ["authentik", "stalwart"] {
        eventually(&format!("{step} is another fleet's"), async || {
            let tenant = tenants.find_one(doc! { "slug": "acme" }).await.unwrap().unwrap();
            let Ok(steps) = tenant.get_document("steps") else { return false };
            steps.contains_key(step) && {
                let (reason, message) = reason(&tenant, step);
                reason == "Conflict" && message.contains("another fleet")
            }
        })
        .await;
    }
    // Spaces have no unique names.
    eventually("it has a space of its own", async || suite.files.server.count() == 2).await;
    for step in Upstream::ALL {
        let swept = |controls: &Controls| {
            let found = controls.sweeps[step].as_ref().and_then(|swept| swept.found);
            found.is_some_and(|found| found.foreign == 1 && found.orphans == 0)
        };
        eventually(&format!("{step} is told"), async || swept(&staging.controls.borrow())).await;
        assert_eq!(metrics.foreign_marks.of(step).get(), 1, "{step}");
    }
    assert!(store.orphans().await.unwrap().is_empty());
    staging.stop().await;
    let after = suite.everything();
    assert_eq!((&after[0], &after[1]), (&before[0], &before[1]));
    assert!(before[2].iter().all(|drive| after[2].contains(drive)), "{after:?}");
    production.stop().await;
}

#[tokio::test]
async fn a_database_that_was_copied_and_given_another_id_leaves_the_originals_resources_alone() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    controller.stop().await;
    let before = suite.everything();
    let controls = suite.world.mongo.collection::<Document>("tenantry_controls");
    let another = doc! { "$set": { "id": "00000000beef" } };
    controls.update_one(doc! { "_id": "fleet" }, another).await.unwrap();

    let controller = suite.controller(sweeping).await;
    suite.world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    for step in STEPS {
        eventually(&format!("{step} is another fleet's"), async || {
            let (reason, message) = reason(&suite.world.find("acme").await, step);
            reason == "Conflict" && message.contains("another fleet") && message.contains("00000000beef")
        })
        .await;
    }
    suite.world.store.request_deletion(&"acme".parse().unwrap(), DeletionPolicy::Purge).await.unwrap();
    eventually("the tenant is gone", async || {
        suite.world.tenants.count_documents(doc! {}).await.unwrap() == 0
    })
    .await;
    controller.stop().await;
    assert_eq!(suite.everything(), before);
    assert!(suite.world.store.orphans().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_mark_without_a_fleet_is_ours_and_is_completed_only_when_something_else_is_written() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let fleet = suite.fleet_id().await;
    assert_eq!(suite.texts().matches(&fleet).count(), 3, "{}", suite.texts());
    controller.stop().await;
    suite.forget_fleet(&fleet);
    // As it was recorded then.
    let tenant = suite.world.find("acme").await;
    let id = tenant.get_object_id("_id").unwrap();
    let group = suite.world.group("tenant-acme")["pk"].as_str().unwrap().to_owned();
    let recorded = doc! {
        "$unset": { "steps.authentik.fingerprint": 1, "steps.stalwart.fingerprint": 1, "steps.ocis.fingerprint": 1 },
        "$set": { "steps.authentik.externalId": group },
    };
    suite.world.tenants.update_one(doc! { "_id": id }, recorded).await.unwrap();

    let before = suite.everything();
    let controller = suite.controller(|_| {}).await;
    suite.reconcile("acme").await;
    assert_eq!(suite.everything(), before, "nothing is written for its sake");
    suite.world.set("acme", doc! { "name": "Acme AG" }).await;
    eventually("all marks name the fleet", async || suite.texts().matches(&fleet).count() == 3).await;
    suite.settled("acme").await;
    controller.stop().await;
}
