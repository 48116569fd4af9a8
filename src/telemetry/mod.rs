//! Logs: for people on a terminal, JSON otherwise; and [`traces`].

pub mod traces;

use std::backtrace::Backtrace;
use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, reload};

use self::traces::Traces;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    Human,
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err("must be auto, human or json"),
        }
    }
}

/// Which lines are logged: a level, and others for modules.
///
/// [`Targets`] takes every word that is no level for the name of a module, and then logs nothing else.
/// Here a level is one of the closed list, and a module comes with its level.
#[derive(Debug, Clone)]
pub struct LogFilter {
    targets: Targets,
    /// As it was written.
    text: String,
}

/// Why a filter was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownLevel {
    #[error("{0:?} is no level; the levels are error, warn, info, debug, trace and off")]
    Level(String),
    #[error("{0:?} is no module; write it like tenantry::store=debug")]
    Module(String),
    #[error("two levels for everything, {0:?} and {1:?}; give one")]
    Twice(String, String),
}

const LEVELS: [(&str, LevelFilter); 7] = [
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("warning", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
    ("off", LevelFilter::OFF),
];

fn level(text: &str) -> Result<LevelFilter, UnknownLevel> {
    let known = LEVELS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text.trim()));
    known.map(|(_, level)| level).ok_or_else(|| UnknownLevel::Level(text.to_owned()))
}

impl FromStr for LogFilter {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut targets, mut everything) = (Targets::new(), None);
        for part in text.split(',') {
            match part.split_once('=') {
                None => {
                    if let Some((before, _)) = everything.replace((part, level(part)?)) {
                        return Err(UnknownLevel::Twice(before.to_owned(), part.to_owned()));
                    }
                }
                Some((module, its_level)) => {
                    let module = module.trim();
                    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                    if module.is_empty() || !module.chars().all(is_path) {
                        return Err(UnknownLevel::Module(module.to_owned()));
                    }
                    targets = targets.with_target(module, level(its_level)?);
                }
            }
        }
        let everything = everything.map_or(LevelFilter::INFO, |(_, level)| level);
        Ok(Self { targets: targets.with_default(everything), text: text.trim().to_owned() })
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self { targets: Targets::new().with_default(LevelFilter::INFO), text: "info".to_owned() }
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The filter in force, and how another takes its place.
struct InForce {
    filter: Mutex<LogFilter>,
    put: Box<dyn Fn(Targets) -> bool + Send + Sync>,
}

static IN_FORCE: OnceLock<InForce> = OnceLock::new();

/// Which lines are logged now; nothing where logs were set up by another program.
pub fn filter() -> Option<LogFilter> {
    let in_force = IN_FORCE.get()?;
    Some(in_force.filter.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Logs these lines from now on. Returns whether that could be done.
pub fn set_filter(filter: LogFilter) -> bool {
    let Some(in_force) = IN_FORCE.get() else { return false };
    let mut now = in_force.filter.lock().unwrap_or_else(PoisonError::into_inner);
    let put = (in_force.put)(filter.targets.clone());
    if put {
        *now = filter;
    }
    put
}

/// Sends the process's logs, panics included, to standard error, and its spans to where traces go. Later calls
/// have no effect.
pub fn init(format: LogFormat, filter: LogFilter, traces: Option<&Traces>) {
    let terminal = std::io::stderr().is_terminal();
    let human = match format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    // What went wrong with a write would be written to the same place, by a macro that panics.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let (targets, handle) = reload::Layer::new(filter.targets.clone());
    let registry = tracing_subscriber::registry().with(traces.map(Traces::layer));
    let installed = if human {
        let lines = lines.with_ansi(terminal).with_target(false);
        registry.with(lines.with_filter(targets)).try_init()
    } else {
        // The list of spans holds the current one.
        let lines = lines.json().flatten_event(true).with_current_span(false).with_target(true);
        registry.with(lines.with_filter(targets)).try_init()
    };
    if installed.is_err() {
        tracing::debug!("logging was set up already");
        return;
    }
    let put = Box::new(move |targets| handle.reload(targets).is_ok());
    let _ = IN_FORCE.set(InForce { filter: Mutex::new(filter), put });
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        tracing::error!(%backtrace, "a fault in tenantry: {panic}");
    }));
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn filter(text: &str) -> Targets {
        text.parse::<LogFilter>().unwrap_or_else(|error| panic!("{text:?}: {error}")).targets
    }

    #[test]
    fn a_level_holds_for_everything_and_a_module_may_have_its_own() {
        for text in ["warn", "WARNING", "tenantry::store=debug,warn"] {
            assert_eq!(filter(text).default_level(), Some(LevelFilter::WARN), "{text}");
        }
        let more = filter("tenantry::store=debug");
        assert_eq!(more.default_level(), Some(LevelFilter::INFO), "the rest is not silenced");
        assert!(more.would_enable("tenantry::store::lease", &Level::DEBUG));
        assert!(!more.would_enable("tenantry::api", &Level::DEBUG));
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_with_the_list_of_levels() {
        for text in
            ["inof", "verbose", "none", "info,", "\"info\"", "", "tenantry::store", "a=inof", "3"]
        {
            let error = text.parse::<LogFilter>().expect_err(text).to_string();
            assert!(error.contains("error, warn, info, debug, trace"), "{text}: {error}");
        }
        assert!(matches!("a b=info".parse::<LogFilter>(), Err(UnknownLevel::Module(_))));
        assert!(matches!("info,debug".parse::<LogFilter>(), Err(UnknownLevel::Twice(..))));
    }
}
