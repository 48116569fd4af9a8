//! The address that an API is at, and addresses below it.

use std::fmt;

use url::Url;

/// An upstream's address with any path prefix, always ending in a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(Url);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBaseUrl {
    #[error("is not a URL: {0}")]
    Syntax(url::ParseError),
    #[error("must begin with http:// or https://")]
    Scheme,
    #[error("must not hold a user name or password; give credentials in their own settings")]
    Credentials,
    #[error("must not have a query or fragment")]
    Query,
}

impl BaseUrl {
    /// Parses an address; a trailing `suffix` (such as `api/v3`) that people copy along with it is
    /// understood and removed.
    pub fn parse(text: &str, suffix: &str) -> Result<Self, InvalidBaseUrl> {
        let mut url = Url::parse(text.trim()).map_err(InvalidBaseUrl::Syntax)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidBaseUrl::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidBaseUrl::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidBaseUrl::Query);
        }
        let path = url.path().trim_end_matches('/');
        let path = match path.strip_suffix(suffix.trim_matches('/')) {
            Some(rest) if !suffix.is_empty() && rest.ends_with('/') => rest.trim_end_matches('/'),
            _ => path,
        };
        let path = format!("{path}/");
        url.set_path(&path);
        Ok(Self(url))
    }

    /// The address of a path below it; each segment is escaped.
    pub fn join(&self, segments: &[&str]) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn an_address_keeps_its_path_prefix_and_loses_only_the_api_suffix() {
        for (given, group) in [
            ("https://id.acme.test", "https://id.acme.test/api/v3/core/groups/"),
            ("https://acme.test/auth/", "https://acme.test/auth/api/v3/core/groups/"),
            ("https://acme.test/auth", "https://acme.test/auth/api/v3/core/groups/"),
            ("https://acme.test/auth/api/v3/", "https://acme.test/auth/api/v3/core/groups/"),
            ("http://acme.test:9000/api/v3", "http://acme.test:9000/api/v3/core/groups/"),
            ("http://acme.test/myapi/v3", "http://acme.test/myapi/v3/api/v3/core/groups/"),
        ] {
            let base = BaseUrl::parse(given, "api/v3").unwrap();
            assert_eq!(base.join(&["api", "v3", "core", "groups", ""]).as_str(), group, "{given}");
        }
    }

    #[test]
    fn an_address_with_credentials_query_or_another_scheme_is_refused() {
        for (given, error) in [
            ("ftp://acme.test", InvalidBaseUrl::Scheme),
            ("https://user@acme.test", InvalidBaseUrl::Credentials),
            ("https://acme.test/?a=b", InvalidBaseUrl::Query),
        ] {
            assert_eq!(BaseUrl::parse(given, "").unwrap_err(), error, "{given}");
        }
    }

    #[test]
    fn a_path_segment_cannot_escape_from_its_place() {
        let base = BaseUrl::parse("http://acme.test/", "").unwrap();
        assert_eq!(base.join(&["a", "../b?c", ""]).as_str(), "http://acme.test/a/..%2Fb%3Fc/");
    }

    proptest! {
        /// Whatever an operator writes: it is refused, or an address that means the same when it is read again.
        #[test]
        fn what_is_taken_for_an_address_stays_one(text in "(https?://)?[ -~]{0,40}", segment in "\\PC{0,12}") {
            if let Ok(base) = BaseUrl::parse(&text, "api/v3") {
                let again = BaseUrl::parse(&base.to_string(), "");
                prop_assert_eq!(again.as_ref(), Ok(&base));
                let below = base.join(&["a", &segment, "b"]);
                prop_assert!(below.as_str().starts_with(&base.to_string()), "{below} is not below {base}");
            }
        }
    }
}
