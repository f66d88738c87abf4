//! How Postgres misbehaves in test builds, see [`crate::faults`]. In any other build all of this is empty.

#[cfg(not(feature = "faults"))]
pub(super) use honest::*;
#[cfg(feature = "faults")]
pub(super) use misbehaving::*;

#[cfg(not(feature = "faults"))]
mod honest {
    use super::super::storage::{Claimed, Finish};
    use super::super::worker::{Shared, Starting};

    /// What begins now of what was claimed.
    #[inline(always)]
    pub fn begin(_: &Starting, claimed: Claimed) -> Option<Claimed> {
        Some(claimed)
    }

    /// Changes ends before they are reported.
    #[inline(always)]
    pub fn misreport(_: &mut [Finish]) {}

    /// Makes ready what is not due, or whose turn has not come.
    #[inline(always)]
    pub async fn hasten(_: &Shared) {}
}

#[cfg(feature = "faults")]
mod misbehaving {
    use std::time::Duration;

    use super::super::storage::{Claimed, Finish};
    use super::super::worker::{Shared, Starting};
    use crate::faults::{self, Whether};
    use crate::interaction::Side;

    const HERE: Side = Side::Postgres;

    /// What begins now of what was claimed: with a fault, perhaps something else, later, twice or never.
    pub fn begin(starting: &Starting, mut claimed: Claimed) -> Option<Claimed> {
        let id = claimed.envelope.id;
        let later = starting.clone();
        if let Some(wait) = faults::hold(HERE, id) {
            tokio::spawn(async move {
                wait.await;
                later.start(claimed);
            });
            return None;
        }
        if faults::is(Whether::Dropped, HERE, id) {
            tokio::spawn(async move { later.shared.queue.forget(later.shared.id, id).await });
            return None;
        }
        if faults::is(Whether::Twice, HERE, id) {
            later.start(claimed.clone());
        }
        faults::alter(HERE, &mut claimed.envelope);
        claimed.rehearsal &= !faults::is(Whether::Unclaimed, HERE, id);
        faults::begun(HERE, id);
        Some(claimed)
    }

    /// Changes ends before they are reported.
    pub fn misreport(ends: &mut [Finish]) {
        for end in ends {
            let (outcome, again) = faults::misreport(HERE, end.id);
            end.outcome = outcome.or(end.outcome);
            end.retry = if again { Some(Duration::ZERO) } else { end.retry };
        }
    }

    /// Makes ready what is not due, or whose turn has not come.
    pub async fn hasten(shared: &Shared) {
        let (early, beside) = (faults::early(HERE), faults::beside(HERE));
        let mut moved = Vec::new();
        if !early.is_empty() {
            moved.extend(shared.queue.hasten(&early).await.unwrap_or_default());
        }
        if !beside.is_empty() {
            moved.extend(shared.queue.overtake(&beside).await.unwrap_or_default());
        }
        if !moved.is_empty() {
            faults::hastened(HERE, &moved);
            shared.wake.notify_one();
        }
    }
}
