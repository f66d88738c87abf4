//! Attempts that a runner took away: who keeps them, until when, and how their runners ended them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use super::pins::{failure, named, payload, required};
use super::{Ledger, LedgerError, within};
use crate::interaction::{Attempt, Fence, Outcome, Payload, Side};
use crate::policy::{Failure, Next, Policy};

/// So many are forgotten with one statement.
const ROUND: i32 = 10_000;
/// And so often with one call; the next one goes on.
const ROUNDS: usize = 1_000;

/// An attempt that a runner took away.
#[derive(Debug, Clone)]
pub struct Detached {
    /// The interaction.
    pub id: Uuid,
    /// The attempt.
    pub fence: Fence,
    /// Who owns it.
    pub side: Side,
    /// Whether it has a pin.
    pub pinned: bool,
    /// Without a heartbeat for so long it is lost.
    pub silence: Duration,
    /// How long ago the interaction was first due; once the attempt has ended, how long before that.
    pub age: Duration,
    /// When this attempt was.
    pub due_at: DateTime<Utc>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When its runner took it away.
    pub detached_at: DateTime<Utc>,
    /// The last heartbeat.
    pub beat_at: DateTime<Utc>,
    /// It may run until then.
    pub run_until: DateTime<Utc>,
    /// When its runner ended it, or it was lost.
    pub ended_at: Option<DateTime<Utc>>,
    /// Whether the side that owns it knows its end.
    pub closed: bool,
    /// Somebody asked to cancel it.
    pub called_off: bool,
    /// Temporal wants to hear of it so often.
    pub forward_every: Duration,
    /// How often Temporal was told its end.
    pub tries: i32,
    /// What Temporal wants to be told to end it.
    pub token: Option<Vec<u8>>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it failed, where it did.
    pub failure: Option<Failure>,
    /// The runner's result.
    pub result: Option<Payload>,
    /// What went wrong.
    pub error: Option<String>,
    /// The retries of the interaction.
    pub policy: Policy,
    /// The remote worker that took it from its group; none where a runner that was called took it away.
    pub remote: Option<String>,
}

/// What a Temporal worker says of an attempt that its runner took away.
#[derive(Debug, Clone)]
pub struct Detaching {
    /// The interaction.
    pub id: Uuid,
    /// The attempt.
    pub fence: Fence,
    /// Whether it has a pin.
    pub pinned: bool,
    /// Without a heartbeat for so long it is lost.
    pub silence: Duration,
    /// It may run for so long from now on.
    pub left: Duration,
    /// Temporal wants to hear of it so often.
    pub forward_every: Duration,
    /// What Temporal wants to be told.
    pub token: Vec<u8>,
    /// How long ago the interaction was first due.
    pub age: Duration,
    /// When this attempt was.
    pub due_at: DateTime<Utc>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// The retries of the interaction.
    pub policy: Policy,
}

/// How a runner ends an attempt.
#[derive(Debug, Clone)]
pub enum Ending {
    /// It succeeded.
    Done(Payload),
    /// It did not.
    Failed {
        /// Whether another attempt is worth it.
        failure: Failure,
        /// What went wrong, for a person.
        error: String,
    },
}

/// What came of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beat {
    /// The runner still has it.
    Kept {
        /// The next heartbeat must come within this.
        silence: Duration,
        /// It may run until then.
        run_until: DateTime<Utc>,
        /// Somebody asked to cancel it.
        cancel_requested: bool,
    },
    /// The runner has it no longer.
    Late,
    /// Its worker has not recorded it yet, or never will.
    NotYet,
}

/// What came of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It was taken; `again` if it had been before.
    Taken {
        /// Who owns it. Temporal is told by whoever forwards.
        side: Side,
        /// How the attempt ended.
        outcome: Outcome,
        /// Another attempt follows.
        retried: bool,
        /// This was known before.
        again: bool,
    },
    /// The runner has it no longer.
    Late,
    /// Its worker has not recorded it yet, or never will.
    NotYet,
}

/// How much is away.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct DetachedCounts {
    /// Of Temporal's attempts.
    pub temporal: i64,
    /// Of Postgres'.
    pub postgres: i64,
    /// Seconds since the last heartbeat of whichever was heard of least recently.
    pub silent_seconds: f64,
    /// Ends that Temporal has not been told yet.
    pub untold: i64,
}

/// The error of an attempt whose runner took it away and fell silent.
pub const SILENT: &str =
    "its runner took it away and was not heard of for its heartbeat time-out; whether it had an effect is unknown";
/// The error of one that went on for too long.
pub const TOO_LONG: &str =
    "its runner took it away and did not end it within its run_timeout_ms; whether it had an effect is unknown";

