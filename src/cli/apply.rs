//! `tenantry apply`, `diff` and `import`: makes tenants what documents say.
//!
//! # Guarantees
//!
//! * Nothing is sent unless every document is right.
//! * It may be repeated, after an interruption as well: what is already as its document says is not written.
//! * What is replaced is what was compared (`If-Match`), and what is created was not there (`If-None-Match`): an edit
//!   by another client in between is seen, and compared again.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde_json::Value;

use super::batch::{Failures, Go, each, patiently};
use super::client::{Ask, Client, Connection};
use super::commands::{API, Pages, read};
use super::failure::{Exit, Failure};
use super::filters::Filters;
use super::manifest::{self, Difference, Manifest, Needs};
use super::printable::in_line;
use super::prune::Prune;
use super::wait;
use super::{Settle, desired};
use crate::tenant::Slug;
use crate::terminal::{print, say};

/// Documents of tenants.
#[derive(Debug, Args)]
pub struct Files {
    /// A file, a folder (its .yaml, .yml and .json files), or - for standard input; may be repeated
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    files: Files,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settle: Settle,
    #[command(flatten)]
    prune: Prune,
    // Last, because what follows it stands under its heading.
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub struct Diff {
    #[command(flatten)]
    files: Files,
    /// Exit with 7 when something would be changed
    #[arg(long)]
    exit_code: bool,
    // Last, because what follows it stands under its heading.
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub struct Import {
    /// As `tenantry export` wrote it; a folder, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    files: Vec<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settle: Settle,
    // Last, because what follows it stands under its heading.
    #[command(flatten)]
    connection: Connection,
}

/// What was done, or would be done, about one tenant.
#[derive(Debug, Clone)]
enum Deed {
    Created(Vec<Difference>),
    Configured(Vec<Difference>),
    Unchanged,
    /// It is there, and shall not be changed.
    Left,
}

impl Deed {
    fn differences(&self) -> &[Difference] {
        match self {
            Self::Created(differences) | Self::Configured(differences) => differences,
            Self::Unchanged | Self::Left => &[],
        }
    }

    fn told(&self, slug: &Slug, dry_run: bool) -> String {
        let would = if dry_run { "would be " } else { "" };
        match self {
            Self::Created(_) => format!("{slug}: {would}created\n"),
            Self::Configured(differences) => {
                let fields: Vec<_> = differences.iter().map(|one| one.field.as_str()).collect();
                format!("{slug}: {would}configured ({})\n", fields.join(", "))
            }
            Self::Unchanged => format!("{slug}: unchanged\n"),
            Self::Left => format!("{slug}: is there already, and left as it is\n"),
        }
    }
}

/// What may be done about tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Made as documents say.
    Apply,
    /// Created where they are missing, and otherwise left alone.
    CreateOnly,
}

impl Apply {
    pub async fn run(self) -> Result<String, Failure> {
        let manifests = manifest::read(&self.files.files, Needs::All)?;
        let client = Client::new(&self.connection).await?;
        let goes = self.prune.select(&client, &manifests).await?;
        if !self.dry_run {
            goes.confirm(&self.files.files)?;
        }
        let deeds = work(&client, manifests, Rule::Apply, self.dry_run, |deed, slug, dry_run| {
            deed.told(slug, dry_run)
        });
        let changed = deeds.await?;
        if self.dry_run {
            return Ok(String::new());
        }
        // Only after all documents were applied.
        goes.delete(&client).await?;
        settle(&client, changed, self.settle.wait).await
    }
}

impl Import {
    pub async fn run(self) -> Result<String, Failure> {
        let manifests = manifest::read(&self.files, Needs::All)?;
        let client = Client::new(&self.connection).await?;
        let deeds = work(&client, manifests, Rule::CreateOnly, self.dry_run, |deed, slug, dry_run| {
            deed.told(slug, dry_run)
        });
        let changed = deeds.await?;
        if self.dry_run { Ok(String::new()) } else { settle(&client, changed, self.settle.wait).await }
    }
}

impl Diff {
    pub async fn run(self) -> Result<String, Failure> {
        let manifests = manifest::read(&self.files.files, Needs::All)?;
        let client = Client::new(&self.connection).await?;
        let changed =
            work(&client, manifests, Rule::Apply, true, |deed, slug, _| told(deed, slug)).await?;
        if self.exit_code && !changed.is_empty() {
            let said = format!("tenants that would be changed: {}", changed.len());
            return Err(Failure::new(Exit::Changes, said));
        }
        Ok(String::new())
    }
}

/// A tenant that would change, field by field; nothing of one that would not.
fn told(deed: &Deed, slug: &Slug) -> String {
    if deed.differences().is_empty() {
        return String::new();
    }
    let mut text = deed.told(slug, true);
    for Difference { field, from, to } in deed.differences() {
        let line = match (from, to) {
            (Value::Null, to) => format!("  + {field}: {to}"),
            (from, Value::Null) => format!("  - {field}: {from}"),
            (from, to) => format!("  ~ {field}: {from} -> {to}"),
        };
        text.push_str(&in_line(&line));
        text.push('\n');
    }
    text
}

/// Works on all of them, and prints what came of each. Returns those that were changed, or would be.
async fn work(
    client: &Client,
    manifests: Vec<Manifest>,
    rule: Rule,
    dry_run: bool,
    tell: impl Fn(&Deed, &Slug, bool) -> String,
) -> Result<Vec<Slug>, Failure> {
    let all = manifests.len();
    let known = Known::look(client, &manifests).await?;
    let todo = |manifest: Manifest| {
        let known = known.of(&manifest.slug);
        async move {
            let done = patiently(|| one(client, &manifest, known.clone(), rule, dry_run)).await;
            (manifest, done)
        }
    };
    let (mut failures, mut changed, mut told) = (Failures::default(), Vec::new(), 0);
    each("documents", manifests, todo, |(manifest, done)| {
        told += 1;
        match done {
            Ok(deed) => {
                print(&tell(&deed, &manifest.slug, dry_run))?;
                if matches!(deed, Deed::Created(_) | Deed::Configured(_)) {
                    changed.push(manifest.slug);
                }
                Ok(Go::On)
            }
            Err(failure) => {
                let Manifest { slug, place, .. } = manifest;
                say(format_args!("tenantry: {}", failure.clone().of(format!("{place}: {slug}"))));
                Ok(failures.note(&failure))
            }
        }
    })
    .await?;
    let left = match all - told {
        0 => String::new(),
        left => format!(", and {left} were not tried"),
    };
    let count = failures.count;
    failures
        .ended(format!("{count} of {all} documents failed{left}; the others may be applied again"))?;
    Ok(changed)
}

/// What tenants are like before: of many they are read in pages, of few one by one.
enum Known {
    /// By slug, those that documents name.
    Listed(BTreeMap<String, Value>),
    Unknown,
}

/// One tenant, as far as it is known.
#[derive(Clone)]
enum Found {
    Unknown,
    Absent,
    There(Value, Option<HeaderValue>),
}

/// From so many documents on, lists are cheaper.
const MANY: usize = 100;

impl Known {
    async fn look(client: &Client, manifests: &[Manifest]) -> Result<Self, Failure> {
        if manifests.len() < MANY {
            return Ok(Self::Unknown);
        }
        let named: std::collections::BTreeSet<&str> =
            manifests.iter().map(|manifest| manifest.slug.as_str()).collect();
        let (mut listed, mut pages) = (BTreeMap::new(), Pages::default());
        while let Some(page) = pages.next(client, &Filters::default()).await? {
            for tenant in page {
                let Some(slug) = tenant["slug"].as_str().filter(|slug| named.contains(slug)) else {
                    continue;
                };
                let mut kept = desired::spec(&tenant);
                kept["deletion"] = tenant["deletion"].clone();
                listed.insert(slug.to_owned(), kept);
            }
        }
        Ok(Self::Listed(listed))
    }

