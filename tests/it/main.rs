//! The tests that need real servers: one binary, so that all of them share one Postgres and one Temporal.

#[cfg(feature = "temporal")]
mod api;
#[cfg(feature = "temporal")]
mod arming;
#[cfg(feature = "temporal")]
pub mod arming_temporal;
mod asking;
#[cfg(feature = "temporal")]
pub mod bridge;
#[cfg(feature = "temporal")]
pub mod chaos;
#[cfg(feature = "temporal")]
mod comparator;
mod config;
#[cfg(feature = "temporal")]
mod dashboards;
mod demo;
mod dependencies;
mod docs;
mod embedded;
#[cfg(feature = "temporal")]
mod fences;
#[cfg(feature = "temporal")]
mod flips_by_command;
#[cfg(feature = "temporal")]
mod guards;
#[cfg(feature = "temporal")]
mod handover;
mod history;
mod latency;
#[cfg(feature = "temporal")]
mod long_work;
#[cfg(feature = "temporal")]
mod named_failures;
#[cfg(feature = "temporal")]
mod observer;
#[cfg(feature = "temporal")]
mod outages_temporal;
mod provision;
#[cfg(feature = "temporal")]
mod remote;
#[cfg(feature = "temporal")]
mod schedules;
mod servers;
#[cfg(feature = "temporal")]
mod soak;
mod sql_face;
mod tasks;
#[cfg(feature = "temporal")]
mod temporal_side;
mod unleash;
mod wait;