/// The columns of a row, with whether somebody asked to cancel it.
pub(super) const ROW: &str =
    "d.*, extract(epoch from coalesce(d.ended_at, clock_timestamp()) - d.first_due_at)::float8 as age,
    d.result::text as result_text, d.policy::text as policy_text, d.called_off or exists (
    select from crossover.pins p where p.id = d.id and p.cancel_requested_at is not null) as is_called_off";

impl Ledger {
    /// Records that a runner took an attempt of Temporal away. Repeating it changes nothing.
    pub async fn detach(&self, d: &Detaching) -> Result<(), LedgerError> {
        let policy = serde_json::to_string(&d.policy).map_err(|e| sqlx::Error::Encode(e.into()))?;
        let detached = sqlx::query(
            "select crossover.detach_from_temporal($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::json, $12)",
        )
        .bind(d.id)
        .bind(d.fence.epoch)
        .bind(d.fence.attempt)
        .bind(d.silence.as_millis() as i64)
        .bind(d.left.as_millis() as i64)
        .bind(d.forward_every.as_millis() as i64)
        .bind(&d.token)
        .bind(d.age.as_millis() as i64)
        .bind(d.due_at)
        .bind(d.started_at)
        .bind(policy)
        .bind(d.pinned);
        within(detached.execute(&self.pool)).await?;
        Ok(())
    }

    /// A heartbeat of the runner that has this attempt.
    pub async fn beat(&self, id: Uuid, fence: Fence) -> Result<Beat, LedgerError> {
        let beat = sqlx::query("select * from crossover.beat_detached($1, $2, $3)");
        let beat = beat.bind(id).bind(fence.epoch).bind(fence.attempt);
        let row = within(beat.fetch_one(&self.pool)).await?;
        match row.try_get("answer")? {
            "kept" => Ok(Beat::Kept {
                silence: ms(&row, "silence_ms")?,
                run_until: row.try_get("run_until")?,
                cancel_requested: row.try_get("cancel_requested")?,
            }),
            "ended" => Ok(Beat::Late),
            _ if self.is_past(id, fence).await? => Ok(Beat::Late),
            _ => Ok(Beat::NotYet),
        }
    }

    /// The runner that has this attempt ends it. Repeating it changes nothing; the first word stands.
    pub async fn report(&self, id: Uuid, fence: Fence, ending: &Ending) -> Result<Report, LedgerError> {
        // The second look is for one that ended, or was lost, after the first.
        for _ in 0..2 {
            let Some(row) = self.detached(id, fence).await? else {
                return Ok(if self.is_past(id, fence).await? { Report::Late } else { Report::NotYet });
            };
            if row.ended_at.is_some() {
                return Ok(row.again(ending));
            }
            if let Some(taken) = self.take_end(&row, ending).await? {
                return Ok(taken);
            }
        }
        Ok(Report::Late)
    }

    /// None where it is no longer the runner's.
    async fn take_end(&self, row: &Detached, ending: &Ending) -> Result<Option<Report>, LedgerError> {
        let (outcome, failure, error) = match ending {
            Ending::Done(_) => (Outcome::Succeeded, None, None),
            // Whoever was asked to stop, and says that it has, is believed; no attempt follows.
            Ending::Failed { error, .. } if row.called_off => (Outcome::Cancelled, None, Some(error)),
            Ending::Failed { failure, error } => (Outcome::Failed, Some(failure), Some(error)),
        };
        let next = failure.map(|failure| row.after(failure));
        let retry = next.and_then(Next::wait);
        let result = match ending {
            Ending::Done(result) => Some(result.get()),
            Ending::Failed { .. } => None,
        };
        // Before its place is free.
        if let Some(ms) = failure.and_then(Failure::retry_after_ms) {
            self.heed(row, ms).await;
        }
        // What Temporal owns waits for another attempt from when Temporal hears of it.
        let ended = sqlx::query_scalar("select crossover.end_detached($1, $2, $3, $4, $5, $6, $7, $8, $9)");
        let ended = ended
            .bind(row.id)
            .bind(row.fence.epoch)
            .bind(row.fence.attempt)
            .bind(outcome.as_str())
            .bind(failure.map(|failure| *failure == Failure::Permanent))
            .bind(failure.and_then(Failure::retry_after_ms))
            .bind(retry.map(|wait| wait.as_millis() as i64))
            .bind(result)
            .bind(error);
        let taken: bool = within(ended.fetch_one(&self.pool)).await?;
        let report = Report::Taken { side: row.side, outcome, retried: retry.is_some(), again: false };
        Ok(taken.then_some(report))
    }

