//! The relay: delivers from the outbox what a crash or an outage left behind, oldest first, in chain order, and no more a
//! second than a Temporal that has just come back can take beside its callers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::stream::{self, StreamExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::deliver::{Deliverer, Settled};
use super::pace::Pace;
use crate::interaction::Side;
use crate::ledger::{Ledger, LedgerError, Undelivered};
use crate::metrics::Metrics;

/// How the relay relays.
#[derive(Debug, Clone, Copy)]
pub struct RelayOptions {
    /// How often it looks when nothing woke it.
    pub poll: Duration,
    /// At most so many copies (or series) at a time.
    pub batch: u32,
    /// At most so many deliveries a second.
    pub rate: u32,
    /// What it has taken is another relay's after so long.
    pub lease: Duration,
}

/// Delivers from the outbox. Several may run: what two of them deliver, Temporal has once.
pub struct Relay {
    ledger: Ledger,
    deliverer: Deliverer,
    metrics: Arc<Metrics>,
    options: RelayOptions,
    pace: Pace,
    wake: Arc<Notify>,
}

/// Deliveries under way at once.
const PARALLEL: usize = 16;
/// Rows that one look goes through, for each copy that it may take: members of a series are parked as they are met.
const SCAN: u32 = 10;
/// Series that one look for parked copies goes through.
const SERIES: i32 = 200;
/// No more is taken than can be delivered in so long.
const AHEAD: Duration = Duration::from_secs(2);
/// A look ends after so long and gives back what has not had its turn, so that nothing is another relay's meanwhile.
const LOOK: Duration = Duration::from_secs(4);

impl Relay {
    /// A relay; `wake` is rung by a router in this process.
    pub fn new(
        ledger: Ledger,
        deliverer: Deliverer,
        metrics: Arc<Metrics>,
        options: RelayOptions,
        wake: Arc<Notify>,
    ) -> Self {
        Self { ledger, deliverer, metrics, options, pace: Pace::new(options.rate), wake }
    }

