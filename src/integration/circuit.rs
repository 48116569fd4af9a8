//! Whether an upstream is asked at all: the rules of the breaker, pure, with the time given.
//!
//! # What shuts it
//!
//! * An outage: some failed runs in a row, or a failed check before anything ever worked.
//! * A refusal, at once: of our credentials, of what the token says of us, of the address, of TLS.
//!
//! # When a refusal is believed
//!
//! What worked a moment ago, or comes right after an outage, is most likely an upstream that restarts. Such
//! a refusal is a doubt at first: it is probed again soon, and only when it persists it is told as what a
//! person must see to. One that comes before anything ever worked is believed at once, but for the empty 500
//! of a file server that boots, which looks like refused claims.
//!
//! # How often a refused credential is tried
//!
//! At most three times in ten minutes, because Stalwart bans an address for ever after a hundred failed
//! logins in a day; and once an hour when there were more than fifty in a day. What is in flight when the
//! credential goes bad is refused as well, and counts: if that was three or more, there is no probe for ten
//! minutes. What is accepted in between takes nothing back: the server counts on, too.
//!
//! # How it opens
//!
//! By a check, and nothing else is let through until one succeeds. A check proves the credentials. After an
//! outage it proves little, because it changes nothing: then one run at a time is let through until one
//! succeeds.

use std::time::{Duration, Instant};

use super::Error;
use crate::tenant::{FailureKind, Reason, TryLimits};

/// Failures in a row after which an upstream is taken to be down.
const DOWN_AFTER: u32 = 5;
/// The longest pause that an upstream is given at its word.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(900);

const LIMITS: TryLimits = TryLimits::DEFAULT;

/// Between probes of an upstream that is down.
const DOWN_PROBES: &[u64] = &[1, 2, 5, 10, 30];
/// Between probes of credentials that are doubted, and of those whose refusal is believed.
const DOUBTED_CREDENTIAL_PROBES: &[u64] = &[5, 60];
const CREDENTIAL_PROBES: &[u64] = &[120, 600, 1_800, 3_600];
/// The same of an address or TLS, whose probes do no harm.
const DOUBTED_SETUP_PROBES: &[u64] = &[2, 5, 15, 30];
const SETUP_PROBES: &[u64] = &[15, 60, 300];
/// A doubted refusal that lasts longer is believed.
const DOUBT: Duration = Duration::from_secs(60);

/// Who found out how an upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// One run of many.
    Run,
    /// The one run that was let through.
    Turn,
    Check,
}

/// What there is to say when something was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    None,
    /// It is taken to be down, or its refusal is doubted: steps wait.
    Shut,
    /// Its refusal is believed: a person must see to it.
    Believed,
    /// It works again.
    Works,
}

/// What keeps the steps of an upstream from it.
#[derive(Debug, Clone)]
pub(super) struct Shut {
    /// For every run that is not let through.
    pub error: Error,
    cause: Cause,
    /// Since when it is so, for this cause.
    since: Instant,
    /// Probes that failed in a row.
    in_a_row: usize,
    pub probe_at: Instant,
    /// A refusal that is no doubt any more.
    believed: bool,
    /// What was said when it began, for the upstream may stop answering since.
    began: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Outage,
    Credentials,
    Claims,
    Setup,
}

impl Cause {
    fn of(error: &Error) -> Self {
        match error.failure.reason {
            Reason::CredentialsRejected => Self::Credentials,
            Reason::ClaimsRejected => Self::Claims,
            _ if error.is_misconfigured() => Self::Setup,
            _ => Self::Outage,
        }
    }
}

#[derive(Debug)]
enum State {
    /// One run at a time is let through: at start, or after this.
    Trying(Option<Shut>),
    /// Failures in a row since it last worked.
    Working {
        failures: u32,
    },
    Shut(Shut),
}

