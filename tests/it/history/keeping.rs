//! Upkeep is done by one process at a time, and what fails shows.

use std::sync::Arc;

use crossover::config::Config;
use crossover::history::{Duty, Keeper};
use crossover::metrics::Metrics;
use crossover::observer::Log;
use tokio_util::sync::CancellationToken;

use super::*;

struct Kept {
    keeper: Keeper,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Kept {
    fn of(world: &World) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let log = Log::new(world.ledger.pool().clone());
        let config = Config::defaults();
        let keeper = Keeper::new(world.history.clone(), world.ledger.clone(), log, &config, metrics.clone());
        Self { keeper, metrics, stop: CancellationToken::new() }
    }

    async fn turn(&self, duty: Duty) -> bool {
        self.keeper.turn(duty, &self.stop).await
    }

    fn metric(&self, line: &str) -> Option<f64> {
        let text = self.metrics.render().unwrap();
        let found = text.lines().find(|of| of.starts_with(line))?;
        found.rsplit(' ').next()?.parse().ok()
    }
}

#[tokio::test]
async fn every_duty_is_done_by_one_process_and_not_again_before_it_is_due() {
    let world = World::new().await;
    let (one, other) = (Kept::of(&world), Kept::of(&world));
    for duty in Duty::ALL {
        assert!(one.turn(duty).await, "{duty:?}");
        assert!(!other.turn(duty).await && !one.turn(duty).await, "{duty:?} is not due");
    }
    let done = world.history.done().await.unwrap();
    assert_eq!(done.len(), Duty::ALL.len());
    assert!(done.iter().all(|duty| duty.failures == 0 && duty.error.is_none()), "{done:?}");
    world.sql("update crossover.maintenance set due_at = now()").await;
    let (a, b) = tokio::join!(one.turn(Duty::Partitions), other.turn(Duty::Partitions));
    assert!(a != b, "one of two");
    // Both show it, whoever did it.
    other.metrics.maintenance.show(&done);
    for duty in Duty::ALL {
        let line = format!("crossover_maintenance_done_timestamp_seconds{{duty=\"{}\"}}", duty.as_str());
        assert!(other.metric(&line).unwrap() > 1e9, "{line}");
    }
}

#[tokio::test]
async fn a_duty_whose_process_died_is_anothers_when_its_lease_ends() {
    let world = World::new().await;
    let (dead, heir) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(world.history.begin("history", dead, DAY).await.unwrap());
    assert!(!world.history.begin("history", heir, DAY).await.unwrap());
    world.sql("update crossover.maintenance set lease_until = now()").await;
    assert!(world.history.begin("history", heir, DAY).await.unwrap());
    // What the first says now is not heard.
    world.history.end("history", dead, Duration::ZERO, Ok(None)).await.unwrap();
    assert!(!world.history.begin("history", Uuid::new_v4(), DAY).await.unwrap());
    world.history.end("history", heir, Duration::ZERO, Ok(None)).await.unwrap();
    assert!(world.history.begin("history", dead, DAY).await.unwrap());
}

#[tokio::test]
async fn upkeep_that_fails_shows_and_is_tried_again_by_whoever_comes_first() {
    let world = World::new().await;
    let (one, other) = (Kept::of(&world), Kept::of(&world));
    world.sql("alter function crossover.orphans() rename to not_there").await;
    assert!(one.turn(Duty::Orphans).await);
    assert_eq!(one.metric("crossover_maintenance_failures_total{duty=\"orphans\"}"), Some(1.0));
    let done = &world.history.done().await.unwrap()[0];
    assert_eq!(done.failures, 1);
    let minutes = "select round(extract(epoch from due_at - now()) / 60)::bigint from crossover.maintenance";
    assert_eq!(world.count(minutes).await, 1);
    for later in [2, 4] {
        world.sql("update crossover.maintenance set due_at = now()").await;
        assert!(one.turn(Duty::Orphans).await);
        assert_eq!(world.count(minutes).await, later);
    }
    let done = &world.history.done().await.unwrap()[0];
    assert!(done.error.as_ref().unwrap().contains("crossover.orphans"), "{done:?}");
    let since = done.at;
    assert!(!other.turn(Duty::Orphans).await, "a minute later");
    world
        .sql("alter function crossover.not_there() rename to orphans; update crossover.maintenance set due_at = now()")
        .await;
    assert!(other.turn(Duty::Orphans).await);
    let done = &world.history.done().await.unwrap()[0];
    assert!(done.failures == 0 && done.error.is_none() && done.at > since, "{done:?}");
}

