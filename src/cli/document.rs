//! Documents in YAML and JSON, from files, folders and standard input.
//!
//! # Guarantees
//!
//! * Nothing is guessed. A key that is there twice is an error, and so is a plain word that YAML 1.1 and 1.2 read
//!   differently (`no`, `on`, `010`, `12:30`, `1_000`): in quotes it is a text.
//! * Memory is bounded by the size of the text: aliases, which can stand for more than there is, are refused; so
//!   are merge keys and tags.
//! * Every value is known by the line on which it begins, as far as the language tells.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Number, Value};

use super::failure::Failure;

/// The largest text that is read, in bytes.
const LARGEST: u64 = 256 << 20;
/// How deep values may be nested.
const DEEPEST: usize = 32;

/// One document, and where it is.
#[derive(Debug, Clone)]
pub struct Document {
    pub value: Value,
    pub place: Place,
    /// Where values begin, by JSON pointer.
    lines: BTreeMap<String, usize>,
}

/// Where something stands that a person wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub source: String,
    /// From 1.
    pub document: usize,
    /// From 1, in a list of tenants.
    pub item: Option<usize>,
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.source, self.document)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        self.line.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

impl Document {
    /// Where the value of this JSON pointer begins.
    pub fn place_of(&self, pointer: &str) -> Place {
        let line = self.lines.get(pointer).copied().or(self.place.line);
        Place { line, ..self.place.clone() }
    }

    /// Itself, or the items of the list that it is: what the API and `get -o yaml` answer.
    pub fn items(self) -> Vec<Self> {
        let (list, under) = match &self.value {
            Value::Array(items) => (items.clone(), String::new()),
            Value::Object(fields) if !fields.contains_key("slug") => match fields.get("items") {
                Some(Value::Array(items)) => (items.clone(), "/items".to_owned()),
                _ => return vec![self],
            },
            _ => return vec![self],
        };
        let item = |(index, value)| {
            let prefix = format!("{under}/{index}");
            let below = self.lines.range(prefix.clone()..);
            let below = below.take_while(|(pointer, _)| pointer.starts_with(&prefix));
            let within = below.filter_map(|(pointer, line)| {
                let rest = &pointer[prefix.len()..];
                (rest.is_empty() || rest.starts_with('/')).then(|| (rest.to_owned(), *line))
            });
            let lines: BTreeMap<_, _> = within.collect();
            let line = lines.get("").copied().or(self.place.line);
            let place = Place { item: Some(index + 1), line, ..self.place.clone() };
            Self { value, place, lines }
        };
        list.into_iter().enumerate().map(item).collect()
    }
}

/// All documents of a file, of the files in a folder, or of standard input (`-`).
///
/// # Errors
/// When something cannot be read, or is neither YAML nor JSON.
pub fn read(name: &str) -> Result<Vec<Document>, Failure> {
    if name == "-" {
        let text = limited("standard input", std::io::stdin().lock())?;
        return parse("standard input", &text, false);
    }
    let mut all = Vec::new();
    for file in files(Path::new(name))? {
        let source = file.display().to_string();
        let opened = std::fs::File::open(&file).map_err(|error| unreadable(&source, &error))?;
        let text = limited(&source, opened)?;
        all.extend(parse(&source, &text, file.extension().is_some_and(|ending| ending == "json"))?);
    }
    Ok(all)
}

fn unreadable(source: &str, error: &std::io::Error) -> Failure {
    Failure::usage(format!("{source} cannot be read: {error}"))
}

/// The file, or those in the folder, in order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let name = path.display().to_string();
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(&name, &error))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| unreadable(&name, &error))?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if matches!(ending, Some("yaml" | "yml" | "json")) && !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        let said = format!("there is no file in {name} whose name ends with .yaml, .yml or .json");
        return Err(Failure::usage(said));
    }
    Ok(files)
}

fn limited(source: &str, from: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = from.take(LARGEST + 1).read_to_string(&mut text);
    let read = read.map_err(|error| unreadable(source, &error))?;
    if read as u64 > LARGEST {
        return Err(Failure::usage(format!("{source} is larger than {} MiB", LARGEST >> 20)));
    }
    Ok(text)
}

