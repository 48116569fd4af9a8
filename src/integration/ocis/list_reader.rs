//! Cuts a LibreGraph list, `{"value":[{…},{…}]}`, into its elements while it arrives.
//!
//! A list of all drives is as long as the fleet, and a JSON parser that wants it whole would hold it
//! whole. This one looks only for where elements begin and end; each is then parsed by `serde_json`.
//!
//! # Guarantees
//!
//! * No more than one element is held, and none above [`LARGEST`].
//! * A list that was cut off is an error, never a short list.
//! * An element that is not of the known form is passed on as [`Element::Odd`], and the others are read.
//! * `null`, `{}` and a missing `value`, which some servers answer when there is nothing, are empty lists.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The largest element that is held, in bytes; a description of 100,000 characters was taken (observed).
pub const LARGEST: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("an element is longer than {LARGEST} bytes")]
    TooLong,
    #[error("an element is no JSON: {0}")]
    Syntax(serde_json::Error),
    #[error("it is no list")]
    NoList,
    #[error("it ends in the middle")]
    CutOff,
}

/// An element of the list.
#[derive(Debug, PartialEq)]
pub enum Element<T> {
    Known(T),
    /// Not of the known form; why.
    Odd(Value, String),
}

impl<T: DeserializeOwned> Element<T> {
    fn parse(text: &[u8]) -> Result<Self, ListError> {
        match serde_json::from_slice(text) {
            Ok(known) => Ok(Self::Known(known)),
            Err(error) if error.is_data() => {
                let value = serde_json::from_slice(text).map_err(ListError::Syntax)?;
                Ok(Self::Odd(value, error.to_string()))
            }
            Err(error) => Err(ListError::Syntax(error)),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct ListReader {
    /// Brackets and braces that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The latest string at depth 1: the key of what follows.
    key: Vec<u8>,
    /// Inside the array that `value` holds.
    in_list: bool,
    /// The element that has begun.
    element: Vec<u8>,
    in_element: bool,
    /// Anything but blanks was read.
    begun: bool,
    /// The first level was `null` rather than an object.
    literal: Vec<u8>,
}

impl ListReader {
    /// Reads on; `each` gets every element that is complete.
    pub fn feed<T: DeserializeOwned>(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(Element<T>),
    ) -> Result<(), ListError> {
        // Where in this piece the element began.
        let mut start = 0;
        for (at, &byte) in piece.iter().enumerate() {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' {
                    self.escaped = true;
                } else if byte == b'"' {
                    self.in_string = false;
                    continue;
                }
                if self.depth == 1 && self.key.len() < 16 {
                    self.key.push(byte);
                }
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    if self.depth == 1 {
                        self.key.clear();
                    }
                }
                b'{' | b'[' => {
                    self.begun = true;
                    self.depth += 1;
                    if self.depth == 2 && byte == b'[' && self.key == b"value" {
                        self.in_list = true;
                    } else if self.depth == 3 && self.in_list {
                        self.in_element = true;
                        start = at;
                    }
                    if self.depth == 1 && byte == b'[' {
                        return Err(ListError::NoList);
                    }
                }
                b'}' | b']' => {
                    self.depth = self.depth.checked_sub(1).ok_or(ListError::NoList)?;
                    if self.depth == 2 && self.in_element {
                        self.in_element = false;
                        let rest = &piece[start..=at];
                        let element = if self.element.is_empty() {
                            Element::parse(rest)
                        } else {
                            self.element.extend_from_slice(rest);
                            Element::parse(&self.element)
                        };
                        self.element.clear();
                        each(element?);
                    } else if self.depth == 1 {
                        self.in_list = false;
                    }
                }
                _ if self.depth == 0 && !byte.is_ascii_whitespace() => {
                    self.begun = true;
                    self.literal.push(byte);
                    if !b"null".starts_with(&self.literal) {
                        return Err(ListError::NoList);
                    }
                }
                _ => {}
            }
        }
        if self.in_element {
            self.element.extend_from_slice(&piece[start..]);
            if self.element.len() > LARGEST {
                return Err(ListError::TooLong);
            }
        }
        Ok(())
    }

