//! MongoDB: the tenants' documents, and the only room that talks to the database.
//!
//! * [`schema`]: what is created at start: the collection, its [`validator`], its
//!   [`indexes`].
//! * [`collection`]: commands that compare by bytes.
//! * [`document`]: documents to tenants and back.
//! * [`tenants`]: insert, get, list, flag, count: what the HTTP layer needs.
//! * [`edit`], [`idempotency`]: changing a tenant, creating one only once.
//! * [`lease`]: claim, renew, commit, release: what a reconcile needs.
//! * [`due`]: which tenants need work, by query.
//! * [`list`]: pages of tenants, filtered.
//! * [`work_stream`]: the same, sooner, by change stream.
//! * [`relist`]: one pass over all of them, for what the stream did not tell.
//! * [`waiting`]: steps that wait for an outage or a stop that is over.
//! * [`slices`], [`census`]: going over all tenants; counting them.
//! * [`sweep`]: what comparing whole upstreams with the tenants needs.
//! * [`drift`]: tenants whose resources differ, for change guards.
//! * [`history`]: what happened to each tenant.
//! * [`controls`]: stops, guards, the sweep's lease.
//! * [`fleet`]: which fleet this is, and which upstreams it has.
//! * [`refusals`]: what credentials upstreams refuse.
//! * [`connection`]: the client, and how another takes its place; its
//!   [`address`], and why none of its [`servers`] can be used.
//! * [`orphans`]: orphans that are to be released.
//! * [`outcome_stream`]: how tenants are, by change stream, for those who wait.
//!
//! Leases and due times come from the *server's* clock (`$$NOW`), so that controllers with different
//! clocks agree on them.

mod address;
mod bulk;
mod census;
mod change_stream;
mod clock;
mod collection;
mod connection;
mod controls;
mod document;
mod drift;
mod due;
mod edit;
mod fleet;
mod history;
mod idempotency;
mod indexes;
mod lease;
mod list;
mod orphans;
mod outcome_stream;
mod refusals;
mod relist;
mod schema;
mod servers;
mod slices;
mod sweep;
mod tenants;
mod validator;
mod waiting;
mod work_stream;

pub use address::{check_uri, database_of};
pub use census::{Census, Counting};
pub use change_stream::{ResumeToken, WatchError};
pub use connection::{Connection, NotConnected};
pub use controls::{ControlsWatch, Scope};
pub use document::{InvalidDocument, Record};
pub use drift::{Drifted, MOST as MOST_DRIFT};
pub use due::{DueScan, DueTenant};
pub use edit::{Edit, Edited, Put};
pub use fleet::{Pass, Retired};
pub use history::{Gone, Journal, KEPT};
pub use idempotency::{IdempotencyKey, Inserted, InvalidIdempotencyKey};
pub use lease::{Claim, ClaimAnswer, Commit, CommitCandidates, Holder};
pub use list::{Page, PageQuery};
pub use orphans::{Asked, ToRelease};
pub use outcome_stream::{OutcomeEvent, OutcomeStream};
pub use refusals::{Refusals, Refused};
pub use relist::{Relist, Turn};
pub use sweep::{BATCH, MOST_ORPHANS, Orphan, SweptTenant, UnknownResource};
pub use tenants::{NewTenant, Requested};
pub use validator::{Rejection, SCHEMA_VERSION};
pub use waiting::Woken;
pub use work_stream::{WorkEvent, WorkStream};

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::{Document, doc};
use mongodb::error::{Error as DriverError, ErrorKind, WriteFailure};
use mongodb::options::SelectionCriteria;
use mongodb::{Cursor, Database};
use tracing::{Instrument, Span};

use self::connection::Connections;

/// Name of the collection that holds the tenants.
pub const TENANTS: &str = "tenants";

