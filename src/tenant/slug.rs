//! The tenant's name for machines.

use std::fmt;
use std::str::FromStr;

/// A DNS label (RFC 1123): 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or
/// digit. Unique over all tenants, and never changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slug(String);

impl Slug {
    pub const MAX_LEN: usize = 63;
    /// The same rule as a regular expression, for the collection's validator.
    pub const PATTERN: &'static str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the API has a word of its own in this place of its paths, `/tenants/watch`: a tenant of this slug
    /// could not be named there.
    pub fn is_reserved(&self) -> bool {
        self.0 == "watch"
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSlug {
    #[error("must not be empty")]
    Empty,
    #[error("must be at most {} characters", Slug::MAX_LEN)]
    TooLong,
    #[error("may hold only lower-case letters, digits and '-'")]
    Character,
    #[error("must begin and end with a letter or digit")]
    Hyphen,
}

impl FromStr for Slug {
    type Err = InvalidSlug;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        match text.as_bytes() {
            [] => Err(InvalidSlug::Empty),
            bytes if !bytes.iter().all(|b| ok(*b)) => Err(InvalidSlug::Character),
            bytes if bytes.len() > Self::MAX_LEN => Err(InvalidSlug::TooLong),
            [b'-', ..] | [.., b'-'] => Err(InvalidSlug::Hyphen),
            _ => Ok(Self(text.to_owned())),
        }
    }
}
