//! Where the comparator stands, and what is blocked and on whom. Every look is bounded or indexed, so that it answers at a
//! hundred thousand accounts, too.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;

use super::{Comparator, read};
use crate::ledger::{Ledger, LedgerError, within};

/// The part of the status that is the same whatever the flags say.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// What compares.
    pub comparison: Comparison,
    /// What does not move by itself, or not soon.
    pub blocked: Vec<Blocked>,
}

/// What compares the sides.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The comparator that was last heard of.
    pub comparator: Option<Comparator>,
    /// Interactions that it looks at again; counts to fifty thousand.
    pub pending: i64,
    /// Divergences that were found within the last hour, by class.
    pub last_hour: BTreeMap<String, i64>,
    /// Processes that record what they see and are at work.
    pub observers: i64,
    /// Those that stopped without an end: they may have died with sightings unwritten.
    pub observers_silent: i64,
    /// Sightings that were dropped by processes that did so within the last hour.
    pub sightings_dropped: i64,
}

/// Something that waits for somebody.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Blocked {
    /// What.
    pub what: String,
    /// How many interactions; counts to fifty thousand.
    pub count: i64,
    /// Since when the oldest.
    pub since: Option<DateTime<Utc>>,
    /// On whom.
    pub on_whom: String,
    /// What to type next.
    pub next: String,
}

/// Reads it.
pub async fn overview(ledger: &Ledger) -> Result<Overview, LedgerError> {
    Ok(Overview { comparison: comparison(ledger).await?, blocked: blocked(ledger).await? })
}

async fn comparison(ledger: &Ledger) -> Result<Comparison, LedgerError> {
    let mut connection = within(ledger.pool().acquire()).await?;
    let comparator = read::comparator(&mut connection).await?;
    let counts: (i64, i64, i64, i64) = within(
        sqlx::query_as(
            "select (select count(*) from (select from crossover.observations where look_at is not null limit 50000) o),
                count(*) filter (where ended_at is null and beat_at > now() - interval '1 minute'),
                count(*) filter (where ended_at is null and beat_at <= now() - interval '1 minute' and beat_at > now() - interval '1 day'),
                coalesce(sum(dropped) filter (where dropped_at > now() - interval '1 hour'), 0)::bigint
             from crossover.observers",
        )
        .fetch_one(&mut *connection),
    )
    .await?;
    let classes: Vec<(String, i64)> = within(
        sqlx::query_as(
            "select c.class, count(*) from crossover.observations o cross join lateral (select distinct unnest(o.classes) as class) c
             where o.verdict = 'diverged' and o.judged_at > now() - interval '1 hour' group by c.class",
        )
        .fetch_all(&mut *connection),
    )
    .await?;
    let (pending, observers, observers_silent, sightings_dropped) = counts;
    let last_hour = classes.into_iter().collect();
    Ok(Comparison { comparator, pending, last_hour, observers, observers_silent, sightings_dropped })
}

/// Held copies, copies that Temporal did not take, what is parked, leases that ran out, what SQL left and was refused, and the longest queues
/// behind the head of a series.
async fn blocked(ledger: &Ledger) -> Result<Vec<Blocked>, LedgerError> {
    let rows = sqlx::query_as(
        "select * from (
            select 'owner conflict' as what, count(*) as count, min(created_at) as since,
                'somebody who looks at Temporal''s copy' as on_whom, 'crossover why ' || (array_agg(id))[1] as next
            from (select id, created_at from crossover.pins where conflict is not null and ended_at is null order by created_at limit 50000) h
            union all
            select 'not delivered', count(*), min(created_at), 'Temporal: ' || coalesce((array_agg(last_error))[1], 'no error is recorded'),
                'crossover why ' || (array_agg(id))[1]
            from (select id, created_at, last_error from crossover.outbox where tries > 0 limit 50000) o
            union all
            select 'unknown outcome', count(*), min(since),
                case when bool_and(answer is not null) then 'Temporal, to be told what somebody said' else 'somebody who says what came of it' end,
                case when bool_and(answer is not null) then 'crossover unknown' else 'crossover resolve ' || (array_agg(id order by since) filter (where answer is null))[1] || ' --as ANSWER' end
            from (select id, since, answer from crossover.parked order by since limit 50000) k
            union all
            select 'lease ran out', count(*), min(lease_until), 'a worker, to take it over', 'crossover why ' || (array_agg(id))[1]
            from (select id, lease_until from crossover.running where lease_until < now() limit 50000) u
            union all
            select 'refused from SQL', count(*), min(refused_at), 'its caller: ' || (array_agg(reason))[1], 'crossover why ' || (array_agg(id))[1]
            from (select id, refused_at, reason from crossover.intake where refused_at is not null order by refused_at limit 50000) i
            union all
            select 'schedule not on Temporal', count(*), min(behind_since), 'Temporal: ' || coalesce((array_agg(error) filter (where error is not null))[1], 'a router tells it'),
                'crossover schedule show ' || (array_agg(schedule_id order by behind_since))[1]
            from (select schedule_id, behind_since, error from crossover.schedule_mirrors where behind_since < now() - interval '10 seconds'
                  order by behind_since limit 50000) m
        ) each where count > 0
        union all
        select * from (
            select 'series ' || s.series || ' of ' || s.account || '/' || s.kind, s.last_no - s.head_no, p.created_at,
                'its number ' || s.head_no || ', owner ' || p.owner, 'crossover why ' || p.id
            from (select * from crossover.series where last_no > head_no order by last_no - head_no desc limit 5) s
            join crossover.pins p on p.series_id = s.series_id and p.series_no = s.head_no and p.ended_at is null
            order by s.last_no - s.head_no desc) series",
    );
    within(rows.fetch_all(ledger.pool())).await
}
