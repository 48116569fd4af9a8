//! Stalwart: what tenantry relies on, and must beware of, in the management of domains over JMAP.
//! Observed on 0.16.18.
//!
//! Tests of [`on_each`] run on the simulator and, where one is given, on a real server; what torments a
//! server or needs one of its own runs [`alone`], on a simulator.

mod access;
mod calls;
mod domains;
mod links;
mod pages;
mod requests;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use reqwest::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tenantry::dev::stalwart::{Options, Simulator};

use tokio::sync::OnceCell;

use crate::support::{http, setting, skip, unique};

const KEY: &str = "API_contract-test-key";
const CORE: &str = "urn:ietf:params:jmap:core";
const MANAGEMENT: &str = "urn:stalwart:jmap";
/// No test waits longer than this for something to become so.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone)]
enum Credential {
    None,
    Bearer(String),
    Basic(String, String),
}

struct Server {
    url: String,
    credential: Credential,
    http: Client,
    simulator: Option<Simulator>,
    /// Domains that a test may have made, to be removed when it ends, however it ends.
    made: Mutex<Vec<String>>,
}

impl Server {
    async fn simulated(options: Options) -> Self {
        let simulator = Simulator::new(0, KEY, options).await.expect("the simulator listens");
        let credential = Credential::Bearer(KEY.into());
        let url = simulator.url();
        Self { url, credential, http: http(), simulator: Some(simulator), made: Mutex::default() }
    }

    fn real() -> Option<Self> {
        let url = setting("TENANTRY_TEST_STALWART_URL")?.trim_end_matches('/').to_owned();
        let credential = match setting("TENANTRY_TEST_STALWART_TOKEN") {
            Some(token) => Credential::Bearer(token),
            None => Credential::Basic(
                setting("TENANTRY_TEST_STALWART_USERNAME").expect("a real server wants a credential"),
                setting("TENANTRY_TEST_STALWART_PASSWORD").expect("a user name wants a password"),
            ),
        };
        Some(Self { url, credential, http: http(), simulator: None, made: Mutex::default() })
    }

    /// The same server with another key, whose setting is named.
    fn real_with(token: &str) -> Option<Self> {
        let mut server = Self::real()?;
        let token = setting(token).or_else(|| {
            skip(&server.url, &format!("{token} is not given"));
            None
        })?;
        server.credential = Credential::Bearer(token);
        Some(server)
    }

    /// What the credential may do, as the server tells it.
    async fn permissions(&self) -> Vec<String> {
        let account = read(self.get_as(&self.credential, "/api/account").await).await;
        let permissions = account["permissions"].as_array().cloned().unwrap_or_default();
        permissions.iter().map(text).collect()
    }

    fn simulator(&self) -> &Simulator {
        self.simulator.as_ref().expect("a test that torments runs alone")
    }

    fn request_as(&self, credential: &Credential, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match credential {
            Credential::None => request,
            Credential::Bearer(token) => request.bearer_auth(token),
            Credential::Basic(name, password) => request.basic_auth(name, Some(password)),
        }
    }

    async fn get_as(&self, credential: &Credential, path: &str) -> Response {
        self.request_as(credential, Method::GET, path).send().await.expect("an answer")
    }

    async fn post_as(&self, credential: &Credential, body: impl Into<String>) -> Response {
        self.request_as(credential, Method::POST, "/jmap")
            .header(CONTENT_TYPE, "application/json")
            .body(body.into())
            .send()
            .await
            .expect("an answer")
    }

    async fn post(&self, body: &Value) -> Response {
        self.post_as(&self.credential, body.to_string()).await
    }

    /// The answers to some calls: name and arguments of each.
    async fn calls_as(&self, credential: &Credential, calls: Value) -> Vec<(String, Value)> {
        let body = json!({ "using": [CORE, MANAGEMENT], "methodCalls": calls });
        let response = self.post_as(credential, body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json; charset=utf-8");
        let answer = read(response).await;
        let answers = answer["methodResponses"].as_array().expect("answers").clone();
        assert_eq!(answers.len(), calls.as_array().expect("calls").len());
        answers.into_iter().map(|it| (text(&it[0]), it[1].clone())).collect()
    }

    async fn calls(&self, calls: Value) -> Vec<(String, Value)> {
        self.calls_as(&self.credential, calls).await
    }

    /// One call's answer, or the method error in its place.
    async fn call(&self, method: &str, arguments: Value) -> Result<Value, Value> {
        let (name, answer) = self.calls(json!([[method, arguments, "0"]])).await.swap_remove(0);
        if name == "error" {
            return Err(answer);
        }
        assert_eq!(name, method);
        Ok(answer)
    }

    async fn ok(&self, method: &str, arguments: Value) -> Value {
        self.call(method, arguments).await.expect("the call is answered")
    }

    /// A domain name of this test's own, removed at its end.
    fn name(&self, what: &str) -> String {
        let name = format!("{}.test", unique(what));
        self.made.lock().expect("one test").push(name.clone());
        name
    }

    async fn create(&self, properties: Value) -> Value {
        self.ok("x:Domain/set", json!({ "create": { "d": properties } })).await
    }

    /// A domain with keys managed by hand: nothing comes to be linked to it by itself.
    async fn made(&self, name: &str, description: Option<&str>) -> String {
        let manual = json!({ "@type": "Manual" });
        let domain = json!({ "name": name, "description": description, "dkimManagement": manual });
        let answer = self.create(domain).await;
        answer["created"]["d"]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("not created: {answer}"))
            .to_owned()
    }

