//! Who may use the API: tokens of a simulated issuer, good and forged, over HTTP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tenantry::auth::IssuerConfig;
use tenantry::config::{AccessSettings, Config, Given};
use tenantry::dev::issuer::{Account, Options, Provider, Signed, Simulator};
use tenantry::dev::server::Server;
use tenantry::run::{self, Addresses};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Process, TOKEN, World, eventually, http};

/// The API behind an issuer with the providers `tenantry`, `portal` and `ocis`, of which it trusts the
/// first two.
pub struct ProtectedApi {
    pub world: World,
    pub issuer: Simulator,
    pub addresses: Addresses,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), run::RunError>>,
}

pub async fn issuer() -> Simulator {
    let people = ["reader", "operator", "admin"]
        .map(|name| Account::new(name, "app-password", &[&format!("tenantry-{name}s")]));
    let nobody = Account::new("nobody", "app-password", &["staff"]);
    let options = Options {
        providers: ["tenantry", "portal", "ocis"].map(|slug| Provider::public(slug, slug)).into(),
        accounts: people.into_iter().chain([nobody]).collect(),
        ..Options::default()
    };
    Simulator::new(0, options).await.expect("the issuer starts")
}

/// Two issuers, as an Authentik has one per provider.
pub fn trusting(issuer: &Simulator) -> String {
    let trusted = ["tenantry", "portal"]
        .map(|slug| json!({ "issuer": issuer.issuer_url(slug), "audiences": [slug] }));
    json!(trusted).to_string()
}

impl ProtectedApi {
    pub async fn new() -> Self {
        Self::with(issuer().await, |_| {}).await
    }

    pub async fn with(issuer: Simulator, change: impl FnOnce(&mut Config)) -> Self {
        let world = World::new().await;
        let some = |text: &str| Some(text.to_owned());
        let access =
            AccessSettings { oidc_issuers: Some(trusting(&issuer)), ..AccessSettings::default() };
        let given = Given {
            mongodb_uri: some(&world.uri),
            mongodb_database: some(&world.database),
            http_addr: some("127.0.0.1:0"),
            telemetry_addr: some("127.0.0.1:0"),
            access,
            authentik_api_url: some(&world.authentik.url()),
            authentik_api_token: some(TOKEN),
            request_timeout: some("2s"),
            shutdown_grace: some("5s"),
            ..Given::default()
        };
        let mut config = given.check().expect("the settings are right");
        change(&mut config);
        let shutdown = CancellationToken::new();
        let (listening, listens) = oneshot::channel();
        let running = tokio::spawn(run::run(config, shutdown.clone(), Some(listening)));
        let addresses = listens.await.expect("it listens");
        Self { world, issuer, addresses, shutdown, running }
    }

