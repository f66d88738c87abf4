//! The works of `crossover bench`, done by a peer.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use futures::future::try_join_all;

use crate::ground::Ground;
use crate::queue::{Pace, Peer, Queue, Tuning};
use crate::report::{Measured, Report, Round};
use crate::run::Run;
use crate::{Result, held};

/// Put in with one call, as ours are.
const BATCH: usize = 1_000;
/// What `backlog` runs of what waits.
const FIRST: u32 = 20_000;
const FEW: u32 = 10_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Run no-ops that wait, until none is left.
    BurnDown,
    /// Put tasks in one by one from many callers, while a worker runs them.
    Enqueue,
    /// Put tasks in 1,000 at a time.
    EnqueueBatch,
    /// From the call that puts a task in to the begin of its handler, one at a time: on a fresh database, and with many finished before.
    Latency,
    /// The first 20,000 done with 10,000 and with many waiting.
    Backlog,
    /// So many a second while another connection holds a transaction open.
    HeldOpen,
}

/// How much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub work: Work,
    pub peers: Vec<Peer>,
    pub tasks: u32,
    pub rounds: u32,
    pub callers: u32,
    /// Finished before `latency`.
    pub finished: u32,
    /// Put in each second by `held-open`.
    pub rate: u32,
    pub tuning: Tuning,
}

impl Work {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned())
    }

    /// As many as `crossover bench` does.
    pub fn tasks(self) -> u32 {
        match self {
            Work::BurnDown | Work::EnqueueBatch => 200_000,
            Work::Enqueue => 50_000,
            Work::Latency => 2_000,
            Work::Backlog => 1_000_000,
            Work::HeldOpen => 600_000,
        }
    }

    fn pace(self) -> Pace {
        match self {
            Work::BurnDown | Work::EnqueueBatch | Work::Backlog => Pace::Backlog,
            Work::Enqueue | Work::HeldOpen => Pace::Stream,
            Work::Latency => Pace::Latency,
        }
    }

    /// Whether each round is a lighter one and a heavier one.
    fn paired(self) -> bool {
        matches!(self, Work::Latency | Work::Backlog)
    }
}

impl Plan {
    /// The peers take turns, round by round.
    pub async fn measure(&self, ground: &Ground, progress: impl Fn(&str)) -> Result<Report> {
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); self.peers.len()];
        for n in 1..=self.rounds {
            for (peer, rounds) in self.peers.iter().zip(&mut rounds) {
                progress(&format!("round {n} of {}: {}", self.rounds, peer.name()));
                rounds.extend(self.round(ground, *peer).await?);
            }
        }
        let peers = self.peers.iter().zip(rounds).map(|(peer, rounds)| {
            let settings = peer.settings(self.work.pace(), &self.tuning);
            Measured::of(*peer, settings, rounds, self.work.paired())
        });
        let peers = peers.collect();
        Report::of(self, ground.settings().await?, peers)
    }

    async fn round(&self, ground: &Ground, peer: Peer) -> Result<Vec<Round>> {
        let one = Bench { ground, peer, plan: self };
        let few = FEW.min(self.tasks);
        Ok(match self.work {
            Work::BurnDown => vec![one.first_of(self.tasks, self.tasks).await?],
            Work::Enqueue => vec![one.enqueue().await?],
            Work::EnqueueBatch => vec![one.enqueue_batch().await?],
            Work::Latency => vec![one.latency(0).await?, one.latency(self.finished).await?],
            Work::Backlog => {
                vec![one.first_of(few, few).await?, one.first_of(self.tasks, self.tasks.min(FIRST)).await?]
            }
            Work::HeldOpen => vec![held::open(ground, peer, self).await?],
        })
    }
}

struct Bench<'a> {
    ground: &'a Ground,
    peer: Peer,
    plan: &'a Plan,
}

