//! Authentik's groups and its token endpoint: what a client relies on, and what it must beware of.

use std::sync::Mutex;
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tenantry::dev::authentik::{Release, Rights, Simulator};
use tenantry::dev::issuer::{self, Account, Provider};
use tokio::sync::OnceCell;

use crate::support::{Answer, http, setting, skip, then_tidy, unique};

const GROUPS: &str = "/api/v3/core/groups/";

/// A server, as its client sees it.
struct Server {
    http: reqwest::Client,
    base: String,
    token: String,
    /// Pks to remove again.
    made: Mutex<Vec<String>>,
}

impl Server {
    fn new(base: String, token: String) -> Self {
        Self { http: http(), base, token, made: Mutex::default() }
    }

    fn at(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    async fn get(&self, path: &str) -> Answer {
        Answer::to(self.at(Method::GET, path)).await
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = self.at(method, path).header("content-type", "application/json");
        let answer = Answer::to(request.body(body.to_string())).await;
        if answer.status == 201 {
            self.made.lock().unwrap().push(pk(&answer.json()));
        }
        answer
    }

    async fn post(&self, body: &Value) -> Answer {
        self.send(Method::POST, GROUPS, body).await
    }

    async fn create(&self, body: Value) -> Value {
        self.post(&body).await.must_be(201).json()
    }

    async fn find(&self, query: &str) -> Vec<Value> {
        let path = format!("{GROUPS}?include_users=false&page_size=100&{query}");
        self.get(&path).await.must_be(200).json()["results"].as_array().unwrap().clone()
    }

    async fn named(&self, name: &str) -> Vec<Value> {
        self.find(&form(&[("name", name)])).await
    }

    /// Whether it is 2025.12 or later, told by what a group looks like.
    async fn is_new(&self) -> bool {
        let group = self.create(json!({ "name": unique("release") })).await;
        group.get("parents").is_some()
    }

    async fn tidy(&self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap());
        for pk in made {
            let _ = self.at(Method::DELETE, &member(&pk)).send().await;
        }
    }
}

fn pk(group: &Value) -> String {
    group["pk"].as_str().unwrap_or_else(|| panic!("no pk in {group}")).to_owned()
}

fn member(pk: &str) -> String {
    format!("{GROUPS}{pk}/")
}

fn form(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Asserts what a write gets that failed in the server, or that no route takes.
#[track_caller]
fn is_trap(answer: &Answer) {
    assert_eq!((answer.status, answer.text.as_str()), (405, ""), "{answer:?}");
    assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"));
    assert!(answer.header("content-type").unwrap().starts_with("text/html"));
}

#[track_caller]
fn is_field_error(answer: &Answer, field: &str) {
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.json()[field].is_array(), "{answer:?}");
}

#[track_caller]
fn is_detail(answer: &Answer, status: u16, detail: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.json()["detail"], detail, "{answer:?}");
}

const TOKEN: &str = "contract-token";

/// Runs a test on both simulated releases, and on the real server where there is one.
async fn on_each(test: impl AsyncFn(&Server)) {
    for release in [Release::R2025_12, Release::R2025_8] {
        let simulator = Simulator::new(0, TOKEN, release).await.unwrap();
        test(&Server::new(simulator.url(), TOKEN.into())).await;
    }
    on_real(test).await;
}

/// Runs a test on the real server only, where there is one on which it can run.
async fn on_real(test: impl AsyncFn(&Server)) {
    static LACKS: OnceCell<Vec<&str>> = OnceCell::const_new();
    let Some(server) = real("TENANTRY_TEST_AUTHENTIK_TOKEN") else { return };
    let lacks = LACKS.get_or_init(|| lacking(&server)).await;
    if !lacks.is_empty() {
        return skip(&server.base, &format!("the token's user lacks {}", lacks.join(", ")));
    }
    then_tidy(test(&server), server.tidy()).await;
}

/// The real server with the token of this setting.
fn real(token: &str) -> Option<Server> {
    let base = setting("TENANTRY_TEST_AUTHENTIK_URL")?;
    let base = base.trim_end_matches('/').to_owned();
    match setting(token) {
        Some(token) => Some(Server::new(base, token)),
        None => {
            skip(&base, &format!("{token} is not given"));
            None
        }
    }
}

/// Which of the rights that the product itself needs the token's user lacks. They show only when used.
async fn lacking(server: &Server) -> Vec<&'static str> {
    let mut lacks = Vec::new();
    let mut need = |right, answer: &Answer| {
        if answer.status == 403 {
            lacks.push(right);
        }
    };
    let made = server.post(&json!({ "name": unique("rights") })).await;
    need("add_group", &made);
    need("view_group", &server.get(GROUPS).await);
    if made.status == 201 {
        let path = member(&pk(&made.json()));
        need("change_group", &server.send(Method::PATCH, &path, &json!({ "attributes": {} })).await);
        need("delete_group", &Answer::to(server.at(Method::DELETE, &path)).await);
    }
    lacks
}

