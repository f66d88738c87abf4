//! Schedules of accounts that are not complete: on Postgres and on Temporal, whichever comes first.

mod histories;
mod late;
mod outages;

use std::time::Duration;

use crossover::config::Config;
use crossover::interaction::Side;
use crossover::provision;
use crossover::schedule::Mirrors;
use crossover::schedule::mirror::{Mirror, Reflect, Reflected, tick_of};
use crossover::temporal::schedules::Seen;

use super::*;
use crate::arming_temporal::world::client;
use crate::bridge::child::Child;
use crate::bridge::proxy::Proxy;
use crate::bridge::world::{ALL, Node};
use crate::servers;

/// A process whose own scheduler does not look.
fn without_our_scheduler(config: &mut Config) {
    config.schedules.parallel = 0;
}

async fn metric(node: &Node, series: &str) -> f64 {
    let shown = node.get("/metrics").await.body;
    let line = shown.as_str().unwrap().lines().find(|line| line.starts_with(&format!("{series} "))).map(str::to_owned);
    line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0.0)
}

fn ticks(what: &str) -> String {
    format!("crossover_schedule_ticks_total{{what=\"{what}\"}}")
}

impl Place {
    fn temporal(&self) -> crossover::temporal::client::TemporalClient {
        client(&self.world.temporal, &self.world.config().temporal.task_queue)
    }

    async fn seen(&self, id: Uuid) -> Option<Seen> {
        // A busy server says so, and answers a later question. It answers none while many are asked.
        until("Temporal says what it has", async || {
            let seen = self.temporal().schedule(id).await.ok();
            if seen.is_none() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            seen
        })
        .await
    }

    /// What Temporal has, once that holds.
    async fn until_seen(&self, id: Uuid, what: &str, mut holds: impl FnMut(&Seen) -> bool) -> Seen {
        until(what, async || {
            let seen = self.seen(id).await.filter(&mut holds);
            if seen.is_none() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            seen
        })
        .await
    }

    /// Makes one over HTTP.
    async fn make(&self, node: &Node, name: &str, more: Value) -> Uuid {
        let body = json!({ "account": self.world.account, "name": name, "kind": "sync", "payload": { "n": 1 } });
        let answer = node.call("POST", "/v1/schedules", Some(&with(body, more))).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.body["id"].as_str().unwrap().parse().unwrap()
    }

    async fn post(&self, node: &Node, id: Uuid, what: &str, body: Value) -> Value {
        let answer = node.call("POST", &format!("/v1/schedules/{id}/{what}"), Some(&body)).await;
        assert!(matches!(answer.status, 200..=202), "{answer:?}");
        answer.body
    }