impl Bench<'_> {
    async fn fresh(&self) -> Result<Arc<dyn Queue>> {
        self.ground.fresh(self.peer, self.plan.tuning).await
    }

    /// Runs the first of those that wait.
    async fn first_of(&self, waiting: u32, first: u32) -> Result<Round> {
        let (queue, run) = (self.fresh().await?, Run::of(waiting));
        fill(queue.as_ref(), 0..waiting).await?;
        self.ground.settle(self.peer).await?;
        let mut worker = queue.worker(Pace::Backlog, run.clone()).await?;
        let (before, began) = (self.ground.cost().await?, Instant::now());
        worker.begin().await?;
        run.reached(first).await?;
        until_ended(queue.as_ref(), first).await?;
        let took = began.elapsed();
        let cost = self.ground.cost().await?.since(before);
        worker.stop().await?;
        queue.close().await;
        let waiting = (self.plan.work == Work::Backlog).then_some(waiting);
        Ok(Round { waiting, ran_again: run.again(), ..Round::of(self.peer.name(), first, took, cost) })
    }

    /// Puts tasks in from two callers, 1,000 at a time.
    async fn enqueue_batch(&self) -> Result<Round> {
        let (queue, tasks) = (self.fresh().await?, self.plan.tasks);
        let (before, began) = (self.ground.cost().await?, Instant::now());
        tokio::try_join!(fill(queue.as_ref(), 0..tasks / 2), fill(queue.as_ref(), tasks / 2..tasks))?;
        let (took, cost) = (began.elapsed(), self.ground.cost().await?.since(before));
        queue.close().await;
        Ok(Round::of(self.peer.name(), tasks, took, cost))
    }

    /// Puts tasks in one by one from many callers, while a worker runs them.
    async fn enqueue(&self) -> Result<Round> {
        let (queue, each) = (self.fresh().await?, self.plan.tasks / self.plan.callers);
        let tasks = each * self.plan.callers;
        let run = Run::of(tasks);
        let mut worker = queue.worker(Pace::Stream, run.clone()).await?;
        worker.begin().await?;
        let (before, began) = (self.ground.cost().await?, Instant::now());
        let calls = (0..self.plan.callers).map(|caller| {
            let queue = queue.clone();
            let call = async move {
                let mut times = Vec::with_capacity(each as usize);
                for n in caller * each..(caller + 1) * each {
                    let began = Instant::now();
                    queue.put(n).await?;
                    times.push(began.elapsed());
                }
                Ok::<_, crate::Failure>(times)
            };
            async { tokio::spawn(call).await? }
        });
        let times = try_join_all(calls).await?;
        let took = began.elapsed();
        run.reached(tasks).await?;
        until_ended(queue.as_ref(), tasks).await?;
        let cost = self.ground.cost().await?.since(before);
        worker.stop().await?;
        queue.close().await;
        let round = Round::of(self.peer.name(), tasks, took, cost).timed(times.into_iter().flatten().collect());
        Ok(Round { ran_again: run.again(), ..round })
    }

    /// From the call that puts a task in to the begin of its handler, one at a time, after others have finished.
    async fn latency(&self, finished: u32) -> Result<Round> {
        let (queue, tasks) = (self.fresh().await?, self.plan.tasks);
        let run = Run::of(finished + tasks);
        if finished > 0 {
            fill(queue.as_ref(), 0..finished).await?;
            let mut worker = queue.worker(Pace::Backlog, run.clone()).await?;
            worker.begin().await?;
            run.reached(finished).await?;
            until_ended(queue.as_ref(), finished).await?;
            worker.stop().await?;
            self.ground.settle(self.peer).await?;
        }
        let mut worker = queue.worker(Pace::Latency, run.clone()).await?;
        worker.begin().await?;
        let (before, began) = (self.ground.cost().await?, Instant::now());
        let mut times = Vec::with_capacity(tasks as usize);
        for n in finished..finished + tasks {
            let began = Instant::now();
            queue.put(n).await?;
            run.reached(n + 1).await?;
            let begun = run.begun(n).ok_or("another task began than the one that was put in")?;
            times.push(begun.saturating_duration_since(began));
        }
        let (took, cost) = (began.elapsed(), self.ground.cost().await?.since(before));
        until_ended(queue.as_ref(), finished + tasks).await?;
        worker.stop().await?;
        queue.close().await;
        let round = Round::of(self.peer.name(), tasks, took, cost).timed(times);
        Ok(Round { finished: Some(finished), ran_again: run.again(), ..round })
    }
}

/// Puts tasks in, 1,000 at a time.
async fn fill(queue: &dyn Queue, range: Range<u32>) -> Result<()> {
    let end = range.end;
    for from in range.step_by(BATCH) {
        queue.put_many(from..(from + BATCH as u32).min(end)).await?;
    }
    Ok(())
}

/// Waits until the database says that the first so many have ended.
pub async fn until_ended(queue: &dyn Queue, first: u32) -> Result<()> {
    let began = Instant::now();
    loop {
        match queue.left(first).await? {
            0 => return Ok(()),
            left if began.elapsed() > Duration::from_secs(300) => {
                return Err(format!("{left} of the first {first} tasks did not end").into());
            }
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

impl Report {
    fn of(plan: &Plan, server: serde_json::Value, peers: Vec<Measured>) -> Result<Self> {
        let best = peers.iter().max_by(|one, other| one.per_second.total_cmp(&other.per_second));
        let best = best.ok_or("no peer was measured")?;
        let (per_second, best) = (best.per_second, best.who);
        Ok(Self { work: plan.work.name(), tasks: plan.tasks, per_second, best, server, peers })
    }
}
