//! The tests that need real servers: one binary, so that all of them share one Postgres and one Temporal.

mod asking;
#[cfg(feature = "temporal")]
pub mod bridge;
mod config;
mod demo;
mod docs;
mod provision;
mod servers;
mod sql_face;
#[cfg(feature = "temporal")]
mod temporal_side;
