//! Folders, locks and the ends of logs.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::account::Account;
use super::error::{Error, Result};

/// Readable and enterable for all, whatever the umask.
pub(super) const OPEN: u32 = 0o755;
const PRIVATE: u32 = 0o700;

/// How often a lock or a server is looked at. Nothing tells us when either is free.
pub(super) const LOOK: Duration = Duration::from_millis(25);

/// Makes a folder and those above it; what is there already keeps its mode.
pub(super) fn open_dir(path: &Path) -> Result<()> {
    for folder in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
        if !folder.as_os_str().is_empty() && !folder.is_dir() {
            make_dir(folder, OPEN)?;
        }
    }
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("open to others", path))
        }
        // Another process was faster.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(Error::io("make this folder", path)(error)),
    }
}

/// Makes a folder that belongs to whom the server runs as, and to nobody else.
pub(super) fn own_dir(path: &Path, owner: Option<&Account>) -> Result<()> {
    if let Some(above) = path.parent() {
        open_dir(above)?;
    }
    make_dir(path, PRIVATE)?;
    if let Some(account) = owner {
        std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)).map_err(Error::io("give away", path))?;
    }
    Account::require(owner, "write to", "-w", path)
}

/// A path in the folder for throwaway things that nobody has yet.
pub(super) fn fresh_path(name: &str) -> PathBuf {
    let random = RandomState::new().hash_one(std::process::id());
    crate::config::temp_dir().join(format!("crossover-{name}-{random:016x}"))
}

/// Removes a folder if it is there.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Waits until the folder's file system has everything, so that a power cut after the rename leaves no empty files.
pub(super) fn flush(dir: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    File::open(dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?)).map_err(Error::io("flush", dir))?;
    let _ = dir;
    Ok(())
}

/// Takes a lock that ends with the last process that has this file open. `None`: somebody had it for too long.
pub(super) async fn lock(path: &Path, patience: Duration) -> Result<Option<File>> {
    let file = File::options().create(true).append(true).open(path).map_err(Error::io("open this lock", path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < patience => tokio::time::sleep(LOOK).await,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
    }
}

/// The last lines of a log.
pub(super) fn tail(path: &Path) -> String {
    const BYTES: u64 = 4096;
    const LINES: usize = 15;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read().map_or_else(|error| format!("({error})"), |bytes| String::from_utf8_lossy(&bytes).into_owned());
    last_lines(&text, LINES)
}

/// The last lines of a text, indented.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("  {line}"));
    if lines.is_empty() { "  (nothing)".to_owned() } else { shown.collect::<Vec<_>>().join("\n") }
}
