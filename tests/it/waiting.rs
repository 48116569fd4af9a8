//! What waits for an outage or a stop that is over is found without reading the fleet, and goes on whatever
//! dies; what has to read the whole fleet does so in slices.

use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, Document, doc};
use tenantry::store::{Counting, Relist, Scope, Woken};
use tenantry::tenant::Upstream;

use crate::support::{ServerFault, World, eventually};

const FLEET: usize = 25_000;

/// What the server did about the tenants while `work` ran.
async fn profiled(world: &World, work: impl AsyncFnOnce()) -> Vec<Document> {
    world.mongo.run_command(doc! { "profile": 2 }).await.unwrap();
    work().await;
    world.mongo.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = world.mongo.collection::<Document>("system.profile");
    let on_tenants =
        doc! { "ns": format!("{}.tenants", world.database), "planSummary": { "$exists": true } };
    let mut found = profile.find(on_tenants).await.unwrap();
    let mut operations = Vec::new();
    while found.advance().await.unwrap() {
        operations.push(found.deserialize_current().unwrap());
    }
    assert!(!operations.is_empty(), "it was profiled");
    operations
}

/// That each of them went by an index, and read no more documents than this.
fn assert_bounded(operations: &[Document], most: i64) {
    for operation in operations {
        let plan = operation.get_str("planSummary").unwrap();
        assert!(plan.starts_with("IXSCAN") || plan == "IDHACK", "{operation}");
        for examined in ["keysExamined", "docsExamined"] {
            let examined =
                operation.get(examined).and_then(|n| n.as_i64().or(n.as_i32().map(i64::from)));
            assert!(examined.unwrap_or_default() <= most, "{operation}");
        }
    }
}

async fn fleet(world: &World, tenants: usize) {
    let documents = (0..tenants).map(|n| {
        let ok = doc! { "state": "ok", "reason": "InSync", "nextAttemptAt": DateTime::MAX };
        doc! {
            "slug": format!("t{n}"), "name": "x", "status": "active", "nextReconcileAt": DateTime::MAX,
            "provisioningStatus": { "authentik": "ok", "stalwart": "ok", "ocis": "skipped" },
            "steps": { "authentik": ok.clone(), "stalwart": ok.clone(), "ocis": ok },
            "lastHandledDesired": { "slug": format!("t{n}"), "name": "x" },
        }
    });
    world.tenants.insert_many(documents).await.unwrap();
}

fn held(slug: &str, step: Upstream) -> Document {
    let held = doc! { "state": "pending", "reason": "Stopped", "nextAttemptAt": DateTime::MAX };
    doc! { "slug": slug, "name": "x", "nextReconcileAt": DateTime::MAX, "steps": { step.name(): held } }
}

#[tokio::test]
async fn what_waits_is_found_by_an_index_of_nothing_else() {
    let world = World::new().await;
    fleet(&world, 500).await;
    for step in Upstream::ALL {
        for n in 0..3 {
            let parked = doc! { "state": "error", "parked": true, "nextAttemptAt": DateTime::MAX };
            let parked = doc! {
                "slug": format!("parked-{step}-{n}"), "name": "x", "nextReconcileAt": DateTime::MAX,
                "steps": { step.name(): parked },
            };
            let held = held(&format!("held-{step}-{n}"), step);
            world.tenants.insert_many([parked, held]).await.unwrap();
        }
    }
    let operations = profiled(&world, async || {
        for step in Upstream::ALL {
            for found in [2, 1, 0] {
                let woken = Woken { found, made_due: found as u64 };
                assert_eq!(world.store.unpark(step, 2).await.unwrap(), woken, "{step}");
                assert_eq!(world.store.wake_held(step, 2).await.unwrap(), woken, "{step}");
            }
        }
    })
    .await;
    // Between two reasons the index is searched anew.
    assert_bounded(&operations, 5);
    let due = doc! { "nextReconcileAt": { "$lte": DateTime::now() } };
    assert_eq!(world.tenants.count_documents(due).await.unwrap(), 18);
}

#[tokio::test]
async fn a_census_and_a_relist_read_the_fleet_in_slices_by_index() {
    let world = World::new().await;
    fleet(&world, FLEET).await;
    let mut counting = Counting::default();
    let operations = profiled(&world, async || {
        let mut relist = Relist::default();
        while !world.store.relist(&mut relist).await.unwrap() {}
        assert_eq!(relist.marked, 0);
        while !world.store.count(&mut counting).await.unwrap() {}
    })
    .await;
    assert_eq!(operations.len(), 2 * 3 * 2, "a look at the index and a slice, three times");
    assert_bounded(&operations, 10_001);
    let all = FLEET as u64;
    assert_eq!(counting.census.phases, [0, all, 0]);
    assert_eq!(counting.census.steps[Upstream::Authentik], [0, all, 0, 0]);
    assert_eq!(counting.census.steps[Upstream::Ocis], [0, 0, all, 0]);
}

#[tokio::test]
async fn a_stop_is_taken_back_at_once_and_what_it_held_goes_on_though_the_process_that_did_so_is_gone() {
    const HELD: usize = 2_500;
    let world = World::new().await;
    world.store.stop(Scope::Everything).await.unwrap();
    let documents = (0..HELD).map(|n| held(&format!("t{n}"), Upstream::Stalwart));
    world.tenants.insert_many(documents).await.unwrap();
    let delay = Duration::from_secs(2);
    let Some(slow) = ServerFault::delaying(&world, "tenants", &["update"], delay, None).await else {
        return;
    };
    let asked = Instant::now();
    world.store.start(Scope::Everything).await.unwrap();
    assert!(asked.elapsed() < delay, "nothing waits for the tenants");
    slow.off().await;
    // The process that was asked for it ended here. Another one:
    let controller = world.controller_with(|settings| settings.workers = 1).await;
    let still =
        doc! { "steps.stalwart.state": "pending", "steps.stalwart.nextAttemptAt": DateTime::MAX };
    eventually("all of them are made due", async || {
        world.tenants.count_documents(still.clone()).await.unwrap() == 0
    })
    .await;
    controller.stop().await;
}
