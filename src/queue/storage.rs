//! The SQL of the queue's tables. Time is the database's.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::groups::Groups;
use super::kinds::{Ahead, Spot};
use super::tasks::{Place, Tasks};
use crate::executor::{PARKED, clean};
use crate::interaction::{Envelope, Fence, Outcome, Payload};
use crate::ledger::{ENVELOPE, Ledger, LedgerError, envelope_of, failure_of, named, payload_of, within};
use crate::policy::{Doubt, Failure, Next};

/// The queue's storage. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    pool: PgPool,
}

/// What a worker asks for.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Who asks.
    pub worker: Uuid,
    /// At most so many.
    pub limit: i64,
    /// Leave rehearsals where they are.
    pub executions_only: bool,
    /// Without a heartbeat for so long, another takes it over.
    pub lease: Duration,
}

/// Where a copy stands in the ready set.
pub(super) type CopyPlace = (i16, i64);

/// A copy that a worker holds.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// What to run.
    pub envelope: Envelope,
    /// The attempt that this claim began.
    pub fence: Fence,
    /// Nothing is to be run.
    pub rehearsal: bool,
    /// When it became due.
    pub due_at: DateTime<Utc>,
    /// When this claim was made.
    pub started_at: DateTime<Utc>,
    /// How long ago the interaction was first due.
    pub age: Duration,
    /// Somebody asked to cancel it, in these words: it is not to be run.
    pub called_off: Option<String>,
    /// No other of its `exclusive` runs beside it.
    pub exclusive: bool,
    /// Where its row is, of a task.
    pub task: Option<Place>,
    /// Of what was taken over: its runner had it, and this is why it is lost.
    pub lapsed: Option<Doubt>,
}

/// What a heartbeat answers of an attempt that is still held.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Kept {
    /// The interaction.
    pub id: Uuid,
    /// The attempt.
    pub attempt: i32,
    /// Somebody asked to cancel it, in these words.
    pub called_off: Option<String>,
}

/// The wish to cancel an execution, in a query that has its pin.
const CALLED_OFF: &str = "case when p.owner = 'postgres' and p.cancel_requested_at is not null
    then coalesce(p.cancel_reason, 'somebody asked to cancel it') end as called_off";

/// How an attempt that a worker holds ended.
#[derive(Debug, Clone)]
pub struct Finish {
    /// The interaction.
    pub id: Uuid,
    /// The epoch of its copy.
    pub epoch: i32,
    /// The attempt.
    pub attempt: i32,
    /// Nothing was run.
    pub rehearsal: bool,
    /// When that was known, by the clock of this process.
    pub ended_at: DateTime<Utc>,
    /// What came of it; `None` for a rehearsal that was bounded.
    pub outcome: Option<Outcome>,
    /// Why it failed, where it did.
    pub failure: Option<Failure>,
    /// Another attempt follows after so long.
    pub retry: Option<Duration>,
    /// It does not end: a person says what came of it.
    pub park: bool,
    /// The runner's answer.
    pub result: Option<Payload>,
    /// What went wrong.
    pub error: Option<String>,
    /// Where its row is, of a task.
    pub task: Option<Place>,
}

/// What the real run has come to, as far as a rehearsal of it needs to know.
#[derive(Debug, Clone)]
pub struct Mirrored {
    /// The interaction.
    pub id: Uuid,
    /// How the real attempt of the rehearsal's number ended, or the interaction, where that attempt left no record.
    pub outcome: Outcome,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Its result.
    pub result: Option<Payload>,
    /// What went wrong.
    pub error: Option<String>,
    /// The interaction has ended, and with no later attempt.
    pub last: bool,
}

/// How much is where.
#[derive(Debug, Clone, Default, sqlx::FromRow, serde::Serialize)]
pub struct Depth {
    /// Can start now.
    pub ready: i64,
    /// Is due later.
    pub scheduled: i64,
    /// Is held by a worker.
    pub running: i64,
    /// Waits at the gate of its group.
    pub waiting: i64,
    /// Seconds for which the next copy to be claimed by a worker of crossover has been due.
    pub oldest_seconds: f64,
}

