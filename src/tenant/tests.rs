//! Facts about due steps, transitions and backoff that hold for every tenant, driven by proptest.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn any_time() -> impl Strategy<Value = Option<Timestamp>> {
    prop_oneof![Just(None), (-100_000i64..100_000).prop_map(|s| Some(at(s)))]
}

prop_compose! {
    fn any_desired()(
        name in "[A-Z][a-z]{0,3}",
        domain in prop_oneof![Just(None), "[a-z]{1,3}\\.test".prop_map(Some)],
        storage_bytes in prop_oneof![Just(None), (0i64..3).prop_map(Some)],
        services in prop::array::uniform3(any::<bool>()),
        paused in prop::bool::weighted(0.1),
        deletion in prop_oneof![
            4 => Just(None),
            1 => prop::sample::select(DeletionPolicy::ALL.to_vec()).prop_map(Some),
        ],
    ) -> Desired {
        Desired {
            name: name.parse().unwrap(),
            domain: domain.map(|domain| domain.parse().unwrap()),
            storage_bytes,
            services: Services::new(|step| services[step as usize]),
            paused,
            adopt: None,
            deletion,
        }
    }
}

fn any_state() -> impl Strategy<Value = StepState> {
    prop::sample::select(StepState::ALL.to_vec())
}

fn adopted_as(id: &str) -> Adopted {
    let before = Before::from([("description".to_owned(), Some("theirs".to_owned()))]);
    Adopted { external_id: id.to_owned(), before }
}

prop_compose! {
    fn any_step(desired: Desired, kind: Upstream)(
        state in any_state(),
        attempts in 0u32..100,
        matches in any::<bool>(),
        other in any_desired(),
        external_id in prop_oneof![Just(None), Just(Some("id".to_owned()))],
        (last, next) in (any_time(), any_time()),
        intent in prop_oneof![Just(None), any::<bool>().prop_map(Some)],
        adopted in prop::sample::subsequence(vec!["id", "former"], 0..=2),
        legacy in any::<bool>(),
    ) -> StepStatus {
        let observed = if matches { desired.for_step(kind) } else { other.for_step(kind) };
        StepStatus {
            state,
            reason: Some(Reason::InSync),
            message: (state == StepState::Error).then(|| "went wrong".into()),
            external_id,
            adopted: adopted.into_iter().map(adopted_as).collect(),
            legacy,
            create_intent: intent
                .map(|fresh| CreateIntent { id: IntentId::from_bytes([9; 12]), fresh }),
            fingerprint: None,
            given_quota: None,
            parked: false,
            awaits_since: None,
            others: Vec::new(),
            search: false,
            observation: None,
            observed: state.is_settled().then_some(observed),
            attempts,
            last_attempt_at: last,
            last_transition_at: last,
            next_attempt_at: next,
        }
    }
}

