//! What becomes of the times that Temporal's scheduler comes with.
//!
//! Temporal decides nothing: its launcher brings a time, and whoever has the launcher takes the schedule's row and does what the plan
//! says, as [`super::ticker`] does when it looks. Whichever of the two comes first makes the runs; the other finds that it is done.
//! A paused schedule's row says so, whatever Temporal was told. Only while Postgres is away, and the account may go on without it,
//! a time that Temporal comes with runs without a pin, by what the launcher knows, as any enqueue does then.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::mirror::{CATCH_UP, Launch, Mirror, nominal_of};
use super::plan::Overlap;
use super::storage::Taken;
use super::ticker::{Looked, Lost, Read, Ticker, times_of};
use super::times::{Times, jittered};
use crate::interaction::{Interaction, Side, names};
use crate::ledger::{LedgerError, is_contention, is_outage};
use crate::router::EnqueueError;

/// A time that Temporal's scheduler comes with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tick {
    /// What brings it.
    pub launch: Launch,
    /// The time; absent for what somebody asked for.
    pub at: Option<DateTime<Utc>>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ticked {
    /// That, for good.
    Done(What),
    /// It is to come again after so many milliseconds.
    Again(u64),
}

names! {
    /// What became of a tick.
    What {
        /// It was the first to come: the plan was followed.
        First = "first",
        /// Our own scheduler, or an earlier tick, had come with it.
        Second = "second",
        /// The schedule is paused.
        Paused = "paused",
        /// There is no such schedule.
        Gone = "gone",
        /// No time of the plan; it comes of what the schedule was before a change.
        Stale = "stale",
        /// No time of the plan, as the schedule is now.
        OffPlan = "off_plan",
        /// The schedule can't be read.
        Unreadable = "unreadable",
        /// Postgres is away, and Temporal brings it so late that only Postgres knows whether it has run.
        Missed = "missed",
        /// Postgres is away; the run was started without a pin.
        Unpinned = "unpinned",
        /// Postgres is away, and an earlier run has not ended.
        Overlap = "overlap",
        /// Postgres is away, and the run is refused for good.
        Refused = "refused",
    }
}

/// What Temporal has of a schedule when Postgres is away.
#[derive(Debug, Clone)]
pub struct OnTemporal {
    /// What it starts; absent where that can't be read here.
    pub launch: Option<Launch>,
    /// Nothing is due there.
    pub paused: bool,
    /// Its runs there that have not ended.
    pub open: usize,
}

/// Why a tick came to nothing yet.
#[derive(Debug, thiserror::Error)]
pub enum TickError {
    /// Postgres is away, and its account may go on: see [`Ticks::without_postgres`].
    #[error(transparent)]
    Away(LedgerError),
    /// Try again.
    #[error("{0}")]
    Later(String),
}

/// Where launchers bring their times.
#[async_trait]
pub trait Ticks: Send + Sync {
    /// Does what the plan says.
    async fn tick(&self, tick: &Tick) -> Result<Ticked, TickError>;

    /// The same while Postgres is away, where that may be: by what Temporal has of it now, if anything.
    async fn without_postgres(
        &self,
        tick: &Tick,
        there: Option<OnTemporal>,
        why: LedgerError,
    ) -> Result<Ticked, TickError>;
}

/// A tick takes no longer; its transaction is given up then.
const WITHIN: Duration = Duration::from_secs(8);
/// Temporal's clock may be ahead of Postgres' by so much.
const AHEAD: TimeDelta = TimeDelta::minutes(10);
/// Whoever looks again at once waits for this.
const SHORTLY: u64 = 200;
/// Whoever waits for what is cancelled.
const CANCELLING: u64 = 1_000;
/// Runs that one tick enqueues at most.
const MOST_RUNS: usize = 100;
/// Times beside the plan are told in the log this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

