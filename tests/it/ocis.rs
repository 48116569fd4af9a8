//! The oCIS integration against the simulated servers, and its tokens from a simulated issuer: every
//! trap that the real ones were seen to set.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::issuer;
use tenantry::dev::ocis::{Flavour, Options, Simulator};
use tenantry::http::{BaseUrl, HttpClient};
use tenantry::integration::{
    ClientCredentials, Converged, Credentials, Error, GroupTemplate, Integration, Integrations, Intent,
    Limits, Membership, Mode, Ocis, SpaceRole, Target, TokenEndpoint, TokenSource, Unbounded,
    UpstreamClient,
};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::tenant::{
    Desired, FailureKind, IntentId, MayAdopt, Outcome, Reason, Services, StepDesired, TenantId, Upstream,
};

use crate::support::{converge, eventually};

pub const ACCOUNT: &str = "tenantry";
pub const PASSWORD: &str = "app-password-of-the-account";
const FLAVOURS: [Flavour; 4] = Flavour::ALL;

/// An issuer and a file server that trusts it, as they are recommended to be set up.
pub struct FileServer {
    pub issuer: issuer::Simulator,
    pub server: Simulator,
    /// Of a request, for clients.
    pub timeout: Duration,
}

impl FileServer {
    pub async fn new(flavour: Flavour) -> Self {
        let account = issuer::Account::new(ACCOUNT, PASSWORD, &["tenant-provisioners"]);
        let options = issuer::Options { accounts: vec![account], ..Default::default() };
        let issuer = issuer::Simulator::new(0, options).await.unwrap();
        let options = Options { autoprovision_race: true, ..Options::default() };
        let server = Simulator::new(0, flavour, &issuer.issuer_url("ocis"), options).await.unwrap();
        Self { issuer, server, timeout: Duration::from_secs(2) }
    }

    pub fn credentials(&self) -> ClientCredentials {
        ClientCredentials {
            endpoint: TokenEndpoint::Url(self.issuer.token_url().parse().unwrap()),
            client_id: "web".into(),
            client_secret: None,
            account: Some((ACCOUNT.into(), Secret::from(PASSWORD))),
            scope: "openid profile email".into(),
        }
    }

    pub fn connect(&self, metrics: &Arc<Metrics>) -> Ocis {
        self.connect_with(self.credentials(), None, metrics)
    }

    pub fn connect_with(
        &self,
        credentials: ClientCredentials,
        membership: Option<Membership>,
        metrics: &Arc<Metrics>,
    ) -> Ocis {
        let http = HttpClient::new(None, self.timeout).unwrap();
        let upstream = |credentials| {
            let base = BaseUrl::parse(&self.server.url(), "graph/v1.0").unwrap();
            let (http, metrics) = (http.clone(), Arc::clone(metrics));
            UpstreamClient::new(Upstream::Ocis, http, base, credentials, Limits::GENEROUS, metrics)
        };
        let tokens = Arc::new(TokenSource::new(upstream(Credentials::None), credentials));
        let upstream = upstream(Credentials::Tokens(tokens));
        Ocis::new(upstream, membership, Duration::from_secs(5), Arc::clone(metrics))
    }
}

struct Bench {
    files: FileServer,
    ocis: Ocis,
    metrics: Arc<Metrics>,
}

impl Bench {
    async fn new(flavour: Flavour) -> Self {
        Self::with(flavour, None).await
    }

    async fn with(flavour: Flavour, membership: Option<Membership>) -> Self {
        let files = FileServer::new(flavour).await;
        let metrics = Arc::new(Metrics::new());
        let ocis = files.connect_with(files.credentials(), membership, &metrics);
        Self { files, ocis, metrics }
    }

    async fn converge(&self, target: &Target) -> Result<Converged, Error> {
        converge(&self.ocis, target).await
    }

    fn server(&self) -> &Simulator {
        &self.files.server
    }

