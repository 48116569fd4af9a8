//! Prometheus metrics: one struct with everything that is counted, and its text form.
//!
//! Labels are closed sets (upstreams, states, reasons, operations, statuses); nothing in them grows
//! with the number of tenants.

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Every metric of the process. Shared by reference; each field is cheap to update from anywhere.
pub struct Metrics {
    registry: Registry,
    /// The process collector's names are fixed by convention, and take no prefix.
    process: Registry,
    /// Reconciles by `result`: ok, error, interrupted, not_due, invalid, fenced, abandoned, unavailable.
    pub reconciles: IntCounterVec,
    pub reconcile_seconds: Histogram,
    /// Runs of a step by `upstream` and `outcome` (ok, skipped, held, paced, observed, error).
    pub step_seconds: HistogramVec,
    /// Requests by `upstream`, `operation` and `status` (a code, or what kept it from being one).
    pub upstream_seconds: HistogramVec,
    /// Failed runs of a step by `upstream` and `reason`.
    pub step_errors: IntCounterVec,
    /// Delays until a failed step is tried again, by `upstream`.
    pub backoff_seconds: HistogramVec,
    /// 1 while an upstream accepts our credentials and address, 0 while it does not.
    pub integration_healthy: IntGaugeVec,
    /// Permissions that our account in an `upstream` lacks.
    pub integration_lacks: IntGaugeVec,
    /// Second spaces of a tenant that were found and disabled.
    pub twins_disabled: IntCounter,
    /// 1 while an `upstream` is taken to be down, or its refusal is doubted, and only checks go to it.
    pub upstream_down: IntGaugeVec,
    /// 1 while the fleet has an `upstream` whose setting this process lacks.
    pub upstream_not_configured: IntGaugeVec,
    /// Changes of resources by reconciles, by `upstream` and `act`: created, adopted, repaired, deleted, ….
    pub acts: IntCounterVec,
    /// Events that could not be written to the tenants' histories in time.
    pub events_dropped: IntCounter,
    /// 1 while people have stopped an `upstream`.
    pub stopped: IntGaugeVec,
    /// 1 while an `upstream`'s change guard has tripped.
    pub guard_tripped: IntGaugeVec,
    /// Repairs that were not made, because so much had changed in the `upstream` at once.
    pub repairs_refused: IntCounterVec,
    /// Sweeps of an `upstream` by `result`: ok, failed, refused.
    pub sweeps: IntCounterVec,
    pub sweep_seconds: HistogramVec,
    /// Resources that the current or latest sweep of an `upstream` has seen.
    pub sweep_seen: IntGaugeVec,
    /// Tenants that sweeps flagged, by `upstream` and what `differs`.
    pub drift_found: IntCounterVec,
    /// Elements of an `upstream`'s lists that could not be understood.
    pub unreadable: IntCounterVec,
    /// Resources marked for tenants that do not exist, by `upstream`.
    pub orphans: IntGaugeVec,
    /// Resources that are marked as another fleet's, as the latest sweep saw them, by `upstream`.
    pub foreign_marks: IntGaugeVec,
    pub queue_depth: IntGaugeVec,
    pub queue_oldest_seconds: GaugeVec,
    /// Times that hints found the queue full; the database is asked for their tenants later.
    pub queue_overflows: IntCounter,
    pub workers: IntGauge,
    pub workers_busy: IntGauge,
    pub claims_lost: IntCounter,
    pub time_to_active_seconds: Histogram,
    /// Steps by `upstream` and `state` over the fleet.
    pub steps: IntGaugeVec,
    /// Tenants by `status` over the fleet.
    pub tenants: IntGaugeVec,
    pub invalid_documents: IntCounter,
    pub vanished: IntCounter,
    pub watch_restarts: IntCounterVec,
    pub watch_open: IntGauge,
    pub watch_lag_seconds: Gauge,
    pub relists: IntCounter,
    pub mongodb_commands: IntCounterVec,
}

/// From a loopback round trip to a request's usual time limit.
const REQUEST_BUCKETS: &[f64] =
    &[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From "at once" to "after an outage".
const WAIT_BUCKETS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0];

impl Metrics {
    /// # Panics
    /// When two metrics have the same name, which any start would show.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new_custom(Some("tenantry".into()), None)
            .expect("a prefix without labels is valid");
        let process = Registry::new();
        process
            .register(Box::new(ProcessCollector::for_self()))
            .expect("the only collector of its registry");

