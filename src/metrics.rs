//! Every metric, with its unit and the help that an operator reads at night. Accounts are never labels.

mod arming;
pub mod comparator;
mod dependents;
mod detached;
mod flags;
mod flips;
mod groups;
mod handover;
mod intake;
mod maintenance;
pub mod observer;
mod outage;
mod parking;
mod pools;
mod process;
mod reconciliation;
mod relay;
mod remote;
mod schedules;
#[cfg(feature = "temporal")]
mod temporal;
mod turns;

use chrono::TimeDelta;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use arming::ArmingMetrics;
pub use dependents::DependentMetrics;
pub use detached::DetachedMetrics;
pub use flags::FlagMetrics;
pub use flips::FlipMetrics;
pub use groups::{GroupMetrics, OTHERS, SHOWN};
pub use handover::HandoverMetrics;
pub use intake::IntakeMetrics;
pub use maintenance::MaintenanceMetrics;
pub use outage::OutageMetrics;
pub use parking::ParkingMetrics;
pub use pools::PoolMetrics;
pub use reconciliation::ReconciliationMetrics;
pub use relay::RelayMetrics;
pub use remote::RemoteMetrics;
pub use schedules::ScheduleMetrics;
#[cfg(feature = "temporal")]
pub use temporal::TemporalMetrics;
pub use turns::TurnMetrics;

use crate::interaction::{Outcome, Side, Stage};
use crate::policy::{Doubt, Failure};
use crate::queue::Finish;

pub mod http;

/// The program's metrics, all in one registry.
pub struct Metrics {
    registry: Registry,
    documented: Vec<Documented>,
    /// By stage, owner and answer.
    pub enqueues: IntCounterVec,
    /// One pin transaction.
    pub pin_seconds: Histogram,
    /// One delivery to Temporal, by outcome.
    pub deliveries: IntCounterVec,
    /// What the relay took from the outbox.
    pub relayed: IntCounterVec,
    /// Work that was delivered again because it should long have ended.
    pub swept: IntCounter,
    /// Records of the Temporal side that were lost, by record.
    pub unrecorded: IntGaugeVec,
    /// How long a delivery took.
    pub delivery_seconds: Histogram,
    /// A Temporal that is away.
    pub relay: RelayMetrics,
    /// Copies that Temporal does not have yet.
    pub outbox_rows: IntGauge,
    /// Since when the oldest of them waits.
    pub outbox_oldest_seconds: Gauge,
    /// Copies by place: ready, scheduled, running, waiting.
    pub queue_rows: IntGaugeVec,
    /// Since when the oldest ready copy has been due.
    pub queue_oldest_seconds: Gauge,
    /// The ready set by group.
    pub groups: GroupMetrics,
    /// When the gauges that Postgres is asked for were last right.
    pub gauges_updated: Gauge,
    /// One claim.
    pub claim_seconds: Histogram,
    /// From due to dequeued, by side and mode.
    pub start_seconds: HistogramVec,
    /// Attempts that have ended, by side, mode and outcome.
    pub attempts: IntCounterVec,
    /// Attempts that another follows.
    pub retries: IntCounterVec,
    /// Interactions that have ended, by the side that ran them and outcome.
    pub ends: IntCounterVec,
    /// Refused late results, by side.
    pub late_results: IntCounterVec,
    /// Leases that this process lost.
    pub lost_leases: IntCounter,
    /// Attempts taken over from dead workers.
    pub taken_over: IntCounter,
    /// Rings between processes, told or heard.
    pub wake_ups: IntCounterVec,
    /// Failed calls of the queue's storage, by call.
    pub queue_errors: IntCounterVec,
    /// Failed calls of the ledger by the Temporal side, by call.
    pub ledger_errors: IntCounterVec,
    /// Copies that Temporal has under another owner.
    pub owner_conflicts: IntCounter,
    /// 1 while the flag source is healthy. Shown only by a process that has one, hence a family without labels.
    pub flags_healthy: IntGaugeVec,
    /// Long work.
    pub detached: DetachedMetrics,
    /// Remote workers.
    pub remote: RemoteMetrics,
    /// What waits for a person.
    pub parking: ParkingMetrics,
    /// What waits for other work.
    pub dependents: DependentMetrics,
    /// What excludes others.
    pub turns: TurnMetrics,
    /// What comes in from SQL.
    pub intake: IntakeMetrics,
    /// Handovers.
    pub handovers: HandoverMetrics,
    /// The flags' source.
    pub flags: FlagMetrics,
    /// Connections to Postgres.
    pub pools: PoolMetrics,
    /// Upkeep.
    pub maintenance: MaintenanceMetrics,
    /// The Temporal half of arming.
    pub reconciliation: ReconciliationMetrics,
    /// Temporal's own.
    #[cfg(feature = "temporal")]
    pub temporal: TemporalMetrics,
    /// The comparator's.
    pub comparator: comparator::ComparatorMetrics,
    /// The recorder's.
    pub observer: observer::ObserverMetrics,
    /// The HTTP face.
    pub http: http::Http,
    /// Flips, routers, overrides.
    pub flips: FlipMetrics,
    /// What happens while Postgres is away.
    pub outage: OutageMetrics,
    /// Arming.
    pub arming: ArmingMetrics,
    /// Schedules.
    pub schedules: ScheduleMetrics,
}

