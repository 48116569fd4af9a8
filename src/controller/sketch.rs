//! The difference of two sets of any size, in memory of a fixed one.
//!
//! An invertible Bloom lookup table: every entry is mixed into three cells by exclusive or, so that what
//! was put in with both signs cancels out, whatever the order. What is left is the difference, and is read
//! off by peeling: a cell that holds a single entry tells it, and taking it out makes others single.
//!
//! # Guarantees
//!
//! * Memory depends on the capacity only. A sweep of a million tenants takes as much as one of a hundred.
//! * What [`Sketch::decode`] returns is the exact difference; where there is more than can be told apart,
//!   it says so instead.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::tenant::{Fingerprint, TenantId};

/// Whose resource it is, and what it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    pub tenant: TenantId,
    pub print: Fingerprint,
}

/// Cells in each of the three parts. About 40,000 entries can be told apart, in 2.4 MB.
const CELLS: usize = 1 << 14;
const HASHES: usize = 3;

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    count: i32,
    tenant: [u8; 12],
    print: [u32; 5],
    check: u64,
}

/// See the module.
pub struct Sketch {
    cells: Vec<Cell>,
}

/// More differs than can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl Default for Sketch {
    fn default() -> Self {
        Self { cells: vec![Cell::default(); CELLS * HASHES] }
    }
}

fn hash(entry: &Entry, salt: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (salt, entry).hash(&mut hasher);
    hasher.finish()
}

fn places(entry: &Entry) -> [usize; HASHES] {
    std::array::from_fn(|part| {
        #[allow(clippy::cast_possible_truncation)] // the low bits are what is wanted
        let place = hash(entry, part) as usize % CELLS;
        part * CELLS + place
    })
}

impl Cell {
    fn mix(&mut self, entry: &Entry, sign: i32) {
        self.count += sign;
        let tenant = entry.tenant.bytes();
        self.tenant.iter_mut().zip(tenant).for_each(|(mixed, byte)| *mixed ^= byte);
        self.print.iter_mut().zip(entry.print.parts()).for_each(|(mixed, part)| *mixed ^= part);
        self.check ^= hash(entry, HASHES);
    }

    /// The entry, if there is exactly one in it.
    fn single(&self) -> Option<Entry> {
        let entry = Entry {
            tenant: TenantId::from_bytes(self.tenant),
            print: Fingerprint::from_parts(self.print),
        };
        (self.count.abs() == 1 && self.check == hash(&entry, HASHES)).then_some(entry)
    }
}

impl Sketch {
    /// Puts an entry in; with the other sign, it takes it out.
    pub fn put(&mut self, entry: &Entry, sign: i32) {
        for place in places(entry) {
            self.cells[place].mix(entry, sign);
        }
    }

    /// What was put in with one sign only, and the sign.
    pub fn decode(mut self) -> Result<Vec<(Entry, i32)>, TooMany> {
        let mut found = Vec::new();
        let mut candidates: Vec<usize> = (0..self.cells.len()).collect();
        while let Some(place) = candidates.pop() {
            let Some(entry) = self.cells[place].single() else { continue };
            let sign = self.cells[place].count;
            for place in places(&entry) {
                self.cells[place].mix(&entry, -sign);
                candidates.push(place);
            }
            found.push((entry, sign));
            // Cells that only seem single could be peeled for ever.
            if found.len() > self.cells.len() {
                return Err(TooMany);
            }
        }
        let empty = |cell: &Cell| cell.count == 0 && cell.check == 0;
        if self.cells.iter().all(empty) { Ok(found) } else { Err(TooMany) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn entry(n: u64, look: u32) -> Entry {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&n.to_be_bytes());
        Entry { tenant: TenantId::from_bytes(bytes), print: Fingerprint::of([&n, &look, &"", &"", &""]) }
    }

    #[test]
    fn the_exact_difference_of_large_sets_is_told_whatever_the_order() {
        let mut sketch = Sketch::default();
        for n in 0..200_000 {
            sketch.put(&entry(n, 1), 1);
        }
        for n in (5..200_007).rev() {
            // Some look otherwise.
            sketch.put(&entry(n, if n % 100 == 0 { 2 } else { 1 }), -1);
        }
        let found: BTreeSet<_> =
            sketch.decode().unwrap().iter().map(|(e, sign)| (e.tenant.bytes(), *sign)).collect();
        let expected: BTreeSet<_> = (0..5)
            .map(|n| (n, 1))
            .chain((100..200_000).step_by(100).flat_map(|n| [(n, 1), (n, -1)]))
            .chain([200_000, 200_001, 200_002, 200_003, 200_004, 200_005, 200_006].map(|n| (n, -1)))
            .map(|(n, sign)| (entry(n, 1).tenant.bytes(), sign))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn equal_sets_leave_nothing_and_too_many_differences_are_said_to_be_too_many() {
        let mut sketch = Sketch::default();
        for n in 0..1_000 {
            sketch.put(&entry(n, 1), 1);
            sketch.put(&entry(999 - n, 1), -1);
        }
        assert_eq!(sketch.decode(), Ok(Vec::new()));
        let mut sketch = Sketch::default();
        (0..100_000).for_each(|n| sketch.put(&entry(n, 1), 1));
        assert_eq!(sketch.decode(), Err(TooMany));
    }

    #[test]
    fn forty_thousand_differences_can_be_told_apart() {
        let mut sketch = Sketch::default();
        (0..38_000).for_each(|n| sketch.put(&entry(n, 1), 1));
        assert_eq!(sketch.decode().map(|found| found.len()), Ok(38_000));
    }
}
