//! oCIS and OpenCloud: what a client relies on, and what it must beware of.

mod lists;
mod members;
mod spaces;
mod tokens;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::issuer::{self, Account, Signed};
use tenantry::dev::ocis::{Flavour, Options, Simulator};
use tokio::sync::OnceCell;

use crate::support::{Answer, http, setting, skip, then_tidy, unique};

const SCOPE: &str = "openid profile email";
const SERVICE: &str = "tenantry";
const PROJECTS: &str = "/graph/v1.0/drives?$filter=driveType eq 'project'";
const NO_DRIVE: &str = "no drive returned from storage";

/// A server, as its client sees it.
struct Server {
    http: reqwest::Client,
    base: String,
    token: String,
    login: Login,
    /// An account of the role User, where there is one.
    other: Option<Login>,
    /// `None` is a real server of a version that was not observed.
    flavour: Option<Flavour>,
    made: Mutex<Vec<String>>,
}

/// What a token is had for.
#[derive(Clone)]
struct Login {
    token_url: String,
    client_id: String,
    secret: String,
}

impl Login {
    async fn token(&self, scope: &str) -> String {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.client_id),
            ("client_secret", &self.secret),
            ("scope", scope),
        ];
        let answer = Answer::to(http().post(&self.token_url).form(&form)).await.must_be(200);
        text(&answer.json(), "/access_token")
    }
}

/// A simulated server with its issuer, for tests that torment them.
struct World {
    server: Server,
    ocis: Simulator,
    issuer: issuer::Simulator,
}

impl Server {
    fn at(&self, method: Method, path: &str) -> RequestBuilder {
        self.as_(method, path, &self.token)
    }

    /// With another token.
    fn as_(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(token)
    }

    async fn get(&self, path: &str) -> Answer {
        Answer::to(self.at(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.at(Method::POST, path).header("content-type", "application/json");
        let answer = Answer::to(request.body(body.to_string())).await;
        if answer.status == 201 && path.ends_with("/drives") {
            self.made.lock().unwrap().push(text(&answer.json(), "/id"));
        }
        answer
    }

    async fn create(&self, body: Value) -> Value {
        self.post("/graph/v1.0/drives", &body).await.must_be(201).json()
    }

    /// A space of a name of its own.
    async fn space(&self) -> String {
        text(&self.create(json!({ "name": unique("contract") })).await, "/id")
    }

    async fn show(&self, id: &str) -> Answer {
        self.get(&drive(id)).await
    }

    async fn patch(&self, id: &str, body: &Value) -> Answer {
        Answer::to(self.at(Method::PATCH, &drive(id)).body(body.to_string())).await
    }

    async fn disable(&self, id: &str) -> Answer {
        Answer::to(self.at(Method::DELETE, &drive(id))).await
    }

    async fn purge(&self, id: &str, word: &str) -> Answer {
        Answer::to(self.at(Method::DELETE, &drive(id)).header("Purge", word)).await
    }

    async fn restore(&self, id: &str, body: &str) -> Answer {
        let request = self.at(Method::PATCH, &drive(id)).header("Restore", "T");
        Answer::to(request.body(body.to_owned())).await
    }

    /// All entries of a list; asserts that there is nothing beside them.
    async fn list(&self, path: &str) -> Vec<Value> {
        let body = self.get(path).await.must_be(200).json();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        body["value"].as_array().unwrap().clone()
    }

    async fn lists(&self, path: &str, id: &str) -> bool {
        self.list(path).await.iter().any(|drive| drive["id"] == id)
    }

    async fn me(&self, token: &str) -> Answer {
        Answer::to(self.as_(Method::GET, "/graph/v1.0/me", token)).await
    }

    async fn share(&self, id: &str, kind: u8, with: &str, role: &str) -> Answer {
        let form =
            [("space_ref", id), ("shareType", &kind.to_string()), ("shareWith", with), ("role", role)];
        Answer::to(self.at(Method::POST, &format!("{SHARES}?format=json")).form(&form)).await
    }

    async fn unshare(&self, id: &str, with: &str) -> Answer {
        let path = format!("{SHARES}/{}?format=json&shareWith={with}", id.replace('$', "%24"));
        Answer::to(self.at(Method::DELETE, &path)).await
    }

    async fn invite(&self, id: &str, recipients: Value, roles: Value) -> Answer {
        let path = format!("/graph/v1beta1/drives/{id}/root/invite");
        self.post(&path, &json!({ "recipients": recipients, "roles": roles })).await
    }

    /// Disables and purges what the test has made.
    async fn tidy(&self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap());
        for id in made {
            let _ = self.at(Method::DELETE, &drive(&id)).send().await;
            let _ = self.at(Method::DELETE, &drive(&id)).header("Purge", "T").send().await;
        }
    }
}

const SHARES: &str = "/ocs/v2.php/apps/files_sharing/api/v1/shares";
const MANAGER: &str = "312c0871-5ef7-4b3a-85b6-0e4074c64049";
const EDITOR: &str = "58c63c02-1d89-4572-916a-870abc5a1b7d";
const VIEWER: &str = "a8d5fe5e-96e3-418d-825b-534dbdf22b99";

fn drive(id: &str) -> String {
    format!("/graph/v1.0/drives/{id}")
}

#[track_caller]
fn text(value: &Value, pointer: &str) -> String {
    let text = value.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_else(|| panic!("no text at {pointer} in {value}")).to_owned()
}

#[track_caller]
fn id_of(drive: &Value) -> String {
    text(drive, "/id")
}

/// Asserts a graph error.
#[track_caller]
fn is_error(answer: &Answer, status: u16, code: &str, message: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{error}");
    assert_eq!(error["message"], message, "{error}");
    assert!(error["innererror"]["request-id"].is_string(), "{error}");
    assert!(error["innererror"]["date"].is_string(), "{error}");
}

/// Asserts the proxy's 401 or 500, which says nothing.
#[track_caller]
fn says_nothing(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.text, "", "{answer:?}");
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
    assert!(answer.header("x-graph-version").is_none(), "{answer:?}");
}