    pub fn token(&self, account: &str) -> String {
        self.issuer.token("tenantry", account, "openid profile email").expect("there is such an account")
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Response {
        let mut request = http().request(method, format!("http://{}{path}", self.addresses.http));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        request.send().await.expect("it answers")
    }

    pub async fn get(&self, path: &str, token: &str) -> Response {
        self.send(Method::GET, path, Some(token), None).await
    }

    /// Requests for keys so far, of all providers.
    fn key_requests(&self) -> usize {
        self.issuer.faults.requests().iter().filter(|request| request.contains("/jwks/")).count()
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.expect("it does not panic").expect("it ends well");
    }
}

async fn json(response: Response) -> Value {
    let text = response.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"))
}

/// Checks that an answer is a problem of this status; returns what it says and how it challenges.
pub async fn problem(response: Response, status: u16) -> (String, String) {
    assert_eq!(response.status().as_u16(), status, "{:?}", response.text().await);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let challenge = response.headers().get("www-authenticate");
    let challenge = challenge.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let problem = json(response).await;
    assert_eq!(problem["status"], status, "{problem}");
    (problem["detail"].as_str().unwrap().to_owned(), challenge)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn forged_and_misdirected_tokens_are_refused_each_with_its_reason() {
    let api = ProtectedApi::new().await;
    let portal = api.issuer.issuer_url("portal");
    let ours = api.issuer.issuer_url("tenantry");
    let admin = |claims: Value, signed| {
        let mut all = json!({ "preferred_username": "admin" });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        api.issuer.issue(all, signed).unwrap()
    };
    let rightly = |claims| admin(claims, Signed::Rightly);
    assert_eq!(api.get("/tenants", &rightly(json!({}))).await.status(), 200, "so it is the forgery");

    let keys = http().get(format!("{ours}jwks/")).send().await.unwrap();
    let key = json(keys).await["keys"][0].clone();
    let claims: Value = {
        let token = rightly(json!({}));
        jsonwebtoken::dangerous::insecure_decode_claims(token).unwrap()
    };
    // The attack: what is public to check with becomes the secret to sign with.
    let with_public_key = |secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(key["kid"].as_str().unwrap().to_owned());
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
    };

    for (what, token, reason) in [
        ("another issuer", rightly(json!({ "iss": "https://evil.test/" })), "issuer"),
        ("no slash", rightly(json!({ "iss": ours.trim_end_matches('/') })), "to the letter"),
        ("ocis' issuer", rightly(json!({ "iss": api.issuer.issuer_url("ocis") })), "not trusted"),
        ("no issuer", rightly(json!({ "iss": null })), "issuer"),
        ("two issuers", rightly(json!({ "iss": [ours, "https://evil.test/"] })), "issuer"),
        ("another audience", rightly(json!({ "aud": "web" })), "audience"),
        ("other audiences", rightly(json!({ "aud": ["web", "portal"] })), "audience"),
        ("no audience", rightly(json!({ "aud": null })), "aud"),
        ("audience of the other issuer", rightly(json!({ "iss": portal })), "audience"),
        ("expired", rightly(json!({ "exp": now() - 15 })), "expired"),
        ("never expires", rightly(json!({ "exp": null })), "exp"),
        ("expires as text", rightly(json!({ "exp": "tomorrow" })), "exp"),
        ("not yet valid", rightly(json!({ "nbf": now() + 60 })), "not valid yet"),
        ("issued in the future", rightly(json!({ "iat": now() + 60 })), "future"),
        ("without a subject", rightly(json!({ "sub": null })), "sub"),
        ("an ID token", rightly(json!({ "azp": null, "scope": null })), "ID token"),
        ("alg none", admin(json!({}), Signed::Not), "not a JWT"),
        ("HS256, client secret", admin(json!({}), Signed::WithClientSecret), "not a JWT"),
        ("HS256, public key", with_public_key(key["x"].as_str().unwrap().as_bytes()), "not a JWT"),
        ("HS256, public key as JSON", with_public_key(key.to_string().as_bytes()), "not a JWT"),
        ("another key under our kid", admin(json!({}), Signed::WithAnotherKey), "signature"),
        ("an unknown kid", admin(json!({}), Signed::WithUnknownKid), "key"),
        ("no token at all", "abc".into(), "not a JWT"),
        ("dots", "..".into(), "not a JWT"),
        ("cut off", rightly(json!({})).rsplit_once('.').unwrap().0.to_owned() + ".", "signature"),
        ("endless", "x".repeat(20_000), "too long"),
    ] {
        let answer = api.get("/tenants", &token).await;
        let (detail, challenge) = problem(answer, 401).await;
        assert!(detail.contains(reason), "{what}: {detail}");
        assert!(challenge.contains("error=\"invalid_token\""), "{what}: {challenge}");
        assert!(challenge.contains("error_description=\""), "{what}: {challenge}");
    }

    let (_, challenge) = problem(api.send(Method::GET, "/tenants", None, None).await, 401).await;
    assert_eq!(challenge, "Bearer realm=\"tenantry\"", "no error code where no token was sent");
    let basic = http().get(format!("http://{}/tenants", api.addresses.http));
    problem(basic.basic_auth("admin", Some("app-password")).send().await.unwrap(), 401).await;

    // What is unusual, but right.
    for claims in [
        json!({ "aud": ["web", "tenantry"] }),
        json!({ "exp": now() - 5 }),
        json!({ "nbf": now() + 5 }),
        json!({ "azp": null }),
        json!({ "scope": null }),
    ] {
        let answer = api.get("/tenants", &rightly(claims.clone())).await;
        assert_eq!(answer.status(), 200, "{claims}");
    }
    api.stop().await;
}

#[tokio::test]
async fn tokens_of_a_person_and_of_a_service_are_accepted_and_their_id_tokens_are_not() {
    let api = ProtectedApi::new().await;
    // A person's, forwarded by the portal.
    let person = api.issuer.token("portal", "reader", "openid profile email").unwrap();
    assert_eq!(api.get("/tenants", &person).await.status(), 200);

    // A service's, by client_credentials with an app password.
    let form = "grant_type=client_credentials&client_id=tenantry&username=operator\
                &password=app-password&scope=openid+profile+email";
    let granted = http()
        .post(api.issuer.token_url())
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    let granted = json(granted.send().await.unwrap()).await;
    let [access, id] = ["access_token", "id_token"].map(|name| granted[name].as_str().unwrap());
    let body = json!({ "slug": "acme", "name": "Acme" });
    let created = api.send(Method::POST, "/tenants", Some(access), Some(body)).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    let (detail, _) = problem(api.get("/tenants", id).await, 401).await;
    assert!(detail.contains("ID token"), "{detail}");

    // The file server's has the same key, and is refused by its issuer.
    let other = api.issuer.token("ocis", "admin", "openid profile email").unwrap();
    problem(api.get("/tenants", &other).await, 401).await;
    // Without the scope that brings the claim there is no role.
    let bare = api.issuer.token("tenantry", "admin", "openid").unwrap();
    problem(api.get("/tenants", &bare).await, 403).await;
    api.stop().await;
}

#[tokio::test]
async fn each_role_may_do_its_own_and_what_the_roles_below_may() {
    let api = ProtectedApi::new().await;
    let acme = json!({ "slug": "acme", "name": "Acme" });
    let roles = ["nobody", "reader", "operator", "admin"];
    let tokens = roles.map(|account| api.token(account));
    let created = api.send(Method::POST, "/tenants", Some(&tokens[2]), Some(acme.clone())).await;
    assert_eq!(created.status(), 201);
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    for (method, path, least, needed, status) in [
        (&get, "/tenants", 1, "reader", 200),
        (&get, "/tenants/acme", 1, "reader", 200),
        (&get, "/nowhere", 1, "reader", 404),
        (&post, "/tenants", 2, "operator", 409),
        (&post, "/tenants/acme/reconcile", 2, "operator", 202),
        (&Method::PUT, "/tenants", 3, "admin", 405),
        (&delete, "/tenants", 3, "admin", 405),
        (&delete, "/nowhere", 3, "admin", 404),
    ] {
        for (rank, token) in tokens.iter().enumerate() {
            let body = (*method == post && path == "/tenants").then(|| acme.clone());
            let answer = api.send(method.clone(), path, Some(token), body).await;
            let what = format!("{method} {path} as {}", roles[rank]);
            if rank >= least {
                assert_eq!(answer.status(), status, "{what}");
            } else {
                let (detail, challenge) = problem(answer, 403).await;
                assert!(detail.contains(&format!("the role {needed}")), "{what}: {detail}");
                assert!(challenge.contains("insufficient_scope"), "{what}: {challenge}");
            }
        }
    }
    api.stop().await;
}

#[tokio::test]
async fn probes_need_no_token_and_tell_how_upstreams_are_only_to_who_may_see_tenants() {
    let api = ProtectedApi::new().await;
    eventually("it is ready", async || {
        api.send(Method::GET, "/readyz", None, None).await.status() == 200
    })
    .await;
    assert_eq!(api.send(Method::GET, "/livez", None, None).await.status(), 200);
    let upstreams = async |token: Option<&str>| {
        let answer = api.send(Method::GET, "/readyz", token, None).await;
        json(answer).await["upstreams"].clone()
    };
    assert_eq!(upstreams(None).await, Value::Null);
    assert_eq!(upstreams(Some("abc")).await, Value::Null);
    assert_eq!(upstreams(Some(&api.token("nobody"))).await, Value::Null);
    assert!(upstreams(Some(&api.token("reader"))).await["authentik"].is_object());
    api.stop().await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_makes_the_issuer_see_one_request() {
    let api = ProtectedApi::new().await;
    let good = api.token("reader");
    assert_eq!(api.get("/tenants", &good).await.status(), 200);
    let before = api.key_requests();
    let forged: Vec<_> =
        (0..200).map(|_| api.issuer.issue(json!({}), Signed::WithUnknownKid).unwrap()).collect();
    let answers = join_all(forged.iter().map(|token| api.get("/tenants", token))).await;
    assert!(answers.iter().all(|answer| answer.status() == 401));
    assert_eq!(api.key_requests(), before + 1);
    assert_eq!(api.get("/tenants", &good).await.status(), 200);
    api.stop().await;
}

#[tokio::test]
async fn unknown_keys_are_asked_for_again_once_the_bound_is_over() {
    let bound = Duration::from_millis(300);
    let api = ProtectedApi::with(issuer().await, |config| {
        config.access.auth.as_mut().unwrap().key_refresh = bound;
    })
    .await;
    assert_eq!(api.get("/tenants", &api.token("reader")).await.status(), 200);
    let before = api.key_requests();
    let begun = std::time::Instant::now();
    let forged = api.issuer.issue(json!({}), Signed::WithUnknownKid).unwrap();
    eventually("the third time", async || {
        assert_eq!(api.get("/tenants", &forged).await.status(), 401);
        api.key_requests() - before >= 3
    })
    .await;
    assert!(begun.elapsed() >= bound * 2, "{:?}", begun.elapsed());
    api.stop().await;
}

#[tokio::test]
async fn a_new_key_is_accepted_at_once_by_one_request_and_the_old_one_no_longer() {
    let api = ProtectedApi::new().await;
    let old = api.token("reader");
    assert_eq!(api.get("/tenants", &old).await.status(), 200);
    let before = api.key_requests();
    api.issuer.rotate_key();
    // They all come before the issuer has answered.
    api.issuer.faults.add(tenantry::dev::faults::Fault { delay_ms: 200, ..Default::default() });
    let new = api.token("reader");
    let answers = join_all((0..50).map(|_| api.get("/tenants", &new))).await;
    assert!(answers.iter().all(|answer| answer.status() == 200));
    assert_eq!(api.key_requests(), before + 1);
    let (detail, _) = problem(api.get("/tenants", &old).await, 401).await;
    assert!(detail.contains("key"), "{detail}");
    api.stop().await;
}

#[tokio::test]
async fn an_issuer_that_is_down_at_start_and_comes_up_later_works_and_its_keys_outlive_its_outage() {
    let mut issuer = issuer().await;
    let token = issuer.token("tenantry", "reader", "openid profile email").unwrap();
    issuer.server.stop().await;
    let mut api = ProtectedApi::with(issuer, |_| {}).await;
    let answer = api.get("/tenants", &token).await;
    assert!(answer.headers().contains_key("retry-after"));
    let (detail, _) = problem(answer, 503).await;
    assert!(!detail.contains("127.0.0.1"), "no address is told: {detail}");
    let forged = api.issuer.issue(json!({}), Signed::Not).unwrap();
    problem(api.get("/tenants", &forged).await, 401).await;

    api.issuer.server.restart().await.unwrap();
    eventually("the token is accepted", async || api.get("/tenants", &token).await.status() == 200)
        .await;
    let unknown = api.issuer.issue(json!({}), Signed::WithUnknownKid).unwrap();
    api.issuer.server.stop().await;
    problem(api.get("/tenants", &unknown).await, 503).await;
    assert_eq!(api.get("/tenants", &token).await.status(), 200);
    api.stop().await;
}

#[tokio::test]
async fn a_provider_without_a_signing_key_is_told_to_be_one_and_heals_without_a_restart() {
    let issuer = issuer().await;
    let token = issuer.token("tenantry", "reader", "openid profile email").unwrap();
    issuer.remove_key();
    let api = ProtectedApi::with(issuer, |_| {}).await;
    let (detail, _) = problem(api.get("/tenants", &token).await, 503).await;
    assert!(detail.contains("the provider has no signing key"), "{detail}");
    // Its own tokens are HS256 now.
    let (detail, _) = problem(api.get("/tenants", &api.token("reader")).await, 401).await;
    assert!(detail.contains("ES256"), "{detail}");

    api.issuer.rotate_key();
    let token = api.token("reader");
    eventually("the token is accepted", async || api.get("/tenants", &token).await.status() == 200)
        .await;
    api.stop().await;
}

#[tokio::test]
async fn who_changed_what_is_in_the_log_and_tokens_are_not() {
    let world = World::new().await;
    let issuer = issuer().await;
    let trusting = trusting(&issuer);
    let settings = [("INSECURE_NO_AUTH", ""), ("OIDC_ISSUERS", &*trusting)];
    let process = Process::start(&world, &settings);
    let api = process.address("http").await;
    let token = issuer.token("tenantry", "operator", "openid profile email").unwrap();
    let create = http().post(format!("http://{api}/tenants")).bearer_auth(&token);
    let create = create.header("content-type", "application/json").header("x-request-id", "ticket-4711");
    let created = create.body(r#"{"slug":"acme","name":"Acme"}"#).send().await.unwrap();
    assert_eq!(created.status(), 201, "{}", process.log());
    let delete = http().delete(format!("http://{api}/tenants/acme")).bearer_auth(&token);
    let delete = delete.header("x-request-id", "ticket-4712").send().await.unwrap();
    assert_eq!(delete.status(), 403);
    process.says("ticket-4712").await;
    eventually("both are told", async || process.log().matches("answered a request").count() == 2).await;
    let log = process.stop().await;
    let line = |id: &str| -> Value {
        let said = |line: &&str| line.contains(id) && line.contains("answered a request");
        let line = log.lines().find(said).expect("it is there");
        serde_json::from_str(line).unwrap()
    };
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(&token).unwrap();
    for (id, method, path, status) in
        [("ticket-4711", "POST", "/tenants", 201), ("ticket-4712", "DELETE", "/tenants/acme", 403)]
    {
        let line = line(id);
        assert_eq!(line["status"], status, "{line}");
        for (field, value) in [
            ("sub", claims["sub"].as_str().unwrap()),
            ("client", "tenantry"),
            ("role", "operator"),
            ("request_id", id),
            ("method", method),
            ("path", path),
        ] {
            assert_eq!(line["spans"][0][field], value, "{line}");
        }
    }
    assert!(!log.contains(token.rsplit_once('.').unwrap().1), "no token in the log");
}

/// The simulated issuer signs with ES256 only; Authentik's default is RS256.
#[tokio::test]
async fn tokens_signed_with_rsa_and_ed25519_are_verified_with_published_keys_and_no_others() {
    // Made for this test and good for nothing else; making one takes seconds.
    let rsa = EncodingKey::from_rsa_der(include_bytes!("rsa-for-tests.der"));
    let short = EncodingKey::from_rsa_der(include_bytes!("rsa-1024-for-tests.der"));
    // PKCS #8 around 32 bytes, which may be any.
    let mut ed25519 = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    ed25519.extend(rand::random::<[u8; 32]>());
    let ed25519 = EncodingKey::from_ed_der(&ed25519);
    let published = |key: &EncodingKey, algorithm, id: &str| {
        let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        serde_json::to_value(jwk).unwrap()
    };
    let keys = json!({ "keys": [
        published(&rsa, Algorithm::RS256, "rsa"),
        published(&ed25519, Algorithm::EdDSA, "ed25519"),
        published(&short, Algorithm::RS256, "short rsa"),
        // Two of one id.
        published(&rsa, Algorithm::RS256, "same"),
        published(&ed25519, Algorithm::EdDSA, "same"),
        // What a newer issuer may have, or a careless one.
        { "kty": "AKP", "alg": "ML-DSA-65", "kid": "new", "pub": "AAAA" },
        { "kty": "oct", "alg": "HS256", "kid": "secret", "k": "c2VjcmV0" },
        { "kty": "OKP", "crv": "Ed25519", "kid": "short", "x": "AAAA" },
        { "kty": "RSA", "kid": "empty", "n": "", "e": "" },
        { "kty": "RSA", "kid": "zero", "n": "AA", "e": "AA" },
        "nonsense",
    ] });
    let router = axum::Router::new().route("/keys", axum::routing::get(async || axum::Json(keys)));
    let server = Server::start(0, router).await.unwrap();
    let url = format!("{}/keys", server.url());
    let api = ProtectedApi::with(issuer().await, |config| {
        let config = config.access.auth.as_mut().unwrap();
        let audiences = vec!["tenantry".to_owned()];
        let issuer = IssuerConfig::new("https://id.acme.test/", audiences, Some(&url)).unwrap();
        config.issuers = vec![issuer];
    })
    .await;
    let claims = json!({
        "iss": "https://id.acme.test/", "aud": "tenantry", "sub": "a person", "exp": now() + 60,
        "scope": "openid", "groups": "tenantry-readers",
    });
    let hmac = EncodingKey::from_secret(b"secret");
    for (key, algorithm, id, status) in [
        (&rsa, Algorithm::RS256, "rsa", 200),
        (&rsa, Algorithm::RS384, "rsa", 200),
        (&rsa, Algorithm::RS512, "rsa", 200),
        (&ed25519, Algorithm::EdDSA, "ed25519", 200),
        (&rsa, Algorithm::PS256, "rsa", 401),
        (&rsa, Algorithm::RS256, "ed25519", 401),
        (&ed25519, Algorithm::EdDSA, "rsa", 401),
        (&hmac, Algorithm::HS256, "secret", 401),
        (&rsa, Algorithm::RS256, "secret", 401),
        (&ed25519, Algorithm::EdDSA, "short", 401),
        (&rsa, Algorithm::RS256, "empty", 401),
        (&rsa, Algorithm::RS256, "zero", 401),
        (&short, Algorithm::RS256, "short rsa", 401),
        (&rsa, Algorithm::RS256, "same", 200),
        (&ed25519, Algorithm::EdDSA, "same", 200),
        (&short, Algorithm::RS256, "same", 401),
        // Without an id any key for the algorithm may be it.
        (&rsa, Algorithm::RS512, "", 200),
        (&ed25519, Algorithm::EdDSA, "", 200),
        (&short, Algorithm::RS256, "", 401),
    ] {
        let mut header = Header::new(algorithm);
        header.kid = Some(id.to_owned()).filter(|id| !id.is_empty());
        let token = jsonwebtoken::encode(&header, &claims, key).unwrap();
        let answer = api.get("/tenants", &token).await;
        assert_eq!(answer.status(), status, "{algorithm:?} with {id}: {:?}", answer.text().await);
    }
    // The newer name of the same algorithm.
    let encoded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let message =
        format!("{}.{}", encoded(&json!({ "alg": "Ed25519", "kid": "ed25519" })), encoded(&claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &ed25519, Algorithm::EdDSA).unwrap();
    let answer = api.get("/tenants", &format!("{message}.{signature}")).await;
    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
    api.stop().await;
}

#[tokio::test]
async fn histories_say_who_asked_for_what() {
    let api = ProtectedApi::new().await;
    let [operator, admin] = ["operator", "admin"].map(|name| api.token(name));
    let ask = async |method: Method, path: &str, token: &str, body: Option<Value>| {
        let answer = api.send(method, path, Some(token), body).await;
        assert!(answer.status().is_success(), "{path}: {:?}", answer.text().await);
    };
    // The kinds of the events so far, each with the account that asked for it.
    let history = async |path: &str| {
        let events = json(api.get(path, &admin).await).await;
        let told = events["items"].as_array().unwrap().iter().rev().map(|event| {
            let by = event["by"].as_str().unwrap_or_default();
            let name = by.split_once(" (").map_or(by, |(name, _)| name).to_owned();
            (event["type"].as_str().unwrap().to_owned(), name)
        });
        told.collect::<Vec<_>>()
    };
    let told = async |kind: &str, by: &str| {
        eventually(&format!("{kind} by {by} is told"), async || {
            let events = history("/tenants/acme/events").await;
            events.contains(&(kind.to_owned(), by.to_owned()))
        })
        .await;
    };
    let body = json!({ "slug": "acme", "name": "Acme" });
    ask(Method::POST, "/tenants", &operator, Some(body)).await;
    api.world.active("acme").await;
    told("Created", "operator").await;
    ask(Method::PATCH, "/tenants/acme", &admin, Some(json!({ "name": "Edited" }))).await;
    told("Edited", "admin").await;
    ask(Method::POST, "/tenants/acme/reconcile", &operator, None).await;
    told("ReconcileRequested", "operator").await;
    ask(Method::POST, "/tenants/acme/pause", &operator, None).await;
    told("Paused", "operator").await;
    ask(Method::POST, "/tenants/acme/resume", &admin, None).await;
    told("Resumed", "admin").await;
    // A person with a shell, who did not say who it was.
    api.world.set("acme", mongodb::bson::doc! { "name": "By hand" }).await;
    told("Edited", "").await;
    assert!(!api.world.find("acme").await.contains_key("changedBy"), "what is told is not told again");
    // While nothing is changed, so that it is still there to be taken back.
    api.world.store.stop(tenantry::store::Scope::Everything).await.unwrap();
    ask(Method::DELETE, "/tenants/acme", &admin, None).await;
    told("DeletionRequested", "admin").await;
    ask(Method::POST, "/tenants/acme/undelete", &admin, None).await;
    told("Undeleted", "admin").await;
    api.world.store.start(tenantry::store::Scope::Everything).await.unwrap();
    ask(Method::DELETE, "/tenants/acme", &admin, None).await;
    told("Deleted", "").await;
    let body = json!({ "name": "Put" });
    ask(Method::PUT, "/tenants/globex", &admin, Some(body)).await;
    eventually("who put it is told", async || {
        let events = history("/tenants/globex/events").await;
        events.contains(&("Created".to_owned(), "admin".to_owned()))
    })
    .await;

    ask(Method::PUT, "/stops/ocis", &admin, None).await;
    ask(Method::PUT, "/stops/ocis", &admin, None).await;
    ask(Method::DELETE, "/stops/ocis", &admin, None).await;
    let by_admin = |kind: &str| (kind.to_owned(), "admin".to_owned());
    let told = history("/events").await;
    assert_eq!(
        told[told.len() - 2..],
        [by_admin("Stopped"), by_admin("Started")],
        "once each: {told:?}"
    );
    assert_eq!(told.len(), 4, "{told:?}");
    api.stop().await;
}

#[tokio::test]
async fn two_who_edit_at_once_are_both_named_and_each_once() {
    let api = ProtectedApi::new().await;
    let names = ["operator", "admin"].map(|name| api.token(name));
    let body = json!({ "slug": "acme", "name": "Acme" });
    api.send(Method::POST, "/tenants", Some(&names[0]), Some(body)).await;
    api.world.active("acme").await;
    // While a reconcile of the first edit hangs, others come.
    api.world.authentik.faults.add(tenantry::dev::faults::Fault {
        times: Some(1),
        answer: tenantry::dev::faults::FaultAnswer::Hang,
        ..Default::default()
    });
    for (n, token) in [(1, &names[0]), (2, &names[1]), (3, &names[1])] {
        let name = json!({ "name": format!("Name {n}") });
        let edited = api.send(Method::PATCH, "/tenants/acme", Some(token), Some(name)).await;
        assert_eq!(edited.status(), 200);
        if n == 1 {
            eventually("it is being worked on", async || {
                let lease = api.world.find("acme").await.get_document("lease").cloned().unwrap();
                lease.contains_key("holder")
            })
            .await;
        }
    }
    let paused = api.send(Method::POST, "/tenants/acme/pause", Some(&names[0]), None).await;
    assert_eq!(paused.status(), 202);
    let edits = async || {
        let events = json(api.get("/tenants/acme/events", &names[1]).await).await;
        let events = events["items"].as_array().unwrap().clone();
        let edits = events.into_iter().rev().filter(|event| event["type"] == "Edited");
        let named = edits.map(|event| {
            let by = event["by"].as_str().unwrap_or_default().to_owned();
            let names: Vec<_> = by
                .split(", ")
                .filter_map(|one| one.split_once(" ("))
                .map(|(name, _)| name.to_owned())
                .collect();
            (names, event["message"].as_str().unwrap().to_owned())
        });
        named.collect::<Vec<_>>()
    };
    eventually("both edits are told", async || edits().await.len() == 2).await;
    let [first, second] = edits().await.try_into().unwrap();
    assert_eq!(first.0, ["operator"], "{first:?}");
    assert!(first.1.contains("\"Name 1\""), "{first:?}");
    assert_eq!(second.0, ["admin"], "{second:?}");
    assert!(second.1.contains("from \"Name 1\" to \"Name 3\""), "{second:?}");
    let events = json(api.get("/tenants/acme/events", &names[1]).await).await;
    let paused = events["items"].as_array().unwrap().iter().find(|event| event["type"] == "Paused");
    let by = paused.expect("it is told")["by"].as_str().unwrap().to_owned();
    assert!(
        by.starts_with("operator (") && !by.contains("admin"),
        "no caller is named for what others did: {by}"
    );

    // A caller who may only read sees a plan, and causes no work.
    let url = format!("http://{}/tenants/acme/plan", api.addresses.http);
    let plan = http().get(url).bearer_auth(api.token("reader")).header("prefer", "wait=5");
    let plan = plan.send().await.unwrap();
    assert_eq!(
        (plan.status().as_u16(), plan.headers().contains_key("preference-applied")),
        (200, false)
    );
    assert_eq!(json(plan).await["looked"], false);
    api.stop().await;
}

#[tokio::test]
async fn a_token_that_lacks_the_claim_of_roles_is_told_apart_from_one_that_gives_no_role() {
    let api = ProtectedApi::new().await;
    let of = |claims: Value| {
        let mut all = json!({ "preferred_username": "anna" });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        api.issuer.issue(all, Signed::Rightly).unwrap()
    };
    let none = api.get("/tenants", &of(json!({ "groups": ["staff"] }))).await;
    let (detail, _) = problem(none, 403).await;
    assert!(detail.contains("gives no role") && !detail.contains("altogether"), "{detail}");
    let lacking = api.get("/tenants", &of(json!({ "groups": null }))).await;
    let (detail, _) = problem(lacking, 403).await;
    assert!(detail.contains("lacks the claim \"groups\"") && detail.contains("profile"), "{detail}");
    api.stop().await;
}

#[tokio::test]
async fn refused_tokens_leave_a_few_lines_without_the_token_and_changed_keys_leave_one() {
    let world = World::new().await;
    let issuer = issuer().await;
    let mut command = Process::run(&world);
    command.env_remove("INSECURE_NO_AUTH").env("OIDC_ISSUERS", trusting(&issuer));
    let process = Process::spawn(command);
    let api = process.address("http").await;
    let ask = async |token: &str| {
        let asked = http().get(format!("http://{api}/tenants")).bearer_auth(token).send().await.unwrap();
        asked.status()
    };
    let good = issuer.token("tenantry", "reader", "openid profile email").unwrap();
    assert_eq!(ask(&good).await, 200);
    let expired = issuer.issue(json!({ "exp": 1_000 }), Signed::Rightly).unwrap();
    for _ in 0..30 {
        assert_eq!(ask(&expired).await, 401);
    }
    process.says("a token was refused").await;
    issuer.rotate_key();
    let renewed = issuer.token("tenantry", "reader", "openid profile email").unwrap();
    assert_eq!(ask(&renewed).await, 200);
    process.says("the issuer's keys have changed").await;
    let log = process.stop().await;
    let told = log.matches("a token was refused").count();
    assert!((1..=7).contains(&told), "{told} lines: {log}");
    assert!(log.contains("the token has expired"), "{log}");
    for token in [&good, &expired, &renewed] {
        let (_, signature) = token.rsplit_once('.').unwrap();
        assert!(!log.contains(signature), "{log}");
    }
}
