//! How often a credential that an upstream refuses may be tried: what each process keeps to by itself, and
//! all of them together.

use std::time::Duration;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TryLimits {
    /// No more than so many in so long.
    pub few: (usize, Duration),
    /// After so many in so long, `rarely`.
    pub many: (usize, Duration),
    pub rarely: Duration,
}

impl TryLimits {
    /// For every upstream: half of what Stalwart bans an address for.
    pub const DEFAULT: Self = Self {
        few: (3, Duration::from_secs(600)),
        many: (50, Duration::from_secs(86_400)),
        rarely: Duration::from_secs(3_600),
    };
}
