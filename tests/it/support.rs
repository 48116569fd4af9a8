//! What the tests stand on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use mongodb::{Client, Collection, Database};
use serde_json::Value;
use tenantry::config::AccessSettings;
use tenantry::controller::{Controller, Settings};
use tenantry::dev::authentik::{Release, Simulator};
use tenantry::dev::mongod::{self, DataDir, Mongod};
use tenantry::http::{BaseUrl, HttpClient};
use tenantry::integration::{
    Authentik, Converged, Credentials, Error, GroupTemplate, Integration, Integrations, Limits, Reached,
    Target, Unbounded, UpstreamClient, run,
};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::store::{Holder, Journal, Store, StoreOptions};
use tenantry::tenant::{Backoff, ChangeGuardPolicy, Controls, MayAdopt, Policy, Upstream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const TOKEN: &str = "test-token";
/// A test that waits longer than this for something has found that it does not happen.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The mongod that all tests of this binary share.
pub struct Server {
    pub uri: String,
    /// Whether it is ours, so that we may torment it.
    pub ours: bool,
}

pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        if let Ok(uri) = std::env::var("MONGODB_URI")
            && !uri.is_empty()
        {
            return Server { uri, ours: false };
        }
        // On a thread of its own, because each test's runtime ends with the test.
        let (started, start) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mongod = start_mongod(&["--setParameter", "enableTestCommands=1"]).await;
                started.send(mongod.uri.clone()).unwrap();
                // It ends with this process; see `Mongod`.
                std::future::pending::<()>().await;
            });
        });
        Server { uri: start.recv().expect("mongod starts"), ours: true }
    })
}

/// A mongod of the test's own.
pub async fn start_mongod(arguments: &[&str]) -> Mongod {
    let binary = mongod_binary().await;
    Mongod::start(&binary, DataDir::Temporary, arguments).await.expect("mongod starts")
}

pub async fn mongod_binary() -> PathBuf {
    let given = std::env::var_os("TENANTRY_MONGOD").map(PathBuf::from);
    mongod::find(given.as_deref()).await.expect("a mongod is found or installed")
}

/// Waits until `holds`, or fails saying what did not come true.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "did not come true within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Checks for a while that something keeps holding.
pub async fn holds_for(span: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + span;
    while Instant::now() < until {
        assert!(holds().await, "stopped being true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How commands on the collection of histories are called here, whatever they are.
const HISTORY: &str = "history";

/// How the query for what is due is called here: sweeps and guards ask other things.
pub const DUE_SCAN: &str = "due scan";

/// Commands that a store sent, by name, in order, and the collections that they were about.
#[derive(Clone, Default)]
pub struct Commands(Arc<Mutex<Vec<(String, String)>>>);

/// So long without a command, and what a controller does at its start has been done.
const QUIET: Duration = Duration::from_millis(700);

impl Commands {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap()).into_iter().map(|(name, _)| name).collect()
    }

    pub fn count(&self, name: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(command, _)| command == name).count()
    }

    /// Those of a name that were about the tenants.
    pub fn count_on_tenants(&self, name: &str) -> usize {
        let commands = self.0.lock().unwrap();
        commands.iter().filter(|(command, on)| command == name && on == "tenants").count()
    }

    /// Waits until nothing is sent any more: what a controller does in the background at its start, such as
    /// a relist, must not be counted for a tenant. Only for a controller that rarely polls.
    pub async fn rest(&self) {
        let (mut sent, mut since) = (self.without_stream().len(), Instant::now());
        eventually("nothing is sent any more", async || {
            let now = self.without_stream().len();
            if now != sent {
                (sent, since) = (now, Instant::now());
            }
            since.elapsed() >= QUIET
        })
        .await;
    }

    /// All but those that a change stream sends whether or not anything happens.
    pub fn without_stream(&self) -> Vec<String> {
        let quiet = ["getMore", "aggregate", "killCursors"];
        let commands = self.0.lock().unwrap();
        let names = commands.iter().map(|(name, _)| name.clone());
        names.filter(|name| !quiet.contains(&name.as_str())).collect()
    }

    /// The same without what concerns histories, at most two commands a second, which nothing waits for.
    pub fn of_reconciles(&self) -> Vec<String> {
        let mut commands = self.without_stream();
        commands.retain(|command| command != HISTORY);
        commands
    }
}

