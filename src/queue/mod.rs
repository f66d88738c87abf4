//! The Postgres side: a claim takes copies of both owners the same way; the owner's executes, the other's rehearses.
//!
//! `storage` speaks the SQL of `ready`, `scheduled` and `running`. `worker` holds what it claimed and runs it;
//! `finisher` reports ends in batches; `rehearsal` follows the real run; `upkeep` makes due work ready and takes over
//! what a dead worker held; `detach` gives long runs to their runners; `remote` hands work out over HTTP; `dependents` lets go on
//! what waited for others to end; `turns` gives turns to what excludes others; `tasks` are what only Postgres has; `groups` speaks the SQL of limits, and `gate` admits what waits
//! for them; `floor` is the share of the lowest priority.

mod dependents;
mod detach;
mod faulty;
mod finisher;
mod floor;
mod gate;
pub mod groups;
mod held;
mod kinds;
mod places;
mod reach;
mod rehearsal;
pub mod remote;
mod storage;
pub mod tasks;
mod turns;
mod upkeep;
mod wake;
mod worker;

pub(crate) use places::places;
pub use places::{Placed, QueuePlace};
pub use storage::{Claim, Claimed, Depth, Finish, GroupDepth, Mirrored, Queue};
pub use upkeep::LOST;
pub use wake::Wake;
pub use worker::{Worker, WorkerOptions};
