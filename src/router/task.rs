//! Work that becomes a task: only Postgres will have it, and nobody but its caller can name it.

use chrono::{TimeDelta, Utc};
use tracing::Span;
use uuid::Uuid;

use super::request::Fault;
use super::{Accepted, EnqueueError, How, Router, conflict, not_pinned, unavailable};
use crate::arming::State;
use crate::flags::Decision;
use crate::interaction::{Interaction, Side, Stage, is_remote};
use crate::ledger::{Cancelling, LedgerError};
use crate::policy::OnUnknown;
use crate::queue::tasks::{self, NewTask};
use crate::telemetry;

/// A key that a router made leads to its task for at most this time, and may be made by a router whose clock is this far off.
const KEYS_LAST: TimeDelta = TimeDelta::days(30);
const CLOCKS_APART: TimeDelta = TimeDelta::hours(1);
/// No statement takes longer, clocks that differ a little included.
const IN_DOUBT: TimeDelta = TimeDelta::minutes(2);

impl Router {
    /// Takes `interaction` in as a task, where it can be one. None: it must be pinned.
    pub(super) async fn accept_task(
        &self,
        interaction: &Interaction,
        decision: &Decision,
    ) -> Result<Option<Accepted>, EnqueueError> {
        let able = self.options.tasks
            && interaction.key_made
            && decision.stage == Stage::Complete
            && interaction.series.is_none()
            && interaction.after.is_none()
            && interaction.exclusive.is_none()
            // Remote workers take what is pinned.
            && !is_remote(interaction.group.as_deref())
            && interaction.policy.on_unknown == OnUnknown::Retry;
        if !able || self.armed.state(&interaction.account) != State::Armed {
            return Ok(None);
        }
        let id = tasks::new_id(Utc::now());
        telemetry::begin(&Span::current(), id);
        // Not new, because the account is not armed any longer.
        let new = self.put(interaction, id, decision, false).await?;
        Ok(new.then(|| accepted(id, How::Created)))
    }

    /// Answers a key that a router made for a task: it is that task, whatever the flags say by now, or becomes it where the
    /// first try came to nothing. None: it is no such key.
    pub(super) async fn repeat_task(
        &self,
        interaction: &Interaction,
        decision: &Decision,
    ) -> Result<Option<Accepted>, EnqueueError> {
        let Some((id, named_at)) = tasks::of_key(&interaction.key).and_then(|id| Some((id, tasks::named_at(id)?)))
        else {
            return Ok(None);
        };
        let now = Utc::now();
        if interaction.series.is_some()
            || interaction.after.is_some()
            || interaction.exclusive.is_some()
            || is_remote(interaction.group.as_deref())
            || interaction.policy.on_unknown != OnUnknown::Retry
            || named_at < now - KEYS_LAST
            || named_at > now + CLOCKS_APART
        {
            return Err(not_a_callers_key());
        }
        telemetry::join(&Span::current(), id);
        // After that it may have ended and been cleared away: it would run again.
        let may_be_new = TimeDelta::from_std(self.options.window).is_ok_and(|window| named_at >= now - window);
        if may_be_new
            && self.armed.state(&interaction.account) == State::Armed
            && self.put(interaction, id, decision, true).await?
        {
            return Ok(Some(accepted(id, How::Created)));
        }
        let before = self.bounded(self.gather.tasks().recorded(id)).await;
        match before.map_err(|error| not_accepted(interaction, id, error))? {
            Some(before) if before.account != interaction.account => Err(conflict(interaction, "account")),
            Some(before) if before.kind != interaction.kind => Err(conflict(interaction, "kind")),
            Some(before) if before.payload.get() != interaction.payload.get() => Err(conflict(interaction, "payload")),
            Some(_) => Ok(Some(accepted(id, How::Repeated))),
            None if !may_be_new => Err(not_a_callers_key()),
            // The first try may still be on its way.
            None if named_at > now - IN_DOUBT => Err(EnqueueError::InDoubt {
                reason: "its first try may not have come to anything yet".to_owned(),
                key: interaction.key.clone(),
            }),
            None => {
                let reason = "its key was made while its account was in stage complete, where it is no more, and nothing was \
                              accepted under it; use a new key, or none";
                Err(unavailable(interaction, reason.to_owned()))
            }
        }
    }

    /// Writes it. False: it is there, or its account is not armed.
    async fn put(
        &self,
        interaction: &Interaction,
        id: Uuid,
        decision: &Decision,
        repeated: bool,
    ) -> Result<bool, EnqueueError> {
        let i = interaction;
        let task = NewTask {
            id,
            account: i.account.clone(),
            kind: i.kind.clone(),
            group: i.group.clone(),
            run_at: i.run_at,
            priority: i.priority,
            vt: 0,
            flag_revision: decision.revision.clone(),
            policy: i.policy.clone(),
            payload: i.payload.clone(),
        };
        let began = std::time::Instant::now();
        let new = self.bounded(self.gather.enqueue(task, repeated)).await;
        let new =
            new.inspect_err(|error| self.disturbed(error)).map_err(|error| not_accepted(interaction, id, error))?;
        self.metrics.pin_seconds.observe(began.elapsed().as_secs_f64());
        if new {
            self.wake_for_tasks.notify_one();
        }
        Ok(new)
    }

    /// Asks to cancel the task `id`; none where there is no such task.
    pub(super) async fn cancel_task(&self, id: Uuid, reason: &str) -> Result<Option<Cancelling>, LedgerError> {
        self.bounded(self.gather.tasks().cancel(id, reason)).await
    }

    /// Asks Postgres, for as long as a pin may take.
    pub(super) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, LedgerError>>,
    ) -> Result<T, LedgerError> {
        let late = |_| Err(LedgerError::InDoubt(format!("no answer within {:?}", self.options.pin_timeout)));
        tokio::time::timeout(self.options.pin_timeout, call).await.unwrap_or_else(late)
    }
}

/// Why a key that looks like a task's can't be.
pub(super) fn not_a_callers_key() -> EnqueueError {
    let message = "keys that begin with `task_` are made by routers, for work without a series, `after`, `exclusive` or `on_unknown`, and are repeated \
                   as the work was sent, within window.idempotency; give new work a key of your own, or none";
    EnqueueError::Invalid(vec![Fault { field: "key".to_owned(), message: message.to_owned() }])
}

/// Why it was not accepted, with the key that leads to it.
fn not_accepted(interaction: &Interaction, id: Uuid, error: LedgerError) -> EnqueueError {
    not_pinned(&Interaction { key: tasks::key_of(id), ..interaction.clone() }, error)
}

fn accepted(id: Uuid, how: How) -> Accepted {
    Accepted { id, key: tasks::key_of(id), owner: Side::Postgres, stage: Stage::Complete, epoch: 1, pinned: true, how }
}
