//! A flip by command: plan it on the flags as they are, say what it means, write down who wants it, change the flags where
//! they live, and wait until every live router decides as asked.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use super::SILENT_AFTER;
use super::storage::{FlipStore, NewFlip, RouterRow};
use crate::flags::edit::{Known, Plan, Refusal, Wish};
use crate::flags::{Document, FileError, FlagsFile};
use crate::ledger::LedgerError;

/// An edit by others in between is planned around so often.
const TRIES: u32 = 5;
/// How often the registry is asked who has acknowledged.
const LOOK: Duration = Duration::from_millis(20);

/// Where the flags live.
#[derive(Debug, Clone)]
pub enum Place {
    /// A file on this machine.
    File(PathBuf),
}

/// A plan, and the flags that it was made for.
#[derive(Debug)]
pub struct Flip {
    /// What is asked for.
    pub wish: Wish,
    /// What has to change.
    pub plan: Plan,
    before: Document,
}

/// Why a flip was not made.
#[derive(Debug, thiserror::Error)]
pub enum FlipError {
    /// The flags can't be changed so.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The file was not changed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The stage is no longer what was shown.
    #[error(
        "{wish} was in {shown} and is in {now} since somebody changed the flags; nothing was changed, repeat the command"
    )]
    Moved {
        /// What was asked for.
        wish: Wish,
        /// The stage that the operator agreed to leave.
        shown: crate::interaction::Stage,
        /// The stage now.
        now: crate::interaction::Stage,
    },
    /// The system.
    #[error("the flags were not changed: {0}")]
    System(#[from] tokio::task::JoinError),
}

/// What a flip came to.
#[derive(Debug)]
pub struct Flipped {
    /// Its id, where Postgres took it down.
    pub id: Option<Uuid>,
    /// The flags as they are called since.
    pub revision: String,
    /// Why Postgres has not taken it down.
    pub unrecorded: Option<LedgerError>,
}

/// How a router stands to a flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterState {
    /// It decides as asked.
    Seen,
    /// It beats, and does not decide as asked yet.
    Late,
    /// It has stopped beating; what it decides by is unknown.
    Silent,
}

/// The routers, and how long it took them.
#[derive(Debug)]
pub struct Waiting {
    /// Each router and how it stands.
    pub routers: Vec<(RouterRow, RouterState)>,
    /// From the start of the wait to its end.
    pub took: Duration,
}

impl Waiting {
    /// Whether every router decides as asked.
    pub fn all_seen(&self) -> bool {
        self.routers.iter().all(|(_, state)| *state == RouterState::Seen)
    }
}

impl Place {
    /// What has to change for `wish`; `known` are accounts and kinds that must not be touched by it.
    pub async fn plan(&self, wish: &Wish, known: &Known) -> Result<Flip, FlipError> {
        let Place::File(path) = self;
        let (path, wish, known) = (path.clone(), wish.clone(), known.clone());
        tokio::task::spawn_blocking(move || {
            let before = FlagsFile::at(&path)?.read()?;
            let plan = before.plan(&wish, &known)?;
            Ok(Flip { wish, plan, before })
        })
        .await?
    }

    /// Makes the change; false: the flags are not those that it was planned for.
    async fn write(&self, flip: Flip) -> Result<(Flip, bool), FlipError> {
        let Place::File(path) = self;
        let path = path.clone();
        tokio::task::spawn_blocking(move || match FlagsFile::at(&path)?.replace(&flip.before, &flip.plan.after) {
            Ok(()) => Ok((flip, true)),
            Err(FileError::Changed(_)) => Ok((flip, false)),
            Err(error) => Err(error.into()),
        })
        .await?
    }
}

