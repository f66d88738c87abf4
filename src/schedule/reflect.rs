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
use crate::flips::Basis;
use crate::interaction::Stage;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;
use crate::router::Router;

/// Stages are looked at when what decides them has changed, and this often.
const STAGES: Duration = Duration::from_secs(60);
/// The same where a look has failed, or routers are of two minds.
const STAGES_AGAIN: Duration = Duration::from_secs(5);
/// Accounts and kinds of one statement.
const KINDS: usize = 1_000;
/// While nothing is known that would tick, Temporal is asked this often whether it has anything of ours.
const STRAY: Duration = Duration::from_secs(3_600);
/// Schedules whose wish is changed by one statement.
const CHANGED: i32 = 5_000;
/// Mirrors of one look.
const BATCH: i32 = 32;
/// Calls of Temporal at once.
const AT_ONCE: usize = 8;
/// Who has not told within this is dead, or told nothing.
const LEASE: Duration = Duration::from_secs(60);
/// Whoever takes one on begins within this, and tells within this: so nobody still tells what another has been given.
const IN_TIME: Duration = Duration::from_secs(25);
/// A look that failed is repeated after so long.
const BREATH: Duration = Duration::from_secs(1);

/// See the module.
pub struct Reflector {
    mirrors: Mirrors,
    router: Arc<Router>,
    temporal: Arc<dyn Reflect>,
    metrics: Arc<Metrics>,
    poll: Duration,
    held: bool,
    needed: Arc<Needed>,
}

/// When stages were looked at.
#[derive(Default)]
struct Stages {
    /// By what.
    by: Option<Basis>,
    /// Not before then, unless what decides them has changed.
    again: Option<Instant>,
    /// Not before then.
    failed: Option<Instant>,
    /// Temporal is not asked for strays before then.
    ask: Option<Instant>,
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

    fn is_rung(&self) -> bool {
        self.yes.load(Ordering::SeqCst)
    }

    fn ring(&self) {
        if !self.yes.swap(true, Ordering::SeqCst) {
            self.bell.notify_waiters();
        }
    }
}

