//! The second layer: the whole controller, with a real mongod, against the given servers; simulators
//! stand in for those that are not given. What breaks things here does it on the wire, as a person would.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, Document, doc};
use mongodb::{Client, Collection};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tenantry::controller::{Controller, Settings};
use tenantry::dev::mongod::{self, DataDir};
use tenantry::dev::{authentik, issuer, ocis, stalwart};
use tenantry::http::{BaseUrl, HttpClient};
use tenantry::integration::{
    Authentik, ClientCredentials, Credentials, DkimManagement, GroupTemplate, Integrations, Limits,
    Ocis, Stalwart, TokenEndpoint, TokenSource, UpstreamClient,
};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::store::{Holder, Journal, NewTenant, Store, StoreOptions};
use tenantry::tenant::{Backoff, ChangeGuardPolicy, Controls, Desired, Policy, Services, Upstream};
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, http, setting, then_tidy, unique};

/// Real servers take their time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The servers, real or simulated, and what has to be removed again.
struct Servers {
    http: reqwest::Client,
    authentik: (String, String),
    stalwart: (String, Credentials),
    ocis: (String, ClientCredentials),
    _simulated: (
        Option<authentik::Simulator>,
        Option<stalwart::Simulator>,
        Option<(issuer::Simulator, ocis::Simulator)>,
    ),
}

fn given(name: &str) -> Option<String> {
    setting(name).map(|url| url.trim_end_matches('/').to_owned())
}

fn needed(name: &str) -> String {
    setting(name).unwrap_or_else(|| panic!("{name} is needed as well"))
}

impl Servers {
    async fn new() -> Self {
        let (authentik, authentik_simulator) = match given("TENANTRY_TEST_AUTHENTIK_URL") {
            Some(url) => ((url, needed("TENANTRY_TEST_AUTHENTIK_TOKEN")), None),
            None => {
                let release = authentik::Release::R2025_12;
                let simulator = authentik::Simulator::new(0, "contract", release).await.unwrap();
                ((simulator.url(), "contract".to_owned()), Some(simulator))
            }
        };
        let (stalwart, stalwart_simulator) = match given("TENANTRY_TEST_STALWART_URL") {
            Some(url) => match setting("TENANTRY_TEST_STALWART_TOKEN") {
                Some(token) => ((url, Credentials::Bearer(Secret::from(token))), None),
                None => {
                    let user = Secret::from(needed("TENANTRY_TEST_STALWART_USERNAME"));
                    let password = Secret::from(needed("TENANTRY_TEST_STALWART_PASSWORD"));
                    ((url, Credentials::Basic { user, password }), None)
                }
            },
            None => {
                let options = stalwart::Options::default();
                let simulator = stalwart::Simulator::new(0, "API_contract", options).await.unwrap();
                let credentials = Credentials::Bearer(Secret::from("API_contract"));
                ((simulator.url(), credentials), Some(simulator))
            }
        };
        let (ocis, ocis_simulator) = match given("TENANTRY_TEST_OCIS_URL") {
            Some(url) => {
                let name = setting("TENANTRY_TEST_OCIS_USERNAME");
                let secret = match name.zip(setting("TENANTRY_TEST_OCIS_PASSWORD")) {
                    Some((name, password)) => {
                        issuer::Account::new(&name, &password, &[]).client_secret()
                    }
                    None => needed("TENANTRY_TEST_OCIS_CLIENT_SECRET"),
                };
                let secret = Secret::from(secret);
                let endpoint = needed("TENANTRY_TEST_OCIS_TOKEN_URL");
                let endpoint = TokenEndpoint::Url(endpoint.parse().expect("it is an address"));
                let scope = setting("TENANTRY_TEST_OCIS_SCOPE");
                let credentials = ClientCredentials {
                    endpoint,
                    client_id: needed("TENANTRY_TEST_OCIS_CLIENT_ID"),
                    client_secret: Some(secret),
                    account: None,
                    scope: scope.unwrap_or_else(|| "openid profile email".into()),
                };
                ((url, credentials), None)
            }
            None => {
                let account = issuer::Account::new("tenantry", "pw", &["tenant-provisioners"]);
                let secret = Secret::from(account.client_secret());
                let options = issuer::Options { accounts: vec![account], ..Default::default() };
                let issuer = issuer::Simulator::new(0, options).await.unwrap();
                let (flavour, trusted) = (ocis::Flavour::OpenCloud, issuer.issuer_url("ocis"));
                let options = ocis::Options::default();
                let files = ocis::Simulator::new(0, flavour, &trusted, options).await.unwrap();
                let credentials = ClientCredentials {
                    endpoint: TokenEndpoint::Url(issuer.token_url().parse().unwrap()),
                    client_id: "web".into(),
                    client_secret: Some(secret),
                    account: None,
                    scope: "openid profile email".into(),
                };
                ((files.url(), credentials), Some((issuer, files)))
            }
        };
        let simulated = (authentik_simulator, stalwart_simulator, ocis_simulator);
        Self { http: http(), authentik, stalwart, ocis, _simulated: simulated }
    }

