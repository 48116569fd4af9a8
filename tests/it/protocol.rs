//! HTTP as clients and proxies speak it: prefixes, codings, byte order marks, streams that must not be buffered.

use futures_util::StreamExt;
use reqwest::{Method, StatusCode, Url};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::{Served, json, problem};
use crate::support::{World, http};

/// Sends a request as it is written, and returns what comes back until the connection ends.
async fn raw(served: &Served, request: &str) -> String {
    let mut stream = TcpStream::connect(served.addresses.http).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_location_of_a_new_tenant_is_right_behind_a_proxy_that_takes_a_prefix_off() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let public = Url::parse("https://acme.test/platform/").unwrap();
    let body = json!({ "name": "Acme" }).to_string();
    let new = json!({ "slug": "acme", "name": "Acme" }).to_string();
    for (method, path, body, expected) in [
        (Method::POST, "tenants", &new, "/platform/tenants/acme"),
        (Method::PUT, "tenants/globex", &body, "/platform/tenants/globex"),
    ] {
        let created = served.send(method, &format!("/{path}"), Some(body)).await;
        assert_eq!(created.status(), StatusCode::CREATED);
        let location = created.headers()["location"].to_str().unwrap();
        // As a client resolves it that asked the proxy.
        let resolved = public.join(path).unwrap().join(location).unwrap();
        assert_eq!(resolved.path(), expected, "{location}");
        let direct = format!("http://{}/{path}", served.addresses.http);
        let direct = Url::parse(&direct).unwrap().join(location).unwrap();
        assert_eq!(http().get(direct).send().await.unwrap().status(), StatusCode::OK);
    }
    served.stop().await;
}

#[tokio::test]
async fn a_stream_of_events_asks_proxies_not_to_buffer_it_and_begins_with_a_sign_of_life() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let answer = served.get("/tenants/watch").await;
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let first = answer.bytes_stream().next().await.unwrap().unwrap();
    assert!(first.starts_with(b": "), "{first:?}");
    served.stop().await;
}

#[tokio::test]
async fn a_byte_order_mark_before_a_body_is_no_part_of_it() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let marked = |body: serde_json::Value| format!("\u{feff}{body}");
    let new = marked(json!({ "slug": "acme", "name": "Acme" }));
    assert_eq!(served.send(Method::POST, "/tenants", Some(&new)).await.status(), StatusCode::CREATED);
    let edit = marked(json!({ "name": "Acme AG" }));
    for method in [Method::PATCH, Method::PUT] {
        let edited = served.send(method, "/tenants/acme", Some(&edit)).await;
        assert_eq!(json(edited).await["name"], "Acme AG");
    }
    let steps = marked(json!({ "steps": ["authentik"] }));
    let asked = served.send(Method::POST, "/tenants/acme/reconcile", Some(&steps)).await;
    assert_eq!(asked.status(), StatusCode::ACCEPTED);
    served.stop().await;
}

#[tokio::test]
async fn a_compressed_body_is_refused_as_what_it_is() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    for (method, path) in [
        (Method::POST, "/tenants"),
        (Method::PUT, "/tenants/acme"),
        (Method::PATCH, "/tenants/acme"),
        (Method::POST, "/tenants/acme/reconcile"),
    ] {
        let url = format!("http://{}{path}", served.addresses.http);
        let request = http().request(method, url).header("content-type", "application/json");
        let request = request.header("content-encoding", "gzip").body(&b"\x1f\x8b\x08\x00"[..]);
        let refused = request.send().await.unwrap();
        assert_eq!(refused.headers()["accept-encoding"], "identity", "{path}");
        let problem = problem(refused, 415).await;
        assert!(problem["detail"].as_str().unwrap().contains("Content-Encoding"), "{problem}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_request_of_http_1_1_names_its_host_once() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    for (request, status) in [
        ("GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", "400"),
        ("GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", "400"),
        ("GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "200"),
        ("GET /livez HTTP/1.0\r\n\r\n", "200"),
    ] {
        let answer = raw(&served, request).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request}{answer}");
        if status == "400" {
            assert!(answer.contains("application/problem+json") && answer.contains("Host"), "{answer}");
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn a_name_that_cannot_be_read_is_refused_and_a_document_that_has_it_works() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    for (name, code_point) in [("\u{200b}\u{2060}", "U+200B"), ("Acme \u{202e}gnp.exe", "U+202E")] {
        let body = json!({ "name": name }).to_string();
        let new = json!({ "slug": "globex", "name": name }).to_string();
        for (method, path, body) in [
            (Method::POST, "/tenants", &new),
            (Method::PUT, "/tenants/globex", &body),
            (Method::PATCH, "/tenants/acme", &body),
        ] {
            let problem = problem(served.send(method, path, Some(body)).await, 422).await;
            assert_eq!(problem["errors"][0]["field"], "name");
            let message = problem["errors"][0]["message"].as_str().unwrap();
            assert!(message.contains(code_point), "{message}");
        }
    }
    let shell = mongodb::bson::doc! { "slug": "initech", "name": "In\u{202e}itech" };
    world.tenants.insert_one(shell).await.unwrap();
    world.active("initech").await;
    served.stop().await;
}