/// All documents of a text; `json` when it says of itself that it is nothing else.
///
/// # Errors
/// When it is neither YAML nor JSON.
pub fn parse(source: &str, text: &str, json: bool) -> Result<Vec<Document>, Failure> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let place = |document, line| Place { source: source.to_owned(), document, item: None, line };
    if json || text.trim_start().starts_with(['{', '[']) {
        match read_json(text, &place) {
            // What begins like JSON may be YAML all the same.
            Err(_) if !json => {}
            read => return read,
        }
    }
    read_yaml(text, &place)
}

type PlaceOf<'a> = dyn Fn(usize, Option<usize>) -> Place + 'a;

fn wrong(place: &Place, why: impl fmt::Display) -> Failure {
    Failure::usage(format!("{place}: {why}"))
}

/// One or more JSON values, one after another.
fn read_json(text: &str, place: &PlaceOf<'_>) -> Result<Vec<Document>, Failure> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Unique>();
    let (mut documents, mut begins, mut line) = (Vec::new(), 0, 1);
    while let Some(value) = values.next() {
        let number = documents.len() + 1;
        let value = value.map_err(|error| wrong(&place(number, Some(error.line())), error))?;
        // What is between this value and the one before is blank.
        let rest = text.get(begins..).unwrap_or_default();
        let blank = rest.len() - rest.trim_start().len();
        line += rest.get(..blank).unwrap_or_default().matches('\n').count();
        documents.push(Document {
            value: value.0,
            place: place(number, Some(line)),
            lines: BTreeMap::new(),
        });
        line += text.get(begins + blank..values.byte_offset()).unwrap_or_default().matches('\n').count();
        begins = values.byte_offset();
    }
    Ok(documents)
}

/// A JSON value in which no key is there twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Value, E> {
                Ok(on.into())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
                Ok(number.into())
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
                Ok(number.into())
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
                Ok(number.into())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(text.into())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut all = Vec::new();
                while let Some(Unique(item)) = items.next_element()? {
                    all.push(item);
                }
                Ok(all.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
                let mut all = Map::new();
                while let Some((name, Unique(value))) = fields.next_entry::<String, Unique>()? {
                    if all.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("{name:?} is there twice")));
                    }
                    all.insert(name, value);
                }
                Ok(all.into())
            }
        }
        deserializer.deserialize_any(Any).map(Self)
    }
}

/// The events of a YAML text, and what they are of.
struct Yaml<'a> {
    parser: Parser<'a, StrInput<'a>>,
    place: &'a PlaceOf<'a>,
    document: usize,
    lines: BTreeMap<String, usize>,
}

fn read_yaml(text: &str, place: &PlaceOf<'_>) -> Result<Vec<Document>, Failure> {
    let (parser, lines) = (Parser::new_from_str(text), BTreeMap::new());
    let mut yaml = Yaml { parser, place, document: 1, lines };
    let mut documents = Vec::new();
    while let Some((event, span)) = yaml.next()? {
        match event {
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => {}
            Event::DocumentEnd => yaml.document += 1,
            Event::StreamEnd => break,
            event => {
                let value = yaml.value(event, span, "", 0)?;
                let lines = std::mem::take(&mut yaml.lines);
                // Such as one of comments only.
                if !value.is_null() {
                    let place = place(yaml.document, Some(span.start.line()));
                    documents.push(Document { value, place, lines });
                }
            }
        }
    }
    Ok(documents)
}

