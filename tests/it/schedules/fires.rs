//! Each time is fired once, whoever looks, dies or is in doubt.

use crossover::interaction::Side;

use super::*;
use crate::bridge::child::Child;
use crate::bridge::world::ROUTER;

#[tokio::test(flavor = "multi_thread")]
async fn several_schedulers_fire_each_time_once() {
    let here = Place::new().await;
    let mut made = Vec::new();
    for n in 0..40 {
        let spec = json!({ "every_ms": 1_000, "starts_at": "2026-01-01T00:00:00.5Z" });
        let more = json!({ "spec": spec, "overlap": "queue_all", "catch_up": "all", "jitter_ms": n });
        let schedule = here.create(&format!("s{n}"), more).await;
        here.set(schedule.id, schedule.nominal.unwrap() - TimeDelta::seconds(11)).await;
        made.push(schedule);
    }
    let mut nodes = vec![here.world.node().await];
    for _ in 0..2 {
        nodes.push(here.world.node_with(ROUTER, |config| config.schedules.batch = 7).await);
    }
    for schedule in &made {
        let first = schedule.nominal.unwrap() - TimeDelta::seconds(11);
        here.told(schedule.id, 11).await;
        let keys = here.enqueued(schedule.id).await;
        let wanted: Vec<String> =
            (0..keys.len()).map(|n| key_of(schedule.id, first + TimeDelta::seconds(n as i64))).collect();
        assert_eq!(keys.keys().cloned().collect::<Vec<_>>(), wanted, "none is left out");
        assert!(keys.values().all(|times| *times == 1), "{keys:?}");
        for key in keys.keys().take(11) {
            here.world.succeeded(key).await;
            assert_eq!(here.world.runner.of(key).len(), 1, "{key}");
        }
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schedulers_that_are_killed_again_and_again_lose_no_time_and_fire_none_twice() {
    let here = Place::new().await;
    let worker = here.world.node_with(crate::bridge::world::WORKER, |_| {}).await;
    let mut made = Vec::new();
    for n in 0..60 {
        let more = json!({ "spec": { "every_ms": 1_000 }, "overlap": "queue_all", "catch_up": "all" });
        made.push(here.create(&format!("s{n}"), more).await);
    }
    for _ in 0..4 {
        let before: i64 = here.world.scalar("select count(*) from crossover.schedule_runs").await;
        let mut child = Child::serve(&here.world, "router", &[("CROSSOVER_SCHEDULES_BATCH", "20")]).await;
        until("it fires", async || {
            let now: i64 = here.world.scalar("select count(*) from crossover.schedule_runs").await;
            (now > before + 30).then_some(())
        })
        .await;
        child.kill();
    }
    let last = here.world.node_with(ROUTER, |_| {}).await;
    let until_then = here.schedules.now().await.unwrap();
    for schedule in &made {
        until("it has caught up", async || here.get(schedule.id).await.last_nominal.filter(|last| *last >= until_then))
            .await;
        let keys = here.enqueued(schedule.id).await;
        let first = schedule.nominal.unwrap();
        let wanted: Vec<String> =
            (0..keys.len()).map(|n| key_of(schedule.id, first + TimeDelta::seconds(n as i64))).collect();
        assert_eq!(keys.keys().cloned().collect::<Vec<_>>(), wanted);
        assert!(keys.values().all(|times| *times == 1), "{keys:?}");
    }
    let pins: i64 = here.world.scalar("select count(*) from crossover.pins where key like 'schedule:%'").await;
    let told: i64 = here.world.scalar("select count(*) from crossover.schedule_runs where outcome = 'enqueued'").await;
    assert!(pins >= told, "what is told is pinned");
    last.stop().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pinned_and_not_committed_has_not_happened() {
    let here = Place::new().await;
    let schedule = here.create("s", json!({})).await;
    let nominal = here.passed(&schedule, 0).await;
    here.set(schedule.id, nominal).await;
    let key = key_of(schedule.id, nominal);
    // As a scheduler that dies before its commit: it has taken, and pinned.
    let mut dying = here.schedules.begin().await.unwrap();
    assert_eq!(here.schedules.take(&mut dying, 10).await.unwrap().len(), 1);
    let node = here.world.node().await;
    let mut other = here.schedules.begin().await.unwrap();
    assert!(here.schedules.take(&mut other, 10).await.unwrap().is_empty(), "what one has, another leaves out");
    drop(other);
    assert!(here.runs(schedule.id).await.is_empty());
    dying.rollback().await.unwrap();
    here.world.succeeded(&key).await;
    assert_eq!(here.enqueued(schedule.id).await, BTreeMap::from([(key, 1)]));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_comes_again_after_a_restored_backup_is_the_same_run() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let schedule = here.create("s", json!({})).await;
    let nominal = here.passed(&schedule, 0).await;
    let key = key_of(schedule.id, nominal);
    here.set(schedule.id, nominal).await;
    here.world.succeeded(&key).await;
    here.set(schedule.id, nominal).await;
    here.told(schedule.id, 2).await;
    assert_eq!(here.world.runner.of(&key).len(), 1);
    assert_eq!(here.get(schedule.id).await.nominal, Some(nominal + TimeDelta::hours(1)));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_year_of_days_in_another_time_zone_comes_by_its_clock() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let spec = json!({ "cron": "30 2 * * *", "time_zone": "America/New_York" });
    let more =
        json!({ "spec": spec, "catch_up": "all", "catch_up_window_ms": 31_600_000_000_i64, "overlap": "queue_all" });
    let schedule = here.create("s", more).await;
    let (times, now) = (schedule.definition.times().unwrap(), here.schedules.now().await.unwrap());
    let wanted: Vec<_> = times.next(now - TimeDelta::days(360), 400).into_iter().filter(|time| *time <= now).collect();
    here.set(schedule.id, wanted[0]).await;
    here.told(schedule.id, wanted.len()).await;
    let found: Vec<_> = here.runs(schedule.id).await.into_iter().filter_map(|run| run.nominal_at).collect();
    assert_eq!(found, wanted);
    let offsets: std::collections::BTreeSet<i64> =
        wanted.iter().map(|time| time.timestamp().rem_euclid(86_400)).collect();
    assert!(offsets.len() >= 3, "summer, winter, and the day with the gap: {offsets:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_schedule_that_cannot_be_read_holds_up_nobody() {
    let here = Place::new().await;
    let broken = here.create("broken", json!({})).await;
    let others = [here.create("a", json!({})).await, here.create("b", json!({})).await];
    let spoil = "update crossover.schedules set spec = '{\"moon\": \"full\"}', wake_at = now() - interval '1 day' where id = $1";
    sqlx::query(spoil).bind(broken.id).execute(here.world.pool()).await.unwrap();
    for other in &others {
        here.set(other.id, here.passed(other, 0).await).await;
    }
    let node = here.world.node().await;
    for other in &others {
        here.told(other.id, 1).await;
    }
    let trouble = "select trouble from crossover.schedules where name = 'broken' and wake_at > now()";
    until("it is put off", async || {
        sqlx::query_scalar::<_, Option<String>>(trouble).fetch_optional(here.world.pool()).await.unwrap()
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_refused_is_told_and_the_schedule_goes_on() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let schedule = here.create("s", json!({})).await;
    sqlx::query("update crossover.schedules set kind = ''").execute(here.world.pool()).await.unwrap();
    let nominal = here.passed(&schedule, 0).await;
    here.set(schedule.id, nominal).await;
    let told = here.told(schedule.id, 1).await;
    assert_eq!((told[0].outcome.as_str(), told[0].nominal_at), ("failed", Some(nominal)));
    assert!(told[0].reason.as_ref().unwrap().contains("kind: is empty"), "{told:?}");
    sqlx::query("update crossover.schedules set kind = 'sync'").execute(here.world.pool()).await.unwrap();
    let next = here.get(schedule.id).await.nominal.unwrap();
    assert_eq!(next, nominal + TimeDelta::hours(1));
    here.set(schedule.id, next - TimeDelta::hours(1)).await;
    assert_eq!(here.told(schedule.id, 2).await[1].outcome, "enqueued");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rollback_temporal_runs_what_a_schedule_enqueues() {
    let here = Place::new().await;
    let node = here.world.node().await;
    for (name, stage, owner) in [("a", Stage::Complete, Side::Postgres), ("b", Stage::Shadow, Side::Temporal)] {
        here.world.flip(stage, &[&node]).await;
        let schedule = here.create(name, json!({})).await;
        let nominal = here.passed(&schedule, 0).await;
        here.set(schedule.id, nominal).await;
        let key = key_of(schedule.id, nominal);
        assert_eq!(here.world.succeeded(&key).await.pin.owner, owner);
        here.world.each_ran_on_its_owner(&[key]).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_outlives_its_connections() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let schedule =
        here.create("s", json!({ "spec": { "every_ms": 1_000 }, "overlap": "queue_all", "catch_up": "all" })).await;
    here.told(schedule.id, 1).await;
    for _ in 0..5 {
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and query like '%schedules%'";
        let before = here.runs(schedule.id).await.len();
        sqlx::query(cut).execute(here.world.pool()).await.unwrap();
        here.told(schedule.id, before + 1).await;
    }
    let (keys, first) = (here.enqueued(schedule.id).await, schedule.nominal.unwrap());
    let wanted: Vec<String> =
        (0..keys.len()).map(|n| key_of(schedule.id, first + TimeDelta::seconds(n as i64))).collect();
    assert_eq!(keys.keys().cloned().collect::<Vec<_>>(), wanted);
    node.stop().await;
}
