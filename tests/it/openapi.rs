//! The description of the API, and the page that shows it.

use std::path::Path;

use serde_json::Value;

use crate::api::Served;
use crate::support::World;

/// With this variable set, the snapshot is written instead of compared.
const UPDATE: &str = "TENANTRY_UPDATE_SNAPSHOTS";

#[test]
fn the_description_is_the_one_in_the_snapshot() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/openapi.json");
    let described = format!("{}\n", tenantry::api::openapi::document());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&file, described).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let differing = described.lines().zip(expected.lines()).find(|(now, then)| now != then);
    assert!(
        described == expected,
        "the API is described otherwise than in {}; first at {differing:?}. If that is what you want, run \
         this test with {UPDATE}=1 and commit the file",
        file.display(),
    );
}

#[tokio::test]
async fn every_operation_that_is_described_is_there() {
    let world = World::new().await;
    let served = Served::new(&world).await;
    let description: Value =
        serde_json::from_str(&served.get("/openapi.json").await.text().await.unwrap()).unwrap();
    assert_eq!(description["openapi"], "3.1.0");
    let mut seen = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = method.to_uppercase().parse().unwrap();
            let named = path.replace("{slug}", "nobody");
            let answer = served.send(method, &named, None).await;
            let status = answer.status().as_u16();
            assert_ne!(status, 405, "{named}");
            // The stream of events has no end.
            let told = if status == 200 { String::new() } else { answer.text().await.unwrap() };
            assert!(!told.contains("there is nothing at"), "{named}: {told}");
            let described = operation["responses"].as_object().unwrap();
            assert!(described.contains_key(&status.to_string()), "{named} answers {status}");
            assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{path}");
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} operations");
    served.stop().await;
}

#[tokio::test]
async fn the_page_comes_whole_from_here_and_may_load_nothing_else() {
    let world = World::new().await;
    let served = Served::new(&world).await;
    for (path, kind) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/docs.js", "text/javascript; charset=utf-8"),
        ("/docs/docs.css", "text/css; charset=utf-8"),
        ("/openapi.json", "application/json"),
    ] {
        let answer = served.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.headers()["content-type"], kind, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
        let text = answer.text().await.unwrap();
        assert!(!text.contains("http://") && !text.contains("https://"), "{path} names another host");
    }
    served.stop().await;
}