    fn drive(&self, id: &str) -> Value {
        let drives = self.server().drives();
        drives.into_iter().find(|drive| drive["id"] == id).expect("the space is there")
    }

    fn requests(&self) -> Vec<String> {
        self.server().faults.requests()
    }
}

fn desired(name: &str, storage_bytes: Option<i64>) -> StepDesired {
    let desired = Desired {
        name: name.parse().unwrap(),
        domain: None,
        storage_bytes,
        services: Services::default(),
        paused: false,
        adopt: None,
        deletion: None,
    };
    desired.for_step(Upstream::Ocis)
}

fn intent() -> IntentId {
    let mut bytes: [u8; 12] = rand::random();
    let now = jiff::Timestamp::now().as_second();
    bytes[..4].copy_from_slice(&u32::try_from(now).unwrap().to_be_bytes());
    IntentId::from_bytes(bytes)
}

/// A new tenant's first run.
fn target() -> Target {
    Target {
        id: TenantId::from_bytes(rand::random()),
        slug: "acme".parse().unwrap(),
        desired: desired("Acme Corporation", Some(5_000_000_000)),
        observed: None,
        left: None,
        recorded: None,
        settled: false,
        search: false,
        may_exist: false,
        intent: Some(Intent { id: intent(), open: false, age: Duration::ZERO }),
        mode: Mode::Apply,
        fleet: crate::fleet::FLEET,
        known: true,
        may_adopt: MayAdopt::default(),
        adopted: Vec::new(),
        given_quota: None,
    }
}

/// The same tenant's routine re-check: with another, fresh intent.
fn next(target: &Target, made: &Converged) -> Target {
    Target {
        recorded: Some(made.external_id.clone()),
        observed: Some(target.desired.clone()),
        may_exist: true,
        intent: Some(Intent { id: intent(), open: false, age: Duration::ZERO }),
        ..target.clone()
    }
}

/// A later run that finds the intent of an earlier one.
fn after(target: &Target, age: Duration) -> Target {
    let intent = target.intent.map(|intent| Intent { open: true, age, ..intent });
    Target { may_exist: true, intent, ..target.clone() }
}

fn create() -> Fault {
    Fault {
        method: Some("POST".into()),
        path: Some("/graph/v1.0/drives".into()),
        times: Some(1),
        ..Fault::default()
    }
}

#[tokio::test]
async fn a_space_carries_both_marks_and_costs_one_request_and_then_one() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        let target = target();
        let made = bench.converge(&target).await.unwrap();
        let intent = target.intent.unwrap().id;
        let drive = bench.drive(&made.external_id);
        assert_eq!(drive["name"], "Acme Corporation");
        assert_eq!(drive["driveAlias"], format!("tenantry/{}/{intent}", target.id));
        assert_eq!(drive["description"], format!("[tenantry {}/{intent} {}]", target.id, target.fleet));
        assert_eq!(drive["quota"]["total"], 5_000_000_000_i64);
        assert_eq!(bench.requests(), ["POST /graph/v1.0/drives"], "{flavour:?}");
        bench.server().faults.forget_requests();
        let again = bench.converge(&next(&target, &made)).await.unwrap();
        assert_eq!((again.repaired, again.remarks.note), (Vec::new(), None));
        assert_eq!(bench.requests().len(), 1, "{:?}", bench.requests());
        assert_eq!(bench.files.issuer.token_requests(), 1, "one token for all of it");
    }
}