/// What a database operation can end in, other than its result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer, or no primary: worth trying again. Whether a write was applied is unknown.
    #[error("MongoDB is unavailable ({operation}): {message}")]
    Unavailable { operation: &'static str, message: String },
    /// None of the servers can be used, each with what is known of it: worth trying again.
    #[error("MongoDB is unavailable ({operation}): no server can be used{}", listed(servers))]
    NoServer { operation: &'static str, servers: Vec<(String, String)> },
    /// No answer in time: the same, and perhaps it was too much at once.
    #[error("MongoDB is unavailable ({operation}): no answer within {limit:?}")]
    Late { operation: &'static str, limit: Duration },
    /// The server does not accept our credentials, or no longer: worth trying again with others.
    #[error("MongoDB refuses the user or password of MONGODB_URI ({operation}): {message}")]
    CredentialsRefused { operation: &'static str, message: String },
    /// The server answered, and refused.
    #[error("MongoDB refused {operation}: {message}")]
    Refused { operation: &'static str, message: String, code: Option<i32> },
    /// A document of the same value is there, in a field that is unique.
    #[error("MongoDB refused {operation}, because of the unique index {index}: {message}")]
    Duplicate { operation: &'static str, index: String, message: String },
    /// The collection's validator does not allow the document.
    #[error("MongoDB refused {operation}, because of the validator of the collection: {}", rules.join("; "))]
    Invalid { operation: &'static str, rules: Vec<String> },
}

/// Servers as part of a sentence.
fn listed(servers: &[(String, String)]) -> String {
    let each: Vec<_> = servers.iter().map(|(server, what)| format!("{server}: {what}")).collect();
    if each.is_empty() { String::new() } else { format!(": {}", each.join("; ")) }
}

impl StoreError {
    /// Whether nothing can be done for any tenant until the database works.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::NoServer { .. }
                | Self::Late { .. }
                | Self::CredentialsRefused { .. }
        )
    }

    /// Of a duplicate that was not found when it was looked for: that one is gone already if the index is ours,
    /// so that it is worth trying again.
    fn unless_raced(self) -> Self {
        match self {
            Self::Duplicate { operation, index, .. } if index.starts_with(indexes::OURS) => {
                let message = "the tenant came and went while it was written".to_owned();
                Self::Unavailable { operation, message }
            }
            other => other,
        }
    }
}

/// Why a server cannot be used at all. Waiting does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    #[error("the address of MongoDB cannot be used: {0}")]
    Uri(String),
    #[error(
        "the MongoDB server is a standalone, and only replica sets and sharded clusters have change \
         streams. A single node can be a replica set: start mongod with --replSet rs0 and run \
         rs.initiate() once"
    )]
    Standalone,
    #[error("the MongoDB server is version {0}; tenantry needs 6.0 or newer")]
    TooOld(String),
    #[error("{0}")]
    Schema(String),
}

/// How a start can fail: for good, or until the server answers.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Called with the name and content of each command sent to the server, for metrics and for counting in tests.
pub type CommandObserver = Arc<dyn Fn(&str, &Document) + Send + Sync>;

/// Called with the name of each command that the server answered, how long that took, and whether it worked.
pub type AnswerObserver = Arc<dyn Fn(&str, Duration, bool) + Send + Sync>;

/// Where the tenants live and how long an operation may take.
#[derive(Clone)]
pub struct StoreOptions {
    pub uri: String,
    pub database: String,
    /// Upper bound of any single operation, including finding a server.
    pub operation_timeout: Duration,
    pub max_connections: u32,
    pub on_command: Option<CommandObserver>,
    pub on_answer: Option<AnswerObserver>,
}

/// The tenants in MongoDB. Cheap to clone: clones share one connection pool.
#[derive(Clone)]
pub struct Store {
    connections: Arc<Connections>,
    timeout: Duration,
    clock: clock::Clock,
    /// On whose behalf changes are made.
    by: Option<String>,
    /// Whether a client waits for what becomes of them.
    waits: bool,
    backlog: history::Backlog,
    validator: Arc<Mutex<validator::Known>>,
}

impl Store {
    /// The same store, which notes with each change that this is who asked for it.
    #[must_use]
    pub fn on_behalf_of(&self, by: Option<String>) -> Self {
        Self { by, ..self.clone() }
    }

    /// The same store, which notes with each change whether a client waits for what becomes of it: such
    /// tenants come before others.
    #[must_use]
    pub fn for_one_who_waits(&self, waits: bool) -> Self {
        Self { waits, ..self.clone() }
    }

    /// Prepares a client; nothing is sent yet, so this works while the server is away.
    ///
    /// # Errors
    /// When the address cannot be parsed, or its SRV record cannot be resolved.
    pub async fn new(options: StoreOptions) -> Result<Self, Unsuitable> {
        let (connection, timeout) = (Connection::prepare(&options).await?, options.operation_timeout);
        Ok(Self::on(Connections::new(connection, Some(options)), timeout))
    }

    /// A store on a database that another program connected to.
    pub fn over(database: Database, operation_timeout: Duration) -> Self {
        Self::on(Connections::new(Connection::to(database), None), operation_timeout)
    }

    fn on(connections: Arc<Connections>, timeout: Duration) -> Self {
        Self {
            connections,
            timeout,
            clock: clock::Clock::default(),
            by: None,
            waits: false,
            backlog: history::Backlog::default(),
            validator: Arc::default(),
        }
    }

    /// Checks that the server can carry a controller, and creates what the collection needs.
    /// Idempotent: every start calls it, and so does the watch after the collection was dropped.
    ///
    /// # Errors
    /// [`Unsuitable`] when waiting would not help, [`StoreError`] when it may.
    pub async fn prepare(&self) -> Result<(), OpenError> {
        let hello = self.command("hello", doc! { "hello": 1 }).await?;
        let build = self.command("buildInfo", doc! { "buildInfo": 1 }).await?;
        suitable(&hello, build.get_str("version").unwrap_or("unknown"))?;
        self.ensure_schema().await?;
        self.remember_home().await?;
        self.ensure_history().await?;
        self.ensure_drift().await?;
        // What it says of it, it logs.
        self.rejection().await?;
        Ok(())
    }

    /// The server's time, as far as this process knows it: what it notes must bear that, because it is compared with it.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether a server is known that takes writes.
    pub fn is_up(&self) -> bool {
        self.servers.has_primary()
    }

    /// Ends the client's background work.
    pub async fn close(self) {
        self.client.clone().shutdown().immediate(true).await;
    }

    async fn command(&self, operation: &'static str, command: Document) -> Result<Document, StoreError> {
        let primary = SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary);
        let run = self.database.run_command(command).selection_criteria(primary);
        let reply = self.bounded(operation, run).await?;
        // Of a raw command the driver leaves that to us.
        match reply.get_document("writeConcernError") {
            Ok(error) => {
                let message = error.get_str("errmsg").unwrap_or("not acknowledged by the majority");
                Err(StoreError::Unavailable { operation, message: message.to_owned() })
            }
            Err(_) => Ok(reply),
        }
    }

    /// Reads all that a query finds, each document as it comes: parsed, it takes many times the room of what
    /// `read` makes of it.
    async fn read_all<T>(
        &self,
        operation: &'static str,
        find: impl IntoFuture<Output = Result<Cursor<Document>, DriverError>>,
        mut read: impl FnMut(&Document) -> T,
    ) -> Result<Vec<T>, StoreError> {
        let reading = async {
            let mut cursor = find.await?;
            let mut all = Vec::new();
            while let Some(document) = cursor.try_next().await? {
                all.push(read(&document));
            }
            Ok(all)
        };
        self.bounded(operation, reading).await
    }

    /// Runs one operation within the time limit. The driver itself would wait for ever on a
    /// connection that the network swallowed.
    async fn bounded<T>(
        &self,
        operation: &'static str,
        run: impl IntoFuture<Output = Result<T, DriverError>>,
    ) -> Result<T, StoreError> {
        // Of what nothing asked for, such as a due scan, there is no trace.
        let span = match Span::current().is_none() {
            true => Span::none(),
            false => tracing::debug_span!(
                "mongodb",
                otel.name = operation,
                otel.kind = "client",
                db.system.name = "mongodb",
                db.operation.name = operation,
            ),
        };
        let mut done = within(self.timeout, operation, run.into_future()).instrument(span).await;
        if let Err(StoreError::NoServer { servers, .. }) = &mut done {
            *servers = self.servers.known();
        }
        if matches!(&done, Err(StoreError::CredentialsRefused { .. })) {
            self.connections.refused.notify_one();
        }
        done
    }
}

