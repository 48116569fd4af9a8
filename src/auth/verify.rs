//! What a token must be to be believed. The signature is the `jsonwebtoken` crate's to check; this says
//! which one, and checks the claims: that crate knows neither all names of algorithms (RFC 9864) nor which claim
//! was of a wrong type.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Refusal;
use super::issuer::IssuerConfig;
use super::keys::Key;

/// Public keys only: with HMAC every program that can check can also forge, and a provider without a signing key
/// falls back to it (observed with Authentik). `EdDSA` and `Ed25519` are two names of one (RFC 9864).
const ALGORITHMS: [(&str, Algorithm); 7] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
    ("Ed25519", Algorithm::EdDSA),
];
/// By which the issuer's clock and ours may differ, in seconds.
const LEEWAY: f64 = 10.0;

/// The algorithm of this name, if it is one that tokens may be signed with.
pub fn algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS.into_iter().find_map(|(known, algorithm)| (known == name).then_some(algorithm))
}

/// A token as it is written, of which nothing is verified yet.
pub struct Token<'a> {
    pub issuer: String,
    pub key_id: Option<String>,
    pub algorithm: Algorithm,
    /// Of the header: what it says to be.
    r#type: Option<String>,
    /// What is signed.
    message: &'a str,
    signature: &'a str,
    claims: Map<String, Value>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Value,
    #[serde(default)]
    typ: Value,
    crit: Option<Value>,
}

fn part<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// Looks at a token without believing it.
pub fn look(token: &str) -> Result<Token<'_>, Refusal> {
    let unreadable = || {
        let names = ALGORITHMS.map(|(name, _)| name).join(", ");
        Refusal::invalid(format!("the token is not a JWT that is signed with one of {names}"))
    };
    let (message, signature) = token.rsplit_once('.').ok_or_else(unreadable)?;
    let (header, claims) = message.split_once('.').ok_or_else(unreadable)?;
    let Header { alg, kid, typ, crit } = part(header).ok_or_else(unreadable)?;
    // `none` is none of them.
    let algorithm = algorithm(&alg).ok_or_else(unreadable)?;
    if crit.is_some() {
        return Err(Refusal::invalid("the token has critical extensions, which are not understood"));
    }
    let claims: Map<String, Value> = part(claims).ok_or_else(unreadable)?;
    let issuer = match claims.get("iss") {
        Some(Value::String(issuer)) => issuer.clone(),
        _ => return Err(Refusal::invalid("the token does not name its issuer")),
    };
    let text = |value: Value| value.as_str().map(ToOwned::to_owned);
    Ok(Token { issuer, key_id: text(kid), algorithm, r#type: text(typ), message, signature, claims })
}

/// The claims, if the token is good. One of `keys` must have signed it.
pub fn verify(
    token: Token<'_>,
    keys: &[Key],
    config: &IssuerConfig,
) -> Result<Map<String, Value>, Refusal> {
    let Token { algorithm, message, signature, .. } = token;
    let signed = |key: &Key| {
        key.suits(algorithm)
            && jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.decoding, algorithm)
                .unwrap_or(false)
    };
    if !keys.iter().any(signed) {
        return Err(Refusal::invalid("the token's signature is wrong"));
    }
    #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
    let now = jsonwebtoken::get_current_timestamp() as f64;
    check_claims(&token.claims, config, now).map_err(Refusal::invalid)?;
    match kind(token.r#type.as_deref(), &token.claims) {
        Ok(()) => Ok(token.claims),
        Err(what) => Err(Refusal::invalid(format!("this is {what}; send the access token"))),
    }
}

/// A time of the claims, in seconds since 1970; it may have a fraction (RFC 7519, section 2).
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, String> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .filter(|time| time.is_finite())
            .map(Some)
            .ok_or_else(|| format!("the token's claim {name} must be a number of seconds")),
    }
}

/// What must be true of a token whose issuer is known. Everything but `nbf` and `iat` is required.
fn check_claims(claims: &Map<String, Value>, config: &IssuerConfig, now: f64) -> Result<(), String> {
    if claims.get("iss").and_then(Value::as_str) != Some(&config.issuer) {
        return Err("the token is of another issuer".into());
    }
    let expires = time(claims, "exp")?.ok_or("the token lacks the claim exp")?;
    let (not_before, issued) = (time(claims, "nbf")?, time(claims, "iat")?);
    let ours = |audience: &str| config.audiences.iter().any(|configured| configured == audience);
    let is_for_us = match claims.get("aud") {
        None | Some(Value::Null) => return Err("the token lacks the claim aud".into()),
        Some(Value::String(audience)) => ours(audience),
        Some(Value::Array(audiences)) if audiences.iter().all(Value::is_string) => {
            audiences.iter().filter_map(Value::as_str).any(ours)
        }
        Some(_) => return Err("the token's claim aud must be a text or a list of texts".into()),
    };
    if expires < now - LEEWAY {
        return Err("the token has expired".into());
    }
    if not_before.is_some_and(|not_before| not_before > now + LEEWAY) {
        return Err("the token is not valid yet".into());
    }
    if issued.is_some_and(|issued| issued > now + LEEWAY) {
        return Err("the token was issued in the future: does a clock go wrong?".into());
    }
    if !is_for_us {
        return Err(
            "the token is for another audience; its aud must hold one that is configured here".into()
        );
    }
    if claims.get("sub").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("the token does not say whose it is (sub)".into());
    }
    Ok(())
}