/// How much of a group is ready, or waits at its gate.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow, serde::Serialize)]
pub struct GroupDepth {
    /// The group.
    pub name: String,
    /// Can start now.
    pub ready: i64,
    /// Waits at its gate.
    pub waiting: i64,
    /// Seconds for which the oldest that can start has been due.
    pub oldest_seconds: f64,
}

impl Claimed {
    /// Which attempt at which interaction it is.
    pub(super) fn key(&self) -> (Uuid, i32) {
        (self.envelope.id, self.fence.attempt)
    }
}

impl Finish {
    /// The end of `claimed`, now and with nothing to tell.
    pub fn of(claimed: &Claimed, outcome: Option<Outcome>) -> Self {
        Self {
            id: claimed.envelope.id,
            epoch: claimed.fence.epoch,
            attempt: claimed.fence.attempt,
            rehearsal: claimed.rehearsal,
            ended_at: Utc::now(),
            outcome,
            failure: None,
            retry: None,
            park: false,
            result: None,
            error: None,
            task: claimed.task,
        }
    }

    /// The failed end of `claimed`, with what its policy says that follows, `age` after it was first due.
    pub(super) fn failed(claimed: &Claimed, failure: Failure, error: String, age: Duration) -> Self {
        let next = claimed.envelope.policy.after(claimed.envelope.id, claimed.fence.attempt, &failure, age);
        let park = next == Next::Park;
        let error = if park { clean(&format!("{PARKED}{error}")) } else { error };
        let (failure, error) = (Some(failure), Some(error));
        Self { failure, retry: next.wait(), park, error, ..Self::of(claimed, Some(Outcome::Failed)) }
    }

    /// Which attempt at which interaction it ends.
    pub(super) fn key(&self) -> (Uuid, i32) {
        (self.id, self.attempt)
    }
}

/// What a claim of copies takes.
pub(super) const HEAD: &str = "picked as materialized (select * from head),";
const LOW_AND_HEAD: &str = "low as materialized (
        select rank, seq from crossover.ready where rank = (
                select rank from crossover.ready where {which} order by rank desc, seq desc limit 1)
            and rank > (select max(rank) from head) and {which}
        order by rank, seq limit $4 for update skip locked),
     picked as materialized (
        select * from low union all (select * from head order by rank, seq limit $1 - (select count(*) from low))),";

impl Queue {
    /// The queue of the database behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Where it connects to.
    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Tells workers of other processes that something can start, on behalf of the process `from`.
    pub(super) async fn ring(&self, from: &str) -> Result<(), LedgerError> {
        within(sqlx::query("select crossover.ring($1)").bind(from).execute(&self.pool)).await.map(drop)
    }

