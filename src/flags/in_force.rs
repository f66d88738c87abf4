//! The document in force, and what there is to say about it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::Health;
use super::document::Document;

/// The document in force and what there is to say about it.
pub(super) struct InForce {
    document: ArcSwap<Document>,
    pub(super) health: watch::Sender<Health>,
    pub(super) revision: watch::Sender<String>,
}

impl InForce {
    /// `good_at` is when `source` said so; another time than now only for the stored copy.
    pub(super) fn new(source: String, document: Document, good_at: DateTime<Utc>, from_last_good: bool) -> Self {
        let revision = document.revision().to_owned();
        let health = Health {
            source,
            revision: revision.clone(),
            loaded_at: Utc::now(),
            good_at,
            error: None,
            error_since: None,
            from_last_good,
        };
        Self {
            document: ArcSwap::from_pointee(document),
            health: watch::Sender::new(health),
            revision: watch::Sender::new(revision),
        }
    }

    /// The one document that a decision asks.
    pub(super) fn document(&self) -> arc_swap::Guard<Arc<Document>> {
        self.document.load()
    }

    /// Whether the file, and not the stored copy, said exactly this.
    pub(super) fn is_from_file(&self, text: &str) -> bool {
        !self.health.borrow().from_last_good && self.document().text() == text
    }

    /// The source says again what is in force. Nobody is told but for the end of a stored copy.
    pub(super) fn confirmed(&self) {
        self.health.send_if_modified(|health| {
            health.good_at = Utc::now();
            std::mem::replace(&mut health.from_last_good, false)
        });
    }

    /// Puts a document from the source in force; the revision is told when decisions already go by it.
    pub(super) fn put(&self, document: Document) {
        let revision = document.revision().to_owned();
        self.document.store(Arc::new(document));
        self.health.send_modify(|health| {
            let now = Utc::now();
            (health.loaded_at, health.good_at, health.from_last_good) = (now, now, false);
            health.revision.clone_from(&revision);
        });
        tracing::info!(revision, "flags in force");
        self.revision.send_if_modified(|now| std::mem::replace(now, revision.clone()) != revision);
    }

    /// Notes an error, and logs it when it comes or changes, not each time it is seen again.
    pub(super) fn failed(&self, error: String) {
        self.health.send_if_modified(|health| {
            if health.error.as_ref() == Some(&error) {
                return false;
            }
            tracing::error!("flags {} stay in force: {error}", health.revision);
            health.error_since.get_or_insert_with(Utc::now);
            health.error = Some(error);
            true
        });
    }

    pub(super) fn mended(&self) {
        self.health.send_if_modified(|health| {
            let was_bad = health.error.take().is_some();
            if was_bad {
                health.error_since = None;
                tracing::info!(revision = health.revision, "{} is good again", health.source);
            }
            was_bad
        });
    }
}