#[tokio::test]
async fn what_people_change_is_put_back_and_their_words_stay() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        let target = target();
        let made = bench.converge(&target).await.unwrap();
        let id = &made.external_id;
        let mark = bench.drive(id)["description"].as_str().unwrap().to_owned();
        for (change, fields) in [
            (json!({ "name": "Old name" }), vec!["name"]),
            (json!({ "quota": { "total": 1 } }), vec!["quota"]),
            (json!({ "driveAlias": "project/acme" }), vec!["driveAlias"]),
            (json!({ "description": "Our files." }), vec!["description"]),
            (
                json!({ "description": "", "driveAlias": "x", "name": "y" }),
                vec!["name", "driveAlias", "description"],
            ),
        ] {
            let words = change["description"].as_str().map(ToOwned::to_owned);
            assert!(bench.server().change(id, change));
            let repaired = bench.converge(&next(&target, &made)).await.unwrap();
            let repaired: Vec<_> = repaired.repaired.iter().map(|drift| drift.name.as_ref()).collect();
            assert_eq!(repaired, fields, "{flavour:?}");
            let drive = bench.drive(id);
            assert_eq!(drive["name"], "Acme Corporation");
            let said = drive["description"].as_str().unwrap();
            assert!(said.starts_with(&words.unwrap_or_default()), "{said}");
            assert!(said.contains(&target.id.to_string()), "{said}, not {mark}");
        }
        assert_eq!(bench.server().count(), 1);
    }
}

#[tokio::test]
async fn a_disabled_space_is_restored_and_a_purged_one_made_anew() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        let target = target();
        let made = bench.converge(&target).await.unwrap();
        assert!(bench.server().disable(&made.external_id));
        assert!(bench.server().change(&made.external_id, json!({ "name": "Gone" })));
        let restored = bench.converge(&next(&target, &made)).await.unwrap();
        assert_eq!(restored.external_id, made.external_id, "{flavour:?}");
        assert_eq!(bench.server().enabled(), 1);
        assert_eq!(bench.drive(&made.external_id)["name"], "Acme Corporation");

        bench.server().disable(&made.external_id);
        assert!(bench.server().purge(&made.external_id));
        let anew = bench.converge(&next(&target, &made)).await.unwrap();
        assert_ne!(anew.external_id, made.external_id);
        assert_eq!(bench.server().enabled(), 1);
    }
}

#[tokio::test]
async fn nothing_is_believed_to_be_gone_while_the_storage_is_away() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        let target = target();
        let made = bench.converge(&target).await.unwrap();
        bench.server().storage_away(true);
        let error = bench.converge(&next(&target, &made)).await.unwrap_err();
        assert_eq!(error.failure.reason, Reason::StorageAway, "{flavour:?}");
        assert!(error.is_transient());
        let posts = bench.requests().iter().filter(|line| line.starts_with("POST")).count();
        assert_eq!(posts, 1, "nothing else was created: {:?}", bench.requests());
        bench.server().storage_away(false);
        let back = bench.converge(&next(&target, &made)).await.unwrap();
        assert_eq!((back.external_id, back.repaired), (made.external_id, Vec::new()));
    }
}

#[tokio::test]
async fn a_space_whose_managers_removed_us_is_found_in_the_list_and_still_repaired() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        let target = target();
        let made = bench.converge(&target).await.unwrap();
        assert!(bench.server().expel(&made.external_id));
        assert!(bench.server().change(&made.external_id, json!({ "quota": { "total": 7 } })));
        let found = bench.converge(&next(&target, &made)).await.unwrap();
        assert_eq!(found.external_id, made.external_id, "{flavour:?}");
        assert_eq!(bench.drive(&made.external_id)["quota"]["total"], 5_000_000_000_i64);
        assert_eq!(bench.server().count(), 1);
    }
}

#[tokio::test]
async fn a_create_that_was_applied_but_not_answered_is_found_by_its_mark() {
    for answer in [
        FaultAnswer::Drop,
        FaultAnswer::Hang,
        FaultAnswer::Status { status: 502, body: String::new(), retry_after: None },
    ] {
        let bench = Bench::new(Flavour::Ocis31).await;
        bench.server().faults.add(Fault { apply: true, answer: answer.clone(), ..create() });
        let made = bench.converge(&target()).await.unwrap();
        assert_eq!(bench.server().count(), 1, "{answer:?}");
        assert_eq!(bench.drive(&made.external_id)["name"], "Acme Corporation");
        assert_eq!(made.remarks.look_again, None, "only one create was ever sent");
    }
}

