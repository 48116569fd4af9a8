//! Reads a request body field by field, so that one answer names everything that is wrong with it.

use std::fmt::Display;
use std::str::FromStr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, rejection::BytesRejection};
use axum::http::header;
use serde_json::{Map, Value};

use super::MAX_BODY;
use super::problem::{FieldError, Problem};
use crate::store::{Edit, NewTenant};
use crate::tenant::{Desired, MailDomain, PerStep, Services, Slug, TenantName, Upstream};

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

    /// A mail domain, unless no mail server could ever take it. Of a document that names one all the same,
    /// only the mail step fails.
    fn mail_domain(&mut self) -> Option<MailDomain> {
        let domain: MailDomain = self.text("domain")?;
        if !domain.is_reserved() {
            return Some(domain);
        }
        let top = domain.top();
        self.wrong(
            "domain",
            format!("must not end in .{top}, which is reserved: no mail server takes it"),
        );
        None
    }

    /// A name that people can read. A document that has another one is accepted all the same.
    fn name(&mut self) -> Option<TenantName> {
        let name: TenantName = self.text("name")?;
        match name.check_legible() {
            Ok(()) => Some(name),
            Err(error) => {
                self.wrong("name", error.to_string());
                None
            }
        }
    }

    fn required<T>(&mut self, field: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.left.get(field).is_none_or(Value::is_null) {
            self.left.remove(field);
            self.wrong(field, "is required");
            return None;
        }
        read(self)
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

/// `1.0` and `1e3` are whole numbers too, as JSON has only one kind.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        // Beyond 2^53 a double no longer tells neighbouring integers apart.
        let exact = |number: &f64| number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0;
        #[allow(clippy::cast_possible_truncation)]
        value.as_f64().filter(exact).map(|number| number as i64)
    })
}

/// What a change says of one field: nothing, that it goes, or what it becomes.
type Change<T> = Option<Option<T>>;

