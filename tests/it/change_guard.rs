//! Change guards: what is drift and what is not, who is concerned, and what lifting does.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc, oid::ObjectId};
use serde_json::json;
use tenantry::controller::Settings;
use tenantry::dev::faults::Fault;
use tenantry::dev::ocis::Flavour;
use tenantry::integration::{GroupTemplate, Membership, SpaceRole};
use tenantry::metrics::Metrics;
use tenantry::store::UnknownResource;
use tenantry::tenant::{ChangeGuard, EventKind, PerStep, Reason, TenantId, Upstream};

use crate::support::{Running, World, date, eventually, settings};
use crate::sweep::sweeping;
use crate::three::Suite;

impl Suite {
    /// A controller whose tenants' groups get this role in their spaces.
    async fn with_role(&self, role: Option<SpaceRole>, change: impl FnOnce(&mut Settings)) -> Running {
        let mut settings = settings();
        change(&mut settings);
        let metrics = Arc::new(Metrics::new());
        let groups = GroupTemplate::parse("tenant-{slug}").unwrap();
        let membership = role.map(|role| Membership { role, groups });
        let ocis = self.files.connect_with(self.files.credentials(), membership, &metrics);
        let integrations = self.integrations_with(&metrics, &[], ocis);
        Running::start(self.world.store.clone(), integrations, metrics, settings).await
    }

    async fn all_requests_are_handled(&self, slugs: &[String]) {
        for slug in slugs {
            self.world.store.request_reconcile(&slug.parse().unwrap()).await.unwrap();
        }
        for slug in slugs {
            eventually("the request is handled", async || {
                let tenant = self.world.find(slug).await;
                tenant.get("lastHandledReconcileAt") == tenant.get("reconcileRequestedAt")
                    && tenant.get("reconcileRequestedAt").is_some()
            })
            .await;
        }
    }

    async fn drifted(&self, step: Upstream) -> u64 {
        self.world.store.count_drift(step).await.unwrap()
    }
}

fn found_drift(controller: &Running) -> Vec<String> {
    let metrics = controller.metrics.render();
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("tenantry_drift_found_total") && !line.ends_with(" 0"));
    lines.map(ToOwned::to_owned).collect()
}

fn repairs(controller: &Running, step: Upstream) -> u64 {
    controller.metrics.acts.of((step, tenantry::tenant::ActKind::Repaired)).get()
}

#[tokio::test]
async fn what_a_list_that_shifts_does_not_show_is_looked_for_again_and_is_no_drift() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    for n in 0..40 {
        suite.world.authentik.plant(&format!("a-stranger-{n:02}"), json!({}), &[]);
    }
    // Two pages of a hundred even without the strangers.
    suite.fleet(150).await;
    suite.sweeps(&controller, "ok", 1).await;
    // Between the first page and the second so many groups before both go that the second page skips 40.
    let faults = &suite.world.authentik.faults;
    let second = |delay_ms| Fault {
        method: Some("GET".into()),
        query: Some("page=2".into()),
        times: Some(1),
        delay_ms,
        ..Fault::default()
    };
    faults.add(second(1_000));
    faults.forget_requests();
    eventually("the second page is awaited", async || {
        faults.rules().iter().any(|rule| rule.times == Some(0))
    })
    .await;
    for n in 0..40 {
        suite.world.authentik.delete_named(&format!("a-stranger-{n:02}"));
    }
    suite.sweeps(&controller, "ok", 2).await;
    assert_eq!(found_drift(&controller), Vec::<String>::new());
    let of_fleet = suite.world.store.fleet_events(50).await.unwrap();
    assert!(!of_fleet.iter().any(|event| event.kind == EventKind::GuardTripped), "{of_fleet:?}");
    controller.stop().await;
}