#[tokio::test]
async fn a_create_of_unknown_outcome_is_not_repeated_in_the_same_run() {
    let bench = Bench::new(Flavour::Ocis31).await;
    let answer = FaultAnswer::Status { status: 500, body: "{}".into(), retry_after: None };
    bench.server().faults.add(Fault { answer, ..create() });
    let target = target();
    let error = bench.converge(&target).await.unwrap_err();
    assert!(error.failure.unresolved, "a later run must look for it");
    let posts = bench.requests().iter().filter(|line| line.starts_with("POST")).count();
    assert_eq!(posts, 1);
    // The next run looks before it creates, and goes on looking for a while.
    let made = bench.converge(&after(&target, Duration::from_secs(5))).await.unwrap();
    assert_eq!(made.remarks.look_again, Some(Duration::from_secs(60)));
    assert_eq!(bench.server().count(), 1);
}

#[tokio::test]
async fn a_create_that_certainly_did_nothing_leaves_nothing_to_look_for() {
    let mut bench = Bench::new(Flavour::Ocis31).await;
    bench.converge(&target()).await.unwrap();
    bench.files.server.server.stop().await;
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Unreachable);
    assert!(!error.failure.unresolved);
}

#[tokio::test]
async fn a_request_that_is_applied_late_ends_with_one_enabled_space_and_a_report() {
    let bench = Bench::new(Flavour::OpenCloud).await;
    // It is applied after we have given up, looked, and made another.
    bench.server().faults.add(Fault { delay_ms: 4_000, ..create() });
    let target = target();
    let error = bench.converge(&target).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Timeout);
    let made = bench.converge(&after(&target, Duration::from_secs(3))).await.unwrap();
    eventually("the late one is applied", async || bench.server().enabled() == 2).await;

    let later =
        Target { recorded: Some(made.external_id.clone()), ..after(&target, Duration::from_secs(70)) };
    let found = bench.converge(&later).await.unwrap();
    assert_eq!(found.external_id, made.external_id, "the recorded one is kept");
    assert!(found.remarks.note.unwrap().contains("was disabled"));
    assert_eq!((bench.server().enabled(), bench.server().count()), (1, 2), "disabled, not purged");
    assert_eq!(bench.metrics.twins_disabled.get(), 1);
    // Not restored, and not looked for for ever.
    let settled =
        Target { intent: later.intent.map(|i| Intent { age: Duration::from_secs(901), ..i }), ..later };
    let settled = bench.converge(&settled).await.unwrap();
    assert_eq!((settled.remarks.look_again, settled.repaired), (None, Vec::new()));
    assert_eq!(bench.server().enabled(), 1);
}

#[tokio::test]
async fn a_twin_in_which_something_is_stored_is_reported_and_left() {
    let bench = Bench::new(Flavour::OpenCloud).await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let mark = bench.drive(&made.external_id)["driveAlias"].clone();
    let twin = bench.server().plant(json!({ "name": "Twin", "driveAlias": mark }));
    assert!(bench.server().change(&twin, json!({ "quota": { "used": 3 } })));
    let looking =
        Target { recorded: Some(made.external_id.clone()), ..after(&target, Duration::from_secs(70)) };
    let error = bench.converge(&looking).await.unwrap_err();
    assert_eq!((error.failure.reason, error.failure.kind), (Reason::Duplicate, FailureKind::Terminal));
    assert_eq!(error.failure.external_id, Some(made.external_id));
    assert_eq!(bench.server().enabled(), 2);
}

#[tokio::test]
async fn another_tenants_space_is_never_touched_though_it_is_recorded() {
    let bench = Bench::new(Flavour::OpenCloud).await;
    let other = bench.converge(&target()).await.unwrap();
    let before = bench.drive(&other.external_id);
    let mine = target();
    let confused = Target { recorded: Some(other.external_id.clone()), may_exist: true, ..mine };
    let error = bench.converge(&confused).await.unwrap_err();
    assert_eq!((error.failure.reason, error.failure.kind), (Reason::Conflict, FailureKind::Terminal));
    assert_eq!(bench.drive(&other.external_id), before);
    assert_eq!(bench.server().count(), 1);
}