/// Whether a server that greets like this, in this version, has what a controller needs.
fn suitable(hello: &Document, version: &str) -> Result<(), Unsuitable> {
    let sharded = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    if !sharded && !hello.contains_key("setName") {
        return Err(Unsuitable::Standalone);
    }
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < 6) {
        return Err(Unsuitable::TooOld(version.to_owned()));
    }
    Ok(())
}

async fn within<T>(
    limit: Duration,
    operation: &'static str,
    run: impl Future<Output = Result<T, DriverError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, run).await {
        Ok(result) => result.map_err(|error| classify(operation, &error)),
        Err(_) => Err(StoreError::Late { operation, limit }),
    }
}

/// Server codes that say "not now" rather than "not so": no primary, stepping down, shutting down,
/// interrupted, connection trouble behind a router.
const TRANSIENT_CODES: &[i32] =
    &[6, 7, 89, 91, 112, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436, 64, 50];

/// Authentication failed.
const AUTHENTICATION_FAILED: i32 = 18;
/// Something is not allowed; also what a user that was removed while it was connected is told.
const UNAUTHORIZED: i32 = 13;
const REMOVED: &str = "requires authentication";

const DUPLICATE_KEY: i32 = 11000;
/// The validator of the collection does not allow it.
const INVALID_DOCUMENT: i32 = 121;

