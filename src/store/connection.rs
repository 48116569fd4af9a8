//! The connection to MongoDB, and how another one takes its place while the process runs.
//!
//! A driver's client keeps the credentials that it was made with, so that another password needs another
//! client. It is used once it has shown that it leads to the same collection, by the id that the server
//! gave that: a file that was swapped by mistake must not make a process write to another fleet.
//!
//! Connections form a list that only grows. What has borrowed an earlier one goes on with it for as long as
//! an operation may take; then it is closed, and change streams open themselves anew on the latest. An entry
//! of the list stays in memory, which is small beside how rarely an address changes.

use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mongodb::bson::{Bson, doc};
use mongodb::event::EventHandler;
use mongodb::event::command::CommandEvent;
use mongodb::{Client, Database};
use tokio::sync::Notify;

use super::address::{client_options, not_taken};
use super::collection::Collection;
use super::servers::Servers;
use super::{OpenError, Store, StoreError, StoreOptions, TENANTS, Unsuitable};

/// A client, and what of the database it leads to.
pub struct Connection {
    pub(super) client: Client,
    pub(super) database: Database,
    pub(super) tenants: Collection,
    pub(super) servers: Servers,
}

impl Connection {
    pub(super) fn to(database: Database) -> Self {
        let tenants = Collection::of(&database, TENANTS);
        Self { client: database.client().clone(), database, tenants, servers: Servers::default() }
    }

    /// Prepares a client; nothing is sent yet, so this works while the server is away.
    pub(super) async fn prepare(options: &StoreOptions) -> Result<Self, Unsuitable> {
        let mut client = client_options(options).await?;
        let servers = Servers::default();
        client.sdam_event_handler = Some(servers.watch(client.repl_set_name.clone()));
        let (sent, answered) = (options.on_command.clone(), options.on_answer.clone());
        if sent.is_some() || answered.is_some() {
            client.command_event_handler = Some(EventHandler::callback(move |event| {
                let told =
                    |name: &str, took, worked| answered.iter().for_each(|tell| tell(name, took, worked));
                match event {
                    CommandEvent::Started(it) => {
                        sent.iter().for_each(|tell| tell(&it.command_name, &it.command));
                    }
                    CommandEvent::Succeeded(it) => told(&it.command_name, it.duration, true),
                    CommandEvent::Failed(it) => told(&it.command_name, it.duration, false),
                    _ => {}
                }
            }));
        }
        let client = Client::with_options(client).map_err(|error| not_taken(&error))?;
        Ok(Self { servers, ..Self::to(client.database(&options.database)) })
    }
}

/// All connections that a store has had, and what is needed to make another.
pub(super) struct Connections {
    first: Link,
    /// `None` for a connection that was made elsewhere.
    options: Option<StoreOptions>,
    /// The server's id of the collection, once it has been prepared.
    home: Mutex<Option<Bson>>,
    /// Told when the server refuses our credentials.
    pub(super) refused: Notify,
}

struct Link {
    connection: Connection,
    next: OnceLock<Box<Link>>,
}

impl Connections {
    pub(super) fn new(connection: Connection, options: Option<StoreOptions>) -> Arc<Self> {
        let first = Link { connection, next: OnceLock::new() };
        Arc::new(Self { first, options, home: Mutex::new(None), refused: Notify::new() })
    }

    fn latest(&self) -> &Link {
        let mut link = &self.first;
        while let Some(next) = link.next.get() {
            link = next;
        }
        link
    }
}

/// A store is its latest connection.
impl Deref for Store {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connections.latest().connection
    }
}

/// Why another address is not used.
#[derive(Debug, thiserror::Error)]
pub enum NotConnected {
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// May pass by itself.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the address leads to another database, whose tenants are not those that this process works for; \
         restart it if that is wanted"
    )]
    Elsewhere,
}

impl Store {
    /// Waits until the server refuses our credentials.
    pub async fn credentials_refused(&self) {
        self.connections.refused.notified().await;
    }

    /// Remembers which collection this is.
    pub(super) async fn remember_home(&self) -> Result<(), OpenError> {
        let home = self.collection_id().await?;
        *self.connections.home.lock().unwrap_or_else(PoisonError::into_inner) = home;
        Ok(())
    }

    /// Goes on with another address of the same database, such as one with another password.
    ///
    /// # Errors
    /// When it cannot be used; the store goes on with the one before.
    pub async fn reconnect(&self, uri: String) -> Result<(), NotConnected> {
        let Some(options) = &self.connections.options else {
            return Err(Unsuitable::Uri("this connection was made elsewhere".into()).into());
        };
        let connection = Connection::prepare(&StoreOptions { uri, ..options.clone() }).await?;
        let home = self.connections.home.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let new = Self { connections: Connections::new(connection, None), by: None, ..self.clone() };
        let judged = match new.collection_id().await {
            Ok(led_to) if home.is_none() || led_to == home => Ok(()),
            Ok(_) => Err(NotConnected::Elsewhere),
            Err(error) => Err(error.into()),
        };
        if judged.is_err() {
            new.close().await;
            return judged;
        }
        let before = self.client.clone();
        let mut connection =
            Connection { servers: new.servers.clone(), ..Connection::to(new.database.clone()) };
        // Another task may have been quicker; then this is the one after that.
        while let Err(link) =
            self.connections.latest().next.set(Box::new(Link { connection, next: OnceLock::new() }))
        {
            connection = link.connection;
        }
        let under_way = self.timeout * 2;
        tokio::spawn(async move {
            tokio::time::sleep(under_way).await;
            before.shutdown().immediate(true).await;
        });
        Ok(())
    }

    /// The server's id of the collection of tenants, if there is one.
    async fn collection_id(&self) -> Result<Option<Bson>, StoreError> {
        let list = doc! { "listCollections": 1, "filter": { "name": TENANTS } };
        let reply = self.command("listCollections", list).await?;
        let found = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let info = found.ok().and_then(|found| found.first()?.as_document()?.get_document("info").ok());
        Ok(info.and_then(|info| info.get("uuid")).cloned())
    }
}
