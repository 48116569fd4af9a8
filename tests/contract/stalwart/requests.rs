//! What becomes of a request as a whole: its form, its limits, how many there may be.

use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tenantry::dev::stalwart::Options;

use super::{
    CORE, Credential, LIMIT, MANAGEMENT, NOT_REQUEST, PATIENCE, Server, alone, assert_problem,
    assert_unauthorized, on_each, read, request, text,
};

#[tokio::test]
async fn what_is_no_request_comes_back_whole_with_its_secrets() {
    on_each(async |server| {
        for body in [
            "this is not json".to_owned(),
            json!({ "foo": 1 }).to_string(),
            json!([]).to_string(),
            json!({ "using": [CORE], "methodCalls": [["x:Domain/query", {}]] }).to_string(),
            json!({ "using": [CORE, "urn:foo:bar"], "methodCalls": [] }).to_string(),
            request(json!([["x:Domain/query", { "accountId": null, "secret": "hunter2" }, "0"]]))
                .to_string(),
        ] {
            let response = server.post_as(&server.credential, body.clone()).await;
            let problem = assert_problem(response, 400, NOT_REQUEST).await;
            assert_eq!(problem["detail"], body);
        }
    })
    .await;
}

#[tokio::test]
async fn the_management_capability_need_not_be_used() {
    on_each(async |server| {
        for using in [json!([]), json!([CORE]), json!([CORE, MANAGEMENT])] {
            let calls = json!([["x:Domain/query", { "limit": 1 }, "0"]]);
            let response = server.post(&json!({ "using": using, "methodCalls": calls })).await;
            assert_eq!(read(response).await["methodResponses"][0][0], "x:Domain/query");
        }
    })
    .await;
}

#[tokio::test]
async fn sixteen_calls_are_the_most() {
    on_each(async |server| {
        let calls = |count: usize| {
            let call = json!(["x:Domain/query", { "limit": 1 }, "0"]);
            request(Value::from(vec![call; count]))
        };
        assert_eq!(server.post(&calls(16)).await.status(), StatusCode::OK);
        let problem = assert_problem(server.post(&calls(17)).await, 400, LIMIT).await;
        assert_eq!(problem["limit"], "maxCallsInRequest");
    })
    .await;
}

#[tokio::test]
async fn ten_megabytes_are_the_most() {
    on_each(async |server| {
        let filler = "x".repeat(10_500_000);
        let body = request(json!([["Core/echo", { "filler": filler }, "0"]]));
        let problem = assert_problem(server.post(&body).await, 400, LIMIT).await;
        assert_eq!(problem["limit"], "maxSizeRequest");
    })
    .await;
}