impl Reflector {
    /// Tells `temporal`, in the stages that `router` knows; rings `needed`. `held`: what Temporal has is paused there.
    pub fn new(
        mirrors: Mirrors,
        router: Arc<Router>,
        temporal: Arc<dyn Reflect>,
        metrics: Arc<Metrics>,
        (poll, held): (Duration, bool),
        needed: Arc<Needed>,
    ) -> Self {
        Self { mirrors, router, temporal, metrics, poll, held, needed }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut stages = Stages::default();
        loop {
            // What somebody has changed is told first, whatever becomes of the stages.
            let look = async {
                let looked = self.look().await;
                self.look_at_stages(&mut stages).await;
                looked
            };
            let Some(looked) = stop.run_until_cancelled(look).await else { break };
            let wait = match looked {
                Ok(told) if told >= BATCH as usize => continue,
                Ok(_) => self.poll,
                Err(error) => {
                    self.failed(&error, "what Temporal is to have of schedules can't be looked at; trying again");
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
    async fn look(&self) -> Result<usize, LedgerError> {
        let began = Instant::now();
        let tasks = self.mirrors.take(BATCH, LEASE).await?;
        let taken = tasks.len();
        let told = futures::stream::iter(tasks).map(|task| self.tell(task, began)).buffer_unordered(AT_ONCE);
        told.collect::<()>().await;
        Ok(taken)
    }

    /// Looks at the stages, if it is time to.
    async fn look_at_stages(&self, stages: &mut Stages) {
        let (now, basis) = (Instant::now(), self.router.basis());
        let changed = stages.by.as_ref() != Some(&basis);
        if stages.failed.is_some_and(|until| now < until) || !changed && stages.again.is_some_and(|until| now < until) {
            return;
        }
        match self.see_to_stages(&basis).await {
            Ok(agreed) => {
                let again = now + if agreed { STAGES } else { STAGES_AGAIN };
                (stages.by, stages.again, stages.failed) = (Some(basis), Some(again), None);
            }
            Err(error) => {
                self.failed(&error, "whose schedules Temporal is to have can't be looked at; trying again");
                stages.failed = Some(now + STAGES_AGAIN);
            }
        }
        self.look_for_strays(stages).await;
    }

    /// Temporal has the schedules of every account and kind that is not complete, in the eyes of any router. Whether all of them agree.
    async fn see_to_stages(&self, basis: &Basis) -> Result<bool, LedgerError> {
        let kinds = self.mirrors.kinds().await?;
        let agreed = self.mirrors.agreed(&basis.revision, &basis.overrides).await?;
        for some in kinds.chunks(KINDS) {
            let wanted = some.iter().filter_map(|(account, kind)| {
                let wanted = self.router.stage(account, kind) != Stage::Complete;
                (wanted || agreed).then(|| (account.clone(), kind.clone(), wanted))
            });
            let wanted: Vec<_> = wanted.collect();
            while self.mirrors.want(&wanted, CHANGED).await? >= CHANGED.into() {}
        }
        if self.mirrors.any().await? {
            self.needed.ring();
        }
        Ok(agreed)
    }

    /// A database that was made anew, or restored from before a schedule, knows nothing of what Temporal still has of it: whoever runs its
    /// launchers finds that it is gone.
    async fn look_for_strays(&self, stages: &mut Stages) {
        let now = Instant::now();
        if self.needed.is_rung() || stages.ask.is_some_and(|until| now < until) {
            return;
        }
        match self.temporal.has_any().await {
            Ok(any) => {
                stages.ask = Some(now + STRAY);
                if any {
                    info!("Temporal has schedules of which Postgres knows nothing; what they launch is looked at here");
                    self.needed.ring();
                }
            }
            Err(error) => {
                stages.ask = Some(now + STAGES);
                self.metrics.schedules.mirror_errors.inc();
                info!(error, "Temporal can't be asked whether it has schedules that nobody knows of; trying again");
            }
        }
    }

    fn failed(&self, error: &LedgerError, what: &str) {
        self.metrics.schedules.mirror_errors.inc();
        // It may be that there are mirrors, and a launcher is of use where Postgres is not.
        self.needed.ring();
        warn!(%error, "{what}");
    }

    async fn tell(&self, task: Task, taken: Instant) {
        self.needed.ring();
        let id = task.id;
        let noted = match self.tell_in_time(&task, taken).await {
            Ok(Told::InStep(again)) => match self.mirrors.told(&task, again).await {
                // It was forgotten while this was on its way: what this has made goes again.
                Ok(false) => self.mirrors.doubt(id).await,
                told => told.map(drop),
            },
            Ok(Told::Later(has)) => self.mirrors.not_told(&task, has, Some("Temporal has a later one of it")).await,
            Ok(Told::Nothing) => self.mirrors.not_told(&task, 0, None).await,
            Err(error) => {
                self.metrics.schedules.mirror_errors.inc();
                warn!(schedule = %id, error, "Temporal can't be told of a schedule; trying again");
                self.mirrors.not_told(&task, 0, Some(&clean(&error))).await
            }
        };
        if let Err(error) = noted {
            self.metrics.schedules.mirror_errors.inc();
            warn!(%error, schedule = %id, "what Temporal has of a schedule can't be noted; it is looked at again");
        }
    }

    /// Another may have it once the lease is over, so nothing is begun late, and nothing takes long.
    async fn tell_in_time(&self, task: &Task, taken: Instant) -> Result<Told, String> {
        if taken.elapsed() > IN_TIME {
            return Ok(Told::Nothing);
        }
        let late = |_| Err(format!("Temporal was not told of it within {IN_TIME:?}"));
        tokio::time::timeout(IN_TIME, self.tell_temporal(task)).await.unwrap_or_else(late)
    }

    async fn tell_temporal(&self, task: &Task) -> Result<Told, String> {
        let Some(schedule) = &task.schedule else {
            return self.temporal.forget(task.id).await.map(|()| Told::InStep(None));
        };
        let mut mirror = Mirror::of(schedule.as_ref().map_err(Clone::clone)?, task.wish, task.now)?;
        mirror.launch.whole &= task.whole;
        let mirror = if self.held { mirror.held()? } else { mirror };
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
    /// There was no time for it.
    Nothing,
}

/// The id of a schedule on Temporal, and of what it starts.
pub fn name_on_temporal(schedule: Uuid) -> String {
    format!("schedule:{schedule}")
}
