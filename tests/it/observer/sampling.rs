//! Some of it is enough, as long as it is the same on both sides; and it costs nearly nothing.

use std::time::Instant;

use crossover::interaction::{Fence, Stage, interaction_id};
use crossover::ledger;
use crossover::observer::{Observer, ObserverOptions, Sighting, sampled};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_observe_the_same_sample() {
    const SHARE: f64 = 0.5;
    let world = World::new(Stage::Live).await;
    let node = world.node_with(crate::bridge::world::ALL, |config| config.comparator.sample = SHARE).await;
    let keys: Vec<String> = (0..16).map(|n| format!("k{n}")).collect();
    for key in &keys {
        node.accepts(&world.request(key), 201).await;
    }
    for key in &keys {
        world.succeeded(key).await;
        world.rehearsed(key, 1).await;
    }
    node.stop().await;
    let taken = keys.iter().filter(|key| sampled(world.id(key), SHARE)).count();
    assert!(taken > 0 && taken < keys.len(), "{taken}");
    for key in &keys {
        let found = log(&world).of(&[world.id(key)]).await.unwrap();
        let wanted = usize::from(sampled(world.id(key), SHARE));
        let sides = [Side::Temporal, Side::Postgres].map(|side| count(&found, side, "dequeued"));
        assert_eq!(sides, [wanted, wanted], "{key}: {found:#?}");
    }
}

/// Prints what the work pays for being seen. The bound is loose: two cores are shared by many tests.
#[tokio::test(flavor = "multi_thread")]
async fn to_be_seen_takes_microseconds_at_most_also_while_postgres_is_away() {
    const TIMES: u32 = 20_000;
    let pool = ledger::pool("postgres://nobody@127.0.0.1:1/nothing", 1, Duration::from_millis(100)).unwrap();
    for (share, buffer, what) in [(1.0, 1_000_000, "taken"), (1.0, 1, "dropped"), (0.0, 1, "not observed")] {
        let metrics = Arc::new(Metrics::new().unwrap());
        let options = ObserverOptions { name: "timed".into(), buffer, share };
        let observer = Observer::start(Log::new(pool.clone()), options, metrics);
        let (fence, at) = (Fence { epoch: 1, attempt: 1 }, Utc::now());
        let id = interaction_id("a", "k");
        let began = Instant::now();
        for _ in 0..TIMES {
            observer.see(Sighting { id, side: Side::Postgres, fence, rehearsal: true, at, what: Seen::Released });
        }
        let each = began.elapsed() / TIMES;
        println!("see: {each:?} each, {what}");
        assert!(each < Duration::from_micros(100), "{each:?}");
    }
}
