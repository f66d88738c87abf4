//! A server that comes as a tree of npm packages: fetched once, every package by the hash in our lock file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::error::{Error, Result};
use super::files;
use super::progress::Progress;

/// npm gets so long to fetch and unpack.
const PATIENCE: Duration = Duration::from_secs(400);
/// Longer than the fetch of another process may take.
const LOCK_PATIENCE: Duration = Duration::from_secs(500);
/// Asking node who it is takes a moment.
const ASK: Duration = Duration::from_secs(20);
/// The oldest node that the packages run on.
const OLDEST_NODE: u32 = 20;

/// Nothing of a package runs while it is installed: Unleash needs none of it, and one of its packages would report
/// the installation to a third party. Whatever the umask, the tree must be readable for whom servers run as.
const INSTALL: &str = "umask 022; exec npm ci --omit=dev --ignore-scripts --no-audit --no-fund --no-update-notifier --no-progress --loglevel=error";

/// npm packages, pinned to their bytes by a lock file.
#[derive(Debug)]
pub struct Tree {
    /// The one that all the others are for, as npm knows it.
    pub requirement: &'static str,
    /// The start of its folder's name in the cache.
    stem: &'static str,
    manifest: &'static str,
    lock: &'static str,
    /// The program inside.
    main: &'static str,
    /// What to do where it can't be had.
    instead: &'static str,
}

/// Unleash 7, the open-source one.
pub const UNLEASH: Tree = Tree {
    requirement: "unleash-server@7.5.1",
    stem: "unleash_server-7.5.1-",
    manifest: include_str!("unleash/package.json"),
    lock: include_str!("unleash/package-lock.json"),
    main: "node_modules/unleash-server/dist/server.js",
    instead: "use an Unleash that is there already (flags.url), or a file (flags.source = \"file\")",
};

impl Tree {
    /// Whether the packages are in the cache already.
    pub fn is_cached(&self, cache_dir: &Path) -> bool {
        self.installed(cache_dir).is_dir()
    }

    /// The program's path, fetched if it isn't in the cache yet.
    pub async fn ensure(&'static self, cache_dir: &Path, progress: &Progress) -> Result<PathBuf> {
        let installed = self.installed(cache_dir);
        if !installed.is_dir() {
            files::open_dir(cache_dir)?;
            let path = cache_dir.join(format!("{}lock", self.stem));
            let locked = files::lock(&path, LOCK_PATIENCE).await?;
            let _lock = locked.ok_or(Error::Locked { lock: path, waited: LOCK_PATIENCE })?;
            // The other process may have done all of it meanwhile.
            if !installed.is_dir() {
                self.fill(cache_dir, &installed, progress).await?;
            }
        }
        Ok(installed.join(self.main))
    }

    async fn fill(&self, cache_dir: &Path, installed: &Path, progress: &Progress) -> Result<()> {
        // What a crash left behind; the lock says that nobody works there.
        let scratch = cache_dir.join(format!("{}scratch", self.stem));
        files::remove_dir(&scratch)?;
        files::open_dir(&scratch)?;
        for (name, text) in [("package.json", self.manifest), ("package-lock.json", self.lock)] {
            let path = scratch.join(name);
            std::fs::write(&path, text).map_err(Error::io("write", &path))?;
        }
        let _step = progress.step(&format!("fetching {} (once)", self.requirement));
        self.install(&scratch).await?;
        if !scratch.join(self.main).is_file() {
            return Err(self.failed("  nothing, and left no program".to_owned()));
        }
        files::flush(&scratch)?;
        std::fs::rename(&scratch, installed).map_err(Error::io("move into place", installed))
    }

    async fn install(&self, dir: &Path) -> Result<()> {
        let mut npm = Command::new("/bin/sh");
        npm.args(["-c", INSTALL]).current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(PATIENCE, npm.output()).await {
            Err(_) => Err(self.failed(format!("  nothing for {PATIENCE:?}"))),
            Ok(Err(error)) => Err(Error::io("run", "/bin/sh")(error)),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            // How a shell says that it found no such program.
            Ok(Ok(Output { status, .. })) if status.code() == Some(127) => Err(self.no_node("npm isn't on the PATH")),
            Ok(Ok(output)) => Err(self.failed(files::last_lines(&String::from_utf8_lossy(&output.stderr), 8))),
        }
    }

    /// The `node` of the PATH, where it is new enough.
    pub(super) async fn node(&self) -> Result<PathBuf> {
        let mut node = Command::new("node");
        node.args(["-p", "process.versions.node + ' ' + process.execPath"]).stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(ASK, node.output()).await {
            Err(_) => return Err(self.no_node("node doesn't answer")),
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
                return Err(self.no_node("node isn't on the PATH"));
            }
            Ok(Err(error)) => return Err(Error::io("run", "node")(error)),
            Ok(Ok(output)) => output,
        };
        let said = String::from_utf8_lossy(&output.stdout);
        let (version, path) = said.trim().split_once(' ').unwrap_or_default();
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        match major {
            Some(OLDEST_NODE..) => Ok(path.into()),
            Some(_) => Err(self.no_node(&format!("node is {version}"))),
            None => Err(self.no_node("node doesn't say its version")),
        }
    }

    fn no_node(&self, what: &str) -> Error {
        let (what, package) = (what.to_owned(), self.requirement);
        Error::NoNode { what, package, oldest: OLDEST_NODE, instead: self.instead }
    }

    fn failed(&self, said: String) -> Error {
        Error::Npm { package: self.requirement, instead: self.instead, said }
    }

    /// The lock file's hash is in the name, so another pin never meets old files.
    fn installed(&self, cache_dir: &Path) -> PathBuf {
        let hash = Sha256::digest(self.lock);
        let hex: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        cache_dir.join(format!("{}{hex}", self.stem))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_package_of_the_tree_is_pinned_to_its_bytes_and_to_no_registry() {
        let lock: Value = serde_json::from_str(UNLEASH.lock).unwrap();
        let packages = lock["packages"].as_object().unwrap().iter().filter(|(path, _)| !path.is_empty());
        for (path, package) in packages {
            let hash = package["integrity"].as_str().unwrap_or_default();
            assert!(hash.starts_with("sha512-") || hash.starts_with("sha1-"), "{path} has no hash");
            assert!(package.get("resolved").is_none(), "{path} names a registry");
        }
        let (name, version) = UNLEASH.requirement.split_once('@').unwrap();
        assert_eq!(lock["packages"][format!("node_modules/{name}")]["version"], version);
    }
}