    fn integrations(&self, metrics: &Arc<Metrics>) -> Arc<Integrations> {
        let http = HttpClient::new(None, Duration::from_secs(20)).expect("TLS can be set up");
        let gentle = Limits { concurrent: 3, per_minute: NonZeroU32::new(900) };
        let upstream = |step, url: &str, credentials, limits| {
            let base = BaseUrl::parse(url, "").expect("it is an address");
            UpstreamClient::new(step, http.clone(), base, credentials, limits, Arc::clone(metrics))
        };
        let token = Credentials::Bearer(Secret::from(self.authentik.1.as_str()));
        let authentik = upstream(Upstream::Authentik, &self.authentik.0, token, Limits::GENEROUS);
        let template = GroupTemplate::parse("tenant-{slug}").expect("it is a template");
        let stalwart = upstream(Upstream::Stalwart, &self.stalwart.0, self.stalwart.1.clone(), gentle);
        let issuer = upstream(Upstream::Ocis, &self.ocis.0, Credentials::None, Limits::GENEROUS);
        let tokens = Arc::new(TokenSource::new(issuer, self.ocis.1.clone()));
        let ocis = upstream(Upstream::Ocis, &self.ocis.0, Credentials::Tokens(tokens), Limits::GENEROUS);
        let ocis = Ocis::new(ocis, None, PATIENCE, Arc::clone(metrics));
        let integrations = Integrations::new(Arc::clone(metrics))
            .with_authentik(Authentik::new(authentik, template))
            .with_stalwart(Stalwart::new(stalwart, DkimManagement::Automatic))
            .with_ocis(ocis);
        Arc::new(integrations)
    }

    async fn group(&self, method: Method, id: &str, body: Value) -> Answer {
        let url = format!("{}/api/v3/core/groups/{id}/", self.authentik.0);
        let request = self.http.request(method, url).bearer_auth(&self.authentik.1);
        Answer::to(request.header("content-type", "application/json").body(body.to_string())).await
    }

    async fn jmap(&self, calls: Value) -> Value {
        let body = json!({
            "using": ["urn:ietf:params:jmap:core", "urn:stalwart:jmap"], "methodCalls": calls,
        });
        let request = self.http.post(format!("{}/jmap", self.stalwart.0));
        let request = match &self.stalwart.1 {
            Credentials::Bearer(token) => request.bearer_auth(token.current().expose_secret()),
            Credentials::Basic { user, password } => {
                let (user, password) = (user.current(), password.current());
                request.basic_auth(user.expose_secret(), Some(password.expose_secret()))
            }
            _ => panic!("Stalwart wants a key or a login"),
        };
        let request = request.header("content-type", "application/json").body(body.to_string());
        Answer::to(request).await.must_be(200).json()
    }

    async fn domain(&self, id: &str) -> Value {
        let read =
            json!([["x:Domain/get", { "ids": [id], "properties": ["name", "description"] }, "0"]]);
        self.jmap(read).await["methodResponses"][0][1]["list"][0].clone()
    }

    async fn remove_domain(&self, id: &str) {
        let keys = json!({ "resultOf": "0", "name": "x:DkimSignature/query", "path": "/ids" });
        self.jmap(json!([
            ["x:DkimSignature/query", { "filter": { "domainId": id } }, "0"],
            ["x:DkimSignature/set", { "#destroy": keys }, "1"],
            ["x:Domain/set", { "destroy": [id] }, "2"],
        ]))
        .await;
    }

    async fn token(&self) -> String {
        let credentials = &self.ocis.1;
        let TokenEndpoint::Url(endpoint) = &credentials.endpoint else { panic!("it is given") };
        let secret = credentials.client_secret.as_ref().expect("it is given").current();
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &credentials.client_id),
            ("client_secret", secret.expose_secret()),
            ("scope", &credentials.scope),
        ];
        let answer = Answer::to(self.http.post(endpoint.clone()).form(&form)).await.must_be(200);
        answer.json()["access_token"].as_str().expect("a token").to_owned()
    }

    async fn space(&self, method: Method, id: &str, purge: bool, body: Option<Value>) -> Answer {
        let url = format!("{}/graph/v1.0/drives/{id}", self.ocis.0);
        let mut request = self.http.request(method, url).bearer_auth(self.token().await);
        if purge {
            request = request.header("purge", "T");
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        Answer::to(request).await
    }
}

/// The tenants in a database of the run's own.
struct Fleet {
    store: Store,
    tenants: Collection<Document>,
}

