//! What is lost when a process or Postgres is lost, and that it is known.

use chrono::TimeDelta;
use crossover::app::Roles;
use crossover::interaction::{Fence, Stage, interaction_id};
use crossover::ledger;
use crossover::observer::{Observer, ObserverOptions, Sighting};
use crossover::provision::{self, Postgres};
use sqlx::PgPool;

use super::*;
use crate::bridge::child::Child;
use crate::bridge::proxy::Proxy;
use crate::servers;

fn sighting(n: u32) -> Sighting {
    let (id, fence) = (interaction_id("a", &n.to_string()), Fence { epoch: 1, attempt: 1 });
    Sighting { id, side: Side::Postgres, fence, rehearsal: true, at: Utc::now(), what: Seen::Released }
}

/// An observer of the test's own.
struct Alone {
    pool: PgPool,
    observer: Observer,
    metrics: Arc<Metrics>,
}

impl Alone {
    /// On the migrated database behind `url`, which it may reach by another `way`.
    async fn on(url: &str, way: &str, buffer: usize) -> Self {
        let pool = |url: &str| ledger::pool(url, 2, Duration::from_secs(2)).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let options = ObserverOptions { name: "alone".into(), buffer, share: 1.0 };
        ledger::Ledger::new(pool(url)).migrate().await.unwrap();
        let observer = Observer::start(Log::new(pool(way)), options, metrics.clone());
        Self { pool: pool(url), observer, metrics }
    }

    fn see(&self, numbers: std::ops::Range<u32>) {
        numbers.for_each(|n| self.observer.see(sighting(n)));
    }

    async fn written(&self) -> Option<i64> {
        sqlx::query_scalar("select count(*) from crossover.sightings").fetch_one(&self.pool).await.ok()
    }

    async fn until_written(&self, n: i64) {
        until(&format!("{n} are written"), async || (self.written().await == Some(n)).then_some(())).await;
    }

    fn failed_writes(&self) -> u64 {
        self.metrics.observer.errors.with_label_values(&["write"]).get()
    }

    fn dropped(&self) -> i64 {
        self.metrics.observer.dropped.get() as i64
    }
}

