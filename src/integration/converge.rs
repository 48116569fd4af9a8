//! One step for one tenant: observe, compare, then create, update or nothing.
//!
//! # Guarantees
//!
//! * The answer is "ok" only when the resource was *observed* to match, if only in the answer to the
//!   write that made it match.
//! * A resource that belongs to another tenant is never written to.
//! * After a write whose outcome is unknown nothing is written again in this run: if looking does not
//!   show that it worked, the run fails, and a later one looks again. A create that is applied late
//!   therefore meets no second create right behind it.
//! * From the moment that a resource is known to be the tenant's, every failure of the run carries its id, so
//!   that the id is recorded and the next run begins with it.
//! * After a create that was answered with yes, nothing is created again in this run, even if a look does not
//!   show what was made: that is for the next run, which searches by id and by mark.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::adopt::{Owner, Standing, is_ours, standing};
use super::deeds::note;
use super::permission::Cause;
use super::upstream::UpstreamClient;
use super::{Effect, Error};
use crate::failpoint;
use crate::tenant::{
    Adopted, Before, Deed, DeletionPolicy, Field, Fingerprint, Fleet, FleetId, Found, IntentId,
    MayAdopt, Presence, Reason, Slug, StepDesired, Tenant, TenantId, Upstream,
};

/// What one step should bring about for one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub id: TenantId,
    pub slug: Slug,
    pub desired: StepDesired,
    /// What the step was last observed to match.
    pub observed: Option<StepDesired>,
    /// What the resource looked like then.
    pub left: Option<Fingerprint>,
    /// The upstream's id of the resource, where one was recorded. It comes first when looking.
    pub recorded: Option<String>,
    /// An earlier run may have made something that was not recorded: look for it by its mark too.
    pub may_exist: bool,
    /// The step's latest run ended well, and has recorded what there is.
    pub settled: bool,
    /// A sweep saw another resource with the tenant's mark: all of them are to be found.
    pub search: bool,
    /// The quota that we last gave the space, if we did.
    pub given_quota: Option<i64>,
    /// What a create is marked with, where the upstream needs that.
    pub intent: Option<Intent>,
    pub mode: Mode,
    /// Whose resources are ours: what another fleet's mark names is left alone.
    pub fleet: FleetId,
    /// Whether the fleet has the upstream, even if this process cannot reach it.
    pub known: bool,
    pub may_adopt: MayAdopt,
    /// What was adopted and is not let go yet.
    pub adopted: Vec<Adopted>,
}

impl Target {
    /// What a reconcile of `tenant` at the time `now` is to bring about by a step.
    ///
    /// `may_exist`: an earlier run may have made something that was not recorded. `adopt_unmarked`: tenants that
    /// do not say so may adopt.
    pub fn of(
        tenant: &Tenant,
        fleet: &Fleet,
        step: Upstream,
        may_exist: bool,
        mode: Mode,
        adopt_unmarked: bool,
        now: Timestamp,
    ) -> Self {
        let recorded = &tenant.status.steps[step];
        let age = |intent: IntentId| now.as_second() - i64::from(intent.made_at_seconds());
        Self {
            id: tenant.id,
            slug: tenant.slug.clone(),
            desired: tenant.desired.for_step(step),
            // What was skipped without a look was not observed to match anything.
            observed: recorded.observed.clone().filter(|_| {
                recorded.reason != Some(Reason::NotConfigured) || !recorded.state.is_settled()
            }),
            left: recorded.fingerprint,
            recorded: recorded.external_id.clone(),
            may_exist: may_exist || recorded.search,
            settled: recorded.state.is_settled() && !recorded.search,
            search: recorded.search,
            given_quota: recorded.last_given_quota(),
            intent: recorded.create_intent.map(|intent| Intent {
                id: intent.id,
                open: !intent.fresh,
                age: Duration::from_secs(u64::try_from(age(intent.id)).unwrap_or_default()),
            }),
            mode,
            fleet: fleet.id,
            known: fleet.has(step),
            may_adopt: tenant.may_adopt(step, adopt_unmarked),
            adopted: recorded.adopted.clone(),
        }
    }

