//! Where remote workers run everything, and this process only hands it out.

use async_trait::async_trait;

use super::{Answer, Call, Executor};

/// Runs nothing: on Postgres it claims no execution at all.
pub struct RemoteOnly;

#[async_trait]
impl Executor for RemoteOnly {
    /// Not reached: nothing is claimed for it.
    async fn execute(&self, call: &Call) -> Answer {
        Answer::retryable(format!(
            "nothing of kind `{}` is run here: worker.remote_only is set, and remote workers have what Postgres owns of groups `remote.…`",
            call.kind
        ))
    }

    fn runs_anything(&self) -> bool {
        false
    }

    fn capacity(&self, _kind: &str) -> Option<usize> {
        Some(0)
    }

    fn has_capacities(&self) -> bool {
        true
    }
}
