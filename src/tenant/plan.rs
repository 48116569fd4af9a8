//! What a reconcile would do now, as far as what is recorded tells.

use std::borrow::Cow;

use jiff::Timestamp;

use super::{
    Controls, DeletionPolicy, Found, Presence, Reason, StepDesired, StepState, StepStatus, Tenant,
    Upstream,
};

/// What a reconcile would do to a step's resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is as it should be, or there is nothing that should be.
    Nothing,
    /// Make it; or adopt what has its name, if the tenant may.
    Create,
    Update,
    /// Keep it, marked as not in use.
    SwitchOff,
    /// Keep it, marked as released.
    Release,
    Delete,
    Purge,
    /// Only a look at it can tell.
    Look,
}

impl Action {
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Create,
        Self::Update,
        Self::SwitchOff,
        Self::Release,
        Self::Delete,
        Self::Purge,
        Self::Look,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Create => "create",
            Self::Update => "update",
            Self::SwitchOff => "switchOff",
            Self::Release => "release",
            Self::Delete => "delete",
            Self::Purge => "purge",
            Self::Look => "look",
        }
    }
}

/// A field in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedField {
    /// The upstream's name of it where it was looked at for a plan, else the tenant's.
    pub name: Cow<'static, str>,
    /// As it was last seen, if it ever was.
    pub observed: Option<String>,
    /// `None`: whatever it is, it stays.
    pub desired: Option<String>,
}

impl PlannedField {
    pub fn changes(&self) -> bool {
        self.desired.is_some() && self.observed != self.desired
    }
}

/// What would become of one step's resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    pub action: Action,
    pub fields: Vec<PlannedField>,
    /// When that was seen, if it was.
    pub observed_at: Option<Timestamp>,
    /// Why nothing is done about it now.
    pub held_back: Option<Reason>,
    /// Why it could not be seen.
    pub message: Option<String>,
}

/// What a reconcile of the step would do now. Nothing without an upstream; what only this process lacks
/// (`configured`) is held back.
pub fn plan(tenant: &Tenant, step: Upstream, configured: bool, controls: &Controls) -> StepPlan {
    let recorded = &tenant.status.steps[step];
    if !configured && !controls.fleet_has(step) {
        return StepPlan {
            action: Action::Nothing,
            fields: Vec::new(),
            observed_at: None,
            held_back: None,
            message: Some(format!("{step} is not configured")),
        };
    }
    let desired = tenant.desired.for_step(step);
    let current = recorded.observation.as_ref().filter(|seen| seen.against == desired);
    let settled = tenant.current_state(step).is_settled();
    let action = match (current.map(|seen| &seen.found), desired.presence_for(step)) {
        (Some(Found::Failed { .. }), _) => Action::Look,
        (Some(Found::Missing), Presence::Present) => Action::Create,
        (Some(Found::Fields(_)), Presence::Present) => Action::Update,
        // There is nothing to let go.
        (Some(Found::Missing), _) => Action::Nothing,
        _ if settled => Action::Nothing,
        (None, Presence::Present) => unseen(step, recorded, &desired),
        (None, _) if recorded.external_id.is_none() && recorded.create_intent.is_none() => {
            Action::Nothing
        }
        (_, Presence::Off) => Action::SwitchOff,
        (_, Presence::Gone(DeletionPolicy::Retain)) => Action::Release,
        (_, Presence::Gone(DeletionPolicy::Delete)) => Action::Delete,
        (_, Presence::Gone(DeletionPolicy::Purge)) => Action::Purge,
    };
    let (fields, message) = match current.map(|seen| &seen.found) {
        Some(Found::Fields(seen)) => {
            let field = |field: &super::Field| PlannedField {
                name: field.name.clone(),
                observed: Some(field.observed.clone()),
                desired: Some(field.desired.clone()),
            };
            (seen.iter().map(field).collect(), None)
        }
        Some(Found::Failed { message, .. }) => {
            (own_fields(step, recorded, &desired), Some(message.clone()))
        }
        Some(Found::Missing) => (unmade(step, &desired), None),
        None => {
            let failed = recorded.state == StepState::Error;
            (own_fields(step, recorded, &desired), recorded.message.clone().filter(|_| failed))
        }
    };
    let leaves = desired.presence != Presence::Present;
    let bare = action == Action::Nothing && (leaves || !settled);
    let fields = if bare { Vec::new() } else { fields };
    // As a tripped change guard has it.
    let doubted = match action {
        Action::SwitchOff | Action::Release | Action::Delete | Action::Purge => true,
        Action::Create => recorded.external_id.is_some(),
        Action::Update => recorded.external_id.is_some() && recorded.observed.as_ref() == Some(&desired),
        Action::Nothing | Action::Look => false,
    };
    let held_back = if action == Action::Nothing {
        None
    } else if !configured {
        Some(Reason::NotConfigured)
    } else if tenant.desired.paused {
        Some(Reason::Paused)
    } else if controls.is_stopped(step) {
        Some(Reason::Stopped)
    } else if controls.guards[step].is_tripped() && doubted {
        Some(Reason::ChangeGuard)
    } else {
        None
    };
    let seen_by_reconcile = recorded.last_attempt_at.filter(|_| recorded.state == StepState::Ok);
    let observed_at = recorded.observation.as_ref().map(|seen| seen.at).or(seen_by_reconcile);
    StepPlan { action, fields, observed_at, held_back, message }
}

