//! `tenantry apply` and its siblings: tenants as documents describe them.

use std::path::Path;
use std::process::{Output, Stdio};

use mongodb::bson::doc;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::api::Served;
use crate::support::{DEADLINE, Process, World};

/// Runs `tenantry` in a folder, with a text on its standard input.
async fn run_with(served: &Served, folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Process::command();
    command.args(arguments).current_dir(folder);
    command.env("TENANTRY_URL", format!("http://{}", served.addresses.http));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // It may end without having read it.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    tokio::time::timeout(DEADLINE, child.wait_with_output()).await.expect("it ends").expect("it ran")
}

async fn run(served: &Served, folder: &Path, arguments: &[&str]) -> Output {
    run_with(served, folder, arguments, "").await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// What it said on standard error, if it ended with this code.
fn failed(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}{}", text(&output.stdout));
    said
}

async fn count(world: &World) -> u64 {
    world.tenants.count_documents(doc! {}).await.unwrap()
}

const TWO: &str = "\
# The first two.
slug: acme
name: Acme GmbH
domain: acme.test
quota: { storageBytes: 10000000000 }
---
slug: globex
name: Globex
services: { ocis: false }
";

#[tokio::test]
async fn documents_become_tenants_and_only_what_differs_is_written() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("two.yaml", TWO);
    let apply = async |more: &[&str]| {
        run(&served, folder.path(), &[&["apply", "-f", "two.yaml"], more].concat()).await
    };
    assert_eq!(ok(&apply(&["--dry-run"]).await), "acme: would be created\nglobex: would be created\n");
    assert_eq!(count(&world).await, 0, "a dry run does nothing");
    let applied = ok(&apply(&["--wait"]).await);
    assert_eq!(applied, "acme: created\nglobex: created\n2 tenants are ready\n");
    assert!(world.is_active("acme").await && world.is_active("globex").await, "it waited");
    let before = world.find("acme").await;
    assert_eq!(before.get_document("quota").unwrap().get_i64("storageBytes").unwrap(), 10_000_000_000);

    assert_eq!(ok(&apply(&["--wait"]).await), "acme: unchanged\nglobex: unchanged\n");
    assert_eq!(world.find("acme").await, before, "nothing was written");

    // A person pauses one, and another edits by hand: the pause stays, the edit is taken back.
    served.post("/tenants/acme/pause", &json!({})).await;
    served.send(reqwest::Method::PATCH, "/tenants/acme", Some(r#"{"adopt":true}"#)).await;
    write("two.yaml", &TWO.replace("Acme GmbH", "Acme AG"));
    let diff = ["diff", "-f", "two.yaml", "--exit-code"];
    let diff = run(&served, folder.path(), &diff).await;
    assert!(failed(&diff, 7).contains("tenants that would be changed: 1"));
    let expected = "acme: would be configured (adopt, name)\n  - adopt: true\n  ~ name: \"Acme GmbH\" -> \"Acme AG\"\n";
    assert_eq!(text(&diff.stdout), expected);
    assert_eq!(ok(&apply(&[]).await), "acme: configured (adopt, name)\nglobex: unchanged\n");
    let after = world.find("acme").await;
    assert!(after.get_bool("paused").unwrap() && !after.contains_key("adopt"), "{after}");
    assert_eq!(ok(&run(&served, folder.path(), &["diff", "-f", "two.yaml"]).await), "");
    served.stop().await;
}

#[tokio::test]
async fn what_get_prints_can_be_applied_again() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let name = "No: \"1e3\"\u{9b} \u{1f3e2} # x";
    let odd =
        json!({ "slug": "no", "name": name.replace('\u{9b}', ""), "domain": "no.test", "adopt": false });
    served.post("/tenants", &odd).await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "010" })).await;
    served.post("/tenants/acme/pause", &json!({})).await;
    world.active("no").await;
    for get in [
        &["tenants", "get", "-o", "yaml"][..],
        &["tenants", "get", "-o", "json"],
        &["tenants", "get", "no", "-o", "yaml"],
        &["export"],
        &["export", "-o", "json"],
    ] {
        let documents = ok(&run(&served, folder.path(), get).await);
        let again = run_with(&served, folder.path(), &["apply", "-f", "-"], &documents).await;
        for line in ok(&again).lines() {
            assert!(line.ends_with(": unchanged"), "{get:?}: {line}\n{documents}");
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_unless_every_document_is_right() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.yaml", TWO);
    write("b.yml", "slug: acme\nname: no\n");
    let said = failed(&run(&served, folder.path(), &["apply", "-f", "."]).await, 2);
    assert!(said.contains("b.yml, document 1, line 2") && said.contains("YAML 1.1"), "{said}");
    write("b.yml", "slug: acme\nname: Twice\nstorage: 1\n---\nslug: Bad\nname: x\n");
    write("c.json", "{\"slug\":\"c\",\"name\":\"C\",\"domain\":\"co.uk\"}");
    write("ignored.txt", "?");
    let said = failed(&run(&served, folder.path(), &["apply", "-f", "."]).await, 2);
    for expected in [
        "nothing was sent",
        "b.yml, document 1, line 3: storage is not a field of a tenant",
        "b.yml, document 2, line 5: slug",
        "c.json, document 1, line 1: domain",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    write("b.yml", "slug: acme\nname: Twice\n");
    write("c.json", "{\"slug\":\"c\",\"name\":\"C\"}");
    let said = failed(&run(&served, folder.path(), &["apply", "-f", "."]).await, 2);
    assert!(said.contains("the tenant acme is in ./a.yaml, document 1"), "{said}");
    failed(&run(&served, folder.path(), &["apply", "-f", "nowhere.yaml"]).await, 2);
    failed(&run(&served, folder.path(), &["apply"]).await, 2);
    let nothing = run_with(&served, folder.path(), &["apply", "-f", "-"], "# nothing\n").await;
    assert!(failed(&nothing, 2).contains("no document"));
    assert_eq!(count(&world).await, 0);
    served.stop().await;
}

#[tokio::test]
async fn what_cannot_be_applied_is_told_beside_its_document_and_the_others_are_applied() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let folder = tempfile::tempdir().unwrap();
    served.post("/tenants", &json!({ "slug": "going", "name": "Going" })).await;
    world.active("going").await;
    served.send(reqwest::Method::PUT, "/stops/all", None).await;
    served.send(reqwest::Method::DELETE, "/tenants/going", None).await;
    let watch = run_with(&served, folder.path(), &["apply", "-f", "-"], "slug: watch\nname: W\n").await;
    assert!(failed(&watch, 2).contains("line 1: slug is a word of the API's own"));
    failed(&run(&served, folder.path(), &["tenants", "get", "watch"]).await, 3);
    let documents = "slug: going\nname: Gone\n---\nslug: fine\nname: Fine\n";
    let output = run_with(&served, folder.path(), &["apply", "-f", "-"], documents).await;
    let said = failed(&output, 4);
    assert_eq!(text(&output.stdout), "fine: created\n");
    assert!(said.contains("standard input, document 1, line 1: going: is being deleted"), "{said}");
    assert!(said.contains("1 of 2 documents failed"), "{said}");
    served.stop().await;
}

#[tokio::test]
async fn only_what_the_selector_names_and_no_document_does_is_pruned_and_only_when_agreed() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let folder = tempfile::tempdir().unwrap();
    for slug in ["team-a", "team-b", "other"] {
        served.post("/tenants", &json!({ "slug": slug, "name": slug })).await;
    }
    std::fs::write(folder.path().join("team.yaml"), "slug: team-a\nname: A\n").unwrap();
    let apply = async |more: &[&str]| {
        run(&served, folder.path(), &[&["apply", "-f", "team.yaml"], more].concat()).await
    };
    failed(&apply(&["--prune"]).await, 2);
    failed(&apply(&["--selector", "team-*"]).await, 2);
    let prune = ["--prune", "--selector", "team-*"];
    let asked = apply(&prune).await;
    assert!(failed(&asked, 2).contains("--yes"));
    assert_eq!(text(&asked.stdout), "to prune, team-* in no document: 1\n  - team-b (team-b)\n");
    assert_eq!(world.find("team-a").await.get_str("name").unwrap(), "team-a", "nothing was done");
    let tried = ok(&apply(&[&prune[..], &["--dry-run"]].concat()).await);
    assert!(tried.contains("- team-b") && tried.contains("team-a: would be configured"), "{tried}");
    assert!(!world.find("team-b").await.contains_key("deletionRequestedAt"));

    let done = ok(&apply(&[&prune[..], &["--yes"]].concat()).await);
    assert!(done.ends_with("team-a: configured (name)\nteam-b: is being deleted\n"), "{done}");
    let left: Vec<_> =
        world.tenants.distinct("slug", doc! { "deletionRequestedAt": null }).await.unwrap();
    assert_eq!(left.len(), 2, "{left:?}");

    let delete = ["tenants", "delete", "-f", "-"];
    let gone = run_with(&served, folder.path(), &delete, "slug: other\n---\nslug: nobody\n").await;
    assert_eq!(ok(&gone), "other: is being deleted\nnobody: is not there\n");
    served.stop().await;
}

