//! What a reconcile would do: told from what is recorded, or after a look that changes nothing.

use std::time::Duration;

use mongodb::bson::doc;
use reqwest::Method;
use serde_json::{Value, json};
use tenantry::dev::faults::{Fault, FaultAnswer};

use crate::api;
use crate::support::{Process, eventually, http};
use crate::three::{STEPS, Suite};

/// The whole program on a suite.
struct Running {
    process: Process,
    url: String,
}

impl Running {
    async fn new(suite: &Suite) -> Self {
        let process = suite.process(&[("RESYNC_INTERVAL", "1d"), ("SWEEP_INTERVAL", "1d")]);
        let url = format!("http://{}", process.address("http").await);
        let running = Self { process, url };
        eventually("it is ready", async || {
            http().get(format!("{}/readyz", running.url)).send().await.is_ok_and(|r| r.status() == 200)
        })
        .await;
        running
    }

    async fn ask(&self, method: Method, path: &str, wait: Option<u32>) -> reqwest::Response {
        let mut request = http().request(method, format!("{}{path}", self.url));
        if let Some(wait) = wait {
            request = request.header("prefer", format!("wait={wait}"));
        }
        request.send().await.expect("it answers")
    }

    async fn plan(&self, slug: &str, wait: Option<u32>) -> Value {
        let answer = self.ask(Method::GET, &format!("/tenants/{slug}/plan"), wait).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().contains_key("preference-applied"), wait.is_some());
        api::json(answer).await
    }
}

/// Each step's action.
fn actions(plan: &Value) -> [&str; 3] {
    STEPS.map(|step| plan["steps"][step]["action"].as_str().expect("each has one"))
}

/// Fields of a step that would become something else.
fn changes(plan: &Value, step: &str) -> Vec<(String, Value, Value)> {
    let fields = plan["steps"][step]["fields"].as_array().expect("there is a list");
    let changing = fields.iter().filter(|field| field["action"] != "keep");
    changing
        .map(|field| {
            let name = field["field"].as_str().unwrap().to_owned();
            (name, field["observed"].clone(), field["desired"].clone())
        })
        .collect()
}

impl Suite {
    /// Requests of any upstream that may change something.
    fn writes(&self) -> Vec<String> {
        let (authentik, files) = (&self.world.authentik.faults, &self.files.server.faults);
        let mut requests = authentik.requests();
        requests.extend(files.requests());
        requests.retain(|request| !request.starts_with("GET "));
        requests
    }

    fn asked_for_anything(&self) -> usize {
        let faults = [&self.world.authentik.faults, &self.stalwart.faults, &self.files.server.faults];
        faults.iter().map(|faults| faults.requests().len()).sum()
    }

    fn forget(&self) {
        for faults in [&self.world.authentik.faults, &self.stalwart.faults, &self.files.server.faults] {
            faults.forget_requests();
        }
    }

    /// Changes something of a tenant in every upstream.
    fn spoil(&self, slug: &str) {
        assert_eq!(self.world.authentik.delete_named(&format!("tenant-{slug}")), 1);
        assert!(self.stalwart.change(&format!("{slug}.test"), json!({ "isEnabled": false })));
        let space = self.space(slug)["id"].as_str().unwrap().to_owned();
        assert!(self.files.server.change(&space, json!({ "quota": { "total": 5 }, "name": "Theirs" })));
    }
}

