//! The queue of tenants that want a worker: a plain data structure, without tasks or clocks.
//!
//! # Guarantees
//!
//! * A tenant is in it at most once, and is never handed out while it is still being worked on; what
//!   arrives for it meanwhile is remembered, and queued when the work ends.
//! * More urgent tenants come first; among equals, first come, first served.
//! * It never holds more than its capacity. What does not fit is dropped, the least urgent first, and
//!   [`Queue::take_overflow`] says that the database must be asked for it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::tenant::{TenantId, Urgency};

/// See the module.
#[derive(Debug)]
pub struct Queue {
    /// In the order in which they are handed out.
    ready: BTreeMap<(Urgency, u64), Waiting>,
    /// In the order in which they become ready.
    delayed: BTreeMap<(Instant, u64), Appointment>,
    places: HashMap<TenantId, Place>,
    capacity: usize,
    /// Tells apart entries of the same urgency or instant, in order of arrival.
    arrivals: u64,
    overflow: bool,
}

#[derive(Debug)]
struct Waiting {
    id: TenantId,
    since: Instant,
}

/// A tenant that waits for its time.
#[derive(Debug)]
struct Appointment {
    id: TenantId,
    urgency: Urgency,
    /// A due scan that began later knows more. `None` where what a scan finds makes no difference.
    made: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Ready((Urgency, u64)),
    Delayed((Instant, u64)),
    Running { again: Option<Urgency> },
}

impl Queue {
    /// A queue of at most `capacity` waiting tenants, delayed ones included.
    pub fn new(capacity: usize) -> Self {
        Self {
            ready: BTreeMap::new(),
            delayed: BTreeMap::new(),
            places: HashMap::new(),
            capacity: capacity.max(1),
            arrivals: 0,
            overflow: false,
        }
    }

    /// Queues a tenant, or makes it more urgent if it is queued already.
    pub fn push(&mut self, id: TenantId, urgency: Urgency, now: Instant) {
        let mut since = now;
        match self.places.get(&id).copied() {
            Some(Place::Running { again }) => {
                let again = Some(again.map_or(urgency, |earlier| earlier.min(urgency)));
                self.places.insert(id, Place::Running { again });
                return;
            }
            Some(Place::Ready(key)) if key.0 <= urgency => return,
            Some(Place::Ready(key)) => {
                since = self.ready.remove(&key).map_or(now, |waiting| waiting.since);
            }
            Some(Place::Delayed(key)) => {
                self.delayed.remove(&key);
            }
            None if !self.make_room(urgency) => return,
            None => {}
        }
        let key = (urgency, self.arrival());
        self.ready.insert(key, Waiting { id, since });
        self.places.insert(id, Place::Ready(key));
    }

    /// Queues a tenant that was due when a scan that began at `begun` looked. An appointment that was made
    /// before gives way: the tenant became due since. One that was made after it stands, unless this is more
    /// urgent: the scan may have seen the tenant as it was before.
    pub fn offer(&mut self, id: TenantId, urgency: Urgency, begun: Instant, now: Instant) {
        let appointment = match self.places.get(&id) {
            Some(Place::Delayed(key)) => self.delayed.get(key),
            _ => None,
        };
        let stands = appointment.is_some_and(|appointment| match appointment.made {
            None => true,
            Some(made) => begun <= made && appointment.urgency <= urgency,
        });
        if !stands {
            self.push(id, urgency, now);
        }
    }

    /// Queues a tenant for `at`, as the database was just told. An earlier appointment stands.
    pub fn push_at(&mut self, id: TenantId, urgency: Urgency, at: Instant, now: Instant) {
        self.appoint(at, Appointment { id, urgency, made: Some(now) });
    }

    /// Keeps a tenant back until `at`, though the database says that it is due.
    pub fn keep_back(&mut self, id: TenantId, urgency: Urgency, at: Instant) {
        self.appoint(at, Appointment { id, urgency, made: None });
    }

    fn appoint(&mut self, at: Instant, appointment: Appointment) {
        let id = appointment.id;
        match self.places.get(&id).copied() {
            Some(Place::Ready(_) | Place::Running { .. }) => return,
            Some(Place::Delayed(key)) if key.0 <= at => return,
            Some(Place::Delayed(key)) => {
                self.delayed.remove(&key);
            }
            // Appointments give way to work, not the other way round.
            None if self.len() >= self.capacity => return,
            None => {}
        }
        let key = (at, self.arrival());
        self.delayed.insert(key, appointment);
        self.places.insert(id, Place::Delayed(key));
    }