    /// Relays until `stop`; what is under way is finished first. While Temporal is away it waits for the circuit's probe
    /// and takes nothing.
    pub async fn run(self, stop: CancellationToken) {
        info!("the relay works");
        let (mut wait, mut parked) = (Duration::ZERO, Parked::default());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return info!("the relay has stopped"),
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            if stop.run_until_cancelled(self.deliverer.circuit().closed()).await.is_none() {
                continue;
            }
            wait = match self.pass(&mut parked, &stop).await {
                Ok(true) => Duration::ZERO,
                Ok(false) => self.options.poll,
                Err(error) => {
                    self.metrics.ledger_errors.with_label_values(&["take_undelivered"]).inc();
                    warn!(%error, "the outbox can't be read; trying again");
                    self.options.poll.max(Duration::from_millis(250))
                }
            };
        }
    }

    /// One look at the outbox; whether it is worth another at once.
    async fn pass(&self, parked: &mut Parked, stop: &CancellationToken) -> Result<bool, LedgerError> {
        if parked.looked.is_none_or(|looked| looked.elapsed() >= self.options.poll) {
            (_, parked.after) = self.ledger.unpark(parked.after, SERIES).await?;
            parked.looked = Some(Instant::now());
        }
        let most = self.options.batch.min(self.options.rate.saturating_mul(AHEAD.as_secs() as u32)) as i32;
        let take = self.ledger.take_undelivered(most, most * SCAN as i32, self.options.lease).await?;
        let look = Look {
            most: most.into(),
            until: take.copies.last().filter(|_| take.copies.len() >= most as usize).map(|copy| copy.created_at),
            over: Instant::now() + LOOK,
            stop,
        };
        let chains = stream::iter(take.copies).map(|head| self.chain(head, &look)).buffer_unordered(PARALLEL);
        let done = chains.fold(Done::default(), |sum, done| async { sum.and(done) }).await;
        if let Err(error) = self.give_back(&done.untried).await {
            warn!(%error, "copies that were not tried can't be given back; they are due again when their lease has run out");
        }
        Ok(take.more || done.settled > 0)
    }

    async fn give_back(&self, untried: &[Uuid]) -> Result<(), LedgerError> {
        match untried.is_empty() {
            true => Ok(()),
            false => self.ledger.hand_back(untried).await,
        }
    }

    /// Delivers a copy and, where it heads a series, what follows it, stopping at the first that must wait.
    async fn chain(&self, head: Undelivered, look: &Look<'_>) -> Done {
        let (first, series) = (head.envelope.id, head.series_id);
        let mut done = Done::default();
        let mut delivered = Vec::new();
        let mut next = vec![head];
        while let Some(copy) = next.pop() {
            let (id, epoch) = copy.envelope.copy();
            match self.one(copy, look).await {
                Settled::Away if id == first => {
                    done.untried.push(id);
                    break;
                }
                Settled::Later | Settled::Away => break,
                Settled::Delivered => delivered.push((id, epoch)),
                Settled::Done | Settled::Conflict => {}
            }
            done.settled += 1;
            if let Some(series) = series.filter(|_| done.settled == 1) {
                next = self.rest(series, id, look).await;
            }
        }
        if let Err(error) = self.ledger.delivered(&delivered).await {
            self.metrics.ledger_errors.with_label_values(&["delivered"]).inc();
            warn!(%error, "deliveries can't be recorded; they are repeated");
            done.settled = 0;
        }
        done
    }

    /// What follows `head` in its series, is undelivered and is not too young for this look, last first.
    async fn rest(&self, series: Uuid, head: Uuid, look: &Look<'_>) -> Vec<Undelivered> {
        match self.ledger.undelivered_of_series(series, look.most).await {
            Ok(members) => {
                let after = members.into_iter().filter(|member| member.envelope.id != head);
                let mut old: Vec<_> =
                    after.take_while(|m| look.until.is_none_or(|until| m.created_at <= until)).collect();
                old.reverse();
                old
            }
            Err(error) => {
                warn!(%error, %series, "the rest of a series can't be read; it is delivered later");
                Vec::new()
            }
        }
    }

    async fn one(&self, copy: Undelivered, look: &Look<'_>) -> Settled {
        // Temporal forgets what has ended; the pin does not. Without this look an old row would run it again. Only a
        // rehearsal of what was cancelled is still told, so that it does not wait for its time.
        let rehearsal = !copy.envelope.executes_on(Side::Temporal);
        if copy.ended && !(rehearsal && copy.envelope.cancelled) {
            self.metrics.relayed.with_label_values(&["ended"]).inc();
            self.deliverer.skipped(&copy.envelope, "its pin had ended before it could be delivered");
            return match self.ledger.nothing_left(&[copy.envelope.copy()]).await {
                Ok(()) => Settled::Done,
                Err(_) => Settled::Later,
            };
        }
        let turn = tokio::time::timeout_at(look.over.into(), self.pace.turn());
        if !matches!(look.stop.run_until_cancelled(turn).await, Some(Ok(()))) {
            return Settled::Away;
        }
        let what = if copy.envelope.cancelled { "cancelled" } else { "delivered" };
        let settled = self.deliverer.settle(&self.ledger, &copy.envelope, copy.tries).await;
        if settled != Settled::Away {
            self.metrics.relayed.with_label_values(&[what]).inc();
        }
        settled
    }
}

/// A look at the outbox.
struct Look<'a> {
    /// Copies at a time.
    most: i64,
    /// Where there is more to take, a series must not go on beyond it: what is younger waits for what is older.
    until: Option<DateTime<Utc>>,
    /// What has not had its turn by then is given back.
    over: Instant,
    stop: &'a CancellationToken,
}

/// Where the look for parked copies goes on, and when the last one was.
#[derive(Default)]
struct Parked {
    after: Option<Uuid>,
    looked: Option<Instant>,
}

/// What came of some copies.
#[derive(Default)]
struct Done {
    settled: usize,
    /// Taken, and nothing was tried.
    untried: Vec<Uuid>,
}

impl Done {
    fn and(mut self, other: Done) -> Self {
        self.settled += other.settled;
        self.untried.extend(other.untried);
        self
    }
}
