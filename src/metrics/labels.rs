//! Labels of metrics: closed lists, one type each.
//!
//! A family takes values of these types and nothing else, so that neither a slug, an id nor a message can become
//! a label, and the number of series stays what the catalogue says.

use std::fmt;

use crate::tenant::{ActKind, Breaker, Part, Phase, Reason, StepState, SweepEnd, Upstream, Urgency};

/// One label: its name and its values.
pub trait Label: Copy + 'static {
    const NAME: &'static str;

    /// All values, in the order in which people read them. Empty where they are not listed one by one.
    fn values() -> Vec<&'static str>;

    fn value(self) -> &'static str;
}

/// The labels of a family.
pub trait Labels: Copy + 'static {
    fn names() -> Vec<&'static str>;

    /// The values of each.
    fn values() -> Vec<Vec<&'static str>>;

    fn with<R>(self, then: impl FnOnce(&[&str]) -> R) -> R;
}

impl<A: Label, B: Label> Labels for (A, B) {
    fn names() -> Vec<&'static str> {
        vec![A::NAME, B::NAME]
    }

    fn values() -> Vec<Vec<&'static str>> {
        vec![A::values(), B::values()]
    }

    fn with<R>(self, then: impl FnOnce(&[&str]) -> R) -> R {
        then(&[self.0.value(), self.1.value()])
    }
}

impl<A: Label, B: Label, C: Label> Labels for (A, B, C) {
    fn names() -> Vec<&'static str> {
        vec![A::NAME, B::NAME, C::NAME]
    }

    fn values() -> Vec<Vec<&'static str>> {
        vec![A::values(), B::values(), C::values()]
    }

    fn with<R>(self, then: impl FnOnce(&[&str]) -> R) -> R {
        then(&[self.0.value(), self.1.value(), self.2.value()])
    }
}

/// Makes a type a label, and a family's only one.
macro_rules! label {
    ($type:ty, $name:literal, $values:expr) => {
        impl Label for $type {
            const NAME: &'static str = $name;

            fn values() -> Vec<&'static str> {
                let all: &[Self] = $values;
                all.iter().map(|value| value.name()).collect()
            }

            fn value(self) -> &'static str {
                self.name()
            }
        }

        impl Labels for $type {
            fn names() -> Vec<&'static str> {
                vec![Self::NAME]
            }

            fn values() -> Vec<Vec<&'static str>> {
                vec![<Self as Label>::values()]
            }

            fn with<R>(self, then: impl FnOnce(&[&str]) -> R) -> R {
                then(&[self.value()])
            }
        }
    };
}

/// Makes an enum that is a label.
macro_rules! labels {
    ($( $(#[$doc:meta])* $type:ident, $name:literal { $( $(#[$value_doc:meta])* $value:ident = $text:literal, )* } )*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type { $( $(#[$value_doc])* $value, )* }

        impl $type {
            pub const ALL: &'static [Self] = &[$( Self::$value, )*];

            pub const fn name(self) -> &'static str {
                match self { $( Self::$value => $text, )* }
            }
        }

        label!($type, $name, Self::ALL);
    )* };
}

label!(Upstream, "upstream", &Self::ALL);
label!(StepState, "state", &Self::ALL);
label!(Phase, "status", &Self::ALL);
label!(Reason, "reason", Self::ALL);
label!(Urgency, "priority", &Self::ALL);
label!(SweepEnd, "result", &Self::ALL);
label!(ActKind, "act", &Self::ALL);