impl<'a> Yaml<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Failure> {
        self.parser.next_event().transpose().map_err(|error| {
            let place = (self.place)(self.document, Some(error.marker().line()));
            wrong(&place, error.info())
        })
    }

    fn wrong(&self, span: Span, why: impl fmt::Display) -> Failure {
        wrong(&(self.place)(self.document, Some(span.start.line())), why)
    }

    /// The value that begins with this event.
    fn value(
        &mut self,
        event: Event<'a>,
        span: Span,
        pointer: &str,
        depth: usize,
    ) -> Result<Value, Failure> {
        if depth > DEEPEST {
            return Err(self.wrong(span, "values are nested too deep"));
        }
        self.lines.insert(pointer.to_owned(), span.start.line());
        match event {
            Event::Scalar(text, style, _, tag) => {
                let text_only = tag.as_ref().is_some_and(|tag| tag.suffix == "str");
                if tag.is_some() && !text_only {
                    return Err(self.wrong(span, "tags (!) are not understood here"));
                }
                if style != ScalarStyle::Plain || text_only {
                    return Ok(text.into_owned().into());
                }
                plain(&text).map_err(|why| self.wrong(span, why))
            }
            Event::SequenceStart(..) => self.sequence(pointer, depth),
            Event::MappingStart(..) => self.mapping(pointer, depth),
            Event::Alias(_) => {
                Err(self.wrong(span, "aliases (*) are not understood here: write the value out"))
            }
            _ => Err(self.wrong(span, "is no value")),
        }
    }

    fn sequence(&mut self, pointer: &str, depth: usize) -> Result<Value, Failure> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::SequenceEnd {
                break;
            }
            let pointer = format!("{pointer}/{}", items.len());
            items.push(self.value(event, span, &pointer, depth + 1)?);
        }
        Ok(items.into())
    }

    fn mapping(&mut self, pointer: &str, depth: usize) -> Result<Value, Failure> {
        let mut fields = Map::new();
        while let Some((key, at)) = self.next()? {
            let (name, style) = match key {
                Event::MappingEnd => break,
                Event::Scalar(name, style, _, None) => (name, style),
                _ => return Err(self.wrong(at, "the name of a field must be a word")),
            };
            if name == "<<" && style == ScalarStyle::Plain {
                return Err(self.wrong(at, "merge keys (<<) are not understood here"));
            }
            let below = format!("{pointer}/{name}");
            if let Some(first) = self.lines.get(&below).filter(|_| fields.contains_key(&*name)) {
                let why = format!("{name:?} is there twice, first on line {first}");
                return Err(self.wrong(at, why));
            }
            let Some((event, span)) = self.next()? else { break };
            let value = self.value(event, span, &below, depth + 1)?;
            self.lines.insert(below, at.start.line());
            fields.insert(name.into_owned(), value);
        }
        Ok(fields.into())
    }
}

/// What a word without quotes means in YAML 1.2 (core schema), unless YAML 1.1 reads something else in it.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(true.into()),
        "false" | "False" | "FALSE" => return Ok(false.into()),
        _ => {}
    }
    if is_ambiguous(text) {
        return Err(format!(
            "{text} means one thing in YAML 1.1 and another in 1.2: write \"{text}\" if it is a text, or else a \
             plain number, true or false"
        ));
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        return Ok(text.into());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    let decimal = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E'));
    let number =
        text.parse::<f64>().ok().filter(|_| decimal && text.contains(|c: char| c.is_ascii_digit()));
    Ok(number.and_then(Number::from_f64).map_or_else(|| text.into(), Value::Number))
}

