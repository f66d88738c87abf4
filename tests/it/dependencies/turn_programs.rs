//! Random programs of what excludes others against a small reference model, compared after every step; and many at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crossover::ledger::Resolved;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::turns::{excluding, park, retry};
use super::*;

/// Where the model has one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    /// Behind its series.
    Behind,
    /// Until somebody moves the clock.
    Later,
    Line,
    Ready,
    Running,
    Parked,
    Ended(Outcome),
}

#[derive(Debug)]
struct Node {
    exclusive: Option<usize>,
    series: Option<usize>,
    priority: i16,
    at: At,
    called_off: bool,
    claimed: Option<Claimed>,
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<Uuid, Node>,
    /// In the order in which they were pinned.
    order: Vec<Uuid>,
}

impl Model {
    fn node(&mut self, id: Uuid) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    /// It could run now, but for those that it excludes.
    fn place(&mut self, id: Uuid) {
        let node = self.node(id);
        node.at = if node.exclusive.is_some() { At::Line } else { At::Ready };
    }

    fn end(&mut self, id: Uuid, outcome: Outcome) {
        self.node(id).at = At::Ended(outcome);
        let Some(series) = self.nodes[&id].series else { return };
        let unended = |id: &&Uuid| self.nodes[id].series == Some(series) && !matches!(self.nodes[id].at, At::Ended(_));
        let head = self.order.iter().find(unended).copied();
        if let Some(head) = head.filter(|head| self.nodes[head].at == At::Behind) {
            self.place(head);
        }
    }

    /// Of each key, the first by priority and order has its turn if nobody has.
    fn settle(&mut self) {
        for exclusive in 0..KEYS {
            let of = |id: &&Uuid| self.nodes[id].exclusive == Some(exclusive);
            if self.order.iter().filter(of).any(|id| matches!(self.nodes[id].at, At::Ready | At::Running)) {
                continue;
            }
            let line = self.order.iter().filter(of).filter(|id| self.nodes[id].at == At::Line);
            // Of equals the first.
            if let Some(next) = line.min_by_key(|id| -self.nodes[id].priority).copied() {
                self.node(next).at = At::Ready;
            }
        }
    }

    fn state(&self, id: Uuid) -> &'static str {
        match self.nodes[&id].at {
            At::Behind | At::Line => "waiting",
            At::Later => "scheduled",
            At::Ready => "ready",
            At::Running => "running",
            At::Parked => "unknown_outcome",
            At::Ended(outcome) => outcome.as_str(),
        }
    }

    fn all(&self, found: impl Fn(&Node) -> bool) -> Vec<Uuid> {
        self.order.iter().copied().filter(|id| found(&self.nodes[id])).collect()
    }

    fn some(&self, rng: &mut StdRng, found: impl Fn(&Node) -> bool) -> Option<Uuid> {
        self.all(found).choose(rng).copied()
    }
}

const KEYS: usize = 3;
const LONG: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn random_programs_of_what_excludes_go_as_the_model_says() {
    let seeds = std::env::var("PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    for seed in 0..seeds {
        Program { here: World::new().await, model: Model::default(), rng: StdRng::seed_from_u64(seed) }
            .run(seed, 150)
            .await;
    }
}

struct Program {
    here: World,
    model: Model,
    rng: StdRng,
}

impl Program {
    async fn run(mut self, seed: u64, steps: usize) {
        for step in 0..steps {
            let what = self.act(step).await;
            self.compare(&format!("seed {seed}, step {step}, after {what}")).await;
        }
        // Whatever has not ended goes on to its end.
        loop {
            for id in self.model.all(|node| node.at == At::Parked) {
                self.resolve(id, Resolved::Retry).await;
                self.compare(&format!("seed {seed}, at the end")).await;
            }
            for id in self.model.all(|node| node.at == At::Later) {
                self.hasten(id).await;
                self.compare(&format!("seed {seed}, at the end")).await;
            }
            let claimed = self.claim(1_000).await;
            let held = self.model.all(|node| node.at == At::Running);
            for id in &held {
                self.finish(*id, |claimed| end(claimed, Succeeded)).await;
                self.compare(&format!("seed {seed}, at the end")).await;
            }
            if claimed + held.len() == 0 {
                break;
            }
        }
        for id in &self.model.order {
            assert!(
                matches!(self.model.nodes[id].at, At::Ended(_)),
                "seed {seed}: {id} is stuck: {:?}",
                self.model.nodes[id]
            );
        }
        let left = "select (select count(*) from crossover.turns) + (select count(*) from crossover.turn_notes)";
        assert_eq!(self.here.count(left).await, 0, "seed {seed}");
    }

