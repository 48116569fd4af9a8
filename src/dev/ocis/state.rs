//! What a simulated server holds: spaces with their members, users and groups.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Role;

/// Bytes; `GRAPH_SPACES_DEFAULT_QUOTA` (observed).
pub const DEFAULT_QUOTA: i64 = 1_000_000_000;

/// A project space.
#[derive(Debug, Clone)]
pub struct Drive {
    /// The second half of its id.
    pub space: String,
    pub name: String,
    pub alias: String,
    /// Absent where empty.
    pub description: String,
    /// Bytes; 0 is unlimited.
    pub quota: i64,
    /// Bytes that are stored.
    pub used: i64,
    pub modified: jiff::Timestamp,
    pub etag: u128,
    pub disabled: bool,
    pub members: Vec<Member>,
}

#[derive(Debug, Clone)]
pub struct Member {
    pub who: Grantee,
    pub display_name: String,
    pub rank: Rank,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grantee {
    /// By id, both.
    User(String),
    Group(String),
}

/// What a member may do in a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    Manager,
    Editor,
    Viewer,
}

impl Rank {
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Editor, Self::Manager];

    /// In `root.permissions` of v1.0, and in OCS.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Editor => "editor",
            Self::Viewer => "viewer",
        }
    }

    /// The role definition of v1beta1.
    pub fn id(self) -> &'static str {
        match self {
            Self::Manager => "312c0871-5ef7-4b3a-85b6-0e4074c64049",
            Self::Editor => "58c63c02-1d89-4572-916a-870abc5a1b7d",
            Self::Viewer => "a8d5fe5e-96e3-418d-825b-534dbdf22b99",
        }
    }
}

impl Drive {
    pub fn new(name: String, alias: String, quota: i64) -> Self {
        Self {
            space: new_id(),
            name,
            alias,
            description: String::new(),
            quota,
            used: 0,
            modified: jiff::Timestamp::now(),
            etag: rand::random(),
            disabled: false,
            members: Vec::new(),
        }
    }

    /// Every PATCH does it, an empty one too (observed).
    pub fn touch(&mut self) {
        self.modified = jiff::Timestamp::now();
        self.etag = rand::random();
    }

    /// Makes an account a member, or changes what the member may do.
    pub fn grant(&mut self, who: Grantee, display_name: &str, rank: Rank) {
        match self.members.iter_mut().find(|member| member.who == who) {
            Some(member) => member.rank = rank,
            None => self.members.push(Member { who, display_name: display_name.to_owned(), rank }),
        }
    }

    /// The highest rank that a user has, also as a member of a group.
    pub fn rank_of(&self, user: &User) -> Option<Rank> {
        let ranks = self.members.iter().filter(|member| match &member.who {
            Grantee::User(id) => *id == user.id,
            Grantee::Group(id) => user.groups.contains(id),
        });
        ranks.map(|member| member.rank).max_by_key(|rank| Rank::ALL.iter().position(|r| r == rank))
    }

    /// Whether there is a manager beside this member.
    pub fn managed_without(&self, who: &Grantee) -> bool {
        self.members.iter().any(|member| member.rank == Rank::Manager && member.who != *who)
    }
}

/// `project/<name>`, in lower case and with dashes for blanks (observed).
pub fn default_alias(name: &str) -> String {
    format!("project/{}", name.to_lowercase().replace(' ', "-"))
}

#[derive(Debug, Clone)]
pub struct User {
    pub id: String,
    /// `onPremisesSamAccountName`.
    pub name: String,
    pub display_name: String,
    pub mail: String,
    pub role: Role,
    /// Ids of its groups.
    pub groups: Vec<String>,
    /// When its personal space was made.
    pub since: jiff::Timestamp,
}

#[derive(Debug, Clone)]
pub struct Group {
    pub id: String,
    pub name: String,
}

pub struct Spaces {
    /// The first half of every space's id.
    pub storage: String,
    /// Whether the storage cannot be reached.
    pub away: bool,
    /// By space. Shared, because a list goes on while they change.
    drives: HashMap<String, Arc<Drive>>,
    /// By name.
    pub users: BTreeMap<String, User>,
    /// By name.
    pub groups: BTreeMap<String, Group>,
    /// Users who are being made, with how many parallel requests have failed for it.
    pub provisioning: BTreeMap<String, u32>,
}

impl Spaces {
    pub fn new() -> Self {
        let mut spaces = Self {
            storage: new_id(),
            away: false,
            drives: HashMap::new(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
            provisioning: BTreeMap::new(),
        };
        spaces.add_user("admin", "Admin", "admin@example.org", Role::Admin);
        spaces
    }

    pub fn add_user(&mut self, name: &str, display_name: &str, mail: &str, role: Role) -> User {
        let user = User {
            id: new_id(),
            name: name.to_owned(),
            display_name: display_name.to_owned(),
            mail: mail.to_owned(),
            role,
            groups: Vec::new(),
            since: jiff::Timestamp::now(),
        };
        self.users.insert(name.to_owned(), user.clone());
        user
    }

    /// The user of that name, made where there is none.
    pub fn user_named(&mut self, name: &str) -> User {
        match self.users.get(name) {
            Some(user) => user.clone(),
            None => self.add_user(name, name, &format!("{name}@example.test"), Role::User),
        }
    }

    pub fn user_by_id(&self, id: &str) -> Option<&User> {
        self.users.values().find(|user| user.id == id)
    }

    pub fn group_by_id(&self, id: &str) -> Option<&Group> {
        self.groups.values().find(|group| group.id == id)
    }

    pub fn user_ids(&self, wanted: impl Fn(&User) -> bool) -> Vec<String> {
        self.users.values().filter(|user| wanted(user)).map(|user| user.id.clone()).collect()
    }

    pub fn remove_user(&mut self, name: &str) -> bool {
        self.users.remove(name).is_some()
    }

    /// The id of the group of that name, made where there is none.
    pub fn add_group(&mut self, name: &str) -> String {
        let make = || Group { id: new_id(), name: name.to_owned() };
        self.groups.entry(name.to_owned()).or_insert_with(make).id.clone()
    }

    /// The space that an id means: `storage$space`, or the space alone (observed).
    fn space_of<'a>(&self, id: &'a str) -> Option<&'a str> {
        match id.split_once('$') {
            Some((storage, space)) => (storage == self.storage).then_some(space),
            None => Some(id),
        }
    }

    pub fn find(&self, id: &str) -> Option<Arc<Drive>> {
        self.drives.get(self.space_of(id)?).cloned()
    }

    /// Changes a space; `None` where there is none.
    pub fn edit(&mut self, id: &str, how: impl FnOnce(&mut Drive)) -> Option<Arc<Drive>> {
        let space = self.space_of(id)?;
        let drive = self.drives.get_mut(space)?;
        how(Arc::make_mut(drive));
        Some(Arc::clone(drive))
    }

    pub fn insert(&mut self, drive: Drive) -> Arc<Drive> {
        let drive = Arc::new(drive);
        self.drives.insert(drive.space.clone(), Arc::clone(&drive));
        drive
    }

    pub fn remove(&mut self, id: &str) -> Option<Arc<Drive>> {
        self.drives.remove(self.space_of(id)?)
    }

    /// All project spaces, in no order.
    pub fn projects(&self) -> Vec<Arc<Drive>> {
        self.drives.values().cloned().collect()
    }

    pub fn count(&self) -> usize {
        self.drives.len()
    }
}

/// A version 4 UUID in form.
pub fn new_id() -> String {
    let random: u128 = rand::random();
    let hex = format!("{random:032x}");
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