/// What is to be done about a resource that should be there, and that was not looked at since that, or
/// since the step failed.
fn unseen(step: Upstream, recorded: &StepStatus, desired: &StepDesired) -> Action {
    if step == Upstream::Stalwart && desired.domain.is_none() {
        return Action::Nothing;
    }
    match (&recorded.external_id, &recorded.observed) {
        (None, _) if recorded.create_intent.is_some() || recorded.attempts > 0 => Action::Look,
        (None, _) => Action::Create,
        // To pause it, say, changes nothing of its resources.
        (Some(_), Some(_)) if own_fields(step, recorded, desired).iter().any(PlannedField::changes) => {
            Action::Update
        }
        (Some(_), _) => Action::Look,
    }
}

/// The tenant's fields that the step answers for, as it last matched and as they are now.
fn own_fields(step: Upstream, recorded: &StepStatus, desired: &StepDesired) -> Vec<PlannedField> {
    let observed = recorded.observed.as_ref().filter(|seen| seen.presence == Presence::Present);
    let mut fields = unmade(step, desired);
    for field in &mut fields {
        field.observed = observed.and_then(|observed| value(observed, &field.name));
        // A quota that is no longer wanted is taken back, and not left.
        if field.name == QUOTA && field.desired.is_none() && recorded.given_quota.is_some_and(|q| q > 0)
        {
            field.desired = Some("0".to_owned());
        }
    }
    fields.retain(|field| field.observed.is_some() || field.desired.is_some());
    fields
}

const QUOTA: &str = "quota.storageBytes";

fn unmade(step: Upstream, desired: &StepDesired) -> Vec<PlannedField> {
    let names: &[&'static str] = match step {
        Upstream::Authentik => &["name"],
        Upstream::Stalwart => &["name", "domain"],
        Upstream::Ocis => &["name", QUOTA],
    };
    let field = |name: &&'static str| PlannedField {
        name: (*name).into(),
        observed: None,
        desired: value(desired, name),
    };
    names.iter().map(field).collect()
}

