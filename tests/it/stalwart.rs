//! The Stalwart integration against the simulated server: every trap that the real one was seen to set.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::bson::oid::ObjectId;
use serde_json::{Value, json};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::stalwart::{Options, Simulator};
use tenantry::http::{BaseUrl, HttpClient};
use tenantry::integration::{
    Converged, Credentials, DkimManagement, Error, Integration, Integrations, Limits, Mode, Stalwart,
    Target, Unbounded, UpstreamClient, run,
};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::tenant::{
    DeletionPolicy, Desired, FailureKind, MayAdopt, Outcome, Presence, Reason, Services, StepDesired,
    TenantId, Upstream,
};

use crate::support::{adopting, converge, eventually};

const KEY: &str = "API_test-key";

fn options() -> Options {
    Options { dkim_delay: Duration::from_millis(20), ..Options::default() }
}

pub struct Bench {
    pub server: Simulator,
    stalwart: Stalwart,
}

impl Bench {
    pub async fn new() -> Self {
        Self::with(Credentials::Bearer(Secret::from(KEY))).await
    }

    async fn with(credentials: Credentials) -> Self {
        let server = Simulator::new(0, KEY, options()).await.unwrap();
        let stalwart = connect(&server.url(), credentials, Limits::GENEROUS);
        Self { server, stalwart }
    }

    pub async fn converge(&self, target: &Target) -> Result<Converged, Error> {
        converge(&self.stalwart, target).await
    }

    /// The names of all domains, page by page.
    async fn list(&self) -> Vec<String> {
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let page = self.stalwart.list(after.as_deref()).await.unwrap();
            names.extend(page.domains.into_iter().map(|domain| domain.name));
            match page.next {
                Some(_) => after = page.next,
                None => return names,
            }
        }
    }

    pub fn domain(&self, name: &str) -> Value {
        let mut found = self.server.domains();
        found.retain(|domain| domain["name"] == name);
        assert_eq!(found.len(), 1, "domains called {name}: {found:?}");
        found.remove(0)
    }

    pub fn names(&self) -> BTreeSet<String> {
        let domains = self.server.domains();
        domains.iter().map(|domain| domain["name"].as_str().unwrap().to_owned()).collect()
    }
}

pub fn connect(url: &str, credentials: Credentials, limits: Limits) -> Stalwart {
    connect_with(url, credentials, limits, Duration::from_secs(2))
}

pub fn connect_with(url: &str, credentials: Credentials, limits: Limits, timeout: Duration) -> Stalwart {
    let upstream = UpstreamClient::new(
        Upstream::Stalwart,
        HttpClient::new(None, timeout).unwrap(),
        BaseUrl::parse(url, "jmap").unwrap(),
        credentials,
        limits,
        Arc::new(Metrics::new()),
    );
    Stalwart::new(upstream, DkimManagement::Automatic)
}

pub fn desired(domain: &str) -> StepDesired {
    let desired = Desired {
        name: "Acme Corporation".parse().unwrap(),
        domain: Some(domain.parse().unwrap()),
        storage_bytes: None,
        services: Services::default(),
        paused: false,
        adopt: None,
        deletion: None,
    };
    desired.for_step(Upstream::Stalwart)
}

pub fn target() -> Target {
    Target {
        id: TenantId::from_bytes(ObjectId::new().bytes()),
        slug: "acme".parse().unwrap(),
        desired: desired("acme.test"),
        observed: None,
        left: None,
        recorded: None,
        settled: false,
        search: false,
        may_exist: false,
        intent: None,
        mode: Mode::Apply,
        fleet: crate::fleet::FLEET,
        known: true,
        may_adopt: MayAdopt::default(),
        adopted: Vec::new(),
        given_quota: None,
    }
}

/// The target of the next run.
pub fn next(target: &Target, converged: &Converged) -> Target {
    Target {
        recorded: Some(converged.external_id.clone()),
        observed: Some(target.desired.clone()),
        may_exist: true,
        ..target.clone()
    }
}

pub fn set(operation: &str) -> Fault {
    Fault { body: Some(format!("\"{operation}\":")), times: Some(1), ..Fault::default() }
}

