//! Random programs against a small reference model, compared after every step; and the race between an end and who comes to wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;

/// One interaction, as the model has it.
#[derive(Debug, Clone)]
struct Node {
    series: Option<usize>,
    after: Vec<Uuid>,
    when: When,
    on_failure: OnFailure,
    released: bool,
    task: bool,
    claimed: Option<Claimed>,
    outcome: Option<Outcome>,
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<Uuid, Node>,
    /// In the order in which they were pinned.
    order: Vec<Uuid>,
}

enum Verdict {
    Wait,
    Run,
    Skip,
}

impl Model {
    /// What becomes of a node by the ends of those that it waits for. Written from the words of the docs, not from the SQL.
    fn verdict(&self, node: &Node) -> Verdict {
        if node.released || node.after.is_empty() {
            return Verdict::Run;
        }
        let ends: Vec<Option<Outcome>> = node.after.iter().map(|id| self.nodes[id].outcome).collect();
        let good = |end: &Option<Outcome>| *end == Some(Succeeded);
        let ended = ends.iter().all(Option::is_some);
        match (node.when, node.on_failure) {
            (All, Run) if ended => Verdict::Run,
            (Any, Run) if ends.iter().any(Option::is_some) => Verdict::Run,
            (All, Skip) if ends.iter().all(good) => Verdict::Run,
            (All, Skip) if ends.iter().any(|end| end.is_some() && !good(end)) => Verdict::Skip,
            (Any, Skip) if ends.iter().any(good) => Verdict::Run,
            (Any, Skip) if ended => Verdict::Skip,
            _ => Verdict::Wait,
        }
    }

    /// Cancels what is to be skipped, until nothing more follows.
    fn settle(&mut self) {
        loop {
            let skipped = self.nodes.iter().find(|(_, node)| {
                node.outcome.is_none() && node.claimed.is_none() && matches!(self.verdict(node), Verdict::Skip)
            });
            let Some(id) = skipped.map(|(id, _)| *id) else { return };
            self.nodes.get_mut(&id).unwrap().outcome = Some(Outcome::Cancelled);
        }
    }

    fn state(&self, id: Uuid) -> String {
        let node = &self.nodes[&id];
        if let Some(outcome) = node.outcome {
            return outcome.as_str().to_owned();
        }
        if node.claimed.is_some() {
            return "running".to_owned();
        }
        let head = node.series.is_none_or(|series| {
            let member = |id: &&Uuid| self.nodes[id].series == Some(series) && self.nodes[id].outcome.is_none();
            self.order.iter().find(member) == Some(&id)
        });
        let state = if head && matches!(self.verdict(node), Verdict::Run) { "ready" } else { "waiting" };
        state.to_owned()
    }

    fn some(&self, rng: &mut StdRng, found: impl Fn(&Node) -> bool) -> Option<Uuid> {
        let ids: Vec<Uuid> = self.order.iter().copied().filter(|id| found(&self.nodes[id])).collect();
        ids.choose(rng).copied()
    }
}

#[tokio::test]
async fn random_programs_end_as_the_model_says() {
    let seeds = std::env::var("PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    for seed in 0..seeds {
        program(seed, 100).await;
    }
}

async fn program(seed: u64, steps: usize) {
    let (here, mut rng, mut model) = (World::new().await, StdRng::seed_from_u64(seed), Model::default());
    for step in 0..steps {
        let what = act(&here, &mut rng, &mut model, step).await;
        here.settle().await;
        model.settle();
        for id in &model.order {
            let state = match model.nodes[id].task {
                true => here.tasks.story(*id).await.unwrap().unwrap().state,
                false => here.state(*id).await,
            };
            assert_eq!(state, model.state(*id), "seed {seed}, step {step}, after {what}: {id} {:?}", model.nodes[id]);
        }
    }
    // Whatever has not ended goes on to its end.
    loop {
        let held: Vec<Uuid> = model.order.iter().copied().filter(|id| model.nodes[id].claimed.is_some()).collect();
        let mut idle = held.is_empty();
        for id in held {
            finish(&here, &mut model, id, Succeeded).await;
        }
        idle &= claim(&here, &mut model, 1_000).await == 0;
        here.settle().await;
        model.settle();
        if idle {
            break;
        }
    }
    for id in &model.order {
        assert!(model.nodes[id].outcome.is_some(), "seed {seed}: {id} is stuck: {:?}", model.nodes[id]);
    }
    for table in ["dependents", "dependencies", "ended_upstreams"] {
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from crossover.{table}")))
            .fetch_one(here.ledger.pool())
            .await
            .unwrap();
        assert_eq!(left, 0, "seed {seed}: {table}");
    }
}

