//! The whole way, with routers: from `off` to `live` while work is open that was never pinned.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::bridge::world::{ALL, World as Bridge, with};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_goes_live_with_work_open_that_has_no_pin_and_each_of_it_runs_once_and_in_turn() {
    let world = Bridge::new(Stage::Off).await;
    let node = world
        .node_with(ALL, |config| {
            config.router.fail_open = true;
            config.window.idempotency = Duration::from_secs(1);
        })
        .await;
    let due = json!({ "run_at": (Utc::now() + TimeDelta::seconds(20)).to_rfc3339() });
    node.accepts(&with(world.request("later"), due.clone()), 201).await;
    node.accepts(&with(world.member("s", "a"), due), 201).await;
    for key in ["b", "c"] {
        node.accepts(&world.member("s", key), 201).await;
    }
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins").await, 0);
    world.flip(Stage::Live, &[&node]).await;
    until("the account is armed", async || {
        let state = sqlx::query_scalar("select state from crossover.accounts where account = $1");
        let state: Option<String> = state.bind(&world.account).fetch_optional(world.pool()).await.unwrap();
        state.filter(|state| state == "armed")
    })
    .await;
    let row = world.ledger.reconciliation(&world.account).await.unwrap().unwrap();
    assert!(row.done_at.is_some() && row.pinned == 4, "{row:?}");
    assert!(world.runner.calls().is_empty(), "it was armed before they were due");
    for key in ["later", "a", "b", "c"] {
        assert_eq!(world.story(key).await.unwrap().pin.owner, Side::Temporal, "{key}");
    }
    // A key of off that is repeated now is what it was, and what is new is Postgres's and waits its turn.
    let again = node.accepts(&world.request("later"), 200).await;
    assert_eq!(again.owner(), Side::Temporal);
    assert_eq!(node.accepts(&world.member("s", "d"), 201).await.owner(), Side::Postgres);
    let members = ["a", "b", "c", "d"].map(str::to_owned);
    world.each_ran_on_its_owner(&members).await;
    world.succeeded("later").await;
    let keys: Vec<_> = world.in_turn(&members).into_iter().map(|call| call.key).collect();
    assert_eq!(keys, members);
    assert_eq!(world.runner.of("later").len(), 1);
    node.stop().await;
}
