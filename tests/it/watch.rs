//! The change stream survives what happens to servers, networks and collections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::doc;
use tenantry::dev::authentik::Release;
use tenantry::metrics::{Metrics, WatchEnd};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{
    self, Commands, Running, ServerFault, World, eventually, holds_for, open_store, settings,
};

/// Ten of the tenants as a whole, and four for each upstream.
const INDEXES: usize = 10 + 4 * 3;

/// No help from polling: what is noticed was told by the stream, or by asking after a gap.
fn stream_only(settings: &mut tenantry::controller::Settings) {
    settings.poll_interval = Duration::from_secs(600);
}

#[tokio::test]
async fn a_new_tenant_is_noticed_at_once() {
    let world = World::new().await;
    let controller = world.controller_with(stream_only).await;
    world.insert("acme").await;
    world.active("acme").await;
    world.set("acme", doc! { "name": "Renamed by a shell" }).await;
    eventually("the rename arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "Renamed by a shell"
    })
    .await;
    assert!(controller.metrics.watch_restarts.of(WatchEnd::Interrupted).get() == 0);
    controller.stop().await;
}

#[tokio::test]
async fn removing_the_due_time_asks_for_a_reconcile() {
    let world = World::new().await;
    let controller = world.controller_with(stream_only).await;
    world.insert("acme").await;
    world.active("acme").await;
    world.authentik.delete_named("tenant-acme");
    let unset = doc! { "$unset": { "nextReconcileAt": 1 } };
    world.tenants.update_one(doc! { "slug": "acme" }, unset).await.unwrap();
    eventually("the group is back", async || world.groups_named("tenant-acme").len() == 1).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_document_replaced_by_its_writer_is_noticed() {
    let world = World::new().await;
    let controller = world.controller_with(stream_only).await;
    let id = world.insert("acme").await;
    world.active("acme").await;
    let replacement = doc! { "slug": "acme", "name": "Replaced" };
    world.tenants.replace_one(doc! { "_id": id }, replacement).await.unwrap();
    eventually("the new name arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "Replaced"
    })
    .await;
    world.active("acme").await;
    controller.stop().await;
}

/// Invariant 1: losing the stream's history costs latency and never work.
#[tokio::test]
async fn lost_history_is_made_good_by_asking_once() {
    let world = World::new().await;
    let controller = world.controller_with(stream_only).await;
    world.insert("acme").await;
    world.active("acme").await;
    const CHANGE_STREAM_HISTORY_LOST: i32 = 286;
    let Some(fault) =
        ServerFault::commands(&world, &["getMore", "aggregate"], CHANGE_STREAM_HISTORY_LOST, None).await
    else {
        return;
    };
    let restarts = || controller.metrics.watch_restarts.of(WatchEnd::HistoryLost).get();
    // This wakes the stream, which then finds its history gone.
    world.set("acme", doc! { "name": "No process is told" }).await;
    eventually("the stream is lost", async || restarts() > 0).await;
    world.insert("globex").await;
    let relists = controller.metrics.relists.get();
    fault.off().await;
    world.active("globex").await;
    eventually("the rename arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "No process is told"
    })
    .await;
    eventually("the pass is over", async || controller.metrics.relists.get() > relists).await;
    assert_eq!(controller.metrics.relists.get(), relists + 1, "asked once");
    controller.stop().await;
}

