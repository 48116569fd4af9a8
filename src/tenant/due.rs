//! Which steps of a tenant are due.

use jiff::Timestamp;

use super::{Policy, Tenant, Upstream};

/// The steps that a reconcile of a tenant that is due should run now.
///
/// Where no step has a reason of its own (a person set `nextReconcileAt` by hand, or a change was taken
/// back), the settled ones are looked at again: the tenant was not marked due for nothing.
pub fn due_steps(tenant: &Tenant, now: Timestamp, policy: &Policy) -> Vec<Upstream> {
    let due = steps_with_reason(tenant, now, policy);
    if due.is_empty() && !tenant.is_observation_requested() { settled_steps(tenant) } else { due }
}

/// The steps that a reconcile which runs the steps `due` should look at only: a person wants to see what
/// would be changed.
pub fn steps_to_observe(tenant: &Tenant, due: &[Upstream]) -> Vec<Upstream> {
    let wanted = tenant.is_observation_requested();
    Upstream::ALL.into_iter().filter(|step| wanted && !due.contains(step)).collect()
}

/// A step has a reason to run when
///
/// * an explicit request is open that is about it, or the tenant was marked due by a missing `nextReconcileAt`,
/// * the part of the desired state that concerns it differs from what it was last run for,
/// * its own time has come (`nextAttemptAt`), or it never had one,
/// * it was settled, and an earlier reconcile may have changed that without saying so.
///
/// A settled step whose routine re-check is near rides along with another settled one's, so that a
/// tenant whose steps settled at different times does not stay split into several re-checks for ever.
pub(super) fn steps_with_reason(tenant: &Tenant, now: Timestamp, policy: &Policy) -> Vec<Upstream> {
    let everything = tenant.status.next_reconcile_at.is_none();
    let own_time = |step: Upstream, at: Timestamp| {
        tenant.status.steps[step].next_attempt_at.is_none_or(|next| next <= at)
    };
    let settled = |step: Upstream| tenant.status.steps[step].state.is_settled();
    let routine = Upstream::ALL.into_iter().any(|s| settled(s) && own_time(s, now));
    let soon = now + policy.resync / 2;

    Upstream::ALL
        .into_iter()
        .filter(|step| {
            everything
                || tenant.is_requested(*step)
                || desired_changed(tenant, *step)
                || own_time(*step, now)
                || (settled(*step) && (tenant.interrupted || (routine && own_time(*step, soon))))
        })
        .collect()
}

/// Whether earlier failures of the step no longer count: a person asked for it, or it has something
/// new to do. Nothing else resets a backoff.
pub fn starts_afresh(tenant: &Tenant, step: Upstream) -> bool {
    tenant.is_requested(step) || desired_changed(tenant, step)
}

fn desired_changed(tenant: &Tenant, step: Upstream) -> bool {
    let desired = tenant.desired.for_step(step);
    let recorded = &tenant.status.steps[step];
    // Never `ok` for what is no longer desired, whatever was handled in between.
    (recorded.state.is_settled() && recorded.observed.as_ref() != Some(&desired))
        || tenant
            .status
            .last_handled_desired
            .as_ref()
            .is_some_and(|handled| handled.for_step(step) != desired)
}

fn settled_steps(tenant: &Tenant) -> Vec<Upstream> {
    let settled = |step: &Upstream| tenant.status.steps[*step].state.is_settled();
    Upstream::ALL.into_iter().filter(settled).collect()
}
