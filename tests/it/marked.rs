//! Every resource that carries a tenant's mark is the recorded one, or is shown until it is gone.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use serde_json::json;
use tenantry::controller::Settings;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::tenant::{DeletionPolicy, Upstream};

use crate::support::eventually;
use crate::three::Suite;

fn sweeping(settings: &mut Settings) {
    settings.sweep_interval = Duration::from_millis(400);
}

impl Suite {
    /// Ids of the other resources that a tenant's step is shown with.
    async fn others(&self, slug: &str, step: &str) -> Vec<String> {
        let tenant = self.world.find(slug).await;
        let steps = tenant.get_document("steps").cloned().unwrap_or_default();
        let others = steps.get_document(step).and_then(|step| step.get_array("others").cloned());
        let id = |other: &Document| other.get_str("externalId").unwrap().to_owned();
        others.unwrap_or_default().iter().map(|other| id(other.as_document().unwrap())).collect()
    }

    async fn reason_becomes(&self, slug: &str, step: &str, reason: &str) {
        eventually(&format!("{step} of {slug} is {reason}"), async || {
            let tenant = self.world.find(slug).await;
            let Ok(steps) = tenant.get_document("steps") else { return false };
            let Ok(step) = steps.get_document(step) else { return false };
            step.get_str("reason").is_ok_and(|found| found == reason)
        })
        .await;
    }

    /// Whether a resource with this text says that it is in use.
    fn in_use(&self, step: Upstream) -> usize {
        match step {
            Upstream::Authentik => {
                let groups = self.world.authentik.groups();
                groups.iter().filter(|it| it["attributes"]["tenantry_status"].is_null()).count()
            }
            Upstream::Stalwart => {
                let domains = self.stalwart.domains();
                let off = |text: &str| text.contains(" off ") || text.contains(" released ");
                domains.iter().filter(|it| !off(it["description"].as_str().unwrap_or(""))).count()
            }
            Upstream::Ocis => {
                let drives = self.files.server.drives();
                let off = |text: &str| text.contains(" off ") || text.contains(" released ");
                drives.iter().filter(|it| !off(it["description"].as_str().unwrap_or(""))).count()
            }
        }
    }
}

/// Applies what is asked, and says that something failed.
fn unanswered(step: Upstream) -> Fault {
    let fault = match step {
        Upstream::Authentik => Fault { method: Some("POST".into()), ..Fault::default() },
        Upstream::Stalwart => Fault { body: Some("\"create\"".into()), ..Fault::default() },
        Upstream::Ocis => Fault {
            method: Some("POST".into()),
            path: Some("/graph/v1.0/drives".into()),
            ..Fault::default()
        },
    };
    let answer = FaultAnswer::Status { status: 502, body: String::new(), retry_after: None };
    Fault { apply: true, answer, ..fault }
}

#[tokio::test]
async fn a_service_that_is_switched_off_while_its_create_was_unanswered_leaves_nothing_in_use() {
    for step in Upstream::ALL {
        let suite = Suite::new().await;
        let controller = suite.controller(|_| {}).await;
        suite.faults(step).add(unanswered(step));
        // Nor can it be looked for.
        let read = match step {
            Upstream::Stalwart => Fault { body: Some("/query".into()), ..Fault::default() },
            _ => Fault { method: Some("GET".into()), ..Fault::default() },
        };
        let answer = FaultAnswer::Status { status: 502, body: String::new(), retry_after: None };
        suite.create("acme").await;
        eventually("it was made", async || suite.in_use(step) == 1).await;
        suite.faults(step).add(Fault { answer, ..read });
        suite.world.set("acme", doc! { format!("services.{step}"): false }).await;
        suite.faults(step).clear();
        suite.reason_becomes("acme", step.name(), "ServiceDisabled").await;
        eventually("it is in use no longer", async || suite.in_use(step) == 0).await;
        controller.stop().await;
    }
}

