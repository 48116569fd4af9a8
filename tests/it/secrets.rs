//! Secrets in files that are replaced while the process runs, as mounted secrets are.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::{Client, Database};
use reqwest::Method;
use tenantry::dev::authentik::Rights;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::mongod::Mongod;
use tenantry::http::{BaseUrl, HttpClient};
use tenantry::integration::{
    Authentik, Credentials, GroupTemplate, Integrations, Limits, UpstreamClient,
};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::tenant::Upstream;

use crate::auth::issuer;
use crate::ocis::{ACCOUNT, PASSWORD};
use crate::support::{
    Process, Running, TOKEN, World, eventually, holds_for, http, settings, start_mongod,
};
use crate::three::Suite;

/// What Stalwart's key must be allowed.
const RIGHTS: [&str; 8] = [
    "authenticate",
    "sysDomainGet",
    "sysDomainQuery",
    "sysDomainCreate",
    "sysDomainUpdate",
    "sysDomainDestroy",
    "sysDkimSignatureQuery",
    "sysDkimSignatureDestroy",
];

/// A folder of secrets, mounted as Kubernetes does it: a link to a folder, which is replaced as a whole.
struct Mounted {
    folder: tempfile::TempDir,
    number: u32,
}

impl Mounted {
    fn new(secrets: &[(&str, &str)]) -> Self {
        let mut mounted = Self { folder: tempfile::tempdir().unwrap(), number: 0 };
        mounted.replace(secrets);
        mounted
    }