/// A metric as its documentation shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documented {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Its help.
    pub help: String,
}

const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

impl Metrics {
    /// Registers every metric.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut r = Registering::default();
        process::register_all(&mut r)?;
        Ok(Self {
            enqueues: counters(
                &mut r,
                "crossover_enqueues_total",
                "Enqueues answered, by the stage and owner they were pinned with (none where there is no pin) and the HTTP status that stands for the answer.",
                &["stage", "owner", "answer"],
            )?,
            pin_seconds: histogram(
                &mut r,
                "crossover_pin_seconds",
                "Seconds that one pin transaction took, its commit included. Rises first when Postgres is in trouble.",
            )?,
            deliveries: counters(
                &mut r,
                "crossover_deliveries_total",
                "Attempts to deliver a copy to Temporal, by outcome: started, already_there, conflict, in_doubt, refused.",
                &["outcome"],
            )?,
            relayed: counters(
                &mut r,
                "crossover_relayed_total",
                "Copies that the relay took from the outbox, by what became of them: delivered (or tried), cancelled (told that it is called off), ended (nothing left to deliver). Rises when routers crash, Temporal is away, or a series is delivered in order.",
                &["outcome"],
            )?,
            swept: register(
                &mut r,
                IntCounter::new(
                    "crossover_swept_total",
                    "Interactions that Temporal should long have ended, delivered to it again. A steady rise: see whether its workers run, or who ends workflows by hand.",
                )?,
            )?,
            unrecorded: gauges(
                &mut r,
                "crossover_unrecorded",
                "Records of the Temporal side lost since the start of this process because Postgres did not take them in time, by record (attempts, rehearsals). Comparisons lack them; ends are never lost.",
                &["record"],
            )?,
            delivery_seconds: histogram(
                &mut r,
                "crossover_delivery_seconds",
                "Seconds that one delivery to Temporal took, whatever its outcome.",
            )?,
            relay: RelayMetrics::register(&mut r)?,
            outbox_rows: gauge(
                &mut r,
                "crossover_outbox_rows",
                "Copies pinned but not delivered to Temporal yet. Grows while Temporal is away; the relay delivers them.",
            )?,
            outbox_oldest_seconds: float_gauge(
                &mut r,
                "crossover_outbox_oldest_seconds",
                "Seconds since the oldest undelivered copy was pinned. Over a minute: see whether the relay runs and Temporal answers.",
            )?,
            queue_rows: gauges(
                &mut r,
                "crossover_queue_rows",
                "Copies on the Postgres side by place: ready to start, scheduled for later, running, waiting at the gate of their group.",
                &["place"],
            )?,
            queue_oldest_seconds: float_gauge(
                &mut r,
                "crossover_queue_oldest_seconds",
                "Seconds for which the oldest ready copy has been due. Grows when workers are too few or stuck.",
            )?,
            groups: GroupMetrics::register(&mut r)?,
            gauges_updated: float_gauge(
                &mut r,
                "crossover_gauges_updated_timestamp_seconds",
                "When outbox, queue and group gauges were last read from Postgres, in seconds since 1970. Old: what they show is old too, because Postgres does not answer.",
            )?,
            claim_seconds: histogram(
                &mut r,
                "crossover_claim_seconds",
                "Seconds that one claim of the Postgres worker took.",
            )?,
            start_seconds: histograms(
                &mut r,
                "crossover_start_seconds",
                "Seconds from due to dequeued, by side and mode (execution, rehearsal). Compare the sides before a cutover. Its count is what each side took to run.",
                &["side", "mode"],
            )?,
            attempts: counters(
                &mut r,
                "crossover_attempts_total",
                "Attempts that have ended, by side, mode (execution, rehearsal) and outcome; bounded is a rehearsal whose real run did not end in time.",
                &["side", "mode", "outcome"],
            )?,
            retries: counters(
                &mut r,
                "crossover_retries_total",
                "Attempts that failed and are followed by another, by side and mode; those after which their interaction was parked are among them.",
                &["side", "mode"],
            )?,
            ends: counters(
                &mut r,
                "crossover_ends_total",
                "Executions that ended for good (no attempt follows), by the side that ran them and outcome. Rehearsals are not among them.",
                &["side", "outcome"],
            )?,
            late_results: counters(
                &mut r,
                "crossover_late_results_total",
                "Results refused because another worker had taken the attempt over, or on Temporal its workflow was gone, by side. Each may have had an effect: its fence was old.",
                &["side"],
            )?,
            lost_leases: register(
                &mut r,
                IntCounter::new(
                    "crossover_lost_leases_total",
                    "Runs given up here because their lease had run out. Points at stalls longer than worker.lease.",
                )?,
            )?,
            taken_over: register(
                &mut r,
                IntCounter::new(
                    "crossover_taken_over_total",
                    "Attempts taken over from workers that stopped reporting. Each counts as a failed attempt.",
                )?,
            )?,
            wake_ups: counters(
                &mut r,
                "crossover_wake_ups_total",
                "Rings between processes: told (this one had work and no room of its own for it) and heard (another had). Work that nobody is told of waits for worker.poll.",
                &["way"],
            )?,
            queue_errors: counters(
                &mut r,
                "crossover_queue_errors_total",
                "Failed calls of the Postgres queue, by call. They are repeated; a steady rise means Postgres is away.",
                &["call"],
            )?,
            ledger_errors: counters(
                &mut r,
                "crossover_ledger_errors_total",
                "Failed reports of the Temporal side to the ledger, by call. Ends are repeated until they are in.",
                &["call"],
            )?,
            owner_conflicts: register(
                &mut r,
                IntCounter::new(
                    "crossover_owner_conflicts_total",
                    "Copies that Temporal already had under the same id with another owner, epoch or payload. Any is worth waking somebody: the Postgres copy is held.",
                )?,
            )?,
            flags_healthy: gauges(
                &mut r,
                "crossover_flags_healthy",
                "1 while the flag source is good; 0 while the last good flags stay in force because the source is broken. Only routers have one.",
                &[],
            )?,
            flags: FlagMetrics::new(&mut r)?,
            pools: PoolMetrics::register(&mut r)?,
            maintenance: MaintenanceMetrics::register(&mut r)?,
            reconciliation: ReconciliationMetrics::register(&mut r)?,
            #[cfg(feature = "temporal")]
            temporal: TemporalMetrics::register(&mut r)?,
            comparator: comparator::ComparatorMetrics::register(&mut r)?,
            observer: observer::ObserverMetrics::register(&mut r)?,
            http: http::Http::new(&mut r)?,
            detached: DetachedMetrics::register(&mut r)?,
            remote: RemoteMetrics::register(&mut r)?,
            parking: ParkingMetrics::register(&mut r)?,
            dependents: DependentMetrics::register(&mut r)?,
            turns: TurnMetrics::register(&mut r)?,
            intake: IntakeMetrics::register(&mut r)?,
            handovers: HandoverMetrics::register(&mut r)?,
            flips: FlipMetrics::new(&mut r)?,
            outage: OutageMetrics::register(&mut r)?,
            arming: ArmingMetrics::new(&mut r)?,
            schedules: ScheduleMetrics::register(&mut r)?,
            registry: r.registry,
            documented: r.documented,
        })
    }

    /// The text format that Prometheus scrapes.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Every metric, for the page that documents them.
    pub fn documented(&self) -> &[Documented] {
        &self.documented
    }

    /// Counts an answered enqueue.
    pub fn enqueued(&self, pinned: Option<(Stage, Side)>, answer: u16) {
        let (stage, owner) = pinned.map_or(("none", "none"), |(stage, owner)| (stage.as_str(), owner.as_str()));
        self.enqueues.with_label_values(&[stage, owner, &answer.to_string()]).inc();
    }

    /// Counts a dequeue and how long it had been due.
    pub fn dequeued(&self, side: Side, rehearsal: bool, waited: TimeDelta) {
        let seconds = waited.as_seconds_f64().max(0.0);
        self.start_seconds.with_label_values(&[side.as_str(), mode(rehearsal)]).observe(seconds);
    }

    /// Counts an attempt that has ended.
    pub fn attempted(&self, side: Side, rehearsal: bool, outcome: Option<Outcome>, retried: bool) {
        let outcome = outcome.map_or("bounded", Outcome::as_str);
        self.attempts.with_label_values(&[side.as_str(), mode(rehearsal), outcome]).inc();
        if retried {
            self.retries.with_label_values(&[side.as_str(), mode(rehearsal)]).inc();
        } else if !rehearsal {
            self.ends.with_label_values(&[side.as_str(), outcome]).inc();
        }
    }

    /// Counts an end of the Postgres side.
    pub fn ended(&self, rehearsal: bool, end: &Finish) {
        self.attempted(Side::Postgres, rehearsal, end.outcome, end.retry.is_some() || end.park);
        if let Some(cause) = end.failure.as_ref().and_then(Failure::doubt).filter(|_| end.park) {
            self.parked(Side::Postgres, cause);
        }
    }

    /// Counts an interaction that was parked.
    pub fn parked(&self, side: Side, cause: Doubt) {
        self.parking.parked.with_label_values(&[side.as_str(), cause.as_str()]).inc();
    }
}

fn mode(rehearsal: bool) -> &'static str {
    if rehearsal { "rehearsal" } else { "execution" }
}

#[derive(Default)]
struct Registering {
    registry: Registry,
    documented: Vec<Documented>,
}

fn register<C: Collector + Clone + 'static>(r: &mut Registering, collector: C) -> Result<C, prometheus::Error> {
    for desc in collector.desc() {
        let (name, labels, help) = (desc.fq_name.clone(), desc.variable_labels.clone(), desc.help.clone());
        r.documented.push(Documented { name, labels, help });
    }
    r.registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counters(r: &mut Registering, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    register(r, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauges(r: &mut Registering, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    register(r, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn float_gauges(r: &mut Registering, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    register(r, GaugeVec::new(Opts::new(name, help), labels)?)
}

fn counter(r: &mut Registering, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    register(r, IntCounter::new(name, help)?)
}

fn gauge(r: &mut Registering, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    register(r, IntGauge::new(name, help)?)
}

fn float_gauge(r: &mut Registering, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    register(r, Gauge::new(name, help)?)
}

fn histogram(r: &mut Registering, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
    register(r, Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))?)
}

fn histograms(r: &mut Registering, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
    register(r, HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)?)
}
