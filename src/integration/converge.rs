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

use std::future::Future;

use std::time::Duration;

use super::{Effect, Error};
use crate::failpoint;
use crate::tenant::{IntentId, Reason, Slug, StepDesired, StepKind, TenantId};

/// What one step should bring about for one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub id: TenantId,
    pub slug: Slug,
    pub desired: StepDesired,
    /// What the step was last observed to match.
    pub observed: Option<StepDesired>,
    /// The upstream's id of the resource, where one was recorded. It comes first when looking.
    pub recorded: Option<String>,
    /// An earlier run may have made something that nobody recorded: look for it by its mark too.
    pub may_exist: bool,
    /// What a create is marked with, where the upstream needs that.
    pub intent: Option<Intent>,
}

/// A create intent, as the run of a step sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intent {
    pub id: IntentId,
    /// An earlier run recorded it, and may have sent a create that is applied even later.
    pub open: bool,
    pub age: Duration,
}

/// Whose a resource is, by the mark it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Us,
    /// Carries no mark: it may be adopted.
    Nobody,
    /// Somebody else's, or not to be touched for another reason, which the text says.
    Other(String),
}

/// A field that differs from what is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    pub field: &'static str,
    pub observed: String,
    pub desired: String,
}

/// An upstream, as far as reconciling needs it.
pub trait Integration: Sync {
    /// The resource as the upstream shows it.
    type Resource: Send + Sync;

    fn step(&self) -> StepKind;

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

    fn owner(&self, target: &Target, resource: &Self::Resource) -> Owner;

    /// What differs; empty when all is well.
    fn drift(&self, target: &Target, resource: &Self::Resource) -> Vec<Drift>;

    /// What else there is to say of a resource that matches.
    fn remarks(&self, _target: &Target, _resource: &Self::Resource) -> Remarks {
        Remarks::default()
    }

    /// Looks whether the upstream answers, knows us, and lets us do what we must, changing nothing.
    fn check(&self) -> impl Future<Output = Result<Checked, Error>> + Send;
}

/// See [`Integration::remarks`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remarks {
    /// For people: what they should know although all is well.
    pub note: Option<String>,
    /// A create whose outcome was never known may still take effect: look again after this long.
    pub look_again: Option<Duration>,
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
    pub repaired: Vec<Drift>,
    pub remarks: Remarks,
}

/// Writes in one run: a create whose answer shows something left to update, and one try more.
const MAX_WRITES: usize = 3;

/// Brings about what `target` asks for; see the module's guarantees.
pub async fn converge<I: Integration>(integration: &I, target: &Target) -> Result<Converged, Error> {
    let mut target = target.clone();
    let mut found = integration.observe(&target).await?;
    let mut repaired = Vec::new();
    let mut unclear: Option<Error> = None;
    let mut stale = false;
    // One round more, to judge the answer to the last write.
    for round in 0..=MAX_WRITES {
        let wrote = match found {
            Some(resource) => {
                let id = I::external_id(&resource).to_owned();
                if let Owner::Other(why) = integration.owner(&target, &resource) {
                    return Err(Error::terminal(Reason::Conflict, why));
                }
                let drift = integration.drift(&target, &resource);
                if drift.is_empty() {
                    let remarks = integration.remarks(&target, &resource);
                    return Ok(Converged { external_id: id, repaired, remarks });
                }
                if let Some(error) = unclear {
                    return Err(error.about(&id));
                }
                if round == MAX_WRITES {
                    break;
                }
                repaired.extend(drift);
                let updated = integration.update(&target, resource).await;
                if updated.is_ok() {
                    failpoint::reach(failpoint::UPDATED);
                }
                updated
            }
            None => {
                if let Some(error) = unclear {
                    return Err(error);
                }
                failpoint::reach(failpoint::CREATING);
                let created = integration.create(&target).await;
                if created.is_ok() {
                    failpoint::reach(failpoint::CREATED);
                }
                created.map_err(Error::of_create)
            }
        };
        found = match wrote {
            Ok(resource) => Some(resource),
            Err(error) => {
                match error.effect {
                    Effect::None => return Err(error),
                    // Once, somebody was faster. Twice, looking does not show what is there.
                    Effect::Stale if stale => return Err(error),
                    Effect::Stale => stale = true,
                    Effect::Unknown => {
                        // From here on there may be something, and who stops now must say so.
                        target.may_exist = true;
                        if let Some(intent) = &mut target.intent {
                            intent.open = true;
                        }
                        let unresolved = error.failure.unresolved;
                        unclear = Some(error);
                        found = integration
                            .observe(&target)
                            .await
                            .map_err(|error| if unresolved { error.unresolved() } else { error })?;
                        continue;
                    }
                }
                integration.observe(&target).await?
            }
        };
    }
    let step = integration.step();
    let message = format!("{step}: the answers to our changes do not show them");
    Err(Error::transient(Reason::UnexpectedAnswer, message))
}
