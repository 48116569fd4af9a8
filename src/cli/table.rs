//! Tables, ages and colours, for people.

use std::io::IsTerminal;

use jiff::Timestamp;
use serde_json::Value;

use super::printable::in_line;

/// Whether to use colours: on a terminal that has them, unless `NO_COLOR` says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colours: bool,
}

impl Style {
    pub fn of_stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colours: std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb }
    }

    /// A state, reason or status in the colour of how good it is.
    fn paint(self, text: &str, padded: &str) -> String {
        let colour = match text {
            "ok" | "active" | "True" | "InSync" | "Normal" | "healthy" => 32,
            "pending" | "deleting" | "paused" | "Unknown" | "Reconciling" => 33,
            "error" | "invalid" | "False" | "Warning" | "unhealthy" => 31,
            "skipped" => 2,
            _ => return padded.to_owned(),
        };
        if self.colours { format!("\x1b[{colour}m{padded}\x1b[0m") } else { padded.to_owned() }
    }
}

/// Rows, mostly under a head, each column as wide as its widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Rows of the head.
    head: usize,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|name| (*name).to_owned()).collect()], head: 1 }
    }

    pub fn without_head() -> Self {
        Self { rows: Vec::new(), head: 0 }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| in_line(cell)).collect());
    }

    /// Whether there is nothing but the head.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == self.head
    }

    pub fn render(&self, style: Style, indent: &str) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                let last = column + 1 == row.len();
                let blanks = widths.get(column).unwrap_or(&0).saturating_sub(cell.chars().count());
                let padded = if last { cell.clone() } else { format!("{cell}{}  ", " ".repeat(blanks)) };
                line.push_str(&style.paint(cell, &padded));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A field as a cell: its text, or a dash.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// How long ago a time is, or how far ahead, in its largest units: `3m`, `2d`, `in 5m`.
pub fn age(value: &Value, now: Timestamp) -> String {
    let Some(at) = value.as_str().and_then(|text| text.parse::<Timestamp>().ok()) else {
        return "-".into();
    };
    let seconds = now.duration_since(at).as_secs();
    let span = match seconds.unsigned_abs() {
        span @ 0..120 => format!("{span}s"),
        span @ 120..7_200 => format!("{}m", span / 60),
        span @ 7_200..172_800 => format!("{}h", span / 3_600),
        span => format!("{}d", span / 86_400),
    };
    if seconds < 0 { format!("in {span}") } else { span }
}

/// Bytes in the largest unit that shows them whole.
pub fn bytes(value: &Value) -> String {
    match value.as_u64() {
        None => "-".into(),
        Some(0) => "unlimited".into(),
        Some(bytes) => {
            let units = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000)];
            let whole = units.into_iter().find(|(_, size)| bytes % size == 0);
            whole.map_or_else(|| format!("{bytes} B"), |(unit, size)| format!("{} {unit}", bytes / size))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Style = Style { colours: false };

    #[test]
    fn columns_line_up_and_control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["SLUG", "STATUS"]);
        table.row(vec!["acme".into(), "ok".into()]);
        table.row(vec!["bücher".into(), "\x1b[31mred\u{202e}".into()]);
        assert_eq!(table.render(PLAIN, ""), "SLUG    STATUS\nacme    ok\nbücher   [31mred\n");
        let coloured = table.render(Style { colours: true }, "");
        assert!(coloured.contains("\x1b[32mok\x1b[0m"), "{coloured}");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let now: Timestamp = "2026-01-02T12:00:00Z".parse().unwrap();
        for (at, shown) in [
            ("2026-01-02T11:59:30Z", "30s"),
            ("2026-01-02T11:00:00Z", "60m"),
            ("2025-12-20T12:00:00Z", "13d"),
            ("2026-01-02T12:05:00Z", "in 5m"),
        ] {
            assert_eq!(age(&json!(at), now), shown);
        }
        for (size, shown) in [
            (json!(10_000_000_000_u64), "10 GB"),
            (json!(0), "unlimited"),
            (json!(1), "1 B"),
            (json!(null), "-"),
        ] {
            assert_eq!(bytes(&size), shown);
        }
    }
}
