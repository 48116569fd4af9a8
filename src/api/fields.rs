//! Reads a request body field by field, so that one answer names everything that is wrong with it.

use std::fmt::Display;
use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, rejection::BytesRejection};
use axum::http::header;
use serde_json::{Map, Value};

use super::MAX_BODY;
use super::problem::{FieldError, Problem};
use crate::store::NewTenant;
use crate::tenant::{Desired, Services, StepKind};

/// A JSON object being read. Fields are taken out; what is left at the end is unknown.
struct Fields {
    path: String,
    left: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    fn new(object: Map<String, Value>) -> Self {
        Self { path: String::new(), left: object, errors: Vec::new() }
    }

    fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.errors.push(FieldError { field: format!("{}{field}", self.path), message: message.into() });
    }

    /// `null` is the same as absent.
    fn take(&mut self, field: &str) -> Option<Value> {
        self.left.remove(field).filter(|value| !value.is_null())
    }

    fn text<T: FromStr<Err: Display>>(&mut self, field: &str) -> Option<T> {
        match self.take(field)? {
            Value::String(text) => match text.parse() {
                Ok(value) => return Some(value),
                Err(error) => self.wrong(field, error.to_string()),
            },
            _ => self.wrong(field, "must be a string"),
        }
        None
    }

    fn required_text<T: FromStr<Err: Display>>(&mut self, field: &str) -> Option<T> {
        if self.left.get(field).is_none_or(Value::is_null) {
            self.left.remove(field);
            self.wrong(field, "is required");
            return None;
        }
        self.text(field)
    }

    fn flag(&mut self, field: &str) -> Option<bool> {
        match self.take(field)? {
            Value::Bool(on) => return Some(on),
            _ => self.wrong(field, "must be true or false"),
        }
        None
    }

    fn object<T>(&mut self, field: &str, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match self.take(field)? {
            Value::Object(object) => {
                let path = format!("{}{field}.", self.path);
                let mut inner = Self { path, left: object, errors: Vec::new() };
                let value = read(&mut inner);
                self.errors.extend(inner.finish());
                Some(value)
            }
            _ => {
                self.wrong(field, "must be an object");
                None
            }
        }
    }

    /// Everything that was wrong, unknown fields included.
    fn finish(mut self) -> Vec<FieldError> {
        let unknown: Vec<_> = self.left.keys().cloned().collect();
        for field in unknown {
            self.wrong(&field, "is not a field of a tenant");
        }
        self.errors
    }
}

fn read_new_tenant(object: Map<String, Value>) -> Result<NewTenant, Vec<FieldError>> {
    let mut fields = Fields::new(object);
    let slug = fields.required_text("slug");
    let name = fields.required_text("name");
    let domain = fields.text("domain");
    let storage_bytes = fields.object("quota", |quota| {
        let value = quota.take("storageBytes")?;
        let bytes = value.as_i64().filter(|bytes| *bytes >= 0);
        if bytes.is_none() {
            quota.wrong("storageBytes", format!("must be a whole number from 0 to {}", i64::MAX));
        }
        bytes
    });
    let services = fields.object("services", |services| {
        Services::new(|step: StepKind| match services.take(step.name()) {
            None => true,
            Some(Value::Bool(on)) => on,
            Some(_) => {
                services.wrong(step.name(), "must be true or false");
                true
            }
        })
    });
    let (paused, adopt) = (fields.flag("paused"), fields.flag("adopt"));
    let errors = fields.finish();
    match (slug, name) {
        (Some(slug), Some(name)) if errors.is_empty() => {
            let desired = Desired {
                domain,
                storage_bytes: storage_bytes.flatten(),
                services: services.unwrap_or_default(),
                paused: paused.unwrap_or(false),
                adopt: adopt.unwrap_or(false),
                ..Desired::new(name)
            };
            Ok(NewTenant { slug, desired })
        }
        _ => Err(errors),
    }
}

impl<S: Send + Sync> FromRequest<S> for NewTenant {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let media_type = request.headers().get(header::CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Problem::unsupported_media_type());
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(error)
                if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Problem::too_large(MAX_BODY)
            }
            _ => Problem::bad_request("the body could not be read to its end"),
        })?;
        let body: Value = serde_json::from_slice(&body)
            .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
        let Value::Object(object) = body else {
            return Err(Problem::bad_request("the body must be a JSON object"));
        };
        read_new_tenant(object).map_err(Problem::invalid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(body: Value) -> Vec<(String, String)> {
        let Value::Object(object) = body else { panic!("tests give objects") };
        let errors = read_new_tenant(object).expect_err("something is wrong with it");
        errors.into_iter().map(|error| (error.field, error.message)).collect()
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let wrong = errors(json!({
            "slug": "Acme", "domain": 7, "quota": { "storageBytes": -1, "files": 3 },
            "services": { "ocis": "yes" }, "status": "active",
        }));
        let fields: Vec<_> = wrong.iter().map(|(field, _)| field.as_str()).collect();
        let expected =
            ["slug", "name", "domain", "quota.storageBytes", "quota.files", "services.ocis", "status"];
        assert_eq!(fields, expected);
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let body = json!({ "slug": "acme", "name": "Acme", "domain": null, "quota": null });
        let Value::Object(object) = body else { unreachable!() };
        let tenant = read_new_tenant(object).unwrap();
        assert_eq!(tenant.desired.domain, None);
        assert_eq!(tenant.desired.services, Services::default());
        assert_eq!(errors(json!({ "slug": null, "name": "Acme" }))[0].1, "is required");
    }

    #[test]
    fn a_mail_domain_is_kept_in_its_ascii_form() {
        let body = json!({ "slug": "acme", "name": "Acme", "domain": "Bücher.Test" });
        let Value::Object(object) = body else { unreachable!() };
        let domain = read_new_tenant(object).unwrap().desired.domain.unwrap();
        assert_eq!(domain.as_str(), "xn--bcher-kva.test");
    }
}
