//! The wire: JMAP requests to Stalwart's management, and what their answers mean.
//!
//! Everything here was observed with servers 0.16.18 and 0.16.19.
//!
//! * The address is the configured one. The session's `apiUrl` is built from the server's public name,
//!   and leads elsewhere from inside a cluster.
//! * An HTTP 200 may hold an error for each call.
//! * The explanation of a malformed request echoes it whole, secrets included: it is never shown.
//! * A hundred failed logins ban our address for ever, all of it, whatever it brings then. The ban is 429
//!   "Too Many Authentication Attempts" once, 403 "Forbidden" on connections that were open, which is what a
//!   key without the permission `authenticate` gets too, and a closed connection on new ones.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::upstream::{Answer, Call, Dialect, Purpose, UpstreamClient};
use super::super::{Effect, Error};
use crate::metrics::Operation;
use crate::tenant::Reason;

/// Several method calls in one HTTP request.
pub struct Batch {
    operation: Operation,
    purpose: Purpose,
    calls: Vec<Value>,
}

impl Batch {
    pub fn new(operation: Operation, purpose: Purpose) -> Self {
        Self { operation, purpose, calls: Vec::new() }
    }

    /// Adds a call; `id` finds its answer, and lets later calls refer to it.
    pub fn call(&mut self, method: &str, arguments: Value, id: &str) -> &mut Self {
        self.calls.push(json!([method, arguments, id]));
        self
    }
}

/// The answers to a batch.
pub struct Answers {
    responses: Vec<(String, Value, String)>,
    operation: Operation,
    purpose: Purpose,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Responses {
    method_responses: Vec<(String, Value, String)>,
}

/// RFC 7807, as far as it is safe to show.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    r#type: String,
    title: String,
    limit: String,
}

#[derive(Deserialize)]
struct MethodError {
    r#type: String,
    #[serde(default)]
    description: String,
}

/// Why an object was not created, changed or destroyed.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetError {
    pub r#type: String,
    #[serde(default)]
    pub description: Option<String>,
    /// What of it is wrong.
    #[serde(default)]
    pub properties: Vec<String>,
    /// The object that stands in the way.
    #[serde(default)]
    pub object_id: Option<ObjectRef>,
    /// The objects that hold this one.
    #[serde(default)]
    pub linked_objects: Vec<ObjectRef>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ObjectRef {
    pub object: String,
    pub id: String,
}

/// What a `/set` says of one object.
pub enum Written {
    Done,
    Refused(SetError),
}

/// Sends a batch.
pub async fn send(upstream: &UpstreamClient, batch: &Batch) -> Result<Answers, Error> {
    let Batch { operation, purpose, calls } = batch;
    let body = json!({
        "using": ["urn:ietf:params:jmap:core", "urn:stalwart:jmap"],
        "methodCalls": calls,
    });
    let call = Call::new(*operation, Method::POST, &["jmap"]).json(&body);
    let answer = upstream.ask(&call, *purpose).await?;
    let answer = accepted(upstream, &call, *purpose, answer)?;
    let Some(Responses { method_responses }) = answer.json() else {
        let message = format!("{}: the answer is not JMAP", upstream.what(&call));
        return Err(Error::transient(Reason::UnexpectedAnswer, message).after(*purpose));
    };
    Ok(Answers { responses: method_responses, operation: *operation, purpose: *purpose })
}

/// What Stalwart says of us, and of its limits, whatever was asked.
pub const DIALECT: Dialect = Dialect {
    judge,
    closed: ". Stalwart also closes the connections of an address that it has banned for failed logins: \
             if it is reachable from elsewhere, look into x:BlockedIp",
};

const NEW_KEY: &str = "give tenantry a valid API key in STALWART_API_TOKEN (or an administrator's \
                       STALWART_USERNAME and STALWART_PASSWORD)";
/// In this order: with the old key still in use, the next login bans again at once (observed).
const LIFT: &str = "and when tenantry uses it, and not before, let an administrator lift the ban from \
                    another address, such as the server's own loopback: x:BlockedIp/get shows it, \
                    x:BlockedIp/set destroys it, and x:Action/set ReloadBlockedIps makes that take effect";
