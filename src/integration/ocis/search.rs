//! Looking for drives among all of them.
//!
//! oCIS lists everything at once, a kilobyte a drive, without pages, and ignores nearly every filter
//! (observed). So a list is read as a stream; searches that come while one list is being read share the
//! next one; and for a while the marks that a list showed are remembered, which answers for tenants that
//! most likely have nothing. There are never as many lists as tenants.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::drive::Drive;
use super::list_reader::{Element, ListReader};
use super::{DRIVES, refused};
use crate::http::Broken;
use crate::integration::Error;
use crate::integration::asked;
use crate::integration::upstream::{Call, Purpose, UpstreamClient};
use crate::metrics::Operation;
use crate::tenant::{Reason, Slug, TenantId};

/// The only filter that works for lists (observed). A disabled space is listed too.
const PROJECTS: [(&str, &str); 1] = [("$filter", "driveType eq 'project'")];

/// Who is looked for: by recorded id, by mark, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub tenant: TenantId,
    pub id: Option<String>,
    /// Also what a tenant of this slug released.
    pub released_by: Option<Slug>,
}

impl Wanted {
    fn is(&self, drive: &Drive) -> bool {
        self.id.as_ref() == Some(&drive.id)
            || drive.marks().name(self.tenant)
            || self.released_by.as_ref().is_some_and(|slug| drive.was_released_by(slug))
    }
}

type Found = Result<Vec<Drive>, Error>;

fn is_project(drive: &Drive) -> bool {
    drive.drive_type == "project"
}

/// Answers searches with as few lists as can be. Clones share them.
#[derive(Clone)]
pub struct Search {
    upstream: Arc<UpstreamClient>,
    /// The longest between two pieces of a list.
    patience: Duration,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    searches: Vec<(Option<Wanted>, oneshot::Sender<Found>)>,
    listing: bool,
    /// The tenants whose marks the latest list showed, and those of our own creates since.
    marked: Option<Marked>,
    /// Those whose spaces were made while the current list is being read.
    made: Vec<TenantId>,
}

struct Marked {
    begun: Instant,
    tenants: HashSet<TenantId>,
}

/// How long a list answers for tenants that most likely have no space.
const REMEMBERED: Duration = Duration::from_secs(60);

impl Search {
    pub fn new(upstream: Arc<UpstreamClient>, patience: Duration) -> Self {
        Self { upstream, patience, waiting: Arc::default() }
    }

    /// The project spaces that are wanted, by a list that was begun after this call.
    pub async fn find(&self, wanted: Wanted) -> Found {
        self.list(Some(wanted)).await
    }

    /// Whether a list that is not older than a minute showed a space with the tenant's mark. For tenants
    /// of which nothing is known, such as a whole fleet that is taken over: each of them would otherwise
    /// cost a list of all the others.
    ///
    /// `check` says whether a list that was just read can be believed.
    pub async fn shows(
        &self,
        tenant: TenantId,
        check: impl Future<Output = Result<(), Error>>,
    ) -> Result<bool, Error> {
        if let Some(shown) = self.remembers(tenant) {
            return Ok(shown);
        }
        self.list(None).await?;
        check.await?;
        // Forgotten already only if it took longer than it is remembered.
        Ok(self.remembers(tenant).unwrap_or(true))
    }

    /// We made a space for this tenant.
    pub fn made(&self, tenant: TenantId) {
        let mut waiting = self.lock();
        if let Some(marked) = &mut waiting.marked {
            marked.tenants.insert(tenant);
        }
        if waiting.listing {
            waiting.made.push(tenant);
        }
    }

    fn remembers(&self, tenant: TenantId) -> Option<bool> {
        let waiting = self.lock();
        let marked = waiting.marked.as_ref().filter(|marked| marked.begun.elapsed() < REMEMBERED)?;
        Some(marked.tenants.contains(&tenant))
    }