#[tokio::test]
async fn a_plan_with_a_look_names_what_a_reconcile_then_does_and_changes_nothing_itself() {
    let suite = Suite::new().await;
    let running = Running::new(&suite).await;
    suite.create("acme").await;
    let before = suite.settled("acme").await;
    suite.spoil("acme");
    let spoilt = (suite.world.authentik.groups(), suite.stalwart.domains(), suite.files.server.drives());
    suite.forget();

    let plan = running.plan("acme", None).await;
    assert_eq!(actions(&plan), ["none"; 3], "no process has looked yet");
    assert_eq!(
        (&plan["changes"], suite.asked_for_anything()),
        (&json!(0), 0),
        "and no upstream was asked"
    );
    assert_eq!(plan["looked"], false);

    let plan = running.plan("acme", Some(20)).await;
    assert_eq!(actions(&plan), ["create", "update", "update"], "{plan:#}");
    assert_eq!((&plan["changes"], &plan["looked"]), (&json!(3), &json!(true)));
    assert_eq!(changes(&plan, "stalwart"), [("isEnabled".into(), json!("false"), json!("true"))]);
    assert_eq!(
        changes(&plan, "ocis"),
        [
            ("name".into(), json!("Theirs"), json!("The acme")),
            ("quota".into(), json!("5"), json!("1000000000")),
        ]
    );
    let kept = plan["steps"]["ocis"]["fields"].as_array().unwrap();
    assert!(kept.iter().any(|field| field["action"] == "keep"), "what matches is told too: {kept:?}");
    assert_eq!(suite.writes(), Vec::<String>::new());
    let after = (suite.world.authentik.groups(), suite.stalwart.domains(), suite.files.server.drives());
    assert_eq!(spoilt, after, "nothing was changed");
    let tenant = suite.world.find("acme").await;
    for field in ["provisioningStatus", "nextReconcileAt", "conditions", "generation", "updatedAt"] {
        assert_eq!(tenant.get(field), before.get(field), "{field}");
    }

    let again = running.plan("acme", None).await;
    assert_eq!(actions(&again), actions(&plan), "what was seen is remembered");
    suite.reconcile("acme").await;
    suite.audit("acme").await;
    let space = suite.space("acme");
    assert_eq!((&space["name"], &space["quota"]["total"]), (&json!("The acme"), &json!(1_000_000_000)));
    assert_eq!(actions(&running.plan("acme", None).await), ["none"; 3]);
    running.process.stop().await;
}

#[tokio::test]
async fn an_edit_of_a_paused_tenant_is_planned_and_held_back() {
    let suite = Suite::new().await;
    let running = Running::new(&suite).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    running.ask(Method::POST, "/tenants/acme/pause", None).await;
    suite.settled("acme").await;
    suite.world.set("acme", doc! { "quota.storageBytes": 7_i64 }).await;
    let plan = running.plan("acme", Some(20)).await;
    assert_eq!(actions(&plan), ["none", "none", "update"], "{plan:#}");
    assert_eq!(plan["steps"]["ocis"]["heldBack"], "Paused");
    assert_eq!(changes(&plan, "ocis"), [("quota".into(), json!("1000000000"), json!("7"))]);
    running.ask(Method::POST, "/tenants/acme/resume", None).await;
    eventually("it is done", async || suite.space("acme")["quota"]["total"] == 7).await;
    running.process.stop().await;
}

#[tokio::test]
async fn a_look_in_vain_says_why_and_costs_the_step_nothing() {
    let suite = Suite::new().await;
    let running = Running::new(&suite).await;
    for situation in ["at work", "paused", "stopped"] {
        suite.create(situation.split(' ').next().unwrap()).await;
    }
    for (slug, act) in [("at", None), ("paused", Some("/tenants/paused/pause")), ("stopped", None)] {
        suite.settled(slug).await;
        if let Some(path) = act {
            running.ask(Method::POST, path, None).await;
        }
        let before = suite.settled(slug).await;
        if slug == "stopped" {
            suite.world.store.stop(tenantry::store::Scope::Everything).await.unwrap();
            eventually("it is stopped", async || {
                let answer = running.ask(Method::GET, "/readyz", None).await;
                api::json(answer).await["stops"]["all"] == true
            })
            .await;
        }
        suite.files.server.faults.add(crate::wait::outage());
        let plan = running.plan(slug, Some(20)).await;
        assert_eq!(actions(&plan), ["none", "none", "look"], "{slug}: {plan:#}");
        assert!(plan["steps"]["ocis"]["message"].as_str().unwrap().contains("503"), "{plan:#}");
        assert_eq!(plan["changes"], 0, "it is not known");
        let step = suite.world.step_of(slug, "ocis").await;
        for field in ["state", "attempts", "nextAttemptAt", "externalId", "lastAttemptAt"] {
            let recorded = before.get_document("steps").unwrap().get_document("ocis").unwrap();
            assert_eq!(step.get(field), recorded.get(field), "{slug}: {field}");
        }
        suite.files.server.faults.clear();
    }
    running.process.stop().await;
}

