//! The desired state of one tenant in a person's editor.
//!
//! # Guarantees
//!
//! * The person sees every field of the desired state, as it was read.
//! * Only what the person changed becomes part of the change: fields that stayed the same are not sent.
//! * What was typed is not lost: the file goes only once its change is made, or there is none.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

use super::desired::spec;
use super::failure::Failure;
use super::show::json as pretty;

/// What a person made of a tenant's desired state.
pub struct Edited {
    /// A JSON merge patch of what was changed.
    pub patch: Value,
    file: PathBuf,
}

impl Edited {
    /// The change is made, so that the text is no longer needed.
    pub fn done(self) {
        let _ = std::fs::remove_file(self.file);
    }

    /// Why the change was not made, and where the text is.
    pub fn kept(&self, failure: Failure) -> Failure {
        kept(&self.file, failure)
    }
}

/// Lets a person edit the desired state of a tenant. `None` when it was left as it is.
///
/// # Errors
/// When there is no editor, it fails, or what it leaves behind is no JSON.
pub fn in_editor(tenant: &Value) -> Result<Option<Edited>, Failure> {
    let editor = editor()?;
    let before = spec(tenant);
    let shown = pretty(&before);
    let file = written(&shown)?;
    // As git and others do: it may have arguments.
    let ended = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&file).status();
    let ended = ended.map_err(|error| Failure::failed(format!("cannot start {editor}: {error}")));
    let status = ended.inspect_err(|_| drop(std::fs::remove_file(&file)))?;
    // Some editors replace the file, so it is read by its name.
    let text = std::fs::read_to_string(&file).map_err(broken)?;
    if !status.success() {
        let said = format!("{editor} ended with {status}");
        if text == shown {
            let _ = std::fs::remove_file(&file);
            return Err(Failure::failed(format!("{said}; nothing was changed")));
        }
        return Err(kept(&file, Failure::failed(said)));
    }
    let after: Value = serde_json::from_str(&text)
        .map_err(|error| kept(&file, Failure::failed(format!("that is not JSON: {error}"))))?;
    let edited = Edited { patch: difference(&before, &after), file };
    if !after.is_object() {
        return Err(edited.kept(Failure::failed("that is not a JSON object")));
    }
    if edited.patch.as_object().is_some_and(Map::is_empty) {
        edited.done();
        return Ok(None);
    }
    Ok(Some(edited))
}

fn editor() -> Result<String, Failure> {
    ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty()))
        .ok_or_else(|| {
            Failure::usage(
                "nothing to change: give flags such as --name or --quota (see --help), or set EDITOR",
            )
        })
}

/// A new file that only this user can read, named so that editors know the language.
fn written(text: &str) -> Result<PathBuf, Failure> {
    let path = std::env::temp_dir().join(format!("tenantry-{:016x}.json", rand::random::<u64>()));
    let file = OpenOptions::new().mode(0o600).write(true).create_new(true).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(broken)?;
    Ok(path)
}

fn broken(error: std::io::Error) -> Failure {
    Failure::failed(format!("cannot edit a temporary file: {error}"))
}

fn kept(file: &Path, failure: Failure) -> Failure {
    failure.and(&format!("\nNothing was changed. What was typed is kept in {}", file.display()))
}

/// The JSON merge patch (RFC 7396) that makes `before` what `after` is.
fn difference(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return after.clone() };
    let mut patch = Map::new();
    for (field, value) in after {
        match before.get(field) {
            Some(old) if old == value => {}
            Some(old) if old.is_object() && value.is_object() => {
                patch.insert(field.clone(), difference(old, value));
            }
            _ => drop(patch.insert(field.clone(), value.clone())),
        }
    }
    for field in before.keys().filter(|field| !after.contains_key(*field)) {
        patch.insert(field.clone(), Value::Null);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_names_what_was_changed_and_nothing_else() {
        let before = json!({
            "name": "Acme", "domain": "acme.test", "quota": { "storageBytes": 1 },
            "services": { "ocis": true, "stalwart": true }, "paused": true, "adopt": null,
        });
        let mut after = before.clone();
        assert_eq!(difference(&before, &after), json!({}));
        after["services"]["ocis"] = json!(false);
        after["quota"] = json!(null);
        after["adopt"] = json!(true);
        after.as_object_mut().unwrap().remove("domain");
        let expected = json!({
            "services": { "ocis": false }, "quota": null, "adopt": true, "domain": null,
        });
        assert_eq!(difference(&before, &after), expected);
    }
}