const RARELY: &str =
    "A hundred failed logins ban our address for ever, so this is tried again only rarely";

fn judge(upstream: &UpstreamClient, call: &Call<'_>, answer: &Answer) -> Option<Error> {
    let status = answer.status;
    let problem = answer.json::<Problem>().unwrap_or_default();
    let message = format!("{}: {status}: {}", upstream.what(call), upstream.printable(&problem.title));
    let advice = match status {
        StatusCode::UNAUTHORIZED => format!("First {NEW_KEY}. {RARELY}"),
        StatusCode::TOO_MANY_REQUESTS if problem.title.contains("Authentication") => {
            format!("Our address is banned after too many failed logins. First {NEW_KEY}; {LIFT}")
        }
        // Not the page of a proxy.
        StatusCode::FORBIDDEN if problem.title == "Forbidden" => format!(
            "Most likely our address is banned after too many failed logins; a key without the permission \
             `authenticate` gets the same answer. First {NEW_KEY} that has this permission; {LIFT}"
        ),
        StatusCode::BAD_REQUEST if problem.r#type.ends_with(":limit") && is_momentary(&problem) => {
            let message = format!("{}: over the limit {}", upstream.what(call), problem.limit);
            return Some(Error::throttled(message, Duration::from_secs(1)));
        }
        _ => return None,
    };
    Some(Error::misconfigured(Reason::CredentialsRejected, format!("{message}. {advice}")))
}

/// Whether the same request will do later: it is not the request that is too large.
fn is_momentary(problem: &Problem) -> bool {
    problem.limit.starts_with("maxConcurrent")
}

