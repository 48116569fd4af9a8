//! oCIS and OpenCloud: one project space per tenant, LibreGraph `/graph/v1.0/drives`.
//!
//! Source: what oCIS 3.1 and OpenCloud 0.1 were observed to do.
//!
//! * Nothing is unique, there are no ids of our choosing and no idempotency key. A create carries a mark
//!   (tenant and intent) in alias and description, and the intent is recorded before it is sent: whether a
//!   create whose answer was lost was applied is found out by looking for that mark.
//! * A request that is applied late can still leave a second space, a *twin*. The recorded one is kept;
//!   a twin in which nothing is stored is disabled, never purged.
//! * "Gone" can be a lie: while its storage is away, oCIS answers 404 and empty lists. Absence counts only
//!   if our own personal drive can be seen in the same breath.
//! * oCIS 3.1 hides a space from an account that is no member (any manager of it can remove us), but lists
//!   it. So a space that cannot be got is looked for in the list before anything is believed.
//! * Every manager of a space may rename it, clear its marks, or disable it: all that is mended.

mod drive;
mod list_reader;
mod members;
mod search;

pub use drive::Drive;
pub use members::{Membership, SpaceRole};

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use self::drive::{Mark, legal_name};
use self::members::{Added, Members};
use self::search::{Search, Wanted};
use super::Error;
use super::adopt::Owner;
use super::converge::{
    Checked, DUPLICATE, Integration, Marked, Release, Released, Remarks, Seen, Target, Usage,
};
use super::deeds::note;
use super::upstream::{Answer, Call, Credentials, Dialect, Purpose, UpstreamClient};
use crate::failpoint;
use crate::metrics::{Metrics, Operation};
use crate::tenant::{Before, Deed, Fate, Field, Fingerprint, Reason, TenantId, Upstream};

/// The integration with one oCIS or OpenCloud.
pub struct Ocis {
    upstream: Arc<UpstreamClient>,
    search: Search,
    members: Option<Members>,
    metrics: Arc<Metrics>,
}

/// A tenant's space.
pub struct Space {
    drive: Drive,
    /// Other spaces with the tenant's mark that are not disabled yet.
    twins: Vec<Drive>,
    /// Whether the group still has to be given its role.
    group_missing: bool,
    /// The server has yet to learn of that group.
    group_unknown: bool,
    /// A create whose outcome was never known may still be applied.
    twin_possible: bool,
    notes: Vec<String>,
}

const ENABLED: &str = "enabled";
const DISABLED: &str = "disabled";
const DRIVES: [&str; 3] = ["graph", "v1.0", "drives"];
/// How late a request is expected to be applied, at the most.
const LATEST: Duration = Duration::from_secs(900);
/// Between looks for a twin; the older the intent, the longer.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// Built-in roles that may manage all spaces; their ids are fixed (observed).
const SPACE_ADMINS: [&str; 2] =
    ["2aadd357-682c-406b-8874-293091995fdd", "71881883-1768-46bd-a24d-a356a2afdf7f"];
/// As a quota (observed).
const UNLIMITED: i64 = 0;
const REMEDY: &str = "Our account needs the role Space Admin: map one of its groups to the role \
                      spaceadmin in the proxy's role_assignment, or assign the role in the settings";

impl Ocis {
    /// `patience` is the longest that a list may pause.
    pub fn new(
        upstream: UpstreamClient,
        membership: Option<Membership>,
        patience: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let upstream = Arc::new(upstream.speaking(Dialect { judge, closed: "" }));
        let search = Search::new(Arc::clone(&upstream), patience);
        Self { upstream, search, members: membership.map(Members::new), metrics }
    }

    async fn get(&self, id: &str) -> Result<Option<Drive>, Error> {
        let path = drive_path(id);
        let call = Call::get(Operation::GetSpace, &path);
        let answer = self.upstream.read(&call).await?;
        match answer.status {
            StatusCode::OK => self.parse(&call, Purpose::Read, &answer).map(Some),
            StatusCode::NOT_FOUND if graph_code(&answer).is_some() => Ok(None),
            _ => Err(refused(&self.upstream, &call, Purpose::Read, answer)),
        }
    }