    /// The tasks beside it.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(self.pool.clone())
    }

    /// The groups that have limits.
    pub fn groups_with_limits(&self) -> Groups {
        Groups::new(self.pool.clone())
    }

    /// Takes the head of the ready set: by priority, then in order. What came to be ready before its group had limits goes to the
    /// gate. Reads as many rows as it takes. What waits for remote workers stands behind all that.
    pub async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, LedgerError> {
        self.claim_sharing(claim, 0).await
    }

    /// The same; `low` of it are of the lowest priority that waits, where the head has none of it.
    pub async fn claim_sharing(&self, claim: Claim, low: usize) -> Result<Vec<Claimed>, LedgerError> {
        let only = if claim.executions_only { "rank <= 500 and execute" } else { "rank <= 500" };
        let picked = if low > 0 { LOW_AND_HEAD } else { HEAD };
        let sql = claim_sql(only, "rank, seq", picked);
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(claim.limit)
            .bind(claim.worker)
            .bind(claim.lease.as_millis() as i64);
        if low > 0 {
            query = query.bind(low as i64);
        }
        let rows = within(query.fetch_all(&self.pool)).await?;
        Ok(self.readable(claim.worker, &rows).await)
    }

    /// What is next in line from there, for a worker that chooses by kind; what waits for remote workers is not.
    pub(super) async fn look_ahead(
        &self,
        executions_only: bool,
        from: Spot<CopyPlace>,
        most: usize,
    ) -> Result<Vec<Ahead<CopyPlace>>, LedgerError> {
        let only = if executions_only { "and execute" } else { "" };
        let lowest = match from {
            Spot::Lowest => format!(
                "and rank = (select rank from crossover.ready where rank <= 500 {only} order by rank desc, seq desc limit 1)"
            ),
            Spot::Head | Spot::Behind(_) => String::new(),
        };
        let sql = format!(
            "select a.rank, a.seq, a.execute, coalesce(p.kind, '') from (
                select rank, seq, id, execute from crossover.ready
                where rank <= 500 and (rank, seq) > ($1, $2) {only} {lowest} order by rank, seq limit $3) a
             left join crossover.pins p on p.id = a.id order by a.rank, a.seq"
        );
        let (rank, seq) = if let Spot::Behind(after) = from { after } else { (i16::MIN, i64::MIN) };
        let rows = sqlx::query_as::<_, (i16, i64, bool, String)>(sqlx::AssertSqlSafe(sql)).bind(rank).bind(seq);
        let rows = within(rows.bind(most as i64).fetch_all(&self.pool)).await?;
        let ahead = |(rank, seq, execute, kind)| Ahead { place: (rank, seq), rank, kind, execute };
        Ok(rows.into_iter().map(ahead).collect())
    }

    /// Takes those of the ready set that stand at `places`, as far as nobody else has.
    pub(super) async fn claim_named(&self, claim: Claim, places: &[CopyPlace]) -> Result<Vec<Claimed>, LedgerError> {
        let (ranks, seqs): (Vec<i16>, Vec<i64>) = places.iter().copied().unzip();
        let named = "(rank, seq) in (select n.rank, n.seq from unnest($4::smallint[], $5::bigint[]) as n (rank, seq))";
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(claim_sql(named, "rank, seq", HEAD))).bind(claim.limit).bind(claim.worker);
        let rows = rows.bind(claim.lease.as_millis() as i64).bind(ranks).bind(seqs);
        let rows = within(rows.fetch_all(&self.pool)).await?;
        Ok(self.readable(claim.worker, &rows).await)
    }

    /// Reads what was claimed. A copy that can't be read (written by another version, mended by hand) fails for itself
    /// and leaves the others alone.
    async fn readable(&self, worker: Uuid, rows: &[PgRow]) -> Vec<Claimed> {
        let mut good = Vec::with_capacity(rows.len());
        let mut broken = Vec::new();
        for row in rows {
            match claimed_of(row) {
                Ok(claimed) => good.push(claimed),
                Err(error) => broken.extend(unreadable(row, &error)),
            }
        }
        if !broken.is_empty()
            && let Err(error) = self.finish(worker, &broken).await
        {
            tracing::warn!(%error, "copies that can't be read can't be ended either; they come again when their lease ends");
        }
        good
    }

    /// Prolongs leases. Answers which of `held` this worker still holds, and which of these somebody asked to cancel.
    pub async fn heartbeat(
        &self,
        worker: Uuid,
        held: &[(Uuid, i32)],
        lease: Duration,
    ) -> Result<Vec<Kept>, LedgerError> {
        let (ids, attempts): (Vec<Uuid>, Vec<i32>) = held.iter().copied().unzip();
        let sql = format!(
            "with mine as materialized (
                select r.id from crossover.running r join unnest($1::uuid[], $2::integer[]) as h (id, attempt)
                    on r.id = h.id and r.attempt = h.attempt
                where r.worker = $3 order by r.id for update of r)
             update crossover.running r set lease_until = clock_timestamp() + $4 * interval '1 millisecond'
             from mine join crossover.pins p on p.id = mine.id
             where r.id = mine.id returning r.id, r.attempt, {CALLED_OFF}"
        );
        let kept = sqlx::query_as(sqlx::AssertSqlSafe(sql));
        within(kept.bind(ids).bind(attempts).bind(worker).bind(lease.as_millis() as i64).fetch_all(&self.pool)).await
    }

    /// Puts back, as if it had not been claimed, what `worker` holds beside `held`: what a claim took whose answer was lost,
    /// or what it will not end. What held a place of its group gives it back.
    pub async fn release_unknown(&self, worker: Uuid, held: &[(Uuid, i32)]) -> Result<u64, LedgerError> {
        let ids: Vec<Uuid> = held.iter().map(|key| key.0).collect();
        let back = sqlx::query_scalar::<_, i64>(
            // In one order, as heartbeats and ends do.
            "with mine as materialized (
                select id from crossover.running where worker = $1 and id <> all ($2) order by id for update),
             back as (delete from crossover.running r using mine where r.id = mine.id returning r.*),
             stopped as (
                insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
                select grp, false, rank, nextval('crossover.ready_seq_seq'), id, due_at, attempt, execute, gated_for
                from back where gated_for is not null),
             placed as (
                insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
                select id, due_at, attempt, rank, execute, grp from back where gated_for is null)
             select count(*) from back",
        );
        Ok(within(back.bind(worker).bind(ids).fetch_one(&self.pool)).await?.unsigned_abs())
    }

    /// Gives an attempt that `worker` holds to its runner, which may be silent for so long, and run on for `left`. False: the
    /// worker has lost it.
    pub async fn detach(
        &self,
        worker: Uuid,
        (id, attempt): (Uuid, i32),
        silence: Duration,
        left: Duration,
    ) -> Result<bool, LedgerError> {
        let given = sqlx::query_scalar("select crossover.detach_from_worker($1, $2, $3, $4, $5)")
            .bind(worker)
            .bind(id)
            .bind(attempt)
            .bind(silence.as_millis() as i64)
            .bind(left.as_millis() as i64);
        within(given.fetch_one(&self.pool)).await
    }

    /// Ends attempts. Answers which of them this worker still held; the others' results are late and were refused. What
    /// somebody asked to cancel is not tried again, and not rehearsed again.
    pub async fn finish(&self, worker: Uuid, ends: &[Finish]) -> Result<Vec<Uuid>, LedgerError> {
        let retried: Vec<Uuid> =
            ends.iter().filter(|e| e.retry.is_some() || (e.park && !e.rehearsal)).map(|e| e.id).collect();
        if retried.is_empty() {
            return within(finish(&self.pool, worker, ends)).await;
        }
        within(async {
            let mut tx = self.pool.begin().await?;
            let kept = finish(&mut *tx, worker, ends).await?;
            let cancel = sqlx::query_scalar::<_, Uuid>("select crossover.cancel_instead_of_retry($1)");
            for id in cancel.bind(retried).fetch_all(&mut *tx).await? {
                tracing::info!(%id, "cancelled instead of tried again");
            }
            tx.commit().await?;
            Ok(kept)
        })
        .await
    }

    /// Which of `ends` are recorded as they are told here: where the answer to a [`Queue::finish`] was lost. One that was
    /// taken over has another end.
    pub async fn recorded(&self, ends: &[Finish]) -> Result<Vec<(Uuid, i32)>, LedgerError> {
        let recorded = sqlx::query_as(
            "select a.id, a.attempt from crossover.attempts a
             join unnest($1::uuid[], $2::integer[], $3::integer[], $4::text[]) as e (id, epoch, attempt, error)
                on a.id = e.id and a.epoch = e.epoch and a.attempt = e.attempt
             where a.side = 'postgres' and a.error is not distinct from e.error",
        )
        .bind(ends.iter().map(|e| e.id).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.epoch).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.attempt).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.error.clone()).collect::<Vec<_>>());
        within(recorded.fetch_all(&self.pool)).await
    }

    /// Takes over what workers hold whose lease ran out, but not what this process's `worker` knows to hold (`held`): it is
    /// alive. They lose it at this moment: their results are late. After a start of Postgres every worker has a lease's
    /// time to report first; and so has every runner that took an attempt away, also where this process alone could not ask
    /// Postgres (`calm`: for so long it could).
    pub async fn take_over(
        &self,
        reaper: Uuid,
        (worker, held): (Uuid, &[(Uuid, i32)]),
        limit: i64,
        lease: Duration,
        calm: Duration,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let sql = format!(
            "with lost as materialized (
                select r.id from crossover.running r
                where r.lease_until < clock_timestamp() and not (r.worker = $4 and r.id = any ($5))
                    and pg_postmaster_start_time() < clock_timestamp() - $3 * interval '1 millisecond'
                    and (r.worker <> crossover.detached_worker() or crossover.may_lapse(r.id, r.epoch, r.attempt, $6))
                limit $1 for update of r skip locked),
             held as (
                update crossover.running r set worker = $2, lease_until = clock_timestamp() + $3 * interval '1 millisecond'
                from lost where r.id = lost.id returning r.*)
             select {ENVELOPE}, h.attempt, h.execute, h.due_at, h.started_at, {CALLED_OFF},
                crossover.lapse_detached(h.id, h.epoch, h.attempt) as lapsed, y.exclusive is not null as exclusive,
                extract(epoch from clock_timestamp() - p.run_at)::float8 as age
             from held h join crossover.pins p on p.id = h.id
             join crossover.payloads y on y.id = p.id and y.created_at = p.created_at"
        );
        let rows = within(
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(limit)
                .bind(reaper)
                .bind(lease.as_millis() as i64)
                .bind(worker)
                .bind(held.iter().map(|key| key.0).collect::<Vec<_>>())
                .bind(PgInterval { months: 0, days: 0, microseconds: calm.as_micros().try_into().unwrap_or(i64::MAX) })
                .fetch_all(&self.pool),
        )
        .await?;
        Ok(self.readable(reaper, &rows).await)
    }

    /// Makes ready what has fallen due, and says in how long the next one will.
    pub async fn promote_due(&self, limit: i32) -> Result<(i64, Option<Duration>), LedgerError> {
        let promoted =
            within(sqlx::query_scalar("select crossover.promote_due($1)").bind(limit).fetch_one(&self.pool)).await?;
        let next: Option<f64> = within(
            sqlx::query_scalar(
                "select extract(epoch from min(due_at) - clock_timestamp())::float8 from crossover.scheduled",
            )
            .fetch_one(&self.pool),
        )
        .await?;
        Ok((promoted, next.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))))
    }

    /// Of the rehearsals `ids`, which this worker holds, those whose real attempt has ended or whose interaction has.
    pub async fn mirrored(&self, worker: Uuid, ids: &[Uuid]) -> Result<Vec<Mirrored>, LedgerError> {
        let rows = within(
            sqlx::query(
                "with done as materialized (
                select r.id, r.epoch, r.attempt, p.created_at, p.outcome as final, p.reason, p.attempts as made
                from crossover.running r join crossover.pins p on p.id = r.id
                where r.id = any ($1) and r.worker = $2 and not r.execute
                    and not exists (select from crossover.parked k where k.id = r.id)
                    and (p.attempts >= r.attempt or p.ended_at is not null))
             select d.id, coalesce(a.outcome, d.final, 'failed') as outcome, a.permanent, a.unknown, a.retry_after_ms,
                a.result::text as result, coalesce(a.error, d.reason) as error,
                d.final is not null and d.attempt >= d.made as last
             from done d left join lateral (
                select * from crossover.attempts a
                where a.id = d.id and a.ended_at >= d.created_at and a.side = 'temporal' and not a.rehearsal
                    and a.epoch = d.epoch and a.attempt = d.attempt limit 1) a on true",
            )
            .bind(ids)
            .bind(worker)
            .fetch_all(&self.pool),
        )
        .await?;
        let read = |row: &PgRow| {
            Ok(Mirrored {
                id: row.try_get("id")?,
                outcome: named(row, "outcome")?.unwrap_or(Outcome::Failed),
                failure: failure_of(row)?,
                result: payload_of(row, "result")?,
                error: row.try_get("error")?,
                last: row.try_get("last")?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Those of `ids` whose real run is away with its runner.
    pub async fn away(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        Ledger::new(self.pool.clone()).are_away(ids).await
    }

    /// How much is where. Counts up to 50,000 rows of a place and believes the statistics beyond.
    pub async fn depth(&self) -> Result<Depth, LedgerError> {
        let count = |place: &str| {
            format!(
                "(select greatest(count(*), case when count(*) = 50000
                    then (select reltuples::bigint from pg_class where oid = 'crossover.{place}'::regclass) end)
                  from (select 1 from crossover.{place} limit 50000) rows)"
            )
        };
        // Tasks that run stand at the head of those that are ready.
        let sql = format!(
            "with head as materialized (select worker, due_at from crossover.tasks_ready order by rank, vt, id limit 50000),
             held as (select count(worker) as tasks, min(due_at) filter (where worker is null) as oldest from head)
             select {} + {} - held.tasks as ready, {} + {} as scheduled, {} + held.tasks as running, {} as waiting,
                coalesce(extract(epoch from clock_timestamp() - least(held.oldest,
                    (select due_at from crossover.ready where rank <= 500 order by rank, seq limit 1)))::float8, 0) as oldest_seconds
             from held",
            count("ready"),
            count("tasks_ready"),
            count("scheduled"),
            count("tasks_scheduled"),
            count("running"),
            count("gate")
        );
        within(sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_one(&self.pool)).await
    }

    /// The `most` deepest groups of what is ready or waits at a gate, and the rest under the name `others`. Reads 50,000 rows
    /// of each.
    pub async fn groups(&self, most: i64, others: &str) -> Result<Vec<GroupDepth>, LedgerError> {
        let groups = sqlx::query_as(
            "with head as materialized (
                (select grp, due_at, false as waits from crossover.ready where rank <= 500 order by rank, seq limit 50000)
                union all
                (select grp, due_at, false from crossover.ready where rank > 500 order by rank, seq limit 50000)
                union all
                (select grp, due_at, false from crossover.tasks_ready where worker is null order by rank, vt, id limit 50000)
                union all
                (select grp, due_at, true from crossover.gate limit 50000)),
             grouped as (
                select grp, count(*) filter (where not waits) as ready, count(*) filter (where waits) as waiting,
                    coalesce(extract(epoch from clock_timestamp() - min(due_at) filter (where not waits)), 0)::float8 as oldest,
                    row_number() over (order by count(*) desc, grp) as place
                from head group by grp)
             select case when place <= $1 then grp else $2 end as name, sum(ready)::bigint as ready,
                sum(waiting)::bigint as waiting, max(oldest) as oldest_seconds
             from grouped group by 1",
        );
        within(groups.bind(most).bind(others).fetch_all(&self.pool)).await
    }
}

