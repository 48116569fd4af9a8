//! What the fleet remembers: a process that lacks an upstream undoes nothing that others know of it.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use tenantry::tenant::{FleetId, Upstream};

use crate::support::{Process, eventually, holds_for, http};
use crate::three::Suite;

/// The id of a fleet, for targets that no database was asked for.
pub const FLEET: FleetId = FleetId::from_bytes([0x1f; 6]);

impl Suite {
    /// The step's state and reason, and whether the tenant is ready.
    async fn stands(&self, slug: &str, step: &str) -> (String, String, String) {
        let tenant = self.world.find(slug).await;
        let text = |of: &Document, field: &str| of.get_str(field).unwrap_or_default().to_owned();
        let step = self.world.step_of(slug, step).await;
        let ready = tenant.get_array("conditions").ok().and_then(|all| all.first()?.as_document());
        let ready = ready.map(|ready| text(ready, "status")).unwrap_or_default();
        (text(&step, "state"), text(&step, "reason"), ready)
    }

    async fn stands_at(&self, slug: &str, step: &str, state: &str, reason: &str) {
        eventually(&format!("{step} of {slug} is {state}/{reason}"), async || {
            let (is, why, _) = self.stands(slug, step).await;
            (is.as_str(), why.as_str()) == (state, reason)
        })
        .await;
    }

    async fn events_of(&self, slug: &str) -> String {
        let events = self.world.store.events(&slug.parse().unwrap(), 100).await.unwrap();
        format!("{events:?}")
    }

