//! Leads what the Temporal SDK measures into our own metrics, so that `/metrics` shows one process once. The SDK's own
//! exporter would need a listener of its own. What [`TemporalMetrics`] does not know is not measured.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};
use temporalio_common::telemetry::metrics::{
    CoreMeter, Counter, CounterBase, Gauge, GaugeBase, GaugeF64, Histogram, HistogramDuration, HistogramDurationBase,
    HistogramF64, MetricAttributable, MetricAttributes, MetricParameters, NewAttributes, TemporalMeter, UpDownCounter,
};
use temporalio_common::telemetry::{TaskQueueLabelStrategy, TelemetryOptions};

use crate::metrics::{Metrics, TemporalMetrics};

/// For a client's connection.
pub(super) fn meter(metrics: &Arc<Metrics>) -> TemporalMeter {
    TemporalMeter::new(Arc::new(Meter(metrics.clone())), NewAttributes::default(), TaskQueueLabelStrategy::UseNormal)
}

/// For a worker's runtime.
pub(super) fn telemetry(metrics: &Arc<Metrics>) -> TelemetryOptions {
    let meter: Arc<dyn CoreMeter> = Arc::new(Meter(metrics.clone()));
    TelemetryOptions::builder().metrics(meter).metric_prefix(String::new()).attach_service_name(false).build()
}

struct Meter(Arc<Metrics>);

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}

impl Meter {
    fn known(&self) -> &TemporalMetrics {
        &self.0.temporal
    }
}

type Labels = HashMap<String, String>;

fn labels_of(attributes: &MetricAttributes) -> Option<&Labels> {
    // The plainest of the SDK's kinds: a map. Its heartbeats read it too.
    if let MetricAttributes::NoOp(labels) = attributes { Some(labels) } else { None }
}

impl CoreMeter for Meter {
    fn new_attributes(&self, new: NewAttributes) -> MetricAttributes {
        MetricAttributes::NoOp(Arc::new(new.into()))
    }

    fn extend_attributes(&self, existing: MetricAttributes, new: NewAttributes) -> MetricAttributes {
        let mut labels = labels_of(&existing).cloned().unwrap_or_default();
        labels.extend(Labels::from(new));
        MetricAttributes::NoOp(Arc::new(labels))
    }

    fn counter(&self, params: MetricParameters) -> Counter {
        match self.known().counters.get(&*params.name) {
            Some((metric, names)) => Counter::new(Arc::new(Labelled(metric.clone(), names))),
            None => TemporalMeter::no_op().counter(params),
        }
    }

    fn gauge(&self, params: MetricParameters) -> Gauge {
        match self.known().gauges.get(&*params.name) {
            Some((metric, names)) => Gauge::new(Arc::new(Labelled(metric.clone(), names))),
            None => TemporalMeter::no_op().gauge(params),
        }
    }

    fn histogram_duration(&self, params: MetricParameters) -> HistogramDuration {
        match self.known().histograms.get(&*params.name) {
            Some((metric, names)) => HistogramDuration::new(Arc::new(Labelled(metric.clone(), names))),
            None => TemporalMeter::no_op().histogram_duration(params),
        }
    }

    // The SDK itself uses none of these.

    fn histogram(&self, params: MetricParameters) -> Histogram {
        TemporalMeter::no_op().histogram(params)
    }

    fn histogram_f64(&self, params: MetricParameters) -> HistogramF64 {
        TemporalMeter::no_op().histogram_f64(params)
    }

    fn gauge_f64(&self, params: MetricParameters) -> GaugeF64 {
        TemporalMeter::no_op().gauge_f64(params)
    }

    fn up_down_counter(&self, params: MetricParameters) -> UpDownCounter {
        TemporalMeter::no_op().up_down_counter(params)
    }
}

/// A metric and the labels that it has; the SDK's others are left out.
struct Labelled<T>(T, &'static [&'static str]);

impl<T> Labelled<T> {
    fn values<'a>(&self, attributes: &'a MetricAttributes) -> Vec<&'a str> {
        let labels = labels_of(attributes);
        let value = |name: &&str| labels.and_then(|labels| labels.get(*name)).map_or("", String::as_str);
        self.1.iter().map(value).collect()
    }
}

/// What recording to a metric with its labels comes to.
struct Bound<T>(T);

type Attributed<T> = Result<T, Box<dyn std::error::Error>>;

impl MetricAttributable<Box<dyn CounterBase>> for Labelled<IntCounterVec> {
    fn with_attributes(&self, attributes: &MetricAttributes) -> Attributed<Box<dyn CounterBase>> {
        Ok(Box::new(Bound(self.0.get_metric_with_label_values(&self.values(attributes))?)))
    }
}

impl CounterBase for Bound<prometheus::IntCounter> {
    fn adds(&self, value: u64) {
        self.0.inc_by(value);
    }
}

impl MetricAttributable<Box<dyn GaugeBase>> for Labelled<IntGaugeVec> {
    fn with_attributes(&self, attributes: &MetricAttributes) -> Attributed<Box<dyn GaugeBase>> {
        Ok(Box::new(Bound(self.0.get_metric_with_label_values(&self.values(attributes))?)))
    }
}

impl GaugeBase for Bound<prometheus::IntGauge> {
    fn records(&self, value: u64) {
        self.0.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

impl MetricAttributable<Box<dyn HistogramDurationBase>> for Labelled<HistogramVec> {
    fn with_attributes(&self, attributes: &MetricAttributes) -> Attributed<Box<dyn HistogramDurationBase>> {
        Ok(Box::new(Bound(self.0.get_metric_with_label_values(&self.values(attributes))?)))
    }
}

impl HistogramDurationBase for Bound<prometheus::Histogram> {
    fn records(&self, value: Duration) {
        self.0.observe(value.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use temporalio_common::telemetry::metrics::MetricKeyValue;

    #[test]
    fn what_the_sdk_counts_comes_out_with_its_bounded_labels_only() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let mut meter = meter(&metrics);
        meter.merge_attributes([MetricKeyValue::new("operation", "Poll"), MetricKeyValue::new("run_id", "7")].into());
        for name in ["request", "never_heard_of"] {
            let counter = meter.counter(MetricParameters::builder().name(name).build());
            counter.with_attributes(meter.get_default_attributes()).unwrap().adds(2);
        }
        let latency = meter.histogram_duration(MetricParameters::builder().name("request_latency").build());
        latency.record(Duration::from_millis(3), meter.get_default_attributes());
        let text = metrics.render().unwrap();
        assert!(text.contains("temporal_request_total{operation=\"Poll\"} 2"), "{text}");
        assert!(text.contains("temporal_request_latency_seconds_sum{operation=\"Poll\"} 0.003"), "{text}");
        assert!(!text.contains("never_heard_of") && !text.contains("run_id"), "{text}");
    }
}
