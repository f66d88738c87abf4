//! A real run that does a bit of everything, scraped while it lasts; then every panel is asked what it would show.

use std::time::Duration;

use crossover::interaction::Stage;
use serde_json::json;

use super::prometheus::Prom;
use super::source::{Panel, Query, dashboards};
use super::{alerts, rules};
use crate::bridge::runner::Rule;
use crate::bridge::until;
use crate::bridge::world::{Node, World, with};

/// What Grafana fills in.
fn filled_in(expression: &str) -> String {
    expression.replace("$__rate_interval", "60s").replace("$__range", "10m")
}

/// Every stage twice, so that each label's second event is there, which is what a rate needs: work with and without a
/// series, in groups, for later, with a retry, and refused for good.
async fn traffic(world: &World, node: &Node) -> usize {
    const STAGES: [Stage; 8] = [
        Stage::Shadow,
        Stage::Live,
        Stage::Shadow,
        Stage::Complete,
        Stage::Live,
        Stage::Shadow,
        Stage::Complete,
        Stage::Live,
    ];
    let mut keys = Vec::new();
    for (round, stage) in STAGES.into_iter().enumerate() {
        world.flip(stage, &[node]).await;
        let before = keys.len();
        for n in 0..12 {
            let key = format!("{round} {stage} {n}");
            let request = match n {
                0..4 => world.member("s", &key),
                4..7 => with(world.request(&key), json!({ "group": format!("group-{n}") })),
                7 => with(world.request(&key), json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::seconds(1) })),
                8 | 9 => {
                    world.runner.rule(&key, if n == 8 { Rule::Fail(1) } else { Rule::Refuse });
                    with(world.request(&key), json!({ "policy": { "backoff": { "delays_ms": [200] } } }))
                }
                _ => world.request(&key),
            };
            let answer = node.post(&request).await;
            assert!(matches!(answer.status, 201 | 202), "{answer:?}");
            keys.push(key);
        }
        for key in &keys[before..] {
            world.ended(key).await;
        }
    }
    keys.len()
}

impl Panel {
    /// Whether a query of it must show something.
    fn must(&self, query: &Query) -> bool {
        query.data.as_deref().unwrap_or(&self.data) == "always"
    }
}

/// More than the slots hold, in groups, until Prometheus has seen it wait.
async fn backlog(world: &World, node: &Node, prom: &Prom) -> usize {
    let keys: Vec<String> = (0..14).map(|n| format!("waiting {n}")).collect();
    keys.iter().for_each(|key| world.runner.hold(key));
    for (n, key) in keys.iter().enumerate() {
        node.accepts(&with(world.request(key), json!({ "group": format!("group-{}", n % 3) })), 201).await;
    }
    until("groups are seen to wait", async || {
        let waiting = prom.query("sum(crossover_group_ready_rows)").await;
        waiting.first().is_some_and(|rows| *rows > 0.0).then_some(())
    })
    .await;
    keys.iter().for_each(|key| world.runner.release(key));
    for key in &keys {
        world.ended(key).await;
    }
    keys.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_real_run_every_panel_that_must_shows_something_and_nobody_is_woken() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let target = node.base.strip_prefix("http://").unwrap();
    let prom = Prom::start(&[target], Some(alerts())).await;
    let start = chrono::Utc::now();
    let ran = traffic(&world, &node).await + backlog(&world, &node, &prom).await;
    until("the last end is scraped", async || {
        let ended = prom.query("sum(crossover_ends_total)").await;
        (ended.first() >= Some(&(ran as f64))).then_some(())
    })
    .await;

    let dashboards = dashboards();
    let queries =
        dashboards.iter().flat_map(|d| d.panels().flat_map(move |p| p.queries.iter().map(move |q| (d, p, q))));
    let mut empty = Vec::new();
    for (dashboard, panel, query) in queries {
        // Asked in any case: what Prometheus can't parse fails here.
        let seen = prom.showed(&filled_in(&query.expr), start).await;
        if !seen && panel.must(query) {
            empty.push((dashboard, panel, query));
        }
    }
    // Gauges are read every few seconds.
    let patience = tokio::time::Instant::now() + Duration::from_secs(30);
    while !empty.is_empty() && tokio::time::Instant::now() < patience {
        let mut still = Vec::new();
        for (dashboard, panel, query) in empty {
            if !prom.showed(&filled_in(&query.expr), start).await {
                still.push((dashboard, panel, query));
            }
        }
        empty = still;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let empty: Vec<_> = empty.iter().map(|(d, p, q)| format!("{}: {}: {}", d.file, p.title, q.expr)).collect();
    assert!(empty.is_empty(), "these show nothing after a run that did everything:\n{}", empty.join("\n"));

    for (name, rule) in rules(&prom).await {
        assert_eq!(rule["health"], "ok", "{name}: {rule:#}");
        let fires = rule["state"] == "firing" && rule["labels"]["severity"] == "page";
        assert!(!fires, "{name} would have woken somebody: {rule:#}");
    }
    if let Some(seconds) = std::env::var("CROSSOVER_TEST_PROMETHEUS_STAYS").ok().and_then(|s| s.parse().ok()) {
        println!("Prometheus of this run: {}", prom.server.url);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    node.stop().await;
}
