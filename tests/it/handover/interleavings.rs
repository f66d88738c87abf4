//! Random interleavings of everything that moves an interaction, on real Postgres, judged by what was answered.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;

use super::*;

const KEYS: usize = 24;

/// What was answered, and so has to hold.
#[derive(Default)]
struct Answers {
    /// Executions that a claim gave out, as (id, epoch, attempt).
    executions: HashSet<(Uuid, i32, i32)>,
    /// Executions that a finish took.
    finished: HashSet<(Uuid, i32, i32)>,
    moved: HashMap<Uuid, u32>,
    cancelled: HashSet<Uuid>,
}

struct Actor {
    pool: PgPool,
    account: String,
    ids: Vec<Uuid>,
    worker: Uuid,
    held: Vec<(Uuid, i32, bool)>,
    rng: StdRng,
    answers: Arc<Mutex<Answers>>,
}

impl Actor {
    /// One step. What waited too long was rolled back, which is an answer as well.
    async fn step(&mut self) -> Result<(), sqlx::Error> {
        let id = self.ids[self.rng.random_range(0..self.ids.len())];
        match self.rng.random_range(0..10) {
            0..3 => self.claim().await,
            3..6 => self.finish().await,
            6 => self.cancel(id).await,
            7 => self.hand_over(id).await,
            8 => self.settle(id).await,
            _ => self.pool.execute("select crossover.promote_due(10)").await.map(|_| ()),
        }
    }

    async fn claim(&mut self) -> Result<(), sqlx::Error> {
        let claim = Claim { worker: self.worker, limit: 2, executions_only: false, lease: LEASE };
        let claimed = Queue::new(self.pool.clone()).claim(claim).await.unwrap();
        for claimed in claimed {
            let id = claimed.envelope.id;
            if !claimed.rehearsal && claimed.called_off.is_none() {
                let mut answers = self.answers.lock().unwrap();
                assert!(!answers.cancelled.contains(&id), "{id} was cancelled and is claimed");
                assert!(!answers.moved.contains_key(&id), "{id} was handed over and is executed on Postgres");
                let new = answers.executions.insert((id, claimed.fence.epoch, claimed.fence.attempt));
                assert!(new, "{id} {} was claimed twice", claimed.fence);
            }
            self.held.push((id, claimed.fence.attempt, claimed.rehearsal));
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), sqlx::Error> {
        if self.held.is_empty() {
            return Ok(());
        }
        let most = self.rng.random_range(1..=self.held.len().min(3));
        let batch: Vec<_> = (0..most)
            .map(|_| {
                let (id, attempt, rehearsal) = self.held.swap_remove(self.rng.random_range(0..self.held.len()));
                (id, attempt, rehearsal, self.rng.random_bool(0.4) && !rehearsal)
            })
            .collect();
        let again: Vec<Uuid> = batch.iter().filter(|end| end.3).map(|end| end.0).collect();
        let mut tx = self.pool.begin().await?;
        let kept: Vec<Uuid> = sqlx::query_scalar(
            "select * from crossover.finish($1, $2, $3, $4, array_fill(false, array[$6]), array_fill(null::bigint, array[$6]), $5,
                array_fill(null::text, array[$6]), array_fill(null::text, array[$6]))",
        )
        .bind(self.worker)
        .bind(batch.iter().map(|end| end.0).collect::<Vec<_>>())
        .bind(batch.iter().map(|end| end.1).collect::<Vec<_>>())
        .bind(batch.iter().map(|end| if end.3 { "failed" } else { "succeeded" }).collect::<Vec<_>>())
        .bind(batch.iter().map(|end| end.3.then_some(0_i64)).collect::<Vec<_>>())
        .bind(batch.len() as i32)
        .fetch_all(&mut *tx)
        .await?;
        if !again.is_empty() {
            sqlx::query("select crossover.cancel_instead_of_retry($1)").bind(again).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        assert_eq!(kept.len(), batch.len(), "one was taken from the worker that held it");
        let real = batch.into_iter().filter(|end| !end.2).map(|(id, attempt, ..)| (id, 1, attempt));
        self.answers.lock().unwrap().finished.extend(real);
        Ok(())
    }

    async fn cancel(&mut self, id: Uuid) -> Result<(), sqlx::Error> {
        let answer: Option<String> = sqlx::query_scalar("select answer from crossover.cancel($1, 'test')")
            .bind(id)
            .fetch_one(&self.pool)
            .await?;
        if answer.as_deref() == Some("cancelled") {
            self.answers.lock().unwrap().cancelled.insert(id);
        }
        Ok(())
    }

    async fn hand_over(&mut self, id: Uuid) -> Result<(), sqlx::Error> {
        let answer: String = sqlx::query_scalar("select answer from crossover.hand_over(0, $1, array[$2])")
            .bind(&self.account)
            .bind(id)
            .fetch_one(&self.pool)
            .await?;
        if answer == "moved" {
            let mut answers = self.answers.lock().unwrap();
            assert!(!answers.executions.iter().any(|run| run.0 == id), "{id} was begun and is handed over");
            assert!(!answers.cancelled.contains(&id), "{id} was cancelled and is handed over");
            *answers.moved.entry(id).or_default() += 1;
        }
        Ok(())
    }

    /// Temporal ends what it owns and what nothing before it in its series keeps waiting.
    async fn settle(&mut self, id: Uuid) -> Result<(), sqlx::Error> {
        let settle = "select crossover.end_pins('temporal', array[p.id], array[p.epoch], array[1],
                array[case when p.cancel_requested_at is null then 'succeeded' else 'cancelled' end], array[null])
            from crossover.pins p left join crossover.series s on s.series_id = p.series_id
            where p.id = $1 and p.owner = 'temporal' and p.ended_at is null and (s.head_no is null or s.head_no = p.series_no)";
        sqlx::query(settle).bind(id).execute(&self.pool).await.map(|_| ())
    }
}

