//! HTTP as every room that asks others speaks it; it knows no upstream.
//!
//! * [`client`]: a client whose roots can change while the process runs, and plain clients with habits.
//! * [`base_url`]: the address that an API is at.
//! * [`broken`]: why a request got no answer.
//! * [`proxy`]: through which proxy a request goes.
//! * [`token_answer`]: what a token endpoint says.

mod base_url;
mod broken;
mod client;
mod proxy;
mod token_answer;

pub use base_url::{BaseUrl, InvalidBaseUrl};
pub use broken::{Broken, NOT_TLS, PRIVATE_CA};
pub use client::{Connections, Habits, HttpClient, HttpClientError, challenged, page, roots};
pub use proxy::Through;
pub use token_answer::{TokenAnswer, no_token_endpoint};
