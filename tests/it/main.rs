//! The tests that need the world: a real mongod, simulated upstreams over HTTP, real processes.
//!
//! `MONGODB_URI` makes them use that server; tests that need to torment the server itself then say so
//! and pass. Each test has a database of its own.

mod adoption;
mod api;
mod auth;
mod authentik;
mod bounded;
mod cli;
mod cost;
mod crash;
mod credentials;
mod due;
mod edit;
mod fleet;
mod guard;
mod held;
mod invariants;
mod layers;
mod lease;
mod life;
mod lost;
mod made_once;
mod mail_domain;
mod oauth;
mod ocis;
mod odd_answers;
mod once;
mod openapi;
mod outage;
mod permission;
mod plan;
mod process;
mod protect;
mod quota;
mod relist;
mod secrets;
mod stalwart;
mod support;
mod sweep;
mod three;
mod tls;
mod told;
mod upstreams;
mod wait;
mod waiting;
mod watch;
