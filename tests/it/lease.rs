//! Claims and fenced commits, and what documents may look like.

use std::time::Duration;

use mongodb::bson::{Bson, DateTime, doc, oid::ObjectId};
use tenantry::store::{Claim, ClaimAnswer, Commit, CommitCandidates, Holder, Store};
use tenantry::tenant::{
    Basis, Found, Jitter, Outcome, Policy, Reason, StepRun, TenantId, Transition, Upstream, due_steps,
    steps_to_observe, transition,
};

use crate::support::{World, date, eventually, settings};

const TTL: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(3600);

fn holder(name: &str) -> Holder {
    Holder::new(name, 1)
}

fn id(id: ObjectId) -> TenantId {
    TenantId::from_bytes(id.bytes())
}

async fn claim(store: &Store, tenant: ObjectId, by: &str, ttl: Duration) -> Option<Claim> {
    match store.claim(id(tenant), &holder(by), ttl, RETRY).await.expect("mongod answers") {
        ClaimAnswer::Claimed(claim) => Some(*claim),
        ClaimAnswer::NotDue => None,
        ClaimAnswer::Invalid(invalid) => panic!("{invalid}"),
    }
}

/// What a reconcile that found everything well would write.
fn all_well(claim: &Claim) -> CommitCandidates {
    plans(claim, |_| Outcome::ok("x"))
}

fn plans(claim: &Claim, outcome: impl Fn(Upstream) -> Outcome) -> CommitCandidates {
    let policy: Policy = settings().policy;
    let mut due = due_steps(&claim.tenant, claim.now(), &policy);
    due.extend(steps_to_observe(&claim.tenant, &due));
    let run = |step: &Upstream| StepRun {
        step: *step,
        outcome: outcome(*step),
        at: claim.now(),
        jitter: Jitter::NONE,
    };
    let runs: Vec<_> = due.iter().map(run).collect();
    let plan = |basis| -> Transition {
        transition(&claim.tenant, &due, &runs, basis, claim.now(), &policy, Jitter::NONE)
    };
    CommitCandidates {
        current: plan(Basis::Current),
        superseded: plan(Basis::Superseded),
        ran: runs.iter().filter(|run| !run.is_look()).map(|run| run.step).collect(),
        looked: runs.iter().filter(|run| run.is_look()).map(|run| run.step).collect(),
    }
}

#[tokio::test]
async fn a_tenant_is_claimed_by_one_at_a_time_and_not_again_before_it_is_due() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let first = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    assert!(!first.may_have_made(Upstream::Authentik), "it is new, and was not claimed");
    assert!(first.may_have_made(Upstream::Ocis), "only a document that says so is certainly unclaimed");
    assert!(claim(&world.store, acme, "b", TTL).await.is_none(), "it is held");
    let done = world.store.commit(&first, &all_well(&first)).await.unwrap();
    assert!(matches!(done, Commit::Done { interrupted: false, next: Some(_), .. }), "{done:?}");
    assert!(claim(&world.store, acme, "b", TTL).await.is_none(), "it is not due");
    world.set("acme", doc! { "name": "Acme, renamed" }).await;
    let second = claim(&world.store, acme, "b", TTL).await.expect("its desired state changed");
    assert!(second.may_have_made(Upstream::Authentik));
    assert!(!second.may_have_made(Upstream::Ocis), "an earlier claim would have left its intent");
}

#[tokio::test]
async fn two_claims_at_once_give_one_lease() {
    let world = World::new().await;
    let others = [world.other_store().await, world.other_store().await];
    for round in 0..20 {
        let acme = world.insert(&format!("acme-{round}")).await;
        let (a, b) = tokio::join!(claim(&others[0], acme, "a", TTL), claim(&others[1], acme, "b", TTL));
        assert!(a.is_some() != b.is_some(), "round {round}");
    }
}

