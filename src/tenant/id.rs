//! Identities: a tenant's, which is the `_id` of its document, and a create intent's.

use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 24 hexadecimal digits")]
pub struct InvalidId;

macro_rules! id {
    ($( $(#[$doc:meta])* $name:ident, )*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 12]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 12]) -> Self {
                Self(bytes)
            }

            pub const fn bytes(self) -> [u8; 12] {
                self.0
            }

            /// Seconds since 1970 at which the id was made, by the clock of the process that made it.
            pub fn made_at_seconds(self) -> u32 {
                u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse(text).map(Self)
            }
        }
    )* };
}

id! {
    /// A MongoDB ObjectId, as 12 bytes. Shown as 24 lower-case hex digits, which is also the *mark*
    /// that resources in the upstreams carry: one unbroken word, unique for ever.
    TenantId,
    /// Names one intention to create a resource in an upstream where nothing is unique: four bytes of
    /// time, eight of chance. It is recorded before anything is sent, and what is created carries it.
    IntentId,
}

fn parse(text: &str) -> Result<[u8; 12], InvalidId> {
    if text.len() != 24 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(InvalidId);
    }
    let mut bytes = [0; 12];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| InvalidId)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidId)?;
    }
    Ok(bytes)
}
