//! The database's servers as the driver last saw them, to say why none can be used.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mongodb::ServerType;
use mongodb::bson::Document;
use mongodb::event::EventHandler;
use mongodb::event::sdam::SdamEvent;

use super::without_labels;

/// What each server said of itself, or why it said nothing, by address.
#[derive(Debug, Clone, Default)]
pub(super) struct Servers {
    known: Arc<Mutex<BTreeMap<String, String>>>,
    primary: Arc<AtomicBool>,
}

impl Servers {
    /// Learns from what the driver tells. `set` is the replica set that the address names.
    pub(super) fn watch(&self, set: Option<String>) -> EventHandler<SdamEvent> {
        let servers = self.clone();
        EventHandler::callback(move |event| match event {
            SdamEvent::ServerHeartbeatFailed(failed) => {
                servers.note(&failed.server_address, told(&without_labels(&failed.failure)));
            }
            SdamEvent::ServerHeartbeatSucceeded(beat) => {
                servers.note(&beat.server_address, described(&beat.reply, set.as_deref()));
            }
            SdamEvent::TopologyDescriptionChanged(changed) => {
                let takes_writes = |server: mongodb::ServerInfo<'_>| {
                    matches!(
                        server.server_type(),
                        ServerType::RsPrimary | ServerType::Mongos | ServerType::LoadBalancer
                    )
                };
                let primary = changed.new_description.servers().into_values().any(takes_writes);
                servers.primary.store(primary, Ordering::Relaxed);
            }
            _ => {}
        })
    }

    fn note(&self, server: &mongodb::options::ServerAddress, what: String) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(server.to_string(), what);
    }

    /// Whether one of them takes writes.
    pub(super) fn has_primary(&self) -> bool {
        self.primary.load(Ordering::Relaxed)
    }

    /// Each server and what is known of it.
    pub(super) fn known(&self) -> Vec<(String, String)> {
        let servers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        servers.iter().map(|(server, what)| (server.clone(), what.clone())).collect()
    }
}

/// The driver's reason, and what it means where that is known.
fn told(error: &str) -> String {
    let text = error.strip_prefix("I/O error: ").unwrap_or(error);
    if ["InvalidContentType", "InvalidMessage", "tls handshake eof"].iter().any(|end| text.contains(end))
    {
        return format!("{text}: it does not speak TLS; leave out tls=true, or switch TLS on there");
    }
    if ["unexpected end of file", "unexpected eof", "early eof", "Connection reset"]
        .iter()
        .any(|end| text.to_ascii_lowercase().contains(&end.to_ascii_lowercase()))
    {
        return format!(
            "{text}: it closed the connection; a server that wants TLS does that without tls=true"
        );
    }
    text.to_owned()
}

/// What a server that answers says of itself.
fn described(reply: &Document, wanted: Option<&str>) -> String {
    let is = |field: &str| reply.get_bool(field).unwrap_or(false);
    let set = reply.get_str("setName").ok();
    match (set, wanted) {
        (Some(set), Some(wanted)) if set != wanted => {
            format!("it belongs to the replica set {set:?}, and the address says replicaSet={wanted}")
        }
        (None, Some(_)) if is("isreplicaset") => {
            "its replica set has not been initiated; run rs.initiate() once".to_owned()
        }
        (None, Some(wanted)) => {
            format!("it is in no replica set, and the address says replicaSet={wanted}")
        }
        _ if is("isWritablePrimary") || is("ismaster") => "it answers as primary".to_owned(),
        _ if is("secondary") => "it is a secondary, and its set has no primary".to_owned(),
        _ => "it answers, and is neither primary nor secondary".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_server_that_answers_is_described_by_why_it_cannot_be_used() {
        for (reply, wanted, said) in [
            (
                doc! { "setName": "rs0", "secondary": true },
                Some("rs1"),
                "belongs to the replica set \"rs0\"",
            ),
            (doc! { "isreplicaset": true }, Some("rs0"), "has not been initiated"),
            (doc! { "ismaster": true }, Some("rs0"), "is in no replica set"),
            (doc! { "setName": "rs0", "secondary": true }, None, "its set has no primary"),
            (doc! { "setName": "rs0", "secondary": true }, Some("rs0"), "its set has no primary"),
            (doc! { "setName": "rs0" }, Some("rs0"), "neither primary nor secondary"),
        ] {
            assert!(described(&reply, wanted).contains(said), "{reply}: {}", described(&reply, wanted));
        }
    }
}