#[tokio::test]
async fn a_space_of_the_same_name_does_not_matter() {
    let bench = Bench::new(Flavour::Ocis31).await;
    let foreign = bench.server().plant(json!({ "name": "Acme Corporation" }));
    let before = bench.drive(&foreign);
    let made = bench.converge(&Target { may_exist: true, ..after(&target(), Duration::ZERO) }).await;
    assert_ne!(made.unwrap().external_id, foreign);
    assert_eq!(bench.drive(&foreign), before, "names are not unique, so a name proves nothing");
}

#[tokio::test]
async fn a_name_that_ocis_does_not_allow_is_mapped_and_that_is_said() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        let target = Target { desired: desired("Acme Inc. / \u{fc}ber *alles*", None), ..target() };
        let made = bench.converge(&target).await.unwrap();
        let note = made.remarks.note.clone().expect("it is said");
        assert_eq!(bench.drive(&made.external_id)["name"], "Acme Inc- - \u{fc}ber -alles");
        assert!(note.contains("Acme Inc- -"), "{note}");
        assert_eq!(bench.converge(&next(&target, &made)).await.unwrap().repaired, []);
    }
}

#[tokio::test]
async fn searches_that_come_together_share_the_lists() {
    let bench = Bench::new(Flavour::Ocis31).await;
    // The account is made, and the token had, by a first request.
    bench.converge(&target()).await.unwrap();
    bench.server().faults.forget_requests();
    bench.server().faults.add(Fault { delay_ms: 100, ..Fault::default() });
    let targets: Vec<_> = (0..40).map(|_| after(&target(), Duration::ZERO)).collect();
    let runs = targets.iter().map(|target| bench.converge(target));
    for made in futures_util::future::join_all(runs).await {
        made.unwrap();
    }
    let lists = bench.requests().iter().filter(|line| line.contains("driveType")).count();
    assert!((1..=3).contains(&lists), "{lists} lists for 40 searches");
    assert_eq!(bench.server().enabled(), 41);
}

#[tokio::test]
async fn a_group_gets_its_role_when_ocis_knows_it_and_until_then_that_is_a_note() {
    for (flavour, requests) in
        [(Flavour::Ocis31, 1), (Flavour::Ocis5, 3), (Flavour::Ocis7, 2), (Flavour::OpenCloud, 2)]
    {
        let groups = GroupTemplate::parse("tenant-{slug}").unwrap();
        let membership = Membership { role: SpaceRole::Editor, groups };
        let bench = Bench::with(flavour, Some(membership)).await;
        bench.ocis.check().await.unwrap();
        bench.server().faults.forget_requests();
        let target = target();
        let made = bench.converge(&target).await.unwrap();
        let note = made.remarks.note.clone().expect("the group is not there yet");
        assert!(note.contains("\"tenant-acme\" is not known"), "{note}");
        assert!(bench.requests().len() <= 2, "{:?}", bench.requests());

        bench.server().add_group("tenant-acme-too");
        bench.server().add_group("tenant-acme");
        bench.server().faults.forget_requests();
        let added = bench.converge(&next(&target, &made)).await.unwrap();
        assert_eq!(added.remarks.note, None, "{flavour:?}");
        assert_eq!(bench.requests().len(), 1 + requests, "{:?}", bench.requests());
        let members = bench.drive(&made.external_id)["root"]["permissions"].to_string();
        assert!(members.contains("\"tenant-acme\"") && !members.contains("acme-too"), "{members}");

        bench.server().faults.forget_requests();
        assert_eq!(bench.converge(&next(&target, &made)).await.unwrap().repaired, []);
        assert_eq!(bench.requests().len(), 1, "{:?}", bench.requests());
    }
}

