//! The Temporal half of arming: what an account has open here without a pin gets one, with owner Temporal.
//!
//! **What makes a pass complete.** Temporal's lists lag behind its workflows. So a workflow is started as a marker, and a
//! pass counts only if it began a while (`lag`) after the marker was first listed, and found nothing without a pin. That is no
//! proof: Temporal's shards lag each for itself, and only one of them has the marker. It need not be one. A copy that a pass
//! overlooked asks its pin before it begins, because its account must ask from the state `closing` on (see [`super::ask`]):
//! it makes its own pin then, or finds that its key is Postgres's and never runs. Passes exist so that such copies are
//! exceptions: a repeat of their key finds a pin, their series waits for them, `why` knows them.
//!
//! **Why the order of a series stays right.** Members that are pinned here take the numbers after those already taken, though
//! their turn on Temporal comes before or between them. Until the account is armed all of them are Temporal's, and for Temporal
//! the order of its own workflow counts; a member that Postgres owns is pinned later, gets a later number, and waits
//! for all of them.
//!
//! **Signals that arrive meanwhile.** A series is asked by an update. A worker applies the signals that came before it
//! first, so the answer has them; an unpinned signal that came after it asks its pin like any other copy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Notify;
use uuid::Uuid;

use super::client::TemporalClient;
use super::deliver::DeliverError;
use super::listing::{Open, What};
use super::series::Adopt;
use crate::arming::{self, Reconcile, Reconciled};
use crate::executor::clean;
use crate::interaction::Envelope;
use crate::ledger::{Answered, Ledger, LedgerError, Pass, Question, Reconciliation, Verdict};
use crate::metrics::Metrics;

/// Copies and series that are seen to at once.
const AT_ONCE: usize = 8;
/// A step ends with the page during which so much time has passed; the next one goes on there.
const STEP: Duration = Duration::from_secs(3);
/// A pass looks at most at so many pages, which is a million workflows.
const PAGES: usize = 1_000;
/// A series is asked so often in a pass; what it still has is the next pass's.
const ROUNDS: usize = 100;
/// Passes that are broken off at once. More begin anew.
const BROKEN_OFF: usize = 1_000;

/// Why a step failed. The next one begins the pass anew; what has a pin keeps it.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Postgres did not do what it was asked.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Temporal didn't.
    #[error("Temporal can't tell what is open of this account: {0}")]
    Temporal(#[from] DeliverError),
    /// There is too much.
    #[error(
        "more than {PAGES} pages of workflows are open that carry no {0}: this is more than can be looked through; add the search attribute and wait until most of them have ended"
    )]
    TooMany(String),
    /// A later arming of the account has begun its own.
    #[error("a later reconciliation of this account has begun")]
    Superseded,
}

/// Reconciles accounts.
pub struct Reconciler {
    client: TemporalClient,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    lag: Duration,
    wake_relay: Arc<Notify>,
    broken_off: Mutex<HashMap<(String, i64), Cursor>>,
}

#[async_trait]
impl Reconcile for Reconciler {
    async fn reconcile(&self, account: &str, generation: i64) -> Result<Reconciled, arming::ReconcileError> {
        match self.step(account, generation).await {
            Ok(row) if row.done_at.is_some() => Ok(Reconciled::Done),
            Ok(row) => Ok(Reconciled::Left(row.unpinned.unsigned_abs())),
            Err(error) => Err(arming::ReconcileError(error.to_string())),
        }
    }
}

/// Where a pass stands.
#[derive(Debug)]
struct Cursor {
    /// The marker had been listed for long enough when it began.
    settled: bool,
    /// What is still to be listed, the next one last.
    conditions: Vec<String>,
    token: Vec<u8>,
    pages: usize,
    sum: Pass,
}

impl Reconciler {
    /// A reconciler that lists and asks by `client`. For as long as `lag` after a marker was listed, Temporal's lists may still
    /// lack something. `wake_relay` is rung when copies are to be told of their pins.
    pub fn new(
        client: TemporalClient,
        ledger: Ledger,
        metrics: Arc<Metrics>,
        lag: Duration,
        wake_relay: Arc<Notify>,
    ) -> Self {
        Self { client, ledger, metrics, lag, wake_relay, broken_off: Mutex::default() }
    }

