//! What a router decides by: an override in force, else the flags. From memory, without I/O.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::overrides::{self, Overrides};
use crate::flags::{Decision, Document, Flags};
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

/// What a decider goes by: two that go by the same come to the same decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// The flags in force.
    pub revision: String,
    /// The overrides above them, ascending.
    pub overrides: Vec<i64>,
}

/// What a decider decides by at one moment.
pub(super) struct View {
    flags: Arc<Document>,
    overrides: Arc<overrides::Known>,
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

    /// Where (account, kind) stands. Not a decision, so it is neither noted nor counted.
    pub fn stage(&self, account: &str, kind: &str) -> Stage {
        self.overrides.of(account, kind).map_or_else(|| self.flags.stage(account, kind), |(_, stage)| stage)
    }

    /// What it goes by now.
    pub fn basis(&self) -> Basis {
        let mut overrides = self.overrides.ids();
        overrides.sort_unstable();
        Basis { revision: self.flags.document().revision().to_owned(), overrides }
    }

    /// The flags below.
    pub fn flags(&self) -> &Arc<Flags> {
        &self.flags
    }

    /// The overrides above them.
    pub fn overrides(&self) -> &Arc<Overrides> {
        &self.overrides
    }

    /// What it decides by at this moment, for many questions that belong together. Unleash is not told of them.
    pub(super) fn view(&self) -> View {
        View { flags: self.flags.document(), overrides: self.overrides.snapshot() }
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

impl View {
    pub(super) fn see(&self, account: &str, kind: &str) -> Seen {
        match overrides::of(&self.overrides, account, kind) {
            Some((id, stage)) => Seen { decision: Decision { stage, revision: revision(id) }, by: Some(id) },
            None => Seen { decision: self.by_flags(account, kind), by: None },
        }
    }

    /// The same as if there were no overrides.
    pub(super) fn by_flags(&self, account: &str, kind: &str) -> Decision {
        Decision { stage: self.flags.stage(account, kind), revision: self.flags.revision().to_owned() }
    }

    /// Whom overrides are for: account, and kind where it isn't all.
    pub(super) fn overridden(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.overrides.iter().flat_map(|(account, list)| list.iter().map(|one| (account.as_str(), one.kind.as_deref())))
    }
}

/// What a decision by an override is recorded with.
fn revision(id: i64) -> String {
    format!("override:{id}")
}
