//! What clients cannot do to the API, however many, slow or malformed they are.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use mongodb::bson::{Document, doc, oid::ObjectId};
use reqwest::Method;
use serde_json::{Value, json};
use tenantry::dev::issuer::Signed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::auth::{ProtectedApi, issuer, problem, trusting};
use crate::support::{DEADLINE, Process, World, eventually, http};

/// Random numbers that are the same each time (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit as u64).unwrap()
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn bytes(&mut self, at_most: usize) -> Vec<u8> {
        let length = self.below(at_most);
        (0..length).map(|_| u8::try_from(self.roll() & 0xff).unwrap()).collect()
    }

    /// Of what the first line and a header can hold.
    fn text(&mut self, at_most: usize) -> String {
        let length = 1 + self.below(at_most);
        (0..length).map(|_| char::from(b'!' + u8::try_from(self.below(94)).unwrap())).collect()
    }
}

/// A request that is wrong in one way or another.
fn malformed(dice: &mut Dice, token: &str) -> Vec<u8> {
    let path = |dice: &mut Dice| match dice.below(6) {
        0 => format!("/{}", dice.text(60)),
        1 => format!("/tenants/{}/reconcile", dice.text(80).replace(['/', '?', '#'], "~")),
        2 => format!("/tenants/%{:02x}%{:02x}", dice.below(256), 128 + dice.below(128)),
        3 => format!("/tenants?limit=x{}&status={}", dice.text(20), dice.text(20)),
        4 => format!("/tenants/../../{}", dice.text(30)),
        _ => format!("/tenants/{}", "a".repeat(100 + dice.below(5_000))),
    };
    let authorization = match dice.below(4) {
        0 => format!("authorization: {}\r\n", dice.text(200)),
        1 => format!("authorization: Bearer {}.{}.{}\r\n", dice.text(50), dice.text(90), dice.text(40)),
        _ => format!("authorization: Bearer {token}\r\n"),
    };
    let mut body = Vec::new();
    let head = match dice.below(8) {
        // Not HTTP at all, or not for long.
        0 => return [dice.text(3).into_bytes(), dice.bytes(300), b"\r\n\r\n".to_vec()].concat(),
        1 => {
            return format!("GET /tenants HTTP/1.1\r\nconnection: close\r\n{}\r\n\r\n", dice.text(100))
                .into_bytes();
        }
        2 => {
            let length = dice.pick(&["x", "-1", "99999999999999999999", "1, 2"]);
            return format!("POST /tenants HTTP/1.1\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        }
        3 => format!("{} {}", dice.pick(&["GET", "HEAD", "DELETE", "PATCH", "BREW"]), path(dice)),
        4 => {
            let headers: String =
                (0..80 + dice.below(100)).map(|n| format!("x-{n}: {}\r\n", dice.text(300))).collect();
            return format!("GET /tenants HTTP/1.1\r\nconnection: close\r\n{headers}\r\n").into_bytes();
        }
        // Bodies that are no tenant.
        5 => {
            body = dice.bytes(3_000);
            "POST /tenants".into()
        }
        6 => {
            let depth = dice.below(5_000);
            body = format!("{{\"slug\":{}{}", "[".repeat(depth), dice.text(30)).into_bytes();
            "POST /tenants".into()
        }
        _ => {
            let value = dice.pick(&["null", "1e999", "{}", "[]", "\"\\ud800\"", "\"\\u0000\"", "true"]);
            let field = dice.pick(&["slug", "name", "domain", "quota", "services", "nonsense"]);
            body = format!("{{\"{field}\":{value},\"{}\":{value}}}", dice.pick(&["slug", "quota", "é"]))
                .into_bytes();
            "POST /tenants".into()
        }
    };
    let kind = dice.pick(&["application/json", "application/json", "text/plain", "application/xml"]);
    let id = dice.text(300);
    let length = body.len();
    let mut request = format!(
        "{head} HTTP/1.1\r\nhost: x\r\n{authorization}content-type: {kind}\r\nx-request-id: {id}\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .into_bytes();
    request.extend(body);
    request
}

/// Sends bytes and returns all that comes back.
async fn exchange(address: &str, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // It may hang up before it has read all of it.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let ended = tokio::time::timeout(DEADLINE, reading).await;
    let told = || String::from_utf8_lossy(&request[..request.len().min(500)]).into_owned();
    let _ = ended.unwrap_or_else(|_| panic!("no answer and no end to {:?}", told()));
    answer
}

/// Resident memory, in KiB.
pub fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_malformed_requests_are_the_clients_fault_and_leave_nothing_behind() {
    const REQUESTS: u64 = 10_000;
    let world = World::new().await;
    let issuer = issuer().await;
    let trusting = trusting(&issuer);
    let settings = [
        ("INSECURE_NO_AUTH", ""),
        ("OIDC_ISSUERS", &*trusting),
        ("RATE_LIMIT", "0"),
        ("LOG_LEVEL", "warn,tenantry::run=info"),
    ];
    let process = Process::start(&world, &settings);
    let api = process.address("http").await;
    let token = issuer.token("tenantry", "operator", "openid profile email").unwrap();
    let mut seen = BTreeSet::new();
    let mut wave = async |seeds: std::ops::Range<u64>| {
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..8 {
            let (api, token, seeds) = (api.clone(), token.clone(), seeds.clone());
            clients.spawn(async move {
                let mut seen = BTreeSet::new();
                for seed in seeds.filter(|seed| seed % 8 == client) {
                    let request = malformed(&mut Dice(seed), &token);
                    let answer = exchange(&api, &request).await;
                    let told =
                        || String::from_utf8_lossy(&request[..request.len().min(500)]).into_owned();
                    // A head that never ends, or is no HTTP, need not be answered.
                    let cut_off =
                        answer.is_empty() && !request.starts_with(b"POST /tenants HTTP/1.1\r\nhost");
                    let fault = answer.starts_with(b"HTTP/1.1 4");
                    let first = String::from_utf8_lossy(&answer[..answer.len().min(300)]);
                    assert!(fault || cut_off, "seed {seed}: {first:?} to {:?}", told());
                    seen.extend(
                        answer.get(9..12).map(|status| String::from_utf8_lossy(status).into_owned()),
                    );
                }
                seen
            });
        }
        while let Some(ended) = clients.join_next().await {
            seen.extend(ended.expect("each is refused"));
        }
    };
    wave(0..REQUESTS / 5).await;
    let before = resident(&process);
    wave(REQUESTS / 5..REQUESTS).await;
    let after = resident(&process);
    assert!(after < before + 4 * 1024, "it grew from {before} to {after} KiB");
    // They got everywhere.
    for status in ["400", "401", "403", "404", "405", "414", "415", "422", "431"] {
        assert!(seen.contains(status), "{status} is not among {seen:?}");
    }
    assert_eq!(http().get(format!("http://{api}/livez")).send().await.unwrap().status(), 200);
    assert_eq!(world.tenants.count_documents(doc! {}).await.unwrap(), 0);
    let log = process.stop().await;
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_when_to_come_back_and_others_are_not_bothered() {
    let api = ProtectedApi::with(issuer().await, |config| {
        config.access.rate_limit = NonZeroU32::new(5);
    })
    .await;
    let (reader, admin) = (api.token("reader"), api.token("admin"));
    for _ in 0..5 {
        assert_eq!(api.get("/tenants", &reader).await.status(), 200);
    }
    let answer = api.get("/tenants", &reader).await;
    let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=12).contains(&wait), "{wait}");
    problem(answer, 429).await;
    assert_eq!(api.get("/tenants", &admin).await.status(), 200, "another client");
    // Strangers are told apart by their address: they guess as often as one client may ask.
    let forged = api.issuer.issue(json!({}), Signed::WithAnotherKey).unwrap();
    for _ in 0..5 {
        problem(api.get("/tenants", &forged).await, 401).await;
    }
    problem(api.get("/tenants", &forged).await, 429).await;
    problem(api.send(Method::GET, "/tenants", None, None).await, 429).await;
    assert_eq!(api.get("/tenants", &admin).await.status(), 200);
    for _ in 0..20 {
        assert_eq!(api.send(Method::GET, "/livez", None, None).await.status(), 200);
    }
    api.stop().await;
}

#[tokio::test]
async fn more_requests_than_can_be_answered_are_turned_away_at_once_and_probes_are_not() {
    let api = ProtectedApi::with(issuer().await, |config| config.access.max_requests = 2).await;
    let token = api.token("operator");
    let address = api.addresses.http.to_string();
    eventually("it is ready", async || {
        api.send(Method::GET, "/readyz", None, None).await.status() == 200
    })
    .await;
    // Two clients that promise a body and do not send it.
    let mut hanging = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST /tenants HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: 50\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        hanging.push(stream);
    }
    let mut shed = None;
    eventually("requests are turned away", async || {
        let answer = api.get("/tenants", &token).await;
        let turned_away = answer.status() == 503;
        shed = Some(answer);
        turned_away
    })
    .await;
    let shed = shed.unwrap();
    assert_eq!(shed.headers()["retry-after"], "1");
    problem(shed, 503).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(api.send(Method::GET, path, None, None).await.status(), 200, "{path}");
    }
    // They run into the time limit, and others are answered again.
    eventually("there is room", async || api.get("/tenants", &token).await.status() == 200).await;
    for mut stream in hanging {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 503");
    }
    api.stop().await;
}

