//! So many a second and no more: what the relay brings to a Temporal that is back must leave room for the callers'.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A timer is as coarse as this, so one that is late may catch up by so much, and no more.
const SLACK: Duration = Duration::from_millis(10);

/// Hands out moments, evenly spaced.
pub(super) struct Pace {
    every: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// `rate` a second.
    pub fn new(rate: u32) -> Self {
        Self { every: Duration::from_secs(1) / rate.max(1), next: Mutex::new(Instant::now()) }
    }

    /// Returns when it is the caller's turn. One that is dropped meanwhile leaves its moment unused.
    pub async fn turn(&self) {
        tokio::time::sleep_until(self.take(Instant::now())).await;
    }

    fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(now.checked_sub(SLACK).unwrap_or(now));
        *next = turn + self.every;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_and_however_long_nobody_did_no_second_has_more_than_the_rate() {
        let pace = Pace::new(50);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let began = Instant::now();
        let mut turns = Vec::new();
        for _ in 0..200 {
            pace.turn().await;
            turns.push(began.elapsed());
        }
        for (n, turn) in turns.iter().enumerate() {
            let within = turns[n..].iter().take_while(|t| **t < *turn + Duration::from_secs(1)).count();
            assert!(within <= 51, "{within} within a second of {turn:?}");
        }
        assert!(turns[199] <= Duration::from_secs(4), "and no fewer: {:?}", turns[199]);
    }
}
