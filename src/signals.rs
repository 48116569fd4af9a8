//! What signals do to the process.
//!
//! * SIGINT and SIGTERM ask for a clean end; another one ends the process at once. Two within a second are
//!   one request: `timeout` and some supervisors signal both the process and its group.
//! * SIGHUP means that a terminal went away. `dev` and `sim` end then, unless they were started to outlive
//!   it (`nohup`). `run` reads the files of its settings again (see `run::reload`).

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::terminal::say;

/// Signals closer together than this are one request.
const TOGETHER: Duration = Duration::from_secs(1);

/// Cancels `shutdown` when the process is asked to end.
///
/// # Errors
/// When the system does not let the process listen to signals.
pub fn end_on_request(shutdown: CancellationToken) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut first = None::<Instant>;
        loop {
            let number = tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
            };
            // Before anything is said: a log that cannot be written must not keep the process alive.
            shutdown.cancel();
            match first {
                None => {
                    first = Some(Instant::now());
                    tell("ending; once more to end at once");
                }
                Some(first) if first.elapsed() < TOGETHER => {}
                Some(_) => {
                    tell("ended at once; leases that are held will expire by themselves");
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "a person asked to end without a shutdown"
                    )]
                    std::process::exit(128 + number);
                }
            }
        }
    });
    Ok(())
}

/// Cancels `shutdown` when the terminal goes away.
///
/// # Errors
/// When the system does not let the process listen to signals.
#[cfg(feature = "dev")]
pub fn end_with_the_terminal(shutdown: CancellationToken) -> io::Result<()> {
    if hangups_are_ignored() {
        return Ok(());
    }
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        hangup.recv().await;
        shutdown.cancel();
    });
    Ok(())
}

/// Whether the process was started with SIGHUP ignored. Only Linux tells.
#[cfg(feature = "dev")]
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (SignalKind::hangup().as_raw_value() - 1) & 1 == 1
}

/// In the log where there is one, so that its form is kept.
fn tell(what: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::info!("{what}");
    } else {
        say(format_args!("tenantry: {what}"));
    }
}