#[tokio::test]
async fn the_guard_counts_tenants_and_not_attempts() {
    let world = World::new().await;
    let (window, slug) = (Duration::from_secs(60), "acme".parse().unwrap());
    let one = TenantId::from_bytes([1; 12]);
    let count = async |tenant, step| {
        world.store.count_repair(step, (tenant, &slug), "there is none", window).await.unwrap()
    };
    for _ in 0..30 {
        assert_eq!(count(one, Upstream::Authentik).await, 1);
    }
    assert_eq!(count(TenantId::from_bytes([2; 12]), Upstream::Authentik).await, 2);
    assert_eq!(count(one, Upstream::Ocis).await, 1);
    // What a sweep saw is no repair.
    let seen = [(TenantId::from_bytes([3; 12]), "other".to_owned(), "missing".to_owned())];
    world.store.record_drift(Upstream::Ocis, &seen).await.unwrap();
    assert_eq!(count(one, Upstream::Ocis).await, 1);
    let over = Duration::from_millis(1);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let whose = (TenantId::from_bytes([4; 12]), &slug);
    let late = world.store.count_repair(Upstream::Authentik, whose, "", over).await.unwrap();
    assert!(late <= 1, "the others are too long ago");
}

#[tokio::test]
async fn how_large_an_upstream_is_survives_a_restart() {
    let suite = Suite::new().await;
    let half = |settings: &mut Settings| settings.guard.percent = 50;
    let controller = suite
        .controller(|settings| {
            sweeping(settings);
            half(settings);
        })
        .await;
    let slugs = suite.fleet(60).await;
    suite.sweeps(&controller, "ok", 2).await;
    controller.stop().await;
    let sizes = suite.world.store.controls().await.unwrap().sizes;
    assert_eq!(sizes, PerStep::from_fn(|_| 60));

    // No sweep of this process ever counts.
    let controller = suite.controller(half).await;
    for slug in &slugs[..25] {
        suite.world.authentik.delete_named(&format!("tenant-{slug}"));
    }
    suite.all_requests_are_handled(&slugs[..25]).await;
    assert_eq!(suite.world.authentik.count(), 60, "25 of 60 are fewer than half");
    assert_eq!(suite.guard(Upstream::Authentik).await, ChangeGuard::Armed);
    controller.stop().await;
}

#[tokio::test]
async fn a_group_that_the_file_server_does_not_know_is_no_repair() {
    let suite = Suite::with(Flavour::OpenCloud).await;
    let controller = suite.with_role(Some(SpaceRole::Editor), |_| {}).await;
    let slugs = suite.fleet(22).await;
    suite.all_requests_are_handled(&slugs).await;
    assert_eq!(suite.guard(Upstream::Ocis).await, ChangeGuard::Armed);
    assert_eq!(suite.drifted(Upstream::Ocis).await, 0);
    assert_eq!(repairs(&controller, Upstream::Ocis), 0);
    controller.stop().await;
}

