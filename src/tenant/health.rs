//! How an upstream is, as far as this process knows.

use super::Reason;

/// The health of one integration, for `/readyz` and the metrics. `None` is "not known yet".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamHealth {
    /// Whether it answers.
    pub reachable: Option<bool>,
    /// Whether it accepts our credentials.
    pub authenticated: Option<bool>,
    /// The release, where it says so.
    pub version: Option<String>,
    /// Permissions that our account lacks, by the upstream's own names.
    pub lacks: Vec<String>,
    /// What is wrong, and what mends it. Never a secret.
    pub problem: Option<(Reason, String)>,
}

impl UpstreamHealth {
    /// Whether nothing is known to be wrong.
    pub fn is_healthy(&self) -> bool {
        self.problem.is_none() && self.authenticated == Some(true)
    }
}
