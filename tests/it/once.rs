//! Work is done once: what slow upstreams, edits and requests in the middle of a reconcile cost.

use std::time::Duration;

use mongodb::bson::doc;
use tenantry::dev::faults::Fault;
use tenantry::store::{Edit, Edited, Store};

use crate::support::{Running, eventually, holds_for};
use crate::three::Suite;

/// Beyond the first look at slow steps, whose outcomes are recorded while others run.
const SLOW: Duration = Duration::from_millis(1_400);

impl Suite {
    /// Every answer takes a while, and each upstream takes another.
    fn slow(&self) {
        let millis = u64::try_from(SLOW.as_millis()).unwrap();
        self.world.authentik.faults.add(Fault { delay_ms: millis / 4, ..Fault::default() });
        self.stalwart.faults.add(Fault { delay_ms: millis / 2, ..Fault::default() });
        self.files.server.faults.add(Fault { delay_ms: millis, ..Fault::default() });
    }

    async fn epoch(&self, slug: &str) -> i64 {
        let tenant = self.world.find(slug).await;
        tenant.get_document("lease").unwrap().get_i64("epoch").unwrap()
    }
}

/// A progress is recorded well before the end of a reconcile.
async fn controller(suite: &Suite) -> Running {
    suite.controller(|settings| settings.lease_ttl = Duration::from_secs(3)).await
}

#[tokio::test]
async fn a_reconcile_that_takes_long_is_made_once_for_a_new_tenant_and_for_a_requested_one() {
    let suite = Suite::new().await;
    let controller = controller(&suite).await;
    suite.create("first").await;
    suite.settled("first").await;
    suite.forget_requests();
    suite.create("quick").await;
    suite.settled("quick").await;
    let (quick, requested) = (suite.requests(), "quick".parse().unwrap());
    suite.slow();

    suite.forget_requests();
    suite.create("acme").await;
    suite.settled("acme").await;
    let once = async |slug: &str, epoch: i64| {
        holds_for(Duration::from_secs(1), "it is not claimed again", async || {
            suite.epoch(slug).await == epoch
        })
        .await;
    };
    once("acme", 1).await;
    assert_eq!(suite.requests(), quick, "slow upstreams are asked no more than quick ones");

    suite.forget_requests();
    let epoch = suite.epoch("quick").await;
    suite.world.store.request_reconcile(&requested).await.unwrap();
    eventually("the request is handled", async || {
        let tenant = suite.world.find("quick").await;
        tenant.get("lastHandledReconcileAt") == tenant.get("reconcileRequestedAt")
    })
    .await;
    once("quick", epoch + 1).await;
    let [groups, domains, spaces] = suite.requests();
    assert_eq!([groups, domains, spaces], [1, 1, 1], "one look each");
    assert_eq!(controller.reconciles("interrupted"), 0);
    controller.stop().await;
}

#[tokio::test]
async fn a_request_that_comes_while_progress_is_recorded_is_not_lost() {
    let suite = Suite::new().await;
    let controller = controller(&suite).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.slow();
    suite.reconcile("acme").await;
    let slug = "acme".parse().unwrap();
    suite.world.store.request_reconcile(&slug).await.unwrap();
    let recorded = suite.world.step_of("acme", "authentik").await;
    eventually("something of it is recorded", async || {
        suite.world.step_of("acme", "authentik").await.get("lastAttemptAt")
            != recorded.get("lastAttemptAt")
    })
    .await;
    // As a shell asks.
    let due = doc! { "$unset": { "nextReconcileAt": 1 } };
    suite.world.tenants.update_one(doc! { "slug": "acme" }, due).await.unwrap();
    let epoch = suite.epoch("acme").await;
    eventually("it is done again", async || suite.epoch("acme").await > epoch).await;
    suite.settled("acme").await;
    controller.stop().await;
}

async fn rename(store: &Store, slug: &str, name: &str) {
    let edit = Edit { name: Some(name.parse().unwrap()), ..Edit::default() };
    let edited = store.edit(&slug.parse().unwrap(), &edit).await.unwrap();
    assert!(matches!(edited, Edited::Done(_)), "{edited:?}");
}

