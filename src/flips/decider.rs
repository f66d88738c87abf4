//! What a router decides by: an override in force, else the flags. From memory, without I/O.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::overrides::Overrides;
use crate::flags::{Decision, Flags};
use crate::interaction::Stage;
use crate::metrics::Metrics;

/// So many accounts and kinds are remembered as noted; past it they are noted again, which changes nothing.
const REMEMBERED: usize = 200_000;
/// So many new ones wait to be noted.
const WAITING: usize = 20_000;

/// Answers where (account, kind) stands. Cheap to ask, from any thread.
pub struct Decider {
    flags: Arc<Flags>,
    overrides: Arc<Overrides>,
    metrics: Arc<Metrics>,
    noted: RwLock<Noted>,
    new: Sender<(String, String)>,
}

#[derive(Default)]
struct Noted {
    kinds: HashMap<String, HashSet<String>>,
    count: usize,
}

/// A decision, and the override that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) decision: Decision,
    pub(super) by: Option<i64>,
}

impl Decider {
    /// Over these flags and overrides. What comes out of the receiver is to be noted: accounts and kinds that were
    /// decided for the first time.
    pub fn new(
        flags: Arc<Flags>,
        overrides: Arc<Overrides>,
        metrics: Arc<Metrics>,
    ) -> (Self, Receiver<(String, String)>) {
        let (new, news) = mpsc::channel(WAITING);
        (Self { flags, overrides, metrics, noted: RwLock::default(), new }, news)
    }

    /// Where (account, kind) stands, and by what.
    pub fn decide(&self, account: &str, kind: &str) -> Decision {
        self.note(account, kind);
        match self.overrides.of(account, kind) {
            Some((id, stage)) => Decision { stage, revision: revision(id) },
            None => self.flags.decide(account, kind),
        }
    }

    /// The flags below.
    pub fn flags(&self) -> &Arc<Flags> {
        &self.flags
    }

    /// The overrides above them.
    pub fn overrides(&self) -> &Arc<Overrides> {
        &self.overrides
    }

    /// The same, not for work: Unleash is not told of it.
    pub(super) fn see(&self, account: &str, kind: &str) -> Seen {
        match self.overrides.of(account, kind) {
            Some((id, stage)) => Seen { decision: Decision { stage, revision: revision(id) }, by: Some(id) },
            None => {
                let document = self.flags.document();
                let (stage, revision) = (document.stage(account, kind), document.revision().to_owned());
                Seen { decision: Decision { stage, revision }, by: None }
            }
        }
    }

    pub(super) fn stage(&self, account: &str, kind: &str) -> Stage {
        self.overrides.of(account, kind).map_or_else(|| self.flags.stage(account, kind), |(_, stage)| stage)
    }

    /// Hands an account and kind on at their first decision.
    fn note(&self, account: &str, kind: &str) {
        let known = |noted: &Noted| noted.kinds.get(account).is_some_and(|kinds| kinds.contains(kind));
        if self.noted.read().is_ok_and(|noted| known(&noted)) {
            return;
        }
        let Ok(mut noted) = self.noted.write() else { return };
        if known(&noted) {
            return;
        }
        // Kept out of memory where there is no room to hand it on: its next decision tries again.
        if self.new.try_send((account.to_owned(), kind.to_owned())).is_err() {
            self.metrics.flips.errors.with_label_values(&["note"]).inc();
            return;
        }
        if noted.count >= REMEMBERED {
            *noted = Noted::default();
        }
        noted.kinds.entry(account.to_owned()).or_default().insert(kind.to_owned());
        noted.count += 1;
    }
}

/// What a decision by an override is recorded with.
fn revision(id: i64) -> String {
    format!("override:{id}")
}
