//! MongoDB as it is found: rights, indexes, collations, validators and documents that others made.

use mongodb::bson::{Bson, DateTime, Document, doc};
use reqwest::Method;
use serde_json::{Value, json};
use tenantry::store::{Edit, Edited};
use tenantry::tenant::DeletionPolicy;

use crate::api::{Served, json, problem};
use crate::secrets::Locked;
use crate::support::{Process, World, eventually};

/// Makes the collection as another program would have.
async fn found(world: &World, options: Document) {
    world.tenants.drop().await.unwrap();
    let mut create = doc! { "create": "tenants" };
    create.extend(options);
    world.mongo.run_command(create).await.unwrap();
}

async fn index(world: &World, name: &str, keys: Document, options: Document) {
    let mut index = doc! { "key": keys, "name": name };
    index.extend(options);
    let create = doc! { "createIndexes": "tenants", "indexes": [index] };
    world.mongo.run_command(create).await.unwrap();
}

async fn prepared(world: &World) -> Result<(), String> {
    world.other_store().await.prepare().await.map_err(|error| error.to_string())
}

fn named(edit: &str) -> Edit {
    Edit { name: Some(edit.parse().unwrap()), ..Edit::default() }
}

#[tokio::test]
async fn the_role_read_write_is_enough_where_the_collection_is_there_and_where_it_is_not() {
    let locked = Locked::new().await;
    let world = World::at(&locked.of("root", "root"), Default::default()).await;
    let role = |user: &str, database: &str| {
        doc! { "createUser": user, "pwd": "pw", "roles": [{ "role": "readWrite", "db": database }] }
    };
    locked.run(role("app", &world.database)).await;
    found(&world, doc! {}).await;
    world.insert("acme").await;
    let process = Process::start(&world, &[("MONGODB_URI", &locked.of("app", "pw"))]);
    process.says("may not set the collection's validator").await;
    world.active("acme").await;
    process.stop().await;

    world.mongo.drop().await.unwrap();
    let process = Process::start(&world, &[("MONGODB_URI", &locked.of("app", "pw"))]);
    process.says("watching for tenants").await;
    world.insert("globex").await;
    world.active("globex").await;
    let log = process.stop().await;
    assert!(!log.contains("validator"), "it was made with the collection: {log}");
}

#[tokio::test]
async fn a_user_that_may_not_create_what_is_missing_is_told_which_role_it_needs() {
    let locked = Locked::new().await;
    let world = World::at(&locked.of("root", "root"), Default::default()).await;
    let privileges = vec![doc! {
        "resource": { "db": &world.database, "collection": "" },
        "actions": ["find", "insert", "update", "remove", "changeStream", "listCollections", "listIndexes"],
    }];
    let roles = Vec::<Document>::new();
    locked.run(doc! { "createRole": "narrow", "privileges": privileges, "roles": roles }).await;
    let narrow = vec![doc! { "role": "narrow", "db": "admin" }];
    locked.run(doc! { "createUser": "app", "pwd": "pw", "roles": narrow }).await;
    // What was made once needs no right to make it.
    let mut process = Process::start(&world, &[("MONGODB_URI", &locked.of("app", "pw"))]);
    world.insert("acme").await;
    world.active("acme").await;
    process.signal(rustix::process::Signal::TERM);
    assert!(process.ended().await.success());

    world.mongo.drop().await.unwrap();
    let mut process = Process::start(&world, &[("MONGODB_URI", &locked.of("app", "pw"))]);
    assert!(!process.ended().await.success());
    process.says("give that user the role readWrite").await;
}

#[tokio::test]
async fn a_partial_unique_index_does_not_stand_in_for_one_that_holds_every_slug() {
    let world = World::new().await;
    found(&world, doc! {}).await;
    let partial = doc! { "unique": true, "partialFilterExpression": { "active": true } };
    index(&world, "slug_1", doc! { "slug": 1 }, partial).await;
    prepared(&world).await.unwrap();
    world.insert("acme").await;
    let again = world.tenants.insert_one(doc! { "slug": "acme", "name": "Again" }).await;
    assert!(again.unwrap_err().to_string().contains("tenantry_slug"));
    let names = world.tenants.list_index_names().await.unwrap();
    assert!(names.contains(&"slug_1".to_owned()), "the other program's stays: {names:?}");
}