/// An answer with status 200, or what it means that it is none.
pub fn accepted(
    upstream: &UpstreamClient,
    call: &Call<'_>,
    purpose: Purpose,
    answer: Answer,
) -> Result<Answer, Error> {
    let status = answer.status;
    let problem = answer.json::<Problem>().unwrap_or_default();
    let title = upstream.printable(&problem.title);
    let message = format!("{}: {status}: {title}", upstream.what(call));
    match status {
        StatusCode::OK => Ok(answer),
        StatusCode::FORBIDDEN => {
            let message = format!("{message} (not in Stalwart's words: does a proxy refuse it?)");
            Err(Error::terminal(Reason::Forbidden, message))
        }
        StatusCode::BAD_REQUEST => {
            let kind = upstream.printable(&problem.r#type);
            let message = format!(
                "{}: {status}: {kind} (its explanation echoes the request, and is left out)",
                upstream.what(call)
            );
            Err(Error::terminal(Reason::Rejected, message))
        }
        StatusCode::NOT_FOUND => {
            let message = format!(
                "{message}. There is no JMAP at {}: is STALWART_API_URL the address of a Stalwart 0.16 \
                 or newer, without /jmap or /api?",
                upstream.base()
            );
            Err(Error::misconfigured(Reason::WrongAddress, message))
        }
        _ => {
            let message = upstream.refusal(call, &answer);
            Err(Error::transient(Reason::UnexpectedAnswer, message).after(purpose))
        }
    }
}

impl Answers {
    /// The answer to call `id`, or what its error means.
    pub fn of(&self, id: &str) -> Result<&Value, Error> {
        let found = self.responses.iter().find(|(_, _, answered)| answered == id);
        let Some((method, arguments, _)) = found else {
            return Err(self.unexpected("the answer to one of the calls is missing"));
        };
        if method != "error" {
            return Ok(arguments);
        }
        let Ok(error) = MethodError::deserialize(arguments) else {
            return Err(self.unexpected("a call failed without saying why"));
        };
        let MethodError { r#type: kind, description } = error;
        let message = format!("{}: {kind}: {description}", self.what());
        Err(match kind.as_str() {
            "forbidden" if description.contains("bootstrap mode") => {
                let message = format!("{message}. Finish Stalwart's setup and restart it");
                Error::transient(Reason::NotReady, message)
            }
            "forbidden" => {
                Error::terminal(Reason::Forbidden, format!("{message}. {}", super::PERMISSIONS))
            }
            // A lost race, or a part of it was done all the same.
            "serverUnavailable" | "serverFail" | "serverPartialFail" => {
                Error::transient(Reason::UpstreamError, message).after(self.purpose)
            }
            _ => Error::terminal(Reason::Rejected, message),
        })
    }

    /// The list of a `/get`, each object of which must be of the known form.
    pub fn list<T: DeserializeOwned>(&self, id: &str) -> Result<Vec<T>, Error> {
        let known = |object: &Value| {
            T::deserialize(object).map_err(|why| {
                let id = object.get("id").and_then(Value::as_str).unwrap_or("(without an id)");
                self.unexpected(&format!("the object {id} is not of the known form: {why}"))
            })
        };
        self.objects(id)?.iter().map(known).collect()
    }

    /// The same, whatever the form of its objects.
    pub fn objects(&self, id: &str) -> Result<&[Value], Error> {
        let list = self.of(id)?.get("list").and_then(Value::as_array);
        Ok(list.map(Vec::as_slice).unwrap_or_default())
    }

    /// The answer to call `id` as a value of this form.
    pub fn read<T: DeserializeOwned>(&self, id: &str) -> Result<T, Error> {
        let unexpected = |why| self.unexpected(&format!("an answer is not of the known form: {why}"));
        T::deserialize(self.of(id)?).map_err(unexpected)
    }

    /// What became of creation `id` of a `/set`.
    pub fn created(&self, call: &str, id: &str) -> Result<Written, Error> {
        self.written(call, id, "created", "notCreated")
    }

    /// The id that creation `id` of a `/set` was given.
    pub fn created_id(&self, call: &str, id: &str) -> Option<&str> {
        self.of(call).ok()?.get("created")?.get(id)?.get("id")?.as_str()
    }

    /// What became of the update of object `id`.
    pub fn updated(&self, call: &str, id: &str) -> Result<Written, Error> {
        self.written(call, id, "updated", "notUpdated")
    }

    /// What became of the destruction of object `id`.
    pub fn destroyed(&self, call: &str, id: &str) -> Result<Written, Error> {
        let gone = self.of(call)?.get("destroyed").and_then(Value::as_array);
        if gone.is_some_and(|gone| gone.iter().any(|gone| gone == id)) {
            return Ok(Written::Done);
        }
        self.written(call, id, "", "notDestroyed")
    }

    /// An id that cannot be parsed is in neither list: it was dropped without a word.
    fn written(&self, call: &str, id: &str, done: &str, refused: &str) -> Result<Written, Error> {
        let set = self.of(call)?;
        if set.get(done).and_then(|done| done.get(id)).is_some() {
            return Ok(Written::Done);
        }
        match set.get(refused).and_then(|refused| refused.get(id)).map(SetError::deserialize) {
            Some(Ok(error)) => Ok(Written::Refused(error)),
            _ => Err(self.unexpected("the answer says nothing of the object that was to be written")),
        }
    }

    pub fn what(&self) -> String {
        format!("stalwart: {}", self.operation.name().replace('_', " "))
    }

    pub fn unexpected(&self, why: &str) -> Error {
        let message = format!("{}: {why}", self.what());
        Error::transient(Reason::UnexpectedAnswer, message).after(self.purpose)
    }
}

impl SetError {
    /// A refusal that concerns this object only.
    pub fn terminal(&self, what: &str) -> Error {
        let description = self.description.as_deref().unwrap_or_default();
        let message = format!("{what}: {}: {description}", self.r#type);
        let reason = if self.r#type == "forbidden" { Reason::Forbidden } else { Reason::Rejected };
        let mut error = Error::terminal(reason, message.trim_end_matches([':', ' ']).to_owned());
        error.effect = Effect::None;
        error
    }
}
