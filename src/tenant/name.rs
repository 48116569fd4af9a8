//! The tenant's name for people.

use std::fmt;
use std::str::FromStr;

use icu_properties::CodePointSetData;
use icu_properties::props::{BidiControl, DefaultIgnorableCodePoint, WhiteSpace};

/// 1 to 200 characters, surrounding blanks removed, no control characters (Authentik answers its
/// "405 trap" to a NUL, and none belongs in a name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantName(String);

impl TenantName {
    pub const MAX_CHARS: usize = 200;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether people can see and read it. Of a document that has another name all the same, nothing fails.
    ///
    /// # Errors
    /// The character that is at fault, by its code point.
    pub fn check_legible(&self) -> Result<(), IllegibleName> {
        for c in self.0.chars() {
            if matches!(c, '\u{2028}' | '\u{2029}') {
                return Err(IllegibleName::LineBreak(c));
            }
            if reorders(c) {
                return Err(IllegibleName::Reordering(c));
            }
        }
        match self.0.chars().next() {
            Some(first) if self.0.chars().all(is_invisible) => Err(IllegibleName::Invisible(first)),
            _ => Ok(()),
        }
    }
}

/// Embeddings, overrides and isolates, which change the order of what stands around them. The marks, which only
/// say in which direction they themselves run, are needed in some languages.
fn reorders(c: char) -> bool {
    let mark = matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}');
    CodePointSetData::new::<BidiControl>().contains(c) && !mark
}

fn is_invisible(c: char) -> bool {
    // An empty Braille pattern is a blank to everyone but Unicode.
    c == '\u{2800}'
        || CodePointSetData::new::<WhiteSpace>().contains(c)
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
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

/// Why a name cannot be given to a tenant, though a document may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegibleName {
    #[error("must hold a character that people can see; {} is none", code_point(*.0))]
    Invisible(char),
    #[error("must not hold {}, which reorders the text around it", code_point(*.0))]
    Reordering(char),
    #[error("must not hold {}, which breaks the line", code_point(*.0))]
    LineBreak(char),
}

fn code_point(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str) -> Result<(), String> {
        let name: TenantName = name.parse().expect("documents may have it");
        name.check_legible().map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_that_cannot_be_seen_is_illegible_and_says_which_character_is_at_fault() {
        for (name, code_point) in [
            ("\u{200b}", "U+200B"),
            ("\u{feff}\u{2060}", "U+FEFF"),
            ("\u{3164}", "U+3164"),
            ("\u{ad} \u{ad}", "U+00AD"),
            ("\u{2800}", "U+2800"),
            ("\u{e0041}", "U+E0041"),
        ] {
            let error = check(name).expect_err(code_point);
            assert!(error.contains("people can see") && error.contains(code_point), "{error}");
        }
    }

    #[test]
    fn a_name_that_reorders_or_breaks_the_text_around_it_is_illegible() {
        for c in ['\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}'] {
            let error = check(&format!("Acme{c}emcA")).expect_err("it reorders");
            assert!(
                error.contains("reorders") && error.contains(&format!("U+{:04X}", u32::from(c))),
                "{error}"
            );
        }
        assert!(check("Acme\u{2028}GmbH").expect_err("it breaks").contains("U+2028"));
    }

    #[test]
    fn names_of_all_languages_are_legible_with_the_joiners_and_marks_that_they_need() {
        for name in ["Bücher & Söhne", "שלום\u{200f}!", "می\u{200c}خواهم", "👩\u{200d}🚀", "株式会社"]
        {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }
}
