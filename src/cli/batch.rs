//! Requests for many tenants at once: so many at a time, told one by one in order.

use std::fmt;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::failure::{Exit, Failure};

/// Requests that are under way at a time.
const AT_ONCE: usize = 8;
/// How often a request is sent again that the server has no room for at the moment.
const ATTEMPTS: u32 = 30;
/// The longest that the server is believed to need.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Asks, and asks again when the server says that it is to be asked later.
///
/// # Errors
/// Every other refusal.
pub async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
    ask: impl Fn() -> F,
) -> Result<T, Failure> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match ask().await {
            Err(Failure { retry_after: Some(after), .. }) if left > 0 => {
                tokio::time::sleep(after.min(LONGEST_PAUSE)).await;
            }
            done => return done,
        }
    }
}

/// Does it for each, a few at a time, and tells what came of it in their order. What nothing can be done about, such
/// as a refused token, ends it: what was not begun is left.
///
/// # Errors
/// What the telling fails with.
pub async fn each<I, T, F>(
    what: &'static str,
    items: Vec<I>,
    todo: impl Fn(I) -> F,
    mut tell: impl FnMut(T) -> Result<Go, Failure>,
) -> Result<(), Failure>
where
    F: Future<Output = T>,
{
    let mut progress = Progress::of(what, items.len());
    let mut results = stream::iter(items).map(todo).buffered(AT_ONCE);
    while let Some(result) = results.next().await {
        progress.clear();
        if tell(result)? == Go::NoFurther {
            break;
        }
        progress.one_more();
    }
    progress.clear();
    Ok(())
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    On,
    NoFurther,
}

/// What failed of many, and the exit code for all of it.
#[derive(Debug, Default)]
pub struct Failures {
    pub count: usize,
    exit: Option<Exit>,
}

impl Failures {
    /// Notes one. Says whether others may fare better.
    pub fn note(&mut self, failure: &Failure) -> Go {
        self.count += 1;
        // Of several kinds there is no code but the general one.
        let same = self.exit.is_none_or(|exit| exit == failure.exit);
        self.exit = Some(if same { failure.exit } else { Exit::Failed });
        if failure.hopeless { Go::NoFurther } else { Go::On }
    }

    /// # Errors
    /// When there was one.
    pub fn ended(self, said: impl fmt::Display) -> Result<(), Failure> {
        self.exit.map_or(Ok(()), |exit| Err(Failure::new(exit, said.to_string())))
    }
}

/// A line that says how far it has come, on a terminal only.
pub struct Progress {
    what: &'static str,
    all: usize,
    done: usize,
    shown: bool,
    terminal: bool,
}

impl Progress {
    pub fn of(what: &'static str, all: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { what, all, done: 0, shown: false, terminal }
    }

    pub fn one_more(&mut self) {
        self.at(self.done + 1);
    }

    pub fn at(&mut self, done: usize) {
        self.done = done;
        if self.terminal {
            // There is no place left to tell that this failed.
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{} {done}/{}", self.what, self.all);
            self.shown = true;
        }
    }

    /// Makes room for a line.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}
