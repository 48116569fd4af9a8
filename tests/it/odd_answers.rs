//! Lists with an element that cannot be understood: the others are read, and the one is never taken for
//! absent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use serde_json::{Value, json};
use tenantry::dev::authentik::{self, Release};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::ocis::Flavour;
use tenantry::dev::stalwart;
use tenantry::integration::{Converged, Credentials, Error, Integration, Intent, Limits, Mode, Target};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::tenant::{Desired, IntentId, MayAdopt, Reason, TenantId, Upstream};

use crate::ocis::FileServer;
use crate::stalwart::connect;
use crate::support::{TOKEN, authentik, converge};

fn target(step: Upstream, slug: &str) -> Target {
    let mut desired = Desired::new("Acme Corporation".parse().unwrap());
    desired.domain = Some(format!("{slug}.test").parse().unwrap());
    Target {
        id: TenantId::from_bytes(ObjectId::new().bytes()),
        slug: slug.parse().unwrap(),
        desired: desired.for_step(step),
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

fn answers(body: &Value) -> FaultAnswer {
    FaultAnswer::Status { status: 200, body: body.to_string(), retry_after: None }
}

async fn swept<I: Integration>(integration: &I) -> BTreeSet<TenantId> {
    let mut seen = BTreeSet::new();
    integration.sweep(|one| _ = seen.insert(one.tenant)).await.expect("the list is read");
    seen
}

/// What was not understood is a matter of its own tenant, and no reason to make another.
#[track_caller]
fn is_not_understood(result: Result<Converged, Error>) {
    let error = result.unwrap_err();
    assert_eq!(error.failure.reason, Reason::UnexpectedAnswer, "{error:?}");
    assert!(error.is_transient(), "{error:?}");
}

fn all(targets: &[Target]) -> BTreeSet<TenantId> {
    targets.iter().map(|target| target.id).collect()
}

#[tokio::test]
async fn a_space_that_cannot_be_understood_spoils_no_list_and_is_not_taken_for_gone() {
    let files = FileServer::new(Flavour::OpenCloud).await;
    let metrics = Arc::new(Metrics::new());
    let ocis = files.connect(&metrics);
    let targets = ["acme", "globex", "initech"].map(|slug| {
        let id = IntentId::from_bytes(rand::random());
        let intent = Some(Intent { id, open: false, age: Duration::ZERO });
        Target { intent, ..target(Upstream::Ocis, slug) }
    });
    for target in &targets {
        converge(&ocis, target).await.unwrap();
    }
    let odd = &targets[1];
    let mut drives = files.server.drives();
    for drive in &mut drives {
        if drive["driveAlias"].as_str().unwrap().contains(&odd.id.to_string()) {
            drive["quota"]["total"] = json!("10 GB");
            drive["name"] = json!(5);
        }
    }
    drives.push(json!([1]));
    drives.push(json!({ "id": 7, "driveType": "project" }));
    let path = Some("/graph/v1.0/drives".to_owned());
    let answer = answers(&json!({ "value": drives }));
    files.server.faults.add(Fault { method: Some("GET".into()), path, answer, ..Fault::default() });

    assert_eq!(swept(&ocis).await, all(&targets));
    assert_eq!(metrics.unreadable.of(Upstream::Ocis).get(), 3);
    files.server.faults.forget_requests();
    let open = |target: &Target| {
        let intent = target.intent.map(|intent| Intent { open: true, ..intent });
        Target { intent, may_exist: true, ..target.clone() }
    };
    is_not_understood(converge(&ocis, &open(odd)).await);
    converge(&ocis, &open(&targets[0])).await.expect("the others go on");
    let requests = files.server.faults.requests();
    assert!(!requests.iter().any(|request| request.starts_with("POST")), "{requests:?}");
    assert_eq!(files.server.count(), 3);
}

#[tokio::test]
async fn a_group_that_cannot_be_understood_spoils_no_list_and_is_not_taken_for_gone() {
    let server = authentik::Simulator::new(0, TOKEN, Release::R2025_8).await.unwrap();
    let authentik = authentik(&server.url(), TOKEN, Duration::from_secs(2), &Arc::default());
    let targets = ["acme", "globex", "initech"].map(|slug| target(Upstream::Authentik, slug));
    for target in &targets {
        converge(&authentik, target).await.unwrap();
    }
    let odd = &targets[1];
    let mut groups = server.groups();
    for group in &mut groups {
        if group["attributes"]["tenantry_id"] == odd.id.to_string() {
            group["name"] = json!(null);
            group["users"] = json!("nobody");
        }
    }
    groups.push(json!("no group at all"));
    let answer = answers(&json!({ "pagination": { "next": 0 }, "results": groups }));
    server.faults.add(Fault { method: Some("GET".into()), answer, ..Fault::default() });

    assert_eq!(swept(&authentik).await, all(&targets));
    is_not_understood(converge(&authentik, &Target { may_exist: true, ..odd.clone() }).await);
    assert_eq!(server.count(), 3);
    authentik.check().await.expect("nor does it spoil the check");
}

#[tokio::test]
async fn a_domain_that_cannot_be_understood_spoils_no_list_and_is_not_taken_for_gone() {
    let server = stalwart::Simulator::new(0, "API_odd", stalwart::Options::default()).await.unwrap();
    let key = Credentials::Bearer(Secret::from("API_odd"));
    let stalwart = connect(&server.url(), key, Limits::GENEROUS);
    let targets = ["acme", "globex", "initech"].map(|slug| target(Upstream::Stalwart, slug));
    for target in &targets {
        converge(&stalwart, target).await.unwrap();
    }
    let odd = &targets[1];
    let mut domains = server.domains();
    for domain in &mut domains {
        if domain["name"] == "globex.test" {
            domain["isEnabled"] = json!("perhaps");
        }
    }
    let ids: Vec<_> = domains.iter().map(|domain| domain["id"].clone()).collect();
    let list = json!({ "methodResponses": [
        ["x:Domain/query", { "ids": ids, "total": ids.len() }, "list"],
        ["x:Domain/get", { "list": domains }, "list.get"],
    ] });
    let body = Some("calculateTotal".to_owned());
    server.faults.add(Fault { body, answer: answers(&list), ..Fault::default() });
    assert_eq!(swept(&stalwart).await, all(&targets));

    let one: Vec<_> = domains.into_iter().filter(|domain| domain["name"] == "globex.test").collect();
    let look = json!({ "methodResponses": [
        ["x:Domain/get", { "list": one }, "named.get"], ["x:Domain/get", { "list": [] }, "alias.get"],
        ["x:Domain/get", { "list": [] }, "marked.get"],
    ] });
    server.faults.add(Fault { answer: answers(&look), ..Fault::default() });
    is_not_understood(converge(&stalwart, odd).await);
    assert_eq!(server.count(), 3);
}