#[tokio::test]
async fn an_index_of_ours_that_guarantees_less_is_made_anew_and_one_that_is_in_the_way_is_named() {
    let world = World::new().await;
    found(&world, doc! {}).await;
    let partial = doc! { "unique": true, "partialFilterExpression": { "slug": { "$gt": "m" } } };
    index(&world, "tenantry_slug", doc! { "slug": 1 }, partial).await;
    index(&world, "tenantry_due", doc! { "nextReconcileAt": 1 }, doc! { "sparse": true }).await;
    prepared(&world).await.unwrap();
    world.insert("acme").await;
    assert!(world.tenants.insert_one(doc! { "slug": "acme", "name": "Again" }).await.is_err());
    let due = world.mongo.run_command(doc! { "listIndexes": "tenants" }).await.unwrap();
    let due = due.get_document("cursor").unwrap().get_array("firstBatch").unwrap().iter();
    let due: Vec<_> = due
        .filter_map(Bson::as_document)
        .filter(|index| index.get_str("name").unwrap() == "tenantry_due")
        .collect();
    assert!(due.len() == 1 && !due[0].contains_key("sparse"), "{due:?}");

    let name = doc! { "dropIndexes": "tenants", "index": "tenantry_due" };
    world.mongo.run_command(name).await.unwrap();
    let expires = doc! { "expireAfterSeconds": 3600 };
    index(&world, "theirs", doc! { "nextReconcileAt": 1 }, expires).await;
    let refused = prepared(&world).await.unwrap_err();
    assert!(refused.contains("in the way") && refused.contains("theirs"), "{refused}");
}

#[tokio::test]
async fn a_collation_that_ignores_case_hides_no_edit_and_joins_no_slugs() {
    let world = World::new().await;
    found(&world, doc! { "collation": { "locale": "en", "strength": 2 } }).await;
    prepared(&world).await.unwrap();
    let served = Served::new(&world).await.ready().await;
    assert_eq!(
        served.post("/tenants", &json!({ "slug": "acme", "name": "acme gmbh" })).await.status(),
        201
    );
    world.active("acme").await;
    assert_eq!(world.group("tenant-acme")["attributes"]["tenantry_name"], "acme gmbh");
    let renamed = served.send(Method::PATCH, "/tenants/acme", Some(r#"{"name":"Acme GmbH"}"#)).await;
    assert_eq!(json(renamed).await["generation"], 2);
    eventually("the edit arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "Acme GmbH"
    })
    .await;
    // As a shell does it, whose change only the controller sees.
    world.set("acme", doc! { "name": "ACME GMBH" }).await;
    eventually("the change arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "ACME GMBH"
    })
    .await;
    let listed = json(served.get("/tenants?q=acme").await).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    let indexes = world.mongo.run_command(doc! { "listIndexes": "tenants" }).await.unwrap();
    let indexes = indexes.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    for index in indexes.iter().filter_map(Bson::as_document) {
        let ours = index.get_str("name").unwrap().starts_with("tenantry_");
        assert!(!ours || !index.contains_key("collation"), "{index}");
    }
    served.stop().await;
}

/// What a former service may have had: it knows its own fields, and no others.
fn closed() -> Document {
    doc! { "$jsonSchema": {
        "bsonType": "object", "additionalProperties": false, "required": ["slug"],
        "properties": { "_id": {}, "slug": {}, "name": {}, "domain": {}, "provisioningStatus": {} },
    } }
}

#[tokio::test]
async fn a_validator_that_refuses_what_is_written_is_told_at_start_in_readiness_and_to_the_caller() {
    let world = World::new().await;
    found(&world, doc! { "validator": closed() }).await;
    world.insert("acme").await;
    let process = Process::start(&world, &[]);
    process.says("refuses what tenantry writes: fields that it does not allow: ").await;
    let api = format!("http://{}", process.address("http").await);
    let get =
        async |path: &str| crate::support::http().get(format!("{api}{path}")).send().await.unwrap();
    let ready = get("/readyz").await;
    assert_eq!(ready.status(), 503);
    let ready = json(ready).await;
    let told = ready["validator"].as_str().unwrap();
    for field in ["tenants", "lease", "conditions", "steps", "nextReconcileAt", "collMod"] {
        assert!(told.contains(field), "{field}: {told}");
    }
    assert!(!told.contains("slug") && !told.contains("domain"), "those are allowed: {told}");
    let body = json!({ "slug": "globex", "name": "Globex" }).to_string();
    let create = crate::support::http().post(format!("{api}/tenants"));
    let refused =
        create.header("content-type", "application/json").body(body.clone()).send().await.unwrap();
    let refused = problem(refused, 422).await;
    assert_eq!(refused["title"], "Refused by the collection's validator");
    assert!(refused["detail"].as_str().unwrap().contains("createdAt"), "{refused}");

    world.mongo.run_command(doc! { "collMod": "tenants", "validator": {} }).await.unwrap();
    eventually("it is ready", async || get("/readyz").await.status() == 200).await;
    process.says("refuses nothing any more").await;
    world.active("acme").await;
    process.stop().await;
}

