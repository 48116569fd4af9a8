//! Why a command failed, and the exit code that tells scripts.

use std::fmt;

use serde_json::Value;

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
    message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// What a server's refusal means. `what` is the request, such as `PUT /stops/all`; `feature` is what
    /// a server that does not know the path lacks.
    pub fn refused(status: u16, body: &str, what: &str, feature: &str) -> Self {
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
        let exit = match status {
            401 | 403 => Exit::NotAuthorized,
            404 | 410 => Exit::NotFound,
            408 | 504 => Exit::Timeout,
            409 | 412 => Exit::Conflict,
            _ => Exit::Failed,
        };
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
                "\nGive a token: TENANTRY_TOKEN, TENANTRY_TOKEN_FILE, or TENANTRY_OIDC_TOKEN_URL with \
                 TENANTRY_OIDC_CLIENT_ID and TENANTRY_OIDC_CLIENT_SECRET",
            );
        }
        if status == 412 {
            message.push_str("\nRead it again (tenantry tenants get), and repeat what you still want");
        }
        Self::new(exit, message)
    }
}

/// Enough of something unexpected to recognise it.
fn start_of(body: &str) -> String {
    let line = body.lines().next().unwrap_or_default();
    if line.is_empty() { "nothing".into() } else { line.chars().take(120).collect() }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may quote an upstream; a terminal must not obey it.
        let printable = |c: char| if c == '\n' || !c.is_control() { c } else { ' ' };
        f.write_str(&self.message.chars().map(printable).collect::<String>())
    }
}

impl std::error::Error for Failure {}