#[tokio::test]
async fn a_domain_carries_the_tenants_name_and_mark_and_costs_two_requests_then_one() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let domain = bench.domain("acme.test");
    assert_eq!(domain["id"], made.external_id);
    assert_eq!(
        domain["description"],
        format!("Acme Corporation [tenantry {} {}]", target.id, target.fleet)
    );
    assert_eq!(domain["dkimManagement"]["@type"], "Automatic");
    assert_eq!(bench.server.faults.total(), 2, "{:?}", bench.server.faults.requests());
    bench.server.faults.forget_requests();
    assert_eq!(bench.converge(&next(&target, &made)).await.unwrap().repaired, []);
    assert_eq!(bench.server.faults.total(), 1, "{:?}", bench.server.faults.requests());
}

#[tokio::test]
async fn an_unmarked_domain_that_may_be_adopted_is_and_what_others_set_on_it_stays() {
    let bench = Bench::new().await;
    let planted = json!({ "description": "bought in 2019", "catchAllAddress": "info@acme.test" });
    let id = bench.server.plant("acme.test", planted);
    let adopted = bench.converge(&adopting(target())).await.unwrap();
    assert_eq!(adopted.external_id, id);
    assert_eq!(bench.domain("acme.test")["catchAllAddress"], "info@acme.test");
}

#[tokio::test]
async fn another_tenants_domain_is_a_conflict_and_stays_as_it_is() {
    let bench = Bench::new().await;
    let other = target();
    bench.converge(&other).await.unwrap();
    let before = bench.server.domains();
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!((error.failure.reason, error.failure.kind), (Reason::Conflict, FailureKind::Terminal));
    assert!(error.failure.message.contains(&other.id.to_string()), "{}", error.failure.message);
    assert_eq!(bench.server.domains(), before);
}

#[tokio::test]
async fn a_domain_that_is_merely_an_alias_of_another_is_a_conflict_that_names_the_other() {
    let bench = Bench::new().await;
    bench.server.plant("globex.test", json!({ "aliases": { "acme.test": true } }));
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Conflict);
    let message = &error.failure.message;
    assert!(message.contains("alias") && message.contains("globex.test"), "{message}");
    assert_eq!(bench.names(), BTreeSet::from(["globex.test".to_owned()]));
}

#[tokio::test]
async fn a_changed_or_disabled_domain_is_put_back() {
    let bench = Bench::new().await;
    let target = target();
    let made = bench.converge(&target).await.unwrap();
    let target = next(&target, &made);
    let changes =
        [(json!({ "description": null }), "description"), (json!({ "isEnabled": false }), "isEnabled")];
    for (change, field) in changes {
        assert!(bench.server.change("acme.test", change));
        let repaired = bench.converge(&target).await.unwrap();
        assert_eq!(repaired.repaired.iter().map(|d| d.name.as_ref()).collect::<Vec<_>>(), [field]);
        assert_eq!(repaired.external_id, made.external_id);
        assert_eq!(bench.domain("acme.test")["isEnabled"], true);
    }
    assert!(bench.server.delete("acme.test"));
    let again = bench.converge(&target).await.unwrap();
    assert_eq!(bench.domain("acme.test")["id"], again.external_id);
}

#[tokio::test]
async fn a_create_that_was_applied_but_not_answered_is_found_and_not_repeated() {
    for answer in [FaultAnswer::Drop, FaultAnswer::Hang] {
        let bench = Bench::new().await;
        bench.server.faults.add(Fault { apply: true, answer: answer.clone(), ..set("create") });
        let made = bench.converge(&target()).await.unwrap();
        assert_eq!(bench.domain("acme.test")["id"], made.external_id, "{answer:?}");
        assert_eq!(bench.server.count(), 1);
    }
}

#[tokio::test]
async fn a_lost_race_is_looked_at_again_whether_or_not_something_was_committed() {
    for committed in [0, 1] {
        let bench = Bench::new().await;
        bench.server.fail_next_set_after(committed);
        let result = bench.converge(&target()).await;
        assert_eq!(bench.server.count(), committed);
        match committed {
            1 => assert!(result.is_ok(), "{result:?}"),
            _ => {
                let error = result.unwrap_err();
                assert!(error.is_transient() && error.failure.unresolved, "{error:?}");
                bench.converge(&target()).await.expect("the next run makes it");
            }
        }
    }
}

