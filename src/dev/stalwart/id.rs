//! Ids as the server writes them: numbers in a base-32 of its own.

use std::fmt;
use std::str::FromStr;

/// Not the usual base 32: after `z` come 7, 9, 2, 0, 1 and 3 (observed: the ids of 30 domains in a row).
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz792013";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// The text is no id. What the server makes of that depends on where it stands.
#[derive(Debug)]
pub struct Malformed;

impl FromStr for Id {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.is_empty() {
            return Err(Malformed);
        }
        let mut value = 0_u64;
        for byte in text.bytes() {
            let digit = ALPHABET.iter().position(|letter| *letter == byte).ok_or(Malformed)?;
            value = value.checked_mul(32).ok_or(Malformed)? | digit as u64;
        }
        Ok(Self(value))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = (u64::BITS - self.0.leading_zeros()).div_ceil(5).max(1);
        for place in (0..digits).rev() {
            let digit = (self.0 >> (place * 5)) & 31;
            write!(f, "{}", char::from(ALPHABET[digit as usize]))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_run_as_those_of_the_real_server() {
        let ids: Vec<String> = (25..34).map(|number| Id(number).to_string()).collect();
        assert_eq!(ids, ["z", "7", "9", "2", "0", "1", "3", "ba", "bb"]);
        assert_eq!("d333333".parse::<Id>().unwrap(), Id(u64::from(u32::MAX)));
        for id in [Id(0), Id(1), Id(31), Id(32), Id(u64::MAX)] {
            assert_eq!(id.to_string().parse::<Id>().unwrap(), id);
        }
        for text in ["", "!!", "B", "4", "#d", "zzzzzzzzzzzzzzz"] {
            assert!(text.parse::<Id>().is_err(), "{text}");
        }
    }
}
