//! Handovers against claims, promotions, ends and each other, in both orders.

use super::*;

async fn complete(keys: &[&str]) -> (World, Node) {
    let world = World::new(Stage::Complete).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    for key in keys {
        router.accepts(&world.request(key), 201).await;
    }
    (world, router)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_under_way_keeps_what_it_takes() {
    let (world, router) = complete(&["one"]).await;
    let mut open = world.pool().begin().await.unwrap();
    let claim = "with taken as (delete from crossover.ready returning *)
        insert into crossover.running (id, lease_until, due_at, started_at, epoch, attempt, rank, execute, worker, grp)
        select id, now() + interval '1 minute', due_at, now(), 1, attempt, rank, execute, gen_random_uuid(), grp from taken";
    assert_eq!(open.execute(claim).await.unwrap().rows_affected(), 1);
    assert_eq!(ask(&world, "one").await, "busy");
    open.commit().await.unwrap();
    assert_eq!(ask(&world, "one").await, "claimed");
    assert_eq!(owner(&world, "one").await, (Side::Postgres, 1));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_under_way_is_passed_by_and_what_it_moved_is_claimed_as_a_rehearsal() {
    let (world, router) = complete(&["one"]).await;
    let mut open = world.pool().begin().await.unwrap();
    let moved = sqlx::query("select answer from crossover.hand_over(0, $1, $2)")
        .bind(&world.account)
        .bind([world.id("one")].as_slice())
        .fetch_one(&mut *open)
        .await
        .unwrap();
    assert_eq!(moved.get::<String, _>("answer"), "moved");
    assert!(claim(&world).await.is_empty());
    open.commit().await.unwrap();
    let claimed = claim(&world).await;
    assert_eq!((claimed.len(), claimed[0].rehearsal, claimed[0].fence.epoch), (1, true, 2));
    router.stop().await;
}

/// The claim's statement has its snapshot before the handover commits, and looks for rows after.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_began_before_a_handover_commits_and_looks_after_it_takes_nothing() {
    let (world, router) = complete(&["one"]).await;
    let mut gate = world.pool().acquire().await.unwrap();
    gate.execute("select pg_advisory_lock(4711)").await.unwrap();
    let pool = world.pool().clone();
    let claiming = tokio::spawn(async move {
        let claim = "with gate as materialized (select pg_advisory_xact_lock_shared(4711)),
            head as materialized (
                select rank, seq from crossover.ready where (select count(*) from gate) = 1
                order by rank, seq limit 10 for update skip locked),
            taken as (
                delete from crossover.ready r using head h where r.rank = h.rank and r.seq = h.seq returning r.*)
            insert into crossover.running (id, lease_until, due_at, started_at, epoch, attempt, rank, execute, worker, grp)
            select t.id, now(), t.due_at, now(), p.epoch, t.attempt, t.rank, p.owner = 'postgres', gen_random_uuid(), t.grp
            from taken t join crossover.pins p on p.id = t.id";
        sqlx::query(claim).execute(&pool).await.unwrap().rows_affected()
    });
    somebody_waits(&world).await;
    assert_eq!(ask(&world, "one").await, "moved");
    gate.execute("select pg_advisory_unlock(4711)").await.unwrap();
    assert_eq!(claiming.await.unwrap(), 0, "it would have executed by the pin as it was before");
    assert!(claim(&world).await[0].rehearsal);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_and_a_handover_exclude_each_other_in_either_order() {
    let (world, router) = complete(&["first", "second"]).await;
    let schedule = "with due as (delete from crossover.ready returning *)
        insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp)
        select id, due_at, attempt, rank, execute, grp from due";
    let promote = "select crossover.promote_due(100)";
    world.pool().execute(schedule).await.unwrap();
    let mut open = world.pool().begin().await.unwrap();
    open.execute(promote).await.unwrap();
    assert_eq!(ask(&world, "first").await, "busy");
    open.commit().await.unwrap();
    assert_eq!(ask(&world, "first").await, "moved");

    world.pool().execute(schedule).await.unwrap();
    let mut open = world.pool().begin().await.unwrap();
    let moved = sqlx::query("select answer from crossover.hand_over(0, $1, $2)");
    moved.bind(&world.account).bind([world.id("second")].as_slice()).fetch_one(&mut *open).await.unwrap();
    world.pool().execute(promote).await.unwrap();
    open.commit().await.unwrap();
    world.pool().execute(promote).await.unwrap();
    let claimed = claim(&world).await;
    assert!(claimed.len() == 2 && claimed.iter().all(|c| c.rehearsal && c.fence.epoch == 2), "{claimed:?}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_under_way_places_the_next_member_before_a_handover_moves_it() {
    let world = World::new(Stage::Complete).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    for key in ["first", "second"] {
        router.accepts(&world.member("s", key), 201).await;
    }
    assert_eq!(claim(&world).await.len(), 1);
    let mut open = world.pool().begin().await.unwrap();
    sqlx::query(
        "select crossover.end_pins('postgres', array[$1], array[1], array[1], array['succeeded'], array[null])",
    )
    .bind(world.id("first"))
    .execute(&mut *open)
    .await
    .unwrap();
    let (answer, ()) = tokio::join!(ask(&world, "second"), async {
        somebody_waits(&world).await;
        open.commit().await.unwrap();
    });
    assert_eq!(answer, "moved");
    let next = claim(&world).await;
    assert_eq!((next.len(), next[0].rehearsal), (1, true));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_for_by_two_operators_at_once_and_once_more_it_moves_once() {
    const EACH: usize = 60;
    let keys: Vec<String> = (0..EACH).map(|n| format!("k{n}")).collect();
    let (world, router) = complete(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for n in 0..EACH {
        router.accepts(&world.member(&format!("s{}", n % 3), &format!("m{n}")), 201).await;
    }
    let (one, another) = tokio::join!(run(&world, everything(&world)), run(&world, everything(&world)));
    assert_eq!(one.moved + another.moved, 2 * EACH as u64, "{one:?} {another:?}");
    assert_eq!(one.stayed() + another.stayed(), 0, "{one:?} {another:?}");
    let twice = "select count(*) from crossover.pins where epoch <> 2 or owner <> 'temporal'";
    assert_eq!(world.scalar::<i64>(twice).await, 0);
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.outbox").await, 2 * EACH as i64);
    assert_eq!(world.scalar::<i64>("select sum(moved)::bigint from crossover.handovers").await, 2 * EACH as i64);
    assert_eq!(plan(&world, everything(&world)).await.moves, 0);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_beside_a_working_worker_leaves_each_interaction_one_owner() {
    const MANY: usize = 80;
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.pace(Duration::from_millis(30));
    let keys: Vec<String> = (0..MANY).map(|n| format!("k{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        let request = if n % 2 == 0 { world.request(key) } else { world.member(&format!("s{}", n % 6), key) };
        node.accepts(&request, 201).await;
        if n == MANY / 2 {
            run(&world, everything(&world)).await;
        }
    }
    let done = run(&world, everything(&world)).await;
    world.each_ran_on_its_owner(&keys).await;
    assert_eq!(world.runner.calls().len(), MANY, "{done:?}");
    let moved = world.scalar::<i64>("select count(*) from crossover.pins where epoch = 2").await;
    println!("{moved} of {MANY} were handed over");
    for series in 0..6 {
        let members: Vec<String> =
            (0..MANY).filter(|n| n % 2 == 1 && n % 6 == series).map(|n| format!("k{n}")).collect();
        let ran: Vec<String> = world.in_turn(&members).into_iter().map(|call| call.key).collect();
        assert_eq!(ran, members);
    }
    node.stop().await;
}
