//! A quota that a tenant no longer wants is taken back; one that a person set stays.

use mongodb::bson::doc;
use serde_json::json;

use crate::support::eventually;
use crate::three::Suite;

#[tokio::test]
async fn a_quota_that_is_removed_is_taken_back_in_whatever_order_and_one_of_a_person_stays() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let id = suite.space("acme")["id"].as_str().unwrap().to_owned();
    let total = || suite.space("acme")["quota"]["total"].as_i64();
    assert_eq!(total(), Some(1_000_000_000));
    suite.world.set("acme", doc! { "quota": { "storageBytes": 0 } }).await;
    eventually("0 is no limit", async || total() == Some(0)).await;
    suite.world.set("acme", doc! { "quota": { "storageBytes": 5 } }).await;
    eventually("5 is 5", async || total() == Some(5)).await;
    suite.settled("acme").await;
    suite.world.set("acme", doc! { "quota": null }).await;
    eventually("without one there is no limit", async || total() == Some(0)).await;
    suite.settled("acme").await;
    // What people set then is theirs.
    assert!(suite.files.server.change(&id, json!({ "quota": { "total": 9 } })));
    suite.reconcile("acme").await;
    assert_eq!(total(), Some(9));
    // Also when it is removed while the service is off.
    suite.world.set("acme", doc! { "quota": { "storageBytes": 7 } }).await;
    eventually("7 is 7", async || total() == Some(7)).await;
    suite.settled("acme").await;
    suite.world.set("acme", doc! { "services": { "ocis": false } }).await;
    eventually("it is off", async || {
        suite
            .world
            .step_of("acme", "ocis")
            .await
            .get_str("reason")
            .is_ok_and(|is| is == "ServiceDisabled")
    })
    .await;
    suite.world.set("acme", doc! { "quota": null }).await;
    suite.settled("acme").await;
    assert_eq!(total(), Some(7), "it is left alone while it is off");
    suite.world.set("acme", doc! { "services": { "ocis": true } }).await;
    eventually("it is taken back", async || total() == Some(0)).await;
    // A quota that a person changed is not taken back.
    suite.world.set("acme", doc! { "quota": { "storageBytes": 7 } }).await;
    eventually("7 is 7 again", async || total() == Some(7)).await;
    suite.settled("acme").await;
    assert!(suite.files.server.change(&id, json!({ "quota": { "total": 11 } })));
    suite.world.set("acme", doc! { "quota": null }).await;
    suite.settled("acme").await;
    assert_eq!(total(), Some(11));
    controller.stop().await;
}
