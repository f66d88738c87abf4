//! A flip by command: plan it on the flags as they are, say what it means, write down who wants it, change the flags where
//! they live, and wait until every live router decides as asked.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use super::SILENT_AFTER;
use super::storage::{FlipStore, NewFlip, RouterRow, Standing};
use crate::config::{self, FlagSource};
use crate::flags::edit::{Change, Known, Plan, Refusal, Wish};
use crate::flags::unleash;
use crate::flags::unleash::admin::{Admin, AdminError, Stored};
use crate::flags::{Document, FileError, FlagsFile};
use crate::interaction::Stage;
use crate::ledger::LedgerError;

/// An edit by others in between is planned around so often.
const TRIES: u32 = 10;
/// A change of flags that takes longer has failed.
const WRITING: Duration = Duration::from_secs(60);
/// So long at most is waited for Postgres to take a flip down; the flags are changed without it, too.
const TAKING_DOWN: Duration = Duration::from_secs(2);
/// How often the registry is asked who has acknowledged.
const LOOK: Duration = Duration::from_millis(20);

/// Where the flags live.
#[derive(Debug, Clone)]
pub enum Place {
    /// A file on this machine.
    File(PathBuf),
    /// Unleash: its admin API, and the settings by which routers follow it.
    Unleash(Box<(Admin, unleash::Settings)>),
}

/// A plan, and the flags that it was made for.
#[derive(Debug)]
pub struct Flip {
    /// What is asked for.
    pub wish: Wish,
    /// What has to change.
    pub plan: Plan,
    before: Before,
}

#[derive(Debug)]
enum Before {
    File(Document),
    Unleash(Stored),
}

impl Before {
    fn document(&self) -> &Document {
        match self {
            Before::File(document) => document,
            Before::Unleash(stored) => &stored.document,
        }
    }
}

impl Flip {
    /// What an operator has to know of the flags before.
    pub fn notes(&self) -> Vec<String> {
        match &self.before {
            Before::File(_) => Vec::new(),
            Before::Unleash(stored) => stored.notes(),
        }
    }
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
    /// Unleash did not do it.
    #[error(transparent)]
    Unleash(#[from] AdminError),
    /// Others change the same flags all the time.
    #[error("the flags were changed by others each of {TRIES} times in between; repeat the command")]
    Crowded,
    /// The stage is no longer what was shown.
    #[error(
        "{wish} was in {shown} and is in {now} since somebody changed the flags; nothing was changed, repeat the command"
    )]
    Moved {
        /// What was asked for.
        wish: Wish,
        /// The stage that the operator agreed to leave.
        shown: Stage,
        /// The stage now.
        now: Stage,
    },
    /// It would be another change than the one that was shown.
    #[error(
        "the flags were changed by somebody since this was shown, and {wish} needs other changes now ({}); nothing was \
         changed, look at them with `crossover preview` and repeat the command",
        if .changes.is_empty() { "none".to_owned() } else { .changes.join("; ") }
    )]
    Replanned {
        /// What was asked for.
        wish: Wish,
        /// What it needs now.
        changes: Vec<String>,
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
    /// The flags as they are called since, where that is known.
    pub revision: Option<String>,
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
    /// Where the configuration says.
    pub fn of(config: &config::Flags) -> Result<Self, AdminError> {
        Ok(match config.source {
            FlagSource::File => Self::File(config.file.clone()),
            FlagSource::Unleash => {
                let settings = unleash::Settings::of(config).map_err(AdminError::Setting)?;
                Self::Unleash(Box::new((Admin::new(config)?, settings)))
            }
        })
    }

    /// What has to change for `wish`; `known` are accounts and kinds that must not be touched by it.
    pub async fn plan(&self, wish: &Wish, known: &Known) -> Result<Flip, FlipError> {
        match self {
            Place::File(path) => {
                let (path, wish, known) = (path.clone(), wish.clone(), known.clone());
                tokio::task::spawn_blocking(move || {
                    let before = FlagsFile::at(&path)?.read()?;
                    let plan = before.plan(&wish, &known)?;
                    Ok(Flip { wish, plan, before: Before::File(before) })
                })
                .await?
            }
            Place::Unleash(unleash) => {
                let stored = unleash.0.read().await?;
                let plan = stored.document.plan_on_server(wish, known)?;
                stored.allows(&wish.account, &plan.changes)?;
                Ok(Flip { wish: wish.clone(), plan, before: Before::Unleash(stored) })
            }
        }
    }

    /// Makes the changes in their order. It may end before the last: then the flags are not those that it was planned for.
    async fn write(&self, flip: Flip, known: &Known) -> Result<(), FlipError> {
        match (self, flip.before) {
            (Place::File(path), Before::File(before)) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || {
                    match FlagsFile::at(&path)?.replace(&before, &flip.plan.after) {
                        // The next plan is made for what stands there now.
                        Err(FileError::Changed(_)) => Ok(()),
                        other => other.map_err(FlipError::from),
                    }
                })
                .await?
            }
            (Place::Unleash(unleash), Before::Unleash(stored)) => {
                for change in &flip.plan.changes {
                    // Unleash can't be told to enable a flag only if it still is what was read.
                    let enables = matches!(change, Change::Enable { .. });
                    if enables && self.plan(&flip.wish, known).await?.plan.changes.first() != Some(change) {
                        break;
                    }
                    if !unleash.0.apply(&stored, change).await? {
                        break;
                    }
                }
                Ok(())
            }
            // A flip is carried out where it was planned.
            _ => Err(FlipError::Crowded),
        }
    }

    /// What the change will be called: of a file its text says it, Unleash numbers its revisions itself.
    fn revision_of(&self, plan: &Plan) -> Option<String> {
        match self {
            Place::File(_) => Some(plan.after.revision().to_owned()),
            Place::Unleash(_) => None,
        }
    }

    async fn revision_now(&self, plan: &Plan) -> Option<String> {
        match self {
            Place::File(_) => self.revision_of(plan),
            Place::Unleash(unleash) => unleash::look(&unleash.1).await.ok().map(|flags| flags.revision().to_owned()),
        }
    }
}

