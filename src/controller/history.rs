//! What a reconcile adds to a tenant's history.

use crate::store::Claim;
use crate::tenant::{
    Act, Desired, Event, EventKind, Phase, Status, StepState, Subject, Tenant, Upstream,
};
use jiff::Timestamp;

/// What was done to resources.
pub fn of_acts(acts: &[(Upstream, Act)], now: Timestamp) -> Vec<Event> {
    let event = |(step, act): &(Upstream, Act)| {
        Some(Event::new(now, act.deed.kind()?, act.to_string()).of_step(*step, None))
    };
    acts.iter().filter_map(event).collect()
}

/// What changed of a status that was recorded, since the one that was told before.
pub fn of_reconcile(told: &Status, recorded: &Status, now: Timestamp) -> Vec<Event> {
    let mut events = Vec::new();
    for step in Upstream::ALL {
        let (old, new) = (&told.steps[step], &recorded.steps[step]);
        if (old.state, old.reason) == (new.state, new.reason) {
            continue;
        }
        let mut message = format!("{} -> {}", old.state.name(), new.state.name());
        if let Some(said) = new.message.as_ref().filter(|_| new.state != StepState::Ok) {
            message = format!("{message}: {said}");
        }
        events.push(Event::new(now, EventKind::StepChanged, message).of_step(step, new.reason));
    }
    if told.phase != Phase::Active && recorded.phase == Phase::Active {
        events.push(Event::new(now, EventKind::Active, "every step is ok or skipped"));
    }
    events
}

/// What people, or programs, wanted of the tenant since it was last looked at.
pub fn of_what_was_asked(claim: &Claim) -> Vec<Event> {
    let asked = Asked(&claim.tenant, claim.now());
    let mut events = Vec::new();
    if claim.is_new() {
        events.push(asked.creation(claim.is_found()));
    }
    events.extend(asked.edit());
    events.extend(asked.pause());
    events.extend(asked.deletion());
    events.extend(asked.reconcile());
    events
}

/// What became of a change that is not there any more.
const TAKEN_BACK: &str = "taken back before it was acted on";

/// What the document says was asked for, and what of that is still so, at this time.
struct Asked<'a>(&'a Tenant, Timestamp);

