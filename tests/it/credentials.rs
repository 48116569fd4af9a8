//! Credentials that an upstream refuses: how often they are tried, by one process and by many, and when a
//! refusal is believed.

use std::time::Duration;

use mongodb::bson::doc;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::tenant::{TryLimits, Upstream};

use crate::outage::many;
use crate::support::{World, eventually, holds_for};
use crate::three::{KEY, Suite};

const STALWART: Upstream = Upstream::Stalwart;
const PERMISSIONS: [&str; 9] = [
    "authenticate",
    "sysDomainGet",
    "sysDomainQuery",
    "sysDomainCreate",
    "sysDomainUpdate",
    "sysDomainDestroy",
    "sysDkimSignatureQuery",
    "sysDkimSignatureDestroy",
    "unlimitedRequests",
];
const LIMITS: TryLimits = TryLimits::DEFAULT;

fn slowly(suite: &Suite) {
    suite.stalwart.faults.add(Fault { delay_ms: 20, ..Fault::default() });
}

const HEALTHY: &str = "tenantry_integration_healthy{upstream=\"stalwart\"}";

#[tokio::test]
async fn a_key_that_goes_bad_in_a_rush_costs_three_logins_however_many_workers_wait() {
    let suite = Suite::new().await;
    slowly(&suite);
    let controller = suite.controller(|settings| settings.workers = 128).await;
    suite.world.tenants.insert_many(many(400, "t")).await.unwrap();
    eventually("the rush is on", async || suite.count("stalwart", "ok").await > 20).await;
    suite.stalwart.remove_key(KEY);
    eventually("all wait", async || {
        let waiting = doc! { "steps.stalwart.parked": true };
        let waiting = suite.world.tenants.count_documents(waiting).await.unwrap();
        waiting > 0 && waiting + suite.count("stalwart", "ok").await == 400
    })
    .await;
    holds_for(Duration::from_secs(2), "no more than three", async || {
        suite.stalwart.failed_logins() <= 3
    })
    .await;
    assert!(suite.stalwart.failed_logins() >= 1);
    controller.stop().await;
}

#[tokio::test]
async fn processes_share_that_a_key_is_refused_and_those_that_start_later_do_not_try_it() {
    let suite = Suite::new().await;
    suite.stalwart.remove_key(KEY);
    let first = suite.controller(|_| {}).await;
    eventually("it is refused", async || first.metrics.render().contains(&format!("{HEALTHY} 0"))).await;
    let refused = || suite.world.mongo.collection::<mongodb::bson::Document>("tenantry_controls");
    eventually("that is shared", async || {
        let shared = doc! { "_id": "refusals/stalwart", "nextTryAt": { "$type": "date" } };
        refused().count_documents(shared).await.unwrap() == 1
    })
    .await;
    let (second, third) = (suite.controller(|_| {}).await, suite.controller(|_| {}).await);
    suite.world.tenants.insert_many(many(20, "t")).await.unwrap();
    eventually("all say so", async || suite.count("stalwart", "error").await == 20).await;
    for controller in [&second, &third] {
        assert!(controller.metrics.render().contains(&format!("{HEALTHY} 0")));
    }
    assert_eq!(suite.stalwart.failed_logins(), 1);
    let step = suite.world.step_of("t0", "stalwart").await;
    assert_eq!(step.get_str("reason").unwrap(), "CredentialsRejected", "{step}");

    // What is shared tells nothing of the key.
    let document = refused().find_one(doc! { "_id": "refusals/stalwart" }).await.unwrap().unwrap();
    assert!(!document.to_string().contains(KEY), "{document}");
    assert!((0..=0xffff).contains(&document.get_i32("digest").unwrap()), "{document}");

    // One of them is accepted, and the others go on soon.
    suite.stalwart.add_key(KEY, &PERMISSIONS);
    suite.world.store.forget_refusals(STALWART).await.unwrap();
    eventually("all have their domain", async || suite.count("stalwart", "ok").await == 20).await;
    for controller in [first, second, third] {
        controller.stop().await;
    }
}

