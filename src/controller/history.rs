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
    let by = |kinds: &[EventKind]| {
        let changes = tenant.changed_by.iter().flatten();
        names(changes.filter(|change| kinds.contains(&change.kind)).map(|change| &change.by))
    };
    // A pause may be part of an edit.
    let by_pause = |kind: EventKind| by(&[kind]).or_else(|| by(&[EventKind::Edited]));
    let mut events = Vec::new();
    if claim.is_new() {
        let creator = by(&[EventKind::Created]);
        let message = match creator {
            Some(_) => "by a request",
            None if claim.is_found() => "found in the database",
            None => "",
        };
        events.push(Event::now(EventKind::Created, message).at(tenant.created_at).by(creator));
    }
    if let Some(handled) = &tenant.status.last_handled_desired {
        let edited = edits(handled, &tenant.desired);
        if !edited.is_empty() {
            events.push(Event::now(EventKind::Edited, edited).by(by(&[EventKind::Edited])));
        }
        let pause = match (handled.paused, tenant.desired.paused) {
            (false, true) => Some(EventKind::Paused),
            (true, false) => Some(EventKind::Resumed),
            _ => None,
        };
        events.extend(pause.map(|kind| Event::now(kind, "").by(by_pause(kind))));
    }
    let handled = tenant.status.last_handled_desired.as_ref().and_then(|handled| handled.deletion);
    match (handled, tenant.desired.deletion) {
        (before, Some(policy)) if before != Some(policy) => {
            let message = format!("with policy {policy}");
            let at = tenant.deletion_requested_at.filter(|_| before.is_none());
            let event = Event::now(EventKind::DeletionRequested, message);
            let event = event.by(by(&[EventKind::DeletionRequested]));
            events.push(at.map_or(event.clone(), |at| event.at(at)));
        }
        (Some(_), None) => {
            events.push(Event::now(EventKind::Undeleted, "").by(by(&[EventKind::Undeleted])))
        }
        _ => {}
    }
    let about = tenant.reconcile_requested_steps.as_ref().map(|of| {
        let named = StepKind::ALL.into_iter().filter(|step| of[*step]).map(StepKind::name);
        named.collect::<Vec<_>>().join(", ")
    });
    // Who only wants to look wants nothing of the tenant.
    if let Some(at) = tenant.open_request().filter(|_| about.as_deref() != Some("")) {
        let message = format!("of {}", about.as_deref().unwrap_or("all steps"));
        let by = names(tenant.reconcile_requested_by.iter());
        events.push(Event::now(EventKind::ReconcileRequested, message).at(at).by(by));
    }
    events
}

/// Each name once.
fn names<'a>(all: impl Iterator<Item = &'a String>) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in all {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    (!names.is_empty()).then(|| names.join(", "))
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