async fn own_postgres() -> Postgres {
    provision::postgres(&servers::options()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgres_loses_nothing_within_the_bound_and_counts_what_is_beyond() {
    let mut postgres = own_postgres().await;
    let alone = Alone::on(&postgres.url, &postgres.url, 2_000).await;
    let log = Log::new(alone.pool.clone());
    alone.see(0..10);
    alone.until_written(10).await;
    let before = Utc::now() - TimeDelta::seconds(2);

    postgres.server.kill().await.unwrap();
    alone.see(10..1_500);
    // Otherwise a quick start may come before anybody has noticed.
    until("a write has failed", async || (alone.failed_writes() > 0).then_some(())).await;
    postgres.server.restart().await.unwrap();
    alone.until_written(1_500).await;
    assert_eq!(alone.dropped(), 0);
    let died: Vec<_> = log.gaps(before).await.unwrap();
    assert!(died.is_empty(), "nobody has died, and nothing was lost: {died:?}");
    let disturbed =
        until("the outage is noted", async || log.disturbances(before).await.ok().filter(|found| !found.is_empty()));
    let disturbed = disturbed.await;
    assert!(disturbed.iter().all(|d| d.side == Side::Postgres && d.began_at <= d.ended_at), "{disturbed:?}");

    postgres.server.kill().await.unwrap();
    alone.see(1_500..9_500);
    let dropped = alone.dropped();
    assert!((5_000..=6_000).contains(&dropped), "room was for the buffer and a batch: {dropped}");
    postgres.server.restart().await.unwrap();
    alone.until_written(9_500 - dropped).await;
    let lost = |gaps: Vec<crossover::observer::Gap>| gaps.into_iter().find(|gap| gap.dropped == Some(dropped));
    let gap = until("the loss is told", async || log.gaps(before).await.ok().and_then(lost)).await;
    assert_eq!(Some(gap.observer), alone.observer.id());
    assert!(before < gap.from && gap.from <= gap.until && gap.until < Utc::now() + TimeDelta::seconds(1), "{gap:?}");
    let batches = &alone.metrics.observer.write_seconds;
    let each = batches.get_sample_sum() / batches.get_sample_count() as f64;
    println!("{} batches of {} sightings took {each:.3} s each", batches.get_sample_count(), 9_500 - dropped);
    alone.observer.stop().await;
    let told = "select dropped from crossover.observers where ended_at is not null and dropped_at is not null";
    assert_eq!(sqlx::query_scalar::<_, i64>(told).fetch_one(&alone.pool).await.unwrap(), dropped);
    assert_eq!(alone.written().await, Some(9_500 - dropped), "nothing was written twice");
    postgres.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sightings_whose_answer_was_lost_are_written_once() {
    let url = servers::database().await;
    let (start, rest) = url.split_once('@').unwrap_or_else(|| panic!("{url}"));
    let (address, name) = rest.split_once('/').unwrap();
    let proxy = Proxy::to(address).await;
    let alone = Alone::on(&url, &format!("{start}@{}/{name}", proxy.address), 1_000).await;
    alone.see(0..5);
    alone.until_written(5).await;
    // The batch is sent and waits for this lock; then its answer is lost.
    let mut blocking = alone.pool.begin().await.unwrap();
    sqlx::query("select from crossover.observers for update").execute(&mut *blocking).await.unwrap();
    alone.see(5..10);
    let waits = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like 'with fresh%'";
    until("the batch is sent", async || {
        let waiting: i64 = sqlx::query_scalar(waits).fetch_one(&alone.pool).await.unwrap();
        (waiting == 1).then_some(())
    })
    .await;
    proxy.withhold_answers();
    blocking.rollback().await.unwrap();
    alone.until_written(10).await;
    let errors = alone.metrics.observer.errors.with_label_values(&["write"]);
    until("the observer gives the answer up", async || (errors.get() > 0).then_some(())).await;
    proxy.answer();
    alone.see(10..15);
    alone.until_written(15).await;
    alone.observer.stop().await;
    assert_eq!((alone.written().await, alone.dropped()), (Some(15), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sighting_that_postgres_refuses_is_dropped_alone() {
    let url = servers::database().await;
    let alone = Alone::on(&url, &url, 1_000).await;
    alone.see(0..3);
    let poison = Seen::Dequeued {
        due_at: Utc::now(),
        kind: "no text has a \0".into(),
        group: "default".into(),
        payload_hash: [0; 32],
        payload: None,
    };
    alone.observer.see(Sighting { what: poison, ..sighting(3) });
    alone.see(4..7);
    alone.until_written(6).await;
    alone.observer.stop().await;
    assert_eq!((alone.written().await, alone.dropped()), (Some(6), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_end_hands_rehearsals_back_and_they_begin_again() {
    let world = World::new(Stage::Shadow).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    let quick = |config: &mut crossover::config::Config| config.worker.shutdown_grace = Duration::from_millis(200);
    let first = world.node_with(WORKER, quick).await;
    world.runner.hold("held");
    router.accepts(&world.request("held"), 201).await;
    let rehearsing = |found: &[Recorded]| count(found, Side::Postgres, "dequeued") == 1;
    seen(&world, "held", "it is rehearsed", rehearsing).await;
    first.stop().await;
    let second = world.node_with(WORKER, |_| {}).await;
    let again = |found: &[Recorded]| count(found, Side::Postgres, "dequeued") == 2;
    let found = seen(&world, "held", "it is rehearsed again", again).await;
    // By now the attempt that was called off on Temporal may have ended the rehearsal of it.
    let here: Vec<_> = found.iter().filter(|r| r.sighting.side == Side::Postgres).take(3).collect();
    let names: Vec<_> = here.iter().map(|r| r.sighting.what.name()).collect();
    assert_eq!(names, ["dequeued", "released", "dequeued"]);
    assert!(here.iter().all(|r| r.sighting.fence.attempt == 1 && r.sighting.rehearsal), "{here:#?}");
    world.runner.release("held");
    world.succeeded("held").await;
    second.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_a_gap_and_one_that_ended_is_none() {
    let world = World::new(Stage::Shadow).await;
    let began = Utc::now() - TimeDelta::seconds(1);
    let mut gentle = Child::serve(&world, "router", &[]).await;
    gentle.terminate();
    gentle.ended().await;
    let mut child = Child::serve(&world, "router,worker,relay", &[]).await;
    child.node.accepts(&world.request("one"), 201).await;
    let both = |found: &[Recorded]| Side::ALL.iter().all(|side| count(found, *side, "ended") == 1);
    seen(&world, "one", "both sides have ended", both).await;
    child.kill();
    let killed = Utc::now();
    let log = log(&world);
    let gaps =
        until("its silence is noticed", async || log.gaps(began).await.ok().filter(|gaps| !gaps.is_empty())).await;
    assert_eq!((gaps.len(), gaps[0].dropped), (1, None), "{gaps:?}");
    assert!(gaps[0].from < killed && killed < gaps[0].until, "{gaps:?} {killed}");
    assert!(log.gaps(gaps[0].until + TimeDelta::milliseconds(1)).await.unwrap().is_empty());
}

/// Two dozen interactions are under way when a server is `killed` and comes back. Each attempt of either side is seen to
/// begin and to end exactly once.
async fn is_seen_once(world: &World, killed: impl AsyncFnOnce()) {
    let node = world.node().await;
    world.runner.pace(Duration::from_millis(30));
    let keys: Vec<String> = (0..24).map(|n| format!("k{n}")).collect();
    for key in &keys {
        node.accepts(&world.request(key), 201).await;
    }
    killed().await;
    for key in &keys {
        world.succeeded(key).await;
        let both = |found: &[Recorded]| Side::ALL.iter().all(|side| succeeded(found, *side));
        let found = seen(world, key, "both sides have succeeded", both).await;
        let mut fences: Vec<_> = found.iter().map(|r| (r.sighting.side, r.sighting.fence)).collect();
        fences.retain(|(_, fence)| fence.attempt > 0);
        fences.sort();
        fences.dedup();
        for (side, fence) in fences {
            let one: Vec<_> = found.iter().filter(|r| r.sighting.fence == fence).cloned().collect();
            let counts = ["dequeued", "ended", "refused"].map(|what| count(&one, side, what));
            assert_eq!(counts, [1, 1, 0], "{key} on {side}: {found:#?}");
        }
    }
    node.stop().await;
}

fn succeeded(found: &[Recorded], side: Side) -> bool {
    of(found, side, "ended").any(|r| matches!(r.sighting.what, Seen::Ended { outcome: Some(Outcome::Succeeded), .. }))
}

async fn a_killed_postgres_in(stage: Stage) {
    let mut postgres = own_postgres().await;
    let world = World::with(Some(postgres.url.clone()), None, stage).await;
    is_seen_once(&world, async || {
        postgres.server.kill().await.unwrap();
        postgres.server.restart().await.unwrap();
    })
    .await;
    postgres.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_killed_under_work_in_shadow_loses_no_sighting_and_doubles_none() {
    a_killed_postgres_in(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_killed_under_work_in_live_loses_no_sighting_and_doubles_none() {
    a_killed_postgres_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_killed_under_work_loses_no_sighting_and_doubles_none() {
    let mut temporal = provision::temporal(&servers::options()).await.unwrap();
    let world = World::with(None, Some(temporal.address.clone()), Stage::Shadow).await;
    is_seen_once(&world, async || {
        temporal.server.kill().await.unwrap();
        temporal.server.restart().await.unwrap();
    })
    .await;
    temporal.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn days_of_sightings_are_dropped_when_they_are_old_and_nobody_reads_them() {
    let url = servers::database().await;
    let alone = Alone::on(&url, &url, 100).await;
    let log = Log::new(alone.pool.clone());
    for day in ["20200101", "20200102"] {
        let make = format!(
            "create table crossover.sightings_{day} partition of crossover.sightings
             for values from ('{day}'::date) to ('{day}'::date + 1)"
        );
        sqlx::query(sqlx::AssertSqlSafe(make)).execute(&alone.pool).await.unwrap();
    }
    alone.see(0..3);
    alone.until_written(3).await;
    let keep = Duration::from_secs(14 * 86_400);
    let mut reading = alone.pool.begin().await.unwrap();
    sqlx::query("select from crossover.sightings_20200101").execute(&mut *reading).await.unwrap();
    assert_eq!(log.retain(keep).await.unwrap(), 1, "the one that is read stays");
    reading.rollback().await.unwrap();
    assert_eq!((log.retain(keep).await.unwrap(), log.retain(keep).await.unwrap()), (1, 0));
    assert_eq!(alone.written().await, Some(3));
    alone.observer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_that_is_away_is_noted_for_as_long_as_it_is() {
    let mut temporal = provision::temporal(&servers::options()).await.unwrap();
    let world = World::with(None, Some(temporal.address.clone()), Stage::Shadow).await;
    let relay = Roles { router: false, worker: false, relay: true };
    let node = world.node_with(relay, |_| {}).await;
    let (log, began) = (log(&world), Utc::now());
    temporal.server.kill().await.unwrap();
    let lasts = |found: Vec<crossover::observer::Disturbance>| {
        found.into_iter().find(|d| d.side == Side::Temporal && d.ended_at - d.began_at > TimeDelta::seconds(2))
    };
    let noted = until("it is noted", async || log.disturbances(began).await.ok().and_then(lasts)).await;
    temporal.server.restart().await.unwrap();
    let over = until("it is over", async || {
        let found = log.disturbances(began).await.ok().and_then(lasts)?;
        (found.ended_at < Utc::now() - TimeDelta::seconds(5)).then_some(found)
    })
    .await;
    assert_eq!((over.began_at, over.what), (noted.began_at, noted.what), "it was one disturbance");
    node.stop().await;
    temporal.server.stop().await.unwrap();
}