    /// Hands out the next tenant, and tells how urgent it was and how long it waited. It stays out until
    /// [`Queue::finish`].
    pub fn pop(&mut self, now: Instant) -> Option<(TenantId, Urgency, Duration)> {
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let ((at, _), Appointment { id, urgency, .. }) = entry.remove_entry();
            let key = (urgency, self.arrival());
            self.ready.insert(key, Waiting { id, since: at });
            self.places.insert(id, Place::Ready(key));
        }
        let ((urgency, _), Waiting { id, since }) = self.ready.pop_first()?;
        self.places.insert(id, Place::Running { again: None });
        Some((id, urgency, now.saturating_duration_since(since)))
    }

    /// Ends the work on a tenant; queues it again if something arrived for it meanwhile.
    pub fn finish(&mut self, id: TenantId, now: Instant) {
        if let Some(Place::Running { again }) = self.places.get(&id).copied() {
            self.places.remove(&id);
            if let Some(urgency) = again {
                self.push(id, urgency, now);
            }
        }
    }

    /// When the next delayed tenant becomes ready.
    pub fn next_ready_at(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((at, _), _)| *at)
    }

    /// Tenants that wait, delayed ones included.
    fn len(&self) -> usize {
        self.ready.len() + self.delayed.len()
    }

    /// Tenants that could be handed out now.
    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Tenants that wait for their time.
    pub fn delayed_len(&self) -> usize {
        self.delayed.len()
    }

    /// Whether anything was dropped since the last call.
    pub fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflow)
    }

    /// How many tenants of this urgency wait for a worker, and how long the first one has.
    pub fn waiting(&self, urgency: Urgency, now: Instant) -> (usize, Duration) {
        let mut waiting = self.ready.range((urgency, 0)..=(urgency, u64::MAX)).peekable();
        let oldest = waiting
            .peek()
            .map_or(Duration::ZERO, |(_, first)| now.saturating_duration_since(first.since));
        (waiting.count(), oldest)
    }

    /// Makes room for one more; false when everything that waits is at least as urgent.
    fn make_room(&mut self, urgency: Urgency) -> bool {
        if self.len() < self.capacity {
            return true;
        }
        self.overflow = true;
        let dropped = if let Some((_, appointment)) = self.delayed.pop_last() {
            appointment.id
        } else {
            match self.ready.last_entry() {
                Some(last) if last.key().0 > urgency => last.remove().id,
                _ => return false,
            }
        };
        self.places.remove(&dropped);
        true
    }

    fn arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> TenantId {
        TenantId::from_bytes([n; 12])
    }

    fn drain(queue: &mut Queue, now: Instant) -> Vec<TenantId> {
        std::iter::from_fn(|| queue.pop(now).map(|(id, ..)| id)).collect()
    }

    #[test]
    fn the_more_urgent_comes_first_and_equals_in_order_of_arrival() {
        let now = Instant::now();
        let mut queue = Queue::new(10);
        queue.push(id(1), Urgency::Resync, now);
        queue.push(id(2), Urgency::New, now);
        queue.push(id(3), Urgency::Requested, now);
        queue.push(id(4), Urgency::New, now);
        queue.push(id(5), Urgency::Retry, now);
        queue.push(id(6), Urgency::Waited, now);
        assert_eq!(drain(&mut queue, now), [6, 3, 2, 4, 5, 1].map(id));
    }

    #[test]
    fn a_tenant_is_queued_once_and_only_ever_gains_urgency() {
        let now = Instant::now();
        let mut queue = Queue::new(10);
        queue.push(id(1), Urgency::New, now);
        queue.push(id(2), Urgency::Retry, now);
        queue.push(id(2), Urgency::Requested, now);
        queue.push(id(2), Urgency::Resync, now);
        assert_eq!(queue.len(), 2);
        assert_eq!(drain(&mut queue, now), [2, 1].map(id));
    }

    #[test]
    fn a_tenant_is_not_handed_out_while_it_is_worked_on_and_what_arrives_is_kept() {
        let now = Instant::now();
        let mut queue = Queue::new(10);
        queue.push(id(1), Urgency::New, now);
        assert_eq!(queue.pop(now).map(|(id, ..)| id), Some(id(1)));
        queue.push(id(1), Urgency::Resync, now);
        queue.push(id(1), Urgency::Requested, now);
        assert_eq!(queue.pop(now), None);
        queue.finish(id(1), now);
        assert_eq!(queue.waiting(Urgency::Requested, now).0, 1);
        assert_eq!(queue.pop(now).map(|(id, ..)| id), Some(id(1)));
        queue.finish(id(1), now);
        assert_eq!(queue.pop(now), None);
    }

    #[test]
    fn a_delayed_tenant_waits_for_its_time_unless_something_arrives_for_it() {
        let now = Instant::now();
        let later = now + Duration::from_secs(10);
        let mut queue = Queue::new(10);
        queue.push_at(id(1), Urgency::Retry, later, now);
        queue.push_at(id(2), Urgency::Retry, later, now);
        assert_eq!(queue.pop(now), None);
        assert_eq!(queue.next_ready_at(), Some(later));
        queue.push(id(2), Urgency::New, now);
        assert_eq!(drain(&mut queue, now), [id(2)]);
        assert_eq!(drain(&mut queue, later), [id(1)]);
    }

    #[test]
    fn a_due_scan_that_began_before_an_appointment_moves_it_only_for_something_more_urgent() {
        let begun = Instant::now();
        let now = begun + Duration::from_millis(1);
        let later = now + Duration::from_secs(10);
        let mut queue = Queue::new(10);
        queue.push_at(id(1), Urgency::Requested, later, now);
        queue.push_at(id(2), Urgency::Retry, later, now);
        queue.offer(id(1), Urgency::Requested, begun, now);
        queue.offer(id(2), Urgency::Retry, begun, now);
        queue.offer(id(3), Urgency::Resync, begun, now);
        assert_eq!(drain(&mut queue, now), [id(3)]);
        queue.offer(id(2), Urgency::Requested, begun, now);
        assert_eq!(drain(&mut queue, now), [id(2)]);
        assert_eq!(queue.delayed_len(), 1);
    }

    #[test]
    fn an_appointment_gives_way_to_a_due_scan_that_began_after_it_was_made() {
        let now = Instant::now();
        let (begun, later) = (now + Duration::from_millis(1), now + Duration::from_secs(60));
        let mut queue = Queue::new(10);
        queue.push_at(id(1), Urgency::Retry, later, now);
        queue.keep_back(id(2), Urgency::Retry, later);
        for n in 1..=2 {
            queue.offer(id(n), Urgency::Resync, begun, begun);
        }
        assert_eq!(drain(&mut queue, begun), [id(1)], "what is kept back is due all along");
    }

    #[test]
    fn an_earlier_appointment_stands_and_a_later_one_gives_way() {
        let now = Instant::now();
        let (soon, later) = (now + Duration::from_secs(1), now + Duration::from_secs(10));
        let mut queue = Queue::new(10);
        queue.push_at(id(1), Urgency::Retry, soon, now);
        queue.push_at(id(1), Urgency::Retry, later, now);
        assert_eq!(queue.next_ready_at(), Some(soon));
        queue.push_at(id(2), Urgency::Retry, later, now);
        queue.push_at(id(2), Urgency::Retry, soon, now);
        assert_eq!(drain(&mut queue, soon).len(), 2);
    }

    #[test]
    fn it_never_outgrows_its_capacity_and_drops_the_least_urgent() {
        let now = Instant::now();
        let mut queue = Queue::new(3);
        queue.push_at(id(9), Urgency::Retry, now + Duration::from_secs(1), now);
        for n in 1..=3 {
            queue.push(id(n), Urgency::Resync, now);
        }
        assert!(queue.take_overflow(), "the appointment had to go");
        assert!(!queue.take_overflow());
        queue.push(id(4), Urgency::Resync, now);
        assert!(queue.take_overflow(), "no more urgent than what waits");
        queue.push(id(5), Urgency::Requested, now);
        assert!(queue.take_overflow());
        queue.push_at(id(6), Urgency::Retry, now, now);
        assert_eq!(queue.len(), 3);
        assert_eq!(drain(&mut queue, now), [5, 1, 2].map(id));
    }

    #[test]
    fn depth_and_age_are_told_per_urgency() {
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let mut queue = Queue::new(10);
        assert_eq!(queue.waiting(Urgency::New, now), (0, Duration::ZERO));
        queue.push(id(1), Urgency::New, now);
        assert_eq!(queue.waiting(Urgency::New, now), (1, Duration::ZERO));
        queue.push(id(2), Urgency::New, later);
        queue.push(id(3), Urgency::Retry, later);
        assert_eq!(queue.waiting(Urgency::New, later), (2, Duration::from_secs(5)));
        assert_eq!(queue.waiting(Urgency::Retry, later), (1, Duration::ZERO));
    }
}