#[tokio::test]
async fn a_fleet_is_exported_imported_and_applied_again() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let documents: String = (0..600)
        .map(|n| format!("---\nslug: t{n:04}\nname: Tenant {n}\nservices: {{ authentik: false }}\n"))
        .collect();
    std::fs::write(folder.path().join("fleet.yaml"), &documents).unwrap();
    let applied = ok(&run(&served, folder.path(), &["apply", "-f", "fleet.yaml", "--wait=60s"]).await);
    assert!(applied.starts_with("t0000: created\nt0001: created\n"), "in order");
    assert!(applied.ends_with("t0599: created\n600 tenants are ready\n"), "{applied}");
    let exported = ok(&run(&served, folder.path(), &["export"]).await);
    assert_eq!(exported.matches("---\n").count(), 600);

    world.tenants.delete_one(doc! { "slug": "t0007" }).await.unwrap();
    world.set("t0008", doc! { "name": "By hand" }).await;
    std::fs::write(folder.path().join("exported.yaml"), &exported).unwrap();
    let before = world.find("t0008").await;
    let imported = ok(&run(&served, folder.path(), &["import", "exported.yaml"]).await);
    assert_eq!(imported.lines().filter(|line| line.ends_with(": created")).count(), 1);
    assert!(imported.contains("t0008: is there already, and left as it is\n"), "{imported}");
    assert_eq!(world.find("t0008").await.get("name"), before.get("name"));
    let again = ok(&run(&served, folder.path(), &["apply", "-f", "exported.yaml"]).await);
    assert!(again.contains("t0008: configured (name)\n"), "{again}");
    assert_eq!(again.lines().filter(|line| line.ends_with(": unchanged")).count(), 599);
    served.stop().await;
}

