//! How fast the whole comparator is, Postgres included: pins, attempts and sightings of clean pairs are made by SQL, and it
//! judges them. Run it alone:
//!
//! ```sh
//! cargo test --release --test it comparator::speed -- --ignored --nocapture
//! ```

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use crossover::comparator::{Comparator, caught_up};
use crossover::interaction::Stage;
use crossover::metrics::Metrics;
use tokio_util::sync::CancellationToken;

use super::*;

const PAIRS: i32 = 50_000;

/// Clean pairs of shadow, some in the last minutes each: pins, then what both sides did.
const MADE: [&str; 3] = [
    "insert into crossover.pins (id, created_at, run_at, ended_at, attempts, weight, on_temporal, on_postgres, stage, owner,
        outcome, account, kind, key, grp, flag_revision, payload_hash)
     select crossover.interaction_id('speed', n::text), t, t, t + interval '1 second', 1, 1, true, true, 'shadow', 'temporal',
        'succeeded', 'speed', 'sync', n::text, 'default', '', sha256('{}')
     from (select n, clock_timestamp() - interval '5 minutes' + n * interval '1 millisecond' as t
           from generate_series(1, $1) n) made",
    "insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, side, outcome)
     select id, run_at, run_at + interval '10 ms', ended_at + interval '1 ms', 1, 1, side = 'postgres', side, 'succeeded'
     from crossover.pins, unnest(array['temporal', 'postgres']) as s (side) where account = 'speed' and $1 > 0",
    "insert into crossover.sightings (seen_at, side_at, due_at, id, observer, epoch, attempt, rehearsal, side, what, outcome,
        kind, grp, payload_hash)
     select ended_at + interval '100 ms', case what when 'ended' then ended_at else run_at + interval '10 ms' end,
        case what when 'dequeued' then run_at end, id, id, 1, case what when 'delivered' then 0 else 1 end,
        side = 'postgres', side, what, case what when 'ended' then 'succeeded' end,
        case what when 'dequeued' then kind end, case what when 'dequeued' then grp end,
        case what when 'dequeued' then payload_hash end
     from crossover.pins, (values ('temporal', 'delivered'), ('temporal', 'dequeued'), ('temporal', 'ended'),
        ('postgres', 'dequeued'), ('postgres', 'ended')) as s (side, what) where account = 'speed' and $1 > 0",
];

/// Otherwise a comparator that was away for long catches up with the square of what it missed.
#[tokio::test(flavor = "multi_thread")]
async fn catching_up_reads_the_next_pins_and_no_others() {
    let world = World::new(Stage::Shadow).await;
    sqlx::query(MADE[0]).bind(20_000).execute(world.pool()).await.unwrap();
    sqlx::query("analyze crossover.pins").execute(world.pool()).await.unwrap();
    let ledger = crossover::ledger::Ledger::new(world.pool().clone());
    let next = ledger.pins_between(chrono::DateTime::UNIX_EPOCH, Utc::now(), 500).await.unwrap();
    assert_eq!(next.len(), 500);
    let read = until("what was read is counted", async || {
        let read: i64 =
            world.scalar("select idx_tup_read from pg_stat_user_indexes where indexrelname = 'pins_in_order'").await;
        (read > 0).then_some(read)
    });
    assert!(read.await <= 510, "it reads on after the last");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn pairs_are_judged_as_fast_as_is_said() {
    let world = World::new(Stage::Shadow).await;
    for sql in MADE {
        sqlx::query(sql).bind(PAIRS).execute(world.pool()).await.unwrap();
    }
    sqlx::query("analyze").execute(world.pool()).await.unwrap();
    let pool = crossover::ledger::pool(&world.postgres, 3, Duration::from_secs(5)).unwrap();
    let mut config = world.config();
    quick(&mut config);
    let comparator = Comparator::new(pool, (&config).into(), Arc::new(Metrics::new().unwrap()));
    let stop = CancellationToken::new();
    let began = Instant::now();
    let running = tokio::spawn(comparator.run(stop.clone()));
    assert_eq!(caught_up(world.pool(), Utc::now(), Duration::from_secs(600)).await.unwrap(), Some(0));
    let took = began.elapsed();
    stop.cancel();
    running.await.unwrap();
    let matched = "select count(*) from crossover.observations where verdict = 'matched'";
    assert_eq!(world.scalar::<i64>(matched).await, i64::from(PAIRS));
    println!("{PAIRS} pairs in {took:?}: {:.0} a second, Postgres included", f64::from(PAIRS) / took.as_secs_f64());
}