/// A database of the test's own, and a simulated Authentik.
pub struct World {
    pub uri: String,
    pub database: String,
    pub store: Store,
    pub commands: Commands,
    /// The database as any other program sees it.
    pub mongo: Database,
    pub tenants: Collection<Document>,
    pub authentik: Simulator,
}

impl World {
    pub async fn new() -> Self {
        Self::with_release(Release::R2025_12).await
    }

    pub async fn with_release(release: Release) -> Self {
        Self::at(&server().uri, release).await
    }

    pub async fn at(uri: &str, release: Release) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let database = format!("tenantry_test_{}_{number}", std::process::id());
        let authentik = Simulator::new(0, TOKEN, release).await.expect("the simulator starts");
        let client = Client::with_uri_str(uri).await.expect("the address is valid");
        let mongo = client.database(&database);
        let commands = Commands::default();
        let store = open_store(uri, &database, &commands).await;
        store.prepare().await.expect("the collection can be prepared");
        commands.take();
        let tenants = mongo.collection("tenants");
        Self { uri: uri.to_owned(), database, store, commands, mongo, tenants, authentik }
    }

    /// Another store on the same database, as another process would have.
    pub async fn other_store(&self) -> Store {
        open_store(&self.uri, &self.database, &Commands::default()).await
    }

    /// Inserts a tenant as a shell would: slug and name, nothing else.
    pub async fn insert(&self, slug: &str) -> ObjectId {
        let id = ObjectId::new();
        self.tenants
            .insert_one(doc! { "_id": id, "slug": slug, "name": format!("The {slug}") })
            .await
            .expect("the document is valid");
        id
    }

    pub async fn find(&self, slug: &str) -> Document {
        let found = self.tenants.find_one(doc! { "slug": slug }).await.expect("mongod answers");
        found.unwrap_or_else(|| panic!("there is no tenant {slug}"))
    }

    /// Changes a tenant as a shell would.
    pub async fn set(&self, slug: &str, fields: Document) {
        let updated = self.tenants.update_one(doc! { "slug": slug }, doc! { "$set": fields }).await;
        assert_eq!(updated.expect("the change is valid").matched_count, 1);
    }

    pub async fn is_active(&self, slug: &str) -> bool {
        self.find(slug).await.get_str("status").is_ok_and(|status| status == "active")
    }

    pub async fn step(&self, slug: &str) -> Document {
        self.step_of(slug, "authentik").await
    }

    pub async fn step_of(&self, slug: &str, step: &str) -> Document {
        let tenant = self.find(slug).await;
        let steps = tenant.get_document("steps").cloned().unwrap_or_default();
        steps.get_document(step).cloned().unwrap_or_default()
    }

    pub async fn step_is(&self, slug: &str, state: &str) -> bool {
        self.step(slug).await.get_str("state").is_ok_and(|now| now == state)
    }

    /// Waits until the tenant is active.
    pub async fn active(&self, slug: &str) {
        eventually(&format!("{slug} is active"), async || self.is_active(slug).await).await;
    }

    /// Waits until the Authentik step has this state, and returns it.
    pub async fn step_becomes(&self, slug: &str, state: &str) -> Document {
        eventually(&format!("{slug} has the step authentik {state}"), async || {
            self.step_is(slug, state).await
        })
        .await;
        self.step(slug).await
    }

    /// Requests to Authentik that were made for tenants: all but the check at start.
    pub fn asked(&self) -> usize {
        let requests = self.authentik.faults.requests();
        requests.iter().filter(|request| !request.ends_with("page_size=1")).count()
    }

    pub fn groups_named(&self, name: &str) -> Vec<Value> {
        self.authentik.groups().into_iter().filter(|group| group["name"] == name).collect()
    }

    /// The one group of that name.
    pub fn group(&self, name: &str) -> Value {
        let mut groups = self.groups_named(name);
        assert_eq!(groups.len(), 1, "groups named {name}: {groups:?}");
        groups.remove(0)
    }

    pub fn integrations(&self, metrics: &Arc<Metrics>) -> Arc<Integrations> {
        self.integrations_with(metrics, Duration::from_secs(2))
    }

    pub fn integrations_with(&self, metrics: &Arc<Metrics>, timeout: Duration) -> Arc<Integrations> {
        let authentik = authentik(&self.authentik.url(), TOKEN, timeout, metrics);
        Arc::new(Integrations::new(Arc::clone(metrics)).with_authentik(authentik))
    }

    /// Starts a controller in this process.
    pub async fn controller(&self) -> Running {
        self.controller_with(|_| {}).await
    }

    pub async fn controller_with(&self, change: impl FnOnce(&mut Settings)) -> Running {
        let mut settings = settings();
        change(&mut settings);
        let metrics = Arc::new(Metrics::new());
        let integrations = self.integrations(&metrics);
        Running::start(self.store.clone(), integrations, metrics, settings).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if server().ours {
            return;
        }
        // On another owner's server nothing is left behind.
        let (uri, database) = (self.uri.clone(), self.database.clone());
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Ok(client) = Client::with_uri_str(&uri).await {
                    let _ = client.database(&database).drop().await;
                }
            });
        });
        let _ = cleaning.join();
    }
}

