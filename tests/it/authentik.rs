//! The Authentik integration against the simulated server: every trap that the real one was seen to
//! set.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::bson::oid::ObjectId;
use serde_json::{Value, json};
use tenantry::dev::authentik::{Release, Rights, Simulator};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::integration::{Authentik, Converged, Effect, Error, Gate, Mode, Target};
use tenantry::metrics::Metrics;
use tenantry::tenant::{Desired, FailureKind, MayAdopt, PerStep, Reason, Services, TenantId, Upstream};

use crate::support::{self, TOKEN, adopting, converge};

struct Bench {
    server: Simulator,
    authentik: Authentik,
}

impl Bench {
    async fn new() -> Self {
        Self::with(Release::R2025_12, TOKEN).await
    }

    async fn with(release: Release, token: &str) -> Self {
        let server = Simulator::new(0, TOKEN, release).await.unwrap();
        let authentik = connect(&server.url(), token);
        Self { server, authentik }
    }

    async fn converge(&self, target: &Target) -> Result<Converged, Error> {
        converge(&self.authentik, target).await
    }

    fn group(&self, pk: &str) -> Value {
        let groups = self.server.groups();
        groups.into_iter().find(|group| group["pk"] == pk).expect("the group exists")
    }

    async fn patch(&self, pk: &str, body: Value) {
        let answer = support::http()
            .patch(format!("{}/api/v3/core/groups/{pk}/", self.server.url()))
            .bearer_auth(TOKEN)
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}

fn connect(url: &str, token: &str) -> Authentik {
    support::authentik(url, token, Duration::from_secs(2), &Arc::new(Metrics::new()))
}

fn gate() -> Gate {
    let board = tokio::sync::watch::Sender::new(PerStep::default());
    Gate::new(Upstream::Authentik, Arc::new(Metrics::new()), board)
}

pub fn target() -> Target {
    let desired = Desired {
        name: "Acme".parse().unwrap(),
        domain: Some("acme.test".parse().unwrap()),
        storage_bytes: Some(1),
        services: Services::default(),
        paused: false,
        adopt: None,
        deletion: None,
    };
    Target {
        id: TenantId::from_bytes(ObjectId::new().bytes()),
        slug: "acme".parse().unwrap(),
        desired: desired.for_step(Upstream::Authentik),
        observed: None,
        left: None,
        recorded: None,
        settled: false,
        search: false,
        may_exist: false,
        intent: None,
        mode: Mode::Apply,
        fleet: crate::fleet::FLEET,
        known: true,
        may_adopt: MayAdopt::default(),
        adopted: Vec::new(),
        given_quota: None,
    }
}

fn recorded(target: &Target, converged: &Converged) -> Target {
    Target { recorded: Some(converged.external_id.clone()), may_exist: true, ..target.clone() }
}

#[tokio::test]
async fn only_slug_id_name_and_fleet_reach_a_request() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let group = bench.group(&made.external_id);
    assert_eq!(group["name"], "tenant-acme");
    let expected = json!({
        "tenantry_id": target.id.to_string(), "tenantry_slug": "acme", "tenantry_name": "Acme",
        "tenantry_fleet": target.fleet.to_string(),
    });
    assert_eq!(group["attributes"], expected);
    for field in ["users", "parents", "roles"] {
        assert_eq!(group[field], json!([]), "{field}");
    }
    assert_eq!(group["is_superuser"], false);
}

#[tokio::test]
async fn changed_and_removed_attributes_are_restored_and_foreign_ones_stay() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let target = recorded(&target, &made);
    let drifted = json!({ "attributes": { "tenantry_slug": "other", "plan": { "seats": 5.0 } } });
    bench.patch(&made.external_id, drifted).await;
    let repaired = bench.converge(&target).await.unwrap();
    let fields: Vec<_> = repaired.repaired.iter().map(|drift| drift.name.as_ref()).collect();
    assert_eq!(fields, ["tenantry_id", "tenantry_slug", "tenantry_name"]);
    let attributes = &bench.group(&made.external_id)["attributes"];
    assert_eq!(attributes["tenantry_id"], target.id.to_string());
    assert_eq!(attributes["plan"], json!({ "seats": 5.0 }));
    assert_eq!(bench.converge(&target).await.unwrap().repaired, []);
}