fn value(of: &StepDesired, field: &str) -> Option<String> {
    match field {
        "name" => Some(of.name.to_string()),
        "domain" => of.domain.as_ref().map(ToString::to_string),
        _ => of.storage_bytes.map(|bytes| bytes.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ChangeGuard, Desired, Field, Observation, PerStep, Services, Status, TenantId};
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn tenant(change: impl FnOnce(&mut Desired)) -> Tenant {
        let mut desired = Desired::new("Acme".parse().unwrap());
        desired.domain = Some("acme.test".parse().unwrap());
        change(&mut desired);
        Tenant {
            id: TenantId::from_bytes([1; 12]),
            slug: "acme".parse().unwrap(),
            generation: 1,
            reconcile_requested_at: None,
            reconcile_requested_steps: None,
            observation_requested: false,
            reconcile_requested_by: Vec::new(),
            changed_by: Vec::new(),
            status: Status::default(),
            interrupted: false,
            deletion_requested_at: None,
            desired,
            created_at: at(0),
            updated_at: None,
        }
    }

    /// Every step matched what is desired now.
    fn converged(change: impl FnOnce(&mut Desired)) -> Tenant {
        let mut tenant = tenant(change);
        tenant.status.steps = PerStep::from_fn(|step| StepStatus {
            state: StepState::Ok,
            external_id: Some("id".into()),
            observed: Some(tenant.desired.for_step(step)),
            last_attempt_at: Some(at(1)),
            ..StepStatus::default()
        });
        tenant
    }

    fn actions(tenant: &Tenant) -> [Action; 3] {
        Upstream::ALL.map(|step| plan(tenant, step, true, &Controls::default()).action)
    }

    fn see(tenant: &mut Tenant, step: Upstream, found: Found) {
        let against = tenant.desired.for_step(step);
        tenant.status.steps[step].observation = Some(Observation { at: at(2), against, found });
    }

    #[test]
    fn a_new_tenant_is_made_and_a_converged_one_left_alone() {
        assert_eq!(actions(&tenant(|_| {})), [Action::Create; 3]);
        let converged = converged(|_| {});
        assert_eq!(actions(&converged), [Action::Nothing; 3]);
        let step = plan(&converged, Upstream::Stalwart, true, &Controls::default());
        assert_eq!(step.observed_at, Some(at(1)));
        assert!(step.fields.iter().all(|field| !field.changes()), "{step:?}");
        assert_eq!(
            actions(&tenant(|desired| desired.domain = None))[1],
            Action::Nothing,
            "without a domain there is no mail"
        );
    }

    #[test]
    fn an_edit_changes_the_fields_that_it_is_about_in_the_steps_that_it_is_about() {
        let mut edited = converged(|_| {});
        edited.desired.storage_bytes = Some(7);
        assert_eq!(actions(&edited), [Action::Nothing, Action::Nothing, Action::Update]);
        let step = plan(&edited, Upstream::Ocis, true, &Controls::default());
        let changing: Vec<_> = step.fields.iter().filter(|field| field.changes()).collect();
        assert_eq!(changing.len(), 1);
        assert_eq!(
            (changing[0].name.as_ref(), changing[0].desired.as_deref()),
            ("quota.storageBytes", Some("7"))
        );
    }

    #[test]
    fn what_a_look_saw_counts_until_the_desired_state_changes() {
        let mut drifted = converged(|_| {});
        see(&mut drifted, Upstream::Authentik, Found::Missing);
        see(
            &mut drifted,
            Upstream::Ocis,
            Found::Fields(vec![
                Field::new("name", "x", "Acme"),
                Field::new("state", "enabled", "enabled"),
            ]),
        );
        assert_eq!(actions(&drifted), [Action::Create, Action::Nothing, Action::Update]);
        let step = plan(&drifted, Upstream::Ocis, true, &Controls::default());
        assert_eq!(step.fields.iter().map(PlannedField::changes).collect::<Vec<_>>(), [true, false]);
        assert_eq!(step.observed_at, Some(at(2)));
        drifted.desired.name = "Other".parse().unwrap();
        assert_eq!(actions(&drifted), [Action::Update; 3]);
    }

    #[test]
    fn what_cannot_be_seen_is_not_guessed() {
        let mut tenant = converged(|_| {});
        let failed = Found::Failed { reason: Reason::Timeout, message: "ocis: too slow".into() };
        see(&mut tenant, Upstream::Ocis, failed);
        tenant.status.steps[Upstream::Authentik].state = StepState::Error;
        assert_eq!(actions(&tenant), [Action::Look, Action::Nothing, Action::Look]);
        let step = plan(&tenant, Upstream::Ocis, true, &Controls::default());
        assert_eq!(step.message.as_deref(), Some("ocis: too slow"));
    }

    #[test]
    fn a_service_that_is_off_and_a_tenant_that_goes_let_go_what_there_is_and_only_that() {
        let off = |desired: &mut Desired| desired.services = Services::new(|_| false);
        assert_eq!(actions(&tenant(off)), [Action::Nothing; 3]);
        let mut leaving = converged(|_| {});
        off(&mut leaving.desired);
        assert_eq!(actions(&leaving), [Action::SwitchOff; 3]);
        for (policy, action) in [
            (DeletionPolicy::Retain, Action::Release),
            (DeletionPolicy::Delete, Action::Delete),
            (DeletionPolicy::Purge, Action::Purge),
        ] {
            leaving.desired.deletion = Some(policy);
            assert_eq!(actions(&leaving), [action; 3]);
        }
        see(&mut leaving, Upstream::Stalwart, Found::Missing);
        assert_eq!(actions(&leaving)[1], Action::Nothing);
    }

    #[test]
    fn what_is_held_back_says_why() {
        let mut paused = converged(|_| {});
        paused.desired.name = "Other".parse().unwrap();
        let mut controls = Controls::default();
        let held = |tenant: &Tenant, controls: &Controls| {
            Upstream::ALL.map(|step| plan(tenant, step, true, controls).held_back)
        };
        assert_eq!(held(&paused, &controls), [None; 3]);
        controls.stopped_upstreams[Upstream::Ocis] = true;
        assert_eq!(held(&paused, &controls), [None, None, Some(Reason::Stopped)]);
        paused.desired.paused = true;
        assert_eq!(held(&paused, &controls), [Some(Reason::Paused); 3]);
        let converged = converged(|_| {});
        controls.stopped = true;
        assert_eq!(held(&converged, &controls), [None; 3], "there is nothing to hold back");

        let tripped = ChangeGuard::Tripped { at: at(0), message: "too many".into() };
        let controls = Controls { guards: PerStep::from_fn(|_| tripped.clone()), ..Controls::default() };
        let mut edited = converged.clone();
        edited.desired.name = "Other".parse().unwrap();
        assert_eq!(held(&edited, &controls), [None; 3], "what is asked for goes on");
        let mut missing = edited.clone();
        for step in Upstream::ALL {
            see(&mut missing, step, Found::Missing);
        }
        assert_eq!(held(&missing, &controls), [Some(Reason::ChangeGuard); 3], "but not from nothing");
        let mut leaving = converged;
        leaving.desired.deletion = Some(DeletionPolicy::Retain);
        assert_eq!(held(&leaving, &controls), [Some(Reason::ChangeGuard); 3]);
        assert_eq!(held(&tenant(|_| {}), &controls), [None; 3], "new tenants go on");
    }

    #[test]
    fn what_only_this_process_lacks_is_held_back_and_not_gone() {
        let mut fleet = crate::tenant::Fleet::new(crate::tenant::FleetId::from_bytes([1; 6]));
        fleet.upstreams[Upstream::Ocis] = crate::tenant::Standing::Known { since: at(0) };
        let controls = Controls { fleet: Some(fleet), ..Controls::default() };
        let planned = plan(&tenant(|_| {}), Upstream::Ocis, false, &controls);
        assert_eq!((planned.action, planned.held_back), (Action::Create, Some(Reason::NotConfigured)));
        let converged = plan(&converged(|_| {}), Upstream::Ocis, false, &controls);
        assert_eq!((converged.action, converged.held_back), (Action::Nothing, None));
    }

    #[test]
    fn without_an_upstream_there_is_nothing_to_do() {
        let step = plan(&tenant(|_| {}), Upstream::Ocis, false, &Controls::default());
        assert_eq!((step.action, step.observed_at), (Action::Nothing, None));
    }
}
