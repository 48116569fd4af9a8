//! Sweeps, change guards and stops: what happens when whole upstreams drift, lie, or are to be left alone.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use serde_json::json;
use tenantry::controller::Settings;
use tenantry::dev::faults::Fault;
use tenantry::failpoint::SWEEPING;
use tenantry::store::Scope;
use tenantry::tenant::{ChangeGuard, SweepEnd, Upstream};

use crate::support::{Running, ServerFault, eventually, holds_for};
use crate::three::{STEPS, Suite};

/// Sweeps all the time.
pub fn sweeping(settings: &mut Settings) {
    settings.sweep_interval = Duration::from_millis(400);
}

impl Suite {
    /// So many tenants on all three upstreams, all settled.
    pub async fn fleet(&self, tenants: usize) -> Vec<String> {
        let slugs: Vec<String> = (0..tenants).map(|n| format!("t{n:03}")).collect();
        let documents = slugs.iter().map(|slug| {
            doc! {
                "slug": slug, "name": format!("The {slug}"), "domain": format!("{slug}.test"),
                "quota": { "storageBytes": 1_000_000_000_i64 }, "lease": { "epoch": 0_i64 },
            }
        });
        self.world.tenants.insert_many(documents).await.unwrap();
        for slug in &slugs {
            self.settled(slug).await;
        }
        slugs
    }

    pub async fn sweeps(&self, controller: &Running, result: &str, more: u64) {
        let end = SweepEnd::ALL.into_iter().find(|end| end.name() == result).unwrap();
        let count = || -> Vec<u64> {
            let sweeps = &controller.metrics.sweeps;
            Upstream::ALL.map(|step| sweeps.of((step, end)).get()).to_vec()
        };
        let before = count();
        eventually(&format!("{more} sweeps end {result}"), async || {
            count().iter().zip(&before).all(|(now, before)| *now >= before + more)
        })
        .await;
    }

    pub async fn guard(&self, step: Upstream) -> ChangeGuard {
        self.world.store.controls().await.unwrap().guards[step].clone()
    }
}

#[tokio::test]
async fn a_sweep_of_a_converged_fleet_costs_its_lists_and_no_write_to_a_tenant() {
    let suite = Suite::new().await;
    let controller =
        suite.controller(|settings| settings.poll_interval = Duration::from_secs(600)).await;
    suite.fleet(120).await;
    controller.stop().await;
    suite.world.commands.take();
    suite.forget_requests();
    let before: Vec<Document> = {
        use futures_util::TryStreamExt;
        suite.world.tenants.find(doc! {}).await.unwrap().try_collect().await.unwrap()
    };
    let controller = suite
        .controller(|settings| {
            settings.poll_interval = Duration::from_secs(600);
            settings.sweep_interval = Duration::from_secs(5);
        })
        .await;
    // What a start reads is not of the sweep.
    eventually("it has started", async || suite.requests() == [1, 2, 2]).await;
    suite.world.commands.take();
    suite.sweeps(&controller, "ok", 1).await;
    controller.stop().await;
    // The check at start, which asks Stalwart and oCIS also for what they store; then two pages of groups, one
    // of domains, one stream of spaces and the canary.
    assert_eq!(suite.requests(), [1 + 2, 2 + 1, 2 + 2], "{:?}", suite.files.server.faults.requests());
    let commands = suite.world.commands.without_stream();
    let reads = commands.iter().filter(|command| *command == "find").count();
    // The batch of tenants, the controls, the due scan, and whether there were orphans.
    assert!(reads <= 12, "{commands:?}");
    let after: Vec<Document> = {
        use futures_util::TryStreamExt;
        suite.world.tenants.find(doc! {}).await.unwrap().try_collect().await.unwrap()
    };
    assert_eq!(before, after, "nothing was written to any tenant");
}