#[tokio::test]
async fn a_duty_that_a_shutdown_broke_off_is_free_at_once() {
    let world = World::new().await;
    let (one, other) = (Kept::of(&world), Kept::of(&world));
    let mut blocking = world.ledger.pool().begin().await.unwrap();
    sqlx::query("lock table crossover.pins in access exclusive mode").execute(&mut *blocking).await.unwrap();
    let stop = one.stop.clone();
    let turn = async { one.turn(Duty::Orphans).await };
    let stopping = async {
        let at_it = "select count(*) from crossover.maintenance where lease_until > now()";
        while world.count(at_it).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    assert!(tokio::join!(turn, stopping).0);
    blocking.rollback().await.unwrap();
    assert!(other.turn(Duty::Orphans).await);
}

#[tokio::test]
async fn orphans_are_taken_away_where_nobody_needs_them_and_counted_where_they_are_a_fault() {
    let world = World::new().await;
    let (lost, fine, young) =
        (world.pin("lost", None).await, world.pin("fine", None).await, world.pin("young", None).await);
    world.sql(&format!("delete from crossover.ready where id in ('{lost}', '{young}')")).await;
    for id in [lost, fine] {
        world.age(id, 1).await;
    }
    world.sql(
        "insert into crossover.outbox (id, due_at, created_at, epoch, behind)
         values (gen_random_uuid(), now(), now() - interval '2 hours', 1, '{}'), (gen_random_uuid(), now(), now(), 1, '{}')",
    )
    .await;
    let orphan = world.task("k", 1, None).await;
    world.sql(&format!("delete from crossover.tasks where id = '{orphan}'")).await;
    let found = world.history.orphans().await.unwrap();
    let wanted =
        [("outbox", 1), ("parked", 0), ("pins_in_no_place", 1), ("rehearsals", 0), ("tasks_without_record", 1)];
    assert_eq!(found.iter().map(|(what, rows)| (what.as_str(), *rows)).collect::<Vec<_>>(), wanted);
    assert_eq!(world.count("select count(*) from crossover.outbox").await, 1, "what has just come may find its pin");
    let kept = Kept::of(&world);
    kept.turn(Duty::Orphans).await;
    kept.metrics.maintenance.show(&world.history.done().await.unwrap());
    assert_eq!(kept.metric("crossover_orphans{what=\"pins_in_no_place\"}"), Some(1.0));
    assert_eq!(kept.metric("crossover_orphans{what=\"outbox\"}"), Some(0.0), "gone by now");
}

#[tokio::test]
async fn the_doctor_names_what_keeps_the_queue_from_being_cleaned_and_what_is_missing() {
    let world = World::new().await;
    let url = servers::database().await;
    let doctor = async |url: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(["doctor", "--json"]).current_dir(folder.path()).env("CROSSOVER_POSTGRES_URL", url);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = said["checks"].as_array().unwrap().clone();
        move |name: &str| {
            let check = checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("{checks:?}"));
            (check["state"].as_str().unwrap().to_owned(), check["detail"].as_str().unwrap().to_owned())
        }
    };
    let found = doctor(&world.url).await;
    assert_eq!((found("postgres settings").0, found("postgres upkeep").0), ("ok".to_owned(), "ok".to_owned()));
    let tomorrow = (Utc::now() + TimeDelta::days(1)).format("%Y%m%d");
    world
        .sql(&format!(
            "alter table crossover.tasks_ready set (autovacuum_enabled = false); drop table crossover.payloads_{tomorrow};
             insert into crossover.maintenance (duty, known_since, error) values ('pins', now() - interval '9 hours', 'the door is shut')"
        ))
        .await;
    let found = doctor(&world.url).await;
    let (state, detail) = found("postgres settings");
    assert!(state == "fault" && detail.contains("crossover.tasks_ready has autovacuum_enabled=false"), "{detail}");
    let (state, detail) = found("postgres upkeep");
    assert!(
        state == "fault"
            && detail.contains("crossover.payloads has no partition for")
            && detail.contains("the door is shut"),
        "{detail}"
    );
    // A database that nobody has migrated yet is no fault of upkeep.
    assert_eq!(doctor(&url).await("postgres upkeep").0, "ok");
}
