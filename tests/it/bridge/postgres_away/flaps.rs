//! Postgres goes and comes, again and again.

use futures::StreamExt;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_restarts_again_and_again_loses_nothing_and_runs_nothing_twice() {
    let mut postgres = own_postgres().await;
    let world = World::with(Some(postgres.url.clone()), None, Stage::Shadow).await;
    let node = world.node_with(ALL, fails_open).await;
    let keys: Vec<String> = (0..80).map(|n| format!("k{n}")).collect();
    let calls = futures::stream::iter(&keys).map(async |key| {
        let n: usize = key[1..].parse().unwrap();
        // Every fourth in one of two series; those may be refused for a while.
        let request = if n % 4 == 0 { world.member(&format!("s{}", n % 8), key) } else { world.request(key) };
        until("it is taken", async || {
            let answer = node.post(&request).await;
            assert!(n % 4 == 0 || answer.status != 503, "{answer:?}");
            matches!(answer.status, 200..=202).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    });
    let flapping = async {
        for _ in 0..4 {
            postgres.server.kill().await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            postgres.server.restart().await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let calling = calls.buffer_unordered(3).collect::<Vec<()>>();
    let ((), _) = tokio::join!(flapping, calling);
    drained(&node).await;
    each_ran_once(&world, &keys).await;
    assert_eq!(metric(&node, "crossover_owner_conflicts_total").await, 0.0);
    node.stop().await;
    postgres.server.stop().await.unwrap();
}