#[tokio::test]
async fn a_sweep_finds_and_repairs_every_kind_of_drift_and_touches_nothing_else() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.fleet(40).await;
    let space = |slug: &str| suite.space(slug)["id"].as_str().unwrap().to_owned();
    let files = &suite.files.server;
    let spaces: Vec<_> = (10..17).map(|n| space(&format!("t{n:03}"))).collect();
    // One of each, on tenants of their own.
    assert_eq!(suite.world.authentik.delete_named("tenant-t001"), 1);
    let http = crate::support::http();
    let groups = suite.world.authentik.groups();
    let pk = |slug: &str| {
        let name = format!("tenant-{slug}");
        let group = groups.iter().find(|group| group["name"] == name).expect("it is there");
        group["pk"].as_str().unwrap().to_owned()
    };
    for (slug, change) in [
        ("t002", json!({ "name": "Renamed" })),
        ("t003", json!({ "attributes": { "tenantry_slug": "other" } })),
        ("t004", json!({ "attributes": {} })),
    ] {
        let url = format!("{}/api/v3/core/groups/{}/", suite.world.authentik.url(), pk(slug));
        let request = http.patch(url).bearer_auth(crate::support::TOKEN);
        let request = request.header("content-type", "application/json").body(change.to_string());
        assert!(request.send().await.unwrap().status().is_success());
    }
    assert!(suite.stalwart.delete("t005.test"));
    assert!(suite.stalwart.change("t006.test", json!({ "name": "moved.test" })));
    assert!(suite.stalwart.change("t007.test", json!({ "description": null })));
    assert!(suite.stalwart.change("t008.test", json!({ "isEnabled": false })));
    assert!(files.disable(&spaces[0]));
    assert!(files.disable(&spaces[1]) && files.purge(&spaces[1]));
    assert!(files.change(&spaces[2], json!({ "quota": { "total": 5 } })));
    assert!(files.change(&spaces[3], json!({ "description": "", "driveAlias": "project/x" })));
    assert!(files.change(&spaces[4], json!({ "name": "Renamed" })));
    let mark = files.drives().into_iter().find(|drive| drive["id"] == spaces[5].as_str()).unwrap();
    files.plant(json!({ "name": "Twin", "driveAlias": mark["driveAlias"] }));
    let untouched = files.drives().into_iter().find(|drive| drive["id"] == spaces[6].as_str()).unwrap();

    eventually("everything is as it was", async || {
        let well = |slug: &str, step: &str| {
            let (slug, step) = (slug.to_owned(), step.to_owned());
            let suite = &suite;
            async move { suite.world.step_of(&slug, &step).await.get_str("state").is_ok_and(|s| s == "ok") }
        };
        let domains: BTreeSet<String> = suite.stalwart.domains().iter().map(|d| d["name"].to_string()).collect();
        let groups: BTreeSet<String> = suite.world.authentik.groups().iter().map(|g| g["name"].to_string()).collect();
        suite.stalwart.count() == 40
            && domains.len() == 40
            && !domains.contains("\"moved.test\"")
            && suite.stalwart.domains().iter().all(|domain| domain["isEnabled"] == true
                && domain["description"].as_str().is_some_and(|text| text.contains("[tenantry ")))
            && groups.len() == 40
            && !groups.contains("\"Renamed\"")
            && suite.world.authentik.groups().iter().all(|group| group["attributes"]["tenantry_id"].is_string()
                && group["attributes"]["tenantry_slug"] != "other")
            && files.enabled() == 40
            && files.drives().iter().filter(|drive| drive.pointer("/root/deleted").is_none()).all(|drive| {
                drive["quota"]["total"] == 1_000_000_000 && drive["name"] != "Renamed"
                    && drive["driveAlias"].as_str().is_some_and(|alias| alias.starts_with("tenantry/"))
            })
            && well("t011", "ocis").await
    })
    .await;
    for n in (0..17).chain([39]) {
        suite.settled(&format!("t{n:03}")).await;
        suite.audit(&format!("t{n:03}")).await;
    }
    let now = files.drives().into_iter().find(|drive| drive["id"] == spaces[6].as_str()).unwrap();
    assert_eq!(
        now["lastModifiedDateTime"], untouched["lastModifiedDateTime"],
        "what is well is left alone"
    );
    assert_eq!(suite.guard(Upstream::Ocis).await, ChangeGuard::Armed);
    eventually("the history says what a sweep saw", async || {
        let events = suite.world.store.events(&"t001".parse().unwrap(), 100).await.unwrap();
        events.iter().any(|event| {
            event.kind.name() == "DriftFound"
                && event.step == Some(Upstream::Authentik)
                && event.message == "a sweep saw: missing or unmarked"
        })
    })
    .await;
    controller.stop().await;
}

