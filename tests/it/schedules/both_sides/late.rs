//! Who tells Temporal late, of another mind, or by what is lost, undoes nothing for good.

use crossover::config::Mirroring;
use crossover::flags::DocumentBuilder;
use crossover::schedule::mirrors::{Standing, Task};

use super::*;

const LEASE: Duration = Duration::from_secs(60);

impl Place {
    fn mirrors(&self) -> Mirrors {
        Mirrors::new(self.world.pool().clone())
    }

    /// One that Temporal is to have, and that nobody has told it of.
    async fn untold(&self) -> Schedule {
        let now = self.schedules.now().await.unwrap();
        let body = json!({ "account": self.world.account, "name": "s", "kind": "sync", "payload": 1, "spec": { "every_ms": 3_600_000 } });
        let definition = Definition::parse(body.to_string().as_bytes(), MAX, now).unwrap();
        let times = definition.times().unwrap();
        match self.schedules.create(&definition, &times, now, "a test", true).await.unwrap() {
            Made::Created(schedule) => schedule,
            Made::Exists(schedule) => panic!("{schedule:?} is there"),
        }
    }

    async fn take(&self) -> Option<Task> {
        self.mirrors().take(10, LEASE).await.unwrap().pop()
    }

    async fn want(&self, wanted: bool) {
        let of = [(self.world.account.clone(), "sync".to_owned(), wanted)];
        assert_eq!(self.mirrors().want(&of, 10).await.unwrap(), 1);
    }

    /// Tells Temporal as a router does, and says so.
    async fn tell(&self, task: &Task) {
        let schedule = task.schedule.as_ref().unwrap().as_ref().unwrap();
        let mirror = Mirror::of(schedule, task.wish, task.now).unwrap();
        assert_eq!(self.temporal().reflect(&mirror).await, Ok(Reflected::InStep));
        assert!(self.mirrors().told(task, mirror.again).await.unwrap());
    }

    async fn standing(&self, id: Uuid) -> Option<Standing> {
        self.mirrors().of(&[id]).await.unwrap().remove(&id).map(|stand| stand.state)
    }

    async fn sql(&self, sql: &'static str) {
        sqlx::query(sql).execute(self.world.pool()).await.unwrap();
    }

