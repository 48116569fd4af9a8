//! The three kinds of refusals inside an answer: of a call, of an object, and what they say.

use serde_json::{Value, json};

use super::id::Id;

/// A call failed as a whole: `["error", {...}, id]` in its place, with HTTP 200.
#[derive(Debug)]
pub struct CallError {
    pub kind: &'static str,
    pub description: Option<String>,
}

impl CallError {
    pub fn new(kind: &'static str, description: impl Into<String>) -> Self {
        Self { kind, description: Some(description.into()) }
    }

    /// What a lost race looks like, though part of the call may have been done (observed).
    pub fn unavailable() -> Self {
        let text =
            "This server is temporarily unavailable. Attempting this same operation later may succeed.";
        Self::new("serverUnavailable", text)
    }

    pub fn too_large() -> Self {
        let text = "The number of ids requested by the client exceeds the maximum number the server is willing to process in a single method call.";
        Self::new("requestTooLarge", text)
    }

    pub fn dangling(name: &str, from: &str) -> Self {
        let text = format!("Invalid reference to non-existing object \"{name}\" from \"{from}\"");
        Self::new("invalidResultReference", text)
    }

    /// The text of the server's JSON reader; the column is not to be relied on.
    pub fn wrong_type(found: &Value, expected: &str) -> Self {
        let found = match found {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => format!("boolean `{value}`"),
            Value::Number(value) if value.is_f64() => format!("floating point `{value}`"),
            Value::Number(value) if value.is_i64() && !value.is_u64() => {
                let text = format!("invalid value: integer `{value}`, expected {expected}");
                return Self::new("invalidArguments", text + " at line 1 column 1");
            }
            Value::Number(value) => format!("integer `{value}`"),
            Value::String(value) => format!("string {value:?}"),
            Value::Array(_) => "sequence".to_owned(),
            Value::Object(_) => "map".to_owned(),
        };
        let text = format!("invalid type: {found}, expected {expected} at line 1 column 1");
        Self::new("invalidArguments", text)
    }

    pub fn show(&self) -> Value {
        let mut shown = json!({ "type": self.kind });
        if let Some(description) = &self.description {
            shown["description"] = json!(description);
        }
        shown
    }
}

/// An object was refused: an entry of `notCreated`, `notUpdated` or `notDestroyed`.
pub type SetError = Value;

pub fn invalid_patch(description: &str, property: &str) -> SetError {
    json!({ "type": "invalidPatch", "description": description, "properties": [property] })
}

pub fn invalid_value(property: &str) -> SetError {
    invalid_patch("Invalid value for property.", property)
}

pub fn invalid_object(property: &str) -> SetError {
    invalid_patch("Invalid value for object property", property)
}

pub fn required(property: &str) -> SetError {
    let errors = json!([{ "type": "Required", "property": property }]);
    json!({ "type": "validationFailed", "validationErrors": errors })
}

pub fn duplicate(property: &str, object: &str, holder: Id) -> SetError {
    let holder = json!({ "object": object, "id": holder.to_string() });
    json!({ "type": "primaryKeyViolation", "properties": [property], "objectId": holder })
}

pub fn no_such(object: &str, id: &str) -> SetError {
    json!({ "type": "invalidForeignKey", "objectId": { "object": object, "id": id } })
}

pub fn not_found() -> SetError {
    json!({ "type": "notFound" })
}

pub fn forbidden(description: &str) -> SetError {
    json!({ "type": "forbidden", "description": description })
}
