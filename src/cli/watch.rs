//! Watching tenants: a line per change.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::Value;

use super::client::{Ask, Client};
use super::commands::{all, read};
use super::failure::{Exit, Failure};
use super::follow::summary;
use super::table::cell;
use crate::tenant::Slug;

/// Before connecting again.
const PAUSE: Duration = Duration::from_secs(2);
/// An event longer than this is none of ours.
const LONGEST_EVENT: usize = 4 << 20;

/// What was printed of each tenant, by id: its slug and the line.
#[derive(Default)]
struct Seen(BTreeMap<String, (String, String)>);

/// Prints a line per change, until it is interrupted or nobody reads on.
pub async fn watch(client: &Client, slug: Option<&Slug>) -> Result<String, Failure> {
    let (mut seen, mut last) = (Seen::default(), None);
    let mut connected = false;
    loop {
        let ask = Ask::get(&["tenants", "watch"], "stream of events")
            .query("slug", slug.map(ToString::to_string))
            .header("last-event-id", last.clone());
        match client.events(ask).await {
            Ok(mut events) => {
                // Connected first, so that nothing falls between the two.
                if !connected && seen.list(client, slug).await?.is_none() {
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
                            "gap" => seen.list(client, slug).await?,
                            _ => seen.hear(&event),
                        };
                        if printed.is_none() {
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
                eprintln!("tenantry: {failure}")
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Seen {
    /// Prints what is new since the last look. `None` when nobody reads on.
    async fn list(&mut self, client: &Client, slug: Option<&Slug>) -> Result<Option<()>, Failure> {
        let tenants = match slug {
            Some(slug) => vec![read(client, slug).await?.0],
            None => all(client, None).await?,
        };
        Ok(tenants.iter().try_for_each(|tenant| self.tenant(tenant)))
    }

    fn hear(&mut self, event: &Event) -> Option<()> {
        match event.kind.as_str() {
            "tenant" => self.tenant(&event.data),
            "gone" => match self.0.remove(&cell(&event.data["id"])) {
                Some((slug, _)) => print(&slug, "gone"),
                None => Some(()),
            },
            _ => Some(()),
        }
    }

    fn tenant(&mut self, tenant: &Value) -> Option<()> {
        let (slug, line) = (cell(&tenant["slug"]), summary(tenant));
        let shown = (slug, line);
        let id = cell(&tenant["id"]);
        if self.0.get(&id) == Some(&shown) {
            return Some(());
        }
        print(&shown.0, &shown.1)?;
        self.0.insert(id, shown);
        Some(())
    }
}

fn print(slug: &str, line: &str) -> Option<()> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    writeln!(std::io::stdout(), "{now} {slug}: {line}").ok()
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
