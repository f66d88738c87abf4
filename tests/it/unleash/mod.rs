//! Unleash as a source of flags, on the real server and through a proxy that is at fault.

mod admin;
mod counts;
mod doctor;
mod faults;
mod proxy;
#[cfg(feature = "temporal")]
mod router;
mod server;
mod source;

use std::path::PathBuf;
use std::time::Duration;

use crossover::config::{Secret, SecretUrl};
use crossover::flags::unleash::Settings;
use crossover::flags::{Flags, FlagsError, Health};
use crossover::metrics::{FlagMetrics, Metrics};
use crossover::provision::Unleash;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A process's own folder and metrics, and how it follows an Unleash.
struct Place {
    folder: TempDir,
    metrics: FlagMetrics,
    settings: Settings,
}

impl Place {
    fn before(url: &str, unleash: &Unleash) -> Self {
        let settings = Settings {
            url: SecretUrl::new(url),
            token: Secret::new(&unleash.backend_token),
            environment: unleash.environment.clone(),
            app_name: "crossover".to_owned(),
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(1500),
            report: Duration::from_millis(200),
            accept_missing: Vec::new(),
            accept_older: Duration::from_secs(3600),
        };
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new().unwrap().flags);
        Self { folder, metrics, settings }
    }

    fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    async fn start(&self) -> Result<Flags, FlagsError> {
        Flags::follow(self.settings.clone(), &self.state_dir(), self.metrics.clone()).await
    }

    fn fetches(&self, outcome: &str) -> u64 {
        self.metrics.fetches.with_label_values(&[outcome]).get()
    }
}

async fn health(flags: &Flags, what: &str, wanted: impl FnMut(&Health) -> bool) -> Health {
    let mut changed = flags.health_changed();
    let seen = tokio::time::timeout(PATIENCE, changed.wait_for(wanted)).await;
    seen.unwrap_or_else(|_| panic!("{what} is not seen: {:?}", flags.health())).unwrap().clone()
}

/// Waits until a revision comes into force by which `wanted` holds.
async fn in_force(flags: &Flags, what: &str, wanted: impl Fn(&Flags) -> bool) {
    let mut changed = flags.changed();
    let seen = tokio::time::timeout(PATIENCE, changed.wait_for(|_| wanted(flags))).await;
    assert!(seen.is_ok(), "{what} is not seen: {:?}", flags.health());
}
