//! Schedules on a real Postgres, with real routers and workers.

mod both_sides;
mod faces;
mod fires;
mod overlaps;
mod wishes;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use crossover::interaction::Stage;
use crossover::schedule::storage::{Granted, Made};
use crossover::schedule::{Change, Definition, RunRow, Schedule, Schedules, Wish, key_of, key_of_trigger};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bridge::until;
use crate::bridge::world::{World, with};

const MAX: usize = 100_000;

/// A world whose schedules run on Postgres alone.
struct Place {
    world: World,
    schedules: Schedules,
}

impl Place {
    async fn new() -> Self {
        Self::at(Stage::Complete).await
    }

    /// A world whose accounts are in `stage`.
    async fn at(stage: Stage) -> Self {
        Self::on(World::new(stage).await)
    }

    fn on(world: World) -> Self {
        let schedules = Schedules::new(world.pool().clone());
        Self { world, schedules }
    }

    /// A schedule of this world's account; `more` goes over the body.
    async fn create(&self, name: &str, more: Value) -> Schedule {
        let now = self.schedules.now().await.unwrap();
        // Half an hour from now comes the next of many times.
        let starts_at = now + TimeDelta::minutes(30) - TimeDelta::hours(10_000);
        let spec = json!({ "every_ms": 3_600_000, "starts_at": starts_at });
        let body =
            json!({ "account": self.world.account, "name": name, "kind": "sync", "payload": { "n": 1 }, "spec": spec });
        let definition = Definition::parse(with(body, more).to_string().as_bytes(), MAX, now).unwrap();
        match self.schedules.create(&definition, &definition.times().unwrap(), now, "a test", false).await.unwrap() {
            Made::Created(schedule) => schedule,
            Made::Exists(schedule) => panic!("{schedule:?} is there"),
        }
    }

    async fn get(&self, id: Uuid) -> Schedule {
        self.schedules.get(id).await.unwrap().expect("it is there")
    }

    /// Sets the next nominal time by hand, so that nobody has to wait for it; the schedule is due at once if that has passed.
    async fn set(&self, id: Uuid, nominal: DateTime<Utc>) {
        let set = "update crossover.schedules set nominal_at = $2, wake_at = $2 where id = $1";
        sqlx::query(set).bind(id).bind(nominal).execute(self.world.pool()).await.unwrap();
    }

    /// The nominal time of an hourly schedule that has passed last, or `back` hours before that.
    async fn passed(&self, schedule: &Schedule, back: i32) -> DateTime<Utc> {
        let now = self.schedules.now().await.unwrap();
        // Its first time is in the future, and the phase goes backwards, too.
        let next = schedule.nominal.unwrap();
        let hours = (next - now).num_hours() as i32 + 1 + back;
        next - TimeDelta::hours(hours.into())
    }

    async fn change(&self, id: Uuid, change: Value) -> Schedule {
        let now = self.schedules.now().await.unwrap();
        let change = Change::parse(change.to_string().as_bytes()).unwrap();
        let definition = self.get(id).await.definition.with(change, MAX, now).unwrap();
        self.wish(id, Wish::Become(Box::new(definition))).await
    }

    async fn wish(&self, id: Uuid, wish: Wish) -> Schedule {
        match self.schedules.grant(id, None, &wish, "a test").await.unwrap() {
            Granted::Done(schedule) => *schedule,
            other => panic!("{other:?}"),
        }
    }

    /// What became of its times, oldest first.
    async fn runs(&self, id: Uuid) -> Vec<RunRow> {
        let mut runs = self.schedules.runs(id, 10_000).await.unwrap();
        runs.reverse();
        runs
    }

    /// What became of its times, once there are so many rows.
    async fn told(&self, id: Uuid, rows: usize) -> Vec<RunRow> {
        until(&format!("{rows} rows of {id}"), async || Some(self.runs(id).await).filter(|runs| runs.len() >= rows))
            .await
    }

    /// The keys that were enqueued, with how often.
    async fn enqueued(&self, id: Uuid) -> BTreeMap<String, usize> {
        let mut keys = BTreeMap::new();
        for run in self.runs(id).await.into_iter().filter(|run| run.outcome == "enqueued") {
            *keys.entry(run.key.unwrap()).or_default() += 1;
        }
        keys
    }
}

fn reasons(runs: &[RunRow]) -> Vec<&str> {
    runs.iter().map(|run| run.reason.as_deref().unwrap_or("-")).collect()
}
