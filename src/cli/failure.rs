//! Why a command failed, and the exit code that tells scripts.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use url::Url;

use super::printable::in_line;
use crate::http::{challenged, page};

/// Exit codes. 2, for a wrong command line, is clap's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    NotAuthorized = 5,
    Timeout = 6,
    Changes = 7,
}

/// What is said on standard error.
#[derive(Debug, Clone)]
pub struct Failure {
    pub exit: Exit,
    /// The server asks to be asked again after so long.
    pub retry_after: Option<Duration>,
    /// Other requests fare the same.
    pub hopeless: bool,
    message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        let hopeless = exit == Exit::NotAuthorized;
        Self { exit, retry_after: None, hopeless, message: message.into() }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The same, about what it is.
    #[must_use]
    pub fn of(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same, and what else the person should know.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.message.push_str(more);
        self
    }

    /// What a server's refusal means. `what` is the request, such as `PUT /stops/all`, which was sent to
    /// `url`; `feature` is what a server that does not know the path lacks.
    pub fn refused(status: u16, body: &str, what: &str, url: &Url, feature: &str) -> Self {
        if status == 407 {
            return Self::failed(format!("{what}: {}", challenged(url)));
        }
        let exit = match status {
            401 | 403 => Exit::NotAuthorized,
            404 | 410 => Exit::NotFound,
            408 | 504 => Exit::Timeout,
            409 | 412 => Exit::Conflict,
            _ => Exit::Failed,
        };
        if let Some(page) = page(body.as_bytes(), url) {
            // Nothing that is there or not there was asked.
            let exit = if exit == Exit::NotFound { Exit::Failed } else { exit };
            return Self::new(exit, no_api(what, &format!("{status} with {page}")));
        }
        let problem: Value = serde_json::from_str(body).unwrap_or(Value::Null);
        let text = |field: &str| problem[field].as_str().unwrap_or_default();
        let detail = text("detail");
        let unknown_path =
            status == 404 && (problem.is_null() || detail.starts_with("there is nothing at"));
        if status == 405 || unknown_path {
            return Self::failed(format!(
                "this server has no {feature} ({what} answered {status}). Is it older than this tenantry, \
                 or is TENANTRY_URL another server's address?"
            ));
        }
        let mut message = match (text("title"), detail) {
            ("", _) => format!("{what} answered {status}: {}", start_of(body)),
            (title, "") => title.to_owned(),
            (title, detail) => format!("{title}: {detail}"),
        };
        for error in problem["errors"].as_array().into_iter().flatten() {
            let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            message.push_str(&format!("\n  {}: {}", part("field"), part("message")));
        }
        if status == 401 {
            message.push_str(
                "\nLog in (tenantry login), or give a token: TENANTRY_TOKEN, TENANTRY_TOKEN_FILE, or TENANTRY_OIDC_TOKEN_URL with \
                 TENANTRY_OIDC_CLIENT_ID and TENANTRY_OIDC_CLIENT_SECRET",
            );
        }
        if status == 412 {
            message.push_str("\nRead it again (tenantry tenants get), and repeat what you still want");
        }
        Self::new(exit, message)
    }
}

/// For an answer that no API of ours gives.
pub fn no_api(what: &str, answered: &str) -> String {
    format!("{what} was answered {answered}: is TENANTRY_URL the API's own address?")
}

/// Enough of something unexpected to recognise it.
fn start_of(body: &str) -> String {
    let line = body.lines().next().unwrap_or_default();
    if line.is_empty() { "nothing".into() } else { line.chars().take(120).collect() }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may quote an upstream.
        let lines: Vec<_> = self.message.split('\n').map(in_line).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Failure {}

/// What could not be printed whole.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(format!("the output is not whole: {error}"))
    }
}