pub async fn open_store(uri: &str, database: &str, commands: &Commands) -> Store {
    open_hasty_store(uri, database, commands, Duration::from_secs(4)).await
}

/// A store whose operations have no more time than this.
pub async fn open_hasty_store(
    uri: &str,
    database: &str,
    commands: &Commands,
    operation_timeout: Duration,
) -> Store {
    let seen = commands.clone();
    Store::new(StoreOptions {
        uri: uri.to_owned(),
        database: database.to_owned(),
        operation_timeout,
        max_connections: 40,
        on_answer: None,
        on_command: Some(Arc::new(move |name, command| {
            let on = command.get_str(name).unwrap_or_default();
            let is_due_scan =
                command.get_document("sort").is_ok_and(|by| by.contains_key("nextReconcileAt"));
            // Written whenever they have waited long enough, so that tests of what a reconcile costs must
            // tell them apart.
            let name = match on {
                "tenantry_events" => HISTORY,
                "tenants" if is_due_scan => DUE_SCAN,
                _ => name,
            };
            seen.0.lock().unwrap().push((name.to_owned(), on.to_owned()));
        })),
    })
    .await
    .expect("the address is valid")
}

/// What reconciles one after the other would come to: an adoption is recorded by the first of them.
pub async fn converge<I: Integration>(integration: &I, target: &Target) -> Result<Converged, Error> {
    let mut target = target.clone();
    loop {
        match run(integration, &target, &Unbounded).await? {
            Reached::Matches(converged) => return Ok(converged),
            Reached::Adopts { adopted, .. } => {
                target.recorded = Some(adopted.external_id.clone());
                target.adopted = vec![adopted];
            }
            other => panic!("it is neither converged nor failed: {other:?}"),
        }
    }
}

/// As that of a tenant with `adopt: true`.
pub fn adopting(target: Target) -> Target {
    Target { may_adopt: MayAdopt { unmarked: true, released: true }, ..target }
}

pub fn authentik(url: &str, token: &str, timeout: Duration, metrics: &Arc<Metrics>) -> Authentik {
    let upstream = UpstreamClient::new(
        Upstream::Authentik,
        HttpClient::new(None, timeout).expect("TLS can be set up"),
        BaseUrl::parse(url, "api/v3").expect("the address is valid"),
        Credentials::Bearer(Secret::from(token)),
        Limits::GENEROUS,
        Arc::clone(metrics),
    );
    Authentik::new(upstream, GroupTemplate::parse("tenant-{slug}").expect("the template is valid"))
}

/// Quick retries, rare re-checks.
pub fn settings() -> Settings {
    Settings {
        workers: 8,
        policy: Policy {
            backoff: Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(1) },
            resync: Duration::from_secs(3600),
        },
        lease_ttl: Duration::from_secs(2),
        poll_interval: Duration::from_millis(200),
        shutdown_grace: Duration::from_secs(5),
        holder: Holder::new("test", rand::random()),
        // Tests that want one say so.
        sweep_interval: Duration::from_secs(3600),
        guard: ChangeGuardPolicy { percent: 10 },
        adopt_unmarked: false,
        queue_capacity: 1_000,
    }
}

