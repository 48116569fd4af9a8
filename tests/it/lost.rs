//! What a tenant had whose document was lost can be had again.

use mongodb::bson::{Document, doc};

use crate::support::eventually;
use crate::three::{STEPS, Suite};

impl Suite {
    /// What the upstream says of all resources there, as text.
    fn said(&self, step: &str) -> Vec<String> {
        match step {
            "authentik" => {
                self.world.authentik.groups().iter().map(|it| it["attributes"].to_string()).collect()
            }
            "stalwart" => {
                self.stalwart.domains().iter().map(|it| it["description"].to_string()).collect()
            }
            _ => self.files.server.drives().iter().map(|it| it["description"].to_string()).collect(),
        }
    }
}

#[tokio::test]
async fn what_a_lost_tenant_had_is_released_when_an_administrator_asks_and_adopted_by_the_next() {
    let suite = Suite::new().await;
    let process = suite.process(&[("SWEEP_INTERVAL", "1s")]);
    let url = format!("http://{}", process.address("http").await);
    let post = async |path: String| {
        crate::support::http().post(format!("{url}{path}")).send().await.unwrap().status().as_u16()
    };
    suite.create("acme").await;
    let lost = suite.settled("acme").await;
    let id = |tenant: &Document, step: &str| {
        let steps = tenant.get_document("steps").unwrap();
        steps.get_document(step).unwrap().get_str("externalId").unwrap().to_owned()
    };
    let path = |step: &str, id: &str| {
        format!("/orphans/{step}/{}/release", id.replace('$', "%24").replace('!', "%21"))
    };
    assert_eq!(post(path("stalwart", &id(&lost, "stalwart"))).await, 404, "it is no orphan");
    // Its history is to tell the slug.
    eventually("its history is written", async || {
        !suite.world.store.events(&"acme".parse().unwrap(), 10).await.unwrap().is_empty()
    })
    .await;
    let the_tenant = doc! { "_id": lost.get_object_id("_id").unwrap() };
    suite.world.tenants.delete_one(the_tenant.clone()).await.unwrap();
    eventually("all three are orphans", async || suite.world.store.orphans().await.unwrap().len() == 3)
        .await;
    // A tenant that is back has what it had.
    suite.world.tenants.insert_one(&lost).await.unwrap();
    assert_eq!(post(path("ocis", &id(&lost, "ocis"))).await, 409);
    suite.world.tenants.delete_one(the_tenant).await.unwrap();
    for step in STEPS {
        eventually(&format!("{step} is an orphan"), async || {
            let orphans = suite.world.store.orphans().await.unwrap();
            orphans.iter().any(|orphan| orphan.upstream.name() == step)
        })
        .await;
        assert_eq!(post(path(step, &id(&lost, step))).await, 202, "{step}");
    }
    eventually("none is an orphan", async || suite.world.store.orphans().await.unwrap().is_empty())
        .await;
    for step in STEPS {
        assert!(suite.said(step)[0].contains("released"), "{:?}", suite.said(step));
    }
    eventually("each is told", async || {
        let events = format!("{:?}", suite.world.store.fleet_events(20).await.unwrap());
        events.matches("OrphanReleased").count() == 3
    })
    .await;
    suite
        .world
        .tenants
        .insert_one(doc! {
            "slug": "acme", "name": "The acme", "domain": "acme.test", "adopt": true,
        })
        .await
        .unwrap();
    let anew = suite.settled("acme").await;
    for step in STEPS {
        assert_eq!(id(&anew, step), id(&lost, step), "{step}: what it had");
    }
    process.stop().await;
}

#[tokio::test]
async fn a_conflict_says_whose_mark_is_in_the_way_and_the_way_out_when_that_tenant_is_gone() {
    let suite = Suite::new().await;
    let process = suite.process(&[]);
    let url = format!("http://{}", process.address("http").await);
    suite.create("acme").await;
    let acme = suite.settled("acme").await;
    let had = |step: &str| {
        let steps = acme.get_document("steps").unwrap();
        steps.get_document(step).unwrap().get_str("externalId").unwrap().to_owned()
    };
    let mut globex =
        doc! { "slug": "globex", "name": "Globex", "domain": acme.get_str("domain").unwrap() };
    let steps = STEPS.map(|step| (step.to_owned(), doc! { "externalId": had(step) }.into()));
    globex.insert("steps", steps.into_iter().collect::<Document>());
    suite.world.tenants.insert_one(globex).await.unwrap();

    let says = async |words: &dyn Fn(&str) -> String| {
        for step in STEPS {
            let words = words(step);
            eventually(&format!("{step} says {words:?}"), async || {
                let found = suite.world.step_of("globex", step).await;
                found.get_str("reason").is_ok_and(|reason| reason == "Conflict")
                    && found.get_str("message").is_ok_and(|message| message.contains(&words))
            })
            .await;
        }
    };
    says(&|_| "That is the tenant \"acme\"".to_owned()).await;
    let the_tenant = doc! { "_id": acme.get_object_id("_id").unwrap() };
    suite.world.tenants.delete_one(the_tenant).await.unwrap();
    suite.world.store.request_reconcile(&"globex".parse().unwrap()).await.unwrap();
    says(&|step| format!("tenantry orphans release {step} '{}'", had(step))).await;
    says(&|_| "no such tenant any more".to_owned()).await;

    let plan = crate::support::http().get(format!("{url}/tenants/globex/plan"));
    let plan = plan.header("prefer", "wait=20").send().await.unwrap().text().await.unwrap();
    assert_eq!(plan.matches("no such tenant any more").count(), 3, "{plan}");
    process.stop().await;
}
