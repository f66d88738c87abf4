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
async fn a_run_that_comes_while_too_much_of_its_group_waits_is_put_off_and_not_lost() {
    let here = Place::new().await;
    let groups = crossover::queue::groups::Groups::new(here.world.pool().clone());
    groups.set("mail", json!({ "max_waiting": 1 }).as_object().unwrap(), "test").await.unwrap();
    groups.pause("mail", "their API is down", "test").await.unwrap();
    let node = here.world.node().await;
    let mut sent = 0;
    until("it is full", async || {
        sent += 1;
        let request = with(here.world.request(&sent.to_string()), json!({ "group": "mail" }));
        (node.post(&request).await.status == 429).then_some(())
    })
    .await;
    let schedule = here.create("s", json!({ "group": "mail" })).await;
    let nominal = here.passed(&schedule, 0).await;
    here.set(schedule.id, nominal).await;
    let put_off = until("it is put off", async || here.get(schedule.id).await.trouble).await;
    assert!(put_off.contains("group `mail`") && put_off.contains("max_waiting is 1"), "{put_off}");
    assert!(here.runs(schedule.id).await.is_empty(), "nothing was skipped");
    groups.resume("mail", "test").await.unwrap();
    until("it is enqueued", async || Some(here.enqueued(schedule.id).await).filter(|keys| !keys.is_empty())).await;
    let key = key_of(schedule.id, nominal);
    assert_eq!(here.enqueued(schedule.id).await.into_keys().collect::<Vec<_>>(), std::slice::from_ref(&key));
    here.world.succeeded(&key).await;
    assert_eq!(here.get(schedule.id).await.trouble, None);
    node.stop().await;
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
    assert_eq!(here.schedules.take(&mut dying, 10, 1_000_000).await.unwrap().len(), 1);
    let node = here.world.node().await;
    let mut other = here.schedules.begin().await.unwrap();
    assert!(
        here.schedules.take(&mut other, 10, 1_000_000).await.unwrap().is_empty(),
        "what one has, another leaves out"
    );
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
    let panics = here.create("panics", json!({})).await;
    here.set(panics.id, here.passed(&panics, 3).await).await;
    let spoil = "update crossover.schedules set window_ms = 9223372036854775807 where id = $1";
    sqlx::query(spoil).bind(panics.id).execute(here.world.pool()).await.unwrap();
    for other in &others {
        here.set(other.id, here.passed(other, 0).await).await;
    }
    let node = here.world.node().await;
    for other in &others {
        here.told(other.id, 1).await;
    }
    for (name, why) in [("broken", "it can't be read"), ("panics", "its plan panics")] {
        let trouble = "select trouble from crossover.schedules where name = $1 and wake_at > now() and failures > 0";
        let trouble: String = until("it is put off", async || {
            sqlx::query_scalar(trouble).bind(name).fetch_optional(here.world.pool()).await.unwrap()
        })
        .await;
        assert!(trouble.starts_with(why), "{trouble}");
    }
    let page = crossover::schedule::Page { limit: 10, ..Default::default() };
    let listed = here.schedules.list(&page).await.unwrap();
    assert_eq!((listed.schedules.len(), listed.unreadable.len()), (3, 1), "it hides none of the others");
    assert_eq!(listed.unreadable[0].id, broken.id);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_cannot_do_for_one_schedule_holds_up_nobody_whatever_it_says() {
    let here = Place::new().await;
    // Refused for good, in each other's way, and as if Postgres were about to go away.
    for (n, code) in ["22007", "40P01", "57014"].into_iter().enumerate() {
        let refuse = format!(
            "create function public.refuse{n}() returns trigger language plpgsql as $$ begin
                if new.kind = 'poison{n}' then raise exception 'refused' using errcode = '{code}'; end if; return new; end $$;
             create trigger refuse{n} before insert on crossover.pins for each row execute function public.refuse{n}()"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(here.world.pool()).await.unwrap();
        let poison = here.create(&format!("poison{n}"), json!({ "kind": format!("poison{n}") })).await;
        here.set(poison.id, here.passed(&poison, 1).await).await;
    }
    let mut others = Vec::new();
    for n in 0..12 {
        let other = here.create(&format!("s{n}"), json!({})).await;
        here.set(other.id, here.passed(&other, 0).await).await;
        others.push(other);
    }
    let node =
        here.world.node_with(ROUTER, |config| (config.schedules.batch, config.schedules.parallel) = (16, 1)).await;
    for other in &others {
        assert_eq!(reasons(&here.told(other.id, 1).await), ["-"]);
    }
    until("all three are in trouble", async || {
        let troubled = "select count(*) from crossover.schedules where trouble is not null and kind like 'poison%'";
        (here.world.scalar::<i64>(troubled).await == 3).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_is_caught_up_in_looks_of_bounded_runs_and_bytes() {
    let here = Place::new().await;
    let large = json!("x".repeat(90_000));
    let (mut small, back) = (Vec::new(), 70_i64);
    for n in 0..22 {
        let payload = if n < 2 { large.clone() } else { json!(n) };
        let more = json!({ "spec": { "every_ms": 3_600_000, "starts_at": "2026-01-01T00:00:00Z" }, "overlap": "queue_all",
            "catch_up": "all", "catch_up_window_ms": 31_000_000_000_i64, "payload": payload });
        let schedule = here.create(&format!("s{n}"), more).await;
        here.set(schedule.id, schedule.nominal.unwrap() - TimeDelta::hours(back)).await;
        small.push(schedule);
    }
    let node = here.world.node_with(ROUTER, |config| config.schedules.parallel = 1).await;
    for schedule in &small {
        here.told(schedule.id, back as usize).await;
    }
    // What one look told has one transaction.
    let most = "select max(l.n) from (select count(*) as n from crossover.schedule_runs r join crossover.schedules s on s.id = r.schedule_id
        where s.name = any ($1) or $1 is null group by r.xmin::text) l";
    let most = async |of: Option<&[&str]>| -> i64 {
        sqlx::query_scalar(most).bind(of).fetch_one(here.world.pool()).await.unwrap()
    };
    let runs = most(None).await;
    assert!((100..=500).contains(&runs), "{runs} runs in one look");
    let runs = most(Some(&["s0", "s1"])).await;
    assert!((2..=93).contains(&runs), "{runs} runs of 90 kB in one look");
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