#[tokio::test]
async fn a_name_taken_between_look_and_create_is_looked_at_again() {
    let bench = Bench::new().await;
    let target = adopting(target());
    // Another process is faster, and our first look does not show it yet.
    let stale = json!({ "methodResponses": [
        ["x:Domain/get", { "list": [] }, "named.get"], ["x:Domain/get", { "list": [] }, "alias.get"],
        ["x:Domain/get", { "list": [] }, "marked.get"],
    ] });
    let id = bench.server.plant("acme.test", json!({}));
    let status = FaultAnswer::Status { status: 200, body: stale.to_string(), retry_after: None };
    bench.server.faults.add(Fault { times: Some(1), answer: status, ..Fault::default() });
    assert_eq!(bench.converge(&target).await.unwrap().external_id, id);
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn a_move_makes_the_new_domain_first_and_removes_the_former_once_it_is_empty() {
    let bench = Bench::new().await;
    let first = target();
    let made = bench.converge(&first).await.unwrap();
    bench.server.plant_account("acme.test", "anna");
    let moving = Target { desired: desired("acme-group.test"), ..next(&first, &made) };
    let moved = bench.converge(&moving).await.unwrap();
    assert_eq!(bench.domain("acme-group.test")["id"], moved.external_id);
    let note = moved.remarks.note.as_deref().expect("the former domain is kept, and that is said");
    assert!(note.contains("1 account still in acme.test"), "{note}");
    assert_eq!(bench.names().len(), 2);

    let settled = next(&moving, &moved);
    assert!(bench.server.remove_account("acme.test", "anna"));
    let done = bench.converge(&settled).await.unwrap();
    assert_eq!(done.remarks.note, None);
    assert_eq!(bench.names(), BTreeSet::from(["acme-group.test".to_owned()]));
}

/// The domain of another tenant is never given away, and so two that exchange theirs wait for each other; what
/// the message says works, for a ring of any size.
#[tokio::test]
async fn tenants_that_exchange_their_domains_are_told_how_and_that_works() {
    for size in [2, 3] {
        let bench = Bench::new().await;
        let slugs = &["acme", "globex", "initech"][..size];
        let domain_of = |number: usize| format!("{}.test", slugs[number % size]);
        let mut settled = Vec::new();
        for (number, slug) in slugs.iter().enumerate() {
            let slug = slug.parse().unwrap();
            let first = Target { slug, desired: desired(&domain_of(number)), ..target() };
            let made = bench.converge(&first).await.unwrap();
            settled.push(next(&first, &made));
        }
        // Everyone is to have the next one's.
        let moving: Vec<Target> = settled
            .iter()
            .enumerate()
            .map(|(number, it)| Target { desired: desired(&domain_of(number + 1)), ..it.clone() })
            .collect();
        let before = bench.server.domains();
        let mut told = String::new();
        for moving in moving.iter().rev() {
            let error = bench.converge(moving).await.unwrap_err();
            assert_eq!(error.failure.reason, Reason::Conflict);
            told = error.failure.message;
        }
        assert_eq!(bench.server.domains(), before, "nothing was given up");
        let commands: Vec<&str> = told.split('`').skip(1).step_by(2).collect();
        let expected = [
            "tenantry tenants edit acme --domain acme.acme.test --wait",
            "tenantry tenants reconcile <slug> --wait",
            "tenantry tenants edit acme --domain globex.test --wait",
        ];
        assert_eq!(commands, expected, "{told}");

        let aside = Target { desired: desired("acme.acme.test"), ..settled[0].clone() };
        let first = next(&aside, &bench.converge(&aside).await.unwrap());
        for moving in moving[1..].iter().rev() {
            bench.converge(moving).await.expect("what it wants is free by now");
        }
        let last = Target { desired: desired(&domain_of(1)), ..first };
        bench.converge(&last).await.expect("and so is the last");
        for (number, target) in moving.iter().enumerate() {
            let domain = bench.domain(&domain_of(number + 1));
            assert!(domain["description"].as_str().unwrap().contains(&target.id.to_string()));
        }
        assert_eq!(bench.server.count(), size);
    }
}

#[tokio::test]
async fn what_the_server_itself_attached_does_not_keep_a_domain_and_what_people_did_does() {
    let bench = Bench::new().await;
    let first = target();
    let made = bench.converge(&first).await.unwrap();
    // DKIM keys appear by themselves a moment later.
    let has_keys = || bench.server.dkim_keys("acme.test") == 2;
    eventually("the keys are there", async || has_keys()).await;
    bench.server.plant_list("acme.test", "all");
    let moving = Target { desired: desired("acme-group.test"), ..next(&first, &made) };
    let moved = bench.converge(&moving).await.unwrap();
    assert!(moved.remarks.note.unwrap().contains("1 mailing list still in acme.test"));
    assert!(has_keys(), "nothing was taken from a domain that stays");
    // Back and forth: the last state, with nothing left behind.
    let back = Target { desired: desired("acme.test"), ..next(&moving, &converged(&moved.external_id)) };
    let back = bench.converge(&back).await.unwrap();
    assert_eq!(back.external_id, made.external_id);
    assert_eq!(bench.names(), BTreeSet::from(["acme.test".to_owned()]));
}

fn converged(id: &str) -> Converged {
    Converged {
        external_id: id.to_owned(),
        repaired: Vec::new(),
        remarks: Default::default(),
        fingerprint: None,
    }
}

#[tokio::test]
async fn a_domain_renamed_before_it_was_recorded_is_not_left_behind() {
    let bench = Bench::new().await;
    let target = target();
    bench.converge(&target).await.unwrap();
    // We died before we could record it, and a person renames it.
    assert!(bench.server.change("acme.test", json!({ "name": "other.test" })));
    let found = bench.converge(&Target { may_exist: true, ..target.clone() }).await.unwrap();
    assert_eq!(bench.names(), BTreeSet::from(["acme.test".to_owned()]));
    assert_eq!(bench.domain("acme.test")["id"], found.external_id);
}

#[tokio::test]
async fn a_mark_in_other_words_or_in_a_name_is_no_mark() {
    let bench = Bench::new().await;
    let target = target();
    let words = format!("not [tenantry x], see {}", target.id);
    bench.server.plant("globex.test", json!({ "description": words }));
    bench.server.plant(&format!("{}.test", target.id), json!({}));
    bench.converge(&target).await.unwrap();
    assert_eq!(bench.server.count(), 3, "both others are still there");
}

#[tokio::test]
async fn a_rejected_key_is_a_misconfiguration_that_tells_of_the_ban() {
    let bench = Bench::with(Credentials::Bearer(Secret::from("API_wrong"))).await;
    let error = bench.converge(&target()).await.unwrap_err();
    assert!(error.is_misconfigured());
    assert_eq!(error.failure.reason, Reason::CredentialsRejected);
    assert!(error.failure.message.contains("STALWART_API_TOKEN"), "{}", error.failure.message);
    assert!(!error.failure.message.contains("API_wrong"));
}

#[tokio::test]
async fn an_administrators_login_works_as_well_as_a_key() {
    let login = |password: &str| Credentials::Basic {
        user: "admin@lab.test".into(),
        password: Secret::from(password),
    };
    let bench = Bench::with(login("a good: password")).await;
    bench.server.add_user("admin@lab.test", "a good: password");
    bench.converge(&target()).await.unwrap();
    let wrong = connect(&bench.server.url(), login("wrong"), Limits::GENEROUS);
    let error = converge(&wrong, &target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::CredentialsRejected);
}

#[tokio::test]
async fn a_rejected_key_costs_at_most_three_requests_in_ten_minutes_for_a_thousand_tenants() {
    let server = Simulator::new(0, KEY, options()).await.unwrap();
    let wrong = Credentials::Bearer(Secret::from("API_wrong"));
    let metrics = Arc::new(Metrics::new());
    let stalwart = connect(&server.url(), wrong, Limits::GENEROUS);
    let integrations = Arc::new(Integrations::new(Arc::clone(&metrics)).with_stalwart(stalwart));
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let integrations = Arc::clone(&integrations);
        runs.spawn(async move { integrations.run(Upstream::Stalwart, &target(), &Unbounded).await });
    }
    let mut soonest = Duration::MAX;
    while let Some(outcome) = runs.join_next().await {
        let Outcome::Failed(failure) = outcome.unwrap() else { panic!("it cannot work") };
        let FailureKind::Misconfigured { retry_after } = failure.kind else {
            panic!("{:?}", failure.kind)
        };
        soonest = soonest.min(retry_after);
    }
    // Nor do those that come later.
    for _ in 0..100 {
        integrations.run(Upstream::Stalwart, &target(), &Unbounded).await;
    }
    assert_eq!(server.faults.total(), 1);
    assert_eq!(server.failed_logins(), 1);
    // The next probes are after two minutes and ten more: three in ten minutes at the most.
    assert!(soonest > Duration::from_secs(110), "{soonest:?}");
    let alert = "tenantry_integration_healthy{upstream=\"stalwart\"} 0";
    assert!(metrics.render().contains(alert));
}

