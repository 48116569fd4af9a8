//! What was not made for a tenant: who may take it over, what is remembered of it, and that it is let go as it
//! was. The orders in which people can ask for all that are in `mail_domain`.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use mongodb::bson::{Document, doc, oid::ObjectId};
use serde_json::{Value, json};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::ocis::Flavour;
use tenantry::failpoint::{CLAIMED, COMMITTED, RAN, UPDATED};
use tenantry::integration::{Credentials, Limits};
use tenantry::tenant::{DeletionPolicy, Reason};

use crate::api::Served;
use crate::stalwart::{Bench, connect, target};
use crate::support::{adopting, converge, eventually, holds_for};
use crate::three::Suite;

/// Resources of a tenant's names that a person made by hand.
#[derive(Debug, Clone, PartialEq)]
struct ByHand {
    group: Value,
    domain: Value,
}

impl Suite {
    fn plant_by_hand(&self, slug: &str) -> ByHand {
        let attributes = json!({ "cost-centre": 7, "tenantry_name": "an odd one" });
        self.world.authentik.plant(&format!("tenant-{slug}"), attributes, &[1, 2]);
        let domain = json!({
            "description": "bought in 2019", "isEnabled": false, "allowRelaying": true,
            "catchAllAddress": format!("info@{slug}.test"), "aliases": { format!("{slug}-alias.test"): true },
        });
        self.stalwart.plant(&format!("{slug}.test"), domain);
        self.by_hand(slug).expect("just made")
    }

    fn by_hand(&self, slug: &str) -> Option<ByHand> {
        let domains = self.stalwart.domains();
        let domain = domains.into_iter().find(|domain| domain["name"] == format!("{slug}.test"))?;
        let group = self.world.groups_named(&format!("tenant-{slug}")).pop()?;
        Some(ByHand { group, domain })
    }

    /// Waits until a step says this.
    async fn says(&self, slug: &str, step: &str, reason: &str) -> Document {
        eventually(&format!("{slug}: {step} says {reason}"), async || {
            self.world.step_of(slug, step).await.get_str("reason").is_ok_and(|said| said == reason)
        })
        .await;
        self.world.step_of(slug, step).await
    }

    async fn adopted(&self, slug: &str) -> ByHand {
        self.settled(slug).await;
        self.audit(slug).await;
        self.by_hand(slug).expect("both are there")
    }