    /// What a resource said before it was adopted, if it was.
    pub fn adopted_before(&self, external_id: &str) -> Option<&Before> {
        self.adopted.iter().find(|it| it.external_id == external_id).map(|it| &it.before)
    }

    /// What letting a resource go like this puts back, because it was adopted.
    pub fn to_put_back(&self, external_id: &str, how: Release) -> Option<&Before> {
        self.adopted_before(external_id).filter(|_| how != Release::Purge)
    }
}

/// How much a run may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Whatever is needed.
    #[default]
    Apply,
    /// Nothing, for this reason: the step looks, and says what it would change.
    Hold(Reason),
    /// Nothing, because only what it would change is wanted.
    Look,
    /// What is new, and what a person asked for; but not what would undo a change in the upstream, because
    /// too much has changed there at once to be believed.
    Distrust,
}

/// Whether the upstream shows a resource as in use by its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Usage {
    #[default]
    InUse,
    /// The tenant has switched the service off.
    Off,
    /// The tenant is gone.
    Released,
}

impl Usage {
    pub const fn name(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::Off => "off",
            Self::Released => "released",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Off, Self::Released].into_iter().find(|usage| usage.name() == name)
    }

    /// What follows a tenant's id in a mark: ` off`, ` released` or nothing, then the fleet, if it is named.
    pub(super) fn words(self, fleet: Option<FleetId>) -> String {
        let usage = match self {
            Self::InUse => String::new(),
            Self::Off | Self::Released => format!(" {}", self.name()),
        };
        fleet.map_or(usage.clone(), |fleet| format!("{usage} {fleet}"))
    }

    /// Reads that back. `None` if it is nothing that any controller writes.
    pub(super) fn from_words<'a>(
        words: impl Iterator<Item = &'a str>,
    ) -> Option<(Self, Option<FleetId>)> {
        let (mut usage, mut fleet) = (Self::InUse, None);
        for word in words {
            match (Self::parse(word), word.parse()) {
                (Some(found), _) => usage = found,
                (None, Ok(found)) => fleet = Some(found),
                (None, Err(_)) => return None,
            }
        }
        Some((usage, fleet))
    }
}

/// How a resource is to be let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// It stays, marked like this.
    Keep(Usage),
    /// As far as nothing of people's is lost: what can be restored, or is empty.
    Delete,
    /// For ever.
    Purge,
}

impl Release {
    /// What becomes of the resource, in a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep(usage) => usage.name(),
            Self::Delete => "deleted",
            Self::Purge => "purged",
        }
    }
}

/// What came of letting a resource go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Released {
    /// Where something of it stays.
    pub external_id: Option<String>,
    /// For people: what became of it.
    pub note: Option<String>,
}

/// A create intent, as the run of a step sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intent {
    pub id: IntentId,
    /// An earlier run recorded it, and may have sent a create that is applied even later.
    pub open: bool,
    pub age: Duration,
}

/// An upstream, as far as reconciling needs it.
pub trait Integration: Sync {
    /// The resource as the upstream shows it.
    type Resource: Send + Sync;

    fn step(&self) -> Upstream;

    /// Its connection.
    fn upstream(&self) -> &UpstreamClient;

    /// Finds the tenant's resource.
    fn observe(
        &self,
        target: &Target,
    ) -> impl Future<Output = Result<Option<Self::Resource>, Error>> + Send;

    /// Makes it, and returns it as the upstream shows it.
    fn create(&self, target: &Target) -> impl Future<Output = Result<Self::Resource, Error>> + Send;

    /// Makes it match, and returns it as the upstream shows it afterwards.
    fn update(
        &self,
        target: &Target,
        resource: Self::Resource,
    ) -> impl Future<Output = Result<Self::Resource, Error>> + Send;

    fn external_id(resource: &Self::Resource) -> &str;

    /// How people find it.
    fn name(resource: &Self::Resource) -> &str;

    /// How it is marked.
    fn usage(resource: &Self::Resource) -> Usage;

    fn owner(&self, target: &Target, resource: &Self::Resource) -> Owner;

