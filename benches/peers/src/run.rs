//! What is put in and what the handlers have seen of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::Result;

/// Nothing takes longer than this, or the measurement is broken.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// A task that does nothing. Its JSON text has 200 bytes, as the payloads of `crossover bench` have.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Noop {
    n: String,
}

impl Noop {
    /// The n-th.
    pub fn new(n: u32) -> Self {
        Self { n: format!("{n:0>192}") }
    }

    fn number(&self) -> Option<u32> {
        self.n.parse().ok()
    }
}

/// Counts what the handlers did.
#[derive(Debug)]
pub struct Run {
    base: Instant,
    /// When the n-th began, in nanoseconds after `base`; 0: it has not.
    begun: Vec<AtomicU64>,
    count: AtomicU32,
    again: AtomicU32,
    wanted: AtomicU32,
    done: Notify,
}

impl Run {
    /// For tasks with numbers below `tasks`.
    pub fn of(tasks: u32) -> Arc<Self> {
        let begun = (0..tasks).map(|_| AtomicU64::new(0)).collect();
        let (count, again, wanted) = Default::default();
        Arc::new(Self { base: Instant::now(), begun, count, again, wanted, done: Notify::new() })
    }

    /// A handler runs this task.
    pub fn one(&self, task: &Noop) {
        let now = self.base.elapsed().as_nanos() as u64;
        let place = task.number().and_then(|n| self.begun.get(n as usize));
        let first =
            place.is_some_and(|begun| begun.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire).is_ok());
        if !first {
            self.again.fetch_add(1, Ordering::AcqRel);
        } else if self.count.fetch_add(1, Ordering::AcqRel) + 1 == self.wanted.load(Ordering::Acquire) {
            self.done.notify_one();
        }
    }

    /// Waits until so many different tasks have begun.
    pub async fn reached(&self, wanted: u32) -> Result<()> {
        self.wanted.store(wanted, Ordering::Release);
        let all = async {
            while self.count() < wanted {
                self.done.notified().await;
            }
        };
        let late = |_| format!("only {} of {wanted} tasks ran in {} s", self.count(), PATIENCE.as_secs());
        Ok(tokio::time::timeout(PATIENCE, all).await.map_err(late)?)
    }

    /// So many different tasks have begun.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// So many began that had begun before, or that nobody put in.
    pub fn again(&self) -> u32 {
        self.again.load(Ordering::Acquire)
    }

    /// When the n-th began.
    pub fn begun(&self, n: u32) -> Option<Instant> {
        let nanos = self.begun.get(n as usize)?.load(Ordering::Acquire);
        (nanos > 0).then(|| self.base + Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_200_bytes_and_says_its_number() {
        let task = Noop::new(1_234_567);
        assert_eq!(serde_json::to_string(&task).unwrap().len(), 200);
        assert_eq!(task.number(), Some(1_234_567));
    }

    #[tokio::test]
    async fn a_task_that_runs_twice_counts_once_and_is_told() {
        let run = Run::of(2);
        for n in [0, 0, 1, 7] {
            run.one(&Noop::new(n));
        }
        run.reached(2).await.unwrap();
        assert_eq!((run.count(), run.again()), (2, 2));
        assert!(run.begun(1).is_some() && run.begun(7).is_none());
    }
}