#[tokio::test]
async fn a_server_in_bootstrap_mode_is_not_ready_rather_than_forbidding() {
    let bench = Bench::new().await;
    bench.server.bootstrap(true);
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::NotReady);
    assert!(error.is_transient());
    bench.server.bootstrap(false);
    bench.converge(&target()).await.unwrap();
}

#[tokio::test]
async fn a_missing_permission_is_named_by_the_check_and_by_the_step() {
    let bench = Bench::new().await;
    bench.server.add_key("API_reader", &["authenticate", "sysDomainGet", "sysDomainQuery"]);
    let credentials = Credentials::Bearer(Secret::from("API_reader"));
    let reader = connect(&bench.server.url(), credentials, Limits::GENEROUS);
    let checked = reader.check().await.unwrap();
    let missing = [
        "sysDomainCreate",
        "sysDomainUpdate",
        "sysDomainDestroy",
        "sysDkimSignatureQuery",
        "sysDkimSignatureDestroy",
    ];
    assert_eq!(checked.lacks, missing);
    let error = converge(&reader, &target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Forbidden);
    assert!(error.failure.message.contains("sysDomain{"), "{}", error.failure.message);
    assert_eq!(bench.stalwart.check().await.unwrap().lacks, Vec::<String>::new());
}

#[tokio::test]
async fn a_refused_domain_name_is_the_tenants_affair_and_says_why() {
    let bench = Bench::new().await;
    let error =
        bench.converge(&Target { desired: desired("acme.example"), ..target() }).await.unwrap_err();
    assert_eq!((error.failure.reason, error.failure.kind), (Reason::Rejected, FailureKind::Terminal));
    let message = &error.failure.message;
    assert!(message.contains("acme.example") && message.contains(".example is no public"), "{message}");
    assert!(!error.failure.unresolved);

    // What the reason certainly is not, is not said.
    let refused = json!({ "methodResponses": [
        ["x:Domain/set", { "notCreated": { "new": {
            "type": "invalidPatch", "description": "Invalid domain name", "properties": ["name"],
        } } }, "create"],
    ] });
    let answer = FaultAnswer::Status { status: 200, body: refused.to_string(), retry_after: None };
    bench.server.faults.add(Fault { answer, ..set("create") });
    let error = bench.converge(&target()).await.unwrap_err();
    let message = &error.failure.message;
    assert!(message.contains("acme.test") && !message.contains("suffix"), "{message}");
}

