//! The rest of a tenant's life: changed, paused, switched off, deleted, taken back, and made again.

use jiff::Timestamp;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use serde_json::{Value, json};
use tenantry::failpoint::{CLAIMED, COMMITTED, CREATED, CREATING, RAN, RELEASED, REMOVING, UPDATED};
use tenantry::tenant::DeletionPolicy;

use crate::support::{eventually, holds_for};
use crate::three::{CHECK, STEPS, Suite};

impl Suite {
    async fn ask_deletion(&self, slug: &str, policy: DeletionPolicy) {
        let asked = self.world.store.request_deletion(&slug.parse().unwrap(), policy).await;
        asked.unwrap().expect("there is such a tenant");
    }

    async fn exists(&self, slug: &str) -> bool {
        self.world.tenants.count_documents(doc! { "slug": slug }).await.unwrap() == 1
    }

    async fn gone(&self, slug: &str) {
        eventually(&format!("{slug} is gone"), async || !self.exists(slug).await).await;
    }

    fn domain(&self, name: &str) -> Option<Value> {
        self.stalwart.domains().into_iter().find(|domain| domain["name"] == name)
    }

    async fn reason(&self, slug: &str, step: &str) -> String {
        let step = self.world.step_of(slug, step).await;
        step.get_str("reason").unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn a_deleted_tenants_resources_stay_by_default_and_say_who_released_them() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    let id = suite.settled("acme").await.get_object_id("_id").unwrap().to_hex();
    suite.ask_deletion("acme", DeletionPolicy::Retain).await;
    suite.gone("acme").await;
    let group = suite.world.group("tenant-acme");
    assert_eq!(group["attributes"]["tenantry_status"], "released");
    assert_eq!(group["attributes"]["tenantry_id"], id);
    let domain = suite.domain("acme.test").expect("the domain stays");
    let fleet = suite.fleet_id().await;
    assert_eq!(domain["description"], format!("The acme [tenantry {id} released {fleet}]"));
    let space = suite.space("acme");
    assert!(space["driveAlias"].as_str().unwrap().starts_with(&format!("tenantry-released/acme/{id}")));
    assert!(space["description"].as_str().unwrap().ends_with(&format!("released {fleet}]")), "{space}");
    assert_eq!(suite.files.server.enabled(), 1);
    controller.stop().await;
}

#[tokio::test]
async fn a_new_tenant_of_an_old_slug_takes_nothing_over_unless_asked() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let old_space = suite.space("acme")["id"].clone();
    suite.ask_deletion("acme", DeletionPolicy::Retain).await;
    suite.gone("acme").await;

    suite.create("acme").await;
    for step in ["authentik", "stalwart"] {
        eventually(&format!("{step} says who released it"), async || {
            suite.reason("acme", step).await == "Conflict"
        })
        .await;
        let message = suite.world.step_of("acme", step).await;
        let message = message.get_str("message").unwrap().to_owned();
        assert!(message.contains("released") && message.contains("\"adopt\": true"), "{message}");
    }
    eventually("it has a space of its own", async || suite.files.server.enabled() == 2).await;
    assert_ne!(suite.world.step_of("acme", "ocis").await.get_str("externalId").ok(), old_space.as_str());

