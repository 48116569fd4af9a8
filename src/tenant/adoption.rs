//! Who may take over a resource that was not made for the tenant, and what is remembered of one that was.
//!
//! One rule holds for every upstream, because what is at stake is the same: a resource that was not made for
//! the tenant holds what people put there for another reason. So
//!
//! * an unmarked one is adopted only if the tenant's document says `adopt: true`; or it says nothing and the
//!   operator adopts by default, or the service before this one had noted that the step was done, and so had
//!   made the resource;
//! * one that another tenant released is adopted with `adopt: true` only: its mark says whose it was;
//! * `adopt: false` refuses both, whatever else holds.
//!
//! What was adopted is remembered with what it said before, and says that again when it is let go.

use std::collections::BTreeMap;
use std::fmt;

use super::{StepStatus, Tenant, Upstream};

/// What a tenant may take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MayAdopt {
    /// A resource of the tenant's name that carries no mark.
    pub unmarked: bool,
    /// One that another tenant released.
    pub released: bool,
}

/// What a resource said of all that adopting it overwrites, by the upstream's names; `None` is nothing.
pub type Before = BTreeMap<String, Option<String>>;

/// A resource that was adopted, or is about to be: it is recorded before it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    pub external_id: String,
    pub before: Before,
}

/// How a resource came to be its tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Made for it. So is everything that was recorded before origins were.
    Created,
    /// Taken over: it is never destroyed unless a person asks for exactly that.
    Adopted,
}

impl Origin {
    /// The name used in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Adopted => "adopted",
        }
    }
}

impl Tenant {
    /// What the tenant may take over in a step. `by_default`: the operator adopts unless told otherwise.
    pub fn may_adopt(&self, step: Upstream, by_default: bool) -> MayAdopt {
        let asked = self.desired.adopt;
        MayAdopt {
            unmarked: asked.unwrap_or(by_default || self.status.steps[step].legacy),
            released: asked == Some(true),
        }
    }
}

impl StepStatus {
    /// How the recorded resource came to be the tenant's.
    pub fn origin(&self) -> Option<Origin> {
        self.external_id.as_ref()?;
        Some(if self.before().is_some() { Origin::Adopted } else { Origin::Created })
    }

    /// What the recorded resource said before it was adopted, if it was.
    pub fn before(&self) -> Option<&Before> {
        let id = self.external_id.as_ref()?;
        self.adopted.iter().find(|adopted| adopted.external_id == *id).map(|adopted| &adopted.before)
    }

    /// Records what is about to be adopted, instead of what was recorded of it earlier.
    pub fn adopt(&mut self, adopted: &Adopted) {
        self.external_id = Some(adopted.external_id.clone());
        self.adopted.retain(|earlier| earlier.external_id != adopted.external_id);
        self.adopted.push(adopted.clone());
    }

    /// Forgets what was adopted and is no longer held.
    pub fn keep_of_adopted(&mut self, external_id: Option<&str>) {
        self.adopted.retain(|adopted| Some(&*adopted.external_id) == external_id);
    }
}

impl fmt::Display for Adopted {
    /// What it said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |(field, value): (&String, &Option<String>)| match value {
            Some(value) => format!("{field} {:?}", super::shortened(value)),
            None => format!("no {field}"),
        };
        f.write_str(&self.before.iter().map(said).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::{Desired, Status, TenantId};
    use super::*;

    fn tenant(adopt: Option<bool>, legacy: bool) -> Tenant {
        let mut desired = Desired::new("Acme".parse().unwrap());
        desired.adopt = adopt;
        let mut status = Status::default();
        status.steps[Upstream::Stalwart].legacy = legacy;
        Tenant {
            id: TenantId::from_bytes([1; 12]),
            slug: "acme".parse().unwrap(),
            desired,
            generation: 1,
            reconcile_requested_at: None,
            reconcile_requested_steps: None,
            observation_requested: false,
            reconcile_requested_by: Vec::new(),
            changed_by: Vec::new(),
            status,
            interrupted: false,
            deletion_requested_at: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: None,
        }
    }

    #[test]
    fn what_the_tenant_says_comes_before_all_else() {
        for (adopt, legacy, by_default, unmarked) in [
            (None, false, false, false),
            (None, false, true, true),
            (None, true, false, true),
            (Some(true), false, false, true),
            (Some(false), true, true, false),
        ] {
            let may = tenant(adopt, legacy).may_adopt(Upstream::Stalwart, by_default);
            assert_eq!(may.unmarked, unmarked, "{adopt:?} {legacy} {by_default}");
            assert_eq!(may.released, adopt == Some(true), "a released one is for who asks for it");
        }
        assert!(
            !tenant(None, true).may_adopt(Upstream::Authentik, false).unmarked,
            "each step is its own"
        );
    }

    #[test]
    fn what_was_recorded_before_origins_were_counts_as_made_for_the_tenant() {
        let mut step = StepStatus { external_id: Some("b".into()), ..StepStatus::default() };
        assert_eq!(step.origin(), Some(Origin::Created));
        let before = Before::from([("description".to_owned(), None)]);
        step.adopt(&Adopted { external_id: "c".into(), before });
        assert_eq!((step.origin(), step.external_id.as_deref()), (Some(Origin::Adopted), Some("c")));
        step.keep_of_adopted(Some("b"));
        assert_eq!(step.origin(), Some(Origin::Created));
        step.external_id = None;
        assert_eq!(step.origin(), None);
    }
}
