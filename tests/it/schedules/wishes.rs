//! Pause, resume, trigger, change, delete.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_schedule_fires_nothing_and_keeps_its_phase() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let schedule = here.create("s", json!({})).await;
    let paused = here.wish(schedule.id, Wish::Pause("the other side is away".to_owned())).await;
    assert_eq!((paused.wake_at, paused.version), (None, 2));
    // Three of its times pass.
    let first = here.passed(&schedule, 2).await;
    let pass = "update crossover.schedules set nominal_at = $2 where id = $1";
    sqlx::query(pass).bind(schedule.id).bind(first).execute(here.world.pool()).await.unwrap();
    let beside = here.create("beside", json!({})).await;
    here.set(beside.id, here.passed(&beside, 0).await).await;
    here.told(beside.id, 1).await;
    assert!(here.runs(schedule.id).await.is_empty(), "others fire");
    let resumed = here.wish(schedule.id, Wish::Resume).await;
    assert_eq!((resumed.nominal, resumed.paused.is_none()), (schedule.nominal, true), "the phase is kept");
    let told = here.runs(schedule.id).await;
    assert_eq!((told.len(), told[0].times, told[0].nominal_at), (1, 3, Some(first)));
    assert_eq!(reasons(&told), ["paused"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_runs_at_once_once_a_token_and_moves_no_time() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let schedule = here.create("s", json!({})).await;
    here.wish(schedule.id, Wish::Pause("by hand only".to_owned())).await;
    assert_eq!(here.schedules.trigger(schedule.id, "t1").await.unwrap().as_deref(), Some("asked"));
    let key = key_of_trigger(schedule.id, "t1");
    here.world.succeeded(&key).await;
    assert_eq!(here.schedules.trigger(schedule.id, "t1").await.unwrap().as_deref(), Some("known"));
    assert_eq!(here.schedules.trigger(Uuid::nil(), "t1").await.unwrap(), None);
    assert_eq!(here.get(schedule.id).await.nominal, schedule.nominal);
    assert_eq!(here.world.runner.of(&key).len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn triggers_are_bounded() {
    let here = Place::new().await;
    let schedule = here.create("s", json!({})).await;
    for n in 0..100 {
        assert_eq!(here.schedules.trigger(schedule.id, &n.to_string()).await.unwrap().as_deref(), Some("asked"));
    }
    assert_eq!(here.schedules.trigger(schedule.id, "one more").await.unwrap().as_deref(), Some("full"));
}

#[tokio::test]
async fn a_changed_interval_keeps_its_phase_and_what_was_due_before_still_runs() {
    let here = Place::new().await;
    let schedule = here.create("s", json!({})).await;
    let changed = here.change(schedule.id, json!({ "spec": { "every_ms": 600_000 } })).await;
    let apart = schedule.nominal.unwrap() - changed.nominal.unwrap();
    assert_eq!(apart.num_milliseconds() % 600_000, 0, "the same phase");
    assert_eq!(apart, TimeDelta::minutes(20), "half an hour from now, and every ten minutes");
    let due = here.passed(&schedule, 0).await;
    here.set(schedule.id, due).await;
    let changed = here.change(schedule.id, json!({ "spec": { "cron": "0 0 1 1 *" }, "payload": { "n": 2 } })).await;
    assert_eq!((changed.nominal, changed.version), (Some(due), 3));
    let node = here.world.node().await;
    here.world.succeeded(&key_of(schedule.id, due)).await;
    assert_eq!(here.world.runner.of(&key_of(schedule.id, due))[0].payload, r#"{"n":2}"#);
    let next = here.get(schedule.id).await;
    assert_eq!(next.nominal, next.definition.times().unwrap().after(due));
    node.stop().await;
}

#[tokio::test]
async fn a_change_is_refused_where_somebody_else_was_first() {
    let here = Place::new().await;
    let schedule = here.create("s", json!({})).await;
    let wish = Wish::Pause("mine".to_owned());
    assert!(matches!(here.schedules.grant(schedule.id, Some(1), &wish, "a").await.unwrap(), Granted::Done(_)));
    assert!(matches!(
        here.schedules.grant(schedule.id, Some(1), &Wish::Resume, "b").await.unwrap(),
        Granted::Version(2)
    ));
    assert!(matches!(here.schedules.grant(Uuid::nil(), None, &Wish::Resume, "b").await.unwrap(), Granted::Unknown));
}

#[tokio::test]
async fn a_deleted_schedule_fires_no_more_and_leaves_its_runs() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let schedule = here.create("s", json!({})).await;
    let nominal = here.passed(&schedule, 0).await;
    here.set(schedule.id, nominal).await;
    here.world.succeeded(&key_of(schedule.id, nominal)).await;
    assert!(here.schedules.delete(schedule.id).await.unwrap());
    assert!(!here.schedules.delete(schedule.id).await.unwrap());
    assert_eq!(here.runs(schedule.id).await.len(), 1);
    assert!(here.schedules.get(schedule.id).await.unwrap().is_none());
    node.stop().await;
}

#[tokio::test]
async fn what_became_of_times_long_ago_is_forgotten() {
    let here = Place::new().await;
    let schedule = here.create("s", json!({})).await;
    let old = "insert into crossover.schedule_runs (schedule_id, at, outcome) select $1, now() - interval '2 days', 'enqueued' from generate_series(1, 7)";
    sqlx::query(old).bind(schedule.id).execute(here.world.pool()).await.unwrap();
    let day = std::time::Duration::from_secs(86_400);
    assert_eq!(here.schedules.forget_runs(day * 3, 5).await.unwrap(), 0);
    assert_eq!(here.schedules.forget_runs(day, 5).await.unwrap(), 5);
    assert_eq!(here.schedules.forget_runs(day, 5).await.unwrap(), 2);
}

#[tokio::test]
async fn names_are_unique_within_an_account() {
    let here = Place::new().await;
    let schedule = here.create("s", json!({})).await;
    let now = here.schedules.now().await.unwrap();
    let again = here
        .schedules
        .create(&schedule.definition, &schedule.definition.times().unwrap(), now, "b", false)
        .await
        .unwrap();
    assert!(matches!(again, Made::Exists(there) if there.id == schedule.id));
}
