//! Writes down where accounts and kinds stand, and every change of that, beside the router's work and never in its way.
//!
//! An account and kind becomes known by a router's first decision for it. When what routers decide by changes, each router
//! looks through all that is known and writes what is different; the first to write a change wins, the others find it
//! there. Where an override was the change, only overrides are looked for: a router whose flags are behind must not undo
//! what others have written.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::decider::{Decider, View};
use super::storage::{Change, FlipStore, Standing};
use crate::flags::Decision;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;

/// New accounts and kinds are written in such batches, after such a wait for more.
const BATCH: usize = 1_000;
const GATHER: Duration = Duration::from_millis(100);
/// What is known is looked through in such pages.
const PAGE: i64 = 5_000;
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// For which differences all that is known is looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    Nothing,
    /// Overrides that have begun or ended.
    Overrides,
    /// Those, and every other stage.
    All,
}

/// Writes standings and decisions for one router.
pub struct Recorder {
    router: Uuid,
    store: FlipStore,
    decider: Arc<Decider>,
    metrics: Arc<Metrics>,
    news: Receiver<(String, String)>,
}

impl Recorder {
    /// For the router `router`; `news` comes from its decider.
    pub fn new(
        router: Uuid,
        store: FlipStore,
        decider: Arc<Decider>,
        metrics: Arc<Metrics>,
        news: Receiver<(String, String)>,
    ) -> Self {
        Self { router, store, decider, metrics, news }
    }

    /// Records until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut flags, mut overrides) = (self.decider.flags().changed(), self.decider.overrides().changed());
        let mut health = self.decider.flags().health_changed();
        let mut look = Look::Overrides;
        // What changed while no router looked, as soon as the flags are not those of an earlier time.
        let mut first = true;
        let mut waiting: Vec<(String, String)> = Vec::new();
        while !stop.is_cancelled() {
            if first && !self.stale() {
                (look, first) = (Look::All, false);
            }
            let working = async {
                if look > Look::Nothing {
                    let view = self.decider.view();
                    self.know_overridden(&view).await?;
                    self.look_through(&view, look).await?;
                }
                self.know(&mut waiting).await
            };
            match stop.run_until_cancelled(working).await {
                None => return,
                Some(Ok(())) => look = Look::Nothing,
                Some(Err(error)) => {
                    self.metrics.flips.errors.with_label_values(&["record"]).inc();
                    warn!(%error, "standings and decisions can't be written; tried again");
                    tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(PAUSE) => continue }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                // The source has just said so.
                Ok(()) = flags.changed() => (look, first) = (Look::All, false),
                Ok(()) = overrides.changed() => look = look.max(Look::Overrides),
                Ok(()) = health.changed(), if first => {}
                more = self.news.recv_many(&mut waiting, BATCH) => {
                    if more == 0 { return }
                    tokio::time::sleep(GATHER).await;
                }
            }
        }
    }

    /// Writes what was decided for the first time; what is there already stays.
    async fn know(&mut self, waiting: &mut Vec<(String, String)>) -> Result<(), LedgerError> {
        while waiting.len() < BATCH
            && let Ok(one) = self.news.try_recv()
        {
            waiting.push(one);
        }
        if waiting.is_empty() {
            return Ok(());
        }
        // With each account its other kinds, so that a change of all of them is known as one.
        let mut pairs: Vec<(&str, &str)> = waiting
            .iter()
            .flat_map(|(account, kind)| [(account.as_str(), ""), (account.as_str(), kind.as_str())])
            .collect();
        pairs.sort();
        pairs.dedup();
        let view = self.decider.view();
        let standings: Vec<Standing> =
            pairs.into_iter().map(|(account, kind)| standing(&view, account, kind)).collect();
        self.store.know(&standings).await?;
        waiting.clear();
        Ok(())
    }

    /// An account may be overridden before anything was decided for it; it stands where the flags say until then.
    async fn know_overridden(&self, view: &View) -> Result<(), LedgerError> {
        let standing = |(account, kind): (&str, Option<&str>)| {
            let kind = kind.unwrap_or("");
            let Decision { stage, revision } = view.by_flags(account, kind);
            Standing { account: account.to_owned(), kind: kind.to_owned(), stage, override_id: None, revision }
        };
        let standings: Vec<_> = view.overridden().map(standing).collect();
        if standings.is_empty() { Ok(()) } else { self.store.know(&standings).await }
    }

    /// Whether the flags may be older than what others have written: a stored copy, or a source that isn't good.
    fn stale(&self) -> bool {
        let health = self.decider.flags().health();
        health.from_last_good || health.error.is_some()
    }

    /// Compares all that is known with what this router decides.
    async fn look_through(&self, view: &View, look: Look) -> Result<(), LedgerError> {
        let mut after = (String::new(), None);
        loop {
            let page = self.store.standings(&after.0, after.1.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = (last.account.clone(), Some(last.kind.clone()));
            let full = page.len() as i64 == PAGE;
            let changes: Vec<Change> = page
                .into_iter()
                .map(|before| Change { after: standing(view, &before.account, &before.kind), before })
                .filter(|c| {
                    c.before.override_id != c.after.override_id
                        || (look == Look::All && c.before.stage != c.after.stage)
                })
                .collect();
            self.write(&changes).await?;
            if !full {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    async fn write(&self, changes: &[Change]) -> Result<(), LedgerError> {
        if changes.is_empty() {
            return Ok(());
        }
        for (stage, source, count) in self.store.change(self.router, changes).await? {
            self.metrics.flips.decisions.with_label_values(&[&stage, &source]).inc_by(count as u64);
            info!(stage, source, count, "stages changed");
        }
        Ok(())
    }
}

fn standing(view: &View, account: &str, kind: &str) -> Standing {
    let seen = view.see(account, kind);
    Standing {
        account: account.to_owned(),
        kind: kind.to_owned(),
        stage: seen.decision.stage,
        override_id: seen.by,
        revision: seen.decision.revision,
    }
}
