//! The contract: what tenantry relies on an upstream for, as facts about the wire.
//!
//! Every test runs against the simulator. Where a real server's address is given, the same tests run
//! against that server too, so that a simulator cannot drift away from the truth:
//!
//! * `TENANTRY_TEST_AUTHENTIK_URL`, `_TOKEN`
//! * `TENANTRY_TEST_STALWART_URL`, `_TOKEN` or `_USERNAME` and `_PASSWORD`
//! * `TENANTRY_TEST_OCIS_URL`, `_TOKEN_URL`, `_CLIENT_ID`, `_USERNAME` and `_PASSWORD` or `_CLIENT_SECRET`, `_SCOPE`
//!
//! `README.md` beside this file tells of further ones. What needs a right or a setting that is not there is
//! skipped, and says so by its name.
//!
//! A real server may be shared: names are unique per run, everything made is removed again, and
//! nothing is touched that a test did not make.

mod authentik;
mod ocis;
mod stalwart;
mod support;
mod traps;
mod whole;