impl Fields {
    /// The field of a merge patch, where `null` removes.
    fn change<T>(&mut self, field: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Change<T> {
        if self.left.get(field)?.is_null() {
            self.left.remove(field);
            return Some(None);
        }
        // What is wrong with it has been noted.
        read(self).map(Some)
    }

    fn storage_bytes(&mut self) -> Option<i64> {
        let value = self.take("storageBytes")?;
        let bytes = whole(&value).filter(|bytes| *bytes >= 0);
        if bytes.is_none() {
            self.wrong("storageBytes", format!("must be a whole number from 0 to {}", i64::MAX));
        }
        bytes
    }

    /// The desired state, whole; what is absent has its default.
    fn desired(&mut self) -> Option<Desired> {
        let name = self.required("name", Self::name);
        let domain = self.mail_domain();
        let storage_bytes = self.object("quota", Self::storage_bytes).flatten();
        let services = self.object("services", |services| {
            Services::new(|step| services.flag(step.name()).unwrap_or(true))
        });
        let (paused, adopt) = (self.flag("paused"), self.flag("adopt"));
        Some(Desired {
            domain,
            storage_bytes,
            services: services.unwrap_or_default(),
            paused: paused.unwrap_or(false),
            adopt,
            ..Desired::new(name?)
        })
    }

    /// What a body without `paused` says of it: nothing, so that a tenant that a person paused stays paused
    /// when its description is applied again.
    fn names_paused(&self) -> bool {
        self.left.get("paused").is_some_and(|paused| !paused.is_null())
    }
}

fn read_new_tenant(object: Map<String, Value>) -> Result<NewTenant, Vec<FieldError>> {
    let mut fields = Fields::new(object);
    let slug = fields.required("slug", |fields| fields.text("slug"));
    if slug.as_ref().is_some_and(Slug::is_reserved) {
        fields.wrong("slug", "is a word of the API's own: /tenants/watch");
    }
    let desired = fields.desired();
    let errors = fields.finish();
    match (slug, desired) {
        (Some(slug), Some(desired)) if errors.is_empty() => Ok(NewTenant { slug, desired }),
        _ => Err(errors),
    }
}

/// The desired state of a tenant that the path names. The body may name it as well.
#[derive(Debug)]
pub struct Replacement {
    slug: Option<Slug>,
    desired: Desired,
    names_paused: bool,
}

impl Replacement {
    /// The tenant, should it be new, and the change, should it be there. `slug` is the path's.
    pub fn of(self, slug: Slug) -> Result<(NewTenant, Edit), Problem> {
        if self.slug.is_some_and(|named| named != slug) {
            let message = format!("must be {slug} as in the path, or absent: a slug never changes");
            return Err(Problem::invalid(vec![FieldError { field: "slug".into(), message }]));
        }
        let mut edit = Edit::replace(&self.desired);
        edit.paused = edit.paused.filter(|_| self.names_paused);
        Ok((NewTenant { slug, desired: self.desired }, edit))
    }
}

fn read_replacement(object: Map<String, Value>) -> Result<Replacement, Vec<FieldError>> {
    let mut fields = Fields::new(object);
    let slug = fields.text("slug");
    let names_paused = fields.names_paused();
    let desired = fields.desired();
    let errors = fields.finish();
    match desired {
        Some(desired) if errors.is_empty() => Ok(Replacement { slug, desired, names_paused }),
        _ => Err(errors),
    }
}

/// A JSON merge patch (RFC 7396) of the desired state.
#[derive(Debug)]
pub struct Patch(pub Edit);

fn read_patch(object: Map<String, Value>) -> Result<Edit, Vec<FieldError>> {
    let mut fields = Fields::new(object);
    if fields.left.remove("slug").is_some() {
        fields.wrong("slug", "never changes");
    }
    let name = match fields.change("name", Fields::name) {
        Some(None) => {
            fields.wrong("name", "cannot be removed");
            None
        }
        change => change.flatten(),
    };
    let domain = fields.change("domain", Fields::mail_domain);
    let quota = fields.change("quota", |fields| {
        fields.object("quota", |quota| quota.change("storageBytes", Fields::storage_bytes))
    });
    let storage_bytes = match quota {
        Some(None) => Some(None),
        Some(Some(bytes)) => bytes,
        None => None,
    };
    let services = fields.change("services", |fields| {
        fields.object("services", |services| {
            PerStep::from_fn(|step| services.change(step.name(), |services| services.flag(step.name())))
        })
    });
    // A service that nothing is said of is one that the tenant has.
    let services = match services {
        None => PerStep::default(),
        Some(None) => PerStep::from_fn(|_| Some(true)),
        Some(Some(switches)) => PerStep::from_fn(|step| switches[step].map(|on| on.unwrap_or(true))),
    };
    // Removing it sets it back.
    let paused = fields.change("paused", |fields| fields.flag("paused"));
    let paused = paused.map(|on| on.unwrap_or(false));
    let adopt = fields.change("adopt", |fields| fields.flag("adopt"));
    let errors = fields.finish();
    let edit = Edit { name, domain, storage_bytes, services, paused, adopt, corrects: false };
    if errors.is_empty() { Ok(edit) } else { Err(errors) }
}

/// The steps that a reconcile is asked for; all of them without a body.
#[derive(Debug)]
pub struct Steps(pub Vec<Upstream>);

fn read_steps(object: Map<String, Value>) -> Result<Vec<Upstream>, Vec<FieldError>> {
    let mut fields = Fields::new(object);
    let names = || Upstream::ALL.map(Upstream::name).join(", ");
    let steps = match fields.take("steps") {
        None => Some(Upstream::ALL.to_vec()),
        Some(Value::Array(named)) => {
            let known = |name: &Value| Upstream::ALL.into_iter().find(|step| *name == step.name());
            named.iter().map(known).collect::<Option<Vec<_>>>().filter(|steps| !steps.is_empty())
        }
        Some(_) => None,
    };
    if steps.is_none() {
        fields.wrong("steps", format!("must be a list of one or more of {}", names()));
    }
    let errors = fields.finish();
    match steps {
        // Whatever is named twice is meant once.
        Some(steps) if errors.is_empty() => {
            Ok(Upstream::ALL.into_iter().filter(|step| steps.contains(step)).collect())
        }
        _ => Err(errors),
    }
}

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// The JSON object that a request brings, if it says that it does.
async fn object<S: Send + Sync>(
    request: Request,
    state: &S,
    accepted: &[&str],
) -> Result<Map<String, Value>, Problem> {
    let coding = request.headers().get_all(header::CONTENT_ENCODING).iter();
    if coding.into_iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::compressed());
    }
    let media_type = request.headers().get(header::CONTENT_TYPE);
    let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let base = media_type.split(';').next().unwrap_or_default().trim();
    if !accepted.iter().any(|accepted| base.eq_ignore_ascii_case(accepted)) {
        return Err(Problem::unsupported_media_type(accepted));
    }
    let body = whole_body(request, state).await?;
    // RFC 8259, section 8.1: a byte order mark may be ignored.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    match body {
        Value::Object(object) => Ok(object),
        _ => Err(Problem::bad_request("the body must be a JSON object")),
    }
}

