//! Proves a run from the outside: callers that enqueue over HTTP, a runner that notes every call it gets, and a
//! verdict that believes nothing but these two. `crossover demo` and `crossover replay` are made of it.

mod driver;
mod load;
mod proxy;
mod runner;
mod settle;
mod trace;
mod verdict;

pub use driver::{Answers, Driver, Job, Refusal};
pub use load::{Burst, KINDS, Load};
pub use proxy::{Proxy, Weather};
pub use runner::{Runner, RunnerOptions};
pub use settle::{Settled, settle};
pub use trace::{TraceError, read as read_trace};
pub use verdict::{Accepted, BySide, Seen, Verdict, judge, unsettled};