#[tokio::test]
async fn several_processes_in_a_rush_try_a_bad_key_only_with_what_is_in_flight() {
    let suite = Suite::new().await;
    slowly(&suite);
    let mut controllers = Vec::new();
    for _ in 0..3 {
        controllers.push(suite.controller(|settings| settings.workers = 64).await);
    }
    suite.world.tenants.insert_many(many(400, "t")).await.unwrap();
    eventually("the rush is on", async || suite.count("stalwart", "ok").await > 20).await;
    suite.stalwart.remove_key(KEY);
    eventually("all know", async || {
        controllers.iter().all(|it| it.metrics.render().contains(&format!("{HEALTHY} 0")))
    })
    .await;
    // Three requests of each process are under way at once.
    holds_for(Duration::from_secs(2), "no more than those", async || {
        suite.stalwart.failed_logins() <= 9
    })
    .await;
    for controller in controllers {
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_refusal_of_a_key_that_worked_is_a_doubt_that_a_check_removes() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    let body = r#"{"type":"about:blank","status":401,"title":"Unauthorized"}"#.to_owned();
    let answer = FaultAnswer::Status { status: 401, body, retry_after: None };
    suite.stalwart.faults.add(Fault { times: Some(1), answer, ..Fault::default() });
    suite.create("acme").await;
    eventually("it is doubted", async || {
        controller.metrics.render().contains("tenantry_upstream_down{upstream=\"stalwart\"} 1")
    })
    .await;
    assert!(controller.metrics.render().contains(&format!("{HEALTHY} 1")), "it is no misconfiguration");
    suite.settled("acme").await;
    assert!(controller.metrics.render().contains("tenantry_upstream_down{upstream=\"stalwart\"} 0"));
    controller.stop().await;
}

#[tokio::test]
async fn three_tries_in_ten_minutes_are_those_of_all_processes_together() {
    let world = World::new().await;
    let other = world.other_store().await;
    let salt = world.store.refusals(STALWART).await.unwrap().salt;
    assert_eq!(other.refusals(STALWART).await.unwrap().salt, salt, "it stays");
    let soon = Duration::from_millis(1);
    for store in [&world.store, &other] {
        let wait = store.note_refusals(STALWART, 7, 1, soon, "401", LIMITS).await.unwrap();
        assert!(wait < Duration::from_secs(1), "{wait:?}");
    }
    let wait = world.store.note_refusals(STALWART, 7, 1, soon, "401", LIMITS).await.unwrap();
    assert!(wait > Duration::from_secs(595) && wait <= Duration::from_secs(600), "{wait:?}");
    // That it was accepted in between takes nothing back, and after many it is tried rarely.
    other.forget_refusals(STALWART).await.unwrap();
    assert_eq!(other.refusals(STALWART).await.unwrap().refused, None);
    let wait = other.note_refusals(STALWART, 7, 1, soon, "401", LIMITS).await.unwrap();
    assert!(wait > Duration::from_secs(590), "{wait:?}");
    let wait = other.note_refusals(STALWART, 7, 64, soon, "401", LIMITS).await.unwrap();
    assert!(wait > Duration::from_secs(3_590), "{wait:?}");
    // Another credential is another matter.
    let wait = world.store.note_refusals(STALWART, 8, 1, soon, "401", LIMITS).await.unwrap();
    assert!(wait < Duration::from_secs(1), "{wait:?}");
}

#[tokio::test]
async fn only_one_process_takes_the_try_that_is_due() {
    let world = World::new().await;
    let other = world.other_store().await;
    let long = Duration::from_secs(60);
    world.store.note_refusals(STALWART, 7, 1, long, "401", LIMITS).await.unwrap();
    let wait = other.take_try(STALWART, 7).await.unwrap().expect("it is not due");
    assert!(wait > Duration::from_secs(50), "{wait:?}");
    world.store.note_refusals(STALWART, 7, 1, Duration::ZERO, "401", LIMITS).await.unwrap();
    let (one, another) = tokio::join!(world.store.take_try(STALWART, 7), other.take_try(STALWART, 7));
    let taken = [one.unwrap(), another.unwrap()];
    assert_eq!(taken.iter().filter(|wait| wait.is_none()).count(), 1, "{taken:?}");
    world.store.forget_refusals(STALWART).await.unwrap();
    assert_eq!(other.take_try(STALWART, 7).await.unwrap(), None, "nothing is refused");
}
