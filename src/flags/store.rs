//! The last good document on disk, so that a restart with a broken or missing file goes on where it stood.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::document::Document;

/// Where the last good document is kept: its text as it was, so its revision stays the same.
pub(super) struct LastGood(PathBuf);

impl LastGood {
    pub(super) fn in_dir(state_dir: &Path) -> Self {
        Self(state_dir.join("flags-last-good.json"))
    }

    /// The stored document, or why there is none.
    pub(super) fn load(&self) -> Result<Document, String> {
        load(&self.0)
    }

    /// Keeps `document`. The error says what to look at.
    pub(super) fn store(&self, document: &Document) -> Result<(), String> {
        let dir = self.0.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).and_then(|()| document.write_to(&self.0)).map_err(|error| {
            format!(
                "{}: can't keep the flags in force for the next start: {error}; \
                 until it can, a restart with a broken flags file would not be ready",
                self.0.display()
            )
        })
    }
}

/// Reads and checks the document at `path`; the error names the file and everything wrong with it.
pub(super) fn load(path: &Path) -> Result<Document, String> {
    check(path, read(path)?)
}

pub(super) fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: can't be read: {error}", path.display()))
}

pub(super) fn check(path: &Path, text: String) -> Result<Document, String> {
    Document::parse(&text).map_err(|faults| {
        let lines: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
        format!("{}: refused, {} to mend:{lines}", path.display(), faults.len())
    })
}

/// Replaces `path` in one step: a reader, or a crash, sees the old text or the new one and nothing between.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temp = temp_beside(path)?;
    let result = write_synced(&temp, text).and_then(|()| fs::rename(&temp, path));
    if result.is_err() {
        // Best effort: the error that matters is the one above.
        let _ = fs::remove_file(&temp);
        return result;
    }
    File::open(dir_of(path))?.sync_all()
}

/// The directory that holds `path`, also where `path` is a bare name.
pub(super) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn temp_beside(path: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temp = format!(".{}.{}-{number}.tmp", name.to_string_lossy(), std::process::id());
    Ok(dir_of(path).join(temp))
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
