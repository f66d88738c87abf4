//! What Temporal's scheduler starts: a workflow that brings a time to the plan, and nothing else. See `schedule::tick`.
//!
//! Launchers have a task queue and a worker of their own, in every router, because what they bring is taken in as callers' work is.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use temporalio_client::{Client, ClientOptions};
use temporalio_common::ActivityCloseTimeouts;
use temporalio_macros::{activities, workflow, workflow_methods};
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use temporalio_sdk::runtime::worker_tuner::{FixedSizeSlotSupplier, TunerHolder};
use temporalio_sdk::{
    ActivityOptions, ApplicationFailure, Runtime, Worker, WorkerOptions, WorkflowContext, WorkflowContextView,
    WorkflowResult,
};
use temporalio_workflow::RetryPolicy;
use tokio_util::sync::CancellationToken;

use super::client::TemporalClient;
use super::deliver::DeliverError;
use super::schedules::Seen;
use super::wire::Exact;
use super::worker::{Broken, WorkerError, again_and_again, on_a_thread};
use crate::schedule::mirror::Launch;
use crate::schedule::reflect::name_on_temporal;
use crate::schedule::series_of;
use crate::schedule::tick::{OnTemporal, Tick, TickError, Ticked, Ticks};

/// The launchers' task queue, beside that of the copies.
pub fn queue_of(task_queue: &str) -> String {
    format!("{task_queue}:schedules")
}

/// What a launcher came to, for who looks at its history.
const GAVE_UP: &str = "it was given up: a later time does what it has left";
/// What Temporal asks of workflows' code at once; it takes no connection.
const WORKFLOWS: usize = 4;
/// A launcher that waits again and again leaves the rest to the next.
const MOST_WAITS: u32 = 100;
/// One look, at Temporal as well where Postgres is away.
const LOOK: Duration = Duration::from_secs(30);
/// The launchers that are under way at the end are tried again elsewhere.
const DRAIN: Duration = Duration::from_secs(1);

/// Brings one time.
#[workflow]
pub struct LauncherWorkflow {
    launch: Launch,
}

#[workflow_methods]
impl LauncherWorkflow {
    #[init]
    fn new(_: &WorkflowContextView, launch: Exact<Launch>) -> Self {
        Self { launch: launch.0 }
    }

    /// Brings the time until the plan has it.
    #[run(name = "LauncherWorkflow")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<String> {
        let launch = ctx.state(|s| s.launch.clone());
        let at = tick_of(ctx.workflow_id(), &launch);
        let patience = Duration::from_millis(launch.patience_ms);
        // Each activity stays in the history, and has no use for the payload: the row has it, or Temporal's schedule.
        let tick = Tick { launch: launch.without_payload(), at };
        for _ in 0..MOST_WAITS {
            let timeouts =
                ActivityCloseTimeouts::ScheduleAndStartToClose { schedule_to_close: patience, start_to_close: LOOK };
            let mut options = ActivityOptions::with_close_timeouts(timeouts).build();
            let retries = RetryPolicy::builder().initial_interval(Duration::from_millis(200));
            options.retry_policy = Some(retries.maximum_interval(Duration::from_secs(10)).build());
            match ctx.execute_activity(LauncherActivities::tick, Exact(tick.clone()), options).await {
                Ok(Exact(Ticked::Done(what))) => return Ok(what.as_str().to_owned()),
                Ok(Exact(Ticked::Again(ms))) => drop(ctx.timer(Duration::from_millis(ms)).await),
                Err(_) => break,
            }
        }
        Ok(GAVE_UP.to_owned())
    }
}

/// The time that Temporal's scheduler has put behind the name of what it starts.
fn tick_of(workflow_id: &str, launch: &Launch) -> Option<DateTime<Utc>> {
    let named = workflow_id.strip_prefix(&name_on_temporal(launch.schedule))?;
    named.strip_prefix('-')?.parse().ok()
}

/// What launchers reach.
pub struct LauncherActivities {
    ticks: Arc<dyn Ticks>,
    temporal: TemporalClient,
}

