//! Texts of others, such as names of tenants and messages of upstreams, in a form that a terminal only shows: it
//! must not obey them, nor let them stand for what is beside them.

/// In a line for people: what is no visible part of a line becomes a blank.
pub fn in_line(text: &str) -> String {
    text.chars().map(|c| if is_harmless(c) { c } else { ' ' }).collect()
}

/// In text of JSON, where such characters stand only inside strings: written as escapes, which YAML has too.
pub fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_harmless(c) || c == '\n' {
            text.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}")));
        }
    }
    text
}

/// Neither a control character, nor a break of the line, nor one that reorders the text around it or is taken
/// for nothing at the start of a file.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
