//! The section of the status about who decides: the flags' source.

use serde::Serialize;

use crate::config::{Config, FlagSource};
use crate::flags::unleash::Settings;
use crate::flags::{Document, Flags};
use crate::interaction::Stage;
use crate::metrics::Metrics;

/// The flags' source, as this command finds it now. Routers may still go by the last good ones.
#[derive(Serialize)]
pub(super) struct FlagStatus {
    source: String,
    revision: Option<String>,
    error: Option<String>,
}

/// What the flags say.
pub(super) enum Stages {
    /// The file's.
    File(Box<Document>),
    /// Unleash's.
    Unleash(Box<Flags>),
    /// They can't be read.
    Unknown,
}

impl Stages {
    /// Where (account, kind) stands by the flags; none where they can't be read.
    pub(super) fn stage(&self, account: &str, kind: &str) -> Option<Stage> {
        match self {
            Stages::File(document) => Some(document.stage(account, kind)),
            Stages::Unleash(flags) => Some(flags.stage(account, kind)),
            Stages::Unknown => None,
        }
    }
}

/// Asks the source once.
pub(super) async fn read(config: &Config) -> (Stages, FlagStatus) {
    match config.flags.source {
        FlagSource::File => file(config),
        FlagSource::Unleash => unleash(config).await,
    }
}

fn file(config: &Config) -> (Stages, FlagStatus) {
    let source = config.flags.file.display().to_string();
    match Document::read(&config.flags.file) {
        Ok(document) => {
            let revision = Some(document.revision().to_owned());
            (Stages::File(Box::new(document)), FlagStatus { source, revision, error: None })
        }
        Err(error) => (Stages::Unknown, FlagStatus { source, revision: None, error: Some(error) }),
    }
}

/// Takes part in nothing: what it asks is not counted, and no last good copy is kept or used.
async fn unleash(config: &Config) -> (Stages, FlagStatus) {
    let source = config.flags.url.as_ref().map_or_else(|| "unleash".to_owned(), ToString::to_string);
    match follow(config).await {
        Ok(flags) => {
            let health = flags.health();
            let status = FlagStatus { source: health.source, revision: Some(health.revision), error: health.error };
            (Stages::Unleash(Box::new(flags)), status)
        }
        Err(error) => (Stages::Unknown, FlagStatus { source, revision: None, error: Some(error) }),
    }
}

async fn follow(config: &Config) -> Result<Flags, String> {
    let settings = Settings::of(&config.flags)?;
    let metrics = Metrics::new().map_err(|error| error.to_string())?.flags;
    let nowhere = crate::config::temp_dir().join(format!("crossover-status-{}", uuid::Uuid::new_v4().simple()));
    let followed = Flags::follow(settings, &nowhere, metrics).await.map_err(|error| error.from);
    // It may have kept a copy there.
    let _ = std::fs::remove_dir_all(&nowhere);
    followed
}

impl FlagStatus {
    pub(super) fn show(&self) {
        let Self { source, revision, error } = self;
        match error {
            None => println!("flags       {source}, revision {}", revision.as_deref().unwrap_or("-")),
            Some(error) => println!("flags       {source} can't be followed: {error}; routers go by the last good ones"),
        }
    }
}