#[tokio::test]
async fn a_domain_that_is_removed_soon_leaves_no_key_behind() {
    for delay in [0, 40, 700] {
        let dkim_delay = Duration::from_millis(delay);
        let server = Simulator::new(0, KEY, Options { dkim_delay, ..options() }).await.unwrap();
        let bearer = Credentials::Bearer(Secret::from(KEY));
        let stalwart = connect(&server.url(), bearer, Limits::GENEROUS);
        let first = target();
        let made = converge(&stalwart, &first).await.unwrap();
        let moving = Target { desired: desired("acme-group.test"), ..next(&first, &made) };
        converge(&stalwart, &moving).await.unwrap();
        eventually("the keys of the later domain are there", async || {
            server.dkim_keys("acme-group.test") == 2
        })
        .await;
        assert_eq!((server.count(), server.stray_keys()), (1, 0), "{delay} ms");
    }
}

#[tokio::test]
async fn keys_that_are_left_of_a_domain_that_a_person_destroyed_are_removed_with_it() {
    let dkim_delay = Duration::from_millis(400);
    let server = Simulator::new(0, KEY, Options { dkim_delay, ..options() }).await.unwrap();
    let bearer = Credentials::Bearer(Secret::from(KEY));
    let stalwart = connect(&server.url(), bearer, Limits::GENEROUS);
    let first = target();
    let made = converge(&stalwart, &first).await.unwrap();
    // What we see of it is from before: it is destroyed, too soon, as we are about to.
    let id = made.external_id.clone();
    let domain = server.domains().remove(0);
    assert!(server.delete("acme.test"));
    eventually("a key is left", async || server.stray_keys() == 1).await;
    let stale = json!({ "methodResponses": [
        ["x:Domain/get", { "list": [domain] }, "recorded"], ["x:Domain/get", { "list": [] }, "marked.get"],
    ] });
    let answer = FaultAnswer::Status { status: 200, body: stale.to_string(), retry_after: None };
    server.faults.add(Fault { times: Some(1), answer, ..Fault::default() });
    let mut gone = next(&first, &made);
    gone.desired.presence = Presence::Gone(DeletionPolicy::Purge);
    run(&stalwart, &gone, &Unbounded).await.unwrap();
    assert_eq!(server.stray_keys(), 0, "of {id}");
}

