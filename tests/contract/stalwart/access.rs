//! Where the server is, who may come in, and what they may do.

use reqwest::header::{CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tenantry::dev::stalwart::Options;

use super::{
    CORE, Credential, KEY, MANAGEMENT, Server, alone, assert_problem, assert_unauthorized, on_each,
    read, request, text,
};

#[tokio::test]
async fn management_is_a_post_to_jmap_with_or_without_a_slash_and_nothing_else() {
    on_each(async |server| {
        for path in ["/jmap", "/jmap/"] {
            let response = server
                .request_as(&server.credential, Method::POST, path)
                .header(CONTENT_TYPE, "application/json; charset=utf-8")
                .body(request(json!([["x:Domain/query", { "limit": 1 }, "0"]])).to_string())
                .send()
                .await
                .unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            let answer = read(response).await;
            assert_eq!(answer["methodResponses"][0][0], "x:Domain/query");
        }
        let posted = server.request_as(&server.credential, Method::POST, "/api").body("{}");
        assert_problem(posted.send().await.unwrap(), 404, "about:blank").await;
        for path in ["/jmap", "/api/principal"] {
            let response = server.get_as(&server.credential, path).await;
            assert_problem(response, 404, "about:blank").await;
        }
        let head = server.request_as(&server.credential, Method::HEAD, "/jmap/session");
        assert_eq!(head.send().await.unwrap().status(), StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test]
async fn discovery_redirects_to_a_relative_session_without_asking_who() {
    on_each(async |server| {
        let response = server.get_as(&Credential::None, "/.well-known/jmap").await;
        assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(response.headers()[LOCATION], "/jmap/session");
    })
    .await;
}

#[tokio::test]
async fn the_session_answers_without_credentials_and_then_names_no_account() {
    on_each(async |server| {
        let response = server.get_as(&Credential::None, "/jmap/session").await;
        assert_eq!(response.status(), StatusCode::OK);
        let nobody = read(response).await;
        assert_eq!((&nobody["accounts"], &nobody["username"]), (&json!({}), &json!("")));

        let response = server.get_as(&server.credential, "/jmap/session").await;
        assert_eq!(response.status(), StatusCode::OK);
        let known = read(response).await;
        assert_ne!(known["username"], "");
        assert_eq!(known["accounts"].as_object().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_session_tells_the_limits_and_hides_the_management_capability() {
    on_each(async |server| {
        let session = read(server.get_as(&server.credential, "/jmap/session").await).await;
        let core = &session["capabilities"][CORE];
        for (limit, value) in [
            ("maxSizeRequest", 10_000_000),
            ("maxConcurrentRequests", 4),
            ("maxCallsInRequest", 16),
            ("maxObjectsInGet", 500),
            ("maxObjectsInSet", 500),
        ] {
            assert_eq!(core[limit], value, "{limit}");
        }
        assert_eq!(session["capabilities"].get(MANAGEMENT), None);
        let account = text(&session["primaryAccounts"][MANAGEMENT]);
        assert_eq!(session["accounts"][&account]["accountCapabilities"][MANAGEMENT], json!({}));
    })
    .await;
}

/// Alone, because a real server may well be told its public address.
#[tokio::test]
async fn the_api_url_of_the_session_is_not_where_the_server_was_reached() {
    alone(Options::default(), async |server| {
        let session = read(server.get_as(&server.credential, "/jmap/session").await).await;
        assert_eq!(session["apiUrl"], "https://mail.example.org/jmap/");
        server.simulator().bootstrap(true);
        let session = read(server.get_as(&server.credential, "/jmap/session").await).await;
        assert_eq!(session["apiUrl"], "/jmap/");
    })
    .await;
}

#[tokio::test]
async fn no_credential_and_a_wrong_one_are_the_same_401_with_two_challenges() {
    on_each(async |server| {
        let wrong = Credential::Bearer("API_wrong".into());
        let body = request(json!([]));
        assert_unauthorized(server.post_as(&Credential::None, body.to_string()).await).await;
        assert_unauthorized(server.post_as(&wrong, body.to_string()).await).await;
        // Here the session is honest: not 200 without an account.
        assert_unauthorized(server.get_as(&wrong, "/jmap/session").await).await;
        assert_unauthorized(server.get_as(&Credential::None, "/api/account").await).await;
    })
    .await;
}

/// Alone: real servers count wrong logins for a day.
#[tokio::test]
async fn every_form_of_wrong_credential_is_a_401() {
    alone(Options::default(), async |server| {
        server.simulator().add_user("root@lab.test", "secret: with colon");
        let body = request(json!([["Core/echo", { "x": 1 }, "0"]])).to_string();
        let basic = |name: &str, password: &str| Credential::Basic(name.into(), password.into());
        let right = basic("root@lab.test", "secret: with colon");
        assert_eq!(server.post_as(&right, body.clone()).await.status(), StatusCode::OK);
        assert_eq!(server.simulator().failed_logins(), 0);
        // An API key is no password.
        for wrong in [basic("root@lab.test", "x"), basic("x", "x"), basic("root@lab.test", KEY)] {
            assert_unauthorized(server.post_as(&wrong, body.clone()).await).await;
        }
        for header in ["Digest abc", "Basic !!!!", "Bearer"] {
            let request = server.request_as(&Credential::None, Method::POST, "/jmap");
            let request = request.header("authorization", header).body(body.clone());
            assert_unauthorized(request.send().await.unwrap()).await;
        }
        assert_eq!(server.simulator().failed_logins(), 6);
        server.simulator().remove_key(KEY);
        assert_unauthorized(server.post(&request(json!([]))).await).await;
    })
    .await;
}

/// A real server's key without `authenticate` is given by its own setting.
#[tokio::test]
async fn a_key_that_may_not_authenticate_is_a_403() {
    let is_barred = async |server: &Server, barred: &Credential| {
        let response = server.post_as(barred, request(json!([])).to_string()).await;
        let body = assert_problem(response, 403, "about:blank").await;
        assert_eq!(body["detail"], "You do not have enough permissions to access this resource.");
    };
    alone(Options::default(), async |server| {
        server.simulator().add_key("API_barred", &["sysDomainGet", "sysDomainQuery"]);
        is_barred(server, &Credential::Bearer("API_barred".into())).await;
    })
    .await;
    if let Some(server) = Server::real_with("TENANTRY_TEST_STALWART_BARRED_TOKEN") {
        is_barred(&server, &server.credential).await;
    }
}

/// A real server's key with these three permissions only is given by its own setting.
#[tokio::test]
async fn a_missing_permission_is_a_method_error_inside_200_and_the_other_calls_run() {
    alone(Options::default(), async |server| {
        let permissions = ["authenticate", "sysDomainGet", "sysDomainQuery"];
        server.simulator().add_key("API_reader", &permissions);
        may_only_read(server, &Credential::Bearer("API_reader".into())).await;
        assert_eq!(server.simulator().count(), 0);
    })
    .await;
    if let Some(server) = Server::real_with("TENANTRY_TEST_STALWART_READER_TOKEN") {
        may_only_read(&server, &server.credential).await;
    }
}

async fn may_only_read(server: &Server, reader: &Credential) {
    let answers = server
        .calls_as(
            reader,
            json!([
                ["x:Account/query", {}, "0"],
                ["x:Domain/set", { "create": { "d": { "name": "ro.test" } } }, "1"],
                ["x:Role/query", {}, "2"],
                ["x:Domain/query", {}, "3"],
            ]),
        )
        .await;
    let forbidden = "You are not authorized to perform this action";
    let not_at_all = "You are not authorized to create, update or destroy objects of this type";
    for (index, description) in [(0, forbidden), (1, not_at_all), (2, forbidden)] {
        let error = json!({ "type": "forbidden", "description": description });
        assert_eq!(answers[index], ("error".into(), error));
    }
    assert_eq!(answers[3].0, "x:Domain/query");
}

#[tokio::test]
async fn the_caller_can_ask_for_its_own_permissions() {
    on_each(async |server| {
        let response = server.get_as(&server.credential, "/api/account").await;
        assert_eq!(response.status(), StatusCode::OK);
        let account = read(response).await;
        let permissions = account["permissions"].as_array().unwrap();
        assert!(permissions.contains(&json!("sysDomainCreate")), "{account}");
        assert!(account["edition"].is_string());
    })
    .await;
}

#[tokio::test]
async fn health_needs_no_credential() {
    on_each(async |server| {
        for path in ["/healthz/live", "/healthz/ready"] {
            let response = server.get_as(&Credential::None, path).await;
            assert_problem(response, 200, "about:blank").await;
        }
    })
    .await;
}

/// Alone, for it needs an administrator who owns keys.
#[tokio::test]
async fn an_api_key_tells_its_secret_once_and_dies_at_once() {
    alone(Options::default(), async |server| {
        server.simulator().add_user("root@lab.test", "secret");
        let root = Credential::Basic("root@lab.test".into(), "secret".into());
        let permissions = json!({ "authenticate": true, "sysDomainQuery": true });
        let key = json!({
            "description": "provisioner", "permissions": { "@type": "Replace", "permissions": permissions },
        });
        let set = async |arguments: Value| {
            server.calls_as(&root, json!([["x:ApiKey/set", arguments, "0"]])).await.swap_remove(0).1
        };
        let made = set(json!({ "create": { "k": key } })).await["created"]["k"].clone();
        let secret = text(&made["secret"]);
        assert!(secret.starts_with("API_"), "{secret}");
        let holder = Credential::Bearer(secret);
        let query = request(json!([["x:Domain/query", {}, "0"]])).to_string();
        assert_eq!(server.post_as(&holder, query.clone()).await.status(), StatusCode::OK);

        let mut late = key.clone();
        late["expiresAt"] = json!("2020-01-01T00:00:00Z");
        let expired = text(&set(json!({ "create": { "k": late } })).await["created"]["k"]["secret"]);
        let response = server.post_as(&Credential::Bearer(expired), query.clone()).await;
        assert_eq!(response.headers().get(WWW_AUTHENTICATE), None);
        assert_problem(response, 401, "about:blank").await;

        let more = json!({ "create": { "a": key, "b": key, "c": key, "d": key } });
        let answer = set(more).await;
        assert_eq!(answer["created"].as_object().unwrap().len(), 3);
        assert_eq!(answer["notCreated"]["d"]["type"], "overQuota");

        let answer = set(json!({ "destroy": [made["id"]] })).await;
        assert_eq!(answer["destroyed"], json!([made["id"]]));
        assert_unauthorized(server.post_as(&holder, query).await).await;
    })
    .await;
}

#[tokio::test]
async fn the_simulator_can_be_tormented_with_curl() {
    alone(Options::default(), async |server| {
        let simulator = server.simulator();
        simulator.plant("acme.test", json!({ "description": "tenant=1" }));
        simulator.plant_account("acme.test", "admin");
        simulator.plant_list("acme.test", "all");
        let path = "/_sim/domains/acme.test";
        let patch = json!({ "description": "hacked" }).to_string();
        let request = server.request_as(&Credential::None, Method::PATCH, path);
        let response =
            request.header(CONTENT_TYPE, "application/json").body(patch).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let shown = read(server.get_as(&Credential::None, "/_sim/domains").await).await;
        assert_eq!(shown[0]["description"], "hacked");
        for expected in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
            let request = server.request_as(&Credential::None, Method::DELETE, path);
            assert_eq!(request.send().await.unwrap().status(), expected);
        }
        assert_eq!(simulator.count(), 0);
        server.ok("x:Domain/query", json!({})).await;
        assert_eq!(simulator.faults.requests(), ["POST /jmap"]);
    })
    .await;
}
