//! What a token endpoint says (RFC 6749), for every client of one.

use std::time::Duration;

use reqwest::StatusCode;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

/// What a token endpoint's answer means, for every client of one.
pub enum TokenAnswer {
    Granted {
        token: SecretString,
        life: Option<Duration>,
    },
    /// In OAuth's words: why, as far as it is safe to show.
    Refused {
        why: String,
    },
    /// It is the answer of no token endpoint.
    WrongAddress,
    /// An error inside the issuer.
    Failed,
    /// Of a token endpoint, but without a token.
    Odd,
}

impl TokenAnswer {
    /// Any refusal of a token endpoint is JSON with an `error` (RFC 6749, section 5.2), which many servers
    /// also answer where nothing is, then with 404 or 405. Authentik answers a POST to another path with 403
    /// and a page, to its own path without the slash with an empty 405, and to an error inside it with the
    /// same 405 (all observed).
    pub fn read(status: StatusCode, body: &[u8], endpoint: &Url) -> Self {
        #[derive(Deserialize)]
        struct Granted {
            access_token: String,
            expires_in: Option<u64>,
        }
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
            error_description: Option<String>,
        }
        let json = |body| serde_json::from_slice::<serde_json::Value>(body).ok();
        if status == StatusCode::OK {
            return match serde_json::from_slice::<Granted>(body) {
                Ok(granted) if !granted.access_token.is_empty() => Self::Granted {
                    token: SecretString::from(granted.access_token),
                    life: granted.expires_in.map(Duration::from_secs),
                },
                _ if json(body).is_some() => Self::Odd,
                _ => Self::WrongAddress,
            };
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Self::Failed;
        }
        let nothing = matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        if !nothing && let Ok(Refusal { error, error_description }) = serde_json::from_slice(body) {
            return Self::Refused { why: error_description.unwrap_or(error) };
        }
        let inside = status == StatusCode::METHOD_NOT_ALLOWED && body.is_empty();
        if inside && endpoint.path().ends_with('/') { Self::Failed } else { Self::WrongAddress }
    }
}

/// For people whose address leads to no token endpoint.
pub fn no_token_endpoint(endpoint: &Url) -> String {
    format!(
        "That is not how a token endpoint answers: is {endpoint} the issuer's, with its final slash if it \
         has one (Authentik's ends with /application/o/token/)?"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        /// Whatever a server answers, and only a 200 with a token gives one.
        #[test]
        fn any_bytes_are_an_answer(status in 100u16..600, body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let status = StatusCode::from_u16(status).unwrap();
            let endpoint = Url::parse("https://id.acme.test/application/o/token/").unwrap();
            let answer = TokenAnswer::read(status, &body, &endpoint);
            prop_assert!(!matches!(answer, TokenAnswer::Granted { .. }), "no token was in it");
            prop_assert_eq!(
                matches!(answer, TokenAnswer::Failed),
                status.is_server_error()
                    || status == StatusCode::TOO_MANY_REQUESTS
                    || (status == StatusCode::METHOD_NOT_ALLOWED && body.is_empty())
            );
        }

        #[test]
        fn a_token_is_granted_by_a_200_alone(status in 100u16..600, token in "[a-z]{1,9}", life in any::<Option<u32>>()) {
            let status = StatusCode::from_u16(status).unwrap();
            let endpoint = Url::parse("https://id.acme.test/token").unwrap();
            let body = serde_json::json!({ "access_token": token, "expires_in": life }).to_string();
            let answer = TokenAnswer::read(status, body.as_bytes(), &endpoint);
            prop_assert_eq!(matches!(answer, TokenAnswer::Granted { .. }), status == StatusCode::OK);
        }
    }
}