fn service_account() -> Account {
    Account::new(SERVICE, "app-password", &["tenant-provisioners"])
}

impl World {
    async fn new(flavour: Flavour) -> Self {
        Self::with(flavour, Options::default()).await
    }

    async fn with(flavour: Flavour, options: Options) -> Self {
        let accounts = vec![service_account(), Account::new("owner", "owner-password", &["ocis-users"])];
        let issuer_options = issuer::Options { accounts, ..issuer::Options::default() };
        let issuer = issuer::Simulator::new(0, issuer_options).await.unwrap();
        let ocis = Simulator::new(0, flavour, &issuer.issuer_url("ocis"), options).await.unwrap();
        let login = |account: Account| Login {
            token_url: issuer.token_url(),
            client_id: "web".into(),
            secret: account.client_secret(),
        };
        let server = Server {
            http: http(),
            base: ocis.url(),
            token: issuer.token("ocis", SERVICE, SCOPE).unwrap(),
            login: login(service_account()),
            other: Some(login(Account::new("owner", "owner-password", &[]))),
            flavour: Some(flavour),
            made: Mutex::default(),
        };
        Self { server, ocis, issuer }
    }

    fn fresh_token(&self) -> String {
        self.issuer.token("ocis", SERVICE, SCOPE).unwrap()
    }

    /// Status of `/me` with a token.
    async fn status(&self, token: &str) -> u16 {
        self.server.me(token).await.status
    }

    fn userinfo_requests(&self) -> usize {
        self.issuer.faults.requests().iter().filter(|line| line.contains("/userinfo/")).count()
    }
}

