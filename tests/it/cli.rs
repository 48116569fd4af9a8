//! The command line against a real API, as people and scripts use it.

use std::process::{Output, Stdio};

use mongodb::bson::doc;
use serde_json::{Value, json};

use crate::api::Served;
use crate::support::{DEADLINE, Process, World, eventually};

/// Runs `tenantry` with these arguments against the served API.
async fn run(served: &Served, arguments: &[&str]) -> Output {
    run_at(&format!("http://{}", served.addresses.http), arguments, &[]).await
}

async fn run_at(url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Process::command();
    command.args(arguments).env("TENANTRY_URL", url).envs(environment.iter().copied());
    command.stdin(Stdio::null());
    tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends").expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it printed, if it succeeded.
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// What it said on standard error, if it ended with this code.
fn failed(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}{}", text(&output.stdout));
    assert!(output.stdout.is_empty(), "errors are not on standard output: {}", text(&output.stdout));
    said
}

#[tokio::test]
async fn a_tenant_is_created_shown_edited_and_reconciled() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let create = ["tenants", "create", "acme", "--name", "Acme GmbH", "--domain", "acme.test"];
    let more = ["--quota", "10GB", "--disable", "ocis", "--wait", "-o", "json"];
    let created = ok(&run(&served, &[&create[..], &more].concat()).await);
    let tenant: Value = serde_json::from_str(&created).unwrap();
    assert_eq!(tenant["status"], "active", "it waited");
    assert_eq!(tenant["quota"]["storageBytes"], 10_000_000_000_u64);
    assert_eq!(tenant["services"]["ocis"], false);

    let table = ok(&run(&served, &["tenants", "get"]).await);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("SLUG  NAME       STATUS"), "{table}");
    assert!(lines[1].starts_with("acme  Acme GmbH  active  True   ok"), "{table}");
    assert!(!table.contains('\x1b'), "no colours where they are not seen");
    assert_eq!(ok(&run(&served, &["tenants", "get", "-o", "name"]).await), "acme\n");
    assert!(ok(&run(&served, &["tenants", "get", "acme", "-o", "wide"]).await).contains("10 GB"));
    let yaml = ok(&run(&served, &["tenants", "get", "acme", "-o", "yaml"]).await);
    assert!(yaml.contains("\nname: \"Acme GmbH\"\n") && yaml.contains("\n  ocis: false\n"), "{yaml}");

    let edit =
        ["tenants", "edit", "acme", "--no-domain", "--enable", "ocis", "--name", "Acme AG", "--wait"];
    ok(&run(&served, &edit).await);
    let stored = world.find("acme").await;
    assert_eq!(stored.get_str("name").unwrap(), "Acme AG");
    assert!(!stored.contains_key("domain"));
    assert_eq!(world.group("tenant-acme")["attributes"]["tenantry_name"], "Acme AG", "it waited");

    world.authentik.delete_named("tenant-acme");
    assert_eq!(ok(&run(&served, &["tenants", "reconcile", "acme", "--wait"]).await), "acme: ready\n");
    world.group("tenant-acme");
    let waited = run(&served, &["tenants", "wait", "acme", "--for=ready", "--timeout", "5s"]).await;
    assert_eq!(ok(&waited), "acme: ready\n");
    served.stop().await;
}

#[tokio::test]
async fn describe_tells_spec_steps_conditions_and_what_is_wrong() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme", "domain": "acme.test" })).await;
    world.active("acme").await;
    let text = ok(&run(&served, &["tenants", "describe", "acme"]).await);
    for expected in [
        "Slug:         acme\n",
        "Status:       active\n",
        "Generation:   1 (observed: 1)\n",
        "  Domain:     acme.test\n",
        "  Services:   authentik, ocis, stalwart\n",
        "Steps:\n  NAME ",
        "  stalwart   skipped  NotConfigured",
        "Conditions:\n  TYPE   STATUS  REASON",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    served.stop().await;
}