    async fn compare(&mut self, when: &str) {
        self.here.turns().await;
        self.model.settle();
        for id in &self.model.order {
            let state = self.here.state(*id).await;
            assert_eq!(state, self.model.state(*id), "{when}: {id} {:?}", self.model.nodes[id]);
        }
        let most = "select coalesce(max(n), 0) from (
            select count(*) as n from crossover.turns t
            join (select id from crossover.ready union all select id from crossover.running union all select id from crossover.gate) u
                on u.id = t.id group by t.exclusive_id) k";
        assert!(self.here.count(most).await <= 1, "{when}: two of one key may run");
    }

    async fn act(&mut self, step: usize) -> &'static str {
        match self.rng.random_range(0..100) {
            0..35 => {
                self.pin(step).await;
                "a pin"
            }
            35..55 => {
                let limit = self.rng.random_range(1..4);
                self.claim(limit).await;
                "a claim"
            }
            55..72 => {
                if let Some(id) = self.running() {
                    let outcome = if self.rng.random_bool(0.7) { Succeeded } else { Failed };
                    self.finish(id, |claimed| end(claimed, outcome)).await;
                }
                "an end"
            }
            72..80 => {
                if let Some(id) = self.running() {
                    self.finish(id, |claimed| retry(claimed, LONG)).await;
                }
                "a retry"
            }
            80..83 => {
                if let Some(id) = self.running() {
                    self.finish(id, park).await;
                }
                "a parking"
            }
            83..86 => {
                if let Some(id) = self.model.some(&mut self.rng, |node| node.at == At::Parked) {
                    let answer =
                        [Resolved::Retry, Resolved::Succeeded, Resolved::Failed].choose(&mut self.rng).copied();
                    self.resolve(id, answer.unwrap()).await;
                }
                "a resolution"
            }
            86..91 => {
                if let Some(id) = self.model.some(&mut self.rng, |node| node.at == At::Later) {
                    self.hasten(id).await;
                }
                "a due time"
            }
            91..96 => {
                if let Some(id) = self.model.some(&mut self.rng, |node| !matches!(node.at, At::Ended(_))) {
                    self.cancel(id).await;
                }
                "a cancellation"
            }
            _ => {
                self.crash().await;
                "a crash"
            }
        }
    }

    fn running(&mut self) -> Option<Uuid> {
        self.model.some(&mut self.rng, |node| node.at == At::Running)
    }

    async fn pin(&mut self, step: usize) {
        let exclusive = self.rng.random_bool(0.8).then(|| self.rng.random_range(0..KEYS));
        let series = self.rng.random_bool(0.3).then(|| self.rng.random_range(0..2usize));
        let priority = *[0, 0, 5].choose(&mut self.rng).unwrap();
        let later = self.rng.random_bool(0.1);
        let interaction = Interaction {
            exclusive: exclusive.map(|key: usize| key.to_string()),
            series: series.map(|series| series.to_string()),
            priority,
            run_at: later.then(|| Utc::now() + TimeDelta::hours(1)),
            ..interaction(&step.to_string())
        };
        let pinned = match exclusive {
            Some(_) => self.here.try_exclude(interaction).await.unwrap(),
            None => self.here.ledger.pin(request(&interaction)).await.unwrap(),
        };
        let behind = series.is_some()
            && self.model.nodes.values().any(|node| node.series == series && !matches!(node.at, At::Ended(_)));
        let id = pinned.pin.id;
        // A later run_at behind a series counts when its turn comes; the test leaves that out.
        let at = if behind { At::Behind } else { At::Later };
        self.model.nodes.insert(id, Node { exclusive, series, priority, at, called_off: false, claimed: None });
        self.model.order.push(id);
        if later && behind {
            let now = sqlx::query("update crossover.pins set run_at = created_at where id = $1").bind(id);
            now.execute(self.here.ledger.pool()).await.unwrap();
        }
        if !later && !behind {
            self.model.place(id);
        }
    }

    /// Whatever it takes must have been ready.
    async fn claim(&mut self, limit: i64) -> usize {
        let claimed = self.here.claim(limit).await;
        let many = claimed.len();
        for claimed in claimed {
            let node = self.model.node(claimed.envelope.id);
            assert_eq!(node.at, At::Ready, "{} was claimed", claimed.envelope.id);
            node.at = At::Running;
            node.claimed = Some(claimed);
        }
        many
    }

    async fn finish(&mut self, id: Uuid, with: impl Fn(&Claimed) -> Finish) {
        let claimed = self.model.node(id).claimed.take().unwrap();
        let end = with(&claimed);
        assert_eq!(self.here.queue.finish(self.here.worker, std::slice::from_ref(&end)).await.unwrap(), [id]);
        self.ended(id, &end);
    }

    fn ended(&mut self, id: Uuid, end: &Finish) {
        match (end.retry.is_some() || end.park, self.model.nodes[&id].called_off) {
            (true, true) => self.model.end(id, Outcome::Cancelled),
            (true, false) => self.model.node(id).at = if end.park { At::Parked } else { At::Later },
            (false, _) => self.model.end(id, end.outcome.unwrap()),
        }
    }

    async fn resolve(&mut self, id: Uuid, answer: Resolved) {
        self.here.ledger.resolve(id, answer, None, None, "somebody").await.unwrap();
        match answer {
            Resolved::Succeeded => self.model.end(id, Succeeded),
            Resolved::Failed => self.model.end(id, Failed),
            Resolved::Retry => self.model.place(id),
        }
    }

    async fn hasten(&mut self, id: Uuid) {
        for table in ["turns", "scheduled"] {
            let sql = format!("update crossover.{table} set due_at = clock_timestamp() where id = $1");
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(self.here.ledger.pool()).await.unwrap();
        }
        self.here.queue.promote_due(1_000).await.unwrap();
        self.model.place(id);
    }

    async fn cancel(&mut self, id: Uuid) {
        let answer = self.here.ledger.cancel(id, "enough").await.unwrap();
        if self.model.nodes[&id].at == At::Running {
            assert_eq!(answer, Some(Cancelling::Asked));
            self.model.node(id).called_off = true;
        } else {
            assert_eq!(answer, Some(Cancelling::Cancelled));
            self.model.end(id, Outcome::Cancelled);
        }
    }

    /// A worker claims and dies; another takes over what it held, and what the dead one says of it is late.
    async fn crash(&mut self) {
        let (dead, reaper, moment) = (Uuid::new_v4(), Uuid::new_v4(), Duration::from_millis(1));
        let claim = Claim { worker: dead, limit: 3, executions_only: false, lease: moment };
        let held = self.here.queue.claim(claim).await.unwrap();
        for claimed in &held {
            assert_eq!(self.model.nodes[&claimed.envelope.id].at, At::Ready);
        }
        let mut lost = Vec::new();
        until("all of it is taken over", async || {
            lost.extend(self.here.queue.take_over(reaper, (reaper, &[]), 10, moment, LONG).await.unwrap());
            lost.sort_by_key(|claimed: &Claimed| claimed.envelope.id);
            lost.dedup_by_key(|claimed| claimed.envelope.id);
            (lost.len() == held.len()).then_some(())
        })
        .await;
        // The reaper's own lease is as short: it takes them over from itself, and still holds them.
        let ends: Vec<Finish> = lost.iter().map(|claimed| retry(claimed, LONG)).collect();
        assert_eq!(self.here.queue.finish(reaper, &ends).await.unwrap().len(), held.len());
        for end in &ends {
            self.ended(end.id, end);
        }
        let late: Vec<Finish> = held.iter().map(|claimed| end(claimed, Succeeded)).collect();
        assert!(self.here.queue.finish(dead, &late).await.unwrap().is_empty());
    }
}