fn any_tenant() -> impl Strategy<Value = Tenant> {
    any_desired().prop_flat_map(|desired| {
        let handled =
            prop_oneof![Just(None), Just(Some(desired.clone())), any_desired().prop_map(Some),];
        let [a, b, c] = Upstream::ALL.map(|kind| any_step(desired.clone(), kind).boxed());
        (
            Just(desired),
            (a, b, c),
            handled,
            any_time(),
            any_time(),
            prop::sample::select(Phase::ALL.to_vec()),
            any_time(),
            (1i64..5, any::<bool>(), any::<bool>()),
            prop::option::of(any::<[bool; 3]>()),
        )
            .prop_map(|(desired, steps, handled, asked, done, phase, next, flags, some)| {
                let (generation, interrupted, observation_requested) = flags;
                let some_steps = some.map(|on| PerStep::from_fn(|step| on[step as usize]));
                let steps = [steps.0, steps.1, steps.2];
                Tenant {
                    id: TenantId::from_bytes([7; 12]),
                    slug: "acme".parse().unwrap(),
                    desired,
                    generation,
                    reconcile_requested_at: asked,
                    reconcile_requested_steps: some_steps,
                    observation_requested,
                    reconcile_requested_by: Vec::new(),
                    changed_by: Vec::new(),
                    status: Status {
                        phase,
                        steps: PerStep::from_fn(|kind| steps[kind as usize].clone()),
                        ready: None,
                        observed_generation: None,
                        last_handled_reconcile_at: done,
                        last_handled_desired: handled,
                        next_reconcile_at: next,
                    },
                    interrupted,
                    deletion_requested_at: None,
                    created_at: at(-1_000_000),
                    updated_at: None,
                }
            })
    })
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let failed = |kind| failing(kind, false);
    let well = |note: bool, look_again: Option<u64>| Outcome::Ok {
        external_id: Some("id".into()),
        note: note.then(|| "by the way".into()),
        look_again: look_again.map(Duration::from_secs),
        awaits: false,
        fingerprint: None,
    };
    prop_oneof![
        3 => Just(Outcome::ok("id")),
        1 => (any::<bool>(), prop_oneof![Just(None), (0u64..20_000).prop_map(Some)])
            .prop_map(move |(note, look_again)| well(note, look_again)),
        1 => Just(Outcome::Skipped(Reason::NotConfigured)),
        1 => Just(Outcome::Released {
            reason: Reason::Released,
            external_id: Some("id".into()),
            note: None,
        }),
        1 => prop_oneof![Just(None), Just(Some("made".to_owned()))].prop_map(|external_id| {
            Outcome::Held { reason: Reason::Paused, found: Found::Missing, external_id }
        }),
        1 => Just(Outcome::Lacking),
        1 => Just(Outcome::Adopting { adopted: adopted_as("id"), what: "the group".into() }),
        1 => Just(Outcome::Observed(Found::Missing)),
        1 => prop_oneof![Just(None), (0u64..10_000).prop_map(|s| Some(Duration::from_secs(s)))]
            .prop_map(move |retry_after| failed(FailureKind::Transient { retry_after })),
        1 => Just(failing(FailureKind::Transient { retry_after: None }, true)),
        1 => Just(failed(FailureKind::Terminal)),
        1 => Just(failed(FailureKind::Misconfigured { retry_after: Duration::from_secs(120) })),
        1 => (0u64..10_000).prop_map(move |s| failed(FailureKind::Paced { wait: Duration::from_secs(s) })),
    ]
}

