//! Remote workers who wait for work, by group. One who is rung looks for itself; who goes away leaves its place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Between two looks at Postgres, for all who wait here. Work that came through this process needs none.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// The pause after a look that failed.
pub(super) const TROUBLE: Duration = Duration::from_secs(1);

/// By group, how many wait, and their bell.
type Groups = HashMap<String, (usize, Arc<Notify>)>;

/// Everybody who waits in this process.
#[derive(Default)]
pub(super) struct Polls {
    groups: Mutex<Groups>,
    arrived: Notify,
}

/// A place among those who wait for a group.
pub(super) struct Place<'a> {
    polls: &'a Polls,
    group: &'a str,
    bell: Arc<Notify>,
}

impl Polls {
    pub fn wait_for<'a>(&'a self, group: &'a str) -> Place<'a> {
        let bell = {
            let mut groups = self.lock();
            let (waiting, bell) = groups.entry(group.to_owned()).or_default();
            *waiting += 1;
            bell.clone()
        };
        self.arrived.notify_one();
        Place { polls: self, group, bell }
    }

    /// Rings one of those who wait for `group`, the one who has waited longest.
    pub fn ring(&self, group: &str) {
        if let Some((_, bell)) = self.lock().get(group) {
            bell.notify_one();
        }
    }

    /// For which groups somebody waits, once somebody does.
    pub async fn groups(&self) -> Vec<String> {
        loop {
            let groups: Vec<String> = self.lock().keys().cloned().collect();
            if !groups.is_empty() {
                return groups;
            }
            self.arrived.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Somebody rang for this place.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut groups = self.polls.lock();
        if let Some((waiting, _)) = groups.get_mut(self.group) {
            *waiting -= 1;
            if *waiting == 0 {
                groups.remove(self.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_ring_wakes_one_of_its_group_and_none_of_another() {
        let polls = Polls::default();
        let (one, two, other) = (polls.wait_for("a"), polls.wait_for("a"), polls.wait_for("b"));
        polls.ring("a");
        one.rung().await;
        for place in [&two, &other] {
            assert!(tokio::time::timeout(Duration::from_millis(20), place.rung()).await.is_err());
        }
    }

    #[tokio::test]
    async fn who_goes_away_leaves_its_place() {
        let polls = Polls::default();
        drop(polls.wait_for("a"));
        let _stays = polls.wait_for("b");
        assert_eq!(polls.groups().await, ["b"]);
    }
}
