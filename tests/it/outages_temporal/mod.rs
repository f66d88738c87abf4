//! Temporal away, and Temporal back: down or hanging, with either owner, for long and with much that waits for it.

mod backlog;
mod down;
mod flood;
mod forgotten;
mod valve;
mod way_back;

use std::time::{Duration, Instant};

use crate::bridge::world::{Node, World};
use crate::bridge::{PATIENCE, until};

/// The value of one of a node's metrics.
async fn metric(node: &Node, name: &str) -> f64 {
    let shown = node.get("/metrics").await.body;
    let line = shown.as_str().unwrap().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not shown")).parse().unwrap()
}

/// Waits until the node knows whether Temporal is away.
async fn knows(node: &Node, away: bool) {
    until("the node knows whether Temporal is away", async || {
        (metric(node, "crossover_temporal_away").await == f64::from(u8::from(away))).then_some(())
    })
    .await;
}

async fn outbox(world: &World, rows: i64) {
    until(&format!("{rows} copies wait"), async || {
        (world.ledger.outbox_depth().await.ok()?.rows == rows).then_some(())
    })
    .await;
}

/// Waits until all that was accepted has ended. It is much at once, and Temporal has it all to itself afterwards.
async fn all_ended(world: &World) {
    let ended = async {
        while world.scalar::<i64>("select count(*) from crossover.pins where ended_at is null").await > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 5, ended).await.expect("all ends");
}

fn keys(prefix: &str, n: usize) -> Vec<String> {
    (0..n).map(|n| format!("{prefix}{n}")).collect()
}

/// Posts each of `keys`, which must be answered with `status`; the median answer and the slowest.
async fn post_all(world: &World, node: &Node, keys: &[String], status: u16) -> [Duration; 2] {
    let mut took = Vec::new();
    for key in keys {
        let began = Instant::now();
        node.accepts(&world.request(key), status).await;
        took.push(began.elapsed());
    }
    took.sort();
    [took[took.len() / 2], took[took.len() - 1]]
}