#[tokio::test]
async fn a_group_that_the_file_server_learns_later_gets_its_role_soon_after() {
    for flavour in [Flavour::OpenCloud, Flavour::Ocis31] {
        let suite = Suite::with(flavour).await;
        let rare = |settings: &mut Settings| settings.policy.resync = Duration::from_secs(30 * 86_400);
        let controller = suite.with_role(Some(SpaceRole::Editor), rare).await;
        suite.fleet(1).await;
        let step = async || suite.world.step_of("t000", "ocis").await;
        let first = step().await;
        assert_eq!(first.get_str("state").unwrap(), "ok");
        let next = date(&first, "nextAttemptAt").timestamp_millis();
        let wait = next - date(&first, "lastAttemptAt").timestamp_millis();
        assert!((55_000..=65_000).contains(&wait), "{wait} ms");

        // The server learns nothing for a day.
        let (day, now) = (86_400_000, mongodb::bson::DateTime::now());
        let ago = mongodb::bson::DateTime::from_millis(now.timestamp_millis() - day);
        let looked = doc! { "steps.ocis.awaitsSince": ago, "steps.ocis.nextAttemptAt": now, "nextReconcileAt": now };
        suite.world.set("t000", looked).await;
        eventually("it is looked for again", async || {
            date(&step().await, "lastAttemptAt") > date(&first, "lastAttemptAt")
        })
        .await;
        let second = step().await;
        assert_eq!(date(&second, "awaitsSince"), ago, "since when it waits stays");
        let next = date(&second, "nextAttemptAt").timestamp_millis();
        let wait = next - date(&second, "lastAttemptAt").timestamp_millis();
        assert!((day / 5..=day / 3).contains(&wait), "{wait} ms");

        suite.files.server.add_group("tenant-t000");
        let due = doc! { "steps.ocis.nextAttemptAt": now, "nextReconcileAt": now };
        suite.world.set("t000", due).await;
        eventually("the group has its role", async || {
            suite.files.server.drives()[0]["root"].to_string().contains("editor")
        })
        .await;
        eventually("nothing is waited for", async || {
            let step = step().await;
            !step.contains_key("awaitsSince") && !step.contains_key("message")
        })
        .await;
        assert_eq!(suite.guard(Upstream::Ocis).await, ChangeGuard::Armed);
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_role_that_was_just_given_is_no_drift_and_neither_is_a_setting_that_changed() {
    let suite = Suite::with(Flavour::OpenCloud).await;
    for n in 0..25 {
        suite.files.server.add_group(&format!("tenant-t{n:03}"));
    }
    let controller = suite.with_role(Some(SpaceRole::Viewer), sweeping).await;
    suite.fleet(25).await;
    suite.sweeps(&controller, "ok", 2).await;
    assert_eq!(
        found_drift(&controller),
        Vec::<String>::new(),
        "the role was there when it was recorded"
    );
    controller.stop().await;

    for role in [Some(SpaceRole::Editor), None, Some(SpaceRole::Manager)] {
        let controller = suite.with_role(role, sweeping).await;
        suite.sweeps(&controller, "ok", 2).await;
        let has_it = |role: SpaceRole| {
            let drives = suite.files.server.drives();
            drives.iter().filter(|drive| drive["root"].to_string().contains(role.name())).count()
        };
        if let Some(role) = role {
            eventually("all groups have the new role", async || has_it(role) == 25).await;
        }
        assert_eq!(found_drift(&controller), Vec::<String>::new(), "{role:?}");
        assert_eq!(suite.guard(Upstream::Ocis).await, ChangeGuard::Armed, "{role:?}");
        assert_eq!(suite.drifted(Upstream::Ocis).await, 0, "{role:?}");
        assert_eq!(repairs(&controller, Upstream::Ocis), 0, "{role:?}");
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_former_domain_that_must_stay_is_no_drift() {
    let suite = Suite::new().await;
    let controller = suite.controller(sweeping).await;
    let slugs = suite.fleet(22).await;
    for slug in &slugs {
        suite.stalwart.plant_account(&format!("{slug}.test"), "someone");
        suite.world.set(slug, doc! { "domain": format!("{slug}-new.test") }).await;
    }
    for slug in &slugs {
        eventually("the former domain is kept", async || {
            let step = suite.world.step_of(slug, "stalwart").await;
            step.get_str("message").is_ok_and(|message| message.contains("kept"))
        })
        .await;
    }
    suite.sweeps(&controller, "ok", 3).await;
    suite.all_requests_are_handled(&slugs).await;
    assert_eq!(found_drift(&controller), Vec::<String>::new());
    assert_eq!(suite.guard(Upstream::Stalwart).await, ChangeGuard::Armed);
    assert_eq!(suite.drifted(Upstream::Stalwart).await, 0);
    assert_eq!(repairs(&controller, Upstream::Stalwart), 0);
    assert_eq!(suite.stalwart.count(), 44, "nothing with accounts in it is removed");
    // They go once they are empty, and that is no drift either, however many.
    for slug in &slugs {
        suite.stalwart.remove_account(&format!("{slug}.test"), "someone");
    }
    suite.all_requests_are_handled(&slugs).await;
    assert_eq!(suite.stalwart.count(), 22);
    assert_eq!(suite.guard(Upstream::Stalwart).await, ChangeGuard::Armed);
    controller.stop().await;
}

#[tokio::test]
async fn a_tripped_guard_tells_who_is_concerned_and_lifting_repairs_them_without_waiting_for_a_sweep() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let slugs = suite.fleet(30).await;
    for slug in &slugs {
        suite.world.authentik.delete_named(&format!("tenant-{slug}"));
    }
    suite.all_requests_are_handled(&slugs).await;
    assert!(suite.guard(Upstream::Authentik).await.is_tripped());
    let held = |step: &Document| step.get_str("reason").is_ok_and(|reason| reason == "ChangeGuard");
    let mut concerned = Vec::new();
    for slug in &slugs {
        let step = suite.world.step_of(slug, "authentik").await;
        if held(&step) {
            assert_eq!(step.get_str("state").unwrap(), "pending", "{step}");
            assert!(step.get_str("message").unwrap().contains("there is none"), "{step}");
            assert!(step.contains_key("externalId"), "what is recorded stays: {step}");
            let tenant = suite.world.find(slug).await;
            let ready = tenant.get_array("conditions").unwrap()[0].as_document().unwrap();
            assert_eq!(ready.get_str("status").unwrap(), "False", "{ready}");
            assert_eq!(ready.get_str("reason").unwrap(), "ChangeGuard", "{ready}");
            concerned.push(slug.clone());
        }
    }
    assert!(concerned.len() >= 10, "{concerned:?}");
    let first = suite.world.store.drift(Upstream::Authentik, None, 20).await.unwrap();
    let rest = suite.world.store.drift(Upstream::Authentik, Some(first[19].tenant), 20).await.unwrap();
    assert_eq!(first.len() + rest.len(), 30);
    let listed: Vec<_> = first.iter().chain(&rest).collect();
    for slug in &concerned {
        let one = listed.iter().find(|drifted| drifted.slug == *slug).expect("it is listed");
        assert_eq!(one.seen, "there is none");
    }
    let is_told = async |slug: &str, message: &str, reason: Reason| {
        eventually(&format!("{slug}'s history says {message:?}"), async || {
            let events = suite.world.store.events(&slug.parse().unwrap(), 100).await.unwrap();
            events.iter().any(|event| {
                event.kind == EventKind::StepChanged
                    && event.step == Some(Upstream::Authentik)
                    && event.reason == Some(reason)
                    && event.message.contains(message)
            })
        })
        .await;
    };
    for slug in &concerned {
        is_told(slug, "ok -> pending: ", Reason::ChangeGuard).await;
    }
    // The next sweep is an hour away.
    let hour = Duration::from_secs(3600);
    assert!(suite.world.store.lift_guard(Upstream::Authentik, hour).await.unwrap());
    eventually("all is back", async || suite.world.authentik.count() == 30).await;
    for slug in &slugs {
        suite.settled(slug).await;
    }
    for slug in &concerned {
        is_told(slug, "pending -> ok", Reason::InSync).await;
    }
    for kind in [EventKind::GuardTripped, EventKind::GuardLifted] {
        let of_fleet = suite.world.store.fleet_events(50).await.unwrap();
        assert_eq!(of_fleet.iter().filter(|event| event.kind == kind).count(), 1, "{kind:?}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn lifting_makes_a_hundred_thousand_tenants_due_one_batch_after_the_other() {
    const TENANTS: u32 = 100_000;
    let world = World::new().await;
    let far = mongodb::bson::DateTime::from_millis(4_000_000_000_000);
    let ids: Vec<ObjectId> = (0..TENANTS).map(|_| ObjectId::new()).collect();
    for (batch, ids) in ids.chunks(10_000).enumerate() {
        let documents = ids.iter().enumerate().map(|(n, id)| {
            let slug = format!("t{batch}-{n}");
            doc! { "_id": id, "slug": &slug, "name": slug, "nextReconcileAt": far }
        });
        world.tenants.insert_many(documents).await.unwrap();
    }
    let found: Vec<_> = ids
        .iter()
        .map(|id| (TenantId::from_bytes(id.bytes()), id.to_hex(), "missing or unmarked".to_owned()))
        .collect();
    world.store.record_drift(Upstream::Ocis, &found).await.unwrap();
    assert_eq!(world.store.count_drift(Upstream::Ocis).await.unwrap(), u64::from(TENANTS));
    let (pace, within) = (Duration::from_secs(5), Duration::from_secs(1_800));
    let due = world.store.repair_drift(Upstream::Ocis, pace, within).await.unwrap();
    assert_eq!(due, u64::from(TENANTS));
    assert_eq!(world.store.count_drift(Upstream::Ocis).await.unwrap(), 0);
    let mut first = None;
    for (batch, id) in ids.iter().enumerate().step_by(1_000) {
        let tenant = world.tenants.find_one(doc! { "_id": id }).await.unwrap().unwrap();
        let at = tenant.get_datetime("nextReconcileAt").unwrap().timestamp_millis();
        let first = *first.get_or_insert(at);
        let expected = i64::try_from(batch / 1_000).unwrap() * 5_000;
        assert!((expected..expected + 60_000).contains(&(at - first)), "{batch}: {}", at - first);
    }
}

#[tokio::test]
async fn orphans_cost_a_sweep_no_request_and_a_few_commands_however_many_they_are() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.fleet(3).await;
    controller.stop().await;
    for n in 0..250 {
        let attributes = json!({ "tenantry_id": format!("65a00000000000000000{n:04x}") });
        suite.world.authentik.plant(&format!("orphan-{n:03}"), attributes, &[]);
    }
    suite.forget_requests();
    suite.world.commands.take();
    let controller = suite.controller(|settings| settings.sweep_interval = Duration::from_secs(1)).await;
    suite.sweeps(&controller, "ok", 1).await;
    controller.stop().await;
    // The check at start, and three pages.
    assert_eq!(suite.requests()[0], 1 + 3, "{:?}", suite.world.authentik.faults.requests());
    let commands = suite.world.commands.without_stream();
    assert!(commands.len() < 60, "{commands:?}");
    let orphans = suite.world.store.orphans().await.unwrap();
    assert_eq!(orphans.len(), 250);
    assert!(orphans.iter().all(|orphan| orphan.first_seen_at <= orphan.last_seen_at));
}

#[tokio::test]
async fn an_orphan_keeps_the_time_when_it_was_first_seen() {
    let world = World::new().await;
    let found = |n: u8| UnknownResource {
        tenant: TenantId::from_bytes([n; 12]),
        external_id: format!("id-{n}"),
        name: format!("name-{n}"),
    };
    world.store.add_orphans(Upstream::Ocis, &[found(1)]).await.unwrap();
    let before = world.store.orphans().await.unwrap().remove(0);
    world.store.add_orphans(Upstream::Ocis, &[found(1), found(2)]).await.unwrap();
    let orphans = world.store.orphans().await.unwrap();
    assert_eq!(orphans.len(), 2);
    assert_eq!(orphans[0].first_seen_at, before.first_seen_at);
    assert!(orphans[0].last_seen_at >= before.last_seen_at);
    let told = world.store.fleet_events(10).await.unwrap();
    let messages: Vec<_> = told.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(messages, ["1 more: name-2", "1 more: name-1"]);
}

/// The server decides what has been long enough, not the clock of a process that may be an hour ahead.
#[test]
fn the_process_clock_is_compared_with_nothing_that_the_database_says() {
    let mut found = Vec::new();
    for room in ["src/store", "src/controller"] {
        let mut rooms = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(room)];
        while let Some(room) = rooms.pop() {
            for entry in std::fs::read_dir(room).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    rooms.push(path);
                } else if std::fs::read_to_string(&path).unwrap().contains("Timestamp::now") {
                    found.push(path.file_name().unwrap().to_string_lossy().into_owned());
                }
            }
        }
    }
    found.sort();
    // The clock that learns the server's, and a metric of the stream's lag.
    assert_eq!(found, ["clock.rs", "feed.rs"]);
}