/// The real server that the settings name. Its token is fetched once for all tests, and its first request
/// is one alone: of parallel first requests of a new account some fail.
async fn real() -> Option<Server> {
    static KNOWN: OnceCell<Known> = OnceCell::const_new();
    let base = setting("TENANTRY_TEST_OCIS_URL")?.trim_end_matches('/').to_owned();
    let Known { login, token, flavour, may } = KNOWN.get_or_init(|| log_in(&base)).await.clone();
    if !may {
        skip(&base, "the account lacks the role Space Admin");
        return None;
    }
    let name = setting("TENANTRY_TEST_OCIS_USER_USERNAME");
    let password = setting("TENANTRY_TEST_OCIS_USER_PASSWORD");
    let other = name.zip(password).map(|(name, password)| Login {
        secret: Account::new(&name, &password, &[]).client_secret(),
        ..login.clone()
    });
    Some(Server { http: http(), base, token, login, other, flavour, made: Mutex::default() })
}

/// What was found out about the real server.
#[derive(Clone)]
struct Known {
    login: Login,
    token: String,
    flavour: Option<Flavour>,
    /// Whether the account may make spaces.
    may: bool,
}

/// Built-in roles that may manage all spaces; their ids are fixed.
const SPACE_ADMINS: [&str; 2] =
    ["2aadd357-682c-406b-8874-293091995fdd", "71881883-1768-46bd-a24d-a356a2afdf7f"];

async fn log_in(base: &str) -> Known {
    let needed = |name: &str| setting(name).unwrap_or_else(|| panic!("{name} is needed as well"));
    let name = setting("TENANTRY_TEST_OCIS_USERNAME");
    let account = name.zip(setting("TENANTRY_TEST_OCIS_PASSWORD"));
    let secret = account.map(|(name, password)| Account::new(&name, &password, &[]).client_secret());
    let login = Login {
        token_url: needed("TENANTRY_TEST_OCIS_TOKEN_URL"),
        client_id: needed("TENANTRY_TEST_OCIS_CLIENT_ID"),
        secret: secret.unwrap_or_else(|| needed("TENANTRY_TEST_OCIS_CLIENT_SECRET")),
    };
    let token = login.token(&setting("TENANTRY_TEST_OCIS_SCOPE").unwrap_or_else(|| SCOPE.into())).await;
    let me = format!("{base}/graph/v1.0/me?$expand=appRoleAssignments");
    let me = Answer::to(http().get(me).bearer_auth(&token)).await.must_be(200);
    let roles = me.json()["appRoleAssignments"].as_array().cloned().unwrap_or_default();
    let may = roles.iter().any(|role| SPACE_ADMINS.contains(&role["appRoleId"].as_str().unwrap_or("")));
    let flavour = match me.header("x-graph-version").unwrap_or_default() {
        version if version.starts_with("3.1.") => Some(Flavour::Ocis31),
        version if version.starts_with("5.0.") => Some(Flavour::Ocis5),
        version if version.starts_with("7.1.") => Some(Flavour::Ocis7),
        version if version.starts_with("0.1.") => Some(Flavour::OpenCloud),
        _ => None,
    };
    Known { login, token, flavour, may }
}

/// Runs a test on all simulated servers, and on the real one where there is one.
async fn on_each(test: impl AsyncFn(&Server)) {
    for flavour in Flavour::ALL {
        let world = World::new(flavour).await;
        test(&world.server).await;
    }
    if let Some(server) = real().await {
        then_tidy(test(&server), server.tidy()).await;
    }
}

/// Runs a test that needs a second account, of the role User: its token is given.
async fn on_each_with_another(test: impl AsyncFn(&Server, &str)) {
    on_each(async |server| match &server.other {
        Some(other) => test(server, &other.token(SCOPE).await).await,
        None => skip(&server.base, "TENANTRY_TEST_OCIS_USER_USERNAME and _PASSWORD are not given"),
    })
    .await;
}

/// Runs a test that torments the servers, on the simulated ones only.
async fn on_simulated(test: impl AsyncFn(&mut World)) {
    for flavour in Flavour::ALL {
        test(&mut World::new(flavour).await).await;
    }
}