/// Invariant 4.
#[tokio::test]
async fn the_fenced_out_stay_out() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let stale = claim(&world.store, acme, "a", SHORT).await.expect("it is due");
    let mut taken = None;
    eventually("the lease expires", async || {
        taken = claim(&world.store, acme, "b", TTL).await;
        taken.is_some()
    })
    .await;
    let current = taken.expect("just checked");
    let before = world.find("acme").await;
    let lies = plans(&stale, |_| Outcome::ok("stale"));
    assert_eq!(world.store.commit(&stale, &lies).await.unwrap(), Commit::Fenced);
    assert_eq!(world.store.renew(&stale, TTL, Some(&lies)).await.unwrap(), Commit::Fenced);
    assert_eq!(world.store.release(&stale).await.unwrap(), Commit::Fenced);
    assert_eq!(world.find("acme").await, before, "nothing was written");
    let done = world.store.commit(&current, &all_well(&current)).await.unwrap();
    assert!(matches!(done, Commit::Done { .. }));
    assert_eq!(world.store.commit(&stale, &lies).await.unwrap(), Commit::Fenced);
}

#[tokio::test]
async fn a_lease_that_is_renewed_does_not_expire_and_one_that_expired_unclaimed_still_commits() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let held = claim(&world.store, acme, "a", SHORT).await.expect("it is due");
    let renewed = world.store.renew(&held, TTL, None).await.unwrap();
    assert!(matches!(renewed, Commit::Done { .. }));
    crate::support::holds_for(SHORT * 4, "it is held", async || {
        claim(&world.store, acme, "b", TTL).await.is_none()
    })
    .await;
    world.store.renew(&held, Duration::ZERO, None).await.unwrap();
    let done = world.store.commit(&held, &all_well(&held)).await.unwrap();
    assert!(matches!(done, Commit::Done { interrupted: false, .. }), "no process took it: {done:?}");
}

#[tokio::test]
async fn a_released_tenant_is_due_at_once_with_its_epoch_kept() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let first = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    world.store.release(&first).await.unwrap();
    let second = claim(&world.store, acme, "b", TTL).await.expect("it is free and due");
    for step in Upstream::ALL {
        assert!(second.may_have_made(step), "epochs never go back, and an intent stays");
    }
    assert_eq!(world.store.commit(&first, &all_well(&first)).await.unwrap(), Commit::Fenced);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_can_be_taken_again_by_the_same_holder() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    claim(&world.store, acme, "a", TTL).await.expect("it is due");
    let again = claim(&world.store, acme, "a", TTL).await;
    assert!(again.is_some(), "the lease is ours, even if we do not know of it");
}

/// Invariant 6, and 1: what changes while a reconcile runs is neither claimed to be done nor lost.
#[tokio::test]
async fn a_change_of_desired_state_in_flight_survives_the_commit() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let held = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    world.set("acme", doc! { "name": "Changed meanwhile" }).await;
    let done = world.store.commit(&held, &all_well(&held)).await.unwrap();
    assert!(matches!(done, Commit::Done { interrupted: true, .. }), "{done:?}");
    let tenant = world.find("acme").await;
    assert_eq!(tenant.get_str("status").unwrap(), "pending", "not active for the new name");
    let states = tenant.get_document("provisioningStatus").unwrap();
    assert!(states.values().all(|state| *state == Bson::from("pending")), "{states}");
    assert!(date(&tenant, "nextReconcileAt") <= DateTime::now());
    let next = claim(&world.store, acme, "b", TTL).await.expect("it is due");
    assert_eq!(next.tenant.desired.name.as_str(), "Changed meanwhile");
    let done = world.store.commit(&next, &all_well(&next)).await.unwrap();
    assert!(matches!(done, Commit::Done { interrupted: false, .. }));
    assert!(world.is_active("acme").await);
}

#[tokio::test]
async fn a_request_in_flight_survives_the_commit_and_the_outcome_counts() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let held = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    let token = world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap().unwrap();
    let done = world.store.commit(&held, &all_well(&held)).await.unwrap();
    assert!(matches!(done, Commit::Done { interrupted: true, .. }));
    assert!(world.is_active("acme").await, "the desired state is the one that was reconciled");
    let next = claim(&world.store, acme, "b", TTL).await.expect("the request is open");
    assert_eq!(next.tenant.open_request(), Some(token.at));
    world.store.commit(&next, &all_well(&next)).await.unwrap();
    let tenant = world.find("acme").await;
    assert_eq!(date(&tenant, "lastHandledReconcileAt"), date(&tenant, "reconcileRequestedAt"));
    assert!(claim(&world.store, acme, "b", TTL).await.is_none(), "it has been handled");
}