#[tokio::test]
async fn exit_codes_and_messages_tell_scripts_and_people_what_went_wrong() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    world.active("acme").await;
    let create = ["tenants", "create", "acme", "--name", "Acme"];
    assert!(failed(&run(&served, &create).await, 4).contains("Slug taken"));
    assert!(failed(&run(&served, &["tenants", "get", "nobody"]).await, 3).contains("no tenant"));
    assert!(
        failed(&run(&served, &["tenants", "create", "Acme", "--name", "x"]).await, 2)
            .contains("lower-case")
    );
    failed(&run(&served, &["tenants", "edit", "acme", "--quota", "lots"]).await, 2);
    let nothing = failed(&run(&served, &["tenants", "edit", "acme"]).await, 2);
    assert!(nothing.contains("EDITOR"), "{nothing}");
    let invalid = failed(&run(&served, &["tenants", "edit", "acme", "--domain", "x"]).await, 1);
    assert!(invalid.contains("\n  domain: must have at least two labels"), "{invalid}");
    let missing = failed(&run(&served, &["tenants", "get", "acme", "-o", "xml"]).await, 2);
    assert!(missing.contains("possible values"), "{missing}");

    world.set("acme", doc! { "name": "Later" }).await;
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Status {
            status: 503,
            body: String::new(),
            retry_after: None,
        },
        ..Default::default()
    });
    world.step_becomes("acme", "error").await;
    let late = run(&served, &["tenants", "wait", "acme", "--for=ready", "--timeout", "300ms"]).await;
    let late = failed(&late, 6);
    assert!(late.contains("acme is not ready after 300ms") && late.contains("describe"), "{late}");
    let gone = run(&served, &["tenants", "wait", "nobody", "--for=deleted", "--timeout", "1s"]).await;
    assert_eq!(ok(&gone), "nobody: deleted\n");

    let nowhere = run_at("http://127.0.0.1:9", &["tenants", "get"], &[]).await;
    let nowhere = failed(&nowhere, 1);
    assert!(nowhere.contains("http://127.0.0.1:9") && nowhere.contains("TENANTRY_URL"), "{nowhere}");
    failed(&run_at("ftp://x", &["tenants", "get"], &[]).await, 2);
    served.stop().await;
}

/// An editor that runs these words of `sh` on the file, which is `$1`.
fn editor(script: &str) -> String {
    format!("sh -c '{script}' sh")
}

#[tokio::test]
async fn an_edit_in_an_editor_sends_what_was_changed_and_only_if_no_other_was_quicker() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme", "domain": "acme.test" })).await;
    let url = format!("http://{}", served.addresses.http);
    let edit =
        async |editor: &str| run_at(&url, &["tenants", "edit", "acme"], &[("EDITOR", editor)]).await;
    ok(&edit("sed -i s/Acme/Edited/").await);
    assert_eq!(world.find("acme").await.get_str("name").unwrap(), "Edited");
    let untouched = edit("true").await;
    assert!(text(&untouched.stderr).contains("nothing was changed"));
    failed(&edit("false").await, 1);
    // Another client is quicker, while the editor is open.
    let quicker = format!(
        "curl -sf -X PATCH -H content-type:application/json -d '{{\"quota\":{{\"storageBytes\":1}}}}' \
         {url}/tenants/acme -o /dev/null; sed -i s/Edited/Lost/"
    );
    let lost = failed(&edit(&quicker).await, 4);
    assert!(lost.contains("Precondition failed"), "{lost}");
    assert_eq!(world.find("acme").await.get_str("name").unwrap(), "Edited");
    let kept = lost.split("What was typed is kept in ").nth(1).expect("it says where").trim();
    assert!(std::fs::read_to_string(kept).unwrap().contains("Lost"), "it can be taken up again");
    std::fs::remove_file(kept).unwrap();
    served.stop().await;
}

