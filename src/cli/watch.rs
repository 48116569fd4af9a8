//! Watching tenants: a line per change.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::Value;

use super::client::{Ask, Client};
use super::commands::{all, read};
use super::failure::{Exit, Failure};
use super::filters::Filters;
use super::table::cell;
use super::wait::summary;
use crate::tenant::Slug;
use crate::terminal::{self, Printed, say};

/// Before connecting again.
const PAUSE: Duration = Duration::from_secs(2);
/// An event longer than this is none of ours.
const LONGEST_EVENT: usize = 4 << 20;

/// Which tenants to watch.
#[derive(Default)]
pub struct Watched {
    /// All of them where none is named.
    pub slugs: Vec<Slug>,
    pub filters: Filters,
}

impl Watched {
    fn holds(&self, tenant: &Value) -> bool {
        let named = |slug: &Slug| tenant["slug"] == slug.as_str();
        (self.slugs.is_empty() || self.slugs.iter().any(named)) && self.filters.hold(tenant)
    }
}

/// What was printed of each tenant, by id: its slug and the line.
struct Seen {
    watched: Watched,
    lines: BTreeMap<String, (String, String)>,
}

/// Prints a line per change of a tenant that is watched, or was until that change, until it is interrupted or
/// no reader is left.
pub async fn watch(client: &Client, watched: Watched) -> Result<String, Failure> {
    let slug = match &watched.slugs[..] {
        [slug] => Some(slug.to_string()),
        _ => None,
    };
    let (mut seen, mut last) = (Seen { watched, lines: BTreeMap::new() }, None);
    let mut connected = false;
    loop {
        let ask = Ask::get(&["tenants", "watch"], "stream of events")
            .query("slug", slug.clone())
            .header("last-event-id", last.clone());
        match client.events(ask).await {
            Ok(mut events) => {
                // Connected first, so that nothing falls between the two.
                if !connected && seen.list(client).await? == Printed::Unread {
                    return Ok(String::new());
                }
                connected = true;
                let mut text = Vec::new();
                while let Ok(Some(more)) = events.chunk().await {
                    text.extend_from_slice(&more);
                    while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                        let event: Vec<u8> = text.drain(..end + 2).collect();
                        let event = Event::read(&String::from_utf8_lossy(&event));
                        last = event.id.clone().or(last);
                        let printed = match event.kind.as_str() {
                            // What was missed is read instead.
                            "gap" => seen.list(client).await?,
                            _ => seen.hear(&event)?,
                        };
                        if printed == Printed::Unread {
                            return Ok(String::new());
                        }
                    }
                    if text.len() > LONGEST_EVENT {
                        return Err(Failure::failed("the server sends something that is no event"));
                    }
                }
            }
            // It was there before, so it may come back; a refusal stays one.
            Err(failure) if connected && failure.exit == Exit::Failed => {
                say(format_args!("tenantry: {failure}"));
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Seen {
    /// Prints what is new since the last look.
    async fn list(&mut self, client: &Client) -> Result<Printed, Failure> {
        let mut tenants = Vec::new();
        if self.watched.slugs.is_empty() {
            // All of those that were printed are looked at again, not only those that still match.
            let filters =
                if self.lines.is_empty() { &self.watched.filters } else { &Filters::default() };
            tenants = all(client, filters).await?;
        }
        for slug in &self.watched.slugs {
            tenants.push(read(client, slug).await?.0);
        }
        for tenant in &tenants {
            if self.tenant(tenant)? == Printed::Unread {
                return Ok(Printed::Unread);
            }
        }
        Ok(Printed::Whole)
    }

    fn hear(&mut self, event: &Event) -> io::Result<Printed> {
        match event.kind.as_str() {
            "tenant" => self.tenant(&event.data),
            "gone" => match self.lines.remove(&cell(&event.data["id"])) {
                Some((slug, _)) => print(&slug, "gone"),
                None => Ok(Printed::Whole),
            },
            _ => Ok(Printed::Whole),
        }
    }

    fn tenant(&mut self, tenant: &Value) -> io::Result<Printed> {
        let shown = (cell(&tenant["slug"]), summary(tenant));
        let id = cell(&tenant["id"]);
        let before = self.lines.get(&id);
        let watched = self.watched.holds(tenant);
        if before == Some(&shown) || (before.is_none() && !watched) {
            return Ok(Printed::Whole);
        }
        let printed = print(&shown.0, &shown.1)?;
        // One that is watched no longer is told once.
        if watched {
            self.lines.insert(id, shown);
        } else {
            self.lines.remove(&id);
        }
        Ok(printed)
    }
}

fn print(slug: &str, line: &str) -> io::Result<Printed> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    terminal::print(&format!("{now} {slug}: {line}\n"))
}

/// One server-sent event.
struct Event {
    kind: String,
    data: Value,
    id: Option<HeaderValue>,
}

impl Event {
    fn read(text: &str) -> Self {
        let (mut kind, mut data, mut id) = (String::new(), String::new(), None);
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut kind),
                "data" => data.push_str(value),
                "id" => id = HeaderValue::from_str(value).ok(),
                _ => {}
            }
        }
        Self { kind, data: serde_json::from_str(&data).unwrap_or_default(), id }
    }
}