    /// What it is called, for people: `group "tenant-acme" (7f3…)`.
    fn describe(resource: &Self::Resource) -> String;

    /// What a person can do about a resource of the wanted name that is another tenant's, to follow the word
    /// that it is.
    fn way_out(&self, _target: &Target, _resource: &Self::Resource) -> Option<String> {
        None
    }

    /// Why it is never adopted, whatever the tenant's document says.
    fn protected(
        &self,
        _resource: &Self::Resource,
    ) -> impl Future<Output = Result<Option<&'static str>, Error>> + Send {
        std::future::ready(Ok(None))
    }

    /// What it says of all that adopting it overwrites. [`Integration::release`] puts that back.
    fn says(&self, resource: &Self::Resource) -> Before;

    /// All that matters, as it is and as it should be.
    fn fields(&self, target: &Target, resource: &Self::Resource) -> Vec<Field>;

    /// What differs; empty when all is well.
    fn drift(&self, target: &Target, resource: &Self::Resource) -> Vec<Field> {
        self.fields(target, resource).into_iter().filter(Field::differs).collect()
    }

    /// What else there is to say of a resource that matches.
    fn remarks(&self, _target: &Target, _resource: &Self::Resource) -> Remarks {
        Remarks::default()
    }

    /// Lets the tenant's resource go. What was adopted says again what it said before, unless it is to be
    /// purged; see [`Target::to_put_back`].
    ///
    /// # Errors
    /// [`Reason::NotEmpty`] when something of people's would be lost.
    fn release(
        &self,
        target: &Target,
        resource: Self::Resource,
        how: Release,
    ) -> impl Future<Output = Result<Released, Error>> + Send;

    /// What the resource looks like, for sweeps to compare.
    fn fingerprint(&self, resource: &Self::Resource) -> Fingerprint;

    /// Lists everything that tenants have in use, in pages or as a stream, holding no more than one.
    ///
    /// # Errors
    /// When the list is not whole, or cannot be believed. What was passed on until then may be used for
    /// nothing.
    fn sweep(&self, each: impl FnMut(Seen<'_>) + Send)
    -> impl Future<Output = Result<(), Error>> + Send;

    /// The resources that carry the marks of these tenants as in use, at most a few each.
    fn marked_as(
        &self,
        tenants: &HashSet<TenantId>,
    ) -> impl Future<Output = Result<Vec<Marked>, Error>> + Send;

    /// Looks whether the upstream answers, knows us, has what the work needs, and lets us do what we must,
    /// changing nothing.
    fn check(&self) -> impl Future<Output = Result<Checked, Error>> + Send;
}

/// See [`Integration::remarks`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remarks {
    /// For people: what they should know although all is well.
    pub note: Option<String>,
    /// A create whose outcome was never known may still take effect: look again after this long.
    pub look_again: Option<Duration>,
    /// Something of it waits for what the upstream has yet to learn.
    pub awaits: bool,
}

/// What an upstream that answers told of itself and of us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    pub version: Option<String>,
    /// Permissions that our account lacks, by the upstream's own names.
    pub lacks: Vec<String>,
    /// What to do about them.
    pub remedy: String,
}

/// A step that was observed to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converged {
    pub external_id: String,
    /// What had to be changed on a resource that was there already.
    pub repaired: Vec<Field>,
    pub remarks: Remarks,
    pub fingerprint: Option<Fingerprint>,
}

/// A resource in a list of all of them, in use by a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen<'a> {
    pub tenant: TenantId,
    pub fingerprint: Fingerprint,
    pub external_id: &'a str,
    pub name: &'a str,
    /// The fleet that the mark names, if it names one.
    pub fleet: Option<FleetId>,
}

/// A resource that carries a tenant's mark, for people to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    pub tenant: TenantId,
    pub external_id: String,
    pub name: String,
    /// The fleet that the mark names, if it names one.
    pub fleet: Option<FleetId>,
}