#[tokio::test]
async fn what_is_marked_for_a_tenant_that_does_not_exist_is_listed_and_never_removed() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.fleet(3).await;
    let id = suite.world.find("t001").await.get_object_id("_id").unwrap();
    suite.world.tenants.delete_one(doc! { "_id": id }).await.unwrap();
    eventually("all three are listed", async || {
        let orphans = suite.world.store.orphans().await.unwrap();
        orphans.len() == 3 && orphans.iter().all(|orphan| orphan.tenant.to_string() == id.to_hex())
    })
    .await;
    suite.sweeps(&controller, "ok", 2).await;
    let left = (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count());
    assert_eq!(left, (3, 3, 3));
    let metrics = controller.metrics.render();
    assert!(metrics.contains("tenantry_orphans{upstream=\"ocis\"} 1"), "{metrics}");
    // A person cleans up, and the list follows.
    suite.world.authentik.delete_named("tenant-t001");
    eventually("one less", async || suite.world.store.orphans().await.unwrap().len() == 2).await;
    controller.stop().await;
}

#[tokio::test]
async fn an_upstream_that_seems_to_have_lost_too_much_trips_its_guard_and_is_left_alone() {
    let mut suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    let slugs = suite.fleet(60).await;
    let tenants = suite.world.find("t000").await;
    let names: Vec<String> = slugs.iter().map(|slug| format!("{slug}.test")).collect();
    // An Authentik restored from an empty backup, a Stalwart that lost half its domains, and an oCIS that
    // lists nothing while its canary sings.
    for slug in &slugs {
        suite.world.authentik.delete_named(&format!("tenant-{slug}"));
    }
    for name in &names[..30] {
        assert!(suite.stalwart.delete(name));
    }
    suite.files.server.faults.add(tenantry::dev::faults::Fault {
        method: Some("GET".into()),
        path: Some("/graph/v1.0/drives".into()),
        query: Some("driveType".into()),
        answer: tenantry::dev::faults::FaultAnswer::Status {
            status: 200,
            body: r#"{"value":[]}"#.into(),
            retry_after: None,
        },
        ..Default::default()
    });
    for step in Upstream::ALL {
        eventually(&format!("the guard of {step} trips"), async || suite.guard(step).await.is_tripped())
            .await;
    }
    let ChangeGuard::Tripped { message, .. } = suite.guard(Upstream::Stalwart).await else { panic!() };
    assert!(message.contains("30 tenants differ (30 missing or unmarked)"), "{message}");
    eventually("an alert can be made of it", async || {
        controller.metrics.render().contains("tenantry_guard_tripped{upstream=\"ocis\"} 1")
    })
    .await;
    // Even asked for, nothing of it is undone, and the tenants keep what was last true of them.
    suite.world.store.request_reconcile(&"t000".parse().unwrap()).await.unwrap();
    eventually("the request is handled", async || {
        let tenant = suite.world.find("t000").await;
        tenant.get("lastHandledReconcileAt") == tenant.get("reconcileRequestedAt")
            && tenant.get("reconcileRequestedAt").is_some()
    })
    .await;
    // Nor for the sake of an edit: what seems to be gone may be there.
    suite.world.set("t001", doc! { "name": "Edited meanwhile" }).await;
    eventually("the edit is handled", async || {
        let tenant = suite.world.find("t001").await;
        let handled = tenant.get_document("lastHandledDesired").unwrap();
        handled.get_str("name").is_ok_and(|name| name == "Edited meanwhile")
    })
    .await;
    suite.sweeps(&controller, "refused", 1).await;
    assert_eq!(suite.world.authentik.count(), 0);
    assert_eq!(suite.stalwart.count(), 30);
    assert_eq!(suite.files.server.count(), 60);
    let recorded =
        |step: &str| tenants.get_document("steps").unwrap().get_document(step).unwrap().clone();
    for step in STEPS {
        let is = suite.world.step_of("t000", step).await;
        assert_eq!(recorded(step).get("externalId"), is.get("externalId"), "{is}");
        // By its id the file server still shows the space that it does not list.
        let (state, reason) = if step == "ocis" { ("ok", "InSync") } else { ("pending", "ChangeGuard") };
        assert_eq!(is.get_str("state").unwrap(), state, "{is}");
        assert_eq!(is.get_str("reason").unwrap(), reason, "{is}");
    }
    // New tenants go on.
    suite.files.server.faults.clear();
    suite.create("newcomer").await;
    suite.settled("newcomer").await;

    // oCIS was only lying: a sane sweep arms its guard. Authentik's loss is real: a person lifts it.
    eventually("the guard of ocis is armed", async || {
        suite.guard(Upstream::Ocis).await == ChangeGuard::Armed
    })
    .await;
    assert_eq!(suite.files.server.count(), 61, "and nothing was made twice");
    let hour = Duration::from_secs(3600);
    for step in [Upstream::Authentik, Upstream::Stalwart] {
        assert!(suite.world.store.lift_guard(step, hour).await.unwrap());
    }
    assert!(!suite.world.store.lift_guard(Upstream::Ocis, hour).await.unwrap());
    eventually("all is back", async || {
        suite.world.authentik.count() == 61 && suite.stalwart.count() == 61
    })
    .await;
    for slug in ["t000", "t029", "t030", "t059"] {
        suite.settled(slug).await;
        suite.audit(slug).await;
    }
    for step in Upstream::ALL {
        eventually("all guards are armed again", async || suite.guard(step).await == ChangeGuard::Armed)
            .await;
    }
    // The history is written after what it tells.
    let told = async |kind: &str, step: Upstream| {
        let events = suite.world.store.fleet_events(100).await.unwrap();
        events.iter().filter(|event| event.kind.name() == kind && event.step == Some(step)).count()
    };
    for step in Upstream::ALL {
        eventually("the history ends with that", async || told("GuardArmed", step).await == 1).await;
        assert_eq!(told("GuardTripped", step).await, 1, "once, whichever process saw it");
        let lifts = usize::from(step != Upstream::Ocis);
        assert_eq!(told("GuardLifted", step).await, lifts);
    }
    let events = suite.world.store.fleet_events(100).await.unwrap();
    let tripped = events.iter().rfind(|event| event.kind.name() == "GuardTripped").unwrap();
    assert!(tripped.message.contains("tenants differ"), "it says what was seen: {tripped:?}");
    controller.stop().await;
    suite.world.authentik.server.stop().await;
}