    /// Holds its account back, where its group heeds what a runner was told. An end is taken all the same if that fails.
    async fn heed(&self, row: &Detached, ms: i64) {
        let heeded = sqlx::query(
            "select crossover.heed_retry_after(crossover.detached_worker(), array[d.id], array[d.attempt], array[d.rank], array[d.vt], array[$4])
             from crossover.detached d where d.id = $1 and d.epoch = $2 and d.attempt = $3",
        );
        let heeded = heeded.bind(row.id).bind(row.fence.epoch).bind(row.fence.attempt).bind(ms);
        if let Err(error) = within(heeded.execute(&self.pool)).await {
            tracing::warn!(id = %row.id, %error, "what was said of coming back later can't be kept; more of its account may start before");
        }
    }

    /// What a runner took away under this fence, also if it has ended.
    pub async fn detached(&self, id: Uuid, fence: Fence) -> Result<Option<Detached>, LedgerError> {
        let sql = format!("select {ROW} from crossover.detached d where id = $1 and epoch = $2 and attempt = $3");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).bind(fence.epoch).bind(fence.attempt);
        let row = within(row.fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(detached_of).transpose()?)
    }

    /// The group of `id`; none where Postgres does not know it.
    pub async fn group_of(&self, id: Uuid) -> Result<Option<String>, LedgerError> {
        let group = sqlx::query_scalar(
            "select p.grp from crossover.pins p where p.id = $1
             union all
             select t.grp from crossover.tasks t where t.id = $1 and t.created_at = crossover.named_at($1) limit 1",
        );
        within(group.bind(id).fetch_optional(&self.pool)).await
    }

    /// What a runner has of `id` now.
    pub async fn away(&self, id: Uuid) -> Result<Option<Detached>, LedgerError> {
        let sql = format!(
            "select {ROW} from crossover.detached d where id = $1 and closed_at is null
             order by epoch desc, attempt desc limit 1"
        );
        let row = within(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(detached_of).transpose()?)
    }

    /// Whether an attempt that no runner has under this fence is past, so that no word of its runner counts any more.
    /// Otherwise its worker may be about to record it.
    async fn is_past(&self, id: Uuid, fence: Fence) -> Result<bool, LedgerError> {
        let past = sqlx::query_scalar(
            "select exists (select from crossover.detached where id = $1 and (epoch, attempt) > ($2, $3))
                or exists (select from crossover.running where id = $1 and (epoch, attempt) > ($2, $3))
                or exists (select from crossover.pins where id = $1
                    and (ended_at is not null or epoch > $2 or epoch = $2 and attempts >= $3))",
        );
        within(past.bind(id).bind(fence.epoch).bind(fence.attempt).fetch_one(&self.pool)).await
    }

    /// Those of `ids` whose real run is away with its runner.
    pub async fn are_away(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let away = sqlx::query_scalar("select id from crossover.detached where id = any ($1) and closed_at is null");
        within(away.bind(ids).fetch_all(&self.pool)).await
    }

    /// Takes up to `limit` attempts of which Temporal is to be told, ends for `lease`. `calm`: for so long this process could
    /// ask Postgres without a failure.
    pub async fn take_detached(
        &self,
        limit: i32,
        lease: Duration,
        calm: Duration,
    ) -> Result<Vec<Detached>, LedgerError> {
        let sql = format!("select {ROW} from crossover.take_detached($1, $2, $3) d");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(limit).bind(interval(lease)).bind(interval(calm));
        let rows = within(rows.fetch_all(&self.pool)).await?;
        let read =
            |row| detached_of(row).inspect_err(|error| tracing::error!(%error, "a detached attempt can't be read"));
        Ok(rows.iter().filter_map(|row| read(row).ok()).collect())
    }

    /// Temporal knows the end of an attempt, or waits for it no longer.
    pub async fn close_detached(&self, row: &Detached) -> Result<(), LedgerError> {
        let closed = sqlx::query(
            "update crossover.detached set closed_at = clock_timestamp(), result = null
             where id = $1 and epoch = $2 and attempt = $3 and token is not distinct from $4
                and ended_at is not null and closed_at is null",
        );
        within(of(row, closed).execute(&self.pool)).await?;
        Ok(())
    }

    /// Temporal waits no longer for an attempt whose runner goes on: what it says from now on is late. What it has said
    /// meanwhile is told, and refused there.
    pub async fn give_up_detached(&self, row: &Detached) -> Result<bool, LedgerError> {
        let given_up = sqlx::query(
            "update crossover.detached set ended_at = clock_timestamp(), closed_at = clock_timestamp(), outcome = 'failed',
                permanent = false, unknown = 'worker'
             where id = $1 and epoch = $2 and attempt = $3 and token is not distinct from $4 and ended_at is null",
        );
        Ok(within(of(row, given_up).execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// Temporal says that somebody asked to cancel it.
    pub async fn call_off_detached(&self, row: &Detached) -> Result<(), LedgerError> {
        let asked = sqlx::query(
            "update crossover.detached set called_off = true
             where id = $1 and epoch = $2 and attempt = $3 and token is not distinct from $4 and not called_off",
        );
        within(of(row, asked).execute(&self.pool)).await?;
        Ok(())
    }

    /// Forgets what was closed `keep` ago, so many at a time; how many. Also what a process of an older version took over from a silent runner,
    /// which knows nothing of this table.
    pub async fn forget_detached(&self, keep: Duration) -> Result<u64, LedgerError> {
        let mut all = 0;
        for _ in 0..ROUNDS {
            let forgotten = sqlx::query_scalar::<_, i64>("select crossover.forget_detached($1, $2)");
            let forgotten = within(forgotten.bind(interval(keep)).bind(ROUND).fetch_one(&self.pool)).await?;
            all += forgotten.unsigned_abs();
            if forgotten < i64::from(ROUND) {
                break;
            }
        }
        Ok(all)
    }

    /// How much is away.
    pub async fn detached_counts(&self) -> Result<DetachedCounts, LedgerError> {
        let counts = sqlx::query_as(
            "select count(*) filter (where side = 'temporal' and ended_at is null) as temporal,
                count(*) filter (where side = 'postgres') as postgres, count(*) filter (where ended_at is not null) as untold,
                coalesce(extract(epoch from clock_timestamp() - min(beat_at) filter (where ended_at is null)), 0)::float8
                    as silent_seconds
             from crossover.detached where closed_at is null",
        );
        within(counts.fetch_one(&self.pool)).await
    }
}

/// Binds which attempt it is: the token tells two apart that a reset gave one fence.
fn of<'q>(
    row: &'q Detached,
    query: sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>,
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    query.bind(row.id).bind(row.fence.epoch).bind(row.fence.attempt).bind(row.token.as_deref())
}

impl Detached {
    /// What follows its failure.
    pub fn after(&self, failure: &Failure) -> Next {
        self.policy.after(self.id, self.fence.attempt, failure, self.age)
    }

    /// The attempt as its side records it.
    pub fn attempt(&self) -> Attempt {
        Attempt {
            id: self.id,
            side: self.side,
            fence: self.fence,
            rehearsal: false,
            due_at: self.due_at,
            started_at: self.started_at,
            ended_at: self.ended_at.unwrap_or_else(Utc::now),
            outcome: self.outcome,
            failure: self.failure.clone(),
            retry_ms: None,
            result: self.result.clone(),
            error: self.error.clone(),
        }
    }

    /// The answer to a report of what has ended: the same word twice is not late.
    pub(super) fn again(&self, ending: &Ending) -> Report {
        let lost = self.failure.as_ref().is_some_and(|failure| failure.doubt().is_some());
        match (self.outcome, ending) {
            (Some(outcome @ Outcome::Succeeded), Ending::Done(_))
            | (Some(outcome @ (Outcome::Failed | Outcome::Cancelled)), Ending::Failed { .. })
                if !lost =>
            {
                Report::Taken { side: self.side, outcome, retried: false, again: true }
            }
            _ => Report::Late,
        }
    }
}

pub(super) fn ms(row: &PgRow, column: &str) -> Result<Duration, sqlx::Error> {
    Ok(Duration::from_millis(row.try_get::<i64, _>(column)?.max(0).unsigned_abs()))
}

fn interval(span: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: span.as_micros().try_into().unwrap_or(i64::MAX) }
}

