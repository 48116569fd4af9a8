//! An upstream's list against what the tenants' documents say: who is missing, who differs, and what is
//! marked for a tenant that does not exist.
//!
//! The documents are read in order of `_id` into a sorted array of ids, with a hash of each fingerprint beside it,
//! and eight flags for the upstream that is being compared: 12 bytes a tenant, 8 for each upstream, and one. The
//! list is streamed against it in whatever order it comes. Nothing but what differs is kept of it.
//!
//! # Guarantees
//!
//! * The answer is exact: whatever the number of differences, each is told by name.
//! * A list may be seen twice, when it shifted while it was read: what any of them showed is not missing.

use std::collections::{BTreeMap, BTreeSet};

use crate::integration::Seen;
use crate::store::{SweptTenant, UnknownResource};
use crate::tenant::{Fingerprint, PerStep, TenantId, Upstream};

/// What the documents of a range of ids say.
#[derive(Default)]
pub struct Expected {
    ids: Vec<TenantId>,
    /// By upstream, beside `ids`.
    prints: PerStep<Vec<u64>>,
    sizes: PerStep<u64>,
    /// The range: after this one …
    after: Option<TenantId>,
    /// … and up to this one.
    until: Option<TenantId>,
    /// Tenants of which other resources are recorded; there are few.
    with_others: PerStep<BTreeSet<TenantId>>,
}

/// Where nothing is expected.
const NOTHING: u64 = 0;

impl Expected {
    /// For tenants after `after`.
    pub fn after(after: Option<TenantId>) -> Self {
        Self { after, ..Self::default() }
    }

    /// Adds the next tenant in order of the ids.
    pub fn push(&mut self, tenant: &SweptTenant) {
        debug_assert!(self.ids.last().is_none_or(|last| *last < tenant.id));
        self.ids.push(tenant.id);
        for step in Upstream::ALL {
            let print = tenant.prints[step].map_or(NOTHING, Fingerprint::short);
            self.prints[step].push(print);
            self.sizes[step] += u64::from(print != NOTHING);
            if !tenant.others[step].is_empty() {
                self.with_others[step].insert(tenant.id);
            }
        }
    }

    /// The tenants of which other resources are recorded.
    pub fn with_others(&self, step: Upstream) -> &BTreeSet<TenantId> {
        &self.with_others[step]
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// No tenant after the last one belongs to it: there is another range. Returns that last one.
    pub fn close(&mut self) -> Option<TenantId> {
        self.until = self.ids.last().copied();
        self.until
    }

    /// Resources that an upstream should have.
    pub fn size(&self, step: Upstream) -> u64 {
        self.sizes[step]
    }

    fn covers(&self, id: TenantId) -> bool {
        self.after.is_none_or(|after| id > after) && self.until.is_none_or(|until| id <= until)
    }
}

/// The tenant's resource was seen as it was recorded.
const MATCHED: u8 = 1;
/// A resource of the tenant's was seen that looks otherwise.
const OTHER: u8 = 2;
/// One was recorded under other settings than today's.
const OUTDATED: u8 = 4;

/// One upstream's list, compared as it is read.
pub struct Comparison<'a> {
    expected: &'a Expected,
    step: Upstream,
    flags: Vec<u8>,
    /// By place in the array; of a shifting list each only once.
    others: BTreeSet<(usize, Fingerprint)>,
    /// By their own ids.
    unknown: BTreeMap<String, UnknownResource>,
    /// Resources of tenants that may not be the recorded ones, by their own ids.
    doubtful: BTreeMap<String, UnknownResource>,
    /// No more unknown resources are kept than these.
    most_unknown: usize,
}

/// A resource of a tenant's that looks otherwise than was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    pub tenant: TenantId,
    /// The hash of what was recorded.
    pub recorded: u64,
    pub seen: Fingerprint,
    /// Whether the recorded one was seen as well.
    pub is_second: bool,
}

/// What a comparison found, before anything is read again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// With the hash of what was recorded.
    pub missing: Vec<(TenantId, u64)>,
    pub others: Vec<Other>,
    pub outdated: Vec<TenantId>,
    /// Marked for tenants that the documents do not have.
    pub unknown: Vec<UnknownResource>,
    /// Marked for tenants that do not expect them as they are, or do not expect any.
    pub doubtful: Vec<UnknownResource>,
}

