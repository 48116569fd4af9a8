//! Through which proxy a request goes, for every client of the program.
//!
//! # Guarantees
//!
//! * `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, and the same in lower case, say it. Blanks around
//!   a value do not count, and an empty variable is the same as none.
//! * What is on this machine is never asked of a proxy, which would look for it on its own.
//! * A proxy is named without its credentials.

use std::env;
use std::fmt;
use std::sync::LazyLock;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, NoProxy};
use url::Url;

/// This machine, as `NO_PROXY` would name it.
const HERE: &str = "localhost,127.0.0.0/8,::1,0.0.0.0,::,::ffff:127.0.0.0/104";

static ENVIRONMENT: LazyLock<Proxies> = LazyLock::new(|| Proxies::new(|name| env::var(name).ok()));

struct Proxies {
    http: Option<String>,
    https: Option<String>,
    /// What is not asked of them.
    except: String,
    matcher: Matcher,
}

impl Proxies {
    fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| {
            let value = variable(name)?.trim().to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        let either = |name: &str| value(name).or_else(|| value(&name.to_lowercase()));
        let proxy = |name: &str| either(name).or_else(|| either("ALL_PROXY")).map(with_scheme);
        // In a CGI program it is a header of the caller's choice.
        let http = match variable("REQUEST_METHOD") {
            Some(_) => value("http_proxy").or_else(|| either("ALL_PROXY")).map(with_scheme),
            None => proxy("HTTP_PROXY"),
        };
        let https = proxy("HTTPS_PROXY");
        let except = [either("NO_PROXY").unwrap_or_default(), HERE.to_owned()].join(",");
        let matcher = Matcher::builder()
            .http(http.as_deref().unwrap_or_default())
            .https(https.as_deref().unwrap_or_default())
            .no(&except)
            .build();
        Self { http, https, except, matcher }
    }

    fn of(&self, url: &Url) -> Option<String> {
        let proxy = self.matcher.intercept(&url.as_str().parse().ok()?)?;
        Some(proxy.uri().to_string().trim_end_matches('/').to_owned())
    }

    fn set(&self, builder: ClientBuilder) -> ClientBuilder {
        let except = NoProxy::from_string(&self.except);
        let [http, https] = [
            self.http.as_ref().map(|url| ("HTTP_PROXY", reqwest::Proxy::http(url))),
            self.https.as_ref().map(|url| ("HTTPS_PROXY", reqwest::Proxy::https(url))),
        ];
        let given = [http, https].into_iter().flatten();
        given.fold(builder.no_proxy(), |builder, (name, proxy)| match proxy {
            Ok(proxy) => builder.proxy(proxy.no_proxy(except.clone())),
            Err(_) => {
                // Not its value, which may hold a password.
                tracing::warn!("{name} or ALL_PROXY is no address of a proxy, and is not used");
                builder
            }
        })
    }
}

fn with_scheme(address: String) -> String {
    if address.contains("://") { address } else { format!("http://{address}") }
}

/// Makes a client obey the environment.
pub fn obeyed(builder: ClientBuilder) -> ClientBuilder {
    ENVIRONMENT.set(builder)
}

/// For messages: through which proxy requests to an address go. Nothing where there is none.
pub struct Through(Option<String>);

impl Through {
    pub fn to(url: Option<&Url>) -> Self {
        Self(url.and_then(|url| ENVIRONMENT.of(url)))
    }

    pub fn proxy(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(proxy) => write!(
                f,
                " through the proxy {proxy} (the environment names it; NO_PROXY names what is reached without)"
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(other, _)| *other == name)?;
            Some((*value).to_owned())
        };
        Proxies::new(variable).of(&url.parse().unwrap())
    }

    #[test]
    fn a_proxy_is_named_without_credentials_and_never_for_this_machine() {
        let all = [("ALL_PROXY", "user:secret@proxy.test:3128\r\n")];
        let named = Some("http://proxy.test:3128".to_owned());
        for far in
            ["http://acme.test/", "https://acme.test:8443/x", "http://10.0.0.1/", "http://[2001::1]/"]
        {
            assert_eq!(of(&all, far), named, "{far}");
        }
        for here in [
            "http://localhost:8080/",
            "https://LOCALHOST/",
            "http://tenantry.localhost/",
            "http://127.0.0.1:8080/",
            "http://127.9.9.9/",
            "http://127.1/",
            "http://[::1]:8080/",
            "http://[::ffff:127.0.0.1]/",
            "http://0.0.0.0:8080/",
        ] {
            assert_eq!(of(&all, here), None, "{here}");
        }
    }

    #[test]
    fn each_scheme_has_its_proxy_and_empty_ones_are_none() {
        let given = [
            ("HTTP_PROXY", " "),
            ("http_proxy", "http://plain.test"),
            ("HTTPS_PROXY", "https://secure.test:444"),
            ("NO_PROXY", ".acme.test, 10.0.0.0/8"),
        ];
        assert_eq!(of(&given, "http://x.test/").unwrap(), "http://plain.test");
        assert_eq!(of(&given, "https://x.test/").unwrap(), "https://secure.test:444");
        assert_eq!(of(&given, "https://id.acme.test/"), None);
        assert_eq!(of(&given, "https://10.1.2.3/"), None);
        let cgi = [("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "http://evil.test")];
        assert_eq!(of(&cgi, "http://x.test/"), None);
        assert_eq!(of(&[("HTTP_PROXY", "http://p.test")], "https://x.test/"), None);
    }
}