/// One upstream's breaker.
#[derive(Debug)]
pub(super) struct Circuit {
    state: State,
    /// Whether it ever worked for this process.
    proven: bool,
    /// The latest tries that were refused as not ours, as far as they matter.
    tries: Vec<Instant>,
    /// Tries that other processes have not been told of.
    untold: u32,
    /// Whether the request of the failure that is to be learned of was counted as a try.
    counted: bool,
}

impl Circuit {
    pub fn new() -> Self {
        Self { state: State::Trying(None), proven: false, tries: Vec::new(), untold: 0, counted: false }
    }

    pub fn is_working(&self) -> bool {
        matches!(self.state, State::Working { .. })
    }

    /// Whether nothing was ever found out.
    pub fn is_unproven(&self) -> bool {
        matches!(self.state, State::Trying(None))
    }

    pub fn shut(&self) -> Option<&Shut> {
        match &self.state {
            State::Shut(shut) => Some(shut),
            State::Trying(_) | State::Working { .. } => None,
        }
    }

    /// Whether our credentials are refused, believed or not.
    pub fn is_refused(&self) -> bool {
        self.shut().is_some_and(|shut| shut.cause == Cause::Credentials)
    }

    pub fn take_untold(&mut self) -> u32 {
        std::mem::take(&mut self.untold)
    }

    /// The next probe is due then, as all processes agree. When they may not try a credential any more for
    /// a while, it has been tried often enough to be believed to be refused.
    pub fn postpone(&mut self, probe_at: Instant, now: Instant) -> News {
        let State::Shut(shut) = &mut self.state else { return News::None };
        let wait = probe_at.saturating_duration_since(now);
        let doubted = !shut.believed;
        shut.believed |= shut.cause == Cause::Credentials && wait > DOUBT;
        shut.probe_at = probe_at;
        shut.error.failure.kind = shut.kind(wait);
        if doubted && shut.believed { News::Believed } else { News::None }
    }

    /// What was refused has been replaced: its successor is tried at once, and the tries of the one before
    /// are not its own. An outage is none of its doing.
    pub fn renewed(&mut self, now: Instant) {
        if self.shut().is_some_and(|shut| shut.cause != Cause::Outage) {
            self.tries.clear();
            self.postpone(now, now);
        }
    }

    /// Another process was refused with the same credential.
    pub fn recall(&mut self, error: &Error, probe_at: Instant, now: Instant) {
        let shut = Shut {
            error: error.for_everybody(),
            cause: Cause::Credentials,
            since: now,
            in_a_row: 0,
            probe_at,
            believed: true,
            began: error.failure.message.clone(),
        };
        self.state = State::Shut(shut);
        self.postpone(probe_at, now);
    }

    /// A request was refused as not ours. All others that have not been sent yet stay behind.
    pub fn refused(&mut self, error: &Error, by: By, now: Instant) -> News {
        self.count_try(now);
        match self.state {
            // Its end tells.
            _ if by == By::Check => {
                self.counted = true;
                News::None
            }
            State::Shut(_) => self.refused_again(now),
            _ => self.close(error, now),
        }
    }

    /// What was in flight when the first was refused comes back refused as well.
    fn refused_again(&mut self, now: Instant) -> News {
        let forbidden = self.forbidden_for(now);
        let State::Shut(shut) = &mut self.state else { return News::None };
        if forbidden.is_zero() || shut.cause != Cause::Credentials {
            return News::None;
        }
        let news = if shut.believed { News::None } else { News::Believed };
        shut.believed = true;
        shut.probe_at = shut.probe_at.max(now + forbidden);
        news
    }

    /// A run or a check ended like this.
    pub fn ended(&mut self, error: Option<&Error>, by: By, now: Instant) -> News {
        match error {
            // It was not let through, so that it found out nothing.
            Some(error) if error.failure.parked => News::None,
            Some(error) if error.is_misconfigured() => match &self.state {
                State::Shut(_) if by != By::Check => News::None,
                _ => {
                    // Refused where no request of ours was seen to be, as at a token endpoint.
                    if Cause::of(error) == Cause::Credentials && !std::mem::take(&mut self.counted) {
                        self.count_try(now);
                    }
                    self.close(error, now)
                }
            },
            Some(error) if error.is_paced() && self.shut().is_none() => News::None,
            Some(error) if error.is_transient() || error.is_paced() => self.failed(error, by, now),
            Some(_) | None => self.worked(by),
        }
    }