#[tokio::test]
async fn a_validator_that_wants_more_than_the_api_knows_refuses_new_tenants_and_leaves_others_to_converge()
 {
    let world = World::new().await;
    let wants =
        doc! { "$jsonSchema": { "required": ["realm"], "properties": { "realm": { "enum": ["a"] } } } };
    found(&world, doc! { "validator": wants }).await;
    world.tenants.insert_one(doc! { "slug": "acme", "name": "Acme", "realm": "a" }).await.unwrap();
    let served = Served::new(&world).await.ready().await;
    world.active("acme").await;
    let ready = json(served.get("/readyz").await).await;
    let told = ready["validator"].as_str().unwrap();
    assert!(told.contains("new tenants of the API: fields that it requires: realm"), "{told}");
    let refused = served.post("/tenants", &json!({ "slug": "globex", "name": "Globex" })).await;
    let refused = problem(refused, 422).await;
    assert!(refused["detail"].as_str().unwrap().contains("requires: realm"), "{refused}");
    let count = world.tenants.count_documents(doc! {}).await.unwrap();
    assert_eq!(count, 1, "nothing of the trials is left");
    served.stop().await;
}

#[tokio::test]
async fn a_validator_that_only_warns_or_allows_all_is_not_mentioned() {
    let world = World::new().await;
    found(&world, doc! { "validator": closed(), "validationAction": "warn" }).await;
    let served = Served::new(&world).await.ready().await;
    assert!(json(served.get("/readyz").await).await.get("validator").is_none());
    served.stop().await;
    let open = doc! { "$jsonSchema": { "required": ["slug", "name"] } };
    found(&world, doc! { "validator": open }).await;
    let served = Served::new(&world).await.ready().await;
    assert!(json(served.get("/readyz").await).await.get("validator").is_none());
    served.stop().await;
}

#[tokio::test]
async fn a_unique_index_of_others_is_named_and_not_taken_for_the_slug() {
    let world = World::new().await;
    index(&world, "domain_1", doc! { "domain": 1 }, doc! { "unique": true, "sparse": true }).await;
    let served = Served::new(&world).await.ready().await;
    let one = json!({ "slug": "acme", "name": "Acme", "domain": "acme.test" });
    assert_eq!(served.post("/tenants", &one).await.status(), 201);
    let other = json!({ "slug": "globex", "name": "Globex", "domain": "acme.test" });
    let put = json!({ "name": "Globex", "domain": "acme.test" }).to_string();
    let refusals = [
        served.post("/tenants", &other).await,
        served.send(Method::PUT, "/tenants/globex", Some(&put)).await,
    ];
    for refused in refusals {
        let refused = problem(refused, 409).await;
        assert_eq!(refused["title"], "Refused by a unique index");
        assert!(refused["detail"].as_str().unwrap().contains("\"domain_1\""), "{refused}");
    }
    let with_key = crate::support::http()
        .post(format!("http://{}/tenants", served.addresses.http))
        .header("content-type", "application/json")
        .header("idempotency-key", "once")
        .body(other.to_string());
    assert_eq!(problem(with_key.send().await.unwrap(), 409).await["title"], "Refused by a unique index");
    let third = json!({ "slug": "globex", "name": "Globex" });
    assert_eq!(served.post("/tenants", &third).await.status(), 201);
    let edit = served.send(Method::PATCH, "/tenants/globex", Some(r#"{"domain":"acme.test"}"#)).await;
    assert_eq!(problem(edit, 409).await["title"], "Refused by a unique index");
    let taken = problem(served.post("/tenants", &third).await, 409).await;
    assert_eq!(taken["title"], "Slug taken");
    served.stop().await;
}

/// What the log says of why a database cannot be used.
async fn complaint(uri: &str) -> String {
    let world = World::new().await;
    let process = Process::start(&world, &[("MONGODB_URI", uri)]);
    process.says("this MongoDB server cannot be used").await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains("cannot be used\"")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    format!("{}: {}", line["server"].as_str().unwrap(), line["reason"].as_str().unwrap())
}

#[tokio::test]
async fn each_server_that_cannot_be_used_is_told_with_the_drivers_reason() {
    let world = World::new().await;
    let host =
        world.uri.strip_prefix("mongodb://").unwrap().split(['/', '?']).next().unwrap().to_owned();
    let refused = complaint("mongodb://127.0.0.1:9/?replicaSet=rs0").await;
    assert!(refused.starts_with("127.0.0.1:9: ") && refused.contains("Connection refused"), "{refused}");
    let other = complaint(&format!("mongodb://{host}/?replicaSet=other")).await;
    assert!(other.contains("it belongs to the replica set"), "{other}");
    assert!(other.contains("replicaSet=other"), "{other}");
    let tls = complaint(&format!("mongodb://{host}/?tls=true")).await;
    assert!(tls.contains("does not speak TLS"), "{tls}");
}

/// As a server that wants TLS does when what comes is none.
#[tokio::test]
async fn a_server_that_closes_the_connection_is_told_as_one_that_may_want_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncReadExt;
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 64]).await;
        }
    });
    let told = complaint(&format!("mongodb://{address}/?replicaSet=rs0")).await;
    assert!(told.contains("a server that wants TLS"), "{told}");
}

