//! Handing over to Temporal what Postgres owns and never claimed: in batches, each of which is one transaction, so that a
//! crash between two of them leaves nothing half done and asking again goes on where it ended.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::Router;
use crate::interaction::Side;
use crate::ledger::{Candidates, Ledger, LedgerError, Scope, transient};

/// Interactions a transaction. It holds the rows of their series, and enqueues of those wait for it.
const BATCH: usize = 200;
/// Interactions a look.
const LOOK: i64 = 20_000;
/// What another transaction has is asked for again so often.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);
/// The same for a caller who waits for an answer.
const TRIES_OF_A_CALLER: u32 = 10;

/// Why a handover can't be, or ended in the middle.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Nothing was ever recorded of the account.
    #[error("account `{0}` was never seen; `crossover status` lists the accounts")]
    Unknown(String),
    /// Postgres owns nothing of it.
    #[error(
        "account `{0}` is not armed, so Postgres owns none of its work and there is nothing to hand over; \
         `crossover status` says what it waits for"
    )]
    Unarmed(String),
    /// Postgres failed.
    #[error("{error}; {moved} interactions were handed over before that, each whole: repeat the command to go on")]
    Ledger {
        /// How much was done.
        moved: u64,
        /// What Postgres said.
        error: LedgerError,
    },
}

impl From<LedgerError> for HandoverError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger { moved: 0, error }
    }
}

/// What a handover would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// What it is about.
    #[serde(flatten)]
    pub scope: Scope,
    /// How many interactions would move.
    pub moves: i64,
    /// How many would stay.
    pub stays: i64,
    /// Both, by kind.
    pub work: Vec<Candidates>,
}

/// What a handover did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Done {
    /// Its number in `crossover.handovers`.
    pub handover: i64,
    /// How many it moved.
    pub moved: u64,
    /// How many were no longer as the plan saw them, by why: claimed, ended, cancelled, conflict, temporal (somebody else
    /// handed them over), busy (another transaction would not let go of them).
    pub left: BTreeMap<String, u64>,
}

impl Done {
    /// How many were to move and are still Postgres'.
    pub fn stayed(&self) -> u64 {
        self.left.iter().filter(|(why, _)| !matches!(why.as_str(), "temporal" | "ended")).map(|(_, count)| count).sum()
    }
}

/// What came of asking for one interaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handing {
    /// It has moved.
    Moved,
    /// Temporal owns it, by an earlier handover or from the start.
    Temporal,
    /// It stays, by why: an answer of `crossover.hand_over`.
    Stays(String),
    /// Nothing is recorded of it.
    Unpinned,
}

impl Router {
    /// Hands `id` over to Temporal, if it may be. Repeating it moves nothing twice.
    pub async fn hand_over(&self, id: Uuid, who: &str) -> Result<Handing, LedgerError> {
        let late = |_| Err(LedgerError::InDoubt(format!("no answer within {:?}", self.options.pin_timeout)));
        let asked = tokio::time::timeout(self.options.pin_timeout, one(&self.ledger, id, who)).await;
        let answer = asked.unwrap_or_else(late)?;
        if answer == Handing::Moved {
            self.wake_relay.notify_one();
        }
        Ok(answer)
    }
}

async fn one(ledger: &Ledger, id: Uuid, who: &str) -> Result<Handing, LedgerError> {
    let Some(story) = ledger.story(id).await? else { return Ok(Handing::Unpinned) };
    // What needs no lock to be known leaves no entry among the handovers.
    match story.pin {
        pin if pin.ended_at.is_some() => return Ok(Handing::Stays("ended".to_owned())),
        pin if pin.owner == Side::Temporal => return Ok(Handing::Temporal),
        _ => {}
    }
    let account = story.account;
    let scope = Scope { account: account.clone(), kind: None, id: Some(id) };
    let (handover, _) = ledger.begin_handover(&scope, who).await?;
    let mut answer = "busy".to_owned();
    for tries in 0..TRIES_OF_A_CALLER {
        if tries > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let answers = batch_of(ledger, handover, &account, &[id]).await?;
        answer = answers.into_iter().next().map_or_else(|| "busy".to_owned(), |one| one.answer);
        if answer != "busy" {
            break;
        }
    }
    let moved = matches!(answer.as_str(), "moved" | "temporal");
    ledger.end_handover(handover, i64::from(!moved)).await?;
    Ok(match answer.as_str() {
        "moved" => Handing::Moved,
        "temporal" => Handing::Temporal,
        _ => Handing::Stays(answer),
    })
}