#[tokio::test]
async fn a_renamed_group_is_found_by_its_recorded_id_and_named_back() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    bench.patch(&made.external_id, json!({ "name": "Acme people" })).await;
    let again = bench.converge(&recorded(&target, &made)).await.unwrap();
    assert_eq!(again.external_id, made.external_id);
    assert_eq!(bench.group(&made.external_id)["name"], "tenant-acme");
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn a_renamed_group_whose_name_was_taken_is_a_conflict_and_nothing_changes() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    bench.patch(&made.external_id, json!({ "name": "Acme people" })).await;
    let other = ObjectId::new().to_hex();
    bench.server.plant("tenant-acme", json!({ "tenantry_id": other }), &[]);
    let before = bench.server.groups();
    let error = bench.converge(&recorded(&target, &made)).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Conflict, "{error:?}");
    assert_eq!(bench.server.groups(), before);
}

#[tokio::test]
async fn a_deleted_group_comes_back_with_another_id() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    bench.server.delete_named("tenant-acme");
    let again = bench.converge(&recorded(&target, &made)).await.unwrap();
    assert_ne!(again.external_id, made.external_id);
}

#[tokio::test]
async fn a_recorded_group_that_was_given_to_another_tenant_is_not_taken_back() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let other = ObjectId::new().to_hex();
    bench.patch(&made.external_id, json!({ "attributes": { "tenantry_id": other } })).await;
    let error = bench.converge(&recorded(&target, &made)).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Conflict);
    assert_eq!(error.failure.kind, FailureKind::Terminal);
    assert_eq!(bench.group(&made.external_id)["attributes"]["tenantry_id"], other);
}

#[tokio::test]
async fn a_mark_that_no_controller_wrote_is_restored_on_our_group_and_respected_on_others() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    bench.patch(&made.external_id, json!({ "attributes": { "tenantry_id": "mine!" } })).await;
    bench.converge(&recorded(&target, &made)).await.expect("it is ours by its id");
    bench.patch(&made.external_id, json!({ "attributes": { "tenantry_id": 7 } })).await;
    let stranger = Target { recorded: None, ..target };
    assert_eq!(bench.converge(&stranger).await.unwrap_err().failure.reason, Reason::Conflict);
}

#[tokio::test]
async fn a_group_that_makes_superusers_is_not_adopted() {
    let bench = Bench::new().await;
    let answer = json!({
        "pagination": { "next": 0 },
        "results": [{
            "pk": "00000000-0000-4000-8000-000000000000", "name": "tenant-acme", "attributes": {},
            "is_superuser": true, "users": [], "parents": [],
        }],
    });
    let answer = FaultAnswer::Status { status: 200, body: answer.to_string(), retry_after: None };
    bench.server.faults.add(Fault { answer, times: Some(1), ..Fault::default() });
    let error = bench.converge(&adopting(target())).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Conflict);
    assert!(error.failure.message.contains("superuser"), "{}", error.failure.message);
    assert_eq!(bench.server.faults.total(), 1, "nothing was written");
}

#[tokio::test]
async fn a_filter_that_the_server_ignores_does_not_mislead_over_many_pages() {
    for release in [Release::R2025_12, Release::R2025_8] {
        let bench = Bench::with(release, TOKEN).await;
        for n in 0..250 {
            bench.server.plant(&format!("tenant-acme-{n:03}"), json!({}), &[]);
        }
        let wanted = bench.server.plant("tenant-acme", json!({}), &[]);
        // `name` as this server does not know it: everything is listed, 100 a page.
        bench.server.ignore_filters(true);
        let adopted = bench.converge(&adopting(target())).await.unwrap();
        assert_eq!(adopted.external_id, wanted);
        let marked = bench.server.groups();
        let marked = marked.iter().filter(|group| group["attributes"] != json!({})).count();
        assert_eq!(marked, 1, "{release:?}");
    }
}

#[tokio::test]
async fn a_list_that_shrinks_while_it_is_read_is_read_again_later() {
    let bench = Bench::new().await;
    for n in 0..150 {
        bench.server.plant(&format!("other-{n:03}"), json!({}), &[]);
    }
    bench.server.ignore_filters(true);
    let gone = json!({ "detail": "Invalid page." }).to_string();
    let answer = FaultAnswer::Status { status: 404, body: gone, retry_after: None };
    bench.server.faults.add(Fault { times: Some(1), ..Fault::default() });
    bench.server.faults.add(Fault { times: Some(1), answer, ..Fault::default() });
    let error = bench.converge(&target()).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(bench.server.count(), 150, "nothing was created on half a list");
    bench.converge(&target()).await.expect("the next look is whole");
}