fn failing(kind: FailureKind, unresolved: bool) -> Outcome {
    Outcome::Failed(Failure {
        kind,
        reason: Reason::UpstreamError,
        message: "went wrong".into(),
        external_id: None,
        unresolved,
        parked: false,
        asked: true,
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (1u64..10, 1u64..1_000, 1u64..10_000).prop_map(|(initial, more, resync)| Policy {
        backoff: Backoff {
            initial: Duration::from_secs(initial),
            max: Duration::from_secs(initial + more),
        },
        resync: Duration::from_secs(resync),
    })
}

/// A tenant, its due steps, the outcomes of some of them, and what follows.
#[derive(Debug, Clone)]
struct Case {
    tenant: Tenant,
    policy: Policy,
    due: Vec<Upstream>,
    /// Those among them that are only looked at.
    only_looks: Vec<Upstream>,
    runs: Vec<StepRun>,
    spread: Jitter,
}

impl Case {
    fn after(&self, basis: Basis) -> Transition {
        transition(&self.tenant, &self.due, &self.runs, basis, at(0), &self.policy, self.spread)
    }

    fn ran(&self, step: Upstream) -> Option<&StepRun> {
        self.runs.iter().find(|run| run.step == step)
    }

    fn complete(&self) -> bool {
        self.due.iter().all(|step| self.ran(*step).is_some())
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    let run = || (any_outcome(), 0.0..1.0f64, prop::bool::weighted(0.9));
    (any_tenant(), any_policy(), [run(), run(), run()], 0.0..1.0f64).prop_map(
        |(tenant, policy, outcomes, spread)| {
            let mut due = due_steps(&tenant, at(0), &policy);
            let only_looks = steps_to_observe(&tenant, &due);
            due.extend(&only_looks);
            let runs = due
                .iter()
                .filter_map(|step| {
                    let (outcome, jitter, finished) = outcomes[*step as usize].clone();
                    let outcome = match (only_looks.contains(step), outcome) {
                        (true, Outcome::Failed(Failure { reason, message, .. })) => {
                            Outcome::Observed(Found::Failed { reason, message })
                        }
                        (false, Outcome::Observed(found)) => {
                            Outcome::Held { reason: Reason::ChangeGuard, found, external_id: None }
                        }
                        (_, outcome) => outcome,
                    };
                    finished.then(|| StepRun {
                        step: *step,
                        outcome,
                        at: at(0),
                        jitter: Jitter::new(jitter),
                    })
                })
                .collect();
            Case { tenant, policy, due, only_looks, runs, spread: Jitter::new(spread) }
        },
    )
}

/// The tenant as it is claimed next, after a commit.
fn with(tenant: &Tenant, status: Status) -> Tenant {
    Tenant { status, interrupted: false, ..tenant.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        max_global_rejects: 1_000_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn active_is_entered_iff_every_step_is_settled_for_the_current_desired_state(case in any_case()) {
        let after = case.after(Basis::Current);
        let tenant = with(&case.tenant, after.status.clone());
        let settled = Upstream::ALL.into_iter().all(|step| {
            let recorded = &after.status.steps[step];
            recorded.state.is_settled()
                && recorded.observed == Some(case.tenant.desired.for_step(step))
        });
        let before = case.tenant.status.phase;
        let deleting = case.tenant.desired.deletion.is_some();
        prop_assert_eq!(
            after.status.phase == Phase::Active,
            !deleting && (before == Phase::Active || settled)
        );
        prop_assert_eq!(after.status.phase == Phase::Deleting, deleting);
        let ready = after.status.ready.expect("a transition always says whether it is ready");
        prop_assert_eq!(ready.ready, settled);
        prop_assert_eq!(ready.observed_generation, case.tenant.generation);
        for step in Upstream::ALL {
            if tenant.current_state(step).is_settled() {
                prop_assert_eq!(
                    tenant.status.steps[step].observed.clone(),
                    Some(case.tenant.desired.for_step(step))
                );
            }
        }
    }

    #[test]
    fn once_active_stays_active(case in any_case(), basis in prop::sample::select(vec![Basis::Current, Basis::Superseded])) {
        prop_assume!(case.tenant.status.phase == Phase::Active);
        prop_assume!(case.tenant.desired.deletion.is_none());
        prop_assert_eq!(case.after(basis).status.phase, Phase::Active);
    }

    #[test]
    fn a_step_that_did_not_run_is_untouched(case in any_case()) {
        for basis in [Basis::Current, Basis::Superseded] {
            let after = case.after(basis);
            for step in Upstream::ALL {
                if case.ran(step).is_none() {
                    // But for an intent that the claim recorded in case it did.
                    let mut before = case.tenant.status.steps[step].clone();
                    if case.complete() {
                        before.create_intent = before.create_intent.filter(|intent| !intent.fresh);
                    }
                    prop_assert_eq!(&after.status.steps[step], &before);
                }
            }
        }
    }

    #[test]
    fn what_was_only_looked_at_is_never_called_well_and_what_is_held_keeps_what_is_recorded(
        case in any_case(),
    ) {
        let after = case.after(Basis::Current);
        for run in &case.runs {
            let (before, step) = (&case.tenant.status.steps[run.step], &after.status.steps[run.step]);
            match &run.outcome {
                Outcome::Held { reason, external_id, .. } => {
                    prop_assert_eq!((step.state, step.reason), (StepState::Pending, Some(*reason)));
                    prop_assert_eq!(&step.observed, &before.observed);
                    prop_assert_eq!(&step.fingerprint, &before.fingerprint);
                    let made = external_id.as_ref();
                    prop_assert_eq!(step.external_id.as_ref(), made.or(before.external_id.as_ref()));
                }
                Outcome::Observed(_) => {
                    let intent = step.create_intent;
                    let mut expected = before.clone();
                    expected.observation.clone_from(&step.observation);
                    expected.create_intent = intent;
                    prop_assert_eq!(step, &expected, "a look leaves nothing but what it saw");
                    prop_assert!(step.observation.is_some());
                }
                _ => {}
            }
        }
    }

    #[test]
    fn an_intent_is_kept_exactly_while_something_may_have_been_created_for_it(case in any_case()) {
        for basis in [Basis::Current, Basis::Superseded] {
            let after = case.after(basis);
            for run in &case.runs {
                let before = case.tenant.status.steps[run.step].create_intent;
                let older = before.is_some_and(|intent| !intent.fresh);
                let kept = match &run.outcome {
                    Outcome::Ok { look_again, .. } => look_again.is_some(),
                    Outcome::Failed(failure) => failure.unresolved || older,
                    Outcome::Skipped(_)
                    | Outcome::Released { .. }
                    | Outcome::Adopting { .. }
                    | Outcome::Held { .. }
                    | Outcome::Observed(_)
                    | Outcome::Lacking
                    => older,
                };
                let expected = before.filter(|_| kept);
                prop_assert_eq!(after.status.steps[run.step].create_intent, expected);
            }
        }
    }

    #[test]
    fn what_was_adopted_is_remembered_until_it_is_let_go(case in any_case()) {
        for basis in [Basis::Current, Basis::Superseded] {
            let after = case.after(basis);
            for run in &case.runs {
                let before = &case.tenant.status.steps[run.step];
                let step = &after.status.steps[run.step];
                let is_known = |id: &str| step.adopted.iter().any(|adopted| adopted.external_id == id);
                let was_known = |id: &str| before.adopted.iter().any(|it| it.external_id == id);
                let is_ok = matches!(run.outcome, Outcome::Ok { .. });
                prop_assert_eq!(step.legacy, before.legacy && !is_ok);
                match &run.outcome {
                    Outcome::Ok { external_id, .. } | Outcome::Released { external_id, .. } => {
                        prop_assert_eq!(external_id.as_deref(), Some("id"));
                        prop_assert_eq!((is_known("id"), is_known("former")), (was_known("id"), false));
                    }
                    Outcome::Adopting { .. } => {
                        prop_assert_eq!((is_known("id"), is_known("former")), (true, was_known("former")));
                        prop_assert_eq!(step.origin(), Some(Origin::Adopted));
                        prop_assert_eq!(step.next_attempt_at, Some(run.at));
                        prop_assert!(!after.status.ready.as_ref().unwrap().ready);
                    }
                    _ => prop_assert_eq!(&step.adopted, &before.adopted),
                }
            }
        }
    }

    #[test]
    fn attempts_and_next_due_times_follow_the_backoff(case in any_case()) {
        let after = case.after(Basis::Current);
        for run in &case.runs {
            let (before, step) = (&case.tenant.status.steps[run.step], &after.status.steps[run.step]);
            if matches!(run.outcome, Outcome::Observed(_)) {
                continue;
            }
            let asked = run.outcome.asked();
            prop_assert_eq!(step.last_attempt_at, if asked { Some(at(0)) } else { before.last_attempt_at });
            let wait = step.next_attempt_at.unwrap().duration_since(at(0));
            let wait = Duration::try_from(wait).expect("never in the past");
            let Outcome::Failed(failure) = &run.outcome else {
                prop_assert_eq!(step.attempts, 0);
                let span = match &run.outcome {
                    Outcome::Adopting { .. } => Duration::ZERO,
                    Outcome::Held { .. } => case.policy.terminal(),
                    _ => case.policy.resync,
                };
                let (mut least, mut most) = (span.mul_f64(0.899), span.mul_f64(1.101));
                if let Outcome::Ok { look_again: Some(sooner), .. } = &run.outcome {
                    (least, most) = (least.min(*sooner), most.min(*sooner));
                }
                prop_assert!((least..=most).contains(&wait), "{wait:?}");
                continue;
            };
            let earlier = if starts_afresh(&case.tenant, run.step) { 0 } else { before.attempts };
            if let FailureKind::Paced { wait: asked } = failure.kind {
                let asked = asked.min(Policy::MAX_RETRY_AFTER);
                prop_assert_eq!(step.attempts, earlier, "no failure");
                prop_assert!((asked..=asked.mul_f64(1.201)).contains(&wait), "{wait:?} of {asked:?}");
                continue;
            }
            prop_assert_eq!(step.attempts, earlier + 1);
            let backoff = case.policy.backoff.delay(step.attempts, run.jitter);
            prop_assert!(wait >= backoff, "{wait:?} is sooner than {backoff:?}");
            match failure.kind {
                FailureKind::Transient { retry_after: None } => prop_assert_eq!(wait, backoff),
                FailureKind::Transient { retry_after: Some(asked) } => {
                    prop_assert!(wait >= asked.min(Policy::MAX_RETRY_AFTER));
                    prop_assert!(wait <= backoff.max(Policy::MAX_RETRY_AFTER));
                }
                FailureKind::Misconfigured { retry_after } => {
                    prop_assert_eq!(wait, backoff.max(retry_after));
                }
                FailureKind::Paced { .. } => unreachable!("seen before"),
                FailureKind::Terminal => {
                    prop_assert!(wait >= case.policy.terminal().mul_f64(0.899));
                    prop_assert!(wait <= case.policy.terminal().mul_f64(1.101));
                }
            }
        }
    }

    #[test]
    fn the_tenants_due_time_is_its_earliest_steps(case in any_case()) {
        let after = case.after(Basis::Current).status;
        if case.complete() {
            let earliest = after.steps.iter().filter_map(|(_, step)| step.next_attempt_at).min();
            prop_assert_eq!(after.next_reconcile_at, earliest.or(Some(at(0))));
        } else {
            prop_assert!(after.next_reconcile_at.is_none_or(|next| next <= at(0)));
        }
    }

    #[test]
    fn any_change_during_flight_keeps_the_tenant_due_and_claims_nothing(case in any_case()) {
        let after = case.after(Basis::Superseded);
        prop_assert!(after.status.next_reconcile_at.is_none_or(|next| next <= at(0)));
        prop_assert_eq!(after.status.phase, case.tenant.status.phase);
        prop_assert!(!after.status.ready.unwrap().ready);
        for run in &case.runs {
            // A look says nothing of the step.
            let looked = matches!(run.outcome, Outcome::Observed(_));
            prop_assert!(looked || !after.status.steps[run.step].state.is_settled());
        }
    }

    #[test]
    fn an_interrupted_reconcile_forgets_neither_request_nor_change(case in any_case()) {
        prop_assume!(!case.complete());
        let tenant = with(&case.tenant, case.after(Basis::Current).status);
        let due = due_steps(&tenant, at(0), &case.policy);
        for step in &case.due {
            // One that only rode along with another's routine re-check has its own time.
            let rode_along = case.tenant.status.next_reconcile_at.is_some()
                && !starts_afresh(&case.tenant, *step)
                && case.tenant.status.steps[*step].next_attempt_at.is_some_and(|next| next > at(0));
            if case.ran(*step).is_none() && !rode_along {
                let looks = steps_to_observe(&tenant, &due);
                let due = if case.only_looks.contains(step) { &looks } else { &due };
                prop_assert!(due.contains(step), "{step} was due and did not run");
            }
        }
    }

    #[test]
    fn a_complete_reconcile_leaves_nothing_due_before_its_time(case in any_case()) {
        prop_assume!(case.complete() && !case.runs.is_empty());
        let tenant = with(&case.tenant, case.after(Basis::Current).status);
        let next = tenant.status.next_reconcile_at.unwrap();
        prop_assume!(next > at(0));
        prop_assert_eq!(tenant.open_request(), None);
        prop_assert_eq!(due::steps_with_reason(&tenant, at(0), &case.policy), vec![]);
    }

    #[test]
    fn a_failing_step_is_due_by_its_own_time_or_by_request_or_change_only(case in any_case()) {
        let tenant = &case.tenant;
        for step in Upstream::ALL {
            let detail = &tenant.status.steps[step];
            let waits = detail.state == StepState::Error
                && detail.next_attempt_at.is_some_and(|next| next > at(0));
            if waits && tenant.status.next_reconcile_at.is_some() && !starts_afresh(tenant, step) {
                prop_assert!(!case.due.contains(&step) || case.only_looks.contains(&step));
            }
        }
    }

    #[test]
    fn a_step_that_is_settled_for_something_else_is_due(case in any_case()) {
        for step in Upstream::ALL {
            let recorded = &case.tenant.status.steps[step];
            if recorded.state.is_settled() && !case.tenant.current_state(step).is_settled() {
                prop_assert!(case.due.contains(&step));
            }
        }
    }

    #[test]
    fn whatever_an_interrupted_reconcile_found_settled_is_looked_at_again(case in any_case()) {
        for step in Upstream::ALL {
            if case.tenant.interrupted && case.tenant.status.steps[step].state.is_settled() {
                prop_assert!(case.due.contains(&step));
            }
        }
    }

    #[test]
    fn an_external_id_survives_every_failure(case in any_case()) {
        let after = case.after(Basis::Current);
        for run in &case.runs {
            if matches!(run.outcome, Outcome::Failed(_)) {
                prop_assert_eq!(
                    &after.status.steps[run.step].external_id,
                    &case.tenant.status.steps[run.step].external_id
                );
            }
        }
    }

    #[test]
    fn invisible_means_that_people_see_no_difference(case in any_case()) {
        let after = case.after(Basis::Current);
        if !after.visible {
            let (old, new) = (&case.tenant.status, &after.status);
            prop_assert_eq!(old.phase, new.phase);
            for step in Upstream::ALL {
                prop_assert_eq!(old.steps[step].state, new.steps[step].state);
                prop_assert_eq!(&old.steps[step].message, &new.steps[step].message);
            }
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum_and_jitter_stays_in_bounds(
        initial in 1u64..100_000, more in 0u64..100_000_000, attempts in 1u32..200, jitter in 0.0..1.0f64,
    ) {
        let backoff = Backoff {
            initial: Duration::from_millis(initial),
            max: Duration::from_millis(initial + more),
        };
        let interval = backoff.interval(attempts);
        prop_assert!(interval >= backoff.initial && interval <= backoff.max);
        let doubled = backoff.interval(attempts + 1);
        let expected = (interval * 2).min(backoff.max);
        // The crate computes in floating point.
        let off = doubled.abs_diff(expected);
        prop_assert!(off <= Duration::from_micros(1), "{interval:?} then {doubled:?}");
        let delay = backoff.delay(attempts, Jitter::new(jitter));
        prop_assert!(delay >= interval.mul_f64(0.499) && delay <= interval.mul_f64(1.501).min(backoff.max));
    }

    #[test]
    fn a_slug_is_a_dns_label(text in "[a-z0-9A-Z.-]{0,70}") {
        let label = !text.is_empty()
            && text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        prop_assert_eq!(text.parse::<Slug>().is_ok(), label);
    }

    #[test]
    fn a_tenant_id_reads_back_as_it_is_shown(bytes in any::<[u8; 12]>()) {
        let id = TenantId::from_bytes(bytes);
        prop_assert_eq!(id.to_string().parse::<TenantId>(), Ok(id));
    }
}

/// Re-checks every ten minutes.
fn policy() -> Policy {
    Policy {
        backoff: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) },
        resync: Duration::from_secs(600),
    }
}

/// A tenant whose steps are all as they should be, and due again after so many seconds each.
fn settled(next: PerStep<i64>) -> Tenant {
    let desired = Desired::new("Acme".parse().unwrap());
    let step = |kind| StepStatus {
        state: StepState::Ok,
        observed: Some(desired.for_step(kind)),
        next_attempt_at: Some(at(next[kind])),
        ..StepStatus::default()
    };
    Tenant {
        id: TenantId::from_bytes([1; 12]),
        slug: "acme".parse().unwrap(),
        generation: 1,
        reconcile_requested_at: None,
        reconcile_requested_steps: None,
        observation_requested: false,
        reconcile_requested_by: Vec::new(),
        changed_by: Vec::new(),
        status: Status {
            steps: PerStep::from_fn(step),
            last_handled_desired: Some(desired.clone()),
            next_reconcile_at: Some(at(0)),
            ..Status::default()
        },
        interrupted: false,
        deletion_requested_at: None,
        desired,
        created_at: at(0) - SignedDuration::from_secs(1),
        updated_at: None,
    }
}

/// No step's own time is near.
const LATER: i64 = 1_000_000;

#[test]
fn steps_settled_at_different_times_come_together_again() {
    let tenant = settled(PerStep::from_fn(|kind| match kind {
        Upstream::Authentik => 0,
        Upstream::Stalwart => 290,
        Upstream::Ocis => 310,
    }));
    let due = due_steps(&tenant, at(0), &policy());
    assert_eq!(due, [Upstream::Authentik, Upstream::Stalwart], "what is near rides along");
}

#[test]
fn a_request_is_about_the_steps_that_it_names_or_about_all() {
    let mut tenant = settled(PerStep::from_fn(|_| LATER));
    tenant.reconcile_requested_at = Some(at(0));
    tenant.reconcile_requested_steps = Some(PerStep::from_fn(|step| step == Upstream::Ocis));
    assert_eq!(due_steps(&tenant, at(0), &policy()), [Upstream::Ocis]);
    tenant.reconcile_requested_steps = None;
    assert_eq!(due_steps(&tenant, at(0), &policy()), Upstream::ALL);
}

#[test]
fn a_look_that_was_asked_for_reconciles_nothing_that_is_not_due_by_itself() {
    let mut tenant = settled(PerStep::from_fn(|_| LATER));
    tenant.reconcile_requested_at = Some(at(0));
    tenant.reconcile_requested_steps = Some(PerStep::default());
    tenant.observation_requested = true;
    let due = due_steps(&tenant, at(0), &policy());
    assert_eq!(due, []);
    assert_eq!(steps_to_observe(&tenant, &due), Upstream::ALL);
    tenant.status.steps[Upstream::Stalwart].next_attempt_at = None;
    let due = due_steps(&tenant, at(0), &policy());
    assert!(due.contains(&Upstream::Stalwart), "what is due is done all the same");
    assert!(!steps_to_observe(&tenant, &due).contains(&Upstream::Stalwart));
    tenant.status.last_handled_reconcile_at = tenant.reconcile_requested_at;
    assert_eq!(steps_to_observe(&tenant, &[]), [], "once");
}

#[test]
fn mail_domains_become_ascii_or_are_refused() {
    for (given, ascii) in [
        ("acme.test", "acme.test"),
        ("ACME.Test", "acme.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        (" acme.test ", "acme.test"),
        ("acme.co.uk", "acme.co.uk"),
        ("acme.nosuchtld", "acme.nosuchtld"),
    ] {
        assert_eq!(given.parse::<MailDomain>().unwrap().as_str(), ascii);
    }
    for refused in
        ["", "acme", "acme..test", "acme.test.", "-a.test", "a b.test", "10.0.0.1", "a@b.test", "co.uk"]
    {
        assert!(refused.parse::<MailDomain>().is_err(), "{refused:?}");
    }
}

#[test]
fn names_are_trimmed_and_bounded_and_hold_no_control_characters() {
    assert_eq!("  Acme GmbH ".parse::<TenantName>().unwrap().as_str(), "Acme GmbH");
    assert!("ü".repeat(200).parse::<TenantName>().is_ok());
    for refused in ["", "   ", "a\0b", "a\nb", &"x".repeat(201)] {
        assert!(refused.parse::<TenantName>().is_err(), "{refused:?}");
    }
}

#[test]
fn what_an_upstream_has_yet_to_learn_is_looked_for_in_proportion_to_the_wait() {
    let policy = policy();
    let seconds = Duration::from_secs;
    assert_eq!(policy.learning(seconds(0)), seconds(60));
    assert_eq!(policy.learning(seconds(3_600)), seconds(900).min(policy.resync));
    assert_eq!(policy.learning(seconds(400 * 86_400)), policy.resync, "no more often than any other");
}
