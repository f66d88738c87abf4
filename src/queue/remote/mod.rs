//! Work that remote workers take from their group over HTTP. This process claims for them and holds nothing: what it hands out is
//! away with its worker in the same transaction, so whichever process is asked next knows as much, and this one may die.
//!
//! An answer that was never begun puts back what it would have handed out, under the same number. From its first byte on the worker may
//! have seen it, and then the lease decides.

mod polls;
mod storage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::storage::{Claimed, Finish, Queue};
use super::worker::{called_off, overslept};
use crate::interaction::{Outcome, Side};
use crate::ledger::{Attempted, Ledger, LedgerError, is_contention};
use crate::metrics::Metrics;
use crate::observer::{Dequeue, Observer, Seen, Sighting};

use polls::Polls;
use storage::{LEASE, Taken};

/// What a remote worker asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The group, whose name says that it is remote.
    pub group: String,
    /// Who asks.
    pub worker: String,
    /// At most so many.
    pub most: usize,
    /// Without a heartbeat for so long each of them is lost.
    pub lease: Duration,
}

/// An attempt that is handed out.
#[derive(Debug, Clone)]
pub struct Handed {
    /// What to run.
    pub claimed: Claimed,
    /// Without a heartbeat for so long it is lost.
    pub lease: Duration,
    /// It may run until then.
    pub run_until: DateTime<Utc>,
}

/// A claim whose answer was lost is looked for so long: no statement takes longer.
const DOUBT: Duration = Duration::from_secs(60);

/// So many ends that somebody is in the way of are tried one by one, each for as long as a lock is waited for.
const HELD: usize = 3;

/// Claims for remote workers.
pub struct Remote {
    queue: Queue,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    observer: Observer,
    polls: Polls,
}

/// What an answer would hand out. Dropped before it was [`sent`](Batch::sent) it puts all of it back.
pub struct Batch {
    remote: Arc<Remote>,
    items: Vec<Handed>,
}

impl Remote {
    /// For remote workers of the database behind `ledger`.
    pub fn new(ledger: Ledger, metrics: Arc<Metrics>, observer: Observer) -> Arc<Self> {
        let queue = Queue::new(ledger.pool().clone());
        Arc::new(Self { queue, ledger, metrics, observer, polls: Polls::default() })
    }

    /// What the group has now. Goes on to its end also when nobody waits for it any longer.
    pub async fn dequeue(self: &Arc<Self>, asked: &Asked) -> Result<Batch, LedgerError> {
        let (this, asked) = (self.clone(), asked.clone());
        let claiming = tokio::spawn(async move {
            let claimer = Uuid::new_v4();
            match this.queue.take_for_remote(&asked, claimer).await {
                Ok(taken) => Ok(this.begun(taken)),
                Err(error) => {
                    if !matches!(error, LedgerError::Refused(_)) {
                        tokio::spawn(async move { this.undo(claimer, &asked).await });
                    }
                    Err(error)
                }
            }
        });
        claiming.await.unwrap_or_else(|panic| Err(LedgerError::InDoubt(format!("the claim panicked: {panic}"))))
    }

    /// The same, waiting until there is something, at most so long, and not beyond `stop`.
    pub async fn dequeue_within(
        self: &Arc<Self>,
        asked: &Asked,
        wait: Duration,
        stop: &CancellationToken,
    ) -> Result<Batch, LedgerError> {
        let waiting = async {
            let _counted = self.metrics.remote.waiting();
            let place = self.polls.wait_for(&asked.group);
            loop {
                place.rung().await;
                let batch = self.dequeue(asked).await?;
                if batch.items.len() == asked.most {
                    // There may be more than this one takes.
                    self.ring(&asked.group);
                }
                if !batch.items.is_empty() {
                    return Ok(batch);
                }
            }
        };
        tokio::select! {
            batch = waiting => batch,
            () = tokio::time::sleep(wait) => Ok(self.nothing()),
            () = stop.cancelled() => Ok(self.nothing()),
        }
    }

    /// Something may have become ready in `group`.
    pub fn ring(&self, group: &str) {
        self.polls.ring(group);
    }