    fn failed(&mut self, error: &Error, by: By, now: Instant) -> News {
        match &mut self.state {
            // It does not answer as it should, whatever it is.
            State::Shut(_) if by == By::Check => self.close(error, now),
            // Begun before.
            State::Shut(_) => News::None,
            _ if !error.is_outage() => News::None,
            // Whatever this tenant met: the next one is let through.
            State::Trying(None) if by != By::Check => News::None,
            State::Trying(Some(_)) if by == By::Run => News::None,
            State::Trying(_) => self.close(error, now),
            State::Working { failures } => {
                *failures += 1;
                if *failures < DOWN_AFTER { News::None } else { self.close(error, now) }
            }
        }
    }

    fn worked(&mut self, by: By) -> News {
        let state = std::mem::replace(&mut self.state, State::Working { failures: 0 });
        let news = match (state, by) {
            // Begun before.
            (State::Shut(shut), By::Run | By::Turn) => {
                self.state = State::Shut(shut);
                return News::None;
            }
            (State::Shut(shut), By::Check) if shut.cause == Cause::Outage => {
                self.state = State::Trying(Some(shut));
                return News::None;
            }
            (State::Trying(Some(shut)), By::Run | By::Check) => {
                self.state = State::Trying(Some(shut));
                return News::None;
            }
            (State::Shut(_), By::Check) | (State::Trying(Some(_)), By::Turn) => News::Works,
            (State::Trying(None) | State::Working { .. }, _) => News::None,
        };
        self.proven = true;
        news
    }

    fn close(&mut self, error: &Error, now: Instant) -> News {
        let before = match std::mem::replace(&mut self.state, State::Trying(None)) {
            State::Shut(shut) | State::Trying(Some(shut)) => Some(shut),
            State::Trying(None) | State::Working { .. } => None,
        };
        let mut cause = Cause::of(error);
        let mut error = error.for_everybody();
        let mut began = error.failure.message.clone();
        if let Some(before) = before.as_ref().filter(|before| before.believed && cause == Cause::Outage)
        {
            // That it does not even answer any more does not undo the refusal.
            cause = before.cause;
            began.clone_from(&before.began);
            error.failure.reason = before.error.failure.reason;
            error.failure.message = format!("{began}. Since then: {}", error.failure.message);
        }
        let same = before.as_ref().filter(|before| before.cause == cause);
        let since = same.map_or(now, |before| before.since);
        let in_a_row = same.map_or(0, |before| before.in_a_row + 1);
        let doubted = self.proven || before.as_ref().is_some_and(|before| before.cause == Cause::Outage);
        let persists = now.duration_since(since) >= DOUBT;
        let believed = same.is_some_and(|before| before.believed)
            || match cause {
                Cause::Outage => false,
                Cause::Credentials => {
                    !doubted || (in_a_row > 0 && persists) || !self.forbidden_for(now).is_zero()
                }
                Cause::Claims => persists,
                Cause::Setup => !doubted || persists,
            };
        let schedule = match (cause, believed) {
            (Cause::Outage | Cause::Claims, false) => DOWN_PROBES,
            (Cause::Outage | Cause::Claims | Cause::Setup, true) => SETUP_PROBES,
            (Cause::Setup, false) => DOUBTED_SETUP_PROBES,
            (Cause::Credentials, false) => DOUBTED_CREDENTIAL_PROBES,
            (Cause::Credentials, true) => CREDENTIAL_PROBES,
        };
        let wait = Duration::from_secs(schedule[in_a_row.min(schedule.len() - 1)]);
        let wait = wait.max(error.asked_pause());
        let wait = if cause == Cause::Credentials { wait.max(self.forbidden_for(now)) } else { wait };
        let news = match &before {
            Some(before) if before.believed == believed => News::None,
            _ if believed => News::Believed,
            Some(_) => News::None,
            None => News::Shut,
        };
        let mut shut = Shut { error, cause, since, in_a_row, probe_at: now + wait, believed, began };
        shut.error.failure.kind = shut.kind(wait);
        self.state = State::Shut(shut);
        news
    }

