//! Contexts, logins of people and `whoami`, as a person uses them.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::auth::ProtectedApi;
use crate::support::{DEADLINE, Process};

/// A person's folder with a file of contexts.
struct Person {
    folder: TempDir,
}

impl Person {
    fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tenantry")).unwrap();
        std::fs::write(folder.path().join("tenantry/config.toml"), config).unwrap();
        Self { folder }
    }

    /// Who may log in to this API, as a person, and another who has no credentials.
    fn of(guarded: &ProtectedApi) -> Self {
        let (url, issuer) = (guarded.addresses.http, guarded.issuer.issuer_url("tenantry"));
        Self::with(&format!(
            "[contexts.dev]\nurl = \"http://{url}\"\n[contexts.dev.login]\nissuer = \"{issuer}\"\n\
             client_id = \"tenantry\"\n\n[contexts.bare]\nurl = \"http://{url}\"\n"
        ))
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = Process::command();
        command.args(arguments).stdin(Stdio::null());
        command.env("TENANTRY_CONFIG", self.folder.path().join("tenantry/config.toml"));
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output();
        tokio::time::timeout(DEADLINE, output).await.expect("it ends").expect("it starts")
    }

    /// Logs in; a person decides what becomes of it.
    async fn log_in(&self, guarded: &ProtectedApi, account: Option<&str>) -> Output {
        let mut command = self.command(&["login"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut told = String::new();
        tokio::time::timeout(DEADLINE, stderr.read_line(&mut told))
            .await
            .expect("it says where")
            .unwrap();
        let code = told.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(told.contains("/device in a browser"), "{told}");
        assert!(guarded.issuer.decide(&code, account), "{told}");
        let mut rest = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stderr, &mut rest).await.unwrap();
        let mut output = child.wait_with_output().await.unwrap();
        output.stderr = rest;
        output
    }

    fn token_file(&self) -> PathBuf {
        let files = std::fs::read_dir(self.folder.path().join("tenantry/tokens")).unwrap();
        let mut files = files.map(|file| file.unwrap().path());
        files.find(|file| file.extension().is_some_and(|ending| ending == "json")).expect("it is kept")
    }

    fn kept(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.token_file()).unwrap()).unwrap()
    }

    fn change(&self, field: &str, value: Value) {
        let mut kept = self.kept();
        kept[field] = value;
        std::fs::write(self.token_file(), kept.to_string()).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

fn failed(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}{}", text(&output.stdout));
    said
}

const PAST: &str = "2020-01-01T00:00:00Z";

