//! Deletes many tenants: those that documents name (`tenants delete -f`), and those that none names any more
//! (`apply --prune`).
//!
//! # Guarantees
//!
//! * Tenants are pruned only of those that `--selector` names, after a summary, and after the person or `--yes` agreed.
//! * The deletion begins only once all documents were applied.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};

use clap::Args;
use reqwest::Method;

use super::batch::{Failures, Go, each, patiently};
use super::client::{Ask, Client};
use super::commands::Pages;
use super::failure::{Exit, Failure};
use super::filters::Filters;
use super::manifest::Manifest;
use super::printable::in_line;
use super::table::cell;
use super::{Deletion, manifest};
use crate::terminal::{print, say};

#[derive(Debug, Args)]
pub struct Prune {
    /// Delete the tenants that --selector names and no document does
    #[arg(long, requires = "selector")]
    prune: bool,
    /// Slugs of tenants that may be pruned: * is any text, ? any character
    #[arg(long, value_name = "PATTERN", requires = "prune")]
    selector: Option<String>,
    /// Do not ask before tenants are deleted
    #[arg(long, requires = "prune")]
    yes: bool,
    #[command(flatten)]
    deletion: Deletion,
}

/// What is to be pruned.
#[derive(Debug, Default)]
pub struct Goes {
    slugs: Vec<String>,
    yes: bool,
    deletion: Deletion,
}

impl Prune {
    /// The tenants that would go, of which a summary is printed.
    pub async fn select(&self, client: &Client, manifests: &[Manifest]) -> Result<Goes, Failure> {
        let Some(selector) = self.selector.as_deref().filter(|_| self.prune) else {
            return Ok(Goes::default());
        };
        let kept: BTreeSet<&str> = manifests.iter().map(|manifest| manifest.slug.as_str()).collect();
        let (mut slugs, mut summary, mut pages) = (Vec::new(), String::new(), Pages::default());
        while let Some(page) = pages.next(client, &Filters::default()).await? {
            for tenant in page {
                let slug = cell(&tenant["slug"]);
                let goes = matches(selector, &slug) && !kept.contains(slug.as_str());
                if goes && tenant["deletion"].is_null() {
                    summary.push_str(&in_line(&format!("  - {slug} ({})", cell(&tenant["name"]))));
                    summary.push('\n');
                    slugs.push(slug);
                }
            }
        }
        match slugs.len() {
            0 => print(&format!("to prune: none; every tenant {selector} is in a document\n"))?,
            number => print(&format!("to prune, {selector} in no document: {number}\n{summary}"))?,
        };
        Ok(Goes { slugs, yes: self.yes, deletion: self.deletion })
    }
}

impl Goes {
    /// Asks the person, unless that has been answered.
    ///
    /// # Errors
    /// When they may not go.
    pub fn confirm(&self, sources: &[String]) -> Result<(), Failure> {
        if self.slugs.is_empty() || self.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || sources.iter().any(|source| source == "-") {
            let said = "--prune deletes the tenants above; --yes says that it may. Nothing was done";
            return Err(Failure::usage(said));
        }
        let number = self.slugs.len();
        // There is no place left to tell that this failed.
        let _ = write!(std::io::stderr().lock(), "Delete these {number} tenants? Type yes: ");
        let mut answer = String::new();
        stdin.read_line(&mut answer)?;
        match answer.trim() {
            "yes" => Ok(()),
            _ => Err(Failure::failed("nothing was done")),
        }
    }

    pub async fn delete(self, client: &Client) -> Result<(), Failure> {
        delete(client, self.slugs, self.deletion).await
    }
}

/// Deletes the tenants that documents name.
pub async fn delete_named(
    client: &Client,
    files: &[String],
    deletion: Deletion,
) -> Result<String, Failure> {
    let manifests = manifest::read(files, manifest::Needs::Slug)?;
    let slugs = manifests.into_iter().map(|manifest| manifest.slug.to_string()).collect();
    delete(client, slugs, deletion).await.map(|()| String::new())
}

async fn delete(client: &Client, slugs: Vec<String>, deletion: Deletion) -> Result<(), Failure> {
    let all = slugs.len();
    let todo = |slug: String| async move {
        let path = ["tenants", slug.as_str()];
        let ask = deletion.of(Ask::new(Method::DELETE, &path, "way to delete tenants"));
        let done = patiently(|| client.ask(ask.clone())).await.map(drop);
        (slug, done)
    };
    let mut failures = Failures::default();
    each("deletions", slugs, todo, |(slug, done)| {
        match done {
            Ok(()) => print(&format!("{slug}: is being deleted\n"))?,
            Err(failure) if failure.exit == Exit::NotFound => print(&format!("{slug}: is not there\n"))?,
            Err(failure) => {
                say(format_args!("tenantry: {}", failure.clone().of(&slug)));
                return Ok(failures.note(&failure));
            }
        };
        Ok(Go::On)
    })
    .await?;
    let count = failures.count;
    failures.ended(format!("{count} of {all} tenants could not be deleted"))
}

/// Whether a text is as a pattern says, in which `*` is any text and `?` any character.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut read) = (0, 0);
    // Where the latest * is, and how much of the text it stands for.
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        match (pattern.get(at), star) {
            (Some('*'), _) => {
                star = Some((at, read));
                at += 1;
            }
            (Some(c), _) if *c == '?' || *c == text[read] => {
                at += 1;
                read += 1;
            }
            (_, Some((begins, stands))) => {
                star = Some((begins, stands + 1));
                at = begins + 1;
                read = stands + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_shells() {
        for (pattern, text, meant) in [
            ("team-*", "team-a", true),
            ("team-*", "team-", true),
            ("team-*", "teams", false),
            ("*", "anything", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbx", false),
            ("", "a", false),
            ("acme", "acme", true),
        ] {
            assert_eq!(matches(pattern, text), meant, "{pattern} {text}");
        }
    }
}
