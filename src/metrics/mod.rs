//! Prometheus metrics: one struct with everything that is counted, its text forms, and its catalogue.
//!
//! Labels are closed lists with a type each ([`labels`]); nothing in them grows with the number of tenants.
//! What is counted is entered into the [catalogue](Metrics::catalogue) as it is made, so that the two cannot
//! differ.

mod family;
mod guide;
mod labels;
mod text;

pub use family::{Counters, Entry, FloatGauges, Gauges, Histograms, Kind, LabelEntry};
pub use guide::{Described, GuideFormat, describe, guide};
pub use labels::{
    BreakerState, CallEnd, Differing, HttpMethod, Label, Labels, MongoCommand, Operation, PanicPlace,
    ReadyStatus, ReconcileEnd, Refusal, Route, StatusCode, StepEnd, WatchEnd, Worked,
};
pub use text::Format;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry};

use self::family::{Maker, unit_of};
use crate::tenant::{ActKind, Phase, Reason, StepState, SweepEnd, Upstream, Urgency};

/// Every metric of the process. Shared by reference; each field is cheap to update from anywhere.
pub struct Metrics {
    registry: Registry,
    /// The process collector's names are fixed by convention, and take no prefix.
    process: Registry,
    catalogue: Vec<Entry>,

    pub reconciles: Counters<ReconcileEnd>,
    pub reconcile_seconds: Histogram,
    pub step_seconds: Histograms<(Upstream, StepEnd)>,
    pub step_errors: Counters<(Upstream, Reason)>,
    pub backoff_seconds: Histograms<Upstream>,
    pub acts: Counters<(Upstream, ActKind)>,
    pub claims_lost: IntCounter,
    pub leases_taken_over: IntCounter,
    pub panics: Counters<PanicPlace>,

    pub time_to_active_seconds: Histogram,
    pub time_to_ready_seconds: Histogram,
    pub time_to_delete_seconds: Histogram,

    pub tenants: Gauges<Phase>,
    pub tenants_by_ready: Gauges<(ReadyStatus, Reason)>,
    pub tenants_failing_long: IntGauge,
    pub tenants_due: IntGauge,
    pub oldest_due_age_seconds: Gauge,
    pub steps: Gauges<(Upstream, StepState)>,
    pub invalid_documents: IntCounter,
    pub vanished: IntCounter,

    pub upstream_seconds: Histograms<(Upstream, Operation, CallEnd)>,
    pub integration_healthy: Gauges<Upstream>,
    pub integration_lacks: Gauges<Upstream>,
    pub upstream_down: Gauges<Upstream>,
    pub breaker_state: Gauges<(Upstream, BreakerState)>,
    pub upstream_not_configured: Gauges<Upstream>,
    pub token_refreshes: Counters<(Upstream, Worked)>,
    pub unreadable: Counters<Upstream>,
    pub twins_disabled: IntCounter,

    pub stopped: Gauges<Upstream>,
    pub guard_tripped: Gauges<Upstream>,
    pub repairs_refused: Counters<Upstream>,

    pub sweeps: Counters<(Upstream, SweepEnd)>,
    pub sweep_seconds: Histograms<Upstream>,
    pub sweep_last_success: FloatGauges<Upstream>,
    pub sweep_seen: Gauges<Upstream>,
    pub drift_found: Counters<(Upstream, Differing)>,
    pub drift_age_seconds: Histograms<Upstream>,
    pub orphans: Gauges<Upstream>,
    pub foreign_marks: Gauges<Upstream>,

    pub queue_depth: Gauges<Urgency>,
    pub queue_oldest_seconds: FloatGauges<Urgency>,
    pub queue_wait_seconds: Histograms<Urgency>,
    pub queue_overflows: IntCounter,
    pub workers: IntGauge,
    pub workers_busy: IntGauge,

    pub watch_open: IntGauge,
    pub watch_lag_seconds: Gauge,
    pub watch_events: IntCounter,
    pub watch_restarts: Counters<WatchEnd>,
    pub relists: IntCounter,
    pub events_dropped: IntCounter,

    pub mongodb_up: IntGauge,
    pub mongodb_commands: Counters<MongoCommand>,
    pub mongodb_seconds: Histograms<(MongoCommand, Worked)>,

    pub http_seconds: Histograms<(Route, HttpMethod, StatusCode)>,
    pub http_refusals: Counters<Refusal>,
    pub jwks_refreshes: Counters<Worked>,
}

/// From a command on loopback to a request's usual time limit.
const REQUEST_BUCKETS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From "at once" to "after an outage".
const WAIT_BUCKETS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0];
/// From a tenant that nothing holds up to one that an outage did; with a bound at the objective.
const TENANT_BUCKETS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0];
/// From a minute to a week.
const AGE_BUCKETS: &[f64] =
    &[60.0, 300.0, 900.0, 3600.0, 10800.0, 21600.0, 43200.0, 86400.0, 259_200.0, 604_800.0];

