//! How many requests one client may send.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::auth::Principal;

/// Counts per client. Clients are told apart by a hash of 16 bits, so that there are never more than 65536
/// counters, for all callers; that among a hundred clients any two share one has a chance of 7 %. The hash
/// is another one in each process, and strangers do not share counters with those who have a token.
pub struct Rates {
    known: DefaultKeyedRateLimiter<u16>,
    strangers: DefaultKeyedRateLimiter<u16>,
    clock: DefaultClock,
    hash: RandomState,
}

impl Rates {
    /// A minute's worth may come at once after a minute's silence.
    pub fn new(per_minute: NonZeroU32) -> Self {
        let limiter = || RateLimiter::keyed(Quota::per_minute(per_minute));
        let (known, strangers) = (limiter(), limiter());
        Self { known, strangers, clock: DefaultClock::default(), hash: RandomState::new() }
    }

    /// Counts a request of a caller who was identified.
    ///
    /// # Errors
    /// How long the caller must wait.
    pub fn count(&self, principal: &Principal) -> Result<(), Duration> {
        self.check(&self.known, self.hash.hash_one((&principal.issuer, &principal.sub)))
    }

    /// Counts a request of a caller who was not.
    ///
    /// # Errors
    /// How long the caller must wait.
    pub fn count_stranger(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        // A caller with one address of IPv6 has the 2^64 around it.
        let network = match address {
            Some(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => u128::from(address.to_bits()),
                None => address.to_bits() >> 64 << 64,
            },
            Some(IpAddr::V4(address)) => u128::from(address.to_bits()),
            None => 0,
        };
        self.check(&self.strangers, self.hash.hash_one(network))
    }

    fn check(&self, limiter: &DefaultKeyedRateLimiter<u16>, hash: u64) -> Result<(), Duration> {
        #[expect(clippy::cast_possible_truncation, reason = "16 bits of a hash are what is wanted")]
        let key = hash as u16;
        limiter.check_key(&key).map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_apart_and_a_whole_ipv6_network_as_one() {
        let rates = Rates::new(NonZeroU32::new(2).unwrap());
        let count = |address: &str| rates.count_stranger(Some(address.parse().unwrap()));
        for _ in 0..2 {
            count("2001:db8::1").unwrap();
        }
        assert!(count("2001:db8::ffff").unwrap_err() > Duration::from_secs(1));
        let principal = Principal::anonymous();
        for _ in 0..2 {
            rates.count(&principal).unwrap();
        }
        assert!(rates.count(&principal).is_err());
    }

    #[test]
    fn however_many_clients_come_the_counters_stay_bounded() {
        let rates = Rates::new(NonZeroU32::new(600).unwrap());
        for n in 0..200_000_u32 {
            let _ = rates.count_stranger(Some(IpAddr::V4(n.into())));
        }
        assert!(rates.strangers.len() <= 1 << 16);
    }
}
