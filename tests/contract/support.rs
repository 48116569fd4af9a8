//! What the contract tests stand on.

use std::time::Duration;

use tenantry::http::HttpClient;

/// A name that is not used otherwise, on a server that others use as well.
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

/// Says that this test is left out on a server, and why. The name is the test's own, which the harness gives
/// to the thread; it is written past the harness, which keeps to itself what a test that passes prints.
pub fn skip(server: &str, why: &str) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped on {server}: {test}: {why}");
}

/// A setting of the test run; empty is the same as none.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn to(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.expect("there is an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("the answer can be read");
        Self { status, headers, text }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("headers are ASCII"))
    }

    /// Fails where it is not this status.
    #[track_caller]
    pub fn must_be(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// Runs a test, then tidies up, also after the test has failed.
pub async fn then_tidy(test: impl Future<Output = ()>, tidy: impl Future<Output = ()>) {
    use futures_util::FutureExt;
    let ended = std::panic::AssertUnwindSafe(test).catch_unwind().await;
    tidy.await;
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}