/// Whether a token is one for access; else what it is.
///
/// It says so itself, or not: in the header (`at+jwt`, RFC 9068; `logout+jwt`), or in a claim (`typ` of
/// Keycloak's tokens). Otherwise it shows: an ID token can have the key, the issuer and the audience of an access
/// token, and lacks a scope, which all access tokens of current issuers have, and the client that it was issued
/// to. Some issuers give ID tokens an `azp` as well; then what only an ID token has tells it.
fn kind(header: Option<&str>, claims: &Map<String, Value>) -> Result<(), String> {
    let id_token = || "an ID token, which tells a client about its user".to_owned();
    let said = claims.get("typ").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    let header = header.unwrap_or_default().to_ascii_lowercase();
    let header = header.strip_prefix("application/").unwrap_or(&header);
    match (header, said.as_str()) {
        (_, "id") => return Err(id_token()),
        (_, "refresh" | "offline") => {
            return Err("a refresh token, which is for the issuer alone".into());
        }
        (_, "logout") | ("logout+jwt", _) => return Err("a logout token".into()),
        ("at+jwt", _) | ("jwt" | "", "bearer") => return Ok(()),
        ("jwt" | "", _) => {}
        (other, _) => return Err(format!("a token of the type {other:?}")),
    }
    let has = |name: &str| claims.contains_key(name);
    // `appid` is Entra's, in tokens of version 1.
    let issued_to_a_client = has("azp") || has("client_id") || has("appid");
    let answers_a_login = has("nonce") || has("at_hash") || has("c_hash");
    if has("scope") || has("scp") || issued_to_a_client && !answers_a_login {
        Ok(())
    } else {
        Err(id_token())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> IssuerConfig {
        IssuerConfig::new("https://id.acme.test/", vec!["tenantry".into()], None).unwrap()
    }

    #[test]
    fn an_id_token_is_known_by_what_it_lacks_or_by_what_only_it_has() {
        for (claims, access) in [
            (json!({ "azp": "portal", "scope": "openid" }), true),
            (json!({ "azp": "portal" }), true),
            (json!({ "client_id": "portal" }), true),
            (json!({ "appid": "portal" }), true),
            (json!({ "scope": "openid", "nonce": "n" }), true),
            (json!({}), false),
            (json!({ "nonce": "n", "at_hash": "h" }), false),
            (json!({ "azp": "portal", "at_hash": "h" }), false),
        ] {
            assert_eq!(kind(None, claims.as_object().unwrap()).is_ok(), access, "{claims}");
            assert_eq!(kind(Some("JWT"), claims.as_object().unwrap()).is_ok(), access, "{claims}");
        }
    }

    #[test]
    fn what_a_token_says_to_be_comes_before_what_it_looks_like() {
        let like_access = json!({ "azp": "portal", "scope": "openid" });
        for (header, said, expected) in [
            ("at+jwt", Value::Null, Ok(())),
            ("application/AT+JWT", Value::Null, Ok(())),
            ("JWT", json!("Bearer"), Ok(())),
            ("JWT", json!("ID"), Err("an ID token")),
            ("at+jwt", json!("ID"), Err("an ID token")),
            ("JWT", json!("Refresh"), Err("a refresh token")),
            ("JWT", json!("Offline"), Err("a refresh token")),
            ("JWT", json!("Logout"), Err("a logout token")),
            ("logout+jwt", Value::Null, Err("a logout token")),
            ("dpop+jwt", Value::Null, Err("dpop+jwt")),
        ] {
            let mut claims = like_access.clone();
            claims["typ"] = said.clone();
            let found = kind(Some(header), claims.as_object().unwrap());
            match (&found, expected) {
                (Ok(()), Ok(())) => {}
                (Err(what), Err(words)) => assert!(what.contains(words), "{header} {said}: {what}"),
                _ => panic!("{header} {said}: {found:?}"),
            }
        }
        let bare = json!({});
        assert_eq!(kind(Some("at+jwt"), bare.as_object().unwrap()), Ok(()), "without azp, too");
    }

    #[test]
    fn a_claim_of_a_wrong_type_is_named_as_such() {
        let good = json!({
            "iss": "https://id.acme.test/", "aud": "tenantry", "sub": "anna", "exp": 1_000.5, "iat": 900, "nbf": 900,
        });
        assert_eq!(check_claims(good.as_object().unwrap(), &config(), 950.0), Ok(()));
        for (claim, value) in [
            ("exp", json!("1000")),
            ("iat", json!("900")),
            ("nbf", json!([900])),
            ("aud", json!(7)),
            ("aud", json!(["tenantry", 7])),
        ] {
            let mut claims = good.clone();
            claims[claim] = value.clone();
            let error = check_claims(claims.as_object().unwrap(), &config(), 950.0).unwrap_err();
            assert!(error.contains(&format!("claim {claim} must be")), "{claim} {value}: {error}");
        }
        for (claim, words) in
            [("exp", "lacks the claim exp"), ("aud", "lacks the claim aud"), ("sub", "whose")]
        {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(claim);
            let error = check_claims(claims.as_object().unwrap(), &config(), 950.0).unwrap_err();
            assert!(error.contains(words), "{claim}: {error}");
        }
    }
}