#[tokio::test]
async fn an_edit_in_an_editor_shows_every_field_and_keeps_a_pause_and_adopt() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme", "adopt": true })).await;
    ok(&run(&served, &["tenants", "pause", "acme"]).await);
    let url = format!("http://{}", served.addresses.http);
    let shown = tempfile::NamedTempFile::new().unwrap();
    let copy = editor(&format!("cp \"$1\" {}; sed -i s/Acme/Edited/ \"$1\"", shown.path().display()));
    ok(&run_at(&url, &["tenants", "edit", "acme"], &[("EDITOR", &copy)]).await);
    let stored = world.find("acme").await;
    assert_eq!(stored.get_str("name").unwrap(), "Edited");
    assert!(stored.get_bool("paused").unwrap() && stored.get_bool("adopt").unwrap(), "{stored}");
    let shown: Value = serde_json::from_slice(&std::fs::read(shown.path()).unwrap()).unwrap();
    let whole = served.get("/tenants/acme").await.text().await.unwrap();
    let whole: Value = serde_json::from_str(&whole).unwrap();
    for field in ["domain", "quota", "services", "paused", "adopt"] {
        assert_eq!(shown[field], whole[field], "{shown}");
        assert!(shown.as_object().unwrap().contains_key(field), "{shown}");
    }

    let resume = editor("sed -i /paused/s/true/false/ \"$1\"");
    ok(&run_at(&url, &["tenants", "edit", "acme"], &[("EDITOR", &resume)]).await);
    assert!(!world.find("acme").await.get_bool("paused").unwrap_or(false), "it says what was typed");
    served.stop().await;
}