#[tokio::test]
async fn an_echoed_request_is_never_shown() {
    let bench = Bench::new().await;
    let echo = json!({
        "type": "urn:ietf:params:jmap:error:notRequest", "status": 400, "title": "Bad Request",
        "detail": "Failed to parse {\"secret\":\"hunter2\"}",
    });
    let answer = FaultAnswer::Status { status: 400, body: echo.to_string(), retry_after: None };
    bench.server.faults.add(Fault { answer, ..Fault::default() });
    let error = bench.converge(&target()).await.unwrap_err();
    assert!(!error.failure.message.contains("hunter2"), "{}", error.failure.message);
    assert!(error.failure.message.contains("notRequest"), "{}", error.failure.message);
}

#[tokio::test]
async fn the_servers_limits_are_waited_for_and_its_public_address_is_not_followed() {
    let bench = Bench::new().await;
    // `apiUrl` of the session leads elsewhere; everything above went to the configured address.
    let limit = json!({
        "type": "urn:ietf:params:jmap:error:limit", "status": 400, "limit": "maxConcurrentRequests",
    });
    let answer = FaultAnswer::Status { status: 400, body: limit.to_string(), retry_after: None };
    bench.server.faults.add(Fault { answer, times: Some(1), ..Fault::default() });
    let asked = Instant::now();
    bench.converge(&target()).await.unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    let answer = FaultAnswer::Status {
        status: 429,
        body: r#"{"title":"Too Many Requests"}"#.into(),
        retry_after: Some(18),
    };
    bench.server.faults.add(Fault { answer, times: Some(1), ..Fault::default() });
    let error = bench.converge(&target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::RateLimited);
    assert_eq!(error.failure.kind, FailureKind::Paced { wait: Duration::from_secs(18) });
}

#[tokio::test]
async fn a_ban_is_a_matter_of_credentials_on_an_open_connection_and_a_broken_connection_on_a_new_one() {
    let server = Simulator::new(0, KEY, Options { max_failed_logins: 3, ..options() }).await.unwrap();
    let credentials = Credentials::Bearer(Secret::from("API_wrong"));
    let wrong = connect(&server.url(), credentials.clone(), Limits::GENEROUS);
    for n in 0..6 {
        let error = converge(&wrong, &target()).await.unwrap_err();
        assert_eq!(error.failure.reason, Reason::CredentialsRejected, "{n}: {error:?}");
    }
    let fresh = connect(&server.url(), credentials, Limits::GENEROUS);
    let error = converge(&fresh, &target()).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::Unreachable, "{error:?}");
}

#[tokio::test]
async fn a_ban_is_told_with_what_to_do_in_which_order() {
    let server = Simulator::new(0, KEY, Options { max_failed_logins: 1, ..options() }).await.unwrap();
    let credentials = Credentials::Bearer(Secret::from("API_wrong"));
    let wrong = connect(&server.url(), credentials.clone(), Limits::GENEROUS);
    // 401, the ban itself, and what an open connection gets from then on.
    for status in ["401", "429", "403"] {
        let message = converge(&wrong, &target()).await.unwrap_err().failure.message;
        assert!(message.contains(status), "{status}: {message}");
        assert!(message.contains("STALWART_API_TOKEN"), "{message}");
        if status == "401" {
            continue;
        }
        let steps = ["address is banned", "First give tenantry", "BlockedIp/set", "ReloadBlockedIps"];
        let places = steps.map(|step| message.find(step).unwrap_or_else(|| panic!("{step}: {message}")));
        assert!(places.is_sorted(), "{message}");
    }
    let fresh = connect(&server.url(), credentials, Limits::GENEROUS);
    let message = converge(&fresh, &target()).await.unwrap_err().failure.message;
    assert!(message.contains("closes the connections of an address that it has banned"), "{message}");
}

