//! Random programs beside a small model of what may run, for both engines, with everything that can happen to work and limits.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// An attempt that a worker holds.
struct Run {
    task: bool,
    worker: usize,
    claimed: Claimed,
}

impl Run {
    /// The group's, and of its own accord.
    fn counts(&self) -> bool {
        self.claimed.envelope.group.as_deref() == Some(GROUP) && !self.claimed.rehearsal
    }
}

/// What a small model knows.
#[derive(Default)]
struct Model {
    limit: Option<usize>,
    per_account: Option<usize>,
    paused: bool,
    held_back: Vec<&'static str>,
    waiting: Vec<Uuid>,
    running: Vec<Run>,
}

impl Model {
    fn executions(&self, account: Option<&str>) -> usize {
        let of = |run: &&Run| run.counts() && account.is_none_or(|account| run.claimed.envelope.account == account);
        self.running.iter().filter(of).count()
    }

    fn began(&mut self, run: Run) {
        let (id, account) = (run.claimed.envelope.id, run.claimed.envelope.account.clone());
        let place = self.waiting.iter().position(|waiting| *waiting == id);
        self.waiting.remove(place.unwrap_or_else(|| panic!("{id} does not wait")));
        if run.claimed.envelope.group.as_deref() == Some(GROUP) {
            assert!(!self.paused, "{id} begins while its group is paused");
        }
        if run.counts() {
            assert!(self.limit.is_none_or(|limit| self.executions(None) < limit), "{id} begins beyond the limit");
            let of = self.executions(Some(&account));
            assert!(self.per_account.is_none_or(|limit| of < limit), "{id} begins beyond the limit of {account}");
        }
        self.running.push(run);
    }

    fn holds(&self, worker: usize, task: bool) -> Vec<(Uuid, i32)> {
        let mine = self.running.iter().filter(|run| run.worker == worker && run.task == task);
        mine.map(|run| (run.claimed.envelope.id, run.claimed.fence.attempt)).collect()
    }
}

/// A program that runs.
struct Program {
    here: World,
    queue: Queue,
    random: StdRng,
    model: Model,
    workers: [Uuid; 2],
    rehearsed: Vec<Uuid>,
}

const ACCOUNTS: [&str; 2] = [ACCOUNT, "b"];

impl Program {
    async fn new(seed: u64) -> Self {
        let here = World::new().await;
        here.arm("b").await;
        let workers = [here.claimer(PATIENCE * 10).await, here.claimer(PATIENCE * 10).await];
        let queue = Queue::new(here.ledger.pool().clone());
        let random = StdRng::seed_from_u64(seed);
        Self { here, queue, random, model: Model::default(), workers, rehearsed: Vec::new() }
    }

    async fn step(&mut self, step: usize) {
        let account = ACCOUNTS[self.random.random_range(0..2)];
        match self.random.random_range(0..20) {
            0..=2 => self.enqueue(account, step).await,
            3 | 4 => self.pin(account, step).await,
            5..=8 => self.claim().await,
            9..=11 => self.finish().await,
            12 => {
                self.here.tasks.promote_due(100).await.unwrap();
                self.queue.promote_due(100).await.unwrap();
            }
            13 => self.cancel().await,
            14 | 15 => self.change_limits().await,
            16 => self.pause_or_resume().await,
            17 => self.hold_back(account).await,
            18 => self.give_back().await,
            _ => self.die().await,
        }
        self.check(step).await;
    }

    async fn enqueue(&mut self, account: &str, step: usize) {
        let group = self.random.random_bool(0.8).then(|| GROUP.to_owned());
        let priority = self.random.random_range(-1..2);
        let task = NewTask { account: account.to_owned(), group, priority, ..mail(step) };
        self.model.waiting.push(self.here.enqueue(task).await);
    }

    async fn pin(&mut self, account: &str, step: usize) {
        let stage = if self.random.random_bool(0.3) { Stage::Shadow } else { Stage::Complete };
        let id = self.here.pin(account, &step.to_string(), stage, Policy::default()).await;
        if stage == Stage::Shadow {
            self.rehearsed.push(id);
        }
        self.model.waiting.push(id);
    }