#[tokio::test]
async fn a_stream_that_keeps_failing_is_opened_ever_more_slowly() {
    let world = World::new().await;
    let controller = world.controller_with(stream_only).await;
    // The driver would resume after this one at once and for ever.
    const NOT_PRIMARY: i32 = 10107;
    let Some(fault) = ServerFault::commands(&world, &["getMore"], NOT_PRIMARY, None).await else {
        return;
    };
    world.insert("acme").await;
    let opened = || world.commands.count("aggregate");
    let before = opened();
    eventually("it is opened again", async || opened() >= before + 2).await;
    let soon = opened();
    holds_for(Duration::from_secs(3), "and not at full speed", async || opened() <= soon + 5).await;
    world.active("acme").await;
    fault.off().await;
    world.insert("globex").await;
    world.active("globex").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_dropped_collection_is_prepared_again_and_watched() {
    let world = World::new().await;
    let controller = world.controller_with(stream_only).await;
    world.insert("acme").await;
    world.active("acme").await;
    world.tenants.drop().await.unwrap();
    eventually("the indexes are there again", async || {
        world.tenants.list_index_names().await.is_ok_and(|names| names.len() == INDEXES)
    })
    .await;
    world.insert("globex").await;
    world.active("globex").await;
    let gone = controller.metrics.watch_restarts.of(WatchEnd::CollectionGone).get();
    assert!((1..=3).contains(&gone), "{gone}");
    controller.stop().await;
}

#[tokio::test]
async fn a_renamed_collection_is_replaced_by_a_new_one_and_watched() {
    let world = World::new().await;
    let controller = world.controller_with(stream_only).await;
    world.insert("acme").await;
    world.active("acme").await;
    let (from, to) = (format!("{}.tenants", world.database), format!("{}.old", world.database));
    let rename = doc! { "renameCollection": from, "to": to };
    world.mongo.client().database("admin").run_command(rename).await.unwrap();
    eventually("the collection is there again", async || {
        world.tenants.list_index_names().await.is_ok_and(|names| names.len() == INDEXES)
    })
    .await;
    world.insert("globex").await;
    world.active("globex").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_primary_that_steps_down_and_comes_back_is_followed() {
    let mongod = support::start_mongod(&[]).await;
    let world = World::at(&mongod.uri, Release::R2025_12).await;
    let controller = world.controller_with(stream_only).await;
    world.insert("acme").await;
    world.active("acme").await;
    let admin = world.mongo.client().database("admin");
    let _ = admin.run_command(doc! { "replSetStepDown": 2, "force": true }).await;
    eventually("there is a primary again", async || {
        let hello = admin.run_command(doc! { "hello": 1 }).await;
        hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false))
    })
    .await;
    world.insert("globex").await;
    world.active("globex").await;
    controller.stop().await;
    drop(world);
    mongod.stop().await;
}

/// A network between controller and database that can be cut.
struct Network {
    address: SocketAddr,
    cut: CancellationToken,
    listening: tokio::task::JoinHandle<()>,
}

impl Network {
    async fn to(server: String, at: Option<SocketAddr>) -> Self {
        let address = at.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().unwrap();
        let cut = CancellationToken::new();
        let cutting = cut.clone();
        let listening = tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = listener.accept().await else { return };
                let (server, cut) = (server.clone(), cutting.clone());
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
        });
        Self { address, cut, listening }
    }

    async fn cut(self) -> SocketAddr {
        self.listening.abort();
        let _ = self.listening.await;
        self.cut.cancel();
        self.address
    }
}

#[tokio::test]
async fn a_cut_network_heals_without_anything_lost() {
    let world = World::new().await;
    let Some(host) = world.uri.strip_prefix("mongodb://").and_then(|rest| rest.split('/').next()) else {
        eprintln!("skipped: the server's address is not a plain one");
        return;
    };
    if !support::server().ours {
        eprintln!("skipped: the way to the server behind MONGODB_URI may not be a direct one");
        return;
    }
    let network = Network::to(host.to_owned(), None).await;
    let direct = format!("mongodb://{}/?directConnection=true", network.address);
    let store = open_store(&direct, &world.database, &Commands::default()).await;
    let metrics = Arc::new(Metrics::new());
    let mut settings = settings();
    stream_only(&mut settings);
    let integrations = world.integrations(&metrics);
    let controller = Running::start(store, integrations, metrics, settings).await;
    world.insert("acme").await;
    world.active("acme").await;

    let address = network.cut().await;
    let mut open = controller.watch_open.clone();
    tokio::time::timeout(support::DEADLINE, open.wait_for(|open| !open)).await.unwrap().unwrap();
    world.insert("globex").await;
    world.set("acme", doc! { "name": "Renamed during the cut" }).await;
    let network = Network::to(host.to_owned(), Some(address)).await;
    world.active("globex").await;
    eventually("the rename arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "Renamed during the cut"
    })
    .await;
    controller.stop().await;
    network.cut().await;
}