impl<'a> Comparison<'a> {
    pub fn new(expected: &'a Expected, step: Upstream, most_unknown: usize) -> Self {
        let flags = vec![0; expected.ids.len()];
        let (others, unknown, doubtful) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        Self { expected, step, flags, others, unknown, doubtful, most_unknown }
    }

    /// The list has this.
    pub fn see(&mut self, seen: &Seen<'_>) {
        let Ok(place) = self.expected.ids.binary_search(&seen.tenant) else {
            if self.expected.covers(seen.tenant) {
                keep(&mut self.unknown, seen, self.most_unknown);
            }
            return;
        };
        let recorded = self.expected.prints[self.step][place];
        let short = seen.fingerprint.short();
        if recorded == short {
            self.flags[place] |= MATCHED;
        } else if recorded != NOTHING && !Fingerprint::is_comparable(recorded, short) {
            self.flags[place] |= OUTDATED;
        } else if recorded != NOTHING {
            self.flags[place] |= OTHER;
            self.others.insert((place, seen.fingerprint));
            keep(&mut self.doubtful, seen, self.most_unknown);
        } else {
            keep(&mut self.doubtful, seen, self.most_unknown);
        }
    }

    /// Whether anything was not seen that should be there.
    pub fn misses_something(&self) -> bool {
        self.missing().next().is_some()
    }

    fn missing(&self) -> impl Iterator<Item = (TenantId, u64)> {
        let prints = &self.expected.prints[self.step];
        let missing = self.flags.iter().zip(prints).zip(&self.expected.ids);
        missing
            .filter(|((flags, print), _)| **flags == 0 && **print != NOTHING)
            .map(|((_, print), id)| (*id, *print))
    }

    pub fn finish(self) -> Differences {
        let ids = &self.expected.ids;
        let with = |flag: u8, not: u8| {
            let has = move |flags: &u8| flags & flag != 0 && flags & not == 0;
            self.flags.iter().zip(ids).filter(move |(flags, _)| has(flags)).map(|(_, id)| *id)
        };
        Differences {
            missing: self.missing().collect(),
            others: self
                .others
                .iter()
                .map(|(place, seen)| Other {
                    tenant: ids[*place],
                    recorded: self.expected.prints[self.step][*place],
                    seen: *seen,
                    is_second: self.flags[*place] & MATCHED != 0,
                })
                .collect(),
            outdated: with(OUTDATED, MATCHED | OTHER).collect(),
            unknown: self.unknown.into_values().collect(),
            doubtful: self.doubtful.into_values().collect(),
        }
    }
}