#[tokio::test]
async fn no_two_requests_share_a_token() {
    let world = World::new().await;
    world.insert("acme").await;
    let slug = "acme".parse().unwrap();
    let mut tokens = Vec::new();
    for _ in 0..20 {
        tokens.push(world.store.request_reconcile(&slug).await.unwrap().unwrap().at);
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[tokio::test]
async fn words_of_an_upstream_are_stored_as_they_are_even_if_they_look_like_a_field() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let held = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    let words = "$name $$ROOT {$literal: 1}";
    let failed = plans(&held, |_| {
        Outcome::Failed(tenantry::tenant::Failure {
            kind: tenantry::tenant::FailureKind::Terminal,
            reason: Reason::Rejected,
            message: words.into(),
            external_id: Some("$slug".into()),
            unresolved: false,
            parked: false,
            asked: true,
        })
    });
    world.store.commit(&held, &failed).await.unwrap();
    let step = world.step("acme").await;
    assert_eq!(step.get_str("message").unwrap(), words);
    assert_eq!(step.get_str("externalId").unwrap(), "$slug");
    let errors = world.find("acme").await.get_document("provisioningErrors").unwrap().clone();
    assert_eq!(errors.get_str("authentik").unwrap(), words);
}

#[tokio::test]
async fn the_legacy_fields_agree_with_the_detailed_ones_and_foreign_ones_stay() {
    let world = World::new().await;
    let legacy = doc! {
        "_id": ObjectId::new(), "slug": "acme", "name": "Acme", "status": "active", "__v": 3,
        "provisioningStatus": { "authentik": "ok", "stalwart": "pending", "ocis": "error", "billing": "ok" },
        "provisioningErrors": { "ocis": "stub", "billing": "none" },
        "contacts": [{ "mail": "a@acme.test" }],
        "createdAt": DateTime::now(), "updatedAt": DateTime::now(),
    };
    world.tenants.insert_one(&legacy).await.unwrap();
    let acme = legacy.get_object_id("_id").unwrap();
    let held = claim(&world.store, acme, "a", TTL).await.expect("no process has looked at it yet");
    let mixed = plans(&held, |step| match step {
        Upstream::Authentik => Outcome::ok("pk"),
        Upstream::Stalwart => Outcome::Skipped(Reason::NotConfigured),
        Upstream::Ocis => Outcome::Failed(tenantry::tenant::Failure {
            kind: tenantry::tenant::FailureKind::Transient { retry_after: None },
            reason: Reason::Timeout,
            message: "ocis: too slow".into(),
            external_id: None,
            unresolved: false,
            parked: false,
            asked: true,
        }),
    });
    world.store.commit(&held, &mixed).await.unwrap();
    let tenant = world.find("acme").await;
    assert_eq!(
        tenant.get_document("provisioningStatus").unwrap(),
        &doc! { "authentik": "ok", "stalwart": "skipped", "ocis": "error", "billing": "ok" }
    );
    assert_eq!(
        tenant.get_document("provisioningErrors").unwrap(),
        &doc! { "ocis": "ocis: too slow", "billing": "none" }
    );
    assert_eq!(tenant.get_str("status").unwrap(), "active", "once active, always active");
    assert_eq!(tenant.get("contacts"), legacy.get("contacts"));
    assert_eq!(tenant.get("__v"), legacy.get("__v"));
    let steps = tenant.get_document("steps").unwrap();
    for step in Upstream::ALL {
        let detail = steps.get_document(step.name()).unwrap();
        let summary = tenant.get_document("provisioningStatus").unwrap();
        assert_eq!(detail.get("state"), summary.get(step.name()));
    }
}

#[tokio::test]
async fn conditions_of_others_stay() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let other = doc! { "type": "Billed", "status": "True" };
    world.set("acme", doc! { "conditions": [other.clone()] }).await;
    let held = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    world.store.commit(&held, &all_well(&held)).await.unwrap();
    let tenant = world.find("acme").await;
    let conditions = tenant.get_array("conditions").unwrap();
    assert_eq!(conditions.len(), 2, "{conditions:?}");
    assert!(conditions.contains(&Bson::from(other)));
}

