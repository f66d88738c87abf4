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

use world::{ALL, Answer, Node, ROUTER, WORKER, World};

/// Nothing here takes so long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again, for nothing rings where the condition is another process's or a database's.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited too long until {what}"))
}