#[tokio::test]
async fn a_server_without_invitations_gets_ocs_shares_and_that_is_remembered() {
    let groups = GroupTemplate::parse("tenant-{slug}").unwrap();
    let membership = Membership { role: SpaceRole::Editor, groups };
    let bench = Bench::with(Flavour::Ocis5, Some(membership)).await;
    bench.ocis.check().await.unwrap();
    for (slug, writes) in [("acme", 3), ("globex", 2)] {
        bench.server().add_group(&format!("tenant-{slug}"));
        bench.server().faults.forget_requests();
        let target = Target { slug: slug.parse().unwrap(), ..target() };
        let made = bench.converge(&target).await.unwrap();
        assert_eq!(made.remarks.note, None);
        let members = bench.drive(&made.external_id)["root"]["permissions"].to_string();
        assert!(members.contains(&format!("\"tenant-{slug}\"")), "{members}");
        let requests = bench.requests();
        let sent = requests.iter().filter(|request| request.starts_with("POST")).count();
        assert_eq!(sent, writes, "{requests:?}");
    }
}

#[tokio::test]
async fn a_group_with_another_role_gets_the_right_one_and_a_space_without_us_is_a_note() {
    for flavour in FLAVOURS {
        let groups = GroupTemplate::parse("tenant-{slug}").unwrap();
        let viewer = Membership { role: SpaceRole::Viewer, groups: groups.clone() };
        let bench = Bench::with(flavour, Some(viewer)).await;
        bench.server().add_group("tenant-acme");
        let target = target();
        let made = bench.converge(&target).await.unwrap();
        let metrics = Arc::new(Metrics::new());
        let manager = Membership { role: SpaceRole::Manager, groups };
        let ocis = bench.files.connect_with(bench.files.credentials(), Some(manager.clone()), &metrics);
        let changed = converge(&ocis, &next(&target, &made)).await.unwrap();
        assert_eq!(changed.repaired.len(), 1, "{:?}", changed.repaired);
        assert_eq!(converge(&ocis, &next(&target, &made)).await.unwrap().repaired, []);

        // The group manages the space now, and removes us; a person takes its role away again.
        let other = Bench::with(flavour, Some(manager)).await;
        let made = other.converge(&target).await.unwrap();
        other.server().add_group("tenant-acme");
        assert!(other.server().expel(&made.external_id));
        let noted = other.converge(&next(&target, &made)).await.unwrap();
        assert!(noted.remarks.note.unwrap().contains("no manager"), "{flavour:?}");
    }
}

#[tokio::test]
async fn the_check_tells_version_and_a_missing_role() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        let checked = bench.ocis.check().await.unwrap();
        assert!(checked.version.is_some_and(|version| version.contains('.')));
        assert_eq!(checked.lacks, Vec::<String>::new());
        let plain = issuer::Account::new("plain", "pw", &["ocis-users"]);
        bench.files.issuer.add_account(plain);
        let account = Some(("plain".to_owned(), Secret::from("pw")));
        let credentials = ClientCredentials { account, ..bench.files.credentials() };
        let ocis = bench.files.connect_with(credentials, None, &Arc::new(Metrics::new()));
        let lacks = ocis.check().await.unwrap().lacks;
        assert_eq!(lacks, ["the role Space Admin"], "{flavour:?}");
        let error = converge(&ocis, &target()).await.unwrap_err();
        assert_eq!(error.failure.reason, Reason::Forbidden);
        assert!(error.failure.message.contains("Space Admin"), "{}", error.failure.message);
    }
}

#[tokio::test]
async fn a_file_server_without_its_storage_does_not_pass_the_check() {
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour).await;
        bench.server().storage_away(true);
        let error = bench.ocis.check().await.unwrap_err();
        assert_eq!(error.failure.reason, Reason::StorageAway, "{error:?}");
        bench.server().storage_away(false);
        bench.ocis.check().await.unwrap();
    }
}

