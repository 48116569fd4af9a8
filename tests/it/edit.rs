//! Editing over HTTP: merge patches, replacements, conditions, and creations that happen only once.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use reqwest::header::ETAG;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::api::{Served, json, problem};
use crate::support::{World, eventually, holds_for, http};

const MERGE_PATCH: &str = "application/merge-patch+json";

/// Sends a body with headers.
async fn send(
    served: &Served,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Response {
    let url = format!("http://{}{path}", served.addresses.http);
    let mut request = http().request(method, url).body(body.to_string());
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.expect("it answers")
}

async fn patch(served: &Served, slug: &str, headers: &[(&str, &str)], body: &Value) -> Response {
    send(served, Method::PATCH, &format!("/tenants/{slug}"), headers, body).await
}

async fn put(served: &Served, slug: &str, headers: &[(&str, &str)], body: &Value) -> Response {
    send(served, Method::PUT, &format!("/tenants/{slug}"), headers, body).await
}

fn etag(response: &Response) -> String {
    response.headers()[ETAG].to_str().unwrap().to_owned()
}

async fn ok(response: Response) -> Value {
    assert_eq!(response.status(), 200, "{:?}", response.text().await);
    json(response).await
}

/// Without what the controller writes.
fn without_status(mut document: Document) -> Document {
    for field in [
        "lease",
        "nextReconcileAt",
        "steps",
        "status",
        "conditions",
        "provisioningStatus",
        "provisioningErrors",
        "observedGeneration",
        "lastHandledDesired",
        "lastHandledReconcileAt",
    ] {
        document.remove(field);
    }
    document
}

#[tokio::test]
async fn a_patch_changes_what_it_names_counts_it_and_has_it_reconciled() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let body =
        json!({ "slug": "acme", "name": "Acme", "domain": "acme.test", "quota": { "storageBytes": 5 } });
    served.post("/tenants", &body).await;
    world.active("acme").await;
    let body = json!({ "name": "$acme", "domain": null, "services": { "ocis": false } });
    let tenant = ok(patch(&served, "acme", &[("content-type", MERGE_PATCH)], &body).await).await;
    assert_eq!(tenant["name"], "$acme", "a text is not taken for a path");
    assert_eq!(tenant["domain"], Value::Null);
    assert_eq!(tenant["quota"]["storageBytes"], 5);
    assert_eq!(tenant["services"], json!({ "authentik": true, "stalwart": true, "ocis": false }));
    assert_eq!(tenant["generation"], 2);
    assert_eq!(tenant["steps"]["authentik"]["state"], "pending", "not claimed before it is so");
    eventually("the change is in Authentik", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "$acme"
    })
    .await;
    eventually("the generation is observed", async || {
        json(served.get("/tenants/acme").await).await["observedGeneration"] == 2
    })
    .await;

    let before = without_status(world.find("acme").await);
    for nothing in
        [json!({}), body, json!({ "quota": { "storageBytes": 5 } }), json!({ "services": {} })]
    {
        let tenant = ok(patch(&served, "acme", &[], &nothing).await).await;
        assert_eq!(tenant["generation"], 2, "{nothing} is no change");
    }
    assert_eq!(without_status(world.find("acme").await), before);
    let tenant =
        ok(patch(&served, "acme", &[], &json!({ "quota": null, "services": null })).await).await;
    assert_eq!(tenant["quota"]["storageBytes"], Value::Null);
    assert_eq!(tenant["services"]["ocis"], true);
    assert_eq!(tenant["generation"], 3);
    served.stop().await;
}

#[tokio::test]
async fn a_patch_that_is_wrong_names_every_field_and_changes_nothing() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    world.active("acme").await;
    let before = without_status(world.find("acme").await);
    let wrong =
        json!({ "slug": "acme", "name": null, "domain": 7, "colour": "red", "quota": { "files": 1 } });
    let invalid = problem(patch(&served, "acme", &[], &wrong).await, 422).await;
    let fields: Vec<_> =
        invalid["errors"].as_array().unwrap().iter().map(|error| error["field"].clone()).collect();
    assert_eq!(fields, ["slug", "name", "domain", "quota.files", "colour"]);
    for body in [json!([]), json!(null), json!("x")] {
        problem(patch(&served, "acme", &[], &body).await, 400).await;
    }
    problem(patch(&served, "acme", &[("content-type", "text/plain")], &json!({})).await, 415).await;
    problem(patch(&served, "nobody", &[], &json!({ "name": "x" })).await, 404).await;
    problem(patch(&served, "acme", &[("if-match", "1")], &json!({})).await, 400).await;
    problem(patch(&served, "acme", &[("if-none-match", "*")], &json!({})).await, 400).await;
    assert_eq!(without_status(world.find("acme").await), before);
    served.stop().await;
}

