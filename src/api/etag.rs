//! Versions of a tenant's desired state, as entity tags, and the conditions that name them.
//!
//! A tag changes with each change of the *desired* state, by whichever writer, and with nothing else: an edit
//! must not fail because the controller recorded meanwhile how the last one went. So it is no use to a
//! cache, and answers say `no-store`.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::problem::Problem;
use super::representation::{Probes, TenantView};
use crate::store::Record;
use crate::tenant::{DeletionPolicy, Desired, Tenant, Upstream};

/// Bytes of the digest in a tag; with the generation before it, chance never makes two alike.
const DIGEST: usize = 8;

/// The tag with its quotes.
fn tag(tenant: &Tenant) -> String {
    // All of it by name, so that none can be forgotten.
    let Desired { name, domain, storage_bytes, services, paused, adopt, deletion } = &tenant.desired;
    let text = json!([
        tenant.id.to_string(),
        name.as_str(),
        domain.as_ref().map(|domain| domain.as_str()),
        storage_bytes,
        Upstream::ALL.map(|step| services.has(step)),
        paused,
        adopt,
        deletion.map(DeletionPolicy::name),
    ])
    .to_string();
    let digest = Sha256::digest(text);
    let digest: String = digest.iter().take(DIGEST).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{}-{digest}\"", tenant.generation)
}

/// One tenant as a body, with its tag. An invalid document has no version.
pub fn single(record: &Record) -> impl IntoResponse + use<> {
    versioned(record, TenantView::from(record))
}

/// The same, with until when its steps wait that wait for an upstream.
pub fn single_now(record: &Record, probes: &Probes) -> impl IntoResponse + use<> {
    versioned(record, TenantView::now(record, probes))
}

fn versioned(record: &Record, view: TenantView) -> Response {
    let mut response = Json(view).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Record::Tenant(tenant) = record
        && let Ok(tag) = HeaderValue::try_from(tag(tenant))
    {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// What `If-Match` or `If-None-Match` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`
    Any,
    /// With their quotes, and `W/` before the weak ones.
    These(Vec<String>),
}

impl Tags {
    /// Whether they can hold of nothing: a weak tag equals none by strong comparison.
    pub fn are_weak(&self) -> bool {
        match self {
            Self::Any => false,
            Self::These(tags) => tags.iter().all(|tag| tag.starts_with("W/")),
        }
    }

    /// Whether one of them is this tenant's, by strong comparison (RFC 9110, section 8.8.3.2).
    pub fn hold(&self, record: &Record) -> bool {
        match (self, record) {
            (Self::Any, _) => true,
            (Self::These(tags), Record::Tenant(tenant)) => tags.contains(&tag(tenant)),
            (Self::These(_), Record::Invalid(_)) => false,
        }
    }
}

/// The conditions under which a request is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    pub if_match: Option<Tags>,
    /// `If-None-Match: *`: only if there is none yet.
    pub if_absent: bool,
}

impl Conditions {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let if_absent = match tags(headers, "if-none-match")? {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::These(_)) => {
                return Err(Problem::bad_request(
                    "of If-None-Match only * is understood here: create it, do not replace it",
                ));
            }
        };
        Ok(Self { if_match: tags(headers, "if-match")?, if_absent })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(&parts.headers)
    }
}

/// All lines of the header, as one list.
fn tags(headers: &HeaderMap, name: &str) -> Result<Option<Tags>, Problem> {
    let malformed = || {
        let detail = format!("{name} must be * or entity tags such as ETag gives them, quotes and all");
        Problem::bad_request(detail)
    };
    let mut found = None;
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| malformed())?.trim();
        let tags = found.get_or_insert_with(Vec::new);
        if text == "*" {
            tags.push("*".to_owned());
        } else {
            read_tags(text, tags).ok_or_else(malformed)?;
        }
    }
    match found {
        None => Ok(None),
        Some(tags) if tags == ["*"] => Ok(Some(Tags::Any)),
        Some(tags) if tags.is_empty() || tags.iter().any(|tag| tag == "*") => Err(malformed()),
        Some(tags) => Ok(Some(Tags::These(tags))),
    }
}

/// `None` when it is no list of tags.
fn read_tags(text: &str, into: &mut Vec<String>) -> Option<()> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(());
        }
        let (weak, quoted) = rest.strip_prefix("W/").map_or(("", rest), |quoted| ("W/", quoted));
        let opaque = quoted.strip_prefix('"')?;
        let end = opaque.find('"')?;
        if opaque[..end].bytes().any(|byte| !byte.is_ascii_graphic()) {
            return None;
        }
        into.push(format!("{weak}\"{}\"", &opaque[..end]));
        rest = opaque[end + 1..].trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn if_match(lines: &[&str]) -> Result<Option<Tags>, Problem> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::IF_MATCH, HeaderValue::from_str(line).unwrap());
        }
        tags(&headers, "if-match")
    }

    #[test]
    fn conditions_are_read_as_rfc_9110_writes_them() {
        assert_eq!(if_match(&[]).unwrap(), None);
        assert_eq!(if_match(&[" * "]).unwrap(), Some(Tags::Any));
        let these = |tags: &[&str]| Some(Tags::These(tags.iter().map(|tag| (*tag).into()).collect()));
        assert_eq!(if_match(&["\"1-ab\""]).unwrap(), these(&["\"1-ab\""]));
        let three = if_match(&["\"a,b\" , W/\"c\"", ",\"\""]).unwrap();
        assert_eq!(three, these(&["\"a,b\"", "W/\"c\"", "\"\""]));
        for wrong in ["", ",", "1-ab", "\"a", "\"a\"\"b\"", "W/a", "*, \"a\"", "\"a b\"", "\u{e4}"] {
            assert!(if_match(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