    /// In how many seconds it is looked at again.
    async fn again_in(&self) -> f64 {
        let again = "select extract(epoch from due_at - clock_timestamp())::float8 from crossover.schedule_mirrors";
        self.world.scalar(again).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_tells_what_another_has_taken_and_what_he_undoes_late_is_mended() {
    let here = Place::at(Stage::Shadow).await;
    let id = here.untold().await.id;
    here.tell(&here.take().await.unwrap()).await;
    // Complete, and back: the first router is slow to make Temporal forget it.
    here.want(false).await;
    let forgetting = here.take().await.unwrap();
    assert!(forgetting.schedule.is_none());
    here.want(true).await;
    assert!(here.take().await.is_none(), "one at a time");
    here.sql("update crossover.schedule_mirrors set leased_until = now(), due_at = now()").await;
    here.tell(&here.take().await.unwrap()).await;
    assert_eq!(here.standing(id).await, Some(Standing::InStep));
    let again_in = here.again_in().await;
    assert!(again_in < 16.0, "whoever made Temporal forget it may still be at it: {again_in}");
    // Only now it arrives.
    here.temporal().forget(id).await.unwrap();
    assert!(here.mirrors().told(&forgetting, None).await.unwrap());
    assert!(here.again_in().await <= 0.0, "he says so, and it is looked at again");
    assert!(here.seen(id).await.is_none());
    let node = here.world.node().await;
    here.until_seen(id, "it is there again", |_| true).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_of_a_schedule_that_was_forgotten_since_counts_for_nothing() {
    let here = Place::at(Stage::Shadow).await;
    let id = here.untold().await.id;
    let before = here.take().await.unwrap();
    here.sql("delete from crossover.schedule_mirrors").await;
    assert!(!here.mirrors().told(&before, None).await.unwrap(), "nobody wants it");
    here.want(true).await;
    assert!(here.mirrors().told(&before, None).await.unwrap());
    assert_eq!(here.standing(id).await, Some(Standing::Behind));
    here.mirrors().not_told(&before, before.wish + 1_000, Some("Temporal has a later one of it")).await.unwrap();
    let now = here.take().await.unwrap();
    assert!(now.wish > before.wish && now.wish < before.wish + 1_000, "{} after {}", now.wish, before.wish);
    here.mirrors().not_told(&now, 0, None).await.unwrap();
    assert!(here.take().await.is_some(), "nobody has tried, so somebody does");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_routers_of_two_minds_neither_undoes_what_the_other_does_and_temporal_keeps_the_schedule() {
    let here = Place::at(Stage::Shadow).await;
    let one = here.world.node().await;
    let id = here.make(&one, "s", hourly()).await;
    here.in_step(&one, id).await;
    let wish = here.seen(id).await.unwrap().wish;
    // To the other one this account is complete, and no other is.
    let flags = here.world.fresh("flags.json");
    let document = DocumentBuilder::default().account(Stage::Complete, &here.world.account).build().unwrap();
    document.write_to(&flags).unwrap();
    let other = here.world.node_with(ALL, |config| config.flags.file = flags).await;
    // It looks at the stages when it starts, and every few seconds where not all agree. It is seen to by what is made of these.
    for n in 0..2 {
        let copy = "insert into crossover.schedules (account, name, kind, priority, payload, policy, spec, overlap, catch_up, window_ms, jitter_ms, changed_by)
            select 'not-' || account, name || random(), kind, priority, payload, policy, spec, overlap, catch_up, window_ms, jitter_ms, 'a test'
            from crossover.schedules limit 1";
        here.sql(copy).await;
        until("the other router has looked at the stages", async || {
            let all = "select count(*) from crossover.schedule_mirrors where wanted and behind_since is null";
            (here.world.scalar::<i64>(all).await == n + 2).then_some(())
        })
        .await;
    }
    assert_eq!(here.seen(id).await.unwrap().wish, wish, "nothing was turned around");
    one.stop().await;
    until("the only router that is left has its way", async || here.seen(id).await.is_none().then_some(())).await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_that_was_made_anew_knows_nothing_of_is_found_on_temporal_and_forgotten() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node().await;
    let id = here.make(&node, "s", each_second()).await;
    here.told(id, 1).await;
    here.in_step(&node, id).await;
    node.stop().await;
    here.sql("truncate crossover.schedules, crossover.schedule_mirrors").await;
    let node = here.world.node().await;
    until("it is forgotten", async || here.seen(id).await.is_none().then_some(())).await;
    assert!(metric(&node, &ticks("gone")).await >= 1.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changes_is_told_while_stages_can_not_be_looked_at_and_by_whatever_hand() {
    let here = Place::at(Stage::Shadow).await;
    here.sql("alter function crossover.routers_agree(text, bigint[]) rename to away").await;
    let node = here.world.node().await;
    let id = here.make(&node, "s", hourly()).await;
    here.in_step(&node, id).await;
    here.sql("update crossover.schedules set paused_at = now(), paused_by = 'somebody', pause_reason = 'by hand'")
        .await;
    here.until_seen(id, "it is paused there", |seen| seen.paused).await;
    assert!(metric(&node, "crossover_schedule_mirror_errors_total").await >= 1.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_mirrors_are_paused_temporal_has_every_schedule_and_starts_nothing() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node_with(ALL, |config| config.schedules.mirror = Mirroring::Paused).await;
    let id = here.make(&node, "s", each_second()).await;
    here.in_step(&node, id).await;
    assert!(here.seen(id).await.unwrap().paused);
    let runs = here.each_ran_once(id, 3).await;
    assert!(runs.iter().all(|run| run.ticked_by.as_deref() == Some("postgres")), "{runs:#?}");
    node.stop().await;
    // As it says in the configuration's page: whoever changes that makes it known.
    here.sql("update crossover.schedule_mirrors set due_at = now()").await;
    let node = here.world.node().await;
    here.until_seen(id, "it ticks", |seen| !seen.paused).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_is_put_off_is_put_off_for_temporals_times_too() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node_with(ALL, without_our_scheduler).await;
    let id = here.make(&node, "s", each_second()).await;
    here.told(id, 1).await;
    here.sql("update crossover.schedules set failures = 3, trouble = 'its group is full', wake_at = now() + interval '1 hour'").await;
    let came = metric(&node, &ticks("later")).await;
    until("its times come later", async || (metric(&node, &ticks("later")).await >= came + 2.0).then_some(())).await;
    let failures = "select failures from crossover.schedules";
    assert_eq!(here.world.scalar::<i32>(failures).await, 3, "they are no further tries");
    here.sql("update crossover.schedules set wake_at = now()").await;
    until("it goes on", async || (here.world.scalar::<i32>(failures).await == 0).then_some(())).await;
    node.stop().await;
}