pub(super) fn detached_of(row: &PgRow) -> Result<Detached, sqlx::Error> {
    let policy: &str = row.try_get("policy_text")?;
    Ok(Detached {
        id: row.try_get("id")?,
        fence: Fence { epoch: row.try_get("epoch")?, attempt: row.try_get("attempt")? },
        side: required(row, "side")?,
        pinned: row.try_get("pinned")?,
        silence: ms(row, "silence_ms")?,
        age: Duration::try_from_secs_f64(row.try_get("age")?).unwrap_or_default(),
        due_at: row.try_get("due_at")?,
        started_at: row.try_get("started_at")?,
        detached_at: row.try_get("detached_at")?,
        beat_at: row.try_get("beat_at")?,
        run_until: row.try_get("run_until")?,
        ended_at: row.try_get("ended_at")?,
        closed: row.try_get::<Option<DateTime<Utc>>, _>("closed_at")?.is_some(),
        called_off: row.try_get("is_called_off")?,
        forward_every: Duration::from_millis(row.try_get::<Option<i64>, _>("forward_ms")?.unwrap_or(0).unsigned_abs()),
        tries: row.try_get("tries")?,
        token: row.try_get("token")?,
        outcome: named(row, "outcome")?,
        failure: failure(row)?,
        result: payload(row, "result_text")?,
        error: row.try_get("error")?,
        policy: serde_json::from_str(policy).map_err(|e| sqlx::Error::Decode(e.into()))?,
        remote: row.try_get("remote")?,
    })
}