#[activities]
impl LauncherActivities {
    /// Brings the time once.
    #[activity(name = "tick")]
    pub async fn tick(self: Arc<Self>, _: ActivityContext, tick: Exact<Tick>) -> Result<Exact<Ticked>, ActivityError> {
        let Exact(tick) = tick;
        let ticked = match self.ticks.tick(&tick).await {
            // What it was launched with may have been paused, changed or deleted since: what counts is what Temporal has now.
            Err(TickError::Away(why)) => match self.there(&tick.launch).await {
                Ok(there) => self.ticks.without_postgres(&tick, there, why).await,
                Err(error) => Err(TickError::Later(format!("{why}, and Temporal does not say what it has: {error}"))),
            },
            ticked => ticked,
        };
        ticked.map(Exact).map_err(|error| ApplicationFailure::new(error).into())
    }
}

impl LauncherActivities {
    /// What Temporal has of its schedule now, and its runs that have not ended there.
    async fn there(&self, launch: &Launch) -> Result<Option<OnTemporal>, DeliverError> {
        let Some(Seen { launch: there, paused, .. }) = self.temporal.schedule(launch.schedule).await? else {
            return Ok(None);
        };
        let open = if paused && launch.token.is_none() { 0 } else { self.open(launch).await? };
        Ok(Some(OnTemporal { launch: there, paused, open }))
    }

    async fn open(&self, launch: &Launch) -> Result<usize, DeliverError> {
        let definition = &launch.definition;
        let series = definition.series.clone().unwrap_or_else(|| series_of(launch.schedule));
        let status = self.temporal.series_status(&definition.account, &definition.kind, &series).await?;
        Ok(status.map_or(0, |status| status.pending.len() + usize::from(status.running.is_some())))
    }
}

/// Runs launchers.
#[derive(Clone)]
pub struct Launchers {
    /// Where their times are brought.
    pub ticks: Arc<dyn Ticks>,
    /// What a look at a series asks, and who connects.
    pub temporal: TemporalClient,
    /// Launchers at once in one process: they wait for rows on connections that callers need, most of all after an outage.
    pub slots: usize,
}

impl Launchers {
    /// Runs until `stop`. Dropping the future instead abandons what runs, as a crash would.
    pub async fn run(self, stop: CancellationToken) -> Result<(), WorkerError> {
        on_a_thread("launchers", move || self.keep_running(stop)).await
    }

    /// Unmeasured: what the SDK counts would be taken for that of the copies' worker.
    async fn keep_running(self, stop: CancellationToken) -> Result<(), WorkerError> {
        let once = async |core: &Runtime| self.run_once(core, &stop).await;
        again_and_again("launchers' worker", None, &stop, once).await
    }

    async fn run_once(&self, core: &Runtime, stop: &CancellationToken) -> Result<(), Broken> {
        let Some(connection) = stop.run_until_cancelled(self.temporal.worker_connection()).await else { return Ok(()) };
        let (connection, settings) = (connection?, &self.temporal.settings);
        let client = Client::new(connection, ClientOptions::new(settings.namespace.clone()).build())?;
        let slots = |count| FixedSizeSlotSupplier::new(count);
        let tuner = TunerHolder::builder()
            .workflow_task_slot_supplier(slots(WORKFLOWS))
            .activity_task_slot_supplier(slots(self.slots))
            .local_activity_task_slot_supplier(slots(1))
            .nexus_task_slot_supplier(slots(1))
            .build();
        let activities = LauncherActivities { ticks: self.ticks.clone(), temporal: self.temporal.clone() };
        let options = WorkerOptions::new(queue_of(&settings.task_queue))
            .tuner(tuner)
            .sticky_queue_schedule_to_start_timeout(Duration::from_secs(2))
            .graceful_shutdown_period(DRAIN)
            .register_activities(activities)
            .register_workflow::<LauncherWorkflow>()?
            .build();
        let mut worker = Worker::new(core, client, options)?;
        let end = worker.shutdown_handle();
        let stopping = async {
            stop.cancelled().await;
            end();
            tokio::time::sleep(DRAIN * 3).await;
        };
        tracing::info!(task_queue = queue_of(&settings.task_queue), "launchers of schedules run here");
        tokio::select! {
            ended = worker.run() => ended.map_err(Into::into),
            () = stopping => Ok(()),
        }
    }
}
