//! The tenant's mail domain.

use std::fmt;
use std::str::FromStr;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use psl::{Psl, Type};

/// A domain name in its ASCII form: lower-case, internationalised labels as `xn--…` (UTS 46), at
/// least two labels, no trailing dot, lengths as DNS has them, and no public suffix such as `co.uk`: under
/// one the domains of everybody are registered, so no tenant can have it.
///
/// The suffixes of registries are refused (the ICANN part of the public suffix list), and not those of
/// companies, such as `github.io`: they are domains of another owner. Whether the mail server knows the suffix
/// of a name is its own business: its list may be newer or older than the one compiled in here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MailDomain(String);

/// Suffixes that will never be registered (RFC 2606).
const RESERVED: [&str; 2] = ["example", "invalid"];

impl MailDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last label.
    pub fn top(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or_default()
    }

    /// Whether its suffix is one of the public suffix list.
    pub fn has_public_suffix(&self) -> bool {
        psl::List.suffix(self.0.as_bytes()).is_some_and(|suffix| suffix.is_known())
    }

    /// Whether it certainly names no place for mail, now or ever.
    pub fn is_reserved(&self) -> bool {
        RESERVED.contains(&self.top())
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
    #[error(
        "must be a domain of the tenant's own, not a public suffix under which everybody registers theirs"
    )]
    PublicSuffix,
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
        let suffix = psl::List.suffix(ascii.as_bytes());
        let registry = suffix.filter(|suffix| suffix.typ() == Some(Type::Icann));
        if registry.is_some_and(|suffix| suffix.as_bytes() == ascii.as_bytes()) {
            return Err(InvalidMailDomain::PublicSuffix);
        }
        Ok(Self(ascii))
    }
}
