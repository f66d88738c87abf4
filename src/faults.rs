//! Switches that make a side misbehave with one interaction, so that the comparator's tests have something to find.
//!
//! They exist in test builds only: behind the cargo feature `faults`, which no other feature turns on and which this
//! crate's tests turn on for themselves. A build without it (`cargo build --release`) holds the few hooks that are called
//! from the work itself as empty functions, and nothing of what is below them.
//!
//! A fault is planned with `inject` for a side and an id, and happens once, to the first attempt that comes by. What
//! Postgres does wrong is told in `queue::faulty`.

use futures::future::BoxFuture;
use uuid::Uuid;

use crate::interaction::{Envelope, Side};

#[cfg(feature = "faults")]
pub use planned::{Fault, inject};
#[cfg(feature = "faults")]
pub(crate) use planned::{alter, begun, beside, early, hastened, hold, is, misreport};

/// Whether this build can misbehave.
pub const COMPILED: bool = cfg!(feature = "faults");

/// A fault that is a yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "faults"), expect(dead_code))]
pub(crate) enum Whether {
    Dropped,
    Twice,
    Unclaimed,
    ExtraCopy,
}

/// What an attempt must wait for before it begins.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn hold(_: Side, _: Uuid) -> Option<BoxFuture<'static, ()>> {
    None
}

/// Changes a copy as `side` reads it.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn alter(_: Side, _: &mut Envelope) {}

/// Whether this fault happens now.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn is(_: Whether, _: Side, _: Uuid) -> bool {
    false
}

#[cfg(feature = "faults")]
mod planned {
    use std::collections::HashSet;
    use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::interaction::{Outcome, Payload};

    /// What a side does wrong.
    #[derive(Debug, Clone)]
    pub enum Fault {
        /// An attempt begins so much later than it could.
        Late(Duration),
        /// An attempt begins only after this one has: two of a series are swapped. On Postgres, and where it rehearses,
        /// because the owner's next member is not even there before the one before it has ended.
        After(Uuid),
        /// A copy on Postgres begins as soon as it is there, although it is due later.
        Early,
        /// A member of a series begins beside the one before it, as soon as that runs. On Postgres, and where it executes:
        /// rehearsals are judged for order only.
        Beside,
        /// A copy is taken and forgotten: nothing is recorded, nothing follows. On Postgres.
        Dropped,
        /// One attempt is made twice under one fence. On Temporal only where it executes.
        Twice,
        /// Another payload is read than was pinned. On Temporal only where it executes.
        Payload(Payload),
        /// The copy is dequeued from another group. On Temporal only where it executes.
        Group(String),
        /// Another outcome is reported than there was. On Postgres.
        Outcome(Outcome),
        /// Another attempt follows the last one. On Postgres.
        ExtraAttempt,
        /// What is to be rehearsed is run for real. On Postgres.
        Unclaimed,
        /// A copy is delivered to Temporal although its stage has none there.
        ExtraCopy,
    }

    impl From<Whether> for fn(&Fault) -> bool {
        fn from(whether: Whether) -> Self {
            match whether {
                Whether::Dropped => |fault| matches!(fault, Fault::Dropped),
                Whether::Twice => |fault| matches!(fault, Fault::Twice),
                Whether::Unclaimed => |fault| matches!(fault, Fault::Unclaimed),
                Whether::ExtraCopy => |fault| matches!(fault, Fault::ExtraCopy),
            }
        }
    }

    type Planned = (Side, Uuid, Fault);

    /// Tests run in one process, and ids are theirs alone.
    static PLANNED: Mutex<Vec<Planned>> = Mutex::new(Vec::new());

    /// What has begun of that which others wait for.
    static BEGUN: LazyLock<watch::Sender<HashSet<(Side, Uuid)>>> = LazyLock::new(|| watch::channel(HashSet::new()).0);

