//! Pins what was started without a pin, once Postgres is back: in the order of its series, as work of Temporal's, due
//! since it was started. Its delivery then finds the workflow and adopts it, or takes over the end that it came to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::deliver::Deliverer;
use super::envelope;
use crate::interaction::{Envelope, Side};
use crate::ledger::{Ledger, LedgerError, PinRequest, Pinned, is_outage};
use crate::metrics::Metrics;
use crate::spool::{Entry, Spool};

/// Empties the spool of a router.
pub struct Drain {
    spool: Arc<Spool>,
    ledger: Ledger,
    deliverer: Deliverer,
    metrics: Arc<Metrics>,
    grace: Duration,
    wake: [Arc<Notify>; 2],
    /// How often Postgres has refused an entry.
    refusals: HashMap<u64, u32>,
}

/// Entries in one look.
const LOOK: usize = 256;
/// Series (or single entries) at once: callers share the connections.
const PARALLEL: usize = 4;
/// How often it looks while Postgres is away, and when nothing rang.
const EVERY: Duration = Duration::from_millis(500);
/// What Postgres refuses so often while it takes others will never be taken.
const REFUSALS: u32 = 20;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// It is out of the spool's way.
    Done,
    /// It stays, and with it what follows in its series.
    Refused,
    /// Postgres is away.
    Away,
}

impl Drain {
    /// Of `spool` into `ledger`; `wake` are rung when there is something to run or to relay.
    pub fn new(
        spool: Arc<Spool>,
        ledger: Ledger,
        deliverer: Deliverer,
        metrics: Arc<Metrics>,
        grace: Duration,
        wake: [Arc<Notify>; 2],
    ) -> Self {
        Self { spool, ledger, deliverer, metrics, grace, wake, refusals: HashMap::new() }
    }

