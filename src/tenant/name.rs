//! The tenant's name for people.

use std::fmt;
use std::str::FromStr;

/// 1 to 200 characters, surrounding blanks removed, no control characters (Authentik answers its
/// "405 trap" to a NUL, and none belongs in a name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantName(String);

impl TenantName {
    pub const MAX_CHARS: usize = 200;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTenantName {
    #[error("must not be blank")]
    Blank,
    #[error("must be at most {} characters", TenantName::MAX_CHARS)]
    TooLong,
    #[error("must not hold control characters")]
    Control,
}

impl FromStr for TenantName {
    type Err = InvalidTenantName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            Err(InvalidTenantName::Blank)
        } else if text.chars().count() > Self::MAX_CHARS {
            Err(InvalidTenantName::TooLong)
        } else if text.chars().any(char::is_control) {
            Err(InvalidTenantName::Control)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}