/// What a run of a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    Matches(Converged),
    LetGo(Released),
    /// It was not made for the tenant, and is to be recorded as adopted before anything of it is changed.
    Adopts {
        adopted: Adopted,
        what: String,
    },
    /// It differs like this, and is to be left alone for this reason.
    Held {
        reason: Reason,
        found: Found,
        /// The resource where the run had made or changed it before it was held.
        external_id: Option<String>,
    },
    /// It differs like this; nothing but a look was wanted.
    Seen(Found),
}

/// Asked before a change in an upstream is undone: so much may have changed at once that it
/// is rather the upstream, or we, who are wrong.
pub trait RepairGuard: Send + Sync {
    /// Whether the resource of this tenant, which was found like this, may be put back.
    fn may_repair<'a>(
        &'a self,
        step: Upstream,
        target: &'a Target,
        found: &'a Found,
    ) -> BoxFuture<'a, bool>;

    /// What is known of the tenant that a resource is marked for. `None` while that cannot be found out.
    fn marked_for(&self, tenant: TenantId) -> BoxFuture<'_, Option<MarkedFor>>;
}

/// The tenant that a resource is marked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MarkedFor {
    /// It exists, and has this slug.
    Tenant(String),
    /// There is none of that id any more.
    Gone,
}

/// No bounds, and no tenants.
pub struct Unbounded;

impl RepairGuard for Unbounded {
    fn may_repair<'a>(&'a self, _: Upstream, _: &'a Target, _: &'a Found) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(true))
    }

    fn marked_for(&self, _: TenantId) -> BoxFuture<'_, Option<MarkedFor>> {
        Box::pin(std::future::ready(None))
    }
}

/// Runs a step as far as its target and the guard allow. A run whose write was not let through goes on as
/// one that only looks, to say what there is now.
pub async fn run<I: Integration>(
    integration: &I,
    target: &Target,
    guard: &dyn RepairGuard,
) -> Result<Reached, Error> {
    let mut ended = attempt_or_look(integration, target, guard).await;
    if let Err(Error { failure, against: Some(against), .. }) = &mut ended {
        let (step, id) = (integration.step(), &against.external_id);
        match guard.marked_for(against.tenant).await {
            Some(MarkedFor::Tenant(slug)) => {
                failure.message.push_str(&format!(". That is the tenant {slug:?}"));
            }
            Some(MarkedFor::Gone) => failure.message.push_str(&format!(
                ". There is no such tenant any more: an administrator can release {id} (tenantry orphans release \
                 {step} '{id}', as soon as a sweep has listed it), and with \"adopt\": true this tenant takes it \
                 over then"
            )),
            None => {}
        }
    }
    ended
}

async fn attempt_or_look<I: Integration>(
    integration: &I,
    target: &Target,
    guard: &dyn RepairGuard,
) -> Result<Reached, Error> {
    let Error { failure, .. } = match attempt(integration, target, guard).await {
        Err(error) if error.effect == Effect::Held => error,
        other => return other,
    };
    let known = failure.external_id;
    let recorded = known.clone().or_else(|| target.recorded.clone());
    let look = Target { mode: Mode::Hold(failure.reason), recorded, ..target.clone() };
    match (attempt(integration, &look, guard).await, known) {
        (Ok(Reached::Held { reason, found, .. }), external_id) => {
            Ok(Reached::Held { reason, found, external_id })
        }
        (Err(error), Some(id)) => Err(error.about(&id)),
        (other, _) => other,
    }
}

