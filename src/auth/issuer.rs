//! One issuer that is trusted, and where its keys are.

use serde::Deserialize;
use url::Url;

/// An issuer, with the audiences of which a token must name one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerConfig {
    /// As its tokens say it in `iss`, byte for byte.
    pub issuer: String,
    /// Client ids, as a rule; never empty.
    pub audiences: Vec<String>,
    /// Where the keys are, for an issuer that has no discovery document.
    pub jwks_url: Option<Url>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIssuer {
    #[error("{0:?} is not an address that begins with https:// or http://")]
    Address(String),
    #[error("{0}: must not have a query, a fragment, a user name or a password")]
    Decorated(String),
    #[error("{0}: needs an audience; a token for another program must not be accepted")]
    NoAudience(String),
}

/// What a discovery document must say.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl IssuerConfig {
    /// # Errors
    /// When an address is none, or no audience is named.
    pub fn new(
        issuer: &str,
        audiences: Vec<String>,
        jwks_url: Option<&str>,
    ) -> Result<Self, InvalidIssuer> {
        address(issuer)?;
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err(InvalidIssuer::NoAudience(issuer.to_owned()));
        }
        let jwks_url = jwks_url.map(address).transpose()?;
        Ok(Self { issuer: issuer.to_owned(), audiences, jwks_url })
    }

    /// Where the discovery document is (OpenID Connect Discovery 1.0, section 4).
    pub(super) fn discovery_url(&self) -> Option<Url> {
        let base = self.issuer.trim_end_matches('/');
        Url::parse(&format!("{base}/.well-known/openid-configuration")).ok()
    }

    /// Where the keys are, by the discovery document.
    pub(super) fn read_discovery(&self, document: &[u8]) -> Result<Url, String> {
        let discovery: Discovery = serde_json::from_slice(document)
            .map_err(|error| format!("the discovery document cannot be read: {error}"))?;
        if discovery.issuer != self.issuer {
            return Err(format!(
                "the issuer calls itself {:?}, so that its tokens would not be accepted; configure it \
                 to the letter",
                discovery.issuer
            ));
        }
        let url = address(&discovery.jwks_uri)
            .map_err(|error| format!("the discovery document's jwks_uri is wrong: {error}"))?;
        if self.issuer.starts_with("https:") && url.scheme() != "https" {
            return Err(format!(
                "the issuer has https but its keys are at {url}: they could come from any server"
            ));
        }
        Ok(url)
    }
}

fn address(text: &str) -> Result<Url, InvalidIssuer> {
    let wrong = || InvalidIssuer::Address(text.to_owned());
    let url = Url::parse(text).map_err(|_| wrong())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong());
    }
    if url.query().is_some() || url.fragment().is_some() || url.password().is_some() {
        return Err(InvalidIssuer::Decorated(url.host_str().unwrap_or_default().to_owned()));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discovery_must_name_the_issuer_to_the_letter_and_stay_on_https() {
        let issuer = "https://id.acme.test/application/o/portal/";
        let config = IssuerConfig::new(issuer, vec!["portal".into()], None).unwrap();
        let path = "application/o/portal/.well-known/openid-configuration";
        assert_eq!(config.discovery_url().unwrap().as_str(), format!("https://id.acme.test/{path}"));
        let document = |issuer: &str, keys: &str| {
            let text = format!("{{\"issuer\":{issuer:?},\"jwks_uri\":{keys:?}}}");
            config.read_discovery(text.as_bytes())
        };
        assert!(document(issuer, "https://id.acme.test/jwks/").is_ok());
        let without_slash = document(issuer.trim_end_matches('/'), "https://id.acme.test/jwks/");
        assert!(without_slash.unwrap_err().contains("calls itself"));
        assert!(document(issuer, "http://id.acme.test/jwks/").unwrap_err().contains("https"));
        assert!(config.read_discovery(b"<html>").unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn an_issuer_without_an_audience_is_a_mistake() {
        for audiences in [vec![], vec![String::new()]] {
            let wrong = IssuerConfig::new("https://id.acme.test/", audiences, None).unwrap_err();
            assert!(matches!(wrong, InvalidIssuer::NoAudience(_)), "{wrong}");
        }
    }
}
