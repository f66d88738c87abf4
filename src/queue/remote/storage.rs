//! The claim for a remote worker: one transaction, from `ready` to its lease.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::RngExt;
use uuid::Uuid;

use super::super::storage::{Claimed, Finish, HEAD, Queue, claim_sql, claimed_of, unreadable};
use super::super::worker::overslept;
use super::{Asked, Handed};
use crate::ledger::{LedgerError, within};

/// A statement takes at most so many, so that an answer is not much longer than [`BYTES`].
const CHUNK: usize = 50;
/// The first of them, before it is known how large they are.
const FIRST: usize = 8;
/// No more is taken once the payloads have so many bytes.
const BYTES: usize = 8 << 20;
/// Nor once so much can't be handed out.
const ASIDE: usize = 1_000;
/// What is not handed out is ended or put back within this, or taken over.
pub(super) const LEASE: Duration = Duration::from_secs(30);
/// One item in so many is of the lowest priority that waits.
const ONE_IN: f64 = 20.0;
/// It is asked for in one claim of so many, which has that many times its share of it.
const TURNS: f64 = 4.0;

/// What a claim for a remote worker came to.
pub(super) struct Taken {
    /// Away with the worker.
    pub handed: Vec<Handed>,
    /// Held by `claimer`: what was called off, has overslept, or is a rehearsal by now.
    pub aside: Vec<Claimed>,
    /// The ends of those that can't be read, which `claimer` holds as well.
    pub unreadable: Vec<Finish>,
    /// Who holds that.
    pub claimer: Uuid,
}

/// What remote workers of a group are handed.
const WAITING: &str = "grp = $4 and rank > 500 and execute";
/// The same of the lowest priority that waits, by the same index.
const LOWEST: &str = "grp = $4 and rank > 500 and execute and rank - 1000 = (
    select l.rank - 1000 from crossover.ready l where l.grp = $4 and l.rank > 500 and l.execute
    order by l.rank - 1000 desc, l.seq desc limit 1)";

/// How many of the next `most` are to be of the lowest priority; both draws are from 0 to 1.
fn share(most: usize, turn: f64, part: f64) -> usize {
    if turn * TURNS >= 1.0 {
        return 0;
    }
    (most as f64 * TURNS / ONE_IN + part) as usize
}

impl Queue {
    /// Takes the head of a group for `claimer`: by priority, then in order; one in twenty is of the lowest priority that waits. What may
    /// run is the worker's when this is committed.
    pub(super) async fn take_for_remote(&self, asked: &Asked, claimer: Uuid) -> Result<Taken, LedgerError> {
        let mut low = share(asked.most, rand::rng().random_range(0.0..1.0), rand::rng().random_range(0.0..1.0));
        within(async {
            let (mut runs, mut aside, mut broken) = (Vec::new(), Vec::new(), Vec::new());
            let (mut bytes, mut largest, mut lowest) = (0, 0, 0);
            let mut tx = self.pool().begin().await?;
            // Whatever statistics say of a table that is now empty and now full, one index has them in order.
            sqlx::query("select set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)")
                .execute(&mut *tx)
                .await?;
            while runs.len() < asked.most && bytes < BYTES && aside.len() + broken.len() < ASIDE {
                // As many as fit, if none is larger than those so far.
                let fit = (BYTES - bytes).checked_div(largest).map_or(FIRST, |fit| fit.max(1));
                let limit = CHUNK.min(asked.most - runs.len()).min(fit);
                let (which, limit) = if low > 0 { (LOWEST, limit.min(low)) } else { (WAITING, limit) };
                let sql = claim_sql(which, "rank - 1000, seq", HEAD);
                let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(limit as i64).bind(claimer);
                let rows = rows.bind(LEASE.as_millis() as i64);
                let rows = rows.bind(&asked.group).fetch_all(&mut *tx).await?;
                for row in &rows {
                    match claimed_of(row) {
                        Ok(claimed) if claimed.rehearsal || claimed.called_off.is_some() || overslept(&claimed) => {
                            aside.push(claimed);
                        }
                        Ok(claimed) => {
                            let size = claimed.envelope.payload.get().len();
                            bytes += size;
                            largest = largest.max(size);
                            runs.push(claimed);
                        }
                        Err(error) => broken.extend(unreadable(row, &error)),
                    }
                }
                if std::mem::take(&mut low) > 0 {
                    lowest = runs.len();
                } else if rows.len() < limit {
                    break;
                }
            }
            // The most urgent come first all the same.
            runs.rotate_left(lowest);
            let handed = give(&mut tx, claimer, asked, runs).await?;
            tx.commit().await?;
            Ok(Taken { handed, aside, unreadable: broken, claimer })
        })
        .await
    }
}

async fn give(
    tx: &mut sqlx::PgConnection,
    claimer: Uuid,
    asked: &Asked,
    runs: Vec<Claimed>,
) -> Result<Vec<Handed>, sqlx::Error> {
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    // Whoever must report more often by its policy has to, whatever lease was asked for.
    let lease = |claimed: &Claimed| {
        let lease = asked.lease.as_millis() as u64;
        claimed.envelope.policy.heartbeat_timeout_ms.map_or(lease, |ms| lease.min(ms))
    };
    let left = |claimed: &Claimed| claimed.envelope.policy.run_timeout().as_millis() as i64;
    let given = sqlx::query_as::<_, (Uuid, DateTime<Utc>)>(
        "select id, run_until from crossover.give_to_remote($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(claimer)
    .bind(&asked.group)
    .bind(&asked.worker)
    .bind(runs.iter().map(|claimed| claimed.envelope.id).collect::<Vec<_>>())
    .bind(runs.iter().map(|claimed| claimed.fence.attempt).collect::<Vec<_>>())
    .bind(runs.iter().map(|claimed| lease(claimed) as i64).collect::<Vec<_>>())
    .bind(runs.iter().map(left).collect::<Vec<_>>());
    let given: HashMap<Uuid, DateTime<Utc>> = given.fetch_all(tx).await?.into_iter().collect();
    let handed = runs.into_iter().filter_map(|claimed| {
        let run_until = *given.get(&claimed.envelope.id)?;
        let lease = std::time::Duration::from_millis(lease(&claimed));
        Some(Handed { claimed, lease, run_until })
    });
    Ok(handed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_twenty_is_of_the_lowest_priority_however_many_are_asked_for() {
        for most in [1, 3, 10, 100, 1_000] {
            let steps = (0..100).map(|n| (f64::from(n) + 0.5) / 100.0);
            let low: usize =
                steps.clone().flat_map(|turn| steps.clone().map(move |part| share(most, turn, part))).sum();
            let one_in = (most * 10_000) as f64 / low as f64;
            assert!((19.0..21.0).contains(&one_in), "one in {one_in} of {most}");
        }
    }
}
