//! Crossover moves a company's task queue from Temporal to Postgres, account by account, without downtime.
//!
//! `ARCHITECTURE.md` has the map; the flow starts in `router`.

pub mod executor;
pub mod interaction;
pub mod policy;
#[cfg(feature = "temporal")]
pub mod temporal;
