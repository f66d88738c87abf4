//! Break-glass: overrides beat the flags, and end by themselves. They are rows in Postgres, which says by its clock for
//! how long each is still in force; from then on this process's own steady clock counts, so that an override ends in time
//! also where Postgres has gone away meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::storage::FlipStore;
use crate::interaction::Stage;
use crate::metrics::Metrics;

/// How often routers ask.
const EVERY: Duration = Duration::from_millis(500);

/// The overrides in force, as this process knows them.
pub struct Overrides {
    known: ArcSwap<Known>,
    /// Grows with each begin and end.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct InForce {
    id: i64,
    pub(super) kind: Option<String>,
    stage: Stage,
    until: Instant,
}

/// By account.
pub(super) type Known = HashMap<String, Vec<InForce>>;

/// One for the kind comes before one for the whole account; none counts past its time.
pub(super) fn of(known: &Known, account: &str, kind: &str) -> Option<(i64, Stage)> {
    let now = Instant::now();
    let own = known.get(account)?.iter().filter(|o| o.until > now && o.kind.as_deref().is_none_or(|k| k == kind));
    own.max_by_key(|o| o.kind.is_some()).map(|o| (o.id, o.stage))
}

impl Default for Overrides {
    fn default() -> Self {
        Self { known: ArcSwap::default(), changes: watch::Sender::new(0) }
    }
}

impl Overrides {
    /// The override of (account, kind), as its id and stage: one for the kind before one for the whole account.
    pub fn of(&self, account: &str, kind: &str) -> Option<(i64, Stage)> {
        of(&self.known.load(), account, kind)
    }

    /// Those known now, for more than one question.
    pub(super) fn snapshot(&self) -> Arc<Known> {
        self.known.load_full()
    }

    /// Those in force.
    pub fn ids(&self) -> Vec<i64> {
        let now = Instant::now();
        self.known.load().values().flatten().filter(|one| one.until > now).map(|one| one.id).collect()
    }

    /// Tells when one has begun or ended.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Asks Postgres until `stop`, and notices ends also without it.
    pub async fn follow(self: Arc<Self>, store: FlipStore, metrics: Arc<Metrics>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let Some(asked) = stop.run_until_cancelled(self.refresh(&store, &metrics)).await else { return };
            match &asked {
                Err(error) if !failing => {
                    warn!(%error, "overrides can't be read; the ones known stay in force until they end")
                }
                Ok(()) if failing => info!("overrides are read again"),
                _ => {}
            }
            failing = asked.is_err();
        }
    }

    /// Asks once. What has run out is forgotten either way.
    pub async fn refresh(&self, store: &FlipStore, metrics: &Metrics) -> Result<(), String> {
        // Before the question: an override rather ends a moment early than late.
        let asked_at = Instant::now();
        let answer = store.overrides().await;
        let next = match &answer {
            Ok(rows) => {
                let rows = rows.iter().map(|row| {
                    let until = asked_at + Duration::from_millis(row.remaining_ms.max(0) as u64);
                    (row.account.clone(), InForce { id: row.id, kind: row.kind.clone(), stage: row.stage, until })
                });
                let mut next: Known = HashMap::new();
                rows.for_each(|(account, one)| next.entry(account).or_default().push(one));
                next
            }
            Err(_) => HashMap::clone(&self.known.load()),
        };
        self.put(next, metrics);
        answer.map(drop).map_err(|error| {
            metrics.flips.errors.with_label_values(&["overrides"]).inc();
            error.to_string()
        })
    }

    fn put(&self, mut next: Known, metrics: &Metrics) {
        let now = Instant::now();
        next.values_mut().for_each(|list| list.retain(|one| one.until > now));
        next.retain(|_, list| !list.is_empty());
        let ids = |known: &Known| {
            let mut ids: Vec<_> =
                known.iter().flat_map(|(a, list)| list.iter().map(move |one| (one.id, a.clone(), one.stage))).collect();
            ids.sort();
            ids
        };
        let (before, after) = (ids(&self.known.load()), ids(&next));
        metrics.flips.overrides_active.set(after.len() as i64);
        let first = next.values().flatten().map(|one| one.until).min();
        let ends = first.map_or(0.0, |until| until.saturating_duration_since(now).as_secs_f64());
        metrics.flips.override_ends_in_seconds.set(ends);
        self.known.store(Arc::new(next));
        if before == after {
            return;
        }
        for (id, account, stage) in after.iter().filter(|one| !before.contains(one)) {
            error!(override_id = id, account, %stage, "AN OVERRIDE IS IN FORCE: the flags of this account don't count");
        }
        for (id, account, _) in before.iter().filter(|one| !after.contains(one)) {
            warn!(override_id = id, account, "an override has ended; the flags count again");
        }
        self.changes.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(list: &[(i64, Option<&str>, Stage, Duration)]) -> Overrides {
        let overrides = Overrides::default();
        let list = list.iter().map(|(id, kind, stage, left)| InForce {
            id: *id,
            kind: kind.map(str::to_owned),
            stage: *stage,
            until: Instant::now() + *left,
        });
        overrides.put(HashMap::from([("acme".to_owned(), list.collect())]), &Metrics::new().unwrap());
        overrides
    }

    #[test]
    fn one_for_the_kind_beats_one_for_the_account_and_none_counts_past_its_time() {
        let hour = Duration::from_secs(3_600);
        let overrides = known(&[
            (1, None, Stage::Off, hour),
            (2, Some("sync"), Stage::Live, hour),
            (3, Some("action"), Stage::Live, Duration::ZERO),
        ]);
        assert_eq!(overrides.of("acme", "sync"), Some((2, Stage::Live)));
        assert_eq!(overrides.of("acme", "action"), Some((1, Stage::Off)));
        assert_eq!(overrides.of("globex", "sync"), None);
    }

    #[test]
    fn a_begin_and_an_end_are_told() {
        let overrides = known(&[(1, None, Stage::Off, Duration::from_secs(3_600))]);
        let mut changed = overrides.changed();
        assert_eq!(*changed.borrow_and_update(), 1);
        overrides.put(HashMap::new(), &Metrics::new().unwrap());
        assert!(changed.has_changed().unwrap());
        assert_eq!(overrides.of("acme", "sync"), None);
    }
}
