//! JSON values as YAML. Only writing, and only what JSON can say.

use serde_json::Value;

use super::printable::escaped;

pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

/// Writes a value that begins on a line of its own.
fn write(value: &Value, depth: usize, into: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                into.push_str(&format!("{indent}{}:", scalar(&Value::from(name.as_str()))));
                nested(field, depth, into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                write(item, depth + 1, &mut text);
                // The first line of the item stands beside its dash.
                into.push_str(&format!("{indent}- {}", text.trim_start_matches(' ')));
            }
        }
        _ => into.push_str(&format!("{indent}{}\n", scalar(value))),
    }
}

fn nested(value: &Value, depth: usize, into: &mut String) {
    let filled = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if filled {
        into.push('\n');
        write(value, depth + 1, into);
    } else {
        into.push_str(&format!(" {}\n", scalar(value)));
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        // JSON's form of a text, a number or something empty is YAML's too.
        other => escaped(&other.to_string()),
    }
}

/// Whether a text means itself without quotes: nothing that could be a number, a word with a meaning or
/// punctuation.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 8] = ["true", "false", "null", "yes", "no", "on", "off", "y"];
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(inner)
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
        && !text.eq_ignore_ascii_case("n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_or_no_yaml_may_hold_is_escaped() {
        let name = "\u{9b}31m \u{202e}gpj.\u{2028}\u{feff}\u{7f}";
        let expected = "name: \"\\u009b31m \\u202egpj.\\u2028\\ufeff\\u007f\"\n";
        assert_eq!(to_yaml(&json!({ "name": name })), expected);
    }

    #[test]
    fn what_could_be_misread_is_quoted_and_the_rest_is_plain() {
        let value = json!({
            "slug": "acme", "name": "Acme: the \"first\"", "no": "no", "number": "1e3", "count": 3,
            "empty": {}, "none": null, "list": [{ "a": 1, "b": [true, []] }, "x"],
        });
        let expected = "count: 3\nempty: {}\nlist:\n  - a: 1\n    b:\n      - true\n      - []\n  - x\n\
                        name: \"Acme: the \\\"first\\\"\"\n\"no\": \"no\"\nnone: null\nnumber: \"1e3\"\n\
                        slug: acme\n";
        assert_eq!(to_yaml(&value), expected);
    }
}
