//! Measures flips, on a quiet machine:
//! `cargo test --release --test it flips_by_command::measure -- --ignored --nocapture --test-threads 1`.
//! Two routers, one a process of its own; FLIPS sets how many flips (100).

use std::time::Instant;

use super::*;
use crate::bridge::world::ALL;
use crate::servers;

fn flips() -> usize {
    std::env::var("FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
}

fn show(what: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    let at = |part: f64| ms[((ms.len() - 1) as f64 * part).round() as usize];
    println!("{what}: {} flips, median {:.0} ms, p95 {:.0} ms, worst {:.0} ms", ms.len(), at(0.5), at(0.95), at(1.0));
}

/// Flips to and fro; each line is from the command's question to the last router's acknowledgement, by the database's
/// clock.
async fn measured(what: &str, world: &World, set: &[(&str, &str)]) {
    let mut ms = Vec::new();
    for n in 0..flips() {
        let order = if n % 2 == 0 { "cutover" } else { "rollback" };
        let (code, said) = run_with(world, &[order, &world.account, "--yes"], set).await;
        assert_eq!(code, 0, "{said}");
        ms.push(said["took_ms"].as_f64().unwrap());
    }
    show(&format!("flip to last router, {what}"), ms);
}

/// From the start of the program `crossover rollback` to the first execution on Temporal, while work comes in.
async fn rolled_back(what: &str, world: &World, node: &Node, set: &[(&str, &str)]) {
    let mut ms = Vec::new();
    for n in 0..flips() {
        let (code, said) = run_with(world, &["cutover", &world.account, "--yes"], set).await;
        assert_eq!(code, 0, "{said}");
        let began = Instant::now();
        let rollback = async {
            let (code, said) = run_with(world, &["rollback", &world.account, "--yes"], set).await;
            assert_eq!(code, 0, "{said}");
        };
        let work = async {
            for piece in 0.. {
                let key = format!("{what} {n} {piece}");
                let answer = node.post(&world.request(&key)).await;
                if answer.status == 201 && answer.owner() == crossover::interaction::Side::Temporal {
                    return until("it runs on Temporal", async || world.runner.of(&key).first().map(|call| call.began))
                        .await;
                }
            }
            unreachable!("work comes in until a piece is Temporal's")
        };
        let ((), ran) = tokio::join!(rollback, work);
        ms.push(ran.duration_since(began).as_secs_f64() * 1_000.0);
    }
    show(&format!("rollback command to first execution on Temporal, {what}"), ms);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; for a quiet machine"]
async fn flips_by_file() {
    let world = world().await;
    let node = world.node_with(ALL, |_| {}).await;
    let _other = Child::serve(&world, "router", &[]).await;
    measured("by file", &world, &[]).await;
    rolled_back("by file", &world, &node, &[]).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; for a quiet machine"]
async fn flips_by_unleash() {
    let unleash = servers::own_unleash().await;
    let world = World::new(Stage::Off).await;
    // The interval of the default configuration, which is most of what this measures.
    let set: Vec<_> =
        super::unleash::variables(&unleash).into_iter().filter(|(name, _)| !name.ends_with("INTERVAL")).collect();
    let interval = crossover::config::Config::defaults().flags.interval;
    let node = world.node_with(ALL, |config| {
        super::unleash::follows(config, &unleash);
        config.flags.interval = interval;
    });
    let node = node.await;
    let _other = Child::serve(&world, "router", &set).await;
    let (code, said) = run_with(&world, &["shadow", &world.account, "--yes"], &set).await;
    assert_eq!(code, 0, "{said}");
    measured("by Unleash", &world, &set).await;
    rolled_back("by Unleash", &world, &node, &set).await;
    node.stop().await;
}
