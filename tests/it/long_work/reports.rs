//! What runners say of what they took away.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_word_of_a_runner_stands_and_repeating_it_changes_nothing() {
    for side in [Side::Postgres, Side::Temporal] {
        let world = World::new(stage_of(side)).await;
        let node = world.node().await;
        world.runner.rule("long", Rule::Away(60.0));
        node.accepts(&world.request("long"), 201).await;
        until_away(&node, &world, "long").await;
        let first = completed(&node, &world, "long", "1.1").await;
        let again = completed(&node, &world, "long", "1.1").await;
        assert_eq!((first.status, &first.body), (again.status, &again.body), "{side}");
        world.succeeded("long").await;
        assert_eq!(completed(&node, &world, "long", "1.1").await.status, first.status, "also after its end");
        let otherwise = report(&node, &world, "long", "fail", json!({ "fence": "1.1" })).await;
        assert_eq!(otherwise.status, 409, "{otherwise:?}");
        assert_eq!(report(&node, &world, "long", "heartbeat", json!({ "fence": "1.1" })).await.status, 409);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_its_runner_fails_is_tried_again_as_its_policy_says() {
    for side in [Side::Postgres, Side::Temporal] {
        let world = World::new(stage_of(side)).await;
        let node = world.node_with(ALL, short).await;
        world.runner.rule("long", Rule::Away(60.0));
        node.accepts(&with(world.request("long"), retries()), 201).await;
        until_away(&node, &world, "long").await;
        let failed = json!({ "fence": "1.1", "error": "busy" });
        let state = reported(&node, &world, "long", "fail", failed).await.body["state"].clone();
        assert_eq!(state, if side == Side::Postgres { "retried" } else { "accepted" });
        world.runner.nth("long", 2).await;
        let second = json!({ "fence": "1.2", "error": "no such calendar", "permanent": true });
        let answer = reported(&node, &world, "long", "fail", second).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        let story = world.ended("long").await;
        assert_eq!((story.state.as_str(), story.pin.attempts), ("failed", 2), "{side}: {story:#?}");
        assert_eq!(story.pin.reason.as_deref(), Some("no such calendar"));
        let steps = |rehearsal: bool| {
            let attempts = story.attempts.iter().filter(move |a| a.rehearsal == rehearsal);
            attempts.map(|a| (a.fence.attempt, a.retry_ms)).collect::<Vec<_>>()
        };
        assert_eq!(steps(false), [(1, Some(100)), (2, None)], "{side}: {story:#?}");
        matched(&node, &world, "long").await;
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_hears_with_its_heartbeat_that_somebody_wants_its_run_to_end() {
    for side in [Side::Postgres, Side::Temporal] {
        let world = World::new(stage_of(side)).await;
        let node = world.node_with(ALL, short).await;
        for key in ["heeds", "was too late"] {
            world.runner.rule(key, Rule::Away(60.0));
            node.accepts(&with(world.request(key), retries()), 201).await;
            until_away(&node, &world, key).await;
            let heartbeat = json!({ "fence": "1.1" });
            let kept = report(&node, &world, key, "heartbeat", heartbeat.clone()).await;
            assert_eq!((kept.status, &kept.body["cancel_requested"]), (200, &json!(false)), "{kept:?}");
            assert_eq!(kept.body["within_ms"], 60_000);
            let asked = report(&node, &world, key, "cancel", json!({})).await;
            assert_eq!(asked.status, 202, "{side}: {asked:?}");
            let told = report(&node, &world, key, "heartbeat", heartbeat).await;
            assert_eq!(told.body["cancel_requested"], true, "{side}: {told:?}");
        }
        report(&node, &world, "heeds", "fail", json!({ "fence": "1.1", "error": "stopped" })).await;
        completed(&node, &world, "was too late", "1.1").await;
        assert_eq!(world.ended("heeds").await.state, "cancelled", "{side}");
        assert_eq!(world.runner.of("heeds").len(), 1);
        world.succeeded("was too late").await;
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_took_away_is_not_found_yet_and_what_is_past_is_refused() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let nobody = report(&node, &world, "never", "heartbeat", json!({ "fence": "1.1" })).await;
    assert_eq!(nobody.status, 503, "{nobody:?}");
    assert!(nobody.headers.contains_key("retry-after"));
    world.runner.hold("held");
    node.accepts(&world.request("held"), 201).await;
    world.runner.nth("held", 1).await;
    assert_eq!(completed_once(&node, &world, "held").await, 503, "its worker may be about to record it");
    world.runner.release("held");
    world.succeeded("held").await;
    assert_eq!(completed_once(&node, &world, "held").await, 409);
    let bad = report(&node, &world, "held", "heartbeat", json!({ "fence": "1", "extra": 1 })).await;
    assert_eq!((bad.status, bad.body["errors"].as_array().unwrap().len()), (422, 2), "{bad:?}");
    node.stop().await;
}

async fn completed_once(node: &Node, world: &World, key: &str) -> u16 {
    report(node, world, key, "complete", json!({ "fence": "1.1" })).await.status
}