    fn count_try(&mut self, now: Instant) {
        self.untold = self.untold.saturating_add(1);
        let (most, within) = LIMITS.many;
        self.tries.retain(|at| now.duration_since(*at) < within);
        self.tries.push(now);
        let surplus = self.tries.len().saturating_sub(most);
        self.tries.drain(..surplus);
    }

    /// How long no credential may be tried, because it was tried too often.
    fn forbidden_for(&self, now: Instant) -> Duration {
        let TryLimits { few: (few, within), many: (many, _), rarely } = LIMITS;
        let last_few = self.tries.len().checked_sub(few).map(|first| self.tries[first]);
        let wait = last_few.map_or(Duration::ZERO, |at| (at + within).saturating_duration_since(now));
        if self.tries.len() >= many { wait.max(rarely) } else { wait }
    }
}

impl Shut {
    fn kind(&self, wait: Duration) -> FailureKind {
        if self.believed {
            FailureKind::Misconfigured { retry_after: wait }
        } else {
            FailureKind::Transient { retry_after: Some(wait) }
        }
    }

    /// The error of a run that is not let through, or that found this out.
    pub fn error(&self, now: Instant) -> Error {
        let mut error = self.error.clone();
        error.failure.kind = self.kind(self.probe_at.saturating_duration_since(now));
        error
    }