/// Callers, claimers and those who give turns, all at once: no two of one key overlap, and all of them end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_two_of_one_exclusive_overlap_whoever_claims_and_ends() {
    let here = Arc::new(World::new().await);
    let stop = Arc::new(AtomicBool::new(false));
    let (keys, active) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(Mutex::new(HashMap::new())));
    let working = (0..3u64).map(|n| {
        let (here, stop, keys, active) = (here.clone(), stop.clone(), keys.clone(), active.clone());
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(n);
            while !stop.load(Ordering::Relaxed) {
                let claimed = here.claim(rng.random_range(1..6)).await;
                let of = |claimed: &Claimed| keys.lock().unwrap().get(&claimed.envelope.key).cloned();
                for claimed in &claimed {
                    let key: Option<String> = of(claimed);
                    let Some(key) = key else { panic!("{claimed:?} is known before it is pinned") };
                    let before = active.lock().unwrap().insert(key, claimed.envelope.id);
                    assert_eq!(before, None, "{} overlaps", claimed.envelope.id);
                }
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..3))).await;
                for claimed in &claimed {
                    active.lock().unwrap().remove(&of(claimed).unwrap());
                    let end = match rng.random_range(0..10) {
                        0..3 => retry(claimed, Duration::from_millis(rng.random_range(0..5))),
                        _ => end(claimed, Succeeded),
                    };
                    here.queue.finish(here.worker, &[end]).await.unwrap();
                }
                here.ledger.give_turns(7).await.unwrap();
            }
        })
    });
    let working: Vec<_> = working.collect();
    let calling = (0..3).map(|caller| {
        let (here, keys) = (here.clone(), keys.clone());
        tokio::spawn(async move {
            let mut all = Vec::new();
            for n in 0..80 {
                let (key, exclusive) = (format!("{caller}.{n}"), format!("e{}", n % 4));
                keys.lock().unwrap().insert(key.clone(), exclusive.clone());
                let id = here.try_exclude(excluding(&key, &exclusive)).await.unwrap().pin.id;
                if n % 9 == 0 {
                    here.ledger.cancel(id, "enough").await.unwrap();
                }
                all.push(id);
            }
            all
        })
    });
    let mut all = Vec::new();
    for caller in calling.collect::<Vec<_>>() {
        all.extend(caller.await.unwrap());
    }
    for id in all {
        until("it has ended", async || ["succeeded", "cancelled"].contains(&&*here.state(id).await).then_some(()))
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    for working in working {
        working.await.unwrap();
    }
    here.turns().await;
    assert_eq!(
        here.count("select (select count(*) from crossover.turns) + (select count(*) from crossover.turn_notes)").await,
        0
    );
}