#[tokio::test]
async fn a_name_taken_between_look_and_create_is_looked_at_again() {
    let bench = Bench::new().await;
    let target = adopting(target());
    // The look finds nothing, and by the time of the create there is a group.
    let empty = json!({ "pagination": { "next": 0 }, "results": [] }).to_string();
    let answer = FaultAnswer::Status { status: 200, body: empty, retry_after: None };
    bench.server.faults.add(Fault { answer, times: Some(1), ..Fault::default() });
    let planted = bench.server.plant("tenant-acme", json!({ "keep": "me" }), &[]);
    let adopted = bench.converge(&target).await.unwrap();
    assert_eq!(adopted.external_id, planted);
    assert_eq!(bench.group(&planted)["attributes"]["keep"], "me");
}

#[tokio::test]
async fn an_update_answered_405_that_was_applied_counts_and_one_that_was_not_is_repeated_later() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let target = recorded(&target, &made);
    for (apply, settled) in [(true, true), (false, false)] {
        bench.patch(&made.external_id, json!({ "attributes": { "drifted": "x" } })).await;
        bench.server.faults.add(Fault {
            method: Some("PATCH".into()),
            times: Some(1),
            apply,
            answer: FaultAnswer::Empty405,
            ..Fault::default()
        });
        let result = bench.converge(&target).await;
        assert_eq!(result.is_ok(), settled, "{result:?}");
        if let Err(error) = result {
            assert_eq!(error.effect, Effect::Unknown);
            assert!(error.is_transient());
            assert_eq!(error.failure.external_id.as_ref(), Some(&made.external_id));
        }
        bench.converge(&target).await.expect("the next run settles it");
        assert_eq!(bench.group(&made.external_id)["attributes"]["drifted"], "x");
    }
}

#[tokio::test]
async fn a_second_group_of_ours_is_removed_if_it_is_empty_and_reported_otherwise() {
    let bench = Bench::with(Release::R2025_8, TOKEN).await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let target = recorded(&target, &made);
    let mark = json!({ "tenantry_id": target.id.to_string() });
    bench.server.plant("tenant-acme", mark.clone(), &[]);
    bench.converge(&target).await.expect("the empty one is removed");
    assert_eq!(bench.server.count(), 1);
    bench.group(&made.external_id);

    let full = bench.server.plant("tenant-acme", mark, &[3, 4]);
    let error = bench.converge(&target).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Duplicate);
    let message = &error.failure.message;
    assert!(message.contains(&full) && message.contains("2 members"), "{message}");
    assert_eq!(bench.server.count(), 2, "people are not thrown out");
}

#[tokio::test]
async fn two_unmarked_groups_of_one_name_are_not_chosen_from() {
    let bench = Bench::with(Release::R2025_8, TOKEN).await;
    bench.server.plant("tenant-acme", json!({}), &[]);
    bench.server.plant("tenant-acme", json!({}), &[]);
    let before = bench.server.groups();
    assert_eq!(bench.converge(&target()).await.unwrap_err().failure.reason, Reason::Conflict);
    assert_eq!(bench.server.groups(), before);
}

#[tokio::test]
async fn a_rejected_token_is_a_misconfiguration_that_says_what_to_do() {
    let bench = Bench::with(Release::R2025_12, "wrong-token-12345").await;
    let error = bench.converge(&target()).await.unwrap_err();
    assert!(error.is_misconfigured());
    assert_eq!(error.failure.reason, Reason::CredentialsRejected);
    let message = &error.failure.message;
    assert!(message.contains("Token invalid/expired"), "the upstream's own words: {message}");
    assert!(message.contains("AUTHENTIK_API_TOKEN"), "and what to correct: {message}");
    assert!(!message.contains("wrong-token-12345"), "{message}");
}

#[tokio::test]
async fn a_missing_permission_is_told_apart_from_a_rejected_token() {
    let bench = Bench::with(Release::R2025_12, "viewer").await;
    bench.server.add_token("viewer", Rights::Viewer);
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Forbidden);
    assert!(error.failure.message.contains("add_group"), "{}", error.failure.message);
}

#[tokio::test]
async fn an_account_that_may_only_see_its_own_groups_can_create_its_first() {
    let bench = Bench::with(Release::R2025_12, "own").await;
    bench.server.add_token("own", Rights::Own);
    let target = target();
    let made = bench.converge(&target).await.expect("the first list is 403, and means empty");
    bench.converge(&recorded(&target, &made)).await.unwrap();

    // A name that is taken by a group it cannot see.
    bench.server.plant("tenant-globex", json!({}), &[]);
    let hidden = Target { slug: "globex".parse().unwrap(), ..self::target() };
    let error = bench.converge(&hidden).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Conflict);
    assert!(error.failure.message.contains("cannot see"), "{}", error.failure.message);
}