fn passes(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
    code == "55P03"
}

async fn interleave(world: &World, router: &Node, seed: u64) {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("{seed}-{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        let request = if n % 3 == 0 { world.request(key) } else { world.member(&format!("{seed}-{}", n % 3), key) };
        router.accepts(&request, 201).await;
    }
    let ids: Vec<Uuid> = keys.iter().map(|key| world.id(key)).collect();
    let answers = Arc::<Mutex<Answers>>::default();
    let actors = (0..4).map(|n| {
        let rng = StdRng::seed_from_u64(seed * 100 + n);
        let (pool, account, ids, answers) = (world.pool().clone(), world.account.clone(), ids.clone(), answers.clone());
        let mut actor = Actor { pool, account, ids, worker: Uuid::new_v4(), held: Vec::new(), rng, answers };
        tokio::spawn(async move {
            for _ in 0..120 {
                match actor.step().await {
                    Err(error) if !passes(&error) => panic!("{error}"),
                    _ => {}
                }
            }
            actor
        })
    });
    let actors: Vec<Actor> =
        futures::future::join_all(actors.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect();

    // Whatever happened, everything can still end.
    let mut actors = actors;
    for _ in 0..2_000 {
        for actor in &mut actors {
            for id in &ids {
                actor.settle(*id).await.unwrap();
            }
            while !actor.held.is_empty() {
                actor.finish().await.unwrap();
            }
            actor.pool.execute("select crossover.promote_due(100)").await.unwrap();
            actor.claim().await.unwrap();
        }
        let open: i64 =
            sqlx::query_scalar("select count(*) from crossover.pins where id = any ($1) and ended_at is null")
                .bind(&ids)
                .fetch_one(world.pool())
                .await
                .unwrap();
        if open == 0 && actors.iter().all(|actor| actor.held.is_empty()) {
            break;
        }
    }
    let answers = answers.lock().unwrap();
    let pins = sqlx::query("select id, owner, epoch, outcome, attempts from crossover.pins where id = any ($1)");
    let pins = tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(pins.bind(&ids).fetch_all(world.pool())).unwrap()
    });
    for pin in pins {
        let (id, epoch): (Uuid, i32) = (pin.get("id"), pin.get("epoch"));
        let (owner, outcome): (String, Option<String>) = (pin.get("owner"), pin.get("outcome"));
        let outcome = outcome.unwrap_or_else(|| panic!("seed {seed}: {id} never ended"));
        let moved = answers.moved.get(&id).copied().unwrap_or(0);
        assert_eq!(
            (epoch, owner.as_str()),
            (1 + moved as i32, if moved == 1 { "temporal" } else { "postgres" }),
            "{id}"
        );
        assert!(moved <= 1, "seed {seed}: {id} moved twice");
        let ran = answers.executions.iter().any(|run| run.0 == id);
        assert!(!(ran && moved > 0), "seed {seed}: {id} was executed on Postgres and handed over");
        if answers.cancelled.contains(&id) {
            assert_eq!(outcome, "cancelled", "seed {seed}: {id}");
        }
        assert!(ran || moved > 0 || outcome == "cancelled", "seed {seed}: {id} {outcome} and nobody ran it");
    }
    println!(
        "seed {seed}: {} executions, {} finished, {} moved, {} cancelled",
        answers.executions.len(),
        answers.finished.len(),
        answers.moved.len(),
        answers.cancelled.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_interleaves_an_interaction_has_one_owner_ends_once_and_is_not_run_once_cancelled() {
    let world = World::new(Stage::Complete).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    for seed in 1..=5 {
        interleave(&world, &router, seed).await;
    }
    assert_eq!(super::locks::deadlocks(&world).await, 0);
    router.stop().await;
}
