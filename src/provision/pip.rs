//! The one fetch: pip knows proxies, mirrors and certificates of the place it runs in.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use super::error::{Error, Result};
use super::files;
use super::wheel::Wheel;

const PATIENCE: Duration = Duration::from_secs(300);

/// What pip says when the index can't be reached or has no such file.
const UNREACHABLE: &[&str] = &[
    "No matching distribution",
    "Could not find a version",
    "ConnectionError",
    "NewConnectionError",
    "name resolution",
    "ProxyError",
    "timed out",
    "Max retries exceeded",
];

/// Downloads the one wheel that `requirements` names into `dir`.
pub(super) async fn download(wheel: &Wheel, requirements: &str, dir: &Path, cache_dir: &Path) -> Result<()> {
    let list = dir.join("requirements.txt");
    std::fs::write(&list, requirements).map_err(Error::io("write", &list))?;
    let mut command = tokio::process::Command::new("python3");
    command.args(["-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]);
    command.args(["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]);
    command.arg("-r").arg(&list).arg("-d").arg(dir).stdin(Stdio::null()).kill_on_drop(true);
    let package = wheel.requirement.to_owned();
    let unreachable = |said| {
        let offline = cache_dir.join("wheels");
        Error::Unreachable { package: wheel.requirement.to_owned(), offline, instead: wheel.instead, said }
    };
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => Err(unreachable(format!("  nothing for {PATIENCE:?}"))),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
            Err(Error::NoPython { package, instead: wheel.instead })
        }
        Ok(Err(error)) => Err(Error::io("run", "python3")(error)),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(explain(wheel, &output, unreachable)),
    }
}

fn explain(wheel: &Wheel, output: &Output, unreachable: impl FnOnce(String) -> Error) -> Error {
    let text = String::from_utf8_lossy(&output.stderr);
    let package = wheel.requirement.to_owned();
    let said = files::last_lines(&text, 8);
    if text.contains("No module named pip") {
        Error::NoPip { package, instead: wheel.instead }
    } else if text.contains("DO NOT MATCH THE HASHES") {
        let (what, pinned) = (format!("what pip got for {package}"), wheel_hashes(wheel));
        Error::WrongHash { what, found: format!("another one (pip said:\n{said}\n)"), pinned }
    } else if UNREACHABLE.iter().any(|sign| text.contains(sign)) {
        unreachable(said)
    } else {
        Error::Pip { package, said }
    }
}

fn wheel_hashes(wheel: &Wheel) -> String {
    wheel.hashes().collect::<Vec<_>>().join(" or ")
}