/// Shells and the service before write what they like; an edit keeps what it does not name.
#[tokio::test]
async fn an_edit_leaves_alone_what_others_wrote_and_corrects_what_is_invalid() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    world.insert("acme").await;
    world
        .set("acme", doc! { "domain": null, "quota": { "storageBytes": 7.0, "files": 3 }, "__v": 2 })
        .await;
    ok(patch(&served, "acme", &[], &json!({ "quota": { "storageBytes": 7 }, "domain": null })).await)
        .await;
    let same = world.find("acme").await;
    assert_eq!(same.get_document("quota").unwrap(), &doc! { "storageBytes": 7.0, "files": 3 });
    assert!(!same.contains_key("generation") && same.contains_key("domain"), "nothing was written");
    let tenant = ok(patch(&served, "acme", &[], &json!({ "quota": { "storageBytes": 8 } })).await).await;
    assert_eq!(tenant["generation"], 2);
    let edited = world.find("acme").await;
    assert_eq!(edited.get_document("quota").unwrap(), &doc! { "storageBytes": 8_i64, "files": 3 });
    assert_eq!(edited.get_i32("__v").unwrap(), 2);

    let broken = doc! { "slug": "broken", "name": 7, "services": "all", "generation": "many" };
    world.tenants.insert_one(broken).bypass_document_validation(true).await.unwrap();
    let body = json!({ "name": "Mended", "services": { "ocis": false } });
    let tenant = ok(patch(&served, "broken", &[], &body).await).await;
    assert_eq!(tenant["name"], "Mended");
    assert_eq!(tenant["services"]["ocis"], false);
    served.stop().await;
}

#[tokio::test]
async fn of_edits_that_start_from_the_same_version_one_wins_and_the_others_are_told() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let created = served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    let first = etag(&created);
    assert!(first.starts_with('"'), "strong: {first}");
    world.active("acme").await;
    assert_eq!(
        etag(&served.get("/tenants/acme").await),
        first,
        "what the controller records is no edit"
    );

    let edits = (0..8).map(|n| {
        let (served, first) = (&served, &first);
        async move {
            patch(served, "acme", &[("if-match", first)], &json!({ "name": format!("N{n}") })).await
        }
    });
    let answers = futures_util::future::join_all(edits).await;
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 7, "{statuses:?}");
    let second = etag(&served.get("/tenants/acme").await);
    assert_ne!(second, first);

    // A shell counts nothing, and is noticed all the same.
    world.set("acme", doc! { "name": "Shell" }).await;
    let stale = patch(&served, "acme", &[("if-match", &second)], &json!({ "domain": "a.test" })).await;
    assert!(problem(stale, 412).await["detail"].as_str().unwrap().contains("acme"));
    let third = etag(&served.get("/tenants/acme").await);
    let weak = format!("W/{third}");
    problem(patch(&served, "acme", &[("if-match", &weak)], &json!({})).await, 412).await;
    let list = format!("\"other\", {third}");
    ok(patch(&served, "acme", &[("if-match", &list)], &json!({ "name": "Ours" })).await).await;
    ok(patch(&served, "acme", &[("if-match", "*")], &json!({ "name": "Any" })).await).await;
    served.stop().await;
}

/// The race that the read before a conditional edit leaves open is closed by the edit itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_between_the_reading_and_the_writing_of_a_conditional_edit_refuses_it() {
    let world = World::new().await;
    world.insert("acme").await;
    let (slug, tenants) = ("acme".parse().unwrap(), world.tenants.clone());
    let edit = tenantry::store::Edit { storage_bytes: Some(Some(1)), ..Default::default() };
    let edited = world
        .store
        .edit_if(&slug, &edit, |_| {
            // Between the two commands.
            let tenants = tenants.clone();
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let change = doc! { "$set": { "name": "Quicker" } };
                    tenants.update_one(doc! { "slug": "acme" }, change).await.unwrap();
                });
            });
            true
        })
        .await
        .unwrap();
    assert!(matches!(edited, tenantry::store::Edited::Unexpected), "{edited:?}");
    assert!(!world.find("acme").await.contains_key("quota"));
}