async fn attempt<I: Integration>(
    integration: &I,
    target: &Target,
    guard: &dyn RepairGuard,
) -> Result<Reached, Error> {
    let how = match target.desired.presence {
        Presence::Present => return ensure(integration, target, guard).await,
        Presence::Off => Release::Keep(Usage::Off),
        Presence::Gone(DeletionPolicy::Retain) => Release::Keep(Usage::Released),
        Presence::Gone(DeletionPolicy::Delete) => Release::Delete,
        Presence::Gone(DeletionPolicy::Purge) => Release::Purge,
    };
    let untouched = match target.mode {
        Mode::Apply => None,
        Mode::Look => Some(Untouched::Looked),
        Mode::Hold(reason) => Some(Untouched::Held(reason)),
        // What seems to be gone would be forgotten.
        Mode::Distrust => Some(Untouched::Held(Reason::ChangeGuard)),
    };
    let found = integration.observe(target).await?;
    if let Some(untouched) = untouched {
        let leaves = |resource: &I::Resource| {
            let puts_back = target.to_put_back(I::external_id(resource), how).is_some();
            let after = if puts_back { "as before it was adopted" } else { how.name() };
            let ours = is_ours(integration, target, resource);
            ours.then(|| Field::new("usage", I::usage(resource).name(), after))
        };
        let found = found.as_ref().and_then(leaves).map_or(Found::Missing, |f| Found::Fields(vec![f]));
        return Ok(untouched.with(found));
    }
    let Some(resource) = found else {
        return Ok(Reached::LetGo(Released::default()));
    };
    let id = I::external_id(&resource).to_owned();
    if is_ours(integration, target, &resource) {
        let released = Cause::Doubtful.of(integration.release(target, resource, how)).await;
        let released = released.map_err(|error| error.at_least_about(Some(&id)))?;
        failpoint::reach(failpoint::RELEASED);
        return Ok(Reached::LetGo(released));
    }
    // What was adopted and carries no mark of the tenant's is let go already. Its id stays, so that it can be
    // taken up again.
    let stays = target.to_put_back(&id, how).is_some();
    Ok(Reached::LetGo(Released { external_id: stays.then_some(id), ..Released::default() }))
}

async fn ensure<I: Integration>(
    integration: &I,
    target: &Target,
    guard: &dyn RepairGuard,
) -> Result<Reached, Error> {
    let found = integration.observe(target).await?;
    let (fields, stands) = match &found {
        None => (None, None),
        Some(resource) => {
            let stands = standing(integration, target, resource).await?;
            (Some(integration.fields(target, resource)), Some(stands))
        }
    };
    let well = |fields: &[Field]| !fields.iter().any(Field::differs);
    let why = why_it_differs(integration, target, found.as_ref());
    match (target.mode, found, fields) {
        (_, Some(resource), Some(fields)) if well(&fields) => Ok(Reached::Matches(Converged {
            external_id: I::external_id(&resource).to_owned(),
            repaired: Vec::new(),
            remarks: integration.remarks(target, &resource),
            fingerprint: Some(integration.fingerprint(&resource)),
        })),
        (Mode::Look, _, fields) => Ok(Untouched::Looked.with(seen(fields))),
        (Mode::Hold(reason), _, fields) => Ok(Untouched::Held(reason).with(seen(fields))),
        (Mode::Apply | Mode::Distrust, found, fields) => match why {
            Why::Drift => {
                let differs = seen(fields);
                if !guard.may_repair(integration.step(), target, &differs).await {
                    return Ok(Untouched::Held(Reason::ChangeGuard).with(differs));
                }
                Cause::Doubtful.of(converge(integration, target, found, stands, why)).await
            }
            Why::Asked | Why::Ours => converge(integration, target, found, stands, why).await,
        },
    }
}

/// Why a resource is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is new, or a person asked for something else.
    Asked,
    /// It changed in the upstream, without anything that was asked of tenantry.
    Drift,
    /// It is as we left it: a setting changed what it should be, or we left something to be done.
    Ours,
}

fn why_it_differs<I: Integration>(integration: &I, target: &Target, found: Option<&I::Resource>) -> Why {
    let asked = target.observed.as_ref() != Some(&target.desired);
    // To another domain: what is not there was never there.
    let moves = target.observed.as_ref().is_some_and(|last| last.domain != target.desired.domain);
    match (&target.recorded, found, target.left) {
        (None, ..) => Why::Asked,
        // What was there and is gone is not made again unnoticed, whatever else was asked for.
        (Some(_), None, Some(_)) if !moves => Why::Drift,
        _ if asked => Why::Asked,
        (Some(_), Some(resource), Some(left)) => {
            let changed = left.differences(integration.fingerprint(resource));
            if changed.is_empty() { Why::Ours } else { Why::Drift }
        }
        (Some(_), None, _) | (Some(_), _, None) => Why::Drift,
    }
}

