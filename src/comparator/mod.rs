//! Holds what the two sides did with the same interactions side by side.

pub mod latency;
