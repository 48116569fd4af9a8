//! Whose a resource is, and whether a run may write to it: the one rule for every upstream.
//!
//! A resource that carries the tenant's mark is the tenant's, and so is the recorded one from which a person
//! took the mark away. Any other is another's, or may be adopted if [`MayAdopt`](crate::tenant::MayAdopt) says
//! so. Adopting takes two runs: the first only says what it would adopt and what that says now, so that it is
//! recorded; the next writes. A process that dies in between leaves a resource as it was, or one of which is
//! known what it said before.

use super::Error;
use super::converge::{Integration, Target};
use crate::tenant::{Adopted, Before, FleetId, Reason, TenantId};

/// What the mark on a resource says of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Us,
    /// There is no mark.
    Unmarked,
    /// There is a mark, and it cannot be read.
    Illegible,
    /// Another fleet's, whichever tenant it names.
    Foreign(FleetId),
    /// This tenant let it go.
    Released(TenantId),
    /// This tenant's.
    Other(TenantId),
}

/// What a run may do with a resource.
pub enum Standing {
    /// It is the tenant's.
    Ours,
    /// It is to become the tenant's once this is recorded.
    Adoptable(Adopted),
}

/// The most that is recorded of what a resource said, in bytes: people can write megabytes into a description.
const MOST_RECORDED: usize = 8_192;

/// What the run may do with a resource of the tenant's name, mark or id.
///
/// # Errors
/// [`Reason::Conflict`] if it may not touch it, with what a person can do about that.
pub async fn standing<I: Integration>(
    integration: &I,
    target: &Target,
    resource: &I::Resource,
) -> Result<Standing, Error> {
    if is_ours(integration, target, resource) {
        return Ok(Standing::Ours);
    }
    let id = I::external_id(resource);
    let conflict = |why: &str| {
        let (step, what) = (integration.step(), I::describe(resource));
        Err(Error::terminal(Reason::Conflict, format!("{step}: the {what} {why}")))
    };
    let adopted = target.adopted_before(id);
    match integration.owner(target, resource) {
        Owner::Us => return Ok(Standing::Ours),
        Owner::Illegible if adopted.is_none() => {
            return conflict("carries a mark that cannot be read; it is not touched");
        }
        Owner::Foreign(fleet) => {
            let why = format!(
                "is marked as that of another fleet ({fleet}; this one is {}): another installation of tenantry uses \
                 this upstream, or this one has a new database. It is not touched",
                target.fleet
            );
            return conflict(&why);
        }
        Owner::Other(other) => {
            let way_out = integration.way_out(target, resource).unwrap_or_default();
            let why = format!("is marked as that of tenant {other}, not of {}{way_out}", target.id);
            return conflict(&why).map_err(|error| error.against(other, id));
        }
        Owner::Unmarked if adopted.is_none() && !target.may_adopt.unmarked => {
            return conflict(
                "was there already and carries no mark. To take it over, give this tenant \"adopt\": true; \
                 else rename or remove it",
            );
        }
        Owner::Released(other) if adopted.is_none() && !target.may_adopt.released => {
            let why = format!(
                "was released by tenant {other}; to take it over, give this tenant \"adopt\": true"
            );
            return conflict(&why);
        }
        Owner::Unmarked | Owner::Illegible | Owner::Released(_) => {}
    }
    if let Some(why) = integration.protected(resource).await? {
        return conflict(&format!("{why}; it is never adopted"));
    }
    let says = integration.says(resource);
    if adopted == Some(&says) {
        return Ok(Standing::Ours);
    }
    if size(&says) > MOST_RECORDED {
        let why = format!(
            "says more than can be recorded and put back later (over {MOST_RECORDED} bytes). Shorten its \
             description, then it is adopted"
        );
        return conflict(&why);
    }
    Ok(Standing::Adoptable(Adopted { external_id: id.to_owned(), before: says }))
}

/// Whether it is the tenant's by its mark, or by its recorded id although a person took the mark away. An
/// adopted one without a mark says what it said before, or what a person wrote since: it is adopted anew.
pub fn is_ours<I: Integration>(integration: &I, target: &Target, resource: &I::Resource) -> bool {
    let id = I::external_id(resource);
    let made_for_it = target.recorded.as_deref() == Some(id) && target.adopted_before(id).is_none();
    match integration.owner(target, resource) {
        Owner::Us => true,
        Owner::Unmarked | Owner::Illegible => made_for_it,
        Owner::Released(_) | Owner::Other(_) | Owner::Foreign(_) => false,
    }
}

fn size(says: &Before) -> usize {
    says.values().flatten().map(String::len).sum()
}