/// Takes the first `$1` `by` that are `which` for the worker `$2`, for `$3` milliseconds, of them what is `picked`.
pub(super) fn claim_sql(which: &str, by: &str, picked: &str) -> String {
    // Whether there are limits is asked before a row is locked, and not in the snapshot of this statement: one that is older than a
    // group's first limit, and came to its end after it, would start more than the limit.
    format!(
        "with gates as materialized (select crossover.begin_claim() as are),
         head as materialized (
            select rank, seq from crossover.ready where (select are from gates) is not null and {which}
            order by {by} limit $1 for update skip locked),
         {picked}
         taken as (
            delete from crossover.ready r using picked h where r.rank = h.rank and r.seq = h.seq
            returning r.*, r.gated_for is null
                and case when (select are from gates) then crossover.is_gated_now(r.grp) else false end as stray),
         stopped as (
            insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
            select t.grp, false, t.rank, t.seq, t.id, t.due_at, t.attempt, t.execute, p.account
            from taken t join crossover.pins p on p.id = t.id where t.stray),
         held as (
            insert into crossover.running (id, lease_until, due_at, started_at, epoch, attempt, rank, execute, worker, grp, gated_for)
            select t.id, clock_timestamp() + $3 * interval '1 millisecond', t.due_at, clock_timestamp(), p.epoch,
                t.attempt, t.rank, p.owner = 'postgres', $2, t.grp, t.gated_for
            from taken t join crossover.pins p on p.id = t.id
            where not t.stray and p.conflict is null and (p.owner = 'temporal' or p.owner = 'postgres' and p.ended_at is null)
            returning *)
         select {ENVELOPE}, h.attempt, h.execute, h.due_at, h.started_at, {CALLED_OFF}, null::text as lapsed,
            y.exclusive is not null as exclusive,
            extract(epoch from h.started_at - p.run_at)::float8 as age
         from held h join crossover.pins p on p.id = h.id
         join crossover.payloads y on y.id = p.id and y.created_at = p.created_at
         order by h.rank, h.due_at"
    )
    .replace("{which}", which)
}

