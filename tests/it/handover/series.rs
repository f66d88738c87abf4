//! A series keeps its order and never overlaps, wherever in it the handover falls.

use super::*;

/// What the series' workflow has at work, as key and epoch.
async fn at_work(world: &World, key: &str, epoch: i32) {
    let (client, id) = (client(world), world.id(key));
    until(&format!("{key} of epoch {epoch} is at work"), async || {
        let status = client.series_status(&world.account, "sync", "s").await.ok()??;
        status.running.filter(|running| (running.id, running.epoch) == (id, epoch)).map(|_| ())
    })
    .await;
}

async fn ran_in_order(world: &World, keys: &[&str]) {
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    world.each_ran_on_its_owner(&keys).await;
    let ran: Vec<String> = world.in_turn(&keys).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn cutover_and_rollback_while_a_series_runs_with_a_handover_in_the_middle() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    world.runner.hold("2 live");
    let stages =
        [Stage::Shadow, Stage::Live, Stage::Live, Stage::Complete, Stage::Complete, Stage::Live, Stage::Shadow];
    let keys: Vec<String> = stages.iter().enumerate().map(|(n, stage)| format!("{} {stage}", n + 1)).collect();
    for (stage, key) in stages.iter().zip(&keys) {
        world.flip(*stage, &[&node]).await;
        node.post(&world.member("s", key)).await;
    }
    world.runner.nth("2 live", 1).await;
    let done = run(&world, everything(&world)).await;
    assert_eq!((done.moved, done.stayed()), (4, 0), "all but the one that runs: {done:?}");
    world.flip(Stage::Complete, &[&node]).await;
    node.post(&world.member("s", "8 complete")).await;
    world.runner.release("2 live");
    let all: Vec<&str> = keys.iter().map(String::as_str).chain(["8 complete"]).collect();
    ran_in_order(&world, &all).await;
    let sides: Vec<String> = all.iter().flat_map(|key| world.runner.sides(key)).collect();
    let (t, p) = ("temporal", "postgres");
    assert_eq!(sides, [t, p, t, t, t, t, t, p]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_never_delivered_goes_before_the_one_that_waits_for_it() {
    let world = World::new(Stage::Complete).await;
    let node = world.node().await;
    world.runner.hold("first");
    for key in ["first", "second", "third"] {
        node.accepts(&world.member("s", key), 201).await;
    }
    world.runner.nth("first", 1).await;
    world.flip(Stage::Shadow, &[&node]).await;
    for key in ["fourth", "fifth"] {
        node.post(&world.member("s", key)).await;
    }
    // It heads the workflow, and waits for three members that Temporal knows nothing of.
    at_work(&world, "fourth", 1).await;
    assert_eq!(run(&world, only(&world, "third")).await.moved, 1);
    at_work(&world, "third", 2).await;
    assert_eq!(run(&world, only(&world, "second")).await.moved, 1);
    at_work(&world, "second", 2).await;
    world.runner.release("first");
    ran_in_order(&world, &["first", "second", "third", "fourth", "fifth"]).await;
    assert_eq!(world.runner.sides("third"), ["temporal"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_gives_way_to_an_earlier_member_that_is_handed_over() {
    let world = World::new(Stage::Complete).await;
    let node = world.node().await;
    world.runner.hold("first");
    for key in ["first", "second"] {
        node.accepts(&world.member("s", key), 201).await;
    }
    world.runner.nth("first", 1).await;
    world.flip(Stage::Live, &[&node]).await;
    for key in ["third", "fourth"] {
        node.accepts(&world.member("s", key), 201).await;
    }
    at_work(&world, "third", 1).await;
    let begun = "select count(*) from crossover.rehearsals";
    until("its rehearsal occupies", async || (world.scalar::<i64>(begun).await == 1).then_some(())).await;
    assert_eq!(run(&world, only(&world, "second")).await.moved, 1);
    at_work(&world, "second", 2).await;
    world.runner.release("first");
    ran_in_order(&world, &["first", "second", "third", "fourth"]).await;
    assert_eq!(world.runner.sides("second"), ["temporal"]);
    assert_eq!(world.runner.sides("third"), ["postgres"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_handed_over_take_the_places_of_their_rehearsals() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.hold("first");
    let keys = ["first", "second", "third", "fourth", "fifth"];
    for key in keys {
        node.accepts(&world.member("s", key), 201).await;
    }
    world.runner.nth("first", 1).await;
    at_work(&world, "first", 1).await;
    let client = client(&world);
    until("the rehearsals wait", async || {
        let status = client.series_status(&world.account, "sync", "s").await.ok()??;
        (status.pending.len() == 4).then_some(())
    })
    .await;
    for key in ["fourth", "second"] {
        assert_eq!(run(&world, only(&world, key)).await.moved, 1);
    }
    let moved = until("both have arrived", async || {
        let status = client.series_status(&world.account, "sync", "s").await.ok()??;
        let moved = status.pending.iter().filter(|member| member.epoch == 2).count();
        (moved == 2).then_some(status)
    })
    .await;
    let order: Vec<_> = moved.pending.iter().map(|member| (member.key.as_str(), member.epoch)).collect();
    assert_eq!(order, [("second", 2), ("third", 1), ("fourth", 2), ("fifth", 1)]);
    world.runner.release("first");
    ran_in_order(&world, &keys).await;
    let sides: Vec<String> = keys.iter().flat_map(|key| world.runner.sides(key)).collect();
    assert_eq!(sides, ["postgres", "temporal", "postgres", "temporal", "postgres"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_handed_over_does_not_overtake_another_because_a_later_one_was_called_off() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    world.runner.hold("first");
    for (key, stage) in
        [("first", Stage::Shadow), ("second", Stage::Shadow), ("third", Stage::Live), ("fourth", Stage::Shadow)]
    {
        world.flip(stage, &[&node]).await;
        node.post(&world.member("s", key)).await;
    }
    world.runner.nth("first", 1).await;
    let client = client(&world);
    let pending = async |expected: &[(&str, i32)]| {
        until(&format!("{expected:?} wait"), async || {
            let status = client.series_status(&world.account, "sync", "s").await.ok()??;
            let waiting: Vec<_> = status.pending.iter().map(|member| (member.key.as_str(), member.epoch)).collect();
            (waiting == expected).then_some(())
        })
        .await;
    };
    pending(&[("second", 1), ("third", 1), ("fourth", 1)]).await;
    super::cancelled::cancel(&node, &world, "fourth").await;
    pending(&[("fourth", 1), ("second", 1), ("third", 1)]).await;
    assert_eq!(run(&world, only(&world, "third")).await.moved, 1);
    pending(&[("fourth", 1), ("second", 1), ("third", 2)]).await;
    world.runner.release("first");
    ran_in_order(&world, &["first", "second", "third"]).await;
    assert_eq!(world.runner.sides("third"), ["temporal"]);
    node.stop().await;
}