impl Suite {
    /// Delays the next list of all spaces, or answers something else.
    fn list_of_spaces(&self, fault: Fault) {
        self.files.server.faults.add(Fault {
            method: Some("GET".into()),
            path: Some("/graph/v1.0/drives".into()),
            query: Some("driveType".into()),
            ..fault
        });
    }

    fn drift_found(&self, controller: &Running) -> Vec<String> {
        let metrics = controller.metrics.render();
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("tenantry_drift_found_total") && !line.ends_with(" 0"));
        lines.map(ToOwned::to_owned).collect()
    }
}

#[tokio::test]
async fn what_changed_while_a_sweep_listed_is_no_drift() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.fleet(5).await;
    suite.sweeps(&controller, "ok", 1).await;
    suite.files.server.faults.forget_requests();
    suite.list_of_spaces(Fault { times: Some(1), delay_ms: 1_500, ..Fault::default() });
    eventually("the spaces are being listed", async || {
        let requests = suite.files.server.faults.requests();
        requests.iter().any(|request| request.contains("driveType"))
    })
    .await;
    // The tenants have been read, and the list is not there yet.
    suite.world.set("t001", doc! { "name": "Renamed" }).await;
    eventually("the space has its new name", async || {
        suite.files.server.drives().iter().any(|drive| drive["name"] == "Renamed")
    })
    .await;
    suite.settled("t001").await;
    let pending = suite.files.server.faults.requests();
    assert_eq!(
        pending.iter().filter(|request| request.contains("driveType")).count(),
        1,
        "it still lists"
    );
    suite.sweeps(&controller, "ok", 1).await;
    assert_eq!(suite.drift_found(&controller), Vec::<String>::new());
    controller.stop().await;
}

#[tokio::test]
async fn what_a_reconcile_has_changed_and_not_recorded_yet_is_no_drift() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.fleet(3).await;
    suite.sweeps(&controller, "ok", 1).await;
    // The reconcile is not over when the space has its new name.
    let slow =
        Fault { method: Some("PATCH".into()), times: Some(1), delay_ms: 1_000, ..Fault::default() };
    suite.world.authentik.faults.add(slow);
    suite.world.set("t001", doc! { "name": "Renamed" }).await;
    eventually("the space has its new name", async || {
        suite.files.server.drives().iter().any(|drive| drive["name"] == "Renamed")
    })
    .await;
    // It is claimed, and the next such command is the commit.
    let (commit, long) = (["findAndModify"], Duration::from_secs(3));
    let fault = ServerFault::delaying(&suite.world, "tenants", &commit, long, Some(1)).await;
    let Some(fault) = fault else { return };
    suite.sweeps(&controller, "ok", 2).await;
    assert_eq!(suite.drift_found(&controller), Vec::<String>::new());
    fault.off().await;
    suite.settled("t001").await;
    controller.stop().await;
}