    /// The canary: our own personal drive was made at our first login, and is never removed. While it
    /// cannot be seen, nothing that cannot be seen is gone.
    ///
    /// # Errors
    /// [`Reason::StorageAway`].
    pub async fn see_our_own(&self) -> Result<(), Error> {
        let call = Call::get(Operation::SeeOwnDrive, &["graph", "v1.0", "me", "drive"]);
        let answer = self.upstream.read(&call).await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND => {
                let message = format!(
                    "{}. Not even our own drive can be seen: oCIS' storage is away, and what seems to be \
                     gone is not believed to be",
                    self.upstream.refusal(&call, &answer)
                );
                Err(Error::transient(Reason::StorageAway, message))
            }
            _ => Err(refused(&self.upstream, &call, Purpose::Read, answer)),
        }
    }

    fn parse<T: for<'de> Deserialize<'de>>(
        &self,
        call: &Call<'_>,
        purpose: Purpose,
        answer: &Answer,
    ) -> Result<T, Error> {
        answer.json().ok_or_else(|| {
            let message = self.upstream.refusal(call, answer);
            Error::transient(Reason::UnexpectedAnswer, message).after(purpose)
        })
    }

    /// What is the tenant's by its id or a mark, but cannot be understood, is neither gone nor empty.
    fn understood(&self, drives: &[Drive]) -> Result<(), Error> {
        let odd = drives.iter().find_map(|drive| Some((drive, drive.fault.as_ref()?)));
        odd.map_or(Ok(()), |(drive, fault)| {
            let fault = self.upstream.printable(fault);
            let message = format!("ocis: the space {} cannot be understood: {fault}", drive.id);
            Err(Error::transient(Reason::UnexpectedAnswer, message))
        })
    }

    /// The tenant's space among those that carry its mark or are recorded as its own.
    fn choose(target: &Target, mut drives: Vec<Drive>) -> Option<(Drive, Vec<Drive>)> {
        let intent = target.intent.map(|intent| intent.id);
        let is_ours = |drive: &Drive| {
            let marks = drive.marks();
            marks.name(target.id) && !target.fleet.is_not(marks.fleet())
        };
        // Every look must choose the same one: the recorded, else one of ours, of this very intent, else one
        // that is not disabled, else the first by id.
        drives.sort_by_key(|drive| {
            (
                target.recorded.as_ref() != Some(&drive.id),
                !is_ours(drive),
                drive.marks().intent() != intent,
                drive.is_disabled(),
                drive.id.clone(),
            )
        });
        drives.dedup_by(|a, b| a.id == b.id);
        let mut drives = drives.into_iter();
        let chosen = drives.next()?;
        let twins = drives.filter(|drive| !drive.is_disabled() && is_ours(drive));
        Some((chosen, twins.collect()))
    }

    fn space(&self, target: &Target, drive: Drive, twins: Vec<Drive>, twin_possible: bool) -> Space {
        let group_missing = self.members.as_ref().is_some_and(|members| {
            let (group, role) = (members.group(&target.slug), members.membership.role.name());
            !drive.roles_of_group(&group).any(|given| given == role)
        });
        Space { drive, twins, group_missing, group_unknown: false, twin_possible, notes: Vec::new() }
    }

    /// The mark that the tenant's space carries: the one that it was made with, if it still does.
    fn mark(target: &Target, drive: &Drive, usage: Usage) -> Mark {
        let marks = drive.marks();
        let made_with = marks.name(target.id).then(|| marks.intent()).flatten();
        let intent = target.intent.map(|intent| intent.id);
        Mark { tenant: target.id, intent: made_with.or(intent), usage, fleet: Some(target.fleet) }
    }

    /// Which of a drive's marks must be written to say `mark`.
    fn marking(target: &Target, drive: &Drive, mark: Mark) -> serde_json::Map<String, Value> {
        let mut body = serde_json::Map::new();
        let alias = mark.alias(&target.slug);
        if drive.drive_alias.as_ref() != Some(&alias) {
            body.insert("driveAlias".into(), alias.into());
        }
        if !mark.is_said_by(drive.marks().description) {
            body.insert("description".into(), mark.describe(drive.description.as_deref()).into());
        }
        body
    }

    fn print(&self, drive: &Drive) -> Fingerprint {
        let marks = drive.marks();
        let mark = format!("{:?} {:?}", marks.alias, marks.description);
        // Who else is a member is the members' business.
        let ours = |group: &str| self.members.as_ref().is_some_and(|members| members.may_be_ours(group));
        let settings = format!("{:?} {}", drive.quota.total, drive.group_roles(ours));
        let parts = Fingerprint::of([&drive.id, &drive.name, &mark, &settings, &drive.is_disabled()]);
        match &self.members {
            Some(members) => parts.under(&members.membership.to_string()),
            None => parts,
        }
    }

    /// Disables a twin, unless something is kept in it.
    async fn disable_twin(&self, kept: &Drive, twin: &Drive) -> Result<String, Error> {
        if twin.quota.used.is_some_and(|used| used > 0) {
            let message = format!(
                "ocis: the spaces {} and {} both carry this tenant's mark; the first is its space. In the \
                 second {} bytes are stored: move them, and it will be disabled",
                kept.id,
                twin.id,
                twin.quota.used.unwrap_or_default(),
            );
            return Err(Error::terminal(Reason::Duplicate, message).about(&kept.id));
        }
        let path = drive_path(&twin.id);
        let call = Call::new(Operation::DisableDuplicateSpace, Method::DELETE, &path);
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::NO_CONTENT => note(Deed::TwinLetGo(Fate::Disabled), &twin.name, &twin.id),
            StatusCode::NOT_FOUND => {}
            _ => return Err(refused(&self.upstream, &call, Purpose::Write, answer)),
        }
        self.metrics.twins_disabled.inc();
        Ok(format!("a second space of this tenant ({}) was disabled; it can be restored", twin.id))
    }

    /// Lets a twin go with the tenant's space: marked like that, and disabled if nothing is stored in it.
    async fn let_twin_go(&self, target: &Target, twin: &Drive, usage: Usage) -> Result<String, Error> {
        self.let_go(twin, Self::marking(target, twin, Self::mark(target, twin, usage))).await?;
        if twin.quota.used.is_some_and(|used| used > 0) {
            note(Deed::LetGo(Fate::Kept(usage.name())), &twin.name, &twin.id);
            return Ok(format!(
                "a second space of this tenant ({}) is kept, marked {}",
                twin.id,
                usage.name()
            ));
        }
        if self.disable(twin).await? {
            note(Deed::TwinLetGo(Fate::Disabled), &twin.name, &twin.id);
            self.metrics.twins_disabled.inc();
        }
        Ok(format!("a second space of this tenant ({}) was disabled; it can be restored", twin.id))
    }

    /// Writes what a space says once it is let go. Whether that was a change of one that is there.
    async fn let_go(&self, drive: &Drive, body: serde_json::Map<String, Value>) -> Result<bool, Error> {
        if body.is_empty() {
            return Ok(false);
        }
        let path = drive_path(&drive.id);
        let call = Call::new(Operation::ReleaseSpace, Method::PATCH, &path).json(&Value::Object(body));
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND if graph_code(&answer).is_some() => Ok(false),
            _ => Err(refused(&self.upstream, &call, Purpose::Write, answer)),
        }
    }

    /// Whether it was there.
    async fn disable(&self, drive: &Drive) -> Result<bool, Error> {
        let path = drive_path(&drive.id);
        let call = Call::new(Operation::DisableSpace, Method::DELETE, &path);
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refused(&self.upstream, &call, Purpose::Write, answer)),
        }
    }

    /// Makes an adopted space say again what it said before. What people wrote into its description stays.
    async fn put_back(&self, drive: &Drive, before: &Before) -> Result<(), Error> {
        let said = |field: &str| before.get(field).and_then(Option::as_deref);
        let mut body = serde_json::Map::new();
        if let Some(name) = said("name").filter(|name| *name != drive.name) {
            body.insert("name".into(), name.into());
        }
        if let Some(total) = said("quota").and_then(|total| total.parse::<i64>().ok())
            && drive.quota.total != Some(total)
        {
            body.insert("quota".into(), json!({ "total": total }));
        }
        if let Some(alias) =
            said("driveAlias").filter(|alias| drive.drive_alias.as_deref() != Some(*alias))
        {
            body.insert("driveAlias".into(), alias.into());
        }
        let text = drive.description.as_deref();
        let described = drive::with_word(text, said("mark").unwrap_or_default());
        if text.unwrap_or_default() != described {
            body.insert("description".into(), described.into());
        }
        self.let_go(drive, body).await?;
        if said("state") == Some(DISABLED) && !drive.is_disabled() {
            self.disable(drive).await?;
        }
        Ok(())
    }

    /// The quota that the drive should have, if that is any business of ours. One that we gave and that is no
    /// longer wanted is taken back, unless a person has set another one since: no limit (which oCIS calls 0),
    /// or what an adopted space had before. The server's default cannot be asked for once a space is there
    /// (observed: a PATCH without a quota changes nothing, a negative one is an error).
    fn quota(target: &Target, drive: &Drive) -> Option<i64> {
        if target.desired.storage_bytes.is_some() {
            return target.desired.storage_bytes;
        }
        let given = target.given_quota.filter(|given| drive.quota.total == Some(*given))?;
        let before = target.adopted_before(&drive.id).and_then(|before| before.get("quota")?.clone());
        let before = before.and_then(|total| total.parse().ok()).unwrap_or(UNLIMITED);
        (before != given).then_some(before)
    }

    /// Makes the drive's own fields match.
    async fn patch(&self, target: &Target, drive: &Drive) -> Result<Drive, Error> {
        let mark = Self::mark(target, drive, Usage::InUse);
        let mut body = Self::marking(target, drive, mark);
        let name = legal_name(&target.desired.name, target.slug.as_str());
        if drive.name != name {
            body.insert("name".into(), name.into());
        }
        if let Some(total) = Self::quota(target, drive)
            && drive.quota.total != Some(total)
        {
            body.insert("quota".into(), json!({ "total": total }));
        }
        if !body.is_empty() && drive.marks().description != Some(mark) {
            // An older mark, which lacks the fleet.
            body.insert("description".into(), mark.describe(drive.description.as_deref()).into());
        }
        let restores = drive.is_disabled();
        if body.is_empty() && !restores {
            return Ok(drive.clone());
        }
        let path = drive_path(&drive.id);
        let operation = if restores { Operation::RestoreSpace } else { Operation::UpdateSpace };
        let mut call = Call::new(operation, Method::PATCH, &path).json(&Value::Object(body));
        if restores {
            // With a body, even an empty one (observed).
            call = call.header("restore", "T");
        }
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::OK => self.parse(&call, Purpose::Write, &answer),
            // Gone since we looked.
            StatusCode::NOT_FOUND if graph_code(&answer).is_some() => {
                let message = self.upstream.refusal(&call, &answer);
                Err(Error::transient(Reason::UnexpectedAnswer, message).stale())
            }
            _ => Err(refused(&self.upstream, &call, Purpose::Write, answer).about(&drive.id)),
        }
    }
}

