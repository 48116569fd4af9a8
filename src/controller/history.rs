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
    if claim.is_found() && before.last_handled_desired.is_none() {
        events.push(Event::now(EventKind::Created, "found in the database"));
    }
    if let Some(handled) = &before.last_handled_desired
        && *handled != tenant.desired
    {
        events.push(Event::now(EventKind::Edited, edits(handled, &tenant.desired)));
    }
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

/// The last event of a tenant; its `last` status says what became of its resources.
pub fn tombstone(tenant: &Tenant, last: &Status) -> (Subject, Event) {
    let policy = tenant.desired.deletion.map_or("retain", |policy| policy.name());
    let left = last.steps.iter().filter_map(|(_, step)| step.message.as_deref());
    let left: Vec<_> = left.collect();
    let message = format!("deleted with policy {policy}. {}", left.join("; "));
    (tenant.subject(), Event::now(EventKind::Deleted, message.trim_end()))
}

/// What differs between two desired states, in words.
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
    compare("paused", from.paused.to_string(), to.paused.to_string());
    compare("adopt", from.adopt.to_string(), to.adopt.to_string());
    let deletion = |desired: &Desired| some(desired.deletion.map(|policy| policy.to_string()));
    compare("deletion", deletion(from), deletion(to));
    edits.join("; ")
}
