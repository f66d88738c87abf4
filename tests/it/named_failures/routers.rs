//! What routers do wrong together, and one that dies alone.

use std::time::Instant;

use super::*;

/// Sessions of this database that wait for the lock of an account, told to end or only counted.
async fn waiting(world: &World, end: bool) -> i64 {
    let waits = "from pg_locks where not granted and locktype = 'advisory'
        and database = (select oid from pg_database where datname = current_database())";
    let ask = if end {
        format!("select count(pg_terminate_backend(pid)) {waits}")
    } else {
        format!("select count(*) {waits}")
    };
    sqlx::query_scalar(sqlx::AssertSqlSafe(ask)).fetch_one(world.pool()).await.unwrap()
}

/// A router that is killed while its pin waits in Postgres; whether Postgres notices before it commits.
async fn killed_while_it_pins(noticed: bool) {
    let world = World::new(Stage::Live).await;
    let other = world.node().await;
    other.accepts(&world.request("known"), 201).await;
    let mut child = Child::serve(&world, "router", &[]).await;
    let mut holder = world.pool().begin().await.unwrap();
    lock_account(&mut holder, &world.account).await;
    let (url, body) = (format!("{}/v1/interactions", child.node.base), world.request("one").to_string());
    let call = tokio::spawn(async move { reqwest::Client::new().post(url).body(body).send().await.is_ok() });
    until("the pin waits", async || (waiting(&world, false).await == 1).then_some(())).await;
    child.kill();
    assert!(!call.await.unwrap(), "it was killed before it could answer");
    if noticed {
        assert_eq!(waiting(&world, true).await, 1);
        until("its session is gone", async || (waiting(&world, false).await == 0).then_some(())).await;
    }
    holder.rollback().await.unwrap();
    if noticed {
        assert!(world.story("one").await.is_none() && world.runner.of("one").is_empty());
        other.accepts(&world.request("one"), 201).await;
    } else {
        world.until_story("one", "the pin was made all the same", |_| Some(())).await;
        other.accepts(&world.request("one"), 200).await;
    }
    world.succeeded("one").await;
    assert_eq!(world.runner.of("one").len(), 1);
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_killed_before_its_pin_commits_leaves_nothing_and_the_repeated_key_is_new() {
    killed_while_it_pins(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_killed_before_it_hears_of_its_pin_has_pinned_and_the_repeated_key_runs_once() {
    killed_while_it_pins(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_flips_within_a_second_leave_each_piece_of_work_to_the_side_that_it_was_pinned_to() {
    let world = World::new(Stage::Shadow).await;
    let (node, other) = (world.node().await, Child::serve(&world, "router", &[]).await);
    node.accepts(&world.request("first"), 201).await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let flips = async {
        let began = Instant::now();
        for stage in [Stage::Live, Stage::Shadow, Stage::Live] {
            world.flip(stage, &[&node]).await;
            // Long enough for some work to come by, short enough for three.
            tokio::time::sleep(Duration::from_millis(120)).await;
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let work = async {
        let (mut single, mut members, mut after) = (Vec::new(), Vec::new(), 0);
        while after < 3 {
            after += usize::from(done.load(std::sync::atomic::Ordering::Relaxed));
            let n = single.len();
            let router = if n % 2 == 0 { &node } else { &other.node };
            let (alone, member) = (format!("alone {n}"), format!("member {n}"));
            for request in [world.request(&alone), world.member("s", &member)] {
                let answer = router.post(&request).await;
                assert!(matches!(answer.status, 201 | 202), "{answer:?}");
            }
            single.push(alone);
            members.push(member);
        }
        (single, members)
    };
    let ((), (single, members)) = tokio::join!(flips, work);
    world.each_ran_on_its_owner(&single).await;
    world.each_ran_on_its_owner(&members).await;
    let ran: Vec<String> = world.in_turn(&members).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, members);
    assert_eq!(world.runner.calls().len(), 1 + single.len() + members.len(), "nothing ran twice");
    let owners: i64 = world.scalar("select count(distinct owner) from crossover.pins").await;
    assert_eq!(owners, 2, "the flips were seen in between");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_repeated_at_a_router_with_other_flags_gets_the_first_answer_in_either_order() {
    let world = World::new(Stage::Shadow).await;
    let flags = world.fresh("flags");
    document(Stage::Complete).write_to(&flags).unwrap();
    let shadow = world.node().await;
    let complete = world.node_with(ROUTER, |config| config.flags.file = flags).await;
    for (key, first, second, owner) in
        [("one", &shadow, &complete, Side::Temporal), ("other", &complete, &shadow, Side::Postgres)]
    {
        let told = first.accepts(&world.request(key), 201).await;
        assert_eq!(told.owner(), owner);
        assert_eq!(second.accepts(&world.request(key), 200).await.body, told.body);
        world.each_ran_on_its_owner(&[key.to_owned()]).await;
        assert_eq!(second.accepts(&world.request(key), 200).await.body, told.body, "and when it has ended");
        assert_eq!(world.runner.sides(key), [owner.as_str()]);
    }
    complete.stop().await;
    shadow.stop().await;
}