        let add = Adder(&registry);
        let build = add.gauges("build_info", "Version of this process.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            reconciles: add.counters("reconciles_total", "Reconciles by result.", &["result"]),
            reconcile_seconds: add.histogram(
                "reconcile_duration_seconds",
                "Time from claim to commit.",
                REQUEST_BUCKETS,
            ),
            step_seconds: add.histograms(
                "step_duration_seconds",
                "Time that a run of a step took.",
                &["upstream", "outcome"],
                REQUEST_BUCKETS,
            ),
            upstream_seconds: add.histograms(
                "upstream_request_duration_seconds",
                "Requests to upstreams.",
                &["upstream", "operation", "status"],
                REQUEST_BUCKETS,
            ),
            step_errors: add.counters(
                "step_errors_total",
                "Failed runs of a step.",
                &["upstream", "reason"],
            ),
            backoff_seconds: add.histograms(
                "backoff_delay_seconds",
                "Delay until a failed step is tried again.",
                &["upstream"],
                WAIT_BUCKETS,
            ),
            integration_healthy: add.gauges(
                "integration_healthy",
                "1 while the upstream accepts our credentials and address, 0 while it does not.",
                &["upstream"],
            ),
            integration_lacks: add.gauges(
                "integration_missing_permissions",
                "Permissions that our account in the upstream lacks.",
                &["upstream"],
            ),
            twins_disabled: add.counter(
                "twins_disabled_total",
                "Second spaces that a request applied late had made, and that were disabled.",
            ),
            upstream_down: add.gauges(
                "upstream_down",
                "1 while the upstream is taken to be down, or its refusal is doubted, and its steps wait.",
                &["upstream"],
            ),
            upstream_not_configured: add.gauges(
                "upstream_not_configured",
                "1 while the fleet has the upstream and this process lacks its setting.",
                &["upstream"],
            ),
            acts: add.counters(
                "acts_total",
                "Changes of resources by reconciles: created, recreated, adopted, repaired, released, ….",
                &["upstream", "act"],
            ),
            events_dropped: add
                .counter("events_dropped_total", "Events that found the queue of the histories full."),
            stopped: add.gauges("stopped", "1 while people have stopped the upstream.", &["upstream"]),
            guard_tripped: add.gauges(
                "guard_tripped",
                "1 while more has changed in the upstream at once than is believed, and repairs rest.",
                &["upstream"],
            ),
            repairs_refused: add.counters(
                "repairs_refused_total",
                "Repairs that were not made because too much had changed at once.",
                &["upstream"],
            ),
            sweeps: add.counters("sweeps_total", "Sweeps of an upstream.", &["upstream", "result"]),
            sweep_seconds: add.histograms(
                "sweep_duration_seconds",
                "Time that listing an upstream and comparing it took.",
                &["upstream"],
                WAIT_BUCKETS,
            ),
            sweep_seen: add.gauges(
                "sweep_seen",
                "Resources that the current or latest sweep has seen.",
                &["upstream"],
            ),
            drift_found: add.counters(
                "drift_found_total",
                "Tenants that sweeps found to differ from their upstream.",
                &["upstream", "differs"],
            ),
            unreadable: add.counters(
                "unreadable_elements_total",
                "Elements of an upstream's lists that could not be understood.",
                &["upstream"],
            ),
            foreign_marks: add.gauges(
                "foreign_marks",
                "Resources that are marked as another fleet's, as the latest sweep saw them.",
                &["upstream"],
            ),
            orphans: add.gauges(
                "orphans",
                "Resources that are marked for tenants that do not exist.",
                &["upstream"],
            ),
            queue_depth: add.gauges("queue_depth", "Tenants that wait for a worker.", &["priority"]),
            queue_oldest_seconds: add.float_gauges(
                "queue_oldest_age_seconds",
                "How long the first tenant in line has waited.",
                &["priority"],
            ),
            queue_overflows: add.counter(
                "queue_overflows_total",
                "Times that hints found the queue full; the database is asked for their tenants later.",
            ),
            workers: add.gauge("workers", "Reconciles that may run at once."),
            workers_busy: add.gauge("workers_busy", "Reconciles that run now."),
            claims_lost: add.counter(
                "claims_lost_total",
                "Reconciles whose lease went to somebody else before they could commit.",
            ),
            time_to_active_seconds: add.histogram(
                "time_to_active_seconds",
                "Time from a tenant's creation until it was active.",
                WAIT_BUCKETS,
            ),
            steps: add.gauges("steps", "Steps by state.", &["upstream", "state"]),
            tenants: add.gauges("tenants", "Tenants by status.", &["status"]),
            vanished: add
                .counter("vanished_total", "Tenants whose documents were deleted, and not by tenantry."),
            invalid_documents: add
                .counter("invalid_documents_total", "Documents found to make no sense as a tenant."),
            watch_restarts: add.counters(
                "watch_restarts_total",
                "Change streams that had to be opened again.",
                &["cause"],
            ),
            watch_open: add.gauge("watch_open", "1 while a change stream is open."),
            watch_lag_seconds: add
                .float_gauge("watch_lag_seconds", "Age of the latest event when it was read."),
            relists: add.counter(
                "relists_total",
                "Times the database was asked for what the change stream may have missed.",
            ),
            mongodb_commands: add.counters(
                "mongodb_commands_total",
                "Commands sent to MongoDB.",
                &["command"],
            ),
            registry: registry.clone(),
            process,
        }
    }

    /// The metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        let mut text = Vec::new();
        match TextEncoder::new().encode(&families, &mut text) {
            Ok(()) => String::from_utf8(text).unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "cannot encode the metrics");
                String::new()
            }
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

struct Adder<'a>(&'a Registry);

impl Adder<'_> {
    fn add<M: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<M>) -> M {
        let metric = made.expect("names and labels are valid");
        self.0.register(Box::new(metric.clone())).expect("names are unique");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(options, labels))
    }
}
