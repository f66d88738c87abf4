//! Arming: how an account gets to where Postgres may own its work, and back.
//!
//! The truth is `crossover.accounts`. Every process that routes, or runs work on Temporal, holds a copy of the states that
//! are not `open`: in memory ([`Armed`]), where the router and the Temporal worker ask it, and on disk under its
//! registration, so that a restart without Postgres goes by it. The [`Keeper`] brings the copy up to date with each beat
//! and acknowledges what the barriers wait for; the [`Driver`] moves accounts on. docs/arming.md is the operator's view.

mod armed;
mod disk;
mod driver;
mod keeper;
mod storage;
mod words;

pub use armed::{Armed, Held, Readiness, State, Unpinned, UnpinnedStart, Unwritten};
pub use disk::{Registration, RegistrationError};
pub use driver::{Driver, DriverOptions, NothingThere, Reconcile, ReconcileError, Reconciled};
pub use keeper::{Keeper, KeeperOptions, Report};
pub use storage::{ArmingStore, Census, Standing, Waiting, WaitsOn};
pub use words::lasts;