    suite.world.set("acme", doc! { "adopt": true }).await;
    suite.settled("acme").await;
    suite.audit("acme").await;
    assert_eq!(suite.world.authentik.count(), 1);
    assert_eq!(suite.stalwart.count(), 1);
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_that_may_adopt_takes_over_the_space_that_its_predecessor_released() {
    for flavour in [tenantry::dev::ocis::Flavour::Ocis31, tenantry::dev::ocis::Flavour::OpenCloud] {
        let suite = Suite::with(flavour).await;
        let controller = suite.controller(|_| {}).await;
        suite.create("acme").await;
        suite.settled("acme").await;
        let old = suite.space("acme")["id"].as_str().unwrap().to_owned();
        suite.ask_deletion("acme", DeletionPolicy::Retain).await;
        suite.gone("acme").await;
        suite
            .world
            .tenants
            .insert_one(
                doc! { "slug": "acme", "name": "The acme", "domain": "acme.test", "adopt": true },
            )
            .await
            .unwrap();
        suite.settled("acme").await;
        suite.audit("acme").await;
        let step = suite.world.step_of("acme", "ocis").await;
        assert_eq!(step.get_str("externalId").unwrap(), old, "{flavour:?}");
        assert_eq!(suite.files.server.count(), 1);
        controller.stop().await;
    }
}

#[tokio::test]
async fn with_policy_delete_only_what_can_be_restored_or_is_empty_goes_and_the_rest_is_waited_for() {
    let suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.policy.resync = Duration::from_secs(1)).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    for person in ["anna", "ben", "cleo"] {
        suite.stalwart.plant_account("acme.test", person);
    }
    suite.ask_deletion("acme", DeletionPolicy::Delete).await;
    eventually("the domain is waited for", async || {
        suite.reason("acme", "stalwart").await == "NotEmpty"
    })
    .await;
    let tenant = suite.world.find("acme").await;
    assert_eq!(tenant.get_str("status").unwrap(), "deleting");
    let step = suite.world.step_of("acme", "stalwart").await;
    assert!(step.get_str("message").unwrap().contains("3 accounts still in acme.test"), "{step}");
    eventually("the others have gone", async || {
        suite.world.authentik.count() == 0 && suite.files.server.enabled() == 0
    })
    .await;
    assert_eq!(suite.files.server.count(), 1, "disabled, and it can be restored");
    holds_for(Duration::from_millis(500), "nothing is forced", async || {
        suite.domain("acme.test").is_some() && suite.exists("acme").await
    })
    .await;
    for person in ["anna", "ben", "cleo"] {
        assert!(suite.stalwart.remove_account("acme.test", person));
    }
    suite.gone("acme").await;
    assert_eq!((suite.stalwart.count(), suite.files.server.count()), (0, 1));
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_whose_domain_could_not_move_is_let_go_with_the_one_that_it_still_has() {
    for policy in [DeletionPolicy::Delete, DeletionPolicy::Retain] {
        let suite = Suite::new().await;
        let controller = suite.controller(|_| {}).await;
        suite.create("acme").await;
        let id = suite.settled("acme").await.get_object_id("_id").unwrap().to_hex();
        // Stalwart knows that such a name cannot exist.
        suite.world.set("acme", doc! { "domain": "acme.example" }).await;
        eventually("the move fails", async || suite.reason("acme", "stalwart").await == "Rejected")
            .await;
        suite.ask_deletion("acme", policy).await;
        suite.gone("acme").await;
        let kept = suite.domain("acme.test").map(|domain| domain["description"].clone());
        let expected = match policy {
            DeletionPolicy::Retain => {
                let fleet = suite.fleet_id().await;
                Some(json!(format!("The acme [tenantry {id} released {fleet}]")))
            }
            _ => None,
        };
        assert_eq!(kept, expected, "{policy:?}");
        let history = suite.history("acme").await;
        assert!(
            history.iter().any(|(kind, _, said)| kind == "Deleted" && !said.contains("create domain")),
            "the last word is on what became of it: {history:?}"
        );
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_former_domain_that_is_still_in_use_is_released_with_its_tenant() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.stalwart.plant_account("acme.test", "anna");
    suite.world.set("acme", doc! { "domain": "acme-mail.test" }).await;
    suite.settled("acme").await;
    suite.ask_deletion("acme", DeletionPolicy::Retain).await;
    suite.gone("acme").await;
    for name in ["acme.test", "acme-mail.test"] {
        let domain = suite.domain(name).expect("it stays");
        assert!(domain["description"].as_str().unwrap().contains(" released "), "{domain}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn with_purge_nothing_is_left() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.ask_deletion("acme", DeletionPolicy::Delete).await;
    // A second thought may ask for more, and never for less.
    suite.ask_deletion("acme", DeletionPolicy::Purge).await;
    suite.ask_deletion("acme", DeletionPolicy::Retain).await;
    suite.gone("acme").await;
    let left = (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count());
    assert_eq!(left, (0, 0, 0));
    controller.stop().await;
}

#[tokio::test]
async fn a_deletion_is_taken_back_as_long_as_the_document_is_there() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.stalwart.plant_account("acme.test", "anna");
    suite.ask_deletion("acme", DeletionPolicy::Delete).await;
    eventually("the space is disabled, the group gone", async || {
        suite.files.server.enabled() == 0 && suite.world.authentik.count() == 0
    })
    .await;
    suite.world.store.undelete(&"acme".parse().unwrap()).await.unwrap().expect("it is there");
    suite.settled("acme").await;
    suite.audit("acme").await;
    assert!(suite.world.is_active("acme").await);
    assert_eq!(
        (suite.files.server.enabled(), suite.files.server.count()),
        (1, 1),
        "restored, not replaced"
    );
    let gone = suite.world.store.undelete(&"nobody".parse().unwrap()).await.unwrap();
    assert!(gone.is_none());
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_that_never_had_anything_is_deleted_without_a_request() {
    let suite = Suite::new().await;
    suite.create("acme").await;
    suite.ask_deletion("acme", DeletionPolicy::Purge).await;
    let controller = suite.controller(|_| {}).await;
    suite.gone("acme").await;
    // But for the check of each at start.
    let asked = suite.requests();
    assert!(asked.iter().zip(CHECK).all(|(asked, check)| *asked <= check), "{asked:?}");
    controller.stop().await;
}

#[tokio::test]
async fn a_kill_at_any_point_of_a_deletion_ends_with_what_the_policy_says() {
    let suite = Suite::new().await;
    let strangers = suite.plant_strangers();
    let mut number = 0;
    for policy in [DeletionPolicy::Retain, DeletionPolicy::Purge] {
        for failpoint in [CLAIMED, RELEASED, RAN, REMOVING] {
            number += 1;
            let slug = format!("acme-{number}");
            suite.create(&slug).await;
            let process = suite.process(&[]);
            let id = suite.settled(&slug).await.get_object_id("_id").unwrap().to_hex();
            process.stop().await;
            suite.ask_deletion(&slug, policy).await;
            let mut process = suite.process(&[("FAILPOINTS", &format!("{failpoint}=return"))]);
            let status = process.ended().await;
            assert_eq!(status.signal(), Some(9), "{failpoint}, {policy}: {}", process.log());
            let process = suite.process(&[]);
            suite.gone(&slug).await;
            suite.adds_up(&process).await;
            let log = process.stop().await;
            assert!(!log.contains("panicked"), "{log}");
            let marked = |all: Vec<Value>| all.iter().filter(|it| it.to_string().contains(&id)).count();
            let left = [
                marked(suite.world.authentik.groups()),
                marked(suite.stalwart.domains()),
                marked(suite.files.server.drives()),
            ];
            let expected = if policy == DeletionPolicy::Retain { [1; 3] } else { [0; 3] };
            assert_eq!(left, expected, "{failpoint}, {policy}");
        }
    }
    assert_eq!(suite.strangers(), strangers);
}

#[tokio::test]
async fn a_kill_at_any_point_of_a_move_ends_with_the_new_domain_alone() {
    let suite = Suite::new().await;
    let strangers = suite.plant_strangers();
    let points = [CLAIMED, CREATING, CREATED, UPDATED, RAN, COMMITTED];
    for (number, failpoint) in points.into_iter().enumerate() {
        let slug = format!("acme-{number}");
        suite.create(&slug).await;
        let process = suite.process(&[]);
        suite.settled(&slug).await;
        process.stop().await;
        let moved = format!("moved-{number}.test");
        suite.world.set(&slug, doc! { "domain": &moved }).await;
        let mut process = suite.process(&[("FAILPOINTS", &format!("{failpoint}=return"))]);
        let status = process.ended().await;
        assert_eq!(status.signal(), Some(9), "{failpoint}: {}", process.log());
        let process = suite.process(&[]);
        suite.reconcile(&slug).await;
        suite.audit(&slug).await;
        assert!(suite.domain(&moved).is_some(), "{failpoint}");
        assert!(suite.domain(&format!("{slug}.test")).is_none(), "{failpoint}");
        suite.adds_up(&process).await;
        let log = process.stop().await;
        assert!(!log.contains("panicked"), "{log}");
    }
    assert_eq!(suite.strangers(), strangers);
}

#[tokio::test]
async fn a_kill_at_any_point_of_an_undelete_ends_with_everything_back() {
    let suite = Suite::new().await;
    suite.create("acme").await;
    let process = suite.process(&[]);
    suite.settled("acme").await;
    process.stop().await;
    // What keeps the document there.
    suite.stalwart.plant_account("acme.test", "anna");
    for failpoint in [CLAIMED, CREATING, CREATED, UPDATED, RAN, COMMITTED] {
        suite.ask_deletion("acme", DeletionPolicy::Delete).await;
        let process = suite.process(&[]);
        eventually("group and space are gone", async || {
            suite.world.authentik.count() == 0 && suite.files.server.enabled() == 0
        })
        .await;
        process.stop().await;
        suite.world.store.undelete(&"acme".parse().unwrap()).await.unwrap().unwrap();
        let mut process = suite.process(&[("FAILPOINTS", &format!("{failpoint}=return"))]);
        let status = process.ended().await;
        assert_eq!(status.signal(), Some(9), "{failpoint}: {}", process.log());
        let process = suite.process(&[]);
        suite.settled("acme").await;
        suite.audit("acme").await;
        // Also where nothing was left to do for it.
        process.says("watching for tenants").await;
        suite.adds_up(&process).await;
        process.stop().await;
    }
}

#[tokio::test]
async fn a_paused_tenant_is_observed_and_its_drift_shown_and_nothing_is_changed() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let slug = "acme".parse().unwrap();
    suite.world.store.set_paused(&slug, true).await.unwrap().unwrap();
    // As it should be, so all is well.
    suite.settled("acme").await;
    let space = suite.space("acme")["id"].as_str().unwrap().to_owned();
    suite.files.server.change(&space, json!({ "quota": { "total": 1 } }));
    suite.world.authentik.delete_named("tenant-acme");
    suite.world.set("acme", doc! { "name": "Renamed while paused" }).await;
    suite.world.store.request_reconcile(&slug).await.unwrap();
    for (step, said) in [
        ("ocis", "quota from \"1\" to \"1000000000\""),
        ("authentik", "there is none"),
        ("stalwart", "description"),
    ] {
        eventually(&format!("{step} shows what differs"), async || {
            let step = suite.world.step_of("acme", step).await;
            step.get_str("reason").is_ok_and(|reason| reason == "Paused")
                && step.get_str("message").is_ok_and(|message| message.contains(said))
        })
        .await;
    }
    let tenant = suite.world.find("acme").await;
    assert_eq!(tenant.get_str("status").unwrap(), "active");
    let ready = tenant.get_array("conditions").unwrap()[0].as_document().unwrap().clone();
    assert_eq!(
        (ready.get_str("status").unwrap(), ready.get_str("reason").unwrap()),
        ("False", "Paused")
    );
    assert_eq!(suite.world.authentik.count(), 0);
    let shown = suite.files.server.drives().remove(0);
    assert_eq!((&shown["quota"]["total"], &shown["name"]), (&json!(1), &json!("The acme")));

    suite.world.store.set_paused(&slug, false).await.unwrap().unwrap();
    suite.settled("acme").await;
    suite.audit("acme").await;
    let shown = suite.files.server.drives().remove(0);
    assert_eq!(
        (&shown["quota"]["total"], &shown["name"]),
        (&json!(1_000_000_000), &json!("Renamed while paused"))
    );
    controller.stop().await;
}

#[tokio::test]
async fn a_service_that_is_switched_off_keeps_its_resource_marked_and_reported_and_comes_back() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    for step in STEPS {
        let off: Document = doc! { step: false };
        suite.world.set("acme", doc! { "services": off }).await;
        eventually(&format!("{step} is off"), async || {
            suite.reason("acme", step).await == "ServiceDisabled"
        })
        .await;
        let recorded = suite.world.step_of("acme", step).await;
        assert_eq!(recorded.get_str("state").unwrap(), "skipped");
        assert!(recorded.get_str("message").unwrap().contains("is kept, marked off"), "{recorded}");
        let everything = format!(
            "{:?} {:?} {:?}",
            suite.world.authentik.groups(),
            suite.stalwart.domains(),
            suite.files.server.drives()
        );
        assert!(everything.contains("off"), "{everything}");
        suite
            .world
            .tenants
            .update_one(doc! { "slug": "acme" }, doc! { "$unset": { "services": 1 } })
            .await
            .unwrap();
        eventually(&format!("{step} is back"), async || {
            suite.world.step_of("acme", step).await.get("state") == Some(&Bson::from("ok"))
        })
        .await;
        suite.settled("acme").await;
        suite.audit("acme").await;
    }
    let made = (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count());
    assert_eq!(made, (1, 1, 1));
    controller.stop().await;
}

#[tokio::test]
async fn a_domain_that_moves_back_and_forth_while_it_is_reconciled_ends_in_the_last_state() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    for n in 0..6 {
        let domain = if n % 2 == 0 { "acme-group.test" } else { "acme.test" };
        let fields =
            doc! { "domain": domain, "name": format!("Name {n}"), "quota": { "storageBytes": n + 1 } };
        suite.world.set("acme", fields).await;
    }
    suite.settled("acme").await;
    eventually("the last state, and nothing left behind", async || {
        let domains = suite.stalwart.domains();
        domains.len() == 1 && domains[0]["name"] == "acme.test"
    })
    .await;
    suite.audit("acme").await;
    let shown = suite.files.server.drives().remove(0);
    assert_eq!((&shown["name"], &shown["quota"]["total"]), (&json!("Name 5"), &json!(6)));
    controller.stop().await;
}

impl Suite {
    /// The tenant's history, the oldest first: type, step and message.
    async fn history(&self, slug: &str) -> Vec<(String, String, String)> {
        let events = self.world.store.events(&slug.parse().unwrap(), 100).await.unwrap();
        let told = events.into_iter().rev().map(|event| {
            let step = event.step.map(|step| step.name().to_owned()).unwrap_or_default();
            (event.kind.name().to_owned(), step, event.message)
        });
        told.collect()
    }
}

#[tokio::test]
async fn a_history_tells_what_happened_and_outlives_the_tenant() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.world.insert("acme").await;
    suite.settled("acme").await;
    suite.world.set("acme", doc! { "name": "Renamed", "quota": { "storageBytes": 5 } }).await;
    suite.reconcile("acme").await;
    suite.world.authentik.delete_named("tenant-acme");
    let space = suite.files.server.drives()[0]["id"].as_str().unwrap().to_owned();
    suite.files.server.change(&space, json!({ "quota": { "total": 7 } }));
    suite.reconcile("acme").await;
    suite.ask_deletion("acme", DeletionPolicy::Delete).await;
    suite.gone("acme").await;
    let told = |history: &[(String, String, String)], kind: &str, step: &str, said: &str| {
        history.iter().any(|(k, s, m)| k == kind && s == step && m.contains(said))
    };
    eventually("the history is whole", async || {
        let history = suite.history("acme").await;
        told(&history, "Created", "", "found in the database")
            && told(&history, "StepChanged", "authentik", "pending -> ok")
            && told(&history, "Active", "", "")
            && told(
                &history,
                "Edited",
                "",
                "name from \"The acme\" to \"Renamed\"; quota.storageBytes from (none) to 5",
            )
            && told(&history, "DriftRepaired", "ocis", "quota from \"7\" to \"5\"")
            && told(&history, "ReconcileRequested", "", "of all steps")
            && told(&history, "DeletionRequested", "", "with policy delete")
            && told(&history, "Deleted", "", "policy delete")
    })
    .await;
    let history = suite.history("acme").await;
    assert!(
        !told(&history, "DriftRepaired", "authentik", "attributes"),
        "an edit is no drift: {history:?}"
    );
    assert_eq!(history.first().unwrap().0, "Created", "{history:?}");
    // A new tenant of that slug has a history of its own, and the old one is still told.
    suite.world.insert("acme").await;
    suite.settled("acme").await;
    eventually("both are told", async || {
        let history = suite.history("acme").await;
        history.iter().filter(|(kind, ..)| kind == "Created").count() == 2
            && history.iter().any(|(kind, ..)| kind == "Deleted")
    })
    .await;
    controller.stop().await;
}

