//! Schedules: work that comes again and again, enqueued by whichever router looks first.
//!
//! [`times`] says when, [`plan`] what is enqueued and what is skipped; both are pure. [`storage`] speaks the SQL of the
//! schedules, [`ticker`] fires what is due. `docs/schedules.md` is the page for people.
//!
//! A run is an interaction like any other: its key is made of the schedule and the nominal time, so its id is the same
//! whoever enqueues it, and it is pinned through the router. The schedule's row is locked from the look to the commit
//! that holds both its runs and its next time, so a crash anywhere leaves all of that or nothing.
//!
//! Schedules of accounts that are not complete are on Temporal as well: [`mirror`] says what it is to have, [`mirrors`] speaks the SQL
//! of that, [`reflect`] tells Temporal, and [`tick`] is what becomes of the times that Temporal's scheduler comes with.

pub mod definition;
pub mod mirror;
pub mod mirrors;
pub mod plan;
pub mod reflect;
pub mod storage;
pub mod tick;
pub mod ticker;
pub mod times;
pub mod view;

pub use definition::{Change, Definition};
pub use mirrors::Mirrors;
pub use plan::{CatchUp, Overlap, Plan, Reason, Skipped, Standing};
pub use storage::{Page, RunRow, Schedule, Schedules, Wish};
pub use ticker::{Ticker, TickerOptions};
pub use times::{Spec, Times};

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

/// The key of the run for `nominal`.
pub fn key_of(schedule: Uuid, nominal: DateTime<Utc>) -> String {
    format!("schedule:{schedule}@{}", nominal.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The key of a run that somebody triggered under `token`.
pub fn key_of_trigger(schedule: Uuid, token: &str) -> String {
    format!("schedule:{schedule}!{token}")
}

/// The series of a schedule's runs, where its definition names no other.
pub fn series_of(schedule: Uuid) -> String {
    format!("schedule:{schedule}")
}