    pub fn is_believed(&self) -> bool {
        self.believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn refusal() -> Error {
        Error::misconfigured(Reason::CredentialsRejected, "stalwart: 401".into())
    }

    fn outage() -> Error {
        Error::transient(Reason::Unreachable, "stalwart: cannot connect".into())
    }

    fn probe_in(circuit: &Circuit, now: Instant) -> Duration {
        circuit.shut().expect("it is shut").probe_at.saturating_duration_since(now)
    }

    /// A circuit of an upstream that works.
    fn working(now: Instant) -> Circuit {
        let mut circuit = Circuit::new();
        circuit.ended(None, By::Check, now);
        circuit
    }

    /// Lets every check be refused when it is due; returns when the tries were.
    fn tries_of(circuit: &mut Circuit, start: Instant, span: Duration) -> Vec<Instant> {
        let mut tries = Vec::new();
        loop {
            let at = circuit.shut().expect("it is shut").probe_at;
            if at - start > span {
                return tries;
            }
            tries.push(at);
            circuit.refused(&refusal(), By::Check, at);
            circuit.ended(Some(&refusal()), By::Check, at);
        }
    }

    #[test]
    fn a_refused_credential_is_tried_at_most_three_times_in_any_ten_minutes() {
        for in_flight in 1..=3 {
            for proven in [false, true] {
                let start = Instant::now();
                let mut circuit = if proven { working(start) } else { Circuit::new() };
                let mut tries = Vec::new();
                for _ in 0..in_flight {
                    circuit.refused(&refusal(), By::Run, start);
                    circuit.ended(Some(&refusal()), By::Run, start);
                    tries.push(start);
                }
                tries.extend(tries_of(&mut circuit, start, second(20_000)));
                assert!(tries.len() > 5, "it is probed all the same: {}", tries.len());
                assert_few(&tries);
            }
        }
    }

    fn assert_few(tries: &[Instant]) {
        let (few, within) = LIMITS.few;
        for window in tries.windows(few + 1) {
            let span = *window.last().unwrap() - window[0];
            assert!(span >= within, "one more than {few} within {span:?}");
        }
    }

    #[test]
    fn a_credential_that_is_accepted_in_between_is_tried_no_more_often() {
        let start = Instant::now();
        let mut circuit = working(start);
        let (mut now, mut tries) = (start, Vec::new());
        while now - start < LIMITS.many.1 {
            circuit.refused(&refusal(), By::Run, now);
            tries.push(now);
            now += probe_in(&circuit, now);
            circuit.ended(None, By::Check, now);
        }
        assert_few(&tries);
        // Fifty, and then one an hour.
        assert!((50..100).contains(&tries.len()), "{} in a day: a hundred are a ban", tries.len());
    }

    #[test]
    fn a_credential_that_stays_refused_is_tried_less_than_fifty_times_a_day() {
        let start = Instant::now();
        let mut circuit = Circuit::new();
        circuit.refused(&refusal(), By::Run, start);
        let tries = tries_of(&mut circuit, start, LIMITS.many.1);
        assert!((20..50).contains(&tries.len()), "{}", tries.len());
    }

    #[test]
    fn a_refusal_of_what_worked_is_a_doubt_until_it_persists() {
        let start = Instant::now();
        let mut circuit = working(start);
        assert_eq!(circuit.refused(&refusal(), By::Run, start), News::Shut);
        assert!(!circuit.shut().unwrap().is_believed());
        assert!(circuit.shut().unwrap().error(start).is_transient());
        let soon = start + probe_in(&circuit, start);
        assert!(soon - start <= second(5));
        assert_eq!(circuit.ended(None, By::Check, soon), News::Works, "it was a restart");

        let mut circuit = working(soon);
        circuit.refused(&refusal(), By::Run, soon);
        let mut now = soon;
        let mut news = News::None;
        while news != News::Believed {
            now += probe_in(&circuit, now);
            circuit.refused(&refusal(), By::Check, now);
            news = circuit.ended(Some(&refusal()), By::Check, now);
        }
        assert!((second(60)..second(120)).contains(&(now - soon)), "{:?}", now - soon);
        assert!(circuit.shut().unwrap().error(now).is_misconfigured());
    }

    #[test]
    fn a_refusal_before_anything_worked_or_of_three_at_once_is_believed_at_once() {
        let now = Instant::now();
        let mut circuit = Circuit::new();
        assert_eq!(circuit.refused(&refusal(), By::Run, now), News::Believed);
        let mut circuit = working(now);
        let all: Vec<_> = (0..3).map(|_| circuit.refused(&refusal(), By::Run, now)).collect();
        assert_eq!(all, [News::Shut, News::None, News::Believed]);
        assert_eq!(probe_in(&circuit, now), LIMITS.few.1);
    }

    #[test]
    fn an_outage_at_start_shuts_by_a_check_and_one_later_by_five_failures_in_a_row() {
        let now = Instant::now();
        let mut circuit = Circuit::new();
        assert_eq!(circuit.ended(Some(&outage()), By::Turn, now), News::None, "maybe this tenant's");
        assert_eq!(circuit.ended(Some(&outage()), By::Check, now), News::Shut);
        let mut circuit = working(now);
        for _ in 1..DOWN_AFTER {
            assert_eq!(circuit.ended(Some(&outage()), By::Run, now), News::None);
        }
        assert_eq!(circuit.ended(Some(&outage()), By::Run, now), News::Shut);
    }

    #[test]
    fn after_an_outage_a_check_lets_one_run_try_and_its_failure_shuts_for_longer() {
        let now = Instant::now();
        let mut circuit = Circuit::new();
        circuit.ended(Some(&outage()), By::Check, now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            waits.push(probe_in(&circuit, now).as_secs());
            circuit.ended(None, By::Check, now);
            assert!(circuit.shut().is_none() && !circuit.is_working());
            assert_eq!(circuit.ended(None, By::Run, now), News::None, "it began before");
            assert_eq!(circuit.ended(Some(&outage()), By::Turn, now), News::None, "told already");
        }
        assert_eq!(waits, [1, 2, 5, 10, 30, 30]);
        circuit.ended(None, By::Check, now);
        assert_eq!(circuit.ended(None, By::Turn, now), News::Works);
    }

    #[test]
    fn a_wrong_address_where_it_worked_a_moment_ago_is_a_doubt_for_a_minute() {
        let start = Instant::now();
        let proxy = Error::misconfigured(Reason::WrongAddress, "ocis: 404, a page of HTML".into());
        let mut circuit = working(start);
        let mut news = circuit.ended(Some(&proxy), By::Run, start);
        assert_eq!(news, News::Shut);
        let mut now = start;
        while news != News::Believed {
            assert!(circuit.shut().unwrap().error(now).is_transient());
            now += probe_in(&circuit, now);
            news = circuit.ended(Some(&proxy), By::Check, now);
        }
        assert!(now - start >= DOUBT && now - start < 2 * DOUBT, "{:?}", now - start);
        assert_eq!(Circuit::new().ended(Some(&proxy), By::Turn, now), News::Believed, "at start");
    }

    #[test]
    fn a_refusal_right_after_an_outage_is_a_doubt_though_nothing_ever_worked() {
        let now = Instant::now();
        let mut circuit = Circuit::new();
        circuit.ended(Some(&outage()), By::Check, now);
        circuit.refused(&refusal(), By::Check, now);
        circuit.ended(Some(&refusal()), By::Check, now);
        assert!(circuit.is_refused() && !circuit.shut().unwrap().is_believed());
    }

    #[test]
    fn what_other_processes_have_tried_often_enough_is_believed() {
        let now = Instant::now();
        let mut circuit = working(now);
        circuit.refused(&refusal(), By::Run, now);
        assert_eq!(circuit.postpone(now + second(30), now), News::None);
        assert_eq!(circuit.postpone(now + LIMITS.few.1, now), News::Believed);
        assert!(circuit.shut().unwrap().error(now).is_misconfigured());
    }

    #[test]
    fn an_empty_500_that_persists_is_believed_to_be_about_the_claims() {
        let start = Instant::now();
        let boots = Error::transient(Reason::ClaimsRejected, "ocis: 500, twice".into());
        let mut circuit = Circuit::new();
        let mut news = circuit.ended(Some(&boots), By::Check, start);
        assert_eq!(news, News::Shut);
        let mut now = start;
        while news != News::Believed {
            assert!(circuit.shut().unwrap().error(now).is_transient());
            now += probe_in(&circuit, now);
            news = circuit.ended(Some(&boots), By::Check, now);
        }
        assert!(now - start >= DOUBT && now - start < 2 * DOUBT, "{:?}", now - start);
    }

    #[test]
    fn a_refusal_that_is_believed_stays_so_while_the_upstream_does_not_even_answer() {
        let mut now = Instant::now();
        let mut circuit = Circuit::new();
        circuit.refused(&refusal(), By::Run, now);
        let mut last = second(0);
        for _ in 0..4 {
            now += probe_in(&circuit, now);
            circuit.ended(Some(&outage()), By::Check, now);
            let error = circuit.shut().unwrap().error(now);
            assert_eq!(error.failure.reason, Reason::CredentialsRejected);
            let message = &error.failure.message;
            assert_eq!(message, "stalwart: 401. Since then: stalwart: cannot connect");
            assert!(probe_in(&circuit, now) >= last.max(second(120)), "probed rarely");
            last = probe_in(&circuit, now);
        }
    }

    #[test]
    fn no_pause_that_is_asked_for_is_longer_than_the_longest() {
        let now = Instant::now();
        let mut circuit = Circuit::new();
        circuit.ended(Some(&outage()), By::Check, now);
        let asked = Error::throttled("ocis: 429".into(), second(86_400));
        circuit.ended(Some(&asked), By::Check, now);
        assert_eq!(probe_in(&circuit, now), LONGEST_PAUSE);
    }
}
