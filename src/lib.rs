//! tenantry: a reconciliation controller for the tenants of a collaboration suite.
//!
//! Rooms, from the top down; nothing imports upwards (a test sees to that):
//!
//! * [`run`] wires a process together by its [`config`], `dev` adds a private database and simulated upstreams;
//! * [`cli`] is a client of the HTTP API, like any other;
//! * [`api`] and [`controller`] are the two halves of it, which meet only in the database;
//! * [`auth`] says who asks the API;
//! * [`integration`] talks to the upstreams, [`store`] to MongoDB;
//! * [`http`] is how they, [`auth`] and [`cli`] ask over HTTP;
//! * [`tenant`] is the domain, and pure;
//! * [`metrics`], [`telemetry`], [`secret`], [`terminal`], [`delay`] and [`failpoint`] are leaves; [`environment`] and
//!   [`signals`] are for the program itself.

pub mod api;
pub mod auth;
pub mod cli;
pub mod config;
pub mod controller;
pub mod delay;
#[cfg(feature = "dev")]
pub mod dev;
pub mod environment;
pub mod failpoint;
pub mod http;
pub mod integration;
pub mod metrics;
pub mod run;
pub mod secret;
pub mod signals;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod terminal;