/// A controller in this process.
pub struct Running {
    pub metrics: Arc<Metrics>,
    pub watch_open: watch::Receiver<bool>,
    pub controls: watch::Receiver<Controls>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts it and waits until it watches.
    pub async fn start(
        store: Store,
        integrations: Arc<Integrations>,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> Self {
        let running = Self::spawn(store, integrations, metrics, settings);
        let mut open = running.watch_open.clone();
        tokio::time::timeout(DEADLINE, open.wait_for(|open| *open))
            .await
            .expect("the change stream opens in time")
            .expect("the controller runs");
        running
    }

    pub fn spawn(
        store: Store,
        integrations: Arc<Integrations>,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let (journal, _) = Journal::start(store.clone(), Arc::clone(&metrics), CancellationToken::new());
        let controller =
            Controller { store, integrations, metrics: Arc::clone(&metrics), journal, settings };
        let (opened, watch_open) = watch::channel(false);
        let (controlled, controls) = watch::channel(Controls::default());
        let task = tokio::spawn(controller.run(opened, controlled, shutdown.clone()));
        Self { metrics, watch_open, controls, shutdown, task }
    }

    /// Asks it to end and waits until it has.
    pub async fn stop(self) -> Duration {
        let asked = Instant::now();
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .expect("the controller ends in time")
            .expect("the controller does not panic");
        asked.elapsed()
    }

    /// Ends it as a crash would: nothing is finished, released or written.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub fn reconciles(&self, result: &str) -> u64 {
        let ends = tenantry::metrics::ReconcileEnd::ALL.iter().copied();
        let end =
            ends.into_iter().find(|end| end.name() == result).expect("it is an end of a reconcile");
        self.metrics.reconciles.of(end).get()
    }
}

/// Makes the server fail the next `times` of these commands with an error code; `None` is for ever.
///
/// A server has one such fault at a time: tests that need one take turns.
pub struct ServerFault {
    admin: Database,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

impl ServerFault {
    pub async fn commands(
        world: &World,
        commands: &[&str],
        code: i32,
        times: Option<i32>,
    ) -> Option<Self> {
        Self::on(world, "tenants", commands, code, times).await
    }

    /// The same of commands on another collection.
    pub async fn on(
        world: &World,
        collection: &str,
        commands: &[&str],
        code: i32,
        times: Option<i32>,
    ) -> Option<Self> {
        Self::doing(world, collection, commands, doc! { "errorCode": code }, times).await
    }

    /// Makes the server wait before it obeys.
    pub async fn delaying(
        world: &World,
        collection: &str,
        commands: &[&str],
        delay: Duration,
        times: Option<i32>,
    ) -> Option<Self> {
        let millis = i64::try_from(delay.as_millis()).unwrap();
        let wait = doc! { "blockConnection": true, "blockTimeMS": millis };
        Self::doing(world, collection, commands, wait, times).await
    }

    /// Anything else that the failpoint `failCommand` can do.
    pub async fn doing(
        world: &World,
        collection: &str,
        commands: &[&str],
        what: Document,
        times: Option<i32>,
    ) -> Option<Self> {
        static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        if !server().ours {
            eprintln!("skipped: the server behind MONGODB_URI is not ours to torment");
            return None;
        }
        let turn = TURN.lock().await;
        let admin = world.mongo.client().database("admin");
        let mode = times.map_or_else(|| Bson::from("alwaysOn"), |times| doc! { "times": times }.into());
        let namespace = format!("{}.{collection}", world.database);
        let commands: Vec<Bson> = commands.iter().map(|command| Bson::from(*command)).collect();
        let mut data = doc! {
            "failCommands": commands, "namespace": namespace, "failInternalCommands": false,
        };
        data.extend(what);
        let command = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data };
        admin.run_command(command).await.expect("the server lets itself be tormented");
        Some(Self { admin, _turn: turn })
    }