#[tokio::test]
async fn with_all_connections_taken_probes_are_answered_and_nothing_else_is() {
    let api = ProtectedApi::with(issuer().await, |config| config.access.patience.connections = 3).await;
    let token = api.token("reader");
    let address = api.addresses.http.to_string();
    eventually("it is ready", async || {
        let probe = exchange(&address, b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        probe.await.starts_with(b"HTTP/1.1 200")
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    let get = |path: &str| {
        let headers = format!("host: x\r\nauthorization: Bearer {token}\r\nconnection: close");
        format!("GET {path} HTTP/1.1\r\n{headers}\r\n\r\n").into_bytes()
    };
    eventually("requests are turned away", async || {
        exchange(&address, &get("/tenants")).await.starts_with(b"HTTP/1.1 503")
    })
    .await;
    for path in ["/livez", "/readyz"] {
        assert!(exchange(&address, &get(path)).await.starts_with(b"HTTP/1.1 200"), "{path}");
    }
    drop(idle);
    eventually("there is room", async || {
        exchange(&address, &get("/tenants")).await.starts_with(b"HTTP/1.1 200")
    })
    .await;
    api.stop().await;
}

#[tokio::test]
async fn a_client_that_sends_its_headers_byte_by_byte_is_cut_off() {
    let limit = Duration::from_millis(300);
    let api = ProtectedApi::with(issuer().await, |config| config.access.patience.headers = limit).await;
    let mut silent = TcpStream::connect(api.addresses.http).await.unwrap();
    let (mut reading, mut writing) = TcpStream::connect(api.addresses.http).await.unwrap().into_split();
    let dripping = tokio::spawn(async move {
        for byte in b"GET /livez HTTP/1.1\r\nhost: ".iter().chain(std::iter::repeat(&b'x')) {
            if writing.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut answer = Vec::new();
    let cut_off = async {
        let _ = reading.read_to_end(&mut answer).await;
        let _ = silent.read_to_end(&mut answer).await;
        dripping.await.unwrap();
    };
    tokio::time::timeout(DEADLINE, cut_off).await.expect("both are cut off");
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
    api.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    const ASKED: usize = 60;
    let api = ProtectedApi::with(issuer().await, |config| {
        config.access.patience.reading = Duration::from_millis(200);
        config.workers = 1;
    })
    .await;
    let long = "x".repeat(150);
    let many: Vec<Document> = (0..500)
        .map(|n| doc! { "_id": ObjectId::new(), "slug": format!("t{n}"), "name": &long })
        .collect();
    api.world.tenants.insert_many(many).await.unwrap();
    let token = api.token("reader");
    let whole = api.get("/tenants?limit=500", &token).await.bytes().await.unwrap().len();
    let mut stream = TcpStream::connect(api.addresses.http).await.unwrap();
    let request =
        format!("GET /tenants?limit=500 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.repeat(ASKED).as_bytes()).await.unwrap();
    // Nothing is read until the other side has given up, which shows when it no longer takes anything.
    eventually("the connection is closed", async || stream.write_all(request.as_bytes()).await.is_err())
        .await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < whole * ASKED / 2, "{} of {} bytes", rest.len(), whole * ASKED);
    assert_eq!(api.get("/tenants", &token).await.status(), 200);
    api.stop().await;
}

#[tokio::test]
async fn addresses_that_are_too_long_are_refused() {
    let api = ProtectedApi::new().await;
    let token = api.token("admin");
    let path = format!("/tenants?after={}", "a".repeat(5_000));
    problem(api.get(&path, &token).await, 414).await;
    let heads = format!("GET /tenants HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    let answer = exchange(&api.addresses.http.to_string(), heads.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{answer:?}");
    api.stop().await;
}

#[tokio::test]
async fn a_request_keeps_its_id_or_gets_one_and_browsers_are_told_to_be_careful() {
    let api = ProtectedApi::new().await;
    let ask = async |id: Option<&str>| {
        let mut request = http().get(format!("http://{}/tenants", api.addresses.http));
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let answer = request.send().await.unwrap();
        let headers = answer.headers().clone();
        let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(problem["requestId"], headers["x-request-id"].to_str().unwrap(), "{problem}");
        headers
    };
    assert_eq!(ask(Some("ticket-4711")).await["x-request-id"], "ticket-4711");
    let long = "x".repeat(129);
    let made = ask(None).await["x-request-id"].clone();
    assert_eq!(made.len(), 32);
    for wrong in ["", "two words", "umläut", &long] {
        assert_eq!(ask(Some(wrong)).await["x-request-id"].len(), 32, "{wrong}");
    }
    let headers = ask(None).await;
    for (name, value) in [
        ("cache-control", "no-store"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ] {
        assert_eq!(headers[name], value);
    }
    api.stop().await;
}

#[tokio::test]
async fn pages_of_other_origins_are_kept_out_unless_theirs_is_configured() {
    let preflight = async |api: &ProtectedApi, origin: &str| {
        let url = format!("http://{}/tenants", api.addresses.http);
        let request = http().request(Method::OPTIONS, url).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let answer = request.send().await.unwrap();
        answer.headers().get("access-control-allow-origin").cloned()
    };
    let api = ProtectedApi::new().await;
    assert_eq!(preflight(&api, "https://portal.acme.test").await, None);
    let options = api.send(Method::OPTIONS, "/tenants", None, None).await;
    assert!(!options.headers().contains_key("vary"), "off is off");
    problem(options, 401).await;
    api.stop().await;
    let api = ProtectedApi::with(issuer().await, |config| {
        config.access.cors_origins = vec!["https://portal.acme.test".into()];
    })
    .await;
    let allowed = preflight(&api, "https://portal.acme.test").await.unwrap();
    assert_eq!(allowed, "https://portal.acme.test");
    assert_eq!(preflight(&api, "https://evil.test").await, None);
    let answer = api.send(Method::GET, "/tenants", None, None).await;
    problem(answer, 401).await;
    api.stop().await;
}