#[tokio::test]
async fn a_request_id_is_taken_over_and_otherwise_two_are_made() {
    on_each(async |server| {
        let post = async |id: Option<&str>| {
            let mut request = server.at(Method::POST, "/graph/v1.0/drives").body("{\"name\":\"a/b\"}");
            if let Some(id) = id {
                request = request.header("X-Request-Id", id);
            }
            let answer = Answer::to(request).await.must_be(400);
            let body = text(&answer.json(), "/error/innererror/request-id");
            (answer.header("x-request-id").unwrap().to_owned(), body)
        };
        let id = "tenant/foo/17".to_owned();
        assert_eq!(post(Some(&id)).await, (id.clone(), id));
        let (header, body) = post(None).await;
        assert_ne!(header, body);
    })
    .await;
}

#[tokio::test]
async fn the_version_is_told_by_the_graph_and_not_by_the_proxy() {
    on_each(async |server| {
        let answer = server.get("/graph/v1.0/me").await.must_be(200);
        assert!(answer.header("x-graph-version").is_some());
        let kind = answer.header("content-type").unwrap();
        match server.flavour {
            Some(Flavour::Ocis31) => assert_eq!(kind, "application/json; charset=utf-8"),
            Some(Flavour::OpenCloud) => assert_eq!(kind, "application/json"),
            _ => assert!(kind.starts_with("application/json")),
        }
        assert!(answer.header("etag").is_none());
        says_nothing(&server.me("garbage").await, 401);
    })
    .await;
}

#[tokio::test]
async fn a_401_is_empty_but_for_a_delete_and_hardly_challenges() {
    on_each(async |server| {
        let answer = server.me("abc.def.ghi").await;
        says_nothing(&answer, 401);
        let challenges = answer.headers.get_all("www-authenticate").iter().count();
        match server.flavour {
            Some(Flavour::Ocis31) => assert_eq!(challenges, 0),
            // To basic authentication only where that is on, and of other versions it was not looked at.
            _ => assert!(challenges <= 2, "{challenges}"),
        }
        let path = drive("not-an-id");
        let deleted = Answer::to(server.as_(Method::DELETE, &path, "garbage")).await.must_be(401);
        assert!(deleted.header("content-type").unwrap().starts_with("text/xml"));
        assert!(deleted.text.contains("PermissionDenied"));
        let nobody = Answer::to(server.http.get(format!("{}/graph/v1.0/me", server.base))).await;
        says_nothing(&nobody, 401);
    })
    .await;
}

#[tokio::test]
async fn the_scheme_of_a_token_is_bearer_with_a_capital() {
    on_each(async |server| {
        let request = server.http.get(format!("{}/graph/v1.0/me", server.base));
        let request = request.header("Authorization", format!("bearer {}", server.token));
        says_nothing(&Answer::to(request).await, 401);
    })
    .await;
}

/// What a newcomer does with curl.
#[tokio::test]
async fn the_simulator_can_be_broken_over_http() {
    on_simulated(async |world| {
        let id = world.server.space().await;
        let at = |method, path: String| world.server.http.request(method, world.ocis.url() + &path);
        let listed = Answer::to(at(Method::GET, "/_sim/drives".into())).await.must_be(200).json();
        assert_eq!(listed["value"].as_array().unwrap().len(), 1);
        let one = format!("/_sim/drives/{id}");
        let patch = json!({ "name": "x", "description": "" }).to_string();
        let request = at(Method::PATCH, one.clone()).header("content-type", "application/json");
        Answer::to(request.body(patch)).await.must_be(204);
        Answer::to(at(Method::POST, format!("{one}/disable"))).await.must_be(204);
        let shown = &world.ocis.drives()[0];
        assert_eq!(
            (&shown["name"], &shown["root"]["deleted"]["state"]),
            (&json!("x"), &json!("trashed"))
        );
        assert_eq!((world.ocis.count(), world.ocis.enabled()), (1, 0));
        Answer::to(at(Method::DELETE, one.clone())).await.must_be(204);
        Answer::to(at(Method::DELETE, one)).await.must_be(404);
        Answer::to(at(Method::GET, "/_sim/requests".into())).await.must_be(200);
    })
    .await;
}