fn drive_path(id: &str) -> [&str; 4] {
    ["graph", "v1.0", "drives", id]
}

/// The code of an error that the graph itself gave, which a proxy's page is not.
fn graph_code(answer: &Answer) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        error: Code,
    }
    #[derive(Deserialize)]
    struct Code {
        code: String,
    }
    answer.json::<Body>().map(|body| body.error.code)
}

/// What oCIS says of our token, whatever was asked.
fn judge(upstream: &UpstreamClient, call: &Call<'_>, answer: &Answer) -> Option<Error> {
    // Of the proxy, which says nothing, and says it also when it cannot ask the issuer (observed).
    if answer.status != StatusCode::UNAUTHORIZED || graph_code(answer).is_some() {
        return None;
    }
    let why = match upstream.credentials() {
        // The issuer then tells the file server nothing of us (observed: userinfo is 403).
        Credentials::Tokens(tokens) if !tokens.scope().split_whitespace().any(|it| it == "openid") => {
            format!(
                "the scope {:?} lacks \"openid\", without which the issuer says nothing of us: add it to \
                 OCIS_OIDC_SCOPE",
                tokens.scope()
            )
        }
        _ => "is its issuer, to the letter, the one that oCIS is configured with (OCIS_OIDC_TOKEN_URL \
              must be the public address); do the clocks agree; does oCIS reach the issuer; does the \
              account exist? What heals by itself is waited for with the same token"
            .to_owned(),
    };
    let message =
        format!("{}. oCIS refuses a token that was just issued: {why}", upstream.refusal(call, answer));
    Some(Error::misconfigured(Reason::CredentialsRejected, message))
}