#[tokio::test]
async fn a_person_logs_in_once_and_the_token_is_kept_private_and_renewed() {
    let guarded = ProtectedApi::new().await;
    let person = Person::of(&guarded);
    failed(&person.run(&["context", "use", "prod"]).await, 2);
    ok(&person.run(&["context", "use", "dev"]).await);
    let before = failed(&person.run(&["tenants", "get"]).await, 5);
    assert!(before.contains("tenantry login"), "{before}");

    let told = ok(&person.log_in(&guarded, Some("operator")).await);
    assert!(told.contains("Name:     operator") && told.contains("Role:     operator"), "{told}");
    assert!(told.contains("(context dev)"), "{told}");
    let (file, folder) = (person.token_file(), person.token_file().parent().unwrap().to_owned());
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&folder)), (0o600, 0o700));
    let asked = guarded.issuer.token_requests();
    ok(&person.run(&["tenants", "create", "acme", "--name", "Acme"]).await);
    assert_eq!(guarded.issuer.token_requests(), asked, "the token is good for many commands");

    // Near its end it is renewed, each time with the refresh token of the time before.
    for _ in 0..2 {
        let old = person.kept();
        person.change("expires_at", json!(PAST));
        ok(&person.run(&["tenants", "get"]).await);
        assert_ne!(person.kept()["refresh_token"], old["refresh_token"]);
    }
    assert_eq!(mode(&file), 0o600);
    // So it is when it is refused.
    person.change("access_token", json!("spoilt"));
    ok(&person.run(&["tenants", "get"]).await);
    // Two commands at once renew it once.
    person.change("expires_at", json!(PAST));
    let asked = guarded.issuer.token_requests();
    let (one, two) = tokio::join!(person.run(&["whoami"]), person.run(&["whoami"]));
    ok(&one);
    ok(&two);
    assert_eq!(guarded.issuer.token_requests(), asked + 1);

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(failed(&person.run(&["whoami"]).await, 2).contains("chmod 600"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    guarded.issuer.end_logins();
    person.change("expires_at", json!(PAST));
    let ended = failed(&person.run(&["whoami"]).await, 5);
    assert!(ended.contains("the login has ended") && ended.contains("tenantry login"), "{ended}");
    ok(&person.run(&["logout"]).await);
    assert!(!file.exists());
    guarded.stop().await;
}

#[tokio::test]
async fn a_login_that_is_declined_or_cannot_begin_says_why() {
    let guarded = ProtectedApi::new().await;
    let person = Person::of(&guarded);
    ok(&person.run(&["context", "use", "dev"]).await);
    assert!(failed(&person.log_in(&guarded, None).await, 5).contains("declined"));
    let issuer = guarded.issuer.issuer_url("tenantry");
    for (issuer, client, code, expected) in [
        (issuer.as_str(), "nobody", 5, "client_id nobody"),
        (issuer.trim_end_matches('/'), "tenantry", 2, "to the letter"),
        ("http://127.0.0.1:9/", "tenantry", 1, "cannot reach the issuer"),
    ] {
        let context = format!(
            "[contexts.x]\nurl = \"http://127.0.0.1:9\"\n[contexts.x.login]\nissuer = \"{issuer}\"\n\
             client_id = \"{client}\"\n"
        );
        let said = failed(&Person::with(&context).run(&["login"]).await, code);
        assert!(said.contains(expected), "{said}");
    }
    let none = failed(&Person::with("").run(&["login"]).await, 2);
    assert!(none.contains("[contexts.prod.login]"), "{none}");
    guarded.stop().await;
}

#[tokio::test]
async fn whoami_tells_who_with_which_role_and_until_when_and_answers_also_without_a_role() {
    let guarded = ProtectedApi::new().await;
    for (account, role, roles) in [
        ("admin", json!("admin"), json!(["reader", "operator", "admin"])),
        ("reader", json!("reader"), json!(["reader"])),
        ("nobody", json!(null), json!([])),
    ] {
        let answer = guarded.get("/whoami", &guarded.token(account)).await;
        assert_eq!(answer.status(), 200, "{account}");
        let who: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!((&who["role"], &who["roles"], &who["name"]), (&role, &roles, &json!(account)));
        assert_eq!(who["issuer"], guarded.issuer.issuer_url("tenantry"));
        let ends: jiff::Timestamp = who["expiresAt"].as_str().unwrap().parse().unwrap();
        assert!(ends > jiff::Timestamp::now());
    }
    assert_eq!(guarded.send(reqwest::Method::GET, "/whoami", None, None).await.status(), 401);
    assert_eq!(guarded.get("/tenants", &guarded.token("nobody")).await.status(), 403);
    let person = Person::of(&guarded);
    let mut command = person.command(&["whoami", "--context", "bare"]);
    command.env("TENANTRY_TOKEN", guarded.token("nobody"));
    let told = ok(&command.output().await.unwrap());
    assert!(told.contains("Role:     none: the token gives no role"), "{told}");
    guarded.stop().await;
}

#[tokio::test]
async fn contexts_say_where_and_as_whom_and_their_tokens_go_nowhere_else() {
    let guarded = ProtectedApi::new().await;
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), guarded.token("reader")).unwrap();
    let (url, file) = (guarded.addresses.http, token.path().display());
    let own = format!("[contexts.own]\nurl = \"http://{url}\"\ntoken_file = \"{file}\"\n");
    let person = Person::with(&own);
    // Of one alone no choice is needed.
    assert!(ok(&person.run(&["whoami"]).await).contains("Role:     reader"));
    let two = Person::with(&format!("{own}[contexts.other]\nurl = \"http://127.0.0.1:9\"\n"));
    let none = failed(&two.run(&["whoami"]).await, 1);
    assert!(none.contains("http://127.0.0.1:8080"), "without a choice it is the default: {none}");
    assert!(ok(&two.run(&["whoami", "--context", "own"]).await).contains("(context own)"));
    ok(&two.run(&["context", "use", "own"]).await);
    let list = ok(&two.run(&["context", "list"]).await);
    let row = |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(row("own").contains("true") && row("own").ends_with("file"), "{list}");
    assert!(row("other").contains("false") && row("other").ends_with("none"), "{list}");

    // With another address the context's token stays at home: this API refuses a request without one.
    let elsewhere = two.run(&["whoami", "--url", &format!("http://localhost:{}", url.port())]).await;
    failed(&elsewhere, 5);
    let elsewhere = ["whoami", "--context", "own", "--url", &format!("http://localhost:{}", url.port())];
    failed(&two.run(&elsewhere).await, 5);

    let wrong = Person::with("[contexts.own]\nurl = \"http://x\"\ntoken = \"secret\"\n");
    let said = failed(&wrong.run(&["whoami"]).await, 2);
    assert!(said.contains("config.toml") && said.contains("line 3") && said.contains("token"), "{said}");
    let several = format!("{own}[contexts.own.login]\nissuer = \"http://x/\"\nclient_id = \"x\"\n");
    assert!(failed(&Person::with(&several).run(&["whoami"]).await, 2).contains("give one"));
    guarded.stop().await;
}