    /// After the last piece.
    pub fn finish(self) -> Result<(), ListError> {
        match (self.depth, self.begun) {
            (0, true) if self.literal.is_empty() || self.literal == b"null" => Ok(()),
            _ => Err(ListError::CutOff),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read<T: DeserializeOwned>(text: &str, piece: usize) -> Result<Vec<Element<T>>, ListError> {
        let mut reader = ListReader::default();
        let mut elements = Vec::new();
        for piece in text.as_bytes().chunks(piece) {
            reader.feed(piece, |element| elements.push(element))?;
        }
        reader.finish().map(|()| elements)
    }

    #[test]
    fn an_element_of_another_form_is_told_apart_and_those_around_it_are_read() {
        let list = r#"{"value":[{"a":1},{"a":"x","id":"odd"},[2],{"a":3}]}"#;
        for piece in 1..list.len() {
            let read: Vec<Element<std::collections::BTreeMap<String, u8>>> = read(list, piece).unwrap();
            let known = |element: &Element<_>| matches!(element, Element::Known(_));
            assert_eq!(read.iter().map(known).collect::<Vec<_>>(), [true, false, false, true]);
            let Element::Odd(value, why) = &read[1] else { panic!("{read:?}") };
            assert_eq!(value["id"], "odd");
            assert!(why.contains("invalid type"), "{why}");
        }
    }

    #[test]
    fn nothing_is_an_empty_list_in_all_the_ways_that_servers_say_it() {
        for nothing in ["null", " null\n", "{}", r#"{"value":[]}"#, r#"{"other":[{"a":1}]}"#] {
            assert_eq!(read::<Value>(nothing, 1).unwrap(), [], "{nothing}");
        }
    }

    #[test]
    fn a_list_that_is_cut_off_or_is_none_is_an_error() {
        let whole = r#"{"value":[{"a":"}]"},{"b":[{}]}]}"#;
        for end in 0..whole.len() {
            assert!(read::<Value>(&whole[..end], 3).is_err(), "{}", &whole[..end]);
        }
        for odd in ["", "[]", "nul", "nullx", "Unauthorized", r#"{"value":[{"a":}]}"#] {
            assert!(read::<Value>(odd, 2).is_err(), "{odd}");
        }
    }

    #[test]
    fn an_element_beyond_all_measure_is_refused_before_it_is_held() {
        let mut reader = ListReader::default();
        reader.feed(br#"{"value":[{"name":""#, |_: Element<Value>| {}).unwrap();
        let piece = vec![b'x'; 1 << 16];
        let refused = (0..=LARGEST >> 16).any(|_| reader.feed(&piece, |_: Element<Value>| {}).is_err());
        assert!(refused);
        assert!(reader.element.len() <= LARGEST + piece.len());
    }

    proptest! {
        /// Whatever is in the elements, and however the list is cut into pieces.
        #[test]
        fn every_element_is_read_once_and_in_order(
            texts in prop::collection::vec(r#"[ -~"\\\[\]{}ü€]{0,20}"#, 0..8),
            piece in 1_usize..40,
        ) {
            let elements: Vec<Value> = texts
                .iter()
                .map(|text| json!({ "name": text, "value": [{ text: [text] }], "n": null }))
                .collect();
            let list = json!({ "@odata.context": "\"value\":[{", "value": elements, "value2": [{}] });
            for text in [list.to_string(), serde_json::to_string_pretty(&list).unwrap()] {
                let read = read::<Value>(&text, piece).unwrap();
                prop_assert_eq!(read, elements.iter().cloned().map(Element::Known).collect::<Vec<_>>());
            }
        }
    }
}