/// What a refusal means.
fn refused(upstream: &UpstreamClient, call: &Call<'_>, purpose: Purpose, answer: Answer) -> Error {
    let message = upstream.refusal(call, &answer);
    match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Error::terminal(Reason::Forbidden, format!("{message}. {REMEDY}"))
        }
        StatusCode::NOT_FOUND if graph_code(&answer).is_none() => {
            let message = format!("{message}. Is OCIS_API_URL the address of an oCIS or OpenCloud?");
            Error::misconfigured(Reason::WrongAddress, message)
        }
        status if status.is_client_error() => Error::terminal(Reason::Rejected, message),
        _ => Error::transient(Reason::UnexpectedAnswer, message).after(purpose),
    }
}

impl Integration for Ocis {
    type Resource = Space;

    fn step(&self) -> Upstream {
        Upstream::Ocis
    }

    fn upstream(&self) -> &UpstreamClient {
        &self.upstream
    }

    async fn observe(&self, target: &Target) -> Result<Option<Space>, Error> {
        let open = target.intent.is_some_and(|intent| intent.open);
        let got = match &target.recorded {
            Some(id) => self.get(id).await?,
            None => None,
        };
        match &got {
            Some(drive) if !open && !target.search => {
                return Ok(Some(self.space(target, drive.clone(), Vec::new(), false)));
            }
            None if target.recorded.is_none()
                && !(open || target.search || target.may_adopt.released) =>
            {
                // Nothing was ever sent for it as far as is known; but for a document that does not
                // say that it was not claimed, that is not far.
                let own = self.see_our_own();
                if !target.may_exist || !self.search.shows(target.id, own).await? {
                    return Ok(None);
                }
            }
            _ => {}
        }
        // Taking over what another released is looked for once, before there is anything of our own.
        let adopts = target.may_adopt.released && target.recorded.is_none();
        let released_by = adopts.then(|| target.slug.clone());
        let wanted = Wanted { tenant: target.id, id: target.recorded.clone(), released_by };
        let mut drives = self.search.find(wanted).await?;
        self.understood(&drives)?;
        // What could be got says more than the list.
        let twin_possible = open && got.is_some();
        if let Some(got) = got {
            drives.retain(|drive| drive.id != got.id);
            drives.push(got);
        }
        match Self::choose(target, drives) {
            Some((drive, twins)) => Ok(Some(self.space(target, drive, twins, twin_possible))),
            None => {
                self.see_our_own().await?;
                Ok(None)
            }
        }
    }

