//! Opens the flags from where the configuration says.

use std::sync::Arc;

use super::AppError;
use crate::config::{Config, FlagSource};
use crate::flags::{Flags, unleash};
use crate::metrics::Metrics;

pub(super) async fn open(config: &Config, metrics: &Metrics) -> Result<Arc<Flags>, AppError> {
    let flags = match config.flags.source {
        FlagSource::File => {
            let (file, state, poll) = (config.flags.file.clone(), config.state_dir.clone(), config.flags.poll);
            // The first look at the flags reads and writes files.
            let opened = tokio::task::spawn_blocking(move || Flags::open(&file, &state, poll)).await;
            opened.map_err(|error| AppError::Part(error.to_string()))??
        }
        FlagSource::Unleash => {
            let settings = unleash::Settings::of(&config.flags).map_err(AppError::Part)?;
            Flags::follow(settings, &config.state_dir, metrics.flags.clone()).await?
        }
    };
    Ok(Arc::new(flags))
}