    async fn claim(&mut self) {
        if self.random.random_bool(0.8) {
            self.here.pass().await;
        }
        let (n, limit, low) =
            (self.random.random_range(0..2), self.random.random_range(1..6), self.random.random_range(0..2));
        let worker = self.workers[n];
        let tasks = self.here.tasks.claim_sharing(worker, limit, low).await.unwrap();
        tasks.into_iter().for_each(|claimed| self.model.began(Run { task: true, worker: n, claimed }));
        let executions_only = self.random.random_bool(0.2);
        let claim = Claim { worker, limit: limit as i64, executions_only, lease: PATIENCE };
        let copies = self.queue.claim_sharing(claim, low).await.unwrap();
        copies.into_iter().for_each(|claimed| self.model.began(Run { task: false, worker: n, claimed }));
    }

    async fn finish(&mut self) {
        if self.model.running.is_empty() {
            return;
        }
        let n = self.random.random_range(0..self.model.running.len());
        let Run { task, worker, claimed } = self.model.running.swap_remove(n);
        let retry = self.random.random_bool(0.3).then_some(Duration::ZERO);
        self.end(self.workers[worker], task, &claimed, retry).await;
    }

    async fn end(&mut self, worker: Uuid, task: bool, claimed: &Claimed, retry: Option<Duration>) {
        let outcome = if retry.is_some() { Outcome::Failed } else { Outcome::Succeeded };
        let end = Finish { retry, ..Finish::of(claimed, Some(outcome)) };
        let ended =
            if task { self.here.tasks.finish(worker, &[end]).await } else { self.queue.finish(worker, &[end]).await };
        assert_eq!(ended.unwrap(), [claimed.envelope.id]);
        if retry.is_some() {
            self.model.waiting.push(claimed.envelope.id);
        }
    }

    async fn cancel(&mut self) {
        if self.model.waiting.is_empty() {
            return;
        }
        let n = self.random.random_range(0..self.model.waiting.len());
        let id = self.model.waiting[n];
        if self.rehearsed.contains(&id) {
            return;
        }
        self.model.waiting.swap_remove(n);
        let task = tasks::named_at(id).is_some();
        let answer = if task { self.here.tasks.cancel(id, "x").await } else { self.here.ledger.cancel(id, "x").await };
        assert_eq!(answer.unwrap(), Some(Cancelling::Cancelled), "{id}");
    }

    async fn change_limits(&mut self) {
        let groups = self.here.groups();
        if self.random.random_bool(0.2) {
            groups.unset(GROUP).await.unwrap();
            (self.model.limit, self.model.per_account, self.model.paused) = (None, None, false);
            self.model.held_back.clear();
            return;
        }
        self.model.limit = self.random.random_bool(0.7).then(|| self.random.random_range(1..6));
        self.model.per_account = self.random.random_bool(0.5).then(|| self.random.random_range(1..4));
        let heed = self.random.random_bool(0.5);
        let rate = self.random.random_bool(0.3).then_some(1_000);
        let account_rate = self.random.random_bool(0.3).then_some(1_000);
        if !heed {
            self.model.held_back.clear();
        }
        let limits = json!({ "max_running": self.model.limit, "max_per_account": self.model.per_account,
            "heed_retry_after": heed, "rate": rate, "account_rate": account_rate });
        self.here.set(limits).await;
    }

    async fn pause_or_resume(&mut self) {
        self.model.paused = self.random.random_bool(0.4);
        match self.model.paused {
            true => self.here.groups().pause(GROUP, "x", "test").await.unwrap(),
            false => self.here.groups().resume(GROUP, "test").await.unwrap(),
        }
    }

    /// What runs of an account is told to come back in an hour, or that hour is over.
    async fn hold_back(&mut self, account: &'static str) {
        let told = self.model.running.iter().find(|run| run.counts() && run.claimed.envelope.account == account);
        if let Some(run) = told {
            let (id, attempt) = (run.claimed.envelope.id, run.claimed.fence.attempt);
            let told = Told { id, attempt, task: run.claimed.task, wait_ms: 3_600_000 };
            self.here.groups().heed_retry_after(Uuid::new_v4(), &[told]).await.unwrap();
            let held = self.here.count("select count(*) from crossover.group_holds").await;
            assert_eq!(held, self.model.held_back.len() as i64, "whoever does not hold it says nothing");
            self.here.groups().heed_retry_after(self.workers[run.worker], &[told]).await.unwrap();
        }
        self.model.held_back = sqlx::query_scalar::<_, String>("select account from crossover.group_holds")
            .fetch_all(self.here.ledger.pool())
            .await
            .unwrap()
            .iter()
            .map(|held| if held == ACCOUNT { ACCOUNT } else { "b" })
            .collect();
    }