#[tokio::test]
async fn an_empty_list_of_a_storage_that_is_away_is_no_list() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    suite.fleet(25).await;
    suite.sweeps(&controller, "ok", 1).await;
    let before = suite.world.step_of("t001", "ocis").await;
    suite.files.server.storage_away(true);
    let failed = || controller.metrics.sweeps.of((Upstream::Ocis, SweepEnd::Failed)).get();
    eventually("two sweeps of it fail", async || failed() >= 2).await;
    assert_eq!(
        suite.guard(Upstream::Ocis).await,
        ChangeGuard::Armed,
        "nothing was seen, so nothing is wrong"
    );
    assert_eq!(suite.drift_found(&controller), Vec::<String>::new());
    assert_eq!(suite.world.step_of("t001", "ocis").await, before);
    suite.files.server.storage_away(false);
    suite.sweeps(&controller, "ok", 1).await;
    assert_eq!(suite.files.server.count(), 25);
    controller.stop().await;
}

#[tokio::test]
async fn repairs_one_by_one_add_up_and_trip_the_guard_too() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let slugs = suite.fleet(40).await;
    for slug in &slugs {
        suite.world.authentik.delete_named(&format!("tenant-{slug}"));
    }
    // No sweep sees it; every tenant's own re-check does.
    for slug in &slugs {
        suite.world.store.request_reconcile(&slug.parse().unwrap()).await.unwrap();
    }
    eventually("the guard trips", async || suite.guard(Upstream::Authentik).await.is_tripped()).await;
    for slug in &slugs {
        eventually("every request is handled", async || {
            let tenant = suite.world.find(slug).await;
            tenant.get("lastHandledReconcileAt") == tenant.get("reconcileRequestedAt")
        })
        .await;
    }
    assert_eq!(suite.world.authentik.count(), 20, "as many as are always believed, and no more");
    controller.stop().await;
}

#[tokio::test]
async fn a_stop_holds_within_a_second_survives_a_restart_and_a_start_takes_it_back() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.fleet(2).await;
    suite.world.store.stop(Scope::Upstream(Upstream::Stalwart)).await.unwrap();
    let asked = Instant::now();
    let mut controls = controller.controls.clone();
    controls.wait_for(|controls| controls.is_stopped(Upstream::Stalwart)).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    suite.stalwart.delete("t000.test");
    suite.world.authentik.delete_named("tenant-t000");
    suite.world.store.request_reconcile(&"t000".parse().unwrap()).await.unwrap();
    eventually("what differs is shown", async || {
        let step = suite.world.step_of("t000", "stalwart").await;
        step.get_str("reason").is_ok_and(|reason| reason == "Stopped")
            && step.get_str("message").is_ok_and(|message| message.contains("there is none"))
    })
    .await;
    eventually("the others go on", async || suite.world.authentik.count() == 2).await;
    controller.stop().await;

    let controller = suite.controller(|_| {}).await;
    suite.world.store.request_reconcile(&"t000".parse().unwrap()).await.unwrap();
    eventually("the request is handled", async || {
        let tenant = suite.world.find("t000").await;
        tenant.get("lastHandledReconcileAt") == tenant.get("reconcileRequestedAt")
    })
    .await;
    assert_eq!(suite.stalwart.count(), 1, "a new process is stopped from its first instruction");
    assert!(controller.metrics.render().contains("tenantry_stopped{upstream=\"stalwart\"} 1"));

    suite.world.store.stop(Scope::Everything).await.unwrap();
    controller.controls.clone().wait_for(|controls| controls.stopped).await.unwrap();
    suite.create("late").await;
    holds_for(Duration::from_millis(500), "nothing is made", async || {
        suite.world.authentik.count() == 2
    })
    .await;
    suite.world.store.start(Scope::Everything).await.unwrap();
    suite.world.store.start(Scope::Upstream(Upstream::Stalwart)).await.unwrap();
    for slug in ["t000", "t001", "late"] {
        suite.settled(slug).await;
        suite.audit(slug).await;
    }
    controller.stop().await;
}