#[tokio::test]
async fn fields_of_wrong_types_do_not_keep_a_tenant_from_being_reconciled() {
    let world = World::new().await;
    let acme = ObjectId::new();
    let odd = doc! {
        "_id": acme, "slug": "acme", "name": "Acme", "lease": "none", "steps": [], "conditions": 7,
        "provisioningStatus": "ok", "provisioningErrors": [], "generation": "x", "status": 1,
    };
    world.tenants.insert_one(odd).await.unwrap();
    let held = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    world.store.commit(&held, &all_well(&held)).await.unwrap();
    assert!(world.is_active("acme").await);
    let states = world.find("acme").await.get_document("provisioningStatus").unwrap().clone();
    assert_eq!(states, doc! { "authentik": "ok", "stalwart": "ok", "ocis": "ok" });
}

#[tokio::test]
async fn the_validator_refuses_a_shells_typing_error_where_it_is_made() {
    let world = World::new().await;
    for wrong in [
        doc! { "name": "No slug" },
        doc! { "slug": "Acme", "name": "Upper case" },
        doc! { "slug": "acme", "name": 7 },
        doc! { "slug": "acme", "name": "Acme", "quota": { "storageBytes": "10 GB" } },
        doc! { "slug": "acme", "name": "Acme", "services": { "ocis": "yes" } },
    ] {
        let inserted = world.tenants.insert_one(&wrong).await;
        assert!(inserted.is_err(), "{wrong}");
    }
    world.insert("acme").await;
    assert!(world.tenants.insert_one(doc! { "slug": "acme", "name": "Again" }).await.is_err());
}

#[tokio::test]
async fn preparing_twice_changes_nothing_and_a_foreign_validator_or_index_stays() {
    let world = World::new().await;
    world.store.prepare().await.expect("it is idempotent");
    let indexes = world.tenants.list_index_names().await.unwrap();
    // Ten, and four for each upstream: of what waits, and of states and reasons.
    assert_eq!(indexes.len(), 10 + 4 * 3, "{indexes:?}");

    world.tenants.drop().await.unwrap();
    let own = doc! { "$jsonSchema": { "title": "ours", "required": ["slug"] } };
    world.mongo.run_command(doc! { "create": "tenants", "validator": own.clone() }).await.unwrap();
    let legacy = doc! { "createIndexes": "tenants", "indexes": [
        { "key": { "slug": 1 }, "name": "slug_1", "unique": true, "background": true },
    ] };
    world.mongo.run_command(legacy).await.unwrap();
    world.store.prepare().await.expect("the legacy service's collection will do");
    let mut indexes = world.tenants.list_index_names().await.unwrap();
    indexes.sort();
    indexes.retain(|name| !["authentik", "stalwart", "ocis"].iter().any(|step| name.ends_with(step)));
    let ours = ["due", "edited", "idempotency", "ready", "reason", "search", "status", "unseen"];
    let ours: Vec<_> = ours.iter().map(|name| format!("tenantry_{name}")).collect();
    assert_eq!(indexes, [&["_id_".to_owned(), "slug_1".to_owned()][..], &ours].concat());
    let options = world.mongo.list_collections().filter(doc! { "name": "tenants" }).await.unwrap();
    let options: Vec<_> = futures_util::TryStreamExt::try_collect(options).await.unwrap();
    assert_eq!(options[0].options.validator, Some(own));
}