#[tokio::test]
async fn another_content_type_is_refused_and_none_is_fine() {
    on_each(async |server| {
        let body = request(json!([])).to_string();
        let post = || server.request_as(&server.credential, Method::POST, "/jmap").body(body.clone());
        let response = post().header(CONTENT_TYPE, "text/plain").send().await.unwrap();
        assert_problem(response, 400, "urn:ietf:params:jmap:error:notJSON").await;
        assert_eq!(post().send().await.unwrap().status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn more_than_four_requests_at_once_are_a_400_without_retry_after() {
    // A real server may be so quick that none is refused, and exempts some credentials.
    on_each(async |server| _ = refused_at_once(server).await).await;
    let options = Options { latency: Duration::from_millis(300), ..Options::default() };
    alone(options, async |server| {
        let refused = refused_at_once(server).await;
        assert!((1..=8).contains(&refused), "{refused}");

        server.simulator().add_key("API_unlimited", &["authenticate", "unlimitedRequests"]);
        let unlimited = Credential::Bearer("API_unlimited".into());
        let post = async || server.post_as(&unlimited, request(json!([])).to_string()).await.status();
        let statuses = futures_util::future::join_all((0..12).map(|_| post())).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    })
    .await;
}

/// Of twelve requests at once, how many are refused.
async fn refused_at_once(server: &Server) -> usize {
    let calls = request(json!([["x:Domain/query", {}, "0"]]));
    let responses = futures_util::future::join_all((0..12).map(|_| server.post(&calls))).await;
    let mut refused = 0;
    for response in responses {
        if response.status() == StatusCode::OK {
            continue;
        }
        refused += 1;
        let headers = response.headers();
        assert_eq!(headers.get(RETRY_AFTER), None);
        assert_eq!(headers["ratelimit"], "\"concurrent-requests\";r=0");
        let problem = assert_problem(response, 400, LIMIT).await;
        assert_eq!(problem["limit"], "maxConcurrentRequests");
    }
    refused
}

#[tokio::test]
async fn too_many_requests_in_a_minute_are_a_429_that_says_how_long_to_wait() {
    alone(Options { requests_per_minute: 3, ..Options::default() }, async |server| {
        let body = request(json!([])).to_string();
        let until = Instant::now() + PATIENCE;
        // A minute may end in between; it does not for ever.
        let response = loop {
            let response = server.post_as(&server.credential, body.clone()).await;
            if response.status() != StatusCode::OK {
                break response;
            }
            assert!(Instant::now() < until, "never refused");
        };
        let seconds: u64 = response.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert_eq!(response.headers()["ratelimit-policy"], "\"requests\";q=3");
        assert_eq!(response.headers()["ratelimit"], format!("\"requests\";r=0;t={seconds}"));
        let problem = assert_problem(response, 429, "about:blank").await;
        assert_eq!(problem["title"], "Too Many Requests");
        // A key that is exempt goes on.
        server.simulator().add_key("API_unlimited", &["authenticate", "unlimitedRequests"]);
        let unlimited = Credential::Bearer("API_unlimited".into());
        for _ in 0..5 {
            assert_eq!(server.post_as(&unlimited, body.clone()).await.status(), StatusCode::OK);
        }
    })
    .await;
}

#[tokio::test]
async fn too_many_wrong_logins_shut_out_even_the_right_one_by_403_and_then_without_an_answer() {
    alone(Options { max_failed_logins: 3, ..Options::default() }, async |server| {
        let wrong = Credential::Bearer("API_wrong".into());
        let body = request(json!([])).to_string();
        for _ in 0..3 {
            assert_unauthorized(server.post_as(&wrong, body.clone()).await).await;
        }
        // The right one still works, and changes nothing.
        assert_eq!(server.post_as(&server.credential, body.clone()).await.status(), StatusCode::OK);
        let response = server.post_as(&wrong, body.clone()).await;
        assert_eq!(response.headers().get(RETRY_AFTER), None);
        let problem = assert_problem(response, 429, "about:blank").await;
        assert_eq!(problem["title"], "Too Many Authentication Attempts");
        // On the connection that is open, the same words as for a key that may not authenticate.
        let shut_out = server.post_as(&server.credential, body.clone()).await;
        let problem = assert_problem(shut_out, 403, "about:blank").await;
        assert_eq!(problem["title"], "Forbidden");
        // On a new one there is no HTTP to be had.
        let posted = from(None).post(format!("{}/jmap", server.url)).body(body.clone());
        let error = posted.send().await.unwrap_err();
        assert!(error.is_request() && error.status().is_none(), "{error:?}");
        assert!(server.simulator().dropped() >= 1);
        assert_eq!(server.simulator().failed_logins(), 4);
    })
    .await;
}

#[tokio::test]
async fn a_ban_ends_when_its_block_is_destroyed_and_the_blocks_are_read_again_and_not_before() {
    alone(Options { max_failed_logins: 3, ..Options::default() }, async |server| {
        server.simulator().add_user("root@lab.test", "secret");
        let wrong = Credential::Bearer("API_wrong".into());
        let body = request(json!([])).to_string();
        for _ in 0..4 {
            server.post_as(&wrong, body.clone()).await;
        }
        // An administrator comes from elsewhere.
        let elsewhere = from(Some("127.0.0.2"));
        let administer = async |calls: Value| {
            let asked = elsewhere.post(format!("{}/jmap", server.url)).body(request(calls).to_string());
            let answer = asked.basic_auth("root@lab.test", Some("secret")).send().await.unwrap();
            read(answer).await["methodResponses"][0][1].clone()
        };
        let status = async || server.post_as(&server.credential, body.clone()).await.status();
        let blocks = administer(json!([["x:BlockedIp/get", {}, "0"]])).await;
        let block = &blocks["list"][0];
        assert_eq!(
            (&block["address"], &block["reason"], &block["expiresAt"]),
            (&json!("127.0.0.1"), &json!("authFailure"), &Value::Null)
        );
        let destroy = json!([["x:BlockedIp/set", { "destroy": [block["id"]] }, "0"]]);
        assert_eq!(administer(destroy).await["destroyed"], json!([block["id"]]));
        assert_eq!(status().await, StatusCode::FORBIDDEN);
        let reload = json!({ "create": { "a": { "@type": "ReloadBlockedIps" } } });
        let done = administer(json!([["x:Action/set", reload, "0"]])).await;
        assert!(done["created"]["a"]["id"].is_string(), "{done}");
        assert_eq!(status().await, StatusCode::OK);
        // The count goes on: one more wrong login bans again.
        let again = server.post_as(&wrong, body.clone()).await;
        assert_eq!(again.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(status().await, StatusCode::FORBIDDEN);
    })
    .await;
}

/// Connections of their own, maybe from another address of loopback.
fn from(address: Option<&str>) -> reqwest::Client {
    let address = address.map(|address| address.parse().expect("an address"));
    reqwest::Client::builder().local_address(address).build().expect("a client can be made")
}

#[tokio::test]
async fn a_server_that_was_never_set_up_says_forbidden_to_every_call() {
    alone(Options::default(), async |server| {
        server.simulator().bootstrap(true);
        for (method, what) in [("x:Domain/query", "accessed"), ("x:Domain/set", "modified")] {
            let error = server.call(method, json!({})).await.unwrap_err();
            assert_eq!(error["type"], "forbidden");
            let description = text(&error["description"]);
            assert!(description.starts_with("The server is in bootstrap mode."), "{description}");
            assert!(description.contains(what), "{description}");
        }
        server.simulator().bootstrap(false);
        server.ok("x:Domain/query", json!({})).await;
    })
    .await;
}