/// Why a resource is left as it was found.
enum Untouched {
    Looked,
    Held(Reason),
}

impl Untouched {
    fn with(self, found: Found) -> Reached {
        match self {
            Self::Held(reason) => Reached::Held { reason, found, external_id: None },
            Self::Looked => Reached::Seen(found),
        }
    }
}

fn seen(fields: Option<Vec<Field>>) -> Found {
    fields.map_or(Found::Missing, Found::Fields)
}

/// The names of fields that are about other resources than the tenant's own; what is done about those is noted
/// by itself.
pub const DUPLICATE: &str = "duplicate";
pub const FORMER: &str = "former domain";

/// Writes in one run: a create whose answer shows something left to update, and one try more.
const MAX_WRITES: usize = 3;

/// Brings about what `target` asks for; see the module's guarantees. `stands` is how what was found stands, if
/// that was asked already.
async fn converge<I: Integration>(
    integration: &I,
    target: &Target,
    found: Option<I::Resource>,
    stands: Option<Standing>,
    why: Why,
) -> Result<Reached, Error> {
    let mut run = Run {
        integration,
        given: target,
        why,
        stands,
        target: target.clone(),
        made: false,
        repaired: Vec::new(),
        unsure: None,
    };
    let ended = run.go_on_from(found).await;
    ended.map_err(|error| error.at_least_about(run.target.recorded.as_deref()))
}

/// One run of a step, with what it has found out so far.
struct Run<'a, I> {
    integration: &'a I,
    given: &'a Target,
    why: Why,
    /// How the resource that the run begins with stands: to find that out can take a request.
    stands: Option<Standing>,
    /// As given; but its `recorded` is what is known by now.
    target: Target,
    /// A create was answered with yes.
    made: bool,
    repaired: Vec<Field>,
    /// What a write did if it was applied, which was not answered.
    unsure: Option<Deed>,
}

