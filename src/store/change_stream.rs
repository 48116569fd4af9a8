//! One change stream on one collection, as two commands: `aggregate` and `getMore`.
//!
//! # Why not the driver's change stream
//!
//! It resumes by itself, at once and without a limit, so that a server whose `getMore` keeps failing
//! is asked thousands of times a second. Here an error ends the stream, and how soon the next one is
//! opened is the caller's decision.
//!
//! # Bounds
//!
//! * Memory: a reply has at most [`BATCH`] events. Without that the server fills replies of 16 MiB, and a
//!   parsed reply takes many times its size.
//! * Time: opening answers at once. Going on from an earlier place does not: the server answers when it has
//!   found an event or read all that was written since, of all databases. That has the time limit of any
//!   operation, and [`WatchError::Slow`] says that it was not enough.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{SelectionCriteria, ServerAddress};
use mongodb::{ClientSession, ServerType};

use super::collection::simple_document;
use super::{Store, StoreError, within};

/// How long the server holds a `getMore` open for an event to come.
const AWAIT: Duration = Duration::from_secs(10);
/// Events in one reply.
const BATCH: i32 = 100;

/// Why a stream ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// It may be resumed where it was.
    #[error("{0}")]
    Interrupted(StoreError),
    /// It did not get from where it was to the next event in time. Another try may take as long.
    #[error("the change stream does not catch up: {0}")]
    Slow(StoreError),
    /// Events were missed, or cannot be read: open a new stream and ask the database.
    #[error("the change stream cannot be resumed: {0}")]
    Unresumable(StoreError),
}

/// Where a stream was, for the next one to go on from.
#[derive(Debug, Clone)]
pub struct ResumeToken(Bson);

/// An open change stream.
pub(super) struct ChangeStream {
    store: Store,
    collection: &'static str,
    session: ClientSession,
    selection: SelectionCriteria,
    cursor: i64,
    token: Option<ResumeToken>,
    first: Vec<Document>,
}

/// Codes after which a resume token is of no more use: history lost, fatal, invalid token, an event
/// beyond the size limit.
const UNRESUMABLE: &[i32] = &[286, 280, 260, 10334, 136];

fn interrupted(error: StoreError) -> WatchError {
    match &error {
        StoreError::Refused { code: Some(code), .. } if UNRESUMABLE.contains(code) => {
            WatchError::Unresumable(error)
        }
        StoreError::Late { .. } => WatchError::Slow(error),
        _ => WatchError::Interrupted(error),
    }
}

impl ChangeStream {
    /// Opens a stream of changes from now on, or from where an earlier one was. The server runs `stages`
    /// on every event; `options` are those of the stage `$changeStream`.
    pub async fn open(
        store: &Store,
        collection: &'static str,
        options: Document,
        stages: Vec<Document>,
        resume: Option<ResumeToken>,
    ) -> Result<Self, WatchError> {
        let start = store.client.start_session();
        let mut session =
            store.bounded("start session", start).await.map_err(WatchError::Interrupted)?;
        let selection = one_server();
        let mut stage = options;
        if let Some(ResumeToken(token)) = &resume {
            stage.insert("resumeAfter", token.clone());
        }
        let mut pipeline = vec![doc! { "$changeStream": stage }];
        pipeline.extend(stages);
        // A first batch of none: otherwise the server looks for events before it answers.
        let open = doc! { "aggregate": collection, "pipeline": pipeline, "cursor": { "batchSize": 0 },
        "collation": simple_document() };
        let run =
            store.database.run_command(open).selection_criteria(selection.clone()).session(&mut session);
        let opened = store.bounded("open change stream", run).await;
        let reply = opened.map_err(|error| match error {
            // Whatever the server has against it, it has against the token.
            StoreError::Refused { .. } if resume.is_some() => WatchError::Unresumable(error),
            _ => interrupted(error),
        })?;
        let mut stream = Self {
            store: store.clone(),
            collection,
            session,
            selection,
            cursor: 0,
            token: resume.clone(),
            first: Vec::new(),
        };
        stream.first = stream.batch(reply);
        if resume.is_some() && stream.cursor != 0 {
            stream.first = stream.more(Duration::from_millis(1), store.timeout).await?;
        }
        Ok(stream)
    }

    /// Where the stream is. Moves on even while nothing happens.
    pub fn token(&self) -> Option<ResumeToken> {
        self.token.clone()
    }

    /// The next events; empty when nothing happened for a while, `None` when the collection is gone.
    ///
    /// Not cancel-safe: after dropping the future, open a new stream from the last token.
    pub async fn next(&mut self) -> Result<Option<Vec<Document>>, WatchError> {
        if !self.first.is_empty() {
            return Ok(Some(std::mem::take(&mut self.first)));
        }
        if self.cursor == 0 {
            return Ok(None);
        }
        self.more(AWAIT, AWAIT + self.store.timeout).await.map(Some)
    }

    /// Events that there are, or that come within `wait`.
    async fn more(&mut self, wait: Duration, limit: Duration) -> Result<Vec<Document>, WatchError> {
        let more = doc! {
            "getMore": self.cursor,
            "collection": self.collection,
            "batchSize": BATCH,
            "maxTimeMS": i64::try_from(wait.as_millis()).unwrap_or(i64::MAX),
        };
        let run = self
            .store
            .database
            .run_command(more)
            .selection_criteria(self.selection.clone())
            .session(&mut self.session);
        let reply = within(limit, "read change stream", run.into_future()).await.map_err(interrupted)?;
        Ok(self.batch(reply))
    }

    /// Ends the stream on the server too.
    pub async fn close(mut self) {
        if self.cursor != 0 {
            let kill = doc! { "killCursors": self.collection, "cursors": [self.cursor] };
            let run = self
                .store
                .database
                .run_command(kill)
                .selection_criteria(self.selection.clone())
                .session(&mut self.session);
            // The server drops idle cursors by itself; this is mere tidiness.
            let _ = self.store.bounded("close change stream", run).await;
        }
    }

    /// Takes the reply apart: what it holds is not there twice.
    fn batch(&mut self, mut reply: Document) -> Vec<Document> {
        let Some(Bson::Document(mut cursor)) = reply.remove("cursor") else { return Vec::new() };
        self.cursor = cursor.get_i64("id").unwrap_or_default();
        if let Some(token) = cursor.remove("postBatchResumeToken") {
            self.token = Some(ResumeToken(token));
        }
        let events = cursor.remove("nextBatch").or_else(|| cursor.remove("firstBatch"));
        let Some(Bson::Array(events)) = events else { return Vec::new() };
        let event = |event| if let Bson::Document(event) = event { Some(event) } else { None };
        events.into_iter().filter_map(event).collect()
    }
}

/// Selects the primary, or always the same router: a cursor lives on one server.
fn one_server() -> SelectionCriteria {
    let router: Arc<OnceLock<ServerAddress>> = Arc::default();
    SelectionCriteria::Predicate(Arc::new(move |server| match server.server_type() {
        ServerType::RsPrimary => true,
        ServerType::Mongos => router.get_or_init(|| server.address().clone()) == server.address(),
        _ => false,
    }))
}
