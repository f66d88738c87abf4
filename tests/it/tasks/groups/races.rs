//! Claims, passes and changes of limits at once, watched from outside: a snapshot never has more running than may.

use std::collections::HashSet;

use chrono::DateTime;
use rand::RngExt;

use super::*;

/// What a snapshot has.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Snapshot {
    changed_at: DateTime<Utc>,
    max_running: Option<i32>,
    max_per_account: Option<i32>,
    paused: bool,
    running: Value,
}

impl Snapshot {
    fn of(&self, account: &str) -> i64 {
        self.running[account].as_i64().unwrap_or(0)
    }

    fn all(&self) -> i64 {
        self.running.as_object().unwrap().values().filter_map(Value::as_i64).sum()
    }

    /// Nothing more has begun than its limits allow.
    fn follows(&self, before: &Self) {
        let allowed = |limit: Option<i32>, before: i64| match limit {
            _ if self.paused => before,
            Some(limit) => before.max(limit.into()),
            None => i64::MAX,
        };
        assert!(self.all() <= allowed(self.max_running, before.all()), "{self:?} after {before:?}");
        for account in [ACCOUNT, "b"] {
            assert!(self.of(account) <= allowed(self.max_per_account, before.of(account)), "{self:?} after {before:?}");
        }
    }
}

impl World {
    /// What runs of the group by account, and its limits, in one snapshot; none without limits.
    async fn snapshot(&self) -> Option<Snapshot> {
        let taken = sqlx::query_as(
            "select g.changed_at, g.max_running, g.max_per_account, g.paused_since is not null as paused, coalesce((
                select jsonb_object_agg(account, many) from (
                    select account, count(*) as many from (
                        select p.account from crossover.running r join crossover.pins p on p.id = r.id where r.grp = g.grp
                        union all
                        select r.account from crossover.tasks_ready r where r.grp = g.grp and r.worker is not null) r
                    group by account) a), '{}') as running
             from crossover.groups g where g.grp = $1 and g.gated",
        );
        taken.bind(GROUP).fetch_optional(self.ledger.pool()).await.unwrap()
    }

    /// Claims and ends for a while, one kind or the other; how many it began.
    async fn work(&self, tasks: bool, over: &CancellationToken) -> usize {
        let (worker, queue, mut begun) = (self.claimer(PATIENCE * 10).await, Queue::new(self.ledger.pool().clone()), 0);
        while !over.is_cancelled() {
            let claimed = match tasks {
                true => self.tasks.claim(worker, 3).await.unwrap(),
                false => self.claim_copies(worker, 3).await,
            };
            begun += claimed.len();
            let ends: Vec<Finish> = claimed
                .iter()
                .map(|claimed| match rand::rng().random_bool(0.2) {
                    true => Finish { retry: Some(Duration::ZERO), ..Finish::of(claimed, Some(Outcome::Failed)) },
                    false => Finish::of(claimed, Some(Outcome::Succeeded)),
                })
                .collect();
            // It runs for a moment.
            tokio::time::sleep(Duration::from_millis(4)).await;
            if !ends.is_empty() {
                let ended =
                    if tasks { self.tasks.finish(worker, &ends).await } else { queue.finish(worker, &ends).await };
                assert_eq!(ended.unwrap().into_iter().collect::<HashSet<_>>().len(), ends.len());
            }
        }
        begun
    }

    /// Brings work, lets in and promotes.
    async fn feed(&self, over: &CancellationToken) {
        let mut n = 0;
        while !over.is_cancelled() {
            for _ in 0..4 {
                n += 1;
                let account = if n % 2 == 0 { "b" } else { ACCOUNT };
                self.enqueue(NewTask { account: account.to_owned(), ..mail(n) }).await;
                self.pin(account, &format!("p{n}"), Stage::Complete, Policy::default()).await;
            }
            let queue = Queue::new(self.ledger.pool().clone());
            self.tasks.promote_due(100).await.unwrap();
            queue.promote_due(100).await.unwrap();
        }
    }

    async fn let_in(&self, over: &CancellationToken) {
        while !over.is_cancelled() {
            self.pass().await;
        }
    }

    /// Changes limits until `seen` is enough.
    async fn change(&self, seen: &AtomicUsize) {
        let groups = self.groups();
        for n in 0.. {
            if n >= 60 && seen.load(Ordering::Relaxed) > 150 {
                break;
            }
            match n % 4 {
                0 => drop(groups.unset(GROUP).await.unwrap()),
                3 => groups.pause(GROUP, "x", "test").await.unwrap(),
                _ => {
                    groups.resume(GROUP, "test").await.unwrap();
                    let (all, one) = (rand::rng().random_range(1..6), rand::rng().random_range(1..4));
                    self.set(json!({ "max_running": all, "max_per_account": one })).await;
                }
            }
            // For so long it is in force.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_has_more_running_than_may_while_limits_change_and_everybody_works() {
    let here = World::new().await;
    here.arm("b").await;
    let (over, pairs) = (CancellationToken::new(), AtomicUsize::new(0));
    let watched = async {
        let mut before: Option<Snapshot> = None;
        while !over.is_cancelled() {
            let now = here.snapshot().await;
            if let (Some(before), Some(now)) = (&before, &now)
                && before.changed_at == now.changed_at
            {
                now.follows(before);
                pairs.fetch_add(1, Ordering::Relaxed);
            }
            before = now;
        }
    };
    let changed = async {
        tokio::time::timeout(PATIENCE, here.change(&pairs)).await.expect("enough is seen");
        over.cancel();
    };
    let ((), begun, ..) = tokio::join!(
        watched,
        async {
            let begun = tokio::join!(
                here.work(true, &over),
                here.work(true, &over),
                here.work(false, &over),
                here.work(false, &over)
            );
            begun.0 + begun.1 + begun.2 + begun.3
        },
        here.feed(&over),
        here.let_in(&over),
        here.let_in(&over),
        changed
    );
    assert!(begun > 100, "{begun} attempts began");
    here.groups().unset(GROUP).await.unwrap();
    let last = here.worker(echo());
    until("all have ended", async || (here.unended().await == 0).then_some(())).await;
    last.drain().await;
}