    /// A claim's answer was lost: all that its worker does not know of is put back.
    async fn give_back(&mut self) {
        let n = self.random.random_range(0..2);
        let lost = self.model.running.iter().position(|run| run.worker == n);
        let Some(Run { task, claimed, .. }) = lost.map(|lost| self.model.running.swap_remove(lost)) else { return };
        let held = self.model.holds(n, task);
        let back = match task {
            true => self.here.tasks.release_unknown(self.workers[n], &held).await,
            false => self.queue.release_unknown(self.workers[n], &held).await,
        };
        assert_eq!(back.unwrap(), 1);
        self.model.waiting.push(claimed.envelope.id);
    }

    /// A worker dies; another one takes over what it held, and tries it again.
    async fn die(&mut self) {
        let n = self.random.random_range(0..2);
        let (dead, reaper) = (self.workers[n], self.workers[1 - n]);
        self.here.tasks.leave(dead).await.unwrap();
        let gone = sqlx::query(
            "update crossover.running set lease_until = clock_timestamp() - interval '1 second' where worker = $1",
        );
        gone.bind(dead).execute(self.here.ledger.pool()).await.unwrap();
        let soon = Duration::from_millis(1);
        let mut taken: Vec<(bool, Claimed)> = Vec::new();
        while self.here.count("select count(*) from crossover.workers where lease_until < now()").await > 0 {
            let more = self.here.tasks.take_over(reaper, 100, soon).await.unwrap();
            taken.extend(more.into_iter().map(|claimed| (true, claimed)));
        }
        let copies = self.queue.take_over(reaper, (reaper, &self.model.holds(1 - n, false)), 100, soon, PATIENCE).await;
        taken.extend(copies.unwrap().into_iter().map(|claimed| (false, claimed)));
        let lost: Vec<Run> = self.model.running.extract_if(.., |run| run.worker == n).collect();
        assert_eq!(taken.len(), lost.len());
        for (task, claimed) in taken {
            self.end(reaper, task, &claimed, Some(Duration::ZERO)).await;
        }
        self.workers[n] = self.here.claimer(PATIENCE * 10).await;
    }

    async fn check(&mut self, step: usize) {
        let there = self.here.count(
            "select (select count(*) from crossover.gate) + (select count(*) from crossover.ready) + (select count(*) from crossover.running)
                + (select count(*) from crossover.scheduled) + (select count(*) from crossover.tasks_ready)
                + (select count(*) from crossover.tasks_scheduled)",
        );
        let model = (self.model.waiting.len() + self.model.running.len()) as i64;
        assert_eq!(there.await, model, "step {step}: one place each");
        let unmarked = self.here.count(
            "select (select count(*) from crossover.running r join crossover.groups g using (grp)
                    where g.gated and g.counted and r.execute and r.gated_for is null)
                + (select count(*) from crossover.tasks_ready r join crossover.groups g using (grp)
                    where g.gated and g.counted and r.worker is not null and not r.gated)",
        );
        assert_eq!(unmarked.await, 0, "step {step}: what runs holds a place");
    }

    /// Without limits all of it ends.
    async fn end_all(mut self) {
        self.here.groups().unset(GROUP).await.unwrap();
        for Run { task, worker, claimed } in std::mem::take(&mut self.model.running) {
            self.end(self.workers[worker], task, &claimed, None).await;
        }
        for id in &self.rehearsed {
            let end =
                "select crossover.end_pins('temporal', array[$1], array[1], array[1], array['succeeded'], array[null])";
            sqlx::query(end).bind(id).execute(self.here.ledger.pool()).await.unwrap();
        }
        let last = self.here.worker(echo());
        until("all have ended", async || (self.here.unended().await == 0).then_some(())).await;
        until("nothing is anywhere", async || {
            let left = "select (select count(*) from crossover.gate) + (select count(*) from crossover.ready)
                + (select count(*) from crossover.running) + (select count(*) from crossover.tasks_ready)";
            (self.here.count(left).await == 0).then_some(())
        })
        .await;
        last.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_programs_keep_to_the_model() {
    for seed in [7, 42, rand::random::<u64>()] {
        println!("seed {seed}");
        let mut program = Program::new(seed).await;
        for step in 0..300 {
            program.step(step).await;
        }
        program.end_all().await;
    }
}