#[tokio::test]
async fn a_process_says_which_database_and_collection_it_serves_and_takes_that_of_the_path() {
    let world = World::new().await;
    let (host, options) = world.uri.strip_prefix("mongodb://").unwrap().split_once("/?").unwrap();
    let uri = format!(
        "mongodb://{host}/{}?{options}&compressors=zstd,snappy,zlib&maxPoolSize=0",
        world.database
    );
    let process = Process::start(&world, &[("MONGODB_URI", &uri), ("MONGODB_DATABASE", "")]);
    process.says(&format!("\"database\":\"{}\"", world.database)).await;
    process.says("\"collection\":\"tenants\"").await;
    world.insert("acme").await;
    world.active("acme").await;
    process.stop().await;
}

#[tokio::test]
async fn an_empty_domain_in_a_document_is_none() {
    let world = World::new().await;
    world.tenants.insert_one(doc! { "slug": "acme", "name": "Acme", "domain": "" }).await.unwrap();
    let served = Served::new(&world).await.ready().await;
    world.active("acme").await;
    assert!(json(served.get("/tenants/acme").await).await.get("domain").is_none_or(Value::is_null));
    served.stop().await;
}

/// Documents that a strict validator would not have let in.
fn invalid() -> [(&'static str, Document); 6] {
    [
        ("quota", doc! { "quota": 5 }),
        ("services", doc! { "services": "all" }),
        ("service", doc! { "services": { "ocis": "yes" } }),
        ("domain", doc! { "domain": 7 }),
        ("paused", doc! { "paused": "no" }),
        ("bytes", doc! { "quota": { "storageBytes": "10 GB" } }),
    ]
}

#[tokio::test]
async fn an_invalid_document_is_corrected_by_put_and_by_patch_and_reconciled_then() {
    let world = World::new().await;
    found(&world, doc! {}).await;
    let served = Served::new(&world).await.ready().await;
    // Of the tenants that come from elsewhere, some hold what no request could write.
    world.mongo.run_command(doc! { "collMod": "tenants", "validator": {} }).await.unwrap();
    let mut more = invalid().to_vec();
    more.push(("date", doc! { "deletionRequestedAt": "tomorrow" }));
    more.push(("policy", doc! { "deletionPolicy": "burn" }));
    more.push(("request", doc! { "reconcileRequestedAt": 1 }));
    for (slug, wrong) in &more {
        let mut document = doc! { "slug": slug, "name": "Wrong" };
        document.extend(wrong.clone());
        world.tenants.insert_one(document).await.unwrap();
        eventually("it is told", async || {
            json(served.get(&format!("/tenants/{slug}")).await).await["status"] == "invalid"
        })
        .await;
        let put =
            served.send(Method::PUT, &format!("/tenants/{slug}"), Some(r#"{"name":"Right"}"#)).await;
        assert_eq!(put.status(), 200, "{slug}");
        let put = json(put).await;
        assert_eq!(put["status"], "pending", "{slug}");
        assert_eq!(put["paused"], *slug == "paused", "{slug}: what was to be paused stays so");
        if *slug == "paused" {
            let resumed = served.send(Method::POST, "/tenants/paused/resume", None).await;
            assert_eq!(resumed.status(), 202);
        }
        world.active(slug).await;
    }
    let patches = [
        ("quota", r#"{"quota":{"storageBytes":null}}"#),
        ("services", r#"{"services":{"authentik":true}}"#),
        ("service", r#"{"services":{"ocis":null}}"#),
        ("domain", r#"{"domain":null}"#),
        ("paused", r#"{"paused":false}"#),
        ("bytes", r#"{"quota":null}"#),
    ];
    for ((name, wrong), (_, patch)) in invalid().into_iter().zip(patches) {
        let slug = format!("{name}-two");
        let mut document = doc! { "slug": &slug, "name": "Wrong" };
        document.extend(wrong);
        world.tenants.insert_one(document).await.unwrap();
        let patched = served.send(Method::PATCH, &format!("/tenants/{slug}"), Some(patch)).await;
        assert_eq!(patched.status(), 200, "{slug}");
        assert_eq!(json(patched).await["status"], "pending", "{slug}");
        world.active(&slug).await;
    }
    served.stop().await;
}

#[tokio::test]
async fn an_invalid_document_is_deleted_with_what_was_made_for_it_released() {
    let world = World::new().await;
    found(&world, doc! {}).await;
    let served = Served::new(&world).await.ready().await;
    world.mongo.run_command(doc! { "collMod": "tenants", "validator": {} }).await.unwrap();
    for (slug, wrong) in invalid() {
        world.insert(slug).await;
        world.active(slug).await;
        world.set(slug, wrong).await;
        eventually("it is told", async || {
            json(served.get(&format!("/tenants/{slug}")).await).await["status"] == "invalid"
        })
        .await;
        let asked = served.send(Method::DELETE, &format!("/tenants/{slug}"), None).await;
        assert_eq!(asked.status(), 202, "{slug}");
        eventually(&format!("{slug} is gone"), async || {
            world.tenants.count_documents(doc! { "slug": slug }).await.unwrap() == 0
        })
        .await;
        let group = world.group(&format!("tenant-{slug}"));
        assert!(group["attributes"].to_string().contains("released"), "{slug}: {group}");
    }
    served.stop().await;
}

#[tokio::test]
async fn an_invalid_document_whose_policy_cannot_be_read_keeps_the_data_when_it_goes() {
    let world = World::new().await;
    found(&world, doc! {}).await;
    let controller = world.controller().await;
    world.insert("acme").await;
    world.active("acme").await;
    world.mongo.run_command(doc! { "collMod": "tenants", "validator": {} }).await.unwrap();
    let going = doc! { "name": 7, "deletionPolicy": "burn", "deletionRequestedAt": DateTime::now() };
    world.set("acme", going).await;
    eventually("it is gone", async || world.tenants.count_documents(doc! {}).await.unwrap() == 0).await;
    let group = world.group("tenant-acme");
    assert!(group["attributes"].to_string().contains("released"), "{group}");
    controller.stop().await;
}

#[tokio::test]
async fn a_document_whose_id_is_no_object_id_is_not_deleted_and_the_caller_is_told_why() {
    let world = World::new().await;
    world.tenants.insert_one(doc! { "_id": "acme-1", "slug": "acme", "name": "Acme" }).await.unwrap();
    let served = Served::new(&world).await.ready().await;
    let before = world.find("acme").await;
    let refused = served.send(Method::DELETE, "/tenants/acme", None).await;
    let refused = problem(refused, 409).await;
    let told = refused["detail"].as_str().unwrap();
    assert!(told.contains("acme-1") && told.contains("deleteOne"), "{told}");
    assert!(!world.find("acme").await.contains_key("deletionRequestedAt"), "{before}");
    served.stop().await;
}

#[tokio::test]
async fn an_edit_of_nothing_but_the_case_is_a_change_in_the_store_too() {
    let world = World::new().await;
    found(&world, doc! { "collation": { "locale": "en", "strength": 1 } }).await;
    prepared(&world).await.unwrap();
    let store = world.other_store().await;
    world.insert("acme").await;
    let slug = "acme".parse().unwrap();
    for (name, generation) in [("The Acme", 2), ("THE ACME", 3), ("THE ACME", 3)] {
        let Edited::Done(tenantry::store::Record::Tenant(tenant)) =
            store.edit(&slug, &named(name)).await.unwrap()
        else {
            panic!("it is there")
        };
        assert_eq!((tenant.desired.name.as_str(), tenant.generation), (name, generation));
    }
    let left = store.request_deletion(&slug, DeletionPolicy::Retain).await.unwrap();
    assert!(left.is_some());
}