    async fn list(&self, wanted: Option<Wanted>) -> Found {
        let (answer, answered) = oneshot::channel();
        let begin = {
            let mut waiting = self.lock();
            waiting.searches.push((wanted, answer));
            !std::mem::replace(&mut waiting.listing, true)
        };
        if begin {
            // It serves others as well, so it does not end with the search that began it.
            tokio::spawn(self.clone().serve());
        }
        let found = answered.await;
        // The list was asked for this tenant too, though by a task of its own.
        if found
            .as_ref()
            .is_ok_and(|found| found.as_ref().map_or_else(|error| !error.failure.parked, |_| true))
        {
            asked::note();
        }
        found.unwrap_or_else(|_| {
            let message = "ocis: find space: the list was given up".to_owned();
            Err(Error::transient(Reason::UnexpectedAnswer, message))
        })
    }

    /// Lists for as long as a search waits.
    async fn serve(self) {
        loop {
            let searches = {
                let mut waiting = self.lock();
                waiting.listing = !waiting.searches.is_empty();
                waiting.made.clear();
                std::mem::take(&mut waiting.searches)
            };
            if searches.is_empty() {
                return;
            }
            let begun = Instant::now();
            let mut tenants = HashSet::new();
            let mut found = vec![Vec::new(); searches.len()];
            let listed = self
                .each_project(Operation::FindSpace, |drive| {
                    tenants.extend(drive.marks().tenants());
                    for ((wanted, _), found) in searches.iter().zip(&mut found) {
                        if wanted.as_ref().is_some_and(|wanted| wanted.is(&drive)) {
                            found.push(drive.clone());
                        }
                    }
                })
                .await;
            if listed.is_ok() {
                self.remember(Marked { begun, tenants });
            }
            for ((_, answer), found) in searches.into_iter().zip(found) {
                let found = listed.clone().map(|()| found).map_err(|error| error.for_everybody());
                // The run that asked may be gone.
                let _ = answer.send(found);
            }
        }
    }

    fn remember(&self, mut marked: Marked) {
        let mut waiting = self.lock();
        marked.tenants.extend(waiting.made.drain(..));
        let begun = marked.begun;
        waiting.marked = Some(marked);
        drop(waiting);
        // An idle controller remembers nothing.
        let waiting = Arc::clone(&self.waiting);
        tokio::spawn(async move {
            tokio::time::sleep_until((begun + REMEMBERED).into()).await;
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.marked.as_ref().is_some_and(|marked| marked.begun == begun) {
                waiting.marked = None;
            }
        });
    }

    /// Reads the list of all project spaces, holding one of them at a time. An error means that there
    /// may be others. One that cannot be understood is passed on with its fault.
    pub async fn each_project(
        &self,
        operation: Operation,
        mut each: impl FnMut(Drive),
    ) -> Result<(), Error> {
        let call = Call::get(operation, &DRIVES).query(&PROJECTS).without_time_limit();
        let opened = tokio::time::timeout(self.patience, self.upstream.open(&call));
        let broken = |broken| self.upstream.broken(&call, Purpose::Read, broken);
        let opened = opened.await.map_err(|_| broken(Broken::Timeout.into()))?;
        let mut list = match opened? {
            Ok(list) => list,
            Err(answer) => return Err(refused(&self.upstream, &call, Purpose::Read, answer)),
        };
        let odd = |error| {
            let message = format!("{}: the list cannot be read: {error}", self.upstream.what(&call));
            Error::transient(Reason::UnexpectedAnswer, message)
        };
        let mut reader = ListReader::default();
        loop {
            let piece = tokio::time::timeout(self.patience, list.chunk()).await;
            let piece = piece.map_err(|_| broken(Broken::Timeout.into()))?.map_err(broken)?;
            match piece {
                Some(piece) => reader
                    .feed(&piece, |element| match element {
                        // The filter works, but that is the server's word.
                        Element::Known(drive) if is_project(&drive) => each(drive),
                        Element::Known(_) => {}
                        Element::Odd(element, why) => {
                            let drive = Drive::of_odd(&element, why.clone());
                            self.upstream.skipped(&call, &drive.id, &why);
                            if drive.drive_type.is_empty() || is_project(&drive) {
                                each(drive);
                            }
                        }
                    })
                    .map_err(odd)?,
                None => return reader.finish().map_err(odd),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