    /// One step of some seconds, for the arming `generation` of `account`: a pass, or a part of a long one. All is done when the
    /// answer says `done_at`. It may be dropped at any time, and be repeated when it was done.
    pub async fn step(&self, account: &str, generation: i64) -> Result<Reconciliation, ReconcileError> {
        let begun = self.ledger.begin_reconciliation(account, generation).await?;
        let begun = begun.ok_or(ReconcileError::Superseded)?;
        if begun.done_at.is_some() {
            return Ok(begun);
        }
        let passed = match self.pass(&begun).await {
            Ok(Some(row)) => Ok(row),
            Ok(None) => return Ok(begun),
            Err(error) => Err(error),
        };
        let outcome = match &passed {
            Ok(row) if row.done_at.is_some() => "done",
            Ok(_) => "again",
            Err(_) => "failed",
        };
        self.metrics.reconciliation.passes.with_label_values(&[outcome]).inc();
        if let Err(error) = &passed {
            // It is the caller's to say; this is for the status only.
            let _ = self.ledger.reconciliation_failed(account, generation, &clean(&error.to_string())).await;
        }
        passed
    }

    /// A pass. None: only a part of one, or none is worth while yet.
    async fn pass(&self, begun: &Reconciliation) -> Result<Option<Reconciliation>, ReconcileError> {
        let (account, generation) = (begun.account.as_str(), begun.generation);
        let (key, began) = ((account.to_owned(), generation), Instant::now());
        let left = self.broken_off().remove(&key);
        let mut cursor = match left {
            Some(cursor) => cursor,
            None => match self.begin(begun).await? {
                Some(cursor) => cursor,
                None => return Ok(None),
            },
        };
        while let Some(condition) = cursor.conditions.last() {
            if cursor.pages >= PAGES {
                return Err(ReconcileError::TooMany(self.client.attribute().to_owned()));
            }
            let (open, next) = self.client.open(condition, std::mem::take(&mut cursor.token)).await?;
            let page = self.page(account, &format!("reconciled:{generation}"), open).await?;
            cursor.sum = sum(cursor.sum, page);
            cursor.pages += 1;
            cursor.token = next;
            if cursor.token.is_empty() {
                cursor.conditions.pop();
            }
            if !cursor.conditions.is_empty() && began.elapsed() > STEP {
                let mut broken_off = self.broken_off();
                if broken_off.len() >= BROKEN_OFF {
                    broken_off.clear();
                }
                broken_off.insert(key, cursor);
                return Ok(None);
            }
        }
        self.end(account, generation, &cursor).await.map(Some)
    }

    /// Begins a pass. The marker is looked for first: what counts is a pass that begins after it. Where the pass before found
    /// nothing, the next one waits for that: each asks every series.
    async fn begin(&self, begun: &Reconciliation) -> Result<Option<Cursor>, ReconcileError> {
        let (account, generation) = (begun.account.as_str(), begun.generation);
        self.client.mark(account, generation).await?;
        let marked = self.client.is_marked(account, generation).await?;
        let settled = marked && self.ledger.marker_listed(account, generation, self.lag).await?;
        if !settled && begun.passes > 0 && begun.unpinned == 0 {
            return Ok(None);
        }
        let mut conditions = self.client.conditions(account).await?;
        conditions.reverse();
        Ok(Some(Cursor { settled, conditions, token: Vec::new(), pages: 0, sum: Pass::default() }))
    }

    async fn end(&self, account: &str, generation: i64, cursor: &Cursor) -> Result<Reconciliation, ReconcileError> {
        let (pass, last) = (cursor.sum, cursor.settled && cursor.sum.unpinned == 0);
        let row = self.ledger.reconciled(account, generation, &pass, last).await?.ok_or(ReconcileError::Superseded)?;
        tracing::info!(account, generation, ?pass, last, "open workflows were looked at for copies without a pin");
        if last && let Err(error) = self.client.unmark(account, generation).await {
            tracing::info!(account, %error, "a marker stays; it ends by itself within an hour");
        }
        Ok(row)
    }

