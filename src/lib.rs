//! Crossover moves a company's task queue from Temporal to Postgres, account by account, without downtime.
//!
//! `ARCHITECTURE.md` has the map; the flow starts in [`router`].

pub mod app;
pub mod arming;
pub mod cli;
pub mod comparator;
pub mod config;
pub mod executor;
pub mod faults;
pub mod flags;
pub mod flips;
pub mod history;
pub mod http;
pub mod interaction;
pub mod ledger;
pub mod metrics;
pub mod observer;
pub mod policy;
pub mod proof;
pub mod provision;
pub mod queue;
pub mod report;
pub mod router;
pub mod schedule;
pub mod spool;
pub mod telemetry;
#[cfg(feature = "temporal")]
pub mod temporal;
