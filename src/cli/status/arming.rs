//! The section of the status about accounts on their way to be armed or open again.

use serde::Serialize;

use crate::arming::{ArmingStore, Census, State, Waiting, lasts};
use crate::config::Config;
use crate::ledger::LedgerError;

/// So many are shown one by one, those that take the longest first.
const SHOWN: i64 = 20;

/// Who is on its way, and what each waits for.
#[derive(Serialize)]
pub(super) struct Arming {
    /// Accounts by state.
    by_state: std::collections::BTreeMap<String, i64>,
    under_way: Vec<Line>,
    /// How many more there are.
    more: i64,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    waiting: Waiting,
    waits_for: String,
}

impl Arming {
    pub(super) async fn read(store: &ArmingStore, config: &Config) -> Result<Self, LedgerError> {
        let Census { accounts, .. } = store.census().await?;
        let (waiting, total) = store.under_way(None, config.window.idempotency, SHOWN).await?;
        let more = total - waiting.len() as i64;
        let under_way = waiting.into_iter().map(|waiting| Line { waits_for: waiting.waits_for(), waiting }).collect();
        Ok(Self { by_state: accounts.into_iter().collect(), under_way, more })
    }

    pub(super) fn show(&self) {
        let states = State::ALL.map(State::as_str).into_iter().filter(|state| *state != "open");
        let counts: Vec<_> = states.filter_map(|state| Some(format!("{} {state}", self.by_state.get(state)?))).collect();
        if !counts.is_empty() {
            println!("arming      {}", counts.join(", "));
        }
        for Line { waiting, waits_for } in &self.under_way {
            println!("            {}: {} for {}, waits {waits_for}", waiting.account, waiting.state, lasts(waiting.for_seconds));
        }
        if self.more > 0 {
            println!("            … and {} more: crossover status --json", self.more);
        }
    }
}
