//! Attempts that their runner takes away. The worker holds one, and its slot, until the ledger knows that it is the runner's.
//! Then nobody works on the activity: whoever forwards ([`super::forward`]) tells Temporal that it lives, and how it ended.

use std::time::{Duration, Instant};

use temporalio_sdk::activities::ActivityError;

use crate::interaction::Side;
use crate::ledger::Detaching;
use crate::policy::{Doubt, Failure};

use super::activities::{Activities, Try};

const PAUSE: Duration = Duration::from_millis(250);

impl Activities {
    /// Has the ledger know that the attempt is its runner's, `took` after its call began. While Postgres is away the runner's
    /// heartbeats find nobody either, so it is held here until it would have been lost for their absence.
    pub(super) async fn detach(&self, this: &Try<'_>, silence: Duration, took: Duration) -> ActivityError {
        let (began, policy) = (Instant::now(), &this.envelope.policy);
        let report = this.report();
        let mut detaching = Detaching {
            id: report.id,
            fence: report.fence,
            pinned: this.envelope.pinned,
            silence,
            left: Duration::ZERO,
            forward_every: this.info.heartbeat_timeout.unwrap_or(Duration::from_secs(10)) / 4,
            token: this.info.task_token.clone(),
            age: Duration::ZERO,
            due_at: report.due_at,
            started_at: report.started_at,
            policy: policy.clone(),
        };
        let allowed = policy.run_timeout().saturating_sub(took);
        loop {
            (detaching.left, detaching.age) = (allowed.saturating_sub(began.elapsed()), this.age());
            let Err(error) = self.within(self.ledger.detach(&detaching)).await else { break };
            tracing::warn!(id = %report.id, fence = %report.fence, %error, "the ledger isn't told yet that a runner took an attempt away; its slot is held meanwhile");
            if began.elapsed() + PAUSE > silence.min(allowed) {
                let error =
                    "its runner took it away, and Postgres could not be told for its heartbeat time-out".to_owned();
                return self.next(this, Failure::Unknown { cause: Doubt::HeartbeatTimeout }, error);
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::info!(id = %report.id, fence = %report.fence, "its runner took it away");
        if let Some(metrics) = &self.metrics {
            metrics.detached.taken.with_label_values(&[Side::Temporal.as_str()]).inc();
        }
        ActivityError::WillCompleteAsync
    }
}
