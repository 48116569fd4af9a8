//! Tokens: the rules of failure between an issuer and a file server, each as it was observed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::dev::issuer;
use tenantry::dev::ocis::Flavour;
use tenantry::integration::{ClientCredentials, Error, Ocis, TokenEndpoint};
use tenantry::metrics::Metrics;
use tenantry::secret::Secret;
use tenantry::tenant::Reason;

use crate::ocis::{ACCOUNT, FileServer, PASSWORD};
use crate::support::eventually;

/// What a step does first of all.
async fn ask(ocis: &Ocis) -> Result<(), Error> {
    ocis.see_our_own().await
}

fn connect(files: &FileServer) -> Ocis {
    files.connect(&Arc::new(Metrics::new()))
}

/// The client has its token, and the file server knows the account.
async fn connected(files: &FileServer) -> Ocis {
    let ocis = connect(files);
    ask(&ocis).await.unwrap();
    ocis
}

async fn refused_at(files: &FileServer, endpoint: &str) -> Error {
    let endpoint = TokenEndpoint::Url(endpoint.parse().unwrap());
    let credentials = ClientCredentials { endpoint, ..files.credentials() };
    let ocis = files.connect_with(credentials, None, &Arc::new(Metrics::new()));
    ask(&ocis).await.unwrap_err()
}

/// What is said where tokens are asked for at this address.
pub async fn refusal_at(files: &FileServer, endpoint: &str) -> String {
    refused_at(files, endpoint).await.failure.message
}

fn status(status: u16, body: &str) -> FaultAnswer {
    FaultAnswer::Status { status, body: body.into(), retry_after: None }
}

fn on_token(answer: FaultAnswer) -> Fault {
    Fault { path: Some("/application/o/token/".into()), answer, ..Fault::default() }
}

#[tokio::test]
async fn many_who_wait_share_one_token_and_none_asks_again_while_it_lives() {
    let files = FileServer::new(Flavour::OpenCloud).await;
    files.issuer.faults.add(Fault { delay_ms: 50, ..Fault::default() });
    let ocis = connect(&files);
    // Not the first request of the account, which has a race of its own.
    ask(&ocis).await.unwrap();
    let again = connect(&files);
    let asking = (0..50).map(|_| ask(&again));
    for asked in futures_util::future::join_all(asking).await {
        asked.unwrap();
    }
    assert_eq!(files.issuer.token_requests(), 2, "one for each client");
}