#[tokio::test]
async fn a_put_creates_replaces_and_does_nothing_when_nothing_differs() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let body = json!({ "name": "Acme", "domain": "acme.test", "services": { "stalwart": true } });
    let created = put(&served, "acme", &[], &body).await;
    assert_eq!(created.status(), 201);
    assert_eq!(created.headers()["location"], "acme");
    let first = etag(&created);
    let tenant = json(created).await;
    assert_eq!((&tenant["generation"], &tenant["status"]), (&json!(1), &json!("pending")));
    world.active("acme").await;
    let document = world.find("acme").await;
    for fresh in ["createdAt", "updatedAt"] {
        document.get_datetime(fresh).unwrap();
    }
    let again = put(&served, "acme", &[], &body).await;
    assert_eq!((again.status().as_u16(), etag(&again)), (200, first.clone()));
    assert_eq!(without_status(world.find("acme").await), without_status(document));

    let tenant = ok(put(&served, "acme", &[], &json!({ "slug": "acme", "name": "Acme" })).await).await;
    assert_eq!((&tenant["generation"], &tenant["domain"]), (&json!(2), &Value::Null));
    problem(put(&served, "acme", &[("if-match", &first)], &body).await, 412).await;
    problem(put(&served, "acme", &[("if-none-match", "*")], &body).await, 412).await;
    problem(put(&served, "nobody", &[("if-match", "*")], &body).await, 412).await;
    problem(put(&served, "acme", &[], &json!({ "slug": "other", "name": "x" })).await, 422).await;
    problem(put(&served, "acme", &[], &json!({ "domain": "acme.test" })).await, 422).await;
    assert_eq!(put(&served, "globex", &[("if-none-match", "*")], &body).await.status(), 201);
    assert_eq!(world.tenants.count_documents(doc! {}).await.unwrap(), 2);
    served.stop().await;
}

#[tokio::test]
async fn puts_that_race_make_one_tenant() {
    let world = World::new().await;
    let new = |n: usize| tenantry::store::NewTenant {
        slug: "acme".parse().unwrap(),
        desired: tenantry::tenant::Desired::new(format!("N{n}").parse().unwrap()),
    };
    let puts =
        (0..16).map(|n| {
            let (store, new) = (&world.store, new(n));
            let edit = tenantry::store::Edit::replace(&new.desired);
            async move {
                store.put(&new, &edit).await.expect("it is put").expect("it is not deleted").created
            }
        });
    let created = futures_util::future::join_all(puts).await;
    assert_eq!(created.iter().filter(|created| **created).count(), 1, "{created:?}");
    assert_eq!(world.tenants.count_documents(doc! {}).await.unwrap(), 1);
    assert_eq!(world.find("acme").await.get_i64("generation").unwrap(), 16);
}

#[tokio::test]
async fn an_edit_and_a_put_cost_one_command_and_a_conditional_edit_two() {
    let world = World::new().await;
    world.insert("acme").await;
    let slug = "acme".parse().unwrap();
    let edit = tenantry::store::Edit { storage_bytes: Some(Some(1)), ..Default::default() };
    world.commands.take();
    world.store.edit(&slug, &edit).await.unwrap();
    assert_eq!(world.commands.take(), ["findAndModify"]);
    world.store.edit_if(&slug, &edit, |_| true).await.unwrap();
    assert_eq!(world.commands.take(), ["find", "findAndModify"]);
    world.store.edit_if(&slug, &edit, |_| false).await.unwrap();
    assert_eq!(world.commands.take(), ["find"]);
}