    fn of(&self, slug: &Slug) -> Found {
        match self {
            Self::Unknown => Found::Unknown,
            Self::Listed(listed) => match listed.get(slug.as_str()) {
                Some(tenant) => Found::There(tenant.clone(), None),
                None => Found::Absent,
            },
        }
    }
}

/// How often a tenant is compared again that another client changed meanwhile.
const COMPARISONS: usize = 4;

async fn one(
    client: &Client,
    manifest: &Manifest,
    mut found: Found,
    rule: Rule,
    dry_run: bool,
) -> Result<Deed, Failure> {
    let mut left = COMPARISONS;
    loop {
        left -= 1;
        if matches!(found, Found::Unknown) {
            found = look(client, &manifest.slug).await?;
        }
        let (deed, condition) = match found {
            Found::Absent | Found::Unknown => {
                let absent = Some(HeaderValue::from_static("*"));
                (Deed::Created(manifest.as_new()), ("if-none-match", absent))
            }
            Found::There(..) if rule == Rule::CreateOnly => return Ok(Deed::Left),
            Found::There(tenant, etag) => {
                if !tenant["deletion"].is_null() {
                    let said = "is being deleted; tenantry tenants undelete takes that back";
                    return Err(Failure::new(Exit::Conflict, said));
                }
                let differences = manifest.differences(&tenant);
                if differences.is_empty() {
                    return Ok(Deed::Unchanged);
                }
                if etag.is_none() && tenant["status"] != "invalid" && !dry_run {
                    // It is in a list, which names no versions.
                    found = Found::Unknown;
                    continue;
                }
                (Deed::Configured(differences), ("if-match", etag))
            }
        };
        if dry_run {
            return Ok(deed);
        }
        let path = ["tenants", manifest.slug.as_str()];
        let put = Ask::new(Method::PUT, &path, API).header(condition.0, condition.1);
        match client.ask(put.body(manifest.spec.clone())).await {
            Ok(_) => return Ok(deed),
            Err(failure) if failure.exit == Exit::Conflict && left > 0 => found = Found::Unknown,
            Err(failure) => return Err(failure),
        }
    }
}

async fn look(client: &Client, slug: &Slug) -> Result<Found, Failure> {
    match read(client, slug).await {
        Ok((tenant, etag)) => Ok(Found::There(tenant, etag)),
        Err(failure) if failure.exit == Exit::NotFound => Ok(Found::Absent),
        Err(failure) => Err(failure),
    }
}

/// Waits until all that was changed is as it should be, if that is wanted.
async fn settle(client: &Client, changed: Vec<Slug>, wait: Option<Duration>) -> Result<String, Failure> {
    match wait {
        Some(patience) if !changed.is_empty() => wait::all_ready(client, changed, patience).await,
        _ => Ok(String::new()),
    }
}
