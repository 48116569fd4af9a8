//! One word per idea: words that were given up do not come back.

use std::path::{Path, PathBuf};

/// Names of types and functions that meant several things, with what each is called now.
const NAMES: [(&str, &str); 12] = [
    ("StepKind", "Upstream, or UpstreamClient for what talks to one"),
    ("GuardPolicy", "ChangeGuardPolicy"),
    ("Guarded", "Gated, or in tests ProtectedApi"),
    ("Plans", "CommitCandidates"),
    ("Disbelieve", "Mode::Distrust"),
    ("Observe(", "Mode::Look or Mode::Hold"),
    ("of_others", "that_give_work"),
    ("essence", "only_what_is_read"),
    ("staying(", "not_deleting"),
    ("Told::", "OutcomeEvent"),
    ("left_alone", "Untouched"),
    ("store::Change", "WorkEvent"),
];

/// Words that hide who does something, or say less than others.
const PROSE: [(&str, &str); 11] = [
    ("whoever", "name it: the process, the operator, the caller"),
    ("somebody", "name it: a person, another process, another writer"),
    ("nobody", "name it: no process, no caller"),
    ("anybody", "name it: every caller"),
    ("he", "name it"),
    ("him", "name it"),
    ("his", "name it"),
    ("himself", "name it"),
    ("mend", "correct"),
    ("makes no sense", "is invalid"),
    ("make no sense", "are invalid"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root().join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let extension =
                entry.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if entry.is_dir() {
                folders.push(entry);
            } else if extensions.contains(&extension) {
                found.push(entry);
            }
        }
    }
    found
}

/// The word as a whole, and not as a value: tests have an account and a slug called `nobody`.
fn says(line: &str, word: &str) -> bool {
    let line = line.to_lowercase();
    let is_part = char::is_alphanumeric;
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
        let is_word = !before.is_some_and(is_part) && !after.is_some_and(|c| is_part(c) || c == '\'');
        let is_value = matches!(before, Some('"' | '/' | '&' | '=' | '$' | '[' | '`'))
            || matches!(after, Some('"' | '-' | ']' | '`' | '\\'));
        let is_name = line[..at].ends_with("let ") || line[..at].ends_with("client_id ");
        is_word && !is_value && !is_name
    })
}

#[test]
fn retired_names_are_gone() {
    let mut found = Vec::new();
    for path in ["src", "tests"].iter().flat_map(|folder| files(folder, &["rs"])) {
        if path.ends_with("it/words.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for (word, now) in NAMES {
                let at = line.find(word);
                let inside = |at: usize| {
                    line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
                };
                let longer = |at: usize| {
                    let ends = word.ends_with(|c: char| c.is_alphanumeric());
                    ends && line[at + word.len()..]
                        .starts_with(|c: char| c.is_alphanumeric() || c == '_')
                };
                if at.is_some_and(|at| !inside(at) && !longer(at)) {
                    found.push(format!("{}:{}: {word} is now {now}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn prose_names_who_does_something() {
    let code = ["src", "tests"].iter().flat_map(|folder| files(folder, &["rs", "md"]));
    let pages = files("docs", &["md"]).into_iter().chain([root().join("README.md")]);
    let manifests = files("manifests", &["yaml", "env", "sh", "py", "service"]);
    let mut found = Vec::new();
    for path in code.chain(pages).chain(manifests).chain(files("dashboards", &["py"])) {
        if path.ends_with("it/words.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for (word, better) in PROSE.iter().filter(|(word, _)| says(line, word)) {
                found.push(format!(
                    "{}:{}: {word}: {better}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