async fn whole_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(error)
            if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE =>
        {
            Problem::too_large(MAX_BODY)
        }
        _ => Problem::bad_request("the body could not be read to its end"),
    })
}

impl<S: Send + Sync> FromRequest<S> for Steps {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = whole_body(Request::from_parts(parts.clone(), body), state).await?;
        if body.is_empty() {
            return Ok(Self(Upstream::ALL.to_vec()));
        }
        let request = Request::from_parts(parts, Body::from(body));
        read_steps(object(request, state, &[JSON]).await?).map(Self).map_err(Problem::invalid)
    }
}

impl<S: Send + Sync> FromRequest<S> for NewTenant {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        read_new_tenant(object(request, state, &[JSON]).await?).map_err(Problem::invalid)
    }
}

impl<S: Send + Sync> FromRequest<S> for Replacement {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        read_replacement(object(request, state, &[JSON]).await?).map_err(Problem::invalid)
    }
}

impl<S: Send + Sync> FromRequest<S> for Patch {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let object = object(request, state, &[MERGE_PATCH, JSON]).await?;
        read_patch(object).map(Self).map_err(Problem::invalid)
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
    fn a_mail_domain_that_cannot_be_registered_is_refused_at_once() {
        for (domain, why) in [
            ("co.uk", "public suffix"),
            ("gov.pl", "public suffix"),
            ("xn--p1ai", "two labels"),
            ("acme.example", ".example, which is reserved"),
            ("mail.acme.invalid", ".invalid, which is reserved"),
        ] {
            let created = errors(json!({ "slug": "a", "name": "A", "domain": domain }));
            assert_eq!(created.len(), 1, "{created:?}");
            assert!(created[0].0 == "domain" && created[0].1.contains(why), "{created:?}");
            assert_eq!(patch(json!({ "domain": domain })).unwrap_err(), ["domain"]);
        }
        for domain in ["acme.co.uk", "github.io", "acme.test", "acme.corp", "acme.nosuchtld"] {
            patch(json!({ "domain": domain })).expect(domain);
        }
    }

    #[test]
    fn a_mail_domain_is_kept_in_its_ascii_form() {
        let body = json!({ "slug": "acme", "name": "Acme", "domain": "Bücher.Test" });
        let Value::Object(object) = body else { unreachable!() };
        let domain = read_new_tenant(object).unwrap().desired.domain.unwrap();
        assert_eq!(domain.as_str(), "xn--bcher-kva.test");
    }

    fn patch(body: Value) -> Result<Edit, Vec<String>> {
        let Value::Object(object) = body else { panic!("tests give objects") };
        read_patch(object).map_err(|errors| errors.into_iter().map(|error| error.field).collect())
    }

    #[test]
    fn a_patch_changes_what_it_names_removes_what_it_nulls_and_leaves_the_rest() {
        assert_eq!(patch(json!({})), Ok(Edit::default()));
        let some =
            patch(json!({ "name": "New", "domain": null, "services": { "ocis": false } })).unwrap();
        assert_eq!(some.name.unwrap().as_str(), "New");
        assert_eq!((some.domain, some.storage_bytes), (Some(None), None));
        assert_eq!(some.services, PerStep::from_fn(|step| (step == Upstream::Ocis).then_some(false)));
        for gone in [json!({ "quota": null }), json!({ "quota": { "storageBytes": null } })] {
            assert_eq!(patch(gone).unwrap().storage_bytes, Some(None));
        }
        assert_eq!(patch(json!({ "quota": {} })).unwrap().storage_bytes, None);
        let all = PerStep::from_fn(|_| Some(true));
        assert_eq!(patch(json!({ "services": null })).unwrap().services, all);
    }

    #[test]
    fn a_patch_of_what_cannot_be_patched_names_each_field() {
        let wrong = patch(json!({
            "slug": "other", "name": null, "domain": "x", "quota": { "storageBytes": -1 },
            "services": { "ocis": "off" }, "status": "active",
        }));
        let fields = ["slug", "name", "domain", "quota.storageBytes", "services.ocis", "status"];
        assert_eq!(wrong.unwrap_err(), fields);
    }
}
