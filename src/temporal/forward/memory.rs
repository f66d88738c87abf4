//! What is away, from memory: so that Temporal hears of it while Postgres can't be asked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::interaction::Fence;
use crate::ledger::Detached;

/// A Postgres that takes longer to say what is to be told is as good as away.
pub(super) const HANGS: Duration = Duration::from_secs(1);

/// Which attempt.
pub(super) type Key = (Uuid, Fence);

/// What is away, as far as this process was the one to tell Temporal of it lately.
pub(super) struct Memory {
    known: HashMap<Key, Known>,
    /// When Postgres last did not answer, or this began: runners may have been silent because nobody could hear them.
    trouble: Instant,
    /// Since when Postgres has not answered.
    since: Option<Instant>,
}

struct Known {
    token: Vec<u8>,
    every: Duration,
    silence: Duration,
    told: Instant,
}

/// More is not kept through an outage of Postgres.
const KEEP: usize = 50_000;

impl Memory {
    /// Nothing is known.
    pub fn new() -> Self {
        Self { known: HashMap::new(), trouble: Instant::now(), since: None }
    }

    /// For how long Postgres has answered.
    pub fn calm(&self) -> Duration {
        self.trouble.elapsed()
    }

    /// Postgres does not answer.
    pub fn trouble(&mut self) {
        self.trouble = Instant::now();
        self.since.get_or_insert(self.trouble);
    }

    /// What this process did not come by for a while, another has.
    pub fn answered(&mut self) {
        self.since = None;
        self.known.retain(|_, known| known.told.elapsed() < known.every * 3 + HANGS);
    }

    /// Of these Temporal is being told.
    pub fn learn(&mut self, rows: &[Detached]) {
        for row in rows {
            let key = (row.id, row.fence);
            match (&row.token, row.ended_at) {
                (Some(token), None) if self.known.len() < KEEP || self.known.contains_key(&key) => {
                    let (token, every, silence) = (token.clone(), row.forward_every, row.silence);
                    self.known.insert(key, Known { token, every, silence, told: Instant::now() });
                }
                _ => drop(self.known.remove(&key)),
            }
        }
    }

    /// Those of which Temporal wants to hear, and whose runners may still be alive.
    pub fn due(&self) -> Vec<(Key, Vec<u8>)> {
        let away = self.since.map(|since| since.elapsed()).unwrap_or_default();
        let due = self.known.iter().filter(|(_, known)| known.told.elapsed() >= known.every && away < known.silence);
        due.map(|(key, known)| (*key, known.token.clone())).collect()
    }

    /// Temporal was told of these; some of them are gone.
    pub fn beaten(&mut self, beaten: &[(Key, bool)]) {
        for (key, gone) in beaten {
            if *gone {
                self.known.remove(key);
            } else if let Some(known) = self.known.get_mut(key) {
                known.told = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::Side;
    use chrono::Utc;

    fn row(n: u128, silence: Duration) -> Detached {
        let now = Utc::now();
        Detached {
            id: Uuid::from_u128(n),
            fence: Fence { epoch: 1, attempt: 1 },
            side: Side::Temporal,
            pinned: true,
            silence,
            age: Duration::ZERO,
            due_at: now,
            started_at: now,
            detached_at: now,
            beat_at: now,
            run_until: now,
            ended_at: None,
            closed: false,
            called_off: false,
            forward_every: Duration::ZERO,
            tries: 0,
            token: Some(vec![7]),
            outcome: None,
            failure: None,
            result: None,
            error: None,
            remote: None,
            policy: Default::default(),
        }
    }

    #[test]
    fn it_keeps_what_lives_and_forgets_what_has_ended_or_is_gone() {
        let mut memory = Memory::new();
        let rows = [1, 2, 3].map(|n| row(n, Duration::from_secs(60)));
        memory.learn(&rows);
        memory.trouble();
        assert_eq!(memory.due().len(), 3);
        memory.learn(&[Detached { ended_at: Some(Utc::now()), ..rows[0].clone() }]);
        memory.beaten(&[((rows[1].id, rows[1].fence), true), ((rows[2].id, rows[2].fence), false)]);
        let due: Vec<Key> = memory.due().into_iter().map(|(key, _)| key).collect();
        assert_eq!(due, [(rows[2].id, rows[2].fence)]);
    }

    #[test]
    fn nobody_is_kept_for_longer_than_their_own_silence() {
        let mut memory = Memory::new();
        memory.learn(&[row(1, Duration::ZERO), row(2, Duration::from_secs(60))]);
        memory.trouble();
        assert_eq!(memory.due().len(), 1);
        assert!(memory.calm() < Duration::from_secs(60));
    }
}