    async fn refusal(&self, properties: Value) -> Value {
        let answer = self.create(properties).await;
        assert_eq!(answer.get("created"), None, "{answer}");
        answer["notCreated"]["d"].clone()
    }

    async fn find(&self, filter: Value) -> Vec<String> {
        ids(&self.ok("x:Domain/query", json!({ "filter": filter })).await)
    }

    async fn show(&self, id: &str) -> Value {
        let answer = self.ok("x:Domain/get", json!({ "ids": [id] })).await;
        assert_eq!(answer["notFound"], json!([]));
        answer["list"][0].clone()
    }

    async fn update(&self, id: &str, patch: Value) -> Value {
        self.ok("x:Domain/set", json!({ "update": { id: patch } })).await
    }

    /// Removes what this test made, and nothing else: by the exact names that it chose.
    async fn clean(&self) {
        let names = std::mem::take(&mut *self.made.lock().expect("one test"));
        for name in names {
            let until = Instant::now() + PATIENCE;
            loop {
                let Some(id) = self.find(json!({ "name": name })).await.pop() else { break };
                let of = json!({ "filter": { "domainId": id } });
                let found = |result_of: &str, name: &str| json!({ "#destroy": { "resultOf": result_of, "name": name, "path": "/ids" } });
                let answers = self
                    .calls(json!([
                        ["x:Account/query", of, "a"],
                        ["x:Account/set", found("a", "x:Account/query"), "b"],
                        ["x:DkimSignature/query", of, "c"],
                        ["x:DkimSignature/set", found("c", "x:DkimSignature/query"), "d"],
                        ["x:Domain/set", { "destroy": [id] }, "e"],
                    ]))
                    .await;
                // Lists cannot be found by their domain, but they stand in its way. It is ours, so they are.
                let linked = &answers[4].1["notDestroyed"][&id]["linkedObjects"];
                let lists = linked.as_array().into_iter().flatten();
                let lists = lists.filter(|link| link["object"] == "MailingList").map(|link| &link["id"]);
                let lists: Vec<&Value> = lists.collect();
                if !lists.is_empty() {
                    let _ = self.call("x:MailingList/set", json!({ "destroy": lists })).await;
                }
                assert!(Instant::now() < until, "{name} cannot be removed");
            }
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn ids(answer: &Value) -> Vec<String> {
    answer["ids"].as_array().unwrap_or_else(|| panic!("no ids: {answer}")).iter().map(text).collect()
}

async fn read(response: Response) -> Value {
    let body = response.bytes().await.expect("a whole body");
    serde_json::from_slice(&body)
        .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&body)))
}

/// One test at a time talks to the real server, which refuses a fifth request at once of one account.
static REAL: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What the product itself needs, and with it every test.
const NEEDED: [&str; 8] = [
    "authenticate",
    "sysDomainGet",
    "sysDomainQuery",
    "sysDomainCreate",
    "sysDomainUpdate",
    "sysDomainDestroy",
    "sysDkimSignatureQuery",
    "sysDkimSignatureDestroy",
];

/// A simulator, and the real server if there is one. What was made there is removed even when it fails.
async fn on_each(test: impl AsyncFn(&Server)) {
    on_each_with(&[], test).await;
}

/// The same, of a test that needs more permissions than the product does.
async fn on_each_with(more: &[&str], test: impl AsyncFn(&Server)) {
    static HELD: OnceCell<Vec<String>> = OnceCell::const_new();
    for server in
        [Some(Server::simulated(Options::default()).await), Server::real()].into_iter().flatten()
    {
        let _turn = match server.simulator {
            Some(_) => None,
            None => Some(REAL.lock().await),
        };
        if server.simulator.is_none() {
            let held = HELD.get_or_init(|| server.permissions()).await;
            let needed = NEEDED.iter().chain(more);
            let lacks: Vec<&str> =
                needed.copied().filter(|name| !held.iter().any(|held| held == name)).collect();
            if !lacks.is_empty() {
                skip(&server.url, &format!("the credential lacks {}", lacks.join(", ")));
                continue;
            }
        }
        let outcome = AssertUnwindSafe(test(&server)).catch_unwind().await;
        let cleaned = AssertUnwindSafe(server.clean()).catch_unwind().await;
        for outcome in [outcome, cleaned] {
            if let Err(panic) = outcome {
                eprintln!("it failed on {}", server.url);
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// A simulator of one's own, to be tormented.
async fn alone(options: Options, test: impl AsyncFn(&Server)) {
    test(&Server::simulated(options).await).await;
}

fn request(calls: Value) -> Value {
    json!({ "using": [CORE, MANAGEMENT], "methodCalls": calls })
}

async fn assert_problem(response: Response, status: u16, kind: &str) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let body = read(response).await;
    assert_eq!((&body["type"], &body["status"]), (&json!(kind), &json!(status)), "{body}");
    body
}

async fn assert_unauthorized(response: Response) {
    let challenges: Vec<String> = response
        .headers()
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .map(|value| value.to_str().expect("a text").to_owned())
        .collect();
    assert!(challenges.len() == 2, "{challenges:?}");
    assert!(
        challenges[0].starts_with("Bearer ") && challenges[1].starts_with("Basic "),
        "{challenges:?}"
    );
    let body = assert_problem(response, 401, "about:blank").await;
    assert_eq!(body["title"], "Unauthorized");
    assert_eq!(body["detail"], "You have to authenticate first.");
}

const NOT_REQUEST: &str = "urn:ietf:params:jmap:error:notRequest";
const LIMIT: &str = "urn:ietf:params:jmap:error:limit";