async fn finish(executor: impl sqlx::PgExecutor<'_>, worker: Uuid, ends: &[Finish]) -> Result<Vec<Uuid>, sqlx::Error> {
    let column = |of: fn(&Finish) -> Option<String>| ends.iter().map(of).collect::<Vec<_>>();
    let kept = sqlx::query_scalar("select * from crossover.finish($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
        .bind(worker)
        .bind(ends.iter().map(|e| e.id).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.attempt).collect::<Vec<_>>())
        .bind(column(|e| e.outcome.map(|o| o.to_string())))
        .bind(ends.iter().map(|e| e.failure.as_ref().map(|f| *f == Failure::Permanent)).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.failure.as_ref().and_then(Failure::retry_after_ms)).collect::<Vec<_>>())
        .bind(ends.iter().map(|e| e.retry.map(|r| r.as_millis() as i64)).collect::<Vec<_>>())
        .bind(column(|e| e.result.as_ref().map(|r| r.get().to_owned())))
        .bind(column(|e| e.error.clone()))
        .bind(column(|e| e.failure.as_ref().and_then(Failure::doubt).map(|cause| cause.to_string())))
        .bind(ends.iter().map(|e| e.park).collect::<Vec<_>>());
    kept.fetch_all(executor).await
}

/// What only a misbehaving test build does.
#[cfg(feature = "faults")]
impl Queue {
    /// Forgets what `worker` holds, as if it had never been there.
    pub(super) async fn forget(&self, worker: Uuid, id: Uuid) -> Result<(), LedgerError> {
        let gone = sqlx::query("delete from crossover.running where worker = $1 and id = $2").bind(worker).bind(id);
        within(gone.execute(&self.pool)).await?;
        Ok(())
    }

