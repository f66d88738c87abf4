//! Changes the flags file as an operator's command: one at a time, never over an edit that it has not read, in one
//! step, with the mode and owner that the file had.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::document::Document;
use super::store;

/// Another operator's change takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The flags file, to be changed. Reads and writes; not for a thread that must not wait.
pub struct FlagsFile {
    /// The file itself, where the configured one is a link to it.
    path: PathBuf,
}

/// The flags file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be used as it is.
    #[error("{0}")]
    Unusable(String),
    /// Somebody holds its lock.
    #[error("{}: another command has been changing the flags for {PATIENCE:?}; see whether one hangs, and repeat", .0.display())]
    Locked(PathBuf),
    /// It is not what the change was made for.
    #[error("{}: was changed meanwhile, nothing was written; repeat the command", .0.display())]
    Changed(PathBuf),
    /// The system refused.
    #[error("{}: can't be {what}: {error}; nothing was changed", .path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl FlagsFile {
    /// The file at `path`, or the one that it is a link to.
    pub fn at(path: &Path) -> Result<Self, FileError> {
        match fs::canonicalize(path) {
            Ok(path) => Ok(Self { path }),
            Err(error) => Err(FileError::Io { what: "read", path: path.to_owned(), error }),
        }
    }

    /// What stands there now.
    pub fn read(&self) -> Result<Document, FileError> {
        Document::read(&self.path).map_err(FileError::Unusable)
    }

    /// Puts `after` in the place of `before`, if that still stands there.
    pub fn replace(&self, before: &Document, after: &Document) -> Result<(), FileError> {
        let _lock = self.lock()?;
        let failed = |what| move |error| FileError::Io { what, path: self.path.clone(), error };
        if fs::read(&self.path).map_err(failed("read"))? != before.text().as_bytes() {
            return Err(FileError::Changed(self.path.clone()));
        }
        let temp = store::temp_beside(&self.path).map_err(failed("replaced"))?;
        let written = self.write_like(&temp, after.text()).and_then(|()| fs::rename(&temp, &self.path));
        if let Err(error) = written {
            // Best effort: the error that matters is this one.
            let _ = fs::remove_file(&temp);
            return Err(failed("replaced")(error));
        }
        File::open(store::dir_of(&self.path)).and_then(|dir| dir.sync_all()).map_err(failed("made durable"))
    }

    /// Locks the folder: the file itself is another one after each change.
    fn lock(&self) -> Result<File, FileError> {
        let failed = |error| FileError::Io { what: "locked", path: self.path.clone(), error };
        let dir = File::open(store::dir_of(&self.path)).map_err(failed)?;
        let since = Instant::now();
        loop {
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(dir),
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(FileError::Locked(self.path.clone())),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    /// Writes another file with mode and owner of this one.
    fn write_like(&self, temp: &Path, text: &str) -> io::Result<()> {
        let like = fs::metadata(&self.path)?;
        // Nobody may read it before it has the owner it should have.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp)?;
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid())).map_err(|error| {
                io::Error::new(error.kind(), format!("it would lose its owner ({error}); run the command as the owner"))
            })?;
        }
        file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}
