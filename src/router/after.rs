//! Work that runs after other work. Only Postgres can hold it back, so it is pinned there or refused: it never starts unpinned.

use std::time::Instant;

use tracing::Span;
use uuid::Uuid;

use super::request::Fault;
use super::{Accepted, EnqueueError, How, Router, conflict, not_pinned};
use crate::flags::Decision;
use crate::interaction::{After, Interaction};
use crate::ledger::{AfterFault, LedgerError, PinRequest, Releasing};
use crate::telemetry;

/// So many unknown ids are named.
const NAMED: usize = 10;

impl Router {
    /// Pins what runs after others; ready, waiting, or cancelled already where what it waits for can't succeed any more.
    pub(super) async fn accept_after(
        &self,
        interaction: &Interaction,
        after: &After,
        decision: &Decision,
    ) -> Result<Accepted, EnqueueError> {
        let request =
            PinRequest { interaction, stage: decision.stage, revision: &decision.revision, grace: self.options.grace };
        let began = Instant::now();
        let pinned = self.outages.ask(false, self.ledger.pin_after(request, after)).await;
        let pinned =
            pinned.inspect_err(|error| self.disturbed(error)).map_err(|error| not_pinned(interaction, error))?;
        let pinned = pinned.map_err(|fault| refused(interaction, &fault))?;
        self.metrics.pin_seconds.observe(began.elapsed().as_secs_f64());
        match pinned.created {
            true => telemetry::begin(&Span::current(), pinned.pin.id),
            false => telemetry::join(&Span::current(), pinned.pin.id),
        }
        let ticket = self.ticket(interaction, pinned)?;
        // A repeated key may lead to what Temporal has, of an earlier stage.
        match self.deliver(ticket).await {
            Accepted { how: How::Conflict, .. } => Err(conflict(interaction, "payload")),
            accepted => Ok(accepted),
        }
    }

    /// Lets `id` run without what it waits for. None: it was never pinned.
    pub async fn release(&self, id: Uuid) -> Result<Option<Releasing>, LedgerError> {
        let answer = self.bounded(self.ledger.release(id)).await?;
        self.wake_queue.notify_one();
        Ok(answer)
    }
}

/// Says what is wrong with what an interaction waits for.
pub(super) fn refused(interaction: &Interaction, fault: &AfterFault) -> EnqueueError {
    let (account, kind) = (&interaction.account, &interaction.kind);
    let message = match fault {
        AfterFault::Stage => format!(
            "only work that Postgres alone has may wait for other work: bring account `{account}`, kind `{kind}` to stage `complete` first (`crossover complete`), or send it once the others have ended"
        ),
        AfterFault::Unknown(ids) => {
            let named = ids.iter().take(NAMED).map(Uuid::to_string).collect::<Vec<_>>().join(", ");
            let more = ids.len().checked_sub(NAMED + 1).map_or_else(String::new, |n| format!(" and {} more", n + 1));
            format!("account `{account}` has no interactions {named}{more}; enqueue what is waited for first")
        }
    };
    EnqueueError::Invalid(vec![Fault { field: "after".to_owned(), message }])
}