#[tokio::test]
async fn an_account_that_may_create_but_not_read_makes_at_most_one_group() {
    let bench = Bench::with(Release::R2025_12, "adder").await;
    bench.server.add_token("adder", Rights::Adder);
    let target = target();
    let _ = bench.converge(&target).await;
    let _ = bench.converge(&Target { may_exist: true, ..target }).await;
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn a_wrong_address_says_so() {
    let bench = Bench::new().await;
    let authentik = connect(&format!("{}/not/here", bench.server.url()), TOKEN);
    let error = converge(&authentik, &target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::WrongAddress);
    assert!(error.failure.message.contains("AUTHENTIK_API_URL"), "{}", error.failure.message);
}

#[tokio::test]
async fn an_authentik_that_starts_is_waited_for_as_long_as_it_asks() {
    let bench = Bench::new().await;
    let body = json!({ "error": "authentik starting" }).to_string();
    let starts = |seconds| {
        let answer = FaultAnswer::Status { status: 503, body: body.clone(), retry_after: Some(seconds) };
        Fault { answer, times: Some(1), ..Fault::default() }
    };
    bench.server.faults.add(starts(1));
    let asked = Instant::now();
    bench.converge(&target()).await.unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());

    bench.server.faults.add(starts(60));
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!(error.failure.kind, FailureKind::Paced { wait: Duration::from_secs(60) });
    assert!(error.failure.message.contains("authentik starting"), "{}", error.failure.message);
}

#[tokio::test]
async fn a_connection_cut_by_a_recycled_worker_is_tried_once_more_when_reading() {
    let bench = Bench::new().await;
    let cut = Fault { answer: FaultAnswer::Drop, times: Some(1), ..Fault::default() };
    bench.server.faults.add(cut);
    bench.converge(&target()).await.expect("one cut goes unnoticed");
}

#[tokio::test]
async fn an_unreachable_authentik_is_a_transient_failure_that_names_the_address() {
    let mut bench = Bench::new().await;
    bench.server.server.stop().await;
    let error = bench.converge(&target()).await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(error.failure.reason, Reason::Unreachable);
    assert!(error.failure.message.contains(&bench.server.url()), "{}", error.failure.message);
    bench.server.server.restart().await.unwrap();
    bench.converge(&target()).await.expect("it is back");
}

#[tokio::test]
async fn a_poisoned_group_fails_alone_and_is_not_overwritten() {
    let bench = Bench::new().await;
    bench.server.plant("tenant-acme", json!({ "n": 1e20 }), &[]);
    let before = bench.server.groups();
    let error = bench.converge(&target()).await.unwrap_err();
    assert!(error.is_transient());
    assert!(error.failure.message.contains("a page of HTML"), "{}", error.failure.message);
    assert_eq!(bench.server.groups(), before);
    let other = Target { slug: "globex".parse().unwrap(), ..target() };
    bench.converge(&other).await.expect("others are not concerned");
}

#[tokio::test]
async fn a_rejected_token_costs_one_request_however_many_tenants_wait() {
    let bench = Bench::with(Release::R2025_12, "wrong").await;
    let gate = gate();
    let runs = (0..1_000).map(|_| async {
        let target = target();
        gate.pass(converge(&bench.authentik, &target)).await
    });
    let results = futures_util::future::join_all(runs).await;
    assert!(results.iter().all(|result| result.as_ref().is_err_and(Error::is_misconfigured)));
    assert_eq!(bench.server.faults.total(), 1);
    let Err(error) = &results[999] else { unreachable!("just checked") };
    let FailureKind::Misconfigured { retry_after } = error.failure.kind else { unreachable!() };
    assert!(retry_after > Duration::from_secs(60), "{retry_after:?}");
}

#[tokio::test]
async fn an_unreachable_upstream_at_start_is_found_out_by_one_for_all_who_wait() {
    let bench = Bench::new().await;
    bench.server.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    let gate = gate();
    let runs = (0..100).map(|_| async {
        let target = target();
        gate.pass(converge(&bench.authentik, &target)).await
    });
    let started = std::time::Instant::now();
    let results = futures_util::future::join_all(runs).await;
    assert!(results.iter().all(|result| result.as_ref().is_err_and(Error::is_transient)));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(bench.server.faults.total(), 1);
    bench.server.faults.clear();
    gate.pass(converge(&bench.authentik, &target())).await.expect("it is back");
}

