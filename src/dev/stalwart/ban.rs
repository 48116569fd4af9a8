//! Which addresses are shut out: how failed logins lead to a ban, what it looks like, and how it is lifted.
//!
//! All of it was observed. Failed logins are counted by address and by login name, over a day, and nothing
//! but time takes them back. One too many makes an `x:BlockedIp` that does not expire. Destroying that
//! changes nothing until the listener is told to read the blocks again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::id::Id;

/// What a request meets before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    Welcome,
    /// Its address is banned, and its connection was open before.
    Forbidden,
    /// Its address is banned, and its connection is new: it is closed without an answer.
    Closed,
}

#[derive(Default)]
pub struct Bans {
    /// Failed logins, all together.
    pub failed: u64,
    /// The same by address and by login name.
    counts: HashMap<String, u64>,
    /// `x:BlockedIp`.
    blocked: BTreeMap<u64, Blocked>,
    latest: u64,
    /// What the listener goes by. A ban is added at once, and taken away only when it is told to.
    enforced: BTreeSet<IpAddr>,
    /// Connections on which something was answered.
    open: HashSet<SocketAddr>,
}

struct Blocked {
    address: IpAddr,
    created_at: Timestamp,
}

impl Bans {
    pub fn greet(&mut self, peer: SocketAddr) -> Greeting {
        if !self.enforced.contains(&peer.ip()) {
            self.open.insert(peer);
            Greeting::Welcome
        } else if self.open.contains(&peer) {
            Greeting::Forbidden
        } else {
            Greeting::Closed
        }
    }

    /// Counts a failed login; whether it is one too many.
    pub fn count(&mut self, address: IpAddr, login: Option<&str>, most: u64) -> bool {
        self.failed += 1;
        let subjects = [Some(format!("address {address}")), login.map(|login| format!("login {login}"))];
        let mut worst = 0;
        for subject in subjects.into_iter().flatten() {
            let count = self.counts.entry(subject).or_default();
            *count += 1;
            worst = worst.max(*count);
        }
        let banned = worst > most;
        if banned && self.enforced.insert(address) {
            self.latest += 1;
            self.blocked.insert(self.latest, Blocked { address, created_at: Timestamp::now() });
        }
        banned
    }

    /// All blocks, as `x:BlockedIp/get` shows them.
    pub fn show(&self) -> Vec<Value> {
        let show = |(id, blocked): (&u64, &Blocked)| {
            json!({
                "address": blocked.address.to_string(), "reason": "authFailure",
                "createdAt": blocked.created_at.to_string(), "expiresAt": null,
                "id": Id(*id).to_string(),
            })
        };
        self.blocked.iter().map(show).collect()
    }

    /// Destroys a block, which the listener does not notice.
    pub fn destroy(&mut self, id: u64) -> bool {
        self.blocked.remove(&id).is_some()
    }

    /// The listener reads the blocks again.
    pub fn reload(&mut self) {
        self.enforced = self.blocked.values().map(|blocked| blocked.address).collect();
    }

    /// Lifts all bans. The failed logins stay counted, so that the next one bans again.
    pub fn lift(&mut self) {
        self.blocked.clear();
        self.reload();
    }
}
