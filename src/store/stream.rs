//! One change stream on one collection, as two commands: `aggregate` and `getMore`.
//!
//! # Why not the driver's change stream
//!
//! It resumes by itself, at once and without a limit, so that a server whose `getMore` keeps failing
//! is asked thousands of times a second. Here an error ends the stream, and how soon the next one is
//! opened is the caller's decision.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{SelectionCriteria, ServerAddress};
use mongodb::{ClientSession, ServerType};

use super::{Store, StoreError, within};

/// How long the server holds a `getMore` open for an event to come.
const AWAIT: Duration = Duration::from_secs(10);

/// Why a stream ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// It may be resumed where it was.
    #[error("{0}")]
    Interrupted(StoreError),
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
        let open = doc! { "aggregate": collection, "pipeline": pipeline, "cursor": {} };
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
            token: resume,
            first: Vec::new(),
        };
        stream.first = stream.batch(&reply);
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
        let more = doc! {
            "getMore": self.cursor,
            "collection": self.collection,
            "maxTimeMS": i64::try_from(AWAIT.as_millis()).unwrap_or(i64::MAX),
        };
        let run = self
            .store
            .database
            .run_command(more)
            .selection_criteria(self.selection.clone())
            .session(&mut self.session);
        let reply = within(AWAIT + self.store.timeout, "read change stream", run.into_future())
            .await
            .map_err(interrupted)?;
        Ok(Some(self.batch(&reply)))
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

    fn batch(&mut self, reply: &Document) -> Vec<Document> {
        let empty = Document::new();
        let cursor = reply.get_document("cursor").unwrap_or(&empty);
        self.cursor = cursor.get_i64("id").unwrap_or_default();
        if let Some(token) = cursor.get("postBatchResumeToken") {
            self.token = Some(ResumeToken(token.clone()));
        }
        let events = cursor.get_array("nextBatch").or_else(|_| cursor.get_array("firstBatch"));
        let events = events.map(Vec::as_slice).unwrap_or_default();
        events.iter().filter_map(Bson::as_document).cloned().collect()
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
