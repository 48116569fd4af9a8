//! How the upstreams are: what `GET /upstreams` and `tenantry upstreams` tell.

use serde_json::Value;
use tenantry::dev::faults::{Fault, FaultAnswer};

use crate::api::{Served, json};
use crate::support::{World, eventually};

impl Served {
    /// One upstream as `GET /upstreams` shows it.
    async fn upstream(&self, name: &str) -> Value {
        let answer = self.get("/upstreams").await;
        assert_eq!(answer.status(), 200);
        let list = json(answer).await;
        assert!(list["process"].as_str().is_some_and(|process| !process.is_empty()), "{list}");
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), 3, "{list}");
        items.iter().find(|item| item["upstream"] == name).expect("it is listed").clone()
    }

    async fn upstream_becomes(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{name} {what}"), async || holds(&self.upstream(name).await)).await;
        self.upstream(name).await
    }
}

#[tokio::test]
async fn an_upstream_is_shown_with_its_health_and_when_it_last_accepted_us() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let shown = served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    assert_eq!(shown["breaker"], "closed");
    assert_eq!(shown["nextProbeAt"], Value::Null);
    assert!(shown["credentialsAcceptedAt"].is_string(), "{shown}");
    let not_configured = served.upstream("ocis").await;
    assert_eq!(not_configured["configured"], false, "{not_configured}");
    assert_eq!(not_configured["health"], "unknown", "{not_configured}");
    served.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_down_is_shown_with_the_time_of_its_next_probe() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    let answer = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    world.authentik.faults.add(Fault { answer, ..Fault::default() });
    for n in 0..6 {
        world.insert(&format!("t{n}")).await;
    }
    let shown = served.upstream_becomes("authentik", "is down", |it| it["breaker"] == "open").await;
    assert_eq!(shown["health"], "unhealthy");
    assert_eq!(shown["reason"], "UpstreamError");
    let probe: jiff::Timestamp = shown["nextProbeAt"].as_str().unwrap().parse().unwrap();
    let wait = probe.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((0..=30).contains(&wait), "the next probe is in {wait}s");
    served.stop().await;
}