#[tokio::test]
async fn an_edit_that_is_taken_back_during_a_reconcile_is_counted_and_told() {
    let suite = Suite::new().await;
    let controller = controller(&suite).await;
    let store = &suite.world.store;
    let (alice, bob) =
        (store.on_behalf_of(Some("alice".into())), store.on_behalf_of(Some("bob".into())));
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.slow();
    suite.forget_requests();
    rename(&alice, "acme", "Renamed").await;
    eventually("it is worked on", async || suite.requests() != [0, 0, 0]).await;
    rename(&bob, "acme", "Renamed again").await;
    rename(&bob, "acme", "Renamed").await;
    eventually("the last generation is observed", async || {
        suite.world.find("acme").await.get_i64("observedGeneration").is_ok_and(|observed| observed == 4)
    })
    .await;
    suite.settled("acme").await;
    suite.audit("acme").await;
    let told = async |message: &str, by: &str| {
        let events = store.events(&"acme".parse().unwrap(), 100).await.unwrap();
        events.iter().any(|event| {
            event.kind.name() == "Edited"
                && event.message.contains(message)
                && event.by.as_deref() == Some(by)
        })
    };
    eventually("both are told", async || {
        told("to \"Renamed\"", "alice").await && told("taken back", "bob").await
    })
    .await;
    controller.stop().await;
}

#[tokio::test]
async fn what_is_taken_back_before_any_reconcile_is_told_too() {
    let suite = Suite::new().await;
    let controller = controller(&suite).await;
    for slug in ["acme", "globex"] {
        suite.create(slug).await;
        suite.settled(slug).await;
    }
    controller.stop().await;
    let alice = suite.world.store.on_behalf_of(Some("alice".into()));
    for (slug, store) in [("acme", &alice), ("globex", &suite.world.store)] {
        let tenant = slug.parse().unwrap();
        rename(store, slug, "Renamed").await;
        rename(store, slug, &format!("The {slug}")).await;
        store.set_paused(&tenant, true).await.unwrap();
        store.set_paused(&tenant, false).await.unwrap();
        store.request_deletion(&tenant, tenantry::tenant::DeletionPolicy::Retain).await.unwrap();
        store.undelete(&tenant).await.unwrap();
    }
    let controller = self::controller(&suite).await;
    for (slug, by) in [("acme", Some("alice")), ("globex", None)] {
        for kind in ["Edited", "Paused", "Resumed", "DeletionRequested", "Undeleted"] {
            eventually(&format!("{kind} is told of {slug}"), async || {
                let events = suite.world.store.events(&slug.parse().unwrap(), 100).await.unwrap();
                let mut of_kind = events.iter().filter(|event| event.kind.name() == kind);
                of_kind.any(|event| event.message.contains("taken back") && event.by.as_deref() == by)
            })
            .await;
        }
        suite.settled(slug).await;
    }
    controller.stop().await;
}

#[tokio::test]
async fn a_pause_or_a_deletion_is_not_told_as_an_edit_too() {
    let suite = Suite::new().await;
    let first = controller(&suite).await;
    for slug in ["paused", "going"] {
        suite.create(slug).await;
        suite.settled(slug).await;
    }
    first.stop().await;
    let store = &suite.world.store;
    let (paused, going) = ("paused".parse().unwrap(), "going".parse().unwrap());
    store.set_paused(&paused, true).await.unwrap();
    store.set_paused(&paused, false).await.unwrap();
    store.request_deletion(&going, tenantry::tenant::DeletionPolicy::Delete).await.unwrap();
    let second = controller(&suite).await;
    for (slug, kind) in [(&paused, "Resumed"), (&going, "Deleted")] {
        let kinds = async || {
            let events = store.events(slug, 100).await.unwrap();
            events.into_iter().map(|event| event.kind.name()).collect::<Vec<_>>()
        };
        eventually(&format!("{kind} is told"), async || kinds().await.contains(&kind)).await;
        assert!(!kinds().await.contains(&"Edited"), "{:?}", kinds().await);
    }
    second.stop().await;
}
