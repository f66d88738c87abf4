//! Facts about the whole bridge, on the real servers: routers, workers and relays of this process or of children that
//! can be killed, and a runner that writes down what was called.

mod bounds;
mod chain;
pub mod child;
mod crashes;
mod delivery;
mod flips;
mod input;
mod outages;
mod postgres_away;
pub mod proxy;
mod rehearsals;
pub mod runner;
mod soak;
mod stages;
mod wake;
pub mod warden;
pub mod world;

use std::time::Duration;

use crossover::interaction::Stage;
use serde_json::{Value, json};

pub use crate::wait::{PATIENCE, until};
use world::{ALL, Answer, Node, ROUTER, WORKER, World};
