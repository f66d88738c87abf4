//! Caps on what may wait. A router knows of each second how much waits in groups that have one, adds what it takes in itself, and
//! refuses more. So a cap is never exact: each router may take in a second's worth beyond it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metrics::Metrics;
use crate::queue::groups::{Capped, Groups};

/// Groups with a cap, as of the last look.
pub(super) struct Caps {
    groups: Groups,
    metrics: Arc<Metrics>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    groups: HashMap<String, Capped>,
    at: Option<Instant>,
}

const LOOK: Duration = Duration::from_millis(800);
/// What is older than this refuses nobody: what waits may be gone.
const OLD: Duration = Duration::from_secs(5);

/// A group that takes no more for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Full {
    pub most: i64,
    pub waiting: i64,
}

impl Caps {
    pub(super) fn new(groups: Groups, metrics: Arc<Metrics>) -> Self {
        Self { groups, metrics, known: Mutex::default() }
    }

    /// Whether `group` takes no more; else one more is on its way in.
    pub(super) fn full(&self, group: Option<&str>) -> Option<Full> {
        let mut known = self.lock();
        if known.at.is_none_or(|at| at.elapsed() > OLD) {
            return None;
        }
        let capped = known.groups.get_mut(group.unwrap_or("default"))?;
        if capped.waiting < i64::from(capped.max_waiting) {
            capped.waiting += 1;
            return None;
        }
        Some(Full { most: i64::from(capped.max_waiting), waiting: capped.waiting })
    }

    /// What [`Caps::full`] let by did not come to be new work after all.
    pub(super) fn give_back(&self, group: Option<&str>) {
        if let Some(capped) = self.lock().groups.get_mut(group.unwrap_or("default")) {
            capped.waiting = (capped.waiting - 1).max(0);
        }
    }

    /// Looks each second, until `stop`.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        loop {
            match stop.run_until_cancelled(self.groups.capped()).await {
                Some(Ok(groups)) => self.know(groups),
                Some(Err(error)) => {
                    self.metrics.queue_errors.with_label_values(&["caps"]).inc();
                    warn!(%error, "what waits in groups with a cap can't be read; soon none refuses anything");
                }
                None => return,
            }
            let nap = LOOK.mul_f64(rand::rng().random_range(0.8..1.2));
            if stop.run_until_cancelled(tokio::time::sleep(nap)).await.is_none() {
                return;
            }
        }
    }

    fn know(&self, groups: Vec<Capped>) {
        let groups = groups.into_iter().map(|capped| (capped.grp.clone(), capped)).collect();
        *self.lock() = Known { groups, at: Some(Instant::now()) };
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_came_to_nothing_takes_no_room() {
        let pool = sqlx::PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
        let caps = Caps::new(Groups::new(pool), Arc::new(Metrics::new().unwrap()));
        caps.know(vec![Capped { grp: "mail".to_owned(), max_waiting: 2, waiting: 1 }]);
        for _ in 0..5 {
            assert_eq!(caps.full(Some("mail")), None);
            caps.give_back(Some("mail"));
        }
        assert_eq!(caps.full(Some("mail")), None);
        assert_eq!(caps.full(Some("mail")), Some(Full { most: 2, waiting: 2 }));
        assert_eq!(caps.full(None), None, "another group has no cap");
    }
}