    /// Looks, for as long as anybody waits, whether something has become ready. Runs until it is dropped.
    pub async fn look(&self) {
        loop {
            let groups = self.polls.groups().await;
            let pause = match self.ledger.remote_groups_with_work(&groups).await {
                Ok(found) => {
                    found.iter().for_each(|group| self.ring(group));
                    polls::LOOK
                }
                Err(error) => {
                    self.failed("remote_look", &error);
                    warn!(%error, "remote workers wait, and whether there is work can't be read; trying again");
                    polls::TROUBLE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn nothing(self: &Arc<Self>) -> Batch {
        Batch { remote: self.clone(), items: Vec::new() }
    }

    /// What was taken is seen. What can't be handed out ends or goes back, and nobody's lease waits for that.
    fn begun(self: &Arc<Self>, taken: Taken) -> Batch {
        let batch = Batch { remote: self.clone(), items: taken.handed };
        for Handed { claimed, .. } in &batch.items {
            self.see_begin(claimed);
        }
        self.metrics.remote.items.with_label_values(&["handed_out"]).inc_by(batch.items.len() as u64);
        if !taken.aside.is_empty() || !taken.unreadable.is_empty() {
            let remote = self.clone();
            tokio::spawn(async move { remote.set_right(taken.claimer, &taken.aside, taken.unreadable).await });
        }
        batch
    }

    fn see_begin(&self, claimed: &Claimed) {
        self.metrics.dequeued(Side::Postgres, false, claimed.started_at - claimed.due_at);
        self.observer.dequeued(Dequeue {
            envelope: &claimed.envelope,
            side: Side::Postgres,
            attempt: claimed.fence.attempt,
            rehearsal: false,
            due_at: claimed.due_at,
        });
    }

    /// Puts back what a claim of ours has to hold, and ends what was called off or overslept: again and again while `claimer` holds it,
    /// for afterwards it would count as lost, which it never was.
    async fn set_right(&self, claimer: Uuid, aside: &[Claimed], unreadable: Vec<Finish>) {
        let until = Instant::now() + LEASE;
        let mut ends: Vec<Finish> = aside.iter().filter_map(end_of).chain(unreadable).collect();
        let mut rehearsals = aside.iter().any(|claimed| claimed.rehearsal);
        for pause in pauses() {
            let mut trouble = None;
            if rehearsals {
                let ending: Vec<(Uuid, i32)> = ends.iter().map(|end| (end.id, end.attempt)).collect();
                match self.queue.release_unknown(claimer, &ending).await {
                    Ok(_) => rehearsals = false,
                    Err(error) => trouble = Some(error),
                }
            }
            trouble = self.end_aside(claimer, &mut ends).await.or(trouble);
            let Some(error) = trouble else { break };
            self.failed("remote_aside", &error);
            warn!(%error, "what was cancelled, or waited for too long, can't be ended yet; trying again while it is held");
            if Instant::now() + pause >= until {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        // What comes behind them in their series.
        aside.iter().filter_map(|claimed| claimed.envelope.group.as_deref()).for_each(|group| self.ring(group));
    }

    /// Ends them together, and one by one where somebody is in the way of one of them; leaves those that did not end, with the reason.
    async fn end_aside(&self, claimer: Uuid, ends: &mut Vec<Finish>) -> Option<LedgerError> {
        if ends.is_empty() {
            return None;
        }
        let error = match self.queue.finish(claimer, ends).await {
            Ok(kept) => {
                ends.drain(..).filter(|end| kept.contains(&end.id)).for_each(|end| self.metrics.ended(false, &end));
                return None;
            }
            Err(error) if crate::ledger::is_outage(&error) && !is_contention(&error) => return Some(error),
            Err(error) => error,
        };
        let (mut untried, mut held) = (std::mem::take(ends).into_iter(), Vec::new());
        while held.len() < HELD
            && let Some(end) = untried.next()
        {
            match self.queue.finish(claimer, std::slice::from_ref(&end)).await {
                Ok(kept) => kept.iter().for_each(|_| self.metrics.ended(false, &end)),
                Err(_) => held.push(end),
            }
        }
        // Those that were not tried yet come first the next time.
        ends.extend(untried.chain(held));
        if ends.is_empty() { None } else { Some(error) }
    }

    /// Puts back what a claim may have taken whose answer was lost: it was given to nobody. It may still be on its way, so it is looked
    /// for again and again, as long as a lease may last.
    async fn undo(&self, claimer: Uuid, asked: &Asked) {
        let until = Instant::now() + asked.lease.min(DOUBT);
        for pause in pauses() {
            let back = async {
                let aside = self.queue.release_unknown(claimer, &[]).await?;
                Ok::<_, LedgerError>(aside.cast_signed() + self.ledger.take_claim_from_remote(claimer).await?)
            };
            match back.await {
                Ok(0) => {}
                Ok(back) => {
                    info!(back, "put back what a claim took whose answer was lost");
                    self.metrics.remote.items.with_label_values(&["put_back"]).inc_by(back.unsigned_abs());
                    return self.ring(&asked.group);
                }
                Err(error) => {
                    self.failed("remote_put_back", &error);
                    warn!(%error, "what a claim took whose answer was lost can't be put back yet; trying again");
                }
            }
            if Instant::now() + pause >= until {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn failed(&self, call: &'static str, error: &LedgerError) {
        self.metrics.queue_errors.with_label_values(&[call]).inc();
        if crate::ledger::is_outage(error) {
            self.observer.disturbed(Side::Postgres, "the queue's storage does not answer");
        }
    }

    /// Until it is taken, or their leases are over anyway.
    async fn put_back(&self, items: Vec<Handed>) {
        let attempts: Vec<Attempted> = items.iter().map(Handed::attempted).collect();
        let until = Instant::now() + items.iter().map(|item| item.lease).max().unwrap_or_default();
        let mut pauses = pauses();
        let back = loop {
            match self.ledger.take_from_remote(&attempts).await {
                Ok(back) => break Ok(back),
                Err(error) => match pauses.next().filter(|pause| Instant::now() + *pause < until) {
                    Some(pause) => {
                        self.failed("remote_put_back", &error);
                        tokio::time::sleep(pause).await;
                    }
                    None => break Err(error),
                },
            }
        };
        match back {
            Ok(back) => {
                info!(back, "a remote worker went away before it was answered; its work is ready again");
                self.metrics.remote.items.with_label_values(&["put_back"]).inc_by(back.unsigned_abs());
                for (id, fence) in attempts {
                    let what = Seen::Released;
                    let at = Utc::now();
                    self.observer.see(Sighting { id, side: Side::Postgres, fence, rehearsal: false, at, what });
                }
                items
                    .iter()
                    .filter_map(|item| item.claimed.envelope.group.as_deref())
                    .for_each(|group| self.ring(group));
            }
            Err(error) => {
                self.failed("remote_put_back", &error);
                warn!(%error, "what a remote worker did not wait for can't be put back; it is lost to it when its lease ends");
            }
        }
    }
}

/// Between tries: a quarter of a second, then longer each time, up to five seconds.
fn pauses() -> impl Iterator<Item = Duration> {
    (0u32..).map(|n| Duration::from_millis(250) * 2u32.pow(n.min(5))).map(|pause| pause.min(Duration::from_secs(5)))
}

/// How an attempt ends that can't be handed out; none for a rehearsal.
fn end_of(claimed: &Claimed) -> Option<Finish> {
    if claimed.rehearsal {
        return None;
    }
    if let Some(wish) = &claimed.called_off {
        return Some(called_off(claimed, Some(wish)));
    }
    overslept(claimed).then(|| {
        let error = Some("was due for longer than its start_timeout_ms before it could start".to_owned());
        Finish { error, ..Finish::of(claimed, Some(Outcome::Expired)) }
    })
}

impl Handed {
    /// Which attempt it is.
    pub fn attempted(&self) -> Attempted {
        (self.claimed.envelope.id, self.claimed.fence)
    }
}

impl Batch {
    /// What it would hand out.
    pub fn items(&self) -> &[Handed] {
        &self.items
    }

    /// From now on the worker may have seen it.
    pub fn sent(mut self) {
        self.items.clear();
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let items = std::mem::take(&mut self.items);
        if items.is_empty() {
            return;
        }
        // Without a runtime the process is over, and the leases decide.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let remote = self.remote.clone();
            runtime.spawn(async move { remote.put_back(items).await });
        }
    }
}
