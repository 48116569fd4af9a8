//! Families of metrics whose labels have types, and the catalogue that they enter themselves into.

use std::marker::PhantomData;

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};
use serde::Serialize;

use super::labels::Labels;

/// A metric, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// `seconds`, `bytes`, or `1` of what is counted.
    pub unit: &'static str,
    pub help: String,
    #[serde(serialize_with = "by_name")]
    pub labels: Vec<LabelEntry>,
}

/// A label of a metric, and its values; none where they are not listed one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelEntry {
    pub name: &'static str,
    pub values: Vec<&'static str>,
}

fn by_name<S: serde::Serializer>(labels: &[LabelEntry], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().map(|label| (label.name, &label.values)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! family {
    ($( $(#[$doc:meta])* $family:ident of $inner:ident gives $single:ty; )*) => { $(
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $family<L>($inner, PhantomData<fn(L)>);

        impl<L: Labels> $family<L> {
            pub fn of(&self, labels: L) -> $single {
                labels.with(|values| self.0.with_label_values(values))
            }
        }
    )* };
}

family! {
    /// Counters, one for each combination of labels.
    Counters of IntCounterVec gives IntCounter;
    /// Gauges of whole numbers.
    Gauges of IntGaugeVec gives IntGauge;
    /// Gauges of seconds.
    FloatGauges of GaugeVec gives prometheus::Gauge;
    Histograms of HistogramVec gives Histogram;
}

impl<L: Labels> Gauges<L> {
    /// Forgets all series, so that a value that is no longer there is not shown for ever.
    pub fn reset(&self) {
        self.0.reset();
    }
}

/// Makes metrics, and enters each into the registry and the catalogue.
pub(super) struct Maker<'a> {
    pub registry: &'a Registry,
    pub prefix: &'static str,
    pub catalogue: Vec<Entry>,
}

impl Maker<'_> {
    fn add<M: Collector + Clone + 'static>(&mut self, made: prometheus::Result<M>) -> M {
        let metric = made.expect("names and labels are valid");
        self.registry.register(Box::new(metric.clone())).expect("names are unique");
        metric
    }

    fn enter<L: Labels>(&mut self, name: &str, kind: Kind, help: &str) {
        let labels = L::names().into_iter().zip(L::values());
        let labels = labels.map(|(name, values)| LabelEntry { name, values }).collect();
        self.enter_with(name, kind, help, labels);
    }

    fn enter_with(&mut self, name: &str, kind: Kind, help: &str, labels: Vec<LabelEntry>) {
        let name = format!("{}_{name}", self.prefix);
        let unit = unit_of(&name);
        self.catalogue.push(Entry { name, kind, unit, help: help.to_owned(), labels });
    }

    pub fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.enter_with(name, Kind::Counter, help, Vec::new());
        self.add(IntCounter::new(name, help))
    }

    pub fn counters<L: Labels>(&mut self, name: &str, help: &str) -> Counters<L> {
        self.enter::<L>(name, Kind::Counter, help);
        let family = self.add(IntCounterVec::new(Opts::new(name, help), &L::names()));
        combinations::<L>(MOST_COUNTERS, |values| drop(family.with_label_values(values)));
        Counters(family, PhantomData)
    }

    pub fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.enter_with(name, Kind::Gauge, help, Vec::new());
        self.add(IntGauge::new(name, help))
    }

    pub fn gauges<L: Labels>(&mut self, name: &str, help: &str) -> Gauges<L> {
        self.enter::<L>(name, Kind::Gauge, help);
        Gauges(self.add(IntGaugeVec::new(Opts::new(name, help), &L::names())), PhantomData)
    }

    pub fn float_gauge(&mut self, name: &str, help: &str) -> prometheus::Gauge {
        self.enter_with(name, Kind::Gauge, help, Vec::new());
        self.add(prometheus::Gauge::new(name, help))
    }

    pub fn float_gauges<L: Labels>(&mut self, name: &str, help: &str) -> FloatGauges<L> {
        self.enter::<L>(name, Kind::Gauge, help);
        FloatGauges(self.add(GaugeVec::new(Opts::new(name, help), &L::names())), PhantomData)
    }

    pub fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.enter_with(name, Kind::Histogram, help, Vec::new());
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    pub fn histograms<L: Labels>(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histograms<L> {
        self.enter::<L>(name, Kind::Histogram, help);
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let family = self.add(HistogramVec::new(options, &L::names()));
        combinations::<L>(MOST_HISTOGRAMS, |values| drop(family.with_label_values(values)));
        Histograms(family, PhantomData)
    }

    /// The version, whose label has one value in each process.
    pub fn build_info(&mut self, version: &str) {
        let help = "Version of this process, as a label; always 1.";
        let labels = vec![LabelEntry { name: "version", values: Vec::new() }];
        self.enter_with("build_info", Kind::Gauge, help, labels);
        let family = self.add(IntGaugeVec::new(Opts::new("build_info", help), &["version"]));
        family.with_label_values(&[version]).set(1);
    }
}

/// So many series are shown from the start, at zero: an increase from nothing to one is none to Prometheus.
const MOST_COUNTERS: usize = 100;
/// A histogram is many series.
const MOST_HISTOGRAMS: usize = 30;

/// Each combination of the labels' values, unless there are more than `most` or they are not listed.
fn combinations<L: Labels>(most: usize, mut each: impl FnMut(&[&str])) {
    let values = L::values();
    if values.iter().any(Vec::is_empty) || values.iter().map(Vec::len).product::<usize>() > most {
        return;
    }
    let none: Vec<Vec<&'static str>> = vec![Vec::new()];
    let all = values.iter().fold(none, |begun, values| {
        let with = |begun: &Vec<&'static str>| {
            let begun = begun.clone();
            values.iter().map(move |value| [begun.as_slice(), &[*value]].concat())
        };
        begun.iter().flat_map(with).collect()
    });
    all.iter().for_each(|values| each(values));
}

/// The unit that a name ends with.
pub(super) fn unit_of(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    if name.ends_with("_seconds") {
        "seconds"
    } else if name.ends_with("_bytes") {
        "bytes"
    } else {
        "1"
    }
}