    async fn create(&self, target: &Target) -> Result<Space, Error> {
        let intent = target.intent.map(|intent| intent.id);
        let (usage, fleet) = (Usage::InUse, Some(target.fleet));
        let mark = Mark { tenant: target.id, intent, usage, fleet };
        let mut body = json!({
            "name": legal_name(&target.desired.name, target.slug.as_str()),
            "driveAlias": mark.alias(&target.slug),
            "description": mark.describe(None),
        });
        if let Some(total) = target.desired.storage_bytes {
            body["quota"] = json!({ "total": total });
        }
        let call = Call::new(Operation::CreateSpace, Method::POST, &DRIVES).json(&body);
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::CREATED => {
                let drive = self.parse(&call, Purpose::Write, &answer)?;
                self.search.made(target.id);
                // One that was sent before may still be applied.
                let twin_possible = target.intent.is_some_and(|intent| intent.open);
                Ok(self.space(target, drive, Vec::new(), twin_possible))
            }
            _ => Err(refused(&self.upstream, &call, Purpose::Write, answer)),
        }
    }

    async fn update(&self, target: &Target, space: Space) -> Result<Space, Error> {
        let Space { drive, twins, twin_possible, mut notes, .. } = space;
        let drive = self.patch(target, &drive).await?;
        for twin in &twins {
            notes.push(self.disable_twin(&drive, twin).await?);
        }
        let mut space = self.space(target, drive, Vec::new(), twin_possible);
        if let Some(members) = self.members.as_ref().filter(|_| space.group_missing) {
            // Whatever came of it, it is not tried again in this run.
            space.group_missing = false;
            match members.add(&self.upstream, &space.drive.id, &target.slug).await? {
                Added::Given => {
                    let group = members.group(&target.slug);
                    space.drive.give(&group, members.membership.role.name());
                }
                Added::UnknownGroup => {
                    space.group_unknown = true;
                    notes.push(members::unknown(&members.group(&target.slug)));
                }
                Added::Refused(why) => notes.push(why),
            }
        }
        space.notes = notes;
        Ok(space)
    }

    fn external_id(space: &Space) -> &str {
        &space.drive.id
    }

    fn name(space: &Space) -> &str {
        &space.drive.name
    }

    fn usage(space: &Space) -> Usage {
        space.drive.marks().usage()
    }

    fn owner(&self, target: &Target, space: &Space) -> Owner {
        let marks = space.drive.marks();
        if let Some(fleet) = marks.fleet().filter(|fleet| target.fleet.is_not(Some(*fleet))) {
            return Owner::Foreign(fleet);
        }
        if marks.name(target.id) {
            return Owner::Us;
        }
        match marks.another_than(target.id) {
            Some(other) if space.drive.has_illegible_mark() || !marks.are_released() => {
                Owner::Other(other)
            }
            Some(other) => Owner::Released(other),
            None if space.drive.has_illegible_mark() => Owner::Illegible,
            None => Owner::Unmarked,
        }
    }

    fn describe(space: &Space) -> String {
        format!("space {:?} ({})", space.drive.name, space.drive.id)
    }

    fn says(&self, space: &Space) -> Before {
        let drive = &space.drive;
        let state = if drive.is_disabled() { DISABLED } else { ENABLED };
        Before::from([
            ("name".to_owned(), Some(drive.name.clone())),
            ("driveAlias".to_owned(), drive.drive_alias.clone()),
            ("mark".to_owned(), drive.marks().description.map(Mark::word)),
            ("quota".to_owned(), drive.quota.total.map(|total| total.to_string())),
            ("state".to_owned(), Some(state.to_owned())),
        ])
    }

    fn fields(&self, target: &Target, space: &Space) -> Vec<Field> {
        let drive = &space.drive;
        let mut fields = Vec::new();
        let mut compare = |field, observed: &str, desired: &str| {
            fields.push(Field::new(field, observed, desired));
        };
        compare("name", &drive.name, &legal_name(&target.desired.name, target.slug.as_str()));
        let none = || "(none)".to_owned();
        let mark = Self::mark(target, drive, Usage::InUse);
        let alias = drive.drive_alias.clone().unwrap_or_else(none);
        compare("driveAlias", &alias, &mark.alias(&target.slug));
        let before = drive.description.as_deref();
        let described = match drive.marks().description {
            // Whatever else people wrote there.
            found if mark.is_said_by(found) => before.unwrap_or("(none)").to_owned(),
            _ => mark.describe(before),
        };
        compare("description", before.unwrap_or("(none)"), &described);
        if let Some(total) = Self::quota(target, drive) {
            let observed = drive.quota.total.map_or_else(none, |total| total.to_string());
            compare("quota", &observed, &total.to_string());
        }
        compare("state", if drive.is_disabled() { DISABLED } else { ENABLED }, ENABLED);
        for twin in &space.twins {
            compare(DUPLICATE, &twin.id, "(none)");
        }
        if let Some(members) = self.members.as_ref().filter(|_| space.group_missing) {
            let group = members.group(&target.slug);
            let roles: Vec<_> = drive.roles_of_group(&group).collect();
            let roles = if roles.is_empty() { none() } else { roles.join(", ") };
            compare("group role", &roles, members.membership.role.name());
        }
        fields
    }

    fn remarks(&self, target: &Target, space: &Space) -> Remarks {
        let mut notes = space.notes.clone();
        if space.drive.name != target.desired.name.as_str() {
            notes.push(format!(
                "the space is called {:?}, because oCIS does not allow the tenant's name",
                space.drive.name
            ));
        }
        let age = target.intent.map(|intent| intent.age).filter(|_| space.twin_possible);
        Remarks {
            note: (!notes.is_empty()).then(|| format!("ocis: {}", notes.join("; "))),
            look_again: age.filter(|age| *age < LATEST).map(|age| age.max(FIRST_LOOK)),
            awaits: space.group_unknown,
        }
    }

    fn fingerprint(&self, space: &Space) -> Fingerprint {
        self.print(&space.drive)
    }

    async fn sweep(&self, mut each: impl FnMut(Seen<'_>) + Send) -> Result<(), Error> {
        self.search
            .each_project(Operation::SweepSpaces, |drive| {
                let marks = drive.marks();
                if marks.usage() == Usage::InUse
                    && let Some(tenant) = marks.tenants().next()
                {
                    let fingerprint = self.print(&drive);
                    let (external_id, name, fleet) =
                        (drive.id.as_str(), drive.name.as_str(), marks.fleet());
                    each(Seen { tenant, fingerprint, external_id, name, fleet });
                }
            })
            .await?;
        // Only together with the canary is a list, and above all an empty one, the truth.
        self.see_our_own().await
    }

    async fn marked_as(&self, tenants: &HashSet<TenantId>) -> Result<Vec<Marked>, Error> {
        let mut found = Vec::new();
        self.search
            .each_project(Operation::FindMarkedSpaces, |drive| {
                let marks = drive.marks();
                let Some(tenant) = marks.tenants().find(|named| tenants.contains(named)) else { return };
                if marks.usage() != Usage::InUse {
                    return;
                }
                found.push(Marked {
                    tenant,
                    fleet: marks.fleet(),
                    external_id: drive.id,
                    name: drive.name,
                });
            })
            .await?;
        Ok(found)
    }

    async fn release(&self, target: &Target, space: Space, how: Release) -> Result<Released, Error> {
        let Space { drive, twins, .. } = space;
        let usage = match how {
            Release::Keep(usage) => usage,
            // A person who restores it must see that no tenant uses it.
            Release::Delete | Release::Purge => Usage::Released,
        };
        let mut notes = Vec::new();
        for twin in &twins {
            notes.push(self.let_twin_go(target, twin, usage).await?);
        }
        let noted = |note: String| Some([vec![note], notes].concat().join("; "));
        if let Some(before) = target.to_put_back(&drive.id, how) {
            self.put_back(&drive, before).await?;
            note(Deed::LetGo(Fate::PutBack), &drive.name, &drive.id);
            let note =
                format!("ocis: the space {:?} is left as it was before it was adopted", drive.name);
            return Ok(Released { external_id: Some(drive.id), note: noted(note) });
        }
        let body = Self::marking(target, &drive, Self::mark(target, &drive, usage));
        let path = drive_path(&drive.id);
        if self.let_go(&drive, body).await? && how == Release::Keep(usage) {
            note(Deed::LetGo(Fate::Kept(usage.name())), &drive.name, &drive.id);
        }
        if how == Release::Keep(usage) {
            let note = format!("ocis: the space {:?} is kept, marked {}", drive.name, usage.name());
            return Ok(Released { external_id: Some(drive.id), note: noted(note) });
        }
        if !drive.is_disabled() {
            if self.disable(&drive).await? {
                note(Deed::LetGo(Fate::Disabled), &drive.name, &drive.id);
            }
            failpoint::reach(failpoint::RELEASED);
        }
        if how == Release::Delete {
            let note = format!("ocis: the space {:?} is disabled; it can be restored", drive.name);
            return Ok(Released { external_id: Some(drive.id), note: noted(note) });
        }
        let call = Call::new(Operation::PurgeSpace, Method::DELETE, &path).header("purge", "T");
        let answer = self.upstream.write(&call).await?;
        match answer.status {
            StatusCode::NO_CONTENT => {
                note(Deed::LetGo(Fate::Deleted), &drive.name, &drive.id);
                Ok(Released::default())
            }
            StatusCode::NOT_FOUND => Ok(Released::default()),
            _ => Err(refused(&self.upstream, &call, Purpose::Write, answer).about(&drive.id)),
        }
    }

    async fn check(&self) -> Result<Checked, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Me {
            #[serde(default)]
            app_role_assignments: Vec<Assignment>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Assignment {
            #[serde(default)]
            app_role_id: String,
        }
        let query = [("$expand", "appRoleAssignments")];
        let call = Call::get(Operation::Check, &["graph", "v1.0", "me"]).query(&query);
        let answer = self.upstream.read(&call).await?;
        if answer.status != StatusCode::OK {
            return Err(refused(&self.upstream, &call, Purpose::Read, answer));
        }
        let me: Me = self.parse(&call, Purpose::Read, &answer)?;
        // Who we are is known without the storage, in which the spaces are.
        self.see_our_own().await?;
        if let Some(members) = &self.members {
            members.learn(&self.upstream).await?;
        }
        let is_admin =
            me.app_role_assignments.iter().any(|role| SPACE_ADMINS.contains(&&*role.app_role_id));
        Ok(Checked {
            version: answer.header("x-graph-version").map(ToOwned::to_owned),
            lacks: if is_admin { Vec::new() } else { vec!["the role Space Admin".into()] },
            remedy: REMEDY.to_owned(),
        })
    }
}
