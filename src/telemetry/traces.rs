//! Traces over OTLP/HTTP: one from a request to the API, through what it stored, to the reconcile that acts on it,
//! and each request to an upstream and operation of the database on the way.
//!
//! Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set. The SDK reads the standard `OTEL_*` variables itself. A span of
//! `tracing` becomes one of a trace whatever `LOG_LEVEL` says; while traces are off it costs nothing.

use std::collections::HashMap;
use std::env;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// How long the last spans of a process may take to be sent.
pub const TRACES_END: Duration = Duration::from_secs(2);

/// The header and field in which a trace is handed on (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// Where traces go. Kept until the process ends.
pub struct Traces(SdkTracerProvider);

/// Why traces cannot be sent as the environment asks.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error(
        "{0} is {1:?}, and tenantry sends traces by http/protobuf only; leave it out, and give the collector's address \
         for HTTP (port 4318, most often) as OTEL_EXPORTER_OTLP_ENDPOINT"
    )]
    Protocol(&'static str, String),
    #[error("traces cannot be sent to OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Exporter(String),
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

impl Traces {
    /// What the environment asks for; nothing if it asks for no traces. Must be called within the runtime, whose
    /// `client` sends them.
    ///
    /// # Errors
    /// When it asks for what is not supported.
    pub fn start(client: reqwest::Client) -> Result<Option<Self>, TracesError> {
        let endpoints = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let wanted = endpoints.iter().any(|name| variable(name).is_some())
            && variable("OTEL_SDK_DISABLED")
                .is_none_or(|disabled| !disabled.eq_ignore_ascii_case("true"))
            && variable("OTEL_TRACES_EXPORTER").is_none_or(|exporter| exporter != "none");
        if !wanted {
            return Ok(None);
        }
        for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
            if let Some(other) = variable(name).filter(|protocol| protocol != "http/protobuf") {
                return Err(TracesError::Protocol(name, other));
            }
        }
        let client = Sender { client, runtime: Handle::current(), failing: AtomicBool::new(false) };
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build();
        let exporter = exporter.map_err(|error| TracesError::Exporter(error.to_string()))?;
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_attribute(version);
        let is_named = variable("OTEL_SERVICE_NAME").is_some()
            || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|these| these.contains("service.name="));
        let resource = if is_named { resource } else { resource.with_service_name("tenantry") };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Some(Self(provider)))
    }

    /// Sends what is left, for no longer than `limit`.
    pub async fn end(self, limit: Duration) {
        // It waits for its own thread, which needs this one's runtime.
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(limit)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("tenantry"));
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("tenantry"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    }
}

/// Sends with the client that everything else is sent with: its roots, its proxies.
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    /// Whether the latest one was not taken.
    failing: AtomicBool,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        // The caller's thread has no runtime.
        let sent = self.runtime.spawn(async move {
            let request = reqwest::Request::try_from(request)?;
            let response = client.execute(request).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let mut answer = Response::new(response.bytes().await?);
            *answer.status_mut() = status;
            *answer.headers_mut() = headers;
            Ok::<_, reqwest::Error>(answer)
        });
        let sent = sent.await.map_err(HttpError::from).and_then(|sent| sent.map_err(HttpError::from));
        let why = match &sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        // Once, and again when it works.
        match (why, self.failing.load(Ordering::Relaxed)) {
            (Some(why), false) => {
                self.failing.store(true, Ordering::Relaxed);
                tracing::warn!(
                    "traces cannot be sent to OTEL_EXPORTER_OTLP_ENDPOINT and are dropped: {why}"
                );
            }
            (None, true) => {
                self.failing.store(false, Ordering::Relaxed);
                tracing::info!("traces are sent again");
            }
            _ => {}
        }
        sent
    }
}

/// What hands the trace of the current span on; nothing if there is none that is recorded.
pub fn traceparent() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid()
        .then(|| format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()))
}

/// Makes a span that has not begun yet part of the trace that was handed on; one that cannot be read is none.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    let Some(traceparent) = traceparent else { return };
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    if context.span().span_context().is_valid() {
        // Without traces there is nothing to be part of.
        let _ = span.set_parent(context);
    }
}

/// Notes in a span's field `trace_id` which trace it belongs to, so that log lines say it.
pub fn note_trace(span: &Span) {
    let context = span.context();
    let of_span = context.span();
    let of_span = of_span.span_context();
    if of_span.is_valid() {
        span.record("trace_id", tracing::field::display(of_span.trace_id()));
    }
}