/// A server that is busy is asked again, and one that refuses the token is not asked on.
#[tokio::test]
async fn a_busy_server_is_waited_for_and_a_refused_token_ends_it() {
    use axum::http::{Method, StatusCode};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let answer = move |method: Method| {
        let counter = Arc::clone(&counter);
        async move {
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let busy = number < 3;
            let status = match (busy, method) {
                (true, _) => StatusCode::TOO_MANY_REQUESTS,
                (false, Method::GET) => StatusCode::NOT_FOUND,
                (false, _) => StatusCode::CREATED,
            };
            let body = if status == StatusCode::NOT_FOUND {
                r#"{"title":"Not found","detail":"no tenant"}"#
            } else {
                "{}"
            };
            (status, [("retry-after", "0")], body)
        }
    };
    let refused = async || (StatusCode::UNAUTHORIZED, r#"{"title":"Unauthorized"}"#);
    // A newer server may refuse what this command line knows nothing of.
    let newer = async |method: Method| match method {
        Method::GET => (StatusCode::NOT_FOUND, r#"{"title":"Not found","detail":"no tenant"}"#),
        _ => (
            StatusCode::UNPROCESSABLE_ENTITY,
            r#"{"title":"Invalid","errors":[{"field":"name","message":"is not to our taste"}]}"#,
        ),
    };
    let router = axum::Router::new()
        .route("/tenants/{slug}", axum::routing::any(answer))
        .route("/newer/tenants/{slug}", axum::routing::any(newer))
        .route("/refused/tenants/{slug}", axum::routing::any(refused));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let folder = tempfile::tempdir().unwrap();
    let documents: String = (0..50).map(|n| format!("---\nslug: t{n}\nname: T\n")).collect();
    let file = folder.path().join("t.yaml");
    std::fs::write(&file, documents).unwrap();
    let apply = async |url: &str| {
        let mut command = Process::command();
        command.args(["apply", "-f"]).arg(&file).env("TENANTRY_URL", url).stdin(Stdio::null());
        tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends").expect("it starts")
    };
    assert_eq!(ok(&apply(&url).await).lines().count(), 50);
    assert!(asked.load(Ordering::SeqCst) > 100);
    let said = failed(&apply(&format!("{url}/refused")).await, 5);
    assert!(said.contains("1 of 50 documents failed, and 49 were not tried"), "{said}");
    assert_eq!(said.matches("Unauthorized").count(), 1, "it is told once: {said}");
    let said = failed(&apply(&format!("{url}/newer")).await, 1);
    assert!(
        said.contains("t.yaml, document 2, line 5: t1: Invalid\n  name: is not to our taste"),
        "{said}"
    );
    assert!(said.contains("50 of 50 documents failed"), "{said}");
}
