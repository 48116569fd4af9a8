//! What a reconcile adds to a tenant's history.

use crate::store::Claim;
use crate::tenant::{
    Desired, Event, EventKind, Outcome, Phase, Status, StepKind, StepRun, StepState, Subject, Tenant,
};

/// What changed by a reconcile, from before to after.
pub fn of_reconcile(claim: &Claim, after: &Status, runs: &[StepRun]) -> Vec<Event> {
    let tenant = &claim.tenant;
    let before = &tenant.status;
    let mut events = Vec::new();
    for run in runs {
        if let Outcome::Ok { repaired, .. } = &run.outcome
            && !repaired.is_empty()
            // What was asked for is an edit, not drift.
            && before.steps[run.step].observed.as_ref() == Some(&tenant.desired.for_step(run.step))
        {
            let fields: Vec<_> = repaired.iter().map(ToString::to_string).collect();
            let event = Event::now(EventKind::DriftRepaired, fields.join("; "));
            events.push(event.of_step(run.step, None));
        }
    }
    for step in StepKind::ALL {
        let (old, new) = (&before.steps[step], &after.steps[step]);
        if (old.state, old.reason) == (new.state, new.reason) {
            continue;
        }
        let mut message = format!("{} -> {}", old.state.name(), new.state.name());
        if let Some(said) = new.message.as_ref().filter(|_| new.state != StepState::Ok) {
            message = format!("{message}: {said}");
        }
        events.push(Event::now(EventKind::StepChanged, message).of_step(step, new.reason));
    }
    if before.phase != Phase::Active && after.phase == Phase::Active {
        events.push(Event::now(EventKind::Active, "every step is ok or skipped"));
    }
    events
}

/// What people, or programs, wanted of the tenant since it was last looked at.
pub fn of_what_was_asked(claim: &Claim) -> Vec<Event> {
    let tenant = &claim.tenant;
    let mut names: Vec<&str> = Vec::new();
    for name in &tenant.changed_by {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let by = (!names.is_empty()).then(|| names.join(", "));
    let mut events = Vec::new();
    match &tenant.status.last_handled_desired {
        None => {
            let message = if claim.is_found() { "found in the database" } else { "by a request" };
            let first = names.first().map(|name| (*name).to_owned());
            events.push(Event::now(EventKind::Created, message).at(tenant.created_at).by(first));
        }
        Some(handled) => {
            let edited = edits(handled, &tenant.desired);
            if !edited.is_empty() {
                events.push(Event::now(EventKind::Edited, edited).by(by.clone()));
            }
            match (handled.paused, tenant.desired.paused) {
                (false, true) => events.push(Event::now(EventKind::Paused, "").by(by.clone())),
                (true, false) => events.push(Event::now(EventKind::Resumed, "").by(by.clone())),
                _ => {}
            }
        }
    }
    let handled = tenant.status.last_handled_desired.as_ref().and_then(|handled| handled.deletion);
    match (handled, tenant.desired.deletion) {
        (before, Some(policy)) if before != Some(policy) => {
            let message = format!("with policy {policy}");
            let at = tenant.deletion_requested_at.filter(|_| before.is_none());
            let event = Event::now(EventKind::DeletionRequested, message).by(by);
            events.push(at.map_or(event.clone(), |at| event.at(at)));
        }
        (Some(_), None) => events.push(Event::now(EventKind::Undeleted, "").by(by)),
        _ => {}
    }
    let about = tenant.reconcile_requested_steps.as_ref().map(|of| {
        let named = StepKind::ALL.into_iter().filter(|step| of[*step]).map(StepKind::name);
        named.collect::<Vec<_>>().join(", ")
    });
    // Who only wants to look wants nothing of the tenant.
    if let Some(at) = tenant.open_request().filter(|_| about.as_deref() != Some("")) {
        let message = format!("of {}", about.as_deref().unwrap_or("all steps"));
        let by = tenant.reconcile_requested_by.clone();
        events.push(Event::now(EventKind::ReconcileRequested, message).at(at).by(by));
    }
    events
}

/// The last event of a tenant; its `last` status says what became of its resources.
pub fn tombstone(tenant: &Tenant, last: &Status) -> (Subject, Event) {
    let policy = tenant.desired.deletion.map_or("retain", |policy| policy.name());
    let left = last.steps.iter().filter_map(|(_, step)| step.message.as_deref());
    let left: Vec<_> = left.collect();
    let message = format!("deleted with policy {policy}. {}", left.join("; "));
    (tenant.subject(), Event::now(EventKind::Deleted, message.trim_end()))
}

/// What differs between two desired states, in words, but for what has events of its own.
fn edits(from: &Desired, to: &Desired) -> String {
    let mut edits = Vec::new();
    let mut compare = |field: &str, from: String, to: String| {
        if from != to {
            edits.push(format!("{field} from {from} to {to}"));
        }
    };
    let some = |text: Option<String>| text.unwrap_or_else(|| "(none)".to_owned());
    compare("name", format!("{:?}", from.name.as_str()), format!("{:?}", to.name.as_str()));
    compare(
        "domain",
        some(from.domain.as_ref().map(ToString::to_string)),
        some(to.domain.as_ref().map(ToString::to_string)),
    );
    compare(
        "quota.storageBytes",
        some(from.storage_bytes.map(|bytes| bytes.to_string())),
        some(to.storage_bytes.map(|bytes| bytes.to_string())),
    );
    for step in StepKind::ALL {
        let on = |desired: &Desired| desired.services.has(step).to_string();
        compare(&format!("services.{step}"), on(from), on(to));
    }
    compare("adopt", from.adopt.to_string(), to.adopt.to_string());
    edits.join("; ")
}
