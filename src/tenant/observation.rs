//! What a look at a resource saw.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;

use super::{Reason, StepDesired};

/// A field of a resource: what it was seen to be, and what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The upstream's name of it.
    pub name: Cow<'static, str>,
    pub observed: String,
    pub desired: String,
}

impl Field {
    pub fn new(name: &'static str, observed: impl Into<String>, desired: impl Into<String>) -> Self {
        Self { name: name.into(), observed: observed.into(), desired: desired.into() }
    }

    pub fn differs(&self) -> bool {
        self.observed != self.desired
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (shortened(&self.observed), shortened(&self.desired));
        write!(f, "{} from {from:?} to {to:?}", self.name)
    }
}

/// The longest text of an upstream that is shown or recorded whole, in characters: people can write megabytes
/// into a description.
const LONGEST: usize = 400;

/// A text without its middle, if it is long. Our marks are at the ends.
pub fn shortened(text: &str) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= LONGEST {
        return text.into();
    }
    let head = text.chars().take(LONGEST / 2);
    let tail = text.chars().skip(length - LONGEST / 2);
    head.chain(" … ".chars()).chain(tail).collect::<String>().into()
}

/// A look at a step's resource that changed nothing, because it was not to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    pub at: Timestamp,
    /// The desired state that it was compared with.
    pub against: StepDesired,
    pub found: Found,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is no such resource.
    Missing,
    /// All its fields that matter, those that match among them.
    Fields(Vec<Field>),
    /// It could not be seen.
    Failed { reason: Reason, message: String },
}

impl fmt::Display for Found {
    /// What differs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is none"),
            Self::Failed { message, .. } => f.write_str(message),
            Self::Fields(fields) => {
                let differing: Vec<_> =
                    fields.iter().filter(|field| field.differs()).map(ToString::to_string).collect();
                f.write_str(&differing.join("; "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_ends() {
        assert_eq!(shortened("ä".repeat(400).as_str()), "ä".repeat(400));
        let long = format!("head{}[tenantry 1]", "ä".repeat(1_000_000));
        let short = shortened(&long);
        assert!(short.starts_with("headä") && short.ends_with("ä[tenantry 1]"), "{short}");
        assert_eq!(short.chars().count(), 403);
    }
}