#[tokio::test]
async fn every_way_to_be_the_account_works() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let base = files.credentials();
    let encoded = issuer::Account::new(ACCOUNT, PASSWORD, &[]).client_secret();
    let issuer = files.issuer.issuer_url("ocis").parse().unwrap();
    for credentials in [
        ClientCredentials { account: None, client_secret: Some(Secret::from(encoded)), ..base.clone() },
        ClientCredentials { endpoint: TokenEndpoint::DiscoveredFrom(issuer), ..base.clone() },
    ] {
        let ocis = files.connect_with(credentials, None, &Arc::new(Metrics::new()));
        ask(&ocis).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_is_renewed_at_four_fifths_of_its_life_and_used_meanwhile() {
    let files = FileServer::new(Flavour::Ocis31).await;
    files.issuer.set_validity(Duration::from_secs(10));
    let ocis = connected(&files).await;
    files.issuer.faults.add(Fault { delay_ms: 1_000, ..on_token(FaultAnswer::True) });
    let started = Instant::now();
    // Asked all along: no request is ever refused, and none waits for the renewal.
    eventually("the token is renewed", async || {
        let asked = Instant::now();
        ask(&ocis).await.unwrap();
        assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
        files.issuer.token_requests() == 2
    })
    .await;
    let took = started.elapsed();
    assert!((7_000..9_900).contains(&took.as_millis()), "renewed after {took:?} of 10 s");
}

#[tokio::test]
async fn an_issuer_that_is_away_does_no_harm_before_the_token_expires() {
    let mut files = FileServer::new(Flavour::Ocis31).await;
    // The issuer counts whole seconds, so that it may be up to one less.
    files.issuer.set_validity(Duration::from_secs(4));
    let ocis = connected(&files).await;
    files.issuer.server.stop().await;
    let stopped = Instant::now();
    let mut failed = None;
    eventually("the token has expired", async || {
        failed = ask(&ocis).await.err();
        failed.is_some()
    })
    .await;
    assert!(stopped.elapsed() > Duration::from_millis(2_500), "{:?}", stopped.elapsed());
    let failed = failed.unwrap();
    assert!(failed.is_transient(), "{failed:?}");
    files.issuer.server.restart().await.unwrap();
    eventually("it works again by itself", async || ask(&ocis).await.is_ok()).await;
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_and_its_successor_kept() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let ocis = connected(&files).await;
    // A 401 that another token mends.
    let refuse = |times| Fault {
        path: Some("/graph".into()),
        times,
        answer: status(401, ""),
        ..Fault::default()
    };
    files.server.faults.add(refuse(Some(1)));
    ask(&ocis).await.unwrap();
    assert_eq!(files.issuer.token_requests(), 2);

    // One that it does not: the second 401 keeps the token, however often it is tried.
    files.server.faults.add(refuse(None));
    for _ in 0..5 {
        let error = ask(&ocis).await.unwrap_err();
        assert_eq!(error.failure.reason, Reason::CredentialsRejected);
        assert!(error.is_misconfigured());
    }
    assert_eq!(files.issuer.token_requests(), 3, "one more token, then none");

    // It heals by waiting, and after that a refusal is a new affair.
    files.server.faults.clear();
    ask(&ocis).await.unwrap();
    assert_eq!(files.issuer.token_requests(), 3);
    files.server.faults.add(refuse(Some(1)));
    ask(&ocis).await.unwrap();
    assert_eq!(files.issuer.token_requests(), 4);
}

#[tokio::test]
async fn a_clock_ahead_of_ocis_heals_with_the_same_token() {
    let files = FileServer::new(Flavour::Ocis31).await;
    connected(&files).await;
    files.issuer.set_skew(2);
    let ocis = connect(&files);
    let error = ask(&ocis).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::CredentialsRejected);
    let tokens = files.issuer.token_requests();
    eventually("the clocks have caught up", async || ask(&ocis).await.is_ok()).await;
    assert_eq!(files.issuer.token_requests(), tokens, "by the token that was refused before");
}

#[tokio::test]
async fn an_empty_500_is_tried_once_more_and_then_the_token_is_thrown_away_and_its_claims_named() {
    for flavour in [Flavour::Ocis31, Flavour::OpenCloud] {
        let files = FileServer::new(flavour).await;
        let ocis = connected(&files).await;
        // Out of the group: a token that ocis has seen goes on working; a new one has no role.
        files.issuer.set_groups(ACCOUNT, &[]);
        ask(&ocis).await.unwrap();
        let fresh = connect(&files);
        files.server.faults.forget_requests();
        let tokens = files.issuer.token_requests();
        let error = ask(&fresh).await.unwrap_err();
        assert_eq!(error.failure.reason, Reason::ClaimsRejected, "{flavour:?}");
        assert!(error.is_transient(), "a file server that boots does the same: {error:?}");
        for suspect in ["e-mail", "group", "user name"] {
            assert!(error.failure.message.contains(suspect), "{}", error.failure.message);
        }
        assert_eq!(files.server.faults.total(), 2);
        // Not another one at once: the delay is what helps.
        ask(&fresh).await.unwrap_err();
        assert_eq!(files.issuer.token_requests(), tokens + 1);
        assert_eq!(files.server.faults.total(), 2);
    }
}

#[tokio::test]
async fn an_empty_500_of_the_first_login_race_passes_unnoticed() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let ocis = connected(&files).await;
    files.server.faults.add(Fault {
        path: Some("/graph".into()),
        times: Some(1),
        answer: status(500, ""),
        ..Fault::default()
    });
    ask(&ocis).await.unwrap();
    assert_eq!(files.issuer.token_requests(), 1);
}

