//! What a token must be to be believed. The signature is the `jsonwebtoken` crate's to check; this says
//! what it checks, and checks what it does not.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, dangerous, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Refusal;
use super::issuer::IssuerConfig;
use super::keys::Key;

/// Public keys only: with HMAC whoever can check can also forge, and a provider without a signing key
/// falls back to it (observed with Authentik).
const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// By which the issuer's clock and ours may differ, in seconds.
const LEEWAY: u64 = 10;

/// What a token says of itself, not verified; only good for finding the key.
pub struct Claim {
    pub issuer: String,
    pub key_id: Option<String>,
    algorithm: Algorithm,
}

#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

/// Looks at a token without believing it.
pub fn look(token: &str) -> Result<Claim, Refusal> {
    let unreadable = || {
        Refusal::invalid(
            "the token is not a JWT that is signed with RS256, RS384, RS512, ES256, ES384 or EdDSA",
        )
    };
    // `none` is no algorithm, and fails here.
    let Header { alg, kid, crit, .. } = decode_header(token).map_err(|_| unreadable())?;
    if !ALGORITHMS.contains(&alg) {
        return Err(unreadable());
    }
    if crit.is_some() {
        return Err(Refusal::invalid("the token has critical extensions, which are not understood"));
    }
    let Issuer { iss } = dangerous::insecure_decode_claims(token)
        .map_err(|_| Refusal::invalid("the token does not name its issuer"))?;
    Ok(Claim { issuer: iss, key_id: kid, algorithm: alg })
}

/// The claims, if the token is good.
pub fn verify(
    token: &str,
    claim: &Claim,
    key: &Key,
    config: &IssuerConfig,
) -> Result<Map<String, Value>, Refusal> {
    if !key.suits(claim.algorithm) {
        return Err(Refusal::invalid("the token's algorithm is not the one of its key"));
    }
    let mut validation = Validation::new(claim.algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[&config.issuer]);
    validation.set_audience(&config.audiences);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let decoded = decode::<Map<String, Value>>(token, &key.decoding, &validation);
    let claims = decoded.map_err(|error| Refusal::invalid(reason(error.kind())))?.claims;

    if claims.get("sub").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(Refusal::invalid("the token does not say whose it is (sub)"));
    }
    let now = jsonwebtoken::get_current_timestamp();
    #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
    let latest = now.saturating_add(LEEWAY) as f64;
    if claims.get("iat").is_some_and(|iat| iat.as_f64().is_none_or(|iat| iat > latest)) {
        return Err(Refusal::invalid("the token was issued in the future: does a clock go wrong?"));
    }
    if !is_for_access(&claims) {
        return Err(Refusal::invalid(
            "this is an ID token, which tells a client about its user; send the access token",
        ));
    }
    Ok(claims)
}

/// An ID token can have the key, the issuer and the audience of an access token. It shows by what it lacks:
/// a scope, which all access tokens of current issuers have, and `azp`. Some issuers give ID tokens an
/// `azp` as well; then what only an ID token has tells it.
fn is_for_access(claims: &Map<String, Value>) -> bool {
    let has = |name: &str| claims.contains_key(name);
    let issued_to_a_client = has("azp") || has("client_id");
    let answers_a_login = has("nonce") || has("at_hash") || has("c_hash");
    has("scope") || has("scp") || issued_to_a_client && !answers_a_login
}

fn reason(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::ExpiredSignature => "the token has expired".into(),
        ErrorKind::ImmatureSignature => "the token is not valid yet".into(),
        ErrorKind::InvalidAudience => {
            "the token is for another audience; its aud must hold one that is configured here".into()
        }
        ErrorKind::InvalidIssuer => "the token is of another issuer".into(),
        ErrorKind::MissingRequiredClaim(claim) => format!("the token lacks the claim {claim}"),
        ErrorKind::InvalidClaimFormat(claim) => format!("the token's claim {claim} makes no sense"),
        ErrorKind::InvalidSignature => "the token's signature is wrong".into(),
        _ => "the token cannot be verified".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_token_is_known_by_what_it_lacks_or_by_what_only_it_has() {
        for (claims, access) in [
            (json!({ "azp": "portal", "scope": "openid" }), true),
            (json!({ "azp": "portal" }), true),
            (json!({ "client_id": "portal" }), true),
            (json!({ "scope": "openid", "nonce": "n" }), true),
            (json!({}), false),
            (json!({ "nonce": "n", "at_hash": "h" }), false),
            (json!({ "azp": "portal", "at_hash": "h" }), false),
        ] {
            assert_eq!(is_for_access(claims.as_object().unwrap()), access, "{claims}");
        }
    }
}
