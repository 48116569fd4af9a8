//! How a process starts, says things and ends, when the world around it is not as it expects: streams that
//! cannot be written, signals, variables from untidy files.

use std::fs::{File, OpenOptions};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tenantry::dev::faults::Fault;
use tokio::process::{Child, Command};

use crate::support::{DEADLINE, Process, World, eventually, http};

/// A stream on a disk that is full.
fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// A stream whose reader is gone.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

async fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends").expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn send(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

async fn ended(child: &mut Child) -> std::process::ExitStatus {
    tokio::time::timeout(DEADLINE, child.wait()).await.expect("it ends").unwrap()
}

#[tokio::test]
async fn a_process_whose_log_cannot_be_written_works_and_ends_in_order() {
    for (stderr, signal) in [(Stdio::from(full()), Signal::TERM), (unread(), Signal::INT)] {
        let world = World::new().await;
        world.insert("acme").await;
        let mut command = Process::run(&world);
        let mut child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
        world.active("acme").await;
        send(&child, signal);
        assert!(ended(&mut child).await.success(), "{signal:?}");
    }
}

#[tokio::test]
async fn dev_goes_on_when_its_introduction_is_not_read() {
    let mut command = Process::command();
    command.arg("dev").env("HTTP_ADDR", "127.0.0.1:0").env("TELEMETRY_ADDR", "127.0.0.1:0");
    command.env("LOG_FORMAT", "json").stdout(unread());
    let process = Process::spawn(command);
    let address = process.address("http").await;
    let answers = async || {
        let ready = http().get(format!("http://{address}/readyz")).send().await;
        ready.is_ok_and(|ready| ready.status() == 200)
    };
    eventually("it is ready", answers).await;
    process.stop().await;
}

#[tokio::test]
async fn an_output_that_could_not_be_written_whole_is_a_failure_and_one_that_is_not_read_is_none() {
    for arguments in [&["completions", "bash"][..], &["--help"], &["run", "--help"], &["--version"]] {
        let mut command = Process::command();
        command.args(arguments).stdout(full()).stderr(Stdio::piped()).stdin(Stdio::null());
        let ended = command.spawn().unwrap().wait_with_output().await.unwrap();
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("not whole") && !said.contains("panicked"), "{arguments:?}: {said}");

        let mut command = Process::command();
        command.args(arguments).stdout(unread()).stderr(Stdio::piped()).stdin(Stdio::null());
        let ended = command.spawn().unwrap().wait_with_output().await.unwrap();
        assert!(ended.status.success(), "{arguments:?}: {}", text(&ended.stderr));
        assert!(ended.stderr.is_empty(), "{arguments:?}: {}", text(&ended.stderr));
    }
}

#[tokio::test]
async fn tenants_that_could_not_be_printed_whole_are_a_failure() {
    let world = World::new().await;
    world.insert("acme").await;
    let process = Process::start(&world, &[]);
    let url = format!("http://{}", process.address("http").await);
    for arguments in [&["tenants", "get", "-o", "json"][..], &["tenants", "watch", "acme"]] {
        let mut command = Process::command();
        command.args(arguments).env("TENANTRY_URL", &url);
        command.stdout(full()).stderr(Stdio::piped()).stdin(Stdio::null());
        let ended = command.spawn().unwrap().wait_with_output();
        let ended = tokio::time::timeout(DEADLINE, ended).await.expect("it ends").unwrap();
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("not whole"), "{arguments:?}: {said}");
    }
    process.stop().await;
}

#[tokio::test]
async fn two_requests_to_end_within_a_second_are_one_and_a_later_one_ends_at_once() {
    let world = World::new().await;
    world.insert("acme").await;
    // A reconcile that takes longer than the test.
    world.authentik.faults.add(Fault {
        method: Some("POST".into()),
        delay_ms: 120_000,
        ..Fault::default()
    });
    let mut process = Process::start(&world, &[("SHUTDOWN_GRACE", "2m"), ("REQUEST_TIMEOUT", "2m")]);
    let creating =
        async || world.authentik.faults.requests().iter().any(|request| request.starts_with("POST"));
    eventually("a create is on its way", creating).await;
    let began = Instant::now();
    process.signal(Signal::TERM);
    process.signal(Signal::INT);
    process.says("once more to end at once").await;
    let over_a_second = async || began.elapsed() > Duration::from_millis(1_100);
    eventually("a second is over", over_a_second).await;
    assert!(!process.log().contains("ended at once"), "{}", process.log());
    process.signal(Signal::TERM);
    let status = process.ended().await;
    assert_eq!(status.code(), Some(128 + 15), "{}", process.log());
    process.says("ended at once").await;
}

#[tokio::test]
async fn a_hangup_has_files_read_again_and_ends_nothing() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "wrong-key\n").unwrap();
    let mut command = Process::run(&world);
    command.env_remove("AUTHENTIK_API_TOKEN").env("AUTHENTIK_API_TOKEN_FILE", &key);
    let process = Process::spawn(command);
    process.says("watching for tenants").await;
    process.signal(Signal::HUP);
    process.says("SIGHUP: read the files of the settings again").await;
    let log = process.stop().await;
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
}

