//! Kinds with a capacity of their own: never more of one at once, and never in the way of others.

use std::num::NonZeroUsize;

use crossover::executor::HandlerOptions;
use tokio::sync::Semaphore;

use super::*;

const CAPACITY: usize = 2;

/// What ran: of `slow`, which waits for a gate, and of `quick`.
#[derive(Default)]
struct Seen {
    slow: AtomicUsize,
    most: AtomicUsize,
    slow_ended: AtomicUsize,
    quick: AtomicUsize,
}

fn handlers(seen: &Arc<Seen>, gate: &Arc<Semaphore>) -> Handlers {
    let (slow, quick, gate) = (seen.clone(), seen.clone(), gate.clone());
    let options = HandlerOptions { capacity: NonZeroUsize::new(CAPACITY) };
    Handlers::new()
        .register_with("slow", options, move |_: Value, _| {
            let (seen, gate) = (slow.clone(), gate.clone());
            async move {
                let now = seen.slow.fetch_add(1, Ordering::SeqCst) + 1;
                seen.most.fetch_max(now, Ordering::SeqCst);
                let _open = gate.acquire().await?;
                seen.slow.fetch_sub(1, Ordering::SeqCst);
                seen.slow_ended.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        })
        .register("quick", move |_: Value, _| {
            let seen = quick.clone();
            async move {
                seen.quick.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        })
}

/// The rest of a test: `quick` of them get by what is full, and then it goes on.
async fn get_by(here: &World, quick: usize, slow: usize) {
    let (seen, gate) = (Arc::<Seen>::default(), Arc::new(Semaphore::new(0)));
    let worker = here.worker(handlers(&seen, &gate));
    until("all that is quick has run", async || (seen.quick.load(Ordering::SeqCst) == quick).then_some(())).await;
    assert_eq!((seen.slow.load(Ordering::SeqCst), seen.slow_ended.load(Ordering::SeqCst)), (CAPACITY, 0));
    gate.add_permits(Semaphore::MAX_PERMITS);
    until("what is slow goes on", async || (seen.slow_ended.load(Ordering::SeqCst) >= slow).then_some(())).await;
    worker.drain().await;
    assert_eq!(seen.most.load(Ordering::SeqCst), CAPACITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_a_kind_that_is_full_let_others_by_however_many_they_are() {
    let here = World::new().await;
    // More than one far look reads.
    let slow = (0..4_500).map(|n| NewTask { kind: "slow".to_owned(), vt: n, ..task(json!(n)) });
    let quick = (0..30).map(|n| NewTask { kind: "quick".to_owned(), vt: 10_000 + n, ..task(json!(n)) });
    for batch in slow.chain(quick).collect::<Vec<_>>().chunks(500) {
        here.tasks.enqueue(batch).await.unwrap();
    }
    get_by(&here, 30, 200).await;
    let held = "select count(*) from crossover.tasks_ready where worker is not null";
    assert_eq!(here.count(held).await, 0, "nothing claimed is left at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_work_of_a_kind_that_is_full_lets_others_by() {
    let here = World::new().await;
    for n in 0..400 {
        let kind = if n < 390 { "slow" } else { "quick" };
        let interaction = Interaction {
            account: ACCOUNT.to_owned(),
            kind: kind.to_owned(),
            key: format!("k{n}"),
            key_made: false,
            after: None,
            exclusive: None,
            payload: Payload::parse("1".to_owned()).unwrap(),
            series: None,
            group: None,
            run_at: None,
            priority: 0,
            policy: Policy::default(),
        };
        let grace = Duration::ZERO;
        let request = PinRequest { interaction: &interaction, stage: Stage::Complete, revision: "test", grace };
        here.ledger.pin(request).await.unwrap();
    }
    get_by(&here, 10, 390).await;
    assert_eq!(here.count("select count(*) from crossover.ready").await, 0);
    assert_eq!(
        here.count("select count(*) from crossover.attempts where outcome <> 'succeeded' and attempt > 0").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_of_a_group_are_let_in_behind_any_backlog_of_a_kind_that_is_full() {
    let here = World::new().await;
    // More than a pass at the gate looks at.
    let slow = (0..1_200).map(|n| NewTask { kind: "slow".to_owned(), vt: n, ..task(json!(n)) });
    let group = Some("mail".to_owned());
    let quick =
        (0..20).map(|n| NewTask { kind: "quick".to_owned(), group: group.clone(), vt: 10_000 + n, ..task(json!(n)) });
    for batch in slow.chain(quick).collect::<Vec<_>>().chunks(500) {
        here.tasks.enqueue(batch).await.unwrap();
    }
    let groups = crossover::queue::groups::Groups::new(here.ledger.pool().clone());
    groups.set("mail", json!({ "max_running": 1 }).as_object().unwrap(), "test").await.unwrap();
    get_by(&here, 20, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_with_a_capacity_leave_the_lowest_priority_its_share() {
    let here = World::new().await;
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = order.clone();
    let options = HandlerOptions { capacity: NonZeroUsize::new(5) };
    let handlers = Handlers::new().register_with("k", options, move |urgent: bool, _| {
        seen.lock().unwrap().push(urgent);
        async move { Ok(()) }
    });
    let urgent = (0..900).map(|n| NewTask { priority: 5, vt: n, ..task(json!(true)) });
    let low = (0..20).map(|n| NewTask { priority: -5, vt: n, ..task(json!(false)) });
    for batch in urgent.chain(low).collect::<Vec<_>>().chunks(500) {
        here.tasks.enqueue(batch).await.unwrap();
    }
    let worker = here.worker(handlers);
    until("all have run", async || (order.lock().unwrap().len() == 920).then_some(())).await;
    worker.drain().await;
    let order = order.lock().unwrap();
    let last = order.iter().rposition(|urgent| !urgent).unwrap();
    assert!((200..880).contains(&last), "the last of twenty that are not urgent was the {last}th");
}