#[tokio::test]
async fn a_request_that_is_open_is_not_lost_to_a_look_nor_a_look_to_a_request() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    controller.stop().await;
    suite.spoil("acme");
    let slug = "acme".parse().unwrap();
    let store = &suite.world.store;
    store.request_reconcile_of(&slug, &[tenantry::tenant::Upstream::Ocis]).await.unwrap();
    store.request_observation(&slug).await.unwrap();
    let controller = suite.controller(|_| {}).await;
    eventually("the space is repaired", async || {
        suite.files.server.drives().iter().any(|drive| drive["name"] == "The acme")
    })
    .await;
    eventually("the others were looked at", async || {
        let seen = async |step| suite.world.step_of("acme", step).await.contains_key("observation");
        seen("authentik").await && seen("stalwart").await
    })
    .await;
    assert_eq!(suite.world.authentik.count(), 0, "and no more than that");
    controller.stop().await;

    // A request for all is about all, whichever caller wants to look.
    store.request_reconcile(&slug).await.unwrap();
    store.request_observation(&slug).await.unwrap();
    let controller = suite.controller(|_| {}).await;
    eventually("the group is there again", async || suite.world.authentik.count() == 1).await;
    suite.settled("acme").await;
    suite.audit("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_plan_of_what_is_no_tenant_says_so() {
    let suite = Suite::new().await;
    let running = Running::new(&suite).await;
    for wait in [None, Some(5)] {
        let answer = running.ask(Method::GET, "/tenants/nobody/plan", wait).await;
        api::problem(answer, 404).await;
    }
    suite.world.insert("odd").await;
    suite.world.set("odd", doc! { "domain": "x" }).await;
    eventually("it is refused", async || {
        let answer = running.ask(Method::GET, "/tenants/odd/plan", None).await;
        answer.status() == 409
            && api::json(answer).await["detail"].as_str().unwrap().contains("domain: ")
    })
    .await;
    running.process.stop().await;
}

#[tokio::test]
async fn the_command_line_shows_a_plan_and_tells_scripts_whether_there_is_anything_to_do() {
    let suite = Suite::new().await;
    let running = Running::new(&suite).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let run = async |arguments: &[&str]| {
        let mut command = Process::command();
        command.args(arguments).env("TENANTRY_URL", &running.url);
        let ended = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
        let output = ended.expect("it ends").expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, told) = run(&["tenants", "plan", "acme", "--wait", "--exit-code"]).await;
    assert_eq!(code, Some(0));
    assert!(told.starts_with("acme: nothing would be done\n"), "{told}");
    suite.spoil("acme");
    let (code, told) = run(&["tenants", "plan", "acme", "--wait", "--exit-code"]).await;
    assert_eq!(code, Some(7));
    for expected in [
        "+ authentik  create",
        "    + name: \"The acme\"",
        "~ stalwart   update",
        "    ~ isEnabled: \"false\" -> \"true\"",
        "    ~ quota: \"5\" -> \"1000000000\"",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in\n{told}");
    }
    let (code, told) = run(&["tenants", "plan", "acme", "-o", "json"]).await;
    assert_eq!(code, Some(0), "it is told only where it is asked for");
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["changes"], 3);
    // Upstreams that do not answer in time.
    suite.world.authentik.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    let (code, told) = run(&["tenants", "plan", "acme", "--wait=1s"]).await;
    assert_eq!(code, Some(6), "what is old is not taken for new: {told}");
    assert!(told.contains("~ stalwart   update"), "and shown all the same: {told}");
    suite.world.authentik.faults.clear();
    running.process.stop().await;
}