    /// Drains until `stop`. What it does not come to stays on the disk.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let filled = async {
                match self.spool.is_empty() {
                    true => self.spool.filled.notified().await,
                    false => tokio::time::sleep(EVERY.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await,
                }
            };
            if stop.run_until_cancelled(filled).await.is_none() {
                return;
            }
            if stop.run_until_cancelled(self.pass()).await.is_none() {
                return;
            }
        }
    }

    /// Everything that is there, as far as Postgres goes along.
    async fn pass(&mut self) {
        let (mut after, mut drained, mut away) = (0, 0, false);
        while !away {
            let due = self.spool.due(after, LOOK);
            let Some((last, _)) = due.last() else { break };
            after = *last;
            let chains = chains(&due);
            let this = &*self;
            let ends: Vec<_> =
                stream::iter(chains).map(|chain| this.chain(chain)).buffer_unordered(PARALLEL).concat().await;
            drained += ends.iter().filter(|(_, end)| *end == Drained::Done).count();
            away = ends.iter().any(|(_, end)| *end == Drained::Away);
            self.count_refusals(&ends, drained > 0 && !away).await;
        }
        if drained > 0 {
            info!(drained, left = self.spool.len(), "work that was started without a pin is pinned");
            self.wake.iter().for_each(|wake| wake.notify_one());
        }
        if !away {
            self.tell_gaps().await;
        }
    }

    /// The entries of a series in their order, up to the first that stays.
    async fn chain(&self, nos: Vec<u64>) -> Vec<(u64, Drained)> {
        let mut ends = Vec::with_capacity(nos.len());
        for no in nos {
            let end = self.one(no).await;
            ends.push((no, end));
            if end != Drained::Done {
                break;
            }
        }
        ends
    }

    async fn one(&self, no: u64) -> Drained {
        let entry = match self.spool.read(no).await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Drained::Done,
            Err(error) => {
                self.metrics.outage.spool_errors.inc();
                warn!(%error, no, "an entry of the spool can't be read");
                return Drained::Refused;
            }
        };
        // Its key may be forgotten by now, here and on Temporal, and then it would be run once more.
        let age = (chrono::Utc::now() - entry.accepted_at).to_std().unwrap_or_default();
        if age > self.spool.keeps() {
            warn!(id = %entry.id(), ?age, "an entry of the spool is older than window.idempotency; it is not pinned any more");
            return self.give_up(no, "old").await;
        }
        match self.pin(&entry).await {
            Ok(outcome) => self.done(no, outcome).await,
            Err(error) => {
                self.metrics.ledger_errors.with_label_values(&["drain"]).inc();
                warn!(%error, id = %entry.id(), "work that was started without a pin can't be pinned yet");
                if is_outage(&error) { Drained::Away } else { Drained::Refused }
            }
        }
    }

    /// Pins it, and delivers it as its router would: what became of it.
    async fn pin(&self, entry: &Entry) -> Result<&'static str, LedgerError> {
        let interaction = entry.interaction();
        let (stage, revision) = (entry.stage, entry.revision.as_str());
        let request = PinRequest { interaction: &interaction, stage, revision, grace: self.grace };
        let Pinned { pin, created, direct, behind } = self.ledger.pin(request).await?;
        if pin.payload_hash != interaction.payload.hash() || pin.kind != interaction.kind {
            error!(
                id = %pin.id, account = entry.account, key = entry.key,
                "this key is pinned with other work than was started on Temporal without a pin; see docs/runbook/owner-conflict.md"
            );
            return Ok("conflict");
        }
        if created && direct && pin.owner == Side::Temporal {
            let pinned = envelope(&interaction, Some(&pin), pin.owner, pin.epoch);
            self.deliverer.deliver_now(&self.ledger, &Envelope { behind, ..pinned }).await;
        }
        Ok(if created { "pinned" } else { "repeated" })
    }

    async fn done(&self, no: u64, outcome: &str) -> Drained {
        match self.spool.done(vec![no]).await {
            Ok(()) => {
                self.metrics.outage.spool_drained.with_label_values(&[outcome]).inc();
                Drained::Done
            }
            // It is pinned again the next time, and that changes nothing.
            Err(error) => {
                warn!(%error, no, "an entry of the spool is pinned and can't be taken out");
                Drained::Refused
            }
        }
    }

    async fn give_up(&self, no: u64, why: &'static str) -> Drained {
        match self.spool.give_up(no, why).await {
            Ok(()) => Drained::Done,
            Err(error) => {
                warn!(%error, no, "an entry of the spool can't be given up");
                Drained::Refused
            }
        }
    }

    /// One that Postgres refuses again and again must not hold its account for ever, once others get through.
    async fn count_refusals(&mut self, ends: &[(u64, Drained)], others_get_through: bool) {
        for (no, end) in ends {
            match end {
                Drained::Refused => {
                    let count = self.refusals.entry(*no).or_default();
                    *count += 1;
                    if *count >= REFUSALS && (others_get_through || *count >= REFUSALS * 10) {
                        error!(
                            no,
                            "an entry of the spool is refused by Postgres again and again; it is given up, and its account has a gap"
                        );
                        self.refusals.remove(no);
                        self.give_up(*no, "refused").await;
                    }
                }
                Drained::Done => drop(self.refusals.remove(no)),
                Drained::Away => {}
            }
        }
    }

    /// Tells Postgres which accounts have unpinned work for good.
    async fn tell_gaps(&self) {
        for gap in self.spool.gaps() {
            let account = gap.account.clone();
            let told = match self.ledger.unpinned_for_good(account.as_deref()).await {
                Ok(()) => self.spool.told(gap).await.map_err(|error| error.to_string()),
                Err(error) => {
                    self.metrics.ledger_errors.with_label_values(&["unpinned_for_good"]).inc();
                    Err(error.to_string())
                }
            };
            match told {
                Ok(()) => warn!(account, "work of this account will never be pinned; its window starts again"),
                Err(error) => {
                    return warn!(
                        account,
                        error, "Postgres does not know yet that work of this account will never be pinned"
                    );
                }
            }
        }
    }
}

/// Members of a series together, in their order.
fn chains(due: &[(u64, Option<Uuid>)]) -> Vec<Vec<u64>> {
    let mut known: HashMap<Uuid, usize> = HashMap::new();
    let mut chains: Vec<Vec<u64>> = Vec::new();
    for (no, series) in due {
        let at = series.map_or(chains.len(), |series| *known.entry(series).or_insert(chains.len()));
        match chains.get_mut(at) {
            Some(chain) => chain.push(*no),
            None => chains.push(vec![*no]),
        }
    }
    chains
}
