//! The servers that a process works on: the configured ones, and one of its own for each that isn't.

use super::AppError;
use crate::config::{Config, SecretUrl};
use crate::provision::{self, Progress};

/// Where the two servers are; those of our own end with this.
pub struct Servers {
    /// Postgres.
    pub postgres_url: String,
    /// `host:port` of Temporal.
    pub temporal_address: String,
    /// The Postgres that was started because none is configured.
    pub postgres: Option<provision::Postgres>,
    /// The Temporal that was started because none is configured.
    #[cfg(feature = "temporal")]
    pub temporal: Option<provision::Temporal>,
}

/// Where servers of crossover's own are written down, for the commands beside `serve`.
const NOTE: &str = "postgres.url";
const TEMPORAL_NOTE: &str = "temporal.address";

impl Servers {
    /// The Postgres that commands ask: the configured one, or the one that a `serve` with this state_dir has started.
    pub fn known_postgres(config: &Config) -> Option<SecretUrl> {
        let noted = || std::fs::read_to_string(config.state_dir.join(NOTE)).ok().map(|url| SecretUrl::new(url.trim()));
        config.postgres.url.clone().or_else(noted)
    }

    /// The Temporal that commands ask: the configured one, or the one that a `serve` with this state_dir has started.
    pub fn known_temporal(config: &Config) -> Option<String> {
        let noted =
            || std::fs::read_to_string(config.state_dir.join(TEMPORAL_NOTE)).ok().map(|at| at.trim().to_owned());
        config.temporal.address.clone().or_else(noted)
    }

    /// Writes down where servers of our own are. Only this machine reaches them, and they ask for no password.
    pub fn note(&self, config: &Config) -> std::io::Result<()> {
        let mut notes = Vec::new();
        notes.extend(self.postgres.as_ref().map(|postgres| (NOTE, &postgres.url)));
        #[cfg(feature = "temporal")]
        notes.extend(self.temporal.as_ref().map(|temporal| (TEMPORAL_NOTE, &temporal.address)));
        for (name, server) in notes {
            std::fs::create_dir_all(&config.state_dir)?;
            std::fs::write(config.state_dir.join(name), format!("{server}\n"))?;
        }
        Ok(())
    }

    /// The configured servers, and one of our own for each that isn't.
    pub async fn provide(config: &Config, progress: Progress) -> Result<Self, AppError> {
        let options = provision::Options::from(config).telling(progress);
        let postgres = match config.postgres.url {
            None => Some(provision::postgres(&options).await?),
            Some(_) => None,
        };
        let configured = config.postgres.url.as_ref().map(|url| url.expose().to_owned());
        let postgres_url = postgres.as_ref().map(|p| p.url.clone()).or(configured).unwrap_or_default();
        #[cfg(feature = "temporal")]
        {
            let temporal = match config.temporal.address {
                None => Some(provision::temporal(&options).await?),
                Some(_) => None,
            };
            let configured = config.temporal.address.clone();
            let temporal_address = temporal.as_ref().map(|t| t.address.clone()).or(configured).unwrap_or_default();
            Ok(Self { postgres_url, temporal_address, postgres, temporal })
        }
        #[cfg(not(feature = "temporal"))]
        Ok(Self { postgres_url, temporal_address: String::new(), postgres })
    }
}
