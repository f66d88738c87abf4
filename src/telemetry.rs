//! Logs to stderr, and traces to an OTLP collector.
//!
//! **An interaction's trace has the interaction's id.** Both have 128 bits, so router, relay, the workers of both sides
//! and the runner name the same trace without telling each other, also after a crash, and whoever has the id of an
//! interaction finds its trace. Its root is the enqueue that pinned it, whose span id derives from the id as well. The
//! request that brought it is another trace (the caller's, if it sent a `traceparent`), linked from the root.
//!
//! Spans are handed to a bounded queue and sent in batches by a thread of their own; nothing waits for a collector.

mod ids;

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter};
use prometheus::{IntCounterVec, Opts};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::prelude::*;
use uuid::Uuid;

use crate::config::Config;
use ids::{ById, Ids};

type Broken = Box<dyn std::error::Error + Send + Sync>;

/// So many spans wait to be sent; further ones are dropped.
const QUEUE: usize = 8_192;
/// A batch is sent so often, or when it is full.
const EVERY: Duration = Duration::from_secs(1);
/// A collector that takes longer doesn't take the batch.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);
/// At the end, what waits may take so long.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Spans by what became of them, for the metrics of this process.
static SPANS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Spans handed to the OTLP collector, by outcome: sent, or lost because it did not take them. Those that found no room in the queue are not counted; the log names them.";
    let spans = IntCounterVec::new(Opts::new("crossover_spans_total", help), &["outcome"]);
    spans.expect("a name and a label that Prometheus takes")
});

/// The counter of spans by outcome.
pub fn spans() -> IntCounterVec {
    SPANS.clone()
}

/// Logs, and traces where they are configured. Traces end with [`Telemetry::stop`].
#[must_use = "what was not sent yet is lost without `stop`"]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Sets both up for the whole process, once.
pub fn start(config: &Config) -> Result<Telemetry, Broken> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.filter)
        .map_err(|error| format!("log.filter: {error}; write it like \"info\" or \"info,crossover::queue=debug\""))?;
    let provider = provider(config)?;
    // Our own spans, and no log lines, which may say more than a collector should know. The filter is asked each time:
    // with one whose answer is kept by callsite, spans after a log line were lost to this layer.
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("crossover"))
            // Otherwise a span would begin, and have its place in its trace settled, when it is first entered.
            .with_context_activation(false)
            .with_location(false)
            .with_threads(false)
            .with_filter(dynamic_filter_fn(|of, _| of.is_span() && of.target().starts_with("crossover")))
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let subscriber = tracing_subscriber::registry().with(traces);
    match config.log.json {
        true => subscriber.with(lines.json().with_filter(filter)).try_init()?,
        false => subscriber.with(lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter)).try_init()?,
    }
    Ok(Telemetry(provider))
}

fn provider(config: &Config) -> Result<Option<SdkTracerProvider>, Broken> {
    let Some(endpoint) = &config.telemetry.otlp_endpoint else { return Ok(None) };
    let exporter = Otlp::builder().with_tonic().with_endpoint(endpoint.expose()).with_timeout(EXPORT_WITHIN).build();
    let exporter = exporter.map_err(|error| format!("telemetry.otlp_endpoint can't be used: {error}"))?;
    let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(EVERY).build();
    let processor = BatchSpanProcessor::builder(Counted(exporter)).with_batch_config(batches).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(ById { percent: config.telemetry.sample_percent })
        .with_id_generator(Ids::default())
        .with_resource(Resource::builder().with_service_name("crossover").build());
    Ok(Some(provider.build()))
}

impl Telemetry {
    /// Sends what waits, within a bound.
    pub async fn stop(self) {
        let Some(provider) = self.0 else { return };
        let stopped = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_WORDS)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last spans may not have reached the collector");
        }
    }
}

/// Counts what the collector took.
#[derive(Debug)]
struct Counted(Otlp);

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.0.export(batch).await;
        SPANS.with_label_values(&[if sent.is_ok() { "sent" } else { "lost" }]).inc_by(spans);
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Makes `span` the root of the trace of `id`, which every further span of it names as its parent.
pub fn begin(span: &Span, id: Uuid) {
    if span.is_disabled() {
        return;
    }
    place(span, id, SpanId::INVALID);
    ids::with_span_id(root(id), || drop(span.context()));
}

/// Puts `span` into the trace of `id`.
pub fn join(span: &Span, id: Uuid) {
    if span.is_disabled() {
        return;
    }
    place(span, id, root(id));
}

fn place(span: &Span, id: Uuid, parent: SpanId) {
    let trace = TraceId::from_bytes(id.into_bytes());
    let above = SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, TraceState::default());
    // Without a collector there is nothing to place.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(above));
}

/// Links `span` to the trace in which this was asked for.
pub fn link(span: &Span, asked_in: &Span) {
    span.add_link(asked_in.context().span().span_context().clone());
}

/// Makes `span` part of the caller's trace, if its headers name one (W3C Trace Context).
pub fn follow(span: &Span, headers: &axum::http::HeaderMap) {
    let above = TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), &Headers(headers));
    if above.span().span_context().is_valid() {
        let _ = span.set_parent(above);
    }
}

/// The `traceparent` for a call made in `span` on behalf of `id`. Without a collector of ours it still names the trace,
/// so that the runner's own log lines can be found by the interaction's id.
pub fn traceparent(span: &Span, id: Uuid) -> String {
    let context = span.context();
    let of = context.span().span_context().clone();
    match of.is_valid() {
        true => format!("00-{}-{}-{:02x}", of.trace_id(), of.span_id(), of.trace_flags().to_u8()),
        false => format!("00-{}-{}-00", id.simple(), root(id)),
    }
}

/// The span id of an interaction's root.
fn root(id: Uuid) -> SpanId {
    SpanId::from_bytes(ids::derived(id))
}

struct Headers<'a>(&'a axum::http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok()).filter(|value| value.len() <= 512)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::interaction_id;

    #[test]
    fn without_a_collector_a_call_still_names_the_trace_of_its_interaction() {
        let id = interaction_id("a", "k");
        let named = traceparent(&Span::none(), id);
        assert_eq!(named, format!("00-9a2a77afb0d58c76864e852f250f1799-{}-00", root(id)));
        assert_eq!(named.len(), 55);
    }
}