#[tokio::test]
async fn a_history_keeps_the_latest_hundred_events() {
    use tenantry::tenant::{Event, EventKind, Subject, TenantId};
    let suite = Suite::new().await;
    let subject =
        Subject::Tenant { id: TenantId::from_bytes([7; 12]), slug: Some("acme".parse().unwrap()) };
    for round in 0..3 {
        let events: Vec<_> = (0..60)
            .map(|n| {
                (
                    subject.clone(),
                    Event::new(Timestamp::now(), EventKind::Edited, format!("{round}/{n}")),
                )
            })
            .collect();
        suite.world.store.record_events(&events).await.unwrap();
    }
    let all = suite.world.store.events(&"acme".parse().unwrap(), 1_000).await.unwrap();
    assert_eq!(all.len(), 100);
    assert_eq!(all[0].message, "2/59", "the newest first");
    assert_eq!(all[99].message, "1/20");
}

#[tokio::test]
async fn a_document_that_a_person_deletes_is_noticed_at_once_and_what_is_left_is_listed() {
    let suite = Suite::new().await;
    // No sweep finds it, in two processes.
    let (first, second) = (suite.controller(|_| {}).await, suite.controller(|_| {}).await);
    for slug in ["acme", "globex", "tidy"] {
        suite.create(slug).await;
        suite.settled(slug).await;
        let told = async || suite.history(slug).await.iter().any(|(kind, ..)| kind == "Active");
        eventually("its history is there", told).await;
    }
    let id = suite.world.find("acme").await.get_object_id("_id").unwrap();
    suite.ask_deletion("tidy", DeletionPolicy::Delete).await;
    suite.gone("tidy").await;
    suite.world.tenants.delete_one(doc! { "slug": "acme" }).await.unwrap();
    eventually("all that it had is listed", async || {
        let orphans = suite.world.store.orphans().await.unwrap();
        orphans.len() == 3 && orphans.iter().all(|orphan| orphan.tenant.to_string() == id.to_hex())
    })
    .await;
    eventually("its history ends with that, once", async || {
        let history = suite.history("acme").await;
        history.iter().filter(|(kind, ..)| kind == "Vanished").count() == 1
            && history.last().is_some_and(|(kind, ..)| kind == "Vanished")
    })
    .await;
    let vanished = first.metrics.vanished.get() + second.metrics.vanished.get();
    assert_eq!(vanished, 1, "one of the two tells it");
    assert!(
        !suite.history("tidy").await.iter().any(|(kind, ..)| kind == "Vanished"),
        "it went as asked"
    );
    // Each is told after it was listed.
    eventually("the fleet's history tells it", async || {
        let fleet = suite.world.store.fleet_events(10).await.unwrap();
        fleet.iter().filter(|event| event.kind.name() == "OrphansFound").count() == 3
    })
    .await;
    suite.audit("globex").await;
    assert_eq!(suite.world.authentik.count(), 2, "and nothing is removed");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn what_another_took_over_is_not_let_go_with_the_tenant() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    for policy in DeletionPolicy::ALL {
        let slug = format!("acme-{policy}");
        suite.create(&slug).await;
        suite.settled(&slug).await;
        // Everything carries the mark of another tenant now, and its recorded id.
        let (other, intent) = ("65a0000000000000000000aa", "65a0000000000000000000bb");
        let group = suite.world.group(&format!("tenant-{slug}"));
        let url = format!(
            "{}/api/v3/core/groups/{}/",
            suite.world.authentik.url(),
            group["pk"].as_str().unwrap()
        );
        let attributes = json!({ "attributes": { "tenantry_id": other, "tenantry_slug": "other" } });
        let patch = crate::support::http().patch(url).bearer_auth(crate::support::TOKEN);
        let patch = patch.header("content-type", "application/json").body(attributes.to_string());
        assert!(patch.send().await.unwrap().status().is_success());
        let mark = json!({ "description": format!("Other [tenantry {other}]") });
        assert!(suite.stalwart.change(&format!("{slug}.test"), mark));
        let space = suite.space(&slug)["id"].as_str().unwrap().to_owned();
        let mark = json!({
            "driveAlias": format!("tenantry/{other}/{intent}"),
            "description": format!("[tenantry {other}/{intent}]"),
        });
        assert!(suite.files.server.change(&space, mark));
        let theirs = suite.strangers();
        suite.ask_deletion(&slug, policy).await;
        suite.gone(&slug).await;
        assert_eq!(suite.strangers(), theirs, "{policy}");
    }
    assert_eq!(suite.strangers().map(|of| of.len()), [3; 3]);
    controller.stop().await;
}

#[tokio::test]
async fn a_document_stays_until_its_end_is_written_down() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let id = suite.world.find("acme").await.get_object_id("_id").unwrap();
    let told = async || suite.history("acme").await.iter().any(|(kind, ..)| kind == "Active");
    eventually("its history is there", told).await;
    let histories = suite.world.mongo.collection::<Document>("tenantry_events");
    let history = doc! { "_id": id };
    // Another writer made a history that cannot be added to.
    let odd = doc! { "$set": { "events": "odd" } };
    histories.update_one(history.clone(), odd).await.unwrap();
    suite.ask_deletion("acme", DeletionPolicy::Delete).await;
    eventually("all else is gone", async || {
        suite.world.authentik.count() == 0 && suite.stalwart.count() == 0
    })
    .await;
    holds_for(Duration::from_secs(1), "the document stays", async || suite.exists("acme").await).await;
    histories.delete_one(history).await.unwrap();
    suite.world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    suite.gone("acme").await;
    assert!(suite.history("acme").await.iter().any(|(kind, ..)| kind == "Deleted"));
    controller.stop().await;
}
