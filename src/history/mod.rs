//! What has ended: for how long it is kept, who clears it away, and how it is found.
//!
//! `storage` speaks the SQL of upkeep, `keeper` does it in one process at a time, `search` reads. All of them have
//! connections of their own: nothing here may take one from callers or workers.

mod keeper;
mod search;
mod storage;

use std::time::Duration;

pub use keeper::{Duty, Keeper};
pub use search::{Cursor, Filter, Found, MOST, Page, Search, SearchError, Shown, ShownAttempt, State};
pub use storage::{Clearing, Done, History, Orphans};

use crate::config::Config;

/// A router's clock, which names tasks, may go before the database's, which clears them away, by so much.
const CLOCKS_APART: Duration = Duration::from_secs(3_600);

/// For how long what has ended is kept.
#[derive(Debug, Clone)]
pub struct Retention {
    ended: Duration,
    kinds: Vec<(String, Duration)>,
    compared: Duration,
}

impl Retention {
    /// As configured. Nothing goes while its key may still be repeated, nor its pin while the comparator's row is kept.
    pub fn of(config: &Config) -> Self {
        Self::new(config.retention.ended, &config.retention.kinds, config.window.idempotency, config.comparator.keep)
    }

    /// `ended` for all but `kinds`; at least `window`, and pins that were compared at least as long as `compared`.
    pub fn new<'a>(
        ended: Duration,
        kinds: impl IntoIterator<Item = (&'a String, &'a Duration)>,
        window: Duration,
        compared: Duration,
    ) -> Self {
        let keep = |keep: Duration| keep.max(window) + CLOCKS_APART;
        let kinds = kinds.into_iter().map(|(kind, of)| (kind.clone(), keep(*of))).collect();
        Self { ended: keep(ended), kinds, compared }
    }
}