async fn act(here: &World, rng: &mut StdRng, model: &mut Model, step: usize) -> &'static str {
    match rng.random_range(0..100) {
        0..45 => {
            pin(here, rng, model, step).await;
            "a pin"
        }
        45..65 => {
            claim(here, model, rng.random_range(1..4)).await;
            "a claim"
        }
        65..90 => {
            if let Some(id) = model.some(rng, |node| node.claimed.is_some()) {
                let outcome = if rng.random_bool(0.7) { Succeeded } else { Failed };
                finish(here, model, id, outcome).await;
            }
            "an end"
        }
        90..96 => {
            if let Some(id) = model.some(rng, |node| node.outcome.is_none() && node.claimed.is_none()) {
                let answer = match model.nodes[&id].task {
                    true => here.tasks.cancel(id, "enough").await.unwrap(),
                    false => here.ledger.cancel(id, "enough").await.unwrap(),
                };
                assert_eq!(answer, Some(Cancelling::Cancelled));
                model.nodes.get_mut(&id).unwrap().outcome = Some(Outcome::Cancelled);
            }
            "a cancellation"
        }
        _ => {
            if let Some(id) = model.some(rng, |node| node.outcome.is_none() && !node.after.is_empty()) {
                let waited = matches!(model.verdict(&model.nodes[&id]), Verdict::Wait);
                let answer = here.ledger.release(id).await.unwrap();
                assert_eq!(matches!(answer, Some(Releasing::Released { .. })), waited, "{answer:?}");
                model.nodes.get_mut(&id).unwrap().released = true;
            }
            "a release"
        }
    }
}

async fn pin(here: &World, rng: &mut StdRng, model: &mut Model, step: usize) {
    let task = rng.random_bool(0.2);
    let many = if task || model.order.is_empty() { 0 } else { rng.random_range(0..4) };
    let mut after: Vec<Uuid> = (0..many).map(|_| *model.order.choose(rng).unwrap()).collect();
    after.sort();
    after.dedup();
    let when = if rng.random_bool(0.5) { All } else { Any };
    let on_failure = if rng.random_bool(0.6) { Skip } else { Run };
    let series = (!task && rng.random_bool(0.3)).then(|| rng.random_range(0..3));
    let interaction =
        Interaction { series: series.map(|series: usize| series.to_string()), ..interaction(&step.to_string()) };
    let id = match (task, after.is_empty()) {
        (true, _) => here.task().await,
        (_, true) => here.ledger.pin(request(&interaction)).await.unwrap().pin.id,
        _ => here.try_after(interaction, &after, when, on_failure).await.unwrap().pin.id,
    };
    let node = Node { series, after, when, on_failure, released: false, task, claimed: None, outcome: None };
    model.nodes.insert(id, node);
    model.order.push(id);
}

/// Claims of both engines. Whatever they take must have been ready.
async fn claim(here: &World, model: &mut Model, limit: i64) -> usize {
    let copies = here.claim(limit).await;
    let tasks = here.tasks.claim(here.worker, limit as usize).await.unwrap();
    let many = copies.len() + tasks.len();
    for claimed in copies.into_iter().chain(tasks) {
        let id = claimed.envelope.id;
        assert_eq!(model.state(id), "ready", "{id} was claimed");
        model.nodes.get_mut(&id).unwrap().claimed = Some(claimed);
    }
    many
}

async fn finish(here: &World, model: &mut Model, id: Uuid, outcome: Outcome) {
    let claimed = model.nodes.get_mut(&id).unwrap().claimed.take().unwrap();
    let end = end(&claimed, outcome);
    let kept = match claimed.task.is_some() {
        true => here.tasks.finish(here.worker, &[end]).await.unwrap(),
        false => here.queue.finish(here.worker, &[end]).await.unwrap(),
    };
    assert_eq!(kept, [id]);
    model.nodes.get_mut(&id).unwrap().outcome = Some(outcome);
}

/// Ends and those that come to wait for them, from many sides at once: nobody waits for what has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_end_that_races_with_who_comes_to_wait_is_never_overlooked() {
    let here = Arc::new(World::new().await);
    let stop = Arc::new(AtomicBool::new(false));
    let ending = (0..2).map(|_| {
        let (here, stop) = (here.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let (copies, tasks) = (here.claim(3).await, here.tasks.claim(here.worker, 3).await.unwrap());
                for claimed in &copies {
                    here.finish(claimed, Succeeded).await;
                }
                let ends: Vec<Finish> = tasks.iter().map(|claimed| end(claimed, Succeeded)).collect();
                here.tasks.finish(here.worker, &ends).await.unwrap();
                here.tasks.promote_due(10).await.unwrap();
                here.ledger.settle_dependents(7).await.unwrap();
            }
        })
    });
    let ending: Vec<_> = ending.collect();
    let waiting = (0..3).map(|caller| {
        let here = here.clone();
        tokio::spawn(async move {
            let mut last = Vec::new();
            for n in 0..60 {
                // Half of them move from one place to another in the middle of it.
                let task = if n % 2 == 0 {
                    here.task().await
                } else {
                    here.task_at(Utc::now() + TimeDelta::milliseconds(4)).await
                };
                let key = format!("{caller}.{n}");
                let upstream = here.pin(&format!("up.{key}")).await;
                last.push(here.after(&key, &[task, upstream], All, Skip).await);
                // And for what waits itself.
                let before = last[n / 2];
                last.push(here.after(&format!("late.{key}"), &[before, upstream], All, Skip).await);
            }
            last
        })
    });
    let mut all = Vec::new();
    for caller in waiting.collect::<Vec<_>>() {
        all.extend(caller.await.unwrap());
    }
    for id in all {
        until("what waited has run", async || (here.state(id).await == "succeeded").then_some(())).await;
    }
    stop.store(true, Ordering::Relaxed);
    for ending in ending {
        ending.await.unwrap();
    }
    assert_eq!(here.count("select count(*) from crossover.dependents").await, 0);
}
