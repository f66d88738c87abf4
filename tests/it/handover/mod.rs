//! Facts about handing work over from Postgres to Temporal, on the real servers.

mod cancelled;
mod command;
mod interleavings;
mod locks;
mod moves;
mod over_http;
mod races;
mod series;

use std::time::Duration;

use crossover::interaction::{Side, Stage};
use crossover::ledger::Scope;
use crossover::queue::{Claim, Claimed, Queue};
use crossover::router::handover::{self, Done, Plan};
use serde_json::{Value, json};
use sqlx::{Executor, Row};
use uuid::Uuid;

use crate::bridge::until;
use crate::bridge::world::{Node, ROUTER, WORKER, World, with};

const LEASE: Duration = Duration::from_secs(60);

fn everything(world: &World) -> Scope {
    Scope { account: world.account.clone(), kind: None, id: None }
}

fn only(world: &World, key: &str) -> Scope {
    Scope { id: Some(world.id(key)), ..everything(world) }
}

async fn plan(world: &World, scope: Scope) -> Plan {
    handover::plan(&world.ledger, scope).await.unwrap()
}

async fn run(world: &World, scope: Scope) -> Done {
    let plan = plan(world, scope).await;
    handover::run(&world.ledger, &plan, "test", |_| {}).await.unwrap()
}

/// One call of the function, for one interaction; its answer.
async fn ask(world: &World, key: &str) -> String {
    let answers = world.ledger.hand_over(0, &world.account, &[world.id(key)]).await.unwrap();
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers[0].answer.clone()
}

async fn claim(world: &World) -> Vec<Claimed> {
    let claim = Claim { worker: Uuid::new_v4(), limit: 100, executions_only: false, lease: LEASE };
    Queue::new(world.pool().clone()).claim(claim).await.unwrap()
}

/// Whose it is, under which epoch.
async fn owner(world: &World, key: &str) -> (Side, i32) {
    let pin = world.story(key).await.unwrap().pin;
    (pin.owner, pin.epoch)
}

/// Temporal ran each of these once, under the second epoch, and both sides are done with it.
async fn ran_on_temporal(world: &World, keys: &[String]) {
    for key in keys {
        let story = world.succeeded(key).await;
        assert_eq!((story.pin.owner, story.pin.epoch), (Side::Temporal, 2), "{key}");
        let calls: Vec<_> = world.runner.of(key).into_iter().map(|call| (call.side, call.fence)).collect();
        assert_eq!(calls, [("temporal".to_owned(), (2, 1))], "{key}");
    }
}

/// A workflow's state: absent, or whether it is open.
async fn is_open(world: &World, workflow: &str) -> Option<bool> {
    client(world).describe(workflow).await.unwrap().map(|found| found.open)
}

fn client(world: &World) -> crossover::temporal::client::TemporalClient {
    let settings = crossover::temporal::client::ClientSettings {
        address: format!("http://{}", world.temporal),
        namespace: "default".to_owned(),
        task_queue: world.config().temporal.task_queue,
        timeout: Duration::from_secs(10),
        identity: "test".to_owned(),
        terms: Default::default(),
        window: LEASE,
        series_items_a_run: 100,
    };
    crossover::temporal::client::TemporalClient::lazy(settings).unwrap()
}

/// Somebody waits for a lock of this database.
async fn somebody_waits(world: &World) {
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    until("somebody waits for a lock", async || (world.scalar::<i64>(waits).await > 0).then_some(())).await;
}