    /// A fleet that has all three upstreams, with these tenants, and no process.
    async fn known(&self, slugs: &[&str]) {
        let controller = self.controller(|_| {}).await;
        for slug in slugs {
            self.create(slug).await;
        }
        for slug in slugs {
            self.settled(slug).await;
        }
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_step_that_only_this_process_cannot_run_is_held_and_what_is_known_of_it_stays() {
    let suite = Suite::new().await;
    suite.known(&["acme", "idle"]).await;
    let before = suite.world.step_of("acme", "ocis").await;
    let idle = suite.world.find("idle").await;
    let controller = suite.controller_without(&[Upstream::Ocis]).await;
    suite.world.set("acme", doc! { "name": "Acme AG" }).await;
    suite.stands_at("acme", "authentik", "ok", "InSync").await;
    suite.stands_at("acme", "ocis", "pending", "NotConfigured").await;
    assert_eq!(suite.stands("acme", "ocis").await.2, "False", "it is not taken for ready");
    let held = suite.world.step_of("acme", "ocis").await;
    for field in ["externalId", "observed", "fingerprint"] {
        assert!(before.contains_key(field) && held.get(field) == before.get(field), "{field}: {held}");
    }
    let message = held.get_str("message").unwrap();
    assert!(message.contains("OCIS_API_URL") && message.contains("upstreams retire ocis"), "{message}");
    // Committed once, and no other tenant is written to.
    let committed = suite.world.find("acme").await;
    holds_for(Duration::from_millis(1500), "nothing is written", async || {
        suite.world.find("acme").await == committed && suite.world.find("idle").await == idle
    })
    .await;
    let metrics = controller.metrics.render();
    assert!(metrics.contains("tenantry_upstream_not_configured{upstream=\"ocis\"} 1"), "{metrics}");
    controller.stop().await;

    let controller = suite.controller(|_| {}).await;
    suite.settled("acme").await;
    suite.audit("acme").await;
    let drives = suite.files.server.drives();
    assert!(drives.iter().any(|drive| drive["name"] == "Acme AG"), "{drives:?}");
    controller.stop().await;
}

#[tokio::test]
async fn a_new_tenant_waits_for_an_upstream_of_the_fleet_and_becomes_active_when_it_is_configured() {
    let suite = Suite::new().await;
    suite.known(&[]).await;
    let controller = suite.controller_without(&[Upstream::Authentik]).await;
    suite.create("acme").await;
    suite.stands_at("acme", "ocis", "ok", "InSync").await;
    suite.stands_at("acme", "authentik", "pending", "NotConfigured").await;
    assert!(!suite.world.is_active("acme").await);
    controller.stop().await;
    let controller = suite.controller(|_| {}).await;
    suite.world.active("acme").await;
    suite.audit("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_deletion_waits_for_an_upstream_that_this_process_lacks() {
    let suite = Suite::new().await;
    suite.known(&["acme"]).await;
    let controller = suite.controller_without(&[Upstream::Stalwart, Upstream::Ocis]).await;
    let policy = tenantry::tenant::DeletionPolicy::Purge;
    suite.world.store.request_deletion(&"acme".parse().unwrap(), policy).await.unwrap();
    suite.stands_at("acme", "authentik", "skipped", "Deleted").await;
    suite.stands_at("acme", "stalwart", "pending", "NotConfigured").await;
    suite.stands_at("acme", "ocis", "pending", "NotConfigured").await;
    holds_for(Duration::from_millis(1000), "the document stays", async || {
        suite.world.tenants.count_documents(doc! { "slug": "acme" }).await.unwrap() == 1
    })
    .await;
    assert_eq!((suite.stalwart.count(), suite.files.server.count()), (1, 1));
    assert!(!suite.events_of("acme").await.contains("Deleted, step: None"));
    controller.stop().await;

    let controller = suite.controller(|_| {}).await;
    eventually("it is gone everywhere", async || {
        suite.world.tenants.count_documents(doc! { "slug": "acme" }).await.unwrap() == 0
    })
    .await;
    assert_eq!((suite.stalwart.count(), suite.files.server.count()), (0, 0));
    controller.stop().await;
}

#[tokio::test]
async fn what_was_skipped_before_an_upstream_was_first_configured_becomes_due_then() {
    let suite = Suite::new().await;
    let controller = suite.world.controller().await;
    suite.create("acme").await;
    suite.world.active("acme").await;
    for step in ["stalwart", "ocis"] {
        suite.stands_at("acme", step, "skipped", "NotConfigured").await;
    }
    controller.stop().await;
    // As versions that did not remember the fleet left it.
    let controls = suite.world.mongo.collection::<Document>("tenantry_controls");
    controls.delete_one(doc! { "_id": "fleet" }).await.unwrap();
    let controller = suite.controller_without(&[Upstream::Stalwart]).await;
    suite.stands_at("acme", "ocis", "ok", "InSync").await;
    suite.stands_at("acme", "stalwart", "skipped", "NotConfigured").await;
    controller.stop().await;
    let controller = suite.controller(|_| {}).await;
    suite.stands_at("acme", "stalwart", "ok", "InSync").await;
    suite.audit("acme").await;
    eventually("nothing waits any more", async || {
        let fleet = controls.find_one(doc! { "_id": "fleet" }).await.unwrap().unwrap();
        !fleet.to_string().contains("waitingAt")
    })
    .await;
    controller.stop().await;
}

#[tokio::test]
async fn a_process_that_lacks_an_upstream_stands_by_while_another_has_them_all() {
    let suite = Suite::new().await;
    suite.known(&["t0", "t1", "t2"]).await;
    let whole = suite.controller(|_| {}).await;
    let lacking = suite.controller_without(&[Upstream::Ocis]).await;
    eventually("the question is answered", async || {
        let fleet = suite.world.store.controls().await.unwrap().fleet.unwrap();
        fleet.asked_at.is_some() && fleet.answered_at >= fleet.asked_at
    })
    .await;
    for round in 0..5 {
        for slug in ["t0", "t1", "t2"] {
            suite.world.set(slug, doc! { "name": format!("Round {round} of {slug}") }).await;
        }
        for slug in ["t0", "t1", "t2"] {
            suite.settled(slug).await;
        }
    }
    for slug in ["t0", "t1", "t2"] {
        let history = suite.events_of(slug).await;
        assert!(!history.contains("NotConfigured"), "{history}");
    }
    assert_eq!(lacking.reconciles("ok"), 0, "it stood by");
    // Once no process has everything, it works, and holds what it cannot do.
    whole.stop().await;
    suite.world.set("t0", doc! { "name": "Alone" }).await;
    suite.stands_at("t0", "ocis", "pending", "NotConfigured").await;
    suite.stands_at("t0", "authentik", "ok", "InSync").await;
    // And stands by again as soon as a process has; nothing stays held.
    let whole = suite.controller(|_| {}).await;
    suite.settled("t0").await;
    lacking.stop().await;
    whole.stop().await;
}

#[tokio::test]
async fn an_upstream_ends_for_the_fleet_only_when_an_administrator_retires_it() {
    let suite = Suite::new().await;
    suite.known(&["acme", "globex"]).await;
    let mut command = Process::run(&suite.world);
    command.env("STALWART_API_URL", suite.stalwart.url()).env("STALWART_API_TOKEN", crate::three::KEY);
    let process = Process::spawn(command);
    process.says("this process was started without OCIS_API_URL").await;
    let url = format!("http://{}", process.address("http").await);
    let get = async |path: &str| -> Value {
        let answer = http().get(format!("{url}{path}")).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    };
    let post = async |path: &str| http().post(format!("{url}{path}")).send().await.unwrap();
    suite
        .world
        .store
        .request_deletion(&"globex".parse().unwrap(), tenantry::tenant::DeletionPolicy::Delete)
        .await
        .unwrap();
    suite.world.set("acme", doc! { "name": "Acme AG" }).await;
    for slug in ["acme", "globex"] {
        suite.stands_at(slug, "ocis", "pending", "NotConfigured").await;
    }
    let plan = get("/tenants/globex/plan").await;
    assert_eq!(plan["steps"]["ocis"]["heldBack"], "NotConfigured", "{plan}");
    let ready = get("/readyz").await;
    assert_eq!(ready["upstreams"]["ocis"]["reason"], "NotConfigured", "{ready}");
    assert_eq!(get("/upstreams").await["items"][2]["fleet"], "known");

    // Not what a process has.
    assert_eq!(post("/upstreams/authentik/retire").await.status(), 409);
    assert_eq!(post("/upstreams/nothing/retire").await.status(), 404);
    let answer = post("/upstreams/ocis/retire").await;
    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
    assert_eq!(post("/upstreams/ocis/retire").await.status(), 409);
    suite.stands_at("acme", "ocis", "skipped", "NotConfigured").await;
    assert!(suite.world.step_of("acme", "ocis").await.contains_key("externalId"), "it is remembered");
    eventually("the deletion goes on", async || {
        suite.world.tenants.count_documents(doc! { "slug": "globex" }).await.unwrap() == 0
    })
    .await;
    assert_eq!(suite.files.server.enabled(), 2, "what is there stays as it is");
    let events = get("/events").await;
    assert!(events.to_string().contains("UpstreamRetired"), "{events}");
    let item = &get("/upstreams").await["items"][2];
    assert_eq!((&item["fleet"], &item["configured"]), (&json!("retired"), &json!(false)));
    process.stop().await;

    // A process that has it takes it back.
    let controller = suite.controller(|_| {}).await;
    suite.stands_at("acme", "ocis", "ok", "InSync").await;
    let events = format!("{:?}", suite.world.store.fleet_events(10).await.unwrap());
    assert!(events.contains("UpstreamAdded"), "{events}");
    controller.stop().await;
}

#[tokio::test]
async fn many_processes_that_start_at_once_make_one_fleet() {
    let suite = Suite::new().await;
    let mut joining = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let store = suite.world.other_store().await;
        joining.spawn(async move {
            while store.join_fleet(&[Upstream::Authentik], None).await.is_err() {}
            store.controls().await.unwrap().fleet.unwrap().id
        });
    }
    let ids: std::collections::BTreeSet<_> = joining.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    // And should its document be lost, a process that knows the id gives it back.
    let id = *ids.first().unwrap();
    let controls = suite.world.mongo.collection::<Document>("tenantry_controls");
    controls.delete_one(doc! { "_id": "fleet" }).await.unwrap();
    suite.world.store.join_fleet(&[Upstream::Authentik], Some(id)).await.unwrap();
    assert_eq!(suite.world.store.controls().await.unwrap().fleet.unwrap().id, id);
}