labels! {
    /// How a claim of a tenant ended.
    ReconcileEnd, "result" {
        /// All due steps are as they should be.
        Ok = "ok",
        /// A step failed.
        Error = "error",
        /// Something changed while it ran: the tenant is due again.
        Interrupted = "interrupted",
        /// The tenant was deleted, and its document is gone.
        Removed = "removed",
        /// Another process has it, or it is not due any more.
        NotDue = "not_due",
        /// The document is no valid tenant.
        Invalid = "invalid",
        /// The lease went to another process before the commit.
        Fenced = "fenced",
        /// Given back, because the process ends.
        Abandoned = "abandoned",
        /// The database did not answer.
        Unavailable = "unavailable",
        /// The database refused the write.
        Refused = "refused",
    }
    /// How a run of a step ended.
    StepEnd, "outcome" {
        Ok = "ok",
        Skipped = "skipped",
        /// A stop, a pause, a change guard or a missing setting holds it.
        Held = "held",
        /// It was only looked at.
        Observed = "observed",
        /// The upstream asked for a pause, or is down.
        Paced = "paced",
        /// What it is about to adopt is recorded first.
        Adopting = "adopting",
        Error = "error",
    }
    /// Why a change stream was opened again.
    WatchEnd, "cause" {
        Interrupted = "interrupted",
        Slow = "slow",
        CollectionGone = "collection_gone",
        HistoryLost = "history_lost",
    }
    /// Why the API refused a request before anything was done.
    Refusal, "cause" {
        /// A client sent too many.
        Rate = "rate",
        /// Too many were being answered.
        Overload = "overload",
        /// No token, or one that is not accepted.
        Token = "token",
        /// The token gives too little.
        Role = "role",
    }
    /// Whether something worked.
    Worked, "result" {
        Ok = "ok",
        Failed = "failed",
    }
    /// Where a panic was caught.
    PanicPlace, "place" {
        Reconcile = "reconcile",
        Request = "request",
    }
    /// Whether steps are let through to an upstream.
    BreakerState, "state" {
        /// It has not answered yet, or has just begun to again.
        Unproven = "unproven",
        Closed = "closed",
        Open = "open",
    }
    /// In what a resource differs from what was recorded of it.
    Differing, "differs" {
        Missing = "missing",
        /// There is a second one.
        Twin = "twin",
        Id = "id",
        Name = "name",
        Mark = "mark",
        Settings = "settings",
        Enabled = "enabled",
    }
    /// Whether the condition `Ready` holds.
    ReadyStatus, "ready" {
        True = "true",
        False = "false",
    }
    /// What a request to an upstream is for.
    Operation, "operation" {
        Check = "check",
        DiscoverIssuer = "discover_issuer",
        GetToken = "get_token",
        FindKeys = "find_keys",
        FindGroup = "find_group",
        FindGroupByName = "find_group_by_name",
        FindGroupByMark = "find_group_by_mark",
        GetGroup = "get_group",
        CreateGroup = "create_group",
        UpdateGroup = "update_group",
        ReleaseGroup = "release_group",
        DeleteGroup = "delete_group",
        DeleteDuplicateGroup = "delete_duplicate_group",
        SweepGroups = "sweep_groups",
        FindDomain = "find_domain",
        FindDefaultDomain = "find_default_domain",
        FindMarkedDomains = "find_marked_domains",
        ListDomains = "list_domains",
        CreateDomain = "create_domain",
        UpdateDomain = "update_domain",
        ReleaseDomain = "release_domain",
        RemoveDomain = "remove_domain",
        DropKeys = "drop_keys",
        SeeOwnDrive = "see_own_drive",
        FindSpace = "find_space",
        FindMarkedSpaces = "find_marked_spaces",
        GetSpace = "get_space",
        CreateSpace = "create_space",
        UpdateSpace = "update_space",
        RestoreSpace = "restore_space",
        ReleaseSpace = "release_space",
        DisableSpace = "disable_space",
        DisableDuplicateSpace = "disable_duplicate_space",
        PurgeSpace = "purge_space",
        SweepSpaces = "sweep_spaces",
        FindMemberApi = "find_member_api",
        AddGroup = "add_group",
        InviteGroup = "invite_group",
        ChangeGroupRole = "change_group_role",
    }
    /// A command of MongoDB.
    MongoCommand, "command" {
        Find = "find",
        FindAndModify = "findAndModify",
        Insert = "insert",
        Update = "update",
        Delete = "delete",
        Aggregate = "aggregate",
        GetMore = "getMore",
        KillCursors = "killCursors",
        Count = "count",
        CreateIndexes = "createIndexes",
        Hello = "hello",
        Ping = "ping",
        /// What starts need, and what the driver sends by itself.
        Other = "other",
    }
    /// The method of a request to the API.
    HttpMethod, "method" {
        Get = "GET",
        Post = "POST",
        Put = "PUT",
        Patch = "PATCH",
        Delete = "DELETE",
        Other = "other",
    }
}

impl Worked {
    pub const fn of(worked: bool) -> Self {
        if worked { Self::Ok } else { Self::Failed }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl MongoCommand {
    pub fn of(name: &str) -> Self {
        Self::ALL.iter().copied().find(|command| command.name() == name).unwrap_or(Self::Other)
    }
}

impl HttpMethod {
    pub fn of(method: &str) -> Self {
        Self::ALL.iter().copied().find(|known| known.name() == method).unwrap_or(Self::Other)
    }
}

/// The status code of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusCode(pub u16);

impl StatusCode {
    const fn name(self) -> &'static str {
        match self.0 {
            200 => "200",
            201 => "201",
            202 => "202",
            204 => "204",
            206 => "206",
            207 => "207",
            304 => "304",
            307 => "307",
            308 => "308",
            400 => "400",
            401 => "401",
            403 => "403",
            404 => "404",
            405 => "405",
            408 => "408",
            409 => "409",
            412 => "412",
            413 => "413",
            414 => "414",
            415 => "415",
            422 => "422",
            423 => "423",
            425 => "425",
            429 => "429",
            431 => "431",
            500 => "500",
            501 => "501",
            502 => "502",
            503 => "503",
            504 => "504",
            507 => "507",
            other => match other / 100 {
                1 => "1xx",
                2 => "2xx",
                3 => "3xx",
                4 => "4xx",
                5 => "5xx",
                _ => "other",
            },
        }
    }
}

/// How a request to an upstream ended: a status, or what kept it from having one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallEnd {
    Status(StatusCode),
    Connect,
    Tls,
    Timeout,
    Broken,
    TooLong,
    Paused,
    /// Nothing was sent, or the answer was about the credential.
    Credential,
}

impl CallEnd {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Status(status) => status.name(),
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::TooLong => "too_long",
            Self::Paused => "paused",
            Self::Credential => "credential",
        }
    }
}

label!(StatusCode, "status", &[]);
label!(CallEnd, "status", &[]);

/// A path of the API, as its description has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route(&'static str);

impl Route {
    /// A request for anything else.
    pub const OTHER: Self = Self("other");

    /// Of the paths that the router has.
    pub const fn of(path: &'static str) -> Self {
        Self(path)
    }

    const fn name(self) -> &'static str {
        self.0
    }
}

label!(Route, "route", &[]);

impl From<Part> for Differing {
    fn from(part: Part) -> Self {
        match part {
            Part::Id => Self::Id,
            Part::Name => Self::Name,
            Part::Mark => Self::Mark,
            Part::Settings => Self::Settings,
            Part::Enabled => Self::Enabled,
        }
    }
}

impl From<Breaker> for BreakerState {
    fn from(breaker: Breaker) -> Self {
        match breaker {
            Breaker::Unproven => Self::Unproven,
            Breaker::Closed => Self::Closed,
            Breaker::Open { .. } => Self::Open,
        }
    }
}
