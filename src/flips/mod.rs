//! Flips: who decides stages, what they last decided, every change of it, and the commands that make one.
//!
//! A router decides by its [`Decider`]: the flags, or an override that beats them. `presence` keeps the router registered
//! and acknowledges flips; `recorder` turns what the router sees into standings and decisions, beside its work;
//! `overrides` learns of break-glass overrides through Postgres. [`flip`] is what the commands do. `storage` speaks the
//! SQL of all these tables.

mod command;
mod decider;
mod overrides;
mod presence;
mod recorder;
mod storage;

pub use command::{Flip, FlipError, Flipped, Place, RouterState, Waiting, await_begin, await_end, await_routers, flip};
pub use decider::{Basis, Decider};
pub use overrides::Overrides;
pub use presence::Presence;
pub use recorder::Recorder;
pub use storage::{
    Asked, Bearing, DecisionFilter, DecisionRow, FlipStore, Forgetting, NewFlip, NewOverride, OverrideRow, RouterRow,
};

use std::time::Duration;

/// A router that has not beaten for so long is silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(5);
