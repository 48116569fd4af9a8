//! The text formats that scrapers ask for.

use std::fmt::Write;

use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::family::unit_of;

/// What a scraper understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The text format 0.0.4 of Prometheus.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that a request's `Accept` asks for.
    pub fn of(accept: Option<&str>) -> Self {
        let wanted = accept.unwrap_or_default().split(',').filter_map(|offer| {
            let mut parts = offer.split(';').map(str::trim);
            let format = match parts.next()? {
                "application/openmetrics-text" => Self::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => Self::Prometheus,
                _ => return None,
            };
            let quality =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok())?;
            Some((format, quality))
        });
        let best = wanted.reduce(|best: (Self, f64), next| if next.1 > best.1 { next } else { best });
        best.map_or(Self::Prometheus, |(format, _)| format)
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    pub(super) fn encode(self, families: &[MetricFamily]) -> String {
        match self {
            Self::Prometheus => {
                let mut text = Vec::new();
                match TextEncoder::new().encode(families, &mut text) {
                    Ok(()) => String::from_utf8(text).unwrap_or_default(),
                    Err(error) => {
                        tracing::error!(%error, "cannot encode the metrics");
                        String::new()
                    }
                }
            }
            Self::OpenMetrics => open_metrics(families),
        }
    }
}

/// The library has no encoder for this format. Its families differ in three ways: a counter's is called without
/// `_total`, a unit is told, and there is an end.
fn open_metrics(families: &[MetricFamily]) -> String {
    let mut text = String::new();
    for family in families {
        let (full, kind) = (family.name(), family.get_field_type());
        let name = match kind {
            MetricType::COUNTER => full.strip_suffix("_total").unwrap_or(full),
            _ => full,
        };
        let type_name = match kind {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            _ => continue,
        };
        // Writing to a text does not fail.
        let _ = writeln!(text, "# TYPE {name} {type_name}");
        let unit = unit_of(full);
        if unit != "1" {
            let _ = writeln!(text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(text, "# HELP {name} {}", escaped(family.help()));
        for metric in family.get_metric() {
            let labels: Vec<(&str, &str)> =
                metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
            match kind {
                MetricType::COUNTER => {
                    sample(
                        &mut text,
                        &format!("{name}_total"),
                        &labels,
                        None,
                        metric.get_counter().get_value(),
                    );
                }
                MetricType::GAUGE => {
                    sample(&mut text, name, &labels, None, metric.get_gauge().get_value())
                }
                _ => {
                    let histogram = metric.get_histogram();
                    let count = as_float(histogram.get_sample_count());
                    let bucket_name = format!("{name}_bucket");
                    for bucket in histogram.get_bucket() {
                        let bound = bound(bucket.upper_bound());
                        let below = as_float(bucket.cumulative_count());
                        sample(&mut text, &bucket_name, &labels, Some(&bound), below);
                    }
                    sample(&mut text, &bucket_name, &labels, Some("+Inf"), count);
                    sample(&mut text, &format!("{name}_count"), &labels, None, count);
                    sample(&mut text, &format!("{name}_sum"), &labels, None, histogram.get_sample_sum());
                }
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

#[allow(clippy::cast_precision_loss)]
fn as_float(count: u64) -> f64 {
    count as f64
}

/// A bound as the format wants it: with a point.
fn bound(bound: f64) -> String {
    if bound.fract() == 0.0 { format!("{bound:.1}") } else { bound.to_string() }
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], bound: Option<&str>, value: f64) {
    text.push_str(name);
    let bound = bound.map(|bound| ("le", bound));
    let mut before = '{';
    for (label, value) in labels.iter().copied().chain(bound) {
        let _ = write!(text, "{before}{label}=\"{}\"", escaped(value));
        before = ',';
    }
    if before == ',' {
        text.push('}');
    }
    let _ = writeln!(text, " {value}");
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, format) in [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/plain"), Format::Prometheus),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some(prometheus), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0.2, text/plain;q=0.9"), Format::Prometheus),
            (Some("text/html"), Format::Prometheus),
        ] {
            assert_eq!(Format::of(accept), format, "{accept:?}");
        }
    }
}