/// Keeps a resource by its name, as far as there is room.
fn keep(kept: &mut BTreeMap<String, UnknownResource>, seen: &Seen<'_>, most: usize) {
    if kept.len() < most {
        let (external_id, name) = (seen.external_id.to_owned(), seen.name.to_owned());
        let resource = UnknownResource { tenant: seen.tenant, external_id: external_id.clone(), name };
        kept.insert(external_id, resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> TenantId {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&n.to_be_bytes());
        TenantId::from_bytes(bytes)
    }

    fn print(n: u64, look: u64) -> Fingerprint {
        Fingerprint::of([&n, &look, &"", &"", &""])
    }

    fn tenant(n: u64, print: Option<Fingerprint>) -> SweptTenant {
        let prints = PerStep::from_fn(|step| print.filter(|_| step == Upstream::Ocis));
        SweptTenant {
            id: id(n),
            slug: format!("t{n}"),
            prints,
            ids: PerStep::default(),
            others: PerStep::default(),
            unsettled: PerStep::default(),
            busy: false,
        }
    }

    fn expected(tenants: std::ops::Range<u64>) -> Expected {
        let mut expected = Expected::default();
        tenants.for_each(|n| expected.push(&tenant(n, Some(print(n, 1)))));
        expected
    }

    fn other(n: u64, look: u64, is_second: bool) -> Other {
        Other { tenant: id(n), recorded: print(n, 1).short(), seen: print(n, look), is_second }
    }

    fn seen(n: u64, fingerprint: Fingerprint) -> Seen<'static> {
        Seen { tenant: id(n), fingerprint, external_id: "id", name: "name", fleet: None }
    }

    fn doubtful(n: u64) -> UnknownResource {
        UnknownResource { tenant: id(n), external_id: "id".into(), name: "name".into() }
    }

    #[test]
    fn the_exact_difference_of_large_sets_is_told_whatever_the_order_and_the_number() {
        let expected = expected(0..200_000);
        let mut comparison = Comparison::new(&expected, Upstream::Ocis, 10);
        // Half of them are gone, and some look otherwise.
        for n in (100_000..200_000).rev() {
            comparison.see(&seen(n, print(n, if n % 100 == 0 { 2 } else { 1 })));
        }
        let found = comparison.finish();
        let missing: Vec<_> = found.missing.iter().map(|(id, _)| *id).collect();
        assert_eq!(missing, (0..100_000).map(id).collect::<Vec<_>>());
        let others: Vec<_> = (100_000..200_000).step_by(100).collect();
        assert_eq!(found.others, others.iter().map(|n| other(*n, 2, false)).collect::<Vec<_>>());
        assert_eq!(expected.size(Upstream::Ocis), 200_000);
        assert_eq!(expected.size(Upstream::Stalwart), 0);
    }

    #[test]
    fn what_is_seen_twice_is_no_twin_and_what_the_second_list_shows_is_not_missing() {
        let expected = expected(0..3);
        let mut comparison = Comparison::new(&expected, Upstream::Ocis, 10);
        comparison.see(&seen(0, print(0, 1)));
        comparison.see(&seen(0, print(0, 1)));
        comparison.see(&seen(1, print(1, 1)));
        comparison.see(&seen(1, print(1, 7)));
        comparison.see(&seen(1, print(1, 7)));
        assert!(comparison.misses_something());
        comparison.see(&seen(2, print(2, 1)));
        assert!(!comparison.misses_something());
        let (others, doubtful) = (vec![other(1, 7, true)], vec![doubtful(1)]);
        assert_eq!(comparison.finish(), Differences { others, doubtful, ..Differences::default() });
    }

    #[test]
    fn what_a_tenant_does_not_expect_at_all_is_doubtful_and_no_difference() {
        let mut expected = Expected::default();
        expected.push(&tenant(1, None));
        let mut comparison = Comparison::new(&expected, Upstream::Ocis, 10);
        comparison.see(&seen(1, print(1, 1)));
        let doubtful = vec![doubtful(1)];
        assert_eq!(comparison.finish(), Differences { doubtful, ..Differences::default() });
    }

    #[test]
    fn what_other_settings_recorded_is_outdated_and_not_different() {
        let mut expected = Expected::default();
        expected.push(&tenant(1, Some(print(1, 1).under("role viewer"))));
        let mut comparison = Comparison::new(&expected, Upstream::Ocis, 10);
        comparison.see(&seen(1, print(1, 2).under("role editor")));
        let outdated = vec![id(1)];
        assert_eq!(comparison.finish(), Differences { outdated, ..Differences::default() });
    }

    #[test]
    fn ranges_of_ids_cover_every_resource_once() {
        let mut unknown = Vec::new();
        let mut after = None;
        for range in [0..10, 10..20] {
            let mut expected = Expected::after(after);
            range.clone().for_each(|n| expected.push(&tenant(n * 2, Some(print(n * 2, 1)))));
            // The last range is open, for what is newer than all.
            after = if range.end < 20 { expected.close() } else { None };
            let mut comparison = Comparison::new(&expected, Upstream::Ocis, 10);
            for n in 0..20 {
                comparison.see(&seen(n * 2, print(n * 2, 1)));
            }
            for (n, name) in [(5, "a"), (25, "b"), (99, "c")] {
                comparison.see(&Seen { external_id: name, ..seen(n, print(n, 1)) });
            }
            let found = comparison.finish();
            assert_eq!((found.missing, found.others), (vec![], vec![]));
            unknown.push(found.unknown.into_iter().map(|it| it.external_id).collect::<Vec<_>>());
        }
        assert_eq!(unknown, [vec!["a"], vec!["b", "c"]]);
    }

    #[test]
    fn no_more_of_what_is_unknown_is_kept_than_is_wanted() {
        let expected = Expected::default();
        let mut comparison = Comparison::new(&expected, Upstream::Ocis, 2);
        for name in ["a", "a", "b", "c"] {
            comparison.see(&Seen { external_id: name, ..seen(1, print(1, 1)) });
        }
        assert_eq!(comparison.finish().unknown.len(), 2);
    }
}
