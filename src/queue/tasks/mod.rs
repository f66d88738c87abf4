//! Tasks: interactions that only Postgres has and that no caller named. Their account is armed and in `complete`, they
//! have no series, and the router made their key; so no other router can know of them, nothing of them goes to Temporal,
//! and their record is their pin. That is why they cost a third of what a pinned interaction costs.
//!
//! `storage` speaks the SQL of their tables. The worker claims, runs and ends them like any other copy.

mod keep;
mod storage;

use chrono::{DateTime, Utc};
use uuid::{Builder, Uuid};

pub(super) use keep::{beat, promote, take_over, tell_virtual_time};
pub use storage::{Beat, Recorded, Tasks};

use crate::interaction::Payload;
use crate::policy::Policy;

/// A task as a router hands it in.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Its name, made by [`new_id`].
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The sub-queue.
    pub group: Option<String>,
    /// Not before this instant; absent means now.
    pub run_at: Option<DateTime<Utc>>,
    /// -100 to 100; higher first.
    pub priority: i16,
    /// Its virtual start time: the order among tasks of one priority.
    pub vt: i64,
    /// The revision of the flags that put its account into `complete`.
    pub flag_revision: String,
    /// Retries and time-outs.
    pub policy: Policy,
    /// What must run.
    pub payload: Payload,
}

/// Where a task stands in the ready set, which names its row there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Minus the priority.
    pub rank: i16,
    /// Its virtual start time.
    pub vt: i64,
}

impl Place {
    /// The stamp at `vt` of a group that has limits, and so a virtual time of its own.
    pub fn in_group(vt: i64) -> i64 {
        vt | 1
    }

    /// Whether it was stamped so: then it says nothing of how far claims have come.
    pub fn of_a_group(&self) -> bool {
        self.vt & 1 == 1
    }
}

/// The same with its id, which is the order among equals.
pub(super) type TaskPlace = (i16, i64, Uuid);

/// A new task's id: a version 7 UUID (RFC 9562), whose time leads to the partition of its record.
pub fn new_id(now: DateTime<Utc>) -> Uuid {
    Builder::from_unix_timestamp_millis(now.timestamp_millis().max(0) as u64, &rand::random()).into_uuid()
}

/// When the task `id` was named, to the millisecond; none for what is no task's id.
pub fn named_at(id: Uuid) -> Option<DateTime<Utc>> {
    let millis = (id.get_version_num() == 7).then(|| id.as_u128() >> 80)?;
    DateTime::from_timestamp_millis(i64::try_from(millis).ok()?)
}

/// The key that a router makes for a task. Whoever repeats it is led to the task, whatever the flags say by then.
pub fn key_of(id: Uuid) -> String {
    format!("{KEY}{}", id.simple())
}

/// The task that `key` names, where a router made it for one.
pub fn of_key(key: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(key.strip_prefix(KEY)?).ok()?;
    (named_at(id).is_some() && key_of(id) == key).then_some(id)
}

const KEY: &str = "task_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_when_it_was_named_to_the_millisecond() {
        let now = DateTime::from_timestamp(1_800_000_000, 123_456_789).unwrap();
        assert_eq!(named_at(new_id(now)).unwrap().timestamp_millis(), now.timestamp_millis());
        assert_eq!(named_at(crate::interaction::interaction_id("a", "k")), None);
    }

    #[test]
    fn a_key_leads_to_its_task_and_no_other_key_does() {
        let id = new_id(Utc::now());
        assert_eq!(of_key(&key_of(id)), Some(id));
        for other in ["task_", "task_x", &id.simple().to_string(), &format!("task_{id}"), &key_of(Uuid::new_v4())] {
            assert_eq!(of_key(other), None, "{other}");
        }
    }
}