#[tokio::test]
async fn one_process_sweeps_at_a_time_and_another_takes_over_when_it_dies() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.fleet(5).await;
    controller.stop().await;
    let first = tenantry::store::Holder::new("first", 1);
    let second = tenantry::store::Holder::new("second", 2);
    let (interval, ttl) = (Duration::from_millis(100), Duration::from_secs(1));
    assert!(suite.world.store.begin_sweep(&first, interval, ttl).await.unwrap().is_some());
    let soon = Duration::ZERO;
    assert!(suite.world.store.begin_sweep(&second, soon, ttl).await.unwrap().is_none(), "it is held");
    let long = Duration::from_secs(3600);
    assert!(suite.world.store.hold_sweep(&first, Duration::ZERO).await.unwrap());
    assert!(
        suite.world.store.begin_sweep(&second, long, ttl).await.unwrap().is_none(),
        "one has begun just now"
    );
    assert!(
        suite.world.store.begin_sweep(&first, soon, ttl).await.unwrap().is_some(),
        "it was given back"
    );
    assert!(suite.world.store.hold_sweep(&first, ttl).await.unwrap());
    assert!(!suite.world.store.hold_sweep(&second, ttl).await.unwrap());
    eventually("the lease expires", async || {
        suite.world.store.begin_sweep(&second, interval, ttl).await.unwrap().is_some()
    })
    .await;

    // Killed in the middle, and what it would have found is found by the next one.
    suite.world.authentik.delete_named("tenant-t001");
    let mut process =
        suite.process(&[("SWEEP_INTERVAL", "1s"), ("FAILPOINTS", &format!("{SWEEPING}=return"))]);
    assert_eq!(process.ended().await.signal(), Some(9), "{}", process.log());
    let controls = suite.world.mongo.collection::<Document>("tenantry_controls");
    let free = doc! { "$set": { "expiresAt": mongodb::bson::DateTime::now() } };
    controls.update_one(doc! { "_id": "sweep" }, free).await.unwrap();
    let process = suite.process(&[("SWEEP_INTERVAL", "1s")]);
    eventually("it is back", async || suite.world.authentik.count() == 5).await;
    suite.settled("t001").await;
    suite.audit("t001").await;
    suite.adds_up(&process).await;
    process.stop().await;
}

#[tokio::test]
async fn a_process_that_cannot_follow_the_stops_has_read_them_before_it_changed_anything() {
    let suite = Suite::new().await;
    suite.world.store.stop(Scope::Everything).await.unwrap();
    suite.create("acme").await;
    let stream = ["aggregate"];
    let fault = ServerFault::on(&suite.world, "tenantry_controls", &stream, 96, None).await;
    let Some(fault) = fault else { return };
    let controller = suite.controller(|_| {}).await;
    eventually("it is looked at", async || {
        let step = suite.world.step_of("acme", "ocis").await;
        step.get_str("reason").is_ok_and(|reason| reason == "Stopped")
    })
    .await;
    let made = (suite.world.authentik.count(), suite.stalwart.count(), suite.files.server.count());
    assert_eq!(made, (0, 0, 0));
    fault.off().await;
    suite.world.store.start(Scope::Everything).await.unwrap();
    suite.settled("acme").await;
    suite.audit("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn an_orphan_that_was_found_during_a_sweep_is_not_forgotten_by_it() {
    let suite = Suite::new().await;
    let store = &suite.world.store;
    let tenant = tenantry::tenant::TenantId::from_bytes([7; 12]);
    let found = [tenantry::store::UnknownResource {
        tenant,
        external_id: "id".to_owned(),
        name: "tenant-acme".to_owned(),
    }];
    let began = jiff::Timestamp::now() - Duration::from_secs(1);
    store.add_orphans(Upstream::Authentik, &found).await.unwrap();
    store.record_orphans(Upstream::Authentik, &[], began).await.unwrap();
    assert_eq!(store.orphans().await.unwrap().len(), 1, "it may have become one since the sweep looked");
    let later = jiff::Timestamp::now() + Duration::from_secs(1);
    store.record_orphans(Upstream::Authentik, &[], later).await.unwrap();
    assert_eq!(store.orphans().await.unwrap(), []);
    let told = store.fleet_events(10).await.unwrap();
    let kinds: Vec<_> = told.iter().map(|event| event.kind.name()).collect();
    assert_eq!(kinds, ["OrphansGone", "OrphansFound"]);
}
