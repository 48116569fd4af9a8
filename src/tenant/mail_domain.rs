//! The tenant's mail domain.

use std::fmt;
use std::str::FromStr;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

/// A domain name in its ASCII form: lower-case, internationalised labels as `xn--…` (UTS 46), at
/// least two labels, no trailing dot, lengths as DNS has them.
///
/// Whether the mail server likes the suffix is its own business: Stalwart refuses `.example`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MailDomain(String);

impl MailDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MailDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMailDomain {
    #[error("must be a domain name such as acme.test")]
    NotADomain,
    #[error("must have at least two labels, such as acme.test")]
    SingleLabel,
    #[error("must be a domain name, not an IP address")]
    Address,
}

impl FromStr for MailDomain {
    type Err = InvalidMailDomain;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ascii = Uts46::new()
            .to_ascii(
                text.trim().as_bytes(),
                AsciiDenyList::STD3,
                Hyphens::CheckFirstLast,
                DnsLength::Verify,
            )
            .map_err(|_| InvalidMailDomain::NotADomain)?
            .into_owned();
        let Some((_, top)) = ascii.rsplit_once('.') else {
            return Err(InvalidMailDomain::SingleLabel);
        };
        if top.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidMailDomain::Address);
        }
        Ok(Self(ascii))
    }
}