impl Metrics {
    /// # Panics
    /// When two metrics have the same name, which any start would show.
    #[must_use]
    pub fn new() -> Self {
        const PREFIX: &str = "tenantry";
        let registry =
            Registry::new_custom(Some(PREFIX.into()), None).expect("a prefix without labels is valid");
        let process = Registry::new();
        process
            .register(Box::new(ProcessCollector::for_self()))
            .expect("the only collector of its registry");

        let mut make = Maker { registry: &registry, prefix: PREFIX, catalogue: Vec::new() };
        make.build_info(env!("CARGO_PKG_VERSION"));
        let mut metrics = Self {
            reconciles: make.counters("reconciles_total", "Claims of tenants by how they ended."),
            reconcile_seconds: make.histogram(
                "reconcile_duration_seconds",
                "Time from claim to commit.",
                REQUEST_BUCKETS,
            ),
            step_seconds: make.histograms(
                "step_duration_seconds",
                "Time that a run of a step took.",
                REQUEST_BUCKETS,
            ),
            step_errors: make.counters("step_errors_total", "Failed runs of a step by reason."),
            backoff_seconds: make.histograms(
                "backoff_delay_seconds",
                "Delay until a failed step is tried again.",
                WAIT_BUCKETS,
            ),
            acts: make.counters("acts_total", "What reconciles did to resources in upstreams."),
            claims_lost: make.counter(
                "claims_lost_total",
                "Reconciles whose lease went to another process before they could commit.",
            ),
            leases_taken_over: make.counter(
                "leases_taken_over_total",
                "Claims of a tenant whose last reconcile never came to its end, as after a crash.",
            ),
            panics: make.counters("panics_total", "Panics that were caught; each is a fault of the program."),

            time_to_active_seconds: make.histogram(
                "time_to_active_seconds",
                "Time from a tenant's creation until it was active.",
                TENANT_BUCKETS,
            ),
            time_to_ready_seconds: make.histogram(
                "time_to_ready_seconds",
                "Time from an edit through the API until the tenant was ready again.",
                TENANT_BUCKETS,
            ),
            time_to_delete_seconds: make.histogram(
                "time_to_delete_seconds",
                "Time from the request for a tenant's deletion until it was gone.",
                TENANT_BUCKETS,
            ),

            tenants: make.gauges("tenants", "Tenants by status, as the latest census counted them."),
            tenants_by_ready: make.gauges(
                "tenants_by_ready",
                "Tenants by their condition Ready and its reason, as the latest census counted them.",
            ),
            tenants_failing_long: make.gauge(
                "tenants_failing_long",
                "Tenants not ready for longer than 15 minutes, but for those that people hold or delete.",
            ),
            tenants_due: make.gauge(
                "tenants_due",
                "Tenants whose time for a reconcile has come, as the latest census counted them.",
            ),
            oldest_due_age_seconds: make.float_gauge(
                "oldest_due_age_seconds",
                "How long the tenant that is due the longest has been due, as the latest census saw it.",
            ),
            steps: make.gauges("steps", "Steps by state, as the latest census counted them."),
            invalid_documents: make
                .counter("invalid_documents_total", "Documents that were found to be no valid tenant."),
            vanished: make
                .counter("vanished_total", "Tenants whose documents were deleted, and not by tenantry."),

            upstream_seconds: make.histograms(
                "upstream_request_duration_seconds",
                "Requests to upstreams; the status is a code, or what kept the request from having one.",
                REQUEST_BUCKETS,
            ),
            integration_healthy: make.gauges(
                "integration_healthy",
                "1 while the upstream accepts our credentials and address, 0 while it does not.",
            ),
            integration_lacks: make.gauges(
                "integration_missing_permissions",
                "Permissions that our account in the upstream lacks.",
            ),
            upstream_down: make.gauges(
                "upstream_down",
                "1 while the upstream is taken to be down, or its refusal is doubted, and its steps wait.",
            ),
            breaker_state: make.gauges(
                "breaker_state",
                "1 for the state that the breaker of the upstream is in, 0 for the others.",
            ),
            upstream_not_configured: make.gauges(
                "upstream_not_configured",
                "1 while the fleet has the upstream and this process lacks its setting.",
            ),
            token_refreshes: make
                .counters("token_refreshes_total", "Access tokens that were asked for, for an upstream."),
            unreadable: make.counters(
                "unreadable_elements_total",
                "Elements of an upstream's lists that could not be understood.",
            ),
            twins_disabled: make.counter(
                "twins_disabled_total",
                "Second spaces that a request applied late had made, and that were disabled.",
            ),

            stopped: make.gauges("stopped", "1 while people have stopped the upstream."),
            guard_tripped: make.gauges(
                "guard_tripped",
                "1 while more has changed in the upstream at once than is believed, and repairs rest.",
            ),
            repairs_refused: make.counters(
                "repairs_refused_total",
                "Repairs that were not made because too much had changed at once.",
            ),

            sweeps: make.counters("sweeps_total", "Sweeps of an upstream by how they ended."),
            sweep_seconds: make.histograms(
                "sweep_duration_seconds",
                "Time that listing an upstream and comparing it took.",
                WAIT_BUCKETS,
            ),
            sweep_last_success: make.float_gauges(
                "sweep_last_success_timestamp_seconds",
                "When a sweep of the upstream last ended well, by any process; seconds since 1970.",
            ),
            sweep_seen: make
                .gauges("sweep_seen", "Resources that the current or latest sweep has seen."),
            drift_found: make.counters(
                "drift_found_total",
                "Differences that sweeps found; a tenant that differs in two ways counts in both.",
            ),
            drift_age_seconds: make.histograms(
                "drift_age_seconds",
                "When drift was found: time since the resource was last seen as it should be.",
                AGE_BUCKETS,
            ),
            orphans: make.gauges("orphans", "Resources that are marked for tenants that do not exist."),
            foreign_marks: make.gauges(
                "foreign_marks",
                "Resources that are marked as another fleet's, as the latest sweep saw them.",
            ),

            queue_depth: make.gauges("queue_depth", "Tenants that wait for a worker."),
            queue_oldest_seconds: make.float_gauges(
                "queue_oldest_age_seconds",
                "How long the first tenant in line has waited.",
            ),
            queue_wait_seconds: make.histograms(
                "queue_wait_seconds",
                "Time that a tenant waited for a worker.",
                WAIT_BUCKETS,
            ),
            queue_overflows: make.counter(
                "queue_overflows_total",
                "Times that hints found the queue full; the database is asked for their tenants later.",
            ),
            workers: make.gauge("workers", "Reconciles that may run at once."),
            workers_busy: make.gauge("workers_busy", "Reconciles that run now."),

            watch_open: make.gauge("watch_open", "1 while a change stream is open."),
            watch_lag_seconds: make
                .float_gauge("watch_lag_seconds", "Age of the latest event when it was read."),
            watch_events: make.counter("watch_events_total", "Events that the change stream brought."),
            watch_restarts: make
                .counters("watch_restarts_total", "Change streams that had to be opened again."),
            relists: make.counter(
                "relists_total",
                "Times the database was asked for what the change stream may have missed.",
            ),
            events_dropped: make
                .counter("events_dropped_total", "Events that found the queue of the histories full."),

            mongodb_up: make
                .gauge("mongodb_up", "1 while a server of the database is known that takes writes."),
            mongodb_commands: make.counters("mongodb_commands_total", "Commands sent to MongoDB."),
            mongodb_seconds: make.histograms(
                "mongodb_command_duration_seconds",
                "Commands that MongoDB answered.",
                REQUEST_BUCKETS,
            ),

            http_seconds: make.histograms(
                "http_request_duration_seconds",
                "Requests to the API; the route is its path in the description of the API.",
                REQUEST_BUCKETS,
            ),
            http_refusals: make.counters(
                "http_refusals_total",
                "Requests to the API that were refused before anything was done.",
            ),
            jwks_refreshes: make
                .counters("jwks_refreshes_total", "Times an issuer was asked for its keys."),

            catalogue: std::mem::take(&mut make.catalogue),
            registry: registry.clone(),
            process,
        };
        metrics.enter_process();
        metrics
    }

    /// What the process collector shows, as it describes it.
    fn enter_process(&mut self) {
        let families = self.process.gather();
        self.catalogue.extend(families.iter().map(|family| Entry {
            name: family.name().to_owned(),
            kind: match family.get_field_type() {
                prometheus::proto::MetricType::COUNTER => Kind::Counter,
                _ => Kind::Gauge,
            },
            unit: unit_of(family.name()),
            help: format!("{}.", family.help().trim_end_matches('.')),
            labels: Vec::new(),
        }));
    }

    /// Every metric that a process shows, in the order in which people read them.
    pub fn catalogue(&self) -> &[Entry] {
        &self.catalogue
    }

    /// The metrics in Prometheus' own text format.
    pub fn render(&self) -> String {
        self.render_as(Format::Prometheus)
    }

    /// The metrics in one of the formats that scrapers ask for.
    pub fn render_as(&self, format: Format) -> String {
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        format.encode(&families)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