/// What the server says of a document that a validator does not allow.
fn info_of(error: &DriverError) -> Option<Document> {
    if let ErrorKind::Write(WriteFailure::WriteError(write)) = error.kind.as_ref() {
        return write.details.clone();
    }
    let response = Document::try_from(error.server_response()?).ok()?;
    response.get_document("errInfo").ok().cloned()
}

/// The index that a duplicate was found in. Only the text says which: `… index: slug_1 dup key: …`.
fn index_of(message: &str) -> String {
    let index = message.split(" index: ").nth(1).and_then(|rest| rest.split(' ').next());
    index.unwrap_or("of unknown name").to_owned()
}

fn code_of(error: &DriverError) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        _ => None,
    }
}

fn classify(operation: &'static str, error: &DriverError) -> StoreError {
    let code = code_of(error);
    let unavailable = match error.kind.as_ref() {
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. }
        // Another connection has taken its place.
        | ErrorKind::Shutdown
        // A write that reached the primary but not the majority yet may still be rolled back.
        | ErrorKind::Write(WriteFailure::WriteConcernError(_)) => true,
        _ => code.is_some_and(|code| TRANSIENT_CODES.contains(&code)),
    };
    let message = without_labels(error);
    let refused = matches!(error.kind.as_ref(), ErrorKind::Authentication { .. })
        || code == Some(AUTHENTICATION_FAILED)
        || (code == Some(UNAUTHORIZED) && message.contains(REMOVED));
    if refused {
        StoreError::CredentialsRefused { operation, message }
    } else if matches!(error.kind.as_ref(), ErrorKind::ServerSelection { .. }) {
        StoreError::NoServer { operation, servers: Vec::new() }
    } else if code == Some(DUPLICATE_KEY) {
        StoreError::Duplicate { operation, index: index_of(&message), message }
    } else if code == Some(INVALID_DOCUMENT) {
        StoreError::Invalid { operation, rules: validator::rules(info_of(error).as_ref()) }
    } else if unavailable {
        StoreError::Unavailable { operation, message }
    } else {
        StoreError::Refused { operation, message, code }
    }
}

/// The driver's message without its topology dump, which is long, and useless to people.
fn without_labels(error: &DriverError) -> String {
    let text = error.kind.to_string();
    let text = text.split(" Topology: ").next().unwrap_or(&text);
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_change_streams_or_older_than_6_0_is_refused() {
        let (set, router, alone) =
            (doc! { "setName": "rs0" }, doc! { "msg": "isdbgrid" }, doc! { "ok": 1 });
        for version in ["6.0.5", "7.0.0-rc1", "10.1.0"] {
            assert_eq!(suitable(&set, version), Ok(()), "{version}");
            assert_eq!(suitable(&router, version), Ok(()), "{version}");
            assert_eq!(suitable(&alone, version), Err(Unsuitable::Standalone), "{version}");
        }
        for version in ["5.0.14", "4.4.0", "unknown", ""] {
            assert_eq!(suitable(&set, version), Err(Unsuitable::TooOld(version.into())), "{version}");
        }
    }
}
