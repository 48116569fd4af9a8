//! Why a request got no answer, told apart by what can be done about it.

use std::error::Error as StdError;

use url::Url;

use super::client::innermost;
use super::proxy::Through;

pub const PRIVATE_CA: &str =
    "For a certificate of a private CA, give the CA's certificate in EXTRA_CA_FILE";
pub const NOT_TLS: &str =
    "answers, but not with TLS: is that the port for http:// rather than https://?";
pub const NOT_HTTP: &str =
    "what answers is not HTTP: is that the port for https:// rather than http://?";

/// What kept a request from being answered.
pub enum Broken {
    /// Nothing was sent.
    Connect(String),
    Tls(String),
    /// There is a server, but it does not speak TLS.
    NotTls,
    Timeout,
    /// The connection ended in the middle.
    Connection(String),
    TooLong,
    Unprintable,
}

impl Broken {
    /// For people, where there is no more to say of the request to `url`.
    pub fn in_words(self, url: &Url) -> String {
        match self {
            Self::Tls(why) => format!("TLS failed: {why}. {PRIVATE_CA}"),
            Self::NotTls => format!("it {NOT_TLS}"),
            Self::Connect(why) => format!("cannot connect: {why}"),
            Self::Timeout => format!("no answer in time{}", Through::to(Some(url))),
            Self::Connection(why) => format!("the connection broke: {why}"),
            Self::TooLong | Self::Unprintable => "the request cannot be sent".into(),
        }
    }
}

impl From<reqwest::Error> for Broken {
    fn from(error: reqwest::Error) -> Self {
        let why = format!("{}{}", innermost(&error), Through::to(error.url()));
        if error.is_builder() {
            Self::Unprintable
        } else if let Some(tls) = cause::<rustls::Error>(&error) {
            match tls {
                rustls::Error::InvalidMessage(_) => Self::NotTls,
                _ => Self::Tls(why),
            }
        } else if error.is_connect() {
            Self::Connect(why)
        } else if error.is_timeout() {
            Self::Timeout
        } else if cause::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse) {
            Self::Connection(format!("{why}: {NOT_HTTP}"))
        } else {
            Self::Connection(why)
        }
    }
}

/// The cause of this type, if there is one.
fn cause<E: StdError + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(cause) = error.downcast_ref() {
            return Some(cause);
        }
        // An I/O error's own cause is not in the chain, but inside.
        source = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