#[tokio::test]
async fn a_probe_that_is_cancelled_passes_its_turn_on() {
    let bench = Bench::new().await;
    let gate = gate();
    let hanging = gate.pass(std::future::pending::<Result<(), Error>>());
    assert!(tokio::time::timeout(Duration::from_millis(20), hanging).await.is_err());
    gate.pass(converge(&bench.authentik, &target())).await.expect("the turn is free");
}

#[tokio::test]
async fn https_to_a_port_that_speaks_http_is_a_wrong_address_that_says_so() {
    let bench = Bench::new().await;
    let authentik = connect(&bench.server.url().replace("http://", "https://"), TOKEN);
    let error = converge(&authentik, &target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::WrongAddress, "{error:?}");
    assert!(error.failure.message.contains("not with TLS"), "{}", error.failure.message);
}

/// Invariant 3: one tenant's failure must not make others believe that its group is theirs.
#[tokio::test]
async fn a_failure_that_others_share_does_not_tell_them_of_this_tenants_group() {
    let bench = Bench::new().await;
    let acme = target();
    let made = bench.converge(&acme).await.unwrap();
    let acme = recorded(&acme, &made);
    bench.patch(&made.external_id, json!({ "attributes": {} })).await;
    let rejected = json!({ "detail": "Token invalid/expired" }).to_string();
    let answers = [
        FaultAnswer::Status { status: 403, body: rejected, retry_after: None },
        FaultAnswer::Empty405,
        FaultAnswer::Hang,
    ];
    for answer in answers {
        let method = Some("PATCH".to_owned());
        bench.server.faults.add(Fault { method, answer, times: Some(1), ..Fault::default() });
        let gate = gate();
        let globex = Target { slug: "globex".parse().unwrap(), ..target() };
        let first = async { gate.pass(converge(&bench.authentik, &acme)).await };
        let second = async {
            tokio::task::yield_now().await;
            gate.pass(converge(&bench.authentik, &globex)).await
        };
        let (first, second) = tokio::join!(first, second);
        let first = first.unwrap_err();
        assert_eq!(first.failure.external_id.as_ref(), Some(&made.external_id), "{first:?}");
        if let Err(second) = second {
            assert_eq!(second.failure.external_id, None, "{second:?}");
        }
    }
}

#[tokio::test]
async fn a_failure_that_may_be_one_tenants_own_is_not_shared() {
    let bench = Bench::new().await;
    bench.server.plant("tenant-acme", json!({ "n": 1e20 }), &[]);
    let gate = gate();
    let (acme, globex) = (target(), Target { slug: "globex".parse().unwrap(), ..target() });
    let (poisoned, healthy) = tokio::join!(
        gate.pass(converge(&bench.authentik, &acme)),
        gate.pass(converge(&bench.authentik, &globex)),
    );
    assert!(poisoned.is_err());
    healthy.expect("nothing is wrong with this one");
}

#[tokio::test]
async fn a_group_with_our_mark_comes_before_a_recorded_one_that_is_anothers_and_neither_is_removed() {
    let bench = Bench::with(Release::R2025_8, TOKEN).await;
    let target = target();
    let other = json!({ "tenantry_id": ObjectId::new().to_hex() });
    let recorded = bench.server.plant("tenant-acme", other.clone(), &[]);
    let ours = bench.server.plant("tenant-acme", json!({ "tenantry_id": target.id.to_string() }), &[]);
    let target = Target { recorded: Some(recorded.clone()), ..target };
    let converged = bench.converge(&target).await.unwrap();
    assert_eq!(converged.external_id, ours);
    assert_eq!(bench.group(&recorded)["attributes"], other);
}

#[tokio::test]
async fn a_refusal_that_is_not_authentiks_own_concerns_one_tenant_only() {
    let bench = Bench::new().await;
    let answer =
        FaultAnswer::Status { status: 403, body: "<html>blocked</html>".into(), retry_after: None };
    let method = Some("POST".to_owned());
    bench.server.faults.add(Fault { method, answer, times: Some(1), ..Fault::default() });
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!(error.failure.kind, FailureKind::Terminal, "{error:?}");
    assert!(error.failure.message.contains("proxy"), "{}", error.failure.message);
}

#[tokio::test]
async fn a_name_that_is_taken_where_we_cannot_see_it_costs_two_tries_and_no_more() {
    let bench = Bench::with(Release::R2025_12, "own").await;
    bench.server.add_token("own", Rights::Own);
    bench.server.plant("tenant-acme", json!({}), &[]);
    bench.converge(&target()).await.unwrap_err();
    let requests = bench.server.faults.requests();
    let writes = requests.iter().filter(|request| request.starts_with("POST")).count();
    assert_eq!(writes, 2, "{requests:?}");
}