#[async_trait]
impl Ticks for Ticker {
    async fn tick(&self, tick: &Tick) -> Result<Ticked, TickError> {
        let look = async {
            // Who can go on without Postgres does not wait for it as long as a look may take.
            self.router.asks_postgres(&tick.launch.definition.account).await?;
            self.look_at(tick).await
        };
        let looked = tokio::time::timeout(WITHIN, look).await.unwrap_or(Err(Lost::Late));
        let away = |why| match self.router.goes_on_without_postgres(&tick.launch.definition.account) {
            true => TickError::Away(why),
            false => TickError::Later(why.to_string()),
        };
        let ticked = looked.map_err(|error| match error {
            Lost::Ledger(why) if is_outage(&why) && !is_contention(&why) => away(why),
            // Somebody may only have its row for long; but callers know that Postgres doesn't answer.
            Lost::Late if self.router.outages().is_open() => away(LedgerError::InDoubt(Lost::Late.to_string())),
            other => TickError::Later(other.to_string()),
        });
        self.count_tick(tick, &ticked);
        ticked
    }

    async fn without_postgres(
        &self,
        tick: &Tick,
        there: Option<OnTemporal>,
        why: LedgerError,
    ) -> Result<Ticked, TickError> {
        let ticked = self.start_unpinned(tick, there, why).await;
        self.count_tick(tick, &ticked);
        ticked
    }
}

/// What the row says of a tick.
enum Judged {
    /// It is over.
    Done(What),
    /// It is early by so much.
    Early(TimeDelta),
    /// The plan is to be followed.
    Due,
    /// It could not be, and is tried again later.
    PutOff(String),
}

impl Ticker {
    async fn look_at(&self, tick: &Tick) -> Result<Ticked, Lost> {
        let (launch, id) = (&tick.launch, tick.launch.schedule);
        let mut transaction = self.schedules.begin().await?;
        let Some((taken, wish)) = self.schedules.take_one(&mut transaction, id).await? else {
            drop(transaction);
            self.mirrors.doubt(id).await?;
            return Ok(Ticked::Done(What::Gone));
        };
        let mut read = Read::new();
        let read_of = |taken: &Taken, read: &mut Read| times_of(&taken.schedule.definition.spec, read);
        let found = taken.and_then(|taken| read_of(&taken, &mut read).map(|times| (taken, times)));
        let Ok((taken, times)) = found else { return Ok(Ticked::Done(What::Unreadable)) };
        let nominal = tick.at.and_then(|at| nominal_of(&times, at));
        match judge(&taken, &times, (launch, wish), tick.at) {
            Judged::Done(what) => {
                drop(transaction);
                if let (What::Second, Some(nominal)) = (what, nominal) {
                    self.schedules.note_tick(id, nominal, taken.now).await?;
                }
                if wish.is_none() || matches!(what, What::Paused | What::OffPlan) {
                    // Temporal has what it should not have, or was told while this was on its way.
                    self.mirrors.doubt(id).await?;
                }
                return Ok(Ticked::Done(what));
            }
            Judged::Early(by) => return Ok(again_after(by)),
            Judged::PutOff(why) => return Err(Lost::PutOff(why)),
            Judged::Due => {}
        }
        let found = vec![Ok(taken)];
        let looked = self.fire(transaction, found, MOST_RUNS, &mut read, &mut Vec::new(), Side::Temporal).await?;
        let Looked { cancel, more, put_off, .. } = looked;
        if let Some(why) = put_off {
            return Err(Lost::PutOff(why));
        }
        for taken in &cancel {
            self.cancel(taken).await;
        }
        Ok(match (cancel.is_empty(), more) {
            (false, _) => Ticked::Again(CANCELLING),
            (true, true) => Ticked::Again(SHORTLY),
            (true, false) => Ticked::Done(What::First),
        })
    }

    /// Starts the run of a tick without a pin, by what Temporal has of the schedule.
    async fn start_unpinned(
        &self,
        tick: &Tick,
        there: Option<OnTemporal>,
        why: LedgerError,
    ) -> Result<Ticked, TickError> {
        let (launch, open) = (&tick.launch, there.as_ref().map_or(0, |there| there.open));
        let (run, overlap) = match unpinned_run(tick, there.as_ref(), Utc::now()) {
            Ok(run) => run,
            Err(Judged::Early(by)) => return Ok(again_after(by)),
            Err(Judged::Done(what)) => return Ok(Ticked::Done(what)),
            // Its times count from what only Postgres knows, or its payload is there alone.
            Err(Judged::Due | Judged::PutOff(_)) => return Err(TickError::Later(why.to_string())),
        };
        let room = match overlap {
            Overlap::Skip | Overlap::AfterLast => 1,
            // Nothing can be cancelled now.
            Overlap::QueueOne | Overlap::CancelOld => 2,
            Overlap::QueueAll => super::plan::MOST_UNENDED,
        };
        if open >= room {
            return Ok(Ticked::Done(What::Overlap));
        }
        match self.router.start_without_postgres(&run, why).await {
            Ok(accepted) => {
                warn!(schedule = %launch.schedule, id = %accepted.id, "a run of a schedule was started without a pin");
                Ok(Ticked::Done(What::Unpinned))
            }
            Err(EnqueueError::Invalid(_) | EnqueueError::Conflict { .. }) => Ok(Ticked::Done(What::Refused)),
            Err(error) => Err(TickError::Later(error.to_string())),
        }
    }