    async fn let_go(&self, slug: &str, policy: DeletionPolicy) {
        let asked = self.world.store.request_deletion(&slug.parse().unwrap(), policy).await;
        asked.unwrap().expect("there is such a tenant");
        eventually(&format!("{slug} is gone"), async || {
            self.world.tenants.count_documents(doc! { "slug": slug }).await.unwrap() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_there_already_is_a_conflict_that_names_the_way_out_unless_the_tenant_may_adopt() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let before = suite.plant_by_hand("acme");
    suite.create("acme").await;
    for step in ["authentik", "stalwart"] {
        let said = suite.says("acme", step, "Conflict").await;
        let message = said.get_str("message").unwrap();
        let named = if step == "authentik" { "tenant-acme" } else { "acme.test" };
        assert!(message.contains(named) && message.contains("\"adopt\": true"), "{message}");
        assert!(!said.contains_key("externalId"), "it is not its own: {said}");
    }
    assert_eq!(suite.by_hand("acme"), Some(before.clone()), "nothing of it was changed");

    suite.world.set("acme", doc! { "adopt": true }).await;
    let after = suite.adopted("acme").await;
    assert_eq!(after.group["attributes"]["cost-centre"], before.group["attributes"]["cost-centre"]);
    assert_eq!(after.domain["isEnabled"], true);
    assert_eq!(after.domain["catchAllAddress"], before.domain["catchAllAddress"]);
    controller.stop().await;
}

#[tokio::test]
async fn the_operator_can_adopt_by_default_and_a_tenant_can_refuse() {
    let suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.adopt_unmarked = true).await;
    suite.plant_by_hand("acme");
    suite.create("acme").await;
    suite.adopted("acme").await;
    let before = suite.plant_by_hand("globex");
    suite
        .world
        .tenants
        .insert_one(doc! { "slug": "globex", "name": "Globex", "domain": "globex.test", "adopt": false })
        .await
        .unwrap();
    suite.says("globex", "authentik", "Conflict").await;
    suite.says("globex", "stalwart", "Conflict").await;
    assert_eq!(suite.by_hand("globex"), Some(before));
    controller.stop().await;
}

/// As docs/upstreams.md has it.
#[tokio::test]
async fn an_adoption_costs_four_commands_and_a_look_more_than_a_creation() {
    let suite = Suite::new().await;
    let rarely = Duration::from_secs(600);
    let controller = suite.controller(|settings| settings.poll_interval = rarely).await;
    // A healthy upstream has been asked something before.
    suite.create("first").await;
    suite.settled("first").await;
    let commands = &suite.world.commands;
    commands.rest().await;
    let before = suite.requests();
    suite.plant_by_hand("acme");
    commands.take();
    suite
        .world
        .tenants
        .insert_one(doc! {
            "slug": "acme", "name": "Acme", "domain": "acme.test", "adopt": true,
            "services": { "ocis": false }, "lease": { "epoch": 0_i64 },
        })
        .await
        .unwrap();
    suite.settled("acme").await;
    let written = commands.of_reconciles().iter().filter(|command| *command == "findAndModify").count();
    assert_eq!(written, 4, "{:?}", commands.of_reconciles());
    let [authentik, stalwart, ocis] = suite.requests();
    assert_eq!([authentik - before[0], stalwart - before[1], ocis - before[2]], [3, 5, 0]);
    controller.stop().await;
}

/// As the service before this one left it.
fn legacy(slug: &str) -> Document {
    doc! {
        "_id": ObjectId::from_bytes([[0x65, 0xa0, 0, 0], rand::random(), rand::random()].concat().try_into().unwrap()),
        "slug": slug, "name": format!("The {slug}"), "domain": format!("{slug}.test"), "status": "active",
        "provisioningStatus": { "authentik": "ok", "stalwart": "ok", "ocis": "skipped" },
        "provisioningErrors": {}, "__v": 0,
    }
}

#[tokio::test]
async fn what_the_service_before_had_made_is_adopted_however_often_that_fails_at_first() {
    let suite = Suite::new().await;
    let away = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    suite.world.authentik.faults.add(Fault { answer: away, ..Fault::default() });
    suite.stalwart.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    let before = suite.plant_by_hand("acme");
    suite.world.tenants.insert_one(legacy("acme")).await.unwrap();
    // One step fails, and another is cut short after what there is was recorded.
    let controller = suite.controller(|settings| settings.lease_ttl = Duration::from_secs(2)).await;
    eventually("the failure is recorded, and the other step is under way", async || {
        let tenant = suite.world.find("acme").await;
        let noted = tenant.get_document("provisioningStatus").unwrap();
        noted.get_str("authentik").is_ok_and(|state| state == "error")
            && noted.get_str("stalwart").is_ok_and(|state| state == "pending")
    })
    .await;
    controller.kill().await;
    assert_eq!(suite.by_hand("acme"), Some(before));
    suite.world.authentik.faults.clear();
    suite.stalwart.faults.clear();
    let controller = suite.controller(|_| {}).await;
    suite.adopted("acme").await;
    for step in ["authentik", "stalwart"] {
        let step = suite.world.step_of("acme", step).await;
        assert!(!step.contains_key("legacy"), "that was for the first time: {step}");
        assert_eq!(step.get_array("adopted").unwrap().len(), 1, "it was not made by us: {step}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn what_the_service_before_had_not_made_is_a_conflict_as_any_other() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let before = suite.plant_by_hand("acme");
    let mut document = legacy("acme");
    document.insert("provisioningStatus", doc! { "authentik": "error", "stalwart": "pending" });
    suite.world.tenants.insert_one(document).await.unwrap();
    suite.says("acme", "authentik", "Conflict").await;
    suite.says("acme", "stalwart", "Conflict").await;
    let mut refusing = legacy("globex");
    refusing.insert("adopt", false);
    suite.plant_by_hand("globex");
    suite.world.tenants.insert_one(refusing).await.unwrap();
    suite.says("globex", "authentik", "Conflict").await;
    assert_eq!(suite.by_hand("acme"), Some(before));
    controller.stop().await;
}

#[tokio::test]
async fn what_was_adopted_is_let_go_as_it_was_and_never_destroyed_unless_asked() {
    let suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.adopt_unmarked = true).await;
    for policy in DeletionPolicy::ALL {
        let slug = format!("acme-{policy}");
        let before = suite.plant_by_hand(&slug);
        suite.create(&slug).await;
        suite.adopted(&slug).await;
        suite.let_go(&slug, policy).await;
        let expected = (policy != DeletionPolicy::Purge).then_some(before);
        assert_eq!(suite.by_hand(&slug), expected, "{policy}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn an_adopted_service_that_is_switched_off_is_let_go_and_taken_up_again_with_what_it_says_by_then()
{
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let before = suite.plant_by_hand("acme");
    suite.create("acme").await;
    suite.world.set("acme", doc! { "adopt": true }).await;
    suite.adopted("acme").await;
    suite.world.set("acme", doc! { "services": { "authentik": false, "stalwart": false } }).await;
    suite.says("acme", "authentik", "ServiceDisabled").await;
    suite.says("acme", "stalwart", "ServiceDisabled").await;
    assert_eq!(suite.by_hand("acme"), Some(before.clone()));

    // The client that has it back may write on it.
    assert!(suite.stalwart.change("acme.test", json!({ "description": "sold in 2026" })));
    suite.reconcile("acme").await;
    assert_eq!(suite.by_hand("acme").unwrap().domain["description"], "sold in 2026", "that stays");
    suite.world.set("acme", doc! { "services": { "authentik": true, "stalwart": true } }).await;
    suite.reconcile("acme").await;
    suite.audit("acme").await;
    suite.let_go("acme", DeletionPolicy::Delete).await;
    let after = suite.by_hand("acme").unwrap();
    assert_eq!(after.group, before.group);
    assert_eq!(after.domain["description"], "sold in 2026");
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_that_moves_leaves_an_adopted_domain_as_it_was() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let before = suite.plant_by_hand("acme");
    suite.create("acme").await;
    suite.world.set("acme", doc! { "adopt": true }).await;
    suite.adopted("acme").await;
    // The new domain is made, and the former one cannot be let go at first.
    let away = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    let fault = Fault { body: Some("bought in 2019".into()), times: Some(2), ..Fault::default() };
    suite.stalwart.faults.add(Fault { answer: away, ..fault });
    suite.world.set("acme", doc! { "domain": "acme-group.test" }).await;
    suite.reconcile("acme").await;
    suite.audit("acme").await;
    assert_eq!(suite.by_hand("acme").unwrap().domain, before.domain);
    let step = suite.world.step_of("acme", "stalwart").await;
    assert!(!step.contains_key("adopted"), "{step}");
    // The new one was made for it.
    suite.let_go("acme", DeletionPolicy::Delete).await;
    assert_eq!(suite.stalwart.count(), 1);
    controller.stop().await;
}

#[tokio::test]
async fn a_kill_at_any_point_of_an_adoption_loses_nothing_of_what_was_there() {
    let suite = Suite::new().await;
    for (number, failpoint) in [CLAIMED, UPDATED, RAN, COMMITTED].into_iter().enumerate() {
        let slug = format!("acme-{number}");
        let before = suite.plant_by_hand(&slug);
        suite.create(&slug).await;
        suite.world.set(&slug, doc! { "adopt": true }).await;
        let mut process = suite.process(&[("FAILPOINTS", &format!("{failpoint}=return"))]);
        let status = process.ended().await;
        assert_eq!(status.signal(), Some(9), "{failpoint}: {}", process.log());
        let process = suite.process(&[]);
        suite.adopted(&slug).await;
        suite.let_go(&slug, DeletionPolicy::Delete).await;
        assert_eq!(suite.by_hand(&slug), Some(before), "{failpoint}");
        process.stop().await;
    }
}

#[tokio::test]
async fn an_adoption_is_an_event_and_is_shown() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.plant_by_hand("acme");
    suite.create("acme").await;
    suite.world.set("acme", doc! { "adopt": true }).await;
    suite.adopted("acme").await;
    let told = async || {
        let events = suite.world.store.events(&"acme".parse().unwrap(), 100).await.unwrap();
        let told = events.into_iter().filter(|event| event.kind.name() == "ResourceAdopted");
        told.map(|event| event.message).collect::<Vec<_>>()
    };
    eventually("both are told", async || told().await.len() == 2).await;
    let said = told().await.join("\n");
    assert!(said.contains("acme.test") && said.contains("bought in 2019"), "{said}");
    let events = suite.world.store.events(&"acme".parse().unwrap(), 100).await.unwrap();
    assert!(!events.iter().any(|event| event.kind.name() == "DriftRepaired"), "{events:?}");

    let served = Served::new(&suite.world).await;
    let shown: Value =
        serde_json::from_str(&served.get("/tenants/acme").await.text().await.unwrap()).unwrap();
    let step = &shown["steps"]["stalwart"];
    assert_eq!((&shown["adopt"], &step["origin"]), (&json!(true), &json!("adopted")));
    assert_eq!(step["before"], json!({ "description": "bought in 2019", "isEnabled": "false" }));
    assert_eq!(shown["steps"]["ocis"]["origin"], "created");
    served.stop().await;
    controller.stop().await;
}

#[tokio::test]
async fn the_servers_default_domain_is_never_adopted() {
    let bench = Bench::new().await;
    bench.server.plant("acme.test", json!({ "description": "of the server" }));
    assert!(bench.server.make_default("acme.test"));
    let before = bench.server.domains();
    let error = bench.converge(&adopting(target())).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Conflict);
    assert!(error.failure.message.contains("default domain"), "{}", error.failure.message);

    // Without the right to read the settings nothing tells which domain it is.
    let permissions: Vec<&str> = [
        "authenticate",
        "sysDomainGet",
        "sysDomainQuery",
        "sysDomainCreate",
        "sysDomainUpdate",
        "sysDomainDestroy",
        "sysDkimSignatureQuery",
        "sysDkimSignatureDestroy",
    ]
    .to_vec();
    bench.server.add_key("API_blind", &permissions);
    let key = Credentials::Bearer("API_blind".into());
    let blind = connect(&bench.server.url(), key, Limits::GENEROUS);
    let error = converge(&blind, &adopting(target())).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Forbidden);
    assert!(error.failure.message.contains("sysSystemSettingsGet"), "{}", error.failure.message);
    assert_eq!(bench.server.domains(), before);
}

#[tokio::test]
async fn a_domain_that_says_too_much_to_be_recorded_is_not_adopted() {
    let bench = Bench::new().await;
    bench.server.plant("acme.test", json!({ "description": "x".repeat(100_000) }));
    let error = bench.converge(&adopting(target())).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Conflict);
    assert!(error.failure.message.len() < 500, "{}", error.failure.message);
}

#[tokio::test]
async fn a_space_is_taken_over_only_if_its_mark_can_be_read_and_says_that_it_was_released() {
    for flavour in [Flavour::Ocis31, Flavour::OpenCloud] {
        let suite = Suite::with(flavour).await;
        let (other, intent) = ("65a0000000000000000000aa", "65a0000000000000000000bb");
        for (alias, description) in [
            ("tenantry-released/acme/whatever".to_owned(), String::new()),
            (format!("tenantry-released/acme/{other}"), "[tenantry soon]".to_owned()),
            (format!("tenantry-released/acme/{other}"), format!("[tenantry {other}/{intent}]")),
        ] {
            let space = json!({ "name": "Theirs", "driveAlias": alias, "description": description });
            suite.files.server.plant(space);
        }
        let theirs = || {
            let mut drives = suite.files.server.drives();
            drives.retain(|drive| drive["name"] == "Theirs");
            drives.sort_by_key(|drive| drive["id"].to_string());
            drives
        };
        let before = theirs();
        let controller = suite.controller(|_| {}).await;
        // From the start, before it has a space of its own.
        let acme = doc! { "slug": "acme", "name": "The acme", "domain": "acme.test", "adopt": true };
        suite.world.tenants.insert_one(acme).await.unwrap();
        suite.settled("acme").await;
        suite.audit("acme").await;
        assert_eq!(theirs(), before, "{flavour:?}");
        assert_eq!(suite.files.server.count(), 4);
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_space_that_was_taken_over_says_in_the_end_who_had_released_it_first() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let id = suite.files.server.drives()[0]["id"].as_str().unwrap().to_owned();
    suite.let_go("acme", DeletionPolicy::Retain).await;
    let released = suite.files.server.drives();

    let again = doc! {
        "slug": "acme", "name": "The acme", "domain": "acme.test", "adopt": true,
        "quota": { "storageBytes": 7 },
    };
    suite.world.tenants.insert_one(again).await.unwrap();
    eventually("it has the space of before", async || {
        suite.world.step_of("acme", "ocis").await.get_str("externalId").is_ok_and(|its| its == id)
    })
    .await;
    suite.settled("acme").await;
    suite.let_go("acme", DeletionPolicy::Delete).await;
    let seen = |drives: &[Value]| {
        let fields = ["id", "name", "driveAlias", "description"];
        drives.iter().map(|it| fields.map(|f| it[f].clone()).to_vec()).collect::<Vec<_>>()
    };
    let after = suite.files.server.drives();
    assert_eq!(seen(&after), seen(&released));
    assert_eq!(after[0]["quota"]["total"], released[0]["quota"]["total"]);
    holds_for(Duration::from_millis(200), "it is left alone", async || {
        suite.files.server.enabled() == 1
    })
    .await;
    controller.stop().await;
}