#[tokio::test]
async fn the_same_key_creates_once_and_another_body_is_refused() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let key = [("idempotency-key", "3f2b9c1e")];
    let body = json!({ "slug": "acme", "name": "Acme", "quota": { "storageBytes": 5 } });
    let create = async |body: &Value, headers: &[(&str, &str)]| {
        send(&served, Method::POST, "/tenants", headers, body).await
    };
    let created = create(&body, &key).await;
    assert_eq!(created.status(), 201);
    let id = json(created).await["id"].clone();
    // The same, spelled otherwise.
    let spelled =
        json!({ "quota": { "storageBytes": 5 }, "domain": null, "name": " Acme", "slug": "acme" });
    for again in [&body, &spelled] {
        let repeated = create(again, &key).await;
        assert_eq!(repeated.status(), 201);
        assert_eq!(repeated.headers()["location"], "tenants/acme");
        assert_eq!(json(repeated).await["id"], id);
    }
    let other_body = json!({ "slug": "acme", "name": "Other" });
    let other_slug = json!({ "slug": "globex", "name": "Acme", "quota": { "storageBytes": 5 } });
    for other in [other_body, other_slug] {
        let refused = problem(create(&other, &key).await, 422).await;
        assert!(refused["detail"].as_str().unwrap().contains("Idempotency-Key"), "{refused}");
    }
    problem(create(&body, &[("idempotency-key", "another")]).await, 409).await;
    problem(create(&body, &[]).await, 409).await;
    let long = "x".repeat(129);
    for wrong in ["", "a b", &long] {
        problem(create(&body, &[("idempotency-key", wrong)]).await, 400).await;
    }
    assert_eq!(world.tenants.count_documents(doc! {}).await.unwrap(), 1);

    let crowd = json!({ "slug": "crowd", "name": "Crowd" });
    let all = (0..8).map(|_| create(&crowd, &[("idempotency-key", "crowd")]));
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer.status(), 201);
    }
    assert_eq!(world.tenants.count_documents(doc! { "slug": "crowd" }).await.unwrap(), 1);
    served.stop().await;
}

#[tokio::test]
async fn an_edit_that_changes_nothing_wakes_no_process() {
    let world = World::new().await;
    let controller = world.controller().await;
    world.insert("acme").await;
    world.active("acme").await;
    eventually("it is committed", async || controller.reconciles("ok") == 1).await;
    let slug = "acme".parse().unwrap();
    let edit = tenantry::store::Edit { name: Some("The acme".parse().unwrap()), ..Default::default() };
    world.store.edit(&slug, &edit).await.unwrap();
    holds_for(Duration::from_millis(500), "nothing is reconciled", async || {
        controller.reconciles("ok") == 1
    })
    .await;
    let edit = tenantry::store::Edit { name: Some("Renamed".parse().unwrap()), ..Default::default() };
    world.store.edit(&slug, &edit).await.unwrap();
    eventually("the change is reconciled", async || controller.reconciles("ok") == 2).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_that_is_to_be_deleted_is_not_edited_any_more() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    world.active("acme").await;
    // So that it stays for a while.
    let stopped = served.send(Method::PUT, "/stops/all", None).await;
    assert_eq!(stopped.status(), 200);
    assert_eq!(served.send(Method::DELETE, "/tenants/acme", None).await.status(), 202);
    let body = json!({ "name": "Edited" });
    problem(patch(&served, "acme", &[], &body).await, 409).await;
    problem(patch(&served, "acme", &[("if-match", "*")], &body).await, 409).await;
    problem(put(&served, "acme", &[], &body).await, 409).await;
    assert_eq!(world.find("acme").await.get_str("name").unwrap(), "Acme");
    let back = served.send(Method::POST, "/tenants/acme/undelete", None).await;
    assert_eq!(back.status(), 202);
    let edited = patch(&served, "acme", &[], &body).await;
    assert_eq!(edited.status(), 200);
    served.stop().await;
}