    fn count_tick(&self, tick: &Tick, ticked: &Result<Ticked, TickError>) {
        let what = match ticked {
            Ok(Ticked::Done(what)) => what.as_str(),
            // It comes again, or is asked about once more.
            Ok(Ticked::Again(_)) | Err(TickError::Away(_)) => return,
            Err(TickError::Later(_)) => "later",
        };
        self.metrics.schedules.ticks.with_label_values(&[what]).inc();
        if what == What::OffPlan.as_str() && self.off_plan.is_time(TOLD_EVERY) {
            warn!(schedule = %tick.launch.schedule, at = ?tick.at, "Temporal's scheduler came with what is no time of the plan; what it has of the schedule is looked at again");
        }
    }
}

fn judge(taken: &Taken, times: &Times, (launch, wish): (&Launch, Option<i64>), at: Option<DateTime<Utc>>) -> Judged {
    let schedule = &taken.schedule;
    if let Some(token) = &launch.token {
        return if schedule.triggers.contains(token) { Judged::Due } else { Judged::Done(What::Second) };
    }
    if schedule.paused.is_some() {
        return Judged::Done(What::Paused);
    }
    if schedule.failures > 0 && schedule.wake_at.is_some_and(|wake_at| wake_at > taken.now) {
        return Judged::PutOff(schedule.trouble.clone().unwrap_or_default());
    }
    if schedule.definition.overlap == Overlap::AfterLast {
        // Its times count from the end of its last run, which Temporal doesn't know: it only says that it is time to look.
        let due = schedule.wake_at.is_some_and(|wake_at| wake_at <= taken.now);
        return if due { Judged::Due } else { Judged::Done(What::Second) };
    }
    let jitter = TimeDelta::milliseconds(schedule.definition.jitter_ms);
    let Some(nominal) = at.and_then(|at| nominal_of(times, at)).filter(|nominal| *nominal < taken.now + AHEAD) else {
        let stale = wish.is_none_or(|wish| launch.wish < wish);
        return Judged::Done(if stale { What::Stale } else { What::OffPlan });
    };
    if schedule.nominal.is_none_or(|next| nominal < next) {
        return Judged::Done(What::Second);
    }
    let due = jittered(schedule.id, nominal, jitter);
    if due > taken.now { Judged::Early(due - taken.now) } else { Judged::Due }
}

fn again_after(wait: TimeDelta) -> Ticked {
    Ticked::Again(wait.num_milliseconds().unsigned_abs().max(1))
}