#[tokio::test]
async fn documents_with_one_slug_are_told_apart_before_anything_starts() {
    let world = World::new().await;
    world.tenants.drop().await.unwrap();
    for name in ["One", "Two"] {
        world.tenants.insert_one(doc! { "slug": "acme", "name": name }).await.unwrap();
    }
    let error = world.store.prepare().await.expect_err("the slug cannot be made unique").to_string();
    assert!(error.contains("same slug") && error.contains("acme"), "{error}");
}

/// Invariant 1: what a dead or abandoned reconcile may have done is looked at, even if the change that
/// it worked on was taken back.
#[tokio::test]
async fn settled_steps_are_looked_at_again_after_a_reconcile_that_did_not_finish() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let first = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    world.store.commit(&first, &all_well(&first)).await.unwrap();
    for ended_by in ["a crash", "giving up"] {
        world.set("acme", doc! { "name": "Changed" }).await;
        let half = claim(&world.store, acme, "a", SHORT).await.expect("it changed");
        if ended_by == "giving up" {
            world.store.release(&half).await.unwrap();
        }
        world.set("acme", doc! { "name": "The acme" }).await;
        let mut next = None;
        eventually("the lease is free", async || {
            next = claim(&world.store, acme, "b", TTL).await;
            next.is_some()
        })
        .await;
        let next = next.expect("just checked");
        assert!(next.tenant.interrupted, "{ended_by}");
        let due = due_steps(&next.tenant, next.now(), &settings().policy);
        assert_eq!(due, Upstream::ALL, "{ended_by}");
        world.store.commit(&next, &all_well(&next)).await.unwrap();
    }
    world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    let last = claim(&world.store, acme, "b", TTL).await.expect("it was asked for");
    assert!(!last.tenant.interrupted, "the one before did finish");
}

#[tokio::test]
async fn removing_the_due_time_while_a_reconcile_runs_survives_the_commit() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let held = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    let unset = doc! { "$unset": { "nextReconcileAt": 1 } };
    world.tenants.update_one(doc! { "slug": "acme" }, unset).await.unwrap();
    let done = world.store.commit(&held, &all_well(&held)).await.unwrap();
    assert!(matches!(done, Commit::Done { interrupted: true, superseded: false, .. }), "{done:?}");
    assert!(claim(&world.store, acme, "b", TTL).await.is_some());
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_can_be_told_from_one_that_was_fenced_out() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    let held = claim(&world.store, acme, "a", SHORT).await.expect("it is due");
    let plans = all_well(&held);
    assert_eq!(world.store.find_commit(&held, &plans).await.unwrap(), Commit::Fenced);
    let done = world.store.commit(&held, &plans).await.unwrap();
    assert_eq!(world.store.find_commit(&held, &plans).await.unwrap(), done, "with all that it said");
    world.set("acme", doc! { "name": "Changed" }).await;
    claim(&world.store, acme, "b", TTL).await.expect("it changed");
    assert_eq!(world.store.find_commit(&held, &plans).await.unwrap(), Commit::Fenced);
}

#[tokio::test]
async fn a_document_goes_only_while_its_deletion_is_wanted_as_it_was_claimed() {
    use tenantry::tenant::DeletionPolicy;
    let world = World::new().await;
    let slug = "acme".parse().unwrap();
    let acme = world.insert("acme").await;
    let deletion = async |policy| world.store.request_deletion(&slug, policy).await.unwrap().unwrap();
    deletion(DeletionPolicy::Retain).await;
    let first = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    // A person takes it back, or wants more of it, while everything is being let go.
    world.store.undelete(&slug).await.unwrap().unwrap();
    assert_eq!(world.store.remove(&first).await.unwrap(), Commit::Fenced);
    world.find("acme").await;
    world.store.release(&first).await.unwrap();
    deletion(DeletionPolicy::Retain).await;
    let second = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    deletion(DeletionPolicy::Purge).await;
    assert_eq!(world.store.remove(&second).await.unwrap(), Commit::Fenced);
    world.store.release(&second).await.unwrap();
    let third = claim(&world.store, acme, "a", SHORT).await.expect("it is due");
    // Nor may one remove it who lost the lease.
    let mut fourth = None;
    eventually("the lease expires", async || {
        fourth = claim(&world.store, acme, "b", TTL).await;
        fourth.is_some()
    })
    .await;
    assert_eq!(world.store.remove(&third).await.unwrap(), Commit::Fenced);
    world.find("acme").await;
    let gone = world.store.remove(&fourth.expect("just checked")).await.unwrap();
    assert!(matches!(gone, Commit::Done { .. }), "{gone:?}");
    assert_eq!(world.tenants.count_documents(doc! {}).await.unwrap(), 0);
}