/// Carries a planned flip out: writes down who wants it and why, where Postgres can be reached, and changes the flags.
/// Repeating it is harmless, and finishes what a crash left half done.
pub async fn flip(
    place: &Place,
    store: Option<&FlipStore>,
    mut flip: Flip,
    known: &Known,
    (who, why): (&str, Option<&str>),
    within: Duration,
) -> Result<Flipped, FlipError> {
    let shown = flip.plan.from;
    let mut asked = None;
    for _ in 1..=TRIES {
        let revision = flip.plan.after.revision().to_owned();
        asked = match store {
            Some(store) => Some(ask(store, &flip, (who, why), within).await),
            None => None,
        };
        if flip.plan.changes.is_empty() {
            return Ok(flipped(asked, revision));
        }
        let (tried, written) = place.write(flip).await?;
        if written {
            return Ok(flipped(asked, revision));
        }
        flip = place.plan(&tried.wish, known).await?;
        if flip.plan.from != shown {
            return Err(FlipError::Moved { wish: flip.wish, shown, now: flip.plan.from });
        }
    }
    let Place::File(path) = place;
    drop(asked);
    Err(FileError::Changed(path.clone()).into())
}

fn flipped(asked: Option<Result<Uuid, LedgerError>>, revision: String) -> Flipped {
    match asked {
        Some(Ok(id)) => Flipped { id: Some(id), revision, unrecorded: None },
        Some(Err(error)) => Flipped { id: None, revision, unrecorded: Some(error) },
        None => Flipped { id: None, revision, unrecorded: None },
    }
}

/// Before the change, so that the first router to see it knows whose it is.
async fn ask(
    store: &FlipStore,
    flip: &Flip,
    (who, why): (&str, Option<&str>),
    within: Duration,
) -> Result<Uuid, LedgerError> {
    let wish = &flip.wish;
    // An account that no router has decided for yet would change without a decision.
    store.note(&wish.account, None, flip.before.stage(&wish.account, ""), flip.before.revision()).await?;
    if let Some(kind) = &wish.kind {
        store.note(&wish.account, Some(kind), flip.plan.from, flip.before.revision()).await?;
    }
    let new = NewFlip {
        account: wish.account.clone(),
        kind: wish.kind.clone(),
        from: Some(flip.plan.from),
        to: wish.stage,
        revision: Some(flip.plan.after.revision().to_owned()),
        who: who.to_owned(),
        why: why.map(str::to_owned),
        within,
    };
    store.ask(&new).await
}

/// Waits until every live router has acknowledged `flip`, at most for `patience`. A silent one is not waited for.
pub async fn await_routers(store: &FlipStore, flip: Uuid, patience: Duration) -> Result<Waiting, LedgerError> {
    await_that(store, Some(flip), |router| router.acknowledged_ms.is_some(), patience).await
}

/// Waits until no live router goes by the override `id` any more, at most for `patience`.
pub async fn await_end(store: &FlipStore, id: i64, patience: Duration) -> Result<Waiting, LedgerError> {
    await_that(store, None, |router| !router.overrides.contains(&id), patience).await
}

async fn await_that(
    store: &FlipStore,
    flip: Option<Uuid>,
    seen: impl Fn(&RouterRow) -> bool,
    patience: Duration,
) -> Result<Waiting, LedgerError> {
    let since = Instant::now();
    loop {
        let asked = store.routers(flip).await;
        let late = since.elapsed() >= patience;
        match asked {
            Ok(routers) => {
                let routers: Vec<_> = routers.into_iter().map(|router| state(router, &seen)).collect();
                if late || !routers.iter().any(|(_, state)| *state == RouterState::Late) {
                    return Ok(Waiting { routers, took: since.elapsed() });
                }
            }
            Err(error) if late => return Err(error),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn state(router: RouterRow, seen: impl Fn(&RouterRow) -> bool) -> (RouterRow, RouterState) {
    let state = match seen(&router) {
        true => RouterState::Seen,
        false if router.silent_seconds > SILENT_AFTER.as_secs_f64() => RouterState::Silent,
        false => RouterState::Late,
    };
    (router, state)
}