#[tokio::test]
async fn a_list_keeps_the_meaning_of_statuses_that_every_other_request_has() {
    let bench = Bench::new(Flavour::Ocis31).await;
    bench.converge(&target()).await.unwrap();
    let list = |status, retry_after, times| Fault {
        query: Some("driveType".into()),
        times,
        answer: FaultAnswer::Status { status, body: String::new(), retry_after },
        ..Fault::default()
    };
    let sweep = async || bench.ocis.sweep(|_| {}).await;
    bench.server().faults.add(list(503, None, Some(1)));
    let error = sweep().await.unwrap_err();
    assert!(error.is_outage(), "{error:?}");
    assert_eq!(error.failure.reason, Reason::UpstreamError);
    bench.server().faults.add(list(429, Some(1), Some(1)));
    let asked = Instant::now();
    sweep().await.unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    bench.server().faults.add(list(302, None, Some(1)));
    assert_eq!(sweep().await.unwrap_err().failure.reason, Reason::WrongAddress);
}

#[tokio::test]
async fn rejected_credentials_cost_the_issuer_one_request_and_ocis_none() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let metrics = Arc::new(Metrics::new());
    let account = Some((ACCOUNT.to_owned(), Secret::from("wrong")));
    let credentials = ClientCredentials { account, ..files.credentials() };
    let ocis = files.connect_with(credentials, None, &metrics);
    let integrations = Arc::new(Integrations::new(Arc::clone(&metrics)).with_ocis(ocis));
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let integrations = Arc::clone(&integrations);
        runs.spawn(async move { integrations.run(Upstream::Ocis, &target(), &Unbounded).await });
    }
    while let Some(outcome) = runs.join_next().await {
        let Outcome::Failed(failure) = outcome.unwrap() else { panic!("it cannot work") };
        assert_eq!(failure.reason, Reason::CredentialsRejected);
        assert!(failure.message.contains("OCIS_OIDC_"), "{}", failure.message);
        assert!(!failure.message.contains("wrong app"), "{}", failure.message);
    }
    assert_eq!(files.issuer.token_requests(), 1);
    assert_eq!(files.server.faults.total(), 0);
    assert!(metrics.render().contains("tenantry_integration_healthy{upstream=\"ocis\"} 0"));
}

#[tokio::test]
async fn a_token_that_ocis_refuses_costs_at_most_three_requests_in_ten_minutes() {
    let files = FileServer::new(Flavour::Ocis31).await;
    // Another provider of the same issuer: signed by the same key, but not by the issuer that counts.
    files.issuer.add_provider(issuer::Provider::public("tenantry", "tenantry"));
    let credentials = ClientCredentials { client_id: "tenantry".into(), ..files.credentials() };
    let metrics = Arc::new(Metrics::new());
    let ocis = files.connect_with(credentials, None, &metrics);
    let integrations = Arc::new(Integrations::new(Arc::clone(&metrics)).with_ocis(ocis));
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let integrations = Arc::clone(&integrations);
        runs.spawn(async move { integrations.run(Upstream::Ocis, &target(), &Unbounded).await });
    }
    let mut soonest = Duration::MAX;
    while let Some(outcome) = runs.join_next().await {
        let Outcome::Failed(failure) = outcome.unwrap() else { panic!("it cannot work") };
        assert!(failure.message.contains("issuer"), "{}", failure.message);
        let FailureKind::Misconfigured { retry_after } = failure.kind else { panic!() };
        soonest = soonest.min(retry_after);
    }
    // One, and one with another token. The next probe, with the same one, is after two minutes, the one
    // after that ten minutes later.
    assert_eq!(files.server.faults.total(), 2, "{:?}", files.server.faults.requests());
    assert_eq!(files.issuer.token_requests(), 2);
    assert!(soonest > Duration::from_secs(110), "{soonest:?}");
}