    /// Makes ready what is scheduled of `ids`; which that was.
    pub(super) async fn hasten(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let moved = sqlx::query_scalar(
            "with moved as (delete from crossover.scheduled where id = any ($1) returning *)
             insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
             select id, due_at, attempt, rank, execute, grp from moved returning id",
        );
        within(moved.bind(ids).fetch_all(&self.pool)).await
    }

    /// Makes ready those of `ids` whose predecessor in the series is executed just now, as if the chain held nothing; which
    /// those were.
    pub(super) async fn overtake(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let placed = sqlx::query_scalar(
            "insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
             select p.id, clock_timestamp(), p.attempts + 1, -p.priority, p.owner = 'postgres', p.grp
             from crossover.pins p
             join crossover.pins b on b.series_id = p.series_id and b.series_no = p.series_no - 1
             join crossover.running r on r.id = b.id and r.execute
             where p.id = any ($1) and p.ended_at is null
             returning id",
        );
        within(placed.bind(ids).fetch_all(&self.pool)).await
    }
}

pub(super) fn unreadable(row: &PgRow, error: &sqlx::Error) -> Option<Finish> {
    let (id, epoch, attempt) = (row.try_get("id").ok()?, row.try_get("epoch").ok()?, row.try_get("attempt").ok()?);
    let rehearsal = !row.try_get::<bool, _>("execute").ok()?;
    let error = crate::executor::clean(&format!("the stored copy can't be read: {error}"));
    tracing::error!(%id, error, "a copy has failed unread; see crossover.payloads");
    let (outcome, failure) = (Some(Outcome::Failed), Some(Failure::Permanent));
    let (ended_at, retry, park, result, error, task) = (Utc::now(), None, false, None, Some(error), None);
    Some(Finish { id, epoch, attempt, rehearsal, ended_at, outcome, failure, retry, park, result, error, task })
}

pub(super) fn claimed_of(row: &PgRow) -> Result<Claimed, sqlx::Error> {
    let envelope = envelope_of(row)?;
    let age: f64 = row.try_get("age")?;
    Ok(Claimed {
        fence: Fence { epoch: envelope.epoch, attempt: row.try_get("attempt")? },
        rehearsal: !row.try_get::<bool, _>("execute")?,
        due_at: row.try_get("due_at")?,
        started_at: row.try_get("started_at")?,
        age: Duration::from_secs_f64(age.max(0.0)),
        called_off: row.try_get("called_off")?,
        exclusive: row.try_get("exclusive")?,
        task: None,
        lapsed: named(row, "lapsed")?,
        envelope,
    })
}