/// Runs a test that breaks the lists of others for a moment: on a real server only where that is allowed.
async fn on_each_that_may_break(test: impl AsyncFn(&Server)) {
    on_each(async |server| {
        let simulated =
            setting("TENANTRY_TEST_AUTHENTIK_URL").is_none_or(|it| !it.starts_with(&server.base));
        if simulated || setting("TENANTRY_TEST_AUTHENTIK_MAY_BREAK").is_some() {
            test(server).await;
        } else {
            skip(
                &server.base,
                "it breaks the lists of others: TENANTRY_TEST_AUTHENTIK_MAY_BREAK is not given",
            );
        }
    })
    .await;
}

/// Runs a test on both simulated releases only.
async fn on_simulated(test: impl AsyncFn(&Server, &Simulator)) {
    for release in [Release::R2025_12, Release::R2025_8] {
        let simulator = Simulator::new(0, TOKEN, release).await.unwrap();
        test(&Server::new(simulator.url(), TOKEN.into()), &simulator).await;
    }
}

#[tokio::test]
async fn a_group_is_made_with_a_pk_of_the_servers_choice() {
    on_each(async |server| {
        let name = unique("contract");
        let pk_wish = "00000000-0000-4000-8000-000000000000";
        let body = json!({ "name": name, "pk": pk_wish, "nonsense": 1, "attributes": { "a": "b" } });
        let made = server.create(body).await;
        assert_ne!(pk(&made), pk_wish);
        assert_eq!((&made["name"], &made["attributes"]), (&json!(name), &json!({ "a": "b" })));
        assert_eq!(made["users"], json!([]));
        let shown = server.get(&member(&pk(&made))).await.must_be(200);
        assert!(shown.header("etag").is_none());
        assert!(shown.header("x-authentik-id").is_some());
        assert_eq!(shown.json()["name"], made["name"]);
    })
    .await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_a_400_at_its_field() {
    on_each(async |server| {
        let name = unique("contract");
        let made = server.create(json!({ "name": name })).await;
        is_field_error(&server.post(&json!({ "name": name })).await, "name");
        // With blanks around it is the same name, in other case it is not.
        is_field_error(&server.post(&json!({ "name": format!("  {name} ") })).await, "name");
        server.create(json!({ "name": name.to_uppercase() })).await;
        // One's own name is no other's.
        server.send(Method::PATCH, &member(&pk(&made)), &json!({ "name": name })).await.must_be(200);
        let other = server.create(json!({ "name": unique("contract") })).await;
        let taken = server.send(Method::PATCH, &member(&pk(&other)), &json!({ "name": name })).await;
        is_field_error(&taken, "name");
    })
    .await;
}

#[tokio::test]
async fn what_makes_no_group_is_told_by_field() {
    on_each(async |server| {
        for body in [json!({}), json!({ "name": "" }), json!({ "name": " " }), json!({ "name": null })] {
            is_field_error(&server.post(&body).await, "name");
        }
        for attributes in [json!([]), json!("x"), json!(null)] {
            let body = json!({ "name": unique("contract"), "attributes": attributes });
            is_field_error(&server.post(&body).await, "attributes");
        }
        is_field_error(&server.post(&json!([])).await, "non_field_errors");
        let request = server.at(Method::POST, GROUPS).header("content-type", "application/json");
        let answer = Answer::to(request.body("{nope")).await.must_be(400);
        assert!(answer.json()["detail"].as_str().unwrap().starts_with("JSON parse error"));
        let request = server.at(Method::POST, GROUPS).form(&[("name", "x")]);
        Answer::to(request).await.must_be(415);
    })
    .await;
}

#[tokio::test]
async fn a_filter_by_name_is_exact_and_an_empty_or_misspelt_one_is_none() {
    on_each(async |server| {
        let name = unique("Contract");
        server.create(json!({ "name": name })).await;
        server.create(json!({ "name": format!("{name}-2") })).await;
        let found = server.named(&name).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["name"], name);
        assert!(server.named(&name.to_lowercase()).await.is_empty());
        assert!(server.named(&name[..10]).await.is_empty());
        // All of them.
        for query in [form(&[("name", "")]), form(&[("nmae", &name)])] {
            let path = format!("{GROUPS}?page_size=1&{query}");
            let body = server.get(&path).await.must_be(200).json();
            assert!(body["pagination"]["count"].as_u64().unwrap() >= 2, "{query}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_filter_by_attributes_is_json_and_minds_types() {
    on_each(async |server| {
        let run = unique("run");
        let attributes = json!({ "run": run, "number": 1, "deep": { "er": "x" } });
        let made = server.create(json!({ "name": unique("contract"), "attributes": attributes })).await;
        let found = async |wanted: Value| {
            let found = server.find(&form(&[("attributes", &wanted.to_string())])).await;
            found.iter().any(|group| group["pk"] == made["pk"])
        };
        assert!(found(json!({ "run": run })).await);
        assert!(found(json!({ "run": run, "number": 1 })).await);
        assert!(found(json!({ "run": run, "deep__er": "x" })).await);
        assert!(!found(json!({ "run": run, "number": "1" })).await);
        assert!(!found(json!({ "run": run, "other": 1 })).await);
        let path = format!("{GROUPS}?attributes=nope");
        let answer = server.get(&path).await.must_be(400);
        assert_eq!(answer.json(), json!(["filter: failed to parse JSON"]));
    })
    .await;
}

#[tokio::test]
async fn a_list_comes_in_pages_which_are_followed_by_number() {
    on_each(async |server| {
        let run = unique("page");
        for number in 0..5 {
            server.create(json!({ "name": format!("{run}-{number}") })).await;
        }
        let mut names = Vec::new();
        let mut page = 1;
        loop {
            let path = format!("{GROUPS}?search={run}&page_size=2&page={page}");
            let body = server.get(&path).await.must_be(200).json();
            let results = body["results"].as_array().unwrap();
            assert!(results.len() <= 2);
            names.extend(results.iter().map(|group| group["name"].as_str().unwrap().to_owned()));
            assert_eq!(body["pagination"]["count"], 5);
            assert_eq!(body["pagination"]["current"], page);
            page = body["pagination"]["next"].as_u64().unwrap();
            if page == 0 {
                break;
            }
        }
        // In order of names.
        assert_eq!(names, (0..5).map(|number| format!("{run}-{number}")).collect::<Vec<_>>());
        for beyond in ["4", "0", "abc"] {
            let path = format!("{GROUPS}?search={run}&page_size=2&page={beyond}");
            is_detail(&server.get(&path).await, 404, "Invalid page.");
        }
        let path = format!("{GROUPS}?name=nobody-{run}");
        let empty = server.get(&path).await.must_be(200).json();
        assert_eq!(
            (&empty["pagination"]["count"], &empty["pagination"]["next"]),
            (&json!(0), &json!(0))
        );
    })
    .await;
}

/// A real server may have fewer groups than a page: then it has them all.
#[tokio::test]
async fn a_page_has_twenty_groups_and_never_more_than_a_hundred_since_2025_12() {
    for (release, default, asked) in [(Release::R2025_12, 20, 100), (Release::R2025_8, 100, 120)] {
        let simulator = Simulator::new(0, TOKEN, release).await.unwrap();
        for number in 0..120 {
            simulator.plant(&format!("group-{number}"), json!({}), &[]);
        }
        let server = Server::new(simulator.url(), TOKEN.into());
        let shown = async |query: &str| {
            let body = server.get(&format!("{GROUPS}{query}")).await.must_be(200).json();
            body["results"].as_array().unwrap().len()
        };
        assert_eq!(shown("").await, default);
        assert_eq!(shown("?page_size=1000").await, asked);
    }
    on_real(async |server| {
        let most = if server.is_new().await { 100 } else { u64::MAX };
        let body = server.get(&format!("{GROUPS}?page_size=1000")).await.must_be(200).json();
        let shown = body["results"].as_array().unwrap().len() as u64;
        assert!(shown <= most, "{shown} groups in a page");
        assert!(shown == body["pagination"]["count"].as_u64().unwrap().min(most).min(1000));
        let default = server.get(GROUPS).await.must_be(200).json();
        assert!(default["results"].as_array().unwrap().len() <= 100);
    })
    .await;
}

#[tokio::test]
async fn a_patch_replaces_attributes_whole_and_keeps_what_it_does_not_name() {
    on_each(async |server| {
        let name = unique("contract");
        let made = server.create(json!({ "name": name, "attributes": { "a": 1, "b": 2 } })).await;
        let path = member(&pk(&made));
        let changed = server.send(Method::PATCH, &path, &json!({ "attributes": { "c": 3 } })).await;
        let changed = changed.must_be(200).json();
        assert_eq!(changed["attributes"], json!({ "c": 3 }));
        assert_eq!(changed["name"], name);
        let renamed = unique("contract");
        let changed = server.send(Method::PATCH, &path, &json!({ "name": renamed })).await;
        assert_eq!(changed.must_be(200).json()["attributes"], json!({ "c": 3 }));
    })
    .await;
}

/// The user is the token's own: the others do not matter here.
#[tokio::test]
async fn a_put_without_users_empties_the_group_and_a_patch_does_not() {
    on_each(async |server| {
        let me = server.get("/api/v3/core/users/me/").await.must_be(200).json();
        let me = &me["user"]["pk"];
        let name = unique("crowd");
        let path = member(&pk(&server.create(json!({ "name": name })).await));
        let filled = server.send(Method::PATCH, &path, &json!({ "users": [me] })).await;
        assert_eq!(filled.must_be(200).json()["users"], json!([me]));
        let patched = server.send(Method::PATCH, &path, &json!({ "attributes": {} })).await;
        assert_eq!(patched.must_be(200).json()["users"], json!([me]));
        let put = server.send(Method::PUT, &path, &json!({ "name": name })).await;
        assert_eq!(put.must_be(200).json()["users"], json!([]));
        let unknown = json!({ "name": unique("crowd"), "users": [99_999_999] });
        is_field_error(&server.post(&unknown).await, "users");
    })
    .await;
}

#[tokio::test]
async fn include_users_false_spares_the_people_but_not_their_numbers() {
    on_each(async |server| {
        let made = server.create(json!({ "name": unique("contract") })).await;
        let shown = server.get(&format!("{}?include_users=false", member(&pk(&made)))).await;
        let shown = shown.must_be(200).json();
        assert!(shown["users_obj"].is_null());
        assert!(shown["users"].is_array());
    })
    .await;
}

#[tokio::test]
async fn a_removed_group_is_a_404_and_its_name_is_free_at_once() {
    on_each(async |server| {
        let name = unique("contract");
        let path = member(&pk(&server.create(json!({ "name": name })).await));
        let deleted = Answer::to(server.at(Method::DELETE, &path)).await.must_be(204);
        assert_eq!(deleted.text, "");
        let gone = "No Group matches the given query.";
        is_detail(&Answer::to(server.at(Method::DELETE, &path)).await, 404, gone);
        is_detail(&server.get(&path).await, 404, gone);
        is_detail(&server.send(Method::PATCH, &path, &json!({})).await, 404, gone);
        server.create(json!({ "name": name })).await;
        is_detail(&server.get(&member("no-uuid")).await, 404, "Not found.");
    })
    .await;
}

#[tokio::test]
async fn a_write_to_no_route_is_an_empty_405_and_a_read_a_page() {
    on_each(async |server| {
        let without_slash = GROUPS.trim_end_matches('/');
        for path in [without_slash, "/api/v3/core/nonsense/"] {
            is_trap(&server.send(Method::POST, path, &json!({ "name": unique("contract") })).await);
            let page = server.get(path).await.must_be(404);
            assert!(page.header("content-type").unwrap().starts_with("text/html"));
        }
        // A true 405 has a body.
        let answer = server.send(Method::PATCH, GROUPS, &json!({})).await;
        is_detail(&answer, 405, "Method \"PATCH\" not allowed.");
    })
    .await;
}

#[tokio::test]
async fn a_write_that_fails_in_the_database_is_an_empty_405() {
    on_each(async |server| {
        // Random, because what compresses well still fits the index.
        let letters: String =
            std::iter::repeat_with(|| format!("{:032x}", rand::random::<u128>())).take(300).collect();
        is_trap(&server.post(&json!({ "name": unique(&letters) })).await);
        let nul = json!({ "name": unique("contract"), "attributes": { "x": "a\0b" } });
        is_trap(&server.post(&nul).await);
    })
    .await;
}

/// Such a group breaks every list that it is in.
#[tokio::test]
async fn a_number_beyond_64_bits_is_taken_and_breaks_all_reading() {
    on_each_that_may_break(async |server| {
        let (poison, renamed) = (unique("poison"), unique("renamed"));
        let body = format!("{{\"name\":\"{poison}\",\"attributes\":{{\"n\":1e20}}}}");
        let request = server.at(Method::POST, GROUPS).header("content-type", "application/json");
        let made = Answer::to(request.body(body)).await.must_be(201).json();
        server.made.lock().unwrap().push(pk(&made));
        server.get(&format!("{GROUPS}?name={poison}")).await.must_be(500);
        let path = member(&pk(&made));
        let page = server.get(&path).await.must_be(500);
        assert!(page.header("content-type").unwrap().starts_with("text/html"));
        // Applied, though it does not look so.
        is_trap(&server.send(Method::PATCH, &path, &json!({ "name": renamed })).await);
        server.send(Method::PATCH, &path, &json!({ "attributes": {} })).await.must_be(200);
        assert_eq!(server.get(&path).await.must_be(200).json()["name"], renamed);
    })
    .await;
}

#[tokio::test]
async fn of_parallel_creations_one_wins_since_2025_12_and_the_others_are_refused_either_way() {
    on_each(async |server| {
        let is_new = server.is_new().await;
        let name = unique("race");
        let body = json!({ "name": name });
        let answers = futures_util::future::join_all((0..8).map(|_| server.post(&body))).await;
        let made = answers.iter().filter(|answer| answer.status == 201).count();
        for answer in answers.iter().filter(|answer| answer.status != 201) {
            match answer.status {
                400 => is_field_error(answer, "name"),
                _ => is_trap(answer),
            }
        }
        assert_eq!(server.named(&name).await.len(), made);
        assert!(made >= 1);
        if is_new {
            assert_eq!(made, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_token_is_always_a_403_and_never_challenged() {
    on_each(async |server| {
        let ask = async |authorization: &str| {
            let request = server.http.get(format!("{}{GROUPS}", server.base));
            Answer::to(request.header("Authorization", authorization)).await
        };
        let unknown = ask("Bearer nobody-has-this").await;
        is_detail(&unknown, 403, "Token invalid/expired");
        assert!(unknown.header("www-authenticate").is_none());
        let not_provided = "Authentication credentials were not provided.";
        let anonymous = Answer::to(server.http.get(format!("{}{GROUPS}", server.base))).await;
        is_detail(&anonymous, 403, not_provided);
        is_detail(&ask("Bearer ").await, 403, not_provided);
        ask("Basic YTpi").await.must_be(403);
        // The scheme's case does not matter.
        ask(&format!("bearer {}", server.token)).await.must_be(200);
    })
    .await;
}

/// It needs tokens with other rights.
#[tokio::test]
async fn without_permission_everything_is_a_403_even_an_empty_list() {
    let viewer_is_refused = async |viewer: &Server| {
        viewer.get(GROUPS).await.must_be(200);
        // Before the body is looked at.
        is_detail(&viewer.post(&json!({})).await, 403, NOT_PERMITTED);
    };
    // An account that may see what it made itself has made nothing yet.
    let own_is_alone = async |own: &Server, foreign: &str| {
        is_detail(&own.get(GROUPS).await, 403, NOT_PERMITTED);
        is_field_error(&own.post(&json!({ "name": foreign })).await, "name");
        own.create(json!({ "name": unique("mine") })).await;
        assert_eq!(own.find("").await.len(), 1);
    };
    on_simulated(async |_, simulator| {
        let with = |token: &str, rights| {
            simulator.add_token(token, rights);
            Server::new(simulator.url(), token.into())
        };
        simulator.plant("foreign", json!({}), &[]);
        viewer_is_refused(&with("viewer", Rights::Viewer)).await;
        own_is_alone(&with("own", Rights::Own), "foreign").await;
    })
    .await;
    if let Some(viewer) = real("TENANTRY_TEST_AUTHENTIK_VIEWER_TOKEN") {
        viewer_is_refused(&viewer).await;
    }
    on_real(async |server| {
        let Some(own) = real("TENANTRY_TEST_AUTHENTIK_OWN_TOKEN") else { return };
        let foreign = unique("foreign");
        server.create(json!({ "name": foreign })).await;
        then_tidy(own_is_alone(&own, &foreign), own.tidy()).await;
    })
    .await;
}

const NOT_PERMITTED: &str = "You do not have permission to perform this action.";

#[tokio::test]
async fn an_answer_other_than_json_is_not_to_be_had() {
    on_each(async |server| {
        let request = server.at(Method::GET, GROUPS).header("Accept", "text/html");
        let text = "Could not satisfy the request Accept header.";
        is_detail(&Answer::to(request).await, 406, text);
    })
    .await;
}

// The token endpoint.

const TOKEN_PATH: &str = "/application/o/token/";
const SCOPE: &str = "openid profile email";

async fn simulated_issuer() -> issuer::Simulator {
    let account = Account::new("tenantry", "app password=", &["tenant-provisioners"]);
    let mut providers = issuer::Options::default().providers;
    let restricted =
        Provider { only_group: Some("others".into()), ..Provider::public("closed", "closed") };
    providers.push(restricted);
    providers.push(Provider { client_secret: String::new(), ..Provider::public("open", "open") });
    let options = issuer::Options { providers, accounts: vec![account], ..issuer::Options::default() };
    issuer::Simulator::new(0, options).await.unwrap()
}

fn account() -> Account {
    Account::new("tenantry", "app password=", &[])
}

async fn ask(base: &str, fields: &[(&str, &str)]) -> Answer {
    Answer::to(http().post(format!("{base}{TOKEN_PATH}")).form(fields)).await
}

#[track_caller]
fn is_refused(answer: &Answer, error: &str) {
    assert_eq!(answer.status, 400, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["error"], error, "{body}");
    assert!(body["error_description"].is_string(), "{body}");
    assert_eq!(body["request_id"].as_str(), answer.header("x-authentik-id"));
}

/// Claims of a token, unverified.
fn claims(token: &Value) -> Value {
    jsonwebtoken::dangerous::insecure_decode_claims(token.as_str().unwrap()).unwrap()
}

/// What needs no credentials is asked of a real server too.
#[tokio::test]
async fn the_token_endpoint_refuses_with_400_and_only_takes_forms() {
    let simulator = simulated_issuer().await;
    // A real Authentik issues tokens itself; a simulated one leaves that to the simulated issuer.
    let issuer = setting("TENANTRY_TEST_OCIS_TOKEN_URL");
    let issuer = issuer.and_then(|url| url.strip_suffix(TOKEN_PATH).map(ToOwned::to_owned));
    let bases = [Some(simulator.url()), issuer.or_else(|| setting("TENANTRY_TEST_AUTHENTIK_URL"))];
    for base in bases.into_iter().flatten() {
        let base = base.trim_end_matches('/');
        let unknown = unique("nobody");
        let fields = [("grant_type", "client_credentials"), ("client_id", unknown.as_str())];
        is_refused(&ask(base, &fields).await, "invalid_client");
        is_refused(&ask(base, &fields[..1]).await, "invalid_client");
        let request =
            http().post(format!("{base}{TOKEN_PATH}")).header("content-type", "application/json");
        let body = json!({ "grant_type": "client_credentials", "client_id": "web" }).to_string();
        is_refused(&Answer::to(request.body(body)).await, "invalid_client");

        let got = Answer::to(http().get(format!("{base}{TOKEN_PATH}"))).await.must_be(405);
        assert_eq!((got.text.as_str(), got.header("allow")), ("", Some("POST, OPTIONS")));
        let without_slash = format!("{base}{}", TOKEN_PATH.trim_end_matches('/'));
        is_trap(&Answer::to(http().post(without_slash).form(&fields)).await);
    }
}

/// An issuer with an account of ours, as its client sees it.
struct Issuer {
    token_url: String,
    client: String,
    account: Account,
    /// For tests that torment it.
    simulator: Option<issuer::Simulator>,
}

impl Issuer {
    async fn simulated() -> Self {
        let simulator = simulated_issuer().await;
        let (token_url, client) = (simulator.token_url(), "web".to_owned());
        Self { token_url, client, account: account(), simulator: Some(simulator) }
    }

    /// The one that the file server's settings name; they name an app password, if it is an Authentik.
    fn real() -> Option<Self> {
        let token_url =
            setting("TENANTRY_TEST_OCIS_TOKEN_URL").filter(|url| url.ends_with(TOKEN_PATH))?;
        let name = setting("TENANTRY_TEST_OCIS_USERNAME");
        let password = setting("TENANTRY_TEST_OCIS_PASSWORD");
        let (Some(name), Some(password)) = (name, password) else {
            skip(&token_url, "TENANTRY_TEST_OCIS_USERNAME and _PASSWORD are not given");
            return None;
        };
        let client = setting("TENANTRY_TEST_OCIS_CLIENT_ID")?;
        let account = Account::new(&name, &password, &[]);
        Some(Self { token_url, client, account, simulator: None })
    }

    /// Asks for a token with these fields beside the usual ones.
    async fn ask(&self, fields: &[(&str, &str)]) -> Answer {
        let usual = [("grant_type", "client_credentials"), ("client_id", &*self.client)];
        Answer::to(http().post(&self.token_url).form(&[&usual[..], fields].concat())).await
    }

    /// What is granted to our account.
    async fn grant(&self, scope: &str) -> Value {
        let secret = self.account.client_secret();
        self.ask(&[("client_secret", &secret), ("scope", scope)]).await.must_be(200).json()
    }

    fn userinfo_url(&self) -> String {
        format!("{}/application/o/userinfo/", self.token_url.trim_end_matches(TOKEN_PATH))
    }
}

/// Runs a test on a simulated issuer, and on the real one where there is one.
async fn on_each_issuer(test: impl AsyncFn(&Issuer)) {
    test(&Issuer::simulated().await).await;
    if let Some(issuer) = Issuer::real() {
        test(&issuer).await;
    }
}

#[tokio::test]
async fn an_app_password_is_taken_in_three_forms() {
    on_each_issuer(async |issuer| {
        let Account { name, app_password, .. } = &issuer.account;
        let secret = issuer.account.client_secret();
        let forms = [
            vec![("client_secret", secret.as_str()), ("scope", SCOPE)],
            vec![("username", name.as_str()), ("password", app_password), ("scope", SCOPE)],
        ];
        for fields in forms {
            let answer = issuer.ask(&fields).await.must_be(200);
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            let body = answer.json();
            assert_eq!(claims(&body["access_token"])["preferred_username"], name.as_str());
            assert_eq!(body["token_type"], "Bearer");
            assert!(body["expires_in"].as_u64().is_some_and(|seconds| seconds > 0), "{body}");
        }
        let basic = async |secret: &str| {
            let request = http().post(&issuer.token_url).basic_auth(&issuer.client, Some(secret));
            let fields = [("grant_type", "client_credentials"), ("scope", SCOPE)];
            Answer::to(request.form(&fields)).await
        };
        basic(&secret).await.must_be(200);
        // It is not decoded, so a client that encodes it as the standard says is refused.
        if secret.contains('=') {
            is_refused(&basic(&secret.replace('=', "%3D")).await, "invalid_grant");
        }
    })
    .await;
}

#[tokio::test]
async fn credentials_that_do_not_hold_are_an_invalid_grant() {
    on_each_issuer(async |issuer| {
        let Account { name, app_password, .. } = &issuer.account;
        let unknown = unique("nobody");
        issuer.ask(&[("username", name), ("password", app_password)]).await.must_be(200);
        for fields in [
            vec![("username", name.as_str()), ("password", "wrong")],
            vec![("username", unknown.as_str()), ("password", app_password)],
            vec![],
            vec![("client_secret", "wrong")],
        ] {
            is_refused(&issuer.ask(&fields).await, "invalid_grant");
        }
        for grant in ["urn:x", ""] {
            let fields = [("grant_type", grant), ("client_id", &*issuer.client)];
            let answer = Answer::to(http().post(&issuer.token_url).form(&fields)).await;
            is_refused(&answer, "unsupported_grant_type");
        }
    })
    .await;
}

/// Simulated only: the accounts and clients of a real server are not ours to change.
#[tokio::test]
async fn an_account_is_refused_as_soon_as_it_changes_and_where_it_does_not_belong() {
    let simulator = simulated_issuer().await;
    let by_password = async |client: &str, name: &str, password: &str| {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("username", name),
            ("password", password),
        ];
        ask(&simulator.url(), &fields).await
    };
    is_refused(&by_password("closed", "tenantry", "app password=").await, "invalid_grant");
    // Stored without a secret, a client lets every caller in.
    let open = [("grant_type", "client_credentials"), ("client_id", "open")];
    ask(&simulator.url(), &open).await.must_be(200);
    simulator.set_app_password("tenantry", "another");
    is_refused(&by_password("web", "tenantry", "app password=").await, "invalid_grant");
    by_password("web", "tenantry", "another").await.must_be(200);
    simulator.set_active("tenantry", false);
    is_refused(&by_password("web", "tenantry", "another").await, "invalid_grant");
    assert_eq!(simulator.token_requests(), 5);
}

#[tokio::test]
async fn claims_follow_the_scopes_and_id_tokens_lack_azp() {
    on_each_issuer(async |issuer| {
        // Unknown scopes are dropped without a word.
        let body = issuer.grant("openid profile email nonsense").await;
        let mut scopes: Vec<&str> = body["scope"].as_str().unwrap().split(' ').collect();
        scopes.sort_unstable();
        assert_eq!(scopes, ["email", "openid", "profile"]);
        let access = claims(&body["access_token"]);
        assert!(access["iss"].as_str().unwrap().ends_with('/'));
        assert_eq!((&access["aud"], &access["azp"]), (&json!(issuer.client), &json!(issuer.client)));
        assert!(access["groups"].as_array().is_some_and(|groups| !groups.is_empty()), "{access}");
        let lives = access["exp"].as_i64().unwrap() - access["iat"].as_i64().unwrap();
        assert!((lives - body["expires_in"].as_i64().unwrap()).abs() <= 1, "{access}");
        assert!(access["sub"].as_str().is_some_and(|sub| !sub.is_empty()));
        assert!(access.get("nbf").is_none());
        let id = claims(&body["id_token"]);
        for claim in ["iss", "aud", "sub", "preferred_username"] {
            assert_eq!(id[claim], access[claim], "{claim}");
        }
        for claim in ["azp", "uid"] {
            assert!(id.get(claim).is_none(), "{claim}");
        }
        let bare = issuer.grant("").await;
        assert_eq!(bare["scope"], "");
        assert!(claims(&bare["access_token"]).get("preferred_username").is_none());
        if let Some(simulator) = &issuer.simulator {
            assert_eq!(access["iss"], simulator.issuer_url("ocis"));
            assert_eq!(access["groups"], json!(["tenant-provisioners"]));
            assert!(id.get("scope").is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn userinfo_tells_the_claims_as_they_are_now_to_a_token_with_openid() {
    on_each_issuer(async |issuer| {
        let userinfo =
            async |token: &str| Answer::to(http().get(issuer.userinfo_url()).bearer_auth(token)).await;
        let token =
            async |scope: &str| issuer.grant(scope).await["access_token"].as_str().unwrap().to_owned();
        let all = token(SCOPE).await;
        let told = userinfo(&all).await.must_be(200).json();
        assert!(told["groups"].is_array() && told["email"].is_string(), "{told}");
        assert!(told.get("iss").is_none());
        userinfo(&token("profile email").await).await.must_be(403);
        let unknown = userinfo("abc").await.must_be(401);
        assert_eq!(unknown.text, "");
        assert!(unknown.header("www-authenticate").unwrap().contains("invalid_token"));

        let Some(simulator) = &issuer.simulator else { return };
        simulator.set_groups("tenantry", &["moved"]);
        assert_eq!(userinfo(&all).await.must_be(200).json()["groups"], json!(["moved"]));
        simulator.set_validity(Duration::ZERO);
        userinfo(&token(SCOPE).await).await.must_be(401);
        simulator.set_active("tenantry", false);
        userinfo(&all).await.must_be(401);
    })
    .await;
}

#[tokio::test]
async fn discovery_has_no_slash_and_tells_the_name_it_was_asked_by() {
    on_each_issuer(async |issuer| {
        let trusted = claims(&issuer.grant(SCOPE).await["access_token"])["iss"].clone();
        let path = format!("{}.well-known/openid-configuration", trusted.as_str().unwrap());
        let document = Answer::to(http().get(&path)).await.must_be(200).json();
        assert_eq!(document["issuer"], trusted);
        assert_eq!(document["token_endpoint"], issuer.token_url);
        Answer::to(http().get(format!("{path}/"))).await.must_be(404);
        // A real one may be behind a proxy that minds the name.
        if issuer.simulator.is_some() {
            let request = http().get(&path).header("Host", "auth.example");
            let asked = request.header("X-Forwarded-Proto", "https");
            let document = Answer::to(asked).await.must_be(200).json();
            assert_eq!(document["issuer"], "https://auth.example/application/o/ocis/");
        }
    })
    .await;
}

#[tokio::test]
async fn the_jwks_holds_the_signing_key_and_may_not_be_cached() {
    on_each_issuer(async |issuer| {
        let token = issuer.grant(SCOPE).await["access_token"].as_str().unwrap().to_owned();
        let trusted = claims(&json!(token))["iss"].as_str().unwrap().to_owned();
        let answer = Answer::to(http().get(format!("{trusted}jwks/"))).await.must_be(200);
        assert!(answer.header("cache-control").is_none());
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.expect("it is signed with a key");
        let keys = answer.json()["keys"].as_array().unwrap().clone();
        assert!(keys.iter().any(|key| key["kid"] == kid.as_str()), "{keys:?}");
    })
    .await;
}

/// Simulated only: a real server's keys are others'.
#[tokio::test]
async fn the_jwks_holds_the_signing_key_only_and_not_even_a_list_without_one() {
    let simulator = simulated_issuer().await;
    let keys = async || {
        let url = format!("{}/application/o/ocis/jwks/", simulator.url());
        let answer = Answer::to(http().get(url)).await.must_be(200);
        assert!(answer.header("cache-control").is_none());
        answer.json()
    };
    let header = |simulator: &issuer::Simulator| {
        let token = simulator.token("ocis", "tenantry", SCOPE).unwrap();
        jsonwebtoken::decode_header(token).unwrap()
    };
    let before = keys().await;
    assert_eq!(before["keys"].as_array().unwrap().len(), 1);
    assert_eq!(before["keys"][0]["kid"].as_str(), header(&simulator).kid.as_deref());
    simulator.rotate_key();
    let after = keys().await;
    assert_eq!(after["keys"].as_array().unwrap().len(), 1);
    assert_ne!(before["keys"][0]["kid"], after["keys"][0]["kid"]);
    simulator.remove_key();
    assert_eq!(keys().await, json!({}));
    let header = header(&simulator);
    assert_eq!((header.alg, header.kid), (jsonwebtoken::Algorithm::HS256, None));
}
