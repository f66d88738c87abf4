//! What becomes of a run that is due while an earlier one has not ended.

use super::*;
use crate::bridge::world::Node;
use crossover::interaction::Outcome;

/// An hourly schedule whose first run is held by its runner; the nominal times of that and of the next ones.
async fn held(here: &Place, overlap: &str) -> (Node, Schedule, Vec<DateTime<Utc>>) {
    let more = json!({ "overlap": overlap, "catch_up": "all", "catch_up_window_ms": 864_000_000 });
    let schedule = here.create("s", more).await;
    let first = here.passed(&schedule, 4).await;
    let times: Vec<_> = (0..5).map(|n| first + TimeDelta::hours(n)).collect();
    for time in &times {
        here.world.runner.hold(&key_of(schedule.id, *time));
    }
    let node = here.world.node().await;
    (node, schedule, times)
}

impl Place {
    /// Makes just this time due.
    async fn only(&self, schedule: &Schedule, time: DateTime<Utc>) {
        let rows = self.runs(schedule.id).await.len();
        // An hour later is «now»: the times after it have not come yet.
        let set = "update crossover.schedules set nominal_at = $2, wake_at = clock_timestamp(), window_ms = 864000000,
            spec = json_build_object('every_ms', 3600000, 'starts_at', $2 + interval '400 days') where id = $1";
        sqlx::query(set).bind(schedule.id).bind(time).execute(self.world.pool()).await.unwrap();
        self.told(schedule.id, rows + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skip_leaves_out_what_comes_while_a_run_is_under_way() {
    let here = Place::new().await;
    let (node, schedule, times) = held(&here, "skip").await;
    here.only(&schedule, times[0]).await;
    here.world.runner.nth(&key_of(schedule.id, times[0]), 1).await;
    here.only(&schedule, times[1]).await;
    here.world.runner.release(&key_of(schedule.id, times[0]));
    here.world.succeeded(&key_of(schedule.id, times[0])).await;
    here.world.runner.release(&key_of(schedule.id, times[2]));
    here.only(&schedule, times[2]).await;
    here.world.succeeded(&key_of(schedule.id, times[2])).await;
    assert_eq!(reasons(&here.runs(schedule.id).await), ["-", "overlap", "-"]);
    assert!(here.world.story(&key_of(schedule.id, times[1])).await.is_none());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_one_lets_one_wait_and_leaves_out_the_others() {
    let here = Place::new().await;
    let (node, schedule, times) = held(&here, "queue_one").await;
    for time in &times[..3] {
        here.only(&schedule, *time).await;
    }
    assert_eq!(reasons(&here.runs(schedule.id).await), ["-", "-", "overlap"]);
    assert_eq!(here.world.story(&key_of(schedule.id, times[1])).await.unwrap().state, "waiting");
    let keys: Vec<String> = times[..2].iter().map(|time| key_of(schedule.id, *time)).collect();
    for key in &keys {
        here.world.runner.nth(key, 1).await;
        here.world.runner.release(key);
        here.world.succeeded(key).await;
    }
    here.world.in_turn(&keys);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_all_runs_them_one_after_another() {
    let here = Place::new().await;
    let (node, schedule, times) = held(&here, "queue_all").await;
    for time in &times {
        here.only(&schedule, *time).await;
    }
    let keys: Vec<String> = times.iter().map(|time| key_of(schedule.id, *time)).collect();
    for key in &keys {
        here.world.runner.nth(key, 1).await;
        here.world.runner.release(key);
    }
    here.world.ended(keys.last().unwrap()).await;
    let order: Vec<String> = here.world.in_turn(&keys).into_iter().map(|call| call.key).collect();
    assert_eq!(order, keys);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_old_calls_the_last_run_off_and_begins_once_it_has_ended() {
    let here = Place::new().await;
    let (node, schedule, times) = held(&here, "cancel_old").await;
    let keys: Vec<String> = times.iter().map(|time| key_of(schedule.id, *time)).collect();
    here.only(&schedule, times[0]).await;
    here.world.runner.nth(&keys[0], 1).await;
    here.only(&schedule, times[1]).await;
    let old = here.world.ended(&keys[0]).await;
    assert_eq!(old.pin.outcome, Some(Outcome::Cancelled), "{old:?}");
    assert!(old.pin.reason.as_ref().is_some_and(|why| why.contains("the next run of schedule `s`")), "{old:?}");
    here.world.runner.nth(&keys[1], 1).await;
    here.world.runner.release(&keys[1]);
    here.world.succeeded(&keys[1]).await;
    here.world.in_turn(&keys[..2]);
    assert_eq!(reasons(&here.runs(schedule.id).await), ["-", "-"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_run_has_ended_the_next_time_counts_from_its_end() {
    let here = Place::new().await;
    let (node, schedule, times) = held(&here, "after_last").await;
    here.only(&schedule, times[0]).await;
    let key = key_of(schedule.id, times[0]);
    here.world.runner.nth(&key, 1).await;
    let waiting = here.get(schedule.id).await;
    assert_eq!((waiting.nominal, waiting.unended.len()), (None, 1));
    let hourly = "update crossover.schedules set spec = json_build_object('every_ms', 3600000, 'starts_at', now() - interval '1 year')";
    sqlx::query(hourly).execute(here.world.pool()).await.unwrap();
    here.world.runner.release(&key);
    let ended = here.world.succeeded(&key).await.pin.ended_at.unwrap();
    let next = until("the next time is known", async || here.get(schedule.id).await.nominal).await;
    let late = next - (ended + TimeDelta::hours(1));
    assert!(late.abs() < TimeDelta::milliseconds(2), "an hour after {ended}, not {next}");
    assert_eq!(here.runs(schedule.id).await.len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_schedulers_look_no_more_runs_are_unended_than_the_policy_lets() {
    let here = Place::new().await;
    for n in 0..20 {
        let overlap = if n < 10 { "skip" } else { "queue_one" };
        let spec = json!({ "every_ms": 1_000, "starts_at": "2020-01-01T00:00:00Z" });
        here.create(&format!("s{n}"), json!({ "spec": spec, "overlap": overlap, "catch_up": "all" })).await;
    }
    // Nobody works, so no run ends.
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(here.world.node_with(crate::bridge::world::ROUTER, |config| config.schedules.parallel = 4).await);
    }
    // Each is due again as soon as it has been fired, at another time of the last day.
    let again = "update crossover.schedules set wake_at = clock_timestamp() - interval '1 minute',
        nominal_at = date_trunc('second', clock_timestamp()) - ceil(random() * 80000) * interval '1 second' where name = $1";
    for round in 0..400 {
        sqlx::query(again).bind(format!("s{}", round % 20)).execute(here.world.pool()).await.unwrap();
    }
    let unended = "select s.overlap, count(p.id) from crossover.schedules s
        left join crossover.pins p on p.key like 'schedule:' || s.id || '@%' and p.ended_at is null group by s.id";
    let found: Vec<(String, i64)> = until("all have fired", async || {
        let found: Vec<(String, i64)> = sqlx::query_as(unended).fetch_all(here.world.pool()).await.unwrap();
        Some(found).filter(|found| found.iter().all(|(overlap, n)| *n >= if overlap == "skip" { 1 } else { 2 }))
    })
    .await;
    for (overlap, n) in found {
        assert_eq!(n, if overlap == "skip" { 1 } else { 2 }, "{overlap}");
    }
    for node in nodes {
        node.stop().await;
    }
}