#[tokio::test]
async fn a_simulator_ends_with_its_terminal_unless_it_was_started_to_outlive_it() {
    let program = env!("CARGO_BIN_EXE_tenantry");
    for (ignore, ends) in [("", true), ("trap '' HUP;", false)] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{ignore} exec {program} sim authentik")]).kill_on_drop(true);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let url = listening(&mut child).await;
        send(&child, Signal::HUP);
        if ends {
            assert!(ended(&mut child).await.success());
        } else {
            let answer = http().get(format!("{url}/_sim/requests")).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            send(&child, Signal::TERM);
            assert!(ended(&mut child).await.success());
        }
    }
}

/// Where a simulator says that it listens.
async fn listening(child: &mut Child) -> String {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("it says it").unwrap();
    line.unwrap().split_whitespace().last().unwrap().to_owned()
}

#[tokio::test]
async fn a_log_level_that_is_none_is_refused_with_the_list_of_levels() {
    for level in ["inof", "verbose", "none", "info,", "\"info\"", "tenantry::store"] {
        let mut command = Process::command();
        command.arg("run").env("MONGODB_URI", "mongodb://db.acme.test").env("INSECURE_NO_AUTH", "true");
        command.env("LOG_LEVEL", level);
        let ended = output(command).await;
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{level}: {said}");
        assert!(said.contains("LOG_LEVEL: "), "{said}");
        assert!(said.contains("error, warn, info, debug, trace and off"), "{said}");
    }
}

#[tokio::test]
async fn all_mistakes_are_below_the_headline_and_in_json_where_that_is_asked_for() {
    for format in ["auto", "json"] {
        let mut command = Process::command();
        command.arg("run").env("MONGODB_URI", "mongodb://db.acme.test").env("INSECURE_NO_AUTH", "true");
        command.env("WORKERS", "0").env("CORS_ORIGINS", "https://*.acme.test").env("LOG_FORMAT", format);
        let ended = output(command).await;
        assert_eq!(ended.status.code(), Some(2));
        let said = text(&ended.stderr);
        let told = if format == "json" {
            let line: Value = serde_json::from_str(said.trim()).unwrap_or_else(|_| panic!("{said}"));
            line["message"].as_str().unwrap().to_owned()
        } else {
            said.strip_prefix("tenantry: ").unwrap().trim_end().to_owned()
        };
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines[0], "the settings are wrong:", "{said}");
        assert!(lines[1].starts_with("  CORS_ORIGINS: \"https://*.acme.test\" is a pattern"), "{said}");
        assert_eq!(lines[2], "  WORKERS: must be from 1 to 1024", "{said}");
    }
}

#[tokio::test]
async fn blanks_around_a_variable_do_not_count_and_an_empty_one_is_none() {
    let world = World::new().await;
    world.insert("acme").await;
    let mut command = Process::run(&world);
    let given: Vec<_> = command
        .as_std()
        .get_envs()
        .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
        .collect();
    let untidy = ["PATH", "HOME", "TENANTRY_CACHE_DIR", "TENANTRY_MONGOD", "XDG_CACHE_HOME", "TMPDIR"];
    for (name, value) in given {
        let Some(value) = value.filter(|_| !untidy.iter().any(|kept| name == *kept)) else { continue };
        command.env(name, format!(" {}\r\n", value.to_str().unwrap()));
    }
    command.env("EXTRA_CA_FILE", "").env("OIDC_ISSUER", " ").env("LOG_LEVEL", "info\r");
    let process = Process::spawn(command);
    world.active("acme").await;
    let url = format!("http://{}\n", process.address("http").await);

    let mut get = Process::command();
    get.args(["tenants", "get", "-o", "name"]).env("TENANTRY_URL", url);
    get.env("EXTRA_CA_FILE", "").env("TENANTRY_TOKEN_FILE", "").env("TENANTRY_TOKEN", "\n");
    let shown = output(get).await;
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    assert_eq!(text(&shown.stdout), "acme\n");

    let mut get = Process::command();
    get.args(["tenants", "get"]).env("TENANTRY_URL", "");
    let said = text(&output(get).await.stderr);
    assert!(said.contains("127.0.0.1:8080"), "the default is asked: {said}");
    let log = process.stop().await;
    assert!(!log.contains("\\r"), "{log}");
}

#[tokio::test]
async fn an_upstream_that_is_not_configured_is_told_once_and_not_for_every_tenant() {
    let world = World::new().await;
    for slug in ["acme", "globex"] {
        world.insert(slug).await;
    }
    let process = Process::start(&world, &[]);
    for slug in ["acme", "globex"] {
        world.active(slug).await;
    }
    let log = process.stop().await;
    assert_eq!(log.matches("STALWART_API_URL is not set").count(), 1, "{log}");
    assert_eq!(log.matches("NotConfigured").count(), 0, "{log}");
}
