//! The old side. A copy of an interaction is a workflow ([`workflow`]); a series is one long-lived workflow that
//! is fed by signals ([`series`]). Both walk the same path ([`copy`]): wait for `run_at`, wait for what is `behind`
//! on Postgres, then execute, or rehearse what Postgres executes, and settle the pin last of all.
//!
//! What must touch the world is an activity ([`activities`]). Postgres is known only as a [`ledger::Ledger`].
//! [`deliver`] brings copies here over [`client`], [`worker`] runs them, [`mirror`] ends rehearsals when their real attempts end.
//! [`forward`] tells Temporal of attempts that their runners took away.
//!
//! What it has of our schedules is in [`schedules`]; its scheduler starts launchers ([`launcher`]) that bring their times to the plan.
//!
//! Before an account is armed, [`reconcile`] gives a pin to what is open here without one, found by the search attribute of
//! [`attribute`]; what it overlooked asks its pin itself ([`ask`]).

pub mod activities;
pub mod ask;
pub mod attribute;
pub mod client;
pub mod copy;
pub mod deliver;
pub mod forward;
pub mod launcher;
pub mod ledger;
pub mod listing;
pub mod mirror;
pub mod reconcile;
pub mod schedules;
pub mod series;
pub mod wire;
pub mod worker;
pub mod workflow;

mod backlog;
mod detach;
mod late;
mod meter;
mod on_postgres;
mod parking;
mod words;

pub use on_postgres::{Delivers, OnPostgres};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a copy is run by. It travels in the workflow's input: a replay must see what the first run saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// An execution whose worker was silent for so long has lost it.
    pub heartbeat_ms: u64,
    /// A rehearsal occupies for so long at most, each attempt.
    pub rehearsal_bound_ms: u64,
}

impl Terms {
    /// See [`Terms::heartbeat_ms`].
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// See [`Terms::rehearsal_bound_ms`].
    pub fn rehearsal_bound(&self) -> Duration {
        Duration::from_millis(self.rehearsal_bound_ms)
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { heartbeat_ms: 10_000, rehearsal_bound_ms: 600_000 }
    }
}
