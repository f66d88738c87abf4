//! The SQL of `tasks`, `tasks_ready`, `tasks_scheduled`, `workers` and `virtual_time`. Time is the database's.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::super::groups::Groups;
use super::super::kinds::{Ahead, Spot};
use super::super::storage::{Claimed, Finish};
use super::{NewTask, Place, TaskPlace, key_of, named_at};
use crate::interaction::{Envelope, Fence, Outcome, Payload, Side, Stage, UnknownName};
use crate::ledger::{Cancelling, Ended, LedgerError, Pin, Story, attempt_of, named, transient, within};
use crate::policy::{Failure, Policy};

/// The storage of tasks. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    pool: PgPool,
}

/// What a worker's heartbeat answers.
#[derive(Debug, Default)]
pub struct Beat {
    /// Attempts that it still holds.
    pub kept: Vec<(Uuid, i32)>,
    /// Of these, what somebody asked to cancel, in which words.
    pub wishes: Vec<((Uuid, i32), String)>,
}

/// What was recorded of a task when it was taken in.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// What must run.
    pub payload: Payload,
}

impl Tasks {
    /// The tasks of the database behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The groups and weights beside them.
    pub fn groups(&self) -> Groups {
        Groups::new(self.pool.clone())
    }

    /// Takes tasks in, in one statement. Answers those that are new now: neither one that is there already nor one of an
    /// account that is not armed.
    pub async fn enqueue(&self, tasks: &[NewTask]) -> Result<Vec<Uuid>, LedgerError> {
        match self.enqueue_new(tasks).await {
            Ok(true) => Ok(tasks.iter().map(|task| task.id).collect()),
            Ok(false) => self.enqueue_any(tasks).await,
            Err(LedgerError::Refused(error)) if is_repetition(&error) => self.enqueue_any(tasks).await,
            Err(error) => Err(error),
        }
    }

