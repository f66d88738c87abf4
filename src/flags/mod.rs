//! Which stage an (account, kind) stands in, by four feature flags.
//!
//! They come from a file or from Unleash. A file comes in through [`Document::parse`]: `json` reads it as it was
//! written, `schema` refuses what the evaluator would forgive, `evaluate` compiles it with Unleash's engine; `watch`
//! re-reads it when it changes. What a server says is brought into the same form by `unleash`, which asks it again and
//! again. From there on a document never changes. [`Flags`] holds the one in force behind an atomic pointer
//! (`in_force`), so that a decision asks exactly one document, without a lock and without I/O.
//!
//! Flags fail to the last known state. A source that is broken, unreadable or gone changes nothing but the
//! [`Health`]; after a restart the last good document, kept by `store`, goes on where it stood. With neither there
//! is no answer ([`FlagsError`]), and a router that has none isn't ready. Nothing here ever guesses `off`.

mod builder;
mod constraint;
mod document;
pub mod edit;
mod evaluate;
mod fields;
mod file;
mod in_force;
mod json;
mod schema;
pub(crate) mod store;
#[cfg(test)]
mod tests;
pub mod unleash;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch::Receiver;

pub use self::builder::DocumentBuilder;
pub use self::document::{Document, Fault, Flag};
pub use self::file::{FileError, FlagsFile};
use self::in_force::InForce;
use self::store::LastGood;
use self::unleash::Following;
use self::watch::Watcher;
use crate::interaction::Stage;
use crate::metrics::FlagMetrics;

/// The flags in force. It follows its source until it is dropped.
pub struct Flags {
    in_force: Arc<InForce>,
    source: Source,
}

enum Source {
    File { _watcher: Watcher },
    Unleash(Following),
}

/// A stage, and the revision of the document that said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Where (account, kind) stands.
    pub stage: Stage,
    /// To be recorded with whatever follows from it.
    pub revision: String,
}

/// What an operator wants to know about the flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The file or the server that is followed.
    pub source: String,
    /// The document in force.
    pub revision: String,
    /// When it came into force in this process.
    pub loaded_at: DateTime<Utc>,
    /// When the source last said what is in force, also before this process; a flag that Unleash lacks is in `error`.
    pub good_at: DateTime<Utc>,
    /// Why the source isn't followed at the moment, or not wholly, or why its document can't be kept for the next start.
    pub error: Option<String>,
    /// Since when there has been an error, whatever it said meanwhile.
    pub error_since: Option<DateTime<Utc>>,
    /// True while the stored copy is in force, because the source has not been good since the start.
    pub from_last_good: bool,
}

/// There are no flags to go by: neither the source nor a last good document can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no flags to go by, and none are guessed\n{from}\n{last_good}")]
pub struct FlagsError {
    /// What is wrong with the source.
    pub from: String,
    /// What is wrong with the last good document.
    pub last_good: String,
}

impl Health {
    /// Since when the source has not said what is in force.
    pub fn age(&self, now: DateTime<Utc>) -> Duration {
        (now - self.good_at).to_std().unwrap_or_default()
    }
}

impl Flags {
    /// Reads `file`, or else the last good document in `state_dir`, and follows `file` from then on: at once where
    /// the system reports changes, after `poll` where it doesn't. Reads and writes these two; meant for the start.
    pub fn open(file: &Path, state_dir: &Path, poll: Duration) -> Result<Self, FlagsError> {
        let last_good = LastGood::in_dir(state_dir);
        let (document, good_at, from_last_good) = match store::load(file) {
            Ok(document) => (document, Utc::now(), false),
            Err(from) => {
                let (document, good_at) = last_good.load().map_err(|last_good| FlagsError { from, last_good })?;
                (document, good_at, true)
            }
        };
        if from_last_good {
            tracing::warn!(
                revision = document.revision(),
                "the flags file can't be used: STARTING WITH THE LAST GOOD FLAGS"
            );
        }
        let source = format!("the file {}", file.display());
        let in_force = Arc::new(InForce::new(source, document, good_at, from_last_good));
        let watcher = Watcher::start(file, last_good, Arc::clone(&in_force), poll);
        Ok(Self { in_force, source: Source::File { _watcher: watcher } })
    }

    /// Asks Unleash, or else takes its last good document in `state_dir`, and asks again and again from then on.
    pub async fn follow(
        unleash: unleash::Settings,
        state_dir: &Path,
        metrics: FlagMetrics,
    ) -> Result<Self, FlagsError> {
        let (in_force, following) = Following::start(unleash, state_dir, metrics).await?;
        Ok(Self { in_force, source: Source::Unleash(following) })
    }

    /// Ends in good order: Unleash is told what was counted. What is in force stays.
    pub async fn close(&self) {
        if let Source::Unleash(following) = &self.source {
            following.close().await;
        }
    }

    /// Where (account, kind) stands, and by which document. From memory, without a lock; call it as often as you like.
    /// Unleash is told how many decisions there were.
    pub fn decide(&self, account: &str, kind: &str) -> Decision {
        let document = self.in_force.document();
        let stage = match &self.source {
            Source::File { .. } => document.stage(account, kind),
            Source::Unleash(following) => {
                document.stage_asking(account, kind, |flag, on| following.counts.note(flag, on))
            }
        };
        Decision { stage, revision: document.revision().to_owned() }
    }

    /// Where (account, kind) stands. Not a decision, so it isn't counted.
    pub fn stage(&self, account: &str, kind: &str) -> Stage {
        self.in_force.document().stage(account, kind)
    }

    /// The document in force now; for more than one question about the same revision.
    pub fn document(&self) -> Arc<Document> {
        Arc::clone(&self.in_force.document())
    }

    /// What is in force, since when, and what is wrong with the source.
    pub fn health(&self) -> Health {
        self.in_force.health.borrow().clone()
    }

    /// Tells each change of the health.
    pub fn health_changed(&self) -> Receiver<Health> {
        self.in_force.health.subscribe()
    }

    /// Tells each revision that comes into force; a decision made after that is by it or a later one.
    pub fn changed(&self) -> Receiver<String> {
        self.in_force.revision.subscribe()
    }
}
