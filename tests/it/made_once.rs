//! A resource that was made is known from then on, whatever fails right after: nothing is made twice.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::Document;
use serde_json::json;
use tenantry::dev::authentik::Release;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::ocis::Flavour;
use tenantry::integration::{GroupTemplate, Integrations, Membership, SpaceRole};
use tenantry::metrics::Metrics;
use tenantry::tenant::Reason;

use crate::ocis::FileServer;
use crate::support::{Running, World, eventually, settings};

/// A controller that gives each tenant's group a role in its space.
async fn with_roles(world: &World, files: &FileServer) -> Running {
    let metrics = Arc::new(Metrics::new());
    let groups = GroupTemplate::parse("tenant-{slug}").unwrap();
    let membership = Membership { role: SpaceRole::Editor, groups };
    let ocis = files.connect_with(files.credentials(), Some(membership), &metrics);
    let integrations = Arc::new(Integrations::new(Arc::clone(&metrics)).with_ocis(ocis));
    let mut settings = settings();
    settings.policy.resync = Duration::from_secs(1);
    Running::start(world.store.clone(), integrations, metrics, settings).await
}

/// What stands between the controller and the tenant's group.
fn obstacles() -> Vec<(&'static str, FaultAnswer)> {
    let status =
        |status, body: &str| FaultAnswer::Status { status, body: body.into(), retry_after: None };
    vec![
        ("429", status(429, "")),
        ("503", status(503, "")),
        ("a proxy's page", status(403, "<html>Forbidden</html>")),
        ("a broken connection", FaultAnswer::Drop),
    ]
}

#[tokio::test]
async fn a_space_is_made_once_although_its_group_cannot_be_looked_up() {
    for (flavour, path) in [
        (Flavour::OpenCloud, "/graph/v1.0/groups"),
        (Flavour::OpenCloud, "/graph/v1beta1/drives"),
        (Flavour::Ocis31, "/ocs/v2.php"),
        (Flavour::Ocis31, "/graph/v1beta1/roleManagement"),
    ] {
        for (obstacle, answer) in obstacles() {
            let world = World::new().await;
            let files = FileServer::new(flavour).await;
            files.server.add_group("tenant-acme");
            let fault = Fault { path: Some(path.into()), times: Some(3), answer, ..Fault::default() };
            files.server.faults.add(fault);
            let controller = with_roles(&world, &files).await;
            world.insert("acme").await;
            let settled = async || {
                let step = world.step_of("acme", "ocis").await;
                step.get_str("state").is_ok_and(|state| state == "ok") && step.get("message").is_none()
            };
            eventually(&format!("{path}, {obstacle}: the group has its role"), settled).await;
            assert_eq!(files.server.count(), 1, "{flavour:?}, {path}, {obstacle}: one space");
            controller.stop().await;
        }
    }
}

#[tokio::test]
async fn the_space_that_was_made_is_recorded_by_the_attempt_that_failed() {
    let world = World::new().await;
    let files = FileServer::new(Flavour::OpenCloud).await;
    files.server.add_group("tenant-acme");
    let answer = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    let path = Some("/graph/v1.0/groups".into());
    files.server.faults.add(Fault { path, answer, ..Fault::default() });
    let controller = with_roles(&world, &files).await;
    world.insert("acme").await;
    let failed = async || {
        let step: Document = world.step_of("acme", "ocis").await;
        step.get_str("state").is_ok_and(|state| state == "error")
    };
    eventually("the attempt has failed", failed).await;
    let step = world.step_of("acme", "ocis").await;
    let made = files.server.drives().remove(0)["id"].clone();
    assert_eq!(step.get_str("externalId").ok(), made.as_str(), "{step}");
    assert_eq!(step.get_str("reason").unwrap(), "UpstreamError");
    files.server.faults.clear();
    world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    eventually("it is well", async || {
        world.step_of("acme", "ocis").await.get_str("state").is_ok_and(|state| state == "ok")
    })
    .await;
    assert_eq!(files.server.count(), 1);
    controller.stop().await;
}

#[tokio::test]
async fn a_group_whose_namesakes_cannot_be_looked_for_is_told_all_the_same() {
    let world = World::with_release(Release::R2025_8).await;
    let authentik = crate::support::authentik(
        &world.authentik.url(),
        crate::support::TOKEN,
        Duration::from_secs(2),
        &Arc::new(Metrics::new()),
    );
    // The look before the create is answered; the one after it is not.
    let look = |times, answer| Fault {
        method: Some("GET".into()),
        times: Some(times),
        answer,
        ..Fault::default()
    };
    world.authentik.faults.add(look(1, FaultAnswer::True));
    let unavailable = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    world.authentik.faults.add(look(1, unavailable));
    let target = crate::authentik::target();
    let error = crate::support::converge(&authentik, &target).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::UpstreamError);
    let made = world.group("tenant-acme");
    assert_eq!(error.failure.external_id.as_deref(), made["pk"].as_str());
}

#[tokio::test]
async fn a_domain_that_cannot_be_read_after_its_creation_is_told_all_the_same() {
    let bench = crate::stalwart::Bench::new().await;
    let unreadable = json!({ "methodResponses": [
        ["x:Domain/set", { "created": { "new": { "id": "b" } } }, "create"],
        ["error", { "type": "serverUnavailable" }, "read"],
        ["error", { "type": "serverUnavailable" }, "marked.get"],
    ] });
    let answer = FaultAnswer::Status { status: 200, body: unreadable.to_string(), retry_after: None };
    bench.server.faults.add(Fault { apply: true, answer, ..crate::stalwart::set("create") });
    // And then the server is away.
    let unavailable = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    let body = Some("\"x:Domain/query\"".into());
    bench.server.faults.add(Fault { body: body.clone(), times: Some(1), ..Fault::default() });
    bench.server.faults.add(Fault { body, answer: unavailable, ..Fault::default() });
    let error = bench.converge(&crate::stalwart::target()).await.unwrap_err();
    let made = bench.domain("acme.test");
    assert_eq!(made["id"], "b");
    assert_eq!(error.failure.external_id.as_deref(), Some("b"), "{error:?}");
}
