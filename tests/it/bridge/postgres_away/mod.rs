//! Postgres is away and callers go on: what is answered, what runs, and what is written once it is back.

mod armed;
mod flaps;
mod order;
mod shadow;
mod spool;

use crossover::config::Config;
use crossover::proof::Proxy;
use crossover::provision::{self, Postgres};

use super::*;
use crate::servers;

const BUDGET: Duration = Duration::from_millis(250);
/// What a caller may feel: the pin's budget, a start, and this machine. Who waited for Postgres would wait for longer.
const BOUND: Duration = Duration::from_secs(10);

/// Goes on without Postgres.
fn fails_open(config: &mut Config) {
    config.router.fail_open = true;
    config.router.pin_budget = BUDGET;
    config.postgres.connect_timeout = Duration::from_secs(20);
    config.temporal.start_timeout = Duration::from_secs(8);
}

async fn own_postgres() -> Postgres {
    provision::postgres(&servers::options()).await.unwrap()
}

/// The same database, by way of a proxy.
async fn behind_a_proxy(url: &str) -> (Proxy, String) {
    let (head, rest) = url.split_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let proxy = Proxy::to(server).await.unwrap();
    let through = format!("{head}@{}/{database}", proxy.address());
    (proxy, through)
}

/// A metric without labels, or the sum over them.
async fn metric(node: &Node, name: &str) -> f64 {
    let shown = node.get("/metrics").await.body;
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next()? == name).then(|| value.parse::<f64>().ok())?
    };
    shown.as_str().unwrap().lines().filter_map(of).sum()
}

/// Accepted without a pin, by Temporal, in time.
async fn accepted_unpinned(node: &Node, request: &Value) -> Answer {
    let began = std::time::Instant::now();
    let answer = node.accepts(request, 201).await;
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert_eq!((&answer.body["owner"], &answer.body["pinned"]), (&json!("temporal"), &json!(false)), "{answer:?}");
    answer
}

async fn drained(node: &Node) {
    until("the spool is empty", async || (metric(node, "crossover_spool_entries").await == 0.0).then_some(())).await;
}

/// Each of them is pinned, has succeeded, and was run once, on its owner.
async fn each_ran_once(world: &World, keys: &[String]) {
    world.each_ran_on_its_owner(keys).await;
    for key in keys {
        assert_eq!(world.runner.of(key).len(), 1, "{key}");
    }
}
