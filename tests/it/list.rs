//! Lists and their filters: what they find, and what that costs.

use mongodb::bson::{Bson, DateTime, Document, doc};
use serde_json::{Value, json};

use crate::api::Served;
use crate::support::{World, eventually};

/// Another controller has them, so that what the documents say stays as it is.
async fn leased(world: &World) {
    let later = DateTime::from_millis(DateTime::now().timestamp_millis() + 3_600_000);
    let lease = doc! { "holder": "another", "epoch": 1_i64, "expiresAt": later };
    world.tenants.update_many(doc! {}, doc! { "$set": { "lease": lease } }).await.unwrap();
}

/// A tenant as a controller leaves it behind that is not due for an hour.
fn recorded(slug: &str, state: &str, reason: &str) -> Document {
    let later = DateTime::from_millis(DateTime::now().timestamp_millis() + 3_600_000);
    let seen = doc! { "slug": slug, "name": format!("Name of {slug}") };
    let ready = if state == "ok" { "True" } else { "False" };
    let observed = doc! { "presence": "present", "name": format!("Name of {slug}") };
    let step = |state: &str, reason: &str| {
        doc! {
            "state": state, "reason": reason, "attempts": 1_i64, "observed": &observed,
            "nextAttemptAt": later,
        }
    };
    doc! {
        "slug": slug, "name": format!("Name of {slug}"), "status": "active", "generation": 1_i64,
        "observedGeneration": 1_i64, "nextReconcileAt": later, "lastHandledDesired": &seen,
        "steps": {
            "authentik": step(state, reason), "stalwart": step("skipped", "NotConfigured"),
            "ocis": step("skipped", "NotConfigured"),
        },
        "conditions": [
            { "type": "Billed", "status": "False", "reason": "Later" },
            {
                "type": "Ready", "status": ready, "reason": reason, "message": "as recorded",
                "observedGeneration": 1_i64, "lastTransitionTime": DateTime::now(),
            },
        ],
        "createdAt": DateTime::now(),
    }
}

/// A fleet of so many that are well, and four that are not.
async fn fleet(world: &World, well: usize) {
    let fine = (0..well).map(|n| recorded(&format!("t{n:05}"), "ok", "InSync"));
    world.tenants.insert_many(fine).await.unwrap();
    let wrong = [("m-conflict", "error", "Conflict"), ("z-away", "pending", "Unreachable")];
    let wrong = wrong.map(|(slug, state, reason)| recorded(slug, state, reason));
    world.tenants.insert_many(wrong).await.unwrap();
    // As a shell writes it: no controller has looked at it.
    world.insert("a-shell").await;
    // As the API edits it; no controller has acted on it.
    let mut edited = recorded("k-edited", "ok", "InSync");
    edited.extend(doc! { "name": "Other", "changedBy": [{ "type": "Edited" }], "generation": 2_i64 });
    world.tenants.insert_one(edited).await.unwrap();
    leased(world).await;
}