/// The run of a tick by what Temporal has of its schedule, and what becomes of it beside another; `Due`: only the row knows.
fn unpinned_run(tick: &Tick, there: Option<&OnTemporal>, now: DateTime<Utc>) -> Result<(Interaction, Overlap), Judged> {
    let there = there.ok_or(Judged::Done(What::Gone))?;
    let (id, since) = (tick.launch.schedule, tick.launch.wish);
    if there.paused && tick.launch.token.is_none() {
        return Err(Judged::Done(What::Paused));
    }
    // What it was launched with may have been changed since, and never is it newer.
    let launch = there.launch.as_ref().filter(|there| there.wish >= since && there.whole).ok_or(Judged::Due)?;
    let definition = &launch.definition;
    if let Some(token) = &tick.launch.token {
        return Ok((definition.triggered(id, token), definition.overlap));
    }
    if definition.overlap == Overlap::AfterLast {
        return Err(Judged::Due);
    }
    let times = definition.times().map_err(|_| Judged::Done(What::Unreadable))?;
    let beside = if launch.wish > since { What::Stale } else { What::OffPlan };
    let nominal = tick.at.and_then(|at| nominal_of(&times, at)).ok_or(Judged::Done(beside))?;
    let jitter = TimeDelta::milliseconds(definition.jitter_ms);
    // Its own launcher lives no longer. What comes later somebody has asked Temporal for, and Postgres may have run or skipped it.
    let longest = TimeDelta::from_std(Mirror::longest(launch)).unwrap_or(TimeDelta::zero()) + CATCH_UP;
    if nominal < now - longest.min(jitter + TimeDelta::milliseconds(definition.catch_up_window_ms)) {
        return Err(Judged::Done(What::Missed));
    }
    let due = jittered(id, nominal, jitter);
    if due > now { Err(Judged::Early(due - now)) } else { Ok((definition.run(id, nominal), definition.overlap)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: uuid::Uuid = uuid::Uuid::from_u128(7);

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn launch(wish: i64, payload: &str, spec: &str) -> Launch {
        let body = format!(r#"{{"account":"a","name":"n","kind":"k","payload":{payload},"spec":{spec}}}"#);
        let definition = super::super::Definition::parse(body.as_bytes(), 1_000, at("2030-01-01T00:00:00Z")).unwrap();
        let content = String::new();
        Launch { schedule: SCHEDULE, wish, content, definition, whole: true, patience_ms: 60_000, token: None }
    }

    const HOURLY: &str = r#"{"every_ms":3600000,"starts_at":"2030-01-01T00:00:00Z"}"#;

    /// What becomes of the tick of 09:00, launched by the third wish, a second later.
    fn becomes(there: Option<OnTemporal>, token: Option<&str>, late: TimeDelta) -> String {
        let nine = at("2030-01-01T09:00:00Z");
        let launch = Launch { token: token.map(str::to_owned), ..launch(3, "1", HOURLY).without_payload() };
        let tick = Tick { at: token.is_none().then_some(nine), launch };
        match unpinned_run(&tick, there.as_ref(), nine + late) {
            Ok((run, _)) => format!("{} with {}", run.key.rsplit(['@', '!']).next().unwrap(), run.payload.get()),
            Err(Judged::Done(what)) => what.as_str().to_owned(),
            Err(Judged::Due | Judged::PutOff(_)) => "waits for Postgres".to_owned(),
            Err(Judged::Early(by)) => format!("early by {by}"),
        }
    }

    #[test]
    fn while_postgres_is_away_what_counts_is_what_temporal_has_now() {
        let there = |launch, paused| Some(OnTemporal { launch, paused, open: 0 });
        let soon = TimeDelta::seconds(1);
        let now = |there| becomes(there, None, soon);
        assert_eq!(now(there(Some(launch(3, "1", HOURLY)), false)), "2030-01-01T09:00:00.000Z with 1");
        assert_eq!(now(None), "gone");
        assert_eq!(now(there(Some(launch(4, "1", HOURLY)), true)), "paused");
        assert_eq!(now(there(Some(launch(4, "2", HOURLY)), false)), "2030-01-01T09:00:00.000Z with 2");
        let at_ten = r#"{"at":"2030-01-01T10:00:00Z"}"#;
        assert_eq!(now(there(Some(launch(4, "1", at_ten)), false)), "stale");
        assert_eq!(now(there(Some(launch(3, "1", at_ten)), false)), "off_plan");
        assert_eq!(now(there(Some(launch(2, "1", HOURLY)), false)), "waits for Postgres", "it is older");
        assert_eq!(now(there(None, false)), "waits for Postgres", "it can't be read");
        assert_eq!(now(there(Some(launch(3, "1", HOURLY).without_payload()), false)), "waits for Postgres");
        let asked = |there| becomes(there, Some("t"), soon);
        assert_eq!(asked(there(Some(launch(4, "2", HOURLY)), true)), "t with 2");
        assert_eq!(asked(None), "gone");
    }

    #[test]
    fn what_temporal_brings_later_than_its_launcher_lives_waits_for_postgres() {
        let there = || Some(OnTemporal { launch: Some(launch(3, "1", HOURLY)), paused: false, open: 0 });
        assert_eq!(becomes(there(), None, TimeDelta::minutes(11)), "2030-01-01T09:00:00.000Z with 1");
        assert_eq!(becomes(there(), None, TimeDelta::minutes(13)), "missed");
    }
}