impl<I: Integration> Run<'_, I> {
    async fn go_on_from(&mut self, mut found: Option<I::Resource>) -> Result<Reached, Error> {
        let mut unclear: Option<Error> = None;
        let mut stale = false;
        // One round more, to judge the answer to the last write.
        for round in 0..=MAX_WRITES {
            let wrote = match found {
                Some(resource) => {
                    let stands = match self.stands.take() {
                        Some(stands) => stands,
                        None => standing(self.integration, &self.target, &resource).await?,
                    };
                    let ours = match stands {
                        Standing::Ours => I::external_id(&resource).to_owned(),
                        Standing::Adoptable(adopted) => {
                            let adopts = Reached::Adopts { adopted, what: self.what(&resource) };
                            return unclear.map_or(Ok(adopts), Err);
                        }
                    };
                    self.target.recorded = Some(ours);
                    // Whatever else there is to do: a create that was not answered was applied.
                    if let Some(Deed::Created | Deed::Recreated { .. }) = &self.unsure {
                        self.note_unsure(&resource);
                    }
                    let drift = self.integration.drift(&self.target, &resource);
                    if drift.is_empty() {
                        return Ok(Reached::Matches(self.converged(&resource)));
                    }
                    if let Some(error) = unclear {
                        return Err(error);
                    }
                    if round == MAX_WRITES {
                        break;
                    }
                    self.update(resource, drift).await
                }
                None => match unclear {
                    Some(error) => return Err(error),
                    None => self.create().await,
                },
            };
            found = match wrote {
                Ok(resource) => Some(resource),
                Err(error) => match error.effect {
                    Effect::None | Effect::Held => return Err(error),
                    // Once, another was faster. Twice, looking does not show what is there.
                    Effect::Stale if stale => return Err(error),
                    Effect::Stale => {
                        stale = true;
                        self.integration.observe(&self.target).await?
                    }
                    Effect::Unknown => {
                        let found = self.look_after(&error).await?;
                        unclear = Some(error);
                        found
                    }
                },
            };
        }
        let step = self.integration.step();
        let message = format!("{step}: the answers to our changes do not show them");
        Err(Error::transient(Reason::UnexpectedAnswer, message))
    }

    fn what(&self, resource: &I::Resource) -> String {
        format!("{}: the {}", self.integration.step(), I::describe(resource))
    }

    fn converged(&mut self, resource: &I::Resource) -> Converged {
        self.note_unsure(resource);
        Converged {
            external_id: I::external_id(resource).to_owned(),
            repaired: std::mem::take(&mut self.repaired),
            remarks: self.integration.remarks(&self.target, resource),
            fingerprint: Some(self.integration.fingerprint(resource)),
        }
    }

    /// A look has shown that a write was applied, which was not answered.
    fn note_unsure(&mut self, resource: &I::Resource) {
        if let Some(deed) = self.unsure.take() {
            note(deed, I::name(resource), I::external_id(resource));
        }
    }

    async fn update(&mut self, resource: I::Resource, drift: Vec<Field>) -> Result<I::Resource, Error> {
        self.repaired.extend(drift.iter().cloned());
        let deed = self.deed(&resource, drift);
        let updated = self.integration.update(&self.target, resource).await;
        let updated = self.noted(deed, updated)?;
        failpoint::reach(failpoint::UPDATED);
        Ok(updated)
    }

    /// What an update of the resource is; `None` where it only completes what this run has made, or where
    /// nothing of the resource itself differs.
    fn deed(&self, resource: &I::Resource, mut drift: Vec<Field>) -> Option<Deed> {
        drift.retain(|field| ![DUPLICATE, FORMER].contains(&&*field.name));
        if self.made || drift.is_empty() {
            return None;
        }
        Some(match (is_ours(self.integration, &self.target, resource), I::usage(resource)) {
            (false, _) => Deed::Adopted(drift),
            (true, Usage::Off | Usage::Released) => Deed::Restored(drift),
            (true, Usage::InUse) if self.why == Why::Drift => Deed::Repaired(drift),
            (true, Usage::InUse) => Deed::Updated(drift),
        })
    }

    /// Notes what a write did, or that it may have done it.
    fn noted(
        &mut self,
        deed: Option<Deed>,
        wrote: Result<I::Resource, Error>,
    ) -> Result<I::Resource, Error> {
        match &wrote {
            Ok(resource) => {
                deed.into_iter()
                    .for_each(|deed| note(deed, I::name(resource), I::external_id(resource)));
            }
            Err(error) if error.effect == Effect::Unknown => self.unsure = deed,
            Err(_) => {}
        }
        wrote
    }

    async fn create(&mut self) -> Result<I::Resource, Error> {
        if self.made {
            let step = self.integration.step();
            let id = self.target.recorded.as_deref().unwrap_or_default();
            let message = format!(
                "{step}: {id} was just made, and a look does not show it. The next attempt searches for it \
                 before anything else is made"
            );
            return Err(Error::transient(Reason::UnexpectedAnswer, message));
        }
        failpoint::reach(failpoint::CREATING);
        // Of a tenant that moves to another domain, the recorded one is still there.
        let moves = self.given.observed.as_ref().is_some_and(|o| o.domain != self.given.desired.domain);
        let deed = match self.given.recorded.clone().filter(|_| !moves) {
            Some(lost) => Deed::Recreated { lost },
            None => Deed::Created,
        };
        let made = self.integration.create(&self.target).await.map_err(Error::of_create);
        let made = self.noted(Some(deed), made)?;
        self.made = true;
        self.target.recorded = Some(I::external_id(&made).to_owned());
        failpoint::reach(failpoint::CREATED);
        Ok(made)
    }

    /// Looks for what a write of unknown outcome did.
    async fn look_after(&mut self, error: &Error) -> Result<Option<I::Resource>, Error> {
        // From here on there may be something, and the run that stops now must say so.
        self.target.may_exist = true;
        if let Some(intent) = &mut self.target.intent {
            intent.open = true;
        }
        if let Some(id) = &error.failure.external_id {
            self.target.recorded = Some(id.clone());
        }
        let unresolved = error.failure.unresolved;
        let looked = self.integration.observe(&self.target).await;
        looked.map_err(|error| if unresolved { error.unresolved() } else { error })
    }
}

#[cfg(test)]
mod tests;