/// Carries a planned flip out: writes down who wants it and why, where Postgres can be reached, changes the flags, and
/// reads them again. Repeating it is harmless, and finishes what a crash left half done. What was planned may have been
/// looked at for long: it is planned again, and refused if that comes to something else.
pub async fn flip(
    place: &Place,
    store: Option<&FlipStore>,
    shown: Flip,
    known: &Known,
    (who, why): (&str, Option<&str>),
    within: Duration,
) -> Result<Flipped, FlipError> {
    let Flip { wish, plan: agreed, .. } = shown;
    let mut flip = place.plan(&wish, known).await?;
    // Somebody else wanted the same, and was first.
    let there = flip.plan.from == wish.stage && flip.plan.changes.is_empty();
    if flip.plan.from != agreed.from && !there {
        return Err(FlipError::Moved { wish, shown: agreed.from, now: flip.plan.from });
    }
    if !there && !agreed.covers(&flip.plan, &wish.account) {
        return Err(FlipError::Replanned {
            wish,
            changes: flip.plan.changes.iter().map(ToString::to_string).collect(),
        });
    }
    let shown = agreed.from;
    let mut asked = None;
    for n in 0..=TRIES {
        // Each writes what it plans down; of a file only the last comes true, which has its name.
        // Where Postgres is away it isn't waited for again.
        let again = !flip.plan.changes.is_empty() && place.revision_of(&flip.plan).is_some();
        if let Some(store) = store.filter(|_| n == 0 || again && matches!(asked, Some(Ok(_)))) {
            let taken = tokio::time::timeout(TAKING_DOWN, ask(place, store, &flip, (who, why), within)).await;
            let late = |_| Err(LedgerError::InDoubt(format!("no answer within {TAKING_DOWN:?}")));
            asked = Some(taken.unwrap_or_else(late));
        }
        if flip.plan.changes.is_empty() {
            let revision = place.revision_now(&flip.plan).await;
            let (id, unrecorded) = match asked {
                Some(Ok(id)) => (Some(id), None),
                Some(Err(error)) => (None, Some(error)),
                None => (None, None),
            };
            return Ok(Flipped { id, revision, unrecorded });
        }
        if n < TRIES {
            place.write(flip, known).await?;
            flip = place.plan(&wish, known).await?;
            // Own changes lead from the stage that was shown to the one that was asked for.
            if !(shown.min(wish.stage)..=shown.max(wish.stage)).contains(&flip.plan.from) {
                return Err(FlipError::Moved { wish, shown, now: flip.plan.from });
            }
        }
    }
    Err(FlipError::Crowded)
}

/// Before the change, so that the first router to see it knows whose it is.
async fn ask(
    place: &Place,
    store: &FlipStore,
    flip: &Flip,
    (who, why): (&str, Option<&str>),
    within: Duration,
) -> Result<Uuid, LedgerError> {
    let (wish, before) = (&flip.wish, flip.before.document());
    // What no router has decided for yet would change without a decision.
    let whole = (String::new(), before.stage(&wish.account, ""));
    let of_its_own = |(_, stage): &&(String, Stage)| wish.kind.is_some() || *stage != whole.1;
    let standing = |(kind, stage): &(String, Stage)| Standing {
        account: wish.account.clone(),
        kind: kind.clone(),
        stage: *stage,
        override_id: None,
        revision: before.revision().to_owned(),
    };
    let standings: Vec<_> =
        [&whole].into_iter().chain(flip.plan.kinds.iter().filter(of_its_own)).map(standing).collect();
    store.know(&standings).await?;
    let new = NewFlip {
        account: wish.account.clone(),
        kind: wish.kind.clone(),
        from: flip.plan.from,
        kinds: flip.plan.kinds.clone(),
        to: wish.stage,
        revision: place.revision_of(&flip.plan),
        who: who.to_owned(),
        why: why.map(str::to_owned),
        // The change itself takes time, too.
        within: within + WRITING,
    };
    store.ask(&new).await
}

/// Waits until every live router has acknowledged `flip`, at most for `patience`. A silent one is not waited for.
pub async fn await_routers(store: &FlipStore, flip: Uuid, patience: Duration) -> Result<Waiting, LedgerError> {
    await_that(store, Some(flip), |router| router.acknowledged_ms.is_some(), patience).await
}

/// Waits until every live router goes by the override `id`, at most for `patience`.
pub async fn await_begin(store: &FlipStore, id: i64, patience: Duration) -> Result<Waiting, LedgerError> {
    await_that(store, None, |router| router.overrides.contains(&id), patience).await
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
                // A process that decides nothing has nothing to see.
                let routers = routers.into_iter().filter(RouterRow::decides);
                let routers: Vec<_> = routers.map(|router| state(router, &seen)).collect();
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