/// The token is shown, and a server that lacks something is told from a tenant that is not there.
#[tokio::test]
async fn tokens_are_sent_and_what_a_server_lacks_reads_well() {
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, post};
    let told = |headers: HeaderMap| async move {
        let shown = headers.get("authorization").and_then(|value| value.to_str().ok());
        match shown {
            Some("Bearer secret") => (StatusCode::OK, r#"{"items":[],"next":null}"#),
            Some(_) => {
                (StatusCode::FORBIDDEN, r#"{"title":"Forbidden","detail":"the role reader is missing"}"#)
            }
            None => (StatusCode::UNAUTHORIZED, r#"{"title":"Unauthorized","detail":"no token"}"#),
        }
    };
    let token = async |body: String| {
        assert!(body.contains("grant_type=client_credentials"), "{body}");
        if body.contains("client_secret=right") {
            (StatusCode::OK, r#"{"access_token":"secret","expires_in":300}"#)
        } else {
            (StatusCode::BAD_REQUEST, r#"{"error":"invalid_client"}"#)
        }
    };
    let router = axum::Router::new().route("/tenants", get(told)).route("/token", post(token));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });

    let get = ["tenants", "get", "-o", "name"];
    let without = failed(&run_at(&url, &get, &[]).await, 5);
    assert!(without.contains("TENANTRY_TOKEN"), "{without}");
    let wrong = failed(&run_at(&url, &get, &[("TENANTRY_TOKEN", "other")]).await, 5);
    assert!(wrong.contains("role reader") && !wrong.contains("other"), "{wrong}");
    ok(&run_at(&url, &get, &[("TENANTRY_TOKEN", "secret")]).await);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret\n").unwrap();
    ok(&run_at(&url, &get, &[("TENANTRY_TOKEN_FILE", file.path().to_str().unwrap())]).await);
    let token_url = format!("{url}/token");
    let credentials = |secret| {
        [
            ("TENANTRY_OIDC_TOKEN_URL", token_url.as_str()),
            ("TENANTRY_OIDC_CLIENT_ID", "cli"),
            ("TENANTRY_OIDC_CLIENT_SECRET", secret),
        ]
    };
    ok(&run_at(&url, &get, &credentials("right")).await);
    let mut astray = credentials("right");
    let nowhere = format!("{url}/nowhere");
    astray[0].1 = &nowhere;
    let said = failed(&run_at(&url, &get, &astray).await, 2);
    assert!(said.contains("TENANTRY_OIDC_TOKEN_URL") && said.contains("token endpoint"), "{said}");
    let tls = failed(&run_at(&url.replace("http://", "https://"), &get, &[]).await, 1);
    assert!(tls.contains("not with TLS"), "{tls}");
    let refused = failed(&run_at(&url, &get, &credentials("wrong")).await, 5);
    assert!(refused.contains("invalid_client") && !refused.contains("=wrong"), "{refused}");

    let token = [("TENANTRY_TOKEN", "secret")];
    for (command, lacks) in [
        (&["tenants", "pause", "acme"][..], "no way to pause tenants"),
        (&["tenants", "events", "acme"], "no history"),
        (&["stop"], "no emergency stop"),
        (&["orphans"], "no list of orphans"),
    ] {
        let said = failed(&run_at(&url, command, &token).await, 1);
        assert!(said.contains(lacks), "{said}");
    }
}

#[tokio::test]
async fn a_tenant_is_paused_deleted_taken_back_and_gone_and_its_history_tells_it() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let create = ["tenants", "create", "acme", "--name", "Acme", "--wait"];
    ok(&run(&served, &create).await);
    ok(&run(&served, &["tenants", "pause", "acme"]).await);
    world.authentik.delete_named("tenant-acme");
    let reconciled = run(&served, &["tenants", "reconcile", "acme", "--wait"]).await;
    let said = failed(&reconciled, 1);
    assert!(said.contains("there is none"), "what differs is shown: {said}");
    assert_eq!(world.authentik.count(), 0, "and left alone");
    ok(&run(&served, &["tenants", "resume", "acme"]).await);
    ok(&run(&served, &["tenants", "wait", "acme", "--for=ready"]).await);
    world.group("tenant-acme");

    ok(&run(&served, &["stop"]).await);
    let stops = ok(&run(&served, &["stops"]).await);
    assert!(stops.starts_with("UPSTREAM   STOPPED\nall        true\nauthentik  false\n"), "{stops}");
    let delete = ["tenants", "delete", "acme", "--policy", "delete"];
    assert!(ok(&run(&served, &delete).await).contains("is being deleted"));
    assert_eq!(
        ok(&run(&served, &["tenants", "get", "--status", "deleting", "-o", "name"]).await),
        "acme\n"
    );
    ok(&run(&served, &["tenants", "undelete", "acme"]).await);
    ok(&run(&served, &["start"]).await);
    ok(&run(&served, &["tenants", "wait", "acme", "--for=active"]).await);
    world.group("tenant-acme");

    ok(&run(&served, &delete).await);
    let gone = ["tenants", "wait", "acme", "--for=deleted", "--timeout", "20s"];
    ok(&run(&served, &gone).await);
    assert_eq!(world.authentik.count(), 0);
    failed(&run(&served, &["tenants", "get", "acme"]).await, 3);
    eventually("the history tells the end", async || {
        ok(&run(&served, &["tenants", "events", "acme"]).await).contains("Deleted")
    })
    .await;
    let guards = ok(&run(&served, &["guards"]).await);
    assert!(guards.contains("\nauthentik  armed  "), "{guards}");
    let yaml = ok(&run(&served, &["guards", "-o", "yaml"]).await);
    assert!(yaml.contains("stalwart:\n"), "as the API says it: {yaml}");
    let events = ok(&run(&served, &["events"]).await);
    assert!(events.contains("Stopped") && events.contains("Started"), "{events}");
    assert!(failed(&run(&served, &["guards", "lift", "authentik"]).await, 4).contains("not tripped"));
    ok(&run(&served, &["orphans"]).await);
    served.stop().await;
}

#[tokio::test]
async fn every_command_explains_itself_and_shells_can_complete_it() {
    for command in [
        "create",
        "get",
        "describe",
        "edit",
        "reconcile",
        "plan",
        "pause",
        "resume",
        "wait",
        "watch",
        "events",
        "delete",
        "undelete",
    ] {
        let help = ok(&run_at("http://127.0.0.1:9", &["tenants", command, "--help"], &[]).await);
        assert!(help.contains("Example") && help.contains("tenantry tenants "), "{help}");
    }
    let help = ok(&run_at("http://127.0.0.1:9", &["tenants", "--help"], &[]).await);
    assert!(help.contains("Exit codes") && help.contains("TENANTRY_URL"), "{help}");
    let secret = [("TENANTRY_TOKEN", "hush")];
    let help = ok(&run_at("http://127.0.0.1:9", &["tenants", "get", "--help"], &secret).await);
    assert!(!help.contains("hush"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(&run_at("http://127.0.0.1:9", &["completions", shell], &[]).await);
        assert!(script.contains("reconcile") && script.contains("idempotency-key"), "{shell}");
    }
}

#[tokio::test]
async fn watch_prints_what_there_is_and_then_every_change() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    world.active("acme").await;
    let mut command = Process::command();
    command.args(["tenants", "watch"]).env("TENANTRY_URL", format!("http://{}", served.addresses.http));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("it says something");
        line.unwrap().expect("it goes on")
    };
    let first = line().await;
    assert!(first.contains(" acme: active ready=True authentik=ok"), "{first}");
    world.insert("globex").await;
    let mut heard = line().await;
    while !heard.contains("globex: active ready=True") {
        heard = line().await;
    }
    world.tenants.delete_one(doc! { "slug": "globex" }).await.unwrap();
    let gone = line().await;
    assert!(gone.contains(" globex: gone"), "{gone}");
    child.kill().await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_one_command_and_lists_are_filtered_sorted_and_watched() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    for (slug, name) in [("acme", "Zeta"), ("globex", "Beta"), ("initech", "Alpha")] {
        served.post("/tenants", &json!({ "slug": slug, "name": name })).await;
        world.active(slug).await;
    }
    let names = async |arguments: &[&str]| {
        let get = [&["tenants", "get", "-o", "name"], arguments].concat();
        ok(&run(&served, &get).await)
    };
    assert_eq!(names(&["--ready=false"]).await, "");
    assert_eq!(names(&["--ready"]).await, "acme\nglobex\ninitech\n");
    assert_eq!(names(&["--sort-by", "name"]).await, "initech\nglobex\nacme\n");
    assert_eq!(names(&["--sort-by=-slug"]).await, "initech\nglobex\nacme\n");
    assert_eq!(names(&["-q", "ZET"]).await, "acme\n");
    assert_eq!(names(&["acme", "globex", "-q", "beta"]).await, "globex\n");

    world.authentik.plant("tenant-hooli", json!({}), &[]);
    served.post("/tenants", &json!({ "slug": "hooli", "name": "Hooli" })).await;
    world.step_becomes("hooli", "error").await;
    for filter in ["--ready=false", "--upstream=authentik=error", "--reason=Conflict"] {
        assert_eq!(names(&[filter]).await, "hooli\n", "{filter}");
    }
    let table = ok(&run(&served, &["tenants", "get", "--ready=false", "--no-headers"]).await);
    assert!(table.starts_with("hooli  Hooli  pending  False") && table.lines().count() == 1, "{table}");
    let wrong = failed(&run(&served, &["tenants", "get", "--upstream", "mail=error"]).await, 2);
    assert!(wrong.contains("authentik, stalwart or ocis"), "{wrong}");
    let wrong = failed(&run(&served, &["tenants", "get", "--reason", "Bad"]).await, 1);
    assert!(wrong.contains("reason: must be one of InSync"), "{wrong}");

    let mut command = Process::command();
    command.args(["tenants", "get", "--ready=false", "--watch"]);
    command.env("TENANTRY_URL", format!("http://{}", served.addresses.http));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("it says something");
        line.unwrap().expect("it goes on")
    };
    let first = line().await;
    assert!(first.contains(" hooli: pending ready=False"), "{first}");
    ok(&run(&served, &["tenants", "edit", "hooli", "--adopt", "yes", "--wait"]).await);
    loop {
        let next = line().await;
        assert!(next.contains(" hooli: "), "of what is well it says nothing: {next}");
        if next.contains("ready=True") {
            break;
        }
    }
    child.kill().await.unwrap();
    served.stop().await;
}