#[tokio::test]
async fn what_a_late_create_leaves_of_a_service_that_is_off_is_shown_and_then_marked_so() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.create("acme").await;
    let tenant = suite.settled("acme").await;
    let id = tenant.get_object_id("_id").unwrap().to_hex();
    let services = doc! { "services": { "authentik": false, "stalwart": false, "ocis": false } };
    suite.world.set("acme", services).await;
    for step in Upstream::ALL {
        suite.reason_becomes("acme", step.name(), "ServiceDisabled").await;
        eventually("it is marked off", async || suite.in_use(step) == 0).await;
    }
    // As a request of long ago would be applied now.
    let fleet = suite.fleet_id().await;
    let intent = "65a0000000000000000000bb";
    let description = format!("Late [tenantry {id} {fleet}]");
    suite.stalwart.plant("late.test", json!({ "description": description }));
    suite.files.server.plant(json!({
        "name": "Late", "driveAlias": format!("tenantry/{id}/{intent}"),
        "description": format!("[tenantry {id}/{intent} {fleet}]"),
    }));
    for step in [Upstream::Stalwart, Upstream::Ocis] {
        eventually(&format!("the late one of {step} is put out of use"), async || {
            suite.in_use(step) == 0
        })
        .await;
        eventually(&format!("{step} shows no other"), async || {
            suite.others("acme", step.name()).await.is_empty()
        })
        .await;
    }
    controller.stop().await;
}

#[tokio::test]
async fn a_mail_domain_that_the_tenant_no_longer_has_is_let_go_and_comes_back_with_it() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.stalwart.plant_account("acme.test", "anna");
    suite.world.set("acme", doc! { "domain": null }).await;
    suite.reason_becomes("acme", "stalwart", "NoMailDomain").await;
    assert_eq!(suite.in_use(Upstream::Stalwart), 0, "{:?}", suite.stalwart.domains());
    assert_eq!(suite.stalwart.count(), 1, "it stays");
    suite.settled("acme").await;
    suite.world.set("acme", doc! { "domain": "acme.test" }).await;
    suite.reason_becomes("acme", "stalwart", "InSync").await;
    assert_eq!((suite.in_use(Upstream::Stalwart), suite.stalwart.count()), (1, 1));
    // A tenant that never had one costs no request.
    suite.world.insert("globex").await;
    suite.settled("globex").await;
    suite.forget_requests();
    suite.reconcile("globex").await;
    assert_eq!(suite.requests()[1], 0, "{:?}", suite.stalwart.faults.requests());
    controller.stop().await;
}

#[tokio::test]
async fn a_copy_of_a_group_is_shown_until_it_is_gone_and_flagged_once() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let attributes = suite.world.group("tenant-acme")["attributes"].clone();
    let copy = suite.world.authentik.plant("copied by hand", attributes, &[7]);
    eventually("it is shown", async || suite.others("acme", "authentik").await == [copy.clone()]).await;
    suite.settled("acme").await;
    // From now on nothing is to be done about it.
    let swept = async || {
        let swept = controller.controls.borrow().sweeps[Upstream::Authentik].clone();
        swept.map(|swept| swept.ended_at)
    };
    let before = suite.world.find("acme").await;
    let first = swept().await;
    eventually("a sweep ends", async || swept().await > first).await;
    let second = swept().await;
    eventually("another sweep ends", async || swept().await > second).await;
    let after = suite.world.find("acme").await;
    assert_eq!(before.get("steps"), after.get("steps"), "it is flagged no more");
    assert_eq!(suite.world.authentik.count(), 2, "it is left alone");

    // It outlives the tenant, and is shown all the same.
    suite.world.store.request_deletion(&"acme".parse().unwrap(), DeletionPolicy::Delete).await.unwrap();
    eventually("the tenant is gone", async || {
        suite.world.tenants.count_documents(doc! {}).await.unwrap() == 0
    })
    .await;
    eventually("it is an orphan", async || {
        let orphans = suite.world.store.orphans().await.unwrap();
        orphans.iter().any(|orphan| orphan.external_id == copy)
    })
    .await;
    controller.stop().await;
}

#[tokio::test]
async fn other_resources_are_no_longer_shown_once_they_are_gone() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let attributes = suite.world.group("tenant-acme")["attributes"].clone();
    let copy = suite.world.authentik.plant("copied by hand", attributes, &[7]);
    eventually("it is shown", async || suite.others("acme", "authentik").await == [copy.clone()]).await;
    suite.world.authentik.delete_named("copied by hand");
    eventually("it is shown no more", async || suite.others("acme", "authentik").await.is_empty()).await;
    controller.stop().await;
}