#[tokio::test]
async fn if_match_sees_every_field_of_the_desired_state_by_whichever_writer() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    let mut before = etag(&served.get("/tenants/acme").await);
    let mut is_another = async |what: &str| {
        let stale = patch(&served, "acme", &[("if-match", &before)], &json!({ "name": "Stale" })).await;
        assert_eq!(stale.status(), 412, "{what}");
        let stale = put(&served, "acme", &[("if-match", &before)], &json!({ "name": "Stale" })).await;
        assert_eq!(stale.status(), 412, "{what}");
        before = etag(&served.get("/tenants/acme").await);
    };
    for change in [
        json!({ "name": "Acme AG" }),
        json!({ "domain": "acme.test" }),
        json!({ "quota": { "storageBytes": 7 } }),
        json!({ "services": { "ocis": false } }),
        json!({ "paused": true }),
        json!({ "adopt": false }),
    ] {
        ok(patch(&served, "acme", &[], &change).await).await;
        is_another(&change.to_string()).await;
    }
    // A shell counts no generation.
    for change in [doc! { "paused": false }, doc! { "adopt": true }] {
        world.set("acme", change.clone()).await;
        is_another(&change.to_string()).await;
    }
    for action in ["pause", "resume"] {
        let done = served.send(Method::POST, &format!("/tenants/acme/{action}"), None).await;
        assert_eq!(done.status(), 202);
        is_another(action).await;
    }
    served.stop().await;
}

#[tokio::test]
async fn every_change_of_the_desired_state_counts_up_and_its_repetition_does_not() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    world.active("acme").await;
    // So that the deletion does not end.
    world.authentik.faults.add(crate::wait::outage());
    let mut expected = 1;
    for (method, path) in [
        (Method::POST, "/tenants/acme/pause"),
        (Method::POST, "/tenants/acme/resume"),
        (Method::DELETE, "/tenants/acme?policy=retain"),
        (Method::DELETE, "/tenants/acme?policy=delete"),
        (Method::POST, "/tenants/acme/undelete"),
    ] {
        expected += 1;
        for _ in 0..2 {
            let answer = json(served.send(method.clone(), path, None).await).await;
            assert_eq!(answer["generation"], expected, "{method} {path}");
        }
    }
    // Less than was asked for is no change.
    json(served.send(Method::DELETE, "/tenants/acme?policy=delete", None).await).await;
    let less = json(served.send(Method::DELETE, "/tenants/acme?policy=retain", None).await).await;
    assert_eq!(less["generation"], expected + 1);
    assert_eq!(world.find("acme").await.get_str("deletionPolicy").unwrap(), "delete");

    let told = async |kind: &str| {
        let events = json(served.get("/tenants/acme/events?limit=100").await).await;
        events["items"].as_array().unwrap().iter().filter(|event| event["type"] == kind).count()
    };
    eventually("each is told once", async || {
        told("Paused").await == 1
            && told("Resumed").await == 1
            && told("Undeleted").await == 1
            && told("DeletionRequested").await == 3
    })
    .await;
    served.stop().await;
}

#[tokio::test]
async fn a_put_that_says_nothing_of_paused_leaves_a_pause_alone() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let body = json!({ "name": "Acme", "adopt": true });
    assert_eq!(json(put(&served, "acme", &[], &body).await).await["paused"], false);
    served.send(Method::POST, "/tenants/acme/pause", None).await;
    let tag = etag(&served.get("/tenants/acme").await);
    let edited = json!({ "name": "Acme AG", "paused": null });
    for headers in [&[][..], &[("if-match", tag.as_str())]] {
        let kept = put(&served, "acme", headers, if headers.is_empty() { &body } else { &edited }).await;
        let kept = ok(kept).await;
        assert_eq!(kept["paused"], true, "{headers:?}");
    }
    assert_eq!(
        world.find("acme").await.get("adopt"),
        None,
        "all else has its default when it is absent"
    );
    let resumed = json!({ "name": "Acme AG", "paused": false });
    assert_eq!(ok(put(&served, "acme", &[], &resumed).await).await["paused"], false);
    assert_eq!(
        json(put(&served, "globex", &[], &json!({ "name": "G", "paused": true })).await).await["paused"],
        true
    );
    served.stop().await;
}

#[tokio::test]
async fn a_weak_tag_is_told_from_a_change_by_another_client() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let created = served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    let tag = etag(&created);
    let weak = format!("W/{tag}");
    let refused = patch(&served, "acme", &[("if-match", &weak)], &json!({ "name": "No" })).await;
    let problem = problem(refused, 412).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("weak") && !detail.contains("changed"), "{detail}");
    let both = format!("{weak}, {tag}");
    ok(patch(&served, "acme", &[("if-match", &both)], &json!({ "name": "Yes" })).await).await;
    served.stop().await;
}
