//! The queues that users could pick instead, measured as `crossover bench` measures ours: the same works, payloads, batches,
//! callers and keys of the JSON. See the README.

pub mod awa;
pub mod graphile;
pub mod ground;
pub mod held;
pub mod queue;
pub mod report;
pub mod run;
pub mod server;
pub mod works;

use serde_json::Value;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Failure>;

/// So many connections have those who put in, and so many the worker.
pub const CONNECTIONS: u32 = 24;

/// One object of two; the second one's keys win.
pub(crate) fn merged(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}
