//! The program as a newcomer and an operator meet it: `dev`, `run --help`, wrong settings, wrong
//! servers.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{DEADLINE, Process, World, eventually, http, mongod_binary};

async fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends").expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Lines of standard output until one holds `last`.
async fn lines_until(stdout: tokio::process::ChildStdout, last: &str) -> Vec<String> {
    let mut lines = BufReader::new(stdout).lines();
    let mut seen = Vec::new();
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            seen.push(line);
            if seen.last().is_some_and(|line| line.contains(last)) {
                break;
            }
        }
    };
    // The first start on a machine fetches MongoDB.
    tokio::time::timeout(DEADLINE * 4, reading).await.expect("it introduces itself");
    seen
}

/// The token that `dev` prints.
fn printed_token(lines: &[String]) -> String {
    let token = lines.iter().find_map(|line| Some(line.split_once("export TOKEN=")?.1.to_owned()));
    token.unwrap_or_else(|| panic!("it prints a token: {lines:?}"))
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[tokio::test]
async fn dev_starts_everything_converges_its_samples_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = Process::command();
    command
        .arg("dev")
        .env("TMPDIR", temporary.path())
        .env("HTTP_ADDR", "127.0.0.1:0")
        .env("TELEMETRY_ADDR", "127.0.0.1:0")
        .env("LOG_FORMAT", "human")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let lines = lines_until(child.stdout.take().unwrap(), "Ctrl-C").await;
    let api = lines.iter().find(|line| line.contains("API ")).expect("it says where the API is");
    let api = api.split_whitespace().nth(1).unwrap().to_owned();
    let simulated = |what: &str| {
        let line = lines.iter().find(|line| line.trim_start().starts_with(what));
        let line = line.unwrap_or_else(|| panic!("it says where {what} is: {lines:?}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(entries(temporary.path()), 1, "mongod's directory");
    let refused = http().get(&api).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    let token = printed_token(&lines);

    let all_active = async || {
        let answer = http().get(&api).bearer_auth(&token).send().await.unwrap().text().await.unwrap();
        let tenants: Value = serde_json::from_str(&answer).unwrap();
        let tenants = tenants["items"].as_array().unwrap().clone();
        tenants.len() == 3 && tenants.iter().all(|tenant| tenant["status"] == "active")
    };
    eventually("the samples are active", all_active).await;
    for (what, sample) in
        [("Authentik", "tenant-acme"), ("Stalwart", "globex.test"), ("oCIS", "Initech")]
    {
        let there = http().get(simulated(what)).send().await.unwrap().text().await.unwrap();
        assert!(there.contains(sample), "{what}: {there}");
    }
    let answer = http().get(format!("{api}/acme")).bearer_auth(&token).send().await.unwrap();
    let answer = answer.text().await.unwrap();
    let acme: Value = serde_json::from_str(&answer).unwrap();
    for step in ["authentik", "stalwart", "ocis"] {
        assert_eq!(acme["provisioningStatus"][step], "ok", "{acme}");
    }

    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = tokio::time::timeout(DEADLINE, child.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(entries(temporary.path()), 0, "nothing is left");
}

#[tokio::test]
async fn dev_that_is_killed_takes_its_mongod_with_it() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = Process::command();
    command
        .arg("dev")
        .env("TMPDIR", temporary.path())
        .env("HTTP_ADDR", "127.0.0.1:0")
        .env("TELEMETRY_ADDR", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    lines_until(child.stdout.take().unwrap(), "Ctrl-C").await;
    assert_eq!(entries(temporary.path()), 1);
    child.kill().await.unwrap();
    eventually("mongod and its directory are gone", async || entries(temporary.path()) == 0).await;
}

#[tokio::test]
async fn dev_without_authentication_needs_no_token_and_prints_none() {
    let mut command = Process::command();
    command
        .args(["dev", "--insecure-no-auth"])
        .env("HTTP_ADDR", "127.0.0.1:0")
        .env("TELEMETRY_ADDR", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let lines = lines_until(child.stdout.take().unwrap(), "Ctrl-C").await;
    assert!(!lines.iter().any(|line| line.contains("TOKEN")), "{lines:?}");
    let api = lines.iter().find(|line| line.contains("API ")).unwrap();
    let api = api.split_whitespace().nth(1).unwrap();
    assert_eq!(http().get(api).send().await.unwrap().status(), 200);
    child.kill().await.unwrap();
}

#[tokio::test]
async fn dev_keeps_a_given_data_directory_and_goes_on_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for _ in 0..2 {
        let mut command = Process::command();
        command
            .arg("dev")
            .arg("--data-dir")
            .arg(&data)
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("TELEMETRY_ADDR", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = lines_until(child.stdout.take().unwrap(), "Ctrl-C").await;
        let api = lines.iter().find(|line| line.contains("API ")).unwrap();
        let api = api.split_whitespace().nth(1).unwrap().to_owned();
        let token = printed_token(&lines);
        let answer = http().get(&api).bearer_auth(token).send().await.unwrap().text().await.unwrap();
        let tenants: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(tenants["items"].as_array().unwrap().len(), 3, "{tenants}");
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().await.unwrap().success());
    }
    assert!(data.join("WiredTiger").is_file(), "the data is kept");
}

#[tokio::test]
async fn help_documents_every_setting() {
    let mut command = Process::command();
    command.args(["run", "--help"]);
    let help = text(&output(command).await.stdout);
    for name in [
        "MONGODB_URI",
        "MONGODB_URI_FILE",
        "MONGODB_DATABASE",
        "HTTP_ADDR",
        "TELEMETRY_ADDR",
        "OIDC_ISSUER",
        "OIDC_AUDIENCE",
        "OIDC_ISSUERS",
        "OIDC_ISSUERS_FILE",
        "OIDC_ROLES_CLAIM",
        "OIDC_READERS",
        "OIDC_OPERATORS",
        "OIDC_ADMINS",
        "INSECURE_NO_AUTH",
        "RATE_LIMIT",
        "MAX_REQUESTS",
        "CORS_ORIGINS",
        "AUTHENTIK_API_URL",
        "AUTHENTIK_API_TOKEN",
        "AUTHENTIK_API_TOKEN_FILE",
        "AUTHENTIK_GROUP_TEMPLATE",
        "STALWART_API_URL",
        "STALWART_API_TOKEN",
        "OCIS_API_URL",
        "EXTRA_CA_FILE",
        "WORKERS",
        "RESYNC_INTERVAL",
        "POLL_INTERVAL",
        "BACKOFF_INITIAL",
        "BACKOFF_MAX",
        "LEASE_TTL",
        "REQUEST_TIMEOUT",
        "SHUTDOWN_GRACE",
        "LOG_FORMAT",
        "LOG_LEVEL",
    ] {
        assert!(help.contains(&format!("[env: {name}")), "{name} is not documented:\n{help}");
    }
}

#[tokio::test]
async fn wrong_settings_are_told_all_at_once_and_secrets_are_not() {
    let mut command = Process::command();
    command
        .arg("run")
        .env("MONGODB_URI", "mongodb://user:s3cret@db.acme.test")
        .env("INSECURE_NO_AUTH", "true")
        .env("HTTP_ADDR", "0.0.0.0:8080")
        .env("WORKERS", "many")
        .env("AUTHENTIK_API_URL", "id.acme.test")
        .env("AUTHENTIK_API_TOKEN", "s3cret-too");
    let ended = output(command).await;
    assert_eq!(ended.status.code(), Some(2));
    let told = text(&ended.stderr);
    for name in ["HTTP_ADDR", "WORKERS", "AUTHENTIK_API_URL"] {
        assert!(told.contains(name), "{told}");
    }
    assert!(!told.contains("s3cret"), "{told}");
}

#[tokio::test]
async fn without_an_issuer_it_does_not_start_unless_told_to() {
    let mut command = Process::command();
    command.arg("run").env("MONGODB_URI", "mongodb://db.acme.test").env("HTTP_ADDR", "127.0.0.1:0");
    let ended = output(command).await;
    assert_eq!(ended.status.code(), Some(2));
    let told = text(&ended.stderr);
    for word in ["OIDC_ISSUER", "OIDC_AUDIENCE", "INSECURE_NO_AUTH"] {
        assert!(told.contains(word), "{told}");
    }
}

#[tokio::test]
async fn half_a_password_is_not_told_either() {
    let mut command = Process::command();
    command.arg("run").env("MONGODB_URI", "mongodb://user:pass?word@db.acme.test/");
    let ended = output(command).await;
    assert_eq!(ended.status.code(), Some(2));
    let told = text(&ended.stderr);
    assert!(told.contains("MONGODB_URI") && told.contains("escaped"), "{told}");
    assert!(!told.contains("pass?") && !told.contains("got pass"), "{told}");
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_setting() {
    let world = World::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut process = Process::start(&world, &[("HTTP_ADDR", &address)]);
    assert_eq!(process.ended().await.code(), Some(1));
    process.says("HTTP_ADDR").await;
}

#[tokio::test]
async fn a_standalone_server_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut standalone = Command::new(mongod_binary().await);
    standalone
        .args(["--bind_ip", "127.0.0.1", "--nounixsocket", "--port", &port.to_string()])
        .args(["--wiredTigerCacheSizeGB", "0.25", "--dbpath"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let mut standalone = standalone.spawn().unwrap();
    let world = World::new().await;
    let uri = format!("mongodb://127.0.0.1:{port}/");
    let mut process = Process::start(&world, &[("MONGODB_URI", &uri)]);
    assert_eq!(process.ended().await.code(), Some(1));
    process.says("standalone").await;
    assert!(process.log().contains("--replSet"), "{}", process.log());
    standalone.kill().await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_away_at_start_is_waited_for() {
    let world = World::new().await;
    let nowhere = ("MONGODB_URI", "mongodb://127.0.0.1:9/?replicaSet=tenantry");
    let process = Process::start(&world, &[nowhere, ("REQUEST_TIMEOUT", "500ms")]);
    process.says("waiting for MongoDB").await;
    let http_address = process.address("http").await;
    let ready = http().get(format!("http://{http_address}/readyz"));
    let ready = ready.timeout(Duration::from_secs(5)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    process.stop().await;
}

/// What a container without a shell asks for its health.
#[tokio::test]
async fn ready_exits_with_0_only_where_a_process_is_ready() {
    let world = World::new().await;
    let ask = async |address: &str| {
        let mut command = Process::command();
        command.args(["ready", "--url", &format!("http://{address}")]);
        output(command).await
    };
    let process = Process::start(&world, &[]);
    let address = process.address("http").await;
    eventually("it is ready", async || ask(&address).await.status.success()).await;
    assert_eq!(text(&ask(&address).await.stdout), "ready\n");
    process.stop().await;
    let answer = ask(&address).await;
    assert_eq!(answer.status.code(), Some(1));
    assert!(text(&answer.stderr).contains("Is tenantry running there?"), "{}", text(&answer.stderr));

    let nowhere = ("MONGODB_URI", "mongodb://127.0.0.1:1/?replicaSet=rs0");
    let process = Process::start(&world, &[nowhere, ("REQUEST_TIMEOUT", "500ms")]);
    let answer = ask(&process.address("http").await).await;
    assert_eq!(answer.status.code(), Some(1));
    let told = text(&answer.stderr);
    assert!(
        told.contains("is not ready: MongoDB does not answer; the change stream is not open"),
        "{told}"
    );
}

#[tokio::test]
async fn logs_are_json_and_hold_no_secret() {
    let world = World::new().await;
    world.insert("acme").await;
    let process = Process::start(&world, &[("AUTHENTIK_API_TOKEN", "s3cret-wrong-token")]);
    world.step_becomes("acme", "error").await;
    process.says("CredentialsRejected").await;
    let log = process.stop().await;
    assert!(!log.contains("s3cret-wrong-token"), "{log}");
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
}

#[tokio::test]
async fn each_upstream_can_be_simulated_alone_and_ends_with_a_signal() {
    for (which, path, status) in [
        ("authentik", "/api/v3/core/groups/", 403),
        ("stalwart", "/jmap/session", 200),
        ("issuer", "/application/o/ocis/.well-known/openid-configuration", 200),
        ("ocis", "/graph/v1.0/me", 401),
        ("opencloud", "/graph/v1.0/me", 401),
    ] {
        let mut command = Process::command();
        command.args(["sim", which]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = lines_until(child.stdout.take().unwrap(), "Ctrl-C").await;
        let url = lines[0].split_whitespace().last().unwrap().to_owned();
        let answer = http().get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), status, "{which}: {lines:?}");
        let requests = http().get(format!("{url}/_sim/requests")).send().await.unwrap();
        assert!(requests.text().await.unwrap().contains(path), "{which}");
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().await.unwrap().success(), "{which}");
    }
}
