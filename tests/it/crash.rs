//! Real processes, killed (SIGKILL) at the worst moments: whatever the instruction, the next process
//! finishes the work, with one resource per tenant and nothing lost.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use mongodb::bson::{DateTime, doc};
use serde_json::json;
use tenantry::dev::authentik::Release;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::failpoint::{CLAIMED, COMMITTED, CREATED, CREATING, RAN, UPDATED};

use crate::support::{Process, World, eventually};

const SIGKILL: i32 = 9;

/// Runs a process that kills itself at a failpoint, after passing it `passes` times.
async fn crash_at(world: &World, failpoint: &str, passes: u32) {
    assert!(fail::has_failpoints(), "tests are built with failpoints");
    let when = if passes == 0 { String::new() } else { format!("{passes}*off->") };
    let failpoints = format!("{failpoint}={when}return");
    let mut process = Process::start(world, &[("FAILPOINTS", &failpoints)]);
    let status = process.ended().await;
    assert_eq!(status.signal(), Some(SIGKILL), "{failpoint}: {status}: {}", process.log());
}

/// Lets a process without failpoints finish, and checks that all is well.
async fn recover(world: &World, slug: &str) {
    let process = Process::start(world, &[]);
    process.says("watching for tenants").await;
    world.active(slug).await;
    eventually("nothing is left to do", async || {
        let tenant = world.find(slug).await;
        tenant.get_datetime("nextReconcileAt").is_ok_and(|next| *next > DateTime::now())
    })
    .await;
    let log = process.stop().await;
    assert!(!log.contains("panicked"), "{log}");
    let tenant = world.find(slug).await;
    let lease = tenant.get_document("lease").unwrap();
    assert!(!lease.contains_key("holder"), "{tenant}");
    let group = world.group(&format!("tenant-{slug}"));
    assert_eq!(group["attributes"]["tenantry_id"], tenant.get_object_id("_id").unwrap().to_hex());
    let step = world.step(slug).await;
    assert_eq!(group["pk"], step.get_str("externalId").unwrap());
}

#[tokio::test]
async fn a_kill_at_any_point_of_a_creation_leaves_one_group_and_an_active_tenant() {
    for release in [Release::R2025_12, Release::R2025_8] {
        let world = World::with_release(release).await;
        for (n, failpoint) in [CLAIMED, CREATING, CREATED, RAN, COMMITTED].into_iter().enumerate() {
            let slug = format!("acme-{n}");
            world.insert(&slug).await;
            crash_at(&world, failpoint, 0).await;
            recover(&world, &slug).await;
            assert_eq!(world.authentik.count(), n + 1, "{failpoint}, {release:?}");
        }
    }
}

#[tokio::test]
async fn a_kill_at_any_point_of_a_repair_leaves_a_repaired_group() {
    let world = World::new().await;
    world.insert("acme").await;
    recover(&world, "acme").await;
    for failpoint in [CLAIMED, UPDATED, RAN, COMMITTED] {
        let name = format!("Renamed for {failpoint}");
        world.set("acme", doc! { "name": &name }).await;
        crash_at(&world, failpoint, 0).await;
        recover(&world, "acme").await;
        assert_eq!(world.group("tenant-acme")["attributes"]["tenantry_name"], name);
    }
    assert_eq!(world.authentik.count(), 1);
}

#[tokio::test]
async fn a_kill_while_a_create_is_on_its_way_leaves_one_group() {
    let world = World::new().await;
    world.authentik.faults.add(Fault {
        method: Some("POST".into()),
        times: Some(1),
        delay_ms: 300,
        ..Fault::default()
    });
    world.insert("acme").await;
    let mut process = Process::start(&world, &[]);
    eventually("the create is on its way", async || {
        world.authentik.faults.requests().iter().any(|request| request.starts_with("POST"))
    })
    .await;
    process.signal(rustix::process::Signal::KILL);
    process.ended().await;
    recover(&world, "acme").await;
    eventually("the late create has been answered", async || world.authentik.count() == 1).await;
}

#[tokio::test]
async fn a_kill_after_an_unrecorded_create_finds_the_group_even_if_it_was_renamed() {
    let world = World::new().await;
    world.insert("acme").await;
    crash_at(&world, CREATED, 0).await;
    let group = world.group("tenant-acme");
    let pk = group["pk"].as_str().unwrap().to_owned();
    let url = format!("{}/api/v3/core/groups/{pk}/", world.authentik.url());
    let renamed = crate::support::http()
        .patch(url)
        .bearer_auth(crate::support::TOKEN)
        .header("content-type", "application/json")
        .body(json!({ "name": "renamed by a person" }).to_string())
        .send()
        .await
        .unwrap();
    assert!(renamed.status().is_success());
    recover(&world, "acme").await;
    assert_eq!(world.authentik.count(), 1);
    assert_eq!(world.group("tenant-acme")["pk"], pk.as_str());
}

#[tokio::test]
async fn a_kill_in_the_middle_of_many_loses_none_and_makes_none_twice() {
    const TENANTS: usize = 60;
    let world = World::with_release(Release::R2025_8).await;
    for n in 0..TENANTS {
        world.insert(&format!("t{n}")).await;
    }
    for (failpoint, passes) in [(CREATED, 7), (RAN, 11), (CLAIMED, 5), (CREATING, 9), (COMMITTED, 13)] {
        crash_at(&world, failpoint, passes).await;
    }
    let process = Process::start(&world, &[]);
    for n in 0..TENANTS {
        world.active(&format!("t{n}")).await;
    }
    process.stop().await;
    assert_eq!(world.authentik.count(), TENANTS);
    for n in 0..TENANTS {
        let group = world.group(&format!("tenant-t{n}"));
        let step = world.step(&format!("t{n}")).await;
        assert_eq!(group["pk"], step.get_str("externalId").unwrap());
    }
}

/// Invariant 10.
#[tokio::test]
async fn sigterm_during_a_request_ends_within_the_grace_period_and_releases_the_lease() {
    let world = World::new().await;
    world.authentik.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    world.insert("acme").await;
    let settings = [("REQUEST_TIMEOUT", "60s"), ("SHUTDOWN_GRACE", "4s"), ("LEASE_TTL", "60s")];
    let process = Process::start(&world, &settings);
    let http = process.address("http").await;
    eventually("it is being reconciled", async || {
        let tenant = world.find("acme").await;
        tenant.get_document("lease").is_ok_and(|lease| lease.contains_key("holder"))
            && world.authentik.faults.total() > 0
    })
    .await;
    let asked = std::time::Instant::now();
    process.signal(rustix::process::Signal::TERM);
    let ready = format!("http://{http}/readyz");
    eventually("it says that it is not ready", async || {
        match crate::support::http().get(&ready).send().await {
            Ok(answer) => answer.status() == 503,
            Err(_) => true,
        }
    })
    .await;
    let mut process = process;
    let status = process.ended().await;
    assert!(status.success(), "{status}: {}", process.log());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let tenant = world.find("acme").await;
    assert!(!tenant.get_document("lease").unwrap().contains_key("expiresAt"), "{tenant}");
}
