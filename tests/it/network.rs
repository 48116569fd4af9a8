//! Proxies, root certificates, and servers that are not what they were taken for: the same for the
//! controller, the command line and whatever asks for tokens.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::api::Served;
use crate::auth::issuer;
use crate::support::{DEADLINE, Process, World};

/// A server that answers each request with the same bytes, whatever they are, and hangs up.
struct Peer {
    address: SocketAddr,
    /// The heads of the requests so far.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    async fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, bytes) = (listener.local_addr().unwrap(), bytes.into());
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, bytes) = (Arc::clone(&seen), bytes.clone());
                tokio::spawn(async move {
                    let head = head(&mut stream).await;
                    seen.lock().unwrap().push(head);
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.shutdown().await;
                    // What the client still sends must not make the answer be lost.
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                });
            }
        });
        Self { address, heads }
    }

    async fn page(status: &str) -> Self {
        let page = "<!DOCTYPE html>\n<html><title>Blocked</title></html>\n";
        Self::answering(answer(status, "text/html", page)).await
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Its address as a proxy's, with credentials.
    fn with_password(&self) -> String {
        format!("http://mallory:geheim@{}", self.address)
    }
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.first().is_none_or(u8::is_ascii_graphic)
    {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Runs `tenantry tenants get`; returns how it ended and what it said.
async fn get(url: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Process::command();
    command.args(["tenants", "get", "-o", "name"]).env("TENANTRY_URL", url);
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends");
    let Output { status, stdout, stderr } = output.expect("it starts");
    (status.code(), [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

/// `url`'s server under the name by which only a person knows it.
fn by_name(url: &str) -> String {
    url.replace("127.0.0.1", "localhost")
}

#[tokio::test]
async fn a_proxy_is_never_asked_for_what_is_on_this_machine() {
    let proxy = Peer::page("502 Bad Gateway").await;
    let address = format!("http://{}", proxy.address);
    let everywhere =
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
            .map(|name| (name, address.as_str()));

    let world = World::new().await;
    let issuer = issuer().await;
    let trusting = crate::auth::trusting(&issuer);
    let authentik = by_name(&world.authentik.url());
    let mut settings = everywhere.to_vec();
    settings.extend([
        ("AUTHENTIK_API_URL", authentik.as_str()),
        ("INSECURE_NO_AUTH", ""),
        ("OIDC_ISSUERS", &*trusting),
    ]);
    let process = Process::start(&world, &settings);
    world.insert("acme").await;
    world.active("acme").await;

    let token_url = issuer.token_url();
    let mut environment = everywhere.to_vec();
    environment.extend([
        ("TENANTRY_OIDC_TOKEN_URL", token_url.as_str()),
        ("TENANTRY_OIDC_CLIENT_ID", "tenantry"),
    ]);
    let secret = tenantry::dev::issuer::Account::new("reader", "app-password", &[]).client_secret();
    environment.push(("TENANTRY_OIDC_CLIENT_SECRET", &secret));
    let url = format!("http://{}", process.address("http").await);
    let ended = get(&by_name(&url), &environment).await;
    assert_eq!(ended, (Some(0), "acme\n".into()));
    process.stop().await;
    assert_eq!(proxy.heads(), Vec::<String>::new());
}

#[tokio::test]
async fn other_addresses_are_reached_through_the_proxy_unless_no_proxy_names_them() {
    let list = answer("200 OK", "application/json", r#"{"items":[],"next":null}"#);
    let proxy = Peer::answering(list).await;
    let address = format!("\t{}\r\n", proxy.with_password());
    let through = ("HTTP_PROXY", address.as_str());
    assert_eq!(get("http://api.acme.test", &[through]).await, (Some(0), String::new()));
    let [head] = proxy.heads().try_into().unwrap();
    assert!(head.starts_with("GET http://api.acme.test/tenants"), "{head}");
    // mallory:geheim
    assert!(head.to_lowercase().contains("proxy-authorization: basic"), "{head}");
    let (code, said) = get("http://api.acme.test", &[through, ("NO_PROXY", "acme.test")]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(!said.contains("proxy"), "{said}");
    assert_eq!(proxy.heads().len(), 1);
}

#[tokio::test]
async fn an_error_behind_a_proxy_names_the_proxy_and_not_its_password() {
    let page = Peer::page("502 Bad Gateway").await;
    let challenge = Peer::page("407 Proxy Authentication Required").await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = format!("http://mallory:geheim@{gone}");
    for proxy in [page.with_password(), challenge.with_password(), gone.clone()] {
        let named = proxy.replace("mallory:geheim@", "");
        for url in ["http://api.acme.test", "https://api.acme.test"] {
            let both = [("HTTP_PROXY", proxy.as_str()), ("HTTPS_PROXY", &proxy)];
            let (code, said) = get(url, &both).await;
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains(&named) && said.contains("proxy"), "{url} through {named}: {said}");
            assert!(!said.contains("geheim"), "{said}");
        }
    }

    for (proxy, reason) in [(page.with_password(), "UpstreamError"), (gone, "Unreachable")] {
        let named = proxy.replace("mallory:geheim@", "");
        let world = World::new().await;
        world.insert("acme").await;
        let settings = [("AUTHENTIK_API_URL", "http://id.acme.test"), ("HTTP_PROXY", &proxy)];
        let process = Process::start(&world, &settings);
        crate::support::eventually(&format!("the step fails with {reason}"), async || {
            world.step("acme").await.get_str("reason").is_ok_and(|now| now == reason)
        })
        .await;
        let step = world.step("acme").await;
        let message = step.get_str("message").unwrap();
        assert!(message.contains(&named), "{message}");
        let log = process.stop().await;
        assert!(!log.contains("geheim") && !message.contains("geheim"), "{message}: {log}");
    }
}

#[tokio::test]
async fn plain_http_needs_no_root_certificates() {
    let nothing = [("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")];
    let world = World::new().await;
    let process = Process::start(&world, &nothing);
    world.insert("acme").await;
    world.active("acme").await;
    let url = format!("http://{}", process.address("http").await);
    assert_eq!(get(&url, &nothing).await, (Some(0), "acme\n".into()));

    // What needs them says what is missing.
    let (code, said) = get("https://localhost:1", &nothing).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("root certificates") && said.contains("EXTRA_CA_FILE"), "{said}");
    let token =
        [("TENANTRY_OIDC_TOKEN_URL", "https://localhost:1/"), ("TENANTRY_OIDC_CLIENT_ID", "cli")];
    let token = [&token[..], &[("TENANTRY_OIDC_CLIENT_SECRET", "secret")], &nothing].concat();
    let (code, said) = get(&url, &token).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("root certificates"), "{said}");
    process.stop().await;
}

#[tokio::test]
async fn the_command_line_tells_a_server_that_is_not_the_api_by_what_it_is() {
    let page = Peer::page("200 OK").await;
    let broken = Peer::page("502 Bad Gateway").await;
    let nothing = Peer::page("404 Not Found").await;
    // The alert "unexpected message", as a server sends it to a client that does not begin with TLS.
    let tls = Peer::answering([0x15, 3, 3, 0, 2, 2, 0x0a]).await;
    let plain = Served::new(&World::new().await).await;
    for (url, told) in [
        (format!("https://{}", plain.addresses.http), "http:// rather than https://"),
        (format!("http://{}", tls.address), "https:// rather than http://"),
        (format!("http://{}", page.address), "a page of HTML"),
        (format!("http://{}", broken.address), "a page of HTML"),
        (format!("http://{}", nothing.address), "a page of HTML"),
    ] {
        let (code, said) = get(&url, &[]).await;
        assert_eq!(code, Some(1), "{url}: {said}");
        assert!(said.contains(told) && said.contains("TENANTRY_URL"), "{url}: {said}");
        assert!(!said.contains("<html>") && !said.contains("?."), "{url}: {said}");
    }
    plain.stop().await;
}

/// What a token endpoint is taken for, and what is said of it.
fn odd_token_endpoints() -> [(&'static str, String, &'static [&'static str]); 6] {
    let json = |status: &str, body: &str| answer(status, "application/json", body);
    let page = |status: &str| answer(status, "text/html", "<html></html>");
    let moved = "HTTP/1.1 301 Moved Permanently\r\nlocation: /token/\r\ncontent-length: 0\r\n\r\n";
    [
        ("another path", page("403 Forbidden"), &["a page of HTML", "token endpoint"]),
        ("a page", page("200 OK"), &["a page of HTML", "token endpoint"]),
        ("no such path", json("404 Not Found", r#"{"error":"Not Found"}"#), &["token endpoint"]),
        ("no slash", answer("405 Method Not Allowed", "text/html", ""), &["final slash"]),
        ("no slash, and told so", moved.into(), &["/token/"]),
        ("a proxy", page("502 Bad Gateway"), &["a page of HTML"]),
    ]
}

#[tokio::test]
async fn an_address_that_leads_to_no_token_endpoint_is_told_the_same_by_both_programs() {
    for (what, bytes, told) in odd_token_endpoints() {
        let peer = Peer::answering(bytes).await;
        let endpoint = format!("http://{}/token", peer.address);
        let credentials = [
            ("TENANTRY_OIDC_TOKEN_URL", endpoint.as_str()),
            ("TENANTRY_OIDC_CLIENT_ID", "cli"),
            ("TENANTRY_OIDC_CLIENT_SECRET", "geheim"),
        ];
        let (_, said) = get("http://127.0.0.1:1", &credentials).await;
        let files = crate::ocis::FileServer::new(tenantry::dev::ocis::Flavour::Ocis31).await;
        let message = crate::oauth::refusal_at(&files, &endpoint).await;
        for text in told {
            assert!(said.contains(text), "{what}: {said}");
            assert!(message.contains(text), "{what}: {message}");
        }
        for message in [&said, &message] {
            assert!(message.contains(&endpoint) && !message.contains("<html>"), "{what}: {message}");
            assert!(!message.contains("geheim"), "{what}: {message}");
        }
    }
}

#[tokio::test]
async fn keys_that_are_a_page_are_told_as_one() {
    let world = World::new().await;
    let proxy = Peer::page("200 OK").await;
    let address = format!("http://{}", proxy.address);
    let settings = [
        ("INSECURE_NO_AUTH", ""),
        ("OIDC_ISSUER", "http://id.acme.test/"),
        ("OIDC_AUDIENCE", "tenantry"),
        ("HTTP_PROXY", &address),
    ];
    let process = Process::start(&world, &settings);
    process.says("cannot fetch the issuer's keys").await;
    let log = process.stop().await;
    let line = log.lines().find(|line| line.contains("cannot fetch the issuer's keys")).unwrap();
    assert!(line.contains("a page of HTML") && line.contains(&address), "{line}");
}