/// Whether the two versions of the language that are in use read a plain word differently.
fn is_ambiguous(text: &str) -> bool {
    const WORDS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];
    if WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return true;
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit());
    let all = |more: &[char]| digits.chars().all(|c| c.is_ascii_digit() || more.contains(&c));
    let octal = digits.len() > 1 && digits.starts_with('0') && all(&['_']);
    let based = ["0o", "0x", "0b"].iter().any(|base| digits.starts_with(base))
        && digits[2..].chars().all(|c| c.is_ascii_hexdigit() || c == '_');
    let grouped = digits.contains('_') && all(&['_', '.']);
    let sexagesimal = digits.contains(':') && all(&[':', '.', '_']);
    numeric && (octal || based || grouped || sexagesimal)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        let documents = parse("a.yaml", text, false).unwrap_or_else(|failure| panic!("{failure}"));
        documents.into_iter().map(|document| document.value).collect()
    }

    fn refused(text: &str) -> String {
        parse("a.yaml", text, false).expect_err(text).to_string()
    }

    #[test]
    fn several_documents_of_either_language_are_read() {
        let yaml = "# of acme\nslug: acme\nname: 'Acme: 1'\nquota: {storageBytes: 10}\n---\n---\nslug: b\nname: >\n  B\n  C\n";
        let expected = [
            json!({ "slug": "acme", "name": "Acme: 1", "quota": { "storageBytes": 10 } }),
            json!({ "slug": "b", "name": "B C\n" }),
        ];
        assert_eq!(values(yaml), expected);
        assert_eq!(
            values("{\"a\":1}\n {\"a\":[null,true,1.5]}"),
            [json!({"a":1}), json!({"a":[null,true,1.5]})]
        );
        assert_eq!(values("{slug: acme}"), [json!({ "slug": "acme" })]);
        assert_eq!(values("\u{feff}\r\nslug: acme\r\n"), [json!({ "slug": "acme" })]);
        assert!(values("# nothing\n").is_empty() && values("").is_empty());
    }

    #[test]
    fn what_the_versions_of_yaml_read_differently_is_refused_unless_it_is_quoted() {
        for word in [
            "no",
            "NO",
            "on",
            "Off",
            "y",
            "yes",
            "010",
            "0o17",
            "0x1F",
            "0b11",
            "1_000",
            "12:30",
            "190:20:30.15",
        ] {
            let why = refused(&format!("slug: acme\nname: {word}\n"));
            assert!(why.contains("document 1, line 2") && why.contains("YAML 1.1"), "{word}: {why}");
            assert_eq!(values(&format!("name: \"{word}\"")), [json!({ "name": word })]);
        }
        for (word, value) in [
            ("Norway", json!("Norway")),
            ("1", json!(1)),
            ("-1", json!(-1)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            ("0", json!(0)),
            ("2024-01-01", json!("2024-01-01")),
            ("1.2.3", json!("1.2.3")),
            (".inf", json!(".inf")),
            ("-", json!([null])),
            ("10GB", json!("10GB")),
            ("!!str 10", json!("10")),
            ("null", json!(null)),
            ("True", json!(true)),
            ("09a", json!("09a")),
        ] {
            let text = if word == "-" { "name:\n- \n".to_owned() } else { format!("name: {word}\n") };
            assert_eq!(values(&text), [json!({ "name": value })], "{word}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_document_and_line() {
        for (text, expected) in [
            (
                "slug: a\n---\nslug: b\nname: x\nslug: c\n",
                "a.yaml, document 2, line 5: \"slug\" is there twice, first on line 3",
            ),
            ("slug: a\n---\nslug: [\n", "document 2, line"),
            ("a: &x 1\nb: *x\n", "line 2: aliases"),
            ("<<: {a: 1}\n", "merge keys"),
            ("a: !secret x\n", "tags (!)"),
            ("? [a]\n: 1\n", "must be a word"),
            ("slug: a\n\tname: b\n", "found a tab"),
        ] {
            let said = refused(text);
            assert!(said.contains(expected), "{text:?}: {said}");
        }
        let twice =
            parse("a.json", "{\"a\":1}\n{\"a\":1,\n\"a\":2}", true).expect_err("it is there twice");
        assert!(twice.to_string().contains("document 2, line 3: \"a\" is there twice"), "{twice}");
        assert!(parse("a.json", "slug: a", true).is_err());
        assert!(refused(&"[".repeat(100_000)).contains("document 1"));
    }

    #[test]
    fn a_bomb_of_aliases_costs_nothing() {
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for n in 1..30 {
            bomb.push_str(&format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
        }
        assert!(refused(&bomb).contains("line 2: aliases"));
    }

    #[test]
    fn items_of_a_list_know_their_places() {
        let list = "items:\n  - slug: a\n    name: A\n  - slug: b\n    name: B\n";
        let items: Vec<_> = parse("l.yaml", list, false).unwrap().remove(0).items();
        assert_eq!(items[1].value, json!({ "slug": "b", "name": "B" }));
        assert_eq!(items[1].place_of("/name").to_string(), "l.yaml, document 1, item 2, line 5");
        let alone = parse("l.yaml", "slug: a\nitems: []\n", false).unwrap().remove(0).items();
        assert_eq!(alone.len(), 1);
    }
}
