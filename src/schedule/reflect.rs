//! Sees to it that Temporal has of each schedule what it is to have. Every router does, each what the others leave.
//!
//! What Temporal is to have changes in the transaction that changes the schedule, and counts one wish more. Between that and Temporal's
//! answer the process may die, Temporal may be away, another change may come: the row stays due until Temporal was *seen* to have the
//! wish, and whoever sees to it next begins with a look. An older wish never takes a newer one's place, because Temporal takes a
//! change only of what was just looked at; one that made anew what had been forgotten meanwhile is found out by its own report, or by its
//! first tick.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::mirror::{Mirror, Reflect, Reflected};
use super::mirrors::{Mirrors, Task};
use crate::executor::clean;
use crate::interaction::Stage;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;
use crate::router::Router;

/// Stages are looked at this often, whatever is heard of changes.
const STAGES: Duration = Duration::from_secs(5);
/// Schedules whose wish is changed by one statement.
const CHANGED: i32 = 5_000;
/// Mirrors of one look.
const BATCH: i32 = 32;
/// Calls of Temporal at once.
const AT_ONCE: usize = 8;
/// Who has not told within this is dead, or told nothing.
const LEASE: Duration = Duration::from_secs(60);
/// A look that failed is repeated after so long.
const BREATH: Duration = Duration::from_secs(1);

/// See the module.
pub struct Reflector {
    mirrors: Mirrors,
    router: Arc<Router>,
    temporal: Arc<dyn Reflect>,
    metrics: Arc<Metrics>,
    poll: Duration,
    needed: Arc<Needed>,
}

/// Whether anybody must run what Temporal launches: rung once, when there is a mirror, or it isn't known that there is none.
#[derive(Default)]
pub struct Needed {
    yes: AtomicBool,
    bell: Notify,
}

impl Needed {
    /// Waits until somebody must.
    pub async fn wait(&self) {
        loop {
            let rung = self.bell.notified();
            if self.yes.load(Ordering::SeqCst) {
                return;
            }
            rung.await;
        }
    }

    fn ring(&self) {
        if !self.yes.swap(true, Ordering::SeqCst) {
            self.bell.notify_waiters();
        }
    }
}

impl Reflector {
    /// Tells `temporal`, in the stages that `router` knows; rings `needed`.
    pub fn new(
        mirrors: Mirrors,
        router: Arc<Router>,
        temporal: Arc<dyn Reflect>,
        metrics: Arc<Metrics>,
        poll: Duration,
        needed: Arc<Needed>,
    ) -> Self {
        Self { mirrors, router, temporal, metrics, poll, needed }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut looked_at_stages = None;
        loop {
            let look = self.look(&mut looked_at_stages);
            let Some(looked) = stop.run_until_cancelled(look).await else { break };
            let wait = match looked {
                Ok(told) if told >= BATCH as usize => continue,
                Ok(_) => self.poll,
                Err(error) => {
                    self.metrics.schedules.mirror_errors.inc();
                    // It may be that there are mirrors, and a launcher is of use where Postgres is not.
                    self.needed.ring();
                    warn!(%error, "what Temporal is to have of schedules can't be looked at; trying again");
                    BREATH.max(self.poll)
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.router.mirrors_bell().notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        info!("Temporal is no longer told of schedules here");
    }

    /// One look; how many mirrors it took.
    async fn look(&self, looked_at_stages: &mut Option<Instant>) -> Result<usize, LedgerError> {
        if looked_at_stages.is_none_or(|at| at.elapsed() >= STAGES) {
            self.look_at_stages().await?;
            *looked_at_stages = Some(Instant::now());
        }
        let tasks = self.mirrors.take(BATCH, LEASE).await?;
        let taken = tasks.len();
        let told = futures::stream::iter(tasks).map(|task| self.tell(task)).buffer_unordered(AT_ONCE);
        told.collect::<()>().await;
        Ok(taken)
    }

    /// Temporal has the schedules of every account and kind that is not complete.
    async fn look_at_stages(&self) -> Result<(), LedgerError> {
        let kinds = self.mirrors.kinds().await?;
        let wanted = |(account, kind): (String, String)| {
            let wanted = self.router.stage(&account, &kind) != Stage::Complete;
            (account, kind, wanted)
        };
        let wanted: Vec<_> = kinds.into_iter().map(wanted).collect();
        while self.mirrors.want(&wanted, CHANGED).await? >= CHANGED.into() {}
        if self.mirrors.any().await? {
            self.needed.ring();
        }
        Ok(())
    }

    async fn tell(&self, task: Task) {
        self.needed.ring();
        let id = task.id;
        let noted = match self.tell_temporal(&task).await {
            Ok(Told::InStep(again)) => {
                let told = self.mirrors.told(id, task.wish, again, &task.triggers).await;
                match told {
                    // It was forgotten while this was on its way: what this has made goes again.
                    Ok(false) => self.mirrors.doubt(id).await,
                    told => told.map(drop),
                }
            }
            Ok(Told::Later(has)) => self.mirrors.not_told(id, has, "Temporal has a later one of it").await,
            Err(error) => {
                self.metrics.schedules.mirror_errors.inc();
                warn!(schedule = %id, error, "Temporal can't be told of a schedule; trying again");
                self.mirrors.not_told(id, 0, &clean(&error)).await
            }
        };
        if let Err(error) = noted {
            self.metrics.schedules.mirror_errors.inc();
            warn!(%error, schedule = %id, "what Temporal has of a schedule can't be noted; it is looked at again");
        }
    }

    async fn tell_temporal(&self, task: &Task) -> Result<Told, String> {
        let Some(schedule) = &task.schedule else {
            return self.temporal.forget(task.id).await.map(|()| Told::InStep(None));
        };
        let mirror = Mirror::of(schedule.as_ref().map_err(Clone::clone)?, task.wish, task.now)?;
        if let Reflected::Later(has) = self.temporal.reflect(&mirror).await? {
            return Ok(Told::Later(has));
        }
        for token in &task.triggers {
            let mut launch = mirror.launch.clone();
            launch.token = Some(token.clone());
            self.temporal.launch(&launch).await?;
        }
        Ok(Told::InStep(mirror.again))
    }
}

/// What came of telling.
enum Told {
    /// It has it; its times run low then.
    InStep(Option<chrono::DateTime<chrono::Utc>>),
    /// It has that of this wish.
    Later(i64),
}

/// The id of a schedule on Temporal, and of what it starts.
pub fn name_on_temporal(schedule: Uuid) -> String {
    format!("schedule:{schedule}")
}