    /// The way of nearly all: they are new and start now, and no group has limits. False: one of them is not so, and none was
    /// taken in.
    async fn enqueue_new(&self, tasks: &[NewTask]) -> Result<bool, LedgerError> {
        let Some(first) = tasks.first() else { return Ok(true) };
        if tasks.iter().any(|t| t.run_at.is_some() || t.flag_revision != first.flag_revision) {
            return Ok(false);
        }
        let accounts: BTreeSet<&str> = tasks.iter().map(|t| t.account.as_str()).collect();
        let taken =
            sqlx::query_scalar("select crossover.enqueue_new_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
                .bind(accounts.into_iter().collect::<Vec<_>>())
                .bind(&first.flag_revision)
                .bind(tasks.iter().map(|t| t.id).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| named_at(t.id).unwrap_or_default()).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.vt).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| -t.priority).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.account.as_str()).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.kind.as_str()).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.group.as_deref().unwrap_or("default")).collect::<Vec<_>>())
                .bind(unless_none(policies(tasks)?))
                .bind(tasks.iter().map(|t| t.payload.get()).collect::<Vec<_>>());
        within(taken.fetch_one(&self.pool)).await
    }

    /// The same in one statement, whatever they are.
    pub async fn enqueue_any(&self, tasks: &[NewTask]) -> Result<Vec<Uuid>, LedgerError> {
        let taken =
            sqlx::query_scalar("select * from crossover.enqueue_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
                .bind(tasks.iter().map(|t| t.id).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| named_at(t.id).unwrap_or_default()).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.run_at).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.vt).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| -t.priority).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.account.as_str()).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.kind.as_str()).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.group.as_deref().unwrap_or("default")).collect::<Vec<_>>())
                .bind(tasks.iter().map(|t| t.flag_revision.as_str()).collect::<Vec<_>>())
                .bind(policies(tasks)?)
                .bind(tasks.iter().map(|t| t.payload.get()).collect::<Vec<_>>());
        within(taken.fetch_all(&self.pool)).await
    }

    /// What was recorded of `id`; none where it is no task.
    pub async fn recorded(&self, id: Uuid) -> Result<Option<Recorded>, LedgerError> {
        let Some(created_at) = named_at(id) else { return Ok(None) };
        let query = sqlx::query(
            "select account, kind, payload::text as payload from crossover.tasks where id = $1 and created_at = $2",
        );
        let Some(row) = within(query.bind(id).bind(created_at).fetch_optional(&self.pool)).await? else {
            return Ok(None);
        };
        Ok(Some(Recorded {
            account: row.try_get("account")?,
            kind: row.try_get("kind")?,
            payload: payload(&row, "payload")?,
        }))
    }

    /// Takes the head of what is ready, by priority and then in virtual time. Nothing for a worker without a lease.
    pub async fn claim(&self, worker: Uuid, limit: usize) -> Result<Vec<Claimed>, LedgerError> {
        self.claim_sharing(worker, limit, 0).await
    }

    /// The same; `low` of it are of the lowest priority that waits, where the head has none of it.
    pub async fn claim_sharing(&self, worker: Uuid, limit: usize, low: usize) -> Result<Vec<Claimed>, LedgerError> {
        let [limit, low] = [limit, low].map(|many| i32::try_from(many).unwrap_or(i32::MAX));
        let query = sqlx::query("select *, null::text as lapsed from crossover.claim_tasks($1, $2, $3)");
        let rows = within(query.bind(worker).bind(limit).bind(low).fetch_all(&self.pool)).await?;
        let mut claimed = self.readable(worker, &rows).await?;
        claimed.sort_by_key(|c| c.task.map(|place| (place.rank, place.vt)));
        Ok(claimed)
    }

    /// Takes what is ready from these places on, each a rank and a virtual time in it.
    pub async fn claim_from(
        &self,
        worker: Uuid,
        limit: usize,
        places: &[(i16, i64)],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let (ranks, vts): (Vec<i16>, Vec<i64>) = places.iter().copied().unzip();
        let query = sqlx::query("select *, null::text as lapsed from crossover.claim_tasks_from($1, $2, $3, $4)");
        let query = query.bind(worker).bind(i32::try_from(limit).unwrap_or(i32::MAX)).bind(ranks).bind(vts);
        let mut claimed = self.readable(worker, &within(query.fetch_all(&self.pool)).await?).await?;
        claimed.sort_by_key(|c| c.task.map(|place| (place.rank, place.vt)));
        Ok(claimed)
    }

    /// What is next in line from there, for a worker that chooses by kind.
    pub(in super::super) async fn look_ahead(
        &self,
        from: Spot<TaskPlace>,
        most: usize,
    ) -> Result<Vec<Ahead<TaskPlace>>, LedgerError> {
        let query = sqlx::query_as::<_, (i16, i64, Uuid, String)>(match from {
            Spot::Lowest => {
                "select rank, vt, id, kind from crossover.tasks_ready
                 where worker is null and (rank, vt, id) > ($1, $2, $3) and rank = (
                    select rank from crossover.tasks_ready where worker is null order by rank desc, vt desc, id desc limit 1)
                 order by rank, vt, id limit $4"
            }
            Spot::Head | Spot::Behind(_) => {
                "select rank, vt, id, kind from crossover.tasks_ready
                 where worker is null and (rank, vt, id) > ($1, $2, $3) order by rank, vt, id limit $4"
            }
        });
        let (rank, vt, id) = if let Spot::Behind(after) = from { after } else { (i16::MIN, i64::MIN, Uuid::nil()) };
        let rows = within(query.bind(rank).bind(vt).bind(id).bind(most as i64).fetch_all(&self.pool)).await?;
        let ahead = |(rank, vt, id, kind)| Ahead { place: (rank, vt, id), rank, kind, execute: true };
        Ok(rows.into_iter().map(ahead).collect())
    }

    /// Takes those that stand at `places`, as far as nobody else has. Nothing for a worker without a lease.
    pub(in super::super) async fn claim_named(
        &self,
        worker: Uuid,
        places: &[TaskPlace],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let query = sqlx::query("select *, null::text as lapsed from crossover.claim_named_tasks($1, $2, $3, $4)");
        let query = query.bind(worker).bind(places.iter().map(|place| place.0).collect::<Vec<_>>());
        let query = query.bind(places.iter().map(|place| place.1).collect::<Vec<_>>());
        let query = query.bind(places.iter().map(|place| place.2).collect::<Vec<_>>());
        let rows = within(query.fetch_all(&self.pool)).await?;
        let mut claimed = self.readable(worker, &rows).await?;
        claimed.sort_by_key(|c| c.task.map(|place| (place.rank, place.vt)));
        Ok(claimed)
    }

    /// Takes over at most `limit` attempts of a worker whose lease ran out, for `reaper`.
    pub async fn take_over(&self, reaper: Uuid, limit: i32, lease: Duration) -> Result<Vec<Claimed>, LedgerError> {
        let query = sqlx::query(
            "select *, null::text as lapsed from crossover.take_over_tasks($1, $2, $3 * interval '1 millisecond')",
        );
        let rows = within(query.bind(reaper).bind(limit).bind(lease.as_millis() as i64).fetch_all(&self.pool)).await?;
        self.readable(reaper, &rows).await
    }

    /// Takes over at most `limit` attempts whose runner took them away and has fallen silent, or took too long, for `reaper`,
    /// who could ask Postgres for as long as `calm`.
    pub async fn take_over_lapsed(
        &self,
        reaper: Uuid,
        limit: i32,
        calm: Duration,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let query =
            sqlx::query("select * from crossover.take_over_lapsed_tasks($1, $2, $3 * interval '1 millisecond')");
        let rows = within(query.bind(reaper).bind(limit).bind(calm.as_millis() as i64).fetch_all(&self.pool)).await?;
        self.readable(reaper, &rows).await
    }

    /// Gives a task's attempt to its runner, who is silent for `silence` at most and may take `left`. False: `worker` has
    /// lost it.
    pub async fn detach(
        &self,
        worker: Uuid,
        (id, attempt, place): (Uuid, i32, Place),
        silence: Duration,
        left: Duration,
    ) -> Result<bool, LedgerError> {
        let given = sqlx::query_scalar("select crossover.detach_task($1, $2, $3, $4, $5, $6, $7)")
            .bind(worker)
            .bind(place.rank)
            .bind(place.vt)
            .bind(id)
            .bind(attempt)
            .bind(silence.as_millis() as i64)
            .bind(left.as_millis() as i64);
        within(given.fetch_one(&self.pool)).await
    }

    /// Reads what was claimed. One that can't be read fails for itself and leaves the others alone. Where that end does not get
    /// through, the whole claim is as good as lost: nobody would know of what it took.
    async fn readable(&self, worker: Uuid, rows: &[PgRow]) -> Result<Vec<Claimed>, LedgerError> {
        let (mut good, mut broken) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            match claimed_of(row) {
                Ok(claimed) => good.push(claimed),
                Err(error) => broken.extend(unreadable(row, &error)),
            }
        }
        if broken.is_empty() {
            return Ok(good);
        }
        match self.finish(worker, &broken).await {
            Ok(_) => Ok(good),
            Err(LedgerError::Refused(error)) if !transient(&error) => {
                tracing::error!(%error, "tasks that can't be read can't be ended either; they wait until this worker ends");
                Ok(good)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends attempts. Answers which of them this worker still held; the others' results are late and were refused.
    pub async fn finish(&self, worker: Uuid, ends: &[Finish]) -> Result<Vec<Uuid>, LedgerError> {
        let place = |end: &Finish| end.task.unwrap_or(Place { rank: 0, vt: 0 });
        let kept = sqlx::query_scalar(
            "select * from crossover.finish_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(worker)
        .bind(ends.iter().map(|e| place(e).rank).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| place(e).vt).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.id).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.attempt).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.outcome.map(Outcome::as_str)).collect::<Vec<_>>())
        .bind(unless_none(
            ends.iter().map(|e| e.failure.as_ref().map(|f| *f == Failure::Permanent)).collect::<Vec<_>>(),
        ))
        .bind(unless_none(
            ends.iter().map(|e| e.failure.as_ref().and_then(Failure::retry_after_ms)).collect::<Vec<_>>(),
        ))
        .bind(unless_none(ends.iter().map(|e| e.retry.map(|r| r.as_millis() as i64)).collect::<Vec<_>>()))
        .bind(unless_none(ends.iter().map(|e| e.result.as_ref().map(Payload::get)).collect::<Vec<_>>()))
        .bind(unless_none(ends.iter().map(|e| e.error.as_deref()).collect::<Vec<_>>()))
        .bind(unless_none(
            ends.iter().map(|e| e.failure.as_ref().and_then(Failure::doubt).map(|d| d.as_str())).collect::<Vec<_>>(),
        ));
        within(kept.fetch_all(&self.pool)).await
    }

    /// Prolongs a worker's lease, which is one for all that it holds, and asks what of `held` it still holds. A worker that
    /// had none, or lost it, has one again, and nothing of what it held before.
    pub async fn beat(&self, worker: Uuid, held: &[(Uuid, i32, Place)], lease: Duration) -> Result<Beat, LedgerError> {
        let prolonged = sqlx::query(
            "insert into crossover.workers as w (worker, lease_until) values ($1, clock_timestamp() + $2 * interval '1 millisecond')
             on conflict (worker) do update set lease_until = excluded.lease_until",
        );
        within(prolonged.bind(worker).bind(lease.as_millis() as i64).execute(&self.pool)).await?;
        if held.is_empty() {
            return Ok(Beat::default());
        }
        let kept = sqlx::query_as::<_, (Uuid, i32, Option<String>)>(
            "select r.id, r.attempt, r.wish from unnest($2::smallint[], $3::bigint[], $4::uuid[], $5::integer[]) as h (rank, vt, id, attempt)
             join crossover.tasks_ready r on r.rank = h.rank and r.vt = h.vt and r.id = h.id
             where r.worker = $1 and r.attempt = h.attempt",
        )
        .bind(worker)
        .bind(held.iter().map(|h| h.2.rank).collect::<Vec<_>>())
        .bind(held.iter().map(|h| h.2.vt).collect::<Vec<_>>())
        .bind(held.iter().map(|h| h.0).collect::<Vec<_>>())
        .bind(held.iter().map(|h| h.1).collect::<Vec<_>>());
        let mut beat = Beat::default();
        for (id, attempt, wish) in within(kept.fetch_all(&self.pool)).await? {
            beat.kept.push((id, attempt));
            beat.wishes.extend(wish.map(|wish| ((id, attempt), wish)));
        }
        Ok(beat)
    }

    /// Puts back, as if it had not been claimed, what `worker` holds beside `held`: what a claim took whose answer was lost,
    /// or what it will not end. Reads all that is ready.
    pub async fn release_unknown(&self, worker: Uuid, held: &[(Uuid, i32)]) -> Result<u64, LedgerError> {
        let back = sqlx::query_scalar::<_, i64>("select crossover.release_tasks($1, $2)");
        let ids: Vec<Uuid> = held.iter().map(|key| key.0).collect();
        Ok(within(back.bind(worker).bind(ids).fetch_one(&self.pool)).await?.unsigned_abs())
    }

    /// Says that `worker` will not come back. Should it hold anything after all, that is taken over at once: whoever does so
    /// forgets the worker.
    pub async fn leave(&self, worker: Uuid) -> Result<(), LedgerError> {
        let gone = sqlx::query("update crossover.workers set lease_until = '-infinity' where worker = $1");
        within(gone.bind(worker).execute(&self.pool)).await?;
        Ok(())
    }

    /// Makes ready what has fallen due, and says in how long the next one will.
    pub async fn promote_due(&self, limit: i32) -> Result<(i64, Option<Duration>), LedgerError> {
        let promoted =
            within(sqlx::query_scalar("select crossover.promote_due_tasks($1)").bind(limit).fetch_one(&self.pool))
                .await?;
        let next: Option<f64> = within(
            sqlx::query_scalar(
                "select extract(epoch from min(due_at) - clock_timestamp())::float8 from crossover.tasks_scheduled",
            )
            .fetch_one(&self.pool),
        )
        .await?;
        Ok((promoted, next.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))))
    }

    /// Says that tasks were claimed up to `vt`, and answers how far any claim has come.
    pub async fn virtual_time(&self, vt: i64) -> Result<i64, LedgerError> {
        let told = sqlx::query_scalar(
            "with told as (update crossover.virtual_time set vt = $1 where vt < $1 returning vt)
             select coalesce((select vt from told), (select vt from crossover.virtual_time))",
        );
        within(told.bind(vt).fetch_one(&self.pool)).await
    }

    /// Asks to cancel `id`. None: there is no such task.
    pub async fn cancel(&self, id: Uuid, reason: &str) -> Result<Option<Cancelling>, LedgerError> {
        let Some(created_at) = named_at(id) else { return Ok(None) };
        let query =
            sqlx::query_scalar("select crossover.cancel_task($1, $2, $3)").bind(id).bind(created_at).bind(reason);
        let answer: Option<String> = within(query.fetch_one(&self.pool)).await?;
        Ok(answer.map(|answer| Cancelling::named(&answer)))
    }

    /// Those of `ids` that have ended.
    pub async fn ended(&self, ids: &[Uuid]) -> Result<Vec<Ended>, LedgerError> {
        let (ids, named): (Vec<Uuid>, Vec<DateTime<Utc>>) =
            ids.iter().filter_map(|id| Some((*id, named_at(*id)?))).unzip();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let query = sqlx::query(
            "select a.id, a.outcome, a.ended_at, a.error, a.result from unnest($1::uuid[], $2::timestamptz[]) as t (id, named_at)
             cross join lateral (
                select a.id, a.outcome, a.ended_at, a.error, a.result::text as result from crossover.attempts a
                where a.id = t.id and a.ended_at >= t.named_at - $3 * interval '1 millisecond' and a.retry_ms is null
                order by a.attempt desc limit 1) a",
        );
        let rows =
            within(query.bind(ids).bind(named).bind(CLOCKS_APART.as_millis() as i64).fetch_all(&self.pool)).await?;
        let read = |row: &PgRow| {
            Ok(Ended {
                id: row.try_get("id")?,
                outcome: named_outcome(row)?,
                ended_at: row.try_get("ended_at")?,
                reason: row.try_get("error")?,
                result: crate::ledger::payload_of(row, "result")?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Everything recorded of the task `id`, told as of a pinned interaction; none where there is no such task.
    pub async fn story(&self, id: Uuid) -> Result<Option<Story>, LedgerError> {
        let Some(created_at) = named_at(id) else { return Ok(None) };
        let query = sqlx::query(
            "select t.run_at, t.account, t.kind, t.flag_revision, t.payload::text as payload,
                case when s.id is not null then 'scheduled' when r.worker is not null then 'running'
                     when r.id is not null then 'ready' when w.id is not null then 'waiting' end as state
             from crossover.tasks t
             left join crossover.tasks_ready r on r.rank = t.rank and r.vt = t.vt and r.id = t.id
             left join crossover.tasks_scheduled s on s.id = t.id
             left join crossover.gate w on w.id = t.id
             where t.id = $1 and t.created_at = $2",
        );
        let Some(row) = within(query.bind(id).bind(created_at).fetch_optional(&self.pool)).await? else {
            return Ok(None);
        };
        let attempts = sqlx::query(
            "select *, result::text as result_text from crossover.attempts
             where id = $1 and ended_at >= $2 - $3 * interval '1 millisecond' order by attempt",
        );
        let attempts =
            within(attempts.bind(id).bind(created_at).bind(CLOCKS_APART.as_millis() as i64).fetch_all(&self.pool))
                .await?;
        let attempts = attempts.iter().map(attempt_of).collect::<Result<Vec<_>, _>>()?;
        let state: Option<String> = row.try_get("state")?;
        let last = attempts.last().filter(|last| last.retry_ms.is_none());
        let pin = Pin {
            id,
            created_at,
            run_at: row.try_get("run_at")?,
            owner: Side::Postgres,
            stage: Stage::Complete,
            epoch: 1,
            series_no: None,
            kind: row.try_get("kind")?,
            flag_revision: row.try_get("flag_revision")?,
            payload_hash: payload(&row, "payload")?.hash().to_vec(),
            attempts: attempts.last().map_or(0, |last| last.fence.attempt),
            outcome: last.and_then(|last| last.outcome),
            ended_at: last.map(|last| last.ended_at),
            reason: last.and_then(|last| last.error.clone()),
            conflict: None,
            cancel_requested_at: None,
        };
        // The end is read after the place, so it is the later word. Without either it is between two places for a moment, or ended so
        // long ago that its attempts are gone.
        let ended = last.and_then(|last| last.outcome).map(|outcome| outcome.as_str().to_owned());
        let state = ended.or(state).unwrap_or_else(|| "ready".to_owned());
        let account = row.try_get("account")?;
        Ok(Some(Story { account, key: key_of(id), series: None, state, undelivered: false, attempts, pin }))
    }
}

/// A router's clock, which names tasks, may go before the database's, which ends them, by so much.
const CLOCKS_APART: Duration = Duration::from_secs(3_600);

fn policies(tasks: &[NewTask]) -> Result<Vec<Option<String>>, sqlx::Error> {
    tasks.iter().map(|task| written(&task.policy)).collect()
}

/// What none of them has, need not be told of each.
fn unless_none<T>(values: Vec<Option<T>>) -> Option<Vec<Option<T>>> {
    values.iter().any(Option::is_some).then_some(values)
}

/// Whether one of them is there already.
fn is_repetition(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}

fn written(policy: &Policy) -> Result<Option<String>, sqlx::Error> {
    if *policy == Policy::default() {
        return Ok(None);
    }
    serde_json::to_string(policy).map(Some).map_err(|error| sqlx::Error::Encode(error.into()))
}

fn named_outcome(row: &PgRow) -> Result<Outcome, sqlx::Error> {
    named(row, "outcome")?.ok_or_else(|| sqlx::Error::ColumnNotFound("outcome".to_owned()))
}

fn payload(row: &PgRow, column: &str) -> Result<Payload, sqlx::Error> {
    crate::ledger::payload_of(row, column)?.ok_or_else(|| sqlx::Error::ColumnNotFound(column.to_owned()))
}

/// What claims and take-overs answer, in their order: reading by name would look each name up in each row.
mod column {
    pub const RANK: usize = 0;
    pub const VT: usize = 1;
    pub const ID: usize = 2;
    pub const ATTEMPT: usize = 3;
    pub const DUE_AT: usize = 4;
    pub const STARTED_AT: usize = 5;
    pub const RUN_AT: usize = 6;
    pub const ACCOUNT: usize = 7;
    pub const KIND: usize = 8;
    pub const GROUP: usize = 9;
    pub const POLICY: usize = 10;
    pub const PAYLOAD: usize = 11;
    pub const WISH: usize = 12;
    pub const LAPSED: usize = 13;
}

fn place_of(row: &PgRow) -> Result<Place, sqlx::Error> {
    Ok(Place { rank: row.try_get(column::RANK)?, vt: row.try_get(column::VT)? })
}

fn claimed_of(row: &PgRow) -> Result<Claimed, sqlx::Error> {
    let policy: Option<&str> = row.try_get(column::POLICY)?;
    let policy = policy.map(serde_json::from_str).transpose().map_err(|e| sqlx::Error::Decode(e.into()))?;
    let (id, started_at): (Uuid, DateTime<Utc>) = (row.try_get(column::ID)?, row.try_get(column::STARTED_AT)?);
    let run_at: DateTime<Utc> = row.try_get(column::RUN_AT)?;
    let payload = Payload::parse(row.try_get(column::PAYLOAD)?).map_err(|e| sqlx::Error::Decode(e.into()))?;
    let envelope = Envelope {
        id,
        account: row.try_get(column::ACCOUNT)?,
        kind: row.try_get(column::KIND)?,
        key: key_of(id),
        series: None,
        series_no: None,
        group: Some(row.try_get(column::GROUP)?),
        run_at: Some(run_at),
        policy: policy.unwrap_or_default(),
        owner: Side::Postgres,
        epoch: 1,
        pinned: true,
        cancelled: false,
        // Nobody compares it: there is no other copy.
        payload_hash: String::new(),
        behind: Vec::new(),
        payload,
    };
    let lapsed: Option<&str> = row.try_get(column::LAPSED)?;
    Ok(Claimed {
        envelope,
        fence: Fence { epoch: 1, attempt: row.try_get(column::ATTEMPT)? },
        rehearsal: false,
        due_at: row.try_get(column::DUE_AT)?,
        started_at,
        age: (started_at - run_at).to_std().unwrap_or_default(),
        called_off: row.try_get(column::WISH)?,
        exclusive: false,
        lapsed: lapsed.map(str::parse).transpose().map_err(|e: UnknownName| sqlx::Error::Decode(e.into()))?,
        task: Some(place_of(row)?),
    })
}

fn unreadable(row: &PgRow, error: &sqlx::Error) -> Option<Finish> {
    let (id, attempt, task) = (row.try_get(column::ID).ok()?, row.try_get(column::ATTEMPT).ok()?, place_of(row).ok()?);
    let error = crate::executor::clean(&format!("the stored task can't be read: {error}"));
    tracing::error!(%id, error, "a task has failed unread; see crossover.tasks");
    Some(Finish {
        id,
        epoch: 1,
        attempt,
        rehearsal: false,
        ended_at: Utc::now(),
        outcome: Some(Outcome::Failed),
        failure: Some(Failure::Permanent),
        retry: None,
        park: false,
        result: None,
        error: Some(error),
        task: Some(task),
    })
}
