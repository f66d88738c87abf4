//! What the comparator makes of what both sides did, on the real servers: each class is provoked, and its nearest innocent
//! neighbour passes.

mod classes;
mod gaps;
mod innocent;
mod proof;
mod restart;
mod speed;

use std::time::Duration;

use crossover::config::Config;
use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use crate::bridge::until;
use crate::bridge::world::{Node, World};

/// The row of an interaction.
#[derive(Debug, Clone)]
struct Judged {
    verdict: String,
    reason: Option<String>,
    divergences: Vec<(String, String)>,
    looks: i32,
    row: Value,
}

/// A comparator for the impatient.
fn quick(config: &mut Config) {
    config.comparator.every = Duration::from_millis(100);
    config.comparator.late = Duration::from_secs(1);
    config.comparator.patience = Duration::from_secs(3);
    config.comparator.recovery = Duration::from_secs(3);
}

async fn node(world: &World) -> Node {
    world.node_with(crate::bridge::world::ALL, quick).await
}

async fn row(world: &World, id: Uuid) -> Option<Judged> {
    let row = sqlx::query(
        "select verdict, reason, looks, coalesce(divergences, '[]')::text as divergences, row_to_json(o)::text as whole
         from crossover.observations o where id = $1",
    );
    let row = row.bind(id).fetch_optional(world.pool()).await.ok()??;
    let divergences: Value = serde_json::from_str(row.get("divergences")).unwrap();
    let text = |d: &Value, name: &str| d[name].as_str().unwrap().to_owned();
    Some(Judged {
        verdict: row.get("verdict"),
        reason: row.get("reason"),
        looks: row.get("looks"),
        divergences: divergences.as_array().unwrap().iter().map(|d| (text(d, "class"), text(d, "side"))).collect(),
        row: serde_json::from_str(row.get("whole")).unwrap(),
    })
}

/// The row of `key` once it has a verdict.
async fn judged(world: &World, key: &str) -> Judged {
    let what = format!("{key} is judged");
    until(&what, async || row(world, world.id(key)).await.filter(|judged| judged.verdict != "in_flight")).await
}

async fn matched(world: &World, key: &str) -> Judged {
    verdict(world, key, "matched").await
}

async fn verdict(world: &World, key: &str, wanted: &str) -> Judged {
    let judged = judged(world, key).await;
    assert_eq!(judged.verdict, wanted, "{key}: {judged:#?}");
    assert_eq!(judged.reason.is_none(), wanted == "matched", "{key}: {judged:#?}");
    judged
}

/// `key` has this divergence on this side, and nothing else.
async fn diverged(world: &World, key: &str, class: &str, side: &str) -> Judged {
    let judged = judged(world, key).await;
    let wanted = vec![(class.to_owned(), side.to_owned())];
    assert_eq!((judged.verdict.as_str(), &judged.divergences), ("diverged", &wanted), "{key}: {judged:#?}");
    judged
}

/// The scores say what the rows say.
async fn scores_agree(world: &World) {
    let counted = "select coalesce(json_object_agg(name, n), '{}')::text from (
        select name, sum(v::bigint) as n from crossover.scores, jsonb_each_text(verdicts) as e (name, v) group by name) s";
    let rows = "select coalesce(json_object_agg(verdict, n), '{}')::text from (
        select verdict, count(*) as n from crossover.observations where verdict <> 'in_flight' group by verdict) r";
    let classes = "select coalesce(json_object_agg(name, n), '{}')::text from (
        select name, sum(v::bigint) as n from crossover.scores, jsonb_each_text(classes) as e (name, v) group by name) s";
    let found = "select coalesce(json_object_agg(class, n), '{}')::text from (
        select class, count(*) as n from crossover.observations, unnest(classes) as c (class) group by class) r";
    for (scores, rows) in [(counted, rows), (classes, found)] {
        let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(parse(world.scalar(scores).await), parse(world.scalar(rows).await));
    }
}
