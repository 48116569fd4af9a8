//! What lists of spaces understand of OData, which is little, and half of that silently wrong.

use rand::seq::SliceRandom;

use super::text::Shown;

/// What a list was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pub filter: Option<Filter>,
    pub order: Option<Order>,
}

/// The two filters that do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    DriveType(String),
    Id(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Name { descending: bool },
    Modified { descending: bool },
}

/// A refusal: 400 `invalidRequest`, or 501 `notSupported`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    Invalid(String),
    NotSupported(String),
}

/// Taken, and without any effect: there is no paging (observed).
const WITHOUT_EFFECT: [&str; 6] = ["$top", "$skip", "$count", "$select", "$expand", "$search"];

impl Query {
    pub fn parse(text: &str) -> Result<Self, Unfit> {
        let mut query = Self::default();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            match name.as_ref() {
                "$filter" => query.filter = parse_filter(&value)?,
                "$orderby" => query.order = parse_order(&value)?,
                name if WITHOUT_EFFECT.contains(&name) => {}
                "$format" => return Err(Unfit::Invalid("Format is not supported".into())),
                name => {
                    let text = format!("Query parameter '{name}' is not supported");
                    return Err(Unfit::Invalid(format!("{text}. Cause: {text}")));
                }
            }
        }
        Ok(query)
    }

    /// Puts a list into its order, or into none: that changes from call to call (observed).
    pub fn arrange(&self, drives: &mut [Shown]) {
        // Sorting is stable, so what compares equal keeps being in no order.
        drives.shuffle(&mut rand::rng());
        match self.order {
            None => {}
            // Without regard to case (observed).
            Some(Order::Name { .. }) => drives.sort_by_cached_key(|drive| drive.name().to_lowercase()),
            Some(Order::Modified { .. }) => drives.sort_by_key(Shown::modified),
        }
        let descending = |order| {
            let (Order::Name { descending } | Order::Modified { descending }) = order;
            descending
        };
        if self.order.is_some_and(descending) {
            drives.reverse();
        }
    }
}

fn parse_order(text: &str) -> Result<Option<Order>, Unfit> {
    if text.contains(',') {
        // More than one are none (observed).
        return Ok(None);
    }
    let mut words = text.split_whitespace();
    let field = words.next().unwrap_or_default();
    let descending = match words.next() {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(_) => return Err(Unfit::Invalid("parse error".into())),
    };
    match field {
        "name" => Ok(Some(Order::Name { descending })),
        "lastModifiedDateTime" => Ok(Some(Order::Modified { descending })),
        _ => Err(Unfit::Invalid(format!("we do not support <{field}> as a order parameter"))),
    }
}

fn parse_filter(text: &str) -> Result<Option<Filter>, Unfit> {
    let invalid = |text: &str| Err(Unfit::Invalid(text.into()));
    let Some(mut tokens) = tokens(text) else { return invalid("parse error.") };
    let mut depth = 0_i32;
    for token in &tokens {
        depth += i32::from(token == "(") - i32::from(token == ")");
        if depth < 0 {
            break;
        }
    }
    if depth != 0 {
        return invalid("parse error. Mismatched parenthesis.");
    }
    while tokens.len() > 2 && tokens[0] == "(" && tokens.last().is_some_and(|token| token == ")") {
        tokens.pop();
        tokens.remove(0);
    }
    let words: Vec<&str> = tokens.iter().map(String::as_str).collect();
    // Weaker bindings are further up in the tree, and the top is what is looked at first.
    let outer = ["or", "and"].into_iter().find(|operand| words.contains(operand));
    let unsupported = match words.as_slice() {
        _ if outer.is_some() => outer,
        ["not", ..] => Some("not"),
        [function, "(", ..] => Some(*function),
        [_, operand @ ("ne" | "gt" | "ge" | "lt" | "le" | "has" | "in"), ..] => Some(*operand),
        _ => None,
    };
    if let Some(operand) = unsupported {
        return Err(Unfit::NotSupported(format!("unsupported filter operand: {operand}")));
    }
    match words.as_slice() {
        // Quotes are not needed (observed).
        ["driveType", "eq", value] => Ok(Some(Filter::DriveType(unquoted(value)))),
        ["id", "eq", value] => Ok(Some(Filter::Id(unquoted(value)))),
        // Any other field is ignored, and everything is listed (observed).
        [_, "eq", _] => Ok(None),
        [_] => invalid("Value must be a boolean expression"),
        _ => invalid("parse error."),
    }
}

fn unquoted(token: &str) -> String {
    match token.strip_prefix('\'').and_then(|token| token.strip_suffix('\'')) {
        Some(text) => text.replace("''", "'"),
        None => token.to_owned(),
    }
}

/// Words, quoted strings, parentheses and commas; `None` for a string that does not end.
fn tokens(text: &str) -> Option<Vec<String>> {
    let mut tokens = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' | ')' | ',' => tokens.push(c.to_string()),
            '\'' => {
                let mut token = String::from(c);
                loop {
                    let c = letters.next()?;
                    token.push(c);
                    if c == '\'' {
                        match letters.next_if_eq(&'\'') {
                            Some(doubled) => token.push(doubled),
                            None => break,
                        }
                    }
                }
                tokens.push(token);
            }
            c => {
                let mut token = String::from(c);
                while let Some(c) = letters.next_if(|c| !c.is_whitespace() && !"(),'".contains(*c)) {
                    token.push(c);
                }
                tokens.push(token);
            }
        }
    }
    Some(tokens)
}
