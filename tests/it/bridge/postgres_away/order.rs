//! Series, while Postgres is away.

use crossover::proof::Weather;

use super::*;

/// Members are started one after the other, as a caller does who waits for each answer.
async fn put_in(node: &Node, world: &World, series: &str, keys: &[String]) {
    for key in keys {
        until("it is taken", async || {
            let answer = node.post(&world.member(series, key)).await;
            assert!(matches!(answer.status, 200..=202 | 503), "{answer:?}");
            (answer.status != 503).then_some(())
        })
        .await;
    }
}

fn keys(prefix: &str, n: usize) -> Vec<String> {
    (0..n).map(|n| format!("{prefix}{n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_keeps_its_order_into_an_outage_through_it_and_out_of_it() {
    let world = World::new(Stage::Shadow).await;
    let (proxy, url) = behind_a_proxy(&world.postgres).await;
    let node = world.node_between(&url, &world.temporal, ALL, fails_open).await;
    world.runner.pace(Duration::from_millis(20));
    let (all, mut from) = (keys("m", 20), 0);
    for weather in [Weather::Fine, Weather::Slow(Duration::from_millis(600)), Weather::Dead, Weather::Fine] {
        proxy.set(weather);
        put_in(&node, &world, "s", &all[from..from + 5]).await;
        from += 5;
    }
    drained(&node).await;
    each_ran_once(&world, &all).await;
    let ran: Vec<String> = world.in_turn(&all).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, all);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_never_overtakes_one_that_is_pinned_and_not_delivered() {
    let world = World::new(Stage::Shadow).await;
    let (postgres, url) = behind_a_proxy(&world.postgres).await;
    let temporal = Proxy::to(&world.temporal).await.unwrap();
    let node = world
        .node_between(&url, temporal.address(), ALL, |config| {
            fails_open(config);
            config.temporal.start_timeout = Duration::from_millis(500);
        })
        .await;
    put_in(&node, &world, "clear", &keys("c", 1)).await;
    world.succeeded("c0").await;
    temporal.set(Weather::Hanging);
    assert_eq!(node.post(&world.member("stuck", "s0")).await.status, 202);
    postgres.set(Weather::Dead);
    temporal.set(Weather::Fine);
    let refused = node.accepts(&world.member("stuck", "s1"), 503).await;
    assert!(refused.detail().contains("earlier of its series"), "{refused:?}");
    // A series of which nothing waits goes on.
    until("Temporal answers again", async || {
        (node.post(&world.member("clear", "c1")).await.status == 201).then_some(())
    })
    .await;
    postgres.set(Weather::Fine);
    put_in(&node, &world, "stuck", &["s1".to_owned()]).await;
    drained(&node).await;
    let all = ["s0", "s1"].map(str::to_owned);
    world.each_ran_on_its_owner(&all).await;
    let ran: Vec<String> = world.in_turn(&all).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, all);
    world.succeeded("c1").await;
    node.stop().await;
}