impl Fleet {
    async fn insert(&self, slug: &str, domain: &str) {
        let desired = Desired {
            name: format!("Contract {slug}").parse().unwrap(),
            domain: Some(domain.parse().unwrap()),
            storage_bytes: Some(1_000_000),
            services: Services::default(),
            paused: false,
            adopt: None,
            deletion: None,
        };
        let new = NewTenant { slug: slug.parse().unwrap(), desired };
        self.store.insert(&new).await.unwrap().expect("the slug is free");
    }

    async fn find(&self, slug: &str) -> Document {
        self.tenants.find_one(doc! { "slug": slug }).await.unwrap().expect("it is there")
    }

    async fn set(&self, slug: &str, fields: Document) {
        self.tenants.update_one(doc! { "slug": slug }, doc! { "$set": fields }).await.unwrap();
    }

    async fn until(&self, slug: &str, what: &str, holds: impl Fn(&Document) -> bool) -> Document {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tenant = self.find(slug).await;
            if holds(&tenant) {
                return tenant;
            }
            assert!(Instant::now() < deadline, "{what} did not come true: {tenant}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until every step is `ok` and nothing is due.
    async fn settled(&self, slug: &str) -> Document {
        self.until(slug, "every step is ok", |tenant| {
            let states = tenant.get_document("provisioningStatus").cloned().unwrap_or_default();
            let handled = tenant.get_document("lastHandledDesired").cloned().unwrap_or_default();
            let current = ["name", "domain"].iter().all(|field| handled.get(field) == tenant.get(field));
            current
                && states.len() == 3
                && states.values().all(|state| state.as_str() == Some("ok"))
                && tenant.get_datetime("nextReconcileAt").is_ok_and(|next| *next > DateTime::now())
                && tenant.get("reconcileRequestedAt") == tenant.get("lastHandledReconcileAt")
        })
        .await
    }

    async fn reconcile(&self, slug: &str) -> Document {
        self.store.request_reconcile(&slug.parse().unwrap()).await.unwrap();
        self.settled(slug).await
    }
}

fn id(tenant: &Document, step: &str) -> String {
    let steps = tenant.get_document("steps").unwrap();
    steps.get_document(step).unwrap().get_str("externalId").unwrap().to_owned()
}

#[tokio::test]
async fn a_tenant_is_created_repaired_renamed_moved_and_kept_apart_on_every_given_server() {
    let servers = Servers::new().await;
    let mongod = match setting("MONGODB_URI") {
        Some(_) => None,
        None => {
            let given = setting("TENANTRY_MONGOD").map(std::path::PathBuf::from);
            let binary = mongod::find(given.as_deref()).await.expect("a mongod is found or installed");
            Some(mongod::Mongod::start(&binary, DataDir::Temporary, &[]).await.expect("it starts"))
        }
    };
    let uri = mongod.as_ref().map_or_else(|| needed("MONGODB_URI"), |mongod| mongod.uri.clone());
    let database = unique("tenantry_contract").replace('-', "_");
    let store = Store::new(StoreOptions {
        uri: uri.clone(),
        database: database.clone(),
        operation_timeout: Duration::from_secs(10),
        max_connections: 20,
        on_command: None,
        on_answer: None,
    })
    .await
    .unwrap();
    store.prepare().await.unwrap();
    let client = Client::with_uri_str(&uri).await.unwrap();
    let tenants = client.database(&database).collection("tenants");
    let fleet = Fleet { store: store.clone(), tenants };

    let metrics = Arc::new(Metrics::new());
    let (journal, _) = Journal::start(store.clone(), Arc::clone(&metrics), CancellationToken::new());
    let controller = Controller {
        journal,
        store,
        integrations: servers.integrations(&metrics),
        metrics,
        settings: Settings {
            workers: 4,
            policy: Policy {
                backoff: Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(5) },
                resync: Duration::from_secs(3600),
            },
            lease_ttl: Duration::from_secs(30),
            poll_interval: Duration::from_secs(1),
            shutdown_grace: Duration::from_secs(10),
            holder: Holder::new("contract", rand::random()),
            sweep_interval: Duration::from_secs(3600),
            guard: ChangeGuardPolicy { percent: 10 },
            adopt_unmarked: false,
            queue_capacity: 100,
        },
    };
    let shutdown = CancellationToken::new();
    let (opened, _open) = tokio::sync::watch::channel(false);
    let controls = tokio::sync::watch::Sender::new(Controls::default());
    let running = tokio::spawn(controller.run(opened, controls, shutdown.clone()));

    let slug = unique("contract");
    let names = [unique("contract"), unique("contract")].map(|name| format!("{name}.test"));
    let rival = unique("contract");
    let life = live(&servers, &fleet, &slug, &names, &rival);
    then_tidy(life, async {
        shutdown.cancel();
        running.await.unwrap();
        for slug in [&slug, &rival] {
            let tenant = fleet.find(slug).await;
            let steps = tenant.get_document("steps").cloned().unwrap_or_default();
            let recorded = |step: &str| {
                let id = steps.get_document(step).ok()?.get_str("externalId").ok()?;
                Some(id.to_owned())
            };
            if let Some(group) = recorded("authentik") {
                servers.group(Method::DELETE, &group, json!({})).await;
            }
            if let Some(domain) = recorded("stalwart") {
                servers.remove_domain(&domain).await;
            }
            if let Some(space) = recorded("ocis") {
                servers.space(Method::DELETE, &space, false, None).await;
                servers.space(Method::DELETE, &space, true, None).await;
            }
        }
        client.database(&database).drop().await.unwrap();
    })
    .await;
    if let Some(mongod) = mongod {
        mongod.stop().await;
    }
}

async fn live(servers: &Servers, fleet: &Fleet, slug: &str, names: &[String; 2], rival: &str) {
    // Created.
    fleet.insert(slug, &names[0]).await;
    let tenant = fleet.settled(slug).await;
    let mark = tenant.get_object_id("_id").unwrap().to_hex();
    let (group, domain, space) =
        (id(&tenant, "authentik"), id(&tenant, "stalwart"), id(&tenant, "ocis"));
    let shown = servers.group(Method::GET, &group, json!({})).await.must_be(200).json();
    assert_eq!(shown["name"], format!("tenant-{slug}"));
    assert_eq!(shown["attributes"]["tenantry_id"], mark);
    assert_eq!(servers.domain(&domain).await["name"], names[0]);
    let shown = servers.space(Method::GET, &space, false, None).await.must_be(200).json();
    assert_eq!(shown["quota"]["total"], 1_000_000, "{shown}");

    // Drifted, and repaired.
    servers.group(Method::PATCH, &group, json!({ "attributes": { "theirs": "x" } })).await.must_be(200);
    servers
        .jmap(json!([["x:Domain/set", { "update": { &domain: { "description": null } } }, "0"]]))
        .await;
    let change = json!({ "name": "Renamed by a person", "quota": { "total": 5 } });
    servers.space(Method::PATCH, &space, false, Some(change)).await.must_be(200);
    servers.space(Method::DELETE, &space, false, None).await.must_be(204);
    fleet.reconcile(slug).await;
    let shown = servers.group(Method::GET, &group, json!({})).await.must_be(200).json();
    assert_eq!(shown["attributes"]["tenantry_id"], mark);
    assert_eq!(shown["attributes"]["theirs"], "x", "what is not ours stays");
    assert!(servers.domain(&domain).await["description"].as_str().unwrap().contains(&mark));
    let shown = servers.space(Method::GET, &space, false, None).await.must_be(200).json();
    assert_eq!(shown["name"], format!("Contract {slug}"));
    assert_eq!(shown["quota"]["total"], 1_000_000);
    assert!(shown.pointer("/root/deleted").is_none(), "{shown}");

    // Deleted, and made again.
    servers.group(Method::DELETE, &group, json!({})).await.must_be(204);
    servers.remove_domain(&domain).await;
    let tenant = fleet.reconcile(slug).await;
    assert_ne!(id(&tenant, "authentik"), group);
    let domain = id(&tenant, "stalwart");
    assert_eq!(servers.domain(&domain).await["name"], names[0]);

    // Renamed.
    fleet.set(slug, doc! { "name": "Another name" }).await;
    fleet.settled(slug).await;
    assert!(servers.domain(&domain).await["description"].as_str().unwrap().starts_with("Another name"));
    let shown = servers.space(Method::GET, &space, false, None).await.must_be(200).json();
    assert_eq!(shown["name"], "Another name");

    // Kept apart from another that wants the same domain.
    fleet.insert(rival, &names[0]).await;
    fleet
        .until(rival, "the rival is in conflict", |tenant| {
            let steps = tenant.get_document("steps").cloned().unwrap_or_default();
            let step = steps.get_document("stalwart").cloned().unwrap_or_default();
            step.get_str("reason").is_ok_and(|reason| reason == "Conflict")
        })
        .await;
    assert!(servers.domain(&domain).await["description"].as_str().unwrap().contains(&mark));

    // Moved: the new domain is there, and the former one released; the rival may have it now.
    fleet.set(slug, doc! { "domain": &names[1] }).await;
    let tenant = fleet.settled(slug).await;
    assert_eq!(servers.domain(&id(&tenant, "stalwart")).await["name"], names[1]);
    assert_eq!(servers.domain(&domain).await, Value::Null, "the former one is gone");
    let rivals = fleet.reconcile(rival).await;
    assert_eq!(servers.domain(&id(&rivals, "stalwart")).await["name"], names[0]);
}