    fn replace(&mut self, secrets: &[(&str, &str)]) {
        self.number += 1;
        let folder = self.folder.path().join(format!("..{}", self.number));
        std::fs::create_dir(&folder).unwrap();
        for (name, value) in secrets {
            std::fs::write(folder.join(name), format!("{value}\n")).unwrap();
        }
        let (link, new) = (self.folder.path().join("data"), self.folder.path().join("data.new"));
        std::os::unix::fs::symlink(folder, &new).unwrap();
        std::fs::rename(new, link).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn the_secret_of_every_upstream_is_replaced_in_its_file_and_used_without_a_restart() {
    let suite = Suite::new().await;
    // Soon there is no token left that was got with the old password.
    suite.files.issuer.set_validity(Duration::from_secs(4));
    let old = [("authentik", TOKEN), ("name", "admin@lab.test"), ("word", "one"), ("ocis", PASSWORD)];
    let mut mounted = Mounted::new(&old);
    suite.stalwart.add_user("admin@lab.test", "one");
    let process = suite.process(&[
        ("AUTHENTIK_API_TOKEN", ""),
        ("AUTHENTIK_API_TOKEN_FILE", &mounted.text("authentik")),
        ("STALWART_API_TOKEN", ""),
        ("STALWART_USERNAME_FILE", &mounted.text("name")),
        ("STALWART_PASSWORD_FILE", &mounted.text("word")),
        ("OCIS_OIDC_PASSWORD", ""),
        ("OCIS_OIDC_PASSWORD_FILE", &mounted.text("ocis")),
    ]);
    suite.create("acme").await;
    suite.settled("acme").await;

    suite.world.authentik.add_token("another-token", Rights::Provisioner);
    suite.stalwart.add_user("root@lab.test", "two");
    mounted.replace(&[
        ("authentik", "another-token"),
        ("name", "root@lab.test"),
        ("word", "two"),
        ("ocis", "another-password"),
    ]);
    suite.world.authentik.remove_token(TOKEN);
    suite.stalwart.add_user("admin@lab.test", "no longer one");
    suite.files.issuer.set_app_password(ACCOUNT, "another-password");
    suite.create("globex").await;
    suite.settled("globex").await;
    let tokens = suite.files.issuer.token_requests();
    eventually("a token was got with the new password", async || {
        suite.reconcile("globex").await;
        suite.files.issuer.token_requests() > tokens
    })
    .await;
    assert!(suite.stalwart.failed_logins() <= 3, "{}", suite.stalwart.failed_logins());
    let log = process.stop().await;
    for secret in ["another-token", "another-password", TOKEN, PASSWORD] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    suite.audit("globex").await;
}

#[tokio::test]
async fn a_secret_that_is_refused_is_read_again_at_once_and_the_step_goes_on() {
    let world = World::new().await;
    let mut mounted = Mounted::new(&[("key", TOKEN)]);
    let secret = Secret::from_file("AUTHENTIK_API_TOKEN_FILE", &mounted.path("key")).unwrap();
    let metrics = Arc::new(Metrics::new());
    let upstream = UpstreamClient::new(
        Upstream::Authentik,
        HttpClient::new(None, Duration::from_secs(2)).unwrap(),
        BaseUrl::parse(&world.authentik.url(), "api/v3").unwrap(),
        Credentials::Bearer(secret),
        Limits::GENEROUS,
        Arc::clone(&metrics),
    );
    let authentik = Authentik::new(upstream, GroupTemplate::parse("tenant-{slug}").unwrap());
    let integrations = Arc::new(Integrations::new(Arc::clone(&metrics)).with_authentik(authentik));
    // Nothing here looks at the file but the refusal.
    let running = Running::start(world.store.clone(), integrations, metrics, settings()).await;
    world.insert("acme").await;
    world.active("acme").await;
    mounted.replace(&[("key", "another-token")]);
    world.authentik.remove_token(TOKEN);
    world.authentik.add_token("another-token", Rights::Provisioner);
    world.insert("globex").await;
    world.active("globex").await;
    let refused: u64 = running
        .metrics
        .render()
        .lines()
        .filter(|line| line.contains("request_duration_seconds_count") && line.contains("\"403\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(refused, 1);
    running.stop().await;
}

#[tokio::test]
async fn another_wrong_key_costs_one_login_and_the_right_one_is_used_at_once() {
    let suite = Suite::new().await;
    let mut mounted = Mounted::new(&[("key", "API_wrong")]);
    let process =
        suite.process(&[("STALWART_API_TOKEN", ""), ("STALWART_API_TOKEN_FILE", &mounted.text("key"))]);
    suite.create("acme").await;
    eventually("the key is refused", async || suite.stalwart.failed_logins() == 1).await;
    eventually("the step says so", async || {
        let step = suite.world.step_of("acme", "stalwart").await;
        step.get_str("reason").is_ok_and(|reason| reason == "CredentialsRejected")
    })
    .await;
    mounted.replace(&[("key", "API_wrong_too")]);
    eventually("the other key is refused", async || suite.stalwart.failed_logins() == 2).await;
    holds_for(Duration::from_secs(3), "it is not tried again", async || {
        suite.stalwart.failed_logins() == 2
    })
    .await;
    suite.stalwart.add_key("API_right", &RIGHTS);
    mounted.replace(&[("key", "API_right")]);
    suite.settled("acme").await;
    assert_eq!(suite.stalwart.failed_logins(), 2);
    process.stop().await;
}

#[tokio::test]
async fn a_secret_file_that_is_empty_for_a_while_takes_nothing_away_and_is_warned_of_once() {
    let world = World::new().await;
    let mut mounted = Mounted::new(&[("key", TOKEN)]);
    let file = mounted.text("key");
    let settings = [("AUTHENTIK_API_TOKEN", ""), ("AUTHENTIK_API_TOKEN_FILE", file.as_str())];
    let process = Process::start(&world, &settings);
    world.insert("acme").await;
    world.active("acme").await;
    mounted.replace(&[("key", "")]);
    process.says("the value before is kept").await;
    world.insert("globex").await;
    world.active("globex").await;
    // Two more looks.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = process.stop().await;
    assert_eq!(log.matches("the value before is kept").count(), 1, "{log}");
}

/// A mongod that asks who one is.
pub struct Locked {
    _mongod: Mongod,
    _key: tempfile::NamedTempFile,
    admin: Database,
    host: String,
}

impl Locked {
    pub async fn new() -> Self {
        use std::io::Write;
        use std::os::unix::fs::PermissionsExt;
        let mut key = tempfile::NamedTempFile::new().unwrap();
        key.write_all(b"bm90IGEgc2VjcmV0IGF0IGFsbA==").unwrap();
        std::fs::set_permissions(key.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let mongod = start_mongod(&["--keyFile", key.path().to_str().unwrap()]).await;
        let host = mongod.uri.strip_prefix("mongodb://").unwrap().to_owned();
        // As long as there is no user, one may be made from here.
        let first = Client::with_uri_str(&mongod.uri).await.unwrap();
        let root = doc! { "createUser": "root", "pwd": "root", "roles": ["root"] };
        first.database("admin").run_command(root).await.expect("the first user is made");
        let admin = Client::with_uri_str(Self::address(&host, "root", "root")).await.unwrap();
        Self { _mongod: mongod, _key: key, admin: admin.database("admin"), host }
    }

    fn address(host: &str, user: &str, password: &str) -> String {
        format!("mongodb://{user}:{password}@{host}&authSource=admin")
    }

    pub fn of(&self, user: &str, password: &str) -> String {
        Self::address(&self.host, user, password)
    }

    async fn admit(&self, user: &str, password: &str, database: &str) {
        let roles = vec![doc! { "role": "dbOwner", "db": database }];
        self.run(doc! { "createUser": user, "pwd": password, "roles": roles }).await;
    }

    pub async fn run(&self, command: Document) {
        self.admin.run_command(command).await.expect("it is done");
    }
}

#[tokio::test]
async fn another_user_of_mongodb_is_used_as_soon_as_its_address_is_in_the_file() {
    let locked = Locked::new().await;
    let world = World::at(&locked.of("root", "root"), Default::default()).await;
    locked.admit("first", "one", &world.database).await;
    let mut mounted = Mounted::new(&[("uri", &locked.of("first", "one"))]);
    let settings = [("MONGODB_URI", ""), ("MONGODB_URI_FILE", &*mounted.text("uri"))];
    let process = Process::start(&world, &settings);
    world.insert("acme").await;
    world.active("acme").await;

    // Rotated in good order: both are good for a while.
    locked.admit("second", "two", &world.database).await;
    mounted.replace(&[("uri", &locked.of("second", "two"))]);
    process.says("connected to MongoDB with another address").await;
    locked.run(doc! { "dropUser": "first" }).await;
    world.insert("globex").await;
    world.active("globex").await;

    // And in bad order: it is refused before the file says another one.
    locked.run(doc! { "dropUser": "second" }).await;
    world.insert("umbrella").await;
    process.says("MongoDB refuses the user or password").await;
    locked.admit("third", "three", &world.database).await;
    mounted.replace(&[("uri", &locked.of("third", "three"))]);
    world.active("umbrella").await;
    let log = process.stop().await;
    assert!(!log.contains("cannot reconcile this tenant"), "no tenant is blamed: {log}");
    assert!(!log.contains("three@") && !log.contains("two@"), "{log}");
}

#[tokio::test]
async fn an_address_that_leads_to_another_database_is_not_used() {
    let (world, other) = (World::new().await, start_mongod(&[]).await);
    let mut mounted = Mounted::new(&[("uri", &world.uri)]);
    let settings = [("MONGODB_URI", ""), ("MONGODB_URI_FILE", &*mounted.text("uri"))];
    let process = Process::start(&world, &settings);
    world.insert("acme").await;
    world.active("acme").await;
    let elsewhere = World::at(&other.uri, Default::default()).await;
    let database = Client::with_uri_str(&other.uri).await.unwrap().database(&world.database);
    database
        .collection::<Document>("tenants")
        .insert_one(doc! { "slug": "stranger", "name": "Stranger" })
        .await
        .unwrap();
    mounted.replace(&[("uri", &other.uri)]);
    process.says("leads to another database").await;
    world.insert("globex").await;
    world.active("globex").await;
    assert!(world.groups_named("tenant-stranger").is_empty());
    process.stop().await;
    drop(elsewhere);
}

#[tokio::test]
async fn issuers_in_a_file_are_trusted_as_it_says_and_a_waiting_command_takes_the_next_token_of_its_own()
{
    let (world, issuer) = (World::new().await, issuer().await);
    let trusting = |slugs: &[&str]| {
        let list = slugs
            .iter()
            .map(|slug| serde_json::json!({ "issuer": issuer.issuer_url(slug), "audiences": [slug] }));
        serde_json::Value::Array(list.collect()).to_string()
    };
    let token = |slug| issuer.token(slug, "reader", "openid profile email").unwrap();
    let mut mounted = Mounted::new(&[("issuers", &trusting(&["portal"]))]);
    let process = Process::start(
        &world,
        &[("INSECURE_NO_AUTH", ""), ("OIDC_ISSUERS_FILE", &mounted.text("issuers"))],
    );
    let api = format!("http://{}", process.address("http").await);
    let status = async |slug| {
        let asked = http().request(Method::GET, format!("{api}/tenants")).bearer_auth(token(slug));
        asked.send().await.unwrap().status().as_u16()
    };
    eventually("the portal is trusted", async || status("portal").await == 200).await;
    assert_eq!(status("tenantry").await, 401);

    let down = FaultAnswer::Status { status: 500, body: String::new(), retry_after: None };
    world.authentik.faults.add(Fault { answer: down, ..Fault::default() });
    world.insert("acme").await;
    let mut tokens = Mounted::new(&[("token", &token("portal"))]);
    let mut command = Process::command();
    command
        .args(["tenants", "wait", "acme", "--for=ready", "--timeout", "30s"])
        .env("TENANTRY_URL", &api)
        .env("TENANTRY_TOKEN_FILE", tokens.path("token"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let waiting = command.spawn().unwrap();
    world.step_becomes("acme", "error").await;
    mounted.replace(&[("issuers", &trusting(&["portal", "tenantry"]))]);
    eventually("both are trusted", async || status("tenantry").await == 200).await;
    tokens.replace(&[("token", &token("tenantry"))]);
    mounted.replace(&[("issuers", &trusting(&["tenantry"]))]);
    eventually("only the other one is trusted", async || status("portal").await == 401).await;
    mounted.replace(&[("issuers", "[{]")]);
    process.says("the issuers before are kept").await;
    assert_eq!(status("tenantry").await, 200);
    world.authentik.faults.clear();
    let waited = waiting.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(waited.status.success(), "{}: {said}", waited.status);
    process.stop().await;
}
