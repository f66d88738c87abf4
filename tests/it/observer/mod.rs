//! What both sides are seen to do, on the real servers.

mod clean;
mod faults;
mod loss;
mod sampling;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use crossover::interaction::{Outcome, Side};
use crossover::metrics::Metrics;
use crossover::observer::{Log, Recorded, Seen};

use crate::bridge::until;
use crate::bridge::world::{ROUTER, WORKER, World};

fn log(world: &World) -> Log {
    Log::new(world.pool().clone())
}

/// What was seen of `key`, once that is enough.
async fn seen(world: &World, key: &str, what: &str, enough: impl Fn(&[Recorded]) -> bool) -> Vec<Recorded> {
    let (log, id) = (log(world), world.id(key));
    until(&format!("{key}: {what}"), async || log.of(&[id]).await.ok().filter(|found| enough(found))).await
}

fn count(found: &[Recorded], side: Side, what: &str) -> usize {
    of(found, side, what).count()
}

fn of<'a>(found: &'a [Recorded], side: Side, what: &'a str) -> impl Iterator<Item = &'a Recorded> {
    found.iter().filter(move |r| r.sighting.side == side && r.sighting.what.name() == what)
}