#[tokio::test]
async fn a_request_for_all_outlives_a_crash_and_a_caller_who_only_looks() {
    let world = World::new().await;
    let slug = "acme".parse().unwrap();
    let acme = world.insert("acme").await;
    let first = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    world.store.commit(&first, &all_well(&first)).await.unwrap();
    world.store.request_reconcile(&slug).await.unwrap().expect("there is such a tenant");
    // The process that claims it never comes back.
    claim(&world.store, acme, "a", SHORT).await.expect("it is asked for");
    world.store.request_observation(&slug).await.unwrap().expect("there is such a tenant");
    let mut again = None;
    eventually("the lease expires", async || {
        again = claim(&world.store, acme, "b", TTL).await;
        again.is_some()
    })
    .await;
    let tenant = again.expect("just checked").tenant;
    assert!(Upstream::ALL.into_iter().all(|step| tenant.is_requested(step)), "{tenant:?}");
}

#[tokio::test]
async fn what_makes_a_step_due_while_it_is_looked_at_outlives_the_look() {
    let world = World::new().await;
    let slug = "acme".parse().unwrap();
    let acme = world.insert("acme").await;
    let first = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    world.store.commit(&first, &all_well(&first)).await.unwrap();
    world.store.request_observation(&slug).await.unwrap().expect("there is such a tenant");
    let look = claim(&world.store, acme, "a", TTL).await.expect("it is asked for");
    // A sweep sees something meanwhile.
    world.store.make_due(Upstream::Ocis, &[id(acme)], std::time::Duration::ZERO).await.unwrap();
    let mut flagged = world.step_of("acme", "ocis").await;
    assert!(flagged.remove("createIntent").is_some(), "the claim records one in case something is made");
    let seen = plans(&look, |_| Outcome::Observed(Found::Missing));
    let done = world.store.commit(&look, &seen).await.unwrap();
    assert!(matches!(done, Commit::Done { interrupted: true, .. }), "it is due at once: {done:?}");
    let mut step = world.step_of("acme", "ocis").await;
    assert!(step.remove("observation").is_some());
    assert_eq!(step, flagged, "a look leaves nothing but what it saw");
    let next = claim(&world.store, acme, "a", TTL).await.expect("it is due");
    assert_eq!(due_steps(&next.tenant, next.now(), &settings().policy), [Upstream::Ocis]);
}

#[tokio::test]
async fn a_document_that_is_no_tenant_loses_the_intent_of_the_claim_and_keeps_an_older_one() {
    let world = World::new().await;
    let acme = world.insert("acme").await;
    world.set("acme", doc! { "name": "   " }).await;
    let id = TenantId::from_bytes(acme.bytes());
    let intent =
        async || world.step_of("acme", "ocis").await.get_str("createIntent").ok().map(str::to_owned);
    let claimed = world.store.claim(id, &Holder::new("a", 1), TTL, TTL).await.unwrap();
    assert!(matches!(claimed, ClaimAnswer::Invalid(_)), "{claimed:?}");
    assert_eq!(intent().await, None, "nothing was sent for it");
    // A create may have been sent for this one.
    let older = "65a0000000000000000000bb";
    world.set("acme", doc! { "name": "    ", "steps.ocis.createIntent": older }).await;
    let claimed = world.store.claim(id, &Holder::new("a", 1), TTL, TTL).await.unwrap();
    assert!(matches!(claimed, ClaimAnswer::Invalid(_)), "{claimed:?}");
    assert_eq!(intent().await.as_deref(), Some(older));
}
