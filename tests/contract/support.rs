//! What the contract tests stand on.

use std::time::Duration;

use tenantry::integration::HttpClient;

/// A name that nobody else uses, on a server that others use as well.
pub fn unique(what: &str) -> String {
    format!("{what}-{:012x}", rand::random::<u64>() >> 16)
}

/// A plain client without opinions: it follows nothing, retries nothing and hides nothing.
pub fn http() -> reqwest::Client {
    // Sets up TLS as the program does.
    let _ = HttpClient::new(None, Duration::from_secs(30)).expect("TLS can be set up");
    reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client can be made")
}

/// A setting of the test run; empty is the same as none.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