/// What a handover of `scope` would move, and what it would leave where it is.
pub async fn plan(ledger: &Ledger, scope: Scope) -> Result<Plan, HandoverError> {
    match ledger.account(&scope.account).await? {
        None => return Err(HandoverError::Unknown(scope.account)),
        Some(marks) if marks.armed_at.is_none() => return Err(HandoverError::Unarmed(scope.account)),
        Some(_) => {}
    }
    let work = ledger.handover_candidates(&scope).await?;
    let sum = |moves: bool| work.iter().filter(|w| (w.what == "moves") == moves).map(|w| w.interactions).sum();
    Ok(Plan { moves: sum(true), stays: sum(false), work, scope })
}

/// Moves what the plan says, as far as it is still so; `progress` hears how much has moved.
pub async fn run(
    ledger: &Ledger,
    plan: &Plan,
    who: &str,
    mut progress: impl FnMut(u64),
) -> Result<Done, HandoverError> {
    let (handover, until) = ledger.begin_handover(&plan.scope, who).await?;
    let mut done = Done { handover, ..Done::default() };
    let mut left = BTreeMap::new();
    let moving = rounds(ledger, &plan.scope, until, &mut done, &mut left, &mut progress).await;
    moving.map_err(|error| HandoverError::Ledger { moved: done.moved, error })?;
    for answer in left.into_values() {
        *done.left.entry(answer).or_default() += 1;
    }
    let refused = plan.stays + done.stayed() as i64;
    ledger.end_handover(handover, refused).await.map_err(|error| HandoverError::Ledger { moved: done.moved, error })?;
    Ok(done)
}

/// Why something stays where it is, to be put after its name.
pub fn stays(answer: &str) -> &str {
    match answer {
        "claimed" => "was begun, so its effect may have happened: it ends on Postgres, or is cancelled",
        "cancelled" => "is being cancelled",
        "conflict" => "is held: Temporal has other work under its key",
        "waits" => {
            "waits for other work (`after`), which Temporal's copy can't: it runs on Postgres once that has ended, or is released or cancelled"
        }
        "exclusive" => {
            "excludes others (`exclusive`), which Temporal's copy can't: it runs on Postgres when it has its turn, or is cancelled"
        }
        "ended" => "has ended",
        "unarmed" => "belongs to an account that is not armed",
        "busy" => "is in the hands of another transaction, which would not let go of it: ask again",
        other => other,
    }
}

async fn rounds(
    ledger: &Ledger,
    scope: &Scope,
    until: DateTime<Utc>,
    done: &mut Done,
    left: &mut BTreeMap<Uuid, String>,
    progress: &mut impl FnMut(u64),
) -> Result<(), LedgerError> {
    let mut tries = 0;
    loop {
        let ids = ledger.to_hand_over(scope, until, LOOK).await?;
        if ids.is_empty() {
            return Ok(());
        }
        let before = done.moved;
        for batch in ids.chunks(BATCH) {
            for one in batch_of(ledger, done.handover, &scope.account, batch).await? {
                match one.answer.as_str() {
                    "moved" => {
                        done.moved += 1;
                        left.remove(&one.id);
                    }
                    _ => _ = left.insert(one.id, one.answer),
                }
            }
            progress(done.moved);
        }
        tries = if done.moved > before { 0 } else { tries + 1 };
        if tries > TRIES {
            return Ok(());
        }
        if tries > 0 {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// One batch. That which lost a deadlock or waited for a lock too long was rolled back, and is tried again.
async fn batch_of(
    ledger: &Ledger,
    handover: i64,
    account: &str,
    ids: &[Uuid],
) -> Result<Vec<crate::ledger::HandedOver>, LedgerError> {
    let mut tries = 0;
    loop {
        match ledger.hand_over(handover, account, ids).await {
            Err(LedgerError::Refused(error)) if transient(&error) && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}