    /// What nobody comes for is given up after so long.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Plans a fault of `side` with the interaction `id`.
    pub fn inject(side: Side, id: Uuid, fault: Fault) {
        planned().push((side, id, fault));
    }

    fn planned() -> MutexGuard<'static, Vec<Planned>> {
        PLANNED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(side: Side, id: Uuid, wanted: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut planned = planned();
        let at = planned.iter().position(|(s, i, fault)| (*s, *i) == (side, id) && wanted(fault))?;
        Some(planned.swap_remove(at).2)
    }

    pub(crate) fn is(whether: Whether, side: Side, id: Uuid) -> bool {
        take(side, id, <fn(&Fault) -> bool>::from(whether)).is_some()
    }

    pub(crate) fn hold(side: Side, id: Uuid) -> Option<BoxFuture<'static, ()>> {
        match take(side, id, |fault| matches!(fault, Fault::Late(_) | Fault::After(_)))? {
            Fault::Late(by) => Some(Box::pin(tokio::time::sleep(by))),
            Fault::After(other) => Some(Box::pin(until_begun(side, other))),
            _ => None,
        }
    }

    pub(crate) fn alter(side: Side, envelope: &mut Envelope) {
        while let Some(fault) = take(side, envelope.id, |fault| matches!(fault, Fault::Payload(_) | Fault::Group(_))) {
            match fault {
                Fault::Payload(payload) => envelope.payload = payload,
                Fault::Group(group) => envelope.group = Some(group),
                _ => {}
            }
        }
    }

    /// Another outcome than the real one, and whether another attempt follows.
    pub(crate) fn misreport(side: Side, id: Uuid) -> (Option<Outcome>, bool) {
        let outcome = match take(side, id, |fault| matches!(fault, Fault::Outcome(_))) {
            Some(Fault::Outcome(outcome)) => Some(outcome),
            _ => None,
        };
        (outcome, take(side, id, |fault| matches!(fault, Fault::ExtraAttempt)).is_some())
    }

    /// What is to begin before it is due.
    pub(crate) fn early(side: Side) -> Vec<Uuid> {
        all(side, |fault| matches!(fault, Fault::Early))
    }

    /// What is to begin beside the member before it.
    pub(crate) fn beside(side: Side) -> Vec<Uuid> {
        all(side, |fault| matches!(fault, Fault::Beside))
    }

    fn all(side: Side, wanted: impl Fn(&Fault) -> bool) -> Vec<Uuid> {
        planned().iter().filter(|(s, _, fault)| *s == side && wanted(fault)).map(|p| p.1).collect()
    }

    /// These have been made to begin before their time or turn.
    pub(crate) fn hastened(side: Side, ids: &[Uuid]) {
        let misplaced = |fault: &Fault| matches!(fault, Fault::Early | Fault::Beside);
        planned().retain(|(s, id, fault)| !(*s == side && misplaced(fault) && ids.contains(id)));
    }

    /// An attempt at `id` begins.
    pub(crate) fn begun(side: Side, id: Uuid) {
        BEGUN.send_if_modified(|begun| begun.insert((side, id)));
    }

    async fn until_begun(side: Side, id: Uuid) {
        let mut begun = BEGUN.subscribe();
        let _ = tokio::time::timeout(PATIENCE, begun.wait_for(|begun| begun.contains(&(side, id)))).await;
    }
}

#[cfg(test)]
mod tests {
    /// What a build of this crate turns on by itself.
    #[test]
    fn no_feature_but_its_own_turns_faults_on() {
        let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
        let features = manifest["features"].as_table().unwrap();
        let turned_on = |list: &toml::Value| list.as_array().unwrap().iter().any(|f| f.as_str() == Some("faults"));
        assert!(features.contains_key("faults") && !features.values().any(turned_on), "{features:?}");
        for dependencies in ["dependencies", "build-dependencies"] {
            let ours = manifest.get(dependencies).and_then(|table| table.get("crossover"));
            assert!(ours.is_none(), "only tests may depend on the crate with its faults");
        }
    }
}