    async fn patch(&self, node: &Node, id: Uuid, body: Value) -> Value {
        let answer = node.call("PATCH", &format!("/v1/schedules/{id}"), Some(&body)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    async fn look(&self, node: &Node, id: Uuid) -> Value {
        node.get(&format!("/v1/schedules/{id}")).await.body
    }

    async fn in_step(&self, node: &Node, id: Uuid) {
        until("Temporal is in step", async || {
            let found = self.look(node, id).await;
            (found["temporal"]["state"] == "in_step").then_some(())
        })
        .await;
    }

    /// Each of the first `n` nominal times has one pin, and ran once, on its owner; none is left out.
    async fn each_ran_once(&self, id: Uuid, n: usize) -> Vec<RunRow> {
        let runs = self.told(id, n).await;
        let nominal: Vec<_> = runs.iter().map(|run| run.nominal_at.unwrap()).collect();
        for pair in nominal.windows(2) {
            assert_eq!(pair[1] - pair[0], TimeDelta::seconds(1), "{runs:#?}");
        }
        for run in &runs[..n] {
            let key = run.key.clone().unwrap();
            self.world.each_ran_on_its_owner(std::slice::from_ref(&key)).await;
            assert_eq!(self.world.runner.of(&key).len(), 1, "{key}");
        }
        runs
    }
}

fn each_second() -> Value {
    json!({ "spec": { "every_ms": 1_000 }, "overlap": "queue_all", "catch_up": "all" })
}

fn hourly() -> Value {
    json!({ "spec": { "every_ms": 3_600_000 } })
}

#[tokio::test(flavor = "multi_thread")]
async fn temporals_scheduler_alone_makes_each_run_once_by_the_plan() {
    for (stage, owner) in [(Stage::Shadow, "temporal"), (Stage::Live, "postgres")] {
        let here = Place::at(stage).await;
        let node = here.world.node_with(ALL, without_our_scheduler).await;
        let id = here.make(&node, "s", with(each_second(), json!({ "jitter_ms": 300 }))).await;
        let runs = here.each_ran_once(id, 4).await;
        assert!(runs.iter().all(|run| run.ticked_by.as_deref() == Some("temporal") && run.temporal_at.is_some()));
        let key = runs[0].key.clone().unwrap();
        assert_eq!(here.world.runner.sides(&key), [owner]);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_scheduler_alone_makes_them_while_temporal_is_away_and_temporal_has_all_once_it_is_back() {
    let here = Place::at(Stage::Live).await;
    let proxy = Proxy::to(&here.world.temporal).await;
    proxy.withhold_answers();
    let quickly = |config: &mut Config| config.temporal.start_timeout = Duration::from_millis(500);
    let node = here.world.node_towards(&proxy.address, ALL, quickly).await;
    let id = here.make(&node, "s", each_second()).await;
    let other = here.make(&node, "other", hourly()).await;
    let runs = here.each_ran_once(id, 3).await;
    assert!(runs.iter().all(|run| run.ticked_by.as_deref() == Some("postgres")), "{runs:#?}");
    // Changed there and back again meanwhile.
    here.patch(&node, other, json!({ "spec": { "every_ms": 1_000 } })).await;
    here.post(&node, other, "pause", json!({ "reason": "holidays" })).await;
    here.post(&node, other, "resume", Value::Null).await;
    here.patch(&node, other, json!({ "spec": { "every_ms": 7_200_000 } })).await;
    here.post(&node, other, "pause", json!({ "reason": "their API is down" })).await;
    let behind = until("it says why", async || {
        let found = here.look(&node, other).await;
        found["temporal"]["error"].is_string().then_some(found)
    })
    .await;
    assert_eq!(behind["temporal"]["state"], "behind", "{behind}");
    let lag = Mirrors::new(here.world.pool().clone()).lag().await.unwrap();
    assert!(lag.behind == 2 && lag.error.is_some(), "{lag:?}");
    proxy.answer();
    for id in [id, other] {
        here.in_step(&node, id).await;
    }
    let seen = here.seen(other).await.unwrap();
    let spec = serde_json::to_value(&seen.launch.unwrap().definition.spec).unwrap();
    assert_eq!((seen.paused, &spec["every_ms"]), (true, &json!(7_200_000)));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_schedulers_meet_in_one_pin() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node().await;
    let id = here.make(&node, "s", each_second()).await;
    here.in_step(&node, id).await;
    let began = here.told(id, 1).await.len();
    // Whichever was first: the other has come with it as well.
    until("both have come with the same times", async || {
        let runs = here.runs(id).await;
        (runs.iter().skip(began).filter(|run| run.temporal_at.is_some()).count() >= 4).then_some(())
    })
    .await;
    let runs = here.each_ran_once(id, began + 4).await;
    let pins = sqlx::query_scalar::<_, i64>("select count(*) from crossover.pins where key like 'schedule:%'");
    let pins = pins.fetch_one(here.world.pool()).await.unwrap();
    assert!(pins >= runs.len() as i64, "{pins} pins");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flips_between_ticks_leave_no_time_out_and_run_none_twice() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node().await;
    let id = here.make(&node, "s", each_second()).await;
    let mut told = 0;
    for (stage, on_temporal) in [
        (Stage::Shadow, true),
        (Stage::Live, true),
        (Stage::Shadow, true),
        (Stage::Off, true),
        (Stage::Live, true),
        (Stage::Complete, false),
        (Stage::Live, true),
        (Stage::Shadow, true),
    ] {
        here.world.flip(stage, &[&node]).await;
        until(&format!("Temporal is told, in {stage}"), async || {
            let stand = here.look(&node, id).await["temporal"]["state"].as_str().map(str::to_owned);
            (stand.as_deref() == on_temporal.then_some("in_step")).then_some(())
        })
        .await;
        assert_eq!(here.seen(id).await.is_some(), on_temporal, "in {stage}");
        told = here.told(id, told + 2).await.len();
    }
    let runs = here.each_ran_once(id, told).await;
    let owners: std::collections::BTreeSet<_> =
        runs.iter().take(told).flat_map(|run| here.world.runner.sides(run.key.as_ref().unwrap())).collect();
    assert_eq!(owners.len(), 2, "both sides ran some: {owners:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_killed_again_and_again_leave_no_time_out_and_pin_none_twice() {
    let here = Place::at(Stage::Live).await;
    let mut id = None;
    for _ in 0..4 {
        let mut child = Child::serve(&here.world, "router,worker,relay", &[]).await;
        let id = match id {
            Some(id) => id,
            None => *id.insert(here.make(&child.node, "s", each_second()).await),
        };
        let before = here.runs(id).await;
        let seen = before.iter().filter(|run| run.temporal_at.is_some()).count();
        until("both schedulers have come with some", async || {
            let runs = here.runs(id).await;
            let both = runs.iter().filter(|run| run.temporal_at.is_some()).count();
            (runs.len() > before.len() + 2 && both > seen).then_some(())
        })
        .await;
        child.kill();
    }
    let node = here.world.node().await;
    let runs = here.told(id.unwrap(), here.runs(id.unwrap()).await.len() + 2).await;
    for pair in runs.windows(2) {
        assert_eq!(pair[1].nominal_at.unwrap() - pair[0].nominal_at.unwrap(), TimeDelta::seconds(1), "{runs:#?}");
    }
    for run in &runs {
        let key = run.key.clone().unwrap();
        here.world.each_ran_on_its_owner(std::slice::from_ref(&key)).await;
        let fences: std::collections::BTreeSet<_> = here.world.runner.of(&key).iter().map(|call| call.fence).collect();
        assert_eq!(fences.len(), here.world.runner.of(&key).len(), "{key}: what was cut off runs under another fence");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_wakes_no_paused_schedule_even_where_temporal_was_told_otherwise() {
    let here = Place::at(Stage::Live).await;
    let node = here.world.node().await;
    let id = here.make(&node, "s", each_second()).await;
    here.told(id, 2).await;
    here.post(&node, id, "pause", json!({ "reason": "their API is down" })).await;
    here.in_step(&node, id).await;
    here.until_seen(id, "it is paused there", |seen| seen.paused).await;
    let before = here.enqueued(id).await;
    for stage in [Stage::Shadow, Stage::Off] {
        here.world.flip(stage, &[&node]).await;
        // Somebody resumes it on Temporal itself, again where that was put right before its time came.
        let (came, mut awake) = (metric(&node, &ticks("paused")).await, here.get(id).await);
        awake.paused = None;
        until("its time came on Temporal", async || {
            let seen = here.seen(id).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            if seen.paused {
                let awake = Mirror::of(&awake, seen.launch?.wish, here.schedules.now().await.unwrap()).unwrap();
                drop(here.temporal().reflect(&awake).await);
            }
            (metric(&node, &ticks("paused")).await > came).then_some(())
        })
        .await;
        here.until_seen(id, "it is paused there again", |seen| seen.paused).await;
    }
    assert_eq!(here.enqueued(id).await, before, "nothing was enqueued");
    here.post(&node, id, "resume", Value::Null).await;
    here.told(id, before.len() + 2).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_goes_to_both_sides() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node_with(ALL, without_our_scheduler).await;
    let id = here.make(&node, "s", hourly()).await;
    here.in_step(&node, id).await;
    let body =
        json!({ "spec": { "every_ms": 1_000 }, "overlap": "queue_all", "catch_up": "all", "payload": { "n": 2 } });
    here.patch(&node, id, body).await;
    let runs = here.each_ran_once(id, 2).await;
    let call = &here.world.runner.of(runs[0].key.as_ref().unwrap())[0];
    assert_eq!(call.payload, r#"{"n":2}"#);
    here.patch(&node, id, hourly()).await;
    here.in_step(&node, id).await;
    let seen = here.seen(id).await.unwrap();
    assert!(seen.next[1] - seen.next[0] == TimeDelta::hours(1), "{:?}", seen.next);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_temporal_has_of_any_schedule_are_our_times_to_the_second() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node().await;
    let specs = [
        json!({ "every_ms": 90_000, "starts_at": "2026-01-01T00:00:07.25Z" }),
        json!({ "every_ms": 90_500, "starts_at": "2026-01-01T00:00:07.25Z" }),
        // The days on which clocks change are among them, and the expressions are such as Temporal reads otherwise, or not at all.
        json!({ "cron": "30 2 * * SUN", "time_zone": "Europe/Berlin" }),
        json!({ "cron": "*/20 1-3 13,28 3 SUN", "time_zone": "Europe/Berlin" }),
        json!({ "cron": "15 30 0 L * *", "time_zone": "America/New_York" }),
        json!({ "at": "2027-03-28T01:00:00.5Z" }),
    ];
    for (n, spec) in specs.into_iter().enumerate() {
        let id = here.make(&node, &format!("s{n}"), json!({ "spec": spec })).await;
        here.in_step(&node, id).await;
        let (seen, schedule) = (here.seen(id).await.unwrap(), here.get(id).await);
        let times = schedule.definition.times().unwrap();
        let wanted: Vec<_> = times.next(seen.next[0] - TimeDelta::seconds(1), seen.next.len());
        let wanted: Vec<_> = wanted.into_iter().map(tick_of).collect();
        assert_eq!(seen.next, wanted, "{spec}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_triggered_runs_once_whichever_side_comes_first() {
    let here = Place::at(Stage::Shadow).await;
    for (n, ours) in [2, 0].into_iter().enumerate() {
        let node = here.world.node_with(ALL, |config| config.schedules.parallel = ours).await;
        let id = here.make(&node, &format!("s{n}"), hourly()).await;
        here.in_step(&node, id).await;
        here.post(&node, id, "pause", json!({ "reason": "a trigger runs all the same" })).await;
        let asked = here.post(&node, id, "trigger", json!({ "token": "t" })).await;
        let again = here.post(&node, id, "trigger", json!({ "token": "t" })).await;
        assert_eq!(asked["id"], again["id"]);
        let key = key_of_trigger(id, "t");
        here.world.succeeded(&key).await;
        until("Temporal has launched it", async || {
            let mirror = "select triggers = '{}' from crossover.schedule_mirrors where schedule_id = $1";
            sqlx::query_scalar::<_, bool>(mirror).bind(id).fetch_one(here.world.pool()).await.unwrap().then_some(())
        })
        .await;
        let came = if ours == 0 { "first" } else { "second" };
        until("its launcher came", async || (metric(&node, &ticks(came)).await >= 1.0).then_some(())).await;
        assert_eq!(here.world.runner.of(&key).len(), 1);
        assert_eq!(here.enqueued(id).await, BTreeMap::from([(key, 1)]));
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_forgotten_on_temporal_and_so_is_what_comes_without_a_schedule() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node().await;
    let id = here.make(&node, "s", each_second()).await;
    here.told(id, 1).await;
    here.in_step(&node, id).await;
    let schedule = here.get(id).await;
    assert_eq!(node.call("DELETE", &format!("/v1/schedules/{id}"), None).await.status, 204);
    let forgotten = async || until("it is forgotten", async || here.seen(id).await.is_none().then_some(())).await;
    forgotten().await;
    // As by a process that was told of it before, and goes on only now.
    let late = Mirror::of(&schedule, 1, here.schedules.now().await.unwrap()).unwrap();
    assert_eq!(here.temporal().reflect(&late).await, Ok(Reflected::InStep));
    until("its time came", async || (metric(&node, &ticks("gone")).await > 0.0).then_some(())).await;
    forgotten().await;
    until("nothing is left of it", async || {
        (here.world.scalar::<i64>("select count(*) from crossover.schedule_mirrors").await == 0).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_had_not_told_is_told_by_another_and_nothing_older_takes_its_place() {
    let here = Place::at(Stage::Shadow).await;
    // Made and changed, and whoever was to tell Temporal has died: once before it took that, once after.
    let now = here.schedules.now().await.unwrap();
    let body = json!({ "account": here.world.account, "name": "s", "kind": "sync", "payload": 1, "spec": { "every_ms": 3_600_000 } });
    let definition = Definition::parse(body.to_string().as_bytes(), MAX, now).unwrap();
    let times = definition.times().unwrap();
    let Made::Created(first) = here.schedules.create(&definition, &times, now, "a test", true).await.unwrap() else {
        panic!("it was there")
    };
    let mirrors = Mirrors::new(here.world.pool().clone());
    let taken = mirrors.take(10, Duration::from_millis(500)).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert!(mirrors.take(10, Duration::ZERO).await.unwrap().is_empty(), "one at a time");
    here.wish(first.id, Wish::Pause("holidays".to_owned())).await;
    let node = here.world.node().await;
    here.in_step(&node, first.id).await;
    let seen = here.seen(first.id).await.unwrap();
    assert!(seen.paused);
    let wish = seen.launch.unwrap().wish;
    // The first one was only slow.
    let late = Mirror::of(&first, taken[0].wish, now).unwrap();
    assert_eq!(here.temporal().reflect(&late).await, Ok(Reflected::Later(wish)));
    assert!(here.seen(first.id).await.unwrap().paused);
    // After a backup of Postgres was restored, what counts is what Postgres has; docs/postgres.md says to have all looked at.
    let restored = "update crossover.schedule_mirrors set wish = 1, done = 0, due_at = now()";
    sqlx::query(restored).execute(here.world.pool()).await.unwrap();
    here.until_seen(first.id, "it has what is wanted now", |seen| {
        seen.launch.as_ref().is_some_and(|launch| launch.wish > wish)
    })
    .await;
    here.in_step(&node, first.id).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_temporals_times_run_without_a_pin_and_are_pinned_once_it_is_back() {
    let mut postgres = provision::postgres(&servers::options()).await.unwrap();
    let here = Place::on(World::with(Some(postgres.url.clone()), None, Stage::Shadow).await);
    let node = here.world.node_with(ALL, |config| config.router.fail_open = true).await;
    let each_two = json!({ "spec": { "every_ms": 2_000 }, "overlap": "queue_all", "catch_up": "all" });
    let id = here.make(&node, "s", each_two).await;
    let paused = here.make(&node, "paused", each_second()).await;
    here.post(&node, paused, "pause", json!({ "reason": "holidays" })).await;
    for id in [id, paused] {
        here.in_step(&node, id).await;
    }
    here.told(id, 2).await;
    let sleeping = here.enqueued(paused).await;
    // What has a pin and has not ended holds its series back until its end can be written.
    let begun = here.runs(id).await.len();
    let last = here.told(id, begun + 1).await.pop().unwrap();
    here.world.succeeded(&last.key.unwrap()).await;
    postgres.server.kill().await.unwrap();
    let of = |id: Uuid| {
        let calls = here.world.runner.calls();
        calls.into_iter().map(|call| call.key).filter(|key| key.contains(&id.to_string())).collect::<Vec<_>>()
    };
    let before = of(id).len();
    until("it goes on", async || (of(id).len() >= before + 3).then_some(())).await;
    assert!(metric(&node, &ticks("unpinned")).await >= 2.0);
    postgres.server.restart().await.unwrap();
    let ran = of(id);
    for key in &ran {
        assert_eq!(here.world.succeeded(key).await.pin.owner, Side::Temporal);
        assert_eq!(here.world.runner.of(key).len(), 1, "{key}");
    }
    until("our scheduler goes on", async || (of(id).len() >= ran.len() + 2).then_some(())).await;
    assert!(of(paused).len() <= sleeping.len(), "what is paused was not woken: {:?}", of(paused));
    node.stop().await;
    postgres.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_nothing_of_an_armed_account_runs_without_it() {
    let mut postgres = provision::postgres(&servers::options()).await.unwrap();
    let here = Place::on(World::with(Some(postgres.url.clone()), None, Stage::Live).await);
    let node = here.world.node().await;
    let id = here.make(&node, "s", each_second()).await;
    here.in_step(&node, id).await;
    here.told(id, 2).await;
    postgres.server.kill().await.unwrap();
    let came = metric(&node, &ticks("later")).await;
    until("Temporal's times came", async || (metric(&node, &ticks("later")).await >= came + 3.0).then_some(())).await;
    assert_eq!(metric(&node, &ticks("unpinned")).await, 0.0);
    postgres.server.restart().await.unwrap();
    let told = until("Postgres is back", async || here.schedules.runs(id, 1_000).await.ok()).await.len();
    let runs = here.each_ran_once(id, told + 3).await;
    assert!(runs.iter().all(|run| run.outcome == "enqueued"));
    for run in &runs[..told + 3] {
        assert_eq!(here.world.runner.sides(run.key.as_ref().unwrap()), ["postgres"]);
    }
    node.stop().await;
    postgres.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_is_not_carried_by_launchers_and_runs_all_the_same() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node_with(ALL, without_our_scheduler).await;
    let large = json!("x".repeat(200_000));
    let id = here.make(&node, "s", with(each_second(), json!({ "payload": large }))).await;
    let runs = here.each_ran_once(id, 1).await;
    let launch = here.seen(id).await.unwrap().launch.unwrap();
    assert_eq!((launch.whole, launch.definition.payload.get()), (false, "null"));
    assert!(here.world.runner.of(runs[0].key.as_ref().unwrap())[0].payload.len() > 200_000);
    node.stop().await;
}