    pub async fn off(self) {
        self.admin
            .run_command(doc! { "configureFailPoint": "failCommand", "mode": "off" })
            .await
            .expect("the server lets itself be left in peace");
    }
}

pub fn date(document: &Document, field: &str) -> DateTime {
    *document.get_datetime(field).unwrap_or_else(|_| panic!("{field} is a date in {document}"))
}

/// For an API that is not tested for who may use it.
pub fn without_auth() -> AccessSettings {
    AccessSettings { insecure_no_auth: Some("true".into()), ..AccessSettings::default() }
}

/// A plain HTTP client for the tests.
pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(DEADLINE).build().expect("a client can be made")
}

/// A real `tenantry run` in a process of its own.
pub struct Process {
    child: tokio::process::Child,
    /// Lines of its log so far.
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts one on the world's database and upstreams; `settings` are added to its environment.
    pub fn start(world: &World, settings: &[(&str, &str)]) -> Self {
        let mut command = Self::run(world);
        command.envs(settings.iter().copied());
        Self::spawn(command)
    }

    /// `tenantry run` on the world's database and its Authentik, in a hurry.
    pub fn run(world: &World) -> tokio::process::Command {
        let mut command = Self::command();
        command
            .arg("run")
            .env("MONGODB_URI", &world.uri)
            .env("MONGODB_DATABASE", &world.database)
            .env("AUTHENTIK_API_URL", world.authentik.url())
            .env("AUTHENTIK_API_TOKEN", TOKEN)
            .env("INSECURE_NO_AUTH", "true")
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("TELEMETRY_ADDR", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("LEASE_TTL", "1s")
            .env("POLL_INTERVAL", "200ms")
            .env("BACKOFF_INITIAL", "50ms")
            .env("BACKOFF_MAX", "1s")
            .env("REQUEST_TIMEOUT", "3s");
        command
    }

    /// The program, with nothing of our own environment but what programs need to run.
    pub fn command() -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.env_clear().kill_on_drop(true);
        // Nor a person's contexts.
        command.env("TENANTRY_CONFIG", "/nowhere/tenantry/config.toml");
        for name in ["PATH", "HOME", "TENANTRY_CACHE_DIR", "TENANTRY_MONGOD", "XDG_CACHE_HOME", "TMPDIR"]
        {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    pub fn spawn(mut command: tokio::process::Command) -> Self {
        use tokio::io::{AsyncBufReadExt, BufReader};
        command.stdin(std::process::Stdio::null());
        command.stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&log);
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits until its log says something.
    pub async fn says(&self, text: &str) {
        eventually(&format!("the log says {text:?}; it says {}", self.log()), async || {
            self.log().contains(text)
        })
        .await;
    }

    /// Address of its API or telemetry: `http`, `telemetry`.
    pub async fn address(&self, of: &str) -> String {
        self.says("tenantry is starting").await;
        let log = self.log.lock().unwrap();
        let line = log.iter().find(|line| line.contains("tenantry is starting")).expect("just seen");
        let line: Value = serde_json::from_str(line).expect("the log is JSON");
        line[of].as_str().expect("the address is told").to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().expect("it runs");
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).expect("it is ours");
    }

    pub async fn ended(&mut self) -> std::process::ExitStatus {
        tokio::time::timeout(DEADLINE, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("it does not end; its log: {}", self.log()))
            .expect("it can be waited for")
    }

    /// Asks it to end, and expects that it does so cleanly.
    pub async fn stop(mut self) -> String {
        self.signal(rustix::process::Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}

/// With which a missing tool fails a test instead of skipping it; `.ci/run` sets it.
const REQUIRED: &str = "TENANTRY_REQUIRE_TOOLS";

/// Says that a test is skipped because a tool is not installed, or fails it where tools must be.
pub fn missing(tool: &str) {
    assert!(std::env::var_os(REQUIRED).is_none(), "{tool} is not installed");
    eprintln!("skipped: {tool} is not installed");
}

/// A program on `PATH`, if it is there.
pub fn found(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|it| it.is_file())
}

/// A program on `PATH` that the test needs.
pub fn tool(name: &str) -> Option<PathBuf> {
    let tool = found(name);
    if tool.is_none() {
        missing(name);
    }
    tool
}