#[tokio::test]
async fn a_server_that_knows_us_but_not_its_domains_does_not_pass_the_check() {
    let bench = Bench::new().await;
    bench.server.bootstrap(true);
    let error = bench.stalwart.check().await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::NotReady, "{error:?}");
    bench.server.bootstrap(false);
    bench.stalwart.check().await.unwrap();
}

#[tokio::test]
async fn every_domain_is_listed_once_though_pages_have_traps() {
    let bench = Bench::new().await;
    let names: BTreeSet<String> = (0..1_234).map(|n| format!("d{n}.test")).collect();
    for name in &names {
        bench.server.plant(name, json!({}));
    }
    let listed = bench.list().await;
    assert_eq!(bench.server.faults.total(), 3);
    assert_eq!(listed.len(), names.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
}

#[tokio::test]
async fn a_page_that_a_destroyed_domain_made_shorter_is_not_the_last() {
    let bench = Bench::new().await;
    let names: BTreeSet<String> = (0..700).map(|n| format!("d{n:03}.test")).collect();
    for name in &names {
        bench.server.plant(name, json!({}));
    }
    // One of the first five hundred is found, and destroyed before it is read.
    let domains = bench.server.domains();
    let ids: Vec<_> = domains[..500].iter().map(|domain| domain["id"].clone()).collect();
    for gone in [0, 250, 499] {
        let mut read = domains[..500].to_vec();
        read.remove(gone);
        // The server answers in an order of its own.
        read.reverse();
        let page = json!({ "methodResponses": [
            ["x:Domain/query", { "ids": ids, "total": 700 }, "list"],
            ["x:Domain/get", { "list": read, "notFound": [ids[gone]] }, "list.get"],
        ] });
        let answer = FaultAnswer::Status { status: 200, body: page.to_string(), retry_after: None };
        bench.server.faults.add(Fault { times: Some(1), answer, ..Fault::default() });
        let listed: BTreeSet<String> = bench.list().await.into_iter().collect();
        let expected: BTreeSet<String> = if gone == 499 {
            // It was the last, so the next page begins with it: here it is there again.
            names.clone()
        } else {
            names.iter().filter(|name| **name != format!("d{gone:03}.test")).cloned().collect()
        };
        assert_eq!(listed, expected);
    }
}

#[tokio::test]
async fn domains_that_come_and_go_between_two_pages_hide_no_other() {
    let bench = Bench::new().await;
    for number in 0..600 {
        bench.server.plant(&format!("d{number:03}.test"), json!({}));
    }
    let first = bench.stalwart.list(None).await.unwrap();
    for number in 0..50 {
        assert!(bench.server.delete(&format!("d{number:03}.test")));
        bench.server.plant(&format!("a{number:03}.test"), json!({}));
    }
    assert!(bench.server.delete("d051.test"));
    let second = bench.stalwart.list(first.next.as_deref()).await.unwrap();
    assert_eq!(second.next, None);
    let names: Vec<_> = first.domains.iter().chain(&second.domains).map(|it| it.name.as_str()).collect();
    assert_eq!(names, (0..600).map(|number| format!("d{number:03}.test")).collect::<Vec<_>>());
}

#[tokio::test]
async fn neither_the_concurrency_nor_the_rate_is_ever_exceeded() {
    let latency = Duration::from_millis(5);
    let server = Simulator::new(0, KEY, Options { latency, ..options() }).await.unwrap();
    let per_minute = 6_000;
    let limits = Limits { concurrent: 3, per_minute: NonZeroU32::new(per_minute) };
    let credentials = Credentials::Bearer(Secret::from(KEY));
    let stalwart = Arc::new(connect(&server.url(), credentials, limits));
    let started = Instant::now();
    let mut runs = tokio::task::JoinSet::new();
    for n in 0..250 {
        let stalwart = Arc::clone(&stalwart);
        let target = Target { desired: desired(&format!("t{n}.test")), ..target() };
        runs.spawn(async move { converge(&*stalwart, &target).await });
    }
    while let Some(result) = runs.join_next().await {
        // The simulated server refuses a fifth request at once, as the real one does.
        result.unwrap().unwrap();
    }
    let took = started.elapsed();
    assert_eq!(server.count(), 250);
    let (sent, burst) = (server.faults.total() as f64, f64::from(per_minute) / 20.0);
    let allowed = burst + took.as_secs_f64() * f64::from(per_minute) / 60.0 + 1.0;
    assert!(sent <= allowed, "{sent} requests in {took:?}");
}
