//! What holds of a run whatever the upstream answers, and whether or not it did what it answers.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::tenant::Failure;

/// How the upstream behaves at one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// As it should.
    Yes,
    /// A look that does not show what is there, or a write that is answered with yes and does nothing.
    Lie,
    Refused,
    Stale,
    UnknownDone,
    UnknownNotDone,
    /// A write that was not let through.
    Held,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Resource {
    id: String,
    matches: bool,
}

/// An upstream in which nothing is unique.
struct Fake {
    answers: Mutex<VecDeque<Answer>>,
    there: Mutex<Vec<Resource>>,
    /// Whether what a create makes has to be updated.
    incomplete: bool,
    /// The creates after which there may be one more, in a reconcile's eyes.
    creates: Mutex<usize>,
}

fn error(effect: Effect) -> Error {
    Error { effect, ..Error::transient(Reason::UpstreamError, "fake: no".into()) }
}

impl Fake {
    fn next(&self) -> Answer {
        self.answers.lock().unwrap().pop_front().unwrap_or(Answer::Yes)
    }

    /// Whether it is done, and how it is answered.
    fn write(&self) -> (bool, Result<(), Error>) {
        match self.next() {
            Answer::Yes => (true, Ok(())),
            Answer::Lie => (false, Ok(())),
            Answer::Refused => (false, Err(error(Effect::None))),
            Answer::Stale => (false, Err(error(Effect::Stale))),
            Answer::UnknownDone => (true, Err(error(Effect::Unknown))),
            Answer::UnknownNotDone => (false, Err(error(Effect::Unknown))),
            Answer::Held => (false, Err(error(Effect::Held))),
        }
    }
}

impl Integration for Fake {
    type Resource = Resource;

    fn step(&self) -> Upstream {
        Upstream::Ocis
    }

    fn upstream(&self) -> &UpstreamClient {
        unreachable!("no run of a step looks at the connection")
    }

    async fn observe(&self, target: &Target) -> Result<Option<Resource>, Error> {
        match self.next() {
            Answer::Yes | Answer::UnknownDone => {
                let there = self.there.lock().unwrap();
                let recorded = there.iter().find(|it| target.recorded.as_ref() == Some(&it.id));
                Ok(recorded.or(there.first()).cloned())
            }
            Answer::Lie | Answer::Stale => Ok(None),
            Answer::Refused | Answer::UnknownNotDone | Answer::Held => Err(error(Effect::None)),
        }
    }

    async fn create(&self, _: &Target) -> Result<Resource, Error> {
        let (done, answered) = self.write();
        let mut there = self.there.lock().unwrap();
        let made = Resource { id: format!("made-{}", there.len()), matches: !self.incomplete };
        if done {
            there.push(made.clone());
        }
        if !matches!(&answered, Err(error) if error.effect != Effect::Unknown) {
            *self.creates.lock().unwrap() += 1;
        }
        answered.map(|()| made)
    }

    async fn update(&self, _: &Target, resource: Resource) -> Result<Resource, Error> {
        let (done, answered) = self.write();
        let mut there = self.there.lock().unwrap();
        if done && let Some(it) = there.iter_mut().find(|it| it.id == resource.id) {
            it.matches = true;
        }
        answered.map(|()| Resource { matches: done, ..resource })
    }

    fn external_id(resource: &Resource) -> &str {
        &resource.id
    }

    fn name(resource: &Resource) -> &str {
        &resource.id
    }

    fn usage(_: &Resource) -> Usage {
        Usage::InUse
    }

    fn owner(&self, _: &Target, _: &Resource) -> Owner {
        Owner::Us
    }

    fn describe(resource: &Resource) -> String {
        resource.id.clone()
    }

    fn says(&self, _: &Resource) -> Before {
        Before::new()
    }

    fn fields(&self, _: &Target, resource: &Resource) -> Vec<Field> {
        vec![Field::new("name", resource.matches.to_string(), "true")]
    }

    async fn release(&self, _: &Target, _: Resource, _: Release) -> Result<Released, Error> {
        let (_, answered) = self.write();
        answered.map(|()| Released::default())
    }

    fn fingerprint(&self, resource: &Resource) -> Fingerprint {
        Fingerprint::of([&resource.id, &"", &"", &"", &resource.matches])
    }

