//! Temporal's own client and worker metrics, under the names that its SDKs have for them. Only those below: their
//! labels are bounded (namespace and task queue are one each here), and each is documented like our own.

use std::collections::HashMap;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::{Registering, counters, gauges, histograms};

/// Its name with Temporal, its labels, its help.
type Known = (&'static str, &'static [&'static str], &'static str);

const COUNTERS: &[Known] = &[
    ("request", &["operation"], "Calls of Temporal's service, by operation. Long polls are not among them."),
    (
        "request_failure",
        &["operation", "status_code"],
        "Calls of Temporal's service that failed, by operation and gRPC status. ALREADY_EXISTS and NOT_FOUND are answers; UNAVAILABLE, DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED mean trouble.",
    ),
    ("long_request", &["operation"], "Long polls of Temporal for work, by operation."),
    (
        "long_request_failure",
        &["operation", "status_code"],
        "Long polls of Temporal that failed, by operation and gRPC status. A steady rise: this worker gets no work.",
    ),
    ("workflow_completed", &["workflow_type"], "Workflows that this worker saw complete."),
    (
        "workflow_failed",
        &["workflow_type"],
        "Workflows that failed. Ours complete even where the interaction failed, so any is worth a look.",
    ),
    ("workflow_canceled", &["workflow_type"], "Workflows that were cancelled from outside."),
    ("workflow_continue_as_new", &["workflow_type"], "Times that a series' workflow cut off its history and went on."),
    (
        "workflow_task_execution_failed",
        &["workflow_type", "failure_reason"],
        "Workflow tasks that failed, by reason. NonDeterminismError after a deployment: roll it back.",
    ),
    ("workflow_task_queue_poll_succeed", &[], "Polls that brought a workflow task."),
    ("workflow_task_queue_poll_empty", &[], "Polls that brought none."),
    ("activity_task_received", &["activity_type"], "Activity tasks that this worker took."),
    ("activity_poll_no_task", &[], "Polls that brought no activity task."),
    ("activity_execution_failed", &["activity_type"], "Activities that failed, each attempt."),
    ("sticky_cache_hit", &[], "Workflow tasks whose workflow was in memory."),
    ("sticky_cache_miss", &[], "Workflow tasks whose workflow had to be replayed."),
    ("sticky_cache_total_forced_eviction", &[], "Workflows that were put out of memory for others."),
];

const HISTOGRAMS: &[Known] = &[
    ("request_latency", &["operation"], "Seconds that a call of Temporal's service took."),
    ("workflow_endtoend_latency", &["workflow_type"], "Seconds from a workflow's start to its end."),
    (
        "workflow_task_schedule_to_start_latency",
        &[],
        "Seconds that a workflow task waited at Temporal. High: too few workers.",
    ),
    ("workflow_task_execution_latency", &[], "Seconds that a workflow task took here."),
    ("workflow_task_replay_latency", &[], "Seconds that a replay of a workflow's history took."),
    (
        "activity_schedule_to_start_latency",
        &[],
        "Seconds that an activity task waited at Temporal. High: all slots are taken.",
    ),
    ("activity_execution_latency", &["activity_type"], "Seconds that an activity took here."),
];

const GAUGES: &[Known] = &[
    (
        "worker_task_slots_available",
        &["worker_type"],
        "Free slots of the Temporal worker, by kind of task. None for long: raise worker.slots.",
    ),
    ("worker_task_slots_used", &["worker_type"], "Slots of the Temporal worker that are taken, by kind of task."),
    ("num_pollers", &["poller_type"], "Polls for work that are open at Temporal. None: this worker gets nothing."),
    ("sticky_cache_size", &[], "Workflows in memory."),
];

/// An instrument and its labels, in order.
type Labelled<T> = (T, &'static [&'static str]);

/// What the Temporal SDK's meter writes to, by the SDK's name without a prefix.
pub struct TemporalMetrics {
    /// Counters; `_total` is not part of the key.
    pub counters: HashMap<&'static str, Labelled<IntCounterVec>>,
    /// Durations, in seconds; `_seconds` is not part of the key.
    pub histograms: HashMap<&'static str, Labelled<HistogramVec>>,
    /// Gauges.
    pub gauges: HashMap<&'static str, Labelled<IntGaugeVec>>,
}

impl TemporalMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            counters: all(COUNTERS, |name, help, labels| counters(r, &format!("temporal_{name}_total"), help, labels))?,
            histograms: all(HISTOGRAMS, |name, help, labels| {
                histograms(r, &format!("temporal_{name}_seconds"), help, labels)
            })?,
            gauges: all(GAUGES, |name, help, labels| gauges(r, &format!("temporal_{name}"), help, labels))?,
        })
    }
}

fn all<T>(
    known: &[Known],
    mut make: impl FnMut(&str, &str, &[&str]) -> Result<T, prometheus::Error>,
) -> Result<HashMap<&'static str, Labelled<T>>, prometheus::Error> {
    known.iter().map(|&(name, labels, help)| Ok((name, (make(name, help, labels)?, labels)))).collect()
}
