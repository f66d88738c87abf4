//! Whether an account in live could go back to Temporal just now, for `status` and for those who are about to roll back.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::status::{TemporalStatus, temporal};
use crate::config::Config;
use crate::ledger::{Ledger, LedgerError, OutboxDepth};
use crate::report;

/// Where the way back stands. It is closed while Temporal does not answer: a rollback would only pile up work for it.
#[derive(Debug, Serialize)]
pub(super) struct WayBack {
    open: bool,
    /// Since when it is closed, as relays noted it; absent also where none was there to ask.
    since: Option<DateTime<Utc>>,
    /// Why it is closed.
    why: Option<String>,
    /// Accounts in live, which could not go back.
    accounts: usize,
    /// Executions that wait for Temporal; each was accepted and runs when it is back.
    executions: i64,
    /// Rehearsals that wait for it; beyond relay.rehearsal_backlog they are dropped.
    rehearsals: i64,
    /// Seconds since the oldest of both was pinned.
    oldest_seconds: f64,
}

impl WayBack {
    /// From what Temporal said to this command, what the relays noted, and what waits. A Temporal that answers here and
    /// no relay is away all the same: it is the relays that deliver.
    pub(super) fn of(
        said: &TemporalStatus,
        since: Option<DateTime<Utc>>,
        outbox: &OutboxDepth,
        accounts: usize,
    ) -> Self {
        // Where nobody knows a Temporal, none is away.
        let asked = said.address.as_deref().filter(|_| cfg!(feature = "temporal"));
        let address = asked.unwrap_or("an unknown address");
        let why = match (said.error.as_ref().filter(|_| asked.is_some()), since) {
            (Some(error), _) => Some(format!("Temporal at {address} does not answer: {error}")),
            (None, Some(_)) => Some(format!("Temporal at {address} answers this command, but not every relay")),
            (None, None) => None,
        };
        Self {
            open: why.is_none(),
            since: since.filter(|_| why.is_some()),
            why,
            accounts,
            executions: outbox.rows - outbox.rehearsals,
            rehearsals: outbox.rehearsals,
            oldest_seconds: outbox.oldest_seconds,
        }
    }

    /// Asks Temporal, and the ledger for the rest.
    pub(super) async fn look(config: &Config, ledger: &Ledger) -> Result<Self, LedgerError> {
        let (said, since, outbox) =
            tokio::join!(temporal(config), report::temporal_away_since(ledger), ledger.outbox_depth());
        Ok(Self::of(&said, since?, &outbox?, 0))
    }

    /// Loud where it is closed and somebody would want to take it.
    pub(super) fn show(&self) {
        let Some(why) = &self.why else { return };
        match self.accounts {
            0 => println!("TEMPORAL    IS AWAY{}: {why}", self.since_words()),
            accounts => println!("WAY BACK    CLOSED{} for {accounts} accounts in live: {why}", self.since_words()),
        }
        println!("            {}", self.backlog());
        if self.accounts > 0 {
            println!("            a rollback would only add to that; see docs/runbook/way-back-closed.md");
        }
    }

    /// What somebody should read who is about to move work back to Temporal.
    pub(super) fn warning(&self) -> Option<String> {
        let why = self.why.as_ref()?;
        Some(format!(
            "THE WAY BACK IS CLOSED{}: {why}; {}. After this, new work is accepted with 202 and waits as well: nothing of it runs before Temporal is back",
            self.since_words(),
            self.backlog()
        ))
    }

    fn since_words(&self) -> String {
        self.since.map_or_else(String::new, |since| format!(" since {} UTC", since.format("%F %T")))
    }

    fn backlog(&self) -> String {
        let Self { executions, rehearsals, oldest_seconds, .. } = self;
        format!("{executions} executions and {rehearsals} rehearsals wait for it, the oldest for {oldest_seconds:.0} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(error: Option<&str>, since: Option<DateTime<Utc>>) -> WayBack {
        let said = TemporalStatus { address: Some("host:7233".into()), answers_ms: None, error: error.map(Into::into) };
        let outbox = OutboxDepth { rows: 12, rehearsals: 5, oldest_seconds: 61.0, last_error: None };
        WayBack::of(&said, since, &outbox, 3)
    }

    #[test]
    fn it_is_closed_where_temporal_answers_neither_this_command_nor_the_relays() {
        let away = look(Some("no answer within 2s"), Some(DateTime::UNIX_EPOCH));
        let warning = away.warning().unwrap();
        for word in
            ["CLOSED since 1970-01-01 00:00:00 UTC", "no answer within 2s", "7 executions and 5 rehearsals", "61 s"]
        {
            assert!(warning.contains(word), "{word}: {warning}");
        }
        assert!(!look(None, Some(DateTime::UNIX_EPOCH)).open, "the relays are what counts");
        assert!(!look(Some("refused"), None).open, "without a relay, too");
        assert!(look(None, None).open && look(None, None).warning().is_none());
    }
}
