//! A connection that breaks after the request was sent: tried again, or parked.

use super::*;

async fn is_tried_again(rule: Rule) {
    for side in [Side::Temporal, Side::Postgres] {
        let world = World::new(stage_of(side)).await;
        let node = world.node().await;
        world.runner.rule("one", rule.clone());
        node.accepts(&with(world.request("one"), retries()), 201).await;
        world.succeeded("one").await;
        // The runner itself sees that every call carries the id as its Idempotency-Key.
        let fences: Vec<_> = world.runner.of("one").iter().map(|call| call.fence).collect();
        assert_eq!(fences, [(1, 1), (1, 2)], "{side}");
        assert_eq!(doubts(&world, "one").await, [Some(Doubt::Connection), None], "{side}");
        never_diverged(&node, &world, "one").await;
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_connection_breaks_is_repeated_with_the_same_key_and_a_higher_fence() {
    is_tried_again(Rule::HangUp(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_breaks_off_is_repeated_with_the_same_key_and_a_higher_fence() {
    is_tried_again(Rule::BreakOff(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_cant_be_reached_had_no_effect_and_parks_nothing() {
    for side in [Side::Temporal, Side::Postgres] {
        let world = World::new(stage_of(side)).await;
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{nobody}/run");
        let node = world
            .node_with(crate::bridge::world::ALL, |config| {
                config.runner.url = Some(crossover::config::SecretUrl::new(&url));
            })
            .await;
        node.accepts(&with(world.request("one"), parks()), 201).await;
        let story = world.ended("one").await;
        assert_eq!((story.state.as_str(), story.pin.attempts), ("failed", 3), "{story:#?}");
        assert_eq!(doubts(&world, "one").await, [None, None, None]);
        node.stop().await;
    }
}

/// Parks the head of a series, sees that it is visible and that its follower waits, and answers.
async fn parked_and_resolved(side: Side, answer: &Value) {
    let world = World::new(stage_of(side)).await;
    let node = world.node().await;
    world.runner.rule("one", Rule::HangUp(1));
    node.accepts(&with(world.member("s", "one"), parks()), 201).await;
    let status = node.post(&world.member("s", "two")).await.status;
    assert!(matches!(status, 201 | 202), "{status}");
    until_parked(&world, "one").await;
    let found = look_up(&node, &world, "one").await;
    assert_eq!(found["state"], "unknown_outcome", "{found:#}");
    assert_eq!(doubts(&world, "one").await, [Some(Doubt::Connection)]);
    let parked = world.ledger.parked(Some(&world.account), 10).await.unwrap();
    assert_eq!(
        parked.iter().map(|p| (p.id, p.side, p.cause)).collect::<Vec<_>>(),
        [(world.id("one"), side, Doubt::Connection)]
    );
    assert!(parked[0].error.as_ref().unwrap().starts_with(crossover::executor::PARKED), "{parked:?}");
    assert_eq!(counted(&node, "crossover_parked_total", side.as_str()).await, 1.0);

    let said = answer["as"].as_str().unwrap();
    let first = resolve(&node, &world, "one", answer).await;
    let state = if side == Side::Postgres { (200, said) } else { (202, "asked") };
    assert_eq!((first.status, first.body["state"].as_str().unwrap()), state, "{first:?}");
    // Nothing of the series went past what was parked.
    let story = world.ended("one").await;
    world.succeeded("two").await;
    let (one, two) = (world.runner.of("one"), world.runner.nth("two", 1).await);
    assert!(one.last().unwrap().ended.unwrap() <= two.began);
    match said {
        "retry" => {
            assert_eq!(one.iter().map(|call| call.fence).collect::<Vec<_>>(), [(1, 1), (1, 2)]);
            assert_eq!((story.state.as_str(), story.pin.attempts), ("succeeded", 2), "{story:#?}");
        }
        _ => {
            assert_eq!((one.len(), story.state.as_str(), story.pin.attempts), (1, said, 1), "{story:#?}");
            let reason = story.pin.reason.clone().unwrap_or_default();
            assert!(reason.contains("the bank says so"), "{story:#?}");
            assert_eq!(look_up(&node, &world, "one").await["result"], answer["result"]);
        }
    }
    let again = resolve(&node, &world, "one", answer).await;
    assert_eq!(again.status, 409, "{again:?}");
    assert!(again.detail().contains("has ended"), "{again:?}");
    assert!(world.ledger.parked(None, 10).await.unwrap().is_empty());
    for key in ["one", "two"] {
        never_diverged(&node, &world, key).await;
    }
    node.stop().await;
}

fn succeeded() -> Value {
    json!({ "as": "succeeded", "result": { "sent": "1.10" }, "reason": "the bank says so" })
}

fn failed() -> Value {
    json!({ "as": "failed", "reason": "the bank says so" })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_parked_ends_as_succeeded_with_the_result_that_somebody_gives() {
    parked_and_resolved(Side::Postgres, &succeeded()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_parked_ends_as_failed() {
    parked_and_resolved(Side::Postgres, &failed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_parked_runs_again_with_the_next_fence() {
    parked_and_resolved(Side::Postgres, &json!({ "as": "retry" })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_temporal_parked_ends_as_succeeded_with_the_result_that_somebody_gives() {
    parked_and_resolved(Side::Temporal, &succeeded()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_temporal_parked_ends_as_failed() {
    parked_and_resolved(Side::Temporal, &failed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_temporal_parked_runs_again_with_the_next_fence() {
    parked_and_resolved(Side::Temporal, &json!({ "as": "retry" })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_parked_again_and_an_answer_to_the_first_time_says_nothing_of_the_second() {
    for side in [Side::Temporal, Side::Postgres] {
        let world = World::new(stage_of(side)).await;
        let node = world.node().await;
        world.runner.rule("one", Rule::HangUp(2));
        node.accepts(&with(world.request("one"), parks()), 201).await;
        for attempt in [1, 2] {
            until("it is parked", async || {
                let parked = world.ledger.parked_one(world.id("one")).await.unwrap()?;
                (parked.fence.attempt == attempt).then_some(())
            })
            .await;
            let answer = resolve(&node, &world, "one", &json!({ "as": "retry" })).await;
            assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        }
        let story = world.succeeded("one").await;
        assert_eq!((story.pin.attempts, world.runner.of("one").len()), (3, 3), "{story:#?}");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_can_be_cancelled() {
    for side in [Side::Temporal, Side::Postgres] {
        let world = World::new(stage_of(side)).await;
        let node = world.node().await;
        world.runner.rule("one", Rule::HangUp(1));
        node.accepts(&with(world.request("one"), parks()), 201).await;
        until_parked(&world, "one").await;
        let answer = ask(&node, &format!("/v1/interactions/{}/cancel", world.id("one")), &json!({})).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        assert_eq!(world.ended("one").await.state, "cancelled", "{side}");
        assert_eq!(world.runner.of("one").len(), 1);
        assert!(world.ledger.parked(None, 10).await.unwrap().is_empty());
        node.stop().await;
    }
}