    fn broken_off(&self) -> std::sync::MutexGuard<'_, HashMap<(String, i64), Cursor>> {
        self.broken_off.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn page(&self, account: &str, revision: &str, open: Vec<Open>) -> Result<Pass, ReconcileError> {
        let ours: Vec<Open> = open
            .into_iter()
            .filter(|open| match &open.what {
                What::Copy(memo) => memo.account == account,
                What::Series(about) => about.account == account,
                What::Other => false,
            })
            .collect();
        let listed = ours.len() as i64;
        let copies: Vec<(Uuid, String)> = ours.iter().filter_map(unpinned).collect();
        let pins = self.ledger.pins_of_copies(&copies).await?;
        let refused = pins.iter().filter(|(_, own)| !own).count() as i64;
        let work = ours.into_iter().filter(|open| match unpinned(open) {
            Some((id, _)) => !pins.iter().any(|(pinned, _)| *pinned == id),
            None => matches!(open.what, What::Series(_)),
        });
        let work = stream::iter(work).map(|open| async move {
            match open.what {
                What::Series(_) => self.series(&open, revision).await,
                _ => self.copy(&open, revision).await,
            }
        });
        let seen_to: Vec<Pass> = work.buffer_unordered(AT_ONCE).try_collect().await?;
        let page = seen_to.into_iter().fold(Pass { listed, refused, ..Pass::default() }, sum);
        self.metrics.reconciliation.pinned.inc_by(page.pinned.unsigned_abs());
        if page.pinned > 0 {
            self.wake_relay.notify_one();
        }
        Ok(page)
    }

    /// A copy in a workflow of its own. The relay tells it of its pin: it settles its end there, or has ended meanwhile, and
    /// then the relay puts that end into the pin.
    async fn copy(&self, open: &Open, revision: &str) -> Result<Pass, ReconcileError> {
        let Some(copy) = self.client.copy_of(open).await? else { return Ok(Pass::default()) };
        let question = Question { run_at: open.started_at, ..question(&copy.envelope, revision) };
        let answer = self.ledger.ask_pin(question).await?;
        Ok(told(&copy.envelope, &answer))
    }

    /// A series. Each round tells it which of the members that it named have a pin now, and gets the next ones. The rows in
    /// the outbox are for a crash between the two: they tell it the same.
    async fn series(&self, open: &Open, revision: &str) -> Result<Pass, ReconcileError> {
        let (mut pass, mut adopt) = (Pass::default(), Adopt::default());
        for _ in 0..ROUNDS {
            // None: it has ended, and all its members before it.
            let Some(answer) = self.client.reconcile_series(open, adopt.clone()).await? else { return Ok(pass) };
            let handed: Vec<_> = adopt.ids.iter().map(|id| (*id, 1)).collect();
            self.ledger.delivered(&handed).await?;
            pass.remembered = answer.remembered as i64;
            adopt.ids.clear();
            if answer.members.is_empty() {
                return Ok(pass);
            }
            // One after another: they get their numbers in this order.
            for envelope in &answer.members {
                let pinned = self.ledger.ask_pin(question(envelope, revision)).await?;
                match pinned.verdict {
                    Verdict::Own => adopt.ids.push(envelope.id),
                    _ => adopt.skip += 1,
                }
                pass = sum(pass, told(envelope, &pinned));
            }
        }
        Ok(pass)
    }
}

fn sum(one: Pass, other: Pass) -> Pass {
    Pass {
        listed: one.listed + other.listed,
        unpinned: one.unpinned + other.unpinned,
        pinned: one.pinned + other.pinned,
        refused: one.refused + other.refused,
        remembered: one.remembered + other.remembered,
    }
}

fn unpinned(open: &Open) -> Option<(Uuid, String)> {
    match &open.what {
        What::Copy(memo) if !memo.pinned => Some((memo.id, memo.payload_hash.clone())),
        _ => None,
    }
}

fn question<'a>(envelope: &'a Envelope, revision: &'a str) -> Question<'a> {
    Question { envelope, run_at: None, revision, insert: true, deliver: true }
}

fn told(envelope: &Envelope, answer: &Answered) -> Pass {
    if answer.verdict != Verdict::Own {
        let why = answer.reason.as_deref().unwrap_or_default();
        let what = match answer.verdict {
            Verdict::Another => "it runs there, and the pin is held",
            _ => "it never runs there",
        };
        tracing::warn!(id = %envelope.id, account = envelope.account, why, "a copy without a pin is open on Temporal whose key is taken; {what}");
        return Pass { refused: 1, ..Pass::default() };
    }
    Pass { unpinned: 1, pinned: i64::from(answer.created), ..Pass::default() }
}

/// The pin of a copy that asks before it begins.
pub(super) async fn ask(ledger: &Ledger, envelope: &Envelope) -> Result<Answered, LedgerError> {
    let insert = !envelope.pinned;
    ledger.ask_pin(Question { envelope, run_at: None, revision: "asked", insert, deliver: false }).await
}