impl Asked<'_> {
    /// Who asked for changes of these kinds.
    fn by(&self, kinds: &[EventKind]) -> Option<String> {
        let changes = self.0.changed_by.iter().flatten();
        names(changes.filter(|change| kinds.contains(&change.kind)).filter_map(|c| c.by.as_ref()))
    }

    /// Whether such a change was asked for, by any caller.
    fn was(&self, kind: EventKind) -> bool {
        self.0.changed_by.iter().flatten().any(|change| change.kind == kind)
    }

    fn handled(&self) -> Option<&Desired> {
        self.0.status.last_handled_desired.as_ref()
    }

    fn creation(&self, found: bool) -> Event {
        let creator = self.by(&[EventKind::Created]);
        let message = match creator {
            Some(_) => "by a request",
            None if found => "found in the database",
            None => "",
        };
        Event::new(self.0.created_at, EventKind::Created, message).by(creator)
    }

    fn edit(&self) -> Option<Event> {
        let handled = self.handled()?;
        let edits = edits(handled, &self.0.desired);
        // A pause, or its end, may be all that was edited.
        let paused = handled.paused != self.0.desired.paused;
        let edited = self.was(EventKind::Edited) || self.is_another_generation_without_a_change();
        let message = match edits.is_empty() {
            false => edits,
            true if edited && !paused => TAKEN_BACK.to_owned(),
            true => return None,
        };
        Some(Event::new(self.1, EventKind::Edited, message).by(self.by(&[EventKind::Edited])))
    }

    /// Whether the desired state was changed, and neither it nor what is noted beside it says how: pauses and
    /// deletions count as changes too, and have events of their own.
    fn is_another_generation_without_a_change(&self) -> bool {
        let deletion = self.handled().and_then(|handled| handled.deletion);
        let is_noted = self.0.changed_by.iter().flatten().next().is_some();
        let observed = self.0.status.observed_generation;
        observed.is_some_and(|observed| observed != self.0.generation)
            && deletion == self.0.desired.deletion
            && !is_noted
    }

    fn pause(&self) -> Vec<Event> {
        let Some(handled) = self.handled() else { return Vec::new() };
        // It may be part of an edit.
        let by = |kind: EventKind| self.by(&[kind]).or_else(|| self.by(&[EventKind::Edited]));
        let (first, second) = match handled.paused {
            false => (EventKind::Paused, EventKind::Resumed),
            true => (EventKind::Resumed, EventKind::Paused),
        };
        if handled.paused != self.0.desired.paused {
            return vec![Event::new(self.1, first, "").by(by(first))];
        }
        if !(self.was(first) && self.was(second)) {
            return Vec::new();
        }
        let both = [first, second].map(|kind| Event::new(self.1, kind, TAKEN_BACK).by(self.by(&[kind])));
        both.into()
    }

    fn deletion(&self) -> Vec<Event> {
        let (asked, undone) = (EventKind::DeletionRequested, EventKind::Undeleted);
        let event =
            |kind: EventKind, message: String| Event::new(self.1, kind, message).by(self.by(&[kind]));
        match (self.handled().and_then(|handled| handled.deletion), self.0.desired.deletion) {
            (before, Some(policy)) if before != Some(policy) => {
                let event = event(asked, format!("with policy {policy}"));
                let at = self.0.deletion_requested_at.filter(|_| before.is_none());
                vec![Event { at: at.unwrap_or(event.at), ..event }]
            }
            (Some(_), None) => vec![event(undone, String::new())],
            (None, None) if self.was(asked) && self.was(undone) => {
                [asked, undone].map(|kind| event(kind, TAKEN_BACK.to_owned())).into()
            }
            _ => Vec::new(),
        }
    }

    fn reconcile(&self) -> Option<Event> {
        let about = self.0.reconcile_requested_steps.as_ref().map(|of| {
            let named = Upstream::ALL.into_iter().filter(|step| of[*step]).map(Upstream::name);
            named.collect::<Vec<_>>().join(", ")
        });
        // A request that only wants to look wants nothing of the tenant.
        let at = self.0.open_request().filter(|_| about.as_deref() != Some(""))?;
        let message = format!("of {}", about.as_deref().unwrap_or("all steps"));
        let by = names(self.0.reconcile_requested_by.iter());
        Some(Event::new(at, EventKind::ReconcileRequested, message).by(by))
    }
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

/// The last events of a tenant: what was asked of it, and its end; its `last` status says what became of its
/// resources. They are told before the document goes, and again should it not go, so each has a key.
pub fn of_end(claim: &Claim, last: &Status) -> Vec<(Subject, Event)> {
    let tenant = &claim.tenant;
    let policy = tenant.desired.deletion.map_or("retain", |policy| policy.name());
    let left = last.steps.iter().filter_map(|(_, step)| step.message.as_deref());
    let left: Vec<_> = left.collect();
    let message = format!("deleted with policy {policy}. {}", left.join("; "));
    let end = Event::new(claim.now(), EventKind::Deleted, message.trim_end());
    let events = of_what_was_asked(claim).into_iter().chain([end]);
    events.map(|event| (tenant.subject(), event.clone().keyed(key(tenant, &event)))).collect()
}

/// The same for as long as nothing was recorded in between.
fn key(tenant: &Tenant, event: &Event) -> String {
    let time = |at: Option<jiff::Timestamp>| at.map_or(0, jiff::Timestamp::as_millisecond);
    let (status, kind) = (&tenant.status, event.kind);
    let (deletion, handled) =
        (time(tenant.deletion_requested_at), time(status.last_handled_reconcile_at));
    let request = time(Some(event.at).filter(|_| kind == EventKind::ReconcileRequested));
    format!("{kind}/{deletion}/{handled}/{request}")
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
    for step in Upstream::ALL {
        let on = |desired: &Desired| desired.services.has(step).to_string();
        compare(&format!("services.{step}"), on(from), on(to));
    }
    let adopt = |desired: &Desired| some(desired.adopt.map(|adopt| adopt.to_string()));
    compare("adopt", adopt(from), adopt(to));
    edits.join("; ")
}