#[tokio::test]
async fn what_the_token_endpoint_answers_is_the_configurations_fault_or_will_pass() {
    let files = FileServer::new(Flavour::Ocis31).await;
    for (answer, misconfigured, reason) in [
        (status(400, r#"{"error":"invalid_grant"}"#), true, Reason::CredentialsRejected),
        (status(400, r#"{"error":"invalid_client"}"#), true, Reason::CredentialsRejected),
        (FaultAnswer::Empty405, false, Reason::UpstreamError),
        (status(502, "starting"), false, Reason::UpstreamError),
        (status(404, "<html>"), true, Reason::WrongAddress),
        // Of Authentik, for a path that it does not have (observed).
        (status(403, "<!DOCTYPE html><html></html>"), true, Reason::WrongAddress),
        (status(403, r#"{"error":"access_denied"}"#), true, Reason::CredentialsRejected),
        (status(200, "<html>"), true, Reason::WrongAddress),
        (status(200, "{}"), false, Reason::UnexpectedAnswer),
        (FaultAnswer::Hang, false, Reason::Timeout),
    ] {
        files.issuer.faults.clear();
        files.issuer.faults.add(on_token(answer.clone()));
        let error = ask(&connect(&files)).await.unwrap_err();
        assert_eq!(error.is_misconfigured(), misconfigured, "{answer:?}: {error:?}");
        assert_eq!(error.failure.reason, reason, "{answer:?}: {error:?}");
        assert!(!error.failure.message.contains(PASSWORD));
    }
    assert_eq!(files.server.faults.total(), 0, "nothing was ever sent without a token");
}

#[tokio::test]
async fn an_address_that_is_no_token_endpoint_is_said_to_be_wrong_and_nothing_is_said_of_us() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let right = files.issuer.token_url();
    for wrong in [right.trim_end_matches('/').to_owned(), right.replace("/token/", "/tokens/")] {
        let error = refused_at(&files, &wrong).await;
        assert_eq!(error.failure.reason, Reason::WrongAddress, "{error:?}");
        assert!(error.failure.message.contains(&wrong), "{}", error.failure.message);
        assert!(!error.failure.message.contains("OCIS_OIDC_PASSWORD"), "{}", error.failure.message);
    }
}

#[tokio::test]
async fn a_scope_without_openid_is_named_when_the_file_server_refuses_its_token() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let credentials = ClientCredentials { scope: "profile email".into(), ..files.credentials() };
    let ocis = files.connect_with(credentials, None, &Arc::new(Metrics::new()));
    let error = ask(&ocis).await.unwrap_err();
    assert_eq!(error.failure.reason, Reason::CredentialsRejected);
    let message = &error.failure.message;
    assert!(message.contains("openid") && message.contains("OCIS_OIDC_SCOPE"), "{message}");
}

#[tokio::test]
async fn a_token_that_was_taken_is_kept_through_empty_500s() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let ocis = connected(&files).await;
    let tokens = files.issuer.token_requests();
    let path = Some("/graph".into());
    files.server.faults.add(Fault { path, answer: status(500, ""), ..Fault::default() });
    for _ in 0..3 {
        let error = ask(&ocis).await.unwrap_err();
        assert_eq!(error.failure.reason, Reason::UpstreamError, "{error:?}");
        assert!(error.is_transient());
    }
    files.server.faults.clear();
    ask(&ocis).await.unwrap();
    assert_eq!(files.issuer.token_requests(), tokens);
}

#[tokio::test]
async fn an_issuer_that_fails_is_not_asked_by_everybody() {
    let files = FileServer::new(Flavour::Ocis31).await;
    files.issuer.faults.add(on_token(status(503, "")));
    let ocis = connect(&files);
    let asking = (0..50).map(|_| ask(&ocis));
    for asked in futures_util::future::join_all(asking).await {
        assert!(asked.unwrap_err().is_transient());
    }
    assert_eq!(files.issuer.faults.total(), 1, "{:?}", files.issuer.faults.requests());
}

#[tokio::test]
async fn neither_token_nor_password_is_ever_in_a_message() {
    let files = FileServer::new(Flavour::Ocis31).await;
    let ocis = connected(&files).await;
    let token = files.issuer.token("ocis", ACCOUNT, "openid").unwrap();
    let echo = |text: &str| json!({ "error": "invalid_grant", "error_description": text }).to_string();
    files.issuer.faults.add(on_token(status(400, &echo(&format!("no: {PASSWORD}")))));
    let error = ask(&connect(&files)).await.unwrap_err();
    assert!(error.failure.message.contains("[redacted]"), "{}", error.failure.message);
    assert!(!error.failure.message.contains(PASSWORD));
    let debug = format!("{:?}", files.credentials());
    assert!(!debug.contains(PASSWORD) && !debug.contains(&token), "{debug}");
    drop(ocis);
}