    async fn sweep(&self, _: impl FnMut(Seen<'_>) + Send) -> Result<(), Error> {
        Ok(())
    }

    async fn marked_as(&self, _: &HashSet<TenantId>) -> Result<Vec<Marked>, Error> {
        Ok(Vec::new())
    }

    async fn check(&self) -> Result<Checked, Error> {
        Ok(Checked::default())
    }
}

fn target() -> Target {
    let id = TenantId::from_bytes([1; 12]);
    Target {
        id,
        slug: "acme".parse().unwrap(),
        desired: crate::tenant::Desired::new("Acme".parse().unwrap()).for_step(Upstream::Ocis),
        observed: None,
        left: None,
        recorded: None,
        settled: false,
        search: false,
        may_exist: false,
        intent: None,
        mode: Mode::Apply,
        fleet: crate::tenant::FleetId::from_bytes([7; 6]),
        known: true,
        may_adopt: MayAdopt::default(),
        adopted: Vec::new(),
        given_quota: None,
    }
}

fn fake(answers: &[Answer], incomplete: bool) -> Fake {
    Fake {
        answers: Mutex::new(answers.iter().copied().collect()),
        there: Mutex::default(),
        incomplete,
        creates: Mutex::new(0),
    }
}

fn converged(fake: &Fake) -> Result<Converged, Failure> {
    let ended = async {
        let target = target();
        let found = fake.observe(&target).await?;
        converge(fake, &target, found, None, Why::Asked).await
    };
    match ended.now_or_never().expect("it waits for nothing") {
        Ok(Reached::Matches(converged)) => Ok(converged),
        Ok(other) => panic!("it is neither converged nor failed: {other:?}"),
        Err(error) => Err(error.failure),
    }
}

#[test]
fn what_was_made_and_then_cannot_be_seen_is_not_made_again() {
    // The look, the create, an update that finds nothing, and a look that does not show it.
    let answers = [Answer::Yes, Answer::Yes, Answer::Stale, Answer::Lie];
    let fake = fake(&answers, true);
    let failure = converged(&fake).unwrap_err();
    assert_eq!(failure.external_id.as_deref(), Some("made-0"), "{failure:?}");
    assert_eq!(fake.there.lock().unwrap().len(), 1);
}

#[test]
fn a_failure_after_a_create_tells_what_was_made() {
    for refusal in [Answer::Refused, Answer::Stale, Answer::UnknownNotDone] {
        let fake = fake(&[Answer::Yes, Answer::Yes, refusal, Answer::Refused], true);
        let failure = converged(&fake).unwrap_err();
        assert_eq!(failure.external_id.as_deref(), Some("made-0"), "{refusal:?}: {failure:?}");
    }
}

#[test]
fn a_run_that_is_held_tells_what_it_made_before_and_what_differs() {
    let fake = fake(&[Answer::Yes, Answer::Yes, Answer::Held], true);
    let reached = run(&fake, &target(), &Unbounded).now_or_never().unwrap().unwrap();
    let Reached::Held { found: Found::Fields(fields), external_id, .. } = reached else {
        panic!("{reached:?}")
    };
    assert_eq!(external_id.as_deref(), Some("made-0"));
    assert!(fields[0].differs());
}

#[test]
fn a_failure_to_let_go_tells_what_was_found() {
    let fake = fake(&[Answer::Yes, Answer::Refused], false);
    fake.there.lock().unwrap().push(Resource { id: "found".into(), matches: true });
    let mut target = target();
    target.desired.presence = Presence::Off;
    let failed = run(&fake, &target, &Unbounded).now_or_never().unwrap().unwrap_err();
    assert_eq!(failed.failure.external_id.as_deref(), Some("found"));
}

fn any_answer() -> impl Strategy<Value = Answer> {
    use Answer::{Held, Lie, Refused, Stale, UnknownDone, UnknownNotDone, Yes};
    prop::sample::select(vec![Yes, Yes, Yes, Lie, Refused, Stale, UnknownDone, UnknownNotDone, Held])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_run_makes_one_at_most_and_always_tells_which(
        answers in prop::collection::vec(any_answer(), 0..12),
        incomplete in any::<bool>(),
    ) {
        let fake = fake(&answers, incomplete);
        let ended = converged(&fake);
        let creates = *fake.creates.lock().unwrap();
        prop_assert!(creates <= 1, "{creates} creates may have taken effect");
        match ended {
            Ok(converged) => prop_assert!(converged.external_id.starts_with("made-")),
            Err(failure) => {
                let there = fake.there.lock().unwrap();
                let known = failure.external_id.is_some() || failure.unresolved;
                prop_assert!(there.is_empty() || known, "{failure:?} although there is {there:?}");
            }
        }
    }
}
