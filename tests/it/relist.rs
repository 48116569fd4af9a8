//! What no event told is found in the background, however slow that is, and nothing waits for it.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{DateTime, doc};
use tenantry::metrics::Metrics;
use tenantry::store::{Holder, Relist, Store, StoreError, Turn};

use crate::support::{
    Commands, DEADLINE, Running, ServerFault, World, eventually, open_hasty_store, settings,
};

/// Far less than the server's delays here.
const HASTE: Duration = Duration::from_millis(500);
const DELAY: Duration = Duration::from_secs(3);

async fn hasty(world: &World) -> (Store, Commands) {
    let commands = Commands::default();
    let store = open_hasty_store(&world.uri, &world.database, &commands, HASTE).await;
    (store, commands)
}

/// A controller with no help from polling, whose database operations have little time.
fn controller(world: &World, store: Store) -> Running {
    let metrics = Arc::new(Metrics::new());
    let mut settings = settings();
    settings.poll_interval = Duration::from_secs(600);
    Running::spawn(store, world.integrations(&metrics), metrics, settings)
}

async fn opens(controller: &Running) {
    let mut open = controller.watch_open.clone();
    let opened = tokio::time::timeout(DEADLINE, open.wait_for(|open| *open)).await;
    opened.expect("the change stream opens").expect("the controller runs");
}

async fn renamed(world: &World, name: &str) {
    eventually("the rename arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == name
    })
    .await;
}

/// As after a million entries of other collections: the server looks for the next event for longer than an
/// operation may take, at every attempt.
#[tokio::test]
async fn a_change_stream_that_cannot_be_resumed_in_time_is_a_gap_after_two_attempts() {
    let world = World::new().await;
    let (store, _) = hasty(&world).await;
    let controller = controller(&world, store);
    opens(&controller).await;
    world.insert("acme").await;
    world.active("acme").await;
    const CURSOR_NOT_FOUND: i32 = 43;
    let slow = doc! {
        "blockConnection": true, "blockTimeMS": DELAY.as_millis() as i64, "errorCode": CURSOR_NOT_FOUND,
    };
    let Some(fault) = ServerFault::doing(&world, "tenants", &["getMore"], slow, None).await else {
        return;
    };
    let restarts = |cause| controller.metrics.watch_restarts.of(cause).get();
    world.set("acme", doc! { "name": "The last to be told" }).await;
    eventually("the stream has ended", async || restarts(tenantry::metrics::WatchEnd::Interrupted) == 1)
        .await;
    world.set("acme", doc! { "name": "No process is told" }).await;
    renamed(&world, "No process is told").await;
    assert_eq!(restarts(tenantry::metrics::WatchEnd::Slow), 2, "it was tried twice");
    fault.off().await;
    controller.stop().await;
}

#[tokio::test]
async fn watching_and_being_ready_do_not_wait_for_a_relist_which_goes_on_until_it_is_done() {
    let world = World::new().await;
    let first = world.controller().await;
    world.insert("acme").await;
    world.active("acme").await;
    first.stop().await;
    world.set("acme", doc! { "name": "Renamed while no process watched" }).await;
    // No slice ends in time.
    let Some(fault) = ServerFault::delaying(&world, "tenants", &["update"], DELAY, None).await else {
        return;
    };
    let (store, commands) = hasty(&world).await;
    let controller = controller(&world, store);
    opens(&controller).await;
    world.insert("globex").await;
    world.active("globex").await;
    eventually("it is tried again", async || commands.count("update") >= 2).await;
    assert_eq!(controller.metrics.relists.get(), 0);
    assert!(*controller.watch_open.borrow(), "the stream is not disturbed");
    fault.off().await;
    renamed(&world, "Renamed while no process watched").await;
    eventually("it is done", async || controller.metrics.relists.get() == 1).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_slice_that_is_too_much_is_made_smaller_and_larger_again() {
    const TENANTS: usize = 3_000;
    let world = World::new().await;
    let documents = (0..TENANTS).map(|n| {
        doc! { "slug": format!("t{n}"), "name": "x", "nextReconcileAt": DateTime::MAX }
    });
    world.tenants.insert_many(documents).await.unwrap();
    let Some(fault) = ServerFault::delaying(&world, "tenants", &["update"], DELAY, Some(2)).await else {
        return;
    };
    let (store, commands) = hasty(&world).await;
    let mut progress = Relist::default();
    for _ in 0..2 {
        let late = store.relist(&mut progress).await;
        assert!(matches!(late, Err(StoreError::Late { .. })), "{late:?}");
    }
    fault.off().await;
    commands.take();
    eventually("the pass ends", async || store.relist(&mut progress).await.is_ok_and(|over| over)).await;
    // 625, 1,250, and the rest.
    assert_eq!(commands.count("update"), 3);
    let due = doc! { "nextReconcileAt": { "$lte": DateTime::now() } };
    assert_eq!(world.tenants.count_documents(due).await.unwrap(), TENANTS as u64);
}

#[tokio::test]
async fn processes_that_start_at_once_make_one_pass_after_the_other_and_none_twice() {
    let world = World::new().await;
    let store = &world.store;
    let ttl = Duration::from_secs(30);
    let [a, b, c] = ["a", "b", "c"].map(|host| Holder::new(host, 1));
    let take = async |holder, since| store.take_relist(holder, since, ttl).await.unwrap();
    let Turn::Ours { from } = take(&a, None).await else { panic!("no other process makes one") };
    let since = async |holder| match take(holder, None).await {
        Turn::Others { since } => Some(since),
        turn => panic!("another has it: {turn:?}"),
    };
    let (b_missed, c_missed) = (since(&b).await, since(&c).await);
    assert!(matches!(take(&b, b_missed).await, Turn::Others { .. }), "it goes on");
    store.end_relist(&a, from).await.unwrap();
    // It began before they missed something.
    let Turn::Ours { from } = take(&c, c_missed).await else { panic!("it is free") };
    assert!(matches!(take(&b, b_missed).await, Turn::Others { .. }));
    store.end_relist(&c, from).await.unwrap();
    assert_eq!(take(&b, b_missed).await, Turn::Over, "the pass of another is enough");
    assert!(matches!(take(&a, None).await, Turn::Ours { .. }), "not for what is missed from now on");

    // A process that ended keeps others for no longer than its lease.
    store.hold_relist(&a, Duration::ZERO).await.unwrap();
    assert!(matches!(take(&b, None).await, Turn::Ours { .. }));
}
