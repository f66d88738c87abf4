//! What remote workers are handed, and what is nobody else's.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_worker_runs_what_is_of_its_group_and_no_worker_of_ours_does() {
    for stage in [Stage::Live, Stage::Complete] {
        let world = World::new(stage).await;
        let node = world.node().await;
        node.accepts(&mail(&world, "theirs"), 201).await;
        node.accepts(&world.request("ours"), 201).await;
        // A task, were it not of such a group.
        let unnamed = json!({ "account": world.account, "kind": "sync", "payload": 7, "group": GROUP });
        let unnamed = node.accepts(&unnamed, 201).await.body["id"].clone();
        world.succeeded("ours").await;
        let items = dequeue(&node, 10).await;
        assert_eq!(items.len(), 2, "{items:#?}");
        assert_eq!((&items[0]["key"], &items[1]["id"]), (&json!("theirs"), &unnamed));
        let item = &items[0];
        assert_eq!(item["payload"], json!({ "for": "theirs" }));
        assert_eq!((&item["fence"], &item["side"], &item["group"]), (&json!("1.1"), &json!("postgres"), &json!(GROUP)));
        assert_eq!((&item["account"], &item["lease_ms"]), (&json!(world.account), &json!(30_000)));
        let done: Vec<Value> = items.iter().map(|item| about(item, json!({ "result": { "n": 1.10 } }))).collect();
        let answer = ask(&node, "complete", json!({ "worker": "w", "items": done })).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body["items"].as_array().unwrap().iter().all(|item| item["answer"] == "taken"), "{answer:?}");
        let story = world.succeeded("theirs").await;
        let attempt = story.attempts.iter().find(|a| !a.rehearsal).unwrap();
        assert_eq!(attempt.result.as_ref().unwrap().get(), r#"{"n":1.1}"#, "as it came over the wire");
        assert!(world.runner.of("theirs").is_empty(), "the runner was not asked");
        assert_eq!(counted(&node, "crossover_remote_items_total", "handed_out").await, 2.0);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_urgent_comes_first_and_of_a_series_only_what_is_next() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    for (key, priority) in [("low", -5), ("first", 0), ("second", 0), ("high", 5)] {
        node.accepts(&with(mail(&world, key), json!({ "priority": priority })), 201).await;
    }
    for key in ["s1", "s2", "s3"] {
        node.accepts(&with(mail(&world, key), json!({ "series": "s", "priority": -9 })), 201).await;
    }
    let rest = dequeue(&node, 10).await;
    assert_eq!(keys(&rest), ["high", "first", "second", "low", "s1"], "also where the lowest has its share");
    assert!(dequeue(&node, 10).await.is_empty(), "the series has its turn");
    let (retry, again) = (json!({ "error": "busy", "retry_after_ms": 1 }), Duration::from_secs(30));
    assert_eq!(report(&node, "fail", &rest[4], retry).await, "taken");
    let second_try = next(&node, again).await;
    assert_eq!((&second_try["key"], &second_try["fence"]), (&json!("s1"), &json!("1.2")), "a retry keeps its turn");
    assert_eq!(complete(&node, &second_try).await, "taken");
    for key in ["s2", "s3"] {
        let member = next(&node, again).await;
        assert_eq!(member["key"], key);
        assert_eq!(complete(&node, &member).await, "taken");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_runner_remote_workers_run_what_is_theirs_and_the_rest_waits() {
    let world = World::new(Stage::Complete).await;
    let alone = |config: &mut crossover::config::Config| {
        (config.runner.url, config.worker.remote_only, config.router.tasks) = (None, true, true);
    };
    let node = world.node_with(ALL, alone).await;
    let rest = [world.request("pinned"), json!({ "account": world.account, "kind": "sync", "payload": 1 })];
    for request in &rest {
        node.accepts(request, 201).await;
    }
    node.accepts(&mail(&world, "theirs"), 201).await;
    let item = next(&node, Duration::from_secs(30)).await;
    assert_eq!(complete(&node, &item).await, "taken");
    world.succeeded("theirs").await;
    let waits = "select (select count(*) from crossover.ready) + (select count(*) from crossover.tasks_ready where worker is null)";
    assert_eq!(world.scalar::<i64>(waits).await, 2, "and no attempt was spent on it");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_is_never_handed_out_and_is_held_by_a_worker_of_ours() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    world.runner.hold("there");
    node.accepts(&mail(&world, "there"), 201).await;
    world.until_story("there", "its rehearsal is held", |story| (story.state == "running").then_some(())).await;
    let held = "select exists (select from crossover.running where not execute)";
    until("its rehearsal is held", async || world.scalar::<bool>(held).await.then_some(())).await;
    assert!(dequeue(&node, 10).await.is_empty());
    world.runner.release("there");
    world.succeeded("there").await;
    world.rehearsed("there", 1).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_remote_group_hold_and_its_order_is_kept_at_the_gate() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let limits = "select (crossover.set_group('remote.mail', '{\"max_running\": 2}')).grp";
    assert_eq!(world.scalar::<String>(limits).await, GROUP);
    for n in 0..6 {
        node.accepts(&mail(&world, &format!("m{n}")), 201).await;
    }
    node.accepts(&with(mail(&world, "urgent"), json!({ "priority": 9 })), 201).await;
    let mut out = vec![next(&node, Duration::from_secs(60)).await, next(&node, Duration::from_secs(60)).await];
    assert!(dequeued(&node, json!({ "worker": "w", "wait_ms": 500 })).await.is_empty(), "two are out");
    let mut had = Vec::new();
    while had.len() < 7 {
        let item = out.remove(0);
        had.push(item["key"].as_str().unwrap().to_owned());
        assert_eq!(complete(&node, &item).await, "taken");
        if had.len() + out.len() < 7 {
            out.push(next(&node, Duration::from_secs(60)).await);
            let running = "select count(*) from crossover.running where execute";
            assert!(world.scalar::<i64>(running).await <= 2);
        }
    }
    let rest: Vec<&str> = had.iter().map(String::as_str).filter(|key| *key != "urgent").collect();
    assert_eq!(rest, ["m0", "m1", "m2", "m3", "m4", "m5"]);
    assert!(had.iter().position(|key| key == "urgent").unwrap() <= 3, "{had:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_agree_on_what_a_remote_worker_ran() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&with(mail(&world, "both"), json!({ "policy": { "backoff": { "delays_ms": [100] } } })), 201).await;
    let item = next(&node, Duration::from_secs(30)).await;
    assert_eq!(report(&node, "fail", &item, json!({ "error": "busy" })).await, "taken");
    let item = next(&node, Duration::from_secs(30)).await;
    assert_eq!(complete(&node, &item).await, "taken");
    world.succeeded("both").await;
    let verdict = until("it is judged", async || {
        let found = node.get(&format!("/v1/interactions/{}", world.id("both"))).await.body;
        let verdict = found["observation"]["verdict"].as_str().unwrap_or("in_flight").to_owned();
        (verdict != "in_flight").then_some((verdict, found))
    });
    let (verdict, found) = verdict.await;
    assert_eq!(verdict, "matched", "{found:#}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_too_long_expires_and_is_not_handed_out() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&with(mail(&world, "late"), json!({ "policy": { "start_timeout_ms": 1 } })), 201).await;
    node.accepts(&mail(&world, "patient"), 201).await;
    assert_eq!(keys(&dequeue(&node, 10).await), ["patient"]);
    assert_eq!(world.ended("late").await.state, "expired");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_for_remote_workers_is_not_read_by_ours() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    node.accepts(&mail(&world, "theirs"), 201).await;
    node.accepts(&world.request("ours"), 201).await;
    // More of the same, all before what is ours.
    sqlx::query(
        "insert into crossover.ready (seq, id, due_at, attempt, rank, execute, grp) overriding system value
         select -n, gen_random_uuid(), clock_timestamp(), 1, 0, true, 'remote.mail' from generate_series(1, 20000) n
         union all
         select -30000 - n, gen_random_uuid(), clock_timestamp(), 1, 0, true, 'remote.other' from generate_series(1, 20000) n",
    )
    .execute(world.pool())
    .await
    .unwrap();
    sqlx::query("analyze crossover.ready").execute(world.pool()).await.unwrap();
    let ours = plan(&world, ("rank <= 500", "rank, seq")).await;
    assert!(ours.contains("Index Cond: (rank <= 500)") && ours.contains("rows=1"), "{ours}");
    assert!(!ours.contains("Rows Removed"), "{ours}");
    let theirs = plan(&world, ("grp = 'remote.mail' and rank > 500 and execute", "rank - 1000, seq")).await;
    assert!(
        theirs.contains("Index Scan using ready_remote")
            && !theirs.contains("Sort")
            && !theirs.contains("Rows Removed"),
        "{theirs}"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_for_who_waits_reads_a_row_of_each_group_whatever_waits_for_others() {
    let world = World::new(Stage::Live).await;
    let mut one = world.pool().begin().await.unwrap();
    // The statistics are of before anything waited for remote workers.
    let backlog = "insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select gen_random_uuid(), clock_timestamp(), 1, 0, true, 'default' from generate_series(1, 5000);
        analyze crossover.ready;
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select gen_random_uuid(), clock_timestamp(), 1, 0, true, 'remote.a' from generate_series(1, 20000);
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select gen_random_uuid(), clock_timestamp(), 1, 0, true, 'remote.b'";
    sqlx::raw_sql(backlog).execute(&mut *one).await.unwrap();
    let read = "select (coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint
        from pg_stat_xact_user_tables where schemaname = 'crossover' and relname = 'ready'";
    let before: i64 = sqlx::query_scalar(read).fetch_one(&mut *one).await.unwrap();
    let found: Vec<String> =
        sqlx::query_scalar("select * from crossover.remote_groups_with_work('{remote.a,remote.b,remote.c}')")
            .fetch_all(&mut *one)
            .await
            .unwrap();
    assert_eq!(found, ["remote.a", "remote.b"]);
    let after: i64 = sqlx::query_scalar(read).fetch_one(&mut *one).await.unwrap();
    assert!(after - before < 10, "{} rows were read to find two groups", after - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lowest_priority_has_one_in_twenty_of_what_is_handed_out() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    node.accepts(&with(mail(&world, "low"), json!({ "priority": -5 })), 201).await;
    // Urgent work that never ends to come; nobody runs it.
    let flood = "insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select gen_random_uuid(), clock_timestamp(), 1, -9, true, 'remote.mail' from generate_series(1, 20000)";
    sqlx::query(flood).execute(world.pool()).await.unwrap();
    // Rows without a pin are dropped by the claim, which takes them all the same.
    until("it has its share", async || {
        let items = dequeue(&node, 1).await;
        (keys(&items) == ["low"]).then_some(())
    })
    .await;
    let left = world.scalar::<i64>("select count(*) from crossover.ready").await;
    assert!(left > 15_000, "and not because it was the last: {left}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_overslept_expires_though_somebody_is_in_its_way_and_nobodys_answer_waits_for_that() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let late = json!({ "series": "s", "policy": { "start_timeout_ms": 1, "on_unknown": "park" } });
    node.accepts(&with(mail(&world, "late"), late), 201).await;
    node.accepts(&mail(&world, "patient"), 201).await;
    // A caller's open transaction holds the series.
    let mut stranger = world.pool().begin().await.unwrap();
    sqlx::query("select from crossover.series for update").execute(&mut *stranger).await.unwrap();
    let began = std::time::Instant::now();
    assert_eq!(keys(&dequeue(&node, 10).await), ["patient"]);
    assert!(began.elapsed() < Duration::from_secs(2), "the answer came after {:?}", began.elapsed());
    until("its end was in somebody's way", async || {
        (counted(&node, "crossover_queue_errors_total", "remote_aside").await > 0.0).then_some(())
    })
    .await;
    stranger.rollback().await.unwrap();
    assert_eq!(world.ended("late").await.state, "expired");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_claim_took_whose_answer_was_lost_is_put_back_under_the_same_number() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    for key in ["a", "b"] {
        node.accepts(&mail(&world, key), 201).await;
    }
    let taken = dequeue(&node, 1).await;
    let rest = dequeue(&node, 1).await;
    let claim = "select claim from crossover.detached where id = $1";
    let claim: uuid::Uuid = sqlx::query_scalar(claim).bind(world.id("a")).fetch_one(world.pool()).await.unwrap();
    assert_eq!(world.ledger.take_claim_from_remote(claim).await.unwrap(), 1);
    assert_eq!(world.ledger.take_claim_from_remote(claim).await.unwrap(), 0);
    assert_eq!(report(&node, "heartbeat", &taken[0], json!({})).await, "unknown");
    let again = next(&node, Duration::from_secs(30)).await;
    assert_eq!((&again["key"], &again["fence"]), (&json!("a"), &json!("1.1")));
    assert_eq!(
        (complete(&node, &again).await, complete(&node, &rest[0]).await),
        ("taken".to_owned(), "taken".to_owned())
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_while_it_was_handed_out_to_nobody_ends() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&mail(&world, "m"), 201).await;
    let item = next(&node, Duration::from_secs(60)).await;
    let path = format!("/v1/interactions/{}/cancel", world.id("m"));
    assert_eq!(node.call("POST", &path, Some(&json!({}))).await.status, 202);
    let fence = item["fence"].as_str().unwrap().parse().unwrap();
    assert_eq!(world.ledger.take_from_remote(&[(world.id("m"), fence)]).await.unwrap(), 1);
    // Nobody asks for work any more.
    assert_eq!(world.ended("m").await.state, "cancelled");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_of_a_remote_group_are_found_behind_everybody_elses_work() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    for key in ["ours", "ours too"] {
        node.accepts(&world.request(key), 201).await;
    }
    for key in ["a", "b", "c", "d", "e"] {
        node.accepts(&mail(&world, key), 201).await;
    }
    let groups = crossover::queue::groups::Groups::new(world.pool().clone());
    groups.set(GROUP, json!({ "max_running": 2 }).as_object().unwrap(), "test").await.unwrap();
    let pass = || groups.admit(crossover::queue::groups::Asked { most: 3, look: true, tidy: false, from: None });
    // As much as one look takes of each, and two are let in, which stand in front.
    let mut looked = Vec::new();
    for _ in 0..3 {
        looked.push(pass().await.unwrap().strays);
    }
    assert_eq!(looked, [3, 1, 1], "though others stand before them");
    let (depth, queue) = (crossover::queue::Queue::new(world.pool().clone()), GROUP);
    assert!(depth.groups(5, "others").await.unwrap().iter().any(|group| group.name == queue && group.ready == 2));
    node.stop().await;
}

async fn plan(world: &World, (which, by): (&str, &str)) -> String {
    let sql = format!(
        "explain (analyze, costs off, timing off, summary off)
         select rank, seq from crossover.ready where {which} order by {by} limit 50 for update skip locked"
    );
    let lines: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(world.pool()).await.unwrap();
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_runner_takes_nothing_of_temporals_away_from_those_that_have_one() {
    let world = World::new(Stage::Shadow).await;
    let alone = |config: &mut crossover::config::Config| {
        (config.runner.url, config.worker.remote_only) = (None, true);
    };
    let without = world.node_with(ALL, alone).await;
    without.accepts(&world.request("first"), 201).await;
    let with_runner = world.node().await;
    world.succeeded("first").await;
    for n in 0..5 {
        with_runner.accepts(&world.request(&format!("k{n}")), 201).await;
    }
    for key in ["first", "k0", "k1", "k2", "k3", "k4"] {
        world.succeeded(key).await;
        let fences: Vec<_> = world.runner.of(key).iter().map(|call| call.fence).collect();
        assert_eq!(fences, [(1, 1)], "{key}: no attempt was spent elsewhere");
    }
    with_runner.stop().await;
    without.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_used_again_before_its_last_end_is_forgotten_is_handed_out() {
    let world = World::new(Stage::Complete).await;
    let node = world.node().await;
    node.accepts(&mail(&world, "k"), 201).await;
    let item = next(&node, Duration::from_secs(30)).await;
    assert_eq!(complete(&node, &item).await, "taken");
    world.succeeded("k").await;
    // Its retention has passed, sooner than the day for which what was handed out is remembered.
    for sql in ["delete from crossover.pins", "delete from crossover.payloads", "delete from crossover.attempts"] {
        sqlx::query(sql).execute(world.pool()).await.unwrap();
    }
    node.accepts(&mail(&world, "k"), 201).await;
    let again = next(&node, Duration::from_secs(30)).await;
    assert_eq!((&again["id"], &again["fence"]), (&item["id"], &item["fence"]));
    assert_eq!(complete(&node, &again).await, "taken");
    world.succeeded("k").await;
    node.stop().await;
}