async fn slugs(served: &Served, query: &str) -> Vec<String> {
    let answer = served.get(&format!("/tenants?{query}")).await;
    let text = answer.text().await.unwrap();
    let page: Value = serde_json::from_str(&text).unwrap();
    let items = page["items"].as_array().unwrap_or_else(|| panic!("{query}: {text}"));
    items.iter().map(|tenant| tenant["slug"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn each_filter_reads_from_an_index_only_what_it_lists_however_large_the_fleet_is() {
    let world = World::new().await;
    fleet(&world, 3_000).await;
    let served = Served::new(&world).await.ready().await;
    let cases: [(&str, &[&str], u64); 12] = [
        ("ready=false", &["a-shell", "k-edited", "m-conflict", "z-away"], 20),
        ("ready=false&after=b", &["k-edited", "m-conflict", "z-away"], 20),
        ("ready=true&limit=3", &["t00000", "t00001"], 10),
        ("reason=Conflict", &["m-conflict"], 10),
        ("reason=Reconciling", &["a-shell", "k-edited"], 20),
        ("status=pending", &["a-shell"], 10),
        ("step.authentik=error", &["m-conflict"], 10),
        ("step.authentik=pending", &["a-shell", "k-edited", "z-away"], 20),
        ("step.stalwart=ok", &[], 5),
        ("q=CONFLICT", &["m-conflict"], 10),
        ("q=name+of+z", &["z-away"], 10),
        ("q=a.shell", &[], 5),
    ];
    for (query, expected, most) in cases {
        world.mongo.run_command(doc! { "profile": 2 }).await.unwrap();
        let found = slugs(&served, query).await;
        world.mongo.run_command(doc! { "profile": 0 }).await.unwrap();
        let profile = world.mongo.collection::<Document>("system.profile");
        let list = doc! { "command.find": "tenants", "command.sort": { "slug": 1 } };
        let list = profile.find_one(list).await.unwrap().expect("the list was profiled");
        profile.drop().await.unwrap();
        assert_eq!(found, expected, "{query}");
        let plan = list.get_str("planSummary").unwrap();
        assert!(plan.contains("IXSCAN") && !plan.contains("COLLSCAN"), "{query}: {plan}");
        assert!(!list.get_bool("hasSortStage").unwrap_or(false), "{query} sorts: {plan}");
        let read = list
            .get("docsExamined")
            .and_then(Bson::as_i64)
            .or_else(|| list.get_i32("docsExamined").ok().map(i64::from));
        assert!(u64::try_from(read.unwrap()).unwrap() <= most, "{query}: {read:?} documents, {plan}");
    }
    let both = slugs(&served, "ready=false&step.authentik=pending&q=away").await;
    assert_eq!(both, ["z-away"], "all filters hold");
    served.stop().await;
}

#[tokio::test]
async fn a_page_of_a_filtered_list_continues_the_one_before() {
    let world = World::new().await;
    for n in 0..25 {
        world.insert(&format!("t{n:02}")).await;
    }
    leased(&world).await;
    let served = Served::new(&world).await.ready().await;
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let text = served.get(&format!("/tenants?ready=false&limit=10&after={after}")).await;
        let page: Value = serde_json::from_str(&text.text().await.unwrap()).unwrap();
        for tenant in page["items"].as_array().unwrap() {
            assert_eq!(tenant["conditions"][0]["status"], "False");
            seen.push(tenant["slug"].as_str().unwrap().to_owned());
        }
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    assert_eq!(seen, (0..25).map(|n| format!("t{n:02}")).collect::<Vec<_>>());
    served.stop().await;
}

#[tokio::test]
async fn a_wrong_filter_is_told_with_all_others() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let answer = served.get("/tenants?ready=yes&reason=Nope&step.ocis=bad&status=x&q=").await;
    assert_eq!(answer.status(), 422);
    let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let fields = problem["errors"].as_array().unwrap().iter();
    let fields: Vec<_> = fields.map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["status", "ready", "reason", "step.ocis", "q"]);
    assert_eq!(served.get("/tenants?step.mail=ok").await.status(), 400);
    served.stop().await;
}

/// The list of what is wrong is right at every moment after an edit through the API.
#[tokio::test]
async fn a_tenant_that_does_not_converge_is_listed_until_it_does() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    eventually("it is well", async || slugs(&served, "ready=false").await.is_empty()).await;
    assert_eq!(slugs(&served, "ready=true").await, ["acme"]);
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Status {
            status: 503,
            body: String::new(),
            retry_after: None,
        },
        ..Default::default()
    });
    let edit = json!({ "name": "Other" }).to_string();
    served.send(reqwest::Method::PATCH, "/tenants/acme", Some(&edit)).await;
    assert_eq!(slugs(&served, "ready=false").await, ["acme"]);
    world.step_becomes("acme", "error").await;
    assert_eq!(slugs(&served, "step.authentik=error&reason=UpstreamError").await, ["acme"]);
    world.authentik.faults.clear();
    eventually("it is well again", async || slugs(&served, "ready=false").await.is_empty()).await;
    served.stop().await;
}

#[tokio::test]
async fn a_search_text_may_hold_any_character() {
    let world = World::new().await;
    for (slug, name) in [("plain", "acme"), ("odd", "a\0c.me(")] {
        world.tenants.insert_one(doc! { "slug": slug, "name": name }).await.unwrap();
    }
    let served = Served::new(&world).await.ready().await;
    assert_eq!(slugs(&served, "q=a%00C.me(").await, ["odd"]);
    for text in (0..0x250).filter_map(char::from_u32) {
        let answer = served.get(&format!("/tenants?q=%C3%A9%F0%9F%92%9F{}", encoded(text))).await;
        assert_eq!(answer.status(), 200, "{text:?}");
    }
    assert_eq!(served.get(&format!("/tenants?q={}", "%F0%9F%92%9F".repeat(100))).await.status(), 200);
    assert_eq!(served.get(&format!("/tenants?q={}", "%F0%9F%92%9F".repeat(101))).await.status(), 422);
    served.stop().await;
}

fn encoded(text: char) -> String {
    let mut bytes = [0; 4];
    text.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect()
}
